"""The table of identities: who there is, by which credentials, with which grants.

It is ``access.json`` in memory, at the daemon and in every worker of the facade. A table is never changed;
each change makes another, with another ``tag``.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import orjson

from kvstore_core.access.derived import (
    MAX_DERIVED_GRANTS,
    MAX_SECONDS,
    Statement,
    half_digest,
    sign,
    verify,
)
from kvstore_core.access.derived import PREFIX as DERIVED_PREFIX
from kvstore_core.access.grants import Grant, GrantSet
from kvstore_core.access.principal import ANONYMOUS, FACADE, Principal
from kvstore_core.access.tokens import digest_of, is_digest, is_token_id, token_id
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_MOMENT

VERSION = 1
MAX_NAME = 32
FOREVER = float("inf")
MAX_IDENTITIES = 2_000
"""Each worker of the facade reads the whole table after each change, which takes about 0.1 s for a thousand
identities; the daemon writes it, in a third of that. Both do nothing else meanwhile."""
MAX_CREDENTIALS = 20
"""Tokens and keys of one identity."""

MAX_KEPT_GRANTS = 128
"""Of derived credentials. Parsed, those of one take up to 32 KiB."""

ME = "me"
"""Whoever asks, where a command wants a name; nobody is called so."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,31}", re.ASCII)
_PUBLIC_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)


_K = TypeVar("_K")
_V = TypeVar("_V")


class StoredToken(NamedTuple):
    """What is kept of a token. Times are in milliseconds."""

    id: str
    digest: str
    created_at: int
    expires_at: int | None = None


class StoredKey(NamedTuple):
    """A CURVE public key, in Z85 (ZeroMQ RFC 32)."""

    public: str
    created_at: int
    expires_at: int | None = None


class Identity(NamedTuple):
    """One row. Times are in milliseconds."""

    name: str
    grants: GrantSet
    created_at: int
    expires_at: int | None = None
    tokens: tuple[StoredToken, ...] = ()
    keys: tuple[StoredKey, ...] = ()


