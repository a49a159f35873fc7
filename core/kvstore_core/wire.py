"""The wire format of ``docs/protocol.md``, bytes to values and back.

Nothing here touches a socket. A message is a list of frames as ZeroMQ gives them, without the
routing envelope:

- request: ``[header]`` or ``[header, values]``
- reply: ``[header]`` or ``[header, values]``
- change: ``[key, header, value]``
- heartbeat: ``[HEARTBEAT_TOPIC, header]``

``header`` is a JSON object. ``values`` is the concatenation of all values of the message; each op,
record or event with a value gives its length in ``size``, and the values follow in the order of these in the
header. All values share a frame, because a frame costs more than a small value does: a reply with 1,000
values is two frames instead of 1,001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from kvstore_core.errors import KvError
from kvstore_core.limits import (
    MAX_ATOMIC_BYTES,
    MAX_ATOMIC_OPS,
    MAX_AUTHOR_BYTES,
    MAX_CLIENT_BYTES,
    MAX_OPS,
    MAX_REQUEST_BYTES,
    MAX_REQUEST_FILTERS,
    MAX_REQUEST_ID,
    MAX_REVISION,
    MAX_VALUE_BYTES,
)
from kvstore_core.model import Event, Record, is_plain_key
from kvstore_core.operations import OPERATIONS, check_operation, is_author, is_media_type, is_request_id

VERSION = 1

HEARTBEAT_TOPIC = b"\0heartbeat"
"""No key begins like this, since no key holds NUL; subscribe to ``b"\\0"`` for heartbeats alone."""

EXACT_BEGIN, EXACT_END = b"\xff", b"\0"
"""What the exact topic of a key has around it; no key begins, or ends, like this."""

RequestId = str | Sequence[str | None]
"""The id of a request in the logs; or the id of each op, where the ops are of several callers."""

Authors = str | Sequence[str | None]
"""Who makes the changes that a request asks for; or who makes that of each op, None where nobody is named."""

_FRAMES = "the first is the header, the second all values, one after another"
_REQUEST_ID = f"'request_id' must be 1 to {MAX_REQUEST_ID} visible ASCII characters"
_AUTHOR = f"'author' must be 1 to {MAX_AUTHOR_BYTES} bytes of UTF-8 without control characters"

_REQUEST_FIELDS = frozenset(("v", "ops", "atomic", "client", "seq"))


class Limits(NamedTuple):
    """What one request may hold. The ``status`` reply gives the limits of a daemon."""

    ops: int = MAX_OPS
    request_bytes: int = MAX_REQUEST_BYTES
    atomic_ops: int = MAX_ATOMIC_OPS
    atomic_bytes: int = MAX_ATOMIC_BYTES
    value_bytes: int = MAX_VALUE_BYTES


class Request(NamedTuple):
    """A checked request. ``values[i]`` is the value of ``ops[i]``, None where it has none.

    ``writes`` counts the ops that can change the store, and ``stale`` the reads that need not be current;
    ``client`` and ``seq`` number a request with
    any, so that it is applied once (section 6). ``author`` is for whom the sender says that it acts; whether
    it may is not checked here. ``header`` is frame 1 without the request ids and the authors: what a repeat
    is compared by.
    """

    ops: list[dict[str, Any]]
    values: list[bytes | None]
    writes: int
    atomic: bool = False
    client: str | None = None
    seq: int = 0
    request_id: RequestId | None = None
    header: bytes = b""
    author: Authors | None = None
    stale: int = 0


class Reply(NamedTuple):
    """A decoded reply. A result is a dict, or the KvError with which its op failed.

    The value of a result, or of a record or event in it, is its ``value``. ``age`` is how many milliseconds
    ago what was read was last known to be current, where an op asked with ``stale``; else None.
    """

    epoch: str
    revision: int
    results: list[dict[str, Any] | KvError]
    age: int | None = None


class PublishedEvent(NamedTuple):
    """An event from the PUB socket: the event, the revision published before it, and the epoch."""

    event: Event
    prev: int
    epoch: str


class Heartbeat(NamedTuple):
    """The daemon is alive: its head revision, the log's floor and its clock in milliseconds. ``access`` is
    another text whenever it has other identities, and empty while access is off. ``digest`` is that of all
    records at ``revision``; empty where it is not told."""

    epoch: str
    revision: int
    floor: int
    time: int
    access: str = ""
    digest: str = ""


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def encode_request(
    ops: Sequence[dict[str, Any]],
    values: Sequence[bytes] = (),
    *,
    atomic: bool = False,
    client: str | None = None,
    seq: int = 0,
    request_id: RequestId | None = None,
    author: Authors | None = None,
) -> list[bytes]:
    """The frames of a request. ``values`` are those of the ops that have one, in their order;
    each such op must already say its ``size``."""
    header: dict[str, Any] = {"v": VERSION, "ops": ops}
    if atomic:
        header["atomic"] = True
    if client is not None:
        header["client"] = client
        header["seq"] = seq
    if request_id is not None:
        header["request_id"] = request_id
    if author is not None:
        header["author"] = author
    try:
        encoded = orjson.dumps(header)
    except TypeError as error:  # a lone surrogate, an integer over 64 bits
        raise KvError("bad_request", f"the request cannot be written as JSON: {error}") from error
    return [encoded, b"".join(values)] if values else [encoded]


class WriteSequence:
    """The requests that write of one ``client``, numbered from 1 on (protocol section 6).

    The daemon remembers the last reply for each client id, so only one request at a time may be under way.
    A number is used for one request only, whatever becomes of it: if a copy of a write whose outcome is
    unknown arrives after the next write, the daemon refuses it for its lower number.
    """

    __slots__ = ("_seq", "client")

    def __init__(self, client: str) -> None:
        self.client = client
        self._seq = 0

    def next(self) -> dict[str, Any]:
        """What to call :func:`encode_request` with for the next request."""
        self._seq += 1
        return {"client": self.client, "seq": self._seq}


def decode_request(frames: Sequence[bytes], limits: Limits) -> Request:
    """The request in ``frames``, checked in full; raises KvError and keeps nothing otherwise."""
    header = _decode_header(frames)
    if None in header.values():
        null = ", ".join(repr(name) for name, value in header.items() if value is None)
        raise KvError("bad_request", f"null is not a value: leave {null} out of the request")
    request_id, author = header.pop("request_id", None), header.pop("author", None)
    _refuse_unknown_fields(header)
    ops = header.get("ops")
    if type(ops) is not list or not ops:
        raise KvError("bad_request", "'ops' must be a list with at least one op")
    if len(ops) > limits.ops:
        raise KvError(
            "request_too_large",
            f"the request has {len(ops)} ops; the limit is {limits.ops}: send several requests",
            limit=limits.ops,
        )
    atomic = header.get("atomic", False)
    if type(atomic) is not bool:
        raise KvError("bad_request", "'atomic' must be true or false")
    client, seq = _decode_client(header)
    blob = frames[1] if len(frames) == 2 else b""
    values, writes, stale = _split_values(ops, blob, limits)
    if atomic:
        _check_atomic(ops, blob, limits)
    if client is not None and not writes:
        raise KvError("bad_request", "only a request that writes is numbered; leave out 'client' and 'seq'")
    plain = frames[0]
    if request_id is not None or author is not None:
        _check_for_each(request_id, is_request_id, len(ops), _REQUEST_ID)
        _check_for_each(author, is_author, len(ops), _AUTHOR)
        plain = orjson.dumps(header)
    return Request(ops, values, writes, atomic, client, seq, request_id, plain, author, stale)


def _check_for_each(given: Any, is_one: Callable[[Any], bool], count: int, must_be: str) -> None:
    """Check a field that says something of all ops, or, in a list, of each of them."""
    if given is None:
        return
    if type(given) is list and len(given) == count:
        is_good = all(each is None or is_one(each) for each in given)
    else:
        is_good = is_one(given)
    if not is_good:
        message = f"{must_be}, or a list with one such text, or null, for each op"
        raise KvError("bad_request", message)


def _decode_header(frames: Sequence[bytes]) -> dict[str, Any]:
    if not 1 <= len(frames) <= 2:
        raise KvError("bad_request", f"a request has 1 or 2 frames; this one has {len(frames)}: {_FRAMES}")
    try:
        header = orjson.loads(frames[0])
    except orjson.JSONDecodeError as error:
        why = "there is a NUL byte after the JSON" if frames[0].endswith(b"\0") else error
        raise KvError("bad_request", f"frame 1 is not JSON: {why}") from error
    if type(header) is not dict:
        raise KvError("bad_request", "frame 1 must be a JSON object")
    version = header.get("v")
    if version != VERSION or type(version) is not int:
        raise KvError(
            "unsupported_version", f"'v' must be {VERSION}, the supported version", versions=[VERSION]
        )
    return header


def _refuse_unknown_fields(header: dict[str, Any]) -> None:
    if not header.keys() <= _REQUEST_FIELDS:
        unknown = ", ".join(map(repr, sorted(header.keys() - _REQUEST_FIELDS)))
        hint = "; an op goes into the list 'ops'" if "op" in header else ""
        raise KvError("bad_request", f"unknown fields in the request: {unknown}{hint}")


def _decode_client(header: dict[str, Any]) -> tuple[str | None, int]:
    client, seq = header.get("client"), header.get("seq")
    if client is None and seq is None:
        return None, 0
    if client is None or seq is None:
        there, missing = ("seq", "client") if client is None else ("client", "seq")
        raise KvError("bad_request", f"{there!r} needs {missing!r}: a numbered request has both")
    if type(client) is not str or not 0 < len(client.encode()) <= MAX_CLIENT_BYTES:
        raise KvError("bad_request", f"'client' must be a text of 1 to {MAX_CLIENT_BYTES} bytes")
    if type(seq) is not int or not 1 <= seq <= MAX_REVISION:
        raise KvError("bad_request", "'seq' must be a whole number from 1 to 2^63-1")
    return client, seq


def _split_values(ops: list[Any], blob: bytes, limits: Limits) -> tuple[list[bytes | None], int, int]:
    """Check every op and cut its value out of ``blob``; also counts those that write, and those that are
    ``stale``."""
    if len(blob) > limits.request_bytes:
        raise KvError(
            "request_too_large",
            f"the request's values have {len(blob)} bytes; the limit is {limits.request_bytes}",
            limit=limits.request_bytes,
        )
    values: list[bytes | None] = []
    offset = writes = filters = stale = 0
    for index, op in enumerate(ops):
        # A get of an ASCII key that passes every check of the table. Clients read a thousand keys with one
        # request, and this is much quicker than the checks.
        if type(op) is dict and len(op) == 2 and op.get("op") == "get" and is_plain_key(op.get("key")):
            values.append(None)
            continue
        plain_size = _size_of_plain_put(op)
        if plain_size is not None and plain_size <= limits.value_bytes:
            writes += 1
            values.append(blob[offset : offset + plain_size])
            offset += plain_size
            continue
        operation = check_operation(op, index)
        writes += operation.writes
        stale += op.get("stale", False)
        if operation.name == "events":
            filters += len(op.get("prefixes") or ()) + len(op.get("keys") or ())
            if filters > MAX_REQUEST_FILTERS:
                raise KvError(
                    "request_too_large",
                    f"the ops name more than {MAX_REQUEST_FILTERS} prefixes and keys: send several requests",
                    limit=MAX_REQUEST_FILTERS,
                )
        if not operation.has_value:
            values.append(None)
            continue
        size = op["size"]
        if size > limits.value_bytes:
            raise KvError(
                "value_too_large",
                f"the value has {size} bytes; the limit is {limits.value_bytes} (--max-value-bytes)",
                op=index,
                limit=limits.value_bytes,
            )
        values.append(blob[offset : offset + size])
        offset += size
    if offset != len(blob):
        has = f"the value frame has {len(blob)}" if blob else "there is no value frame, or an empty one"
        raise KvError("bad_request", f"the sizes add up to {offset} bytes; {has}")
    return values, writes, stale


def _size_of_plain_put(op: Any) -> int | None:
    """The value's size if ``op`` is an unconditional put, without a time to live, of an ASCII key that
    passes every check of the table; else None. Most writes are such puts, and this is much quicker."""
    if type(op) is not dict or op.get("op") != "put" or not is_plain_key(op.get("key")):
        return None
    size, kind = op.get("size"), op.get("content_type")
    if type(size) is not int or size < 0 or len(op) != (3 if kind is None else 4):
        return None
    return size if kind is None or is_media_type(kind) else None


def _check_atomic(ops: list[dict[str, Any]], blob: bytes, limits: Limits) -> None:
    if len(ops) > limits.atomic_ops:
        raise KvError(
            "request_too_large",
            f"an atomic batch has at most {limits.atomic_ops} ops; this one has {len(ops)}",
            limit=limits.atomic_ops,
        )
    if len(blob) > limits.atomic_bytes:
        raise KvError(
            "request_too_large",
            f"an atomic batch has at most {limits.atomic_bytes} bytes of values; this one has {len(blob)}",
            limit=limits.atomic_bytes,
        )
    seen: set[str] = set()
    for index, op in enumerate(ops):
        if op["op"] == "delete_prefix":
            raise KvError("bad_request", "delete_prefix cannot be part of an atomic batch", op=index)
        # a check may be of a key that another op changes, and what a sequence's key will be is not known yet
        if not OPERATIONS[op["op"]].writes or op["op"] == "check" or op.get("sequence"):
            continue
        if op["key"] in seen:
            raise KvError(
                "bad_request",
                f"an atomic batch may change a key only once; ops[{index}] names {op['key']!r} again",
                op=index,
            )
        seen.add(op["key"])


# ── replies ──────────────────────────────────────────────────────────────────────────────────────


def encode_reply(
    epoch: str,
    revision: int,
    results: Sequence[dict[str, Any]],
    values: Sequence[bytes] = (),
    request_id: RequestId | None = None,
    age: int | None = None,
) -> list[bytes]:
    """The frames of a reply; ``values`` are in the order of ``size`` in ``results``, and ``age`` is said
    where an op was ``stale``.

    The second frame is there whenever any ``size`` is, even if all of them are 0.
    """
    header = {"v": VERSION, "epoch": epoch, "revision": revision, "results": results}
    if request_id is not None:
        header["request_id"] = request_id
    if age is not None:
        header["age"] = age
    encoded = orjson.dumps(header)
    return [encoded, b"".join(values)] if values else [encoded]


def encode_error(error: KvError, request_id: RequestId | None = None) -> list[bytes]:
    """The frames of a reply that refuses the whole request."""
    header = {"v": VERSION, "error": error.as_json()}
    if request_id is not None:
        header["request_id"] = request_id
    return [orjson.dumps(header)]


def decode_reply(frames: Sequence[bytes]) -> Reply:
    """The reply in ``frames``; raises the KvError with which the whole request was refused.

    A reply that does not follow the protocol is a KvError too (``internal``).
    """
    try:
        header = orjson.loads(frames[0])
        if header["v"] != VERSION:
            raise KvError("unsupported_version", f"the daemon answered in version {header['v']!r}")
        if "error" in header:
            raise KvError.from_json(header["error"])
        results = header["results"]
        if len(frames) > 1:
            _attach_values(results, frames[1])
        return Reply(
            header["epoch"],
            header["revision"],
            [KvError.from_json(r["error"]) if "error" in r else r for r in results],
            header.get("age"),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise KvError("internal", f"the daemon's reply is malformed: {error!r}") from error


def _attach_values(results: list[dict[str, Any]], blob: bytes) -> None:
    offset = 0
    for result in results:
        # a record of a get has its value itself; nearly all values of a large reply do
        for holder in (result,) if "size" in result else _value_holders(result):
            end = offset + holder["size"]
            holder["value"] = blob[offset:end]
            offset = end


def _value_holders(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The dicts in ``result`` that have a value, in wire order: an event's own, then its previous."""
    holders = [item for item in result.get("items", ()) if "size" in item]
    for event in result.get("events", ()):
        if "size" in event:
            holders.append(event)
        if "size" in event.get("previous", ()):
            holders.append(event["previous"])
    return holders


