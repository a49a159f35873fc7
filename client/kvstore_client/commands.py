"""Operations as values: what to send, and how to read the result.

``Client.get(key)`` runs ``commands.get(key)`` alone; ``Client.batch`` runs any number of them in one
request::

    client.batch([commands.put("a", b"1"), commands.delete("b")], atomic=True)

A command is checked when it is made, and an invalid one raises the KvError that the daemon would answer.
It holds no connection and may be run any number of times. Times to live are seconds, whole or not, or
``timedelta``s; the daemon keeps them to the millisecond.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from kvstore_client.arguments import flag_of, must_be, texts_of, ttl_of, value_of
from kvstore_client.transport.connection import RequestBody
from kvstore_core.access.tokens import NewToken
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import LogPage
from kvstore_core.limits import MAX_PAGE
from kvstore_core.media_types import TEXT_CONTENT_TYPE
from kvstore_core.model import Cursor, Event, Record, is_plain_key
from kvstore_core.operations import OPERATIONS, check_operation
from kvstore_core.wire import Reply, event_from, record_from

EVERYTHING = Filter()

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Fields = dict[str, Any]

_CONDITIONS = ("if_revision", "if_value", "if_value_b64")


class Written(NamedTuple):
    """The record's state after a write. ``version`` is 1 when the write created it; ``key`` is that of a put
    with ``sequence``, None otherwise."""

    revision: int
    create_revision: int
    version: int
    expires_at: int | None = None
    key: str | None = None


class Incremented(NamedTuple):
    """The record's state after an ``incr``; ``value`` is the new number."""

    value: int
    revision: int
    create_revision: int
    version: int
    expires_at: int | None = None


class Deleted(NamedTuple):
    """How many keys a delete removed, and the revision that removed the last one; None if there were none.

    ``has_more``: a bounded step left some keys of the prefix.
    """

    deleted: int
    revision: int | None
    has_more: bool = False


class RecordPage(NamedTuple):
    """A page of records in key order, as of one snapshot that is not older than ``revision``;
    ``cursor`` continues, None at the end."""

    records: list[Record]
    cursor: str | None
    revision: int


class LevelPage(NamedTuple):
    """A page of one level of keys: the records whose keys have no delimiter after the prefix, and the common
    prefixes of the others, each once, up to and including the delimiter. ``counts`` has how many keys each
    prefix has, None where that is not known without a long look; it is empty unless asked for. ``cursor``
    continues, None at the end."""

    records: list[Record]
    prefixes: list[str]
    counts: list[int | None]
    cursor: str | None
    revision: int


class EventsPage(NamedTuple):
    """A page of changes in their order. ``cursor`` is where to go on, whatever was wanted of what is before
    it; ``more`` says that there is more already. The log begins after ``floor``, and the store was at
    ``head``."""

    events: list[Event]
    cursor: Cursor
    more: bool
    floor: int
    head: int


class CountPage(NamedTuple):
    """How many keys there are in a part of a range; ``cursor`` continues, None at the end."""

    total: int
    cursor: str | None
    revision: int


class DigestPage(NamedTuple):
    """The digest of so many ``records`` in a part of a range, as 64 hexadecimal digits; ``cursor``
    continues, None at the end. The digests of parts read at one ``revision`` add up."""

    digest: str
    records: int
    cursor: str | None
    revision: int


class HistoryPage(NamedTuple):
    """Events, newest first; ``cursor`` continues, None at the end: at the first event that there was, or
    where the log begins (``is_truncated``). Those of a prefix may be few, or none, on a page that is not the
    last."""

    events: list[Event]
    cursor: str | None
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Command(Generic[T_co]):
    """One operation; ``read`` makes its typed result from its fields in the reply.

    Results of a batch are read with the reply's epoch and revision, which are the same for all.
    """

    op: Fields
    read: Callable[[Fields, Reply], T_co] = field(repr=False)
    value: bytes | None = field(default=None, repr=False)

    @property
    def writes(self) -> bool:
        """Whether the operation can change the store."""
        return OPERATIONS[self.op["op"]].writes


