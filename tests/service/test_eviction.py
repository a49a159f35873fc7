"""A cache in a real service that is killed while it evicts: it keeps to its room, and everybody sees the same
records go, once each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstore_client import Client, Mirror, ValueTooLarge
from kvstore_core.digest import SetHash, record_hash
from support.accounts import check_log, check_watcher
from support.command_line import CommandLine
from support.lengths import Survived, times
from support.load import (
    LAST_KEY,
    Acknowledged,
    HttpWriter,
    Ledger,
    NativeWriter,
    SseWatcher,
    Writer,
    seen_event,
    wait_for_more,
    whole_log,
)
from support.metrics import scrape
from support.servers import Daemon, Facade, Service
from support.session import Session

KILLS = times(2, full=30)
LIMIT = 30_000

pytestmark = [
    pytest.mark.torture,
    pytest.mark.timeout(120 + 20 * KILLS),
    pytest.mark.lmdb_only("etcd evicts nothing"),
]


class CacheWriter(Writer):
    """Puts entries of a cache, as they come."""

    def _write(self, number: int) -> None:
        key, value = f"cache/{self.name}/{number % 700}", f"{self.name} wrote {number} " + "x" * 100
        revision = self.put(key, value, 3600 if number % 3 else None)
        self._ledger.note(Acknowledged(revision, "put", key, value))


class HttpCacheWriter(CacheWriter, HttpWriter):
    pass


class NativeCacheWriter(CacheWriter, NativeWriter):
    pass


@pytest.fixture
def service(start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]) -> Service:
    daemon = start_daemon(evict_prefix="cache/", evict_bytes=LIMIT)
    return Service(daemon, start_facade(daemon))


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.requests) as client:
        yield client


def test_a_cache_whose_daemon_is_killed_keeps_to_its_room_and_all_see_the_same_records_go(
    service: Service, client: Client, survived: Survived
) -> None:
    client.put("kept", b"x" * 10_000)
    ledger, watcher = Ledger(), SseWatcher("watcher", service.url)
    writers: list[Writer] = [
        HttpCacheWriter("http", ledger, service.url),
        NativeCacheWriter("native", ledger, service.requests),
    ]
    with Mirror(service.requests, service.changes, prefixes=["cache/"], timeout=60) as mirror:
        for thread in (watcher, *writers):
            thread.start()
        for _ in range(KILLS):
            wait_for_more(ledger, random.randrange(300, 500), writers)
            service.daemon.kill()
            service.daemon.start()
            survived(kills=1)
            assert client.status()["eviction"]["bytes"] <= LIMIT
        wait_for_more(ledger, 300, writers)
        for writer in writers:
            writer.finish()
        client.put(LAST_KEY, b"")
        mirror.verify()
        present = {record.key: record for record in client.list()}
        assert dict(mirror) == {key: record for key, record in present.items() if key.startswith("cache/")}
    log = list(map(seen_event, whole_log(client)))
    check_log([event for event in log if event.key.startswith("cache/")], ledger)
    watcher.finish()
    check_watcher(watcher.name, watcher.seen, log)
    left: dict[str, str | None] = {}
    for event in log:
        if event.op == "put":
            left.pop(event.key, None)
            left[event.key] = event.value
        else:
            assert event.op == "expire"
            # it is the one that was not written for longest
            assert event.key == next(key for key in left if key.startswith("cache/"))
            del left[event.key]
    assert left == {key: (record.value or b"").decode() for key, record in present.items()}
    found = SetHash()
    for key, record in present.items():
        found.replace(b"", record_hash(key.encode(), record.revision, record.value or b""))
    assert client.status()["digest"] == found.hexdigest()


def test_every_surface_says_what_the_cache_takes_and_what_was_evicted(
    service: Service, client: Client, tmp_path: Path
) -> None:
    for number in range(100):
        client.put(f"cache/{number:03}", b"x" * 400)
    eviction = client.status()["eviction"]
    assert (eviction["prefixes"], eviction["max_bytes"]) == (["cache/"], LIMIT)
    assert eviction["records"] + eviction["evicted_records"] == 100
    assert LIMIT - 600 < eviction["bytes"] <= LIMIT
    seen = scrape(service.url)
    assert seen.value("kvstore_evictable_records") == eviction["records"]
    assert seen.value("kvstore_evictable_bytes") == eviction["bytes"]
    assert seen.value("kvstore_evictable_max_bytes") == LIMIT
    assert seen.value("kvstore_evictions_total") == eviction["evicted_records"]
    assert seen.value("kvstore_evicted_bytes_total") == eviction["evicted_bytes"]
    kvstore = CommandLine(tmp_path, service.url)
    assert b"eviction.prefixes\tcache/\n" in kvstore.out("status")
    assert f"{eviction['records']} records below cache/, " in kvstore.on_terminal("status")
    session = Session(service.url)
    gone = session.get("/v1/history/cache/000").json["events"][0]
    assert (gone["op"], gone["previous"]["value"]) == ("expire", "x" * 400)
    refused = session.put("/v1/kv/cache/large", b"x" * LIMIT)
    session.close()
    assert (refused.status, refused.json["code"], refused.json["limit"]) == (413, "value_too_large", LIMIT)
    with pytest.raises(ValueTooLarge, match="--evict-bytes"):
        client.put("cache/large", b"x" * LIMIT)
