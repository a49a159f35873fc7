"""The codec: what goes in comes out, and everything else is refused with its reason."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.errors import ERRORS, KvError
from kvstore_core.limits import MAX_REVISION
from kvstore_core.model import Cursor, Event, Record, check_key
from kvstore_core.wire import (
    HEARTBEAT_TOPIC,
    Heartbeat,
    Limits,
    PublishedEvent,
    decode_change,
    decode_reply,
    decode_request,
    encode_change,
    encode_error,
    encode_heartbeat,
    encode_reply,
    encode_request,
    event_from,
    record_from,
)

pytestmark = pytest.mark.slow

LIMITS = Limits(ops=5, request_bytes=100, atomic_ops=3, atomic_bytes=20, value_bytes=50)

keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=100)
values = st.binary(max_size=40)


@given(pairs=st.lists(st.tuples(keys, values), min_size=1, max_size=50), atomic=st.booleans())
def test_any_keys_and_values_survive_a_request(pairs: list[tuple[str, bytes]], atomic: bool) -> None:
    pairs = list(dict(pairs).items())
    ops = [{"op": "put", "key": key, "size": len(value)} for key, value in pairs]
    frames = encode_request(ops, [value for _, value in pairs], atomic=atomic, client="c", seq=7)
    request = decode_request(frames, Limits())
    assert [(op["key"], value) for op, value in zip(request.ops, request.values, strict=True)] == pairs
    assert request[2:] == (len(pairs), atomic, "c", 7, None, frames[0], None, 0)


@given(items=st.lists(st.tuples(keys, values, values), max_size=20))
def test_any_values_survive_a_reply(items: list[tuple[str, bytes, bytes]]) -> None:
    page = {"items": [{"key": key, "size": len(value)} for key, value, _ in items], "cursor": None}
    single = [{"revision": 1, "size": len(value)} for _, value, _ in items]
    events = [
        {"op": "put", "key": key, "size": len(value), "previous": {"size": len(old)}}
        for key, value, old in items
    ]
    blobs = [value for _, value, _ in items] * 2 + [part for _, new, old in items for part in (new, old)]
    reply = decode_reply(encode_reply("e", 1, [page, *single, {"events": events}], blobs))
    results: list[Any] = list(reply.results)
    assert [item["value"] for item in results[0]["items"]] == [value for _, value, _ in items]
    assert [result["value"] for result in results[1:-1]] == [value for _, value, _ in items]
    assert [(e["value"], e["previous"]["value"]) for e in results[-1]["events"]] == [i[1:] for i in items]


@given(key=keys, value=values, old=values)
def test_any_change_survives_the_publisher(key: str, value: bytes, old: bytes) -> None:
    record = {"content_type": "t", "revision": 5, "create_revision": 4, "version": 2, "modified_at": 9}
    common = {"revision": 5, "index": 0, "count": 1, "time": 9, "previous_revision": 4}
    expected = Record(key, value, "t", 5, 4, 2, 9)
    origin = {"epoch": "e", "prev": 4}
    frames = encode_change(key.encode(), {"op": "put", **common, **record, **origin}, value)
    put = Event("put", key, 5, 0, 1, 9, expected, None, 4)
    assert decode_change(frames) == PublishedEvent(put, 4, "e")
    frames = encode_change(key.encode(), {"op": "expire", **common, "previous": record, **origin}, old)
    expire = Event("expire", key, 5, 0, 1, 9, None, expected._replace(value=old), 4)
    assert decode_change(frames) == PublishedEvent(expire, 4, "e")
    frames = encode_change(key.encode(), {"op": "delete", **common, **origin}, b"")
    assert decode_change(frames) == PublishedEvent(Event("delete", key, 5, 0, 1, 9, None, None, 4), 4, "e")


def test_a_heartbeat_survives_and_has_a_topic_that_no_key_has() -> None:
    beat = Heartbeat("e" * 16, 7, 3, 1234)
    assert decode_change(encode_heartbeat(beat)) == beat
    with pytest.raises(KvError):
        check_key(HEARTBEAT_TOPIC.decode())


@given(frames=st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_at_all_are_ignored_or_refused_and_nothing_else(frames: list[bytes]) -> None:
    assert decode_change(frames) is None
    for decode in (decode_reply, lambda frames: decode_request(frames, LIMITS)):
        with pytest.raises(KvError):
            decode(frames)


FIELDS = ["v", "ops", "op", "key", "size", "error", "results", "items", "events", "previous", "epoch", "prev"]
FIELDS += ["revision", "index", "count", "client", "seq", "atomic", "code", "message", "prefix", "since"]

scalars = st.sampled_from(
    [None, True, 0, 1, -1, 2**63, 2**200, 0.5, "", "put", "expire", "get", "\ud800", "k\0"]
)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner)
)


@given(header=st.dictionaries(st.sampled_from(FIELDS), documents), value=st.binary(max_size=3))
def test_any_json_at_all_is_understood_or_refused_and_nothing_else(
    header: dict[str, Any], value: bytes
) -> None:
    frame = json.dumps({**header, "v": 1}).encode()
    decode_change([b"k", frame, value])
    for decode in (decode_reply, lambda frames: decode_request(frames, LIMITS)):
        with suppress(KvError):
            decode([frame, value])


def frames(*ops: Any, value: bytes | None = None, **header: Any) -> list[bytes]:
    first = orjson.dumps({"v": 1, "ops": list(ops), **header})
    return [first] if value is None else [first, value]


GET = {"op": "get", "key": "k"}
PUT = {"op": "put", "key": "k", "size": 0}

BAD_REQUESTS: dict[str, tuple[list[bytes], str]] = {
    "no frames": ([], "bad_request"),
    "three frames": ([b"{}", b"", b""], "bad_request"),
    "not JSON": ([b"\xff"], "bad_request"),
    "not an object": ([b"[]"], "bad_request"),
    "no version": ([b"{}"], "unsupported_version"),
    "a later version": (frames(GET, v=2), "unsupported_version"),
    "true is not a version": (frames(GET, v=True), "unsupported_version"),
    "an unknown field": (frames(GET, colour="red"), "bad_request"),
    "no ops": (frames(), "bad_request"),
    "ops that are no list": (frames(ops={}), "bad_request"),
    "too many ops": (frames(*[GET] * 6), "request_too_large"),
    "an op that is no object": (frames("get"), "bad_request"),
    "an unknown op": (frames({"op": "got"}), "unknown_operation"),
    "an op whose name is no text": (frames({"op": []}), "unknown_operation"),
    "an unknown field of an op": (frames({**GET, "colour": "red"}), "bad_request"),
    "a missing field": (frames({"op": "get"}), "bad_request"),
    "a field of the wrong type": (frames({"op": "get", "key": 7}), "bad_request"),
    "a flag that is no flag": (frames({"op": "list", "count": 1}), "bad_request"),
    "an empty key": (frames({"op": "get", "key": ""}), "invalid_key"),
    "a key with NUL": (frames({"op": "get", "key": "\0"}), "invalid_key"),
    "a key of 512 bytes": (frames({"op": "get", "key": "é" * 256}), "invalid_key"),
    "a value too large": (frames({**PUT, "size": 51}, value=b"x" * 51), "value_too_large"),
    "values too large": (frames(PUT, value=b"x" * 101), "request_too_large"),
    "values longer than the sizes": (frames(PUT, value=b"x"), "bad_request"),
    "values shorter than the sizes": (frames({**PUT, "size": 2}, value=b"x"), "bad_request"),
    "an atomic that is no flag": (frames(GET, atomic=1), "bad_request"),
    "too many atomic ops": (frames(*[GET] * 4, atomic=True), "request_too_large"),
    "too many atomic bytes": (frames({**PUT, "size": 21}, value=b"x" * 21, atomic=True), "request_too_large"),
    "a key twice": (frames(PUT, PUT, atomic=True), "bad_request"),
    "a prefix in an atomic batch": (
        frames({"op": "delete_prefix", "prefix": "k"}, atomic=True),
        "bad_request",
    ),
    "an empty prefix to delete": (frames({"op": "delete_prefix", "prefix": ""}), "bad_request"),
    "a seq without client": (frames(PUT, seq=1), "bad_request"),
    "a client without seq": (frames(PUT, client="c"), "bad_request"),
    "a seq of 0": (frames(PUT, client="c", seq=0), "bad_request"),
    "a client of 129 bytes": (frames(PUT, client="c" * 129, seq=1), "bad_request"),
    "a number for a reading request": (frames(GET, client="c", seq=1), "bad_request"),
    "a TTL of 0": (frames({**PUT, "ttl": 0}), "bad_request"),
    "a negative condition": (frames({**PUT, "if_revision": -1}), "bad_request"),
    "a media type with a line break": (frames({**PUT, "content_type": "a\nb"}), "bad_request"),
}


@pytest.mark.parametrize(("bad", "code"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_bad_request_is_refused_with_its_code(bad: list[bytes], code: str) -> None:
    with pytest.raises(KvError) as caught:
        decode_request(bad, LIMITS)
    assert caught.value.code == code


ADVICE: dict[str, tuple[list[bytes], str]] = {
    "a value in the header": (frames({**PUT, "value": "v"}), "the value is the second frame"),
    "a value that was left out": (frames({**PUT, "size": 2}), "there is no value frame, or an empty one"),
    "a frame for each value": ([*frames(PUT), b"a", b"b"], "the second all values, one after another"),
    "a number alone": (frames(PUT, seq=1), "'seq' needs 'client'"),
    "a name alone": (frames(PUT, client="c"), "'client' needs 'seq'"),
    "an op in place of the list": ([b'{"v": 1, "op": "get"}'], "an op goes into the list 'ops'"),
    "a text as C ends it": ([frames(GET)[0] + b"\0"], "there is a NUL byte after the JSON"),
    "no name": (frames({"key": "k"}), "ops[0] has no 'op', which must be one of get, put,"),
    "another name": (frames({"op": "fetch"}), "ops[0].op must be one of get, put,"),
}


@pytest.mark.parametrize(("bad", "advice"), ADVICE.values(), ids=ADVICE)
def test_what_a_beginner_sends_is_refused_with_what_to_do(bad: list[bytes], advice: str) -> None:
    with pytest.raises(KvError, match=re.escape(advice)) as caught:
        decode_request(bad, LIMITS)
    assert "backup" not in str(caught.value), "what is for administrators alone is not suggested"


def test_a_change_of_another_version_or_kind_is_ignored() -> None:
    header = {"v": 2, "op": "put"}
    assert decode_change([b"k", orjson.dumps(header), b""]) is None
    assert decode_change([b"\0other", b'{"v":1}']) is None


@pytest.mark.parametrize("code", ERRORS)
def test_every_error_survives_a_reply(code: str) -> None:
    with pytest.raises(KvError) as caught:
        decode_reply(encode_error(KvError(code, "why", limit=3)))
    assert (caught.value.code, caught.value.message, caught.value.details) == (code, "why", {"limit": 3})


@given(revision=st.integers(0, MAX_REVISION), epoch=st.text("0123456789abcdef", min_size=16, max_size=16))
def test_a_cursor_is_read_as_it_was_written(revision: int, epoch: str) -> None:
    assert Cursor.parse(str(Cursor(revision, epoch))) == Cursor(revision, epoch)


@given(text=st.text(max_size=40))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    try:
        assert str(Cursor.parse(text)).lstrip("0") == text.lstrip("0")
    except KvError as error:
        assert error.code == "invalid_cursor"  # noqa: PT017 - either outcome is right


def test_records_and_events_are_read_from_replies() -> None:
    fields = {"content_type": "t", "revision": 2, "create_revision": 1, "version": 2, "modified_at": 5}
    assert record_from({**fields, "key": "k"}) == Record("k", None, "t", 2, 1, 2, 5)
    event = {"op": "delete", "key": "k", "index": 0, "count": 1, "time": 6, "previous_revision": 2}
    read = event_from({**event, "revision": 3, "previous": fields})
    assert (read.record, read.previous) == (None, Record("k", None, "t", 2, 1, 2, 5))


@pytest.mark.parametrize(
    ("cursor", "reason"),
    [
        (Cursor(4, "e"), "expired"),
        (Cursor(5, "e"), "epoch"),  # above the head, or jumped over by a restore
        (Cursor(9, "e"), "epoch"),
        (Cursor(4, "other"), "epoch"),
    ],
)
def test_a_cursor_that_is_lost_has_expired_or_is_of_another_history(cursor: Cursor, reason: str) -> None:
    assert cursor.reset_reason("e", 5) == reason
