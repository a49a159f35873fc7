"""Every operation through the client, against a real daemon."""

from __future__ import annotations

import array
import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from kvstore_client import (
    AsyncClient,
    AsyncSubscription,
    BadRequest,
    Client,
    Event,
    KvError,
    NotFound,
    Subscription,
    commands,
)
from kvstore_core.filters import Filter
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, TEXT_CONTENT_TYPE
from support.servers import Daemon, wait_until

NOBODY = "tcp://127.0.0.1:9"


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.requests) as client:
        yield client


def refused(code: str) -> pytest.RaisesContext[KvError]:
    """The block raises a KvError with this code."""
    return pytest.raises(KvError, check=lambda error: error.code == code)  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [b"", b"v", bytes(range(256)), b"x" * (1 << 20)])
def test_a_value_comes_back_as_it_went_in(client: Client, value: bytes) -> None:
    written = client.put("k", value)
    record = client.get("k")
    assert (record.value, record.content_type) == (value, DEFAULT_CONTENT_TYPE)
    assert (record.revision, record.version, record.expires_at) == (written.revision, 1, None)


@pytest.mark.parametrize("key", ["/", "//", ".", "a b", "%2F", "é", "名", "\U0001f511", "\x01", "k" * 511])
def test_any_text_is_a_key(client: Client, key: str) -> None:
    client.put(key, b"v", content_type="text/plain")
    assert client.get(key).key == key
    assert [record.key for record in client.list()] == [key]


@pytest.mark.parametrize("key", ["", "k" * 512, "a\0b", "\ud800"])
def test_an_unacceptable_key_is_refused_without_asking_anybody(key: str) -> None:
    with Client(NOBODY) as client, refused("invalid_key"):
        client.get(key)


@pytest.mark.parametrize("key", [None, 5, b"k"])
def test_a_key_that_is_no_text_is_refused_without_asking_anybody(key: Any) -> None:
    with Client(NOBODY) as client:
        with refused("bad_request"):
            client.get(key)
        with refused("bad_request"):
            client.put(key, b"v")


def test_text_is_stored_as_utf8_and_says_so(client: Client) -> None:
    client.put("k", "née")
    record = client.get("k")
    assert (record.value, record.content_type, record.text) == ("née".encode(), TEXT_CONTENT_TYPE, "née")
    client.batch([commands.put("k", "{}", content_type="application/json")])
    assert client.get("k").content_type == "application/json"


@pytest.mark.parametrize("value", [bytearray(b"v"), memoryview(b"v"), array.array("B", b"v")])
def test_whatever_holds_bytes_is_a_value(client: Client, value: Any) -> None:
    client.put("k", value)
    assert client.get("k").value == b"v"


@pytest.mark.parametrize("value", [5, None, 1.5, {"a": 1}, ["a"], object()])
def test_another_value_is_a_type_error_that_says_what_to_do(value: Any) -> None:
    with Client(NOBODY) as client, pytest.raises(TypeError, match=r"a value is bytes or text, not .*first"):
        client.put("k", value)


def test_a_missing_key_may_have_a_default(client: Client) -> None:
    assert client.get("missing", None) is None
    assert client.get("missing", default=b"d") == b"d"
    client.put("k", "v")
    assert client.get("k", None).text == "v"
    with pytest.raises(NotFound):
        client.get("missing")


def test_a_time_to_live_may_be_a_timedelta(client: Client) -> None:
    written = client.put("k", "v", ttl=timedelta(hours=1, milliseconds=1))
    record = client.get("k")
    assert (record.expires_at, record.expires_at - record.modified_at) == (written.expires_at, 3_600_001)
    touched = client.touch("k", timedelta(days=1))
    assert touched.expires_at is not None
    assert touched.expires_at > record.expires_at
    with refused("bad_request"):
        client.put("k", "v", ttl=timedelta(0))


def test_what_is_no_endpoint_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not a ZeroMQ endpoint"):
        Client("localhost:5555")
    with pytest.raises(ValueError, match="not a ZeroMQ endpoint"):
        Subscription(NOBODY, "localhost:5555")


