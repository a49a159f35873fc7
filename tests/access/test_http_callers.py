"""Who makes a request over HTTP: every way to come in, or not to (docs/access.md, Over HTTP)."""

from __future__ import annotations

import base64
import json
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit
from zlib import crc32

import pytest

from kvstore_core.access import identities
from kvstore_core.access.grants import GrantSet
from kvstore_core.access.identities import AccessTable, Identity, StoredToken
from kvstore_core.access.tokens import _base62, new_token, token_id
from kvstore_core.errors import KvError
from kvstore_core.process.logging import RateLimitedLog
from kvstore_core.wall_clock import now_ms
from kvstore_http.access.callers import MAX_KEPT_SESSIONS, MAX_SESSION_CHARACTERS, Callers
from kvstore_http.access.sessions import NewSession, begin
from kvstore_http.access.table_follower import TableFollower
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.resources import ui_files
from kvstore_http.routes import ENDPOINTS, Endpoint
from support.protected import Protected
from support.servers import wait_until
from support.session import Answer, Session, assert_problem, bearer, call, connect

OPEN = {
    "GET /",
    "GET /livez",
    "GET /readyz",
    "GET /openapi.json",
    "GET /ui/",
    "GET /v1/whoami",
    "POST /v1/session",
    "DELETE /v1/session",
}
"""What is answered to whoever asks; every other route wants a credential."""


NOBODY = "kv_nobody"
"""A token that nobody has."""


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


def ask(url: str, endpoint: Endpoint, **more: Any) -> Answer:
    """A plain request of the endpoint."""
    target = endpoint.path.replace("{key}", "some-key").replace("{name}", "nobody")
    required = {parameter.name: "1" for parameter in endpoint.required}
    if endpoint.path.endswith("subscribe"):
        required["since"] = "nonsense"  # a stream does not end, its refusal does
    query = "&".join(f"{name}={text}" for name, text in required.items())
    body = b"{}" if endpoint.body else None
    kind = {"Content-Type": next(iter(endpoint.body))} if endpoint.body else {}
    headers = {**kind, **more.pop("headers", {})}
    return call(url, endpoint.method, f"{target}?{query}" if query else target, body, headers, **more)


@pytest.fixture
def reader(protected: Protected) -> Iterator[Session]:
    with closing(Session(protected.url, protected.kept_token("reader", "ro:app/"))) as session:
        yield session


# ── without a credential, and with a bad one ─────────────────────────────────────────────────────


def test_the_list_of_what_is_open_names_routes_that_are_there() -> None:
    assert {name_of(endpoint) for endpoint in ENDPOINTS if endpoint.needs == "public"} == OPEN


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_without_a_credential_only_what_is_open_is_answered(protected: Protected, endpoint: Endpoint) -> None:
    answer = ask(protected.url, endpoint)
    if name_of(endpoint) in OPEN:
        assert answer.status != 401
        return
    assert assert_problem(answer, "unauthenticated")["reason"] == "missing"
    assert answer.headers["www-authenticate"] == 'Bearer realm="kvstore"'


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_a_bad_credential_is_refused_everywhere(protected: Protected, endpoint: Endpoint) -> None:
    """Also where nobody would need one."""
    answer = ask(protected.url, endpoint, token=new_token().text)
    assert assert_problem(answer, "unauthenticated")["reason"] == "unknown"
    assert answer.headers["www-authenticate"] == 'Bearer realm="kvstore", error="invalid_token"'


def test_the_files_of_the_page_are_open_but_not_to_a_bad_credential(protected: Protected) -> None:
    """Files that are the same for everybody are no exception."""
    files = [path for path in ui_files.parts() if path != "/ui"]
    assert files
    for path in ("/ui", *files):
        assert call(protected.url, "GET", path).status in (200, 303)
        assert_problem(call(protected.url, "GET", path, token=NOBODY), "unauthenticated")


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_a_token_without_grants_may_only_say_who_it_is(protected: Protected, endpoint: Endpoint) -> None:
    answer = ask(protected.url, endpoint, token=protected.kept_token("powerless"))
    if name_of(endpoint) in {*OPEN, "GET /v1/status", "POST /v1/narrow"}:
        assert answer.status != 403
        return
    if answer.status == 400:
        return  # it is malformed, and nothing was asked of the daemon
    problem = assert_problem(answer, "not_allowed")
    assert problem["grants"] == []
    assert answer.headers["www-authenticate"] == (
        f'Bearer realm="kvstore", error="insufficient_scope", scope="{problem["needs"]}"'
    )


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Token {token}",
        "{token}",
        "Bearer: {token}",
        "Bearer {token} {token}",
        "Bearer {token},",
        "Bearer {token}, Bearer {token}",
        "Bearer\t{token}",
        'Bearer "{token}"',
        "Bearer {upper}",
        "Bearer {token}x",
        "Bearer {token}=",
        "Bearer kvd_{token}",
        "Bearer kvd_e30.e30",
        "Bearer kvd_.",
        "Bearer \xe9",
        "Bearer " + "k" * 8000,
        "Basic {basic}",
        "Digest {token}",
    ],
)
def test_a_header_that_is_not_a_token_is_nobody(protected: Protected, header: str) -> None:
    token = protected.kept_token("tricks", "ro:app/")
    basic = base64.b64encode(f"{token}:{token}".encode()).decode()
    text = header.format(token=token, upper=token.upper(), basic=basic)
    answer = call(protected.url, "GET", "/v1/whoami", headers={"Authorization": text})
    assert_problem(answer, "unauthenticated")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR", "Bearer   "])
