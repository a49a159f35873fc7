"""The short path answers as the application does, byte for byte.

Each request is sent to two facades, one of which has no short path. Each has a daemon of its own, and both
daemons are told the same in the same order, so their revisions are the same too.
"""

from __future__ import annotations

import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore_core.access.tokens import NewToken, new_token
from support.lengths import Survived, examples
from support.metrics import Scrape
from support.protected import Protected
from support.servers import Daemon, Facade, wait_until
from support.session import call, connect

PROGRAM = Path(__file__).with_name("watched_facade.py")

MOST_VALUE, MOST_BODY = 600_000, 700_000
LITTLE = 20_000
"""The most bytes of a value, where one that is too large is to come in one piece."""
ELSEWHERE = "https://pages.example"


class ShortFacade(Facade):
    """A facade that says which requests took the short path."""

    wrapper = (sys.executable, str(PROGRAM), "short")

    @property
    def taken(self) -> int:
        """How many requests did so far."""
        file = self.folder / "short"
        return file.stat().st_size if file.exists() else 0


class LongFacade(Facade):
    """A facade without the short path."""

    wrapper = (sys.executable, str(PROGRAM), "long")


class Answered(NamedTuple):
    """A response as it came, without what no two responses share; whether the connection ended after it."""

    head: bytes
    body: bytes
    has_ended: bool


