"""The findings of a check, as data, as JSON and as text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from textwrap import wrap
from typing import Any, NamedTuple

from kvstore_cli.doctor.remedies import CAUSES
from kvstore_cli.terminal import output

OK, NOTE, WARNING, FAILED, SKIPPED = "ok", "note", "warning", "failed", "skipped"
"""Fine; worth knowing; works, but not well; does not work; was not checked."""

_STATUS_WIDTH = 9
_NAME_WIDTH = 18
_NARROWEST, _WIDEST = 40, 84
_COLOURS = {OK: "put", NOTE: "dim", SKIPPED: "dim", WARNING: "expire", FAILED: "delete"}


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
            found |= {"cause": self.cause, "fix": CAUSES[self.cause]._asdict()}
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


def lines(name: str, finding: Finding, server: str) -> Iterator[str]:
    """A finding, and what to do about it: for nginx, for others, or for both if ``server``, the Server
    header, does not say which of them is in front."""
    beside = _STATUS_WIDTH + _NAME_WIDTH
    columns = shutil.get_terminal_size((beside + _WIDEST, 24)).columns
    width = max(_NARROWEST, min(_WIDEST, columns - beside))
    text = wrap(output.visible(finding.message), width, break_long_words=False)
    status = output.coloured(finding.status.ljust(_STATUS_WIDTH), _COLOURS[finding.status])
    yield f"{status}{name.ljust(_NAME_WIDTH)}{text[0]}"
    advice = [] if finding.cause is None else _advice(finding.cause, server, width)
    for line in [*text[1:], *advice]:
        yield " " * beside + line


def _advice(cause: str, server: str, width: int) -> list[str]:
    fix = CAUSES[cause]
    advice = [f"-> nginx: {fix.nginx}"] if fix.nginx else []
    if not (advice and server.startswith("nginx")):
        advice.append(f"-> {fix.others}")
    return [line for text in advice for line in wrap(text, width, subsequent_indent="   ")]