def test_the_scheme_has_no_case(protected: Protected, scheme: str) -> None:
    token = protected.kept_token("schemer", "ro:app/")
    answer = call(protected.url, "GET", "/v1/whoami", headers={"Authorization": f"{scheme} {token}"})
    assert answer.json["name"] == "schemer"


def raw(url: str, *lines: str, body: bytes = b"") -> bytes:
    """What comes back for a request written by hand, up to the end of the connection."""
    with connect(url) as sock:
        sock.sendall("\r\n".join((*lines, "", "")).encode("latin-1") + body)
        received = b""
        while data := sock.recv(65536):
            received += data
    return received


def test_only_good_credentials_are_kept_and_few() -> None:
    token = new_token()
    row = Identity("ci", GrantSet(["ro:*"]), 0, tokens=(StoredToken(token.id, token.digest, 0),))
    table = AccessTable([row])
    follower = SimpleNamespace(table=table, is_confirmed=True, listeners=[])
    callers = Callers(cast(TableFollower, follower), WorkerCounters.alone(), "")

    def come_in(header: str) -> str | None:
        try:
            return callers._of_header(header, table).name
        except KvError:
            return None

    stem = token.text[:-6]
    assert not any(come_in(f"Bearer {stem}{number:06}") for number in range(5_000))
    assert not any(come_in(f"Bearer {new_token().text}") for _ in range(100))
    assert come_in(f"Bearer{' ' * 5_000}{token.text}") == "ci"
    assert not callers._known
    for scheme in product(*zip("BEARER", "bearer", strict=True)):
        for spaces in range(1, 70):
            assert come_in(f"{''.join(scheme)}{' ' * spaces}{token.text}") == "ci"
    assert 0 < len(callers._known) <= 4096


@pytest.mark.parametrize("way", ["token", "derived", "session", "login"])
def test_a_worker_asks_before_it_refuses_a_token_that_it_has_not_heard_of(way: str) -> None:
    """As if no heartbeat told of it."""
    token, key = new_token(), b"k" * 32
    row = Identity("ci", GrantSet(["ro:*"]), 0, tokens=(StoredToken(token.id, token.digest, 0),))
    tables, asked = [AccessTable([], key)], []

    def access() -> dict[str, Any]:
        asked.append(tables[-1])
        return {"tag": tables[-1].tag, "signing_key": key.hex(), "value": tables[-1].encode()}

    follower = TableFollower(cast(DaemonClient, SimpleNamespace(access=access)), 5)
    callers = Callers(follower, WorkerCounters.alone(), "")
    follower.wait()
    asked.clear()
    later = AccessTable([row], key)
    derived = later.derive(later.of_credential(token.text, now_ms()), now_ms(), 60_000)
    session = begin(later, token.text, now_ms())

    def come_in(text: str) -> str:
        headers = {"HTTP_AUTHORIZATION": f"Bearer {text}"}
        if way == "session":
            headers = {"HTTP_COOKIE": f"kvstore_1={session.cookie}", "HTTP_X_KVSTORE_PAGE": session.half}
        try:
            if way == "login":
                return callers.begin_session(text).who.name
            return callers._identified({"kvstore.raw_path": "/v1/kv", **headers}, "known").name
        except KvError as error:
            return error.code

    if way != "session":
        mistyped = token.text[:-1] + ("a" if token.text[-1] != "a" else "b")
        assert {come_in(text) for text in (mistyped, "kv_nobody", f"{derived}x")} == {"unauthenticated"}
        assert not asked, "nobody could know these"
    text = derived if way == "derived" else token.text
    assert come_in(text) == "unauthenticated"
    assert len(asked) == 1
    tables.append(later)
    assert come_in(text) == "ci"
    assert come_in(text) == "ci"
    assert len(asked) == 2
    follower.close()