class Client:
    """One connection, opened again after its end, and what it received and did not look at yet."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sock: socket.socket | None = None
        self._rest = b""

    def send(self, packet: bytes) -> None:
        """Send some bytes; of an end of the connection the next answer tells."""
        if self._sock is None:
            self._sock, self._rest = connect(self._url), b""
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            self._sock.sendall(packet)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        assert self._sock is not None
        self._sock.shutdown(socket.SHUT_WR)

    def answer(self, method: str) -> Answered | None:
        """The next response; None where there is only the end of the connection."""
        while b"\r\n\r\n" not in self._rest:
            if not self._receive():
                self.close()
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        has_body = method != "HEAD" and b" 304 " not in head.partition(b"\r\n")[0]
        size = int(length[1]) if length is not None and has_body else 0
        while len(self._rest) < size:
            assert self._receive(), "the connection ended in a body"
        body, self._rest = self._rest[:size], self._rest[size:]
        has_ended = b"\r\nConnection: close" in head
        if has_ended:
            while self._receive():
                pass
            body += self._rest
            self.close()
        return Answered(*without_accidents(head, body), has_ended)

    def _receive(self) -> bool:
        assert self._sock is not None
        try:
            data = self._sock.recv(256 * 1024)
        except ConnectionResetError:
            data = b""
        self._rest += data
        return bool(data)

    def close(self) -> None:
        """End the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def without_accidents(head: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A response without its time and its id, which may also stand in the body, and without the times of the
    store's clock."""
    found = re.search(rb"\r\nX-Request-Id: ([^\r]+)", head)
    assert found is not None, head
    if re.fullmatch(rb"[0-9a-f]{16}", found[1]):
        head, body = head.replace(found[1], b"ID"), body.replace(b'"%b"' % found[1], b'"ID"')
    head = re.sub(rb"\r\n(Date|Last-Modified): [^\r]+", rb"\r\n\1: then", head)
    return head, re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", b"then", body)


class Both:
    """The two facades. The identities, if access is on, have the same tokens at both daemons."""

    def __init__(
        self,
        short: ShortFacade,
        long: LongFacade,
        daemons: list[Daemon],
        access: tuple[Protected, Protected] | None,
    ) -> None:
        self.short, self.long = short, long
        self._daemons = daemons
        self.access = access
        self.tokens: dict[str, NewToken] = {}
        self.compared = 0
        self.clients = Client(short.url), Client(long.url)

    def exchange(self, messages: list[Message], packets: list[bytes]) -> None:
        """Send ``packets``, all of the ``messages``, both ways; check that the answers are the same."""
        for client in self.clients:
            for packet in packets:
                client.send(packet)
        try:
            self.compare(messages)
        except AssertionError:
            for client in self.clients:
                client.close()  # what is left of the answers is not the next example's
            raise

    def compare(self, messages: list[Message]) -> None:
        """Check that the answers to ``messages``, which were sent, are the same."""
        for message in messages:
            short, long = (client.answer(message.method) for client in self.clients)
            assert short == long, message
            self.compared += 1
            if short is None or short.has_ended:
                break

    @contextmanager
    def without_daemons(self) -> Iterator[None]:
        """While the daemons stand still."""
        with self._daemons[0].paused(), self._daemons[1].paused():
            yield

    def token(self, name: str, *grants: str) -> str:
        """A token of an identity with these grants."""
        if name not in self.tokens:
            token = self.tokens[name] = new_token()
            for protected in self.access or ():
                protected.change("identity_put", name, id=token.id, digest=token.digest, grant=grants)
                protected.await_facade(token.text, grants)
        return self.tokens[name].text

    def revoke(self, name: str) -> None:
        """Take the token away again, and wait until both facades have heard."""
        for protected in self.access or ():
            protected.change("token_delete", name, id=self.tokens[name].id)
            wait_until(partial(is_refused, protected.url, self.tokens[name].text))

    def counts(self) -> tuple[Counter[tuple[str, ...]], ...]:
        """How many requests for keys each facade has counted, by method and status; by method, those whose
        time it took; and refusals by their reasons."""
        return tuple(Counter(dict(counted(page))) for page in map(self._metrics, (0, 1)))

    def _metrics(self, number: int) -> Scrape:
        url = (self.short, self.long)[number].url
        token = None if self.access is None else self.access[number].admin_token
        return Scrape(call(url, "GET", "/metrics", token=token).body.decode())

    def close(self) -> None:
        """Close what was opened here; the servers go on."""
        for client in self.clients:
            client.close()
        for protected in self.access or ():
            protected.close()


OPTIONS: dict[str, dict[str, Any]] = {
    "open": {},
    "access": {"access": "required"},
    "anonymous": {"access": "required", "allow_anonymous": "ro:a"},
    "cors": {"cors_origins": ELSEWHERE, "access_log": "on"},
}


@pytest.fixture(scope="module", params=OPTIONS)
def both(request: pytest.FixtureRequest, _shared_starter: Any) -> Iterator[Both]:
    """Two facades with the same options."""
    options = OPTIONS[request.param]
    most = LITTLE if request.param == "cors" else MOST_VALUE
    of_daemon = {"max_value_bytes": most, "sync": "none", "access": options.get("access")}
    facades: list[Any] = []
    daemons: list[Daemon] = []
    protected: list[Protected] = []
    for kind in (ShortFacade, LongFacade):
        daemon: Daemon = _shared_starter.start(Daemon, of_daemon, None)
        daemons.append(daemon)
        own = {name: value for name, value in options.items() if name in ("cors_origins", "access_log")}
        own |= {"requests": daemon.requests, "changes": daemon.changes, "workers": 1}
        if "access" in options:
            own["facade_key_file"] = str(daemon.data / "facade.key")
        facades.append(_shared_starter.start(kind, {**own, "max_body_bytes": MOST_BODY}, None))
        if "access" in options:
            protected.append(Protected(daemon, facades[-1]))
            if "allow_anonymous" in options:
                protected[-1].change("identity_put", "anonymous", grants=[options["allow_anonymous"]])
    both = Both(*facades, daemons, (protected[0], protected[1]) if protected else None)
    with closing(both):
        both.token("writer", "rw:*")
        both.token("reader", "ro:a", "write:b")
        both.token("gone", "rw:*")
        both.revoke("gone")
        yield both


def is_refused(url: str, token: str) -> bool:
    """Whether the token is not good any more."""
    return call(url, "GET", "/v1/whoami", token=token).status == 401


def counted(page: Scrape) -> Iterator[tuple[tuple[str, ...], float]]:
    """What a page of metrics says of requests for keys, and of refusals."""
    of_keys = ("kvstore_http_requests_total", "kvstore_http_request_duration_seconds_count")
    for name in (*of_keys, "kvstore_access_refused_total"):
        for labels in page.labels(name):
            if name not in of_keys or labels["route"] == "/v1/kv/{key}":
                yield (name, *sorted(labels.values())), page.value(name, **labels)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


class Message(NamedTuple):
    """A request."""

    method: str
    target: str
    headers: tuple[str, ...]
    body: bytes
    version: str = "1.1"

    def encoded(self) -> bytes:
        """Its bytes."""
        lines = (f"{self.method} {self.target} HTTP/{self.version}", *self.headers)
        return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + self.body


KEYS = (
    *("a", "a/b", "ab", "b", "c//d", "..", "a%2Fb", "%C3%BC", "a%20b", "kv_no-token", "~" * 511, "missing"),
    *("", "~" * 512, "a%", "a%zz", "%FF", "%00", "a\x7f", "\xfc", "a#b", "kvd_a.b", "a?", "a?ttl=1h"),
    *("a?format=json", "a?revision=1", "a?stale=1", "a?nonsense=1", "missing?stale=1", "a b"),
    *("a?guard=none@0", "a?guard=b@1&guard=c@2", "a?if_value=vvvvv", "a%3Fguard=none@0"),
)
USUAL = (
    *("User-Agent: test/1", "Accept: */*", "accept:text/html", "Content-Type: text/plain", "Origin: null"),
    *("Content-Type: application/x-www-form-urlencoded", f"Origin: {ELSEWHERE}", "Connection: keep-alive"),
    *("CONTENT-TYPE: application/json; charset=utf-8", "Content-Type:", "Content-Type: \xe4", "X-Real-IP: 1"),
    *("Cache-Control: no-cache", "Referer: http://x/?a=b", "X-Forwarded-For: 10.0.0.1", "Sec-Fetch-Site: x"),
)
UNUSUAL = (
    *(
        'If-None-Match: "1"',
        "If-None-Match: *",
        'If-Match: "7"',
        "If-Match: *",
        "If-Match: x",
        "Range: bytes=0-1",
    ),
    *(
        "If-Modified-Since: Sat, 01 Jan 2000 00:00:00 GMT",
        "If-Unmodified-Since: x",
        "Connection: close",
        "X: y",
    ),
    *(
        "Idempotency-Key: one",
        "X-Kvstore-Message: why",
        "X-Request-Id: mine",
        "X-Request-Id: not one",
        "Content-Encoding: gzip",
        "X_Y: z",
    ),
    *("Content-Range: bytes 0-1/2", "Cookie: kvstore=x", "Content-Length: 3", "Transfer-Encoding: chunked"),
    *(
        "Expect: nothing",
        "Upgrade: h2c",
        " folded",
        "nonsense",
        "Host: y.example",
        f"Content-Type: {'x' * 256}",
    ),
    *(f"X: {'x' * 2100}", "Authorization: Basic eDp5", "Authorization: Bearer kv_x", "Authorization: x"),
)
HOSTS = ("Host: localhost", "Host: 127.0.0.1:5000", "host:[::1]", "Host: elsewhere.example", "Host: a@b", "")
SIZES = (0, 1, 7, 7, 7, 100, LITTLE, LITTLE + 1, 60_000, 300_000, MOST_VALUE, MOST_VALUE + 1, MOST_BODY + 1)
USERS = (None, "writer", "writer", "writer", "reader", "gone", "nobody")


def message_of(
    method: str, key: str, host: str, usual: list[str], unusual: list[str], size: int, version: str
) -> Message:
    """A request whose end can be told, if it is taken at all."""
    headers = tuple(filter(None, (host, *usual, *unusual)))
    body = b""
    if method == "PUT":
        headers, body = (*headers, f"Content-Length: {size}"), b"v" * size
    elif "Content-Length: 3" in headers:
        body = b"one"
    elif "Transfer-Encoding: chunked" in headers:
        body = b"3\r\none\r\n0\r\n\r\n"
    return Message(method, f"/v1/kv/{key}", headers, body, version)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[list[tuple[Message, str | None]], str, float]:
    """Requests with the names of those who make them, and how they are sent."""
    is_usual = draw(st.booleans())
    message = st.builds(
        message_of,
        st.sampled_from(("GET", "GET", "GET", "PUT", "PUT", "HEAD", *(() if is_usual else ("DELETE",)))),
        st.sampled_from(KEYS[:4] if is_usual else KEYS),
        st.sampled_from(HOSTS[:1] if is_usual else HOSTS),
        st.lists(st.sampled_from(USUAL[:2] if is_usual else USUAL), max_size=3, unique=True),
        st.just([]) if is_usual else st.lists(st.sampled_from(UNUSUAL), max_size=2, unique=True),
        st.sampled_from(SIZES) if draw(st.booleans()) else st.just(5),
        st.sampled_from(("1.1",) if is_usual else ("1.1", "1.1", "1.1", "1.0")),
    )
    whose = st.sampled_from(USERS)
    how = draw(st.sampled_from(("one by one", "one by one", "together", "in two pieces")))
    return draw(st.lists(st.tuples(message, whose), min_size=1, max_size=6)), how, draw(st.floats(0, 1))


def test_usual_requests_take_the_short_path(both: Both) -> None:
    headers = ("User-Agent: test/1", "Accept: */*", "Content-Type: text/plain")
    taken = {
        (method, key, size): message_of(method, key, "Host: localhost", [*headers], [], size, "1.1")
        for method in ("GET", "HEAD", "PUT")
        for key in ("a", "a/b", "a%2Fb", "%C3%BC", "~" * 511)
        for size in (0, 10, 10_000)
    }
    messages = [of(both, "writer", message) for message in taken.values()]
    for message in messages:  # those with a token are known from the second time on
        both.exchange([message], [message.encoded()])
    before = both.short.taken
    for message in messages:
        both.exchange([message], [message.encoded()])
    assert both.short.taken - before == len(messages)


def variations() -> Iterator[Message]:
    """A plain request, and all that differ from it in one thing."""
    for method in ("GET", "PUT"):
        for key in KEYS:
            yield message_of(method, key, HOSTS[0], [], [], 5, "1.1")
        for host in HOSTS:
            yield message_of(method, "a", host, [], [], 5, "1.1")
        for header in (*USUAL, *UNUSUAL):
            yield message_of(method, "a", HOSTS[0], [header], [], 5, "1.1")
        yield message_of(method, "a", HOSTS[0], [], [], 5, "1.0")
    for size in SIZES:
        yield message_of("PUT", "a", HOSTS[0], [], [], size, "1.1")
        yield message_of("GET", "a", HOSTS[0], [], [], size, "1.1")
    yield message_of("DELETE", "a", HOSTS[0], [], [], size, "1.1")


@pytest.mark.parametrize("both", ["access", "cors"], indirect=True)
def test_one_thing_that_is_unusual_is_answered_the_same_both_ways(both: Both, survived: Survived) -> None:
    compared = both.compared
    for message in variations():
        each = of(both, "writer", message)
        both.exchange([each], [each.encoded()])
    for who in dict.fromkeys(USERS):
        for message in (GET, put("a", b"new"), put("b", b"new"), GET):
            each = of(both, who, message)
            both.exchange([each], [each.encoded()])
    survived(requests_sent_both_ways=both.compared - compared)


def test_each_request_is_answered_the_same_both_ways(both: Both, survived: Survived) -> None:
    @settings(max_examples=examples(40))
    @given(exchanges())
    def compare(exchange: tuple[list[tuple[Message, str | None]], str, float]) -> None:
        drawn, how, where = exchange
        messages = [of(both, who, message) for message, who in drawn]
        if how == "one by one":
            for message in messages:
                both.exchange([message], [message.encoded()])
            return
        whole = b"".join(message.encoded() for message in messages)
        cut = len(whole) if how == "together" else int(where * len(whole))
        both.exchange(messages, list(filter(None, (whole[:cut], whole[cut:]))))

    compared, taken, before = both.compared, both.short.taken, both.counts()
    compare()
    compared, taken = both.compared - compared, both.short.taken - taken
    survived(requests_sent_both_ways=compared, of_them_by_the_short_path=taken)
    after = both.counts()
    assert [after[0][name] - before[0][name] for name in after[0]] == [
        after[1][name] - before[1][name] for name in after[1]
    ]
    assert lines(both.short) == lines(both.long)


def lines(facade: Any) -> list[str]:
    """The lines of the access log, without times and ids."""
    said = [line for line in facade.stderr.splitlines() if " kvstore.access: " in line and " /v1/kv/" in line]
    return [re.sub(r"^.*?(?=127\.0\.0\.1)|\b[0-9a-f]{16}\b|\d\.\d{6}", "*", line) for line in said]


def of(both: Both, who: str | None, message: Message) -> Message:
    """The message with the token of ``who``, where access is on."""
    if who is None or both.access is None:
        return message
    text = both.tokens[who].text if who in both.tokens else new_token_of_nobody()
    return message._replace(headers=(*message.headers, f"Authorization: Bearer {text}"))


def new_token_of_nobody() -> str:
    return NOBODY.text


NOBODY = new_token()


GET = Message("GET", "/v1/kv/a", ("Host: localhost",), b"")


def put(key: str, body: bytes) -> Message:
    """A request that stores ``body``."""
    return Message("PUT", f"/v1/kv/{key}", ("Host: localhost", f"Content-Length: {len(body)}"), body)


@pytest.mark.parametrize("both", ["access"], indirect=True)
def test_a_revoked_token_is_refused_from_then_on(both: Both) -> None:
    both.token("leaver", "rw:*")
    for message in [of(both, "leaver", each) for each in (put("a", b"1"), GET, put("a", b"2"), GET)]:
        both.exchange([message], [message.encoded()])
    taken = both.short.taken
    both.revoke("leaver")
    message = of(both, "leaver", GET)
    both.exchange([message], [message.encoded()])
    assert both.short.taken == taken


@pytest.mark.parametrize("both", ["open"], indirect=True)
def test_what_comes_while_the_daemon_is_asked_is_answered_in_its_turn(both: Both) -> None:
    messages = [of(both, "writer", each) for each in (put("b", b"first"), GET, put("b", b"second"), GET, GET)]
    both.exchange(messages[:1], [messages[0].encoded()])  # now its head is known
    with both.without_daemons():
        for client in both.clients:
            for message in messages:
                client.send(message.encoded())
            client.finish()
    both.compare(messages)
    assert [client.answer("GET") for client in both.clients] == [None, None]
    with both.without_daemons():
        for client in both.clients:
            client.send(messages[1].encoded())
            client.finish()
    both.compare(messages[1:2])
    assert [client.answer("GET") for client in both.clients] == [None, None]


@pytest.mark.parametrize("both", ["open"], indirect=True)
def test_a_daemon_that_is_away_is_told_of_the_same_both_ways(both: Both) -> None:
    reads, writes = [of(both, "writer", GET)], [of(both, "writer", put("b", b"lost"))]
    both.exchange(reads, [reads[0].encoded()])
    both.exchange(writes, [writes[0].encoded()])
    with both.without_daemons():
        for messages in (writes, reads, writes):
            both.exchange(messages, [messages[0].encoded()])

    def is_back(url: str) -> bool:
        return call(url, "GET", "/readyz").status == 200

    for facade in (both.short, both.long):
        wait_until(lambda url=facade.url: is_back(url))
    both.exchange(reads, [reads[0].encoded()])


def test_a_request_under_way_is_answered_before_the_facade_stops(daemon: Daemon, facade: Facade) -> None:
    client = Client(facade.url)
    client.send(GET.encoded())
    assert client.answer("GET") is not None
    with closing(client), ThreadPoolExecutor() as pool:
        with daemon.paused():
            client.send(GET.encoded())
            client.send(put("after", b"x").encoded())
            stopping = pool.submit(facade.stop)
            wait_until(lambda: is_deaf(facade.url))
        answer = client.answer("GET")
        stopping.result()
    assert answer is not None
    assert answer.has_ended
    assert b"404" in answer.head
    # the answer said that it is the last: its client sends the rest again, elsewhere
    assert b"HTTP/1.1" not in answer.body


def test_a_long_answer_after_a_short_one_is_whole_to_who_says_no_more(daemon: Daemon, facade: Facade) -> None:
    for number in range(12):
        assert call(facade.url, "PUT", f"/v1/kv/long{number}", b"v" * 1_000_000).status == 201
    with socket.create_connection((urlsplit(facade.url).hostname, urlsplit(facade.url).port)) as client:
        client.settimeout(60)
        with daemon.paused():
            client.sendall(GET.encoded())
            client.sendall(b"GET /all HTTP/1.1\r\nHost: localhost\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
        said = b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert said.endswith(b"0\r\n\r\n")
    assert len(said) > 12_000_000


def is_deaf(url: str) -> bool:
    """Whether nothing accepts connections there."""
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) != 0
