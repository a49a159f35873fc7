"""Data that is not what was written: how the parts of an engine say so to each other, and to a client."""

from __future__ import annotations

from kvstore_core.errors import KvError


class DamageError(ValueError):
    """The bytes are not what was written."""


def damaged_record(key: bytes, damage: DamageError) -> KvError:
    """The ``damaged`` that names the key of a record, which is never given out as data."""
    name = key.decode(errors="replace")
    return KvError(
        "damaged",
        f"the record of {name!r} is damaged ({damage}); put or delete it, or restore a backup",
        key=name,
    )
