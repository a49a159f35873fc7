"""Findings as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from kvstore_cli import output
from kvstore_cli.doctor.causes import CAUSES
from kvstore_cli.doctor.findings import FAILED, NOTE, OK, SKIPPED, WARNING, Finding

_STATUS_WIDTH = 9
_NAME_WIDTH = 18
_TEXT_WIDTH = 84
_COLOURS = {OK: "put", NOTE: "dim", SKIPPED: "dim", WARNING: "expire", FAILED: "delete"}


def lines(name: str, finding: Finding, server: str) -> Iterator[str]:
    """A finding with what to do about it. Of nginx's directives and the words for others, both are shown
    unless ``server``, as the service's front calls itself, tells which of them it is."""
    indent = " " * (_STATUS_WIDTH + _NAME_WIDTH)
    text = wrap(output.visible(finding.message), _TEXT_WIDTH, break_long_words=False)
    status = output.coloured(finding.status.ljust(_STATUS_WIDTH), _COLOURS[finding.status])
    yield f"{status}{name.ljust(_NAME_WIDTH)}{text[0]}"
    advice = [] if finding.cause is None else _advice(finding.cause, server)
    for line in [*text[1:], *advice]:
        yield indent + line


def _advice(cause: str, server: str) -> list[str]:
    fix = CAUSES[cause]
    is_nginx = server.startswith("nginx")
    told = []
    if fix.nginx:
        told += wrap(f"-> nginx: {fix.nginx}", _TEXT_WIDTH, subsequent_indent="   ")
    if not (is_nginx and fix.nginx):
        told += wrap(f"-> {fix.others}", _TEXT_WIDTH, subsequent_indent="   ")
    return told
