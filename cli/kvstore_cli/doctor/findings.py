"""The findings of a check."""

from __future__ import annotations

from typing import Any, NamedTuple

from kvstore_cli.doctor.remedies import CAUSES

OK, NOTE, WARNING, FAILED, SKIPPED = "ok", "note", "warning", "failed", "skipped"
"""Fine; worth knowing; works, but not well; does not work; was not checked."""


class Finding(NamedTuple):
    """One result of a check. ``cause`` is a row of :data:`CAUSES` if the status is a warning or a failure;
    ``figures`` is what was measured, for programs."""

    status: str
    message: str
    cause: str | None = None
    figures: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never changed

    def as_json(self) -> dict[str, Any]:
        """The finding as JSON, with what to do about it."""
        found: dict[str, Any] = {"status": self.status, "message": self.message}
        if self.cause is not None:
            fix = CAUSES[self.cause]
            found |= {"cause": self.cause, "fix": {"nginx": fix.nginx, "others": fix.others}}
        return found | ({"figures": self.figures} if self.figures else {})


def ok(message: str, **figures: Any) -> Finding:
    """Fine."""
    return Finding(OK, message, None, figures)


def note(message: str, **figures: Any) -> Finding:
    """Worth knowing, but not a problem."""
    return Finding(NOTE, message, None, figures)


def skipped(message: str) -> Finding:
    """Was not checked, and why."""
    return Finding(SKIPPED, message)


def warning(cause: str, message: str, **figures: Any) -> Finding:
    """Works, but not well."""
    return Finding(WARNING, message, cause, figures)


def failed(cause: str, message: str, **figures: Any) -> Finding:
    """Does not work."""
    return Finding(FAILED, message, cause, figures)
