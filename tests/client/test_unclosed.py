"""Programs that close nothing: they end, and so does what they leave to the garbage collector."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.servers import Daemon

pytestmark = pytest.mark.slow

PROGRAM = """
import asyncio, gc, sys, threading
from kvstore_client import AsyncClient, Client, Mirror, Subscription

requests, changes = sys.argv[1:]

def client():
    store = Client(requests)
    store.put("a", "1")
    return store

def subscription():
    events = Subscription(requests, changes)
    events.next(20)
    return events

def mirror():
    return Mirror(requests, changes)

def of_asyncio():
    async def ask():
        store = AsyncClient(requests)
        await store.put("a", "1")
        return store

    return asyncio.run(ask())

def follow():
    with Subscription(requests, changes) as events:
        yield events.next(20)

def half_a_generator():
    left = follow()
    next(left)
    return left

def leave(make):
    circle = [make()]
    circle.append(circle)

def follow_for_ever(begun):
    for _ in Subscription(requests, changes, heartbeats=True):
        begun.set()
"""

COLLECTED = """
for make in client, subscription, mirror, of_asyncio, half_a_generator:
    leave(make)
    gc.collect()
    print(make.__name__, flush=True)
thread = threading.Thread(target=leave, args=[client])
thread.start()
thread.join()
gc.collect()
print("thread", flush=True)
"""

LEFT = """
at_the_end = client(), subscription(), mirror().__enter__(), half_a_generator()
begun = threading.Event()
threading.Thread(target=follow_for_ever, args=[begun], daemon=True).start()
begun.wait()
leave(client)
leave(subscription)
print("end", flush=True)
"""


def run(daemon: Daemon, end: str) -> list[str]:
    """What a program printed, which ended by itself without an error."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + end, daemon.requests, daemon.changes],
        env={**os.environ, "PYTHONWARNINGS": "ignore::ResourceWarning"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        try:
            said, _ = program.communicate(timeout=50)
        except subprocess.TimeoutExpired:
            program.kill()
            said, _ = program.communicate()
            pytest.fail(f"it hangs after {said.split()}")
    assert program.returncode == 0
    return said.split()


def test_what_is_collected_in_a_cycle_does_not_hang_the_program(shared_daemon: Daemon) -> None:
    assert run(shared_daemon, COLLECTED) == [
        "client",
        "subscription",
        "mirror",
        "of_asyncio",
        "half_a_generator",
        "thread",
    ]


def test_a_program_ends_whatever_it_has_left_open(shared_daemon: Daemon) -> None:
    assert run(shared_daemon, LEFT) == ["end"]
