"""The daemon at work: requests in, commits to the engine, changes and replies out.

Everything here runs in the loop's thread. One turn of the loop:

1. receive the requests that have come, answer those that only read;
2. hand writes that have gathered to the engine as a group, if it is to have one now;
3. if none was handed over, publish each change that it has committed, then answer the request that made it.
   The next group is on its way to the disk meanwhile.

What happens to a request is in :mod:`kvstore_daemon.requests.handler`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from math import inf

from kvstore_core.process.sd_notify import Notifier
from kvstore_daemon.access.authority import Authority
from kvstore_daemon.backups import Backups
from kvstore_daemon.event_loop import Loop
from kvstore_daemon.expiry import Expiry
from kvstore_daemon.group_commit import GROUP_OPS, GroupCommitter
from kvstore_daemon.peer_limits.connections import ConnectionLimit
from kvstore_daemon.publisher import Publisher
from kvstore_daemon.requests.fair_queue import SLICE_SECONDS
from kvstore_daemon.requests.handler import RequestHandler
from kvstore_daemon.requests.router_socket import RouterSocket
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.status import Counters, Status
from kvstore_daemon.storage.interface import Engine, LogPosition, StoredEvent, WriteAnswer

log = logging.getLogger("kvstore.daemon")

TICK_SECONDS = 1.0
"""The interval of heartbeats, to subscribers and to the service manager, and of trimming."""

REFUSALS_SECONDS = 5.0
"""The shortest time between two lines in the log about writes that are refused, or taken again."""

EARLY_HEARTBEAT_SECONDS = 0.01
"""How soon a heartbeat follows a subscription: not at once, so that a thousand that come together get one."""

CONNECTION_BYTES = 64 * 1024
"""What libzmq may take for a connection, most of it for what it reads and writes at once."""

STOP_SECONDS = 3.0
"""How long a stop may wait for the engine."""


PATIENCE_TICKS = 60
"""A commit that takes longer is taken for one that never ends. That is far more than a slow disk needs:
ending the daemon would take its reads away too, and make the disk no faster. Ticks are counted and not
seconds: a process that the system stopped must not blame the engine for it."""


class Beats:
    """Says to the process that started the daemon that it does its work: its loop turns, and what it hands to
    the engine is committed."""

    def __init__(self, notifier: Notifier, committer: GroupCommitter) -> None:
        self._notifier = notifier
        self._committer = committer
        self._group: int | None = None
        self._ticks = 0

    def tick(self) -> None:
        """To be called by the loop every second."""
        group = self._committer.group_under_way()
        self._ticks = self._ticks + 1 if group is not None and group == self._group else 0
        self._group = group
        if self._ticks < PATIENCE_TICKS:
            self._notifier.beat()
        elif self._ticks == PATIENCE_TICKS:
            self._notifier.status("writes wait: a commit has not ended for a minute; look at the disk")


class WriteRefusals:
    """Logs when a full store or disk begins to refuse writes, and when they are taken again. One that is full
    again within ``REFUSALS_SECONDS`` of the last line is logged once that time is over, if it still is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_full = False
        self._quiet_until = 0.0

    def tick(self) -> None:
        """To be called by the loop every second."""
        now = time.monotonic()
        if now < self._quiet_until:
            return
        refusal = self._engine.statistics().writes_refused
        is_full = refusal is not None and refusal.code == "store_full"
        if is_full == self._is_full:
            return
        self._is_full, self._quiet_until = is_full, now + REFUSALS_SECONDS
        if refusal is not None and is_full:
            log.warning("writes are refused: %s", refusal.message)
        elif refusal is None:
            log.info("writes are taken again")


