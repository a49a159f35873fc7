"""One table of errors for all surfaces: each is provoked over ZeroMQ, over HTTP and from the shell."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zmq

from kvstore_client import Client
from kvstore_core.errors import ERRORS, KvError
from kvstore_core.wire import decode_reply, encode_request
from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, Facade, Service, free_port, wait_until
from support.session import JSON_TYPE, PATCH_TYPE, Answer, assert_problem, call
from support.surfaces import kvstore

MIB = 1024 * 1024
LONG_KEY = "k" * 512


class Http(NamedTuple):
    """A request that provokes an error."""

    method: str
    target: str
    body: bytes | None = None
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


class Shell(NamedTuple):
    """A command that provokes an error."""

    arguments: Sequence[str]
    stdin: bytes = b""


class Case(NamedTuple):
    """How an error is provoked over each surface; None where it cannot be met there."""

    code: str
    native: Sequence[bytes] | None
    http: Http | None
    shell: Shell | None


def ops(*wanted: dict[str, Any], values: Sequence[bytes] = (), **how: Any) -> list[bytes]:
    """The frames of a request."""
    return encode_request(wanted, values, **how)


def batch(*wanted: Any) -> Http:
    """The same operations over HTTP."""
    return Http("POST", "/v1/batch", json.dumps({"atomic": True, "ops": wanted}).encode(), JSON_TYPE)


def file(*wanted: Any) -> Shell:
    """The same operations from the shell."""
    return Shell(["batch", "-", "--atomic"], json.dumps(wanted).encode())


# The store holds: text = "abc", most = 2^63-1.
TWICE = [{"op": "delete", "key": "text"}, {"op": "delete", "key": "text"}]
UNKNOWN = {"op": "frobnicate"}
CASES = [
    Case("bad_request", ops(*TWICE, atomic=True), batch(*TWICE), file(*TWICE)),
    Case("unsupported_version", [b'{"v":99,"ops":[{"op":"status"}]}'], None, None),
    Case("unknown_operation", ops(UNKNOWN), batch(UNKNOWN), file(UNKNOWN)),
    Case(
        "invalid_key",
        ops({"op": "get", "key": LONG_KEY}),
        Http("GET", f"/v1/kv/{LONG_KEY}"),
        Shell(["get", LONG_KEY]),
    ),
    Case(
        "invalid_cursor",
        ops({"op": "events", "since": "yesterday"}),
        Http("GET", "/v1/subscribe?since=yesterday"),
        None,  # the command refuses it as wrong usage, before it asks
    ),
    Case("no_such_route", None, Http("GET", "/v2/kv/text"), None),
    Case("method_not_allowed", None, Http("POST", "/v1/status", b"v"), None),
    Case("not_acceptable", None, Http("GET", "/v1/kv", None, {"Accept": "image/png"}), None),
    Case(
        "value_too_large",
        ops({"op": "put", "key": "k", "size": MIB + 1}, values=[b"v" * (MIB + 1)]),
        Http("PUT", "/v1/kv/k", b"v" * (MIB + 1)),
        Shell(["put", "k", "-"], b"v" * (MIB + 1)),
    ),
    Case(
        "request_too_large",
        ops(*[{"op": "get", "key": "text"}] * 10_001),
        Http("PUT", "/v1/kv/k", b"v" * (17 * MIB + 1)),
        file(*[{"op": "delete", "key": f"k{number}"} for number in range(10_001)]),
    ),
    Case("unsupported_media_type", None, Http("PATCH", "/v1/kv/text", b"{}", JSON_TYPE), None),
    Case("headers_too_large", None, Http("GET", "/livez", None, {"X-Long": "x" * 65_536}), None),
    Case("not_found", ops({"op": "get", "key": "none"}), Http("GET", "/v1/kv/none"), Shell(["get", "none"])),
    Case(
        "condition_failed",
        ops({"op": "delete", "key": "text", "if_revision": 999}),
        Http("DELETE", "/v1/kv/text", None, {"If-Match": '"999"'}),
        Shell(["put", "text", "v", "--if-absent"]),
    ),
    Case(
        "not_an_integer",
        ops({"op": "incr", "key": "text"}),
        Http("POST", "/v1/incr/text"),
        Shell(["incr", "text"]),
    ),
    Case(
        "out_of_range",
        ops({"op": "incr", "key": "most"}),
        Http("POST", "/v1/incr/most"),
        Shell(["incr", "most"]),
    ),
    Case("not_json", None, Http("PATCH", "/v1/kv/text", b"{}", PATCH_TYPE), None),
]

# What needs more than one request, and is provoked by a test of its own below.
STAGED = {
    "sequence_reused",
    "sequence_stale",
    "cursor_expired",
    "revision_gone",
    "reply_too_large",
    "too_busy",
    "unavailable",
    "timed_out",
    "store_full",
}

# What no request from outside can provoke at will; where it is tested instead.
ELSEWHERE = {
    "not_allowed": "tests/engine: a second daemon on the same folder",
    "unauthenticated": "tests/access: a service with access on",
    "internal": "tests/daemon",
    "damaged": "tests/engine: a flipped bit",
    "backup_exists": "tests/http: a second backup",
    "range_not_satisfiable": "tests/http: a range behind the end of a backup",
    "request_timeout": "tests/http_core: a request that stalls",
    "length_required": "tests/http_core: raw requests",
    "uri_too_long": "tests/http_core: raw requests",
    "expectation_failed": "tests/http_core: raw requests",
    "http_version_not_supported": "tests/http_core: raw requests",
}


def test_every_error_of_the_table_is_provoked_somewhere() -> None:
    assert {case.code for case in CASES} | STAGED | set(ELSEWHERE) == set(ERRORS)


@pytest.fixture(scope="module")
def stocked(shared_service: Service) -> Service:
    """The shared service, with the records that the cases need."""
    with Client(shared_service.requests) as client:
        client.put("text", b"abc")
        client.put("most", str(2**63 - 1).encode())
    return shared_service


@contextmanager
def dealer(endpoint: str) -> Iterator[Callable[[Sequence[bytes]], None]]:
    """Gives a function that sends a request and raises the error in its answer, as it stands there."""
    context = zmq.Context()
    socket = context.socket(zmq.REQ)
    with context, socket:
        socket.linger = 0
        socket.rcvtimeo = int(1000 * PATIENCE_SECONDS)
        socket.connect(endpoint)

        def ask(frames: Sequence[bytes]) -> None:
            socket.send_multipart(frames)
            for result in decode_reply(socket.recv_multipart()).results:
                if isinstance(result, KvError):
                    raise result

        yield ask


def native_error(endpoint: str, frames: Sequence[bytes]) -> str:
    """The code with which the daemon refuses ``frames``."""
    with dealer(endpoint) as ask, pytest.raises(KvError) as refused:
        ask(frames)
    return refused.value.code


def check_exit(url: str, folder: Path, code: str, shell: Shell) -> None:
    """The command ends with the table's exit status, says why, and shows no traceback."""
    done = kvstore(url, folder, *shell.arguments, stdin=shell.stdin)
    assert done.returncode == ERRORS[code].exit, done
    assert done.stderr.startswith(b"kvstore: ") or b'"error"' in done.stdout, done
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("case", [case for case in CASES if case.native], ids=lambda case: case.code)
def test_over_zeromq(case: Case, stocked: Service) -> None:
    assert native_error(stocked.requests, case.native or ()) == case.code


