"""Many writes, in as few requests as the limits of a request allow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kvstore_client import Client, RequestTooLarge, ValueTooLarge, commands
from kvstore_core.limits import MAX_PAGE, MAX_PAGE_BYTES

Write = commands.Command[Any]


def run_all(client: Client, writes: Iterable[Write]) -> Iterator[Any]:
    """Run ``writes`` in their order and give their results, in which the KvError of a failed one is its
    result. A request has up to 1,000, and 4 MiB of values, or less where the daemon takes less. Raises the
    KvError of a request that failed as a whole."""
    for group in _groups(writes):
        yield from _run(client, group)


def _run(client: Client, group: list[Write]) -> list[Any]:
    try:
        return client.batch(group)
    except (RequestTooLarge, ValueTooLarge) as error:  # nothing was done, for one of them
        half = len(group) // 2
        return [*_run(client, group[:half]), *_run(client, group[half:])] if half else [error]


def _groups(writes: Iterable[Write]) -> Iterator[list[Write]]:
    group: list[Write] = []
    size = 0
    for write in writes:
        added = len(write.value or b"")
        if group and (len(group) == MAX_PAGE or size + added > MAX_PAGE_BYTES):
            yield group
            group, size = [], 0
        group.append(write)
        size += added
    if group:
        yield group
