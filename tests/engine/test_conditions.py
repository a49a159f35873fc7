"""Checks, conditions on values, and keys that number themselves, the same on every engine."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import Write, WriteRequest
from support.engine_store import OpenStore, Store, fill, refused

SEQUENCE = Write("put", b"s/", b"v", "text/plain", sequence=True)


def check(key: bytes = b"k", **fields: Any) -> Write:
    return Write("check", key, **fields)


def head_of(store: Store) -> int:
    return store.engine.position().head


def holds(store: Store, *checks: Write) -> bool:
    """Whether all hold, asked one by one and at once, which must say the same; and nothing changes."""
    head, before = head_of(store), store.get()
    (alone,), (atomic,) = store.submit(WriteRequest(checks)), store.submit(WriteRequest(checks, atomic=True))
    failures = [result for result in alone.results or () if isinstance(result, KvError)]
    assert all(error.code == "condition_failed" for error in failures)
    assert (atomic.error is None) is (not failures)
    if atomic.error is not None:
        at = atomic.error.details.pop("op")
        first = next(result for result in alone.results or () if isinstance(result, KvError))
        assert (alone.results or ()).index(first) == at
        assert atomic.error.details == first.details
    else:
        assert atomic.results == alone.results
    assert (head_of(store), store.get()) == (head, before)
    return not failures


def test_a_check_holds_where_the_key_is_as_it_says(store: Store) -> None:
    assert holds(store, check(if_revision=0))
    for wrong in ({"if_revision": 1}, {"if_value": b""}, {"must_exist": True}):
        assert not holds(store, check(**wrong))
    revision = store.write("put", value=b"v\0")["revision"]
    for right in ({"if_revision": revision}, {"if_value": b"v\0"}, {"must_exist": True}):
        assert holds(store, check(**right), check(b"none", if_revision=0))
        assert not holds(store, check(**right), check(b"none", must_exist=True))
    for wrong in ({"if_revision": 0}, {"if_revision": revision + 1}, {"if_value": b"v"}, {"if_value": b""}):
        assert not holds(store, check(b"none", if_revision=0), check(**wrong))


def test_a_check_tells_the_revision_whether_it_holds_or_not(store: Store) -> None:
    revision = store.write("put")["revision"]
    assert store.atomic(check(must_exist=True), check(b"none", if_revision=0)) == [
        {"revision": revision},
        {"revision": 0},
    ]
    for key, found in ((b"k", revision), (b"none", 0)):
        with refused("condition_failed") as caught:
            store.write("check", key, if_revision=revision + 7)
        assert caught.value.details == {"revision": found, "key": key.decode()}


def test_only_who_would_write_the_key_itself_is_advised_to_try_again(store: Store) -> None:
    """What a check fails for may be a lock that is lost; and who wanted a new key has nothing to retry."""
    store.write("put")
    for condition in ({"if_revision": 0}, {"if_revision": 10**9}, {"if_value": b"x"}):
        for op in ("check", "put"):
            with refused("condition_failed") as caught:
                store.write(op, **condition)
            is_advised = op == "put" and condition != {"if_revision": 0}
            assert ("retry" in caught.value.message) is is_advised
            assert caught.value.message.startswith("the key 'k' ")


@pytest.mark.parametrize("op", ["put", "delete", "incr", "touch", "persist"])
def test_a_write_beside_a_check_is_done_only_while_the_check_holds(store: Store, op: str) -> None:
    revision = store.write("put", b"lock")["revision"]
    store.write("put", value=b"1", ttl_ms=60_000)
    before, head = store.get(), head_of(store)
    write = Write(op, b"k", b"2", "text/plain", 60_000 if op == "touch" else None)
    for at in (0, 1):
        writes = [write]
        writes.insert(at, check(b"lock", if_revision=revision + 1))
        with refused("condition_failed") as caught:
            store.atomic(*writes)
        assert caught.value.details == {"revision": revision, "key": "lock", "op": at}
        assert (store.get(), head_of(store)) == (before, head)
    made = store.atomic(check(b"lock", if_revision=revision), write)[1]["revision"]
    assert made == head_of(store) > head
    assert store.get(b"lock").revision == revision  # type: ignore[union-attr]


def test_a_check_in_an_atomic_batch_is_of_what_was_before_it(store: Store) -> None:
    revision = store.write("put", value=b"old")["revision"]
    put = Write("put", b"k", b"new", "text/plain")
    for at in range(3):
        writes = [check(if_revision=revision), check(if_value=b"old")]
        writes.insert(at, put)
        revision = store.atomic(*writes)[at]["revision"]
        assert store.get().value == b"new"  # type: ignore[union-attr]
        revision = store.write("put", value=b"old")["revision"]
    (answer,) = store.submit(WriteRequest([put, check(if_value=b"new"), check(if_value=b"old")]))
    assert answer.results is not None
    assert [isinstance(result, KvError) for result in answer.results] == [False, False, True]


@pytest.mark.parametrize("op", ["put", "delete", "incr", "touch", "persist"])
def test_a_write_may_depend_on_the_value(store: Store, op: str) -> None:
    fields: dict[str, Any] = {"ttl_ms": 60_000} if op == "touch" else {}
    with refused("condition_failed") as caught:
        store.write(op, if_value=b"", **fields)
    assert caught.value.details["revision"] == 0
    revision = store.write("put", value=b"12", ttl_ms=60_000)["revision"]
    for wrong in (b"", b"1", b"123", b"12\n"):
        with refused("condition_failed") as caught:
            store.write(op, if_value=wrong, **fields)
        assert caught.value.details["revision"] == revision
        assert "12" not in caught.value.message.replace(str(revision), "")
    assert head_of(store) == revision
    store.write(op, if_value=b"12", **fields)
    assert head_of(store) > revision


def test_a_large_value_is_compared_whole(store: Store) -> None:
    value = bytes(range(256)) * 1000
    store.write("put", value=value)
    with refused("condition_failed"):
        store.write("put", if_value=value[:-1] + b"\0")
    store.write("put", if_value=value)


def test_what_has_expired_is_not_there_for_a_check(store: Store) -> None:
    store.write("put", ttl_ms=1000)
    store.clock.now += 2000
    with refused("condition_failed") as caught:
        store.write("check", must_exist=True)
    assert caught.value.details["revision"] == 0
    assert store.log().events[-1].op == "expire"
    store.write("put", ttl_ms=1000)
    store.clock.now += 2000
    done = store.atomic(check(if_revision=0), Write("put", b"k", b"w", "text/plain"), SEQUENCE)
    assert done[0] == {"revision": 0}
    assert [event.op for event in store.log().events[-3:]] == ["expire", "put", "put"]
    assert store.log().events[-3].revision < store.log().events[-2].revision == done[1]["revision"]


def test_a_repeat_of_a_numbered_check_gets_the_first_answer(store: Store) -> None:
    revision = store.write("put")["revision"]
    for seq, atomic in enumerate((False, True), 1):
        request = WriteRequest(
            [check(if_revision=revision), check(b"none", if_revision=0)], atomic, "me", seq, 7
        )
        (first,) = store.submit(request)
        store.write("put", b"none")
        (again,) = store.submit(request)
        assert first.results == again.results == [{"revision": revision}, {"revision": 0}]
        store.write("delete", b"none")


def test_of_checks_alone_only_the_number_is_kept(open_store: OpenStore) -> None:
    store, long = open_store(), "\x7f" * 500
    store.write("put", b"there")

    def ask(seq: int, fingerprint: int = 7, *, atomic: bool) -> Any:
        checks = [check(b"there", must_exist=True), *[check(long.encode(), must_exist=True)] * 50]
        (answer,) = store.submit(
            WriteRequest(checks, atomic, f"me {atomic}", seq, fingerprint, only_checks=True)
        )
        return answer.error.code if answer.error else [isinstance(each, KvError) for each in answer.results]  # type: ignore[union-attr]

    for atomic in (False, True):
        failed = "condition_failed" if atomic else [False] + [True] * 50
        assert ask(2, atomic=atomic) == ask(2, atomic=atomic) == failed
        assert ask(1, atomic=atomic) == "sequence_stale"
        assert ask(2, 8, atomic=atomic) == "sequence_reused"
    store.engine.close()
    store = open_store()
    store.write("put", long.encode())
    for atomic in (False, True):
        assert ask(2, atomic=atomic) == [False] * 51, "as it is now"
        assert ask(1, atomic=atomic) == "sequence_stale"


def test_a_full_store_still_checks(open_store: OpenStore) -> None:
    store = open_store(max_store_bytes=1 << 22)
    written = fill(store)
    assert store.write("check", written[0], must_exist=True)["revision"] > 0
    with refused("store_full"):
        store.atomic(check(written[0], must_exist=True), Write("put", b"k", bytes(100_000), "text/plain"))
    store.atomic(check(written[0], must_exist=True), Write("delete", written[1]))


# ── keys that number themselves ──────────────────────────────────────────────────────────────────


def number_in(result: dict[str, Any], prefix: str = "s/") -> int:
    """The number at the end of a key."""
    digits = result["key"].removeprefix(prefix)
    assert len(digits) == 20
    return int(digits)


def test_numbers_grow_and_are_above_every_revision_before(open_store: OpenStore) -> None:
    store, last = open_store(), 0
    for turn in range(3):
        for _ in range(3):
            head = store.write("put")["revision"]
            result = store.write(**{**SEQUENCE._asdict(), "value": b"%d" % turn})
            number = number_in(result)
            assert number > max(last, head)
            assert (result["version"], result["create_revision"]) == (1, result["revision"])
            assert store.get(result["key"].encode()).value == b"%d" % turn  # type: ignore[union-attr]
            last = number
        store.engine.close()
        store = open_store()
    while store.write("delete_prefix", b"s/", limit=1000)["more"]:
        pass
    assert number_in(store.write(**SEQUENCE._asdict())) > last


def test_each_of_many_in_one_group_has_a_number_of_its_own(store: Store) -> None:
    requests = [WriteRequest([SEQUENCE] * 3) for _ in range(50)]
    answers = store.submit(*requests)
    keys = [result["key"] for answer in answers for result in answer.results or ()]  # type: ignore[index]
    assert keys == sorted(set(keys))
    events = [event for event in store.feed if event.op == "put"]
    assert [event.key.decode() for event in events] == keys, "in the order of the log"


def test_several_in_an_atomic_batch_are_in_its_order(store: Store) -> None:
    other = SEQUENCE._replace(key=b"t/")
    results = store.atomic(SEQUENCE, Write("put", b"k", b"v", "text/plain"), SEQUENCE, other)
    assert len({result["revision"] for result in results}) == 1
    assert results[0]["key"] < results[2]["key"]
    later = store.write(**SEQUENCE._asdict())["key"]
    assert store.keys() == sorted(
        [b"k", *(result["key"].encode() for result in results if "key" in result), later.encode()]
    )
    assert later > results[2]["key"]


def test_a_numbered_key_under_a_check_that_fails_is_not_made(store: Store) -> None:
    with refused("condition_failed"):
        store.atomic(SEQUENCE, check(must_exist=True))
    assert store.keys() == []
    (result, _) = store.atomic(SEQUENCE, check(if_revision=0))
    assert store.keys() == [result["key"].encode()]


OTHERS = (b"s/0note", b"s/1", b"s/x", b"s/%021d" % 0, b"s")
"""Keys among those that number themselves."""


def test_numbers_go_on_above_those_of_keys_that_were_imported(store: Store) -> None:
    """They may be from a store whose revisions are higher."""
    number = head_of(store) + 1_000_000
    for key in (b"s/%020d" % number, b"s/%020d-00007" % (number + 1), *OTHERS):
        store.write("put", key)
    first = store.write(**SEQUENCE._asdict())["key"]
    results = store.atomic(SEQUENCE, SEQUENCE._replace(key=b"t/"), SEQUENCE)
    made = [first, results[0]["key"], results[2]["key"], store.write(**SEQUENCE._asdict())["key"]]
    assert made == sorted(set(made))
    assert first == f"s/{number + 2:020}"


def test_a_number_that_is_taken_is_passed_over(store: Store) -> None:
    made = [store.write(**SEQUENCE._asdict())["key"]]
    number = head_of(store) + 4
    for taken in range(number, number + 3):  # the revisions that come next
        store.write("put", b"s/%020d" % taken)
    made += [store.write(**SEQUENCE._asdict())["key"] for _ in range(5)]
    assert made == sorted(set(made))


@pytest.mark.lmdb_only("etcd gives the revision when it commits")
def test_on_one_machine_the_number_is_the_revision(store: Store) -> None:
    for _ in range(3):
        result = store.write(**SEQUENCE._asdict())
        assert number_in(result) == result["revision"]
    store.write("put", ttl_ms=1000)
    store.clock.now += 2000
    # the expiry of the other comes first, in a revision of its own
    result, _ = store.atomic(SEQUENCE, check(if_revision=0))
    assert number_in(result) == result["revision"]
