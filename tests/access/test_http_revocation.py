"""What is taken away ends: streams, with a cursor to go on from, long polls, and lists."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import gevent
import pytest

from kvstore_core.access.identities import AccessTable
from kvstore_http.access.sessions import begin
from kvstore_http.access.table_follower import (
    DOUBTED_SECONDS,
    LOOK_SECONDS,
    UNCONFIRMED_SECONDS,
    TableFollower,
    now_ms,
)
from kvstore_http.backend.daemon_client import DaemonClient
from support.markdown import ROOT
from support.patience import PATIENCE_SECONDS
from support.protected import Protected
from support.servers import wait_until
from support.session import Answer, Session, assert_problem, bearer, call, connect
from support.streams import Stream

"""Seconds within which it has to be over; it takes some milliseconds, as --log-cli-level=INFO shows."""

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
_numbers = itertools.count()
log = logging.getLogger(__name__)


def show(what: str, begun: float) -> None:
    """Note how long something took."""
    log.info("%s: %.1f ms", what, (time.monotonic() - begun) * 1000)


@pytest.fixture
def name() -> str:
    """An identity of the test's own, and the prefix of its keys."""
    return f"revoked-{next(_numbers)}"


@pytest.fixture(scope="module", params=[1, 3], ids=["one_worker", "three_workers"])
def service(
    request: pytest.FixtureRequest, protected: Protected, _session_starter: Any
) -> Iterator[Protected]:
    """The shared facade, or one of several workers at the same daemon."""
    if request.param == 1:
        yield protected
        return
    key = str(protected.daemon.data / "facade.key")
    facade = _session_starter.start_facade(protected.daemon, facade_key_file=key, workers=request.param)
    several = Protected(protected.daemon, facade)
    yield several
    several.close()


def slow_connection(url: str) -> HTTPConnection:
    """A connection that takes little at a time."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.sock = connect(url, 4096)
    return connection


class Lines:
    """The lines of a body. Unlike those of HTTPResponse they raise IncompleteRead where it was cut off."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        self._rest = b""

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def readline(self) -> bytes:
        while b"\n" not in self._rest and (data := self._response.read1(65536)):
            self._rest += data
        line, end, self._rest = self._rest.partition(b"\n")
        return line + end


