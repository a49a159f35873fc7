"""The operations about access: who asks, and changes of the table of identities.

Each change is one replacement of the file, which is on disk before the answer. That is done in the loop's
thread and holds it up for a sync: changes of identities are rare, and what comes after one must see it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kvstore_core.access import changes
from kvstore_core.access.identities import StoredKey, StoredToken, described
from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.access.authority import Authority, access_is_off
from kvstore_daemon.record_fields import Fields

log = logging.getLogger("kvstore.daemon")

Op = dict[str, Any]


class Administration:
    """Answers these operations; used by the loop's thread only."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def whoami(self, who: Principal) -> Fields:
        """What the daemon knows of ``who``."""
        fields: Fields = {
            "access": self._authority.is_on,
            "name": who.name,
            "grants": list(who.grants.texts),
            "kind": "key" if who.name else "none",
            "credential": who.credential,
        }
        if who.expires_at is not None:
            fields["expires_at"] = who.expires_at
        return fields

    def access(self) -> tuple[Fields, bytes]:
        """The table for a facade, and its text."""
        table, keys = self._authority.table, self._authority.keys
        if keys is None:
            raise access_is_off()
        text = table.encode()
        return {"tag": table.tag, "signing_key": keys.signing_key.hex(), "size": len(text)}, text

    def identities(self) -> Fields:
        """All identities."""
        if not self._authority.is_on:
            raise access_is_off()
        return {"identities": [described(row) for row in self._authority.table.identities.values()]}

    def change(self, op: Op, who: Principal) -> Fields:
        """Do an op that changes the table."""
        change, name = CHANGES[op["op"]](op, now_ms()), op["name"]
        self._authority.change(change, name)
        log.info("%s of %r, asked for by %r", op["op"], name, who.name)
        row = self._authority.table.identities.get(name)
        return {"deleted": 1} if row is None else described(row)


def _put(op: Op, now: int) -> changes.Change:
    if ("id" in op) != ("digest" in op):
        raise KvError("bad_request", "a token is its 'id' and its 'digest': give both, or neither")
    end = op.get("credential_expires_at") or None
    return changes.put_identity(
        op["name"],
        now,
        create=op.get("create"),
        grants=op.get("grants"),
        grant=op.get("grant", ()),
        ungrant=op.get("ungrant", ()),
        expires_at=op.get("expires_at"),
        token=StoredToken(op["id"], op["digest"], now, end) if "id" in op else None,
        key=StoredKey(op["public_key"], now, end) if "public_key" in op else None,
    )


def _add_token(op: Op, now: int) -> changes.Change:
    keep, end = op.get("keep"), op.get("expires_at")
    return changes.add_token(
        op["name"],
        StoredToken(op["id"], op["digest"], now, end or None),
        now,
        keep_ms=None if keep is None else round(keep * 1000),
        as_before=keep is not None and end is None,
    )


CHANGES: dict[str, Callable[[Op, int], changes.Change]] = {
    "identity_put": _put,
    "identity_delete": lambda op, _now: changes.delete_identity(op["name"]),
    "token_add": _add_token,
    "token_delete": lambda op, _now: changes.delete_token(op["name"], op["id"]),
    "key_add": lambda op, now: changes.add_key(
        op["name"], StoredKey(op["public_key"], now, op.get("expires_at") or None), now
    ),
    "key_delete": lambda op, _now: changes.delete_key(op["name"], op["public_key"]),
}
"""By the operation: the change that an op asks for."""
