"""Who keeps the whole log of a store whose daemon keeps only the end of it."""

from __future__ import annotations

from threading import Event as Flag

from kvstore_client import Client, Event
from support.load import LAST_KEY, Party
from support.servers import wait_until

LEAD = 100
"""How far the store may be ahead of who keeps the whole log; with what some ten clients add at once it stays
well below the 200 events that a daemon is told to retain."""


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
