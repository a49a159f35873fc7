"""Every operation, over a plain REQ socket."""

from __future__ import annotations

import time
from typing import Any

import pytest

from support.servers import Daemon, StartDaemon, wait_until
from support.wire import Connect, Peer, get, pack, put

pytestmark = pytest.mark.slow


def code(result: dict[str, Any]) -> str:
    return str(result["error"]["code"])


def test_get_returns_what_was_put_with_its_metadata(peer: Peer, unique: str) -> None:
    key = unique + "a"
    [written] = peer.ask(put(key, b"\0\xff", content_type="image/png"))
    [record] = peer.ask(get(key))
    assert record.pop("modified_at") <= time.time() * 1000
    assert record == {
        "revision": written["revision"],
        "create_revision": written["revision"],
        "version": 1,
        "content_type": "image/png",
        "value": b"\0\xff",
    }


def test_a_put_without_a_media_type_is_octets(peer: Peer, unique: str) -> None:
    assert peer.ask(put(unique), get(unique))[1]["content_type"] == "application/octet-stream"


def test_an_empty_value_is_not_a_missing_one(peer: Peer, unique: str) -> None:
    assert peer.ask(put(unique, b""), get(unique))[1]["value"] == b""


@pytest.mark.parametrize("op", ["get", "delete", "touch", "persist", "history"])
def test_an_op_on_a_missing_key_is_not_found(peer: Peer, unique: str, op: str) -> None:
    fields = {"ttl": 5} if op == "touch" else {}
    assert code(peer.ask({"op": op, "key": unique + "missing", **fields})[0]) == "not_found"


def test_each_op_of_a_batch_fails_alone(peer: Peer, unique: str) -> None:
    key = unique + "a"
    results = peer.ask(put(key), put(key, if_revision=0), get(unique + "b"), get(key), put(key, b"w"))
    assert [result.get("error", {}).get("code") for result in results] == [
        None,
        "condition_failed",
        "not_found",
        None,
        None,
    ]
    assert results[1]["error"]["revision"] == results[0]["revision"]


def test_writes_come_first_and_reads_see_them_wherever_they_stand(peer: Peer, unique: str) -> None:
    results = peer.ask(get(unique), put(unique, b"1"), get(unique), put(unique, b"2"), get(unique))
    assert [results[index]["value"] for index in (0, 2, 4)] == [b"2", b"2", b"2"]


def test_an_atomic_batch_shares_one_revision(peer: Peer, unique: str) -> None:
    results = peer.ask(put(unique + "a"), {"op": "incr", "key": unique + "b"}, get(unique + "a"), atomic=True)
    assert results[0]["revision"] == results[1]["revision"] == results[2]["revision"]


def test_a_failed_condition_in_an_atomic_batch_changes_nothing_and_names_its_op(
    peer: Peer, unique: str
) -> None:
    error = peer.refusal(get(unique + "a"), put(unique + "a"), put(unique + "b", if_revision=9), atomic=True)
    assert (error["code"], error["op"], error["revision"]) == ("condition_failed", 2, 0)
    assert [code(result) for result in peer.ask(get(unique + "a"), get(unique + "b"))] == ["not_found"] * 2


def test_incr_counts_from_nothing_and_reports_the_number(peer: Peer, unique: str) -> None:
    first, second, record = peer.ask(
        {"op": "incr", "key": unique}, {"op": "incr", "key": unique, "by": -5}, get(unique)
    )
    assert (first["value"], second["value"], record["value"]) == (1, -4, b"-4")


def test_incr_of_a_text_says_so(peer: Peer, unique: str) -> None:
    assert code(peer.ask(put(unique, b"x"), {"op": "incr", "key": unique})[1]) == "not_an_integer"


