"""Removes expired keys, which makes their ``expire`` events."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_daemon.event_loop import Loop
from kvstore_daemon.group_commit import GroupCommitter
from kvstore_daemon.status import Counters
from kvstore_daemon.storage.interface import Engine, StoredEvent, Write, WriteAnswer, WriteRequest

log = logging.getLogger("kvstore.daemon")

BATCH = 5_000
"""Keys removed in one group: with fewer, 100,000 that expire together take longer; with more, a write in the
same group waits longer."""

CHECK_SECONDS = 1.0
"""The longest time between two looks for expired keys: the clock may be set meanwhile, or all that is stored
be replaced."""

RETRY_SECONDS = 1.0

LOG_SECONDS = 600.0
"""The shortest time between two lines in the log that say keys cannot be removed; ``/readyz`` always says
why."""


class Expiry:
    """Asks the engine for expired keys and removes them, one batch at a time.

    A reader never sees an expired key, whether it was removed or not, so this need not be quick. Each key is
    removed only if it still has the revision that was seen.
    """

    def __init__(self, loop: Loop, engine: Engine, committer: GroupCommitter, counters: Counters) -> None:
        self._engine = engine
        self._committer = committer
        self._counters = counters
        self._timer = loop.timer(self._remove_due)
        self._next_ms: int | None = None
        self._is_removing = False
        self._is_stopped = False
        self._failed = RateLimitedLog(log, LOG_SECONDS)

    def start(self) -> None:
        """Begin with the keys that expired while no daemon ran."""
        self._timer.set(0)

    def stop(self) -> None:
        """Remove no further batch."""
        self._is_stopped = True

    def _remove_due(self) -> None:
        if self._is_stopped:
            return
        keys, self._next_ms = self._engine.due(BATCH)
        if keys:
            writes = [Write("expire", key, if_revision=revision) for key, revision in keys]
            self._is_removing = True
            self._committer.add(WriteRequest(writes, ticket=self), sum(len(key) for key, _ in keys))
        else:
            self._schedule()

    def _schedule(self) -> None:
        delay = CHECK_SECONDS
        if self._next_ms is not None:
            delay = min(delay, max(0.001, (self._next_ms - self._engine.now()) / 1000))
        self._timer.set(delay)

    def removed(self, answer: WriteAnswer) -> None:
        """The batch was committed, or refused; continue with the next.

        If nothing could be removed (the store is full, the records are damaged) the same keys would be due
        again at once, so the next attempt waits.
        """
        self._is_removing = False
        removed = [result for result in answer.results or () if not isinstance(result, KvError)]
        if not removed:
            self._log_failure(answer)
        self._timer.set(0 if removed else RETRY_SECONDS)

    def _log_failure(self, answer: WriteAnswer) -> None:
        refusals = [answer.error] if answer.error else list(answer.results or ())
        others = f", and {len(refusals) - 1} more keys likewise" if len(refusals) > 1 else ""
        self._failed.error(
            "expired keys could not be removed; trying again each second: %s%s", refusals[0], others
        )

    def note(self, events: Sequence[StoredEvent]) -> None:
        """Count what expired, and note keys that will expire sooner than any known before."""
        soonest = self._next_ms
        for event in events:
            record = event.record
            if record is None:
                self._counters.expiries += event.op == "expire"
                continue
            if record.expires_at is None:
                continue
            if soonest is None or record.expires_at < soonest:
                soonest = record.expires_at
        if soonest != self._next_ms:
            self._next_ms = soonest
            if not self._is_removing:
                self._schedule()