class Following:
    """An open stream that is read in a thread, until it ends."""

    def __init__(self, url: str, token: str | None, query: str, accept: str) -> None:
        self.connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        headers = {"Accept": accept, **({} if token is None else bearer(token))}
        self.connection.request("GET", f"/v1/subscribe?{query}", headers=headers)
        self.response = self.connection.getresponse()
        self.status = self.response.status
        self.events: list[dict[str, Any]] = []
        self.is_whole = False
        self._thread = threading.Thread(target=self._read, args=(accept,), daemon=True)
        self._thread.start()

    def _read(self, accept: str) -> None:
        lines = Lines(self.response)
        try:
            if accept == SSE:
                for event in Stream(self.connection, cast(HTTPResponse, lines)):
                    self.events.append({"event": event.name, "id": event.id, **event.json})
            else:
                for line in lines:
                    self.events.append(json.loads(line))
            self.is_whole = True  # the last chunk was there
        except (IncompleteRead, OSError):
            pass

    def seen(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    def await_sync(self) -> None:
        wait_until(lambda: self.seen("sync"), what="the stream has everything")

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def end(self) -> dict[str, Any]:
        """What it was told at its end, which came properly."""
        wait_until(lambda: self.is_over, timeout=PATIENCE_SECONDS, what="the stream ends")
        assert self.is_whole, "the body was cut off"
        assert self.events[-1]["event"] == "end", self.events[-1]
        return self.events[-1]

    def close(self) -> None:
        self.connection.close()


def following(url: str, token: str | None, query: str, accept: str) -> Following:
    """An open stream; of several workers one may hear a little later of the token."""

    def try_it() -> Following | None:
        stream = Following(url, token, query, accept)
        return stream if stream.status == 200 else None

    stream = wait_until(try_it, what="the stream is opened")
    assert stream is not None
    return stream


def put(url: str, token: str, key: str) -> None:
    wait_until(
        lambda: call(url, "PUT", f"/v1/kv/{key}", b"1", token=token).status == 201, what="it is stored"
    )


def _expire(protected: Protected, name: str) -> None:
    protected.change("identity_put", name, expires_at=time.time_ns() // 1_000_000 + 400)


def _revoke_token(protected: Protected, name: str) -> None:
    row = next(
        each for each in protected.root.ask({"op": "identities"})[0]["identities"] if each["name"] == name
    )
    protected.change("token_delete", name, id=row["tokens"][0]["id"])


def _revoke(protected: Protected, name: str) -> None:
    protected.change("identity_delete", name)


def _take_grant(protected: Protected, name: str) -> None:
    protected.change("identity_put", name, grants=["ro:x/"])


WAYS = {
    "revoke": (_revoke, "unauthenticated"),
    "revoke_token": (_revoke_token, "unauthenticated"),
    "take_grant": (_take_grant, "not_allowed"),
    "expire": (_expire, "unauthenticated"),
}
"""How somebody loses what they had, and the code with which they are told."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accept", [SSE, NDJSON], ids=["sse", "ndjson"])
def test_a_stream_ends_with_its_reason_and_a_cursor_and_others_miss_nothing(
    service: Protected, name: str, accept: str, way: str
) -> None:
    """Whoever comes back with a good token has missed nothing."""
    take_away, code = WAYS[way]
    token = service.token(name, f"rw:{name}/")
    stays = service.token(f"{name}-stays", f"ro:{name}/")
    query = f"prefix={name}/"
    losers = [following(service.url, token, query, accept) for _ in range(4)]
    others = [following(service.url, stays, query, accept) for _ in range(4)]
    for each in (*losers, *others):
        each.await_sync()
    writer = service.token(f"{name}-writer", f"write:{name}/")
    put(service.url, writer, f"{name}/before")
    for each in losers:
        wait_until(lambda each=each: each.seen("put"), what="the change arrives")  # type: ignore[misc]
    begun = time.monotonic()
    take_away(service, name)
    ends = [each.end() for each in losers]
    show(f"{accept} {way}", begun)
    put(service.url, writer, f"{name}/after")
    assert {end["code"] for end in ends} == {code}
    for each in others:
        wait_until(lambda each=each: len(each.seen("put")) == 2, what="the others miss nothing")  # type: ignore[misc]
        assert not each.is_over
        each.close()
    assert [[event["key"] for event in each.seen("put")] for each in losers] == [[f"{name}/before"]] * 4
    cursor = ends[0]["cursor"]
    again = following(service.url, stays, f"{query}&since={cursor}", accept)
    again.await_sync()
    assert [event["key"] for event in again.seen("put")] == [f"{name}/after"]
    again.close()


def test_a_sampled_stream_ends_with_a_cursor_before_what_it_was_not_sent(
    service: Protected, name: str
) -> None:
    token, stays = service.token(name, f"rw:{name}/"), service.token(f"{name}-stays", f"rw:{name}/")
    stream = following(service.url, token, f"prefix={name}/&sample=1h", NDJSON)
    stream.await_sync()
    put(service.url, stays, f"{name}/k")
    for value in (b"2", b"3"):
        assert call(service.url, "PUT", f"/v1/kv/{name}/k", value, token=stays).status == 200
    put(service.url, stays, f"{name}/other")
    wait_until(lambda: len(stream.seen("put")) == 2, what="the first of each key has come")
    service.change("identity_delete", name)
    cursor = stream.end()["cursor"]
    again = following(service.url, stays, f"prefix={name}/&deliver=latest&since={cursor}", NDJSON)
    again.await_sync()
    assert [(each["key"], each["value"], each["skipped"]) for each in again.seen("put")] == [
        (f"{name}/k", "3", 1),
        (f"{name}/other", "1", 0),
    ]
    again.close()


def test_an_event_source_that_comes_back_is_refused_for_good(protected: Protected, name: str) -> None:
    token = protected.token(name, f"ro:{name}/")
    stream = following(protected.url, token, f"prefix={name}/", SSE)
    stream.await_sync()
    protected.change("identity_delete", name)
    end = stream.end()
    assert end["id"] == end["cursor"]
    headers = {"Accept": SSE, "Last-Event-ID": end["id"], **bearer(token)}
    # anything but 200 and 204 fails an EventSource for good (HTML, section 9.2.2)
    assert_problem(
        call(protected.url, "GET", f"/v1/subscribe?prefix={name}/", headers=headers), "unauthenticated"
    )


@pytest.mark.parametrize(
    "what", ["kv/{}/k?since=0", "kv/{}/k?until=exists", "changes?prefix={}/"], ids=["key", "until", "changes"]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_long_poll_ends_at_once_and_says_why(service: Protected, name: str, way: str, what: str) -> None:
    take_away, code = WAYS[way]
    token = service.token(name, f"ro:{name}/")
    answers: list[Answer] = []
    target = f"/v1/{what.format(name)}&wait=60s"
    with closing(Session(service.url, token)) as session:
        # of several workers the one that has this connection may hear a little later of the token
        wait_until(lambda: session.get("/v1/whoami").status == 200, what="the worker knows the token")
        waiting = threading.Thread(target=lambda: answers.append(session.get(target)))
        waiting.start()
        in_progress = "kvstore_http_requests_in_progress "
        monitor = service.token(f"{name}-monitor", "monitor")

        def waits() -> bool:
            lines = call(service.url, "GET", "/metrics", token=monitor).body.decode().splitlines()
            return any(line.startswith(in_progress) and float(line.split()[1]) >= 2 for line in lines)

        wait_until(waits, what="the poll waits")
        begun = time.monotonic()
        take_away(service, name)
        waiting.join(PATIENCE_SECONDS)
        show(f"long poll {way}", begun)
        assert answers, "the long poll still waits"
        assert_problem(answers[0], code)


def test_a_list_ends_at_its_next_page(service: Protected, name: str) -> None:
    """A list of many pages to a client that reads slowly."""
    token = service.token(name, f"rw:{name}/")
    with closing(Session(service.url, token)) as session:
        wait_until(lambda: session.get("/v1/whoami").status == 200, what="the worker knows the token")
        ops = [{"op": "put", "key": f"{name}/{number}", "value": "v" * 4000} for number in range(1000)]
        assert session.batch(*ops).status == 200

    def begun_list() -> tuple[HTTPConnection, HTTPResponse] | None:
        connection = slow_connection(service.url)
        connection.request("GET", f"/v1/kv?prefix={name}/", headers={"Accept": NDJSON, **bearer(token)})
        response = connection.getresponse()
        return (connection, response) if response.status == 200 else None

    found = wait_until(begun_list, what="the list begins")
    assert found is not None
    connection, response = found
    body = Lines(response)
    lines = [json.loads(body.readline())]
    service.change("identity_delete", name)
    begun = time.monotonic()
    try:
        for line in body:
            lines.append(json.loads(line))  # noqa: PERF401 - those before the error count
    except IncompleteRead:
        pass
    else:
        pytest.fail("the list came to its end")
    finally:
        connection.close()
    show("NDJSON list", begun)
    assert lines[-1]["error"]["code"] == "unauthenticated"
    assert len(lines) < 1000


def test_a_stream_that_is_being_caught_up_ends_too(protected: Protected, name: str) -> None:
    token = protected.token(name, f"rw:{name}/")
    with closing(Session(protected.url, token)) as session:
        ops = [{"op": "put", "key": f"{name}/{number}", "value": "v" * 20_000} for number in range(200)]
        assert session.batch(*ops).status == 200
    connection = slow_connection(protected.url)
    headers = {"Accept": NDJSON, **bearer(token)}
    connection.request("GET", f"/v1/subscribe?prefix={name}/&snapshot=1", headers=headers)
    response = connection.getresponse()
    body = Lines(response)
    first = json.loads(body.readline())
    assert first["snapshot"]
    protected.change("identity_delete", name)
    wait_until(lambda: call(protected.url, "GET", "/v1/whoami", token=token).status == 401, what="revoked")
    last = [json.loads(line) for line in body][-1]
    connection.close()
    assert (last["event"], last["code"]) == ("end", "unauthenticated")


def test_a_stream_without_list_is_sent_no_snapshot_after_a_reset(protected: Protected, name: str) -> None:
    """A cursor that leads nowhere must not show which keys there are."""
    writer = protected.token(f"{name}-w", f"write:{name}/")
    call(protected.url, "PUT", f"/v1/kv/{name}/there", b"1", token=writer)
    watcher = protected.token(name, f"watch,read:{name}/")
    lister = protected.token(f"{name}-l", f"ro:{name}/")
    nowhere = "1-0123456789abcdef"
    for token, keys in ((watcher, []), (lister, [f"{name}/there"])):
        stream = following(protected.url, token, f"prefix={name}/&since={nowhere}", NDJSON)
        stream.await_sync()
        assert stream.seen("reset")
        assert [event["key"] for event in stream.seen("put")] == keys
        stream.close()
    refused = call(protected.url, "GET", f"/v1/subscribe?prefix={name}/&snapshot=1", token=watcher)
    assert assert_problem(refused, "not_allowed")["needs"] == "list"


def test_rotating_ends_what_the_old_token_opened_and_nothing_else(protected: Protected, name: str) -> None:
    old = protected.token(name, f"ro:{name}/")
    new = protected.token(name)
    streams = [following(protected.url, token, f"prefix={name}/", NDJSON) for token in (old, new)]
    for stream in streams:
        stream.await_sync()
    protected.change("token_delete", name, id=old.split("_")[1])
    assert streams[0].end()["code"] == "unauthenticated"
    assert not streams[1].is_over
    streams[1].close()


def test_a_derived_token_ends_its_streams_by_itself(protected: Protected, name: str) -> None:
    """What is derived expires in no table."""
    token = protected.token(name, f"ro:{name}/")
    with closing(Session(protected.url, token)) as session:
        child = session.post("/v1/narrow", {"grants": [f"ro:{name}/"], "for": "2s"}).json["token"]
    stream = following(protected.url, child, f"prefix={name}/", SSE)
    stream.await_sync()
    assert stream.end()["code"] == "unauthenticated"


def test_anonymous_streams_end_with_the_grant(protected: Protected, name: str) -> None:
    protected.change("identity_put", "anonymous", grant=[f"ro:{name}/"])
    try:
        wait_until(lambda: call(protected.url, "GET", "/v1/whoami").json["grants"], what="the grant is there")
        stream = following(protected.url, None, f"prefix={name}/", SSE)
        stream.await_sync()
    finally:
        protected.change("identity_delete", "anonymous")
    assert stream.end()["code"] == "unauthenticated"


def test_a_token_just_made_is_known_to_every_worker(service: Protected, name: str) -> None:
    """Whatever is derived of it too, and the session of a page. Each request has a connection of its own."""
    own = {"Origin": service.url, "Content-Type": "application/json"}
    with closing(Session(service.url, service.admin_token)) as admin:
        for number in range(10):
            made = admin.post("/v1/tokens", {"name": f"{name}-{number}", "grants": [f"ro:{name}/"]})
            token = made.json["token"]
            (answer,) = service.root.ask({"op": "access"})
            table = AccessTable.decode(answer["value"], bytes.fromhex(answer["signing_key"]))
            parent = table.of_credential(token, now_ms())
            derived = table.derive(parent, now_ms(), 60_000)
            session = begin(table, token, now_ms())
            for good in (token, derived) * 2:
                assert call(service.url, "GET", "/v1/whoami", token=good).json["name"] == f"{name}-{number}"
            both = {"Cookie": f"kvstore_1={session.cookie}", "X-Kvstore-Page": session.half}
            assert call(service.url, "GET", f"/v1/kv?prefix={name}/", headers=both).status == 200
            login = json.dumps({"token": token}).encode()
            assert call(service.url, "POST", "/v1/session", login, own).status == 200


def test_strangers_with_made_up_tokens_have_the_daemon_asked_now_and_then_only() -> None:
    asked: list[float] = []
    table = AccessTable([])

    def access() -> dict[str, Any]:
        asked.append(time.monotonic())
        gevent.sleep(0)
        return {"tag": table.tag, "signing_key": "", "value": table.encode()}

    follower = TableFollower(cast(DaemonClient, SimpleNamespace(access=access)), 5)
    follower.wait()
    asked.clear()
    strangers = [gevent.spawn(lambda: [follower.look_again() for _ in range(4)]) for _ in range(200)]
    gevent.joinall(strangers, raise_error=True)
    follower.close()
    assert len(asked) >= 4, "each came after the one before it"
    least = 0.9 * LOOK_SECONDS  # the loop's clock may be a little behind
    assert all(later - former >= least for former, later in itertools.pairwise(asked))


def test_the_documents_say_for_how_long_a_worker_trusts_its_table() -> None:
    access, security = ((ROOT / name).read_text() for name in ("docs/access.md", "SECURITY.md"))
    unconfirmed = f"{UNCONFIRMED_SECONDS:g} seconds"
    assert f"hears nothing for {unconfirmed} (`UNCONFIRMED_SECONDS`)" in access
    assert f"may be answered for up to {unconfirmed}" in access
    assert f"heard of the daemon for {unconfirmed}" in access
    assert f"hears no heartbeats not more than {unconfirmed} later" in security
    assert (DOUBTED_SECONDS, "half a second ago (`DOUBTED_SECONDS`)" in access) == (0.5, True)