def test_touch_and_persist_change_the_ttl_and_nothing_else(peer: Peer, unique: str) -> None:
    before = peer.ask(put(unique, b"v", ttl=60), get(unique))[1]
    touched = peer.ask({"op": "touch", "key": unique, "ttl": 600}, get(unique))[1]
    assert touched["expires_at"] > before["expires_at"] + 500_000
    persisted = peer.ask({"op": "persist", "key": unique}, get(unique))[1]
    assert "expires_at" not in persisted
    for field in ("value", "version", "modified_at", "create_revision"):
        assert before[field] == touched[field] == persisted[field]


def test_delete_reports_its_revision(peer: Peer, unique: str) -> None:
    written, deleted, missing = peer.ask(put(unique), {"op": "delete", "key": unique}, get(unique))
    assert deleted == {"revision": deleted["revision"], "deleted": 1}
    assert deleted["revision"] > written["revision"]
    assert code(missing) == "not_found"


def test_delete_prefix_takes_a_page_and_says_whether_more_is_left(peer: Peer, unique: str) -> None:
    peer.ask(*(put(f"{unique}{number}") for number in range(5)))
    op = {"op": "delete_prefix", "prefix": unique, "limit": 3}
    first, second, third = (peer.ask(op)[0] for _ in range(3))
    assert (first["deleted"], first["more"]) == (3, True)
    assert (second["deleted"], second["more"]) == (2, False)
    assert (third["deleted"], third["more"], third.get("revision")) == (0, False, None)


def pages(peer: Peer, **op: Any) -> list[dict[str, Any]]:
    found = [peer.ask({"op": "list", **op})[0]]
    while found[-1]["cursor"] is not None:
        found.append(peer.ask({"op": "list", **op, "cursor": found[-1]["cursor"]})[0])
    return found


def listed(peer: Peer, **op: Any) -> list[str]:
    return [item["key"] for page in pages(peer, **op) for item in page["items"]]


def test_a_list_pages_through_a_prefix_in_byte_order(peer: Peer, unique: str) -> None:
    names = ["", "A", "a", "aa", "b", "é", "\U0001f600"]
    peer.ask(*(put(unique + name, name.encode()) for name in reversed(names)))
    assert listed(peer, prefix=unique, limit=2) == [unique + name for name in names]
    items = [item for page in pages(peer, prefix=unique, limit=3) for item in page["items"]]
    assert [item["value"] for item in items] == [name.encode() for name in names]


def test_a_list_of_keys_has_lengths_instead_of_values(peer: Peer, unique: str) -> None:
    values = {f"{unique}a": b"abc", f"{unique}b": b"", f"{unique}c": b"\xff" * 70_000}
    peer.ask(*(put(key, value) for key, value in values.items()))
    peer.ask({**put(f"{unique}d", b"because"), "message": "with a reason, which is stored before the value"})
    items = peer.ask({"op": "list", "prefix": unique, "keys_only": True})[0]["items"]
    assert all("value" not in item for item in items)
    assert [item["bytes"] for item in items] == [3, 0, 70_000, 7]
    assert [item["version"] for item in items] == [1] * 4


def test_prefix_and_range_intersect(peer: Peer, unique: str) -> None:
    peer.ask(*(put(unique + name) for name in "abcd"))
    both = {"prefix": unique, "start": unique + "b", "end": unique + "d"}
    assert listed(peer, **both) == [unique + "b", unique + "c"]
    assert listed(peer, prefix=unique + "b", start=unique + "c") == []
    assert listed(peer, prefix=unique, start="", end="") == [unique + name for name in "abcd"]


def test_a_count_counts_without_listing(peer: Peer, unique: str) -> None:
    peer.ask(*(put(f"{unique}{number}") for number in range(7)))
    assert peer.ask({"op": "list", "prefix": unique, "count": True})[0] == {"count": 7, "cursor": None}
    empty = {"op": "list", "start": "b", "end": "a"}
    assert peer.ask({**empty, "count": True}, empty) == [
        {"count": 0, "cursor": None},
        {"items": [], "cursor": None},
    ]


