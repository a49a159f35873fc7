"""Answers of the service, and the errors they stand for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore_core.errors import KvError

if TYPE_CHECKING:
    import http.client as http_client

_MEMBERS = {"type", "title", "status", "detail", "instance", "code", "retryable"}


class Answer(NamedTuple):
    """A successful reply, read to its end."""

    status: int
    headers: http_client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises ``internal`` if it is none."""
        import json

        try:
            return json.loads(self.body)
        except ValueError as error:
            raise KvError("internal", f"the service's answer is not JSON: {self.body[:80]!r}") from error


class Trouble(Exception):  # noqa: N818 - not an error yet: it becomes one when nobody tries again
    """An attempt that failed and may be made again, after ``pause`` seconds if the service said so.
    ``refused``: nobody listens there now, as while the service restarts. ``is_final``: another attempt
    is not the same again, since this one may have been successful."""

    def __init__(
        self, error: KvError, pause: float | None = None, *, refused: bool = False, is_final: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.pause = pause
        self.refused = refused
        self.is_final = is_final


def successful(answer: Answer) -> Answer:
    """The answer, if it is a success; raises its KvError otherwise, as Trouble if it may be repeated."""
    if answer.status < 300 or answer.status == 304:
        return answer
    error = error_from(answer)
    if error.row.is_temporary:
        raise Trouble(error, _retry_after(answer.headers))
    raise error


def error_from(answer: Answer) -> KvError:
    """The error of a problem document, or of the status alone where something else answered."""
    try:
        return problem_error(answer.json())
    except (KvError, KeyError, TypeError):
        return _foreign_error(answer)


def problem_error(document: dict[str, Any]) -> KvError:
    """The error that a problem document describes; raises KeyError or TypeError if it is none."""
    details = {name: document[name] for name in document.keys() - _MEMBERS}
    message = document.get("detail") or document.get("title") or document["code"]
    return KvError.from_json({**details, "code": document["code"], "message": message})


def _foreign_error(answer: Answer) -> KvError:
    status = answer.status
    # so say nginx, Apache and Go's server, each in its words
    if status == 400 and re.search(rb"(?i)https port|https server|ssl-enabled", answer.body):
        return KvError("unavailable", "that port speaks TLS; write the address with https://")
    codes = {401: "not_allowed", 403: "not_allowed", 502: "unavailable", 503: "unavailable", 504: "timed_out"}
    code = codes.get(status) or ("internal" if status >= 500 else "bad_request")
    return KvError(code, f"the answer was {status} and does not come from kvstore; is the address right?")


def _retry_after(headers: http_client.HTTPMessage) -> float | None:
    """The seconds of a Retry-After; its other form, a date, is not used by the service."""
    given = headers.get("Retry-After", "")
    return float(given) if given.isascii() and given.isdigit() else None
