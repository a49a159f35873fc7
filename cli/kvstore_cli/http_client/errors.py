"""Responses of the service, and the errors that they carry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore_core.errors import KvError

if TYPE_CHECKING:
    from http.client import HTTPMessage

    from kvstore_cli.http_client.exchange import Headers

_MEMBERS = {"type", "title", "status", "detail", "instance", "code", "retryable"}


class HttpResponse(NamedTuple):
    """A response that was read to its end."""

    status: int
    headers: Headers
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ``internal`` if it is not."""
        import json

        try:
            return json.loads(self.body)
        except ValueError as error:
            raise KvError("internal", f"the service's answer is not JSON: {self.body[:80]!r}") from error


class WrongAddressError(KvError):
    """``unavailable``, for good: what listens there does not speak the protocol of the address."""


class AttemptError(Exception):
    """An attempt that failed with ``error`` and may be repeated, in ``retry_after`` seconds if the service
    said so. ``refused``: the port is closed, as while the service restarts. ``is_final``: it must not be
    repeated as it was, since it may have succeeded or has done its work."""

    def __init__(
        self,
        error: KvError,
        retry_after: float | None = None,
        *,
        refused: bool = False,
        is_final: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after = retry_after
        self.refused = refused
        self.is_final = is_final


def successful(response: HttpResponse) -> HttpResponse:
    """The response, if it is a success; else raises its KvError, or AttemptError if it may be retried."""
    if response.status < 300 or response.status == 304:
        return response
    error = error_from(response)
    if error.row.is_temporary and not isinstance(error, WrongAddressError):
        # what is waited for did not come: the next request is another one, from where this one ended
        raise AttemptError(error, _retry_after(response.headers), is_final="cursor" in error.details)
    raise error


def error_from(response: HttpResponse) -> KvError:
    """The error of a problem document, or one made from the status if something else answered."""
    advice = https_wanted(response.status, response.headers, response.body)
    if advice is not None:
        return WrongAddressError("unavailable", advice)
    try:
        return problem_error(response.json())
    except (KvError, KeyError, TypeError):
        return _foreign_error(response)


def https_wanted(status: int, headers: Headers | HTTPMessage, body: bytes) -> str | None:
    """What to do where a server that was asked over plain HTTP says that it wants HTTPS, None where it does
    not: its port speaks TLS, or it redirects there."""
    if 300 <= status < 400 and headers.get("Location", "").startswith("https://"):
        return "that address redirects to https; write it with https://"
    # what nginx, Apache, Go's server and kvstore say, each in its own words
    if status == 400 and re.search(rb"(?i)https port|https server|ssl-enabled|speaks https", body):
        return "that port speaks TLS; write the address with https://"
    return None


def problem_error(document: dict[str, Any]) -> KvError:
    """The error that a problem document describes; raises KeyError or TypeError if it is not one."""
    details = {name: document[name] for name in document.keys() - _MEMBERS}
    message = document.get("detail") or document.get("title") or document["code"]
    return KvError.from_json({**details, "code": document["code"], "message": message})


def _foreign_error(response: HttpResponse) -> KvError:
    status = response.status
    code = _CODES.get(status) or ("internal" if status >= 500 else "bad_request")
    return KvError(code, f"got status {status} from something that is not kvstore; check the address")


def _retry_after(headers: Headers) -> float | None:
    """The seconds of a Retry-After; the service does not send its other form, a date."""
    given = headers.get("Retry-After", "")
    return float(given) if given.isascii() and given.isdigit() else None


_CODES = {
    401: "unauthenticated",
    403: "not_allowed",
    502: "unavailable",
    503: "unavailable",
    504: "timed_out",
}
"""What a proxy, or something else, may have meant."""