def test_a_page_ends_by_the_size_of_its_values(peer: Peer, unique: str) -> None:
    value = bytes(1024 * 1024)
    for number in range(6):
        peer.ask(put(f"{unique}{number}", value))
    assert [len(page["items"]) for page in pages(peer, prefix=unique)] == [4, 2]


@pytest.mark.parametrize("cursor", ["", "!", "é", "YQ==", "A", "YR", "-" * 2000])
def test_a_list_cursor_that_was_not_given_out_is_refused(peer: Peer, cursor: str) -> None:
    assert code(peer.ask({"op": "list", "cursor": cursor})[0]) == "invalid_cursor"


def test_a_level_has_its_keys_and_what_the_others_begin_with(peer: Peer, unique: str) -> None:
    names = ["a", "b/1", "b/2", "c", "d/e/f", "g/"]
    peer.ask(*(put(unique + name, name.encode()) for name in names))
    level = {"prefix": unique, "delimiter": "/"}
    found = peer.ask({"op": "list", **level, "counts": True})[0]
    assert [item["value"] for item in found["items"]] == [b"a", b"c"]
    assert found["prefixes"] == [unique + name for name in ("b/", "d/", "g/")]
    assert found["counts"] == [2, 1, 1]
    assert "counts" not in peer.ask({"op": "list", **level})[0]
    assert "prefixes" not in peer.ask({"op": "list", "prefix": unique})[0]
    for reverse in (False, True):
        shown = [
            name
            for page in pages(peer, **level, limit=1, reverse=reverse)
            for name in (*page["prefixes"], *(item["key"] for item in page["items"]))
        ]
        wanted = [unique + name for name in ("a", "b/", "c", "d/", "g/")]
        assert shown == (wanted[::-1] if reverse else wanted)
    assert peer.ask({"op": "list", **level, "start": "b", "end": "a", "counts": True})[0] == {
        "items": [],
        "prefixes": [],
        "counts": [],
        "cursor": None,
    }


def test_the_last_ones_come_first_backwards(peer: Peer, unique: str) -> None:
    peer.ask(*(put(f"{unique}{number}", b"%d" % number) for number in range(7)))
    op = {"op": "list", "prefix": unique, "reverse": True, "limit": 3}
    assert [item["value"] for item in peer.ask(op)[0]["items"]] == [b"6", b"5", b"4"]
    assert listed(peer, prefix=unique, reverse=True, limit=3) == [f"{unique}{n}" for n in range(6, -1, -1)]


def test_a_cursor_keeps_its_direction(peer: Peer, unique: str) -> None:
    peer.ask(*(put(unique + name) for name in "abc"))
    for reverse in (False, True):
        op = {"op": "list", "prefix": unique, "limit": 1}
        cursor = peer.ask({**op, "reverse": reverse})[0]["cursor"]
        error = peer.ask({**op, "reverse": not reverse, "cursor": cursor})[0]["error"]
        assert error["code"] == "invalid_cursor"
        assert "direction" in error["message"]
        # what the list shows may be another, as its limit may
        assert peer.ask({**op, "reverse": reverse, "cursor": cursor, "delimiter": "/"})[0]["items"]


@pytest.mark.parametrize(
    "fields",
    [
        {"delimiter": ""},
        {"delimiter": "\0"},
        {"delimiter": "/" * 17},
        {"delimiter": "é" * 9},
        {"delimiter": 1},
        {"delimiter": None},
        {"delimiter": ["/"]},
        {"counts": 1, "delimiter": "/"},
        {"counts": True},
        {"delimiter": "/", "count": True},
        {"reverse": 1},
        {"reverse": True, "count": True},
        {"min_revision": 0},
        {"min_revision": "1"},
        {"min_revision": 2**63},
    ],
    ids=str,
)
def test_a_list_that_cannot_be_is_refused(peer: Peer, fields: dict[str, Any]) -> None:
    error = peer.refusal({"op": "list", **fields})
    assert error["code"] == "bad_request"
    assert next(iter(fields)) in error["message"]


