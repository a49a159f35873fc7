"""The one table of errors: a stable code, whose fault it is, and how each surface shows it.

Every error that a user can meet, over ZeroMQ, over HTTP or from the shell, is a row of ``ERRORS``.
The row gives the HTTP status and the exit status of the command, so the three surfaces cannot
disagree. A code never changes its meaning; ``docs/protocol.md`` section 7 lists the same rows and a
test compares them.

Only the standard library is imported here: the command-line client reads this table at every start.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple, Self


class ErrorRow(NamedTuple):
    """One row: what a code means on every surface.

    ``retryable`` says that the same request may succeed later without being changed.
    """

    code: str
    status: int
    exit: int
    retryable: bool
    title: str

    @property
    def is_temporary(self) -> bool:
        """Whether time alone may cure it, so that it is tried again: the service is away, or busy.
        What else is ``retryable`` needs somebody: room in a full store, a client that sends faster."""
        return self.status in (503, 504)


EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_USAGE = 2

ERRORS: dict[str, ErrorRow] = {
    row.code: row
    for row in (
        # The request is wrong: nothing happened, and repeating it changes nothing.
        ErrorRow("bad_request", 400, 1, False, "The request is malformed"),
        ErrorRow("unsupported_version", 400, 1, False, "The protocol version is not supported"),
        ErrorRow("unknown_operation", 400, 1, False, "The operation is unknown"),
        ErrorRow("invalid_key", 400, 1, False, "The key is not valid"),
        ErrorRow("invalid_cursor", 400, 1, False, "The cursor is not valid"),
        ErrorRow("unauthenticated", 401, 5, False, "The credential is missing or not valid"),
        ErrorRow("not_allowed", 403, 5, False, "The request is not allowed"),
        ErrorRow("no_such_route", 404, 1, False, "There is no such route"),
        ErrorRow("method_not_allowed", 405, 1, False, "The method is not allowed here"),
        ErrorRow("not_acceptable", 406, 1, False, "None of the accepted media types is available"),
        ErrorRow("request_timeout", 408, 1, True, "The request did not arrive in time"),
        ErrorRow("length_required", 411, 1, False, "The length of the body is missing"),
        ErrorRow("value_too_large", 413, 1, False, "The value is too large"),
        ErrorRow("request_too_large", 413, 1, False, "The request is too large"),
        ErrorRow("uri_too_long", 414, 1, False, "The address is too long"),
        ErrorRow("unsupported_media_type", 415, 1, False, "The media type of the body is not supported"),
        ErrorRow("range_not_satisfiable", 416, 1, False, "The range is not in the backup"),
        ErrorRow("expectation_failed", 417, 1, False, "The expectation cannot be met"),
        ErrorRow("sequence_reused", 422, 1, False, "This sequence number was used for another request"),
        ErrorRow("headers_too_large", 431, 1, False, "The request's headers are too large"),
        # The request is fine, the store's state is against it.
        ErrorRow("not_found", 404, 3, False, "No such key, identity, backup or subscriber"),
        ErrorRow("not_an_integer", 409, 1, False, "The stored value is not a decimal integer"),
        ErrorRow("out_of_range", 409, 1, False, "The result does not fit a signed 64-bit integer"),
        ErrorRow("not_json", 409, 1, False, "The stored value is not JSON"),
        ErrorRow("backup_exists", 409, 1, False, "There is a backup already"),
        ErrorRow("sequence_stale", 409, 1, False, "A later request of this client was already applied"),
        ErrorRow("cursor_expired", 410, 1, False, "The log no longer reaches back to this cursor"),
        ErrorRow("revision_gone", 410, 1, False, "That revision is no longer in the log"),
        ErrorRow("condition_failed", 412, 4, False, "The condition does not hold"),
        # The service is at fault, or away.
        ErrorRow("internal", 500, 1, False, "The service failed"),
        ErrorRow("damaged", 500, 1, False, "The stored record is damaged"),
        ErrorRow("reply_too_large", 500, 1, False, "The answer is too large for one reply"),
        ErrorRow("too_busy", 503, 1, True, "The service is too busy"),
        ErrorRow("unavailable", 503, 6, True, "The daemon cannot be reached"),
        ErrorRow("timed_out", 504, 124, True, "The request timed out"),
        ErrorRow("http_version_not_supported", 505, 1, False, "The HTTP version is not supported"),
        ErrorRow("store_full", 507, 1, True, "The store is full"),
    )
}


class KvError(Exception):
    """An error of the table, with a sentence for a person and details for a program.

    Each row has a class: ``KvError("not_found", …)`` makes a :class:`NotFound`, so that
    either ``except NotFound`` or ``error.code`` tells which error it is. A code that the table does not
    know makes a plain KvError.

    ``code`` is a row of :data:`ERRORS`. ``details`` holds JSON values only (for example
    ``{"revision": 7}``, the revision that a failed condition met); it travels beside the message on
    every surface. ``details["outcome"] == "unknown"`` says of a write that it may have been applied;
    repeating it under the same number is safe (protocol section 6). Errors can be pickled and copied,
    with their details and what they were raised from.
    """

    _classes: ClassVar[dict[str, type[KvError]]] = {}

    def __init_subclass__(cls, code: str | None = None) -> None:
        if code is not None:
            cls._classes[code] = cls
            cls.__doc__ = f"``{code}``: {ERRORS[code].title}."

    def __new__(cls, code: str, message: str, /, **details: Any) -> Self:
        """An error of the row's class."""
        kind = cls._classes.get(code, cls) if cls is KvError else cls
        return super().__new__(kind, code, message)  # type: ignore[return-value]  # of Self, or the row's

    def __init__(self, code: str, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        if self.__cause__ is not None:
            state["__cause__"] = _portable(self.__cause__)
        return partial(type(self), self.code, self.message, **self.details), (), state

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
        details = "".join(f", {name}={value!r}" for name, value in self.details.items())
        return f"{type(self).__name__}({self.code!r}, {self.message!r}{details})"


def _portable(cause: BaseException) -> BaseException:
    """The cause, or what it says where it cannot be pickled: an error has to reach its caller."""
    import pickle  # for processes that pass errors on

    try:
        pickle.loads(pickle.dumps(cause))  # noqa: S301 - our own
    except Exception:
        return Exception(f"{type(cause).__name__}: {cause}")
    return cause


# One class for each row, named after its code and documented by its title; a test compares them, and says
# so where a new row has none. They are offered by the package, too.
# fmt: off
class BadRequest(KvError, code="bad_request"): ...
class UnsupportedVersion(KvError, code="unsupported_version"): ...
class UnknownOperation(KvError, code="unknown_operation"): ...
class InvalidKey(KvError, code="invalid_key"): ...
class InvalidCursor(KvError, code="invalid_cursor"): ...
class Unauthenticated(KvError, code="unauthenticated"): ...
class NotAllowed(KvError, code="not_allowed"): ...
class NoSuchRoute(KvError, code="no_such_route"): ...
class MethodNotAllowed(KvError, code="method_not_allowed"): ...
class NotAcceptable(KvError, code="not_acceptable"): ...
class RequestTimeout(KvError, code="request_timeout"): ...
class LengthRequired(KvError, code="length_required"): ...
class ValueTooLarge(KvError, code="value_too_large"): ...
class RequestTooLarge(KvError, code="request_too_large"): ...
class UriTooLong(KvError, code="uri_too_long"): ...
class UnsupportedMediaType(KvError, code="unsupported_media_type"): ...
class RangeNotSatisfiable(KvError, code="range_not_satisfiable"): ...
class ExpectationFailed(KvError, code="expectation_failed"): ...
class SequenceReused(KvError, code="sequence_reused"): ...
class HeadersTooLarge(KvError, code="headers_too_large"): ...
class NotFound(KvError, code="not_found"): ...
class NotAnInteger(KvError, code="not_an_integer"): ...
class OutOfRange(KvError, code="out_of_range"): ...
class NotJson(KvError, code="not_json"): ...
class BackupExists(KvError, code="backup_exists"): ...
class SequenceStale(KvError, code="sequence_stale"): ...
class CursorExpired(KvError, code="cursor_expired"): ...
class RevisionGone(KvError, code="revision_gone"): ...
class ConditionFailed(KvError, code="condition_failed"): ...
class Internal(KvError, code="internal"): ...
class Damaged(KvError, code="damaged"): ...
class ReplyTooLarge(KvError, code="reply_too_large"): ...
class TooBusy(KvError, code="too_busy"): ...
class Unavailable(KvError, code="unavailable"): ...
class TimedOut(KvError, code="timed_out"): ...
class HttpVersionNotSupported(KvError, code="http_version_not_supported"): ...
class StoreFull(KvError, code="store_full"): ...
# fmt: on


def fewer_ops(error: KvError, count: int) -> int:
    """How many ops at most the next request may have where one with ``count`` was refused with ``error``,
    so that nothing of it was done. Raises ``error`` if fewer of them would not help."""
    if error.code != "request_too_large" or count < 2:
        raise error
    limit = error.details.get("limit")  # of ops, or of bytes
    return limit if type(limit) is int and 0 < limit < count else count // 2