def record_from(fields: dict[str, Any], key: str | None = None) -> Record:
    """The record that a reply's dict describes; ``key`` where the dict does not hold it."""
    # as Record(...) does, but with one call less, which counts in a reply with 1,000 records
    return tuple.__new__(
        Record,
        (
            fields["key"] if key is None else key,
            fields.get("value"),
            fields["content_type"],
            fields["revision"],
            fields["create_revision"],
            fields["version"],
            fields["modified_at"],
            fields.get("expires_at"),
            fields.get("author"),
            fields.get("message"),
        ),
    )


def event_from(fields: dict[str, Any]) -> Event:
    """The event that an ``events`` or ``history`` reply's dict describes."""
    key, previous = fields["key"], fields.get("previous")
    return Event(
        fields["op"],
        key,
        fields["revision"],
        fields["index"],
        fields["count"],
        fields["time"],
        record_from(fields) if fields["op"] == "put" else None,
        record_from(previous, key) if previous is not None else None,
        fields["previous_revision"],
        fields.get("author"),
        fields.get("message"),
    )


# ── changes ──────────────────────────────────────────────────────────────────────────────────────


def encode_change(key: bytes, fields: dict[str, Any], value: bytes) -> list[bytes]:
    """The frames of an event for PUB.

    ``fields`` is the event as in an ``events`` reply, with ``epoch`` and ``prev`` added and without
    ``key`` and ``size``. ``value`` is the new value of a put, the old one of an expire, else empty.
    """
    return [key, orjson.dumps({"v": VERSION, **fields}), value]


