"""The interface to what stores the data: what the daemon asks of an engine, and nothing of how it is done.

An engine orders writes, makes them durable and reports what was committed. Everything above this package uses
only this module, so each engine behaves the same; ``tests/engine`` defines "the same" and runs against
any engine.

Others than this daemon may write to the store that an engine has. It then reads a copy of its own, which may
lag behind: :meth:`Engine.catch_up` is how a read gets to see all that was committed before it, and
:meth:`Engine.age` says how old what is read without it may be.

Keys are UTF-8 bytes that were checked, times are milliseconds since the epoch. A time to live is measured by
a clock that nobody can set; ``expires_at`` is when it will be over, as the wall clock shows it now. All
methods are called from the daemon's one loop, and none of them waits for a disk or a network except ``open``
and ``close``: ``commit`` only hands over, and its answers come through ``fileno`` and ``poll``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from kvstore_core.errors import KvError
from kvstore_daemon.storage.clock import ClockState
from kvstore_daemon.storage.commit_stats import CommitStats


class StoredRecord(NamedTuple):
    """A key's record. ``value`` is None where only metadata was asked for. ``author`` and ``message`` are
    those of the change that made it; empty where there are none, here and below."""

    value: bytes | None
    content_type: str
    revision: int
    create_revision: int
    version: int
    modified_at: int
    expires_at: int | None
    author: str = ""
    message: str = ""


@dataclass(slots=True)
class StoredEvent:
    """One committed event, read-only. See :class:`kvstore_core.model.Event` for what the fields promise.

    ``digest`` is that of all records right after it (:class:`kvstore_core.digest.SetHash`), where the engine
    tells of it as committed; None where it is not known.
    """

    op: str
    key: bytes
    revision: int
    index: int
    count: int
    time: int
    record: StoredRecord | None
    previous: StoredRecord | None
    previous_revision: int
    author: str = ""
    message: str = ""
    digest: int | None = field(default=None, compare=False)


class Write(NamedTuple):
    """One change that a request asks for.

    ``op`` is ``put``, ``delete``, ``incr``, ``touch``, ``persist``, ``check`` (change nothing),
    ``delete_prefix`` (``key`` is then the prefix and ``limit`` the most it removes) or ``expire`` (the
    daemon's own: remove the key if it still has ``if_revision`` and its time has come).

    ``if_revision``, ``if_value`` and ``must_exist`` say what the key must be like, or the write fails;
    ``if_revision`` 0 means: must not exist. A put may have one of ``ttl_ms``, ``keep_ttl`` (the key keeps the
    expiry it has) and ``expires_at``. With ``sequence`` its ``key`` is what the key, which gets a number of
    its own, begins with.
    """

    op: str
    key: bytes
    value: bytes = b""
    content_type: str = ""
    ttl_ms: int | None = None
    if_revision: int | None = None
    by: int = 1
    limit: int = 1000
    keep_ttl: bool = False
    expires_at: int | None = None
    author: str = ""
    message: str = ""
    if_value: bytes | None = None
    must_exist: bool = False
    sequence: bool = False


class WriteRequest(NamedTuple):
    """What one client asks to be committed.

    Independent writes succeed or fail one by one; an atomic request is applied whole, in one
    revision, or not at all. A numbered request (``client`` is not None) is applied at most once: a
    repeat gets the first answer again. ``fingerprint``, 32 bits, tells a repeat from another request with
    the same number. ``ticket`` is the caller's and comes back with the answer.

    Of one with ``only_checks`` the answer is not kept, and a repeat is done again: it changes nothing, takes
    no grant to write, and its answer may be long.
    """

    writes: Sequence[Write]
    atomic: bool = False
    client: str | None = None
    seq: int = 0
    fingerprint: int = 0
    ticket: Any = None
    only_checks: bool = False


class WriteAnswer(NamedTuple):
    """What became of a request.

    ``results`` has one entry for each write: the fields of its reply, or the KvError with which it
    alone failed. ``error`` is set instead where the whole request was refused: a failed condition in
    an atomic batch (``details["op"]`` is its index), a limit, or an outcome that is not known
    (``details["outcome"] == "unknown"``).
    """

    ticket: Any
    results: list[dict[str, Any] | KvError] | None
    error: KvError | None = None


class LogPosition(NamedTuple):
    """The log's epoch, floor and head, and the digest of the records.

    ``epoch`` names one history of one store. ``head`` is the revision of the last commit. ``floor`` is the
    last revision that was trimmed (etcd: the compact revision), 0 if none was: the log has every event above
    it, and none at or below it. So a cursor at the floor can be continued, and one below it cannot.
    ``digest`` is that of all records as of ``head``; None while it is not known, since a record was replaced
    that could not be read.
    """

    epoch: str
    floor: int
    head: int
    digest: int | None


class Committed(NamedTuple):
    """What an engine has to tell. ``events`` come whole revisions at a time and in their order.

    ``restarted`` is set if the log was replaced, by a restore or since what this daemon had was no longer
    continued: ``events`` are then those that came after, and what was told before need not lead up to them.
    Its epoch may be the one that was, or another.
    """

    events: list[StoredEvent]
    answers: list[WriteAnswer]
    restarted: LogPosition | None = None


class Folding(NamedTuple):
    """How a range shows keys that have ``delimiter`` somewhere after their first ``after`` bytes: not one by
    one, but by what they begin with up to the first one there, the delimiter included."""

    delimiter: bytes
    after: int = 0
    counts: bool = False

    def prefix_of(self, key: bytes) -> bytes | None:
        """What ``key`` is shown by; None if it is shown itself."""
        at = key.find(self.delimiter, self.after)
        return None if at < 0 else key[: at + len(self.delimiter)]


class RangePage(NamedTuple):
    """Records in key order, or in the opposite one. ``next_key`` is None at the end; else the next page
    starts there or, backwards, ends below it.

    ``prefixes`` are those by which folded keys are shown, in the same order, and ``counts`` (where they were
    asked for) the number of keys in the range that each stands for: None where there are more than
    ``MAX_COUNTED``, or more than one call looks at. ``sizes`` are the lengths of the items' values,
    where these were left out.
    """

    items: list[tuple[bytes, StoredRecord]]
    next_key: bytes | None
    revision: int
    prefixes: Sequence[bytes] = ()
    counts: Sequence[int | None] = ()
    sizes: Sequence[int] = ()


class KeyCount(NamedTuple):
    """The number of keys in a part of a range; ``next_key`` is where to go on, None at the end."""

    total: int
    next_key: bytes | None
    revision: int


class KeyDigest(NamedTuple):
    """The digest of so many ``records`` in a part of a range; ``next_key`` is where to go on, None at the
    end. Digests of parts add up. A record that has expired is one of them until its expire event."""

    digest: int
    records: int
    next_key: bytes | None
    revision: int


class EventPage(NamedTuple):
    """Events in log order. All up to ``next_revision`` were looked at, whether they matched or not; it
    equals ``position.head`` when there are no more."""

    events: list[StoredEvent]
    next_revision: int
    position: LogPosition


class History(NamedTuple):
    """Events, newest first. ``cursor`` continues them; it is None at the end, which is the first event that
    there was, or the log's floor (``truncated`` is then true)."""

    events: list[StoredEvent]
    cursor: str | None
    truncated: bool


class EventFilter(NamedTuple):
    """Which events are wanted: those whose key is in ``keys`` or begins with one of ``prefixes``
    (both empty: all), with an op in ``ops`` (empty: all)."""

    prefixes: tuple[bytes, ...] = ()
    keys: frozenset[bytes] = frozenset()
    ops: frozenset[str] = frozenset()

    def matches(self, op: str, key: bytes) -> bool:
        """Whether an event of ``key`` is wanted."""
        if self.ops and op not in self.ops:
            return False
        if not self.prefixes and not self.keys:
            return True
        return key in self.keys or (bool(self.prefixes) and key.startswith(self.prefixes))


class EvictionLimit(NamedTuple):
    """The records below ``prefixes`` take no more than ``max_bytes`` together: the oldest of them, by their
    revisions, are expired in the commit of the write that needs the room."""

    prefixes: tuple[bytes, ...]
    max_bytes: int


class EvictionState(NamedTuple):
    """How many ``bytes`` the ``records`` below the prefixes of a cache take, of ``max_bytes``, and what was
    evicted of them since the start."""

    prefixes: tuple[bytes, ...]
    max_bytes: int
    bytes: int
    records: int
    evicted_records: int
    evicted_bytes: int


class Statistics(NamedTuple):
    """Counts for an operator; all are kept up to date, none is computed by a scan.

    ``expiring_keys`` are those with a time to live. ``max_log_bytes`` is up to where the log is kept: less
    than ``--retain-bytes`` on a small disk, or in a small store. ``oldest_event_at`` and
    ``newest_event_at`` are None while the log is empty. ``data_bytes`` is what the records take,
    ``store_bytes`` everything, and ``file_bytes`` includes free room inside the file. ``disk_bytes`` and
    ``disk_free_bytes`` are those of the store's file system. ``writes_refused`` is the error that a write
    which grows the store would get now, None if it would be taken. ``commits`` may change while it is
    read. ``journal_bytes`` is about what was committed since the last checkpoint, and ``overlay_bytes``
    the most that is kept in memory of it. ``eviction`` is None where nothing is evicted.
    """

    keys: int
    expiring_keys: int
    log_events: int
    log_bytes: int
    max_log_bytes: int
    oldest_event_at: int | None
    newest_event_at: int | None
    data_bytes: int
    store_bytes: int
    file_bytes: int
    max_store_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    writes_refused: KvError | None
    commits: CommitStats
    clock: ClockState
    journal_bytes: int = 0
    overlay_bytes: int = 0
    eviction: EvictionState | None = None


class Retention(NamedTuple):
    """How far back the log reaches: the tightest of the three holds."""

    events: int
    bytes: int
    age_ms: int


class EngineSettings(NamedTuple):
    """What an engine is opened with. ``address`` is the whole of ``--engine``. ``sync`` is ``always``,
    ``interval`` or ``none``; ``sync_interval_ms`` matters for ``interval`` only. The limits of values and
    atomic batches are kept by the daemon; an engine that cannot store as much refuses them at the start, and
    so does one that cannot evict with ``eviction``."""

    address: str
    data: str
    sync: str
    sync_interval_ms: int
    max_store_bytes: int
    retention: Retention
    max_value_bytes: int
    max_atomic_ops: int
    max_atomic_bytes: int
    eviction: EvictionLimit | None = None


MAX_COUNTED = 1_000
"""Up to how many keys a page counts below a prefix."""


def no_such_key(key: bytes) -> KvError:
    """The ``not_found`` that names the key."""
    return KvError("not_found", f"no such key: {key.decode()!r}")


def never() -> bool:
    """That something is over which goes on."""
    return False


class Engine(Protocol):
    """Stores what the daemon serves. Errors are KvErrors: ``damaged``, ``store_full``, ``unavailable``."""

    plans_at_once: bool
    """Whether :meth:`commit` does the work of a group before it returns, and the disk's is all that is left.
    Such an engine is best given small groups, also while others are under way."""

    def open(self, is_over: Callable[[], bool] = never) -> None:
        """Open or create the store; raises KvError saying why it cannot be used. Where it has to wait for
        others it asks ``is_over`` every now and then, and gives up if that is so."""

    def close(self) -> None:
        """Commit what was handed over, make it durable, and let go of the store."""

    def fileno(self) -> int:
        """A descriptor that is readable whenever :meth:`poll` has something."""

    def commit(self, group: Sequence[WriteRequest]) -> None:
        """Hand over requests to be committed together, in this order. Groups are committed in the order in
        which they were handed over, however many are under way."""

    def poll(self) -> Committed:
        """What was committed, and what became of requests, since the last call. Never waits.

        Events come whole revisions at a time and in order, and never later than the answer to the request
        that made them. Those of expiry and, on a distributed engine, of other writers are among them.
        ``previous`` is given on an expire only; :meth:`log` has it for the others.
        """

    def catch_up(self, ticket: Any) -> bool:
        """Whether all that was committed by anybody before this call can be read now, as it always can where
        nobody else writes. Where that has to be found out first, False: ``ticket`` comes back through
        :meth:`poll` as a WriteAnswer without results once it can, or with the error (``unavailable``) that
        says why that is not known, before clients give up, which is after 5 s. Never in the way of a
        commit."""

    def age(self) -> int:
        """How many milliseconds ago reads showed all that was committed, as far as the machine knows that
        tells this one of it; 0 where they always do. A machine that is cut off from the others believes for
        some seconds more that it knows."""

    def cluster(self) -> dict[str, Any] | None:
        """What an operator should know of the machines that keep the store together, for ``status``; None if
        there is but this one."""

    def read(self, keys: Sequence[bytes]) -> tuple[list[StoredRecord | KvError | None], int]:
        """The records of the first of ``keys`` from one snapshot, None for a missing or expired one and a
        KvError for a damaged one; and the snapshot's revision. All of ``keys`` unless the values together
        are large, and at least one. Never waits for a commit."""

    def range(
        self,
        start: bytes,
        end: bytes | None,
        limit: int,
        *,
        values: bool,
        max_bytes: int,
        reverse: bool = False,
        folding: Folding | None = None,
    ) -> RangePage:
        """Up to ``limit`` records and prefixes with start <= key < end (None: no end) from one snapshot, in
        the order of their keys or, with ``reverse``, in the opposite one. Fewer once ``max_bytes`` of values
        are reached, but at least one; and fewer, or none, where many keys that are gone lie between.

        A prefix is there if a key below it is, and takes one step however many there are. Their records are
        not read, so one that is damaged shows where it is listed itself."""

    def count(self, start: bytes, end: bytes | None) -> KeyCount:
        """The number of keys in the range, or in a bounded part of it."""

    def digest(self, start: bytes, end: bytes | None) -> KeyDigest:
        """The digest of the records in the range, or in a bounded part of it; that of all records is known,
        unless :attr:`LogPosition.digest` says otherwise, and whole at once."""

    def log(
        self, since: int, wanted: EventFilter, limit: int, *, values: bool, previous: bool, max_bytes: int
    ) -> EventPage | LogPosition:
        """Events with a revision above ``since``, whole revisions at a time; only the position if ``since``
        is below the floor, above the head, or in the gap that a restore left. A call looks at a bounded
        number of events. Without ``previous`` only an expire has its previous record, and with it not all
        have it where one revision has replaced very large values."""

    def history(
        self, key: bytes, before: int | None, cursor: str | None, limit: int, *, values: bool, max_bytes: int
    ) -> History:
        """The key's events below revision ``before``, newest first. A call looks at a bounded number of
        events. Raises ``not_found`` if there is neither the key nor an event of it."""

    def recent(
        self,
        prefix: bytes,
        before: int | None,
        cursor: str | None,
        limit: int,
        *,
        values: bool,
        max_bytes: int,
    ) -> History:
        """The events below revision ``before`` of all keys that begin with ``prefix``, newest first. A call
        looks at a bounded number of events, so a page may be empty and not be the last."""

    def revision_at(self, time: int) -> tuple[int | None, LogPosition]:
        """The last revision that was committed at or before ``time``, as the wall clock shows it now: what
        counts is how long ago that is, also where the clock has been set since. 0 if the first one came
        later; None if the log does not say, because it begins later.

        The times of events rise with their revisions where one machine commits. Where several do, they run
        backwards by as much as the clocks differ; then it is a revision at or before ``time`` that is
        followed by a later one, and others that are as close to it may be on its other side."""

    def due(self, limit: int) -> tuple[list[tuple[bytes, int]], int | None]:
        """Up to ``limit`` expired keys with the revision to delete them at, of no more than MAX_PRESENT_BYTES
        together unless it is one; and the time of the next expiry after those (None: nothing expires)."""

    def now(self) -> int:
        """The time that a write would be stamped with now; what :meth:`due` returns and ``expires_at`` are
        compared with it."""

    def position(self) -> LogPosition:
        """Epoch, floor and head of the log, as of the last commit."""

    def trim(self) -> None:
        """Begin one bounded step of trimming the log, if the retention asks for any."""

    def statistics(self) -> Statistics:
        """The store's present counts."""
