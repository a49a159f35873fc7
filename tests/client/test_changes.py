"""One level of keys, changes in pages, and waiting for a condition."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

from kvstore_client import (
    AsyncClient,
    BadRequest,
    Client,
    ConditionFailed,
    Cursor,
    CursorExpired,
    InvalidCursor,
    InvalidKey,
    Record,
    TimedOut,
    commands,
)
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, StartDaemon, wait_until


def client_of(daemon: Daemon) -> Client:
    return Client(daemon.requests, changes=daemon.changes, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def shared(shared_daemon: Daemon) -> Iterator[Client]:
    with client_of(shared_daemon) as client:
        yield client


@pytest.fixture
def store(shared: Client) -> Client:
    for prefix in ("a", "b", "c", "jobs/"):
        shared.delete_prefix(prefix)
    return shared


# ── lists ────────────────────────────────────────────────────────────────────────────────────────


def test_one_level_of_keys(store: Client) -> None:
    store.batch([commands.put(key, key) for key in ("a/1", "a/2/x", "a/2/y", "a/3", "a/4/z", "a/é/1", "b")])
    page = store.level_page(prefix="a/", counts=True)
    assert [record.key for record in page.records] == ["a/1", "a/3"]
    assert page.records[0].text == "a/1"
    assert (page.prefixes, page.counts, page.cursor) == (["a/2/", "a/4/", "a/é/"], [2, 1, 1], None)
    names = ["a/1", "a/2/", "a/3", "a/4/", "a/é/"]
    assert list(store.ls("a/")) == names
    assert list(store.ls("a/", reverse=True)) == names[::-1]
    assert list(store.ls()) == ["a/", "b"]
    assert list(store.ls(delimiter="2/")) == ["a/1", "a/2/", "a/3", "a/4/z", "a/é/1", "b"]
    found, cursor = [], None
    while True:
        page = store.level_page(prefix="a/", limit=2, cursor=cursor, keys_only=True)
        found += sorted([*page.prefixes, *(record.key for record in page.records)])
        assert not page.counts
        if (cursor := page.cursor) is None:
            break
    assert found == names


def test_the_last_come_first(store: Client) -> None:
    store.batch([commands.put(f"a/{number:04}", "v") for number in range(1500)])
    assert [record.key for record in islice(store.list(prefix="a/", reverse=True), 3)] == [
        "a/1499",
        "a/1498",
        "a/1497",
    ]
    assert [record.key for record in store.list(reverse=True, keys_only=True, start="a/", end="a/1000")] == [
        f"a/{number:04}" for number in reversed(range(1000))
    ]
    page = store.list_page(prefix="a/", reverse=True, limit=2)
    with pytest.raises(InvalidCursor):
        store.list_page(prefix="a/", cursor=page.cursor)


def test_a_read_may_ask_for_a_revision_that_it_must_have(store: Client) -> None:
    at = store.put("a", "1").revision
    assert store.get("a", min_revision=at).revision == at
    assert [record.key for record in store.list(prefix="a", min_revision=at)] == ["a"]
    for read in (
        lambda: store.get("a", min_revision=at + 1),
        lambda: store.get("a", None, min_revision=at + 1),
        lambda: list(store.list(min_revision=at + 1)),
        lambda: store.level_page(min_revision=at + 1),
        lambda: store.history("a", min_revision=at + 1),
    ):
        with pytest.raises(ConditionFailed) as early:
            read()
        assert early.value.details["revision"] == at


# ── changes in pages ─────────────────────────────────────────────────────────────────────────────


def test_changes_come_in_pages_that_go_on_from_each_other(store: Client) -> None:
    begin = store.changes()
    assert not begin.events
    assert begin.cursor.revision == begin.head
    assert not begin.more
    for number in range(5):
        store.batch([commands.put("a/1", str(number)), commands.put("b", str(number))], atomic=True)
    store.delete("a/1")
    seen, cursor, pages = [], begin.cursor, 0
    while True:
        page = store.changes(cursor, prefixes=["a/"], limit=2)
        seen += [(event.op, event.key) for event in page.events]
        cursor, pages = page.cursor, pages + 1
        if not page.more:
            break
    assert seen == [("put", "a/1")] * 5 + [("delete", "a/1")]
    assert pages >= 3
    again = store.changes(begin.cursor, prefixes=["a/"], limit=2)
    assert again.events == store.changes(str(begin.cursor), prefixes=["a/"], limit=2).events
    (first, *_) = store.changes(begin.cursor.revision, keys=["b"], ops=["put"], values=False).events
    assert first.record is not None
    assert (first.key, first.record.value) == ("b", None)
    (last,) = store.changes(begin.cursor, keys=["a/1"], ops=["delete"], previous=True).events
    assert last.previous is not None
    assert last.previous.text == "4"


def test_changes_since_a_time(store: Client) -> None:
    store.put("a", "before")
    now = int(time.time() * 1000)
    wait_until(lambda: time.time() * 1000 > now + 1, timeout=PATIENCE_SECONDS)
    store.put("a", "after")
    assert [event.record.text for event in store.changes(since_time=now, keys=["a"]).events] == ["after"]  # type: ignore[union-attr]
    assert [event.record.text for event in store.events(since_time=now).events] == ["after"]  # type: ignore[union-attr]
    with pytest.raises(BadRequest):
        store.events()
    with pytest.raises(BadRequest):
        store.events(1, since_time=now)


def test_an_empty_page_waits_for_the_first_change_that_is_wanted(store: Client) -> None:
    begin = store.changes()
    assert not store.changes(begin.cursor, wait=0.05).events
    store.put("b", "not wanted")
    later = store.changes(begin.cursor, prefixes=["a/"], wait=0.05)
    assert not later.events
    assert later.cursor.revision > begin.cursor.revision, "the next page would look at the same again"

    def write() -> None:
        store.put("b", "not wanted")
        store.batch([commands.put("a/1", "1"), commands.put("a/2", "2")], atomic=True)

    writer = threading.Timer(0.2, write)
    writer.start()
    page = store.changes(later.cursor, prefixes=["a/"], wait=PATIENCE_SECONDS)
    writer.join()
    assert [event.key for event in page.events] == ["a/1", "a/2"]
    # what is there already is not waited for
    assert store.changes(later.cursor, prefixes=["a/"], wait=PATIENCE_SECONDS).events == page.events


def test_a_cursor_that_cannot_be_continued_is_refused(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(retain_events=2)
    with client_of(daemon) as store:
        cursor = store.changes().cursor
        for number in range(200):
            store.put("a", str(number))
        wait_until(lambda: store.status()["floor"] > 1, timeout=PATIENCE_SECONDS)
        for since in (cursor, Cursor(1, "0" * 16)):
            with pytest.raises(CursorExpired):
                store.changes(since, wait=PATIENCE_SECONDS)
        with pytest.raises(CursorExpired):
            store.changes(since_time=1)


# ── waiting for a condition ──────────────────────────────────────────────────────────────────────


def test_what_holds_already_is_not_waited_for(store: Client) -> None:
    written = store.put("a", '{"state": "done", "n": 3}')
    for until in ("exists", '/state == "done"', "/n >= 3", '"" exists'):
        record = store.wait("a", until, timeout=PATIENCE_SECONDS)
        assert isinstance(record, Record)
        assert record.revision == written.revision
    assert store.wait("a", timeout=PATIENCE_SECONDS) == store.get("a")
    assert store.wait("b", "gone", timeout=PATIENCE_SECONDS) is None
    for key, until in (("a", "gone"), ("a", "/n > 3"), ("b", "exists"), ("b", "equals x")):
        with pytest.raises(TimedOut, match="did not fulfil") as late:
            store.wait(key, until, timeout=0.05)
        assert late.value.details["revision"] == written.revision


@pytest.mark.parametrize(
    ("until", "write"),
    [
        ("exists", lambda store: store.put("b", "")),
        ("gone", lambda store: store.delete("a")),
        ("equals 7", lambda store: store.incr("a", 6)),
        ("== 7", lambda store: store.put("a", " 7.0")),
    ],
)
def test_it_is_woken_by_the_change(store: Client, until: str, write: Callable[[Client], Any]) -> None:
    store.put("a", "1")
    key = "b" if until == "exists" else "a"
    store.put("ab", "another key that begins like it")
    writer = threading.Timer(0.2, write, [store])
    writer.start()
    record = store.wait(key, until, timeout=PATIENCE_SECONDS)
    writer.join()
    assert record == store.get(key, None)


def test_a_state_that_lasts_for_one_revision_is_not_missed(store: Client) -> None:
    """Each is replaced at once by the next one, so one who asks now and then sees hardly any."""
    store.put("a", "0")
    found: list[str] = []

    def wait(number: int) -> None:
        record = store.wait("a", f"equals {number}", timeout=PATIENCE_SECONDS)
        assert record is not None
        found.append(record.text)

    waiters = [threading.Thread(target=wait, args=[number]) for number in (100, 250, 399)]
    for waiter in waiters:
        waiter.start()
    for number in range(400):
        store.batch([commands.put("a", str(number)), commands.put("b", str(number))], atomic=True)
    # for the waiters that began after it had passed
    while any(waiter.is_alive() for waiter in waiters):
        store.batch([commands.put("a", str(number)) for number in (100, 250, 399)])
    for waiter in waiters:
        waiter.join()
    assert sorted(found) == ["100", "250", "399"]


def test_what_cannot_be_waited_for_is_refused(store: Client) -> None:
    with pytest.raises(BadRequest, match="POINTER"):
        store.wait("a", "done?")
    with pytest.raises(InvalidKey):
        store.wait("", timeout=1)
    with pytest.raises(BadRequest):
        store.wait("a", timeout=-1)


def test_waiting_goes_on_through_the_death_of_the_daemon(daemon: Daemon) -> None:
    with client_of(daemon) as store:
        found: list[Record | None] = []
        waiter = threading.Thread(
            target=lambda: found.append(store.wait("a", "equals x", timeout=PATIENCE_SECONDS))
        )
        waiter.start()
        store.put("a", "y")
        daemon.kill()
        daemon.start()
        # it stays so: on a busy machine the waiter may begin only now
        store.put("a", "x")
        waiter.join()
        assert found[0] is not None
        assert found[0].text == "x"


def test_the_asyncio_form_does_the_same(shared_daemon: Daemon, store: Client) -> None:
    async def main() -> None:
        async with AsyncClient(
            shared_daemon.requests, changes=shared_daemon.changes, timeout=PATIENCE_SECONDS
        ) as client:
            cursor = (await client.changes()).cursor
            waiting = asyncio.create_task(client.changes(cursor, prefixes=["a"], wait=PATIENCE_SECONDS))
            until = asyncio.create_task(client.wait("a", "equals x"))
            await client.put("b", "x")
            await client.put("a", "x")
            assert [event.key for event in (await waiting).events] == ["a"]
            record = await until
            assert record is not None
            assert record.text == "x"
            assert [name async for name in client.ls()] == ["a", "b"]

    asyncio.run(main())


def test_the_changes_are_at_the_port_above_that_of_the_requests() -> None:
    with Client("tcp://127.0.0.1:1234") as client, client._subscription() as subscription:
        assert subscription._changes == "tcp://127.0.0.1:1235"
    with Client("ipc:///run/requests") as client, pytest.raises(BadRequest, match="pass 'changes'"):
        client.wait("a")
    url = "kvstore://127.0.0.1:1?changes=77"
    with Client.from_url(url) as client, client._subscription() as subscription:
        assert subscription._changes == "tcp://127.0.0.1:77"
