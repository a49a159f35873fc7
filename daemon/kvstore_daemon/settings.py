"""The daemon's options. Their names, units, defaults and consequences are in the option table of the command
(``kvstore_cli.config.options``)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """The daemon's options, checked and in base units. ``access`` is decided: ``required`` or ``off``."""

    data: str
    requests: str
    changes: str
    engine: str
    sync: str
    sync_interval_ms: int
    max_value_bytes: int
    max_store_bytes: int
    evict_prefix: tuple[str, ...]
    evict_bytes: int | None
    max_batch_ops: int
    max_batch_bytes: int
    max_atomic_ops: int
    max_atomic_bytes: int
    retain_events: int
    retain_bytes: int
    retain_age_ms: int
    max_pending_requests: int
    subscriber_queue: int
    access: str
    access_file: str | None
    admin_token_file: str | None
    allow_anonymous: bool
    slow_commit_ms: int
    slow_log_ms: int
    log_level: str
    log_format: str
