"""Request ids: taken, given back, logged, and without any other effect."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.errors import KvError
from kvstore_core.wire import Limits, decode_request, encode_error, encode_reply, encode_request
from support.servers import Daemon, StartDaemon, wait_until
from support.wire import Connect, Peer, get, put

IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)


@given(ids=st.lists(st.none() | IDS, min_size=1, max_size=5))
def test_ids_survive_a_request_and_its_reply(ids: list[str | None]) -> None:
    ops = [{"op": "get", "key": "k"}] * len(ids)
    for request_id in (ids, next(filter(None, ids), None)):
        request = decode_request(encode_request(ops, request_id=request_id), Limits())
        assert request.request_id == request_id
        assert request.header == encode_request(ops)[0]
        for reply in (
            encode_reply("e", 1, [{}], (), request.request_id),
            encode_error(KvError("internal", "x"), request.request_id),
        ):
            assert orjson.loads(reply[0]).get("request_id") == request_id


@pytest.mark.parametrize(
    "request_id", ["", "two words", "x" * 129, "é", "line\nfeed", 7, True, {}, [], ["a"], ["a", ""], ["a", 7]]
)
def test_what_is_no_id_is_refused_with_what_it_must_be(
    daemon: Daemon, connect: Connect, request_id: object
) -> None:
    error = connect(daemon).refusal(get("a"), get("b"), request_id=request_id)
    assert error["code"] == "bad_request"
    assert "visible ASCII" in error["message"]


def test_a_reply_brings_the_ids_of_its_request(client: Peer) -> None:
    for request_id in ("abc-1", ["abc-1", None]):
        assert client.reply_to(get("a"), get("b"), request_id=request_id)["request_id"] == request_id
        assert client.reply_to(get("a"), put("b", b""), request_id=request_id)["request_id"] == request_id
    assert "request_id" not in client.reply_to(get("a"))


def test_a_repeat_under_another_id_is_the_same_request(client: Peer) -> None:
    count = {"op": "incr", "key": "n"}
    number = {"client": "c", "seq": 1}
    first = client.ask(count, **number)
    for request_id in ("one", "two", ["three"]):
        assert client.ask(count, **number, request_id=request_id) == first
    assert client.refusal({**count, "by": 2}, **number, request_id="one")["code"] == "sequence_reused"


def test_debug_lines_name_the_ids_of_what_they_speak_of(start_daemon: StartDaemon, connect: Connect) -> None:
    daemon = start_daemon(log_level="debug", log_format="json")
    peer = connect(daemon)
    peer.ask(put("a", b"x"), get("b"), request_id="alone-1")
    peer.ask(get("c"), get("d"), get("e"), request_id=["one", None, "two"])
    peer.refusal(put("a", b"1"), put("a", b"2"), atomic=True)

    def lines() -> list[dict[str, object]]:
        return [json.loads(line) for line in daemon.stderr.splitlines()]

    wait_until(lambda: any("refused" in str(line["message"]) for line in lines()))
    answered = {str(line["message"]): line.get("request_id") for line in lines()}
    assert answered["answered put a, get b"] == "alone-1"
    assert answered["answered get c, get d, get e"] == ["one", "two"]
