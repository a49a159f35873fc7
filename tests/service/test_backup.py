"""Backups that are taken while everybody writes, restored and compared record by record."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from kvstore_client import (
    AsyncSubscription,
    Client,
    Cursor,
    Event,
    KvError,
    Record,
    Reset,
    Subscription,
    Sync,
)
from kvstore_daemon.storage.lmdb_store import row_format
from support.load import HttpWriter, Ledger, NativeWriter, Writer, wait_for_more, whole_log
from support.servers import Daemon, Facade, Service, clean_environment, run_kvstore, wait_until
from support.session import call
from support.streams import open_stream

BACKUPS = 3

pytestmark = pytest.mark.timeout(180)

State = dict[str, Record]


class TtlWriter(NativeWriter):
    """Writes what lives for an hour, touches it and lets it live for ever, in turn."""

    def _write(self, number: int) -> None:
        key = f"{self.name}/ttl/{number % 30}"
        self._client.put(key, b"%d" % number, ttl=3600, content_type="application/x-number")
        if number % 3 == 1:
            self._client.touch(key, ttl=7200)
        elif number % 3 == 2:
            self._client.persist(key)


def kvstore(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    done = run_kvstore(*arguments, env=clean_environment(folder), cwd=folder)
    assert done.returncode == 0, done.stderr.decode()
    return done


async def first_of_async(daemon: Daemon, since: int) -> object:
    async with AsyncSubscription(daemon.requests, daemon.changes, since=since) as subscription:
        return await subscription.next(30)


def state_at(log: list[Event], revision: int) -> State:
    """What the events up to ``revision`` add up to, expired records included until they are told of."""
    state: State = {}
    for event in log:
        if event.revision > revision:
            break
        if event.record is not None:
            state[event.key] = event.record
        else:
            del state[event.key]
    return state


def state_in(data: Path) -> State:
    """What lies in a data folder, row by row."""
    state: State = {}
    with lmdb.open(str(data / "lmdb"), readonly=True, lock=False, max_dbs=8) as env:
        table = env.open_db(b"data", create=False)
        with env.begin(db=table) as txn:
            for key, row in txn.cursor():
                *stored, author, message = row_format.decode_record(key, row)
                state[key.decode()] = Record(key.decode(), *stored, author or None, message or None)
    return state


def living(state: State, now: int) -> State:
    return {
        key: record for key, record in state.items() if record.expires_at is None or record.expires_at > now
    }


def test_a_backup_under_load_is_the_store_at_its_revision(
    service: Service, start_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    ledger = Ledger()
    writers: list[Writer] = [
        *(HttpWriter(f"http{number}", ledger, service.url) for number in range(2)),
        NativeWriter("native", ledger, service.requests),
        TtlWriter("lasting", ledger, service.requests),
    ]
    for writer in writers:
        writer.start()
    backups: list[tuple[Path, int, str]] = []
    for number in range(BACKUPS):
        wait_for_more(ledger, 150, writers)
        file = tmp_path / f"{number}.kvb"
        done = kvstore(tmp_path, "backup", str(file), "--json", "--data", str(service.daemon.data))
        said = json.loads(done.stdout)
        kvstore(tmp_path, "check", "--data", str(service.daemon.data))
        backups.append((file, said["revision"], said["epoch"]))
    for writer in writers:
        writer.finish()
    with Client(service.requests) as client:
        log = whole_log(client)
    assert len({revision for _, revision, _ in backups}) == BACKUPS
    for file, revision, epoch in backups:
        expected = state_at(log, revision)
        data = tmp_path / file.stem
        kvstore(tmp_path, "check", str(file))
        kvstore(tmp_path, "restore", str(file), "--data", str(data))
        assert state_in(data) == expected
        restored = start_daemon(data=data)
        with Client(restored.requests) as client:
            found = {record.key: record for record in client.list()}
            now = time.time_ns() // 1_000_000
            assert living(found, now) == living(expected, now)
            kept = [event for event in whole_log(client) if event.revision <= revision]
            assert kept == [event for event in log if event.revision <= revision]
            assert client.put("new", b"").revision > log[-1].revision
        cursor = Cursor(revision, epoch)
        with Subscription(restored.requests, restored.changes, since=cursor) as subscription:
            assert isinstance(subscription.next(30), Reset)
        kvstore(tmp_path, "check", "--data", str(data))
        restored.stop()


def test_a_bare_revision_from_before_a_restore_is_never_continued(
    daemon: Daemon, start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    """Twice over: the second restore is of a store that was restored."""
    facade = start_facade(daemon)
    file = str(tmp_path / "backup.kvb")
    gone: list[int] = []
    with Client(daemon.requests) as client:
        kept = client.put("job", b"kept").revision
    for _ in range(2):
        with Client(daemon.requests) as client:
            client.put("job", b"kept")
            kvstore(tmp_path, "backup", file, "--force", "--data", str(daemon.data))
            gone += [client.put("job", b"lost").revision, client.put("job", b"lost").revision]
        daemon.stop()
        kvstore(tmp_path, "restore", "--force", file, "--data", str(daemon.data))
        daemon.start()
    wait_until(lambda: call(facade.url, "GET", "/readyz").status == 200)
    with Client(daemon.requests) as client:
        head = client.put("other", b"").revision
        for since in (*gone, gone[-1] + 10**6, head - 2):
            with pytest.raises(KvError) as caught:
                client.events(since)
            assert (caught.value.code, caught.value.details["reason"]) == ("cursor_expired", "epoch")
            with Subscription(daemon.requests, daemon.changes, since=since) as subscription:
                assert isinstance(subscription.next(30), Reset)
            assert isinstance(asyncio.run(first_of_async(daemon, since)), Reset)
            arguments = ("subscribe", "--url", facade.url, "--since", str(since), "--json", "--count", "1")
            reset, *_ = kvstore(tmp_path, *arguments).stdout.splitlines()
            assert json.loads(reset)["event"] == "reset"
            waited = call(facade.url, "GET", f"/v1/kv/job?wait=600s&since={since}")
            assert (waited.status, waited.body) == (200, b"kept")
            past = call(facade.url, "GET", f"/v1/kv/job?revision={since}")
            assert (past.status, past.json["code"]) == (410, "revision_gone")
            with closing(open_stream(facade.url, f"since={since}")) as stream:
                assert stream.first().name == "reset"
        assert [event.revision for event in client.events(head - 1).events] == [head]
        assert len(client.events(kept).events) == 3
        assert call(facade.url, "GET", f"/v1/kv/job?wait=100ms&since={head}").status == 304
        assert call(facade.url, "GET", f"/v1/kv/job?revision={kept}").body == b"kept"


def test_who_follows_a_store_that_is_put_back_starts_over_and_ends_in_its_state(
    daemon: Daemon, start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    facade = start_facade(daemon)
    file = str(tmp_path / "backup.kvb")
    with Client(daemon.requests) as client:
        for number in range(10):
            client.put(f"kept/{number}", b"before")
        kvstore(tmp_path, "backup", file, "--data", str(daemon.data))
        for number in range(10):
            client.put(f"lost/{number}", b"after")
        etag = client.put("kept/0", b"after").revision
    with (
        Subscription(daemon.requests, daemon.changes, snapshot=True) as subscription,
        closing(open_stream(facade.url, "snapshot=1")) as stream,
    ):
        native, streamed = follow_natively(subscription, "kept/0"), iter(stream)
        while next(streamed).name != "sync":
            pass
        assert len(native) == 20
        daemon.stop()
        kvstore(tmp_path, "restore", "--force", file, "--data", str(daemon.data))
        daemon.start()
        with Client(daemon.requests) as client:
            # revisions that were given out in the lost time mean nothing now, and none is used again
            assert client.put("last", b"").revision > etag
            present = {record.key: record.value for record in client.list()}
        assert len(present) == 11
        assert follow_natively(subscription, "last") == present
        names, state = [], {}
        while "last" not in state:
            event = next(streamed)
            names.append(event.name)
            if event.name == "reset":
                state = {}
            elif event.name == "put":
                state[event.json["key"]] = event.json["value"].encode()
        assert "reset" in names
        assert state == present


def follow_natively(subscription: Subscription, last: str) -> dict[str, bytes | None]:
    """The state that a subscription with a snapshot tells of, once it is in sync and holds ``last``."""
    state: dict[str, bytes | None] = {}
    is_complete = False
    while not (is_complete and last in state):
        item = subscription.next(30)
        assert item is not None
        if isinstance(item, Reset):
            state, is_complete = {}, False
        elif isinstance(item, Sync):
            is_complete = True
        elif isinstance(item, Event) and item.record is not None:
            state[item.key] = item.record.value
    return state
