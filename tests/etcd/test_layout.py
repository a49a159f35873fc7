"""What is written to etcd is read back as it was; what others wrote there breaks nothing."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.errors import KvError
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_core.operations import is_author
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.layout import Gone, Head, Names, ReplyRow
from kvstore_daemon.storage.etcd_store.mirroring.mirror_transaction import Digests
from kvstore_daemon.storage.interface import StoredRecord

_TIMES = st.integers(0, 2**63 - 1)
_LINES = st.text(max_size=50).filter(lambda text: not text or is_author(text))
_RECORDS = st.builds(
    StoredRecord,
    st.binary(),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=255),
    st.just(7),
    st.just(5),
    _TIMES,
    _TIMES,
    st.none() | st.integers(1, 2**63 - 1),
    _LINES,
    _LINES,
)
_HEADS = st.builds(
    Head,
    _TIMES,
    _LINES,
    _TIMES,
    st.lists(st.builds(Gone, st.sampled_from(("delete", "expire")), _LINES, _LINES)).map(tuple),
    _TIMES,
    st.integers(0, 2**64 - 1),
)


@given(_RECORDS)
def test_a_record_is_read_as_it_was_written(record: StoredRecord) -> None:
    assert layout.decode_record(layout.encode_record(record), 7, 5, 1) == record


@given(st.binary())
def test_any_bytes_are_a_record(data: bytes) -> None:
    record = layout.decode_record(data, 7, 5, 1)
    assert (record.revision, record.create_revision) == (7, 5)
    if not data.startswith(b"\0kv"):
        assert record == StoredRecord(data, DEFAULT_CONTENT_TYPE, 7, 5, 1, 1, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"content_type": "text/plain\r\nSet-Cookie: a=b"},
        {"content_type": "text/pl\x7fin"},
        {"version": 1 << 63},
        {"modified_at": (1 << 64) - 1},
        {"expires_at": 1 << 63},
        {"author": "ann\x1b[2J"},
        {"author": "a" * 101},
        {"message": "two\nlines"},
        {"message": "m" * 201},
        {"message": "\u202eright to left"},
    ],
    ids=str,
)
def test_a_record_that_no_daemon_writes_is_the_bytes_as_they_are(fields: dict[str, Any]) -> None:
    ours = StoredRecord(b"value", "text/plain", 7, 5, 1, 1, None, "ann", "why")
    data = layout.encode_record(ours._replace(**fields))
    assert layout.decode_record(data, 7, 5, 9) == StoredRecord(data, DEFAULT_CONTENT_TYPE, 7, 5, 1, 9, None)


def test_a_record_that_is_cut_off_is_the_bytes_as_they_are() -> None:
    ours = layout.encode_record(StoredRecord(b"", "text/plain", 7, 5, 1, 1, None, "ann", "why"))
    for length in range(len(ours)):
        assert layout.decode_record(ours[:length], 7, 5, 9).value == ours[:length]


_ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(_HEADS, st.integers(0, 5), _ODD)
def test_a_head_of_anything_is_ours_or_none(head: Head, place: int, odd: Any) -> None:
    fields = [*head[:3], list(map(list, head.gone)), head.digest_at, head.digest]
    fields[place] = odd
    found = layout.decode_head(orjson.dumps(fields))
    Digests().compare(found or Head(0, "n", 0))
    if found is None:
        return
    assert all(type(number) is int and number >= 0 for number in (found[0], found[2], *found[4:]))
    assert type(found.node) is str
    assert all(type(text) is str for gone in found.gone for text in gone)
    assert layout.decode_head(layout.encode_head(found)) == found


@given(st.integers(0, 5), _ODD)
def test_a_reply_of_anything_is_ours_or_none(place: int, odd: Any) -> None:
    fields: list[Any] = [1, 2, 0, 3, [{"revision": 0}], None]
    fields[place] = odd
    found = layout.decode_reply(orjson.dumps(fields), 7)
    if found is not None:
        assert all(type(number) is int and number >= 0 for number in found[:4])
        assert all(isinstance(result, dict | KvError) for result in found.results)
        assert found.error is None or isinstance(found.error, KvError)


@given(_HEADS, st.binary())
def test_a_head_is_read_as_it_was_written(head: Head, noise: bytes) -> None:
    assert layout.decode_head(layout.encode_head(head)) == head
    assert layout.decode_head(noise) is None


def test_a_reply_is_given_the_revision_of_its_row() -> None:
    refused = KvError("condition_failed", "no", revision=0)
    results = [
        {"revision": 0, "create_revision": 0, "version": 1},
        refused,
        {"revision": 0, "create_revision": 3},
    ]
    reply = layout.decode_reply(layout.encode_reply(ReplyRow(9, 4, 0, 3, results)), 21)
    assert reply is not None
    assert reply.results[0] == {"revision": 21, "create_revision": 21, "version": 1}
    assert isinstance(reply.results[1], KvError)
    assert reply.results[1].as_json() == refused.as_json()
    assert reply.results[2] == {"revision": 21, "create_revision": 3}
    whole = layout.decode_reply(layout.encode_reply(ReplyRow(9, 4, 0, 3, [], refused)), 21)
    assert whole is not None
    assert whole.error is not None
    assert whole.error.as_json() == refused.as_json()
    assert layout.decode_reply(b"what others wrote", 21) is None


@given(st.binary(min_size=1), st.binary())
def test_a_range_has_what_begins_with_its_prefix(prefix: bytes, name: bytes) -> None:
    end = layout.range_end(prefix)
    assert (prefix <= name and (end == b"\0" or name < end)) == (
        name.startswith(prefix) or (end == b"\0" and name > prefix)
    )


def test_each_name_is_of_one_kind() -> None:
    names = Names(b"/kvstore")
    assert names.user_key(names.of_key(b"a/b")) == b"a/b"
    assert names.client(names.of_reply("täst")) == "täst"
    for name in (names.head, names.floor, names.epoch, names.of_writer("n"), names.of_reply("c")):
        assert name.startswith(names.all)
        assert names.user_key(name) is None
