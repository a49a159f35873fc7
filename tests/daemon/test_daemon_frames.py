"""Whatever arrives, there is exactly one reply to each request, and the daemon lives on."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore_core.operations import OPERATIONS
from support.lengths import examples
from support.servers import Daemon
from support.wire import Connect, Peer, get, put

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


def header(*ops: Any, **fields: Any) -> bytes:
    return orjson.dumps({"v": 1, "ops": ops, **fields})


EVENTS_OF_A_KEY = {"op": "events", "since": 0, "keys": ["a"]}
GET = {"op": "get", "key": "k"}
PUT = {"op": "put", "key": "k", "size": 1}

MALFORMED: dict[str, tuple[list[bytes], str]] = {
    "an empty frame": ([b""], "bad_request"),
    "three frames": ([header(PUT), b"x", b""], "bad_request"),
    "a hundred frames": ([header(GET)] * 100, "bad_request"),
    "not JSON": ([b"get k"], "bad_request"),
    "not UTF-8": ([b'{"v":1,"ops":[{"op":"get","key":"\xff"}]}'], "bad_request"),
    "a lone surrogate": ([rb'{"v":1,"ops":[{"op":"get","key":"\ud800"}]}'], "bad_request"),
    "JSON cut short": ([header(GET)[:-1]], "bad_request"),
    "JSON of great depth": ([b"[" * 100_000], "bad_request"),
    "no object": ([b"[1]"], "bad_request"),
    "no version": ([orjson.dumps({"ops": [GET]})], "unsupported_version"),
    "another version": ([orjson.dumps({"v": 2, "ops": [GET]})], "unsupported_version"),
    "a version that is true": ([orjson.dumps({"v": True, "ops": [GET]})], "unsupported_version"),
    "an unknown field": ([header(GET, foo=1)], "bad_request"),
    "no ops": ([orjson.dumps({"v": 1})], "bad_request"),
    "empty ops": ([header()], "bad_request"),
    "ops that are no list": ([orjson.dumps({"v": 1, "ops": {"op": "get"}})], "bad_request"),
    "too many ops": ([header(*[GET] * 10_001)], "request_too_large"),
    "too many prefixes of all ops": (
        [header(*[{"op": "events", "since": 0, "prefixes": ["a"] * 1_000}] * 10, EVENTS_OF_A_KEY)],
        "request_too_large",
    ),
    "an op that is a text": ([header("get")], "bad_request"),
    "an op without a name": ([header({"key": "k"})], "unknown_operation"),
    "an unknown op": ([header({"op": "fetch", "key": "k"})], "unknown_operation"),
    "the daemon's own op": ([header({"op": "expire", "key": "k"})], "unknown_operation"),
    "an unknown op field": ([header({**GET, "ttl": 1})], "bad_request"),
    "a field missing": ([header({"op": "get"})], "bad_request"),
    "a key that is a number": ([header({"op": "get", "key": 1})], "bad_request"),
    **{
        f"{name} that is null": ([header(get("k"), **{name: None})], "bad_request")
        for name in ("atomic", "client", "seq", "author", "request_id")
    },
    "a key that is null": ([header({"op": "get", "key": None})], "bad_request"),
    "an empty key": ([header(get(""))], "invalid_key"),
    "a key of 512 bytes": ([header(get("k" * 512))], "invalid_key"),
    "a key of 512 bytes in 256 characters": ([header(get("é" * 256))], "invalid_key"),
    "a key with NUL": ([header(get("a\0b"))], "invalid_key"),
    "a ttl of nothing": ([header({**PUT, "ttl": 0}), b"x"], "bad_request"),
    "a ttl of more than is": ([header({**PUT, "ttl": 1e300}), b"x"], "bad_request"),
    "a condition that is negative": ([header({**PUT, "if_revision": -1}), b"x"], "bad_request"),
    "an increment over 64 bits": ([header({"op": "incr", "key": "k", "by": 2**63})], "bad_request"),
    "a limit of 0": ([header({"op": "list", "limit": 0})], "bad_request"),
    "a limit over the page": ([header({"op": "list", "limit": 1001})], "bad_request"),
    "an empty prefix to delete": ([header({"op": "delete_prefix", "prefix": ""})], "bad_request"),
    "a media type with a line break": ([header({**PUT, "content_type": "a\r\nb"}), b"x"], "bad_request"),
    "a size without a value": ([header(PUT)], "bad_request"),
    "a value that is too short": ([header({**PUT, "size": 2}), b"x"], "bad_request"),
    "a value that is too long": ([header(PUT), b"xy"], "bad_request"),
    "a value that nothing asked for": ([header(GET), b"x"], "bad_request"),
    "a size that is negative": ([header({**PUT, "size": -1}), b"x"], "bad_request"),
    "a value over the limit": ([header({**PUT, "size": MIB + 1}), bytes(MIB + 1)], "value_too_large"),
    "a request over the limit": ([header(PUT), bytes(16 * MIB + 1)], "request_too_large"),
    "a header over the limit": ([b" " * (16 * MIB + 1)], "request_too_large"),
    "atomic that is 1": ([header(PUT, atomic=1), b"x"], "bad_request"),
    "an atomic batch with a key twice": ([header(PUT, PUT, atomic=True), b"xy"], "bad_request"),
    "an atomic batch with a prefix": (
        [header({"op": "delete_prefix", "prefix": "k"}, atomic=True)],
        "bad_request",
    ),
    "an atomic batch over its ops": (
        [header(*({"op": "incr", "key": f"k{n}"} for n in range(10_001)), atomic=True)],
        "request_too_large",
    ),
    "an atomic batch over its bytes": (
        [header({**PUT, "size": MIB}, {**PUT, "key": "l"}, atomic=True), bytes(MIB + 1)],
        "request_too_large",
    ),
    "a number without a client": ([header(PUT, seq=1), b"x"], "bad_request"),
    "a client without a number": ([header(PUT, client="c"), b"x"], "bad_request"),
    "a number of 0": ([header(PUT, client="c", seq=0), b"x"], "bad_request"),
    "a client of 129 bytes": ([header(PUT, client="c" * 129, seq=1), b"x"], "bad_request"),
    "a number for a read": ([header(GET, client="c", seq=1)], "bad_request"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_gets_an_error_that_says_why(peer: Peer, name: str) -> None:
    frames, code = MALFORMED[name]
    [reply] = peer.exchange(*frames)
    error = orjson.loads(reply)["error"]
    assert error["code"] == code
    assert len(error["message"]) > 10


def test_a_malformed_request_changes_nothing(peer: Peer) -> None:
    before = peer.reply_to({"op": "status"})["revision"]
    for frames, _ in MALFORMED.values():
        peer.exchange(*frames)
    assert peer.reply_to({"op": "status"})["revision"] == before


@pytest.mark.parametrize(
    "key",
    [
        "k" * 511,
        "é" * 255 + "k",
        "/",
        "//",
        ".",
        "..",
        "%2F",
        "%25",
        "?",
        "#",
        "+",
        " ",
        "\x01",
        "\U0010fffd",
    ],
)
def test_every_key_of_the_data_model_is_kept(peer: Peer, key: str) -> None:
    assert peer.ask(put(key, key.encode()), get(key))[1]["value"] == key.encode()


@pytest.mark.parametrize("value", [b"", bytes(range(256)), bytes(MIB)], ids=["empty", "all bytes", "1 MiB"])
def test_every_value_of_the_data_model_is_kept(peer: Peer, unique: str, value: bytes) -> None:
    assert peer.ask(put(unique, value), get(unique))[1]["value"] == value


def test_the_frames_before_the_delimiter_come_back_unchanged(shared_daemon: Daemon, connect: Connect) -> None:
    dealer = connect(shared_daemon, zmq.DEALER).socket
    for correlation in ([b"1"], [b"a", b"b" * 300], [], [b"c"] * 8):
        dealer.send_multipart([*correlation, b"", header(GET)])
        assert dealer.recv_multipart()[:-1] == [*correlation, b""]


@pytest.mark.parametrize(
    "frames", [[b"no delimiter"], [b""], [b"id", b""], [b"a", b"b"], [b"c"] * 9 + [b"", b"{}"]]
)
def test_a_message_that_is_no_request_keeps_none_from_its_answer(
    shared_daemon: Daemon, connect: Connect, frames: list[bytes]
) -> None:
    dealer = connect(shared_daemon, zmq.DEALER).socket
    for _ in range(2_000):
        dealer.send_multipart(frames)
    dealer.send_multipart([b"asked", b"", header({"op": "status"})])
    replies = [dealer.recv_multipart()]
    while replies[-1][0] != b"asked":
        replies.append(dealer.recv_multipart())
    assert b'"results"' in replies[-1][-1]


def test_a_pipelining_dealer_gets_every_reply_once(
    shared_daemon: Daemon, connect: Connect, unique: str
) -> None:
    dealer = connect(shared_daemon, zmq.DEALER).socket
    sent = 5_000
    for number in range(sent):
        op = {"op": "incr", "key": f"{unique}{number % 7}"} if number % 3 else get(unique)
        dealer.send_multipart([b"%d" % number, b"", header(op)])
    replies = [int(dealer.recv_multipart()[0]) for _ in range(sent)]
    assert sorted(replies) == list(range(sent))


def test_a_client_that_leaves_before_its_reply_disturbs_nobody(
    shared_daemon: Daemon, connect: Connect, unique: str
) -> None:
    for number in range(600):
        peer = connect(shared_daemon)
        peer.socket.send(header({"op": "incr", "key": unique}))
        peer.socket.close(linger=0 if number % 2 else 1000)
    assert connect(shared_daemon).ask({"op": "status"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(sorted({name for row in OPERATIONS.values() for name in row.fields}))
op_names = st.sampled_from(sorted(OPERATIONS))
plausible = st.one_of(
    json_values,
    st.sampled_from(["k", "", "l" * 512, 0, 1, 5, 1000, "1-0123456789abcdef", ["k"], ["put"], True]),
)
ops = st.builds(
    lambda name, fields: {**fields, "op": name}, op_names, st.dictionaries(field_names, plausible, max_size=3)
)
requests = st.builds(
    lambda ops, extra: orjson.dumps({"v": 1, "ops": ops, **extra}),
    st.lists(ops | json_values, max_size=4) | json_values,
    st.dictionaries(st.sampled_from(["atomic", "client", "seq", "v", "x"]), plausible, max_size=2),
)
frames = st.lists(requests | st.binary(max_size=40), min_size=1, max_size=4)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=frames)
def test_any_frames_get_one_reply_of_the_protocol(peer: Peer, frames: list[bytes]) -> None:
    reply = orjson.loads(peer.exchange(*frames)[0])
    assert reply["v"] == 1
    if "error" in reply:
        assert {"code", "message"} <= reply["error"].keys()
        assert reply["error"]["code"] not in {"internal", "damaged"}
    else:
        assert len(reply["results"]) == len(orjson.loads(frames[0])["ops"])
    assert not peer.socket.poll(0)