def test_sessions_are_looked_up_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    token = new_token()
    row = Identity("ann", GrantSet(["ro:*"]), 0, tokens=(StoredToken(token.id, token.digest, 0),))
    table = AccessTable([row], b"k" * 32)
    follower = SimpleNamespace(table=table, is_confirmed=True, listeners=[])
    callers = Callers(cast(TableFollower, follower), WorkerCounters.alone(), "")

    def come_in(session: NewSession, cookies: str = "", **more: str) -> str:
        cookie = f"{cookies}kvstore_5000={session.cookie}"
        environ = {"HTTP_COOKIE": cookie, "HTTP_X_KVSTORE_PAGE": session.half, **more}
        try:
            return callers._identify(environ, table, is_public=False).name
        except KvError as error:
            return str(error.details.get("reason", "unknown"))

    session, other = (begin(table, token.text, now_ms()) for _ in range(2))
    mixed = NewSession(session.cookie, other.half, session.who)
    verified: list[str] = []
    verify = identities.verify
    monkeypatch.setattr(identities, "verify", lambda text, key: verified.append(text) or verify(text, key))
    assert come_in(session) == "ann"
    once = len(verified)
    assert {come_in(session) for _ in range(10)} == {"ann"}
    assert len(verified) == once
    assert come_in(session, HTTP_SEC_FETCH_SITE="cross-site") == "cross_site"
    assert come_in(mixed) == "unknown"
    assert len(callers._sessions) == 1
    assert come_in(session, f"theirs={'x' * MAX_SESSION_CHARACTERS}; ") == "ann"
    assert len(callers._sessions) == 1
    for number in range(2 * MAX_KEPT_SESSIONS):
        assert come_in(session, f"theirs={number}; ") == "ann"
    assert 0 < len(callers._sessions) <= MAX_KEPT_SESSIONS
    for listener in follower.listeners:
        listener()
    assert not callers._sessions
    monkeypatch.setattr("kvstore_http.access.callers.now_ms", lambda: (session.who.expires_at or 0) + 1)
    assert come_in(session) == "expired"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Authorization: Bearer {token}", "Authorization: Bearer {token}"), b"400"),
        (("Authorization: Bearer {token}", "authorization: Bearer {other}"), b"400"),
        (("Authorization: Bearer", " {token}"), b"400"),
        (("Authorization_: Bearer {token}",), b"401"),
        (("Authorization : Bearer {token}",), b"400"),
        (("Authorization: Bearer {token}\0",), b"4"),
        (("X-Authorization: Bearer {token}", "Proxy-Authorization: Bearer {token}"), b"401"),
        (("X-Remote-User: admin", "X-Forwarded-User: admin", "Remote-User: admin"), b"401"),
        (("Cookie: token={token}; Authorization=Bearer {token}",), b"401"),
    ],
)
def test_header_tricks_are_never_somebody(
    protected: Protected, lines: tuple[str, ...], status: bytes
) -> None:
    """Over the wire."""
    token, other = protected.kept_token("tricks", "ro:app/"), protected.kept_token("others", "ro:app/")
    sent = [line.format(token=token, other=other) for line in lines]
    answer = raw(protected.url, "GET /v1/kv/app/x HTTP/1.1", "Host: localhost", "Connection: close", *sent)
    assert answer.split(b" ")[1].startswith(status), answer


def test_a_credential_in_a_trailer_counts_for_nothing(protected: Protected) -> None:
    token = protected.kept_token("trailer", "rw:app/")
    answer = raw(
        protected.url,
        "PUT /v1/kv/app/trailer HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        "Transfer-Encoding: chunked",
        "Trailer: Authorization",
        body=f"1\r\nx\r\n0\r\nAuthorization: Bearer {token}\r\n\r\n".encode(),
    )
    assert b" 401 " in answer.partition(b"\r\n")[0] + b" "


def test_each_pipelined_request_is_judged_by_its_own_header(protected: Protected) -> None:
    one, two = protected.kept_token("piped-1", "rw:p1/"), protected.kept_token("piped-2", "rw:p2/")
    head = "Host: localhost\r\nContent-Length: 1\r\n"
    requests = [
        f"PUT /v1/kv/p1/a HTTP/1.1\r\n{head}Authorization: Bearer {one}\r\n\r\nx",
        f"PUT /v1/kv/p1/b HTTP/1.1\r\n{head}Authorization: Bearer {two}\r\n\r\nx",
        f"PUT http://localhost/v1/kv/p2/c HTTP/1.1\r\n{head}authorization: bearer {two}\r\n\r\nx",
        f"PUT /v1/kv/p1/d HTTP/1.1\r\n{head}\r\nx",
        f"PUT /v1/kv/p1/e HTTP/1.1\r\n{head}Expect: 100-continue\r\nConnection: close\r\n\r\nx",
    ]
    with connect(protected.url) as sock:
        sock.sendall("".join(requests).encode())
        received = b""
        while data := sock.recv(65536):
            received += data
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", received)
    assert [status for status in statuses if status != b"100"] == [b"201", b"403", b"201", b"401", b"401"]


