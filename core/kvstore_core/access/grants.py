"""Grants, and whether they cover what an operation needs (``docs/access.md``, Grants).

A grant is text: ``VERBS:SCOPE``, or a verb that has no scope. A scope is a range of keys: ``app/`` has all
that begin with ``app/``, ``app*`` all that begin with ``app``, ``app/config`` is one key, ``*`` is all keys.
Grants only add up; there is none that takes away. Keys are compared as they are, by their UTF-8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kvstore_core.limits import MAX_KEY_BYTES

KEY_VERBS = ("read", "list", "watch", "write", "delete")
PLAIN_VERBS = ("monitor", "admin")
"""Those without a scope."""

SHORT = {"ro": ("read", "list", "watch"), "rw": KEY_VERBS, "all": KEY_VERBS}

MAX_GRANTS = 100
"""Of one identity."""


class KeyRange(NamedTuple):
    """Keys from ``low`` (included) to ``high`` (not; None: no end), in the order of their bytes."""

    low: bytes
    high: bytes | None

    @classmethod
    def of_prefix(cls, prefix: str) -> KeyRange:
        """All keys that begin with ``prefix``."""
        return cls(raw := prefix.encode(), prefix_end(raw))

    @classmethod
    def of_key(cls, key: str) -> KeyRange:
        """One key."""
        return cls(raw := key.encode(), raw + b"\0")

    @classmethod
    def common(cls, prefix: str, start: str, end: str) -> KeyRange:
        """What prefix, start and end (empty: none) of a request have in common."""
        low, high = cls.of_prefix(prefix)
        if end:
            last = end.encode()
            high = last if high is None else min(high, last)
        return cls(max(low, start.encode()), high)

    def covers(self, other: KeyRange) -> bool:
        """Whether all of ``other`` is in this one."""
        if self.low > other.low:
            return False
        return self.high is None or (other.high is not None and other.high <= self.high)

    def __str__(self) -> str:
        """The range for a person."""
        low = self.low.decode(errors="replace")
        if self.high == prefix_end(self.low):
            return str(Prefix(low))
        if self.high is None:
            return f"every key from {low!r} on"
        if self.high == self.low + b"\0":
            return repr(low)
        return f"every key from {low!r} to {self.high.decode(errors='replace')!r}"


def prefix_end(prefix: bytes) -> bytes | None:
    """The smallest bytes above all that begin with ``prefix``; None if there are none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


class Prefix(str):
    """All keys that begin with it. A request may name very many, so they are compared as texts: a grant
    covers one exactly if it is itself of a prefix, with which this one begins."""

    __slots__ = ()

    def __str__(self) -> str:
        """The range for a person."""
        return f"every key that begins with {self[:]!r}" if self else "every key"


class Need(NamedTuple):
    """What a principal must be granted: ``verb`` on one key, on a prefix or a range, or (None) in general.

    Besides the verbs of grants there are ``known``, for whoever has a credential, or any grant as anonymous;
    and ``facade``, which no grant gives.
    """

    verb: str
    on: str | Prefix | KeyRange | None = None

    def __str__(self) -> str:
        """The need for a person: ``read on 'app/x'``."""
        if self.on is None:
            return "a credential" if self.verb == "known" else self.verb
        return f"{self.verb} on {self.on if isinstance(self.on, KeyRange | Prefix) else repr(self.on)}"


class OnKey:
    """Gives what an op on one key needs: some verbs on that key."""

    def __init__(self, *verbs: str) -> None:
        self.verbs = verbs

    def __call__(self, op: dict[str, Any]) -> list[Need]:
        """The needs of an op."""
        return [Need(verb, op["key"]) for verb in self.verbs]


OpNeeds = Callable[[dict[str, Any]], Iterable[Need]]
"""Gives what an op, checked, must be granted."""


