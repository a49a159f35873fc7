"""Filters, and which streams want which changes.

Streams with the same filter and format are a group: a change is matched and written once for all of
them. A change finds its groups by look-ups (by its key, by each length of prefix in use, and those that
take everything), so its cost does not grow with the number of groups that do not want it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from kvstore_core.filters import Filter
from kvstore_core.follower import Batch
from kvstore_core.limits import MAX_FILTERS
from kvstore_core.model import Event


def union(filters: Iterable[Filter]) -> Filter:
    """A filter that takes at least what ``filters`` take, within the limits of one request."""
    prefixes: set[str] = set()
    keys: set[str] = set()
    ops: set[str] = set()
    is_any_op = takes_all = False
    for wanted in set(filters):
        prefixes.update(wanted.prefixes)
        keys.update(wanted.keys)
        ops.update(wanted.ops)
        is_any_op |= not wanted.ops
        takes_all |= wanted.takes_every_key
    some_ops = () if is_any_op else ops
    if takes_all:
        return Filter.normalized(("",), (), some_ops)
    found = Filter.normalized(prefixes, keys, some_ops)
    if len(found.prefixes) > MAX_FILTERS or len(found.keys) > MAX_FILTERS:
        return Filter.normalized(("",), (), some_ops)
    return found


def covers(wide: Filter, wanted: Filter) -> bool:
    """Whether ``wide`` takes all that ``wanted`` takes."""
    if wide.ops and not (wanted.ops and wanted.ops <= wide.ops):
        return False
    if wide.takes_every_key:
        return True
    if wanted.takes_every_key:
        return False
    return all(prefix.startswith(wide.prefixes) for prefix in wanted.prefixes) and all(
        key in wide.keys or key.startswith(wide.prefixes) for key in wanted.keys
    )


def only(wanted: Filter, batches: Iterable[Batch]) -> Iterator[Batch]:
    """What ``wanted`` takes of ``batches``."""
    for batch in batches:
        taken = [event for event in batch if wanted.matches(event.op, event.key)]
        if taken:
            yield taken


G = TypeVar("G", bound=Hashable)


class FilterIndex(Generic[G]):
    """Groups by the normalized filter that they want."""

    def __init__(self) -> None:
        self._filters: dict[G, Filter] = {}
        self._everything: dict[G, None] = {}
        self._by_key: dict[str, dict[G, None]] = {}
        self._by_prefix: dict[str, dict[G, None]] = {}
        self._prefix_lengths: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._filters)

    def add(self, group: G, wanted: Filter) -> None:
        """Let ``group`` take what ``wanted`` (normalized) takes."""
        self._filters[group] = wanted
        if wanted.takes_every_key:
            self._everything[group] = None
        for key in wanted.keys:
            self._by_key.setdefault(key, {})[group] = None
        for prefix in wanted.prefixes:
            self._by_prefix.setdefault(prefix, {})[group] = None
            self._prefix_lengths[len(prefix)] = self._prefix_lengths.get(len(prefix), 0) + 1

    def remove(self, group: G) -> None:
        """Forget ``group``."""
        wanted = self._filters.pop(group)
        self._everything.pop(group, None)
        for key in wanted.keys:
            _discard(self._by_key, key, group)
        for prefix in wanted.prefixes:
            _discard(self._by_prefix, prefix, group)
            self._prefix_lengths[len(prefix)] -= 1
            if not self._prefix_lengths[len(prefix)]:
                del self._prefix_lengths[len(prefix)]

    def matches(self, batches: Iterable[Batch]) -> dict[G, list[Batch]]:
        """What each group takes of ``batches``; groups that take nothing are not in it."""
        found: dict[G, list[Batch]] = {}
        for batch in batches:
            for event in batch:
                for group in self._takers(event):
                    taken = found.setdefault(group, [])
                    if taken and taken[-1][0].revision == event.revision:
                        taken[-1].append(event)
                    else:
                        taken.append([event])
        return found

    def _takers(self, event: Event) -> list[G]:
        """A normalized filter takes a key in one way at most, so no group comes twice."""
        key = event.key
        found = [*self._everything, *self._by_key.get(key, ())]
        for length in self._prefix_lengths:
            if length <= len(key):
                found += self._by_prefix.get(key[:length], ())
        filters = self._filters
        return [group for group in found if not (ops := filters[group].ops) or event.op in ops]


def _discard(table: dict[str, dict[G, None]], name: str, group: G) -> None:
    groups = table[name]
    del groups[group]
    if not groups:
        del table[name]
