"""Who made a change and why: taken, checked, and told wherever the change is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_AUTHOR_BYTES, MAX_MESSAGE_BYTES
from kvstore_core.operations import MESSAGE, OPERATIONS, is_message
from kvstore_core.wire import Limits, Request, decode_request, encode_request
from kvstore_daemon.requests.writes import write_request
from support.servers import Daemon
from support.wire import Connect, Peer, get, put

WRITES: dict[str, dict[str, Any]] = {
    "put": {"key": "k", "value": b"1"},
    "incr": {"key": "k"},
    "touch": {"key": "k", "ttl": 60},
    "persist": {"key": "k"},
    "delete": {"key": "k"},
    "delete_prefix": {"prefix": "k"},
}
NO_MESSAGES = [
    "", "a\nb", "a\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u2066",
    "x" * 201, "ü" * 101, 7, True, None, ["a"],
]  # fmt: skip


def test_every_op_that_changes_something_is_here() -> None:
    assert set(WRITES) == {row.name for row in OPERATIONS.values() if row.writes} - {"check"}
    assert set(WRITES) == {row.name for row in OPERATIONS.values() if "message" in row.fields}


@pytest.mark.parametrize("op", WRITES)
def test_a_message_is_told_wherever_the_change_is(
    daemon: Daemon, connect: Connect, subscribe: Connect, op: str
) -> None:
    peer, changes = connect(daemon), subscribe(daemon)
    revision = peer.ask(put("k", b"0", ttl=9))[0]["revision"]
    peer.ask({"op": op, **WRITES[op], "message": "wegen Zoë ✓"})
    while (change := changes.change()[1])["revision"] == revision:
        pass
    (page,) = peer.ask({"op": "events", "since": revision})
    (past,) = peer.ask({"op": "history", "key": "k", "limit": 1})
    records = [] if op.startswith("delete") else [*peer.ask(get("k")), *peer.ask({"op": "list"})[0]["items"]]
    for told in (change, page["events"][0], past["events"][0], *records):
        assert told["message"] == "wegen Zoë ✓"
        assert "author" not in told


@pytest.mark.parametrize("message", NO_MESSAGES, ids=ascii)
def test_what_is_no_message_is_refused_with_what_it_must_be(client: Peer, message: object) -> None:
    for op, fields in WRITES.items():
        error = client.refusal({"op": op, **fields, "message": message})
        assert error == {"code": "bad_request", "message": f"ops[0].message must be {MESSAGE}", "op": 0}


@given(st.text(max_size=300))
def test_a_message_is_what_a_terminal_can_show(text: str) -> None:
    safe = all(char.isprintable() or char.isspace() or char > "\x9f" for char in text)
    good = safe and len(text.splitlines()) == 1 and 0 < len(text.encode()) <= MAX_MESSAGE_BYTES
    assert is_message(text) <= good


@pytest.mark.parametrize("author", ["ann", ["ann"], [None]])
def test_an_author_is_for_the_facade_to_name(client: Peer, author: object) -> None:
    revision = client.ask({"op": "status"})[0]["revision"]
    for op in (put("k"), get("k")):
        assert client.refusal(op, author=author)["code"] == "not_allowed"
    assert client.ask({"op": "status"})[0]["revision"] == revision


@pytest.mark.parametrize(
    "author", ["", "a\nb", "x" * (MAX_AUTHOR_BYTES + 1), 7, [], ["a", "b", ""], ["a", "b"]]
)
def test_what_is_no_author_is_refused(client: Peer, author: object) -> None:
    error = client.refusal(put("a"), put("b"), put("c"), author=author)
    assert error["code"] == "bad_request"
    assert "'author' must be" in error["message"]


def test_each_op_has_its_author_and_a_repeat_under_another_is_the_same() -> None:
    ops = [{"op": "incr", "key": "a"}, {"op": "get", "key": "a"}, {"op": "incr", "key": "b", "message": "m"}]

    def asked(author: Any) -> tuple[Request, list[bytes]]:
        frames = encode_request(ops, client="c", seq=1, author=author)
        return decode_request(frames, Limits()), frames

    fingerprints = set()
    for author, expected in (
        (None, ["", ""]),
        ("ann", ["ann", "ann"]),
        (["ann", "bob", None], ["ann", ""]),
        ([None, None, "zoë"], ["", "zoë"]),
    ):
        request, frames = asked(author)
        wanted = write_request(request, frames, None, request.author or "")
        assert [write.author for write in wanted.writes] == expected
        assert [write.message for write in wanted.writes] == ["", "m"]
        fingerprints.add(wanted.fingerprint)
    assert len(fingerprints) == 1


def test_a_message_is_part_of_what_a_repeat_is_compared_by(client: Peer) -> None:
    number = {"client": "c", "seq": 1}
    count = {"op": "incr", "key": "n", "message": "one"}
    assert client.ask(count, **number) == client.ask(count, **number)
    assert client.refusal({**count, "message": "two"}, **number)["code"] == "sequence_reused"


def test_a_lone_surrogate_is_no_message() -> None:
    with pytest.raises(KvError, match="JSON"):
        encode_request([{"op": "delete", "key": "k", "message": "\ud800"}])
    assert not is_message("\ud800")
