"""Who is subscribed: what operators see of streams and native subscriptions, and how they end one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import zmq

from kvstore_client import Subscription, Sync
from kvstore_core.filters import SHOWN_BYTES, shown_filters
from kvstore_core.model import Event
from kvstore_http.inspection.siblings import ANSWER_SECONDS
from support.command_line import CommandLine
from support.metrics import Scrape
from support.protected import Protected
from support.servers import Daemon, Facade, StartDaemon, children, wait_until
from support.session import JSON_TYPE, Session, bearer, call
from support.streams import Stream, open_stream

pytestmark = pytest.mark.slow

Row = dict[str, Any]


@pytest.fixture(scope="module")
def two_workers(_protected_daemon: Daemon, _session_starter: Any) -> Iterator[Protected]:
    """The shared daemon, and a facade with two workers."""
    key = str(_protected_daemon.data / "facade.key")
    facade = _session_starter.start_facade(_protected_daemon, facade_key_file=key, workers=2)
    protected = Protected(_protected_daemon, facade)
    yield protected
    protected.close()


@pytest.fixture
def admin(two_workers: Protected) -> Iterator[Session]:
    session = Session(two_workers.url, two_workers.admin_token)
    yield session
    session.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def figure(admin: Session, name: str, **labels: str) -> float:
    return Scrape(admin.get("/metrics").body.decode()).value(name, **labels)


def heard(admin: Session) -> Row | None:
    """Who is subscribed; None if a process did not answer in time, as on a busy machine."""
    page: Row = admin.get("/v1/subscribers").json
    return None if page["unheard"] else page


def rows_of(admin: Session, name: str) -> list[Row]:
    page = wait_until(lambda: heard(admin), what="all answer in time")
    assert page["count"] == len(page["subscribers"])
    return [row for row in page["subscribers"] if row["name"] == name]


def opened(stack: ExitStack, two_workers: Protected, token: str, query: str, **options: Any) -> Stream:
    stream = open_stream(two_workers.url, query, headers=bearer(token), **options)
    stack.callback(stream.close)
    return stream


def test_streams_of_all_workers_are_shown_whichever_is_asked(
    two_workers: Protected, stack: ExitStack
) -> None:
    token = two_workers.token("shown", "rw:shown/")
    addresses = set()

    def workers() -> set[int]:
        stream = opened(stack, two_workers, token, "prefix=shown/a&key=shown/b")
        addresses.add(stream.response.fp.raw._sock.getsockname()[1])  # type: ignore[union-attr]
        with closing(Session(two_workers.url, two_workers.admin_token)) as another:
            return {row["worker"] for row in rows_of(another, "shown")}

    wait_until(lambda: workers() == {0, 1}, what="the system gives both workers a stream")
    with closing(Session(two_workers.url, two_workers.admin_token)) as admin:
        rows = rows_of(admin, "shown")
        one = admin.get("/v1/subscribers?limit=1").json
    assert {int(row["address"].rpartition(":")[2]) for row in rows} == addresses
    assert len({row["id"] for row in rows}) == len(rows) == len(addresses)
    for row in rows:
        assert (row["kind"], row["prefixes"], row["keys"], row["filters"]) == (
            "http",
            ["shown/a"],
            ["shown/b"],
            2,
        )
        assert (row["lag"], row["unsent_bytes"], row["blocked_seconds"]) == (0, 0, None)
    assert len(one["subscribers"]) == 1
    assert one["count"] >= len(rows)


def test_a_stream_that_is_not_read_shows_how_far_it_is_behind(
    two_workers: Protected, admin: Session, stack: ExitStack
) -> None:
    token = two_workers.token("behind", "rw:behind/")
    opened(stack, two_workers, token, "prefix=behind/", receive_buffer=16_384)
    reader = opened(stack, two_workers, token, "prefix=behind/&values=0")
    writer = stack.enter_context(closing(Session(two_workers.url, token)))
    written = 0

    def stalled() -> Row | None:
        nonlocal written
        assert writer.put(f"/v1/kv/behind/{written}", os.urandom(40_000)).status == 201
        written += 1
        first, _ = rows_of(admin, "behind")
        return first if first["blocked_seconds"] and first["lag"] > 2 else None

    row = wait_until(stalled, what="nothing more is taken")
    assert row["unsent_bytes"] > 0
    assert row["queued_bytes"] > 0
    assert row["lag"] <= written
    events = iter(reader)
    while next(events).json.get("key") != f"behind/{written - 1}":
        pass
    other = wait_until(
        lambda: next((each for each in rows_of(admin, "behind") if each["lag"] == 0), None),
        what="the one who reads has everything",
    )
    assert (other["unsent_bytes"], other["blocked_seconds"], other["events"]) == (0, None, written)


def test_the_command_kicks_those_that_are_there_and_names_the_others(
    two_workers: Protected, admin: Session, tmp_path: Path
) -> None:
    line = CommandLine(tmp_path, two_workers.url)
    line.environment["KVSTORE_TOKEN"] = two_workers.token("present", "rw:present/")
    following = line.start("subscribe", "--prefix", "present/")
    (row,) = wait_until(lambda: rows_of(admin, "present"), what="the stream is there")
    line.environment["KVSTORE_TOKEN"] = two_workers.admin_token
    done = line("kick", "h1", row["id"], "nobody")
    assert (done.returncode, done.stdout.decode()) == (3, f"kicked {row['id']}\n")
    following.end()
    missing = done.stderr.decode().splitlines()
    assert len(missing) == 2
    assert "'h1'" in missing[0]
    assert "'nobody'" in missing[1]


def test_a_kicked_stream_comes_back_and_misses_nothing(
    two_workers: Protected, admin: Session, tmp_path: Path
) -> None:
    token = two_workers.token("kicked", "rw:kicked/")
    line = CommandLine(tmp_path, two_workers.url)
    line.environment["KVSTORE_TOKEN"] = token
    before = figure(admin, "kvstore_http_streams_dropped_total", reason="kicked")
    following = line.start("subscribe", "--prefix", "kicked/", "--json")
    (first,) = wait_until(lambda: rows_of(admin, "kicked"), what="the stream is there")
    for number in range(30):
        call(two_workers.url, "PUT", f"/v1/kv/kicked/{number}", b"1", token=token)
        if number == 10:
            answer = admin.delete(f"/v1/subscribers/{first['id']}")
            assert (answer.status, answer.json) == (200, {"kicked": first["id"]})
    wait_until(lambda: len(following.lines()) == 30, what="all events have come")
    assert [event["key"] for event in following.lines()] == [f"kicked/{number}" for number in range(30)]
    (second,) = rows_of(admin, "kicked")
    assert second["id"] != first["id"]
    assert figure(admin, "kvstore_http_streams_dropped_total", reason="kicked") == before + 1
    assert admin.delete(f"/v1/subscribers/{first['id']}").status == 404
    assert (
        f"ended the stream {first['id']} to {first['address']}, kicked by admin" in two_workers.facade.stderr
    )
    following.end()


def test_a_native_subscriber_is_shown_with_what_it_was_granted_and_can_be_kicked(
    two_workers: Protected, admin: Session
) -> None:
    subscriber = two_workers.subscriber(two_workers.keys("raw", "ro:raw/"), b"raw/", b"not/granted/")
    with closing(subscriber.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)) as monitor:
        subscriber.heartbeat()
        (row,) = wait_until(lambda: rows_of(admin, "raw"), what="it is shown")
        assert (row["kind"], row["prefixes"], row["keys"], row["filters"]) == ("native", ["raw/"], [], 1)
        assert row["address"].startswith("127.0.0.1:")
        assert row["sent_bytes"] > 0
        for hidden in ("unsent_bytes", "events", "revision", "lag", "worker"):
            assert row[hidden] is None
        assert admin.delete(f"/v1/subscribers/{row['id']}").status == 200
        assert monitor.poll(60_000)
        subscriber.socket.disable_monitor()
    subscriber.heartbeat()  # libzmq asks for the same again when its socket is used
    (again,) = wait_until(lambda: rows_of(admin, "raw"), what="it is shown again")
    assert (again["prefixes"], again["id"] == row["id"]) == (["raw/"], False)
    assert figure(admin, "kvstore_subscribers_kicked_total") >= 1


def test_a_kicked_native_subscription_misses_nothing(two_workers: Protected, admin: Session) -> None:
    login = two_workers.login_file("native", two_workers.keys("native", "rw:native/"))
    token = two_workers.token("native")
    wanted = {"prefixes": ["native/"], "login": login}
    with Subscription(requests=two_workers.requests, changes=two_workers.changes, **wanted) as following:
        found: list[str] = []
        assert isinstance(next(following), Sync)
        for number in range(20):
            call(two_workers.url, "PUT", f"/v1/kv/native/{number}", b"1", token=token)
            found.append(next(item for item in following if isinstance(item, Event)).key)
            if number % 7 == 3:
                (row,) = wait_until(lambda: rows_of(admin, "native"), what="it is there")
                assert admin.delete(f"/v1/subscribers/{row['id']}").status == 200
    assert found == [f"native/{number}" for number in range(20)]


@pytest.mark.parametrize("grants", [(), ("monitor",), ("all:*", "monitor")])
def test_only_an_admin_sees_or_ends_subscriptions(two_workers: Protected, grants: tuple[str, ...]) -> None:
    name = f"no-admin-{len(grants)}"
    token, keys = two_workers.token(name, *grants), two_workers.keys(name)
    for method, target in (("GET", "/v1/subscribers"), ("DELETE", "/v1/subscribers/h1")):
        assert call(two_workers.url, method, target, token=token).status == 403
        assert call(two_workers.url, method, target).status == 401
    native = two_workers.peer(keys)
    for op in ({"op": "subscribers"}, {"op": "kick", "id": "n1"}):
        assert native.refusal(op)["code"] == "not_allowed"


def test_a_worker_that_hangs_is_named_and_the_others_are_shown(two_workers: Protected) -> None:
    stopped = children(two_workers.facade.pid)[0]
    request = Request(f"{two_workers.url}/v1/subscribers", headers=bearer(two_workers.admin_token))  # noqa: S310
    os.kill(stopped, signal.SIGSTOP)
    try:

        def page() -> Row | None:
            try:
                with urlopen(request, timeout=ANSWER_SECONDS + 1) as answer:  # noqa: S310
                    return json.loads(answer.read())
            except (TimeoutError, URLError):
                return None  # this connection is the stopped worker's

        found = wait_until(page, what="the other worker is asked")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert found["unheard"] in (["worker 0"], ["worker 1"])
    assert any(row["kind"] == "native" for row in found["subscribers"])


def test_what_is_shown_of_a_filter_is_bounded(two_workers: Protected, admin: Session) -> None:
    token = two_workers.token("many", "ro:many/")
    keys = [f"many/{number:0500}" for number in range(50)]
    with closing(Session(two_workers.url, token)) as session:
        connection = session._connection
        body = json.dumps({"keys": keys}).encode()
        connection.request("POST", "/v1/subscribe", body, {**JSON_TYPE, **bearer(token)})
        with closing(connection.getresponse()):
            (row,) = wait_until(lambda: rows_of(admin, "many"), what="the stream is there")
    assert row["filters"] == 50
    assert 0 < len("".join(row["keys"])) <= SHOWN_BYTES
    assert set(row["keys"]) < set(keys)


@pytest.mark.parametrize(("prefixes", "keys"), [([""], []), (["é" * 600], ["k"]), ([], ["k"] * 2000)])
def test_the_filters_that_are_shown_have_so_many_bytes_at_most(prefixes: list[str], keys: list[str]) -> None:
    shown = shown_filters(prefixes, keys)
    assert shown["filters"] == len(prefixes) + len(keys)
    assert len("".join(shown["prefixes"] + shown["keys"]).encode()) <= SHOWN_BYTES


def test_the_command_shows_and_kicks(two_workers: Protected, stack: ExitStack, tmp_path: Path) -> None:
    line = CommandLine(tmp_path, two_workers.url)
    line.environment["KVSTORE_TOKEN"] = two_workers.admin_token
    token = two_workers.token("commanded", "ro:commanded/")
    stream = opened(stack, two_workers, token, "prefix=commanded/")
    (row,) = [row for row in line.lines("subscribers", "--json") if row["name"] == "commanded"]
    assert "LAG" in line.on_terminal("subscribers")
    table = line.out("subscribers").decode()
    (cells,) = [text.split("\t") for text in table.splitlines() if "\tcommanded\t" in text]
    assert (cells[0], cells[1], cells[-1]) == (row["id"], row["address"], "commanded/*")
    assert line.out("kick", row["id"]).decode() == f"kicked {row['id']}\n"
    assert [event for event in stream if event.name not in ("heartbeat", "sync")] == []
    done = line("kick", row["id"])
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"list the subscribers again" in done.stderr
    for what in ("", ".", "H7", "a/b"):
        done = line("kick", what)
        assert (done.returncode, done.stdout) == (3, b"")
        assert f"'{what}' is no subscriber's id; 'kvstore subscribers' lists them".encode() in done.stderr


def test_while_access_is_off_native_filters_are_shown_too(
    start_daemon: StartDaemon, start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon()
    facade = start_facade(daemon)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def shown() -> list[list[str]]:
        rows = call(facade.url, "GET", "/v1/subscribers").json["subscribers"]
        assert {row["name"] for row in rows} <= {None}
        return sorted(row["prefixes"] for row in rows if row["prefixes"])

    with context.socket(zmq.SUB) as socket:
        socket.connect(daemon.changes)
        for prefix in (b"b/", b"a/"):
            socket.subscribe(prefix)
        wait_until(lambda: shown() == [["b/", "a/"]], what="both are shown")
        socket.unsubscribe(b"b/")
        wait_until(lambda: shown() == [["a/"]], what="one is given up")
        (row,) = [
            row for row in call(facade.url, "GET", "/v1/subscribers").json["subscribers"] if row["prefixes"]
        ]
        assert call(facade.url, "DELETE", f"/v1/subscribers/{row['id']}").status == 200
    wait_until(lambda: shown() == [], what="the connection is forgotten")
    assert f"ended the subscription {row['id']} of {row['address']}, kicked by somebody" in daemon.stderr
    context.term()
