"""Readings of ``/metrics``, and rates and quantiles between two of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

Labels = dict[str, str]


class Reading:
    """The samples of one response; ``at`` is its time, in seconds of the monotonic clock."""

    def __init__(self, text: str, at: float) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        self.at = at
        self._families: set[str] = set()
        self._samples: dict[str, dict[frozenset[tuple[str, str]], float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            self._families.add(family.name)
            for sample in family.samples:
                self._samples[sample.name][frozenset(sample.labels.items())] = sample.value

    def has(self, name: str) -> bool:
        """Whether the metric exists, even without a sample."""
        return name.removesuffix("_total") in self._families or name in self._samples

    def samples(self, name: str, **where: str) -> Iterator[tuple[Labels, float]]:
        """The samples that have the labels ``where``, with all their labels."""
        wanted = where.items()
        for labels, value in self._samples.get(name, {}).items():
            if wanted <= labels:
                yield dict(labels), value

    def value(self, name: str, **where: str) -> float | None:
        """The sum of the samples with the labels ``where``; None if there is none."""
        values = [value for _, value in self.samples(name, **where)]
        return sum(values) if values else None

    def before(self, name: str, labels: Labels) -> float:
        """The sample with exactly these labels; 0 if there is none."""
        return self._samples.get(name, {}).get(frozenset(labels.items()), 0.0)


class Interval:
    """What happened between two readings."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self._before = before
        self._after = after
        self.seconds = after.at - before.at

    def increases(self, name: str, **where: str) -> Iterator[tuple[Labels, float]]:
        """How much each counter grew; one that was reset grew by its value. Nothing if the metric did not
        exist before, as its start is unknown then."""
        if not self._before.has(name):
            return
        for labels, value in self._after.samples(name, **where):
            earlier = self._before.before(name, labels)
            yield labels, value - earlier if value >= earlier else value

    def rate(self, name: str, **where: str) -> float | None:
        """The rate of a counter per second; None if unknown."""
        if not (self._before.has(name) and self._after.has(name)) or self.seconds <= 0:
            return None
        return sum(increase for _, increase in self.increases(name, **where)) / self.seconds

    def rates(self, name: str, *by: str, **where: str) -> dict[tuple[str, ...], float]:
        """The same for each combination of the labels ``by``, without those of rate 0."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for labels, increase in self.increases(name, **where):
            if increase:
                found[tuple(labels[label] for label in by)] += increase / self.seconds
        return dict(found)

    def mean(self, name: str, **where: str) -> float | None:
        """The mean of a histogram's new samples; None if there are none."""
        count = sum(increase for _, increase in self.increases(f"{name}_count", **where))
        total = sum(increase for _, increase in self.increases(f"{name}_sum", **where))
        return total / count if count else None

    def quantile(self, name: str, q: float, **where: str) -> float | None:
        """The q-quantile of a histogram's new samples, interpolated within its bucket as Prometheus does;
        None if there are none. Samples above the last bound count as the last bound."""
        buckets: dict[float, float] = defaultdict(float)
        for labels, increase in self.increases(f"{name}_bucket", **where):
            buckets[float(labels["le"])] += increase
        bounds = sorted(buckets)
        if not bounds or not buckets[bounds[-1]]:
            return None
        rank = q * buckets[bounds[-1]]
        lower, below = 0.0, 0.0
        for bound in bounds:
            if buckets[bound] >= rank:
                within = buckets[bound] - below
                share = (rank - below) / within if within else 1.0
                return lower if bound == float("inf") else lower + (bound - lower) * share
            lower, below = bound, buckets[bound]
        return lower
