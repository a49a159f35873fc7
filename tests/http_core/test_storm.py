"""Many streams that come back in one moment: what they cost the daemon, and that each gets its own.

What is promised is counted, in requests to the daemon and in bytes of memory, and not timed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.lengths import Survived, times
from support.servers import Daemon, Facade
from support.session import JSON_TYPE, call, connect
from support.streams import Stream, StreamEvent

pytestmark = pytest.mark.torture

STREAMS = times(300, full=5_000)
EVENTS = 200
VALUE = "v" * 100


@pytest.fixture
def revisions(daemon: Daemon, start_facade: Callable[..., Facade]) -> list[int]:
    """Those of the events that there are."""
    writer = start_facade(daemon)
    written = []
    for _ in range(EVENTS // 50):
        ops = [{"op": "put", "key": f"s/{number}", "value": VALUE} for number in range(50)]
        answer = ask(writer.url, "POST", "/v1/batch", json.dumps({"ops": ops}))
        written += [result["revision"] for result in answer["results"]]
    return written


@pytest.fixture
def facade(daemon: Daemon, revisions: list[int], start_facade: Callable[..., Facade]) -> Facade:
    """One that has heard of no change: what streams want from before has to be read."""
    assert len(revisions) == EVENTS
    return start_facade(daemon, workers=1)


def ask(url: str, method: str, target: str, body: str | None = None) -> Any:
    encoded = None if body is None else body.encode()
    return call(url, method, target, encoded, JSON_TYPE if body else {}).json


def operations(url: str) -> dict[str, int]:
    """How often the daemon was asked for what."""
    found: dict[str, int] = ask(url, "GET", "/v1/status")["counters"]["operations_by_name"]
    return found


def asked(url: str, before: dict[str, int], name: str) -> int:
    return operations(url).get(name, 0) - before.get(name, 0)


def resident_bytes(url: str) -> int:
    """The memory of the facade's one worker."""
    shown = call(url, "GET", "/metrics").body.decode()
    found = re.search(r'^process_resident_memory_bytes\{process="worker-?0"\} (\S+)$', shown, re.MULTILINE)
    assert found is not None, shown
    return int(float(found[1]))


def through_sync(stream: Stream) -> list[StreamEvent]:
    """The events up to the one that says that nothing is missing."""
    events = []
    for event in stream:
        if event.name != "heartbeat":
            events.append(event)
        if event.name == "sync":
            return events
    raise AssertionError("the stream ended")


def storm(url: str, queries: list[str]) -> Iterator[list[StreamEvent]]:
    """What each of the streams gets when all come at once."""
    with ExitStack() as open_ones:
        connections = []
        for query in queries:
            connection = open_ones.enter_context(closing(HTTPConnection(urlsplit(url).netloc, timeout=60)))
            connection.request("GET", f"/v1/subscribe?{query}")
            connections.append(connection)
        for connection in connections:
            response = connection.getresponse()
            assert response.status == 200
            yield through_sync(Stream(connection, response))


@pytest.mark.parametrize(
    "query",
    [
        "since={n}-{epoch}&prefix=s/",
        "since=0-{epoch}&key=s/{k}&ops=put",
        "since={n}-{epoch}&values=0&prefix=s/{k}",
    ],
    ids=["scattered", "many-kinds", "many-kinds-scattered"],
)
def test_streams_that_come_back_together_read_the_log_together(
    facade: Facade, revisions: list[int], survived: Survived, query: str
) -> None:
    before = operations(facade.url)
    epoch = ask(facade.url, "GET", "/v1/status")["epoch"]
    since = [0, *revisions]
    queries = [
        query.format(n=since[number % EVENTS], k=number % 50, epoch=epoch) for number in range(STREAMS)
    ]
    for number, events in enumerate(storm(facade.url, queries)):
        behind = since[number % EVENTS] if "{n}" in query else 0
        wanted = [f"s/{at % 50}" for at, revision in enumerate(revisions) if revision > behind]
        if "{k}" in query and "key=" in query:
            wanted = [key for key in wanted if key == f"s/{number % 50}"]
        elif "{k}" in query:
            wanted = [key for key in wanted if key.startswith(f"s/{number % 50}")]
        assert [event.json["key"] for event in events[:-1]] == wanted, queries[number]
    assert asked(facade.url, before, "events") <= STREAMS // 3
    survived(storms=1, streams_that_came_back=STREAMS)


