"""Conditions on values, checks, and keys that number themselves, over a plain REQ socket."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from support.servers import Daemon, StartDaemon
from support.wire import Connect, Peer, get, put

pytestmark = pytest.mark.slow

Op = dict[str, Any]


def check(key: str, **fields: Any) -> Op:
    return {"op": "check", "key": key, **fields}


def refused(peer: Peer, *ops: Op) -> Op:
    """The details of the ``condition_failed`` with which an atomic request is refused."""
    error = peer.refusal(*ops, atomic=True)
    assert error.pop("code") == "condition_failed"
    del error["message"]
    return error


def head_of(peer: Peer) -> int:
    revision: int = peer.reply_to({"op": "status"})["revision"]
    return revision


@pytest.fixture
def key(peer: Peer, unique: str) -> str:
    peer.ask(put(unique + "k", b"one"))
    return unique + "k"


def test_a_check_that_holds_changes_nothing_and_tells_the_revision(peer: Peer, key: str) -> None:
    revision = peer.ask(get(key))[0]["revision"]
    encoded = base64.b64encode(b"one").decode()
    for condition in (
        {"if_revision": revision},
        {"if_value": "one"},
        {"if_value_b64": encoded},
        {"exists": True},
    ):
        assert peer.ask(check(key, **condition)) == [{"revision": revision}]
    assert peer.ask(check(key + "x", exists=False), check(key + "x", if_revision=0)) == [{"revision": 0}] * 2
    assert head_of(peer) == revision


@pytest.mark.parametrize(
    "condition",
    [
        {"if_revision": 0},
        {"if_revision": 1},
        {"if_value": "two"},
        {"if_value": ""},
        {"if_value_b64": ""},
        {"exists": False},
    ],
    ids=str,
)
def test_a_check_that_does_not_hold_tells_which_key_and_its_revision(
    peer: Peer, key: str, condition: Op
) -> None:
    peer.ask(put(key, b"one"))
    revision = peer.ask(get(key))[0]["revision"]
    [alone] = peer.ask(check(key, **condition))
    assert alone["error"].items() >= {"code": "condition_failed", "key": key, "revision": revision}.items()
    assert refused(peer, put(key + "x"), check(key, **condition)) == {
        "op": 1,
        "key": key,
        "revision": revision,
    }
    assert peer.ask(get(key + "x"))[0]["error"]["code"] == "not_found"


def test_what_is_not_there_has_no_value_to_compare(peer: Peer, key: str) -> None:
    for condition in ({"if_value": ""}, {"exists": True}, {"if_revision": 5}):
        assert refused(peer, check(key + "x", **condition)) == {"op": 0, "key": key + "x", "revision": 0}


def test_a_batch_may_check_the_keys_that_it_changes_as_they_were_before(peer: Peer, key: str) -> None:
    ops = (check(key, if_value="one"), put(key, b"two"), check(key, if_value="one"), check(key, exists=True))
    before, written, *after = peer.ask(*ops, atomic=True)
    assert [before, *after] == [{"revision": before["revision"]}] * 3
    assert written["revision"] == before["revision"] + 1
    assert refused(peer, *ops) == {"op": 0, "key": key, "revision": written["revision"]}


def test_checks_and_writes_in_one_request_that_is_not_atomic_go_in_their_order(peer: Peer, key: str) -> None:
    results = peer.ask(
        put(key, b"two"), check(key, if_value="two"), check(key, if_value="one"), put(key, b"3")
    )
    assert [("error" in result) for result in results] == [False, False, True, False]


@pytest.mark.parametrize(
    "write",
    [
        {"op": "put", "value": b"x"},
        {"op": "delete"},
        {"op": "touch", "ttl": 99},
        {"op": "persist"},
        {"op": "incr"},
    ],
    ids=lambda op: op["op"],
)
def test_every_write_of_one_key_may_say_what_the_value_must_be(peer: Peer, unique: str, write: Op) -> None:
    key = unique + "n"
    for value in (b"7", b"\xff\0"):
        revision = peer.ask(put(key, value))[0]["revision"]
        encoded = base64.b64encode(value).decode()
        [failed] = peer.ask({**write, "key": key, "if_value_b64": base64.b64encode(value + b"0").decode()})
        assert failed["error"]["code"] == "condition_failed"
        assert failed["error"]["revision"] == revision
        [done] = peer.ask({**write, "key": key, "if_value_b64": encoded})
        if write["op"] == "incr" and value != b"7":
            assert done["error"]["code"] == "not_an_integer"
        else:
            assert "error" not in done
    [gone] = peer.ask({**write, "key": unique + "nothing", "if_value": ""})
    assert gone["error"]["code"] == "condition_failed"


def test_a_value_is_not_told_by_an_error(peer: Peer, unique: str) -> None:
    peer.ask(put(unique, b"s3cret"))
    [failed] = peer.ask(check(unique, if_value="guess"))
    assert "s3cret" not in str(failed)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "needs one of"),
        ({"exists": True, "if_revision": 0}, "exclude each other"),
        ({"exists": False, "if_value": "x"}, "exclude each other"),
        ({"if_value": "x", "if_value_b64": "eA=="}, "exclude each other"),
        ({"exists": 1}, "true or false"),
        ({"if_value": 7}, "a text"),
        ({"if_value_b64": "!"}, "base64"),
        ({"if_value_b64": "eA"}, "base64"),
        ({"if_value_b64": "eA==\n"}, "base64"),
        ({"if_value_b64": "ä"}, "base64"),
        ({"exists": True, "message": "why"}, "no field 'message'"),
        ({"exists": True, "sequence": True}, "no field 'sequence'"),
    ],
    ids=str,
)
def test_a_check_that_says_nothing_or_too_much_is_refused(peer: Peer, fields: Op, says: str) -> None:
    error = peer.refusal(check("k", **fields))
    assert error["code"] == "bad_request"
    assert error["op"] == 0
    assert says in error["message"]


def test_an_expired_key_is_not_there_for_a_check(start_daemon: StartDaemon, connect: Connect) -> None:
    peer = connect(start_daemon())
    peer.ask(put("k", b"v", ttl=0.001))
    while "error" in peer.ask(check("k", exists=False))[0]:
        pass
    assert peer.ask(check("k", if_value="v"))[0]["error"]["revision"] == 0


# ── keys that number themselves ──────────────────────────────────────────────────────────────────


@pytest.mark.lmdb_only("the number is not the revision in a cluster")
def test_a_key_that_numbers_itself_ends_in_its_revision(peer: Peer, unique: str) -> None:
    results = peer.ask(*(put(unique + "/", b"%d" % at, sequence=True) for at in range(3)))
    for at, result in enumerate(results):
        assert result["key"] == f"{unique}/{result['revision']:020}"
        assert peer.ask(get(result["key"]))[0]["value"] == b"%d" % at
    keys = [item["key"] for item in peer.ask({"op": "list", "prefix": unique})[0]["items"]]
    assert keys == [result["key"] for result in results]


def test_several_in_one_atomic_batch_are_numbered_behind_its_revision(peer: Peer, unique: str) -> None:
    ops = [check(unique, exists=False), *(put(unique + "/", sequence=True) for _ in range(12)), put(unique)]
    _, *made, last = peer.ask(*ops, atomic=True)
    revision = last["revision"]
    assert [each["key"] for each in made] == [f"{unique}/{revision:020}-{place:05}" for place in range(12)]
    [_, alone] = peer.ask(check(unique, exists=True), put(unique + "/", sequence=True), atomic=True)
    assert alone["key"] == f"{unique}/{alone['revision']:020}"


@pytest.mark.lmdb_only("the number is not the revision in a cluster")
def test_a_numbered_key_that_is_there_already_is_not_replaced(peer: Peer, unique: str) -> None:
    head = head_of(peer)
    # each of the two uses a revision, so the last one would get this number
    taken = f"{unique}{head + 3:020}"
    peer.ask(put(taken, b"first"), put(unique + "x"))
    [made] = peer.ask(put(unique, b"second", sequence=True))
    assert made["key"] == f"{unique}{head + 4:020}"
    assert peer.ask(get(taken))[0]["value"] == b"first"


def test_a_batch_that_writes_its_numbered_key_by_name_too_is_refused(peer: Peer, unique: str) -> None:
    taken = f"{unique}{head_of(peer) + 1:020}"
    assert refused(peer, put(taken), put(unique, sequence=True)) == {"op": 1, "revision": 0}


@pytest.mark.parametrize("other", [{"if_revision": 0}, {"if_value": "x"}, {"keep_ttl": True}], ids=str)
def test_a_key_that_numbers_itself_takes_no_condition(peer: Peer, other: Op) -> None:
    error = peer.refusal(put("k", sequence=True, **other))
    assert error["code"] == "bad_request"
    assert "exclude each other" in error["message"]


def test_the_longest_prefix_leaves_room_for_its_numbers(peer: Peer, unique: str) -> None:
    longest = unique + "x" * (485 - len(unique.encode()))
    made = peer.ask(put(longest, sequence=True), put(longest, sequence=True), atomic=True)
    assert {len(each["key"].encode()) for each in made} == {511}
    error = peer.refusal(put(longest + "x", sequence=True))
    assert error["code"] == "invalid_key"


def test_a_repeat_of_a_numbered_request_makes_no_second_key(peer: Peer, unique: str) -> None:
    first, again = (peer.ask(put(unique, sequence=True), client=unique, seq=1) for _ in range(2))
    assert first == again
    assert len(peer.ask({"op": "list", "prefix": unique})[0]["items"]) == 1


def test_a_repeat_of_checks_looks_again(peer: Peer, unique: str) -> None:
    """Who may only read must not fill the store with answers that are kept."""
    asked = [check(unique, exists=True), get(unique)]
    assert "error" in peer.ask(*asked, client=unique, seq=1)[0]
    peer.ask(put(unique))
    assert "error" not in peer.ask(*asked, client=unique, seq=1)[0]
    # with a write beside it, the first answer stands
    mixed = [check(unique, exists=True), put(unique + "/other")]
    first = peer.ask(*mixed, client=unique, seq=2)
    peer.ask({"op": "delete", "key": unique})
    assert peer.ask(*mixed, client=unique, seq=2) == first


@pytest.mark.lmdb_only("the size of a transaction")
def test_ten_thousand_checks_and_writes_are_one_revision(
    daemon: Daemon, connect: Connect, unique: str
) -> None:
    peer = connect(daemon)
    checks = [check(f"{unique}{at}", exists=False) for at in range(5000)]
    puts = [put(f"{unique}{at}", b"") for at in range(5000)]
    results = peer.ask(*checks, *puts, atomic=True)
    assert len({result["revision"] for result in results[5000:]}) == 1
    assert refused(peer, *checks, *puts)["op"] == 0