def test_a_read_may_be_asked_to_be_as_new_as_a_revision(peer: Peer, unique: str) -> None:
    [written] = peer.ask(put(unique, b"v"))
    here = written["revision"]
    reads = [
        get(unique),
        {"op": "list", "prefix": unique},
        {"op": "list", "prefix": unique, "count": True},
        {"op": "list", "start": "b", "end": "a"},
        {"op": "history", "key": unique},
        {"op": "history", "prefix": unique},
    ]
    assert all("error" not in result for result in peer.ask(*({**op, "min_revision": here} for op in reads)))
    for result in peer.ask(*({**op, "min_revision": here + 1} for op in reads)):
        assert (code(result), result["error"]["revision"]) == ("condition_failed", here)
        assert str(here) in result["error"]["message"]
    # among gets that are read together each has its own
    found = peer.ask(get(unique), get(unique, min_revision=here + 9), get(unique, min_revision=here))
    assert [result.get("value") for result in found] == [b"v", None, b"v"]
    # the request's own writes are there
    _, found_again = peer.ask(put(unique, b"w"), get(unique, min_revision=here + 1))
    assert found_again["value"] == b"w"


def test_events_may_begin_at_a_time(peer: Peer, unique: str) -> None:
    [first] = peer.ask(put(unique, b"1"))
    [event] = peer.ask({"op": "history", "key": unique})[0]["events"]
    wait_until(lambda: time.time() * 1000 > event["time"] + 2, what="another millisecond")
    peer.ask(put(unique, b"2"))
    page = peer.ask({"op": "events", "since_time": event["time"]})[0]
    assert [event["value"] for event in page["events"]] == [b"2"]
    page = peer.ask({"op": "events", "since_time": event["time"] - 1})[0]
    assert first["revision"] in [event["revision"] for event in page["events"]]
    now = peer.ask({"op": "events", "since_time": int(time.time() * 1000) + 1000})[0]
    assert (now["events"], now["next"]) == ([], now["head"])


@pytest.mark.parametrize(
    "fields", [{}, {"since": 0, "since_time": 0}, {"since_time": -1}, {"since_time": "x"}]
)
def test_events_begin_at_one_place(peer: Peer, fields: dict[str, Any]) -> None:
    error = peer.refusal({"op": "events", **fields})
    assert error["code"] == "bad_request"
    assert "since_time" in error["message"]


def test_events_are_in_order_with_values_and_on_request_previous_ones(peer: Peer, unique: str) -> None:
    start = peer.reply_to({"op": "status"})["revision"]
    _, written = peer.ask(put(unique, b"1"), put(unique, b"2", content_type="text/plain"))
    peer.ask({"op": "delete", "key": unique})
    op = {"op": "events", "since": start, "keys": [unique]}
    first, second, third = peer.ask({**op, "previous": True})[0]["events"]
    assert [event["op"] for event in (first, second, third)] == ["put", "put", "delete"]
    assert (first["value"], first["previous_revision"]) == (b"1", 0)
    assert (second["value"], second["previous"]["value"], second["content_type"]) == (
        b"2",
        b"1",
        "text/plain",
    )
    assert third["previous"]["value"] == b"2"
    assert third["previous_revision"] == second["revision"] == written["revision"]
    plain = peer.ask({**op, "values": False})[0]["events"]
    assert all("value" not in event and "previous" not in event for event in plain)


def test_events_page_by_next(peer: Peer, unique: str) -> None:
    start = peer.reply_to({"op": "status"})["revision"]
    peer.ask(*(put(f"{unique}{number}") for number in range(5)))
    seen, since = [], start
    while True:
        page = peer.ask({"op": "events", "since": since, "prefixes": [unique], "limit": 2})[0]
        seen += [event["key"] for event in page["events"]]
        since = page["next"]
        if since == page["head"]:
            break
    assert seen == [f"{unique}{number}" for number in range(5)]