@pytest.mark.parametrize("query", ["deliver=latest", "sample=1h"])
def test_streams_of_the_latest_that_come_back_together_each_get_their_own(
    facade: Facade, revisions: list[int], survived: Survived, query: str
) -> None:
    before = operations(facade.url)
    epoch = ask(facade.url, "GET", "/v1/status")["epoch"]
    since = [0, *revisions]
    queries = [f"{query}&prefix=s/&since={since[number % EVENTS]}-{epoch}" for number in range(STREAMS)]
    for number, events in enumerate(storm(facade.url, queries)):
        behind = since[number % EVENTS]
        missed = [at for at, revision in enumerate(revisions) if revision > behind]
        newest = missed[-50:]
        assert [event.json["key"] for event in events[:-1]] == [f"s/{at % 50}" for at in newest]
        assert sum(1 + event.json["skipped"] for event in events[:-1]) == len(missed)
    assert asked(facade.url, before, "events") <= STREAMS // 3
    survived(storms=1, streams_that_came_back=STREAMS)


def test_streams_of_the_latest_that_read_nothing_take_little_and_miss_nothing(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=1)
    begun = resident_bytes(facade.url)
    with ExitStack() as open_ones:
        silent = []
        for _ in range(times(300, full=1_000)):
            connection = open_ones.enter_context(connect(facade.url, 4096))
            connection.sendall(
                b"GET /v1/subscribe?key=hot&deliver=latest HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )
            silent.append(connection)
        for connection in silent:
            while b"event: sync" not in connection.recv(65536):
                pass
        for begin in range(0, 3000, 500):
            ops = [
                {"op": "put", "key": "hot", "value": f"{number} " + "v" * 1000}
                for number in range(begin, begin + 500)
            ]
            ask(facade.url, "POST", "/v1/batch", json.dumps({"ops": ops}))
        assert resident_bytes(facade.url) - begun < 60 * 2**20, "not three megabytes for each"
        for connection in silent:
            last, tail = b'"value":"2999 ', b""
            while last not in tail:
                received = connection.recv(65536)
                assert received, "it was cut off"
                tail = tail[-len(last) :] + received


@pytest.mark.parametrize("query", ["snapshot=1&prefix=s/", "since=7-0011223344556677&prefix=s/"])
def test_streams_that_begin_with_a_snapshot_together_share_it(
    facade: Facade, survived: Survived, query: str
) -> None:
    before = operations(facade.url)
    for events in storm(facade.url, [query] * STREAMS):
        first = ["reset"] if "since" in query else []
        names = [event.name for event in events]
        assert names == [*first, *["put"] * 50, "sync"]
    assert asked(facade.url, before, "list") <= STREAMS // 3
    assert asked(facade.url, before, "status") <= STREAMS // 3
    survived(storms=1, streams_that_came_back=STREAMS)


def test_who_reads_nothing_keeps_nobody_waiting_and_takes_bounded_memory(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, workers=1)
    values = [{"op": "put", "key": f"s/{number}", "value": "v" * 500_000} for number in range(20)]
    for value in values:
        ask(facade.url, "POST", "/v1/batch", json.dumps({"ops": [value]}))
    facade.restart()
    begun = resident_bytes(facade.url)
    with ExitStack() as open_ones:
        for _ in range(100):
            silent = open_ones.enter_context(connect(facade.url, 4096))
            silent.sendall(b"GET /v1/subscribe?since=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for events in storm(facade.url, ["since=0"] * 5):
            assert len(events) == 21
        assert resident_bytes(facade.url) - begun < 200 * 2**20
