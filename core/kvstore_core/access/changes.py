"""Changes of the table of identities: each function here returns one that makes a new table of an old one.

They raise KvError, and leave the old table as it is: ``bad_request`` for what cannot be, ``not_found`` for
what is not there, ``condition_failed`` for what is there already. Times are in milliseconds. A change that
was made before changes nothing, so that a repeated request does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from kvstore_core.access.grants import GrantSet
from kvstore_core.access.identities import (
    MAX_CREDENTIALS,
    AccessTable,
    Identity,
    StoredKey,
    StoredToken,
    check_name,
)
from kvstore_core.access.principal import ANONYMOUS
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_MOMENT

_Ending = TypeVar("_Ending", StoredToken, StoredKey)

Change = Callable[[AccessTable], AccessTable]

NO_END = 0
"""As ``expires_at``: it never ends."""


def put_identity(
    name: str,
    now: int,
    *,
    create: bool | None = None,
    grants: Sequence[str] | None = None,
    grant: Sequence[str] = (),
    ungrant: Sequence[str] = (),
    expires_at: int | None = None,
    token: StoredToken | None = None,
    key: StoredKey | None = None,
) -> Change:
    """Make or change an identity. With ``create`` it must not be there yet, with False it must; None does
    either. ``grants`` replaces its grants; ``grant`` adds some, ``ungrant`` takes some away that it has.
    ``expires_at`` sets its end, ``NO_END`` takes that away. ``token`` and ``key`` are added."""

    def change(table: AccessTable) -> AccessTable:
        row = table.identities.get(name)
        if create and row is not None:
            if token is not None and _has_token(row, token):
                return table  # the same request once more
            raise KvError("condition_failed", f"there is an identity {name!r} already")
        if row is None:
            if create is False:
                _no_identity(name)
            row = Identity(_checked_name(name), GrantSet(()), now)
        row = _regranted(row, _granted(row, grants, grant, ungrant))
        if expires_at is not None:
            row = row._replace(expires_at=expires_at or None)
        if token is not None:
            row = _with_token(row, token, now)
        if key is not None:
            row = _with_key(row, key, now)
        return _replaced(table, row)

    return change


def delete_identity(name: str) -> Change:
    """Remove an identity, with all its tokens and keys."""

    def change(table: AccessTable) -> AccessTable:
        _row(table, name)
        return table.with_rows(row for row in table.identities.values() if row.name != name)

    return change


def add_token(
    name: str, token: StoredToken, now: int, *, keep_ms: int | None = None, as_before: bool = False
) -> Change:
    """Give an identity another token. With ``keep_ms`` its other tokens end after that time, with 0 they are
    removed. Tokens that have expired are removed. ``as_before``: it lasts as long as the newest of them was
    made for."""

    def change(table: AccessTable) -> AccessTable:
        nonlocal token
        row = _row(table, name)
        if as_before and not _has_token(row, token):
            token = token._replace(expires_at=_end_as_before(row, now))
        if keep_ms is not None:
            others = (each for each in row.tokens if each.id != token.id)
            kept = () if keep_ms == 0 else tuple(_ending(each, now + keep_ms) for each in others)
            row = row._replace(tokens=(*kept, *(each for each in row.tokens if each.id == token.id)))
        return _replaced(table, _with_token(row, token, now))

    return change


def delete_token(name: str, token_id: str) -> Change:
    """Revoke one token of an identity."""

    def change(table: AccessTable) -> AccessTable:
        row = _row(table, name)
        kept = tuple(each for each in row.tokens if each.id != token_id)
        if len(kept) == len(row.tokens):
            raise KvError("not_found", f"{name!r} has no token {token_id!r}")
        return _replaced(table, row._replace(tokens=kept))

    return change


def add_key(name: str, key: StoredKey, now: int) -> Change:
    """Let an identity in by another CURVE key. Keys that have expired are removed."""
    return lambda table: _replaced(table, _with_key(_row(table, name), key, now))


def delete_key(name: str, public: str) -> Change:
    """Revoke one CURVE key of an identity."""

    def change(table: AccessTable) -> AccessTable:
        row = _row(table, name)
        kept = tuple(each for each in row.keys if each.public != public)
        if len(kept) == len(row.keys):
            raise KvError("not_found", f"{name!r} has no key {public!r}")
        return _replaced(table, row._replace(keys=kept))

    return change


def _row(table: AccessTable, name: str) -> Identity:
    return table.identities.get(name) or _no_identity(name)


def _no_identity(name: str) -> NoReturn:
    raise KvError("not_found", f"there is no identity {name!r}")


def _checked_name(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise KvError("bad_request", str(error)) from error


def _granted(
    row: Identity, grants: Sequence[str] | None, grant: Sequence[str], ungrant: Sequence[str]
) -> list[str]:
    texts = list(row.grants.texts if grants is None else grants)
    for text in ungrant:
        if text not in texts:
            has = ", ".join(texts) or "no grants"
            raise KvError("not_found", f"{row.name!r} has no grant {text!r}; it has: {has}")
        texts.remove(text)
    return [*texts, *grant]


def _regranted(row: Identity, texts: list[str]) -> Identity:
    if texts == list(row.grants.texts):
        return row
    try:
        return row._replace(grants=GrantSet(texts))
    except ValueError as error:
        raise KvError("bad_request", str(error)) from error


def _has_token(row: Identity, token: StoredToken) -> bool:
    return any((each.id, each.digest) == (token.id, token.digest) for each in row.tokens)


def _with_token(row: Identity, token: StoredToken, now: int) -> Identity:
    _refuse_for_anonymous(row)
    if _has_token(row, token):
        return row
    return row._replace(tokens=(*_living(row.tokens, now), token))


def _with_key(row: Identity, key: StoredKey, now: int) -> Identity:
    _refuse_for_anonymous(row)
    if any(each.public == key.public for each in row.keys):
        return row
    return row._replace(keys=(*_living(row.keys, now), key))


def _end_as_before(row: Identity, now: int) -> int | None:
    newest = max(row.tokens, key=lambda each: each.created_at, default=None)
    if newest is None or newest.expires_at is None:
        return None
    return min(now + newest.expires_at - newest.created_at, MAX_MOMENT)


def _living(items: tuple[_Ending, ...], now: int) -> tuple[_Ending, ...]:
    return tuple(each for each in items if each.expires_at is None or each.expires_at > now)


def _ending(token: StoredToken, at: int) -> StoredToken:
    return token._replace(expires_at=at if token.expires_at is None else min(at, token.expires_at))


def _refuse_for_anonymous(row: Identity) -> None:
    if row.name == ANONYMOUS:
        raise KvError("bad_request", f"{ANONYMOUS!r} is who comes without a credential: it gets none")


def _replaced(table: AccessTable, row: Identity) -> AccessTable:
    """The table with ``row`` in the place of the one of its name, or at the end."""
    if table.identities.get(row.name) == row:
        return table
    if len(row.tokens) + len(row.keys) > MAX_CREDENTIALS:
        raise KvError("bad_request", f"{row.name!r} has {MAX_CREDENTIALS} tokens and keys; revoke one first")
    if row.name == ANONYMOUS and ("admin" in row.grants.texts or row.expires_at is not None):
        what = "is never admin" if row.expires_at is None else "has no end; take its grants away instead"
        raise KvError("bad_request", f"{ANONYMOUS!r} is who comes without a credential: it {what}")
    try:
        return table.with_rows({**table.identities, row.name: row}.values())
    except ValueError as error:  # a token or a key that another one has, too many identities
        raise KvError("condition_failed", str(error)) from error
