"""What the daemon says of itself: counters that only grow, and the ``status`` operation."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from kvstore_client.model import MAX_KEY_BYTES
from kvstore_client.operations import MAX_PAGE
from kvstore_client.protocol import VERSION, Limits
from kvstore_daemon.engine import Engine
from kvstore_daemon.settings import DaemonSettings


@dataclass(slots=True)
class Counters:
    """What happened since the daemon started. Only the loop's thread counts."""

    requests: int = 0
    operations: int = 0
    requests_refused: int = 0
    groups_committed: int = 0
    requests_committed: int = 0
    changes_published: int = 0
    bytes_received: int = 0
    bytes_replied: int = 0


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
    """Answers ``status``."""

    def __init__(self, settings: DaemonSettings, engine: Engine, counters: Counters) -> None:
        self._settings = settings
        self._engine = engine
        self._counters = counters
        self._version = version("kvstore")
        self._started_at = time.time_ns() // 1_000_000
        self._started = time.monotonic()

    def fields(self) -> dict[str, Any]:
        """The operation's result. Times are in milliseconds, ``uptime`` in seconds."""
        settings, position = self._settings, self._engine.position()
        return {
            "version": self._version,
            "protocol": VERSION,
            "engine": settings.engine,
            "sync": settings.sync,
            "epoch": position.epoch,
            "revision": position.head,
            "floor": position.floor,
            **self._engine.statistics()._asdict(),
            "started_at": self._started_at,
            "uptime": round(time.monotonic() - self._started, 3),
            "pid": os.getpid(),
            "limits": self._limits(),
            "counters": asdict(self._counters),
        }

    def _limits(self) -> dict[str, int]:
        settings = self._settings
        return {
            "key_bytes": MAX_KEY_BYTES,
            "value_bytes": settings.max_value_bytes,
            "batch_ops": settings.max_batch_ops,
            "batch_bytes": settings.max_batch_bytes,
            "atomic_ops": settings.max_atomic_ops,
            "atomic_bytes": settings.max_atomic_bytes,
            "page": MAX_PAGE,
        }
