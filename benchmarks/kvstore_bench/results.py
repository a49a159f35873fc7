"""Figures, and a run as it is kept: ``results.json``, from which all that is shown can be made again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from kvstore_bench.machine import Conditions


class Sample(NamedTuple):
    """One figure of one contender in one round: ``value`` in ``unit``; the CPU figures are seconds per 1,000
    operations, None where there is nothing to divide by. ``limit`` names the load generator if that was what
    limited the figure."""

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


class Load(NamedTuple):
    """What a load generator did in so many seconds, and the CPU seconds that it and the servers took."""

    operations: float
    seconds: float
    server_cpu: float
    load_cpu: float


def rate(
    case: str,
    contender: str,
    done: Load,
    *,
    load_cores: int = 1,
    unit: str = "/s",
    generator: str = "the load generator",
) -> Sample:
    """The sample of what was done. ``load_cores`` is how many cores the generator is able to use."""
    if done.operations <= 0:
        raise RuntimeError(f"{contender} did nothing within {done.seconds:g} s: {case}")
    is_busy = done.load_cpu > BUSY * done.seconds * load_cores
    return Sample(
        case,
        contender,
        done.operations / done.seconds,
        unit,
        server_cpu=1000 * done.server_cpu / done.operations,
        load_cpu=1000 * done.load_cpu / done.operations,
        limit=generator if is_busy else "",
    )


@dataclass
class Results:
    """``samples`` are (row, round, sample); ``conditions`` says how the machine was while a row was
    measured, ``failures`` why a row has no figures."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    samples: list[tuple[str, int, Sample]] = field(default_factory=list)
    conditions: dict[str, Conditions] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def save(self, file: Path) -> None:
        """Write everything as JSON."""
        data = asdict(self)
        data["conditions"] = {row: each._asdict() for row, each in self.conditions.items()}
        data["samples"] = [
            {"row": row, "round": number, **_rounded(sample)} for row, number, sample in self.samples
        ]
        file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, file: Path) -> Results:
        """What :meth:`save` wrote."""
        data = json.loads(file.read_text())
        data["conditions"] = {row: Conditions(**each) for row, each in data["conditions"].items()}
        data["samples"] = [(each.pop("row"), each.pop("round"), Sample(**each)) for each in data["samples"]]
        return cls(**data)


def _rounded(sample: Sample) -> dict[str, Any]:
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in sample._asdict().items()
    }
