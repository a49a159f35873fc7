"""The pages of the reference that are made of the code. They are not in the repository: docs/ has what a
person wrote, and here is what tables and docstrings say already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvstore_core.errors import ERRORS

ERRORS_PAGE = """\
# Errors

Every error has a stable code, the same over HTTP, over ZeroMQ and from the shell. Over HTTP it is in a
[problem document](../http.md#errors), the Python client has a class for each, and the command has an
[exit status](../cli.md#exit-statuses). *Again*: the same request may succeed later.

"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def errors() -> str:
    """The table of errors."""
    rows = [
        (f"`{row.code}`", str(row.status), str(row.exit), "yes" if row.retryable else "", row.title)
        for row in ERRORS.values()
    ]
    return ERRORS_PAGE + table(("Code", "HTTP status", "Exit status", "Again", "Meaning"), rows)


REFERENCE: dict[str, Callable[[], str]] = {
    "reference/errors.md": errors,
}
"""Each page by its path below docs/, and what writes its Markdown. Links in it are relative to that path."""