def test_a_closed_client_says_so(client: Client) -> None:
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.get("k")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get("missing"),
        lambda client: client.delete("missing"),
        lambda client: client.touch("missing", 5),
        lambda client: client.persist("missing"),
        lambda client: client.history("missing"),
        lambda client: client.get_at("missing", 1),
    ],
)
def test_naming_a_missing_key_is_not_found(client: Client, call: Callable[[Client], object]) -> None:
    with refused("not_found"):
        call(client)


def test_conditions_tell_the_present_revision(client: Client) -> None:
    created = client.create("k", b"1")
    with refused("condition_failed") as caught:
        client.create("k", b"2")
    assert caught.value.details["revision"] == created.revision
    replaced = client.put("k", b"2", if_revision=created.revision)
    assert (replaced.create_revision, replaced.version) == (created.revision, 2)
    with refused("condition_failed"):
        client.delete("k", if_revision=created.revision)
    client.delete("k", if_revision=replaced.revision)
    with refused("condition_failed") as caught:
        client.put("k", b"3", if_revision=replaced.revision)
    assert caught.value.details["revision"] == 0


def test_a_time_to_live_is_set_moved_and_taken_away(client: Client) -> None:
    first = client.put("k", b"v", ttl=1000).expires_at
    second = client.touch("k", 2000).expires_at
    assert first is not None
    assert second is not None
    assert 900_000 < second - first < 1_100_000
    assert client.persist("k").expires_at is None
    client.put("gone", b"v", ttl=0.001)
    wait_until(lambda: client.get_many(["gone"]) == {})


@pytest.mark.parametrize("most", [1, 2, 7])
def test_reads_of_many_keys_ask_for_as_many_at_once_as_the_daemon_takes(
    start_daemon: Callable[..., Daemon], most: int
) -> None:
    daemon = start_daemon(max_batch_ops=most)
    keys = [f"k{number:02}" for number in range(30)]

    async def read_many() -> dict[str, Any]:
        async with AsyncClient(daemon.requests) as client:
            return await client.get_many(keys)

    with Client(daemon.requests) as client:
        first, *_ = [client.put(key, key.encode()) for key in keys]
        client.put(keys[0], b"new")
        assert list(client.get_many(["missing", *keys])) == keys
        assert list(asyncio.run(read_many())) == keys
        assert client.get_at(keys[0], first.revision).value == keys[0].encode()
        with client.transaction() as t:
            assert list(t.get_many(keys[:most])) == keys[:most]
            t.put(keys[0], b"newer")
        assert client.get(keys[0]).value == b"newer"
        with refused("request_too_large"):
            client.batch([commands.get(key) for key in keys])
    with Subscription(daemon.requests, daemon.changes, keys=keys, snapshot=True) as subscription:
        shown = []
        while isinstance(item := subscription.next(50), Event):
            shown.append(item.key)
    assert shown == keys


def test_incr_counts_from_nothing_and_refuses_what_is_no_number(client: Client) -> None:
    assert [client.incr("n").value, client.incr("n", 41).value, client.incr("n", -2).value] == [1, 42, 40]
    client.put("text", b"one")
    with refused("not_an_integer"):
        client.incr("text")


def test_many_keys_are_read_and_the_missing_left_out(client: Client) -> None:
    keys = [f"k{number:04}" for number in range(1500)]
    client.batch([commands.put(key, key.encode()) for key in keys])
    found = client.get_many([*keys, "missing", keys[0]])
    assert {key: record.value for key, record in found.items()} == {key: key.encode() for key in keys}


def test_values_that_do_not_fit_into_one_reply_are_read_in_several(daemon: Daemon, client: Client) -> None:
    keys = [f"k{number}" for number in range(70)]
    for key in keys:
        client.put(key, b"x" * (1 << 20))
    assert client.get_many(keys).keys() == set(keys)
    with Subscription(daemon.requests, daemon.changes, keys=keys, snapshot=True) as subscription:
        shown = []
        while isinstance(item := subscription.next(50), Event):
            shown.append(item.key)
    assert sorted(shown) == sorted(keys)


def test_lists_go_through_all_pages_in_key_order(client: Client) -> None:
    keys = [f"k{number:04}" for number in range(2500)]
    client.batch([commands.put(key, b"v") for key in [*keys, "a", "z"]])
    assert [record.key for record in client.list(prefix="k")] == keys
    assert client.count(prefix="k") == 2500
    assert [r.key for r in client.list(start="k2499", end="zz")] == ["k2499", "z"]
    page = client.list_page(prefix="k", limit=2, keys_only=True)
    assert [(record.key, record.value) for record in page.records] == [("k0000", None), ("k0001", None)]
    assert page.cursor is not None
    assert client.list_page(prefix="k", limit=1, cursor=page.cursor).records[0].key == "k0002"


