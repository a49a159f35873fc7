"""One get of one key is known by its bytes and answered at once: as it would be otherwise."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.errors import KvError
from kvstore_core.wire import Limits, Request, decode_request, encode_request
from kvstore_daemon.requests.lone_get import key_of
from support.servers import Daemon, StartDaemon, wait_until
from support.wire import Connect, Peer, get, pack, put

PRINTABLE = "".join(map(chr, range(32, 127)))
INSERTED = (b'"', b"\\", b'","op":"', b"{}", b'"},{"op":"get","key":"')
KEYS = st.one_of(st.text(PRINTABLE, max_size=513), st.text(max_size=20), st.just("k" * 511))


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A get as a client writes it, with some bytes changed or none."""
    header = bytearray(b'{"v":1,"ops":[{"op":"get","key":"%s"}]}' % draw(KEYS).encode(errors="surrogatepass"))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(header) - 1))
        header[at : at + draw(st.integers(0, 2))] = draw(
            st.one_of(
                st.binary(max_size=2),
                st.sampled_from((b'"', b"\\", b'","op":"', b"{}", b'"},{"op":"get","key":"')),
            )
        )
    return bytes(header)


@given(headers())
def test_what_is_known_by_its_bytes_is_what_it_says(header: bytes) -> None:
    key = key_of([header])
    try:
        request = decode_request([header], Limits())
    except KvError:
        assert key is None
    else:
        if key is not None:
            assert request == Request([{"op": "get", "key": key.decode()}], [None], 0, header=header)


@given(st.text(PRINTABLE.translate({ord('"'): None, ord("\\"): None}), min_size=1, max_size=511))
def test_the_gets_of_clients_are_known(key: str) -> None:
    frames = encode_request([{"op": "get", "key": key}])
    assert key_of(frames) == key.encode()
    assert key_of([*frames, b""]) is None


def both_ways(peer: Peer, key: str) -> list[bytes]:
    """The reply to a get of ``key``, the same if it is written in another way."""
    header = pack(get(key))[0]
    assert header.startswith(b'{"v":1,')
    replies = [peer.exchange(header), peer.exchange(header.replace(b'"v":1,', b'"v": 1,', 1))]
    assert replies[0] == replies[1]
    return replies[0]


@pytest.mark.slow
def test_a_get_gets_the_same_however_it_is_written(peer: Peer, unique: str) -> None:
    puts: list[dict[str, Any]] = [
        put(unique, b"value"),
        put(unique + "empty", b""),
        put(unique + "large", bytes(200_000)),
        put(unique + "all", b"v", content_type='text/plain; title="a\\\\b"', ttl=3600, message="why «so»"),
        put(unique + "k" * (511 - len(unique)), b"v"),
        put(unique + "ü", b"v"),
        put(unique + "\x7f", b"v"),
        put(unique + "/{}[]:,'<>&%$", b"v"),
    ]
    for each in puts:
        assert "error" not in peer.ask(each)[0]
        header, value = both_ways(peer, each["key"])
        assert value == each["value"]
        assert orjson.loads(header)["results"][0]["version"] == 1
    for missing in (unique + "missing", unique + "k" * (512 - len(unique))):
        assert len(both_ways(peer, missing)) == 1


@pytest.mark.slow
def test_a_key_that_has_expired_is_not_found(peer: Peer, unique: str) -> None:
    """The head may move in between, by the event of its end, so the replies need not be equal."""
    peer.ask(put(unique, ttl=0.001))
    header = pack(get(unique))[0]
    for written in (header, header.replace(b'"v":1,', b'"v": 1,', 1)):
        wait_until(lambda written=written: b"not_found" in peer.exchange(written)[0])


@pytest.mark.slow
def test_it_is_counted_and_logged_as_any_other(start_daemon: StartDaemon, connect: Connect) -> None:
    daemon: Daemon = start_daemon()

    def counts(peer: Peer) -> dict[str, Any]:
        counters: dict[str, Any] = peer.ask({"op": "status"})[0]["counters"]
        names = ("requests", "operations", "requests_refused")
        gets = counters["operations_by_name"].get("get", 0)
        return {name: counters[name] for name in names} | {"get": gets}

    peer = connect(daemon)
    peer.ask(put("k", b"value"))
    header = pack(get("k"))[0]
    grown = []
    for written in (header, header.replace(b'"v":1,', b'"v": 1,', 1)):
        before = counts(peer)
        peer.exchange(written)
        after = counts(peer)
        grown.append({name: after[name] - before[name] for name in before})
    assert grown[0] == grown[1]
    assert (grown[0]["get"], grown[0]["requests"]) == (1, 2)

    talkative: Daemon = start_daemon(log_level="debug")
    peer = connect(talkative)
    peer.ask(put("k", b"value"))
    peer.ask(get("k"))
    wait_until(lambda: "answered get k" in talkative.log.read_text())
