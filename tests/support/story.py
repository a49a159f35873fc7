"""One story: clients contend for five keys, over HTTP and ZeroMQ; mirrors on every surface follow them, and
hang up; and the log is trimmed all the while. Afterwards everything that anybody was told is held against
everything else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstore_client import Client
from support.contenders import Contender, HttpContender, NativeContender, Poller, WireContender
from support.history import Effect, Found, History, check_keys, check_witness, end
from support.lengths import SHARE, Survived
from support.load import LAST_KEY, PlainSubscriber, wait_for_more
from support.mirrors import (
    CommandMirror,
    ForgetfulNativeMirror,
    ForgetfulSseMirror,
    Mirror,
    NativeMirror,
    NdjsonMirror,
    SseMirror,
    Truth,
    check_messages,
    check_mirror,
)
from support.recorder import Recorder
from support.servers import Service, wait_until

OPERATIONS_BETWEEN = 200 if SHARE else 120


class Story:
    """Contenders and mirrors, spread over the daemons of ``nodes``, which all serve one store and retain
    200 events of its log.

    ``is_shared``: what several ask may be committed in one revision.
    """

    def __init__(self, nodes: Sequence[Service], seed: int, *, folder: Path, is_shared: bool = False) -> None:
        self._nodes = nodes
        self._is_shared = is_shared
        self.history = History()
        self.recorder = recorder = Recorder(nodes[0].requests)
        at = itertools.cycle(reversed(nodes))
        one = self.history, seed, recorder.turn
        self._contenders: list[Contender] = [
            *(HttpContender(f"http{number}", *one, next(at).url) for number in range(4)),
            *(NativeContender(f"native{number}", *one, next(at).requests) for number in range(3)),
            WireContender("wire", *one, next(at).requests),
        ]
        self._poller = Poller("poll", *one, next(at).url)
        self._plain = PlainSubscriber(next(at).changes)
        two = seed, recorder.outlast
        self._mirrors: list[Mirror] = [
            SseMirror("sse", *two, next(at).url),
            NdjsonMirror("ndjson", *two, next(at).url),
            NativeMirror("native", *two, *_endpoints(next(at))),
            ForgetfulSseMirror("forgetful-sse", *two, next(at).url),
            ForgetfulNativeMirror("forgetful-native", *two, *_endpoints(next(at))),
            CommandMirror("command", *two, next(at).url, folder),
        ]

    def tell(self, harm: Callable[[], None], survived: Survived) -> None:
        """From the first operation to the last event; ``harm`` is what is done meanwhile."""
        for thread in (self.recorder, self._plain, *self._mirrors, *self._contenders, self._poller):
            thread.start()
        self.go_on()
        harm()
        for contender in (*self._contenders, self._poller):
            contender.finish()
        with Client(self._nodes[0].requests, timeout=60) as client:
            wait_until(lambda: not client.status()["expiring_keys"], what="all keys with a TTL are gone")
            last = self.history.begin("last", [Effect("put", LAST_KEY, 0)])
            end(last, "ok", [Found(client.put(LAST_KEY, b"0").revision)])
            for party in (self.recorder, *self._mirrors, self._plain):
                party.finish()
            self._present = {r.key: (r.revision, (r.value or b"").decode()) for r in client.list()}
        survived(
            histories=1,
            operations=len(self.history),
            events=len(self.recorder.log),
            streams_broken=sum(mirror.breaks for mirror in self._mirrors),
            resets=sum(mirror.resets for mirror in self._mirrors),
        )

    def go_on(self) -> None:
        """Return once there was some more to check."""
        parties = [*self._contenders, *self._mirrors, self.recorder]
        wait_for_more(self.history, OPERATIONS_BETWEEN, parties)

    def check(self) -> None:
        """Hold what everybody was told against what happened, and against what everybody else was told."""
        log = self.recorder.log
        check_witness(self.history.operations, log, is_shared=self._is_shared)
        check_keys(self.history.operations, is_shared=self._is_shared)
        truth = Truth(log)
        for mirror in self._mirrors:
            check_mirror(mirror, truth, self._present)
        check_messages(self._plain.messages, truth)

    def save(self, folder: Path) -> None:
        """Keep what there was to check."""
        self.history.save(folder / "history.ndjson")
        (folder / "log.txt").write_text("".join(f"{event}\n" for event in self.recorder.log))
        for mirror in self._mirrors:
            (folder / f"{mirror.name}.txt").write_text("".join(f"{told}\n" for told in mirror.told))


def _endpoints(node: Service) -> tuple[str, str]:
    return node.requests, node.changes
