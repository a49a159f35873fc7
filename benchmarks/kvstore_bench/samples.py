"""One figure of one contender in one round."""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """``value`` in ``unit``; the CPU figures are seconds per 1,000 operations, None where there is
    nothing to divide by. ``limit`` names the load generator if that was what limited the figure."""

    case: str
    contender: str
    value: float
    unit: str
    less_is_better: bool = False
    server_cpu: float | None = None
    load_cpu: float | None = None
    limit: str = ""


BUSY = 0.9
"""A generator that used more of its cores than this was at its limit."""


def rate(
    case: str,
    contender: str,
    *,
    operations: float,
    seconds: float,
    server_cpu: float,
    load_cpu: float,
    load_cores: int = 1,
    unit: str = "/s",
    generator: str = "the load generator",
) -> Sample:
    """The sample of ``operations`` done in ``seconds``, with CPU seconds as they were measured.
    ``load_cores`` is how many cores the generator is able to use."""
    if operations <= 0:
        raise RuntimeError(f"{contender} did nothing within {seconds:g} s: {case}")
    is_busy = load_cpu > BUSY * seconds * load_cores
    return Sample(
        case,
        contender,
        operations / seconds,
        unit,
        server_cpu=1000 * server_cpu / operations,
        load_cpu=1000 * load_cpu / operations,
        limit=generator if is_busy else "",
    )
