"""Which changes a stream gets, and how they are written: properties, without a socket."""

from __future__ import annotations

import base64
import json
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.filters import Filter
from kvstore_core.follower import Batch
from kvstore_core.model import Cursor, Event, Record
from kvstore_http.streaming import event_format
from kvstore_http.streaming.event_format import Encoder, Format
from kvstore_http.streaming.filter_index import FilterIndex

pytestmark = pytest.mark.slow

EPOCH = "00112233445566ff"

# few characters, so that prefixes meet; every plane, so that lengths in bytes and text differ
keys = st.text(st.sampled_from("ab/é\U0001f600"), min_size=1, max_size=4) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
ops = st.sampled_from(("put", "delete", "expire"))
values = st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace"))
filters = st.tuples(
    st.lists(keys | st.just(""), max_size=3), st.lists(keys, max_size=3), st.lists(ops, max_size=3)
)


@st.composite
def records(draw: st.DrawFn, key: str, revision: int = 1) -> Record:
    expires_at = draw(st.none() | st.integers(1, 2**41))
    said = draw(st.none() | st.text(min_size=1, max_size=9)), draw(st.none() | st.just("why"))
    return Record(
        key, draw(values), "text/plain", revision, 1, 2, draw(st.integers(0, 2**41)), expires_at, *said
    )


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    found: list[Batch] = []
    for number, size in enumerate(draw(st.lists(st.integers(1, 3), max_size=5))):
        batch: Batch = []
        for index in range(size):
            key, op = draw(keys), draw(ops)
            record = draw(records(key, number + 1)) if op == "put" else None
            previous = draw(records(key)) if op == "expire" else draw(st.none() | records(key))
            said = (record.author, record.message) if record else (draw(st.sampled_from(["ann", None])), None)
            batch.append(Event(op, key, number + 1, index, size, 5, record, previous, number, *said))
        found.append(batch)
    return found


def naively(batches: list[Batch], wanted: Filter) -> list[Batch]:
    taken = [[event for event in batch if wanted.matches(event.op, event.key)] for batch in batches]
    return [batch for batch in taken if batch]


@given(st.lists(filters, max_size=6), batches())
def test_the_index_finds_for_each_group_what_its_filter_takes(
    given_filters: list[Any], changes: list[Batch]
) -> None:
    index: FilterIndex[int] = FilterIndex()
    for number, (prefixes, names, kinds) in enumerate(given_filters):
        index.add(number, Filter.normalized(prefixes, names, kinds))
    found = index.matches(changes)
    for number, (prefixes, names, kinds) in enumerate(given_filters):
        wanted = Filter(tuple(prefixes), frozenset(names), frozenset(kinds))
        assert found.get(number, []) == naively(changes, wanted)


@given(st.lists(filters, min_size=1, max_size=6), st.data())
def test_a_group_that_was_removed_is_found_no_more(given_filters: list[Any], data: st.DataObject) -> None:
    index: FilterIndex[int] = FilterIndex()
    for number, given_filter in enumerate(given_filters):
        index.add(number, Filter.normalized(*given_filter))
    gone = data.draw(st.sets(st.sampled_from(range(len(given_filters)))))
    for number in gone:
        index.remove(number)
    assert len(index) == len(given_filters) - len(gone)
    assert not gone & set(index.matches(data.draw(batches())))


@given(filters, st.randoms(use_true_random=False))
def test_equal_wishes_have_one_normal_form(given_filter: Any, random: Any) -> None:
    prefixes, names, kinds = given_filter
    shuffled = [random.sample(part * 2, 2 * len(part)) for part in given_filter]
    covered = [prefix + "x" for prefix in prefixes]
    assert Filter.normalized(*shuffled) == Filter.normalized(prefixes + covered, names + covered, kinds)


def read_sse(text: str) -> list[tuple[str, str | None, str]]:
    """Events as the HTML standard has them parsed: name, id and data."""
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields["event"], fields.get("id"), fields["data"]))
    return found


def expected_cursors(changes: list[Batch]) -> list[str | None]:
    cursors: list[str | None] = []
    for batch in changes:
        cursors += [None] * (len(batch) - 1) + [f"{batch[0].revision}-{EPOCH}"]
    return cursors


