"""How deep a JSON text is nested, without parsing it."""

from __future__ import annotations

import re
from array import array
from itertools import accumulate

MAX_DEPTH = 100
"""Of JSON that others are to read, or that is looked into: some parsers give up at such a depth."""

_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""For each bracket, how the depth changes: 1, or -1 as a signed byte."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_PART = 16 * 1024


def is_too_deep(text: bytes) -> bool:
    """Whether arrays and objects of a JSON text are nested more than ``MAX_DEPTH`` deep."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    # in C, since a value may hold half a million brackets; in parts, so that other threads get their turn
    brackets, depth = _TEXT.sub(b"", text).translate(_STEPS, _NO_BRACKETS), 0
    for begin in range(0, len(brackets), _PART):
        steps = array("b", brackets[begin : begin + _PART])
        if max(accumulate(steps, initial=depth)) > MAX_DEPTH:
            return True
        depth += sum(steps)
    return False
