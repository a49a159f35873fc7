"""How long the tests go on.

Those marked ``torture`` have a short form, which is part of ``make test``, and a full one: ``make torture``
runs those, or with ``TORTURE=0.1`` a tenth of each. At the end of the run stands what all of them survived
together. Hypothesis tries few examples in each run, and with ``--hypothesis-profile=long`` of all tests forty
times as many.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import settings

PROPERTY = "survived"

SHARE = float(os.environ.get("TORTURE") or 0)
"""How much of the full length to run; 0 stands for the short form."""


def times(short: int, *, full: int) -> int:
    """How often to do what the short form does ``short`` times, and the full one ``full`` times."""
    return max(short, round(full * SHARE))


Survived = Callable[..., None]
"""``survived(kills=1, writes=200)`` adds to what the summary says; ``_`` stands for a space."""


def summary(properties: Iterable[tuple[str, Any]]) -> str:
    """What was survived in all: ``50 kills, 12 pauses``; empty for nothing."""
    total: Counter[str] = Counter()
    for name, counts in properties:
        if name == PROPERTY:
            total.update(counts)
    return ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in total.items())


EXAMPLES, LONG_EXAMPLES = 50, 2_000
"""Of a test that says nothing else."""


def examples(number: int) -> int:
    """``number`` examples, and in the long profile as many times more as of every test."""
    chosen = settings.default
    assert chosen is not None
    return number * chosen.max_examples // EXAMPLES