def test_events_of_an_atomic_batch_are_never_split(peer: Peer, unique: str) -> None:
    start = peer.reply_to({"op": "status"})["revision"]
    peer.ask(*(put(f"{unique}{number}") for number in range(5)), atomic=True)
    events = peer.ask({"op": "events", "since": start, "limit": 1})[0]["events"]
    assert [(event["index"], event["count"]) for event in events] == [(index, 5) for index in range(5)]


def test_events_may_be_filtered_by_op(peer: Peer, unique: str) -> None:
    start = peer.reply_to({"op": "status"})["revision"]
    peer.ask(put(unique), {"op": "delete", "key": unique})
    [event] = peer.ask({"op": "events", "since": start, "ops": ["delete"]})[0]["events"]
    assert event["op"] == "delete"


def test_a_cursor_of_this_epoch_continues_and_one_of_another_is_answered_with_where_the_log_is(
    peer: Peer, unique: str
) -> None:
    peer.ask(put(unique))
    reply = peer.reply_to({"op": "status"})
    epoch, head = reply["epoch"], reply["revision"]
    [page] = peer.ask({"op": "events", "since": f"{head - 1}-{epoch}"})
    assert [event["key"] for event in page["events"]] == [unique]
    [other] = peer.ask({"op": "events", "since": f"{head}-{'0' * 16}"})
    assert code(other) == "cursor_expired"
    details = {name: other["error"][name] for name in ("reason", "epoch", "floor", "head")}
    assert details == {"reason": "epoch", "epoch": epoch, "floor": 0, "head": head}


@pytest.mark.parametrize("since", ["", "1", "1-", "-1", "1-xyz", "9" * 30])
def test_a_cursor_that_was_not_given_out_is_refused(peer: Peer, since: str) -> None:
    assert code(peer.ask({"op": "events", "since": since})[0]) == "invalid_cursor"


def test_a_revision_that_this_store_has_not_reached_belongs_to_another_history(peer: Peer) -> None:
    head = peer.reply_to({"op": "status"})["revision"]
    [result] = peer.ask({"op": "events", "since": head + 1})
    assert (code(result), result["error"]["reason"]) == ("cursor_expired", "epoch")
    assert f"above the head, revision {head}" in result["error"]["message"]


def test_a_revision_below_the_floor_is_expired(start_daemon: StartDaemon, connect: Connect) -> None:
    peer = connect(start_daemon(retain_events=3))
    peer.ask(*(put(f"k{number}") for number in range(20)))

    def floor() -> int:
        peer.ask(put("k"))
        return int(peer.ask({"op": "status"})[0]["floor"])

    wait_until(floor, what="the log is trimmed")
    [result] = peer.ask({"op": "events", "since": 0})
    assert (code(result), result["error"]["reason"]) == ("cursor_expired", "expired")
    assert result["error"]["floor"] > 0


def test_history_walks_back_from_the_newest_event(peer: Peer, unique: str) -> None:
    revisions = [peer.ask(put(unique, value))[0]["revision"] for value in (b"1", b"2", b"3")]
    first = peer.ask({"op": "history", "key": unique, "limit": 2})[0]
    assert [event["value"] for event in first["events"]] == [b"3", b"2"]
    second = peer.ask({"op": "history", "key": unique, "cursor": first["cursor"]})[0]
    assert [event["value"] for event in second["events"]] == [b"1"]
    assert (second["cursor"], second["truncated"]) == (None, False)
    before = peer.ask({"op": "history", "key": unique, "before": revisions[1], "values": False})[0]
    assert [event["revision"] for event in before["events"]] == revisions[:1]
    assert peer.ask({"op": "history", "key": unique, "before": revisions[0]})[0]["events"] == []


