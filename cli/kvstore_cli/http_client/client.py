"""The client of the HTTP service: requests that are safe to repeat, and streams of lines.

Every failure is a KvError of the one table. Commands are short: HTTP clients, also Python's own, take longer
to import than the service takes to answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from kvstore_cli.http_client.connection import connected, reason, speaks_tls
from kvstore_cli.http_client.errors import AttemptError, HttpResponse, WrongAddressError, successful
from kvstore_cli.http_client.exchange import ExchangeError, Headers, HttpConnection, NotHttpError
from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON, NDJSON

if TYPE_CHECKING:
    from kvstore_cli.config.token_source import TokenSource
    from kvstore_cli.http_client.line_stream import LineStream, StreamRequest

ATTEMPTS = 4
_PAGE_ITEMS = 1000
# For a service that was there before: the attempts then last longer than a restart takes.
_RESTART_PAUSE_SECONDS = 1.0

SLICE_SECONDS = 50.0
"""What waits longer asks again after this time: proxies often give a request up after 60 s."""

Query = Sequence[tuple[str, str]]
_Result = TypeVar("_Result")


def new_backoff() -> Backoff:
    """The pauses between attempts: up to 0.1 s at first, 5 s at most."""
    return Backoff(0.075, 3.75, jitter=1 / 3)


class ServiceClient:
    """A client for the service at one address, over one connection that is kept open. Not thread-safe.

    An https service needs a certificate that is trusted, by ``ca_file`` or by the system, unless
    ``checks_certificate`` is false: that is for an address of this machine, which is believed as it is over
    plain HTTP. ``timeout_ms`` is the time for an answer. Failed requests are repeated for ``retry_ms``, at
    least. Each request has the token of ``tokens``; where that is refused, another one that is there by now
    is tried.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_ms: int,
        ca_file: str | None = None,
        checks_certificate: bool = True,
        retry_ms: int = 0,
        tokens: TokenSource | None = None,
    ) -> None:
        self.url = url
        self._tokens = tokens
        self._timeout_seconds = timeout_ms / 1000
        self._retry_seconds = retry_ms / 1000
        self._was_reached = False
        self._ca_file = ca_file
        self._checks_certificate = checks_certificate
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host, self._port, self._base = parts.hostname or "", parts.port, parts.path
        self._named_port = None if self._port == (443 if self._secure else 80) else self._port
        self._connection: HttpConnection | None = None
        self.age_ms: int | None = None
        """None: reads are current. Else they are ``stale``, and this is how many milliseconds ago the oldest
        of what they gave was last known to be current."""
        self.is_truncated = False
        """Whether the last list that was read to its end had more, which the log does not have any longer."""

    def request(
        self,
        method: str,
        path: str,
        query: Query = (),
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        attempts: int = ATTEMPTS,
        is_once: bool = False,
        wait_seconds: float = 0.0,
    ) -> HttpResponse:
        """The service's response, which may take ``wait_seconds`` longer than others if it is asked to wait.

        A request that fails with a broken connection, a timeout, or a service that is temporarily
        unavailable is repeated, up to ``attempts`` in all and within the timeout. Writes are repeated under
        one Idempotency-Key, that of ``headers`` or a new one, and so applied once. A patch cannot have
        one, nor can what ``is_once``: it is repeated only if it cannot have arrived. A refused connection
        is not retried unless the service was reached before. Raises the KvError of the last attempt.
        """
        sent = {"Accept": f"{JSON}, */*;q=0.1", **(headers or {})}
        is_once = method != "GET" and (is_once or method == "PATCH")
        if method != "GET" and not is_once:
            sent.setdefault("Idempotency-Key", os.urandom(16).hex())
        stale = () if self.age_ms is None else (("stale", "1"),)
        target = self._base + path + encode_query((*query, *stale))
        return self._authorized(
            lambda: self._repeat(
                lambda seconds: self._attempt(method, target, body, sent, seconds, is_once=is_once),
                attempts,
                wait_seconds,
            )
        )

    def items(self, path: str, query: Query, limit: int | None = None, name: str = "items") -> Iterator[Any]:
        """The items of all pages of a list, ``limit`` at most. Each page is a snapshot of its own."""
        for page in self.pages(path, query, limit, (name,)):
            yield from page[name]

    def pages(
        self, path: str, query: Query, limit: int | None = None, names: Sequence[str] = ("items",)
    ) -> Iterator[Any]:
        """All pages of a list, with ``limit`` at most of what its members ``names`` have together."""
        cursor: str | None = None
        while limit is None or limit > 0:
            wanted = [*query, ("limit", str(_PAGE_ITEMS if limit is None else min(_PAGE_ITEMS, limit)))]
            if cursor is not None:
                wanted.append(("cursor", cursor))
            page = self.request("GET", path, wanted).json()
            cursor = page["cursor"]
            if limit is not None:
                limit -= sum(len(page[name]) for name in names)
            if cursor is None:
                self.is_truncated = page.get("truncated", False)
            yield page
            if cursor is None:
                return

    def open_stream(
        self, path: str, query: Query, *, stall_seconds: float, receive_bytes: int | None = None
    ) -> LineStream:
        """A response whose lines come over time, of which the system keeps ``receive_bytes`` unread at most.
        Raises like :meth:`request`."""
        from kvstore_cli.http_client.line_stream import StreamRequest

        wanted = StreamRequest(self._base + path, encode_query(query), query, stall_seconds, receive_bytes)
        return self._authorized(lambda: self._repeat(lambda seconds: self._open(wanted, seconds)))

    def open_stream_once(
        self, path: str, query: Query, *, stall_seconds: float, receive_bytes: int | None = None
    ) -> LineStream:
        """Like :meth:`open_stream`, in one attempt; raises AttemptError if another may succeed."""
        from kvstore_cli.http_client.line_stream import StreamRequest

        wanted = StreamRequest(self._base + path, encode_query(query), query, stall_seconds, receive_bytes)
        return self._authorized(lambda: self._open(wanted, self._timeout_seconds))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _authorized(self, attempts: Callable[[], _Result]) -> _Result:
        try:
            return attempts()
        except KvError as error:
            if error.code == "no_such_route":  # an older service, or a path that --url should not have
                raise KvError(error.code, f"{self.url}: {error.message}", **error.details) from error
            if error.code != "unauthenticated" or self._tokens is None:
                raise
            if not self._tokens.reread():
                raise _with_origin(error, self._tokens) from error
        return attempts()

    def _authorization(self) -> dict[str, str]:
        token = None if self._tokens is None else self._tokens.token()
        return {} if token is None else {"Authorization": f"Bearer {token.text}"}

    @property
    def was_reached(self) -> bool:
        """Whether the service has ever answered."""
        return self._was_reached

    def _repeat(
        self, attempt: Callable[[float], _Result], attempts: int = ATTEMPTS, wait_seconds: float = 0.0
    ) -> _Result:
        timeout_seconds = self._timeout_seconds + wait_seconds
        deadline = monotonic() + timeout_seconds
        retry_until = monotonic() + self._retry_seconds
        backoff = new_backoff()
        for left in count(attempts - 1, -1):
            try:
                return attempt(max(0.001, deadline - monotonic()))
            except AttemptError as failure:
                if failure.is_final:
                    raise failure.error from failure
                is_restart = failure.refused and self._was_reached
                pause = backoff.next(_RESTART_PAUSE_SECONDS if is_restart else failure.retry_after)
                now = monotonic()
                if failure.retry_after is None and now < retry_until:
                    pause = min(pause, retry_until - now)  # the last attempt is when the time is over
                again_at = now + pause
                if now < retry_until and again_at <= retry_until:
                    deadline = again_at + timeout_seconds
                elif left <= 0 or again_at >= deadline or (failure.refused and not is_restart):
                    raise failure.error from failure
                sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(
        self,
        method: str,
        target: str,
        body: bytes | None,
        headers: dict[str, str],
        seconds: float,
        *,
        is_once: bool,
    ) -> HttpResponse:
        headers = {**headers, **self._authorization()}
        kept = self._connection is not None
        connection = self._connection or self._reached(
            lambda **how: HttpConnection(
                connected(self._host, self._port, **how), self._host, self._named_port
            ),
            seconds,
        )
        self._connection = None
        try:
            response = HttpResponse(*connection.exchange(method, target, body, headers, seconds))
        except (OSError, ExchangeError) as error:
            self._refuse_other_protocol(error)
            # the service may have closed a connection that was kept open
            raise AttemptError(
                self._no_answer(error, method), 0.0 if kept else None, is_final=is_once
            ) from error
        self._was_reached = True
        if connection.is_open:
            self._connection = connection
        if self.age_ms is not None:
            self.age_ms = max(self.age_ms, int(response.headers.get("X-Kvstore-Age", "0")))
        return successful(response)

    def _open(self, wanted: StreamRequest, seconds: float) -> LineStream:
        from kvstore_cli.http_client.line_stream import LineStream
        from kvstore_cli.http_client.whole import connect, http_client

        method, target, body = wanted.sent()
        headers = {"Accept": NDJSON, **self._authorization()}
        if body is not None:
            headers["Content-Type"] = JSON
        connection = self._reached(lambda **how: connect(self._host, self._port, **how), seconds)
        opened = connection.sock
        try:
            wanted.prepare(opened)
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            if response.status != 200:
                named = Headers((name.lower(), value) for name, value in response.headers.items())
                successful(HttpResponse(response.status, named, response.read()))
        except (OSError, http_client.HTTPException) as error:
            connection.close()
            is_strange = isinstance(error, http_client.BadStatusLine) and not isinstance(error, OSError)
            self._refuse_other_protocol(NotHttpError() if is_strange else error)
            raise AttemptError(self._no_answer(error, "GET")) from error
        except BaseException:
            connection.close()
            raise
        self._was_reached = True
        return LineStream(connection, opened, response, wanted.stall_seconds)

    def _reached(self, connect: Callable[..., _Result], seconds: float) -> _Result:
        try:
            return connect(
                seconds=seconds,
                secure=self._secure,
                ca_file=self._ca_file,
                checks_certificate=self._checks_certificate,
            )
        except TimeoutError as error:
            raise AttemptError(self._cannot_reach("it does not answer")) from error
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            raise AttemptError(self._cannot_reach(reason(error)), refused=refused) from error

    def _refuse_other_protocol(self, error: Exception) -> None:
        """Raise ``unavailable``, which is not retried, if the port turns out not to speak HTTP."""
        if self._secure or self._was_reached or not isinstance(error, (OSError, NotHttpError)):
            return
        if not isinstance(error, TimeoutError) and speaks_tls(self._host, self._port):
            secure_url = f"https:{self.url.partition(':')[2]}"
            raise WrongAddressError("unavailable", f"{self.url} speaks TLS; write {secure_url}") from error
        if isinstance(error, NotHttpError):
            advice = "give the address of kvstore's HTTP facade"
            raise WrongAddressError("unavailable", f"{self.url} does not speak HTTP; {advice}") from error

    def _cannot_reach(self, why: str) -> KvError:
        return KvError(
            "unavailable",
            f"cannot reach the service at {self.url}: {why}. "
            "Start it with 'kvstore serve', or name another with --url or KVSTORE_URL",
        )

    def _no_answer(self, error: Exception, method: str) -> KvError:
        doubt = "" if method == "GET" else "; the change may have been made anyway"
        outcome = {} if method == "GET" else {"outcome": "unknown"}
        if isinstance(error, TimeoutError):
            seconds = f"{self._timeout_seconds:g} s"
            return KvError("timed_out", f"{self.url} gave no answer within {seconds}{doubt}", **outcome)
        message = f"the connection to {self.url} broke ({reason(error)}){doubt}"
        return KvError("unavailable", message, **outcome)