@pytest.mark.parametrize("case", [case for case in CASES if case.http], ids=lambda case: case.code)
def test_over_http(case: Case, stocked: Service) -> None:
    assert_problem(call(stocked.url, *case.http or ()), case.code)


@pytest.mark.parametrize("case", [case for case in CASES if case.shell], ids=lambda case: case.code)
def test_from_the_shell(case: Case, stocked: Service, tmp_path: Path) -> None:
    check_exit(stocked.url, tmp_path, case.code, case.shell or Shell([]))


def test_nothing_else_happened(stocked: Service) -> None:
    with Client(stocked.requests) as client:
        assert {record.key: record.value for record in client.list()} == {
            "most": str(2**63 - 1).encode(),
            "text": b"abc",
        }


# ── staged ───────────────────────────────────────────────────────────────────────────────────────


def test_sequence_reused_and_stale(stocked: Service) -> None:
    def numbered(seq: int, value: bytes) -> list[bytes]:
        op = {"op": "put", "key": "numbered", "size": len(value)}
        return ops(op, values=[value], client="me", seq=seq)

    with dealer(stocked.requests) as ask:
        ask(numbered(2, b"first"))
        ask(numbered(2, b"first"))
    assert native_error(stocked.requests, numbered(2, b"other")) == "sequence_reused"
    assert native_error(stocked.requests, numbered(1, b"first")) == "sequence_stale"
    header = {"Idempotency-Key": "mine"}
    assert call(stocked.url, "PUT", "/v1/kv/numbered", b"1", header).status in (200, 201)
    assert_problem(call(stocked.url, "PUT", "/v1/kv/numbered", b"2", header), "sequence_reused")
    call(stocked.url, "DELETE", "/v1/kv/numbered")


