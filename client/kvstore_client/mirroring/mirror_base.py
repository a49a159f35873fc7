"""What both forms of a mirror share: reading it, and what it knows of itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from kvstore_client.mirroring.mirror_file import MirrorFile
from kvstore_client.mirroring.mirrored_records import Changed, KeySpan, MirrorCopy, MirroredRecords, parts_of
from kvstore_client.subscription_state import SILENCE_SECONDS, Item, Reset, Sync
from kvstore_client.transport import forks
from kvstore_core.digest import MODULUS, digest_text
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor, Record
from kvstore_core.wire import Heartbeat

_UNPROVEN_BEATS = 60
"""After so many digests that differ in a row a mirror of all reads all again, if it was never equal since it
last did. Until then what differs may be records that had expired and whose events are still to come."""

log = logging.getLogger("kvstore.client")


class MirrorView(NamedTuple):
    """All records of a mirror at one moment, which are those of the store at ``cursor``."""

    records: Mapping[str, Record]
    cursor: Cursor


class MirrorBase(forks.NotPortable, Mapping[str, Record]):
    """The mapping, and the state that its follower keeps."""

    def __init__(
        self, wanted: Filter, file: MirrorFile | None, on_change: Callable[[Changed], object] | None
    ) -> None:
        self._wanted = wanted
        self._state = MirroredRecords()
        self._file = file
        self._on_change = on_change
        self._heard_at = -math.inf
        self._generation = forks.generation()
        self._is_following = False
        self._unproven = self._proven_load = 0
        self.proven: Cursor | None = None
        """Where it was last found to be equal to the store."""
        self.error: KvError | None = None
        """Why it does not follow the store at present, where that does not pass by itself: ``not_allowed``,
        ``unauthenticated`` and the like. It tries again every minute."""

    # ── the mapping ──────────────────────────────────────────────────────────────────────────────

    def __getitem__(self, key: str) -> Record:
        return self._state.records[key]

    def __contains__(self, key: object) -> bool:
        return key in self._state.records

    def __len__(self) -> int:
        return len(self._state.records)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._state.records.copy()))

    def __repr__(self) -> str:
        shown = f"{len(self)} records at {self.cursor}"
        return f"<{type(self).__name__} of {shown}{'' if self.is_current else ', not current'}>"

    def view(self) -> MirrorView:
        """A copy of all records of one moment, for what has to go together: a later change does not get into
        it, and those of one revision are in it together. Raises ``unavailable`` before the first ones were
        read."""
        records, cursor, *_ = self._state.copy()
        if cursor is None:
            raise KvError("unavailable", "the mirror has not read anything yet")
        return MirrorView(records, cursor)

    # ── where it is ──────────────────────────────────────────────────────────────────────────────

    @property
    def cursor(self) -> Cursor | None:
        """All up to here is in it; None before the first records were read."""
        return self._state.cursor

    @property
    def revision(self) -> int:
        """All up to this revision is in it; 0 before the first records were read."""
        cursor = self._state.cursor
        return 0 if cursor is None else cursor.revision

    @property
    def age(self) -> float:
        """For how many seconds it may have missed something: since it last had all that the daemon had.
        Infinite before that."""
        return time.monotonic() - self._heard_at

    @property
    def is_current(self) -> bool:
        """Whether it follows the store: it had all that the daemon had within the last seconds. While it is
        False, because the daemon or the network is away or the access was taken away, it still has what it
        had."""
        return self.age <= SILENCE_SECONDS and self.error is None and self._generation == forks.generation()

    # ── following ────────────────────────────────────────────────────────────────────────────────

    def _resume(self) -> None:
        """Take what the file has."""
        found = None if self._file is None else self._file.load()
        if found is not None:
            self._state.resume(*found)

    def _take(self, item: Item, cursor: Cursor | None) -> Changed:
        """Take in what the subscription returned; tells of what has changed."""
        if isinstance(item, Reset):
            log.warning("a mirror reads all again: its position in the log is gone (%s)", item.reason)
        changed = self._state.take(item, cursor)
        self.error = None
        if isinstance(item, (Heartbeat, Sync)) and not self._state.is_loading:
            self._heard_at = time.monotonic()
        if self._file is not None and not self._state.is_loading:
            self._file.note(self._state.cursor, has_changed=bool(changed))
        if changed and self._on_change is not None:
            try:
                self._on_change(changed)
            except Exception:
                log.exception("on_change of a mirror failed")
        return changed

    def _note_failure(self, error: Exception) -> None:
        if not isinstance(error, KvError):
            log.error("a mirror failed and tries again", exc_info=error)
            error = KvError("internal", f"the mirror failed: {error!r}")
        else:
            log.warning("a mirror does not follow the store: %s", error)
        self.error = error

    def _is_at(self, revision: int) -> bool:
        """Whether there is nothing more to wait for."""
        return self.error is not None or (self._heard_at > -math.inf and self.revision >= revision)

    def _behind(self, revision: int, seconds: float) -> KvError:
        state = f"the mirror is at revision {self.revision}, and not at {revision}"
        if self._heard_at == -math.inf:
            state = "the mirror has heard nothing from the store"
        return KvError("timed_out", f"{state} within {seconds:g} s", revision=self.revision)

    # ── proving ──────────────────────────────────────────────────────────────────────────────────

    def _differs(self, beat: Heartbeat) -> bool:
        """Whether a mirror of all is not what the daemon had at its heartbeat, and has to read all again."""
        cursor = self.cursor
        if not (self._wanted.takes_every_key and beat.digest) or cursor is None or cursor.epoch != beat.epoch:
            return False
        mine = self._state.sum_at(beat.revision)
        if mine is None:
            return False
        load = self._state.loads
        if digest_text(mine) == beat.digest:
            self.proven, self._proven_load, self._unproven = Cursor(beat.revision, beat.epoch), load, 0
            return False
        self._unproven += 1
        if self._proven_load != load and self._unproven < _UNPROVEN_BEATS:
            return False
        log.error("a mirror is not equal to the store at revision %d, and reads all again", beat.revision)
        self._unproven, self._heard_at = 0, -math.inf
        return True

    def _own_parts(self) -> tuple[MirrorCopy, list[tuple[KeySpan, int]]]:
        """What it has, in parts with the sums of their hashes; raises ``damaged`` if that is not what it took
        in."""
        copy = self._state.copy()
        parts = parts_of(copy.records, self._wanted)
        if (sum(total for _, total in parts) - copy.sum) % MODULUS or copy.cursor is None:
            raise self._spoiled("what it has is not what it took in")
        return copy, parts

    def _spoiled(self, what: str) -> KvError:
        message = f"the mirror is not equal to the store at revision {self.revision}: {what}"
        return KvError("damaged", message, revision=self.revision)

    def _must_be_begun(self) -> None:
        if not self._is_following or self._generation != forks.generation():
            raise RuntimeError("a mirror follows the store inside its 'with' block, and in no forked process")
