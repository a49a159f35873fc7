"""What many clients of several daemons over one store were told while processes were killed and stopped."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvstore_client import Client, Event
from support.accounts import check_log, check_state, check_watcher
from support.contenders import (
    Contender,
    Ground,
    HttpContender,
    NativeContender,
    Poller,
    Turn,
    WireContender,
)
from support.gaps import PULSES, Echo, Gaps, Pulse
from support.history import History, check_keys, check_witness
from support.load import (
    LAST_KEY,
    CommandWatcher,
    HttpWriter,
    Ledger,
    NativeWatcher,
    NativeWriter,
    Party,
    PlainSubscriber,
    SseWatcher,
    Watcher,
    Writer,
    seen_event,
    wait_for_more,
    whole_log,
)
from support.mirrors import Mirror, NativeMirror, NdjsonMirror, SseMirror, Truth, check_messages, check_mirror
from support.servers import Service, wait_until

CONTENDED = "key/"
PACE_SECONDS = 0.02
UNDER_WAY_MS = 60_000
"""A write may be under way for as long as a cluster has no leader, and it is asked again all that time."""


class ClusterStory:
    """Writers and contenders at every daemon and between them, and who watches each.

    ``is_shared``: what several ask may be committed in one revision.
    """

    def __init__(self, nodes: Sequence[Service], seed: int, folder: Path, *, is_shared: bool) -> None:
        self.nodes = nodes
        self.ledger = Ledger()
        self.history = History(write_ms=UNDER_WAY_MS)
        self._is_shared = is_shared
        self._folder = folder
        self._ground = Ground()
        self._logs: list[list[Event]] = []
        self._present: list[dict[str, tuple[int, str]]] = []
        names = [str(number) for number in range(len(nodes))]
        at = list(zip(names, nodes, strict=True))
        self._writers: list[Writer] = [
            *(HttpWriter(f"http{name}", self.ledger, node.url) for name, node in at),
            *(NativeWriter(f"native{name}", self.ledger, node.requests) for name, node in at),
        ]
        self._contenders = self._all_contenders(at, seed)
        self._watchers: list[Watcher] = [
            *(SseWatcher(f"sse{name}", node.url) for name, node in at),
            *(NativeWatcher(f"subscription{name}", node.requests, node.changes) for name, node in at),
            SseWatcher("resuming-sse", nodes[0].url, hangs_up=True),
            CommandWatcher("command", nodes[-1].url, folder),
        ]
        self._mirrors: list[Mirror] = [
            SseMirror("sse-mirror", seed, _stay, nodes[-1].url),
            NdjsonMirror("ndjson-mirror", seed, _stay, nodes[0].url),
            NativeMirror("native-mirror", seed, _stay, nodes[-1].requests, nodes[-1].changes),
        ]
        self._plain = [PlainSubscriber(node.changes) for node in nodes]
        self._pulses = [Pulse(f"pulse{name}", node.requests) for name, node in at]
        self._echoes = [Echo(f"echo{name}", node.requests, node.changes) for name, node in at]
        self.gaps = Gaps(self._pulses, self._echoes, self._parties())
        for writer in self._writers:
            writer.pace_seconds = PACE_SECONDS
        for contender in self._contenders:
            contender.ground = self._ground

    def _all_contenders(self, at: list[tuple[str, Service]], seed: int) -> list[Contender]:
        one: tuple[History, int, Turn] = self.history, seed, self._turn
        return [
            *(HttpContender(f"http{name}", *one, node.url) for name, node in at),
            *(NativeContender(f"native{name}", *one, node.requests) for name, node in at),
            HttpContender("http-everywhere", *one, *(node.url for _, node in at)),
            WireContender("wire", *one, at[0][1].requests),
            WireContender("wire-everywhere", *one, *(node.requests for _, node in at)),
            Poller("poll", *one, at[-1][1].url),
        ]

    def _turn(self, _: int) -> None:
        threading.Event().wait(PACE_SECONDS)

    def _parties(self) -> list[Party]:
        return [*self._writers, *self._contenders, *self._watchers, *self._mirrors, *self._plain]

    def begin(self) -> None:
        """Start all parties, and return once every one that beats does."""
        for party in [*self._parties(), *self._pulses, *self._echoes]:
            party.start()
        self.gaps.wait_for_beats()

    def go_on(self, operations: int) -> None:
        """Return after so many more operations, and have other keys contended for from now on."""
        wait_for_more(self.history, operations, [*self._parties(), *self._pulses, *self._echoes])
        self._ground.move()

    def end(self) -> None:
        """Have all come to their end, and ask each daemon for what it has."""
        for party in (*self._writers, *self._contenders, *self._pulses, *self._echoes):
            party.finish()
        with Client(self.nodes[0].requests, timeout=60) as client:
            wait_until(lambda: not client.status()["expiring_keys"], what="all keys with a TTL are gone")
            client.put(LAST_KEY, b"0")
        for party in (*self._watchers, *self._mirrors, *self._plain):
            party.finish()
        for node in self.nodes:
            with Client(node.requests, timeout=60) as client:
                self._present.append({r.key: (r.revision, (r.value or b"").decode()) for r in client.list()})
                self._logs.append(whole_log(client))

    @property
    def present(self) -> dict[str, tuple[int, str]]:
        """All keys at the end, with their revisions and values, as the first daemon has them."""
        return self._present[0]

    def check(self) -> str:
        """Hold what everybody was told against everything else; what there was of it, in words."""
        log = self._logs[0]
        for number, other in enumerate(self._logs):
            assert other == log, f"the logs of daemons 0 and {number} differ"
            assert self._present[number] == self.present, f"daemons 0 and {number} have other keys"
        _check_whole(log)
        seen = list(map(seen_event, log))
        check_log([event for event in seen if not event.key.startswith((CONTENDED, PULSES))], self.ledger)
        check_state({key: value for key, (_, value) in self.present.items()}, seen, self.ledger)
        for watcher in self._watchers:
            check_watcher(watcher.name, watcher.seen, seen)
        truth = Truth(log)
        for mirror in self._mirrors:
            check_mirror(mirror, truth, self.present)
        for plain in self._plain:
            check_messages(plain.messages, truth)
        check_witness(self.history.operations, _part(log, CONTENDED), is_shared=self._is_shared)
        check_keys(self.history.operations, is_shared=self._is_shared)
        watchers = len(self._watchers) + len(self._mirrors)
        return (
            f"{len(self.ledger):,} writes and {self.ledger.increments:,} increments acknowledged, "
            f"{len(self.history):,} operations in the history, {len(log):,} events at {watchers} watchers"
        )

    def save(self) -> None:
        """Keep what there was to check."""
        self.history.save(self._folder / "history.ndjson")
        for number, log in enumerate(self._logs):
            (self._folder / f"log{number}.txt").write_text("".join(f"{event}\n" for event in log))
        for mirror in self._mirrors:
            told = "".join(f"{told}\n" for told in mirror.told)
            (self._folder / f"{mirror.name}.txt").write_text(told)
        for watcher in self._watchers:
            seen = "".join(f"{seen}\n" for seen in watcher.seen)
            (self._folder / f"{watcher.name}.txt").write_text(seen)


def _stay(_: int) -> None:
    """The log of these stories reaches back to its beginning."""


def _check_whole(log: list[Event]) -> None:
    """No part of a commit is missing."""
    for revision, commit in itertools.groupby(log, key=lambda event: event.revision):
        events = list(commit)
        assert [event.index for event in events] == list(range(events[0].count)), f"{revision} is not whole"


def _part(log: list[Event], prefix: str) -> list[Event]:
    """The log as it would be if there were no other keys."""
    part: list[Event] = []
    for _, commit in itertools.groupby(log, key=lambda event: event.revision):
        events = [event for event in commit if event.key.startswith(prefix)]
        part += [replace(event, index=n, count=len(events)) for n, event in enumerate(events)]
    return part
