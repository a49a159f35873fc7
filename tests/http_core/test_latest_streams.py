"""``deliver=latest`` and ``sample=``, over real sockets: what a slow reader gets, and what it costs."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any
from urllib.parse import quote

import pytest

from support.lengths import times
from support.servers import Daemon, Facade, Service, wait_until
from support.session import JSON_TYPE, Session, assert_problem, call
from support.streams import Stream, StreamEvent, open_stream

CHANGES = times(20_000, full=500_000)


@pytest.fixture
def prefix() -> str:
    """Keys of one test in the store that tests share."""
    return f"{random.randrange(2**40):x}/"


def batch(url: str, ops: list[dict[str, Any]], *, atomic: bool = False) -> list[dict[str, Any]]:
    answer = call(url, "POST", "/v1/batch", json.dumps({"ops": ops, "atomic": atomic}).encode(), JSON_TYPE)
    assert answer.status == 200, answer
    results: list[dict[str, Any]] = answer.json["results"]
    return results


def put(key: str, value: object = "v") -> dict[str, Any]:
    return {"op": "put", "key": key, "value": str(value)}


def delete(key: str) -> dict[str, Any]:
    return {"op": "delete", "key": key}


def metric(url: str, name: str) -> int:
    shown = call(url, "GET", "/metrics").body.decode()
    found: list[str] = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", shown, re.MULTILINE)
    assert found, name
    return int(sum(map(float, found)))


@contextmanager
def latest(
    url: str, query: str, *, last_id: str | None = None, receive_buffer: int | None = None
) -> Iterator[Stream]:
    if "sample" not in query:
        query += "&deliver=latest"
    with closing(open_stream(url, query, last_id, receive_buffer=receive_buffer)) as opened:
        yield opened


class Ledger:
    """What a reader has of each key: its newest change, and of how many it was told."""

    def __init__(self) -> None:
        self.changes: Counter[str] = Counter()
        self.newest: dict[str, StreamEvent] = {}
        self.delivered = 0
        self.revision = 0
        self.last_id: str | None = None

    def enter(self, event: StreamEvent, *, in_order: bool = True) -> None:
        if event.name in ("put", "delete", "expire"):
            body = event.json
            older = self.newest.get(body["key"])
            assert older is None or body["revision"] > older.json["revision"], "in order, once"
            if in_order:
                assert body["revision"] >= self.revision, "revisions rise"
            self.revision = max(self.revision, body["revision"])
            self.newest[body["key"]] = event
            self.changes[body["key"]] += 1 + body["skipped"]
            self.delivered += 1
        self.last_id = event.id or self.last_id

    @property
    def state(self) -> dict[str, str]:
        """The store as the reader knows it."""
        return {key: event.json["value"] for key, event in self.newest.items() if event.name == "put"}


def through_sync(stream: Stream) -> list[StreamEvent]:
    events = []
    for event in stream:
        if event.name != "heartbeat":
            events.append(event)
        if event.name == "sync":
            return events
    raise AssertionError("the stream ended")


# ── slow readers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
def test_who_stops_reading_a_hot_key_is_never_cut_off_and_gets_its_last_value(
    daemon: Daemon, start_facade: Callable[..., Facade], accept: str
) -> None:
    facade = start_facade(daemon, stream_buffer_bytes="64KiB", workers=1, daemon_timeout="60s")
    slow = open_stream(facade.url, "key=hot&deliver=latest", receive_buffer=4096, headers={"Accept": accept})
    changes = CHANGES if "ndjson" in accept else CHANGES // 4
    number = told = delivered = most_waits = revision = 0
    while number < changes:
        batch(facade.url, [put("hot", number + each) for each in range(1000)])
        number += 1000
        most_waits = max(most_waits, metric(facade.url, "kvstore_http_stream_backlog_bytes"))
    with closing(slow):
        for body in bodies(slow, accept):
            assert body["revision"] > revision
            revision = body["revision"]
            told += 1 + body["skipped"]
            delivered += 1
            if body["value"] == str(changes - 1):
                break
    assert told == changes, "delivered and skipped are all changes"
    assert delivered < changes // 10, "it is not told of what it could not read in time"
    assert most_waits <= 64 * 1024, "what it was sent and what waits, in bytes"
    assert metric(facade.url, "kvstore_http_stream_events_conflated_total") == changes - delivered
    assert metric(facade.url, "kvstore_http_streams_dropped_total") == 0


def test_beside_it_a_stream_of_everything_is_cut_off_as_ever(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, stream_buffer_bytes="64KiB", workers=1, daemon_timeout="60s")
    with (
        closing(open_stream(facade.url, "key=hot", receive_buffer=4096)),
        latest(facade.url, "key=hot", receive_buffer=4096) as slow,
        closing(open_stream(facade.url, "key=hot")) as quick,
    ):
        through_sync(quick)
        value, number = "x" * 10_000, 0
        while metric(facade.url, "kvstore_http_streams_dropped_total") == 0:
            batch(facade.url, [put("hot", f"{number} {value}") for number in range(number, number + 50)])
            number += 50
        for expected in range(number):
            assert quick.first().json["value"].startswith(f"{expected} "), "nobody else is slowed down"
        told = 0
        for event in slow:
            told += 1 + event.json["skipped"] if event.name == "put" else 0
            if told == number:
                break
    assert event.json["value"].startswith(f"{number - 1} ")


def bodies(stream: Stream, accept: str) -> Iterator[dict[str, Any]]:
    if "ndjson" not in accept:
        yield from (event.json for event in stream if event.name == "put")
        return
    for line in stream.response:
        body = json.loads(line)
        if body["event"] == "put":
            yield body


def test_more_keys_than_fit_are_read_from_the_log_and_none_is_lost(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, stream_buffer_bytes="64KiB", workers=1, daemon_timeout="60s")
    ledger, changes, value = Ledger(), Counter[str](), "x" * 500
    before = operations(facade.url)
    with latest(facade.url, "prefix=many/", receive_buffer=262_144) as slow:
        events = iter(slow)
        while next(events).name != "sync":
            pass
        most_waits = 0
        for turn in range(6):
            ops = [put(f"many/{number}", f"{turn} {value}") for number in range(1500)]
            if turn == 4:
                ops = [delete(f"many/{number}") for number in range(0, 1500, 7)]
            if turn == 5:
                ops = [put(f"many/{number}", "last") for number in range(0, 1500, 14)]
            batch(facade.url, [*ops, put("other", turn)])
            changes.update(op["key"] for op in ops)
            most_waits = max(most_waits, metric(facade.url, "kvstore_http_stream_backlog_bytes"))
        last = batch(facade.url, [put("many/end", "end")])[0]["revision"]
        changes["many/end"] += 1
        for event in events:
            ledger.enter(event)
            if ledger.revision == last:
                break
    assert ledger.changes == changes, "delivered and skipped are all changes, of every key"
    assert ledger.state == stored(facade.url, "many/")
    assert operations(facade.url)["events"] > before.get("events", 0), "it had to be read again"
    assert most_waits <= 2 * 64 * 1024, "what it was sent and what waits, in bytes"
    assert metric(facade.url, "kvstore_http_stream_resets_total") == 0


def floor(url: str) -> int:
    found: int = call(url, "GET", "/v1/status").json["floor"]
    return found


def operations(url: str) -> dict[str, int]:
    found: dict[str, int] = call(url, "GET", "/v1/status").json["counters"]["operations_by_name"]
    return found


def stored(url: str, prefix: str) -> dict[str, str]:
    answer = call(url, "GET", f"/v1/kv?prefix={quote(prefix)}", headers={"Accept": "application/x-ndjson"})
    return {record["key"]: record["value"] for record in map(json.loads, answer.body.splitlines())}


def test_one_that_the_log_no_longer_reaches_gets_a_snapshot_of_the_present(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(retain_events=300)
    facade = start_facade(daemon, stream_buffer_bytes="4KiB", workers=1, daemon_timeout="60s")
    state: dict[str, str] = {}
    with latest(facade.url, "prefix=past/", receive_buffer=4096) as slow:
        events = iter(slow)
        while next(events).name != "sync":
            pass
        value = "x" * 12_000  # so that the facade remembers no more than a part of it
        for turn in range(12):
            ops = [put(f"past/{number}", f"{turn} {value}") for number in range(100 + turn)]
            batch(facade.url, [*ops, delete(f"past/{turn}")])
        last = batch(facade.url, [put("past/end", "end")])[0]["revision"]
        wait_until(lambda: floor(facade.url) > last - 400, what="the log is trimmed")
        resets = 0
        for event in events:
            if event.name == "reset":
                state, resets = {}, resets + 1
            elif event.name == "put":
                state[event.json["key"]] = event.json["value"]
            elif event.name == "delete":
                del state[event.json["key"]]
            is_end = event.name == "put" and event.json["revision"] == last and not event.json.get("snapshot")
            if is_end or (event.name == "sync" and event.json["revision"] >= last):
                break
    assert resets > 0, "it was that slow"
    assert state == stored(facade.url, "past/")


def test_a_reader_that_is_cut_off_anywhere_and_resumes_has_the_newest_of_every_key(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, stream_buffer_bytes="16KiB", workers=1, daemon_timeout="60s")
    seed = random.randrange(2**32)
    dice, reader = random.Random(seed), Resuming()
    last_id = f"0-{call(facade.url, 'GET', '/v1/status').json['epoch']}"
    for turn in range(25):
        value = f"{turn}" * 200
        query = "prefix=r/" + dice.choice(["", "&sample=10ms"])
        with latest(facade.url, query, last_id=last_id, receive_buffer=4096) as stream:
            for _ in range(4):
                names = [f"r/{dice.randrange(60)}" for _ in range(50)]
                batch(
                    facade.url, [dice.choice([put(name, f"{turn} {value}"), delete(name)]) for name in names]
                )
            last_id = reader.read(islice(stream, dice.randrange(1, 150))) or last_id
    with latest(facade.url, "prefix=r/", last_id=last_id) as stream:
        reader.read(through_sync(stream))
    assert reader.state == stored(facade.url, "r/"), f"seed {seed}"


class Resuming:
    """Keeps the newest of each key, as who resumes from the last id may get what came behind it again."""

    def __init__(self) -> None:
        self._newest: dict[str, StreamEvent] = {}

    def read(self, events: Iterable[StreamEvent]) -> str | None:
        """Take in ``events``; the last id."""
        last_id = None
        for event in events:
            last_id = event.id or last_id
            if event.name in ("put", "delete"):
                known = self._newest.get(event.json["key"])
                if known is None or event.json["revision"] > known.json["revision"]:
                    self._newest[event.json["key"]] = event
            elif event.name == "sync":
                break
        return last_id

    @property
    def state(self) -> dict[str, str]:
        return {key: event.json["value"] for key, event in self._newest.items() if event.name == "put"}


# ── what a stream of the latest is ───────────────────────────────────────────────────────────────


def test_from_the_log_each_key_comes_once_with_what_it_stands_for(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    ops = [put(f"{prefix}{number % 3}", number) for number in range(2500)]
    results = [result for begin in range(0, 2500, 500) for result in batch(url, ops[begin : begin + 500])]
    batch(url, [delete(f"{prefix}1")])
    with latest(url, f"prefix={prefix}&since={results[0]['revision'] - 1}") as reader:
        *events, sync = through_sync(reader)
    found = [(event.name, event.json["key"].removeprefix(prefix), event.json["skipped"]) for event in events]
    assert found == [("put", "2", 832), ("put", "0", 833), ("delete", "1", 833)]
    assert int(sync.id.split("-")[0]) >= events[-1].json["revision"]
    for event in events:
        assert event.id is None or int(event.id.split("-")[0]) <= event.json["revision"]


def test_only_the_wanted_kinds_count_and_values_and_previous_come_as_ever(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    (first, *_) = batch(
        url, [put(prefix + "k", 1), put(prefix + "k", 2), delete(prefix + "k"), put(prefix + "l", 3)]
    )
    since = first["revision"] - 1
    with latest(url, f"prefix={prefix}&since={since}&ops=put&prev=1") as reader:
        k, other, _ = through_sync(reader)
    assert (k.json["value"], k.json["skipped"], k.json["previous"]["value"]) == ("2", 1, "1")
    assert (other.json["value"], other.json["skipped"]) == ("3", 0)
    with latest(url, f"prefix={prefix}&since={since}&values=0") as reader:
        k, other, _ = through_sync(reader)
    assert (k.name, k.json["skipped"]) == ("delete", 2)
    assert "value" not in other.json


def test_of_an_atomic_batch_comes_what_is_still_the_newest(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    results = batch(url, [put(f"{prefix}{name}") for name in "abc"], atomic=True)
    batch(url, [put(f"{prefix}b", "later")])
    with latest(url, f"prefix={prefix}&since={results[0]['revision'] - 1}") as reader:
        *events, _ = through_sync(reader)
    assert [(e.json["key"][-1], e.json["index"], e.json["count"], e.json["skipped"]) for e in events] == [
        ("a", 0, 3, 0),
        ("c", 2, 3, 0),
        ("b", 0, 1, 1),
    ]


def test_a_quick_reader_of_the_latest_gets_what_others_get(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    with (
        latest(url, f"prefix={prefix}&snapshot=1") as reader,
        closing(open_stream(url, f"prefix={prefix}")) as plain,
    ):
        through_sync(reader)
        through_sync(plain)
        for number in range(20):
            batch(url, [put(prefix + "k", number)])
            ours, theirs = reader.first(), plain.first()
            body = ours.json
            assert body.pop("skipped") == 0
            assert (ours.name, ours.id, body) == (theirs.name, theirs.id, theirs.json)


def test_a_snapshot_comes_whole_and_then_the_latest(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    batch(url, [put(f"{prefix}{number}") for number in range(450)])
    with latest(url, f"prefix={prefix}&snapshot=1") as reader:
        *records, sync = through_sync(reader)
        assert len(records) == 450
        assert all("skipped" not in record.json and record.json["snapshot"] for record in records)
        assert sync.id
        batch(url, [put(f"{prefix}new")])
        assert reader.first().json["skipped"] == 0


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────


def test_with_a_sample_each_key_comes_at_once_and_not_again_before_its_time(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    with latest(url, f"prefix={prefix}&sample=1h") as reader:
        through_sync(reader)
        ids = []
        for name in "abc":
            for number in range(3):
                batch(url, [put(prefix + name, number)])
            event = reader.first()
            assert (event.json["key"], event.json["value"]) == (prefix + name, "0")
            ids.append(event.id)
        assert all(ids)
        assert ids[1] == ids[2], "a's later changes wait, so no later position is safe"
    with latest(url, f"prefix={prefix}", last_id=ids[-1]) as reader:
        *events, _ = through_sync(reader)
    assert {event.json["key"][-1]: event.json["value"] for event in events} == {"a": "2", "b": "2", "c": "2"}


def test_with_a_sample_a_key_comes_once_in_each_interval_with_its_newest_value(
    shared_service: Service, prefix: str
) -> None:
    url, interval = shared_service.url, 0.2
    ledger, changes = Ledger(), Counter[str]()
    with latest(url, f"prefix={prefix}&sample=200ms") as reader:
        through_sync(reader)
        begun = time.monotonic()
        for number in range(60):
            batch(url, [put(f"{prefix}{name}", number) for name in "abc"])
            changes.update(f"{prefix}{name}" for name in "abc")
        for event in reader:
            ledger.enter(event, in_order=False)
            if ledger.changes == changes:
                break
        most = 3 * (2 + int((time.monotonic() - begun) / interval))
    assert ledger.delivered <= most
    assert set(ledger.state.values()) == {"59"}


def test_more_keys_than_a_sample_can_remember_all_come(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, stream_buffer_bytes="32KiB", workers=1, daemon_timeout="60s")
    ledger, changes = Ledger(), Counter[str]()
    with latest(facade.url, "prefix=s/&sample=50ms") as reader:
        through_sync(reader)
        for turn in range(3):
            ops = [put(f"s/{number}", turn) for number in range(400)]
            batch(facade.url, ops)
            changes.update(op["key"] for op in ops)
        for event in reader:
            ledger.enter(event, in_order=False)
            if ledger.changes == changes:
                break
    assert set(ledger.state.values()) == {"2"}
    assert metric(facade.url, "kvstore_http_streams_dropped_total") == 0


@pytest.mark.parametrize(
    "query",
    [
        "deliver=newest",
        "deliver=",
        "sample=0",
        "sample=9ms",
        "sample=2h",
        "sample=x",
        "deliver=all&sample=1s",
    ],
)
def test_what_cannot_be_delivered_is_refused(shared_service: Service, query: str) -> None:
    with closing(Session(shared_service.url)) as session:
        problem = assert_problem(session.get(f"/v1/subscribe?{query}"), "bad_request")
        assert problem["parameter"] in query
        body: dict[str, Any] = dict(pair.split("=") for pair in query.split("&"))
        answer = session.request("POST", "/v1/subscribe", json.dumps(body).encode(), JSON_TYPE)
        assert_problem(answer, "bad_request")
        for sample in (0, 0.009, 3601, 1e300, None, True):
            answer = session.request(
                "POST", "/v1/subscribe", json.dumps({"sample": sample}).encode(), JSON_TYPE
            )
            assert_problem(answer, "bad_request")
