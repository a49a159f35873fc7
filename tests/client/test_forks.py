"""Clients that a forked process inherits, and clients that several threads or tasks share."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvstore_client import AsyncClient, AsyncSubscription, Client, Event, KvError, Subscription, Sync
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.requests, timeout=PATIENCE_SECONDS) as client:
        yield client


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked process, as JSON carries it; fails if it raises there."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException:
            os.write(writing, json.dumps(traceback.format_exc()).encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = json.loads(pipe.read() or b"null")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, said
    return said


def test_a_forked_process_has_connections_of_its_own_and_the_parent_keeps_its_own(client: Client) -> None:
    client.put("k", b"1")
    before = client._pool._idle[0]._sequence.client

    def work() -> str:
        assert client.get("k").value == b"1"
        client.put("k", b"2")
        assert client.incr("n").value == 1
        client.close()
        return client._pool._idle[0]._sequence.client if client._pool._idle else "closed"

    assert in_child(work) == "closed"
    assert client.get("k").value == b"2"
    assert client.incr("n").value == 2
    assert client._pool._idle[0]._sequence.client == before


def test_numbers_of_forked_processes_do_not_meet(client: Client) -> None:
    def work() -> list[Any]:
        for _ in range(20):
            client.incr("n")
        return [client._pool._idle[0]._sequence.client, random.random()]

    client.incr("n")
    said = [in_child(work) for _ in range(3)]
    names = {name for name, _ in said} | {client._pool._idle[0]._sequence.client}
    assert len(names) == 4
    assert len({spread for _, spread in said}) == 3, "their pauses differ"
    assert client.incr("n").value == 62


def test_a_fork_while_other_threads_use_the_client(client: Client) -> None:
    stopping = threading.Event()

    def use() -> None:
        while not stopping.is_set():
            client.get("k")

    client.put("k", b"v")
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            # as many calls at a time as connections, whatever was under way in the parent
            assert in_child(lambda: [client.get("k").version for _ in range(20)]) == [1] * 20
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


class InChildError(Exception):
    """Ends a call that a fork has interrupted, in the child."""


def test_a_call_that_a_fork_interrupts_leaves_the_child_no_connection_of_the_parent(
    daemon: Daemon, client: Client
) -> None:
    client.put("k", b"v")
    children = []

    def fork(*_: object) -> None:
        daemon.signal(signal.SIGCONT)
        if pid := os.fork():
            children.append(pid)
            return
        client.get("k")
        raise InChildError

    def interrupt() -> None:
        wait_until(lambda: not client._pool._idle)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, fork)
    thread = threading.Thread(target=interrupt)
    daemon.signal(signal.SIGSTOP)
    thread.start()
    try:
        assert client.get("k").value == b"v"
    except InChildError:
        is_usable = False
        try:
            is_usable = [client.get("k", timeout=5).value for _ in range(2)] == [b"v"] * 2
        finally:
            os._exit(0 if is_usable else 1)
    finally:
        signal.signal(signal.SIGUSR1, before)
        daemon.signal(signal.SIGCONT)
    thread.join()
    [child] = children
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        ended.extend([os.waitstatus_to_exitcode(status)] if pid else [])
        return bool(ended)

    try:
        wait_until(has_ended, timeout=PATIENCE_SECONDS)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert ended == [0]


def test_a_worker_of_multiprocessing_inherits_a_client(client: Client) -> None:
    client.put("k", b"v")
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(client.get("k").value))
    process.start()
    assert queue.get() == b"v"
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0


def test_a_program_that_forks_inside_with_ends_in_both_processes(daemon: Daemon) -> None:
    """The whole interpreter ends in the child, too: what was inherited must not hold it up."""
    program = f"""
import asyncio, os, sys
from kvstore_client import AsyncClient, Client, Subscription
async def use():
    async with AsyncClient({daemon.requests!r}) as client:
        await client.get("k", None)
with Client({daemon.requests!r}) as client, Subscription({daemon.requests!r}, {daemon.changes!r}) as changes:
    client.put("k", "v")
    next(changes)
    child = os.fork()
    assert client.get("k").value == b"v"
    if child:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("child", status)
    asyncio.run(use())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("child 0\n", "", 0)