def test_cursor_expired_and_revision_gone(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    daemon = start_daemon(retain_events=5)
    facade = start_facade(daemon)
    with Client(daemon.requests) as client:
        for number in range(50):
            client.put("k", str(number).encode())
    assert native_error(daemon.requests, ops({"op": "events", "since": 1})) == "cursor_expired"
    assert_problem(call(facade.url, "GET", "/v1/changes?since=1"), "cursor_expired")
    assert_problem(call(facade.url, "GET", "/v1/kv/k?revision=1"), "revision_gone")
    check_exit(facade.url, tmp_path, "revision_gone", Shell(["get", "k", "--revision", "1"]))


def test_reply_too_large(daemon: Daemon) -> None:
    with Client(daemon.requests, timeout=PATIENCE_SECONDS) as client:
        client.put("large", b"v" * MIB)
    assert native_error(daemon.requests, ops(*[{"op": "get", "key": "large"}] * 100)) == "reply_too_large"


def test_too_busy_for_another_stream(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    facade = start_facade(daemon, max_streams=0)
    assert_problem(call(facade.url, "GET", "/v1/subscribe"), "too_busy")


def test_unavailable_when_the_daemon_is_away(
    service: Service, start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    facade = start_facade(service.daemon, daemon_timeout="500ms")
    service.daemon.kill()

    def answer() -> Answer:
        return call(facade.url, "GET", "/v1/kv/k")

    # the first requests may still wait for an answer that does not come
    wait_until(lambda: answer().status != ERRORS["timed_out"].status, what="the daemon counts as away")
    assert_problem(answer(), "unavailable")
    check_exit(facade.url, tmp_path, "unavailable", Shell(["get", "k", "--request-timeout", "1s"]))
    nowhere = f"http://127.0.0.1:{free_port()}"
    check_exit(nowhere, tmp_path, "unavailable", Shell(["get", "k", "--request-timeout", "1s"]))
    with Client(service.requests, timeout=0.5) as client, pytest.raises(KvError) as refused:
        client.get("k")
    assert refused.value.code == "unavailable"
    service.daemon.start()


def test_timed_out_when_the_daemon_hangs(
    daemon: Daemon, start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    facade = start_facade(daemon, daemon_timeout="2s")
    check_exit(facade.url, tmp_path, "timed_out", Shell(["wait", "k", "--exists", "--timeout", "300ms"]))
    with Client(daemon.requests, timeout=2) as client:
        client.put("k", b"1")
        assert call(facade.url, "GET", "/v1/kv/k").status == 200
        daemon.signal(signal.SIGSTOP)
        try:
            answer = call(facade.url, "PUT", "/v1/kv/k", b"2")
            with pytest.raises(KvError) as refused:
                client.put("k", b"3")
        finally:
            daemon.signal(signal.SIGCONT)
    # which of the two depends on how long ago the daemon was last heard
    for code in (answer.json["code"], refused.value.code):
        assert code in ("timed_out", "unavailable")
    assert_problem(answer, answer.json["code"])
    assert answer.json["outcome"] == "unknown"
    assert refused.value.details["outcome"] == "unknown"


def test_store_full(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    daemon = start_daemon(max_store_bytes=2 * MIB, retain_events=1)
    facade = start_facade(daemon)
    value = b"v" * 100_000
    with Client(daemon.requests) as client:
        stored = fill(client, value)
        assert_problem(call(facade.url, "PUT", "/v1/kv/more", value), "store_full")
        check_exit(facade.url, tmp_path, "store_full", Shell(["put", "more", "v"]))
        assert client.get("k0").value == value, "reads go on"
        for number in range(stored):
            client.delete(f"k{number}")
        client.put("again", value)


def fill(client: Client, value: bytes) -> int:
    """Put keys until the store is full; how many were stored."""
    for number in range(1000):
        try:
            client.put(f"k{number}", value)
        except KvError as error:
            if error.code == "store_full":
                return number
            raise
    raise AssertionError("the store was never full")