_BATCH = "a list of commands, such as [commands.put('k', 'v')] with kvstore_client.commands"


def body_of(commands: Sequence[Command[Any]], *, atomic: bool = False) -> RequestBody:
    """One request for all of ``commands``."""
    flag_of("atomic", atomic)
    must_be("a batch", commands, Sequence, _BATCH)
    try:
        return RequestBody(
            [command.op for command in commands],
            [command.value for command in commands if command.value is not None],
            atomic,
            any(OPERATIONS[name].writes for name in {command.op["op"] for command in commands}),
        )
    except AttributeError:
        raise TypeError(f"a batch is {_BATCH}") from None


def body_of_one(command: Command[Any]) -> RequestBody:
    """A request for ``command`` alone."""
    must_be("a command", command, Command, "what a function of kvstore_client.commands made")
    values = () if command.value is None else (command.value,)
    return RequestBody((command.op,), values, False, command.writes)


def results_of(commands: Sequence[Command[Any]], reply: Reply) -> list[Any]:
    """Each command's result, which is a KvError if only this command failed; raises ``internal`` for a
    reply that does not follow the protocol."""
    try:
        return [
            fields if isinstance(fields, KvError) else command.read(fields, reply)
            for command, fields in zip(commands, reply.results, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(error) from error


def _malformed(error: Exception) -> KvError:
    return KvError("internal", f"the daemon's reply is malformed: {error!r}")


def result_of(command: Command[T], reply: Reply) -> T:
    """The result of the only command of a request; raises the KvError of a failed one."""
    try:
        (fields,) = reply.results
        if not isinstance(fields, KvError):
            return command.read(fields, reply)
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(error) from error
    raise fields


def _base64(value: bytes | str | None) -> str | None:
    return None if value is None else b2a_base64(value_of(value), newline=False).decode()


def _flag(value: bool) -> bool | None:
    """A field that is left out where it is False; anything but a bool is left to the table's check."""
    return None if value is False else value


def get(key: str, *, stale: bool = False, min_revision: int | None = None) -> Command[Record]:
    """The record of ``key``; ``not_found`` if there is none. ``stale``, here and in all that read: at once,
    what the daemon has, though others that share its store may have written since; the reply's ``age`` says
    how many milliseconds ago that was last known to be current. ``min_revision``: as of that revision or a
    later one; ``condition_failed`` where the store has not come that far."""
    read = partial(_record, key)
    # is_plain_key is all that the table checks of such a key, and quicker
    if stale is False and min_revision is None and is_plain_key(key):
        return Command({"op": "get", "key": key}, read)
    return _command("get", read, key=key, stale=_flag(stale), min_revision=min_revision)


def put(
    key: str,
    value: bytes | str,
    *,
    content_type: str | None = None,
    ttl: float | timedelta | None = None,
    keep_ttl: bool = False,
    expires_at: int | None = None,
    if_revision: int | None = None,
    if_value: bytes | str | None = None,
    sequence: bool = False,
    message: str | None = None,
) -> Command[Written]:
    """Store ``value``; text is stored as UTF-8, with ``text/plain; charset=utf-8`` as its media type
    unless another is given. It stays until it is changed unless one of these is given: ``ttl``;
    ``keep_ttl``, to leave the end of the time to live that the key has as it is; ``expires_at``, in
    milliseconds since the epoch. ``if_revision`` must be the record's revision, 0 for "must not exist";
    the error ``condition_failed`` holds the present one. ``if_value`` instead is what the value must be. With
    ``sequence`` the key is made from ``key`` and the revision in 20 digits, in an atomic batch followed by
    ``-`` and the number of the change in it. ``message`` says why, here and in all that write:
    up to 200 bytes of UTF-8 in one line, kept with the change."""
    raw = value_of(value)
    if content_type is None and isinstance(value, str):
        content_type = TEXT_CONTENT_TYPE
    is_plain = content_type is None and ttl is None and expires_at is None and if_revision is None
    is_plain = is_plain and if_value is None and sequence is False and message is None
    if is_plain and keep_ttl is False and is_plain_key(key):
        # as in get
        return Command({"op": "put", "key": key, "size": len(raw)}, _written, raw)
    return _command(
        "put",
        _written,
        raw,
        key=key,
        size=len(raw),
        content_type=content_type,
        ttl=ttl_of(ttl),
        keep_ttl=_flag(keep_ttl),
        expires_at=expires_at,
        if_revision=if_revision,
        if_value_b64=_base64(if_value),
        sequence=_flag(sequence),
        message=message,
    )


def delete(
    key: str,
    *,
    if_revision: int | None = None,
    if_value: bytes | str | None = None,
    message: str | None = None,
) -> Command[Deleted]:
    """Remove ``key``; ``not_found`` if there is none."""
    value = _base64(if_value)
    return _command("delete", _deleted, key=key, if_revision=if_revision, if_value_b64=value, message=message)


def delete_prefix(prefix: str, *, limit: int = MAX_PAGE, message: str | None = None) -> Command[Deleted]:
    """Remove up to ``limit`` keys that begin with ``prefix``, in one revision."""
    return _command("delete_prefix", _deleted, prefix=prefix, limit=limit, message=message)


def incr(
    key: str,
    by: int = 1,
    *,
    if_revision: int | None = None,
    if_value: bytes | str | None = None,
    message: str | None = None,
) -> Command[Incremented]:
    """Add ``by`` to a decimal integer; a missing key counts from 0, TTL and media type stay."""
    value = _base64(if_value)
    return _command(
        "incr", _incremented, key=key, by=by, if_revision=if_revision, if_value_b64=value, message=message
    )


def touch(
    key: str,
    ttl: float | timedelta,
    *,
    if_revision: int | None = None,
    if_value: bytes | str | None = None,
    message: str | None = None,
) -> Command[Written]:
    """Give ``key`` a new TTL, counted from now; ``not_found`` if there is no such key."""
    return _command(
        "touch",
        _written,
        key=key,
        ttl=ttl_of(ttl),
        if_revision=if_revision,
        if_value_b64=_base64(if_value),
        message=message,
    )


def persist(
    key: str,
    *,
    if_revision: int | None = None,
    if_value: bytes | str | None = None,
    message: str | None = None,
) -> Command[Written]:
    """Take the TTL of ``key`` away; ``not_found`` if there is no such key."""
    value = _base64(if_value)
    return _command(
        "persist", _written, key=key, if_revision=if_revision, if_value_b64=value, message=message
    )


def check(
    key: str,
    *,
    if_revision: int | None = None,
    if_value: bytes | str | None = None,
    exists: bool | None = None,
) -> Command[int]:
    """Fail with ``condition_failed``, and an atomic batch as a whole, where ``key`` is not at ``if_revision``
    (0: must not exist), has not ``if_value``, or, by ``exists``, is or is not there. Give one of the three.
    The result is the key's revision, 0 where there is none."""
    value = _base64(if_value)
    return _command("check", _revision, key=key, if_revision=if_revision, if_value_b64=value, exists=exists)


def guarded(command: Command[T], guards: Mapping[str, int]) -> list[Command[Any]]:
    """The atomic batch in which ``command``, its last, is done only while each key of ``guards`` has its
    revision there, 0 for "must not exist"."""
    must_be("guards", guards, Mapping, "keys with their revisions, such as {'locks/deploy': 41}")
    return [*(check(key, if_revision=revision) for key, revision in guards.items()), command]


def without_condition(command: Command[T]) -> tuple[Command[T], Command[int] | None]:
    """The write without its condition, and the check that asserts the same of the key."""
    op = command.op
    condition = {name: op[name] for name in _CONDITIONS if name in op}
    if not condition:
        return command, None
    left = {name: value for name, value in op.items() if name not in condition}
    return replace(command, op=left), _command("check", _revision, key=op["key"], **condition)


def list_page(
    *,
    prefix: str | None = None,
    start: str | None = None,
    end: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    keys_only: bool = False,
    reverse: bool = False,
    stale: bool = False,
    min_revision: int | None = None,
) -> Command[RecordPage]:
    """A page of the records in start <= key < end that begin with ``prefix``, in byte order of their
    keys, or with ``reverse`` the last first; with ``keys_only`` without values. A page may be short, or
    empty, and not be the last."""
    return _command(
        "list",
        _record_page,
        prefix=prefix,
        start=start,
        end=end,
        limit=limit,
        cursor=cursor,
        keys_only=_flag(keys_only),
        reverse=_flag(reverse),
        stale=_flag(stale),
        min_revision=min_revision,
    )


def level_page(
    *,
    prefix: str | None = None,
    delimiter: str = "/",
    limit: int | None = None,
    cursor: str | None = None,
    keys_only: bool = False,
    reverse: bool = False,
    counts: bool = False,
    stale: bool = False,
    min_revision: int | None = None,
) -> Command[LevelPage]:
    """A page of what is directly below ``prefix``, as a folder is listed; ``limit`` counts records and
    prefixes together."""
    return _command(
        "list",
        _level_page,
        prefix=prefix,
        delimiter=delimiter,
        limit=limit,
        cursor=cursor,
        keys_only=_flag(keys_only),
        reverse=_flag(reverse),
        counts=_flag(counts),
        stale=_flag(stale),
        min_revision=min_revision,
    )


def count_page(
    *,
    prefix: str | None = None,
    start: str | None = None,
    end: str | None = None,
    cursor: str | None = None,
    stale: bool = False,
) -> Command[CountPage]:
    """How many keys there are in the range, or in a bounded part of it."""
    return _command(
        "list",
        _count_page,
        prefix=prefix,
        start=start,
        end=end,
        cursor=cursor,
        count=True,
        stale=_flag(stale),
    )


def digest_page(
    *,
    prefix: str | None = None,
    start: str | None = None,
    end: str | None = None,
    cursor: str | None = None,
    stale: bool = False,
    min_revision: int | None = None,
) -> Command[DigestPage]:
    """The digest of the records in the range, or in a bounded part of it; that of all records is told whole,
    unless a record was replaced that could not be read."""
    return _command(
        "digest",
        _digest_page,
        prefix=prefix,
        start=start,
        end=end,
        cursor=cursor,
        stale=_flag(stale),
        min_revision=min_revision,
    )


def events(
    since: Cursor | str | int | None = None,
    wanted: Filter = EVERYTHING,
    *,
    since_time: int | None = None,
    limit: int | None = None,
    values: bool = True,
    previous: bool = False,
    stale: bool = False,
) -> Command[LogPage]:
    """A page of the log after ``since``, oldest first, whole revisions only; or after ``since_time``, in
    milliseconds since the epoch. ``previous`` adds the replaced records. ``cursor_expired`` if the log does
    not reach back that far."""
    must_be("wanted", wanted, Filter, "a Filter")
    for name in ("prefixes", "keys", "ops"):
        texts_of(f"wanted.{name}", getattr(wanted, name))
    return _command(
        "events",
        _log_page,
        since=None if since is None else since_of(since),
        since_time=since_time,
        limit=limit,
        values=None if values is True else values,
        previous=_flag(previous),
        stale=_flag(stale),
        **wanted.fields(),
    )


def history(
    key: str | None = None,
    *,
    prefix: str | None = None,
    before: int | None = None,
    limit: int | None = None,
    cursor: str | None = None,
    values: bool = True,
    stale: bool = False,
    min_revision: int | None = None,
) -> Command[HistoryPage]:
    """A page of the events of ``key``, or of all keys that begin with ``prefix``, below revision ``before``,
    newest first, as far as the log goes; ``not_found`` for a key that has none."""
    return _command(
        "history",
        _history_page,
        key=key,
        prefix=prefix,
        before=before,
        limit=limit,
        cursor=cursor,
        values=None if values is True else values,
        stale=_flag(stale),
        min_revision=min_revision,
    )


def status() -> Command[Fields]:
    """The daemon's version, position, counts and limits, as in protocol section 4."""
    return _command("status", _as_it_is)


def whoami() -> Command[Fields]:
    """Who asks, as the daemon knows it: ``name`` and ``grants``, and of its credential the ``kind``, the
    ``credential`` and, if it ends, ``expires_at``; ``access`` is False where nobody is asked."""
    return _command("whoami", _as_it_is)


def access() -> Command[Fields]:
    """The table of identities: its text as ``value``, its ``tag``, and the ``signing_key`` of derived
    credentials. Only the HTTP facade gets it."""
    return _command("access", _as_it_is)


def identities() -> Command[list[Fields]]:
    """All identities: their names, grants, tokens and keys, and no secrets."""
    return _command("identities", _identities)


def identity_put(
    name: str,
    *,
    create: bool | None = None,
    grants: Sequence[str] | None = None,
    grant: Sequence[str] = (),
    ungrant: Sequence[str] = (),
    expires_at: int | None = None,
    token: NewToken | None = None,
    public_key: str | None = None,
    credential_expires_at: int | None = None,
) -> Command[Fields]:
    """Make or change an identity, and read it. With ``create`` it must be new, with False it must be there.

    ``grants`` replaces its grants, ``grant`` adds some, ``ungrant`` takes some away. ``expires_at`` is its
    end in milliseconds since the epoch, 0 for none. It also gets ``token``, of which only the digest is
    sent, and ``public_key``, a CURVE key; both end at ``credential_expires_at``.
    """
    return _command(
        "identity_put",
        _as_it_is,
        name=name,
        create=create,
        grants=None if grants is None else texts_of("grants", grants),
        grant=texts_of("grant", grant) or None,
        ungrant=texts_of("ungrant", ungrant) or None,
        expires_at=expires_at,
        id=None if token is None else token.id,
        digest=None if token is None else token.digest,
        public_key=public_key,
        credential_expires_at=credential_expires_at,
    )


def identity_delete(name: str) -> Command[Fields]:
    """Remove an identity, with its tokens and keys."""
    return _command("identity_delete", _as_it_is, name=name)


def token_add(
    name: str, token: NewToken, *, expires_at: int | None = None, keep: float | timedelta | None = None
) -> Command[Fields]:
    """Give an identity another token, of which only the digest is sent; its other tokens go on for ``keep``
    seconds, without it as before."""
    return _command(
        "token_add",
        _as_it_is,
        name=name,
        id=token.id,
        digest=token.digest,
        expires_at=expires_at,
        keep=ttl_of(keep),
    )


def token_delete(name: str, token_id: str) -> Command[Fields]:
    """Revoke one token of an identity."""
    return _command("token_delete", _as_it_is, name=name, id=token_id)


def key_add(name: str, public_key: str, *, expires_at: int | None = None) -> Command[Fields]:
    """Let an identity in by another CURVE key, of which only the public half is sent."""
    return _command("key_add", _as_it_is, name=name, public_key=public_key, expires_at=expires_at)


def key_delete(name: str, public_key: str) -> Command[Fields]:
    """Revoke one CURVE key of an identity."""
    return _command("key_delete", _as_it_is, name=name, public_key=public_key)


def subscribers(*, limit: int | None = None) -> Command[Fields]:
    """Who is connected to the changes address: ``subscribers``, those for whom most waits first, up to
    ``limit`` of them, and the ``count`` of all."""
    return _command("subscribers", _as_it_is, limit=limit)


def slow(*, limit: int | None = None) -> Command[Fields]:
    """The ``requests`` at the daemon that took long, up to ``limit`` of them, the newest first."""
    return _command("slow", _as_it_is, limit=limit)


def kick(subscriber_id: str) -> Command[Fields]:
    """End the connection of a subscriber, who may come back."""
    return _command("kick", _as_it_is, id=subscriber_id)


def backups() -> Command[list[Fields]]:
    """The backups that the daemon keeps, one at most: its ``id`` and its ``state``, ``making``, ``ready`` or
    ``failed``; of one that is ready also the ``bytes`` and the ``sha256`` of its file."""
    return _command("backups", _backups)


def backup_make(backup_id: str) -> Command[Fields]:
    """Begin to make a backup, called by 16 hexadecimal digits of one's own; a repeat begins no other."""
    return _command("backup_make", _as_it_is, id=backup_id)


def backup_read(backup_id: str, offset: int, *, size: int | None = None) -> Command[bytes]:
    """A piece of a backup that is ready, of up to 1 MiB; empty behind its end."""
    return _command("backup_read", _piece, id=backup_id, offset=offset, size=size)


def backup_delete(backup_id: str) -> Command[Fields]:
    """Remove a backup, or end the making of it."""
    return _command("backup_delete", _as_it_is, id=backup_id)


def _command(
    name: str, read: Callable[[Fields, Reply], T], value: bytes | None = None, /, **fields: Any
) -> Command[T]:
    """The checked command, without the fields that are None."""
    op = {"op": name, **{key: given for key, given in fields.items() if given is not None}}
    try:
        check_operation(op, 0)
    except KvError as error:
        # the caller knows no index of an op
        message = error.message.removeprefix("ops[0].").removeprefix("ops[0]: ")
        details = {name: detail for name, detail in error.details.items() if name != "op"}
        raise KvError(error.code, message, **details) from None
    return Command(op, read, value)


def since_of(since: Any) -> str | int:
    """A cursor, as text or not, or a revision; raises ``invalid_cursor`` or TypeError."""
    if type(since) is int:
        return since
    must_be("since", since, Cursor | str, "a cursor or a revision")  # type: ignore[arg-type]
    return str(Cursor.parse(str(since)))


def _record(key: str, fields: Fields, _: Reply) -> Record:
    return record_from(fields, key)


def _log_page(fields: Fields, reply: Reply) -> LogPage:
    return LogPage.from_fields(fields, reply.epoch)


def _as_it_is(fields: Fields, _: Reply) -> Fields:
    return fields


def _identities(fields: Fields, _: Reply) -> list[Fields]:
    found: list[Fields] = fields["identities"]
    return found


def _backups(fields: Fields, _: Reply) -> list[Fields]:
    found: list[Fields] = fields["backups"]
    return found


def _piece(fields: Fields, _: Reply) -> bytes:
    piece: bytes = fields["value"]
    return piece


def _written(fields: Fields, _: Reply) -> Written:
    get = fields.get
    return Written(
        fields["revision"], fields["create_revision"], fields["version"], get("expires_at"), get("key")
    )


def _incremented(fields: Fields, reply: Reply) -> Incremented:
    return Incremented(fields["value"], *_written(fields, reply)[:4])


def _revision(fields: Fields, _: Reply) -> int:
    return int(fields["revision"])


def _deleted(fields: Fields, _: Reply) -> Deleted:
    return Deleted(fields["deleted"], fields.get("revision"), fields.get("more", False))


def _record_page(fields: Fields, reply: Reply) -> RecordPage:
    return RecordPage([record_from(item) for item in fields["items"]], fields["cursor"], reply.revision)


def _level_page(fields: Fields, reply: Reply) -> LevelPage:
    records = [record_from(item) for item in fields["items"]]
    return LevelPage(records, fields["prefixes"], fields.get("counts", []), fields["cursor"], reply.revision)


def _count_page(fields: Fields, reply: Reply) -> CountPage:
    return CountPage(fields["count"], fields["cursor"], reply.revision)


def _digest_page(fields: Fields, reply: Reply) -> DigestPage:
    return DigestPage(fields["digest"], fields["count"], fields["cursor"], reply.revision)


def _history_page(fields: Fields, _: Reply) -> HistoryPage:
    events = [event_from(event) for event in fields["events"]]
    return HistoryPage(events, fields["cursor"], fields["truncated"])
