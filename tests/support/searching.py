"""How many examples Hypothesis tries: few in each run of the tests, and with ``--hypothesis-profile=long`` of
all tests forty times as many."""

from __future__ import annotations

from hypothesis import settings

EXAMPLES, LONG_EXAMPLES = 50, 2_000
"""Of a test that says nothing else."""


def examples(number: int) -> int:
    """``number`` examples, and in the long profile as many times more as of every test."""
    chosen = settings.default
    assert chosen is not None
    return number * chosen.max_examples // EXAMPLES
