"""The one table of operations: what each is called, which fields it takes, whether it writes.

The daemon checks and dispatches by this table, the clients and the facade build requests from it,
and the tables in ``docs/protocol.md`` section 4 are compared with it by a test. CONTRIBUTING.md
lists what an operation needs besides its row.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kvstore_core.access.grants import MAX_GRANTS, KeyRange, Need, OnKey, OpNeeds, Prefix
from kvstore_core.access.identities import MAX_NAME, is_public_key
from kvstore_core.access.principal import Principal
from kvstore_core.access.tokens import is_digest, is_token_id
from kvstore_core.errors import KvError
from kvstore_core.limits import (
    INT64,
    MAX_AUTHOR_BYTES,
    MAX_BACKUP_PIECE_BYTES,
    MAX_CONTENT_TYPE_BYTES,
    MAX_DELIMITER_BYTES,
    MAX_FILTERS,
    MAX_KEY_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_MOMENT,
    MAX_PAGE,
    MAX_PAGE_BYTES,
    MAX_REQUEST_ID,
    MAX_REVISION,
    MAX_SEQUENCE_PREFIX_BYTES,
    MAX_TTL_SECONDS,
)
from kvstore_core.model import check_key

STATUS_FOR_ALL = ("version", "protocol", "epoch", "revision", "floor", "writes_refused", "limits")
"""The fields of the status that one without the grant ``monitor`` gets: what a client has to know."""

Check = Callable[[Any], bool]

_OF_ALL = (Need("list", Prefix("")), Need("read", Prefix("")))


def status_for(who: Principal, status: dict[str, Any]) -> dict[str, Any]:
    """What ``who`` may see of a status. The digest of all records, which tells one value from another, is
    null for one who may not read all of them."""
    if not who.may(Need("monitor")):
        return {name: status[name] for name in STATUS_FOR_ALL}
    return status if all(map(who.may, _OF_ALL)) else {**status, "digest": None}


EVENT_OPS = ("put", "delete", "expire")


class Field(NamedTuple):
    """A field of an operation: how it is checked, and what an error says it must be."""

    check: Check
    must_be: str
    required: bool = False


class Operation(NamedTuple):
    """One row. ``writes`` says that it is done in order with the writes, where it may change something or
    fail. ``has_value`` says that the op's ``size`` bytes of the value frame belong to it; of each of the
    ``exclusive`` groups of fields an op may have at most one, of the ``one_of`` fields exactly one; each of
    the ``goes_with`` fields only together with the one it names. ``needs`` gives what an op, checked, must be
    granted."""

    name: str
    writes: bool
    needs: OpNeeds
    fields: dict[str, Field]
    meaning: str
    has_value: bool = False
    exclusive: tuple[tuple[str, ...], ...] = ()
    one_of: tuple[str, ...] = ()
    goes_with: tuple[tuple[str, str], ...] = ()


def _is_int(low: int, high: int) -> Check:
    # bool is an int to Python but not to anybody who writes a request
    return lambda value: type(value) is int and low <= value <= high


def _is_ttl(value: Any) -> bool:
    return type(value) in (int, float) and 0.001 <= value <= MAX_TTL_SECONDS


def _is_a(kind: type) -> Check:
    return lambda value: type(value) is kind


def is_media_type(value: Any) -> bool:
    """Whether ``value`` may be a record's media type."""
    return (
        type(value) is str
        and 0 < len(value) <= MAX_CONTENT_TYPE_BYTES
        and value.isascii()
        and value.isprintable()
    )


def is_subscriber_id(value: Any) -> bool:
    """Whether ``value`` may be the id of a subscriber."""
    return type(value) is str and re.fullmatch("[a-z][0-9]{1,20}", value) is not None


def is_request_id(value: Any) -> bool:
    """Whether ``value`` may name a request in the logs."""
    return (
        type(value) is str
        and 0 < len(value) <= MAX_REQUEST_ID
        and value.isascii()
        and value.isprintable()
        and " " not in value
    )


