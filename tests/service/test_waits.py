"""Who waits misses nothing while the processes are killed and stopped.

One writer counts in one key, 20 numbers in one commit, so that nearly all of them are gone before anybody can
read them. Some wait for chosen numbers, one after the other, and some for pages of changes. Each asks again
from where its last answer ended, whatever became of the requests between. The log is never trimmed here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote

import pytest

from kvstore_client import Client, commands
from kvstore_core.errors import KvError
from support.command_line import CommandLine
from support.faults import Faults
from support.lengths import SHARE, Survived, times
from support.load import Party, wait_for_more
from support.servers import Daemon, Facade, Service
from support.session import Answer, call

RUNS = times(1, full=20)
FAULTS = 10 if SHARE else 5
AT_ONCE = 20
KEY = "waits/n"

pytestmark = [pytest.mark.torture, pytest.mark.timeout(300)]


class CountingWriter(Party):
    """Writes 1, 2, 3, … until it is told to stop. A number whose write may have been applied is not written
    again: it may be missing, or late, and nobody waits for it."""

    def __init__(self, requests: str) -> None:
        super().__init__("writer")
        self._client = Client(requests, timeout=2)
        self.written: dict[int, int] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self.written)

    def work(self) -> None:
        while not self.stopping.wait(0.01):  # others need the machine too
            numbers = range(self._next, self._next + AT_ONCE)
            self._next += AT_ONCE
            try:
                puts = [commands.put(KEY, json.dumps({"n": number})) for number in numbers]
                results = self._client.batch(puts)
            except KvError as error:
                if not error.row.is_temporary:
                    raise
                continue
            for number, result in zip(numbers, results, strict=True):
                self.written[number] = result.revision

    def close(self) -> None:
        self._client.close()


def answered(url: str, address: str) -> Answer | None:
    """The answer to a request that waits; None if there was none for the fault's sake."""
    try:
        answer = call(url, "GET", address)
    except (OSError, HTTPException):
        return None
    assert answer.status in (200, 503, 504), answer
    return answer if answer.status == 200 or "cursor" in answer.json else None


class NumberWaiter(Party):
    """Waits for numbers that were written, each some way after the one before."""

    def __init__(self, url: str, writer: CountingWriter, chance: random.Random) -> None:
        super().__init__("waiter")
        self.url, self._writer, self._chance = url, writer, chance
        self.found: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.found)

    def work(self) -> None:
        number, since = 0, "0"
        while not self.stopping.is_set():
            # of what is written now or next: which of the two it turns out to be is of no matter
            later = [one for one in list(self._writer.written) if one > number]
            if not later:
                self.stopping.wait(0.01)
                continue
            number = self._chance.choice(later[:200])
            since = self._wait_for(number, since)

    def _wait_for(self, number: int, since: str) -> str:
        until = quote(f"/n == {number}")
        while not self.stopping.is_set():
            answer = answered(self.url, f"/v1/kv/{KEY}?wait=3s&until={until}&since={since}")
            if answer is None:
                continue
            if answer.status != 200:
                since = answer.json["cursor"]
                continue
            assert answer.json == {"n": number}
            since = answer.headers["x-kvstore-revision"]
            self.found[number] = int(since)
            break
        return since


class PageReader(Party):
    """Reads the changes in pages, and waits for each."""

    def __init__(self, url: str, limit: int) -> None:
        super().__init__(f"pages of {limit}")
        self.url, self._limit = url, limit
        self.seen: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.seen)

    def work(self) -> None:
        cursor = "0"
        while not self.stopping.is_set():
            address = f"/v1/changes?prefix=waits/&wait=3s&since={cursor}&limit={self._limit}"
            answer = answered(self.url, address)
            if answer is None or answer.status != 200:
                continue
            page = answer.json
            self.seen += [(json.loads(event["value"])["n"], event["revision"]) for event in page["events"]]
            cursor = page["cursor"]


@pytest.mark.parametrize("number", range(RUNS))
def test_nobody_who_waits_misses_anything(
    number: int,
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    tmp_path: Path,
    survived: Survived,
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"run {number + 1} of {RUNS}: seed {seed}")
    daemon = start_daemon()
    service = Service(daemon, start_facade(daemon, workers=2))
    writer = CountingWriter(daemon.requests)
    waiters = [NumberWaiter(service.url, writer, random.Random(seed + each)) for each in range(4)]
    readers = [PageReader(service.url, limit) for limit in (30, 1000)]
    parties: list[Party] = [writer, *waiters, *readers]
    faults = Faults(service, random.Random(seed), survived)
    shell = CommandLine(tmp_path, service.url)
    waiting = shell.start("wait", KEY, "--until", "/n < 0")
    for party in parties:
        party.start()
    for each in range(FAULTS):
        faults.kinds[each % len(faults.kinds)]()
        wait_for_more(waiters[each % 4], 3, parties)
    with Client(daemon.requests) as client:
        client.batch([commands.put(KEY, json.dumps({"n": last})) for last in (-1, 0)])
    assert waiting.wait() == 0
    assert json.loads(waiting.stdout) == {"n": -1}
    writer.finish()
    last = max(writer.written.values())
    for reader in readers:
        wait_for_more(reader, 0, parties)
    for reader in readers:
        while not reader.seen or reader.seen[-1][1] < last:
            wait_for_more(reader, 1, parties)
        reader.finish()
        revisions = [revision for _, revision in reader.seen]
        assert revisions == sorted(revisions), f"seed {seed}"
        assert len(set(reader.seen)) == len(reader.seen), f"seed {seed}: nothing twice"
        assert set(writer.written.items()) <= set(reader.seen), f"seed {seed}: nothing missed"
    for waiter in waiters:
        waiter.finish()
        for found, revision in waiter.found.items():
            assert writer.written[found] == revision, f"seed {seed}"
    survived(moments_found=sum(map(len, waiters)), changes_read=sum(map(len, readers)))
