"""Bodies in and out: the bytes of a request, its media type, JSON answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import falcon
import orjson

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_CONTENT_TYPE_BYTES
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE, JSON, TEXT_CONTENT_TYPE

T = TypeVar("T")

JOINED_BYTES = 64 * 1024
"""A streamed body is sent in pieces of at least this size."""

FORM = "application/x-www-form-urlencoded"

MAX_ACCEPT = 2048
"""The most characters of ``Accept``. Browsers send 200; falcon's time for one with quotes in it grows with
the square of its length."""


def read_body(environ: dict[str, Any]) -> bytes:
    """The request's body, b"" where it has none."""
    length = environ.get("CONTENT_LENGTH")
    body: bytes = environ["wsgi.input"].read(int(length)) if length else b""
    return body


def read_value(environ: dict[str, Any]) -> bytes:
    """The body as a value to store; refuses an encoded or partial one, as RFC 9110 asks."""
    if environ.get("HTTP_CONTENT_ENCODING", "identity") != "identity":
        raise KvError(  # section 8.4.1
            "unsupported_media_type",
            "Content-Encoding is not supported; send the value as it should be stored",
            accept_encoding="identity",  # RFC 9110 section 12.5.3
        )
    if "HTTP_CONTENT_RANGE" in environ:  # section 14.5
        raise KvError("bad_request", "Content-Range is not supported; send the whole value")
    return read_body(environ)


def value_type(environ: dict[str, Any]) -> str:
    """The media type to store with the body.

    ``curl -d`` calls everything a form, so a form is stored as text. Raises ``bad_request`` for a media type
    that the store does not keep.
    """
    media_type: str | None = environ.get("CONTENT_TYPE")
    if not media_type:
        return DEFAULT_CONTENT_TYPE
    if media_type[: len(FORM)].lower() == FORM:
        return TEXT_CONTENT_TYPE
    if not (media_type.isascii() and media_type.isprintable() and len(media_type) <= MAX_CONTENT_TYPE_BYTES):
        raise KvError(
            "bad_request", f"a media type is 1 to {MAX_CONTENT_TYPE_BYTES} printable ASCII characters"
        )
    return media_type


def require_type(environ: dict[str, Any], wanted: str, header: str = "accept") -> None:
    """Raise ``unsupported_media_type`` unless the body's Content-Type is ``wanted``.

    ``header`` names the accepted type in the answer: ``accept`` (RFC 9110 section 15.5.16) or
    ``accept_patch`` (RFC 5789 section 3.1).
    """
    media_type = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if media_type != wanted:
        message = f"the body must have Content-Type: {wanted}"
        raise KvError("unsupported_media_type", message, **{header: wanted})


def refuse_body(environ: dict[str, Any]) -> None:
    """Raise ``bad_request`` for a body, where none is taken."""
    if environ.get("CONTENT_LENGTH", "0") not in ("", "0"):
        raise KvError("bad_request", "this route takes no body; use query parameters")


def read_json(environ: dict[str, Any]) -> Any:
    """The body as JSON; raises ``bad_request``."""
    try:
        return orjson.loads(read_body(environ))
    except orjson.JSONDecodeError as error:
        raise KvError("bad_request", f"the body is not JSON: {error}") from error


def used_up(items: list[T]) -> Iterator[T]:
    """The items in order, each dropped here once it is given out. Use it with ``map``: the variable of a loop
    or a generator expression keeps an item while the server waits for a slow reader."""
    items.reverse()
    while items:
        yield items.pop()


def joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces, small ones joined: each is a write of its own."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= JOINED_BYTES:
            whole = piece if len(waiting) == 1 else b"".join(waiting)
            del piece
            waiting.clear()
            size = 0
            yield whole
            del whole
    if waiting:
        yield b"".join(waiting)


def send_json(resp: falcon.Response, body: dict[str, Any]) -> None:
    """Answer with ``body``."""
    resp.data = orjson.dumps(body)
    resp.content_type = JSON


def send_fresh_json(req: falcon.Request, resp: falcon.Response, body: dict[str, Any]) -> None:
    """Answer a read with ``body``, which no cache may keep; raises ``not_acceptable``."""
    choose_type(req, JSON)
    resp.set_header("cache-control", "no-store")
    send_json(resp, body)


def choose_type(req: falcon.Request, *offered: str) -> str:
    """The offered media type that the client prefers, the first one if it has no preference."""
    accept = req.env.get("HTTP_ACCEPT")
    if not accept or accept == "*/*":
        return offered[0]
    chosen = preferred(req, *offered)
    if chosen is None:
        message = f"this comes as {' or '.join(offered)}, which Accept does not allow"
        raise KvError("not_acceptable", message, offered=offered)
    return chosen


def preferred(req: falcon.Request, *offered: str) -> str | None:
    """The offered media type that the client prefers, None if it takes none of them; raises
    ``headers_too_large`` for an ``Accept`` that is too long to be looked at."""
    if len(req.env.get("HTTP_ACCEPT", "")) > MAX_ACCEPT:
        message = f"Accept exceeds {MAX_ACCEPT} characters; name only the media types that you need"
        raise KvError("headers_too_large", message, header="Accept", limit=MAX_ACCEPT)
    return req.client_prefers(offered)