@given(batches(), st.booleans())
def test_sse_gives_the_events_back_with_an_id_on_the_last_of_each_revision(
    changes: list[Batch], has_values: bool
) -> None:
    form = Format(is_sse=True, has_values=has_values, is_chunked=False)
    read = read_sse(Encoder(EPOCH).batches(form, changes).decode())
    events = [event for batch in changes for event in batch]
    assert [name for name, _, _ in read] == [event.op for event in events]
    assert [ident for _, ident, _ in read] == expected_cursors(changes)
    for (_, _, data), event in zip(read, events, strict=True):
        check_event(json.loads(data), event, has_values)


@given(batches(), st.booleans())
def test_ndjson_gives_the_events_back_with_a_cursor_on_the_last_of_each_revision(
    changes: list[Batch], has_values: bool
) -> None:
    form = Format(is_sse=False, has_values=has_values, is_chunked=False)
    lines = Encoder(EPOCH).batches(form, changes).decode().split("\n")
    assert lines.pop() == ""
    objects = [json.loads(line) for line in lines]
    events = [event for batch in changes for event in batch]
    assert [found.pop("event") for found in objects] == [event.op for event in events]
    assert [found.pop("cursor", None) for found in objects] == expected_cursors(changes)
    for found, event in zip(objects, events, strict=True):
        check_event(found, event, has_values)


def check_event(found: dict[str, Any], event: Event, has_values: bool) -> None:
    assert (found["op"], found["key"], found["revision"]) == (event.op, event.key, event.revision)
    assert (found["index"], found["count"]) == (event.index, event.count)
    assert value_in(found) == (event.record.value if event.record and has_values else None)
    assert ("previous" in found) == (event.previous is not None)
    if event.previous is not None:
        assert value_in(found["previous"]) == (event.previous.value if has_values else None)


def value_in(found: dict[str, Any]) -> bytes | None:
    if "value" in found:
        text: str = found["value"]
        return text.encode()
    return base64.b64decode(found["value_b64"]) if "value_b64" in found else None


def unchunked(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        assert length > 0, "a chunk of no bytes ends the body"
        body += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        data = rest[length + 2 :]
    return body


@given(st.lists(st.binary(max_size=50)))
def test_chunks_carry_the_messages_and_none_is_empty(messages: list[bytes]) -> None:
    chunked = Format(is_sse=True, has_values=True, is_chunked=True)
    assert unchunked(b"".join(map(chunked.framed, messages))) == b"".join(messages)
    bare = chunked._replace(is_chunked=False)
    assert b"".join(map(bare.framed, messages)) == b"".join(messages)


def test_sync_heartbeat_and_reset_say_where_the_stream_stands() -> None:
    sse, ndjson = Format(True, True, False), Format(False, True, False)
    here = Cursor(5, EPOCH)
    assert read_sse(event_format.sync(sse, here).decode()) == [
        ("sync", str(here), json.dumps({"revision": 5, "cursor": str(here)}, separators=(",", ":")))
    ]
    assert json.loads(event_format.sync(ndjson, here)) == {
        "event": "sync",
        "revision": 5,
        "cursor": str(here),
    }
    beat = event_format.heartbeat(ndjson, here, 0, is_position=True)
    time = "1970-01-01T00:00:00.000Z"
    assert json.loads(beat) == {"event": "heartbeat", "revision": 5, "time": time, "cursor": str(here)}
    assert b"id:" not in event_format.heartbeat(sse, here, 0, is_position=False)
    reset = read_sse(event_format.reset(sse, "expired", 3, here).decode())
    body = {"reason": "expired", "floor": 3, "cursor": str(here)}
    assert reset == [("reset", None, json.dumps(body, separators=(",", ":")))]


def test_the_json_of_an_event_is_made_once_for_all_who_want_it() -> None:
    record = Record("k", b"v", "text/plain", 1, 1, 1, 0)
    batch = [Event("put", "k", 1, 0, 1, 0, record, None, 0)]
    encoder = Encoder(EPOCH)
    sse = encoder.batches(Format(True, True, True), [batch])
    batch[0].record = None  # what is made already is not made again
    ndjson = encoder.batches(Format(False, True, True), [batch])
    assert json.loads(ndjson)["value"] == "v"
    assert b'"value":"v"' in sse


def test_events_of_a_revision_stay_together_for_each_group() -> None:
    index: FilterIndex[str] = FilterIndex()
    index.add("a", Filter.normalized(["a"], [], []))
    changes = [[Event("delete", key, 1, at, 3, 0, None, None, 0) for at, key in enumerate(("a1", "b", "a2"))]]
    taken = index.matches(changes)["a"]
    assert [[event.key for event in batch] for batch in taken] == [["a1", "a2"]]
    assert [revision for revision, _ in groupby(batch[0].revision for batch in taken)] == [1]
