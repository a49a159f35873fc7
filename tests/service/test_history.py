"""What many clients and watchers saw at once, while the processes were killed and stopped, fits together.

Each run is one story: eight clients contend for five keys, over HTTP and ZeroMQ; mirrors on every surface
follow them, and hang up; the log is trimmed all the while; and faults come one after the other. Afterwards
everything that anybody was told is held against everything else.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag

import pytest

from kvstore_client import Client, Event
from support.contenders import Contender, HttpContender, NativeContender, Poller, WireContender
from support.history import Effect, Found, History, check_keys, check_witness, end
from support.lengths import SHARE, Survived, times
from support.load import LAST_KEY, Party, PlainSubscriber, wait_for_more
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
from support.servers import Daemon, Facade, Service, children, wait_until

RUNS = times(1, full=50)
FAULTS = 8 if SHARE else 5
OPERATIONS_BETWEEN = 200 if SHARE else 120
RETAINED_EVENTS = 200
LEAD = 100
"""How far the store may be ahead of who keeps the whole log; with what eight clients add at once it stays
well below what is retained."""

pytestmark = [pytest.mark.torture, pytest.mark.timeout(300)]


class Recorder(Party):
    """Keeps the whole log, of which the daemon retains only the end. Writers wait for it (:meth:`turn`)."""

    patience = 120

    def __init__(self, requests: str) -> None:
        super().__init__("recorder")
        self.log: list[Event] = []
        self.floor = 0
        self.has_ended = Flag()
        self._next = 0
        self._client = Client(requests, timeout=60)

    def work(self) -> None:
        while not self.has_ended.wait(0.005):
            page = self._client.events(self._next)
            self.log += page.events
            self._next, self.floor = page.next, page.floor
            if any(event.key == LAST_KEY for event in page.events):
                return

    def close(self) -> None:
        self.has_ended.set()
        self._client.close()

    def turn(self, revision: int) -> None:
        """Return once the store is not too far ahead for someone who knows of ``revision``."""
        wait_until(
            lambda: self.has_ended.is_set() or revision - self._next <= LEAD,
            timeout=120,
            what="the recorder has come near",
        )

    def outlast(self, revision: int) -> None:
        """Return once the log no longer reaches back to ``revision``, or ends."""
        wait_until(
            lambda: self.has_ended.is_set() or self.floor > revision, timeout=240, what="the log is trimmed"
        )


PAUSES_SECONDS = (0.1, 0.5, 1.5)
"""The longest is longer than a client waits for an answer before it asks again."""


class Faults:
    """Does one random fault at a time and waits until the service is whole again."""

    def __init__(self, service: Service, chance: random.Random, survived: Survived) -> None:
        self._service = service
        self._chance = chance
        self._survived = survived
        self.kinds: list[Callable[[], None]] = [
            self.kill_daemon,
            self.kill_worker,
            self.pause_daemon,
            self.pause_worker,
            self.kill_facade,
        ]

    def kill_daemon(self) -> None:
        """SIGKILL, and a start on the same data."""
        self._service.daemon.kill()
        self._service.daemon.start()
        self._survived(kills=1)

    def kill_facade(self) -> None:
        """SIGKILL of the parent, with which its workers end, and a start."""
        self._service.facade.kill()
        self._service.facade.start()
        self._survived(kills=1)

    def kill_worker(self) -> None:
        """SIGKILL of one worker of the facade; its parent starts another."""
        before = children(self._service.facade.pid)
        victim = self._chance.choice(before)
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: (
                victim not in children(self._service.facade.pid)
                and len(children(self._service.facade.pid)) == len(before)
            ),
            timeout=60,
            what="the facade has started another worker",
        )
        self._survived(kills=1)

    def pause_daemon(self) -> None:
        """SIGSTOP, and some time later SIGCONT."""
        self._pause(self._service.daemon.pid)

    def pause_worker(self) -> None:
        """The same with one worker of the facade."""
        self._pause(self._chance.choice(children(self._service.facade.pid)))

    def _pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self._chance.choice(PAUSES_SECONDS))  # this is the fault
        finally:
            os.kill(pid, signal.SIGCONT)
        self._survived(pauses=1)


@pytest.mark.parametrize("number", range(RUNS))
def test_everything_that_was_told_fits_together(
    number: int,
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    tmp_path: Path,
    survived: Survived,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"run {number + 1} of {RUNS}: seed {seed}")
    daemon = start_daemon(retain_events=RETAINED_EVENTS)
    story = _Story(Service(daemon, start_facade(daemon, workers=2)), seed, tmp_path)
    story.tell(survived)
    try:
        story.check()
    except AssertionError as failure:
        story.save(tmp_path)
        failure.add_note(f"seed {seed}; the history and the log are in {tmp_path}")
        raise


class _Story:
    def __init__(self, service: Service, seed: int, folder: Path) -> None:
        self._service = service
        self._seed = seed
        self._history = History()
        self._recorder = recorder = Recorder(service.requests)
        url, requests, changes = service.url, service.requests, service.changes
        one = self._history, seed, recorder.turn
        self._contenders: list[Contender] = [
            *(HttpContender(f"http{number}", *one, url) for number in range(4)),
            *(NativeContender(f"native{number}", *one, requests) for number in range(3)),
            WireContender("wire", *one, requests),
        ]
        self._poller = Poller("poll", self._history, seed, recorder.turn, url)
        self._plain = PlainSubscriber(changes)
        self._mirrors: list[Mirror] = [
            SseMirror("sse", seed, recorder.outlast, url),
            NdjsonMirror("ndjson", seed, recorder.outlast, url),
            NativeMirror("native", seed, recorder.outlast, requests, changes),
            ForgetfulSseMirror("forgetful-sse", seed, recorder.outlast, url),
            ForgetfulNativeMirror("forgetful-native", seed, recorder.outlast, requests, changes),
            CommandMirror("command", seed, recorder.outlast, url, folder),
        ]

    def tell(self, survived: Survived) -> None:
        """From the first operation to the last event."""
        for thread in (self._recorder, self._plain, *self._mirrors, *self._contenders, self._poller):
            thread.start()
        self._do_harm(survived)
        for contender in (*self._contenders, self._poller):
            contender.finish()
        with Client(self._service.requests, timeout=60) as client:
            wait_until(lambda: not client.status()["expiring_keys"], what="all keys with a TTL are gone")
            last = self._history.begin("last", [Effect("put", LAST_KEY, 0)])
            end(last, "ok", [Found(client.put(LAST_KEY, b"0").revision)])
            for party in (self._recorder, *self._mirrors, self._plain):
                party.finish()
            self._present = {r.key: (r.revision, (r.value or b"").decode()) for r in client.list()}
        survived(
            histories=1,
            operations=len(self._history),
            events=len(self._recorder.log),
            streams_broken=sum(mirror.breaks for mirror in self._mirrors),
            resets=sum(mirror.resets for mirror in self._mirrors),
        )

    def _do_harm(self, survived: Survived) -> None:
        faults = Faults(self._service, random.Random(self._seed), survived)
        self._wait_for_operations()
        for number in range(FAULTS):
            faults.kinds[number % len(faults.kinds)]()
            self._wait_for_operations()

    def _wait_for_operations(self) -> None:
        parties = [*self._contenders, *self._mirrors, self._recorder]
        wait_for_more(self._history, OPERATIONS_BETWEEN, parties)

    def check(self) -> None:
        """Hold what everybody was told against what happened, and against what everybody else was told."""
        log = self._recorder.log
        check_witness(self._history.operations, log)
        check_keys(self._history.operations)
        truth = Truth(log)
        for mirror in self._mirrors:
            check_mirror(mirror, truth, self._present)
        check_messages(self._plain.messages, truth)

    def save(self, folder: Path) -> None:
        """Keep what there was to check."""
        self._history.save(folder / "history.ndjson")
        (folder / "log.txt").write_text("".join(f"{event}\n" for event in self._recorder.log))
        for mirror in self._mirrors:
            (folder / f"{mirror.name}.txt").write_text("".join(f"{told}\n" for told in mirror.told))
