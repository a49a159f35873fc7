"""What ``/metrics`` says, and what two of its answers say together: rates and quantiles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

Labels = dict[str, str]


class Reading:
    """The samples of one answer; ``at`` is when it came, in seconds of the monotonic clock."""

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
        """Whether the metric is there, if only without a sample."""
        return name.removesuffix("_total") in self._families or name in self._samples

    def samples(self, name: str, **where: str) -> Iterator[tuple[Labels, float]]:
        """The samples with the labels ``where``, and with which others."""
        wanted = where.items()
        for labels, value in self._samples.get(name, {}).items():
            if wanted <= labels:
                yield dict(labels), value

    def value(self, name: str, **where: str) -> float | None:
        """The sum of the samples with the labels ``where``; None if there is none."""
        values = [value for _, value in self.samples(name, **where)]
        return sum(values) if values else None

    def before(self, name: str, labels: Labels) -> float:
        """The one sample with exactly these labels; 0 if it was not there."""
        return self._samples.get(name, {}).get(frozenset(labels.items()), 0.0)


class Interval:
    """What happened between two readings."""

    def __init__(self, before: Reading, after: Reading) -> None:
        self._before = before
        self._after = after
        self.seconds = after.at - before.at

    def increases(self, name: str, **where: str) -> Iterator[tuple[Labels, float]]:
        """By how much each counter grew; one that was begun anew grew by what it shows. Nothing if it
        is not known since when it counts, because the metric was not there before."""
        if not self._before.has(name):
            return
        for labels, value in self._after.samples(name, **where):
            earlier = self._before.before(name, labels)
            yield labels, value - earlier if value >= earlier else value

    def rate(self, name: str, **where: str) -> float | None:
        """By how much a counter grew a second; None if that is not known."""
        if not (self._before.has(name) and self._after.has(name)) or self.seconds <= 0:
            return None
        return sum(increase for _, increase in self.increases(name, **where)) / self.seconds

    def rates(self, name: str, *by: str, **where: str) -> dict[tuple[str, ...], float]:
        """The same for each combination of the labels ``by``, without those where nothing happened."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for labels, increase in self.increases(name, **where):
            if increase:
                found[tuple(labels[label] for label in by)] += increase / self.seconds
        return dict(found)

    def mean(self, name: str, **where: str) -> float | None:
        """The mean of what a histogram took in; None if that was nothing."""
        count = sum(increase for _, increase in self.increases(f"{name}_count", **where))
        total = sum(increase for _, increase in self.increases(f"{name}_sum", **where))
        return total / count if count else None

    def quantile(self, name: str, q: float, **where: str) -> float | None:
        """The q-quantile of what a histogram took in, interpolated within its bucket as Prometheus
        does it; None if that was nothing. What is above the last bound counts as the last bound."""
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