class AccessTable:
    """All identities. ``signing_key`` is what derived credentials are signed with; empty: there are none."""

    def __init__(self, identities: Iterable[Identity], signing_key: bytes = b"") -> None:
        """Raises ValueError if a name, a token's id or a public key is there twice."""
        self.identities: Mapping[str, Identity] = _unique("name", ((row.name, row) for row in identities))
        if len(self.identities) > MAX_IDENTITIES:
            raise ValueError(f"there are {len(self.identities)} identities; at most {MAX_IDENTITIES}")
        rows = self.identities.values()
        self._tokens = _unique("token id", ((t.id, (row, t)) for row in rows for t in row.tokens))
        self._keys = _unique("public key", ((key.public, (row, key)) for row in rows for key in row.keys))
        self._kept: dict[tuple[str, tuple[str, ...] | None], GrantSet] = {}
        self._signing_key = signing_key
        self._text = _encoded(rows)
        self.tag = hashlib.sha256(self._text + signing_key).hexdigest()[:16]
        """Another one in every table that says something else."""
        anonymous = self.identities.get(ANONYMOUS)
        self.anonymous = Principal(ANONYMOUS, GrantSet(()) if anonymous is None else anonymous.grants)
        """Who asks without a credential."""

    def with_rows(self, identities: Iterable[Identity]) -> AccessTable:
        """Another table, with the same key to sign with."""
        return AccessTable(identities, self._signing_key)

    def of_credential(self, text: str, now: int) -> Principal:
        """Who has the token, or the derived credential, ``text``. Raises ``unauthenticated``, whose detail
        ``reason`` is ``unknown``, ``expired`` or ``revoked``: the last two are only told to one who has the
        secret."""
        if text.startswith(DERIVED_PREFIX):
            statement = verify(text, self._signing_key) if self._signing_key else None
            if statement is None:
                raise _unknown()
            return self._of_statement(statement, now)
        found = self._tokens.get(token_id(text) or "")
        if found is None or not hmac.compare_digest(found[1].digest, digest_of(text)):
            raise _unknown()
        return self._of_token(*found, now)

    def may_know_later(self, text: str) -> bool:
        """Whether ``text`` is well formed and of a token that is not in this table: it may be in the next."""
        if text.startswith(DERIVED_PREFIX):
            statement = verify(text, self._signing_key) if self._signing_key else None
            return statement is not None and statement.token not in self._tokens
        found = token_id(text)
        return found is not None and found not in self._tokens

    def half_of(self, text: str) -> str:
        """The digest of the page's half of the session ``text``; empty for what is no session."""
        statement = verify(text, self._signing_key) if self._signing_key else None
        return "" if statement is None else statement.half

    def derive(
        self,
        parent: Principal,
        now: int,
        milliseconds: int,
        grants: tuple[str, ...] | None = None,
        half: str = "",
    ) -> str:
        """A credential derived from the token of ``parent``, good for so long and not after the token's end,
        and narrowed to ``grants`` (None: to those of ``parent`` but admin). With the page's ``half`` it is a
        session.

        Raises ``bad_request`` for more than ``MAX_SECONDS``, or for what are not at most
        ``MAX_DERIVED_GRANTS`` grants; and ``not_allowed`` for one who has no token, for a session, for admin,
        and for grants that ``parent`` does not have.
        """
        if parent.credential not in self._tokens or parent.is_session:
            raise KvError("not_allowed", "credentials are derived from a token; this has none")
        if not 0 < milliseconds <= MAX_SECONDS * 1000:
            raise KvError("bad_request", f"a derived credential lasts at most {MAX_SECONDS // 3600} hours")
        if grants is None:
            grants = parent.limit
        else:
            _check_handed_on(parent, grants)
        expires_at = min(now + milliseconds, MAX_MOMENT if parent.expires_at is None else parent.expires_at)
        statement = Statement(parent.credential, expires_at, grants, half_digest(half) if half else "")
        return sign(statement, self._signing_key)

    def _of_token(self, row: Identity, token: StoredToken, now: int) -> Principal:
        expires_at = _earliest(row.expires_at, token.expires_at)
        if expires_at is not None and now >= expires_at:
            raise _over("expired", row.name)
        return Principal(row.name, row.grants, token.id, expires_at)

    def _of_statement(self, statement: Statement, now: int) -> Principal:
        found = self._tokens.get(statement.token)
        if found is None:
            raise KvError(
                "unauthenticated",
                "the token that this was derived from was revoked; log in again",
                reason="revoked",
            )
        if now >= statement.expires_at:
            raise _over("expired", found[0].name)
        parent = self._of_token(*found, now)
        return Principal(
            parent.name,
            self._handed_on(found[0], statement.grants),
            parent.credential,
            _earliest(parent.expires_at, statement.expires_at),
            is_derived=True,
            limit=statement.grants,
            is_session=bool(statement.half),
        )

    def _handed_on(self, row: Identity, limit: tuple[str, ...] | None) -> GrantSet:
        """What a derived credential has of an identity's grants. It is kept: after a change all streams and
        sessions are judged in one turn, and many have the same."""
        grants = self._kept.get((row.name, limit))
        if grants is None:
            grants = row.grants.handed_on(limit)
            if len(self._kept) >= MAX_KEPT_GRANTS:
                self._kept.clear()
            self._kept[row.name, limit] = grants
        return grants

    def of_public_key(self, public: str, now: int) -> Principal | None:
        """Who has the CURVE key ``public``; None if nobody has it now."""
        found = self._keys.get(public)
        if found is None:
            return None
        row, key = found
        expires_at = _earliest(row.expires_at, key.expires_at)
        if expires_at is not None and now >= expires_at:
            return None
        return Principal(row.name, row.grants, public, expires_at)

    def refreshed(self, principal: Principal, now: int) -> Principal | None:
        """The same principal by this table; None if its credential is no longer good. One that is not of a
        table (access is off, the facade) stays as it is."""
        if principal.name in ("", FACADE):
            return principal
        if principal.name == ANONYMOUS:
            return self.anonymous
        if principal.expires_at is not None and now >= principal.expires_at:
            return None
        try:
            if principal.credential in self._keys:
                return self.of_public_key(principal.credential, now)
            found = self._tokens.get(principal.credential)
            if found is None or found[0].name != principal.name:
                return None
            if not principal.is_derived:
                return self._of_token(*found, now)
            assert principal.expires_at is not None  # noqa: S101 - of what is derived
            half = "-" if principal.is_session else ""
            return self._of_statement(
                Statement(principal.credential, principal.expires_at, principal.limit, half), now
            )
        except KvError:
            return None

    def ends(self) -> dict[str, int]:
        """When the last token or key of each identity ends, by its name. Without identities that have one
        without end, or none at all."""
        found = {}
        for row in self.identities.values():
            ends = [*(token.expires_at for token in row.tokens), *(key.expires_at for key in row.keys)]
            times = [_earliest(row.expires_at, end) for end in ends]
            last = max((FOREVER if time is None else time for time in times), default=FOREVER)
            if last < FOREVER:
                found[row.name] = int(last)
        return found

    def next_expiry(self, now: int) -> int | None:
        """When the next credential ends after ``now``."""
        times = (
            time
            for row in self.identities.values()
            for time in (
                row.expires_at,
                *(token.expires_at for token in row.tokens),
                *(key.expires_at for key in row.keys),
            )
            if time is not None and time > now
        )
        return min(times, default=None)

    def encode(self) -> bytes:
        """The text of ``access.json``. It lets nobody in: secrets are not part of it."""
        return self._text

    @classmethod
    def decode(cls, data: bytes, signing_key: bytes = b"") -> AccessTable:
        """The table in ``data``; raises ValueError with a sentence that says where it is wrong."""
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"it is not JSON: {error}") from error
        _check_object(document, "it", {"version", "identities"})
        if document["version"] != VERSION:
            raise ValueError(f"its version is {document['version']!r}; this kvstore knows {VERSION}")
        if type(document["identities"]) is not list:
            raise ValueError("'identities' must be a list")
        rows = (_identity(each, f"identities[{at}]") for at, each in enumerate(document["identities"]))
        return cls(rows, signing_key)