class RetryLimit:
    """Allows retries until nothing has succeeded for ``limit_ms``. ``notice`` is called once for each time
    that the service is unavailable."""

    def __init__(self, limit_ms: int, notice: Callable[[str], None]) -> None:
        self._limit_seconds = limit_ms / 1000
        self._notice = notice
        self._backoff = new_backoff()
        self._since: float | None = None

    def progress(self) -> None:
        """Something succeeded: the limit starts over."""
        if self._since is not None:
            self._since = None
            self._backoff.reset()

    def wait_after(self, error: KvError, place: str = "") -> None:
        """Sleep before the next attempt; raises ``error`` if it is not transient or the limit is reached.
        ``place`` says in the notice how far what is tried has come."""
        if not error.row.is_temporary or isinstance(error, WrongAddressError):
            raise error
        now = monotonic()
        if self._since is None:
            self._since = now
            where = f" {place}" if place else ""
            self._notice(f"{error.message}; retrying{where} for {self._limit_seconds:g} s")
        left = self._since + self._limit_seconds - now
        if left <= 0:
            raise error
        sleep(min(self._backoff.next(), left))


def _with_origin(error: KvError, tokens: TokenSource) -> KvError:
    """A refusal of the service, with where the token came from, which the service cannot know."""
    if "request_id" not in error.details:  # something else answered
        return error
    token = tokens.token()
    where = "log in with 'kvstore login'" if token is None else f"the token is from {token.origin}"
    return KvError(error.code, f"{error.message} ({where})", **error.details)


def key_path(route: str, key: str) -> str:
    """The path of ``key`` under ``/v1/ROUTE/``, percent-encoded.

    Raises ``invalid_key`` for a key that a path cannot hold; the service checks other limits.
    """
    if not key:
        raise KvError("invalid_key", "the key is empty; a key has 1 to 511 bytes of UTF-8")
    try:
        encoded = quote(key, safe="")
    except UnicodeEncodeError as error:
        raise KvError("invalid_key", f"{key!r} is not UTF-8 text; a key must be") from error
    if key in (".", ".."):
        # dot segments (RFC 3986 section 5.2.4), which a proxy would remove
        encoded = encoded.replace(".", "%2E")
    return f"/v1/{route}/{encoded}"


def encode_query(query: Query) -> str:
    """``?name=value&...``, or nothing."""
    try:
        pairs = [f"{name}={quote(value, safe='')}" for name, value in query]
    except UnicodeEncodeError as error:
        raise KvError("bad_request", "an argument is not UTF-8 text") from error
    return f"?{'&'.join(pairs)}" if pairs else ""
