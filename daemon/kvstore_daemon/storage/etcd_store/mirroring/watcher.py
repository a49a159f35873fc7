"""The thread that follows etcd by one watch and keeps the mirror."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.layout import Names, decode_head
from kvstore_daemon.storage.etcd_store.mirroring import mirror_check, store_reader
from kvstore_daemon.storage.etcd_store.mirroring.mirror import EtcdMirror
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import UnfitError
from kvstore_daemon.storage.etcd_store.mirroring.revision_feed import RevisionFeed
from kvstore_daemon.storage.etcd_store.mirroring.revisions import KeyValue, Revision
from kvstore_daemon.storage.etcd_store.mirroring.store_reader import StoreFound
from kvstore_daemon.storage.interface import LogPosition, StoredEvent, never

log = logging.getLogger("kvstore.daemon")

Deliver = Callable[[list[StoredEvent], LogPosition | None], None]

_TAKE_SECONDS = 0.2
_PAUSES = (0.05, 5.0)
LAG_SECONDS = 2.0
"""A member that does not have, for so long, what another one has committed is given up."""

CHECK_SECONDS = 3600.0
_SAY_SECONDS = 10.0
_SAY_RECORDS = 1000
_CHECK_AGAIN_SECONDS = 60.0


class _StoppingError(Exception):
    """The thread is to end."""


class Watcher(threading.Thread):
    """Keeps ``mirror``. ``deliver`` is called, in this thread, with the events that came, or with the
    position of a log that was replaced: what was told before is not continued then. ``saw`` is called with
    the last revision that came, the daemon that made it, and when it was made and came, by the clock of each.

    Whatever happens it tries again, and makes the mirror new where that cannot go on. Only a file that
    cannot be written ends it: see :attr:`broken`.
    """

    def __init__(
        self,
        cluster: Cluster,
        mirror: EtcdMirror,
        names: Names,
        deliver: Deliver,
        saw: Callable[[int, str, int, int], None] = lambda *_: None,
    ) -> None:
        super().__init__(name="kvstore-watcher", daemon=True)
        self._cluster = cluster
        self._mirror = mirror
        self._names = names
        self._deliver = deliver
        self._saw = saw
        self._stopping = threading.Event()
        self._is_following = threading.Event()
        self._is_making = False
        self._refused: EtcdError | None = None
        self._making = threading.Condition()
        self._reason: str | None = None
        self._doubt: str | None = None
        self._fragments = False
        self._said_at = 0.0
        self._backoff = Backoff(*_PAUSES)
        self._lagging_since: float | None = None
        self._is_compacted = False
        self._check: threading.Thread | None = None
        self._checked_at = time.monotonic()
        self._trouble = "etcd does not answer"
        self.current_at = time.monotonic()
        """When the member that is watched last spoke and the mirror had all that it had told, in the time of
        ``time.monotonic()``. One that is cut off from the others speaks too, for some seconds, until it
        notices that it has no leader: what they committed meanwhile is not in the mirror."""
        self.made = 0
        """How often the mirror was made, since the start."""
        self.rebuilds = 0
        """How often a mirror was made in place of another one."""
        self.checks = 0
        """How often it was compared with etcd, key by key."""
        self.broken: KvError | None = None
        """Why the mirror's file cannot be written any more."""

    def rebuild(self, reason: str, made: int | None = None) -> None:
        """Have the mirror made new, soon; any thread may call. Who asks while that is done gets the one
        that is being made. ``made`` is what :attr:`made` was when the fault was there: if the mirror was made
        since then, nothing is done."""
        with self._making:
            if made is None or made == self.made:
                self._reason = self._reason or reason

    def wait_until_made(self, made: int, timeout: float) -> bool:
        """Wait until the mirror was made since :attr:`made` was ``made``, at most ``timeout`` seconds;
        whether it was. Any thread but this one may call."""
        with self._making:
            return self._making.wait_for(lambda: self.made != made, timeout)

    def look(self, reason: str) -> None:
        """Look, soon, whether etcd still has the history that is here, as when the watch begins: only if not,
        the mirror is made new. Any thread may call."""
        self._doubt = reason

    def stop(self) -> None:
        """End the thread, and wait for that."""
        self._stopping.set()
        self.join()
        if self._check is not None:
            self._check.join()

    def wait_until_current(self, timeout: float, is_over: Callable[[], bool] = never) -> None:
        """Wait until the mirror has what etcd has now; raises ``unavailable`` after ``timeout`` seconds in
        which it was not being made, which takes as long as the store is large, and nothing came; and once
        ``is_over``."""
        self._wait(lambda: self._is_following.wait(_TAKE_SECONDS), timeout, is_over)
        asked_at = time.monotonic()
        try:
            last = store_reader.look(self._cluster, self._names).last
        except EtcdError as error:
            raise KvError("unavailable", str(error)) from error
        self._wait(lambda: self._mirror.wait_for(last, _TAKE_SECONDS), timeout, is_over)
        self.current_at = max(self.current_at, asked_at)

    def _wait(self, is_done: Callable[[], bool], timeout: float, is_over: Callable[[], bool]) -> None:
        deadline, watched = time.monotonic() + timeout, self._mirror.watched
        while not is_done():
            if is_over():
                raise KvError("unavailable", "stopped while it waited for etcd")
            if self._is_making or self._mirror.watched != watched:
                deadline, watched = time.monotonic() + timeout, self._mirror.watched
            elif self._refused is not None:
                raise KvError("not_allowed", f"etcd does not let this daemon in: {self._refused}")
            elif time.monotonic() > deadline:
                raise KvError("unavailable", f"the mirror of etcd is not up to date: {self._trouble}")

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Follow until :meth:`stop`."""
        while not self._stopping.is_set() and self.broken is None:
            try:
                self._follow()
            except EtcdError as error:
                self._is_compacted = self._is_compacted or error.kind == "compacted"
                self._refused = error if error.kind == "auth" else None
                self._fragments = error.kind == "too_large"
                is_usual = error.is_of_member or self._fragments
                self._say(str(error), logging.INFO if is_usual else logging.WARNING)
            except UnfitError as error:
                self.rebuild(str(error))
            except _StoppingError:
                return
            except KvError as error:
                self._fail(error)
            except Exception as error:
                # a fault of ours: to start over may get past it, and to stop would not
                log.exception("the watch failed")
                self.rebuild(f"the watch failed: {error}")
            self._stopping.wait(self._backoff.next())

    def _say(self, trouble: str, level: int) -> None:
        if trouble != self._trouble:
            log.log(level, "the watch is begun again: %s", trouble)
        self._trouble = trouble

    def _fail(self, error: KvError) -> None:
        """After an error of the mirror's file: without room on the disk there may be some later."""
        if error.code != "store_full":
            self.broken = error
            self._mirror.tables.writer_is_done.set()
        if self._trouble != error.message:
            log.critical("the mirror cannot be written: %s", error.message)
        self._trouble = error.message

    def _follow(self) -> None:
        with self._feed() as feed:
            self._is_following.set()
            while not (self._stopping.is_set() or self._reason or self._doubt):
                self._take_in(feed.take(_TAKE_SECONDS))
                self.current_at = feed.current_at or self.current_at
                if feed.is_behind:
                    self._say_how_far("the mirror catches up with etcd: it is at revision %d", feed.seen)
                self._refuse_lag(feed)
                self._check_if_due()

    def _feed(self) -> RevisionFeed:
        """What comes after the mirror, which is made new where that is needed."""
        self._doubt, self._said_at = None, time.monotonic()
        found = self._found()
        # first of all, since another history also needs a new epoch
        reason = self._mismatch(found) or self._reason
        if reason is None and self._is_compacted and not self._skipped(found):
            reason = f"etcd has forgotten what came after revision {self._mirror.watched}"
        if reason is not None:
            self._is_making = True
            try:
                return self._make(reason)
            finally:
                self._is_making = False
        self._is_compacted = False
        feed = self._feed_after(self._mirror.watched, found)
        try:
            self._take_in(feed.wait_until_created())
        except BaseException:
            feed.close()
            raise
        return feed

    def _feed_after(self, revision: int, found: StoreFound) -> RevisionFeed:
        return RevisionFeed(
            self._cluster,
            self._names,
            revision,
            found.last,
            found.revision,
            fragments=self._fragments,
        )

    def _say_how_far(self, words: str, number: int) -> None:
        if time.monotonic() - self._said_at > _SAY_SECONDS:
            self._said_at = time.monotonic()
            log.info(words, number)

    def _skipped(self, found: StoreFound) -> bool:
        """Go on from the present although what came before is forgotten, if there was nothing of this store.

        An idle store in a busy etcd would have all its streams reset otherwise whenever a daemon restarts.
        """
        cluster, mirror, names, revision = self._cluster, self._mirror, self._names, found.revision
        if not mirror.has_seen(found.head):
            return False
        if not mirror_check.is_right(cluster, mirror, names, self._stopping, at=revision, pause=0):
            return False
        replies = store_reader.records(cluster, names.replies, revision, keys_only=True)
        mirror.skip_to(revision, (client for kv in replies if (client := names.client(kv.key))))
        return True

    def _take_in(self, revisions: list[Revision]) -> None:
        if not revisions:
            return
        arrived_at = self._mirror.tables.clock.present()
        self._mirror.apply(revisions, self._hand_on)
        self._compare_clocks(revisions[-1], arrived_at)
        self._lagging_since = None
        self._backoff.reset()

    def _hand_on(self, events: list[StoredEvent]) -> None:
        if events:
            self._deliver(events, None)

    def _hand_on_position(self, position: LogPosition) -> None:
        self._deliver([], position)

    def _compare_clocks(self, revision: Revision, arrived_at: int) -> None:
        for change in revision.changes:
            head = decode_head(change.kv.value) if change.kv.key == self._names.head else None
            if head is not None:
                self._saw(revision.revision, head.node, head.time, arrived_at)

    def _refuse_lag(self, feed: RevisionFeed) -> None:
        """Turn away from a member that does not have what somebody waits for. It may answer everything, and
        have a leader, and yet be cut off or far behind."""
        if feed.is_behind or self._mirror.wanted <= self._mirror.watched:
            self._lagging_since = None
        elif self._lagging_since is None:
            self._lagging_since = time.monotonic()
        elif time.monotonic() - self._lagging_since > LAG_SECONDS:
            self._lagging_since = None
            raise feed.give_up(f"it does not have revision {self._mirror.wanted}, which another one has")

    def _check_if_due(self) -> None:
        """Begin to compare the mirror with etcd: once in a while, and soon if another daemon's differs."""
        if self._check is not None and self._check.is_alive():
            return
        node = self._mirror.digests.differing
        pause = CHECK_SECONDS
        if node is not None:
            pause = _CHECK_AGAIN_SECONDS if self._check is not None else 0.0
        if time.monotonic() - self._checked_at < pause:
            return
        if node is not None:
            log.warning("the mirror of %s differs from this one: comparing this one with etcd", node)
        self._mirror.digests.differing = None
        self._checked_at = time.monotonic()
        check = threading.Thread(
            target=self._compare, args=(self.made,), name="kvstore-mirror-check", daemon=True
        )
        check.start()
        self._check = check

    # in a thread of its own
    def _compare(self, made: int) -> None:
        try:
            if not mirror_check.is_right(self._cluster, self._mirror, self._names, self._stopping):
                self.rebuild("it was not what etcd has", made)
            elif not mirror_check.is_log_sound(self._mirror, self._stopping):
                self.rebuild("an event of its log is damaged", made)
            self.checks += 1
        except (EtcdError, KvError) as error:
            log.info("the mirror could not be compared with etcd: %s", error)

    def _found(self) -> StoreFound:
        """The store in etcd, which is begun if there is none."""
        while not (found := store_reader.look(self._cluster, self._names)).epoch_name:
            store_reader.begin_epoch(self._cluster, self._names, found)
        return found

    # ── is it the same history? ──────────────────────────────────────────────────────────────────

    def _mismatch(self, found: StoreFound) -> str | None:
        """Why the mirror cannot be continued; None if it can. Begins a new epoch where nobody else noticed
        that what etcd has is not the history that this mirror saw."""
        if not self._mirror.watched:
            return "there was none"
        if found.epoch_name != self._mirror.epoch:
            return "another history of the store has begun"
        fork = self._fork(found)
        if fork is not None:
            log.warning("%s: cursors start over", fork)
            store_reader.begin_epoch(self._cluster, self._names, found)
        return fork

    def _fork(self, found: StoreFound) -> str | None:
        state = self._mirror.state
        if found.cluster != state.cluster:
            return f"etcd is another cluster ({found.cluster:x}, it was {state.cluster:x})"
        if found.revision < state.watched:
            return f"etcd went back, from revision {state.watched} to {found.revision}"
        try:
            if self._mirror.has_seen(store_reader.head_at(self._cluster, self._names, state.watched)):
                return None
        except EtcdError as error:
            if error.kind != "compacted":
                raise
            return None  # nobody knows; the watch will not go on from there either
        return f"etcd has another history up to revision {state.watched}"

    # ── a new mirror ─────────────────────────────────────────────────────────────────────────────

    def _make(self, reason: str) -> RevisionFeed:
        """Make the mirror new; what comes after it."""
        started, was_there = time.monotonic(), self._mirror.watched > 0
        log.info("the mirror is being made: %s", reason)
        found = self._found()
        base = found.base
        while True:
            feed = self._feed_after(base, found)
            try:
                # the watch first: what it can give must not be forgotten while the records are read
                first = feed.wait_until_created()
                records = self._counted(store_reader.records(self._cluster, self._names.all, base))
                later = self._later(feed, first)
                self._mirror.replace(found.cluster, base, records, later, self._hand_on_position)
            except EtcdError as error:
                feed.close()
                if error.kind != "compacted":
                    raise
                # somebody has etcd forget more than the agreed floor says
                base = error.compact_revision or store_reader.oldest(
                    self._cluster, self._names, base, found.revision
                )
            except BaseException:
                feed.close()
                raise
            else:
                with self._making:
                    self.made += 1
                    self.rebuilds += was_there
                    self._reason, self._is_compacted = None, False
                    self._making.notify_all()
                log.info("the mirror was made in %.1f s: %s", time.monotonic() - started, reason)
                return feed

    def _counted(self, records: Iterator[KeyValue]) -> Iterator[KeyValue]:
        for number, kv in enumerate(records):
            if self._stopping.is_set():
                raise _StoppingError
            if number % _SAY_RECORDS == 0:
                self._say_how_far("the mirror is being made, %d records so far", number)
            yield kv

    def _later(self, feed: RevisionFeed, revisions: list[Revision]) -> Iterator[Sequence[Revision]]:
        """The revisions that were there when the feed began, and what came with them."""
        yield revisions
        while feed.is_behind:
            if self._stopping.is_set():
                raise _StoppingError
            yield feed.take(_TAKE_SECONDS)
            self._say_how_far("the mirror is being made, its log is at revision %d so far", feed.seen)