def encode_heartbeat(beat: Heartbeat) -> list[bytes]:
    """The frames of a heartbeat."""
    header = {"v": VERSION, **beat._asdict()}
    for name in ("access", "digest"):
        if not header[name]:
            del header[name]
    return [HEARTBEAT_TOPIC, orjson.dumps(header)]


def exact_topic(key: bytes) -> bytes:
    """The topic that only the changes of this one key have (section 5)."""
    return EXACT_BEGIN + key + EXACT_END


def decode_change(frames: Sequence[bytes]) -> PublishedEvent | Heartbeat | None:
    """What a SUB socket received; None for a message of a kind or version not known here, which a
    subscriber MUST ignore (section 5)."""
    try:
        header = orjson.loads(frames[1])
        if header["v"] != VERSION:
            return None
        if frames[0] == HEARTBEAT_TOPIC:
            access, digest = header.get("access", ""), header.get("digest", "")
            position = header["epoch"], header["revision"], header["floor"]
            return Heartbeat(*position, header["time"], access, digest)
        if header["op"] == "put":
            header["value"] = frames[2]
        elif header["op"] == "expire":
            header["previous"]["value"] = frames[2]
        header["key"] = frames[0].removeprefix(EXACT_BEGIN).removesuffix(EXACT_END).decode()
        return PublishedEvent(event_from(header), header["prev"], header["epoch"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
