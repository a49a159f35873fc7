"""The daemon is killed while it works, again and again, and every promise is checked afterwards.

``make test`` kills it a few times, ``make torture`` fifty times.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvstore_client import Client
from kvstore_core.digest import SetHash, record_hash
from support.accounts import check_log, check_state, check_watcher
from support.lengths import Survived, times
from support.load import (
    LAST_KEY,
    CommandWatcher,
    HttpWriter,
    Ledger,
    NativeWatcher,
    NativeWriter,
    PlainSubscriber,
    SseWatcher,
    Watcher,
    Writer,
    seen_event,
    wait_for_more,
    whole_log,
)
from support.servers import Service, wait_until

KILLS = times(4, full=50)

pytestmark = [pytest.mark.torture, pytest.mark.timeout(120 + 20 * KILLS)]


def test_kill_9_loses_nothing_repeats_nothing_and_reorders_nothing(
    two_workers: Service, tmp_path: Path, survived: Survived
) -> None:
    service, ledger = two_workers, Ledger()
    steady = SseWatcher("steady-sse", service.url)
    plain = PlainSubscriber(service.changes)
    watchers: list[Watcher] = [
        steady,
        SseWatcher("resuming-sse", service.url, hangs_up=True),
        NativeWatcher("subscription", service.requests, service.changes),
        CommandWatcher("command", service.url, tmp_path),
    ]
    writers: list[Writer] = [
        *(HttpWriter(f"http{number}", ledger, service.url) for number in range(4)),
        *(NativeWriter(f"native{number}", ledger, service.requests) for number in range(2)),
    ]
    for thread in (plain, *watchers, *writers):
        thread.start()
    for number in range(KILLS):
        wait_for_more(ledger, random.randrange(200, 600), writers)
        service.daemon.kill()
        service.daemon.start()
        survived(kills=1)
        print(f"kill {number + 1} of {KILLS}: {len(ledger)} writes acknowledged so far")
    wait_for_more(ledger, 200, writers)
    for writer in writers:
        writer.finish()
    with Client(service.requests) as client:
        wait_until(lambda: not client.status()["expiring_keys"], what="all keys with a TTL are gone")
        client.put(LAST_KEY, b"")
        log = list(map(seen_event, whole_log(client)))
        check_log(log, ledger)
        found = {record.key: (record.value or b"").decode() for record in client.list()}
        check_state(found, log, ledger)
        there = SetHash()
        for record in client.list():
            there.replace(b"", record_hash(record.key.encode(), record.revision, record.value or b""))
        assert client.digest_page().digest == client.status()["digest"] == there.hexdigest()
    for watcher in watchers:
        watcher.finish()
        check_watcher(watcher.name, watcher.seen, log)
    assert steady.reconnections == 0, "a stream that was open stays open while the daemon is away"
    wait_until(lambda: LAST_KEY in {seen.key for seen, _ in plain.messages[-1:]}, what="all is published")
    plain.finish()
    published = {seen for seen, _ in plain.messages}
    assert published <= set(log), "something was published that was not committed"
    print(f"{len(ledger)} writes, {ledger.increments} increments, {len(log)} events: all accounted for")
