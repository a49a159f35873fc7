"""What the pages that are made of the code are written with."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def code(text: str) -> str:
    """``text`` as code."""
    return f"`{text}`"


def escaped(text: str) -> str:
    """``text``, which is no Markdown, as Markdown that shows it. What is between backticks stays code."""
    parts = re.split(r"(`[^`]+`)", text)
    parts[::2] = [re.sub(r"([\\*_\[\]#])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it and the site."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
