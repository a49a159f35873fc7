"""What is done to the processes of a service while it is used."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

from support.lengths import Survived
from support.servers import Service, children, wait_until

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