def test_requests_of_two_at_once_never_see_each_others_keys(protected: Protected) -> None:
    """What one greenlet knows of its caller stays with the request."""
    names = ["beside-1", "beside-2"]
    tokens = {name: protected.kept_token(name, f"rw:{name}/") for name in names}
    wrong: list[Any] = []

    def work(mine: str, other: str) -> None:
        with closing(Session(protected.url, tokens[mine])) as session:
            for number in range(100):
                session.put(f"/v1/kv/{mine}/k", mine.encode())
                got = session.get(f"/v1/kv/{mine}/k?wait=1ms" if number % 7 == 0 else f"/v1/kv/{mine}/k")
                refused = session.get(f"/v1/kv/{other}/k")
                if got.body != mine.encode() or refused.status != 403 or other.encode() in got.body:
                    wrong.append((got, refused))

    threads = [threading.Thread(target=work, args=pair) for pair in (names, names[::-1]) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ── bodies of strangers ──────────────────────────────────────────────────────────────────────────

MIB = 1024 * 1024


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE", "GET"])
@pytest.mark.parametrize("framing", ["Content-Length: 16777216", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("credential", ["", "Authorization: Bearer kv_nobody\r\n"], ids=["none", "bad"])
def test_a_large_body_of_a_stranger_is_refused_at_the_end_of_the_head(
    protected: Protected, method: str, framing: str, credential: str
) -> None:
    """Nothing of the body was sent, and nobody is asked to send it."""
    expect = "Expect: 100-continue\r\n" if method == "PUT" else ""
    with connect(protected.url) as sock:
        head = f"{method} /v1/kv/app/x HTTP/1.1\r\nHost: localhost\r\n{credential}{framing}\r\n{expect}\r\n"
        sock.sendall(head.encode())
        answer = sock.recv(65536)
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.startswith(b"HTTP/1.1 401 "), answer
        assert b"WWW-Authenticate: Bearer" in answer


def test_a_large_body_of_somebody_known_is_read_in_any_framing(protected: Protected) -> None:
    token = protected.kept_token("large", "rw:large/")
    with closing(Session(protected.url, token)) as session:
        assert session.put("/v1/kv/large/a", b"v" * (MIB // 2)).status == 201
        chunks = b"".join(b"%x\r\n%b\r\n" % (65536, b"c" * 65536) for _ in range(4)) + b"0\r\n\r\n"
        answer = raw(
            protected.url,
            "PUT /v1/kv/large/b HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {token}",
            "Transfer-Encoding: chunked",
            "Connection: close",
            body=chunks,
        )
        assert b" 201 " in answer.partition(b"\r\n")[0]
        assert session.get("/v1/kv/large/b").body == b"c" * 262144


def test_strangers_with_large_bodies_leave_no_trace_in_memory(protected: Protected) -> None:
    """A hundred of them, each of whom could send 16 MiB."""
    head = b"PUT /v1/kv/app/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777216\r\n\r\n"
    before = resident_bytes(protected.facade.pid)
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(protected.url)) for _ in range(100)]
        for sock in socks:
            sock.sendall(head + b"x" * 65536)
        for sock in socks:
            assert sock.recv(65536).startswith(b"HTTP/1.1 401 ")
    assert resident_bytes(protected.facade.pid) - before < 32 * MIB


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


# ── tokens in addresses ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "target",
    [
        "/v1/kv/app/x?token={token}",
        "/v1/kv/app/x?access_token={token}",
        "/v1/kv/{token}",
        "/v1/kv/app/{encoded}",
        "/v1/kv?prefix={token}",
        "/v1/subscribe?prefix=app/&ticket={token}",
        "/livez?token={token}",
        "/ui/?token={encoded}",
        "/v1/whoami?{token}",
        "/readyz?token={derived}",
        "/v1/kv/app/x?token={derived}",
        "/no/such/route?token={token}",
        "/v1/{encoded}/x",
        "/v1/kv/%zz{token}",
    ],
)
def test_a_token_in_an_address_is_refused_and_reported_by_its_id(protected: Protected, target: str) -> None:
    token = protected.kept_token("leaky", "rw:app/")
    with closing(Session(protected.url, token)) as session:
        derived = session.post("/v1/narrow", {"for": "1m"}).json["token"]
        encoded = token.replace("_", "%5F")
        shown = target.format(token=token, encoded=encoded, derived=derived)
        for answer in (session.get(shown), call(protected.url, "GET", shown)):
            problem = assert_problem(answer, "unauthenticated")
            assert problem["reason"] == "in_address"
            assert "rotate" in problem["detail"]
            assert token.split("_")[2] not in answer.body.decode()
        answer = call(protected.url, "TRACE", shown, token=token)  # which no route takes
        assert assert_problem(answer, "unauthenticated")["reason"] == "in_address"
    assert re.search(r"the token [0-9a-z]{8} stood in an address: rotate it", protected.facade.stderr)


def test_nobody_can_have_the_log_accuse_a_token_that_they_do_not_have() -> None:
    token, mine = new_token(), new_token()
    stem = f"kv_{token.id}_{'0' * 43}"
    forged = stem + _base62(crc32(stem.encode()), 6)
    assert token_id(forged) == token.id
    row = Identity("ci", GrantSet(["ro:*"]), 0, tokens=(StoredToken(token.id, token.digest, 0),))
    follower = SimpleNamespace(table=AccessTable([row]), is_confirmed=True, listeners=[])
    counters = WorkerCounters.alone()
    callers = Callers(cast(TableFollower, follower), counters, "")
    logged: list[tuple[Any, ...]] = []
    callers._leak_log = cast(RateLimitedLog, SimpleNamespace(warning=lambda *line: logged.append(line)))

    def refused(query: str) -> bool:
        request = SimpleNamespace(env={"kvstore.raw_path": "/v1/kv/x", "kvstore.raw_query": query})
        try:
            callers.process_request(cast(Any, request), cast(Any, None))
        except KvError as error:
            return error.details["reason"] == "in_address"
        return False

    assert all(map(refused, (forged, mine.text, f"{mine.text}&{forged}")))
    assert not logged
    assert refused(f"{forged}&{token.text}")
    assert [line[1] for line in logged] == [token.id]


def test_a_key_that_only_looks_like_a_token_is_a_key(protected: Protected) -> None:
    token = protected.kept_token("lookalike", "rw:*")
    with closing(Session(protected.url, token)) as session:
        for key in ("kv_settings", "kvd_a.b", "kv_7q2m9xk4_" + "a" * 49):
            assert session.put(f"/v1/kv/{key}", b"1").status == 201
            assert session.get(f"/v1/kv/{key}").body == b"1"


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_no_shared_cache_may_keep_an_answer(protected: Protected) -> None:
    token = protected.kept_token("cached", "rw:cached/", "monitor")
    with closing(Session(protected.url, token)) as session:
        session.put("/v1/kv/cached/a", b"1")
        for target in (
            "/v1/kv/cached/a",
            "/v1/kv/cached/a?format=json",
            "/v1/kv?prefix=cached/",
            "/v1/history/cached/a",
            "/v1/changes?prefix=cached/&since=0&limit=1&cache=1d",
            "/v1/status",
            "/metrics",
            "/readyz",
            "/livez",
            "/openapi.json",
            "/ui/",
            "/",
        ):
            answer = session.get(target)
            assert answer.status in (200, 303), target
            cache = answer.headers["cache-control"]
            assert "private" in cache or "no-store" in cache, (target, cache)
            assert "Authorization, Cookie" in answer.headers["vary"], target
        unchanged = session.get(
            "/v1/kv/cached/a", if_none_match=session.get("/v1/kv/cached/a").headers["etag"]
        )
        assert (unchanged.status, unchanged.headers["cache-control"]) == (304, "private, no-cache")


def test_without_monitor_status_and_readiness_tell_less(protected: Protected) -> None:
    plain, watcher = protected.kept_token("plain", "ro:app/"), protected.kept_token("watching", "monitor")
    told = call(protected.url, "GET", "/v1/status", token=plain).json
    assert {*told} == {"version", "protocol", "epoch", "revision", "floor", "writes_refused", "limits"}
    assert {*told} < {*call(protected.url, "GET", "/v1/status", token=watcher).json}
    for token in (None, plain):
        ready = call(protected.url, "GET", "/readyz?verbose", token=token)
        assert (ready.status, ready.json) == (200, {"status": "ready"})
        assert call(protected.url, "GET", "/readyz?verbose", headers={"Accept": "text/plain"}).body == b"ok\n"
    assert call(protected.url, "GET", "/readyz?verbose", token=watcher).json["checks"]
    assert (
        assert_problem(call(protected.url, "GET", "/metrics", token=plain), "not_allowed")["needs"]
        == "monitor"
    )


def test_refusals_and_ends_are_measured(protected: Protected) -> None:
    watcher = protected.token("measuring", "monitor", credential_expires_at=4102444800000)

    def metrics() -> dict[str, float]:
        text = call(protected.url, "GET", "/metrics", token=watcher).body.decode()
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("kvstore_access"))
        return {name: float(value) for name, value in pairs}

    before = metrics()
    call(protected.url, "GET", "/v1/kv/app/x")
    call(protected.url, "GET", "/v1/kv/app/x", token=NOBODY)
    call(protected.url, "GET", "/v1/kv/app/x", token=watcher)
    call(protected.url, "GET", f"/livez?token={watcher}")
    after = metrics()
    for reason in ("missing", "unknown", "not_granted", "in_address"):
        series = f'kvstore_access_refused_total{{reason="{reason}"}}'
        assert after[series] == before[series] + 1, reason
    assert after['kvstore_access_expires_at_seconds{name="measuring"}'] == 4102444800


def test_the_owner_of_a_secret_alone_is_told_that_it_has_expired(protected: Protected) -> None:
    token = protected.kept_token("short", "ro:app/")
    protected.change("identity_put", "short", expires_at=1)
    wait_until(
        lambda: call(protected.url, "GET", "/v1/whoami", token=token).status == 401, what="it has expired"
    )
    told = assert_problem(call(protected.url, "GET", "/v1/kv/app/x", token=token), "unauthenticated")
    assert told["reason"] == "expired"
    stolen = new_token().text
    guess = f"kv_{token.split('_')[1]}_{stolen.split('_')[2]}"
    told = assert_problem(call(protected.url, "GET", "/v1/kv/app/x", token=guess), "unauthenticated")
    assert told["reason"] == "unknown"


# ── operations ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("is_keyed", [False, True], ids=["once", "keyed"])
def test_a_batch_with_one_forbidden_op_changes_nothing(
    protected: Protected, at: int, atomic: bool, is_keyed: bool
) -> None:
    keyed = {"Idempotency_Key": f"batched-{at}-{atomic}"} if is_keyed else {}
    with closing(Session(protected.url, protected.kept_token("batcher", "rw:b/"))) as session:
        session.delete("/v1/kv?prefix=b/")
        good = [{"op": "put", "key": f"b/{number}", "value": "1"} for number in range(2)]
        for bad in (
            {"op": "put", "key": "other", "value": "1"},
            {"op": "get", "key": "other"},
            {"op": "incr", "key": "b"},
            {"op": "delete", "key": "b0"},
        ):
            before = session.get("/v1/status").json["revision"]
            ops = [*good[:at], bad, *good[at:]]
            answer = session.post("/v1/batch", {"ops": ops, "atomic": atomic}, **keyed)
            problem = assert_problem(answer, "not_allowed")
            assert problem["op"] == at
            assert session.get("/v1/status").json["revision"] == before
        # nothing was numbered, so the key is still free
        assert session.post("/v1/batch", {"ops": good, "atomic": atomic}, **keyed).status == 200


def test_ttls_delete_and_patches_read(protected: Protected) -> None:
    with closing(Session(protected.url, protected.kept_token("writer", "write:w/"))) as session:
        assert session.put("/v1/kv/w/a", b"{}").status == 201
        for refused, needs in (
            (session.put("/v1/kv/w/a?ttl=1ms", b"2"), "delete"),
            (session.put("/v1/kv/w/a?expires_at=2100-01-01T00:00:00Z", b"2"), "delete"),
            (session.post("/v1/touch/w/a?ttl=1ms"), "delete"),
            (session.delete("/v1/kv/w/a"), "delete"),
            (session.delete("/v1/kv?prefix=w/"), "delete"),
            (session.patch("/v1/kv/w/a", {"b": 1}), "read"),
            (session.post("/v1/incr/w/a?by=0"), "read"),
            (session.get("/v1/kv/w/a"), "read"),
            (session.get("/v1/history/w/a"), "read"),
            (session.get("/v1/kv/w/a?wait=1s&until=exists"), "read"),
            (session.get("/v1/kv?prefix=w/&keys=1"), "list"),
            (session.get("/v1/changes?prefix=w/&values=0"), "watch"),
            (session.get("/v1/changes?prefix=w/&wait=1s&values=0"), "watch"),
            (session.get("/v1/subscribe?prefix=w/&values=0"), "watch"),
        ):
            assert assert_problem(refused, "not_allowed")["needs"] == needs
        assert session.put("/v1/kv/w/a?keep_ttl=1", b"{}").status == 200
        assert session.post("/v1/persist/w/a").status == 200
        failed = session.put("/v1/kv/w/a", b"3", if_match='"1"')
        assert_problem(failed, "condition_failed")
        assert b"{}" not in failed.body


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("DELETE", ""),
        *product(["GET", "HEAD"], ["", "?wait=1ms", "?wait=1ms&until=exists", "?revision=1", "?format=json"]),
    ],
)
def test_what_is_not_granted_is_answered_the_same_whether_it_exists_or_not(
    protected: Protected, reader: Session, method: str, more: str
) -> None:
    with closing(Session(protected.url, protected.kept_token("owner", "rw:secret/"))) as owner:
        owner.put("/v1/kv/secret/here", b"1")
        owner.put("/v1/kv/secret/gone", b"1")
        owner.delete("/v1/kv/secret/gone")
    answers = []
    for key in ("here", "gone", "none"):
        answer = reader.request(method, f"/v1/kv/secret/{key}{more}")
        headers = {
            name: text for name, text in answer.headers.items() if name not in ("date", "x-request-id")
        }
        body = re.sub(rb'"request_id":"[^"]*"', b"", answer.body)
        answers.append((answer.status, headers, body.replace(key.encode(), b"KEY")))
    assert answers[0][0] == 403
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/kv/app%2Fx", 404),
        ("/v1/kv/%61pp/x", 404),
        ("/v1/kv/app/../secret", 404),  # a key below app/: dots mean nothing
        ("/v1/kv?key=app/x", 404),
        ("/?key=app/x", 404),
        ("/v1/kv/APP/x", 403),
        ("/v1/kv/app", 403),
        ("/v1/kv/app2", 403),
        ("/v1/kv//app/x", 403),
        ("/v1/kv/app%E2%88%95x", 403),
        ("/v1/kv/app%C0%AFx", 400),
        ("/v1/kv/app/%00", 400),
        ("/v1/kv?prefix=app/", 200),
        ("/v1/kv?start=app/&end=app0", 200),
        ("/v1/kv?prefix=app/&start=app/b", 200),
        ("/v1/kv?prefix=app", 403),
        ("/v1/kv", 403),
        ("/v1/kv?start=app/", 403),
        ("/v1/kv?start=app/&end=app1", 403),
        ("/all", 403),
        ("/v1/changes?prefix=app/&since=0", 200),
        ("/v1/changes?prefix=app&since=0", 403),
        ("/v1/changes?since=0", 403),
        ("/v1/changes?prefix=app/&key=b&wait=1s", 403),
        ("/v1/subscribe?prefix=app&since=0", 403),
        ("/v1/subscribe?since=0", 403),
        ("/v1/subscribe?prefix=app/&prefix=b/", 403),
    ],
)
def test_the_decoded_key_alone_decides(reader: Session, target: str, status: int) -> None:
    assert reader.get(target).status == status


