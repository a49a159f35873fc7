"""The client when the network or the daemon fails: in time, once, and honest about what is not known."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import zmq

from kvstore_client import AsyncClient, Client, KvError, Subscription, Sync
from kvstore_core import connection_monitor
from kvstore_core.wire import encode_error, encode_reply
from support.patience import PATIENCE_SECONDS
from support.proxy import CuttingProxy
from support.servers import Daemon, free_port, wait_until

pytestmark = pytest.mark.slow


@contextmanager
def black_hole() -> Iterator[str]:
    """An endpoint that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


class Swallower:
    """A daemon that takes requests and answers as ``answer`` says: the frames, or None for never."""

    def __init__(self, answer: Callable[[list[bytes]], list[bytes] | None]) -> None:
        self._answer = answer
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.requests: list[list[bytes]] = []
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Swallower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            if self._socket.poll(20):
                envelope, request = self._split(self._socket.recv_multipart())
                self.requests.append(request)
                answer = self._answer(request)
                if answer is not None:
                    self._socket.send_multipart([*envelope, *answer])

    @staticmethod
    def _split(frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        index = frames.index(b"") + 1
        return frames[:index], frames[index:]


def number_of(request: list[bytes]) -> tuple[str, int]:
    header = orjson.loads(request[0])
    return header["client"], header["seq"]


def written(revision: int) -> list[bytes]:
    return encode_reply("e" * 16, revision, [{"revision": revision, "create_revision": 1, "version": 1}])


def test_without_a_daemon_a_write_certainly_did_not_happen() -> None:
    with Client(f"tcp://127.0.0.1:{free_port()}", timeout=0.2) as client:
        with pytest.raises(KvError) as caught:
            client.put("k", b"v")
        assert (caught.value.code, caught.value.details) == ("unavailable", {"outcome": "none"})
        with pytest.raises(KvError) as caught:
            client.get("k")
        assert (caught.value.code, caught.value.details) == ("unavailable", {})


def test_a_black_hole_is_given_up_in_time_and_nothing_was_sent_into_it() -> None:
    with black_hole() as endpoint, Client(endpoint, timeout=0.3) as client:
        with pytest.raises(KvError) as caught:
            client.put("k", b"v")
        assert (caught.value.code, caught.value.details["outcome"]) == ("unavailable", "none")


def test_a_write_whose_reply_never_comes_has_an_unknown_outcome_and_was_sent_once() -> None:
    with Swallower(lambda _: None) as daemon, Client(daemon.endpoint, timeout=0.5) as client:
        with pytest.raises(KvError) as caught:
            client.put("k", b"v")
        assert (caught.value.code, caught.value.details["outcome"]) == ("timed_out", "unknown")
        assert len(daemon.requests) == 1


def test_the_write_after_an_unknown_outcome_has_a_higher_number() -> None:
    silent = threading.Event()
    silent.set()
    with (
        Swallower(lambda _: None if silent.is_set() else written(1)) as daemon,
        Client(daemon.endpoint, timeout=0.3) as client,
    ):
        with pytest.raises(KvError):
            client.put("k", b"1")
        silent.clear()
        client.put("k", b"2", timeout=PATIENCE_SECONDS)
        first, last = number_of(daemon.requests[0]), number_of(daemon.requests[-1])
        assert last == (first[0], first[1] + 1)


def test_a_late_copy_of_a_write_is_refused_once_a_later_one_was_applied(daemon: Daemon) -> None:
    frames: list[list[bytes]] = []
    with zmq.Context() as context, context.socket(zmq.DEALER) as upstream:
        upstream.linger = 0
        upstream.connect(daemon.requests)

        def forward(request: list[bytes]) -> list[bytes]:
            frames.append(request)
            upstream.send_multipart([b"", *request])
            return upstream.recv_multipart()[1:]

        with Swallower(forward) as relay, Client(relay.endpoint) as client:
            client.put("k", b"first")
            client.put("k", b"second")
            late = forward(frames[0])
            assert orjson.loads(late[0])["error"]["code"] == "sequence_stale"
            assert client.get("k").value == b"second"


def test_a_message_too_short_to_be_a_reply_is_never_taken_for_an_answer() -> None:
    answers = iter([[], written(7)])

    with Swallower(lambda _: next(answers)) as daemon, Client(daemon.endpoint) as client:
        with pytest.raises(KvError) as caught:
            client.put("k", b"1", timeout=0.5)
        assert (caught.value.code, caught.value.details["outcome"]) == ("timed_out", "unknown")
        assert client.put("k", b"2", timeout=PATIENCE_SECONDS).revision == 7


STALL_SECONDS = 6.0
"""Longer than any time after which a client ever repeated what a living connection was to answer."""


def counters(client: Client) -> dict[str, Any]:
    counted: dict[str, Any] = client.status()["counters"]
    return counted


def test_a_daemon_that_is_only_slow_is_asked_once(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # heartbeats are for the test after this one
    monkeypatch.setattr(connection_monitor, "SILENCE_MS", 600_000)

    async def increment() -> list[int]:
        async with AsyncClient(daemon.requests, timeout=60) as client:
            return [done.value for done in await asyncio.gather(*[client.incr("n") for _ in range(4)])]

    with (
        Client(daemon.requests, timeout=60) as client,
        Subscription(daemon.requests, daemon.changes) as subscription,
        ThreadPoolExecutor(10) as pool,
    ):
        # lanes of the first kind have been used before, those of the second have yet to connect
        assert all(done.version for done in pool.map(client.put, "abcd", [b""] * 4))
        before = counters(client)
        with daemon.paused():
            calls = [pool.submit(client.incr, "n") for _ in range(4)]
            reads = [pool.submit(client.get, "a") for _ in range(4)]
            unconnected = pool.submit(lambda: asyncio.run(increment()))
            begins = pool.submit(subscription.next, 60)
            time.sleep(STALL_SECONDS)
        assert sorted([call.result().value for call in calls] + unconnected.result()) == list(range(1, 9))
        assert all(read.result().value == b"" for read in reads)
        assert isinstance(begins.result(), Sync)
        after = counters(client)
        names = {"incr": 8, "get": 4, "status": 2}
        done = {
            name: after["operations_by_name"][name] - before["operations_by_name"].get(name, 0)
            for name in names
        }
        assert done == names
        assert after["requests"] - before["requests"] == sum(names.values()) + done.get("events", 0)


@pytest.fixture
def quick_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_monitor, "PING_MS", 50)
    monkeypatch.setattr(connection_monitor, "SILENCE_MS", 500)


@pytest.mark.usefixtures("quick_heartbeats")
def test_a_connection_that_is_dead_without_a_word_is_noticed_and_replaced(daemon: Daemon) -> None:
    async def increment(endpoint: str) -> int:
        async with AsyncClient(endpoint, timeout=60) as client:
            await client.get("n")
            proxy.swallow()
            return (await client.incr("n")).value

    with CuttingProxy(daemon.requests) as proxy:
        with Client(proxy.endpoint, timeout=60, connections=1) as client:
            assert client.incr("n").value == 1
            proxy.swallow()
            assert client.incr("n").value == 2
            assert proxy.connections == 2
        assert asyncio.run(increment(proxy.endpoint)) == 3
        assert proxy.connections == 4


@pytest.mark.usefixtures("quick_heartbeats")
def test_an_idle_connection_that_died_delays_no_call(daemon: Daemon) -> None:
    with CuttingProxy(daemon.requests) as proxy, Client(proxy.endpoint, connections=1) as client:
        client.put("k", b"v")
        for lose in (proxy.cut, proxy.swallow):
            [connection] = client._pool._idle
            lose()
            wait_until(lambda connection=connection: connection._has_ended())  # type: ignore[misc]
            assert client.get("k", timeout=PATIENCE_SECONDS).value == b"v"
        assert proxy.connections == 3


def test_what_a_killed_daemon_took_with_it_is_asked_again_of_the_next_one(daemon: Daemon) -> None:
    with Client(daemon.requests, timeout=60) as client, ThreadPoolExecutor(2) as pool:
        client.put("k", b"v")
        assert client.get("k").value == b"v"
        with daemon.paused():
            read, write = pool.submit(client.get, "k"), pool.submit(client.incr, "n")
            wait_until(lambda: not client._pool._idle)
            daemon.kill()
        daemon.start()
        assert read.result().value == b"v"
        assert write.result().value == 1
        counted = counters(client)["operations_by_name"]
        assert (counted["get"], counted["incr"]) == (1, 1)


class Interruption(BaseException):
    """What a signal's handler raises, as Ctrl-C raises KeyboardInterrupt."""


def test_an_interrupted_call_leaves_the_client_in_order() -> None:
    def interrupt(*_: object) -> None:
        raise Interruption

    def answer(request: list[bytes]) -> list[bytes] | None:
        number = number_of(request)[1]
        # the first call has yet to connect, the third goes over a connection that is there
        if number in (1, 3):
            signal.pthread_kill(waiting, signal.SIGUSR1)
        return written(number)

    waiting = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with (
            Swallower(answer) as daemon,
            Client(daemon.endpoint, connections=1, timeout=PATIENCE_SECONDS) as client,
        ):
            for number in (1, 3):
                with pytest.raises(Interruption):
                    client.put("k", b"1")
                assert client.put("k", b"2").revision == number + 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_malformed_reply_is_an_internal_error() -> None:
    for reply in ([b"no json"], [b"{}"], [b'{"v":1,"epoch":"e","revision":1,"results":[{}]}']):
        with Swallower(lambda _, reply=reply: reply) as daemon, Client(daemon.endpoint) as client:  # type: ignore[misc]
            with pytest.raises(KvError) as caught:
                client.get("k")
            assert caught.value.code == "internal"


def test_a_busy_daemon_is_asked_again_until_it_has_room() -> None:
    refusals = iter([encode_error(KvError("too_busy", "later"))] * 3)
    with (
        Swallower(lambda _: next(refusals, written(3))) as daemon,
        Client(daemon.endpoint, timeout=PATIENCE_SECONDS) as client,
    ):
        assert client.put("k", b"v").revision == 3
        assert len({number_of(request) for request in daemon.requests}) == 1


@pytest.mark.parametrize("seed", range(2))
def test_every_write_over_a_network_that_cuts_connections_is_applied_once(daemon: Daemon, seed: int) -> None:
    chance = random.Random(seed)
    with CuttingProxy(daemon.requests, chance.randrange(500, 1500)) as proxy:
        with Client(proxy.endpoint, timeout=50) as client:
            numbers = [client.incr("n").value for _ in range(30)]
            assert numbers == list(range(1, 31))
        assert proxy.connections > 3


def test_every_asyncio_write_over_a_network_that_cuts_connections_is_applied_once(daemon: Daemon) -> None:
    async def run(endpoint: str) -> list[int]:
        async with AsyncClient(endpoint, timeout=50, connections=8) as client:
            return [done.value for done in await asyncio.gather(*[client.incr("n") for _ in range(100)])]

    with CuttingProxy(daemon.requests, 1500) as proxy:
        assert sorted(asyncio.run(run(proxy.endpoint))) == list(range(1, 101))
        assert proxy.connections > 8


def test_every_acknowledged_write_outlives_a_killed_daemon_once(daemon: Daemon) -> None:
    acknowledged: list[int] = []
    is_done = threading.Event()

    def write(client: Client) -> None:
        while not is_done.is_set():
            acknowledged.append(client.incr("n").value)

    with Client(daemon.requests, timeout=50) as client:
        writers = [threading.Thread(target=write, args=(client,)) for _ in range(4)]
        for writer in writers:
            writer.start()
        for _ in range(3):
            reached = len(acknowledged)
            wait_until(lambda reached=reached: len(acknowledged) > reached + 20)  # type: ignore[misc]
            daemon.kill()
            daemon.start()
        is_done.set()
        for writer in writers:
            writer.join()
        assert sorted(acknowledged) == list(range(1, len(acknowledged) + 1))
        assert client.get("n").value == b"%d" % len(acknowledged)