def test_a_prefix_is_deleted_to_its_last_key(client: Client) -> None:
    client.batch([commands.put(f"k{number}", b"v") for number in range(2100)] + [commands.put("x", b"v")])
    assert client.delete_prefix("k").deleted == 2100
    assert [record.key for record in client.list()] == ["x"]
    assert client.delete_prefix("k") == commands.Deleted(0, None)


def test_the_past_is_told_as_far_as_the_log_goes(client: Client) -> None:
    first, second = client.put("k", b"1").revision, client.put("k", b"2").revision
    gone = client.delete("k").revision
    assert gone is not None
    assert client.get_at("k", first).value == b"1"
    assert client.get_at("k", second).value == b"2"
    for revision in (0, gone):
        with refused("not_found"):
            client.get_at("k", revision)
    assert [event.op for event in client.history("k").events] == ["delete", "put", "put"]
    assert [event.revision for event in client.history("k", before=second).events] == [first]


def test_every_write_says_why(client: Client) -> None:
    client.create("m/a", "1", message="create")
    client.put("m/a", "1", message="put")
    client.incr("m/a", message="incr")
    client.touch("m/a", 60, message="touch")
    client.persist("m/a", message="persist")
    assert (client.get("m/a").message, client.get("m/a").author) == ("persist", None)
    client.delete("m/a", message="delete")
    client.batch([commands.put("m/b", "", message="batch"), commands.put("m/c", "")])
    assert [record.message for record in client.list(prefix="m/", keys_only=True)] == ["batch", None]
    client.delete_prefix("m/", message="delete_prefix")
    said = [event.message for event in client.history(prefix="m/", values=False).events]
    assert said == [
        "delete_prefix", "delete_prefix", None, "batch", "delete", "persist", "touch", "incr", "put", "create"
    ]  # fmt: skip
    assert [event.message for event in client.events(0).events] == said[::-1]
    assert [event.message for event in client.history("m/c").events] == ["delete_prefix", None]
    with pytest.raises(BadRequest, match="message must be a text of 1 to 200 bytes"):
        client.put("m/a", "", message="two\nlines")
    with pytest.raises(BadRequest, match="history needs one of key and prefix"):
        client.history()


def test_a_record_that_never_changed_is_known_at_revisions_that_left_the_log(
    start_daemon: Callable[..., Daemon],
) -> None:
    daemon = start_daemon(retain_events=10)
    with Client(daemon.requests) as client:
        old = client.put("old", b"v").revision
        changed = client.put("changed", b"1").revision
        for number in range(100):
            client.put("changed", b"%d" % number)
        wait_until(lambda: client.status()["floor"] > changed)
        assert client.get_at("old", old).value == b"v"
        with refused("revision_gone"):
            client.get_at("changed", changed)
        with refused("revision_gone"):
            client.get_at("deleted-long-ago", changed)


def test_events_are_read_page_by_page_and_filtered(client: Client) -> None:
    first = client.put("a", b"1").revision
    client.batch([commands.put("a", b"2"), commands.put("b", b"2")], atomic=True)
    last = client.delete("a").revision
    page = client.events(0, limit=1)
    assert [(event.op, event.key) for event in page.events] == [("put", "a")]
    assert (page.next, page.head) == (first, last)
    rest = client.events(page.next, previous=True)
    assert [(e.op, e.key, e.index, e.count, e.previous and e.previous.value) for e in rest.events] == [
        ("put", "a", 0, 2, b"1"),
        ("put", "b", 1, 2, None),
        ("delete", "a", 0, 1, b"2"),
    ]
    wanted = Filter(("a",), ops=frozenset({"delete"}))
    assert [event.revision for event in client.events(0, wanted).events] == [last]
    with refused("cursor_expired"):
        client.events("0-" + "0" * 16)


def test_an_independent_batch_gives_each_command_its_result_or_error(client: Client) -> None:
    results = client.batch([commands.put("k", b"v"), commands.get("missing"), commands.get("k")])
    assert results[0].version == 1
    assert results[1].code == "not_found"
    assert results[2].value == b"v"