def test_changes_carry_their_author(protected: Protected) -> None:
    with closing(Session(protected.url, protected.kept_token("poet", "rw:poem/"))) as session:
        session.put("/v1/kv/poem/a", b"1", X_Kvstore_Message="a reason")
        record = session.get("/v1/kv/poem/a?format=json").json
        assert (record["author"], record["message"]) == ("poet", "a reason")
        session.batch({"op": "incr", "key": "poem/n"}, {"op": "get", "key": "poem/a"})
        assert session.get("/v1/history/poem/n").json["events"][0]["author"] == "poet"


def test_requests_that_are_merged_keep_their_authors_and_refusals(protected: Protected) -> None:
    """Of requests that reach the daemon as one, each has its own author and verdict."""
    names = [f"merged-{number}" for number in range(8)]
    tokens = {name: protected.kept_token(name, f"rw:{name}/") for name in names}
    statuses: list[tuple[int, int]] = []

    def work(name: str) -> None:
        with closing(Session(protected.url, tokens[name])) as session:
            for number in range(20):
                good = session.put(f"/v1/kv/{name}/{number}", b"1").status
                statuses.append((good, session.put(f"/v1/kv/merged-x/{number}", b"1").status))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {(201, 403)}
    for name in names:
        page = call(protected.url, "GET", f"/v1/kv?prefix={name}/", token=tokens[name]).json
        assert {item["author"] for item in page["items"]} == {name}
        assert len(page["items"]) == 20