def test_status_tells_where_the_store_is_and_what_it_takes(peer: Peer, shared_daemon: Daemon) -> None:
    reply = peer.reply_to({"op": "status"})
    [status] = reply["results"]
    assert (status["pid"], status["protocol"], status["sync"]) == (shared_daemon.pid, 1, "always")
    assert (status["epoch"], status["revision"]) == (reply["epoch"], reply["revision"])
    assert {"version", "engine", "floor", "keys", "log_events", "log_bytes", "store_bytes"} <= status.keys()
    assert {"max_store_bytes", "started_at", "uptime"} <= status.keys()
    assert status["limits"]["value_bytes"] == 1024 * 1024
    assert status["counters"]["requests"] > 0


def test_status_counts_what_was_asked_and_what_became_of_it(
    start_daemon: StartDaemon, connect: Connect
) -> None:
    peer = connect(start_daemon())
    peer.ask(put("a"), put("b"), get("a"))
    peer.ask(put("soon", ttl=0.001))
    peer.reply_to({"op": "get"})

    def expiries() -> int:
        return int(peer.ask({"op": "status"})[0]["counters"]["expiries"])

    wait_until(expiries, what="the key expires")
    [status] = peer.ask({"op": "status"})
    counters, commits = status["counters"], status["commits"]
    by_name = counters["operations_by_name"]
    assert {name: by_name[name] for name in ("put", "get")} == {"put": 3, "get": 1}
    assert sum(by_name.values()) == counters["operations"]
    assert (counters["requests_refused"], counters["expiries"]) == (1, 1)
    assert (commits["count"], commits["requests"], commits["ops"]["sum"]) == (3, 3, 4)
    assert (status["pending"], status["subscriptions"], status["writes_refused"]) == (1, 0, None)
    assert status["process"]["cpu_seconds"] > 0
    assert 0 < status["process"]["open_files"] < status["process"]["max_files"]


def test_status_counts_the_topics_that_are_subscribed_to(
    start_daemon: StartDaemon, connect: Connect, subscribe: Connect
) -> None:
    daemon = start_daemon()
    peer = connect(daemon)
    subscribers = [subscribe(daemon, b"a/", b"b/"), subscribe(daemon, b"a/")]

    def subscriptions() -> int:
        return int(peer.ask({"op": "status"})[0]["subscriptions"])

    assert subscriptions() == 2
    for subscriber in subscribers:
        subscriber.socket.close(0)
    wait_until(lambda: subscriptions() == 0, what="the subscribers are gone")


def test_a_reply_holds_what_fits_and_refuses_the_ops_that_do_not(peer: Peer, unique: str) -> None:
    peer.ask(put(unique, bytes(1024 * 1024)), put(unique + "small"))
    results = peer.ask(*[get(unique)] * 70, get(unique + "small"), get(unique + "missing"))
    codes = [result.get("error", {}).get("code") for result in results]
    assert codes == [None] * 63 + ["reply_too_large"] * 7 + [None, "not_found"]


def test_ten_thousand_ops_are_one_request(peer: Peer, unique: str) -> None:
    numbers = range(10_000)
    written = peer.ask(*(put(f"{unique}{number}", b"%d" % number) for number in numbers))
    assert len(written) == 10_000
    assert all(result["version"] == 1 for result in written)
    assert [r["value"] for r in peer.ask(*(get(f"{unique}{n}") for n in numbers))] == [
        b"%d" % n for n in numbers
    ]


def test_all_gets_of_one_moment_see_one_snapshot(
    shared_daemon: Daemon, connect: Connect, unique: str
) -> None:
    """Two keys that always change together are never seen apart."""
    writer, reader = connect(shared_daemon), connect(shared_daemon)
    both = [unique + "a", unique + "b"]
    for number in range(200):
        writer.socket.send_multipart(pack(*(put(key, b"%d" % number) for key in both), atomic=True))
        results = reader.ask(*map(get, both))
        assert results[0].get("value") == results[1].get("value")
        writer.socket.recv_multipart()
