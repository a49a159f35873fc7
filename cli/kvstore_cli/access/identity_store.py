"""What the commands do with identities, wherever those are.

An identity is described as over HTTP: ``name``, ``grants``, ``tokens`` each with its ``id``, and ``keys``
each with its ``public_key``. Times are RFC 3339 texts in UTC, with milliseconds; ``expires_at`` is left out
where there is no end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

Description = dict[str, Any]

NEVER = 0
"""As the time in which a token ends: it has no end."""


class IdentityStore(ABC):
    """The identities of a service. Ends are in milliseconds from now, None for never.

    Everything raises the KvErrors of the service: ``not_found`` for who is not there, ``condition_failed``
    for who is there already, ``bad_request`` for what cannot be, ``not_allowed`` and ``unauthenticated``.
    Each change is made as a whole or not at all, and is durable when it returns.
    """

    @abstractmethod
    def everybody(self) -> list[Description]:
        """All of them, in the order in which they were made."""

    @abstractmethod
    def described(self, name: str) -> Description:
        """One of them."""

    @abstractmethod
    def create(self, name: str, grants: Sequence[str], ends_in: int | None) -> Description:
        """Make an identity, which must not be there, with a token. Returns the identity, and as ``id`` and
        ``token`` the token, which nobody can be shown again."""

    @abstractmethod
    def regrant(self, name: str, grant: Sequence[str], ungrant: Sequence[str]) -> Description:
        """Give an identity more grants, and take some of its grants away."""

    @abstractmethod
    def rotate(self, name: str, keep: int, ends_in: int | None) -> Description:
        """Make another token of an identity, whose other tokens then end in ``keep`` milliseconds. It ends in
        ``ends_in``, which may be ``NEVER``; None is for as long as the newest token was made for. Returns
        what :meth:`create` does."""

    @abstractmethod
    def revoke(self, name: str) -> None:
        """Remove an identity with all that it could come in by."""

    @abstractmethod
    def revoke_token(self, name: str, token_id: str) -> None:
        """Remove one token of an identity."""

    @abstractmethod
    def revoke_key(self, name: str, public_key: str) -> None:
        """Remove one key of an identity."""

    @abstractmethod
    def add_key(self, name: str, grants: Sequence[str], public_key: str, ends_in: int | None) -> str:
        """Let an identity in by a CURVE key; with ``grants`` the identity is made, and must not be there.
        Returns the daemon's public key."""