def test_two_who_choose_the_same_idempotency_key_share_nothing(protected: Protected) -> None:
    for name in ("same-1", "same-2"):
        with closing(Session(protected.url, protected.kept_token(name, "rw:same/"))) as session:
            for _ in range(2):
                answer = session.post("/v1/incr/same/n?by=5", Idempotency_Key="x" * 100)
                assert answer.status == 200
            again = answer.json
    assert again["value"] == 10


def test_pages_of_other_origins_send_tokens_and_read_refusals(start_listed: Protected) -> None:
    origin, token = {"Origin": "https://app.example"}, start_listed.kept_token("cross", "ro:app/")
    preflight = {
        **origin,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = call(start_listed.url, "OPTIONS", "/v1/kv/app/x", headers=preflight)
    assert (answer.status, answer.headers["access-control-allow-headers"]) == (204, "authorization")
    refused = [
        call(start_listed.url, "GET", "/v1/kv/app/x", headers=origin),
        call(start_listed.url, "GET", "/v1/kv/app/x", headers=origin, token=NOBODY),
        call(
            start_listed.url,
            "GET",
            "/v1/kv/b",
            headers=origin,
            token=token,
        ),
    ]
    assert [each.status for each in refused] == [401, 401, 403]
    with connect(start_listed.url) as sock:
        sock.sendall(
            b"PUT /v1/kv/app/x HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\n"
            b"Content-Length: 999999\r\n\r\n"
        )
        large = sock.recv(65536)
    assert large.startswith(b"HTTP/1.1 401 ")
    assert b"Access-Control-Allow-Origin: https://app.example" in large
    for each in (answer, *refused):
        assert each.headers["access-control-allow-origin"] == "https://app.example"
        assert "access-control-allow-credentials" not in each.headers
    assert b"Allow-Credentials" not in large


@pytest.fixture(scope="module")
def start_listed(protected: Protected, _session_starter: Any) -> Iterator[Protected]:
    """Another facade, which lets pages of an origin use it and logs every request."""
    key = str(protected.daemon.data / "facade.key")
    facade = _session_starter.start_facade(
        protected.daemon,
        facade_key_file=key,
        cors_origins="https://app.example",
        access_log="on",
        log_level="debug",
    )
    listed = Protected(protected.daemon, facade)
    yield listed
    listed.close()


def test_the_log_names_who_asked_and_shows_no_secret(start_listed: Protected) -> None:
    token = start_listed.kept_token("logged", "rw:logged/", "monitor")
    with closing(Session(start_listed.url, token)) as session:
        derived = session.post("/v1/narrow", {"for": "1m"}).json["token"]
        session.put("/v1/kv/logged/a", b"1")
        session.get(f"/v1/kv/{token}")
        session.get(f"/v1/kv/logged/a?token={token}&x={derived}")
        session.get(f"/v1/kv/{derived.replace('_', '%5F')}", User_Agent=f"curl {token}")
        metrics = session.get("/metrics").body.decode()
    call(start_listed.url, "GET", "/v1/kv/logged/a", headers={**bearer(derived), "Cookie": f"a={token}"})
    call(start_listed.url, "GET", "/v1/kv/logged/b", token=NOBODY)
    raw(start_listed.url, f"GET /{token} HTTP/1.1", "Connection: close", f"Authorization: Bearer {token}")
    wait_until(lambda: '"GET /v1/kv/logged/b" 401' in start_listed.facade.stderr, what="the log has it")
    log = start_listed.facade.stderr
    assert '127.0.0.1 logged "PUT /v1/kv/logged/a" 201' in log
    assert '127.0.0.1 - "GET /v1/kv/logged/b" 401' in log
    for text in (log, metrics, start_listed.daemon.stderr):
        assert token.split("_")[2] not in text
        assert derived.partition("_")[2] not in text


def test_access_that_is_off_asks_nobody(service_of_all: Session) -> None:
    assert service_of_all.put("/v1/kv/a", b"1").status == 201
    assert service_of_all.get("/v1/kv/a", Authorization="Bearer nonsense").body == b"1"
    record = json.loads(service_of_all.get("/v1/kv/a?format=json").body)
    assert "author" not in record
    assert service_of_all.get("/v1/kv/a").headers["cache-control"] == "no-cache"


@pytest.fixture
def service_of_all(shared_service: Any) -> Iterator[Session]:
    with closing(Session(shared_service.url)) as session:
        yield session


def test_the_parts_of_an_address(protected: Protected) -> None:
    """Userinfo in a client's address is Basic, which is nobody here."""
    netloc = urlsplit(protected.url).netloc
    basic = base64.b64encode(b"admin:" + protected.admin_token.encode()).decode()
    answer = call(f"http://{netloc}", "GET", "/v1/status", headers={"Authorization": f"Basic {basic}"})
    assert_problem(answer, "unauthenticated")


# ── guards and values ────────────────────────────────────────────────────────────────────────────


def test_a_guard_needs_read_on_its_key_and_a_value_on_its_own(protected: Protected) -> None:
    """Else an answer would tell what is not granted: which revision a key has, or whether it has a value."""
    admin = protected.kept_token("guarding", "rw:guarding/", "rw:secret/")
    with closing(Session(protected.url, admin)) as owner:
        revision = owner.put("/v1/kv/secret/lock", b"x").json["revision"]
        owner.put("/v1/kv/guarding/a?ttl=1h", b"5")
    writer = protected.kept_token("guarded", "write,delete:guarding/", "read:guarding/lock")
    with closing(Session(protected.url, writer)) as session:
        for number in (0, revision, revision + 1):
            for answer in (
                session.put(f"/v1/kv/guarding/a?guard=secret/lock@{number}", b"6"),
                session.request("POST", f"/v1/kv/guarding/?guard=secret/lock@{number}", b"6"),
                session.delete(f"/v1/kv/guarding/a?guard=secret/lock@{number}"),
                session.post(f"/v1/touch/guarding/a?ttl=1h&guard=secret/lock@{number}"),
                session.batch({"op": "check", "key": "secret/lock", "if_revision": number}),
            ):
                problem = assert_problem(answer, "not_allowed")
                assert (problem["needs"], problem["on"]) == ("read", "secret/lock")
        for answer in (
            session.put("/v1/kv/guarding/a?if_value=5", b"6"),
            session.delete("/v1/kv/guarding/a?if_value=5"),
            session.post("/v1/persist/guarding/a?if_value=5"),
            session.batch({"op": "put", "key": "guarding/a", "value": "6", "if_value_b64": "NQ=="}),
        ):
            problem = assert_problem(answer, "not_allowed")
            assert (problem["needs"], problem["on"]) == ("read", "guarding/a")
        assert session.put("/v1/kv/guarding/a?guard=guarding/lock@0", b"6").status == 200


def test_a_key_that_numbers_itself_needs_write_on_all_that_begins_like_it(protected: Protected) -> None:
    token = protected.kept_token("numbering", "write:numbering/", "write:numbering2")
    with closing(Session(protected.url, token)) as session:
        assert session.request("POST", "/v1/kv/numbering/", b"x").status == 201
        assert session.request("POST", "/v1/kv/numbering/deep/er", b"x").status == 201
        for prefix in ("numbering", "numberin", "numbering2", "other/"):
            assert_problem(session.request("POST", f"/v1/kv/{prefix}", b"x"), "not_allowed")
        answer = session.request("POST", "/v1/kv/numbering/?ttl=1h", b"x")
        assert assert_problem(answer, "not_allowed")["needs"] == "delete"


@pytest.mark.parametrize("method", ["POST", "QUERY"])
def test_a_subscription_in_a_body_needs_what_one_in_an_address_needs(
    protected: Protected, reader: Session, method: str
) -> None:
    def ask_for(body: dict[str, Any], *, nobody: bool = False) -> Answer:
        # a cursor that is none: where everything else is right, the stream is refused for that
        encoded = json.dumps({"since": "nonsense", **body}).encode()
        headers = {"Content-Type": "application/json"}
        if nobody:
            return call(protected.url, method, "/v1/subscribe", encoded, headers)
        return reader.request(method, "/v1/subscribe", encoded, headers)

    assert_problem(ask_for({"prefixes": ["app/"]}, nobody=True), "unauthenticated")
    assert_problem(ask_for({"prefixes": ["app/"]}), "invalid_cursor")
    for body in ({"since": 0}, {"since": 0, "prefixes": ["app/", "other/"]}, {"since": 0, "keys": ["other"]}):
        problem = assert_problem(ask_for(body), "not_allowed")
        assert problem["needs"] == "watch"
