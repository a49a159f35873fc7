"""Requests that are wrong in random places, on every socket: each gets its answer, nothing breaks, and what
was stored stays as it was."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import orjson
import pytest
import zmq

from kvstore_client import Client
from support.lengths import Survived, times
from support.patience import PATIENCE_SECONDS
from support.servers import Service, children
from support.wire import frame, greeting, message, pack, put, unpack

INPUTS = times(300, full=30_000)

pytestmark = [pytest.mark.torture, pytest.mark.timeout(60 + INPUTS)]

CANARY = "canary"


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    """The bytes of a request; a length is put in where there is a body and no word of how it ends."""
    lines = [f"{line} HTTP/1.1", "Host: localhost", *headers]
    if body and not any(header.startswith("Transfer") for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


JSON = "Content-Type: application/json"
BATCH = b'{"atomic":true,"ops":[{"op":"put","key":"bad/4","value":"\\u00e9"}]}'

HTTP_REQUESTS = [
    request("GET /v1/kv/bad/1?format=json", 'If-None-Match: "7", W/"8"'),
    request("GET /v1/kv?prefix=bad&limit=3&keys=1&cursor=YQ", "Accept: application/json"),
    request("GET /v1/kv/bad/1", "Range: bytes=0-1", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"),
    request("PUT /v1/kv/bad/1?ttl=30s", "Idempotency-Key: k", "X-Kvstore-Message: w%C3%BC", body=b"value"),
    request("PUT /v1/kv/bad/2", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
    request("POST /v1/incr/bad/3?by=-7", 'If-Match: "3"'),
    request("POST /v1/batch", JSON, body=BATCH),
    request("PATCH /v1/kv/bad/5", "Content-Type: application/merge-patch+json", body=b'{"a":{}}\n'),
    request("GET /v1/history/bad/1?limit=2&before=9", "Origin: null"),
    request("GET /v1/subscribe?prefix=bad&since=1-0123456789abcdef", "Last-Event-ID: 3"),
]

NATIVE_REQUESTS = [
    pack({"op": "get", "key": "bad/1"}, {"op": "list", "prefix": "bad", "limit": 3, "cursor": "YQ"}),
    pack(put("bad/1", b"value", ttl=1.5, if_revision=3), client="c", seq=7, atomic=True),
    pack(put("bad/1", message="why"), put("bad/2"), {"op": "incr", "key": "n", "by": -7}, request_id="r"),
    pack({"op": "events", "since": "1-0123456789abcdef", "prefixes": ["bad"], "ops": ["put"], "limit": 3}),
    pack({"op": "history", "key": "bad/1", "before": 9, "values": False}, {"op": "status"}),
    pack({"op": "history", "prefix": "bad", "before": 9, "limit": 2}, author=["a"]),
]


def spoiled(data: bytes, chance: random.Random) -> bytes:
    """``data`` with something changed, cut, repeated or put in, in up to three places."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made) + 1)
        until = min(len(made), at + chance.choice((1, 1, 2, 8, 40)))
        kind = chance.randrange(5)
        if kind == 0:
            made[at:until] = chance.randbytes(until - at)
        elif kind == 1:
            del made[at:until]
        elif kind == 2:
            made[at:at] = made[at:until] * chance.choice((1, 2, 50))
        elif kind == 3:
            made[at:at] = chance.choice(
                (b"\r\n", b"\0", b"-1", b'"', b"%", b"\xff\xfe", b"9" * 25, b":", b"[{", b" ")
            )
        else:
            made[at:until] = bytes(byte ^ 0x20 for byte in made[at:until])
    return bytes(made)


@contextmanager
def unharmed(service: Service) -> Iterator[None]:
    """The block leaves the processes and the canary alone, and nothing fails on the inside."""
    with Client(service.requests) as client:
        before = client.put(CANARY, b"alive").revision
        pids = service.daemon.pid, children(service.facade.pid)
        yield
        assert client.get(CANARY).revision == before
    assert (service.daemon.pid, children(service.facade.pid)) == pids
    assert service.daemon.is_running
    said = service.daemon.stderr + service.facade.stderr
    assert "Traceback" not in said, said


def test_whatever_is_sent_gets_its_answer_and_harms_nothing(two_workers: Service, survived: Survived) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with unharmed(two_workers):
        for number in range(INPUTS):
            kind = number % 10
            if kind < 6:
                send_http(two_workers.url, spoiled(chance.choice(HTTP_REQUESTS), chance))
            elif kind < 9:
                send_native(
                    two_workers.requests, [spoiled(f, chance) for f in chance.choice(NATIVE_REQUESTS)]
                )
            else:
                send_garbage(chance.choice((two_workers.requests, two_workers.changes)), chance)
    survived(bad_inputs=INPUTS)


def send_http(url: str, message: bytes) -> None:
    """Send it, and no more; whatever comes back is HTTP, and says of no fault of the service."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    status = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    assert not answer or status, (message, answer)
    assert status is None or status[1] != b"500", (message, answer)


def send_native(requests: str, frames: list[bytes]) -> None:
    """Send it as a request; there is one reply, and it is no fault of the daemon."""
    with zmq.Context() as context, context.socket(zmq.REQ) as peer:
        peer.linger = 0
        peer.connect(requests)
        peer.send_multipart(frames)
        assert peer.poll(PATIENCE_SECONDS * 1000), frames
        reply = unpack(peer.recv_multipart())
    errors = [reply.get("error"), *(result.get("error") for result in reply.get("results", ()))]
    assert all(error is None or error["code"] != "internal" for error in errors), (frames, reply)
    assert orjson.dumps(reply["v"]) == b"1"


def send_garbage(endpoint: str, chance: random.Random) -> None:
    """Send what is no ZMTP, or breaks it off, and leave."""
    address = urlsplit(endpoint)
    ready = frame(b"\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ", 4)
    said = greeting() + ready + message(b"", b"hello")
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS) as connection:
        try:
            connection.sendall(spoiled(said, chance))
        except ConnectionError:
            return
