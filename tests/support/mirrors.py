"""Copies of the store that are kept up by watching it, and whether what they were told was right.

Every mirror begins with a snapshot and follows what comes after it, in the manner of one surface; now and
then it hangs up, and goes on from the cursor that it has: soon, or so late that the log no longer reaches
back to it.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kvstore_client import Event, Reset, Subscription, Sync
from support.load import LAST_KEY, Party, Seen, seen_event, seen_json
from support.servers import clean_environment, dies_with_us, kvstore_command
from support.streams import open_stream

Outlast = Callable[[int], None]
"""Returns once the log no longer reaches back to a revision, or the run has come to its end."""


class Told(NamedTuple):
    """What a mirror was told: ``shown`` (before a snapshot is complete), ``event`` (after it), ``sync``,
    ``reset``; or ``resumed``, where it went on.

    ``cursor`` is the revision that the position is at with it, None where it is at none.
    """

    kind: str
    seen: Seen | None = None
    cursor: int | None = None


class Mirror(Party):
    """Follows the store until :data:`LAST_KEY` is put, and keeps all that it was told."""

    patience = 120

    repeats = False
    """Whether what was delivered last may come once more after a restart."""

    forgets = False
    """Whether it begins with a snapshot each time, instead of where it was."""

    def __init__(self, name: str, seed: int, outlast: Outlast) -> None:
        super().__init__(name)
        self.told: list[Told] = []
        self.breaks = 0
        self._random = random.Random(f"{seed} {name}")
        self._outlast = outlast
        self._cursor: str | None = None
        self._is_following = False
        self._has_last = False

    @property
    def resets(self) -> int:
        """How often it had to start over."""
        return sum(told.kind == "reset" for told in self.told)

    @property
    def is_complete(self) -> bool:
        """Whether there is no more to come."""
        return self._has_last and self._is_following

    def work(self) -> None:
        while not self.is_complete:
            self._begin()
            self.follow(self._random.randrange(10, 20) if self.forgets else self._random.randrange(50, 600))
            self.breaks += 1
            if self.forgets:
                self._cursor = None
            if self.breaks % 3 == 0 and not self.is_complete and self._cursor is not None:
                self._outlast(_revision(self._cursor))

    def _begin(self) -> None:
        if self._cursor is not None:
            self.told.append(Told("resumed", None, _revision(self._cursor)))
            self._is_following = True
        elif self.told:  # a snapshot that was cut off begins again
            self.take(Told("reset"), None)

    def so_far(self) -> str:
        return f"the last of the {len(self.told)} things that it was told is {self.told[-1:]}"

    def follow(self, patience: int) -> None:
        """Take about ``patience`` things from a new connection, from ``_cursor`` on, or until it breaks."""
        raise NotImplementedError

    def take(self, told: Told, cursor: str | None) -> None:
        """Keep what was told, and where one goes on after it."""
        if told.kind == "event" and not self._is_following:
            told = told._replace(kind="shown")
        self.told.append(told)
        self._cursor = cursor
        self._has_last |= told.seen is not None and told.seen.key == LAST_KEY
        if told.kind == "sync":
            self._is_following = True
        if told.kind == "reset":
            self._is_following = self._has_last = False

    def may_hang_up(self, number: int, patience: int) -> bool:
        """Whether it has had enough; to give a snapshot up over and over would be for ever."""
        return self.is_complete or (number >= patience and self._cursor is not None)


class StreamMirror(Mirror):
    """Over HTTP, as server-sent events or as NDJSON. A revision is taken when it is whole."""

    def __init__(self, name: str, seed: int, outlast: Outlast, url: str) -> None:
        super().__init__(name, seed, outlast)
        self._url = url

    def lines(self) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        """Name, cursor and data of each event of a new connection."""
        raise NotImplementedError

    def follow(self, patience: int) -> None:
        pending: list[Told] = []
        try:
            with closing(self.lines()) as lines:
                for number, (name, cursor, data) in enumerate(lines):
                    if name != "heartbeat":
                        pending.append(_told_in_json(name, cursor, data))
                    # of a revision that was cut off everything comes again
                    if cursor is not None or name == "reset" or not self._is_following:
                        for told in pending:
                            self.take(told, cursor if name != "heartbeat" else self._cursor)
                        pending.clear()
                    if self.may_hang_up(number, patience):
                        return
        except (OSError, HTTPException):
            time.sleep(0.02)


class SseMirror(StreamMirror):
    """Resumes by ``Last-Event-ID``."""

    def lines(self) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        with closing(open_stream(self._url, "snapshot=1", self._cursor)) as stream:
            for event in stream:
                yield event.name, event.id, event.json


class ForgetfulSseMirror(SseMirror):
    """Takes a snapshot and little more, again and again."""

    forgets = True


class NdjsonMirror(StreamMirror):
    """Resumes by ``since``."""

    def lines(self) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
        query = "snapshot=1" if self._cursor is None else f"since={self._cursor}"
        with closing(HTTPConnection(urlsplit(self._url).netloc, timeout=60)) as connection:
            connection.request("GET", f"/v1/subscribe?{query}", headers={"Accept": "application/x-ndjson"})
            response = connection.getresponse()
            if response.status != 200:
                raise ConnectionError(response.read())
            while line := response.readline():
                data = json.loads(line)
                yield data["event"], data.get("cursor"), data


class NativeMirror(Mirror):
    """``Subscription``, taken revision by revision, and begun anew from its cursor."""

    def __init__(self, name: str, seed: int, outlast: Outlast, requests: str, changes: str) -> None:
        super().__init__(name, seed, outlast)
        self._endpoints = {"requests": requests, "changes": changes}

    def follow(self, patience: int) -> None:
        number = 0
        with Subscription(**self._endpoints, since=self._cursor, snapshot=True) as subscription:
            while not self.may_hang_up(number, patience):
                number += 1
                item = subscription.next_batch()
                place = subscription.cursor
                cursor = None if place is None else str(place)
                for told in _told(item, None if place is None else place.revision):
                    self.take(told, cursor)


class ForgetfulNativeMirror(NativeMirror):
    """Takes a snapshot and little more, again and again."""

    forgets = True


def _told(item: Any, place: int | None) -> list[Told]:
    if isinstance(item, Sync):
        return [Told("sync", None, item.cursor.revision)]
    if isinstance(item, Reset):
        return [Told("reset")]
    events: list[Event] = item
    return [Told("event", seen_event(event), place if event is events[-1] else None) for event in events]


class CommandMirror(Mirror):
    """``kvstore subscribe --snapshot --cursor FILE --json``, ended and started again.

    It delivers before it notes the position: ended in between, it delivers once more what it did last.
    """

    repeats = True

    def __init__(self, name: str, seed: int, outlast: Outlast, url: str, folder: Path) -> None:
        super().__init__(name, seed, outlast)
        self._file = folder / f"{name}.cursor"
        self._log = folder / f"{name}.stderr"
        self._environment = clean_environment(folder, KVSTORE_URL=url)

    def follow(self, patience: int) -> None:
        options = "--json", "--snapshot", "--cursor", str(self._file)
        command = dies_with_us(kvstore_command("subscribe", *options))
        with (
            self._log.open("ab") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=self._environment) as process,
        ):
            assert process.stdout is not None
            try:
                self._read(process.stdout, patience)
            finally:
                process.send_signal(self._random.choice((signal.SIGKILL, signal.SIGTERM)))
                rest = process.stdout.read()
        # what was written before the signal was delivered as well
        self._read(rest.splitlines(keepends=True), len(rest))
        self._cursor = self._file.read_text().strip() if self._file.exists() else None

    def _read(self, lines: Iterable[bytes], patience: int) -> None:
        for number, line in enumerate(lines):
            if not line.endswith(b"\n"):
                return
            data = json.loads(line)
            name, cursor = data["event"], None if data["event"] == "reset" else data.get("cursor")
            self.take(_told_in_json(name, cursor, data), cursor)
            if self.may_hang_up(number, patience):
                return


def _told_in_json(name: str, cursor: str | None, data: dict[str, Any]) -> Told:
    place = None if cursor is None else _revision(cursor)
    if name in ("put", "delete", "expire"):
        return Told("event", seen_json(data, name), place)
    return Told(name, None, place)


def _revision(cursor: str) -> int:
    return int(cursor.partition("-")[0])


# ── was it right? ────────────────────────────────────────────────────────────────────────────────

State = dict[str, Seen]


def apply(state: State, seen: Seen) -> None:
    """Do to ``state`` what an event says."""
    if seen.op == "put":
        state[seen.key] = seen
    else:
        state.pop(seen.key, None)


class Truth:
    """What happened, by the whole log of a store."""

    def __init__(self, log: Sequence[Event]) -> None:
        self.events = [seen_event(event) for event in log]
        self.expiring = {(e.revision, e.key) for e in log if e.record and e.record.expires_at is not None}
        self._revisions = [seen.revision for seen in self.events]
        self._happened = {seen._replace(index=0) for seen in self.events}

    def after(self, revision: int) -> int:
        """The number of the first event after ``revision``."""
        return bisect_right(self._revisions, revision)

    def state(self, revision: int) -> State:
        """The store as it was at ``revision``."""
        state: State = {}
        for seen in islice(self.events, self.after(revision)):
            apply(state, seen)
        return state

    def holds(self, seen: Seen) -> bool:
        """Whether this happened, wherever in its revision."""
        return seen._replace(index=0) in self._happened


class _Reader:
    """Goes through what a mirror was told. ``next`` is the number of the event that has to come now, None
    until a snapshot is complete."""

    def __init__(self, mirror: Mirror, truth: Truth) -> None:
        self.name = mirror.name
        self.state: State = {}
        self.next: int | None = None
        self._repeats = mirror.repeats
        self._truth = truth
        self._shown_before: set[Seen] = set()

    def read(self, told: Told) -> None:
        """Take the next thing."""
        if told.kind == "reset":
            self.state, self.next, self._shown_before = {}, None, set()
        elif told.kind == "resumed":
            self._resumed(told)
        elif told.kind == "shown":
            self._shown(told)
        elif told.kind == "event":
            self._event(told)
        elif told.kind == "sync":
            self._sync(told)

    def _resumed(self, told: Told) -> None:
        assert told.cursor is not None
        place = self._truth.after(told.cursor)
        if self._repeats:
            assert self.next is None or place <= self.next, f"{self.name} noted what it had not delivered"
        else:
            assert self.next == place, f"{self.name} was at another place than its cursor says"
        self.next = place

    def _shown(self, told: Told) -> None:
        seen = told.seen
        assert seen is not None
        assert self._truth.holds(seen), f"{self.name} was told of {seen}, which did not happen"
        assert seen not in self._shown_before, f"{self.name} was told of {seen} twice"
        self._shown_before.add(seen)
        apply(self.state, seen)

    def _event(self, told: Told) -> None:
        seen = told.seen
        assert seen is not None
        assert self.next is not None
        wanted = self._truth.events[self.next : self.next + 1]
        assert [seen] == wanted, f"{self.name} was told of {seen} and not of {wanted}"
        self.next += 1
        apply(self.state, seen)
        if told.cursor is not None:
            place = self._truth.after(told.cursor)
            assert place == self.next, f"{self.name}: {seen} came with the cursor {told.cursor}"

    def _sync(self, told: Told) -> None:
        assert told.cursor is not None
        place = self._truth.after(told.cursor)
        if self.next is None:
            self._compare(told.cursor)
        else:
            missing = self._truth.events[self.next : place]
            assert self.next == place, f"{self.name} was synced at {told.cursor} without {missing}"
        self.next = place

    def _compare(self, revision: int) -> None:
        """A snapshot is the store as of its cursor, but for what had expired and was not yet removed."""
        wanted = self._truth.state(revision)
        for key in wanted.keys() | self.state.keys():
            ours, theirs = self.state.get(key), wanted.get(key)
            if ours is None and theirs is not None and (theirs.revision, key) in self._truth.expiring:
                continue
            assert ours is not None, f"{self.name} was not shown {theirs} as of {revision}"
            assert theirs is not None, f"{self.name} was shown {ours}, which was gone as of {revision}"
            same = (ours.revision, ours.value) == (theirs.revision, theirs.value)
            assert same, f"{self.name} was shown {ours} and not {theirs} as of {revision}"


def check_mirror(mirror: Mirror, truth: Truth, present: dict[str, tuple[int, str]]) -> None:
    """Whether all that the mirror was told is right, in order, complete, and leads to what is ``present``."""
    reader = _Reader(mirror, truth)
    for told in mirror.told:
        reader.read(told)
    mirrored = {key: (seen.revision, seen.value) for key, seen in reader.state.items()}
    assert mirrored == present, f"{mirror.name} ended with another state than the store"


def check_messages(messages: Sequence[tuple[Seen, int]], truth: Truth) -> None:
    """Whether what was published did happen, in order, and ``prev`` hides no gap."""
    places = [seen[:2] for seen, _ in messages]
    assert places == sorted(set(places)), "published out of order, or twice"
    for seen, prev in messages:
        assert truth.holds(seen), f"{seen} was published and did not happen"
        between = truth.events[truth.after(prev) : truth.after(seen.revision - 1)]
        assert not between, f"{seen} says that it follows {prev}, and there was {between}"
