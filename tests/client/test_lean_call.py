"""The short way of a call, and the long one that it leaves wherever something is not as usual: what a caller
sees is the same, and so is what happens to the store."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import zmq

from kvstore_client import Client, KvError, commands
from kvstore_client import client as client_module
from kvstore_client.commands import Deleted, Incremented, Written
from kvstore_client.transport import connection as connection_module
from kvstore_client.transport import sync_io
from kvstore_client.transport.connection import Connection, RequestBody
from kvstore_core.model import Record
from kvstore_core.wire import Reply, encode_error
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, free_port, wait_until

pytestmark = pytest.mark.slow

LATE_SECONDS = 2 * connection_module.QUICK_SECONDS
GIVE_UP_SECONDS = 1.0


class FaultyRelay:
    """Stands between clients and a daemon, and does with the next request as ``fault`` says; the one after
    it, which may be its repeat, just passes. ``seen`` holds the number of each request, 0 for one that has
    none."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.fault = ""
        self.seen: list[int] = []
        self._is_stopping = threading.Event()
        self._bind()
        self._connect()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> FaultyRelay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _bind(self) -> None:
        self._clients = self._context.socket(zmq.ROUTER)
        wait_until(self._is_bound, timeout=PATIENCE_SECONDS)

    def _is_bound(self) -> bool:
        try:
            self._clients.bind(self.endpoint)
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:  # by the socket that is being closed
                raise
            return False
        return True

    def _connect(self) -> None:
        self._upstream = self._context.socket(zmq.DEALER)
        self._upstream.connect(self._daemon.requests)

    def _cut(self) -> None:
        """End all connections, with what is on its way in them."""
        self._clients.close(0)
        self._bind()

    def _kill(self) -> None:
        self._upstream.close(0)
        self._daemon.kill()
        self._daemon.start()
        self._connect()
        self._cut()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            if self._clients.poll(20):
                sender, number, _, *request = self._clients.recv_multipart()
                fault, self.fault = self.fault, ""
                self.seen.append(orjson.loads(request[0]).get("seq", 0))
                for answer in self._answers(fault, number, request):
                    self._clients.send_multipart([sender, *answer])

    def _answers(self, fault: str, number: bytes, request: list[bytes]) -> Iterator[list[bytes]]:
        if fault == "busy":
            yield [number, b"", *encode_error(KvError("too_busy", "later"))]
        elif fault == "request lost":
            self._cut()
        elif fault == "killed before":
            self._kill()
        elif fault == "silent":
            pass
        else:
            reply = self._ask(request, is_stopped=fault == "stopped")
            if fault == "late":
                time.sleep(LATE_SECONDS)
            elif fault == "reply lost":
                self._cut()
            elif fault == "killed after":
                self._kill()
            elif fault == "stranger":
                yield [bytes(8), b"", *reply]
            if fault not in ("reply lost", "killed after"):
                yield [number, b"", *reply]

    def _ask(self, request: list[bytes], *, is_stopped: bool) -> list[bytes]:
        if is_stopped:
            with self._daemon.paused():
                self._upstream.send_multipart([b"", *request])
                time.sleep(LATE_SECONDS)
        else:
            self._upstream.send_multipart([b"", *request])
        assert self._upstream.poll(1000 * PATIENCE_SECONDS)
        return self._upstream.recv_multipart()[1:]


FAULTS = (
    "late",
    "busy",
    "request lost",
    "reply lost",
    "stranger",
    "stopped",
    "killed before",
    "killed after",
)
RARE = ("killed before", "killed after")
"""Faults that take long."""

Step = Callable[[Client, str], Any]


def random_step(chance: random.Random) -> Step:
    """One call on the keys below a prefix."""
    name, value = chance.choice("abc"), chance.randbytes(chance.choice((0, 1, 100, 50_000)))
    atomic, number = chance.random() < 0.5, str(chance.randrange(100))
    steps: tuple[Step, ...] = (
        lambda client, prefix: client.get(prefix + name),
        lambda client, prefix: client.get(prefix + name, None),
        lambda client, prefix: client.put(prefix + name, value),
        lambda client, prefix: client.put(prefix + name, number, ttl=3600),
        lambda client, prefix: client.put(prefix + name, value, if_revision=10**9),
        lambda client, prefix: client.create(prefix + name, number),
        lambda client, prefix: client.incr(prefix + name, 7),
        lambda client, prefix: client.delete(prefix + name),
        lambda client, prefix: client.get_many([prefix + each for each in "abcd"]),
        lambda client, prefix: list(client.list(prefix=prefix)),
        lambda client, prefix: client.batch(
            [
                commands.put(prefix + name, number),
                commands.incr(prefix + "d", 1),
                commands.get(prefix + name),
            ],
            atomic=atomic,
        ),
        # refused as a whole
        lambda client, prefix: client.batch(
            [commands.incr(prefix + name), commands.delete("none")], atomic=True
        ),
    )
    return chance.choice(steps)