class Server:
    """Serves the requests address and the changes address from one engine."""

    def __init__(
        self,
        loop: Loop,
        settings: DaemonSettings,
        engine: Engine,
        publisher: Publisher,
        socket: RouterSocket,
        connection_limit: ConnectionLimit,
        notifier: Notifier,
        authority: Authority,
        backups: Backups,
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._authority = authority
        self._access = authority.table
        self._backups = backups
        self._publisher = publisher
        self._socket = socket
        self._connection_limit = connection_limit
        self._counters = Counters()
        self._committer = GroupCommitter(engine, self._counters, settings.slow_commit_ms / 1000 or inf)
        status = Status(settings, engine, self._counters, self._present, authority.status)
        self._requests = RequestHandler(
            loop,
            settings,
            engine,
            socket,
            self._committer,
            self._counters,
            status,
            authority,
            publisher.subscribers,
            backups,
        )
        self._expiry = Expiry(loop, engine, self._committer, self._counters)
        self._beats = Beats(notifier, self._committer)
        self._write_refusals = WriteRefusals(engine)
        self._tick_timer = loop.timer(self._tick)
        self._early_heartbeat = loop.timer(self._send_heartbeat)
        self._committed: deque[StoredEvent | WriteAnswer | LogPosition] = deque()
        """What is to be published and answered, in the order in which the engine committed it."""
        self._has_flushed = False

    def start(self) -> None:
        """Watch the engine and the sockets, and publish what is committed from now on."""
        position = self._engine.position()
        self._publisher.begin(position)
        self._requests.start(position)
        self._socket.incoming.accounted_bytes = self._accounted_bytes
        self._loop.watch(self._engine.fileno(), self._collect)
        self._loop.watch(self._publisher.fileno(), self._note_subscriptions)
        self._expiry.start()
        self._tick_timer.set(0)

    def turn(self) -> None:
        """One turn of the loop; sleeps until there is something to do."""
        requests, queue, committer = self._requests, self._requests.queue, self._committer
        can_go_on = queue.has_work() or self._committed or committer.can_flush()
        self._loop.turn(wait=not (can_go_on or requests.can_receive()))
        requests.receive()
        # not both in one turn: what has come meanwhile is looked at in between
        self._has_flushed = not self._has_flushed and len(self._committed) < GROUP_OPS and committer.flush()
        if not self._has_flushed:
            self._publish_and_answer()
        queue.work()
        queue.cut_off_stuck()
        if self._authority.table is not self._access:  # a request has changed it
            self._access_changed()

    def stop(self) -> None:
        """Finish what was accepted: commit it, publish it, answer it; and refuse what still comes.

        Gives up after ``STOP_SECONDS`` if a disk does not answer; nothing unanswered was promised.
        """
        self._requests.is_stopping = True
        self._expiry.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self._has_work():
            self.turn()
            if time.monotonic() > deadline:
                log.error("stopping without an answer from the engine")
                self._requests.refuse_waiting()
                return
        self._loop.turn(wait=False)
        self._requests.receive()

    def _has_work(self) -> bool:
        # not what can be received: clients that ask again at once would keep the daemon up for ever
        requests = self._requests
        has_requests = requests.queue.has_work() or bool(requests.waiting)
        return bool(self._committed) or has_requests or not self._committer.is_idle()

    def _collect(self) -> None:
        """Take what the engine has committed, so that it gets the next group."""
        events, answers, restarted = self._engine.poll()
        if restarted is not None:
            self._requests.restart(restarted)
            self._committed.append(restarted)
        if events:
            self._requests.head = events[-1].revision
            self._expiry.note(events)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "committed %d changes of %d requests; the head is %d",
                len(events),
                len(answers),
                self._requests.head,
            )
        self._committed.extend(events)
        self._committed.extend(answers)
        waiting = self._requests.waiting
        for answer in answers:
            if answer.ticket not in waiting:
                self._committer.answered()

    def _publish_and_answer(self) -> None:
        """Publish changes and answer requests for a slice of time."""
        committed = self._committed
        if not committed:
            return
        deadline = time.monotonic() + SLICE_SECONDS
        while committed:
            item = committed.popleft()
            if isinstance(item, StoredEvent):
                self._publisher.publish(item)
                self._counters.changes_published += 1
            elif isinstance(item, LogPosition):
                self._publisher.begin(item)
                self._send_heartbeat()
            elif item.ticket is self._expiry:
                self._expiry.removed(item)
            else:
                self._requests.proceed(item.ticket, item)
            if time.monotonic() > deadline:
                break
        if self._publisher.topics:
            self._note_subscriptions()

    def _note_subscriptions(self) -> None:
        """Send new subscribers a heartbeat soon, so that they need not wait for the next tick to see what was
        committed before their subscription took effect.

        Sending may consume the signal of a subscription that came meanwhile, so this is also called after
        anything was sent. Not before changes are sent: one that came since the loop woke up finds in the log
        what was not sent to it, as any other that came a moment too late (protocol section 5.2).
        """
        if self._publisher.take_subscriptions() and self._early_heartbeat.at is None:
            self._early_heartbeat.set(EARLY_HEARTBEAT_SECONDS)

    def _send_heartbeat(self) -> None:
        self._publisher.heartbeat(self._engine.position().floor)
        self._note_subscriptions()

    def _tick(self) -> None:
        self._count_cut_off()
        self._tick_timer.set(TICK_SECONDS)
        self._beats.tick()
        self._write_refusals.tick()
        if self._authority.look():
            self._access_changed()
        self._backups.tick()
        self._publisher.sweep()
        self._send_heartbeat()
        if self._committer.is_idle():
            self._engine.trim()

    def _access_changed(self) -> None:
        """End what is no longer granted, and let the facades know at once that there is another table."""
        self._access = self._authority.table
        self._publisher.access_changed()
        self._socket.access_changed()
        self._send_heartbeat()

    def _count_cut_off(self) -> None:
        self._counters.peers_cut_off += self._connection_limit.take_cut_off()
        self._counters.subscribers_kicked = self._publisher.subscribers.kicked

    def _accounted_bytes(self) -> int:
        """The bytes of memory that connections, requests and replies may take; any thread may call this."""
        return self._requests.accounted_bytes() + CONNECTION_BYTES * self._connection_limit.open

    def _present(self) -> dict[str, int]:
        """The fields of ``status`` that say what is going on now."""
        self._count_cut_off()
        self._socket.count_all_taken()
        pending, limit = self._requests.pending, self._connection_limit
        return {
            "pending": pending.requests,
            "pending_bytes": pending.bytes,
            "untaken_bytes": self._socket.untaken,
            # one that is about to be closed does not count
            "connections": min(limit.open, limit.max),
            "max_connections": limit.max,
            "subscriptions": self._publisher.topics,
            "backup_bytes": self._backups.taken,
        }
