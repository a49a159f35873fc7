"""Opening the engine that an engine URL names."""

from __future__ import annotations

from kvstore_core.errors import KvError
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.storage.interface import Engine, EngineSettings, Retention
from kvstore_daemon.storage.lmdb_store.engine import LmdbEngine

ENGINES = {"lmdb": LmdbEngine}


def open_engine(settings: DaemonSettings) -> Engine:
    """Open the engine that ``settings.engine`` names; raises KvError saying why it cannot be used."""
    scheme, colon, rest = settings.engine.partition(":")
    engine_class = ENGINES.get(scheme)
    if engine_class is None or not colon or rest:
        known = ", ".join(f"{name}:" for name in ENGINES)
        raise KvError("bad_request", f"--engine {settings.engine!r} is not known; there is: {known}")
    retention = Retention(settings.retain_events, settings.retain_bytes, settings.retain_age_ms)
    engine = engine_class(
        EngineSettings(
            settings.data, settings.sync, settings.sync_interval_ms, settings.max_store_bytes, retention
        )
    )
    engine.open()
    return engine