def told(step: Step, client: Client, prefix: str) -> Any:
    """What a caller is told, without what is another's: the prefix, revisions and times."""
    try:
        return plain(step(client, prefix))
    except KvError as error:
        return plain(error)


def plain(result: Any) -> Any:
    match result:
        case KvError():
            return result.code, result.details.get("outcome"), result.details.get("op")
        case Record():
            return result.key.partition("/")[2], result.value, result.content_type, result.version
        case Written():
            return "written", result.version, result.expires_at is None
        case Incremented():
            return result.value, result.version
        case Deleted():
            return "deleted", result.deleted
        case list():
            return [plain(each) for each in result]
        case dict():
            return {key.partition("/")[2]: plain(each) for key, each in result.items()}
    return result


@contextmanager
def long_way_of(client: Client) -> Iterator[None]:
    """Calls of ``client`` go the long way meanwhile."""
    [long] = client._pool._idle
    exchange = client_module.exchange

    def choose(connection: Connection, body: RequestBody, seconds: float) -> Reply:
        if connection is long:
            return sync_io.drive(connection.call(body, seconds))
        return exchange(connection, body, seconds)

    client_module.exchange = choose  # not in Connection, which may be compiled
    try:
        yield
    finally:
        client_module.exchange = exchange


def run_both_ways(daemon: Daemon, seed: int, length: int) -> int:
    """Run random calls both ways, with random faults; returns how many there were of each."""
    chance = random.Random(seed)
    counted = 0
    with (
        FaultyRelay(daemon) as relay,
        Client(relay.endpoint, timeout=PATIENCE_SECONDS, connections=1) as short,
        Client(relay.endpoint, timeout=PATIENCE_SECONDS, connections=1) as long,
        long_way_of(long),
    ):
        for number in range(length):
            step, draw = random_step(chance), chance.random()
            fault = "" if draw < 0.5 else chance.choice(FAULTS[:-2] if draw < 0.97 else RARE)
            is_given_up = fault == "late" and chance.random() < 0.3
            seen = []
            for client, prefix in ((short, f"short{seed}/"), (long, f"long{seed}/")):
                if is_given_up:  # over a connection that is there, and nobody applies it
                    client.get("none", None)
                before = len(relay.seen)
                relay.fault = "silent" if is_given_up else fault
                if is_given_up:
                    client._timeout = GIVE_UP_SECONDS
                heard = told(step, client, prefix)
                client._timeout = PATIENCE_SECONDS
                wait_until(lambda: not relay.fault, what="the request arrives")
                numbers = relay.seen[before:]
                first = min(filter(None, numbers), default=0)
                # a repeat has the same number, and nothing is repeated that is only late
                seen.append((heard, [each and each - first for each in numbers]))
                counted += 1
            assert seen[0] == seen[1], f"seed {seed}, call {number}, {fault or 'no fault'}"
        whole = [
            told(lambda client, prefix: list(client.list(prefix=prefix)), short, f"{way}{seed}/")
            for way in ("short", "long")
        ]
        assert whole[0] == whole[1], f"seed {seed}"
    return counted // 2


@pytest.mark.parametrize("seed", range(3))
def test_both_ways_of_a_call_tell_and_do_the_same_whatever_fails(daemon: Daemon, seed: int) -> None:
    assert run_both_ways(daemon, seed, 40) == 40


def test_a_lone_request_over_a_connection_that_is_there_goes_the_short_way(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a wait whose end was missed would be as long as this, and the call go the long way
    monkeypatch.setattr(connection_module, "QUICK_SECONDS", 10)
    monkeypatch.setattr(connection_module, "_QUICK_MS", 10_000)
    ways: list[bool] = []

    def noting(connection: Connection, body: RequestBody, seconds: float) -> Reply:
        answer = connection.call_at_once(body, seconds)
        ways.append(isinstance(answer, Reply))
        return answer if isinstance(answer, Reply) else sync_io.drive(answer)

    with Client(daemon.requests, timeout=PATIENCE_SECONDS, connections=1) as client:
        client.put("k", b"v")  # connects
        monkeypatch.setattr(client_module, "exchange", noting)
        for number in range(300):
            assert client.put("k", b"%d" % number).version == number + 2
            assert client.get("k").value == b"%d" % number
            # libzmq wakes a socket every few hundred messages to say how many were taken
            assert ways.count(False) <= 3
    assert len(ways) == 600
