"""Stale reads of the clients, and what goes on while a daemon cannot hear what others have written. The
engine is LMDB's, which the test lets lag."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvstore_client import AsyncClient, Client, Event, KvError, Subscription, Sync, commands
from support.lagging import NO_QUORUM, LaggingDaemon, StartLagging


@pytest.fixture
def daemon(start_lagging: StartLagging) -> LaggingDaemon:
    return start_lagging()


@pytest.fixture
def client(daemon: LaggingDaemon) -> Iterator[Client]:
    with Client(daemon.requests) as client:
        yield client


READS: dict[str, Callable[..., Any]] = {
    "get": lambda client, **more: client.get("k", **more),
    "get_many": lambda client, **more: client.get_many(["k", "m"], **more),
    "list_page": lambda client, **more: client.list_page(prefix="k", **more),
    "count": lambda client, **more: client.count(prefix="k", **more),
    "events": lambda client, **more: client.events(0, **more),
    "history": lambda client, **more: client.history("k", **more),
    "get_at": lambda client, **more: client.get_at("k", 1, **more),
}


def test_each_read_has_a_stale_form(daemon: LaggingDaemon, client: Client) -> None:
    client.put("k", b"v")
    current = {name: read(client) for name, read in READS.items()}
    records = list(client.list())
    daemon.order("catch_up", "fail")
    assert {name: read(client, stale=True) for name, read in READS.items()} == current
    assert list(client.list(stale=True)) == records
    for name, read in READS.items():
        with pytest.raises(KvError, match=NO_QUORUM) as refused:
            read(client, timeout=0.2)
        assert refused.value.code == "unavailable", name
        assert "'stale'" in refused.value.message


def test_the_asyncio_form_has_them_too(daemon: LaggingDaemon, client: Client) -> None:
    client.put("k", b"v")
    daemon.order("catch_up", "fail")

    async def read() -> None:
        async with AsyncClient(daemon.requests) as client:
            for read in READS.values():
                await read(client, stale=True)
            assert [record.key async for record in client.list(stale=True)] == ["k"]

    asyncio.run(read())


def test_a_reply_says_how_old_it_may_be(daemon: LaggingDaemon, client: Client) -> None:
    client.put("k", b"v")
    daemon.order("age", 1234)
    assert client.request(commands.body_of_one(commands.get("k", stale=True))).age == 1234
    assert client.request(commands.body_of_one(commands.get("k"))).age is None


def test_what_is_no_flag_is_refused(client: Client) -> None:
    for read in READS.values():
        with pytest.raises(KvError, match="true or false"):
            read(client, stale=1)


def test_a_subscription_goes_on_and_can_be_begun(daemon: LaggingDaemon, client: Client) -> None:
    client.put("k", b"1")

    def subscribe() -> Subscription:
        return Subscription(daemon.requests, daemon.changes, snapshot=True)

    def values(subscription: Subscription) -> list[bytes | None]:
        """Those of all that comes up to the next time that all of it was shown."""
        found = []
        for item in subscription:
            if isinstance(item, Event) and item.record is not None:
                found.append(item.record.value)
            if isinstance(item, Sync):
                break
        return found

    with subscribe() as before:
        assert values(before) == [b"1"]
        daemon.order("catch_up", "fail")
        client.put("k", b"2")
        event = next(item for item in before if isinstance(item, Event))
        assert event.record is not None
        assert event.record.value == b"2"
    with subscribe() as later:
        assert values(later) == [b"2"]
