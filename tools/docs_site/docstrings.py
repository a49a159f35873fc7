"""Docstrings, which are written with Sphinx's roles and literal blocks, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvstore_core.errors import ERRORS

_ROLE = re.compile(r":(class|meth|attr|func|mod|data|exc):`([\w.]+)`")
_CODES = {code.title().replace("_", ""): code for code in ERRORS}


def as_markdown(text: str, *, is_class: bool) -> str:
    """A docstring as Markdown; one of a class (``is_class``) names its own members by their names alone."""
    text = _ROLE.sub(lambda role: _linked(role[1], role[2], is_class=is_class), text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    return re.sub(r"::\n\n((?:    .*\n?|\n)+)", _fenced, text)


def fields_table(fields: Iterable[tuple[str, str, str]]) -> str:
    """A table of the fields of a class: name, type, and meaning, which is left out where none has one."""
    rows = [(f"`{name}`", f"`{kind}`", " ".join(meaning.split())) for name, kind, meaning in fields]
    columns = 3 if any(meaning for *_, meaning in rows) else 2
    head = [("Field", "Type", "Meaning"), ("---",) * 3]
    return "\n".join(f"| {' | '.join(row[:columns])} |" for row in (*head, *rows))


def _fenced(block: re.Match[str]) -> str:
    lines = [line.removeprefix("    ") for line in block[1].rstrip().splitlines()]
    return ":\n\n```python\n" + "\n".join(lines) + "\n```\n\n"


def _linked(role: str, target: str, *, is_class: bool) -> str:
    """A reference as autorefs resolves it: a member relative to where it is shown, an error to the page of
    errors, and what has no page as it is."""
    name = target.removeprefix("kvstore_client.")
    if role in ("mod", "data") or target.startswith(("kvstore_core.", "pickle.")):
        return f"`{target}`"
    if name in _CODES:
        return f"[`{name}`][{_CODES[name]}]"
    if name[0].isupper():
        return f"[`{name}`][kvstore_client.{name}]"
    return f"[`{name}`][{'.' if is_class else '..'}{name}]"