def _encoded(rows: Iterable[Identity]) -> bytes:
    document = {"version": VERSION, "identities": [_as_json(row) for row in rows]}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def described(row: Identity) -> dict[str, Any]:
    """An identity for those who manage it: without digests, and with times in milliseconds."""
    return {
        "name": row.name,
        "grants": list(row.grants.texts),
        **_moments(row),
        "tokens": [{"id": token.id, **_moments(token)} for token in row.tokens],
        "keys": [{"public_key": key.public, **_moments(key)} for key in row.keys],
    }


def _moments(row: Identity | StoredToken | StoredKey) -> dict[str, int]:
    end = {} if row.expires_at is None else {"expires_at": row.expires_at}
    return {"created_at": row.created_at, **end}


def check_name(name: Any) -> str:
    """``name``, if an identity may be called so and have credentials; raises ValueError otherwise."""
    if type(name) is not str or not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not the name of an identity: 1 to {MAX_NAME} letters, digits, '.', '_', '@', '-', "
            "the first of them a letter or digit"
        )
    if name in (FACADE, ME):
        raise ValueError(f"the name {name!r} is kvstore's own")
    return name


def is_public_key(value: Any) -> bool:
    """Whether ``value`` may be a CURVE public key."""
    return type(value) is str and _PUBLIC_KEY.fullmatch(value) is not None


def _check_handed_on(parent: Principal, grants: tuple[str, ...]) -> None:
    if not 1 <= len(grants) <= MAX_DERIVED_GRANTS:
        raise KvError("bad_request", f"a derived credential has 1 to {MAX_DERIVED_GRANTS} grants")
    try:
        needs = [need for text in grants for need in Grant.parse(text).needs()]
    except ValueError as error:
        raise KvError("bad_request", str(error)) from error
    parent.check(needs)
    if "admin" in grants:
        raise KvError("not_allowed", "a derived credential is never admin")


