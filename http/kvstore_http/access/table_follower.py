"""The daemon's table of identities, as this worker has it.

Every heartbeat says which table the daemon has, and after a change one comes at once; so a worker learns of
it within some milliseconds, or a second if that one was lost. A table that nothing has confirmed for some
seconds is not used: who was let in by it may have been revoked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event as Signal

from kvstore_core.access.identities import AccessTable
from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_core.wall_clock import now_ms
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.greenlet_pool import GreenletPool

UNCONFIRMED_SECONDS = 2.5
"""A table that was not confirmed for this long is asked for before it is used. Heartbeats, which confirm it,
come every second; so one of them may be lost or late before anybody waits."""

DOUBTED_SECONDS = 0.5
"""So long a table is still used after the daemon was heard to have another one, which is on its way."""

LOOK_SECONDS = 0.2
"""The least time between two questions for the sake of credentials that are not in the table, after one in
vain."""

LOOK_COST = 10
"""How many times as long as such a question takes the next one waits: a large table takes long to send."""

LOOK_PATIENCE_SECONDS = 2.0
"""How long somebody who is not in the table waits at most for such a question."""

TICK_SECONDS = 0.5

UNREACHED = "the daemon cannot be reached"
ANOTHERS_KEY = (
    "the daemon knows the key of --facade-key-file as that of somebody else, and it must be facade.key of "
    "its data folder"
)

log = logging.getLogger("kvstore.http")


class TableFollower:
    """Keeps the table as the daemon has it. Every method runs in the hub's thread; :meth:`wait` blocks.

    ``listeners`` are called, in the hub or in a greenlet, whenever there is another table, or a credential in
    it has expired; they may not wait.
    """

    def __init__(self, daemon: DaemonClient, patience: float) -> None:
        self._daemon = daemon
        self._patience = patience
        self._hub = gevent.get_hub()
        self._pool = GreenletPool(self._hub)
        self.table: AccessTable | None = None
        """None until the daemon was asked for it."""
        self._tag = ""
        self._expires_at: int | None = None
        self.good_until = 0.0
        """Until when the table is confirmed, by the monotonic clock."""
        self.listeners: list[Callable[[], None]] = []
        self._is_asking = self._is_another = self._is_closed = False
        self._problem = ""
        self._answered = Signal()
        self._next_look: Signal | None = None
        self._is_looking = False
        self._unknown_log = RateLimitedLog(log)
        self._ticker = self._hub.loop.timer(0, TICK_SECONDS)
        self._ticker.start(self._tick)

    @property
    def is_confirmed(self) -> bool:
        """Whether there is a table, and the daemon still has it, as far as can be known."""
        return monotonic() < self.good_until

    def hear(self, tag: str) -> None:
        """The daemon has published that its table is that of ``tag``."""
        now = monotonic()
        if tag == self._tag:
            self.good_until = now + UNCONFIRMED_SECONDS
            return
        self.good_until = min(self.good_until, now + DOUBTED_SECONDS)
        self._is_another = True
        self._ask_soon()

    def wait(self) -> AccessTable:
        """The table, confirmed; asks the daemon if that is needed. Raises ``unavailable``."""
        if not self.is_confirmed:
            self._ask_soon()
            self._answered.wait(self._patience)
        if self.table is None or not self.is_confirmed:
            raise KvError(
                "unavailable",
                f"{self._problem or UNREACHED}; without its table nobody is known, and nobody is let in",
            )
        return self.table

    @property
    def problem(self) -> str:
        """Why there is no table, empty where there is one. It may be told to anybody."""
        return "" if self.table is not None else self._problem or UNREACHED

    def renew(self) -> None:
        """Ask for the table, which was just changed from here, and block until it is there. If it does not
        come, a heartbeat tells of it later."""
        self._is_another = True
        self._ask_soon()
        self._answered.wait(self._patience)

    def look_again(self) -> AccessTable | None:
        """The table as it was at some time after this was called, for somebody who is not in the one of now:
        a token that another worker has just made is known there some milliseconds before it is here. Blocks,
        but not for long, and gives the table of now if there is no answer in that time.

        All who come meanwhile share one question to the daemon, and there is a pause after each in vain, so
        that strangers with made up tokens cause little work.
        """
        look = self._next_look
        if look is None:
            look = self._next_look = Signal()
            if not self._is_looking:
                self._is_looking = True
                self._hub.loop.run_callback(self._pool.run, self._look)
        look.wait(LOOK_PATIENCE_SECONDS)
        return self.table

    def _look(self) -> None:
        while self._next_look is not None and not self._is_closed:
            look, self._next_look = self._next_look, None
            begun, before = monotonic(), self.table
            self.renew()
            look.set()
            if self.table is before:
                gevent.sleep(max(LOOK_SECONDS, LOOK_COST * (monotonic() - begun)))
        self._is_looking = False

    def ends(self) -> dict[str, int]:
        """When whose last credential ends, as far as is known (:meth:`AccessTable.ends`)."""
        return {} if self.table is None else self.table.ends()

    def _tick(self) -> None:
        if not self.is_confirmed:
            self._ask_soon()
        if self._expires_at is not None and now_ms() >= self._expires_at:
            self._tell()

    def _tell(self) -> None:
        """Tell of another table, or of the same at another time."""
        assert self.table is not None  # noqa: S101 - for mypy
        self._expires_at = self.table.next_expiry(now_ms())
        for listener in self.listeners:
            listener()

    def _ask_soon(self) -> None:
        if not (self._is_asking or self._is_closed):
            self._is_asking = True
            self._answered.clear()
            # not at once: the caller may be a greenlet, and the pool runs from the hub only
            self._hub.loop.run_callback(self._pool.run, self._ask)

    def _ask(self) -> None:
        try:
            self._is_another = True
            while self._is_another and not self._is_closed:
                self._is_another = False
                begun = monotonic()
                self._take(self._daemon.access(), begun)
        except KvError as error:
            if not error.row.is_temporary:
                why = f"{ANOTHERS_KEY}: " if error.code == "not_allowed" else ""
                self._unknown_log.error("the daemon does not say who may come in: %s%s", why, error.message)
            # what the error says of the key that was shown is for the log alone
            self._problem = ANOTHERS_KEY if error.code == "not_allowed" else error.message
        else:
            self._problem = ""
        finally:
            self._is_asking = False
            self._answered.set()

    def _take(self, result: dict[str, Any], begun: float) -> None:
        try:
            table, tag = self.table, str(result["tag"])
            if table is None or tag != self._tag:
                table = AccessTable.decode(result["value"], bytes.fromhex(result["signing_key"]))
        except (KeyError, ValueError, AttributeError) as error:
            raise KvError("internal", f"the daemon's table cannot be read: {error}") from error
        if not self._is_another:
            self.good_until = begun + UNCONFIRMED_SECONDS
        if table is not self.table:
            self.table, self._tag = table, tag
            self._tell()

    def close(self) -> None:
        """Ask no more."""
        self._is_closed = True
        self._ticker.close()
