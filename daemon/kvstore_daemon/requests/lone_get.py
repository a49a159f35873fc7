"""The request that is made most often, one get of one key, known by its bytes: to read and answer it as any
other takes twice as long."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kvstore_core.limits import MAX_KEY_BYTES
from kvstore_core.wire import Request, encode_reply
from kvstore_daemon.record_fields import record_fields
from kvstore_daemon.requests.pending_request import MAX_VALUE_IN_REPLY
from kvstore_daemon.requests.router_socket import Frames
from kvstore_daemon.storage.interface import Engine, StoredRecord

OPS: Sequence[dict[str, Any]] = ({"op": "get"},)
"""What such a request counts as."""

_MATCH = re.compile(
    rb'\{"v":1,"ops":\[\{"op":"get","key":"([ !#-\[\]-~]{1,%d})"\}\]\}' % MAX_KEY_BYTES
).fullmatch
"""As clients write it, with a key whose bytes are the same in JSON. ``decode_request`` would find it good."""

MAX_BYTES = MAX_KEY_BYTES + 64
"""More than such a request has."""


def key_of(request: Sequence[bytes]) -> bytes | None:
    """The key if ``request`` asks for one record and nothing else; None for what may be anything else."""
    match = _MATCH(request[0]) if len(request) == 1 else None
    return None if match is None else match[1]


def request_for(key: bytes) -> Request:
    """The request that was known by its bytes."""
    return Request([{"op": "get", "key": key.decode()}], [None], 0)


def reply_with(engine: Engine, key: bytes, epoch: str) -> Frames | None:
    """The frames of the reply that has the record of ``key``; None where there is none, or not a good one, or
    no room for it: what is to be said then is known elsewhere."""
    (record,), revision = engine.read((key,))
    if not isinstance(record, StoredRecord) or record.value is None or len(record.value) > MAX_VALUE_IN_REPLY:
        return None
    return encode_reply(epoch, revision, (record_fields(record),), (record.value,))
