"""The client of the HTTP service: requests that are safe to repeat, and streams of lines.

Every failure is a KvError of the one table. It is made with http.client because commands are short: other
HTTP clients take longer to import than the service takes to answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

from kvstore_cli.http_client.connection import connect, http_client, reason, speaks_tls
from kvstore_cli.http_client.errors import AttemptError, HttpResponse, WrongAddressError, successful
from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON, NDJSON

if TYPE_CHECKING:
    from kvstore_cli.config.token_source import TokenSource
    from kvstore_cli.http_client.line_stream import LineStream

ATTEMPTS = 4
_PAGE_ITEMS = 1000
# For a service that was there before: the attempts then last longer than a restart takes.
_RESTART_PAUSE_SECONDS = 1.0

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
        self._connection: http_client.HTTPConnection | None = None

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
    ) -> HttpResponse:
        """The service's response.

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
        target = self._base + path + encode_query(query)
        return self._authorized(
            lambda: self._repeat(
                lambda seconds: self._attempt(method, target, body, sent, seconds, is_once=is_once), attempts
            )
        )

    def items(self, path: str, query: Query, limit: int | None = None, name: str = "items") -> Iterator[Any]:
        """The items of all pages of a list, ``limit`` at most. Each page is a snapshot of its own."""
        cursor: str | None = None
        while limit is None or limit > 0:
            wanted = [*query, ("limit", str(_PAGE_ITEMS if limit is None else min(_PAGE_ITEMS, limit)))]
            if cursor is not None:
                wanted.append(("cursor", cursor))
            page = self.request("GET", path, wanted).json()
            yield from page[name]
            cursor = page["cursor"]
            if cursor is None:
                return
            if limit is not None:
                limit -= len(page[name])

    def open_stream(self, path: str, query: Query, *, stall_seconds: float) -> LineStream:
        """A response whose lines come over time. Raises like :meth:`request`."""
        target = self._base + path + encode_query(query)
        return self._authorized(
            lambda: self._repeat(lambda seconds: self._open(target, seconds, stall_seconds))
        )

    def open_stream_once(self, path: str, query: Query, *, stall_seconds: float) -> LineStream:
        """Like :meth:`open_stream`, in one attempt; raises AttemptError if another may succeed."""
        target = self._base + path + encode_query(query)
        return self._authorized(lambda: self._open(target, self._timeout_seconds, stall_seconds))

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
            if error.code != "unauthenticated" or self._tokens is None:
                raise
            if not self._tokens.reread():
                raise _with_origin(error, self._tokens) from error
        return attempts()

    def _authorization(self) -> dict[str, str]:
        token = None if self._tokens is None else self._tokens.token()
        return {} if token is None else {"Authorization": f"Bearer {token.text}"}

    def _repeat(self, attempt: Callable[[float], _Result], attempts: int = ATTEMPTS) -> _Result:
        began = monotonic()
        deadline = began + self._timeout_seconds
        backoff = new_backoff()
        for left in count(attempts - 1, -1):
            try:
                return attempt(max(0.001, deadline - monotonic()))
            except AttemptError as failure:
                if failure.is_final:
                    raise failure.error from failure
                is_restart = failure.refused and self._was_reached
                pause = backoff.next(_RESTART_PAUSE_SECONDS if is_restart else failure.retry_after)
                again_at = monotonic() + pause
                if again_at < began + self._retry_seconds:
                    deadline = again_at + self._timeout_seconds
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
        connection = self._connection or self._connect(seconds)
        self._connection = None
        try:
            response = _exchange(connection, method, target, body, headers, seconds)
        except (OSError, http_client.HTTPException) as error:
            connection.close()
            self._refuse_other_protocol(error)
            # the service may have closed a connection that was kept open
            raise AttemptError(
                self._no_answer(error, method), 0.0 if kept else None, is_final=is_once
            ) from error
        self._was_reached = True
        if connection.sock is not None:  # None after Connection: close
            self._connection = connection
        return successful(response)

    def _open(self, target: str, seconds: float, stall_seconds: float) -> LineStream:
        headers = {"Accept": NDJSON, **self._authorization()}
        connection = self._connect(seconds)
        opened = connection.sock
        try:
            connection.request("GET", target, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                successful(HttpResponse(response.status, response.headers, response.read()))
        except (OSError, http_client.HTTPException) as error:
            connection.close()
            self._refuse_other_protocol(error)
            raise AttemptError(self._no_answer(error, "GET")) from error
        except BaseException:
            connection.close()
            raise
        from kvstore_cli.http_client.line_stream import LineStream

        self._was_reached = True
        return LineStream(connection, opened, response, stall_seconds)

    def _connect(self, seconds: float) -> http_client.HTTPConnection:
        try:
            return connect(
                self._host,
                self._port,
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
        if self._secure or self._was_reached or not isinstance(error, (OSError, http_client.BadStatusLine)):
            return
        if not isinstance(error, TimeoutError) and speaks_tls(self._host, self._port):
            secure_url = f"https:{self.url.partition(':')[2]}"
            raise WrongAddressError("unavailable", f"{self.url} speaks TLS; write {secure_url}") from error
        if isinstance(error, http_client.BadStatusLine) and not isinstance(error, ConnectionError):
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

    def wait_after(self, error: KvError) -> None:
        """Sleep before the next attempt; raises ``error`` if it is not transient or the limit is reached."""
        if not error.row.is_temporary or isinstance(error, WrongAddressError):
            raise error
        now = monotonic()
        if self._since is None:
            self._since = now
            self._notice(f"{error.message}; retrying for {self._limit_seconds:g} s")
        pause = self._backoff.next()
        if now + pause >= self._since + self._limit_seconds:
            raise error
        sleep(pause)


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


def _exchange(
    connection: http_client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | None,
    headers: dict[str, str],
    seconds: float,
) -> HttpResponse:
    connection.sock.settimeout(seconds)
    # A service that refuses a large body answers before it has read it all, and closes: the response may
    # be here already, and says more than the broken pipe.
    with suppress(ConnectionError):
        connection.request(method, target, body, headers)
    response = connection.getresponse()
    return HttpResponse(response.status, response.headers, response.read())
