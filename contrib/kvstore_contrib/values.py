"""Python objects as values: integers as decimal text, on which the store counts, and all others pickled.

Pickles are read with :mod:`pickle`, as Django's and cachelib's own backends do: who may write below the
prefix of a cache can run code in the programs that read it, so grant that to these programs alone.
"""

from __future__ import annotations

import pickle
import re
from typing import Any

from kvstore_client import Record, RequestTooLarge, StoreFull, TimedOut, TooBusy, Unavailable, ValueTooLarge
from kvstore_core.media_types import TEXT_CONTENT_TYPE

PICKLE = "application/vnd.python.pickle"
NO_ROOM = (RequestTooLarge, StoreFull, ValueTooLarge)
"""The errors of a value that is too large for the store, or for what is left in it."""

AWAY = (TimedOut, TooBusy, Unavailable)
"""The errors of a service that does not answer, or has too much to do: what may pass by waiting."""

_COUNTED = range(-(2**63), 2**63)
_DECIMAL = re.compile(rb"-?[0-9]{1,19}")


def dump(value: Any) -> tuple[bytes, str]:
    """The bytes for ``value`` and their media type; raises what :func:`pickle.dumps` raises."""
    # a bool is an int, too, and has to come back as a bool
    if type(value) is int and value in _COUNTED:
        return b"%d" % value, TEXT_CONTENT_TYPE
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL), PICKLE


def load(record: Record) -> Any:
    """What :func:`dump` was given. What another program wrote is an integer where it is nothing but the
    decimal digits of one, as ``incr`` makes them, and else bytes."""
    value = record.value or b""
    if record.content_type == PICKLE:
        return pickle.loads(value)  # noqa: S301 # see the module
    return int(value) if _DECIMAL.fullmatch(value) else value
