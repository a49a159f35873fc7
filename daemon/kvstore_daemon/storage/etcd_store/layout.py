"""What is in etcd: the names of the keys below the prefix, and the bytes of their values. Without I/O.

- ``key/KEY``: a user's key and its record. Its revision and create_revision are etcd's own.
- ``head``: put in every transaction, so its mod_revision is that of the last change of this store, however
  many others use the cluster. It says who made the change and when, and what etcd's delete events do not.
- ``writer/NODE``: put in every transaction of the daemon NODE: see
  :mod:`kvstore_daemon.storage.etcd_store.committer`.
- ``reply/CLIENT``: the last reply of a client that numbers its writes. It goes with its lease.
- ``floor``: the revision up to which the log is trimmed, in decimal.
- ``number``: the last number that a key which numbers itself was given, in decimal. Put with such keys alone.
- ``epoch``: the name of this history of the store.

What another program writes below the prefix is taken as well as can be: a value of ``key/…`` that is
not in this form is taken for the bytes of a value without a type.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import orjson

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_OPS
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_core.operations import is_author, is_media_type, is_message
from kvstore_daemon.storage.interface import StoredRecord

THIS_REVISION = 0
"""In a result that is not committed yet: the revision that its transaction will get."""

# a NUL first, which no text begins with; then the version of the form
_MAGIC = b"\0kv\x01"
# version u64, modified_at u64, expires_at u64 (0: none), lengths of content type, author and message u8 each;
# then these three, and the value
_VALUE = struct.Struct(">4sQQQBBB")
# what no version or time reaches: what answers have them in are JSON and LMDB's rows, and 63 bits fit both
_NUMBERS = 1 << 63


class Names:
    """The names of etcd's keys for a store below ``prefix`` (no slash at its end)."""

    def __init__(self, prefix: bytes) -> None:
        self.all = prefix + b"/"
        self.keys = self.all + b"key/"
        self.head = self.all + b"head"
        self.floor = self.all + b"floor"
        self.epoch = self.all + b"epoch"
        self.number = self.all + b"number"
        self._writers = self.all + b"writer/"
        self.replies = self.all + b"reply/"

    def of_key(self, key: bytes) -> bytes:
        """The name of a user's key."""
        return self.keys + key

    def user_key(self, name: bytes) -> bytes | None:
        """The user's key that ``name`` is of, None if it is of none."""
        return name[len(self.keys) :] if name.startswith(self.keys) else None

    def of_reply(self, client: str) -> bytes:
        """The name of the last reply of a client that numbers its writes."""
        return self.replies + client.encode()

    def client(self, name: bytes) -> str | None:
        """The client whose last reply ``name`` is of, None if it is of none."""
        if not name.startswith(self.replies):
            return None
        return name[len(self.replies) :].decode(errors="replace")

    def of_writer(self, node: str) -> bytes:
        """The name of the key that a daemon puts with each of its transactions."""
        return self._writers + node.encode()


def range_end(prefix: bytes) -> bytes:
    """The end of the range of all names that begin with ``prefix``, which is not empty: etcd's range_end."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else b"\0"


def encode_record(record: StoredRecord) -> bytes:
    """The value of a user's key in etcd."""
    kind, author, message = record.content_type.encode(), record.author.encode(), record.message.encode()
    head = _VALUE.pack(
        _MAGIC,
        record.version,
        record.modified_at,
        record.expires_at or 0,
        len(kind),
        len(author),
        len(message),
    )
    return b"".join((head, kind, author, message, record.value or b""))


def decode_record(data: bytes, revision: int, create_revision: int, time: int) -> StoredRecord:
    """The record that a value in etcd holds. ``time`` is the modified_at where another program wrote it."""
    if data[:4] == _MAGIC and len(data) >= _VALUE.size:
        _, version, modified_at, expires_at, kind_length, author_length, message_length = _VALUE.unpack_from(
            data
        )
        author_at = _VALUE.size + kind_length
        message_at = author_at + author_length
        value_at = message_at + message_length
        kind = str(data[_VALUE.size : author_at], "ascii", "replace")
        author = str(data[author_at:message_at], "utf-8", "replace") if author_length else ""
        message = str(data[message_at:value_at], "utf-8", "replace") if message_length else ""
        if (
            len(data) >= value_at
            and max(version, modified_at, expires_at) < _NUMBERS
            and (not kind or is_media_type(kind))
            and _is_byline(author, message)
        ):
            # as StoredRecord(...) does, but with one call less, since one is made with every put
            return tuple.__new__(
                StoredRecord,
                (
                    data[value_at:],
                    kind,
                    revision,
                    create_revision,
                    version,
                    modified_at,
                    expires_at or None,
                    author,
                    message,
                ),
            )
    return StoredRecord(data, DEFAULT_CONTENT_TYPE, revision, create_revision, 1, time, None)


