"""HTTP as a test wants it: one connection kept open, and targets that go out exactly as written."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

JSON_TYPE = {"Content-Type": "application/json"}
PATCH_TYPE = {"Content-Type": "application/merge-patch+json"}


def kv_path(key: str) -> str:
    """The address of ``key`` as a person would write it, with its slashes."""
    return "/v1/kv/" + quote(key, safe="/")


def path_of(key: str, group: str = "kv") -> str:
    """The path of ``key`` with everything encoded that is not a letter or a digit, dots too."""
    return f"/v1/{group}/" + quote(key, safe="").replace(".", "%2E")


def connect(url: str, receive_buffer: int | None = None) -> socket.socket:
    """A TCP connection to the service ``url``. A small ``receive_buffer`` (bytes) makes a client that takes
    little at a time."""
    sock = socket.socket()
    sock.settimeout(60)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    address = urlsplit(url)
    sock.connect((address.hostname, address.port))
    return sock


class Answer(NamedTuple):
    """An HTTP response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}


class Session:
    """One keep-alive connection to the service, whose requests carry a ``token`` if there is one. Not for
    several threads."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._always = {} if token is None else bearer(token)
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """The answer to one request; header names in lower case."""
        has_host = "host" in map(str.lower, headers or ())
        self._connection.putrequest(method, target, skip_host=has_host, skip_accept_encoding=True)
        for name, text in {**self._always, **(headers or {})}.items():
            self._connection.putheader(name, text)
        if body is not None:
            self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body)
        response = self._connection.getresponse()
        named = {name.lower(): text for name, text in response.getheaders()}
        return Answer(response.status, named, response.read())

    def get(self, target: str, **headers: str) -> Answer:
        """GET; ``if_none_match='"7"'`` sends the header If-None-Match."""
        return self.request("GET", target, headers=_headers(headers))

    def put(self, target: str, body: bytes = b"", **headers: str) -> Answer:
        """PUT of ``body``."""
        return self.request("PUT", target, body, _headers(headers))

    def delete(self, target: str, **headers: str) -> Answer:
        """DELETE."""
        return self.request("DELETE", target, headers=_headers(headers))

    def post(self, target: str, body: Any = None, **headers: str) -> Answer:
        """POST, of ``body`` as JSON if there is one."""
        if body is None:
            return self.request("POST", target, headers=_headers(headers))
        return self.request("POST", target, json.dumps(body).encode(), {**JSON_TYPE, **_headers(headers)})

    def patch(self, target: str, patch: Any, **headers: str) -> Answer:
        """PATCH with a merge patch; bytes are sent as they are."""
        body = patch if isinstance(patch, bytes) else json.dumps(patch).encode()
        return self.request("PATCH", target, body, {**PATCH_TYPE, **_headers(headers)})

    def batch(self, *ops: dict[str, Any], atomic: bool = False) -> Answer:
        """POST /v1/batch of ``ops``."""
        return self.post("/v1/batch", {"atomic": atomic, "ops": ops})

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()


def call(
    url: str,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    token: str | None = None,
) -> Answer:
    """One request over a connection of its own. ``target`` goes out as it is: no library on the way tidies
    up ``//`` or ``..`` in it."""
    with closing(Session(url, token)) as session:
        return session.request(method, target, body, headers)


def _headers(named: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): text for name, text in named.items()}


def assert_problem(answer: Answer, code: str) -> dict[str, Any]:
    """Check that ``answer`` is the problem document of ``code``, and return it."""
    from kvstore_core.errors import ERRORS

    row = ERRORS[code]
    assert answer.headers["content-type"] == "application/problem+json", answer
    problem: dict[str, Any] = answer.json
    assert (answer.status, problem["code"]) == (row.status, code), problem
    assert problem["status"] == row.status
    assert problem["title"] == row.title
    assert problem["type"] == f"urn:kvstore:error:{code}"
    assert problem["retryable"] is row.retryable
    assert problem["detail"]
    assert ("retry-after" in answer.headers) is (row.status == 503)
    assert answer.headers["cache-control"] == "no-store"
    return problem