def test_a_subscription_goes_on_on_both_sides_of_a_fork(daemon: Daemon, client: Client) -> None:
    def take(number: int) -> list[str]:
        events: list[str] = []
        while len(events) < number:
            item = subscription.next(PATIENCE_SECONDS)
            assert item is not None
            if isinstance(item, Event):
                events.append(item.key)
        return events

    with Subscription(daemon.requests, daemon.changes) as subscription:
        assert isinstance(next(subscription), Sync)
        client.put("a", b"")
        assert take(1) == ["a"]
        client.put("b", b"")
        reading, writing = os.pipe()

        def work() -> list[str]:
            first = take(1)
            os.write(writing, b".")
            return [*first, *take(1)]

        said: list[Any] = []
        thread = threading.Thread(target=lambda: (os.read(reading, 1), client.put("c", b"")))
        thread.start()
        said.append(in_child(work))
        thread.join()
        assert said == [["b", "c"]]
        assert take(2) == ["b", "c"]


def test_an_asyncio_client_in_a_forked_process_leaves_the_parents_loop_alone(daemon: Daemon) -> None:
    async def parent() -> None:
        async with (
            AsyncClient(daemon.requests, timeout=PATIENCE_SECONDS) as client,
            AsyncSubscription(daemon.requests, daemon.changes) as subscription,
        ):
            await client.put("k", b"1")
            assert isinstance(await subscription.next(), Sync)

            async def child() -> None:
                await client.put("k", b"2")
                event = await subscription.next()
                assert isinstance(event, Event)
                client.close()
                subscription.close()

            assert in_child(lambda: asyncio.run(child())) is None
            assert (await client.get("k")).value == b"2"
            assert isinstance(await subscription.next(), Event)

    asyncio.run(parent())


# ── several at once, and too late ────────────────────────────────────────────────────────────────


def use_until_closed(client: Client, failures: list[str]) -> None:
    try:
        while True:
            client.get("k", None)
    except RuntimeError as failure:
        failures.append(str(failure))


@pytest.mark.parametrize("attempt", range(5))
def test_a_client_may_be_closed_while_threads_use_it(shared_daemon: Daemon, attempt: int) -> None:
    client = Client(shared_daemon.requests, timeout=PATIENCE_SECONDS)
    failures: list[str] = []
    threads = [threading.Thread(target=use_until_closed, args=(client, failures)) for _ in range(4)]
    for thread in threads:
        thread.start()
    client.get("k", None)
    client.close()
    for thread in threads:
        thread.join()
    assert failures == ["the client is closed"] * 4
    assert client._pool._context.closed


def test_a_subscription_in_use_says_so_to_another_thread(daemon: Daemon, client: Client) -> None:
    with Subscription(daemon.requests, daemon.changes) as subscription:
        next(subscription)
        got: list[object] = []
        thread = threading.Thread(target=lambda: got.append(subscription.next()))
        thread.start()
        while not subscription._use.locked():
            thread.join(0.01)
        for call in (subscription.next, subscription.next_batch, subscription.close):
            with pytest.raises(RuntimeError, match="used by one thread or task at a time"):
                call()
        client.put("k", b"v")
        thread.join()
        assert isinstance(got[0], Event)
    with pytest.raises(RuntimeError, match="the subscription is closed"):
        subscription.next()


def test_an_asyncio_subscription_in_use_says_so_to_another_task(daemon: Daemon) -> None:
    async def use() -> None:
        async with AsyncSubscription(daemon.requests, daemon.changes) as subscription:
            await subscription.next()
            task = asyncio.create_task(subscription.next())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="used by one thread or task at a time"):
                await subscription.next()
            task.cancel()
            await asyncio.wait([task])
        with pytest.raises(RuntimeError, match="the subscription is closed"):
            await subscription.next()

    asyncio.run(use())


def test_an_asyncio_client_says_that_another_loop_has_it(daemon: Daemon) -> None:
    async def use() -> None:
        async with AsyncClient(daemon.requests) as client:
            await client.get("k", None)
            with pytest.raises(RuntimeError, match="another event loop that still runs"):
                await asyncio.to_thread(asyncio.run, client.get("k", None))
            await client.get("k", None)
        with pytest.raises(RuntimeError, match="the client is closed"):
            await client.get("k")

    asyncio.run(use())


def test_a_closed_client_in_a_forked_process_is_closed(daemon: Daemon) -> None:
    client = Client(daemon.requests)
    client.close()

    def work() -> str:
        with pytest.raises(RuntimeError, match="the client is closed"):
            client.get("k")
        return "refused"

    assert in_child(work) == "refused"


def test_a_forked_process_that_reaches_no_daemon_gives_up_in_time() -> None:
    with Client("tcp://127.0.0.1:9", timeout=0.2) as client:
        with pytest.raises(KvError):
            client.get("k")

        def work() -> str:
            with pytest.raises(KvError) as caught:
                client.get("k")
            return caught.value.code

        assert in_child(work) == "unavailable"
