"""The event stream over real sockets: its forms, where it begins, and what it survives."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from support.servers import Daemon, Facade, Service, wait_until
from support.session import call, connect
from support.streams import Stream, StreamEvent, open_stream

NDJSON = {"Accept": "application/x-ndjson"}


@pytest.fixture
def prefix() -> str:
    """Keys of one test in the store that tests share."""
    return f"{random.randrange(2**40):x}/"


@contextmanager
def connected(url: str) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    with closing(connection):
        yield connection


def ask(url: str, method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """One request; the status and the decoded JSON of the answer."""
    answer = call(url, method, target, body, {name.replace("_", "-"): v for name, v in headers.items()})
    return answer.status, json.loads(answer.body or b"null")


def put(url: str, key: str, value: bytes = b"v", query: str = "") -> int:
    status, answer = ask(url, "PUT", f"/v1/kv/{quote(key, safe='')}{query}", value, content_type="text/plain")
    assert status in (200, 201), answer
    revision: int = answer["revision"]
    return revision


def put_one_by_one(url: str, keys: list[str]) -> list[int]:
    """Store keys in one request, each by a revision of its own; the revisions."""
    ops = [{"op": "put", "key": key, "value": "v"} for key in keys]
    status, answer = ask(
        url, "POST", "/v1/batch", json.dumps({"ops": ops}).encode(), content_type="application/json"
    )
    assert status == 200, answer
    return [result["revision"] for result in answer["results"]]


def epoch(url: str) -> str:
    found: str = ask(url, "GET", "/v1/status")[1]["epoch"]
    return found


@contextmanager
def stream(url: str, query: str, last_id: str | None = None) -> Iterator[Iterator[StreamEvent]]:
    opened = open_stream(url, query, last_id)
    with closing(opened):
        yield iter(opened)


def changes(events: Iterator[StreamEvent]) -> Iterator[StreamEvent]:
    return (event for event in events if event.name != "heartbeat")


def through_sync(events: Iterator[StreamEvent]) -> list[StreamEvent]:
    """Everything up to the sync, which is the last."""
    found = []
    for event in changes(events):
        found.append(event)
        if event.name == "sync":
            return found
    raise AssertionError(f"the stream ended: {found}")


def keys(events: list[StreamEvent]) -> list[str]:
    return [event.json["key"] for event in events if event.name in ("put", "delete", "expire")]


# ── where it begins ──────────────────────────────────────────────────────────────────────────────


def test_a_stream_without_a_start_begins_now_and_says_so(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    before = put(url, f"{prefix}before")
    with stream(url, f"prefix={prefix}") as events:
        (sync,) = through_sync(events)
        assert sync.json == {"revision": sync.json["revision"], "cursor": sync.id}
        assert sync.json["revision"] >= before
        revision = put(url, f"{prefix}after", "žluť".encode())
        event = next(changes(events))
    assert (event.name, event.id) == ("put", f"{revision}-{epoch(url)}")
    assert event.json["key"] == f"{prefix}after"
    assert event.json["value"] == "žluť"
    assert event.json["revision"] == event.json["create_revision"] == revision


def test_a_snapshot_shows_what_is_there_without_ids_and_then_syncs(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    put_one_by_one(url, [f"{prefix}{number:03}" for number in range(450)])
    put(url, f"~{prefix}other")
    with stream(url, f"prefix={prefix}&snapshot=1") as events:
        *records, sync = through_sync(events)
        revision = put(url, f"{prefix}new")
        assert next(changes(events)).json["revision"] == revision
    assert keys(records) == [f"{prefix}{number:03}" for number in range(450)]
    assert all(record.id is None for record in records)
    assert sync.id is not None


def test_a_stream_goes_on_after_a_cursor_and_after_a_bare_revision(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    revisions = put_one_by_one(url, [f"{prefix}{number}" for number in range(450)])
    era = epoch(url)
    for since in (f"{revisions[9]}-{era}", str(revisions[9])):
        with stream(url, f"prefix={prefix}&since={since}") as events:
            found = [event for event in through_sync(events) if event.name != "sync"]
            later = [revision for revision in revisions if revision > revisions[9]]
            assert [event.json["revision"] for event in found] == later
            last = [event.id for event in found if event.json["index"] + 1 == event.json["count"]]
            assert last == [f"{revision}-{era}" for revision in sorted(set(later))]


def test_last_event_id_wins_over_the_address_that_a_browser_repeats(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    first, second = put(url, f"{prefix}1"), put(url, f"{prefix}2")
    for query in (f"since={first - 1}", "snapshot=1"):
        with stream(url, f"prefix={prefix}&{query}", f"{first}-{epoch(url)}") as events:
            event, _sync = through_sync(events)
            assert event.json["revision"] == second
            assert event.id is not None


def test_a_writer_may_follow_from_its_own_write_at_once(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    for number in range(15):
        first = put(url, f"{prefix}{number}")
        with stream(url, f"prefix={prefix}&since={first}") as events:
            (sync,) = through_sync(events)
            assert sync.json["revision"] >= first
            second = put(url, f"{prefix}{number}")
            assert next(changes(events)).json["revision"] == second


def test_a_reader_that_comes_and_goes_between_writes_sees_each_once(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    last = f"{put(url, prefix)}-{epoch(url)}"
    written: list[str] = []
    read: list[str] = []
    for visit in range(12):
        # nobody listens now, so the worker does not look at what is written
        for number in range(visit % 4):
            written.append(f"{prefix}{visit}.{number}")
            put(url, written[-1])
        pair = [f"{prefix}{visit}.left", f"{prefix}{visit}.right"]
        ops = [{"op": "put", "key": key, "value": ""} for key in pair]
        body = json.dumps({"atomic": True, "ops": ops}).encode()
        ask(url, "POST", "/v1/batch", body, content_type="application/json")
        written += pair
        with stream(url, f"prefix={prefix}&since={last}") as events:
            written.append(f"{prefix}{visit}.live")
            put(url, written[-1])
            for event in changes(events):
                read += keys([event])
                last = event.id or last
                if read[-1:] == written[-1:] and event.id:
                    break
    assert read == written


def test_a_revision_that_the_store_never_gave_out_is_answered_with_a_reset(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    put(url, f"{prefix}k")
    for cursor, reason in ((f"9000000-{epoch(url)}", "epoch"), ("1-00112233445566ff", "epoch")):
        with stream(url, f"prefix={prefix}&since={cursor}") as events:
            reset, record, sync = through_sync(events)
        assert (reset.name, reset.id, reset.json["reason"]) == ("reset", None, reason)
        assert (record.name, record.id, record.json["key"]) == ("put", None, f"{prefix}k")
        assert sync.id is not None


def test_a_cursor_that_the_log_no_longer_reaches_is_answered_with_a_reset(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(retain_events=10)
    url = start_facade(daemon).url
    first = put(url, "k")
    wait_until(lambda: put(url, "k") and ask(url, "GET", "/v1/status")[1]["floor"] > first)
    # another one, for the first remembers more than the log holds
    with stream(start_facade(daemon).url, f"since={first}") as events:
        reset, record, _sync = through_sync(events)
    assert (reset.name, reset.json["reason"]) == ("reset", "expired")
    assert reset.json["floor"] > first
    assert record.json["key"] == "k"


@pytest.mark.parametrize("most", [1, 7])
def test_a_snapshot_of_many_keys_comes_from_a_daemon_that_takes_few_ops_at_once(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], most: int
) -> None:
    url = start_facade(start_daemon(max_batch_ops=most)).url
    keys = [f"k{number:02}" for number in range(30)]
    for key in keys:
        put(url, key)
    with stream(url, "snapshot=1&" + "&".join(f"key={key}" for key in keys)) as events:
        *records, sync = through_sync(events)
    assert [record.json["key"] for record in records] == keys
    assert sync.id is not None


# ── what it brings ───────────────────────────────────────────────────────────────────────────────


def test_prefixes_keys_and_kinds_choose_the_events(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    query = f"prefix={prefix}a&prefix={prefix}b/&key={prefix}one&key={prefix}two&ops=delete,put"
    with stream(url, query) as events:
        through_sync(events)
        for key in ("a", "abc", "b", "b/", "b/c", "one", "ones", "two", "c"):
            put(url, f"{prefix}{key}")
        ask(url, "DELETE", f"/v1/kv/{quote(prefix, safe='')}two")
        found = [next(changes(events)) for _ in range(7)]
    assert keys(found) == [f"{prefix}{key}" for key in ("a", "abc", "b/", "b/c", "one", "two", "two")]
    with stream(url, f"prefix={prefix}&ops=delete&since=0") as events:
        assert [event.name for event in through_sync(events)] == ["delete", "sync"]


def test_an_atomic_batch_arrives_together_with_an_id_on_its_last_event(
    shared_service: Service, prefix: str
) -> None:
    url = shared_service.url
    ops = [{"op": "put", "key": f"{prefix}{name}", "value": name} for name in "abc"]
    with stream(url, f"prefix={prefix}") as live:
        through_sync(live)
        body = json.dumps({"atomic": True, "ops": ops}).encode()
        assert ask(url, "POST", "/v1/batch", body, content_type="application/json")[0] == 200
        found = [next(changes(live)) for _ in ops]
        with stream(url, f"prefix={prefix}&since={found[0].json['revision'] - 1}") as resumed:
            assert through_sync(resumed)[:-1] == found
    assert [event.id is None for event in found] == [True, True, False]
    assert len({event.json["revision"] for event in found}) == 1
    assert [(event.json["index"], event.json["count"]) for event in found] == [(0, 3), (1, 3), (2, 3)]


def test_previous_records_come_on_request_live_and_from_the_log(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    key = quote(f"{prefix}k", safe="")
    with stream(url, f"prefix={prefix}&prev=1&since={put(url, f'{prefix}0')}") as live:
        through_sync(live)
        first = put(url, f"{prefix}k", b"one")
        put(url, f"{prefix}k", b"two")
        ask(url, "DELETE", f"/v1/kv/{key}")
        found = [next(changes(live)) for _ in range(3)]
    with stream(url, f"prefix={prefix}&prev=1&since={first - 1}") as later:
        assert through_sync(later)[:-1] == found
    assert "previous" not in found[0].json
    assert [event.json["previous"]["value"] for event in found[1:]] == ["one", "two"]
    with stream(url, f"prefix={prefix}&since={first - 1}") as without:
        assert not any("previous" in event.json for event in through_sync(without))


def test_an_expiry_brings_the_old_value(shared_service: Service, prefix: str) -> None:
    with stream(shared_service.url, f"prefix={prefix}") as events:
        through_sync(events)
        put(shared_service.url, f"{prefix}k", b"old", "?ttl=0.05")
        _put, expire = (next(changes(events)) for _ in range(2))
    assert (expire.name, expire.json["previous"]["value"]) == ("expire", "old")


def test_values_are_left_out_on_request(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    put(url, f"{prefix}k")
    with stream(url, f"prefix={prefix}&values=0&snapshot=1") as events:
        record, _sync = through_sync(events)
        put(url, f"{prefix}k")
        event = next(changes(events))
    for found in (record, event):
        assert "value" not in found.json
        assert found.json["version"]


def test_bytes_that_are_no_text_come_in_base64(shared_service: Service, prefix: str) -> None:
    with stream(shared_service.url, f"prefix={prefix}") as events:
        through_sync(events)
        put(shared_service.url, f"{prefix}k", b"\xff\x00")
        assert next(changes(events)).json["value_b64"] == "/wA="


def test_ndjson_has_an_object_a_line(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    revision = put(url, f"{prefix}k", b"v\n")
    with connected(url) as connection:
        connection.request("GET", f"/v1/subscribe?prefix={prefix}&snapshot=1", headers=NDJSON)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/x-ndjson"
        record, sync = json.loads(response.readline()), json.loads(response.readline())
        second = put(url, f"{prefix}k")
        event = json.loads(response.readline())
        response.close()
    assert (record["event"], record["revision"], record["value"]) == ("put", revision, "v\n")
    assert "cursor" not in record
    assert sync["event"] == "sync"
    assert (event["event"], event["cursor"]) == ("put", f"{second}-{epoch(url)}")


def test_an_http_1_0_client_gets_the_stream_without_chunks(shared_service: Service, prefix: str) -> None:
    with connect(shared_service.url) as sock:
        sock.sendall(f"GET /v1/subscribe?prefix={prefix} HTTP/1.0\r\n\r\n".encode())
        response = HTTPResponse(sock)
        response.begin()
        assert response.headers["Transfer-Encoding"] is None
        assert response.headers["X-Kvstore-Body-Ends"] == "with the connection"
        assert response.readline().startswith(b"retry: ")
        put(shared_service.url, f"{prefix}k")
        while not response.readline().startswith(b"event: put"):
            pass
        response.close()


def test_head_shows_the_headers_and_opens_no_stream(shared_service: Service) -> None:
    answer = call(shared_service.url, "HEAD", "/v1/subscribe")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-store, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "x-kvstore-body-ends" not in answer.headers


def test_the_reconnection_time_differs_between_streams(shared_service: Service) -> None:
    def retry() -> bytes:
        with closing(open_stream(shared_service.url, "")) as opened:
            return opened.response.readline()

    assert len({retry() for _ in range(8)}) > 1


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("since=x", {}, 400, "invalid_cursor"),
        ("since=1-xyz", {}, 400, "invalid_cursor"),
        ("", {"Last-Event-ID": "1-xyz"}, 400, "invalid_cursor"),
        ("since=1&since=2", {}, 400, "bad_request"),
        ("ops=put,eat", {}, 400, "bad_request"),
        ("key=", {}, 400, "invalid_key"),
        ("key=%00", {}, 400, "invalid_key"),
        ("prefix=%ff", {}, 400, "bad_request"),
        ("snapshot=maybe", {}, 400, "bad_request"),
        ("perfix=a", {}, 400, "bad_request"),
        ("&".join(["prefix=a"] * 1001), {}, 400, "bad_request"),
        ("", {"Accept": "image/png"}, 406, "not_acceptable"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_before_it_begins(
    shared_service: Service, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = call(shared_service.url, "GET", f"/v1/subscribe?{query}", headers=headers)
    assert (answer.status, answer.json["code"]) == (status, code)


# ── what it survives ─────────────────────────────────────────────────────────────────────────────


def test_heartbeats_carry_the_position_from_which_the_stream_resumes(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, stream_heartbeat="200ms")
    with stream(facade.url, "prefix=nothing") as events:
        revision = put(facade.url, "something-else")
        beat = next(e for e in events if e.name == "heartbeat" and e.json["revision"] >= revision)
    assert beat.id == f"{revision}-{epoch(facade.url)}"
    assert beat.json["time"].endswith("Z")
    with stream(facade.url, "", beat.id) as events:
        assert [event.name for event in through_sync(events)] == ["sync"]


def test_a_stream_too_many_is_refused_and_room_is_made_by_one_that_ends(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, max_streams=2)
    first, second = open_stream(facade.url, ""), open_stream(facade.url, "")
    refused = call(facade.url, "GET", "/v1/subscribe")
    assert (refused.status, refused.json["code"]) == (503, "too_busy")
    assert refused.headers["retry-after"]
    ended = call(facade.url, "GET", "/v1/subscribe", headers={"Accept": "text/event-stream"})
    assert ended.status == 200, "an EventSource never tries again after anything else"
    assert ended.headers["content-type"] == "text/event-stream"
    assert re.fullmatch(rb"retry: \d{4}\n: 2 streams are open.*\n\n", ended.body)
    first.close()

    def there_is_room() -> bool:
        with connected(facade.url) as connection:
            connection.request("GET", "/v1/subscribe")
            response = connection.getresponse()
            response.close()
            return response.status == 200

    wait_until(there_is_room)
    second.close()


def test_an_event_source_for_whose_connection_there_is_no_room_comes_back(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, max_connections=1, cors_origins="https://app.example")
    with connected(facade.url) as kept:
        kept.request("GET", "/livez")
        kept.getresponse().read()
        for path, accept, status in (
            ("/v1/subscribe", "text/event-stream", 200),
            ("/v1/subscribe", "application/x-ndjson", 503),
            ("/v1/subscribe", "application/x-ndjson, text/event-stream;q=0.1", 503),
            ("/v1/kv/a", "text/event-stream", 503),
        ):
            headers = {"Accept": accept, "Origin": "https://app.example"}
            answer = call(facade.url, "GET", path, headers=headers)
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            if status == 200:
                assert answer.headers["access-control-allow-origin"] == "https://app.example"
                assert re.fullmatch(rb"retry: \d{4}\n: 1 connections are open.*\n\n", answer.body)
            else:
                assert answer.json["code"] == "too_busy"


def test_a_slow_reader_is_cut_off_resumes_and_misses_nothing(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, stream_buffer_bytes="64KiB")
    value = b"x" * 100_000
    slow = open_stream(facade.url, "since=0", receive_buffer=16_384)
    quick = open_stream(facade.url, "since=0")
    quick_changes = changes(iter(quick))
    next(quick_changes)
    revisions = []
    for number in range(120):
        revisions.append(put(facade.url, f"k{number}", value))
        assert next(quick_changes).json["revision"] == revisions[-1], "nobody else is slowed down"
    quick.close()
    seen, last_id = read_until_cut(slow)
    assert len(seen) < len(revisions), "the slow stream was cut off"
    while len(seen) < len(revisions):
        with stream(facade.url, "since=0", last_id) as events:
            found = through_sync(events)
            seen += [event.json["revision"] for event in found[:-1]]
            last_id = found[-1].id
    assert seen == revisions


def read_until_cut(slow: Stream) -> tuple[list[int], str | None]:
    """The revisions that arrived whole, and the last id; what came without an id is forgotten."""
    seen: list[int] = []
    last_id = None
    with closing(slow), suppress(IncompleteRead, ConnectionResetError):
        for event in changes(iter(slow)):
            if event.name == "put":
                seen.append(event.json["revision"])
            last_id = event.id or last_id
    return seen, last_id


def test_many_streams_of_many_kinds_all_get_their_own(shared_service: Service, prefix: str) -> None:
    url = shared_service.url
    opened = [open_stream(url, f"key={prefix}{number % 20}") for number in range(200)]
    readers = [changes(iter(each)) for each in opened]
    for reader in readers:
        assert next(reader).name == "sync"
    for number in range(20):
        put(url, f"{prefix}{number}")
    for number, reader in enumerate(readers):
        assert next(reader).json["key"] == f"{prefix}{number % 20}"
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    "query",
    [
        "since=0",
        "since=0&prev=1",
        "prefix=k&since=0",
        "snapshot=1",
        "deliver=latest&since=0",
        "sample=1h&prev=1",
    ],
)
def test_an_open_stream_outlives_the_daemon_and_misses_nothing(
    daemon: Daemon, start_facade: Callable[..., Facade], query: str
) -> None:
    facade = start_facade(daemon)
    with stream(facade.url, query) as events:
        through_sync(events)
        revisions = []
        for number in range(3):
            revisions += put_one_by_one(facade.url, [f"k{number}-{other}" for other in range(20)])
            daemon.kill()
            daemon.start()
            revisions.append(put_when_it_is_back(facade.url, f"k{number}-back"))
        found = []
        while len(found) < len(revisions):
            found.append(next(changes(events)).json["revision"])
    assert found == revisions


def put_when_it_is_back(url: str, key: str) -> int:
    def done() -> int | None:
        status, answer = ask(url, "PUT", f"/v1/kv/{key}", b"v", if_none_match="*")
        if status == 412:  # an attempt whose outcome was not known
            return int(ask(url, "GET", f"/v1/kv/{key}?format=json")[1]["revision"])
        return answer["revision"] if status == 201 else None

    return wait_until(done) or 0


def test_a_stream_that_begins_while_the_daemon_is_away_goes_on_when_it_is_back(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    put(start_facade(daemon).url, "k")
    # of its own, for the first remembers the change and need not ask
    facade = start_facade(daemon, daemon_timeout="2s", stream_heartbeat="300ms")
    with stream(facade.url, "") as events:
        through_sync(events)
    daemon.kill()
    with stream(facade.url, "since=0&key=other&key=k") as events:
        assert next(iter(events)).name == "heartbeat"
        daemon.start()
        assert [event.name for event in through_sync(events)] == ["put", "sync"]


@pytest.mark.parametrize(
    "query",
    ["", "snapshot=1", "since=0", "since=0&prev=1", "since=0&deliver=latest", "snapshot=1&sample=1s"],
)
def test_an_event_source_that_comes_before_the_daemon_begins_when_that_is_there(
    daemon: Daemon, start_facade: Callable[..., Facade], query: str
) -> None:
    put(start_facade(daemon).url, "k")
    daemon.kill()
    facade = start_facade(daemon, workers=1, daemon_timeout="500ms", stream_heartbeat="300ms")
    with closing(open_stream(facade.url, query)) as opened:
        hello = [opened.response.readline() for _ in range(8)]
        assert hello[0].startswith(b"retry: ")
        assert [line for line in hello if line.startswith(b": the daemon cannot be reached yet")]
        for accept in ("*/*", "application/x-ndjson"):
            status, answer = ask(facade.url, "GET", f"/v1/subscribe?{query}", Accept=accept)
            assert (status, answer["code"]) == (503, "unavailable")
        daemon.start()
        names = [event.name for event in through_sync(changes(iter(opened)))]
        assert names == (["put", "sync"] if query else ["sync"])
        put_when_it_is_back(facade.url, "live")
        assert next(changes(iter(opened))).json["key"] == "live"


@pytest.mark.lmdb_only("a backup that is restored in place of its file")
def test_a_restored_store_resets_the_open_streams(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon)
    put(facade.url, "old")
    queries = ("", "prev=1", "deliver=latest", "sample=1h", "sample=1h&prev=1")
    with ExitStack() as stack:
        streams = [stack.enter_context(stream(facade.url, query)) for query in queries]
        for each in streams:
            through_sync(each)
        put(facade.url, "old")
        put(facade.url, "old")  # which waits, where there is a sample
        for each, query in zip(streams, queries, strict=True):
            for _ in range(1 if "sample" in query else 2):
                next(changes(each))
        daemon.stop()
        shutil.rmtree(daemon.data)
        daemon.start()
        put_when_it_is_back(facade.url, "new")
        for each in streams:
            reset, *_, sync = through_sync(each)
            assert (reset.name, reset.json["reason"]) == ("reset", "epoch")
            assert sync.id is not None
            assert sync.id.endswith(epoch(facade.url))


@pytest.mark.lmdb_only("a data folder that is put back")
def test_a_data_folder_that_was_rolled_back_resets_the_open_streams(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon)
    put(facade.url, "kept")
    daemon.stop()
    shutil.copytree(daemon.data, daemon.folder / "earlier")
    daemon.start()
    put_when_it_is_back(facade.url, "kept")
    with stream(facade.url, "") as plain, stream(facade.url, "prev=1") as with_previous:
        for each in (plain, with_previous):
            through_sync(each)
        put(facade.url, "lost")
        for each in (plain, with_previous):
            next(changes(each))
        daemon.restart(data=daemon.folder / "earlier")
        for each in (plain, with_previous):
            reset, *_, sync = through_sync(each)
            assert (reset.name, reset.json["reason"]) == ("reset", "epoch")
            assert sync.id is not None


def test_sigterm_ends_every_stream_properly(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, workers=2)
    opened = [
        open_stream(facade.url, query) for query in ("", "deliver=latest", "sample=1h") for _ in range(8)
    ]
    for each in opened:
        assert each.first().name == "sync"
    facade.stop()
    for each in opened:
        assert list(each) == [], "the body ends with its last chunk, else reading it would raise"
        each.close()