_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What would end a line, or change how a terminal or a page shows the rest of it: controls, the separators of
lines and paragraphs, and what sets the direction of text. Lone surrogates are no UTF-8."""


def _is_line(value: Any, max_bytes: int) -> bool:
    if type(value) is not str or _CONTROL.search(value):
        return False
    return 0 < len(value.encode()) <= max_bytes


def is_author(value: Any) -> bool:
    """Whether ``value`` may name who made a change."""
    return _is_line(value, MAX_AUTHOR_BYTES)


def is_message(value: Any) -> bool:
    """Whether ``value`` may say why a change was made."""
    return _is_line(value, MAX_MESSAGE_BYTES)


MESSAGE = f"a text of 1 to {MAX_MESSAGE_BYTES} bytes of UTF-8 in one line, without control characters"
"""What a message must be, in the words of every error about one."""


def _is_bound(value: Any) -> bool:
    return (
        type(value) is str
        and "\0" not in value
        and len(value.encode(errors="surrogatepass")) <= MAX_KEY_BYTES
    )


def _is_delimiter(value: Any) -> bool:
    return _is_bound(value) and 0 < len(value.encode(errors="surrogatepass")) <= MAX_DELIMITER_BYTES


def _is_filters(value: Any) -> bool:
    return type(value) is list and len(value) <= MAX_FILTERS and all(map(_is_bound, value))


def _is_since(value: Any) -> bool:
    return type(value) is str or (type(value) is int and 0 <= value <= MAX_REVISION)


def _is_event_ops(value: Any) -> bool:
    return type(value) is list and 0 < len(value) <= 3 and all(op in EVENT_OPS for op in value)


def _is_text(value: Any) -> bool:
    try:
        return type(value) is str and value.encode() is not None
    except UnicodeEncodeError:
        return False


def is_backup_id(value: Any) -> bool:
    """Whether ``value`` may name a backup."""
    return type(value) is str and re.fullmatch("[0-9a-f]{16}", value) is not None


def _is_base64(value: Any) -> bool:
    try:
        binascii.a2b_base64(value, strict_mode=True)
    except (TypeError, ValueError):
        return False
    return type(value) is str


# ── what each must be granted ────────────────────────────────────────────────────────────────────


class _OnKeyIf(OnKey):
    """The same, and ``read`` where the op says what the value must be: its answer tells whether it is."""

    def __call__(self, op: dict[str, Any]) -> list[Need]:
        needs = super().__call__(op)
        if op.get("if_value") is not None or op.get("if_value_b64") is not None:
            needs.append(Need("read", op["key"]))
        return needs


_ON_PUT = _OnKeyIf("write")


def _of_put(op: dict[str, Any]) -> Iterable[Need]:
    if op.get("sequence"):
        yield Need("write", Prefix(op["key"]))
    else:
        yield from _ON_PUT(op)
    if op.get("ttl") is not None or op.get("expires_at") is not None:
        # who may say when a key ends can end it
        yield Need("delete", Prefix(op["key"]) if op.get("sequence") else op["key"])


def _of_list(op: dict[str, Any]) -> Iterable[Need]:
    # not from the cursor on: that is inside, and each page of a list needs what the first did
    wanted = KeyRange.common(op.get("prefix", ""), op.get("start", ""), op.get("end", ""))
    yield Need("list", wanted)
    if not (op.get("keys_only") or op.get("count")):
        yield Need("read", wanted)


def _of_digest(op: dict[str, Any]) -> Iterable[Need]:
    wanted = KeyRange.common(op.get("prefix", ""), op.get("start", ""), op.get("end", ""))
    return (Need("list", wanted), Need("read", wanted))


def _of_events(op: dict[str, Any]) -> Iterable[Need]:
    prefixes, keys = op.get("prefixes") or (), op.get("keys") or ()
    wanted = [*map(Prefix, prefixes), *keys]
    for each in wanted or [Prefix("")]:
        yield Need("watch", each)
        if op.get("values", True) or op.get("previous"):
            yield Need("read", each)


def _of_admin(_op: dict[str, Any]) -> Iterable[Need]:
    return (Need("admin"),)


def _is_keep(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= MAX_TTL_SECONDS


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_NAME


def _is_grants(value: Any) -> bool:
    return type(value) is list and len(value) <= MAX_GRANTS and all(type(each) is str for each in value)


def _of_history(op: dict[str, Any]) -> Iterable[Need]:
    if "prefix" in op:  # the same as events, from the other end
        return _of_events({"prefixes": [op["prefix"]], "values": op.get("values", True)})
    return [Need("read", op["key"])]


_KEY = Field(_is_a(str), "a text of 1 to 511 bytes of UTF-8 without NUL", required=True)
_IF_REVISION = Field(_is_int(0, MAX_REVISION), "a revision, or 0 for 'must not exist'")
_CONDITIONS = {
    "if_revision": _IF_REVISION,
    "if_value": Field(_is_text, "a text: the whole value that the key must have"),
    "if_value_b64": Field(_is_base64, "base64, with its padding, of the whole value that the key must have"),
}
_ONE_CONDITION = tuple(_CONDITIONS)
_TTL = Field(_is_ttl, "a number of seconds from 0.001 to 100 years")
_LIMIT = Field(_is_int(1, MAX_PAGE), f"a whole number from 1 to {MAX_PAGE}")
_PAGE_BYTES = Field(_is_int(1, MAX_PAGE_BYTES), f"a whole number from 1 to {MAX_PAGE_BYTES}")
_FLAG = Field(_is_a(bool), "true or false")
_MESSAGE = Field(is_message, MESSAGE)
_BOUND = Field(_is_bound, "a text of at most 511 bytes without NUL")
_NAME = Field(_is_name, f"the name of an identity, of 1 to {MAX_NAME} characters", required=True)
_GRANTS = Field(_is_grants, f"a list of up to {MAX_GRANTS} grants")
_END = Field(_is_int(0, MAX_MOMENT), "a time in milliseconds since 1970-01-01 UTC, or 0 for no end")
_TOKEN_ID = Field(is_token_id, "the id of a token, of 8 characters")
_DIGEST = Field(is_digest, "the SHA-256 of the token's text, as 64 hexadecimal digits")
_PUBLIC_KEY = Field(is_public_key, "a CURVE public key, as 40 characters of Z85")
_BACKUP = Field(is_backup_id, "the id of a backup, of 16 hexadecimal digits in lower case", required=True)
_MIN_REVISION = Field(_is_int(1, MAX_REVISION), "a revision")
_DELIMITER = Field(_is_delimiter, f"a text of 1 to {MAX_DELIMITER_BYTES} bytes without NUL")
_CURSOR = Field(_is_a(str), "a cursor exactly as an earlier reply gave it")

OPERATIONS: dict[str, Operation] = {
    row.name: row
    for row in (
        Operation(
            "get",
            False,
            OnKey("read"),
            {"key": _KEY, "stale": _FLAG, "min_revision": _MIN_REVISION},
            "one record",
        ),
        Operation(
            "put",
            True,
            _of_put,
            {
                "key": _KEY,
                "size": Field(_is_int(0, 2**40), "the number of the value's bytes", required=True),
                "content_type": Field(is_media_type, "printable ASCII of 1 to 255 characters"),
                "ttl": _TTL,
                "keep_ttl": _FLAG,
                "expires_at": Field(
                    _is_int(1, MAX_MOMENT),
                    "a time in milliseconds since 1970-01-01 UTC, "
                    f"at most {MAX_MOMENT}, the end of the year 9999",
                ),
                **_CONDITIONS,
                "sequence": _FLAG,
                "message": _MESSAGE,
            },
            "store a value; a put without ttl, keep_ttl or expires_at clears the key's TTL",
            has_value=True,
            exclusive=(
                ("ttl", "keep_ttl", "expires_at"),
                (*_ONE_CONDITION, "sequence"),
                ("keep_ttl", "sequence"),
            ),
        ),
        Operation(
            "delete",
            True,
            _OnKeyIf("delete"),
            {"key": _KEY, **_CONDITIONS, "message": _MESSAGE},
            "remove one key",
            exclusive=(_ONE_CONDITION,),
        ),
        Operation(
            "delete_prefix",
            True,
            lambda op: [Need("delete", Prefix(op["prefix"]))],
            {
                "prefix": Field(
                    lambda value: _is_bound(value) and value != "",
                    "a text of 1 to 511 bytes without NUL",
                    required=True,
                ),
                "limit": _LIMIT,
                "message": _MESSAGE,
            },
            "remove up to limit keys that begin with prefix, in one revision; more: whether some are left",
        ),
        Operation(
            "incr",
            True,
            OnKey("read", "write"),
            {
                "key": _KEY,
                "by": Field(_is_int(-INT64, INT64 - 1), "a signed 64-bit integer"),
                **_CONDITIONS,
                "message": _MESSAGE,
            },
            "add to a decimal integer; a missing key counts from 0; TTL and media type stay",
            exclusive=(_ONE_CONDITION,),
        ),
        Operation(
            "touch",
            True,
            _OnKeyIf("write", "delete"),
            {"key": _KEY, "ttl": _TTL._replace(required=True), **_CONDITIONS, "message": _MESSAGE},
            "give the key a new TTL, counted from now",
            exclusive=(_ONE_CONDITION,),
        ),
        Operation(
            "persist",
            True,
            _OnKeyIf("write"),
            {"key": _KEY, **_CONDITIONS, "message": _MESSAGE},
            "take the key's TTL away",
            exclusive=(_ONE_CONDITION,),
        ),
        Operation(
            "check",
            True,
            OnKey("read"),
            {"key": _KEY, **_CONDITIONS, "exists": _FLAG},
            "fail, and in an atomic request fail it all, where the key is not as it says; it changes nothing",
            one_of=(*_ONE_CONDITION, "exists"),
        ),
        Operation(
            "list",
            False,
            _of_list,
            {
                "prefix": _BOUND,
                "start": _BOUND,
                "end": _BOUND,
                "limit": _LIMIT,
                "cursor": _CURSOR,
                "keys_only": _FLAG,
                "count": _FLAG,
                "delimiter": _DELIMITER,
                "reverse": _FLAG,
                "counts": _FLAG,
                "max_bytes": _PAGE_BYTES,
                "stale": _FLAG,
                "min_revision": _MIN_REVISION,
            },
            "a page of records in key order, or a count",
            exclusive=(("count", "delimiter"), ("count", "reverse")),
            goes_with=(("counts", "delimiter"),),
        ),
        Operation(
            "events",
            False,
            _of_events,
            {
                "since": Field(_is_since, "a cursor, or a revision of this epoch"),
                "since_time": Field(_is_int(0, MAX_MOMENT), "a time in milliseconds since 1970-01-01 UTC"),
                "prefixes": Field(_is_filters, f"a list of up to {MAX_FILTERS} prefixes"),
                "keys": Field(_is_filters, f"a list of up to {MAX_FILTERS} keys"),
                "ops": Field(_is_event_ops, "a list out of put, delete, expire"),
                "limit": _LIMIT,
                "values": _FLAG,
                "previous": _FLAG,
                "max_bytes": _PAGE_BYTES,
                "stale": _FLAG,
            },
            "a page of the change log, oldest first, never ending inside a revision",
            one_of=("since", "since_time"),
        ),
        Operation(
            "history",
            False,
            _of_history,
            {
                "key": _KEY._replace(required=False),
                "prefix": _BOUND,
                "before": Field(_is_int(1, MAX_REVISION), "a revision"),
                "limit": _LIMIT,
                "cursor": _CURSOR,
                "values": _FLAG,
                "max_bytes": _PAGE_BYTES,
                "stale": _FLAG,
                "min_revision": _MIN_REVISION,
            },
            "a page of the events of one key, or of all that begin with prefix, newest first",
            one_of=("key", "prefix"),
        ),
        Operation(
            "digest",
            False,
            _of_digest,
            {
                "prefix": _BOUND,
                "start": _BOUND,
                "end": _BOUND,
                "cursor": _CURSOR,
                "stale": _FLAG,
                "min_revision": _MIN_REVISION,
            },
            "the digest of records, by which a copy proves that it is equal",
        ),
        Operation(
            "status",
            False,
            lambda _op: [Need("known")],
            {},
            "the daemon's version, position, counts and limits",
        ),
        Operation("whoami", False, lambda _op: (), {}, "who the sender is, and what it may do"),
        Operation("access", False, lambda _op: [Need("facade")], {}, "the table of identities"),
        Operation("identities", False, _of_admin, {}, "all identities, without their secrets"),
        Operation(
            "identity_put",
            False,
            _of_admin,
            {
                "name": _NAME,
                "create": _FLAG,
                "grants": _GRANTS,
                "grant": _GRANTS,
                "ungrant": _GRANTS,
                "expires_at": _END,
                "id": _TOKEN_ID,
                "digest": _DIGEST,
                "public_key": _PUBLIC_KEY,
                "credential_expires_at": _END,
            },
            "make or change an identity",
        ),
        Operation(
            "identity_delete",
            False,
            _of_admin,
            {"name": _NAME},
            "remove an identity, with its tokens and keys",
        ),
        Operation(
            "token_add",
            False,
            _of_admin,
            {
                "name": _NAME,
                "id": _TOKEN_ID._replace(required=True),
                "digest": _DIGEST._replace(required=True),
                "expires_at": _END,
                "keep": Field(_is_keep, "a number of seconds from 0 to 100 years"),
            },
            "give an identity another token",
        ),
        Operation(
            "token_delete",
            False,
            _of_admin,
            {"name": _NAME, "id": _TOKEN_ID._replace(required=True)},
            "revoke one token of an identity",
        ),
        Operation(
            "key_add",
            False,
            _of_admin,
            {
                "name": _NAME,
                "public_key": _PUBLIC_KEY._replace(required=True),
                "expires_at": _END,
            },
            "let an identity in by another CURVE key",
        ),
        Operation(
            "key_delete",
            False,
            _of_admin,
            {"name": _NAME, "public_key": _PUBLIC_KEY._replace(required=True)},
            "revoke one CURVE key of an identity",
        ),
        Operation(
            "subscribers",
            False,
            _of_admin,
            {"limit": _LIMIT},
            "who is connected to the changes address, and how much waits for each",
        ),
        Operation(
            "kick",
            False,
            _of_admin,
            {"id": Field(is_subscriber_id, "the id of a subscriber, as subscribers tells it", required=True)},
            "end the connection of a subscriber, who may come back",
        ),
        Operation("backups", False, _of_admin, {}, "the backup that the daemon keeps, or is making"),
        Operation("backup_make", False, _of_admin, {"id": _BACKUP}, "begin to make a backup of the store"),
        Operation(
            "backup_read",
            False,
            _of_admin,
            {
                "id": _BACKUP,
                "offset": Field(_is_int(0, 2**53 - 1), "the number of bytes before", required=True),
                "size": Field(
                    _is_int(1, MAX_BACKUP_PIECE_BYTES), f"a whole number from 1 to {MAX_BACKUP_PIECE_BYTES}"
                ),
            },
            "read a piece of a backup that is ready",
        ),
        Operation(
            "backup_delete",
            False,
            _of_admin,
            {"id": _BACKUP},
            "remove a backup, or end the making of it",
        ),
        Operation(
            "slow",
            False,
            _of_admin,
            {"limit": _LIMIT},
            "the last requests that took long, the newest first",
        ),
    )
}


def check_operation(op: Any, index: int) -> Operation:
    """The row of the op at ``index`` of a request, after its fields were checked against it.

    Raises KvError (``bad_request``, ``unknown_operation`` or ``invalid_key``) that names the op by
    its index and says what the field must be. The op itself is not changed.
    """
    if type(op) is not dict:
        raise KvError("bad_request", f"ops[{index}] must be a JSON object", op=index)
    name = op.get("op")
    row = OPERATIONS.get(name) if type(name) is str else None
    if row is None:
        raise unknown_operation(op, index, _FOR_EVERYONE)
    fields = row.fields
    for field_name, value in op.items():
        if field_name == "op":
            continue
        field = fields.get(field_name)
        if field is None:
            raise _unknown_field(field_name, row, index)
        if not field.check(value):
            raise KvError("bad_request", f"ops[{index}].{field_name} must be {field.must_be}", op=index)
    given = op.keys()
    together = row.one_of or row.goes_with
    if not given >= _REQUIRED[row.name] or together or len(given & _EXCLUSIVE[row.name]) > 1:
        _check_fields_together(op, row, index)
    if (key := op.get("key")) is not None:
        check_key(key)
        if op.get("sequence"):
            _check_sequence_prefix(key, index)
    return row


def unknown_operation(op: dict[str, Any], index: int, known: Iterable[str]) -> KvError:
    """The error for the op at ``index``, which names no operation; ``known`` are those that it could name."""
    what = f"ops[{index}].op" if "op" in op else f"ops[{index}] has no 'op', which"
    return KvError("unknown_operation", f"{what} must be one of {', '.join(known)}", op=index)


def _unknown_field(name: str, row: Operation, index: int) -> KvError:
    message = f"ops[{index}]: {row.name} has no field {name!r}; it takes: {', '.join(row.fields) or 'none'}"
    if row.has_value and name == "value":
        message += ": the value is the second frame, and its length is in 'size'"
    return KvError("bad_request", message, op=index)


def _check_sequence_prefix(prefix: str, index: int) -> None:
    if len(prefix.encode()) > MAX_SEQUENCE_PREFIX_BYTES:
        message = f"what a key that numbers itself begins with has at most {MAX_SEQUENCE_PREFIX_BYTES} bytes"
        raise KvError("invalid_key", message, op=index, limit=MAX_SEQUENCE_PREFIX_BYTES)


def _check_fields_together(op: dict[str, Any], row: Operation, index: int) -> None:
    for field_name in row.fields:
        if field_name in _REQUIRED[row.name] and field_name not in op:
            raise KvError("bad_request", f"ops[{index}]: {row.name} needs {field_name!r}", op=index)
    for group in row.exclusive:
        # a flag that is false is as good as none, but the revision 0 is not
        _check_at_most_one([name for name in group if op.get(name, False) is not False], row, index)
    for field_name, other in row.goes_with:
        if op.get(field_name) and other not in op:
            message = f"ops[{index}]: {field_name} goes with {other}, which is missing"
            raise KvError("bad_request", message, op=index)
    if row.one_of:
        given = [name for name in row.one_of if name in op]
        _check_at_most_one(given, row, index)
        if not given:
            *but_last, last = row.one_of
            message = f"ops[{index}]: {row.name} needs one of {', '.join(but_last)} and {last}"
            raise KvError("bad_request", message, op=index)


def _check_at_most_one(given: list[str], row: Operation, index: int) -> None:
    if len(given) > 1:
        message = f"ops[{index}]: {' and '.join(given)} exclude each other; {row.name} takes one of them"
        raise KvError("bad_request", message, op=index)


_REQUIRED = {
    row.name: frozenset(name for name, field in row.fields.items() if field.required)
    for row in OPERATIONS.values()
}
_EXCLUSIVE = {row.name: frozenset().union(*row.exclusive) for row in OPERATIONS.values()}
_FOR_ADMINS = {"access"} | {row.name for row in OPERATIONS.values() if row.needs is _of_admin}
_FOR_EVERYONE = [name for name in OPERATIONS if name not in _FOR_ADMINS]
