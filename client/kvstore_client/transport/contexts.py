"""The ZeroMQ contexts of clients and subscriptions, also of those that nobody closes."""

from __future__ import annotations

from typing import Any

import zmq

from kvstore_core.connection_monitor import Socket


class OwningContext(zmq.Context[Socket]):
    """A context that can be collected with its sockets, whatever they are part of.

    zmq.Context has weak references to its sockets. The garbage collector clears those before it ends what was
    left in a cycle, such as a client in the traceback of an error. The context then waits for sockets that it
    does not find, for ever, in the thread that the collector happens to run in.
    """

    _owned: frozenset[Socket] = frozenset()

    def socket(self, *arguments: Any, **options: Any) -> Socket:
        made: Socket = super().socket(*arguments, **options)
        self._owned = frozenset({made, *(socket for socket in self._owned if not socket.closed)})
        return made

    def destroy(self, linger: int | None = None) -> None:
        """Close the sockets, then the context; with ``linger=0`` what they have not sent is dropped."""
        for socket in self._owned:
            socket.close(linger)
        super().destroy(linger)
