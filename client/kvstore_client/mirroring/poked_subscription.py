"""Subscriptions that others can wake: to look at the log at once, or to end."""

from __future__ import annotations

import threading
from contextlib import suppress

import zmq

from kvstore_client.async_subscription import AsyncSubscription
from kvstore_client.subscription import Subscription
from kvstore_client.subscription_base import SubscriptionBase
from kvstore_client.transport.wait import SocketWait
from kvstore_core.connection_monitor import POLLIN

_POKES = "inproc://pokes"


class StoppedError(Exception):
    """Raised in the one who waits in a subscription that was stopped."""


class _Pokes(SubscriptionBase):
    """A subscription with a pair of sockets on which it can be woken from any thread."""

    _is_stopped = _is_poked = False

    def _connect(self) -> None:
        super()._connect()
        self._pokes, self._poker = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._pokes.bind(_POKES)
        self._poker.connect(_POKES)
        self._poking = threading.Lock()

    def poke(self, *, stop: bool = False) -> None:
        """Look at the log now, and return a Sync when all up to its end has been delivered; or ``stop``."""
        with self._poking:
            self._is_stopped |= stop
            if not self._poker.closed:
                with suppress(zmq.Again):  # then more than enough pokes are under way
                    self._poker.send(b"", zmq.NOBLOCK)
                self._is_poked = True  # now, or it would be looked for before it is there

    def close(self) -> None:
        with self._poking:
            super().close()

    def _wait(self, now: float, deadline: float | None) -> SocketWait:
        wait = super()._wait(now, deadline)
        return SocketWait([*wait.sockets, (self._pokes, POLLIN)], wait.seconds)

    def _listen(self) -> None:
        if self._is_poked:  # a recv in vain is an exception, and costs more than the rest of a turn
            self._is_poked = False
            self._state.sync_again()
            with suppress(zmq.Again):
                while True:
                    self._pokes.recv(zmq.NOBLOCK)
        if self._is_stopped:
            raise StoppedError
        super()._listen()


class PokedSubscription(_Pokes, Subscription):
    """The blocking form."""


class AsyncPokedSubscription(_Pokes, AsyncSubscription):
    """The asyncio form."""
