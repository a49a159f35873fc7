"""Findings as text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from textwrap import wrap

from kvstore_cli.doctor.findings import FAILED, NOTE, OK, SKIPPED, WARNING, Finding
from kvstore_cli.doctor.remedies import CAUSES
from kvstore_cli.terminal import output

_STATUS_WIDTH = 9
_NAME_WIDTH = 18
_NARROWEST, _WIDEST = 40, 84
_COLOURS = {OK: "put", NOTE: "dim", SKIPPED: "dim", WARNING: "expire", FAILED: "delete"}


def lines(name: str, finding: Finding, server: str) -> Iterator[str]:
    """A finding, and what to do about it: for nginx, for others, or for both if ``server``, the Server
    header, does not say which of them is in front."""
    indent = " " * (_STATUS_WIDTH + _NAME_WIDTH)
    width = _text_width()
    text = wrap(output.visible(finding.message), width, break_long_words=False)
    status = output.coloured(finding.status.ljust(_STATUS_WIDTH), _COLOURS[finding.status])
    yield f"{status}{name.ljust(_NAME_WIDTH)}{text[0]}"
    advice = [] if finding.cause is None else _advice(finding.cause, server, width)
    for line in [*text[1:], *advice]:
        yield indent + line


def _advice(cause: str, server: str, width: int) -> list[str]:
    fix = CAUSES[cause]
    is_nginx = server.startswith("nginx")
    advice = []
    if fix.nginx:
        advice += wrap(f"-> nginx: {fix.nginx}", width, subsequent_indent="   ")
    if not (is_nginx and fix.nginx):
        advice += wrap(f"-> {fix.others}", width, subsequent_indent="   ")
    return advice


def _text_width() -> int:
    """The width that remains beside status and name."""
    columns = shutil.get_terminal_size((_STATUS_WIDTH + _NAME_WIDTH + _WIDEST, 24)).columns
    return max(_NARROWEST, min(_WIDEST, columns - _STATUS_WIDTH - _NAME_WIDTH))
