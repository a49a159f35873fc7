"""The engine that keeps the store in an etcd cluster, which several daemons serve together.

etcd commits, and orders what all daemons do. Everything that is read comes from a mirror on this machine,
which follows etcd by one watch; so reads, log and history are the same code, and as fast, as those of one
machine. Five threads: the loop's reads the mirror; the others are the committer, the watcher, which writes
the mirror, the one that makes reads linearizable, and the one that looks after the members.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from kvstore_core.errors import KvError
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.storage.etcd_store.clock_offsets import ClockOffsets
from kvstore_daemon.storage.etcd_store.committer import Committer, Inbox
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.fit import checked_address
from kvstore_daemon.storage.etcd_store.freshness import Freshness
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.members import Members
from kvstore_daemon.storage.etcd_store.mirroring import store_reader
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.watcher import Watcher
from kvstore_daemon.storage.folder_kinds import refuse_store
from kvstore_daemon.storage.folder_lock import FolderLock
from kvstore_daemon.storage.interface import (
    Committed,
    EngineSettings,
    LogPosition,
    Statistics,
    StoredEvent,
    WriteAnswer,
    WriteRequest,
    never,
)
from kvstore_daemon.storage.lmdb_store.free_space import FreeSpace, map_bytes
from kvstore_daemon.storage.lmdb_store.snapshot_reads import SnapshotReads

log = logging.getLogger("kvstore.daemon")

START_SECONDS = 30.0
"""How long a start waits for etcd, without a mirror."""

RESTART_SECONDS = 5.0
"""The same where there is a mirror to begin with."""

CLOSE_SECONDS = 2.0
"""How long an end waits for etcd."""


class EtcdEngine(SnapshotReads):
    """See :class:`kvstore_daemon.storage.interface.Engine`."""

    plans_at_once = False

    def __init__(self, settings: EngineSettings, wall: Callable[[], int] = now_ms) -> None:
        self._settings = settings
        self._address = checked_address(
            settings.address,
            sync=settings.sync,
            evicts=settings.eviction is not None,
            max_value_bytes=settings.max_value_bytes,
            max_atomic_ops=settings.max_atomic_ops,
            max_atomic_bytes=settings.max_atomic_bytes,
        )
        self._names = Names(self._address.prefix)
        # of this run alone: a copy of the data folder, or an earlier run, must not pass for it
        self._node = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._folder = Path(settings.data)
        self._lock = FolderLock(self._folder)
        self._space = FreeSpace(self._folder, settings.max_store_bytes)
        self._mirror = EtcdMirror(
            self._folder / "mirror", self._names, map_size=map_bytes(settings.max_store_bytes), wall=wall
        )
        self._told: deque[Committed] = deque()
        self._inbox: Inbox = queue.SimpleQueue()
        self._open = False
        self._beginning = threading.Lock()
        self._reached: LogPosition | None = None
        """How far the mirror is, until the daemon begins: what came in meanwhile, perhaps all that there is,
        is read and not told."""
        super().__init__(self._mirror.tables)

    def open(self, is_over: Callable[[], bool] = never) -> None:
        """Connect to etcd, and bring the mirror up to date.

        Raises ``not_allowed`` if another daemon owns the folder or a store of this machine is in it,
        ``unsupported_version`` for an etcd that is too old, and ``unavailable`` if etcd does not answer
        within ``START_SECONDS`` and there is no mirror to begin with.
        """
        self._lock.claim()
        try:
            refuse_store(self._folder)
            self._start(is_over)
        except BaseException:
            self._lock.release()
            raise

    def _start(self, is_over: Callable[[], bool]) -> None:
        with contextlib.ExitStack() as undo:
            self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(self._close_pipe)
            self._cluster = Cluster(self._address)
            undo.callback(self._cluster.close)
            self._clocks = ClockOffsets(self._node)
            self._members = Members(self._cluster, self._names.head, self._clocks, self._address.quota)
            self._members.start()
            undo.callback(self._members.stop)
            with contextlib.suppress(EtcdError):  # without etcd the start ends below
                store_reader.refuse_inner(self._cluster, self._address.prefix)
            self._mirror.open()
            undo.callback(self._mirror.close)
            self._reached = self.position()
            self._watcher = Watcher(
                self._cluster, self._mirror, self._names, self._deliver, self._members.saw
            )
            self._watcher.current_at -= self._age_of_mirror()
            self._watcher.start()
            undo.callback(self._watcher.stop)
            self._catch_up(is_over)
            undo.pop_all()
        self._begin()
        self._freshness = Freshness(
            self._cluster, self._mirror, self._names.head, self._answer, self._watcher.look
        )
        self._committer = Committer(
            self._node,
            self._cluster,
            self._mirror,
            self._names,
            self._settings.retention,
            self._inbox,
            self._answer,
            self._shortage,
            self._members.crowding,
            self._clocks.lead,
            self._watcher,
        )
        self._freshness.start()
        self._committer.start()
        self._open = True

    def _catch_up(self, is_over: Callable[[], bool]) -> None:
        """Bring the mirror up to date. During an outage a daemon begins with the one that it has, and reads
        that may be stale are answered from it."""
        has_mirror = self._mirror.watched > 0
        try:
            self._watcher.wait_until_current(RESTART_SECONDS if has_mirror else START_SECONDS, is_over)
        except KvError as error:
            if not has_mirror or is_over() or error.code != "unavailable":
                raise
            log.warning("beginning with an old mirror: %s", error.message)

    def _age_of_mirror(self) -> float:
        """How many seconds ago the mirror is known to have been current: when its newest change was made."""
        newest = self._counts()["newest_event_at"]
        return 0.0 if newest is None else max(0, self.now() - newest) / 1000

    def _begin(self) -> None:
        """Let :meth:`poll` begin with the position that everything after it continues."""
        with self._beginning:
            position, self._reached = self._reached, None
            self._tell(Committed([], [], position))

    def _close_pipe(self) -> None:
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def close(self) -> None:
        """Commit what was handed over and let go of etcd and of the folder; may be called twice."""
        if not self._open:
            return
        self._open = False
        self._inbox.put(None)
        self._freshness.stop()
        with ThreadPoolExecutor() as pool:
            ends = [
                pool.submit(end) for end in (self._committer.join, self._freshness.join, self._members.stop)
            ]
            wait(ends, CLOSE_SECONDS)
            self._cluster.close()  # calls that are still under way fail
        self._watcher.stop()
        self._mirror.close()
        self._close_pipe()
        self._lock.release()

    def fileno(self) -> int:
        return self._wake_reader

    def commit(self, group: Sequence[WriteRequest]) -> None:
        self._inbox.put(group)

    def trim(self) -> None:
        if self._inbox.empty():
            self._inbox.put(())

    def catch_up(self, ticket: Any) -> bool:
        self._freshness.ask(ticket)
        return False

    def age(self) -> int:
        current_at = max(self._watcher.current_at, self._freshness.confirmed_at)
        return round(1000 * max(0.0, time.monotonic() - current_at))

    # run in the threads

    def _answer(self, answers: list[WriteAnswer]) -> None:
        self._tell(Committed([], answers, None))

    def _deliver(self, events: list[StoredEvent], restarted: LogPosition | None) -> None:
        with self._beginning:
            position = restarted or self._reached
            if self._reached is None:
                self._tell(Committed(events, [], restarted))
            elif position is not None:
                if events:
                    last = events[-1]
                    position = position._replace(head=last.revision, digest=last.digest)
                self._reached = position

    def _tell(self, news: Committed) -> None:
        self._told.append(news)
        self._wake()

    def _wake(self) -> None:
        # a full pipe means that the loop is awake already
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def poll(self) -> Committed:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)
        news = Committed([], [], None)
        while self._told:
            if self._told[0].restarted is not None and any(news):
                self._wake()  # the rest comes next
                break
            events, answers, restarted = self._told.popleft()
            news.events.extend(events)
            news.answers.extend(answers)
            news = news._replace(restarted=restarted or news.restarted)
        return news

    def _shortage(self) -> KvError | None:
        """The ``store_full`` that a write would get now: also what etcd would take needs room here, in the
        mirror. Whether etcd has room it says itself."""
        tables = self._mirror.tables
        with tables.env.begin() as txn:
            return self._space.shortage(tables.file_bytes(), lambda: tables.used_bytes(txn))

    def _damaged(self, error: KvError) -> KvError:
        """etcd has it all: what is damaged here is made again, and no backup is needed."""
        self._watcher.rebuild(error.message)
        return KvError("unavailable", "the mirror of etcd is damaged, and is made again: try again soon")

    # ── what an operator asks ────────────────────────────────────────────────────────────────────

    def cluster(self) -> dict[str, Any] | None:
        report, watched = self._members.report(), self._mirror.watched
        mirror = {
            "revision": watched,
            "lag_ms": self.age(),
            "lag_revisions": max(0, report["head"] - watched),
            "rebuilds": self._watcher.rebuilds,
        }
        return {"address": self._address.redacted, "node": self._node, "mirror": mirror, **report}

    def statistics(self) -> Statistics:
        disk = self._space.disk()
        return Statistics(
            max_log_bytes=self._settings.retention.bytes,
            max_store_bytes=self._settings.max_store_bytes,
            disk_bytes=disk.size,
            disk_free_bytes=disk.free,
            writes_refused=self._watcher.broken or self._shortage() or self._members.refusal(),
            commits=self._committer.commits,
            **self._counts(),
        )

    def now(self) -> int:
        return self._mirror.tables.clock.present()
