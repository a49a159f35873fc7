"""Who is connected to the changes address, for operators: what is known of each, and how to end one."""

from __future__ import annotations

import logging
import termios
from heapq import nlargest

from kvstore_core.errors import KvError
from kvstore_core.filters import shown_filters
from kvstore_daemon.peer_limits.connections import Connections, address_of, inode_of, queued_bytes
from kvstore_daemon.peer_limits.subscribers import bytes_taken
from kvstore_daemon.record_fields import Fields
from kvstore_daemon.subscriptions import Subscriptions

log = logging.getLogger("kvstore.daemon")

_NATIVE = "n"
"""How ids of native subscribers begin; the rest is the number that the system gives the socket."""


class SubscriberList:
    """The subscribers of one socket; used by the loop's thread only."""

    def __init__(self, connections: Connections, subscriptions: Subscriptions) -> None:
        self._connections = connections
        self._subscriptions = subscriptions
        self.kicked = 0
        """How many were ended by :meth:`kick`."""

    def shown(self, limit: int) -> Fields:
        """The ``limit`` subscribers for whom most waits, and the count of all."""
        waiting = {each: queued_bytes(each, termios.TIOCOUTQ) for each in list(self._connections.open)}
        most = nlargest(limit, waiting, key=lambda each: waiting[each])
        rows = [self._row(each, waiting[each]) for each in most]
        return {"subscribers": [row for row in rows if row is not None], "count": len(waiting)}

    def _row(self, descriptor: int, queued: int) -> Fields | None:
        """What is known of one; None if its connection has ended."""
        since, inode, address = (
            self._connections.open.get(descriptor),
            inode_of(descriptor),
            address_of(descriptor),
        )
        if since is None or inode is None or address is None:
            return None
        to = self._subscriptions.of(descriptor, inode)
        filters = {"prefixes": None, "keys": None, "filters": None}
        return {
            "id": f"{_NATIVE}{inode}",
            "address": address,
            "name": None if to is None else to.name or None,
            **(filters if to is None else shown_filters(to.prefixes, to.keys)),
            "since": since,
            "sent_bytes": bytes_taken(descriptor),
            "queued_bytes": queued,
        }

    def kick(self, subscriber_id: str, by: str) -> Fields:
        """End the connection of a subscriber, who may come back; ``by`` is who asks for it. Raises
        ``not_found``."""
        for descriptor in list(self._connections.open):
            inode = inode_of(descriptor)
            if inode is None or f"{_NATIVE}{inode}" != subscriber_id:
                continue
            address, who = address_of(descriptor), by or "somebody, since access is off"
            log.info("ended the subscription %s of %s, kicked by %s", subscriber_id, address, who)
            self._connections.shut(descriptor)
            self.kicked += 1
            return {"kicked": subscriber_id}
        raise KvError(
            "not_found",
            f"there is no subscriber {subscriber_id!r}: it has ended, and may have come back under another "
            "id; list the subscribers again",
        )
