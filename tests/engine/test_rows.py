"""Rows keep what was put into them, and a row that was damaged is never taken for another."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.digest import DIGEST_BYTES, MODULUS, record_hash
from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.interface import StoredEvent, StoredRecord
from kvstore_daemon.storage.lmdb_store import row_format
from kvstore_daemon.storage.lmdb_store.row_format import OPS, EventId, LogCounters
from support.engine_store import flipped

U63 = st.integers(0, 2**63 - 1)
KEYS = st.binary(min_size=1, max_size=511)
LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
RECORDS = st.builds(
    StoredRecord,
    st.binary(max_size=300),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=255),
    U63,
    U63,
    U63,
    U63,
    st.none() | st.integers(1, 2**63 - 1),
    LINES,
    LINES,
)
DIGESTS = st.just(b"") | st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
"""Empty in the rows of older formats."""
EVENT_IDS = st.builds(EventId, U63, st.integers(0, 10_000))


def _record_row(key: bytes, stored: StoredRecord, index: int, digest: bytes) -> bytes:
    body = row_format.record_body(stored, index, digest)
    return row_format.encode_record(body, row_format.checksum(key, body))


def _event_row(change: StoredEvent, before: EventId, record: bytes, inline: bytes) -> bytes:
    event_id = EventId(change.revision, change.index).encode()
    checksum = row_format.checksum(change.key, record)
    return row_format.encode_event(change, event_id, before.encode(), record, checksum, inline)


@given(KEYS, RECORDS, st.integers(0, 10_000), DIGESTS)
def test_a_record_comes_back_as_it_was(key: bytes, stored: StoredRecord, index: int, digest: bytes) -> None:
    row = _record_row(key, stored, index, digest)
    assert row_format.decode_record(key, row) == stored
    assert row_format.decode_record(memoryview(key), memoryview(row)) == stored
    assert row_format.decode_record(key, row, value=False) == stored._replace(value=None)
    assert EventId.decode(row_format.record_event_id(row)) == (stored.revision, index)
    assert row_format.decode_body(key, row) == row_format.record_body(stored, index, digest)
    own = digest or record_hash(key, stored.revision, stored.value or b"")
    assert row_format.hash_of_record(key, row) == row_format.hash_of_record(key, memoryview(row)) == own


@given(
    st.sampled_from(OPS),
    KEYS,
    EVENT_IDS,
    EVENT_IDS,
    U63,
    RECORDS,
    RECORDS,
    st.booleans(),
    st.booleans(),
    DIGESTS,
)
def test_an_event_comes_back_as_it_was(
    op: str,
    key: bytes,
    event_id: EventId,
    before: EventId,
    time: int,
    stored: StoredRecord,
    old: StoredRecord,
    has_record: bool,
    has_inline: bool,
    digest: bytes,
) -> None:
    change = StoredEvent(
        op, key, event_id.revision, event_id.index, 7, time, None, None, 0, stored.author, stored.message
    )
    record = row_format.record_body(stored, 1, digest) if has_record else b""
    inline = row_format.record_body(old, 2, b"") if has_inline else b""
    event = row_format.decode_event(event_id, _event_row(change, before, record, inline))
    assert event[:6] == (op, key, event_id, 7, time, before)
    assert event.stored() == (stored if has_record else None)
    assert event.inline_previous() == (old if has_inline else None)
    assert (event.author, event.message) == (("", "") if has_record else (stored.author, stored.message))


@given(KEYS, RECORDS, st.integers(0, 10_000))
def test_rows_without_hash_author_and_message_are_those_of_format_2(
    key: bytes, stored: StoredRecord, index: int
) -> None:
    plain = stored._replace(author="", message="")
    kind, expires_at = plain.content_type.encode(), plain.expires_at or 0
    numbers = (plain.revision, index, plain.create_revision, plain.version)
    head = struct.pack(">QIQQBQQB", *numbers, 1, plain.modified_at, expires_at, len(kind))
    body = row_format.record_body(plain, index, b"")
    assert body == head + kind + (plain.value or b"")
    change = StoredEvent("delete", key, plain.revision, index, 1, 5, None, None, 0)
    row = _event_row(change, EventId(3, 1), b"", body)
    assert row[4:] == struct.pack(">BIQQIHI", 1, 1, 5, 3, 1, len(key), 0) + key + body


@given(KEYS, RECORDS, DIGESTS, st.data())
def test_a_flipped_bit_is_noticed(
    key: bytes, stored: StoredRecord, digest: bytes, data: st.DataObject
) -> None:
    row = _record_row(key, stored, 0, digest)
    bit = data.draw(st.integers(0, len(row) * 8 - 1))
    with pytest.raises(DamageError):
        row_format.decode_record(key, flipped(row, bit))


@given(st.sampled_from(OPS), KEYS, EVENT_IDS, RECORDS, st.booleans(), st.booleans(), st.data())
def test_a_flipped_bit_of_an_event_is_noticed(
    op: str,
    key: bytes,
    event_id: EventId,
    stored: StoredRecord,
    has_record: bool,
    has_inline: bool,
    data: st.DataObject,
) -> None:
    change = StoredEvent(
        op, key, event_id.revision, event_id.index, 1, 0, None, None, 0, stored.author, stored.message
    )
    body = row_format.record_body(stored, 0, bytes(DIGEST_BYTES))
    row = _event_row(change, event_id, body if has_record else b"", body if has_inline else b"")
    bit = data.draw(st.integers(0, len(row) * 8 - 1))
    with pytest.raises(DamageError):
        row_format.decode_event(event_id, flipped(row, bit))


@given(KEYS, KEYS, RECORDS)
def test_a_row_under_another_key_is_noticed(key: bytes, other: bytes, stored: StoredRecord) -> None:
    row = _record_row(key, stored, 0, b"")
    if key != other:
        with pytest.raises(DamageError):
            row_format.decode_record(other, row)


@given(KEYS, RECORDS, DIGESTS, st.data())
def test_a_row_cut_short_is_noticed(
    key: bytes, stored: StoredRecord, digest: bytes, data: st.DataObject
) -> None:
    row = _record_row(key, stored, 0, digest)
    with pytest.raises(DamageError):
        row_format.decode_record(key, row[: data.draw(st.integers(0, len(row) - 1))])


@given(st.tuples(*[U63] * 4), st.none() | st.integers(0, MODULUS - 1))
def test_the_counters_come_back_as_they_were(counts: tuple[int, ...], digest: int | None) -> None:
    counters = LogCounters(*counts, digest)
    assert LogCounters.decode(memoryview(counters.encode())) == counters
    with pytest.raises(DamageError):
        LogCounters.decode(counters.encode()[:-1])


@given(st.binary(max_size=200))
def test_no_bytes_at_all_crash_a_decoder(data: bytes) -> None:
    with pytest.raises(DamageError):
        row_format.decode_record(b"k", data)
    with pytest.raises(DamageError):
        row_format.decode_event(EventId(1, 0), data)