def _identity(value: Any, where: str) -> Identity:
    _check_object(value, where, {"name", "created_at"}, {"grants", "expires_at", "tokens", "keys"})
    try:
        name = check_name(value["name"])
        grants = value.get("grants", [])
        if type(grants) is not list or not all(type(text) is str for text in grants):
            raise ValueError("'grants' must be a list of texts")
        parsed = GrantSet(grants)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    tokens = tuple(
        _token(each, f"{where}.tokens[{at}]") for at, each in enumerate(_list(value, "tokens", where))
    )
    keys = tuple(_key(each, f"{where}.keys[{at}]") for at, each in enumerate(_list(value, "keys", where)))
    if len(tokens) + len(keys) > MAX_CREDENTIALS:
        raise ValueError(f"{where} has more than {MAX_CREDENTIALS} tokens and keys")
    if name == ANONYMOUS and (tokens or keys or "expires_at" in value or "admin" in parsed.texts):
        raise ValueError(f"{where}: {ANONYMOUS!r} has no tokens, no keys and no end, and is never admin")
    return Identity(name, parsed, _time(value, "created_at", where), _end(value, where), tokens, keys)


def _token(value: Any, where: str) -> StoredToken:
    _check_object(value, where, {"id", "sha256", "created_at"}, {"expires_at"})
    if not is_token_id(value["id"]) or not is_digest(value["sha256"]):
        raise ValueError(f"{where} must have an id of 8 characters, and a sha256 of 64 hexadecimal digits")
    return StoredToken(value["id"], value["sha256"], _time(value, "created_at", where), _end(value, where))


def _key(value: Any, where: str) -> StoredKey:
    _check_object(value, where, {"public", "created_at"}, {"expires_at"})
    if not is_public_key(value["public"]):
        raise ValueError(f"{where}.public must be a CURVE public key, 40 characters of Z85")
    return StoredKey(value["public"], _time(value, "created_at", where), _end(value, where))


def _check_object(value: Any, where: str, needed: set[str], other: Iterable[str] = ()) -> None:
    if type(value) is not dict:
        raise ValueError(f"{where} must be a JSON object")
    if missing := needed - value.keys():
        raise ValueError(f"{where} lacks {', '.join(map(repr, sorted(missing)))}")
    if unknown := value.keys() - needed - set(other):
        raise ValueError(f"{where} has the unknown {', '.join(map(repr, sorted(unknown)))}")


def _list(value: dict[str, Any], name: str, where: str) -> list[Any]:
    items = value.get(name, [])
    if type(items) is not list:
        raise ValueError(f"{where}.{name} must be a list")
    return items


def _end(value: dict[str, Any], where: str) -> int | None:
    return _time(value, "expires_at", where) if "expires_at" in value else None


def _time(value: dict[str, Any], name: str, where: str) -> int:
    try:
        time = datetime.fromisoformat(value[name])
        if time.tzinfo is None:
            raise ValueError("it has no zone")
        ms = round(time.timestamp() * 1000)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where}.{name} must be a time as in RFC 3339, for example 2027-01-31T12:00:00Z"
        ) from error
    if not 0 <= ms <= MAX_MOMENT:
        raise ValueError(f"{where}.{name} must be from 1970 to 9999")
    return ms


def _time_text(ms: int) -> str:
    time = datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)
    text = time.isoformat(timespec="milliseconds" if ms % 1000 else "seconds")
    return text.replace("+00:00", "Z")


def _as_json(row: Identity) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": row.name, "grants": row.grants.texts}
    fields.update(_times(row.created_at, row.expires_at))
    if row.tokens:
        fields["tokens"] = [
            {"id": t.id, "sha256": t.digest, **_times(t.created_at, t.expires_at)} for t in row.tokens
        ]
    if row.keys:
        fields["keys"] = [
            {"public": key.public, **_times(key.created_at, key.expires_at)} for key in row.keys
        ]
    return fields


def _times(created_at: int, expires_at: int | None) -> dict[str, str]:
    times = {"created_at": _time_text(created_at)}
    if expires_at is not None:
        times["expires_at"] = _time_text(expires_at)
    return times


def _unique(what: str, items: Iterable[tuple[_K, _V]]) -> dict[_K, _V]:
    table: dict[_K, _V] = {}
    for key, value in items:
        if key in table:
            raise ValueError(f"the {what} {key!r} is there twice")
        table[key] = value
    return table


def _earliest(*times: int | None) -> int | None:
    return min((time for time in times if time is not None), default=None)


def _unknown() -> KvError:
    return KvError(
        "unauthenticated",
        "this token is not known here; look whether it was mistyped or revoked",
        reason="unknown",
    )


def _over(how: str, name: str) -> KvError:
    return KvError("unauthenticated", f"this token of {name!r} has {how}; get another one", reason=how)
