"""A run as it is kept: ``results.json``, from which everything that is shown can be made again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvstore_bench.machine import Conditions
from kvstore_bench.samples import Sample


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
