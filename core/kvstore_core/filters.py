"""Which events a subscriber wants."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from kvstore_core.operations import EVENT_OPS
from kvstore_core.wire import exact_topic


def disjoint(prefixes: Iterable[str]) -> list[str]:
    """The prefixes in order, without those that another one covers."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return kept


SHOWN_BYTES = 1024
"""Of the filters of a subscriber that are shown: two of the longest, or a hundred as they usually are."""


def shown_filters(prefixes: Collection[str], keys: Collection[str]) -> dict[str, Any]:
    """What a subscriber asked for as it is shown: as many ``prefixes`` and ``keys`` as have ``SHOWN_BYTES``
    together, and how many ``filters`` there are."""
    left = SHOWN_BYTES
    shown: dict[str, list[str]] = {"prefixes": [], "keys": []}
    for name, texts in (("prefixes", prefixes), ("keys", keys)):
        for text in texts:
            left -= len(text.encode())
            if left < 0:
                break
            shown[name].append(text)
    return {**shown, "filters": len(prefixes) + len(keys)}


class Filter(NamedTuple):
    """Which events are wanted: those whose key is in ``keys`` or begins with one of ``prefixes``
    (both empty: all), with an op in ``ops`` (empty: all)."""

    prefixes: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    ops: frozenset[str] = frozenset()

    @classmethod
    def normalized(cls, prefixes: Iterable[str], keys: Iterable[str], ops: Iterable[str]) -> Filter:
        """The filter that takes the same, in the one form that equal filters share: no prefix or key that
        another prefix covers, and no condition that always holds."""
        kept, some_ops = tuple(disjoint(prefixes)), frozenset(ops)
        if some_ops.issuperset(EVENT_OPS):
            some_ops = frozenset()
        if "" in kept:
            return cls(ops=some_ops)
        return cls(kept, frozenset(key for key in keys if not key.startswith(kept)), some_ops)

    @property
    def takes_every_key(self) -> bool:
        """Whether no key is left out, so that a subscriber hears every message there is."""
        return (not self.prefixes and not self.keys) or "" in self.prefixes

    def matches(self, op: str, key: str) -> bool:
        """Whether an event of ``key`` is wanted."""
        if self.ops and op not in self.ops:
            return False
        return self.takes_every_key or key in self.keys or key.startswith(self.prefixes)

    def topics(self, *, exact: bool = False) -> list[bytes]:
        """What to subscribe a SUB socket to so that it hears at least the wanted keys.

        A topic is a prefix to ZeroMQ, so a key's topic brings longer keys as well: :meth:`matches`
        still has to be asked. With ``exact``, keys have their exact topics (protocol section 5), which there
        are while access is on.
        """
        if self.takes_every_key:
            return [b""]
        prefixes, keys = ({text.encode() for text in texts} for texts in (self.prefixes, self.keys))
        return sorted(prefixes.union(map(exact_topic, keys) if exact else keys))

    def fields(self) -> dict[str, Any]:
        """The fields of an ``events`` op that asks for the same."""
        fields: dict[str, Any] = {}
        if not self.takes_every_key:
            if self.prefixes:
                fields["prefixes"] = list(self.prefixes)
            if self.keys:
                fields["keys"] = sorted(self.keys)
        if self.ops:
            fields["ops"] = sorted(self.ops)
        return fields
