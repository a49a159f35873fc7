"""Units of time and size, and the words for yes and no, as people write them."""

from __future__ import annotations

import re

MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
BYTES = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}

DURATION_PATTERN = r"([0-9]+(?:\.[0-9]+)?) *(ms|s|m|h|d|w)?"
"""A duration; the unit may be in capitals as well."""

# compiled when first used: most commands import this module and read no size
_SIZE = r"(?ai)(\d+(?:\.\d+)?) *(?:([kmgt])(i?b)?|b)?"

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def split_duration(text: str) -> tuple[str, int]:
    """The number in ``text``, such as ``1.5`` in ``1.5h``, and the milliseconds of its unit; without one it
    counts seconds. Raises ValueError for what is no duration."""
    # not compiled on import: most commands import this and read no duration
    match = re.fullmatch(DURATION_PATTERN, text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a duration")
    return match[1], MILLISECONDS[(match[2] or "s").lower()]


def parse_size(text: str) -> int:
    """Bytes. A bare letter means powers of 1024 and ``kB`` powers of 1000, as in coreutils. Raises ValueError
    for what is no size."""
    match = re.fullmatch(_SIZE, text)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write bytes, or for example 512k, 1MiB, 2GiB")
    number, letter, suffix = match.groups()
    base = 1000 if (suffix or "").lower() == "b" else 1024
    return whole(number, base ** (" kmgt".index(letter.lower())) if letter else 1, text, "bytes")


def whole(number: str, factor: int, given: object, unit: str) -> int:
    """The decimal ``number`` times ``factor``; raises ValueError, quoting ``given``, where that is no whole
    number of ``unit``."""
    digits, _, decimals = number.partition(".")
    scale: int = 10 ** len(decimals)
    exact, rest = divmod(int(digits + decimals) * factor, scale)
    if rest:
        raise ValueError(f"{given!r} is not a whole number of {unit}")
    return exact


def parse_flag(text: str) -> bool:
    """True for ``1``, ``true``, ``yes``, ``on``; False for ``0``, ``false``, ``no``, ``off``; in any case.
    Raises ValueError for anything else."""
    word = text.lower()
    if word not in _TRUE + _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return word in _TRUE


def in_largest_unit(size: float) -> tuple[float, str]:
    """``size`` bytes in the largest unit of which they are at least one, and that unit; ``B`` below 1 KiB."""
    for unit, length in BYTES.items():
        if size >= length:
            return size / length, unit
    return size, "B"
