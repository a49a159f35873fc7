"""Who asks: an identity, by one of its credentials, with what it may do now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kvstore_core.access.grants import GrantSet, Need, OnKey, OpNeeds
from kvstore_core.errors import KvError

ANONYMOUS = "anonymous"
"""The identity of those without a credential. It has no tokens and no keys."""

FACADE = "facade"
"""The identity of the HTTP facade, which asks for others and has checked what they may."""


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """One who asks. Treat it as valid for a moment: :meth:`AccessTable.refreshed` gives it anew after the
    table has changed, or its time is over.

    ``name`` is the identity's, empty where access is off. ``credential`` is the id of its token, or its
    public key. One by a derived credential ``is_derived``: ``credential`` is then the id of the token that it
    comes from, and ``limit`` has the grants to which it is narrowed, None for all of the token's. A session
    ``is_session`` too. ``expires_at`` is in milliseconds.
    """

    name: str
    grants: GrantSet
    credential: str = ""
    expires_at: int | None = None
    is_derived: bool = False
    limit: tuple[str, ...] | None = None
    is_session: bool = False
    is_unrestricted: bool = False

    def may(self, need: Need) -> bool:
        """Whether this is allowed."""
        if self.is_unrestricted:
            return True
        if need.verb == "known":
            return self.name != ANONYMOUS or bool(self.grants.texts)
        return need.verb != "facade" and self.grants.allow(need)

    def check(self, needs: Iterable[Need], op: int | None = None) -> None:
        """Raise ``not_allowed`` (``unauthenticated`` where there was no credential) for the first of
        ``needs`` that is not allowed. ``op`` is the index of the op in its request, for the error's details.
        """
        if self.is_unrestricted:
            return
        allow = self.grants.allow
        for need in needs:
            if not allow(need) and not self.may(need):  # the first says yes to nearly all, and sooner
                raise self.refusal(need, op)

    def check_op(self, op: dict[str, Any], needs: OpNeeds, index: int | None = None) -> None:
        """As :meth:`check` for what ``op`` needs, by the ``needs`` of its operation. Most ops are of one key,
        and those are checked with every request."""
        if self.is_unrestricted or (
            type(needs) is OnKey and self.grants.allow_on_key(needs.verbs, op["key"])
        ):
            return
        self.check(needs(op), index)

    def refusal(self, need: Need, op: int | None = None) -> KvError:
        """The error for a need that is not allowed. It is the same whether the key exists or not."""
        details = {} if op is None else {"op": op}
        if self.name == ANONYMOUS:
            return KvError(
                "unauthenticated",
                f"this needs {need}: send a token, see docs/access.md",
                reason="missing",
                **details,
            )
        on = {} if need.on is None else {"on": str(need.on)}
        return KvError(
            "not_allowed",
            f"this needs {need}, and {self.name!r} has: {', '.join(self.grants.texts) or 'no grants'}",
            needs=need.verb,
            **on,
            grants=list(self.grants.texts),
            **details,
        )


UNRESTRICTED = Principal("", GrantSet(()), is_unrestricted=True)
"""Everybody, while access is off."""

THE_FACADE = Principal(FACADE, GrantSet(()), is_unrestricted=True)
"""The facade: at the daemon, and in its own work, such as following the changes."""