def test_an_atomic_batch_happens_whole_or_not_at_all(client: Client) -> None:
    results = client.batch([commands.put("a", b"1"), commands.put("b", b"1")], atomic=True)
    assert results[0].revision == results[1].revision
    with refused("condition_failed") as caught:
        client.batch([commands.put("a", b"2"), commands.put("b", b"2", if_revision=0)], atomic=True)
    assert caught.value.details["op"] == 1
    assert client.get("a").value == b"1"


def test_limits_are_told_by_the_daemon(client: Client) -> None:
    limits = client.status()["limits"]
    with refused("value_too_large") as caught:
        client.put("k", b"x" * (limits["value_bytes"] + 1))
    assert caught.value.details["limit"] == limits["value_bytes"]


def test_threads_share_a_client(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        counted = list(pool.map(lambda _: client.incr("n").value, range(400)))
    assert sorted(counted) == list(range(1, 401))


@pytest.mark.slow
def test_calls_beyond_the_connections_wait_for_one_within_their_time() -> None:
    def occupy() -> None:
        with refused("unavailable"):
            client.get("k", timeout=1)

    with Client(NOBODY, connections=1) as client:
        occupant = threading.Thread(target=occupy)
        occupant.start()
        wait_until(lambda: client._pool._slots.empty())
        with refused("timed_out") as caught:
            client.put("k", b"v", timeout=0.05)
        assert caught.value.details["outcome"] == "none"
        occupant.join()


def test_tasks_share_an_asyncio_client(daemon: Daemon) -> None:
    async def run() -> None:
        async with AsyncClient(daemon.requests, connections=4) as client:
            counted = await asyncio.gather(*[client.incr("n") for _ in range(200)])
            assert (await client.get("n")).value == b"200"
            await asyncio.gather(*[client.put(f"k{number}", b"v") for number in range(50)])
            assert len([record async for record in client.list(prefix="k")]) == 50
            assert await client.count() == 51
            assert len(await client.get_many(["k1", "k2", "x"])) == 2
            assert (await client.batch([commands.get("x")]))[0].code == "not_found"
            assert (await client.delete_prefix("k")).deleted == 50
            assert (await client.get_at("n", min(result.revision for result in counted))).value == b"1"
            with refused("condition_failed"):
                await client.create("n", b"0")

    asyncio.run(run())


def test_an_event_loop_outlives_many_asyncio_clients(daemon: Daemon) -> None:
    """A closed client's descriptors are free for the next one's sockets."""

    async def run() -> None:
        for number in range(20):
            async with AsyncClient(daemon.requests) as one, AsyncClient(daemon.requests) as other:
                await asyncio.gather(*[client.put("k", b"%d" % number) for client in (one, one, other)])
                assert (await other.get("k")).value == b"%d" % number

    asyncio.run(run())


def test_an_asyncio_client_may_be_taken_to_another_event_loop(daemon: Daemon) -> None:
    client = AsyncClient(daemon.requests)
    asyncio.run(client.put("k", b"1"))
    assert asyncio.run(client.get("k")).value == b"1"
    client.close()


def test_a_cancelled_call_leaves_the_client_in_order(daemon: Daemon) -> None:
    async def run() -> None:
        async with AsyncClient(daemon.requests, connections=1) as client:
            for number in range(30):
                task = asyncio.create_task(client.incr("n"))
                await asyncio.sleep(number / 10_000)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await client.put("k", b"%d" % number)
                assert (await client.get("k")).value == b"%d" % number

    asyncio.run(run())


@pytest.mark.parametrize("forms", [(Client, AsyncClient), (Subscription, AsyncSubscription)])
def test_both_forms_have_the_same_methods_with_the_same_arguments(forms: tuple[type, type]) -> None:
    def signatures(form: type) -> dict[str, list[object]]:
        methods = inspect.getmembers(form, inspect.isfunction)
        return {
            name: [
                # a function that is passed on is one of the same form, so annotations differ
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in inspect.signature(method).parameters.values()
            ]
            for name, method in methods
            if not name.startswith("_") or name == "__init__"
        }

    assert signatures(forms[0]) == signatures(forms[1])
