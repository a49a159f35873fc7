"""A stream that breaks anywhere goes on with nothing lost and nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_cli.http_client.change_stream import (
    EVENTS,
    HEARTBEAT,
    RESET,
    SNAPSHOT,
    SYNC,
    StreamPosition,
    StreamUpdate,
    follow,
)
from kvstore_cli.http_client.client import ServiceClient
from kvstore_core.errors import KvError
from support.scripted import Play, chunks, problem

EPOCH = "0123456789abcdef"
Line = dict[str, Any]


def cursor(revision: int) -> str:
    """The cursor of a revision."""
    return f"{revision}-{EPOCH}"


def put(revision: int, index: int = 0, count: int = 1) -> Line:
    """An event line; the last of its revision carries the cursor."""
    place = {"revision": revision, "index": index}
    line = {"event": "put", "op": "put", "key": f"k{index}", "value": "v", **place}
    return line | ({"cursor": cursor(revision)} if index == count - 1 else {})


def sync(revision: int) -> Line:
    """The line that ends a snapshot or the catching-up."""
    return {"event": "sync", "revision": revision, "cursor": cursor(revision)}


@dataclass
class ModelService:
    """The stream as docs/http.md describes it: revisions with so many events each, above a floor."""

    sizes: list[int]
    floor: int = 0
    head: int = field(init=False)

    def __post_init__(self) -> None:
        self.head = len(self.sizes)

    def events(self, since: int) -> Iterator[Line]:
        """All events after a revision."""
        for revision in range(since + 1, self.head + 1):
            count = self.sizes[revision - 1]
            yield from (put(revision, index, count) for index in range(count))

    def snapshot(self) -> Iterator[Line]:
        """Present records; each key is as its last event left it."""
        newest = {line["key"]: line["revision"] for line in self.events(0)}
        for key, revision in sorted(newest.items()):
            place = {"index": 0, "count": 1, "snapshot": True}
            yield {"event": "put", "op": "put", "key": key, "revision": revision, "value": "v", **place}
        yield sync(self.head)

    def stream(self, query: dict[str, str]) -> Iterator[Line]:
        """What a connection with these parameters is sent, up to now."""
        if "since" in query:
            since = int(query["since"].partition("-")[0])
            if since < self.floor:
                reset = {"event": "reset", "reason": "expired", "floor": self.floor}
                yield reset | {"cursor": cursor(self.head)}
                yield from self.snapshot()
                return
            yield from self.events(since)
            yield sync(self.head)
        elif "snapshot" in query:
            yield from self.snapshot()
        else:
            yield sync(self.head)
        yield {"event": "heartbeat", "revision": self.head, "cursor": cursor(self.head)}


def run(position: StreamPosition, service: ModelService, cuts: list[int]) -> list[StreamUpdate]:
    """All updates when the first connections are cut after so many lines and the last one is not."""
    updates: list[StreamUpdate] = []
    for attempt, cut in enumerate([*cuts, None]):
        lines = list(service.stream(dict(position.query())))[:cut]
        if attempt:
            updates += position.reopened()
        for line in lines:
            updates += position.feed(line)
    return updates


def told(updates: list[StreamUpdate]) -> list[tuple[int, int]]:
    """Revision and index of the events that were given out."""
    return [
        (line["revision"], line["index"])
        for update in updates
        if update.kind == EVENTS
        for line in update.lines
    ]


_SIZES = st.lists(st.integers(1, 4), max_size=12)
_CUTS = st.lists(st.integers(0, 15), max_size=6)


@given(_SIZES, _CUTS, st.integers(0, 12))
def test_every_event_after_the_cursor_comes_once_and_in_order(
    sizes: list[int], cuts: list[int], since: int
) -> None:
    service = ModelService(sizes)
    since = min(since, service.head)
    updates = run(StreamPosition(cursor(since), snapshot=False), service, cuts)
    assert told(updates) == [(line["revision"], line["index"]) for line in service.events(since)]
    assert updates[-1].cursor == cursor(service.head)


@given(_SIZES, _CUTS)
def test_all_events_of_a_revision_come_in_one_step(sizes: list[int], cuts: list[int]) -> None:
    service = ModelService(sizes)
    updates = run(StreamPosition(cursor(0), snapshot=False), service, cuts)
    steps = [(len(update.lines), update.cursor) for update in updates if update.kind == EVENTS]
    assert steps == [(size, cursor(revision)) for revision, size in enumerate(sizes, 1)]


def view(updates: list[StreamUpdate]) -> dict[str, int]:
    """Key to revision as somebody sees it who applies the updates and drops everything on a reset."""
    seen: dict[str, int] = {}
    for update in updates:
        if update.kind == RESET:
            seen.clear()
        elif update.kind in (SNAPSHOT, EVENTS):
            for line in update.lines:
                assert line["revision"] >= seen.get(line["key"], 0)
                seen[line["key"]] = line["revision"]
    return seen


@given(_SIZES, _CUTS, st.booleans(), st.integers(0, 12))
def test_a_snapshot_or_a_reset_leads_to_the_present_state_wherever_it_is_cut(
    sizes: list[int], cuts: list[int], starts_with_snapshot: bool, floor: int
) -> None:
    service = ModelService(sizes, floor=min(floor, len(sizes)))
    start = StreamPosition(None if starts_with_snapshot else cursor(0), snapshot=starts_with_snapshot)
    updates = run(start, service, cuts)
    assert view(updates) == {line["key"]: line["revision"] for line in service.events(0)}
    assert [update.kind for update in updates].count(SYNC) >= 1


def test_a_snapshot_that_is_told_once_is_not_void() -> None:
    updates = run(StreamPosition(None, snapshot=True), ModelService([1, 2]), [])
    assert [update.kind for update in updates] == [SNAPSHOT, SNAPSHOT, SYNC, HEARTBEAT]


def test_a_cursor_inside_a_snapshot_is_no_position() -> None:
    position = StreamPosition(cursor(1), snapshot=False)
    list(position.feed({"event": "reset", "reason": "epoch", "floor": 5, "cursor": cursor(9)}))
    assert position.query() == [("snapshot", "1")]


def test_what_a_newer_service_adds_is_passed_over() -> None:
    position = StreamPosition(cursor(1), snapshot=False)
    assert list(position.feed({"event": "weather", "cursor": cursor(8)})) == []
    assert list(position.feed({})) == []
    assert position.query() == [("since", cursor(1))]


# ── over HTTP ────────────────────────────────────────────────────────────────────────────────────


def send(*lines: Line | bytes) -> Play:
    """Send these lines and cut the connection off."""
    return chunks(*(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines))


def test_a_broken_stream_is_opened_again_where_it_stood(script: Any) -> None:
    script.plays = [
        send(sync(1), put(2), put(3, 0, 2)),
        problem("unavailable"),
        problem("too_busy", {"Retry-After": "0"}),
        send(put(3, 0, 2), put(3, 1, 2), sync(3)),
        send(put(4)),
    ]
    said: list[str] = []
    with ServiceClient(script.url, timeout_ms=20_000) as service:
        updates = follow(
            service, [("prefix", "k")], StreamPosition(None, False), stall_ms=20_000, notice=said.append
        )
        got = [(update.kind, len(update.lines)) for update in islice(updates, 5)]
        updates.close()
    assert got == [(SYNC, 1), (EVENTS, 1), (EVENTS, 2), (SYNC, 1), (EVENTS, 1)]
    queries = [seen.target.partition("?")[2] for seen in script.seen]
    since = [f"prefix=k&since={cursor(revision)}" for revision in (2, 2, 2, 3)]
    assert queries == ["prefix=k", *since]
    assert script.seen[0].headers["Accept"] == "application/x-ndjson"
    assert "reconnecting" in said[0]
    assert "reconnected" in said[1]


@pytest.mark.parametrize(
    ("plays", "told", "error"),
    [
        ([send(sync(1)), problem("not_allowed")], [SYNC], "not_allowed: "),
        ([problem("cursor_expired")], [], "cursor_expired: "),
        ([send(b"<h1>hello</h1>\n")], [], "internal: the stream holds a line that is not a JSON object"),
    ],
    ids=["a refusal that time does not cure", "a first connection that fails", "a stream of something else"],
)
def test_what_cannot_go_on_ends_with_its_error(
    script: Any, plays: list[Any], told: list[str], error: str
) -> None:
    script.plays = plays
    with ServiceClient(script.url, timeout_ms=20_000) as service:
        updates = follow(service, [], StreamPosition(None, False), stall_ms=20_000)
        assert [update.kind for update in islice(updates, len(told))] == told
        with pytest.raises(KvError) as caught:
            next(updates)
    assert f"{caught.value.code}: {caught.value.message}".startswith(error)
