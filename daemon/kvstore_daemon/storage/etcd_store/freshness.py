"""The thread that makes reads linearizable: it asks etcd once for all who wait at that moment.

``head`` is put with every change, so its revision, read from a quorum, is that of the last change that
anybody can know of. Once the mirror is there, what it shows is at least as new as when it was asked; unless
etcd was restored, which the header of its answer shows.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Any

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import MirrorState
from kvstore_daemon.storage.interface import WriteAnswer

log = logging.getLogger("kvstore.daemon")

_ANSWER_SECONDS = 3.0
"""How long a question waits for its answer: longer than an election takes."""

_AGAIN_SECONDS = 1.0
"""The same after one that was not answered. So a read that comes while a question waits in vain, and has to
wait for the next one, is still refused before its client gives up; to that the daemon would seem to be
away."""

_MOST_WAITING = 10_000


class Freshness(threading.Thread):
    """Answers each ticket of :meth:`ask` once the mirror has all that was committed before; ``answer`` is
    called in this thread, and ``look`` where etcd has another history than the mirror."""

    def __init__(
        self,
        cluster: Cluster,
        mirror: EtcdMirror,
        head: bytes,
        answer: Callable[[list[WriteAnswer]], None],
        look: Callable[[str], None],
    ) -> None:
        super().__init__(name="kvstore-freshness", daemon=True)
        self._cluster = cluster
        self._mirror = mirror
        self._request = api.RangeRequest(key=head)
        self._answer = answer
        self._look = look
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._patience = _ANSWER_SECONDS
        self.confirmed_at = -inf
        """When the last question was asked that found the mirror to be as new as etcd; in the time of
        ``time.monotonic()``."""

    def ask(self, ticket: Any) -> None:
        """Answer ``ticket`` when the mirror is as new as etcd is now."""
        self._asked.put(ticket)

    def stop(self) -> None:
        """End the thread, after those who wait now."""
        self._asked.put(None)

    def run(self) -> None:
        """Answer until :meth:`stop`."""
        while True:
            tickets = [self._asked.get()]
            # what came while the last question was under way waits for this one
            while len(tickets) < _MOST_WAITING and not self._asked.empty():
                tickets.append(self._asked.get())
            waiting = [ticket for ticket in tickets if ticket is not None]
            if waiting:
                error = self._caught_up(self._patience)
                self._patience = _ANSWER_SECONDS if error is None else _AGAIN_SECONDS
                self._answer([WriteAnswer(ticket, [], error) for ticket in waiting])
            if len(waiting) < len(tickets):
                return

    def _caught_up(self, seconds: float) -> KvError | None:
        try:
            return self._catch_up(seconds)
        except EtcdError as error:
            return KvError("unavailable", f"etcd does not answer ({error})")
        except Exception as error:
            # without this thread, reads would wait for ever
            log.critical("a look at etcd failed", exc_info=True)
            return KvError("internal", f"a look at etcd failed: {error!r}; see the daemon's log")

    def _catch_up(self, seconds: float) -> KvError | None:
        asked_at, before = time.monotonic(), self._mirror.state
        reply = self._cluster.ask(api.RANGE, self._request, seconds)
        if is_other_history(reply.header, before, self._mirror):
            self._look("etcd has another history")
            return KvError("unavailable", "etcd has another history than the mirror of this daemon")
        found = reply.kvs
        left = asked_at + seconds - time.monotonic()
        if found and not self._mirror.wait_for(found[0].mod_revision, left):
            return KvError("unavailable", "the mirror of this daemon does not follow etcd for now")
        self.confirmed_at = max(self.confirmed_at, asked_at)
        return None


def is_other_history(header: api.Message, before: MirrorState, mirror: EtcdMirror) -> bool:
    """Whether the header of a linearizable answer shows that etcd was restored, or is another cluster: it is
    behind what the mirror had ``before`` it was asked. Not if the mirror was made anew meanwhile."""
    state = mirror.state
    cluster, revision = int(header.cluster_id), int(header.revision)
    return cluster != state.cluster or revision < min(before.watched, state.watched)
