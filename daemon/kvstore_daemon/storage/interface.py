"""The interface to what stores the data: what the daemon asks of an engine, and nothing of how it is done.

An engine orders writes, makes them durable and reports what was committed. Everything above this package uses
only this module, so a second engine behaves the same; ``tests/engine`` defines "the same" and runs against
any engine.

Keys are UTF-8 bytes that were checked, times are milliseconds since the epoch. A time to live is measured by
a clock that nobody can set; ``expires_at`` is when it will be over, as the wall clock shows it now. All
methods are called from the daemon's one loop, and none of them waits for a disk or a network except ``open``
and ``close``: ``commit`` only hands over, and its answers come through ``fileno`` and ``poll``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """One committed event, read-only. See :class:`kvstore_core.model.Event` for what the fields promise."""

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


class Write(NamedTuple):
    """One change that a request asks for.

    ``op`` is ``put``, ``delete``, ``incr``, ``touch``, ``persist``, ``delete_prefix`` (``key`` is then
    the prefix and ``limit`` the most it removes) or ``expire`` (the daemon's own: remove the key if it
    still has ``if_revision`` and its time has come). ``if_revision`` 0 means: must not exist. A put may have
    one of ``ttl_ms``, ``keep_ttl`` (the key keeps the expiry it has) and ``expires_at``.
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


class WriteRequest(NamedTuple):
    """What one client asks to be committed.

    Independent writes succeed or fail one by one; an atomic request is applied whole, in one
    revision, or not at all. A numbered request (``client`` is not None) is applied at most once: a
    repeat gets the first answer again. ``fingerprint``, 32 bits, tells a repeat from another request with
    the same number. ``ticket`` is the caller's and comes back with the answer.
    """

    writes: Sequence[Write]
    atomic: bool = False
    client: str | None = None
    seq: int = 0
    fingerprint: int = 0
    ticket: Any = None


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
    """The log's epoch, floor and head.

    ``epoch`` names one history of one store. ``head`` is the revision of the last commit. ``floor`` is the
    last revision that was trimmed (etcd: the compact revision), 0 if none was: the log has every event above
    it, and none at or below it. So a cursor at the floor can be continued, and one below it cannot.
    """

    epoch: str
    floor: int
    head: int


class RangePage(NamedTuple):
    """Records in key order; ``next_key`` is where the next page starts, None at the end."""

    items: list[tuple[bytes, StoredRecord]]
    next_key: bytes | None
    revision: int


class KeyCount(NamedTuple):
    """The number of keys in a part of a range; ``next_key`` is where to go on, None at the end."""

    total: int
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


class Statistics(NamedTuple):
    """Counts for an operator; all are kept up to date, none is computed by a scan.

    ``expiring_keys`` are those with a time to live. ``oldest_event_at`` and ``newest_event_at`` are None
    while the log is empty. ``data_bytes`` is what the records take, ``store_bytes`` everything, and
    ``file_bytes`` includes free room inside the file. ``disk_bytes`` and ``disk_free_bytes`` are those of the
    store's file system. ``writes_refused`` is the error that a write which grows the store would get now,
    None if it would be taken. ``commits`` may change while it is read.
    """

    keys: int
    expiring_keys: int
    log_events: int
    log_bytes: int
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


class Retention(NamedTuple):
    """How far back the log reaches: the tightest of the three holds."""

    events: int
    bytes: int
    age_ms: int


class EngineSettings(NamedTuple):
    """What an engine is opened with. ``sync`` is ``always``, ``interval`` or ``none``;
    ``sync_interval_ms`` matters for ``interval`` only."""

    data: str
    sync: str
    sync_interval_ms: int
    max_store_bytes: int
    retention: Retention


def no_such_key(key: bytes) -> KvError:
    """The ``not_found`` that names the key."""
    return KvError("not_found", f"no such key: {key.decode()!r}")


class Engine(Protocol):
    """Stores what the daemon serves. Errors are KvErrors: ``damaged``, ``store_full``, ``unavailable``."""

    def open(self) -> None:
        """Open or create the store; raises KvError saying why it cannot be used."""

    def close(self) -> None:
        """Commit what was handed over, make it durable, and let go of the store."""

    def fileno(self) -> int:
        """A descriptor that is readable whenever :meth:`poll` has something."""

    def commit(self, group: Sequence[WriteRequest]) -> None:
        """Hand over requests to be committed together, in this order. Groups are committed in the order in
        which they were handed over, however many are under way."""

    def poll(self) -> tuple[list[StoredEvent], list[WriteAnswer]]:
        """What was committed, and what became of requests, since the last call. Never waits.

        Events come whole revisions at a time and in order, and never later than the answer to the request
        that made them. Those of expiry and, on a distributed engine, of other writers are among them.
        ``previous`` is given on an expire only; :meth:`log` has it for the others.
        """

    def read(self, keys: Sequence[bytes]) -> tuple[list[StoredRecord | KvError | None], int]:
        """The records of the first of ``keys`` from one snapshot, None for a missing or expired one and a
        KvError for a damaged one; and the snapshot's revision. All of ``keys`` unless the values together
        are large, and at least one. Never waits for a commit."""

    def range(
        self, start: bytes, end: bytes | None, limit: int, *, values: bool, max_bytes: int
    ) -> RangePage:
        """Up to ``limit`` records with start <= key < end (None: no end) from one snapshot, fewer
        once ``max_bytes`` of values are reached, but at least one."""

    def count(self, start: bytes, end: bytes | None) -> KeyCount:
        """The number of keys in the range, or in a bounded part of it."""

    def log(
        self, since: int, wanted: EventFilter, limit: int, *, values: bool, previous: bool, max_bytes: int
    ) -> EventPage | LogPosition:
        """Events with a revision above ``since``, whole revisions at a time; only the position if ``since``
        is below the floor, above the head, or in the gap that a restore left. A call looks at a bounded
        number of events. Without ``previous`` only an expire has its previous record."""

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

    def due(self, limit: int) -> tuple[list[tuple[bytes, int]], int | None]:
        """Up to ``limit`` expired keys with the revision to delete them at, and the time of the next
        expiry after those (None: nothing expires)."""

    def now(self) -> int:
        """The time that a write would be stamped with now; what :meth:`due` returns and ``expires_at`` are
        compared with it."""

    def position(self) -> LogPosition:
        """Epoch, floor and head of the log, as of the last commit."""

    def trim(self) -> None:
        """Begin one bounded step of trimming the log, if the retention asks for any."""

    def statistics(self) -> Statistics:
        """The store's present counts."""
