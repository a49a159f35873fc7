"""Numbers, sizes and times, short and readable."""

from __future__ import annotations

from kvstore_core.units import BYTES, MILLISECONDS, in_largest_unit

NOTHING = "-"


def count(number: float | None) -> str:
    """``12,345``; from ten million on ``12.3M``."""
    if number is None:
        return NOTHING
    for limit, unit in ((1e13, "T"), (1e10, "G"), (1e7, "M")):
        if number >= limit:
            return f"{number / (limit / 10):.1f}{unit}"
    return f"{number:,.0f}"


def rate(number: float | None) -> str:
    """So much a second; small ones with a digit behind the point."""
    if number is None:
        return NOTHING
    return f"{number:.1f}" if 0 < number < 9.95 else count(number)


def size(number: float | None) -> str:
    """``292 MiB``, ``1.2 GiB``."""
    if number is None:
        return NOTHING
    scaled, unit = in_largest_unit(number)
    digits = 1 if unit != "B" and scaled < 9.95 and scaled != int(scaled) else 0
    return f"{scaled:.{digits}f} {unit}"


def exact_size(number: int) -> str:
    """``12.3 MiB``, ``1,024.0 MiB``, ``4,096 bytes``: for sizes that are compared."""
    mib = BYTES["MiB"]
    return f"{number / mib:,.1f} MiB" if number >= mib else f"{number:,} bytes"


def duration(seconds: float | None) -> str:
    """A latency: ``340 µs``, ``2.1 ms``, ``1.5 s``."""
    if seconds is None:
        return NOTHING
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    scaled, unit = (seconds * 1000, "ms") if seconds < 1 else (seconds, "s")
    return f"{scaled:.1f} {unit}" if scaled < 99.95 else f"{scaled:.0f} {unit}"


def age(seconds: float | None) -> str:
    """A span of time in its two largest units: ``2d 3h``, ``5m 10s``."""
    if seconds is None:
        return NOTHING
    left = int(seconds)
    words: list[str] = []
    for unit in ("d", "h", "m", "s"):
        number, left = divmod(left, MILLISECONDS[unit] // 1000)
        if number or words or unit == "s":
            words.append(f"{number}{unit}")
    return " ".join(words[:2])


def percent(part: float | None, whole: float | None = 1.0) -> str:
    """``34%``."""
    return NOTHING if part is None or not whole else f"{100 * part / whole:.0f}%"
