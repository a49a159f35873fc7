"""Findings as lines for a person."""

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
    """A finding with what to do about it. Of nginx's directives and the words for others, both are shown
    unless ``server``, as the service's front calls itself, tells which of them it is."""
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
    told = []
    if fix.nginx:
        told += wrap(f"-> nginx: {fix.nginx}", width, subsequent_indent="   ")
    if not (is_nginx and fix.nginx):
        told += wrap(f"-> {fix.others}", width, subsequent_indent="   ")
    return told


def _text_width() -> int:
    """What a terminal leaves beside status and name."""
    columns = shutil.get_terminal_size((_STATUS_WIDTH + _NAME_WIDTH + _WIDEST, 24)).columns
    return max(_NARROWEST, min(_WIDEST, columns - _STATUS_WIDTH - _NAME_WIDTH))
