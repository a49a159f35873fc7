"""The one table of errors: a stable code, whose fault it is, and how each surface shows it.

Every error that a user can meet, over ZeroMQ, over HTTP or from the shell, is a row of ``ERRORS``.
The row gives the HTTP status and the exit status of the command, so the three surfaces cannot
disagree. A code never changes its meaning; ``docs/protocol.md`` section 7 lists the same rows and a
test compares them.

Only the standard library is imported here: the command-line client reads this table at every start.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class ErrorRow(NamedTuple):
    """One row: what a code means on every surface.

    ``retryable`` says that the same request may succeed later without being changed.
    """

    code: str
    status: int
    exit: int
    retryable: bool
    title: str


EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_USAGE = 2

ERRORS: dict[str, ErrorRow] = {
    row.code: row
    for row in (
        # The request is wrong: nothing happened, and repeating it changes nothing.
        ErrorRow("bad_request", 400, 1, False, "The request is malformed"),
        ErrorRow("unsupported_version", 400, 1, False, "This protocol version is not spoken here"),
        ErrorRow("unknown_operation", 400, 1, False, "There is no such operation"),
        ErrorRow("invalid_key", 400, 1, False, "The key is not acceptable"),
        ErrorRow("invalid_cursor", 400, 1, False, "The cursor is not one this service gave out"),
        ErrorRow("not_allowed", 403, 5, False, "The request is not allowed"),
        ErrorRow("no_such_route", 404, 1, False, "There is nothing at this address"),
        ErrorRow("method_not_allowed", 405, 1, False, "This address does not take that method"),
        ErrorRow("not_acceptable", 406, 1, False, "None of the accepted media types can be given"),
        ErrorRow("request_timeout", 408, 1, True, "The request did not arrive in time"),
        ErrorRow("length_required", 411, 1, False, "The length of the body must be stated"),
        ErrorRow("value_too_large", 413, 1, False, "The value is too large"),
        ErrorRow("request_too_large", 413, 1, False, "The request is too large"),
        ErrorRow("uri_too_long", 414, 1, False, "The address is too long"),
        ErrorRow("unsupported_media_type", 415, 1, False, "The body's media type is not taken here"),
        ErrorRow("expectation_failed", 417, 1, False, "The expectation cannot be met"),
        ErrorRow("sequence_reused", 422, 1, False, "This number was used for another request"),
        ErrorRow("headers_too_large", 431, 1, False, "The request's headers are too large"),
        # The request is fine, the store's state is against it.
        ErrorRow("not_found", 404, 3, False, "No such key"),
        ErrorRow("not_an_integer", 409, 1, False, "The stored value is not a decimal integer"),
        ErrorRow("out_of_range", 409, 1, False, "The result does not fit a signed 64-bit integer"),
        ErrorRow("not_json", 409, 1, False, "The stored value is not JSON"),
        ErrorRow("sequence_stale", 409, 1, False, "A later request of this client was already applied"),
        ErrorRow("cursor_expired", 410, 1, False, "The log no longer reaches back to this cursor"),
        ErrorRow("revision_gone", 410, 1, False, "That revision is no longer in the log"),
        ErrorRow("condition_failed", 412, 4, False, "The condition does not hold"),
        # The service is at fault, or away.
        ErrorRow("internal", 500, 1, False, "The service failed"),
        ErrorRow("damaged", 500, 1, False, "The stored record is damaged"),
        ErrorRow("reply_too_large", 500, 1, False, "The answer is too large for one reply"),
        ErrorRow("too_busy", 503, 1, True, "The service has no room for this request now"),
        ErrorRow("unavailable", 503, 6, True, "The daemon cannot be reached"),
        ErrorRow("timed_out", 504, 124, True, "No answer came in time"),
        ErrorRow("http_version_not_supported", 505, 1, False, "This version of HTTP is not spoken here"),
        ErrorRow("store_full", 507, 1, True, "The store is full"),
    )
}


class KvError(Exception):
    """An error of the table, with a sentence for a person and details for a program.

    ``code`` is a row of :data:`ERRORS`. ``details`` holds JSON values only (for example
    ``{"revision": 7}``, the revision that a failed condition met); it travels beside the message on
    every surface. ``details["outcome"] == "unknown"`` says of a write that it may have been applied;
    repeating it under the same number is safe (protocol section 6).
    """

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @property
    def row(self) -> ErrorRow:
        """The table's row for this error."""
        return ERRORS[self.code]

    def as_json(self) -> dict[str, Any]:
        """The form that travels in a reply: code, message, then the details."""
        return {"code": self.code, "message": self.message, **self.details}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> KvError:
        """The error that :meth:`as_json` wrote.

        A code from a newer daemon that this table does not know is kept as ``internal`` with the
        unknown code in its message, so that a caller can always use ``row``.
        """
        details = dict(body)
        code = str(details.pop("code", "internal"))
        message = str(details.pop("message", "")) or code
        if code not in ERRORS:
            code, message = "internal", f"{code}: {message}"
        return cls(code, message, **details)

    def __repr__(self) -> str:
        return f"KvError({self.code!r}, {self.message!r}, {self.details!r})"
