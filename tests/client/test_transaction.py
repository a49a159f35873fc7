"""Transactions: what was read holds at the end, all is written at once, or nothing is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvstore_client import (
    AsyncClient,
    BadRequest,
    Client,
    ConditionFailed,
    KvError,
    NotAnInteger,
    NotFound,
    RequestTooLarge,
    commands,
)
from kvstore_client.transactions.async_transaction import AsyncTransaction
from kvstore_client.transactions.transaction import Transaction
from support.patience import PATIENCE_SECONDS
from support.proxy import CuttingProxy
from support.servers import Daemon


@pytest.fixture(scope="module")
def shared(shared_daemon: Daemon) -> Iterator[Client]:
    with Client(shared_daemon.requests, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def store(shared: Client) -> Client:
    for prefix in ("a", "b", "c", "n", "q/"):
        shared.delete_prefix(prefix)
    return shared


def head(store: Client) -> int:
    return int(store.status()["revision"])


def test_what_was_read_is_asserted_and_what_was_written_comes_at_one_revision(store: Client) -> None:
    first = store.put("a", "1").revision
    with store.transaction() as t:
        assert t.get("a").revision == first
        assert t.get("b", None) is None
        t.put("b", "2")
        t.delete("a")
        assert store.get("b", None) is None, "it was written before the end"
    assert t.revision == first + 1
    assert [type(result) for result in t.results] == [commands.Written, commands.Deleted]
    assert store.get("b").revision == first + 1
    assert store.get("a", None) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda store: store.put("a", "other"), id="put"),
        pytest.param(lambda store: store.put("a", "1"), id="put of the same value"),
        pytest.param(lambda store: store.delete("a"), id="delete"),
        pytest.param(lambda store: store.put("b", "there"), id="a key that was not there"),
    ],
)
@pytest.mark.parametrize("written", ["a", "b", "c", None], ids=lambda key: f"writes {key}")
def test_a_change_of_what_was_read_fails_it_whole(store: Client, change: object, written: str | None) -> None:
    store.put("a", "1")
    t = store.transaction()
    with pytest.raises(ConditionFailed) as failed, t:
        t.get("a")
        t.get("b", None)
        if written is not None:
            t.put(written, "mine")
        t.put("c/more", "mine")
        change(store)  # type: ignore[operator]
        before = head(store)
    assert t.is_conflict
    assert t.revision is None
    key = failed.value.details["key"]
    present = store.get(key, None)
    assert failed.value.details["revision"] == (0 if present is None else present.revision)
    assert "op" not in failed.value.details
    assert head(store) == before
    assert store.get("c/more", None) is None


def test_a_transaction_that_only_reads_asserts_too(store: Client) -> None:
    at = store.put("a", "1").revision
    with store.transaction() as t:
        t.get("a")
    assert t.revision is not None
    assert t.revision >= at
    assert head(store) == t.revision, "it wrote something"
    with pytest.raises(ConditionFailed), store.transaction() as t:
        t.get_many(["a", "b"])
        store.put("b", "1")


def test_one_that_does_nothing_and_one_that_raises_send_nothing(store: Client) -> None:
    before = head(store)
    with store.transaction() as t:
        pass
    assert t.revision is None
    with pytest.raises(ZeroDivisionError), store.transaction() as t:
        t.put("a", "1")
        1 / 0  # noqa: B018
    assert head(store) == before
    assert t.revision is None


def test_what_was_read_once_is_read_the_same_again(store: Client) -> None:
    store.put("a", "1")
    with pytest.raises(ConditionFailed), store.transaction() as t:
        assert t.get("a").text == "1"
        store.put("a", "2")
        assert t.get("a").text == "1"
        assert [record.text for record in t.list(prefix="a")] == ["1"]


def test_it_reads_its_own_writes(store: Client) -> None:
    store.batch([commands.put("a", b"x", content_type="image/png"), commands.put("n", "5")])
    with store.transaction() as t:
        t.put("b", "new")
        t.delete("a")
        t.incr("n", 2)
        t.incr("n2")
        assert (t.get("b").text, t.get("b").revision) == ("new", 0)
        assert t.get("a", None) is None
        with pytest.raises(NotFound):
            t.get("a")
        assert (t.get("n").text, t.get("n2").text) == ("7", "1")
        assert sorted(t.get_many(["a", "b", "n"])) == ["b", "n"]
        assert [record.key for record in t.list()] == ["b", "n", "n2"]
        assert [record.key for record in t.list(start="c", end="n2")] == ["n"]
    assert {record.key: record.text for record in store.list()} == {"b": "new", "n": "7", "n2": "1"}


# what becomes of a key that is written twice: how, from which value, to which
JOINED = {
    "put, put": (["put 1", "put 2"], None, "2"),
    "put, delete of none": (["put 1", "delete"], None, None),
    "put, delete of one": (["put 1", "delete"], "0", None),
    "delete, put": (["delete", "put 2"], "0", "2"),
    "incr, incr": (["incr 2", "incr 3"], "5", "10"),
    "put, incr": (["put 4", "incr 3"], "5", "7"),
    "delete, incr": (["delete", "incr 3"], "5", "3"),
    "incr, put": (["incr 3", "put x"], "5", "x"),
    "incr, delete of none": (["incr 3", "delete"], None, None),
    "incr, delete, put, incr": (["incr 3", "delete", "put 6", "incr 1"], "5", "7"),
}


@pytest.mark.parametrize("reads", [False, True], ids=["unread", "read"])
@pytest.mark.parametrize(("steps", "before", "after"), JOINED.values(), ids=JOINED)
def test_two_writes_of_a_key_come_to_what_they_would_one_after_the_other(
    store: Client, steps: list[str], before: str | None, after: str | None, reads: bool
) -> None:
    if before is not None:
        store.put("a", before)
    with store.transaction() as t:
        if reads:
            t.get("a", None)
        for step in steps:
            name, _, argument = step.partition(" ")
            if name == "put":
                t.put("a", argument)
            elif name == "incr":
                t.incr("a", int(argument))
            else:
                t.delete("a")
        seen = t.get("a", None)
        assert (None if seen is None else seen.text) == after
    found = store.get("a", None)
    assert (None if found is None else found.text) == after


def test_a_time_to_live_stays_with_the_write_that_keeps_it(store: Client) -> None:
    store.put("a", "0", ttl=100)
    with store.transaction() as t:
        t.put("b", "1", ttl=100)
        t.put("b", "2", keep_ttl=True)
        t.put("a", "2", keep_ttl=True)
        assert t.get("a").expires_at == store.get("a").expires_at
    assert store.get("b").expires_at is not None
    with store.transaction() as t:
        t.delete("a")
        t.put("a", "3", keep_ttl=True)
    assert store.get("a").expires_at is None


def test_what_cannot_be_written_is_said_at_once_or_at_the_end(store: Client) -> None:
    store.put("a", "no number")
    with store.transaction() as t:
        assert t.get("b", None) is None
        with pytest.raises(NotFound):
            t.delete("b")
        t.put("c", "x")
        with pytest.raises(NotAnInteger):
            t.incr("c")
        t.delete("c")
        with pytest.raises(NotFound):
            t.delete("c")
        with pytest.raises(BadRequest):
            t.put("d", "x", ttl=-1)
        t.incr("a")
        with pytest.raises(NotAnInteger):
            t.get("a")
        t.put("a", "1")
    with pytest.raises(NotFound), store.transaction() as t:
        t.put("c", "x")
        t.delete("never")
    assert not t.is_conflict
    assert store.get("c", None) is None


def test_conditions_of_ones_own_are_about_the_store_and_are_no_conflict(store: Client) -> None:
    at = store.put("a", "1").revision
    with store.transaction() as t:
        t.put("a", "2", if_revision=at)
        t.put("a", "3", if_value="1")
        t.put("b", b"\xff", if_revision=0)
        t.check("a", exists=True)
    assert store.get("a").text == "3"
    for condition in ({"if_revision": at}, {"if_value": "1"}, {"exists": False}):
        t = store.transaction()
        with pytest.raises(ConditionFailed) as failed, t:
            t.get("a")
            t.put("c", "x")
            t.check("a", **condition)  # type: ignore[arg-type]
        assert not t.is_conflict
        assert failed.value.details["key"] == "a"
    tries = []

    def work(t: Transaction) -> None:
        tries.append(t)
        t.put("a", "4", if_revision=at)

    with pytest.raises(ConditionFailed):
        store.transact(work)
    assert len(tries) == 1, "what fails for ever was repeated"


def test_keys_that_number_themselves(store: Client) -> None:
    with store.transaction() as t:
        t.put("q/", "one", sequence=True)
        t.put("a", "x")
        t.put("q/", "two", sequence=True)
    keys = [result.key for result in t.results]
    assert keys[0] is None
    assert [store.get(key).text for key in keys[1:]] == ["one", "two"]
    assert keys[1:] == sorted(keys[1:])


def test_it_is_used_once_and_inside_its_block(store: Client) -> None:
    t = store.transaction()
    for use in (
        lambda: t.get("a"),
        lambda: t.put("a", "1"),
        lambda: t.list(),
        lambda: t.check("a", exists=True),
    ):
        with pytest.raises(RuntimeError, match="inside its 'with' block"):
            use()
    with t:
        pass
    with pytest.raises(RuntimeError, match="inside"):
        t.get("a")
    with pytest.raises(RuntimeError, match="used once"), t:
        pass


def test_work_is_repeated_until_nothing_came_between(store: Client) -> None:
    store.put("a", "0")
    tries = []

    def work(t: Transaction) -> Transaction:
        tries.append(t)
        number = int(t.get("a").text)
        if len(tries) < 3:
            store.put("a", str(number + 10))
        t.put("a", str(number + 1))
        return t

    assert store.transact(work).revision == store.get("a").revision
    assert store.get("a").text == "21"
    assert len(tries) == len(set(map(id, tries))) == 3
    tries.clear()
    with pytest.raises(ConditionFailed) as failed:
        store.transact(work, attempts=2)
    assert failed.value.details["key"] == "a"
    assert len(tries) == 2


def test_of_many_at_once_each_counts_once(store: Client) -> None:
    store.batch([commands.put("a", "0"), commands.put("b", "0")])

    def move(t: Transaction) -> None:
        one, other = random.sample(["a", "b"], 2)
        amount = random.randrange(10)
        t.put(one, str(int(t.get(one).text) - amount))
        t.put(other, str(int(t.get(other).text) + amount))
        t.incr("n")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(store.transact, move, attempts=1000) for _ in range(40)]:
            done.result()
    assert int(store.get("a").text) + int(store.get("b").text) == 0
    assert store.get("n").text == "40"


def test_ten_thousand_keys_are_asserted_and_written_in_one(store: Client, engine_limit: int) -> None:
    count = engine_limit
    half = count // 2
    store.batch([commands.put(f"a/{number:05}", "0") for number in range(half)])
    with store.transaction() as t:
        for record in t.list(prefix="a/"):
            t.put(record.key, "1")
        t.get_many([f"b/{number:05}" for number in range(count - half)])
    assert {record.revision for record in store.list(prefix="a/")} == {t.revision}
    with pytest.raises(ConditionFailed) as failed, store.transaction() as t:
        for record in t.list(prefix="a/"):
            t.put(record.key, "2")
        t.get_many([f"b/{number:05}" for number in range(count - half)])
        store.put(f"b/{count - half - 1:05}", "phantom")
    assert failed.value.details["key"] == f"b/{count - half - 1:05}"
    assert {record.text for record in store.list(prefix="a/")} == {"1"}
    with pytest.raises(RequestTooLarge), store.transaction() as t:
        t.list(prefix="a/")
        t.get_many([f"b/{number:05}" for number in range(count - half + 1)])


@pytest.fixture
def engine_limit(store: Client) -> int:
    """How many ops the daemon takes in an atomic request."""
    return int(store.status()["limits"]["atomic_ops"])


def test_a_lost_connection_applies_it_once(shared_daemon: Daemon, store: Client) -> None:
    store.put("n", "0")
    # each connection breaks in the second transaction or the third, in a request or in an answer
    with CuttingProxy(shared_daemon.requests, cut_after_bytes=700) as proxy:
        with Client(proxy.endpoint, timeout=PATIENCE_SECONDS) as client:
            for number in range(20):
                with client.transaction() as t:
                    assert t.get("n").text == str(number), "a transaction was lost, or applied twice"
                    t.put("n", str(number + 1))
        assert proxy.connections > 5
    assert store.get("n").text == "20"


def test_the_asyncio_form_does_the_same(shared_daemon: Daemon, store: Client) -> None:
    store.put("n", "0")

    async def main() -> None:
        async with AsyncClient(shared_daemon.requests, timeout=PATIENCE_SECONDS) as client:

            async def add(t: AsyncTransaction) -> int:
                number = int((await t.get("n")).text) + 1
                t.put("n", str(number))
                return number

            found = await asyncio.gather(*(client.transact(add, attempts=1000) for _ in range(20)))
            assert sorted(found) == list(range(1, 21))
            with pytest.raises(ConditionFailed):
                async with client.transaction() as t:
                    await t.list(prefix="n")
                    await client.incr("n")
            task = asyncio.create_task(cancelled(client))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def cancelled(client: AsyncClient) -> None:
        async with client.transaction() as t:
            t.put("a", "x")
            await asyncio.sleep(PATIENCE_SECONDS)

    asyncio.run(main())
    assert store.get("a", None) is None


# ── conditions and guards of single writes ───────────────────────────────────────────────────────


def test_a_check_says_the_revision_or_fails(store: Client) -> None:
    at = store.put("a", b"\xff").revision
    assert store.check("a", if_revision=at) == store.check("a", if_value=b"\xff") == at
    assert store.check("a", exists=True) == at
    assert store.check("b", exists=False) == store.check("b", if_revision=0) == 0
    for key, condition in [("a", {"if_revision": 0}), ("a", {"if_value": "x"}), ("b", {"exists": True})]:
        with pytest.raises(ConditionFailed) as failed:
            store.check(key, **condition)  # type: ignore[arg-type]
        assert failed.value.details == {"key": key, "revision": at if key == "a" else 0}
    with pytest.raises(BadRequest, match="needs one of"):
        store.check("a")
    with pytest.raises(BadRequest, match="exclude each other"):
        store.check("a", if_revision=1, exists=True)
    assert head(store) == at


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda store, **how: store.put("n", "2", **how), id="put"),
        pytest.param(lambda store, **how: store.incr("n", **how), id="incr"),
        pytest.param(lambda store, **how: store.touch("n", 100, **how), id="touch"),
        pytest.param(lambda store, **how: store.persist("n", **how), id="persist"),
        pytest.param(lambda store, **how: store.delete("n", **how), id="delete"),
    ],
)
def test_every_single_write_depends_on_a_value_and_on_other_keys(store: Client, write: object) -> None:
    lock = store.put("a", "held").revision
    at = store.put("n", "1", ttl=100).revision
    for how in ({"if_value": "2"}, {"guards": {"a": lock - 1}}, {"guards": {"a": lock, "b": 1}}):
        with pytest.raises(ConditionFailed) as failed:
            write(store, **how)  # type: ignore[operator]
        assert "op" not in failed.value.details
        if guards := how.get("guards"):
            assert failed.value.details["key"] == [*guards][-1]  # type: ignore[misc]
    assert head(store) == at
    done = write(store, if_value="1", guards={"a": lock, "b": 0})  # type: ignore[operator]
    assert done.revision > at


def test_guards_of_a_create_and_of_a_sequence(store: Client) -> None:
    lock = store.put("a", "held").revision
    assert store.create("b", "x", guards={"a": lock}).version == 1
    written = store.put("q/", "job", sequence=True, guards={"a": lock})
    assert written.key is not None
    assert store.get(written.key).text == "job"
    for write in (
        lambda: store.create("c", "x", guards={"a": 0}),
        lambda: store.put("q/", "job", sequence=True, guards={"a": 0}),
    ):
        with pytest.raises(ConditionFailed):
            write()
    with pytest.raises(TypeError, match="guards is keys with their revisions"):
        store.put("c", "x", guards=["a@1"])  # type: ignore[arg-type]
    with pytest.raises(KvError):
        store.put("c", "x", guards={"a": -1})
    assert store.put("q/", "alone", sequence=True).key is not None
