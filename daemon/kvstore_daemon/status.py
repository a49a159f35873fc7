"""The daemon's counters, and the result of the ``status`` operation."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from kvstore_core.access.principal import Principal
from kvstore_core.digest import digest_text
from kvstore_core.distribution import installed_version
from kvstore_core.limits import MAX_KEY_BYTES, MAX_PAGE
from kvstore_core.operations import status_for
from kvstore_core.wire import VERSION, Limits
from kvstore_daemon.process_usage import Usage
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.storage.interface import Engine, EvictionState


@dataclass(slots=True)
class Counters:
    """What happened since the daemon started. Only the loop's thread counts.

    ``groups_committed`` and ``requests_committed`` are what was handed to the engine, whether it was then
    committed or refused. What was committed is counted where it is done, in the engine's ``Commits``.
    """

    requests: int = 0
    operations: int = 0
    requests_refused: int = 0
    requests_dropped: int = 0
    peers_cut_off: int = 0
    subscribers_kicked: int = 0
    expiries: int = 0
    groups_committed: int = 0
    requests_committed: int = 0
    changes_published: int = 0
    bytes_received: int = 0
    bytes_replied: int = 0
    operations_by_name: Counter[str] = field(default_factory=Counter)

    def count_operations(self, ops: Sequence[dict[str, Any]]) -> None:
        """Count the ops of a valid request."""
        self.operations += len(ops)
        if len(ops) == 1:
            self.operations_by_name[ops[0]["op"]] += 1
        else:
            self.operations_by_name.update(map(itemgetter("op"), ops))

    def as_json(self) -> dict[str, Any]:
        """The counts by their names."""
        by_name = dict(self.operations_by_name)
        return {**{name: getattr(self, name) for name in self.__slots__}, "operations_by_name": by_name}


def limits_of(settings: DaemonSettings) -> Limits:
    """What one request may hold under ``settings``."""
    return Limits(
        ops=settings.max_batch_ops,
        request_bytes=settings.max_batch_bytes,
        atomic_ops=settings.max_atomic_ops,
        atomic_bytes=settings.max_atomic_bytes,
        value_bytes=settings.max_value_bytes,
    )


class Status:
    """Makes the result of ``status``; ``present`` returns the fields that say what is going on now, and
    ``access`` what there is to say of access."""

    def __init__(
        self,
        settings: DaemonSettings,
        engine: Engine,
        counters: Counters,
        present: Callable[[], dict[str, int]],
        access: Callable[[], dict[str, Any] | None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._counters = counters
        self._present = present
        self._access = access
        self._usage = Usage()
        self._version = installed_version()
        self._started_at = time.time_ns() // 1_000_000
        self._started = time.monotonic()

    def fields_for(self, who: Principal) -> dict[str, Any]:
        """What ``who`` may see of :meth:`fields`."""
        return status_for(who, self.fields())

    def fields(self) -> dict[str, Any]:
        """The operation's result. Times are in milliseconds, ``uptime`` in seconds."""
        settings, position = self._settings, self._engine.position()
        statistics = self._engine.statistics()
        refusal = statistics.writes_refused
        return {
            "version": self._version,
            "protocol": VERSION,
            "engine": settings.engine.partition("?")[0],  # behind it are names of files, and of a user
            "sync": settings.sync,
            "epoch": position.epoch,
            "revision": position.head,
            "floor": position.floor,
            "digest": None if position.digest is None else digest_text(position.digest),
            **statistics._asdict(),
            "writes_refused": None if refusal is None else refusal.as_json(),
            "commits": statistics.commits.as_json(),
            "clock": statistics.clock._asdict(),
            "eviction": _eviction(statistics.eviction),
            "retention": {
                "events": settings.retain_events,
                "bytes": settings.retain_bytes,
                "age": settings.retain_age_ms,
            },
            **self._present(),
            "access": self._access(),
            "cluster": self._engine.cluster(),
            "started_at": self._started_at,
            "uptime": round(time.monotonic() - self._started, 3),
            "pid": os.getpid(),
            "process": self._usage.fields(),
            "limits": {
                "key_bytes": MAX_KEY_BYTES,
                "value_bytes": settings.max_value_bytes,
                "batch_ops": settings.max_batch_ops,
                "batch_bytes": settings.max_batch_bytes,
                "atomic_ops": settings.max_atomic_ops,
                "atomic_bytes": settings.max_atomic_bytes,
                "page": MAX_PAGE,
            },
            "counters": self._counters.as_json(),
        }


def _eviction(state: EvictionState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    return {**state._asdict(), "prefixes": [prefix.decode() for prefix in state.prefixes]}
