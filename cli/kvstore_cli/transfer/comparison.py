"""Comparing what two services have: first by their digests, then range by range for the first key that
differs. Both may be written to meanwhile; at most a page of each is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from time import sleep
from typing import Any, NamedTuple

from kvstore_cli.http_client.client import Query, ServiceClient
from kvstore_cli.terminal.output import value_of
from kvstore_core.errors import KvError

_PAUSES = (0.1, 0.3, 0.6)
"""Between the looks at a key that seems to differ: a copy that is behind by less is not another."""

Record = dict[str, Any]


class KeyDifference(NamedTuple):
    """A key, and what each of the two has under it; None for nothing."""

    key: str
    first: Record | None
    second: Record | None

    @property
    def kind(self) -> str:
        """``missing`` in one, another ``revision``, or another ``value`` at the same revision."""
        if self.first is None or self.second is None:
            return "missing"
        return "value" if self.first["revision"] == self.second["revision"] else "revision"


class ServiceComparison:
    """Of the keys that begin with ``prefix``, None for all, in two services."""

    def __init__(self, first: ServiceClient, second: ServiceClient, prefix: str | None) -> None:
        self._first = first
        self._second = second
        self._of_prefix = [] if prefix is None else [("prefix", prefix)]

    def digests(self, query: Query = ()) -> tuple[Record, Record]:
        """What each says of its digest."""
        asked = [*self._of_prefix, *query]
        first, second = (each.request("GET", "/v1/digest", asked) for each in (self._first, self._second))
        return first.json(), second.json()

    def difference(self) -> KeyDifference | None:
        """The first key that differs, in byte order. None where every range, or each of its keys, was equal
        at some moment since this began."""
        for query in self._ranges():
            first, second = self.digests(query)
            if first["digest"] == second["digest"]:
                continue
            for key in self._differing([*self._of_prefix, *query]):
                found = self._confirmed(key)
                if found is not None:
                    return found
        return None

    def _ranges(self) -> Iterator[Query]:
        """Ranges that are all keys together, each of about a page of the first one's."""
        start: list[tuple[str, str]] = []
        pages = self._first.pages("/v1/kv", [*self._of_prefix, ("keys", "1")])
        beginnings = (page["items"][0]["key"] for page in pages if page["items"])
        next(beginnings, None)  # what comes before the first key belongs to the first range
        for key in beginnings:
            yield [*start, ("end", key)]
            start = [("start", key)]
        yield start

    def _differing(self, query: Query) -> Iterator[str]:
        """The keys of a range of which the two lists have not the same."""
        lists = [each.items("/v1/kv", query) for each in (self._first, self._second)]
        first, second = (next(each, None) for each in lists)
        while first is not None or second is not None:
            order = _order(first, second)
            if order or not _is_same(first, second):
                yield (second if first is None or order > 0 else first)["key"]  # type: ignore[index]
            if order <= 0:
                first = next(lists[0], None)
            if order >= 0:
                second = next(lists[1], None)

    def _confirmed(self, key: str) -> KeyDifference | None:
        """The difference, unless it goes away, or both go on changing: then neither is left behind."""
        begun = found = self._look_at(key)
        for pause in _PAUSES:
            if _is_same(found.first, found.second):
                return None
            sleep(pause)
            found = self._look_at(key)
        if _is_same(found.first, found.second):
            return None
        are_changing = not _is_same(begun.first, found.first) and not _is_same(begun.second, found.second)
        return None if are_changing else found

    def _look_at(self, key: str) -> KeyDifference:
        return KeyDifference(key, *(_record(each, key) for each in (self._first, self._second)))


def _record(service: ServiceClient, key: str) -> Record | None:
    try:
        record: Record = service.request("GET", "/v1/kv", [("key", key), ("format", "json")]).json()
    except KvError as error:
        if error.code == "not_found":
            return None
        raise
    return record


def _order(first: Record | None, second: Record | None) -> int:
    """Below 0 where the first one's key comes first, above it where the second one's does."""
    if first is None or second is None:
        return int(first is None) - int(second is None)
    one, other = first["key"].encode(), second["key"].encode()
    return int(one > other) - int(one < other)


def _is_same(first: Record | None, second: Record | None) -> bool:
    if first is None or second is None:
        return first is second
    return first["revision"] == second["revision"] and value_of(first) == value_of(second)