class Gone(NamedTuple):
    """What etcd's delete event does not say: ``op`` is ``delete`` or ``expire``."""

    op: str
    author: str = ""
    message: str = ""


class Head(NamedTuple):
    """The record of a transaction. ``time`` is the writer's, in milliseconds; ``node`` names it and
    ``sequence`` counts its transactions. ``gone`` are the deletes, in their order. ``digest`` is that of the
    writer's mirror when it was at revision ``digest_at`` (0: it says none)."""

    time: int
    node: str
    sequence: int
    gone: tuple[Gone, ...] = ()
    digest_at: int = 0
    digest: int = 0


def encode_head(head: Head) -> bytes:
    """The value of ``head``."""
    return orjson.dumps([*head[:3], list(map(list, head.gone)), head.digest_at, head.digest])


def decode_head(data: bytes) -> Head | None:
    """The record in a value of ``head``, None if it is none of ours."""
    try:
        time, node, sequence, gone, digest_at, digest = orjson.loads(data)
        head = Head(time, node, sequence, tuple(Gone(*each) for each in gone), digest_at, digest)
    except (ValueError, TypeError):
        return None
    are_numbers = all(map(_is_number, (time, sequence, digest_at))) and _is_number(digest, 1 << 64)
    return head if are_numbers and type(node) is str and all(map(_is_ours, head.gone)) else None


def _is_number(value: Any, end: int = _NUMBERS) -> bool:
    return type(value) is int and 0 <= value < end


def _is_ours(gone: Gone) -> bool:
    return gone.op in ("delete", "expire") and _is_byline(gone.author, gone.message)


def _is_byline(author: Any, message: Any) -> bool:
    return (author == "" or is_author(author)) and (message == "" or is_message(message))


class ReplyRow(NamedTuple):
    """The last reply of a client that numbers its writes, or a part of one.

    A request of more writes than a transaction takes leaves one part with each: ``results`` are those of the
    writes from ``first`` on, of ``total``. Revisions of ``THIS_REVISION`` are that of the row. ``error``
    is set instead where the whole request was refused.
    """

    seq: int
    fingerprint: int
    first: int
    total: int
    results: list[dict[str, Any] | KvError]
    error: KvError | None = None


def encode_reply(reply: ReplyRow) -> bytes:
    """The value of ``reply/CLIENT``."""
    seq, fingerprint, first, total, results, error = reply
    body = None if error is None else error.as_json()
    return orjson.dumps([seq, fingerprint, first, total, results, body], default=_error_as_json)


def _error_as_json(error: KvError) -> dict[str, Any]:
    return {"error": error.as_json()}


def decode_reply(data: bytes, revision: int) -> ReplyRow | None:
    """The reply in a row that was put at ``revision``, revisions filled in; None if it is not ours."""
    try:
        seq, fingerprint, first, total, results, error = orjson.loads(data)
        if not all(_is_number(each, 1 << 64) for each in (seq, fingerprint, first, total)):
            return None
        if not first + len(results) <= total <= MAX_OPS:
            return None
        return ReplyRow(
            seq,
            fingerprint,
            first,
            total,
            [
                KvError.from_json(each["error"]) if "error" in each else filled(each, revision)
                for each in results
            ],
            None if error is None else KvError.from_json(error),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def filled(result: dict[str, Any], revision: int) -> dict[str, Any]:
    """The result of a write that was committed at ``revision``. That of a check says what was found, where 0
    is a key that is not there."""
    if result.keys() == {"revision"}:
        return result
    for name in ("revision", "create_revision"):
        if result.get(name) == THIS_REVISION:
            result[name] = revision
    return result


def decode_floor(data: bytes) -> int:
    """The revision in a value of ``floor``; 0 if it is none."""
    return _decimal(data)


def decode_number(data: bytes) -> int:
    """The number in a value of ``number``; 0 if it is none."""
    return _decimal(data)


def _decimal(data: bytes) -> int:
    return int(data) if data.isdigit() and len(data) <= 19 else 0