class Grant(NamedTuple):
    """One grant. ``prefix`` says that ``scope`` stands for all keys that begin with it; without a scope it is
    empty and not a prefix."""

    verbs: tuple[str, ...]
    scope: str = ""
    prefix: bool = False

    @classmethod
    def parse(cls, text: str) -> Grant:
        """The grant written as ``text``; raises ValueError with a sentence that says what is wrong."""
        verbs, colon, scope = text.partition(":")
        if not colon:
            if verbs in PLAIN_VERBS:
                return cls((verbs,))
            raise ValueError(
                f"{text!r} is not a grant: write VERBS:SCOPE, for example ro:app/, "
                f"or one of {', '.join(PLAIN_VERBS)}"
            )
        named: list[str] = []
        for verb in verbs.split(","):
            if verb in PLAIN_VERBS:
                raise ValueError(f"the grant {text!r} has a scope, and {verb!r} takes none")
            if verb not in SHORT and verb not in KEY_VERBS:
                known = ", ".join((*KEY_VERBS, *SHORT))
                raise ValueError(f"the grant {text!r} has the unknown verb {verb!r}; there are: {known}")
            named.extend(SHORT.get(verb, (verb,)))
        kept = tuple(verb for verb in KEY_VERBS if verb in named)
        if not scope:
            raise ValueError(f"the grant {text!r} has no scope; for everything write {verbs}:*")
        is_prefix = scope.endswith(("/", "*"))
        stem = scope.removesuffix("*")
        try:
            size = len(stem.encode())
        except UnicodeEncodeError:
            raise ValueError(f"the scope of {text!r} is not UTF-8: it holds a lone surrogate") from None
        if "\0" in scope or size > MAX_KEY_BYTES:
            raise ValueError(
                f"the scope of {text[:80]!r} must be at most {MAX_KEY_BYTES} bytes of UTF-8 without NUL"
            )
        return cls(kept, stem, is_prefix)

    def needs(self) -> list[Need]:
        """What this grant gives, as needs: whoever may all of these may hand it on."""
        if self.verbs[0] in PLAIN_VERBS:
            return [Need(self.verbs[0])]
        scope = Prefix(self.scope) if self.prefix else self.scope
        return [Need(verb, scope) for verb in self.verbs]


class GrantSet:
    """Parsed grants, made to be asked often. Raises ValueError as :meth:`Grant.parse` does, and for more than
    ``MAX_GRANTS``."""

    __slots__ = ("_keys", "_plain", "_prefixes", "_ranges", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        if len(self.texts) > MAX_GRANTS:
            raise ValueError(f"an identity has at most {MAX_GRANTS} grants; these are {len(self.texts)}")
        keys: dict[str, set[str]] = {verb: set() for verb in KEY_VERBS}
        prefixes: dict[str, list[str]] = {verb: [] for verb in KEY_VERBS}
        plain: set[str] = set()
        for grant in map(Grant.parse, self.texts):
            for verb in grant.verbs:
                if verb in PLAIN_VERBS:
                    plain.add(verb)
                elif grant.prefix:
                    prefixes[verb].append(grant.scope)
                else:
                    keys[verb].add(grant.scope)
        self._plain = frozenset(plain)
        self._keys = {verb: frozenset(each) for verb, each in keys.items()}
        self._prefixes = {verb: tuple(each) for verb, each in prefixes.items()}
        self._ranges = {
            verb: [*map(KeyRange.of_prefix, prefixes[verb]), *map(KeyRange.of_key, keys[verb])]
            for verb in KEY_VERBS
        }

    def allow(self, need: Need) -> bool:
        """Whether one grant covers all that is needed."""
        verb, on = need
        if isinstance(on, Prefix):
            return on.startswith(self._prefixes[verb])
        if isinstance(on, str):
            return on.startswith(self._prefixes[verb]) or on in self._keys[verb]
        if on is None:
            return verb in self._plain
        return any(granted.covers(on) for granted in self._ranges[verb])

    def has(self, verb: str) -> bool:
        """Whether ``verb`` is granted on anything at all."""
        return verb in self._plain or bool(self._keys.get(verb) or self._prefixes.get(verb))

    def allow_on_key(self, verbs: Iterable[str], key: str) -> bool:
        """Whether each of ``verbs`` is allowed on one key; quicker than to make needs of them."""
        prefixes, keys = self._prefixes, self._keys
        for verb in verbs:  # noqa: SIM110 - a generator takes twice as long
            if not (key.startswith(prefixes[verb]) or key in keys[verb]):
                return False
        return True

    def deciding(self, need: Need) -> str | None:
        """The text of the grant that :meth:`allow` finds, None where there is none."""
        return next((text for text in self.texts if GrantSet((text,)).allow(need)), None)

    def _covers(self, text: str) -> bool:
        return all(map(self.allow, Grant.parse(text).needs()))

    def handed_on(self, limit: tuple[str, ...] | None) -> GrantSet:
        """Those of ``limit`` that this covers, all of this without one; never admin."""
        if limit is not None:
            return GrantSet(text for text in limit if text != "admin" and self._covers(text))
        return GrantSet(text for text in self.texts if text != "admin") if "admin" in self._plain else self
