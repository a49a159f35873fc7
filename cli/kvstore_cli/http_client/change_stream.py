"""A change stream that reconnects: it resumes at its position, with nothing lost and nothing twice.

The rules are those of docs/http.md: the position moves only with a line that carries a ``cursor``: the last
event of a revision, a ``sync`` or a ``heartbeat``. The events of a revision are therefore held back until
all of them have arrived.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, NamedTuple

from kvstore_cli.http_client.client import Query, ServiceClient, new_backoff
from kvstore_cli.http_client.errors import AttemptError
from kvstore_cli.http_client.line_stream import LineStream
from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError

SNAPSHOT, EVENTS, SYNC, RESET, HEARTBEAT = "snapshot", "events", "sync", "reset", "heartbeat"
END = "end"
CURSOR = "cursor"
"""The detail of a refusal with the position up to which everything was delivered, if there is one."""

_NEWEST_BYTES = 64 * 1024
"""What the system keeps unread for a reader of the newest. By itself it would be megabytes, all of it old."""

_EVENT_NAMES = frozenset(("put", "delete", "expire"))


class StreamUpdate(NamedTuple):
    """What a stream delivers at once.

    ``snapshot``: one record. ``events``: the events of one revision that match. ``sync``: the snapshot, or
    the catch-up, is complete. ``reset``: everything delivered so far is void, a snapshot follows.
    ``heartbeat``: nothing happened. ``cursor`` is the position after the update, None inside a snapshot.
    """

    kind: str
    lines: list[dict[str, Any]]
    cursor: str | None


@dataclass
class StreamPosition:
    """The position of a stream, from the lines that arrived. It does no input or output."""

    cursor: str | None
    snapshot: bool
    _held: list[dict[str, Any]] = field(default_factory=list)
    _delivered: bool = False

    def query(self) -> Query:
        """The parameters to open the stream with at this position."""
        if self.cursor is not None:
            return [("since", self.cursor)]
        return [("snapshot", "1")] if self.snapshot else []

    def reopened(self) -> Iterator[StreamUpdate]:
        """Start on a new connection: drop what the old one left incomplete. A snapshot that was cut off
        starts over, with a ``reset`` if some of it was delivered."""
        self._held.clear()
        if self.cursor is None and self._delivered:
            self._delivered = False
            yield StreamUpdate(RESET, [{"event": RESET, "reason": "reconnected"}], None)

    def feed(self, line: dict[str, Any]) -> Iterator[StreamUpdate]:
        """The updates that ``line`` completes."""
        name = line.get("event")
        if name in _EVENT_NAMES:
            yield from self._feed_event(line)
        elif name == RESET:
            self.cursor, self.snapshot, self._delivered = None, True, False
            self._held.clear()
            yield StreamUpdate(RESET, [line], None)
        elif name in (SYNC, HEARTBEAT):
            self.cursor = line.get("cursor", self.cursor)
            yield StreamUpdate(name, [line], self.cursor)
        elif name == END and not self._held:
            self.cursor = line.get("cursor", self.cursor)
        # names of a newer service are ignored

    def _feed_event(self, line: dict[str, Any]) -> Iterator[StreamUpdate]:
        if "snapshot" in line:
            self._delivered = True
            yield StreamUpdate(SNAPSHOT, [line], None)
            return
        self._held.append(line)
        if "cursor" in line:
            held, self._held = self._held, []
            self.cursor = line["cursor"]
            yield StreamUpdate(EVENTS, held, self.cursor)


def follow(
    service: ServiceClient,
    wanted: Query,
    position: StreamPosition,
    *,
    stall_ms: int,
    deadline: float | None = None,
    output: int | None = None,
    notice: Callable[[str], None] = lambda _: None,
    newest: bool = False,
) -> Generator[StreamUpdate, None, None]:
    """The updates of the stream with the parameters ``wanted``, from ``position`` on, without end.

    Raises the KvError of the first connection. Later ones are retried until they succeed, or fail with an
    error that is not transient; one that says that access was taken away has the detail :data:`CURSOR`.
    ``notice`` is called when the stream breaks and when it is back. Raises
    ``timed_out`` at ``deadline`` (of the monotonic clock), and BrokenPipeError when the reader of the
    file descriptor ``output`` is gone.

    With ``newest``, of what has come by the time it is wanted only the newest change of each key is given,
    with the others added to its ``skipped``; little is kept unread, so that the service sees a slow reader.
    """

    def opener(open_it: Callable[..., LineStream]) -> LineStream:
        query = [*wanted, *position.query()]
        return open_it(
            "/v1/subscribe",
            query,
            stall_seconds=stall_ms / 1000,
            receive_bytes=_NEWEST_BYTES if newest else None,
        )

    stream = opener(service.open_stream)
    backoff = new_backoff()
    while True:
        try:
            with stream:
                for lines in _read(stream, deadline, output, newest):
                    backoff.reset()
                    updates = (update for line in lines for update in position.feed(_parsed(line)))
                    yield from _newest_of(updates) if newest else updates
        except AttemptError as failure:
            notice(f"{failure.error.message}; reconnecting")
            try:
                stream = _reopened(lambda: opener(service.open_stream_once), backoff, failure, deadline)
            except KvError as error:
                raise _taken_away(error, position.cursor) from None
        notice("reconnected")
        yield from position.reopened()


def _read(
    stream: LineStream, deadline: float | None, output: int | None, newest: bool
) -> Iterator[list[bytes]]:
    """The lines: as many as have come, or one by one, so that each is dealt with before the next is read."""
    return stream.bursts(deadline, output) if newest else ([line] for line in stream.lines(deadline, output))


def _newest_of(updates: Iterable[StreamUpdate]) -> Iterator[StreamUpdate]:
    """``updates`` with all neighbouring ones of events in one, which has the newest of each key."""
    kept: dict[str, dict[str, Any]] = {}
    cursor: str | None = None
    for update in updates:
        if update.kind == EVENTS:
            cursor = update.cursor
            for line in update.lines:
                older = kept.pop(line["key"], None)
                if older is not None:
                    line["skipped"] = line.get("skipped", 0) + 1 + older.get("skipped", 0)
                kept[line["key"]] = line
            continue
        if kept:
            yield StreamUpdate(EVENTS, list(kept.values()), cursor)
            kept = {}
        yield update
    if kept:
        yield StreamUpdate(EVENTS, list(kept.values()), cursor)


def _taken_away(error: KvError, cursor: str | None) -> KvError:
    if error.code not in ("unauthenticated", "not_allowed"):
        return error
    details = {**error.details, CURSOR: cursor} if cursor else error.details
    return KvError(error.code, f"access was taken away ({error.code}): {error.message}", **details)


def _reopened(
    open_it: Callable[[], LineStream], backoff: Backoff, failure: AttemptError, deadline: float | None
) -> LineStream:
    while True:
        _sleep(backoff.next(failure.retry_after), deadline)
        try:
            return open_it()
        except AttemptError as next_failure:
            failure = next_failure


def _parsed(line: bytes) -> dict[str, Any]:
    if not line:
        return {}
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise KvError("internal", f"the stream holds a line that is not a JSON object: {line[:80]!r}")
    return parsed


def _sleep(seconds: float, deadline: float | None) -> None:
    if deadline is not None and monotonic() + seconds >= deadline:
        sleep(max(0.0, deadline - monotonic()))
        raise KvError("timed_out", "timed out")
    sleep(seconds)
