"""Load by client libraries: processes that begin together and count what they did until the end.

A piece of work sets itself up, calls ``start``, which waits until all the others are ready and gives
the time at which to stop, and works until then. Processes are forked, so modules that are slow to
import are imported before, in ``prepare``; sockets and threads belong to the child alone.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from kvstore_bench.processes import Process, Usage
from kvstore_bench.results import Load
from kvstore_bench.workload import key

START_SECONDS = 60.0


class Span(NamedTuple):
    """When the work began and when no further operation is begun, by the monotonic clock."""

    began: float
    end: float


Start = Callable[[], Span]
"""Waits for everybody."""


class Tally(NamedTuple):
    """What one process did, in so many seconds until its last operation was done; ``taken`` holds
    the microseconds of each operation where they were timed."""

    operations: int
    seconds: float
    taken: Sequence[float] = ()


def tally(operations: int, span: Span, taken: Sequence[float] = ()) -> Tally:
    """The tally of operations the last of which is done now."""
    return Tally(operations, time.monotonic() - span.began, taken)


Work = Callable[[int, Start], Tally]


class Done(NamedTuple):
    """What several processes did; ``tallies`` in the order of the works."""

    tallies: list[Tally]
    server_cpu: float
    load_cpu: float

    def load(self) -> Load:
        """Of all together, at the rate that theirs add up to: each stops at an end of its own."""
        operations = sum(each.operations for each in self.tallies)
        rate = sum(each.operations / each.seconds for each in self.tallies)
        return Load(operations, operations / rate if rate else 0.0, self.server_cpu, self.load_cpu)


_FORK = multiprocessing.get_context("fork")


def run(works: Sequence[Work], seconds: float, *servers: Process) -> Done:
    """Run each work in a process of its own for ``seconds``; raises RuntimeError if one fails."""
    barrier = _FORK.Barrier(len(works) + 1)
    ends: list[Connection] = []
    children = []
    for number, work in enumerate(works):
        mine, theirs = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_run_one, args=(work, number, seconds, barrier, theirs), daemon=True)
        child.start()
        theirs.close()
        ends.append(mine)
        children.append(child)
    try:
        _wait_for_start(barrier, ends)
        usage = Usage(*servers)
        # Each is asked for the first time when its time is over, so the CPU of the servers is read once
        # the last of them has said what it did.
        found = [_received(end) for end in ends]
        server_cpu = usage.seconds()
    finally:
        for child in children:
            child.kill()
            child.join()
    return Done([each for each, _ in found], server_cpu, sum(cpu for _, cpu in found))


def _wait_for_start(barrier: Any, ends: Sequence[Connection]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while barrier.n_waiting < len(ends):
        for end in wait(ends, 0.005):
            _received(end)  # type: ignore[arg-type]  # nothing is sent before the start but a failure
        if time.monotonic() > deadline:
            raise RuntimeError("the clients did not get ready")
    barrier.wait()


def _received(end: Connection) -> tuple[Tally, float]:
    found = end.recv()
    if isinstance(found, str):
        raise RuntimeError(f"a client failed: {found}")
    return found  # type: ignore[no-any-return]


def _run_one(work: Work, number: int, seconds: float, barrier: Any, end: Connection) -> None:
    used = 0.0

    def start() -> Span:
        nonlocal used
        barrier.wait(START_SECONDS)
        used, now = _cpu(), time.monotonic()
        return Span(now, now + seconds)

    try:
        found = work(number, start)
        end.send((found, _cpu() - used))
    except BaseException:
        end.send(traceback.format_exc())


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ── the loops ────────────────────────────────────────────────────────────────────────────────────

Operation = Callable[[str], object]
AsyncOperation = Callable[[str], Awaitable[object]]

OWN_KEYS = 300
"""Each client has keys of its own, as many as 32 of them find among those that are stored."""


def _own(client: int) -> list[str]:
    return [key(client * OWN_KEYS + number) for number in range(OWN_KEYS)]


def blocking(connect: Callable[[], AbstractContextManager[Operation]], *, timed: bool = False) -> Work:
    """One client that does one operation after another. ``connect`` gives the operation on a key."""

    def work(number: int, start: Start) -> Tally:
        names, taken, done = _own(number), [], 0
        with connect() as operation:
            operation(names[0])
            span = start()
            while (before := time.monotonic()) < span.end:
                operation(names[done % OWN_KEYS])
                done += 1
                if timed:
                    taken.append(1e6 * (time.monotonic() - before))
            return tally(done, span, taken)

    return work


def concurrent(
    connect: Callable[[], AbstractAsyncContextManager[AsyncOperation]], clients: int, *, shared: bool = False
) -> Work:
    """Clients in one event loop, each doing one operation after another; ``shared``: one client for
    so many tasks."""

    def work(number: int, start: Start) -> Tally:
        numbers = range(number * clients, (number + 1) * clients)
        return asyncio.run(_repeat_all(connect, numbers, start, shared=shared))

    return work


async def _repeat_all(
    connect: Callable[[], AbstractAsyncContextManager[AsyncOperation]],
    numbers: range,
    start: Start,
    *,
    shared: bool,
) -> Tally:
    async with AsyncExitStack() as stack:
        if shared:
            operations = [await stack.enter_async_context(connect())] * len(numbers)
        else:
            operations = [await stack.enter_async_context(connect()) for _ in numbers]
        await asyncio.gather(*(operation(key(0)) for operation in operations))
        span = start()
        loops = [_repeat(*pair, span.end) for pair in zip(operations, numbers, strict=True)]
        return tally(sum(await asyncio.gather(*loops)), span)


async def _repeat(operation: AsyncOperation, client: int, end: float) -> int:
    names, done = _own(client), 0
    while time.monotonic() < end:
        await operation(names[done % OWN_KEYS])
        done += 1
    return done
