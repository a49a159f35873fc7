"""``/v1/tokens``: identities, what they may do, and what they come in by.

The secret of a token is made here, shown once in the answer, and kept by nobody: the daemon gets its digest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon

from kvstore_core.access.changes import NO_END
from kvstore_core.access.grants import GrantSet
from kvstore_core.access.principal import ANONYMOUS
from kvstore_core.access.tokens import new_token
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_MOMENT, MAX_REPEATED
from kvstore_core.media_types import JSON
from kvstore_core.wall_clock import now_ms
from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.bodies import (
    read_body,
    read_json,
    refuse_body,
    require_type,
    send_fresh_json,
    send_json,
)
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.preconditions import refuse_conditions, refuse_idempotency_key
from kvstore_http.protocol.query_params import (
    EXPIRES_AT,
    KEEP,
    PUBLIC_KEY,
    TOKEN_ID,
    TTL,
    Parameter,
    read_query,
)

Description = dict[str, Any]


class Identities:
    """The identities as the daemon has them. After a change ``renew`` is called, so that whoever made it
    finds that it holds."""

    def __init__(self, daemon: DaemonClient, renew: Callable[[], None]) -> None:
        self._daemon = daemon
        self._renew = renew

    def everybody(self, req: falcon.Request) -> list[Description]:
        """All of them."""
        found = self._daemon.call({"op": "identities"}, who=req.env[WHO])
        return [_shown(row) for row in found["identities"]]

    def change(self, req: falcon.Request, op: str, name: str, **fields: Any) -> Description:
        """The identity after an operation on it; fields that are None are left out."""
        given = {field: value for field, value in fields.items() if value is not None}
        found = self._daemon.call({"op": op, "name": name, **given}, who=req.env[WHO])
        self._renew()
        return _shown(found) if "name" in found else {"name": name, **found}


class TokensResource:
    """``/v1/tokens``."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        send_fresh_json(req, resp, {"identities": self._identities.everybody(req)})

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Make an identity, which must not be there yet, with a token."""
        read_query(req.env, routes.NOTHING)
        body = _body(req, "name", "grants", "for", "expires_at")
        token, name = new_token(), body.get("name")
        if type(name) is not str:
            raise KvError("bad_request", "'name' must be a text: what the identity is called")
        fields = {"id": token.id, "digest": token.digest, "credential_expires_at": end_of(body, now_ms())}
        row = self._identities.change(
            req, "identity_put", name, create=True, grants=_grants(body, "grants"), **fields
        )
        _send_secret(resp, {**row, "id": token.id, "token": token.text})


class TokenResource:
    """``/v1/tokens/{name}``."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def on_get(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        read_query(req.env, routes.NOTHING)
        found = next((row for row in self._identities.everybody(req) if row["name"] == name), None)
        if found is None:
            raise KvError("not_found", f"there is no identity {name[:MAX_REPEATED]!r}")
        send_fresh_json(req, resp, found)

    def on_patch(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Change grants and the end of an identity, all in one."""
        read_query(req.env, routes.NOTHING)
        body = _body(req, "grants", "grant", "ungrant", "for", "expires_at")
        lists = {each: _grants(body, each) for each in ("grants", "grant", "ungrant") if each in body}
        end = end_of(body, now_ms())
        if not lists and end is None:
            raise KvError(
                "bad_request", "give what is to be changed: grant, ungrant, grants, for, expires_at"
            )
        # who comes without a credential is made by what they are granted
        create = None if name == ANONYMOUS and "ungrant" not in lists else False
        row = self._identities.change(req, "identity_put", name, create=create, expires_at=end, **lists)
        send_json(resp, row)

    def on_delete(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Revoke the identity, or one thing that it comes in by."""
        query = read_query(req.env, routes.REVOKE)
        _refuse_promises(req)
        refuse_body(req.env)
        token, key = query.get(TOKEN_ID), query.get(PUBLIC_KEY)
        if token is not None and key is not None:
            raise KvError("bad_request", "id and public_key exclude each other", parameter="id")
        if token is not None:
            row = self._identities.change(req, "token_delete", name, id=token)
        elif key is not None:
            row = self._identities.change(req, "key_delete", name, public_key=key)
        else:
            row = self._identities.change(req, "identity_delete", name)
        send_json(resp, row)


class RotateResource:
    """``/v1/tokens/{name}/rotate``."""

    def __init__(self, identities: Identities) -> None:
        self._identities = identities

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        keep = read_query(req.env, routes.ROTATE).get(KEEP) or 0
        body = _body(req, "for", "expires_at", may_be_empty=True)
        token, end = new_token(), end_of(body, now_ms())
        fields = {"id": token.id, "digest": token.digest, "expires_at": end, "keep": keep}
        row = self._identities.change(req, "token_add", name, **fields)
        _send_secret(resp, {**row, "id": token.id, "token": token.text})


class KeysResource:
    """``/v1/tokens/{name}/keys``. The secret key never leaves its client."""

    def __init__(self, identities: Identities, server_key: str) -> None:
        self._identities = identities
        self._server_key = server_key

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Add a key; with grants the identity is made, and must not be there yet."""
        read_query(req.env, routes.NOTHING)
        body = _body(req, "public_key", "grants", "for", "expires_at")
        key, end = body.get("public_key"), end_of(body, now_ms())
        if type(key) is not str:
            raise KvError("bad_request", f"'public_key' must be {PUBLIC_KEY.must_be}")
        if "grants" in body:
            grants = _grants(body, "grants")
            fields = {"public_key": key, "create": True, "grants": grants, "credential_expires_at": end}
            row = self._identities.change(req, "identity_put", name, **fields)
        else:
            row = self._identities.change(req, "key_add", name, public_key=key, expires_at=end)
        resp.status = "201 Created"
        send_json(resp, {**row, "server_key": self._server_key})


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


def members(body: Any, *known: str) -> dict[str, Any]:
    """The members of a JSON object; raises ``bad_request`` for any that is not ``known``."""
    if type(body) is not dict:
        raise KvError("bad_request", f"the body must be a JSON object with some of: {', '.join(known)}")
    unknown = sorted(body.keys() - set(known))
    if unknown:
        raise KvError("bad_request", f"unknown members: {', '.join(unknown)}; known: {', '.join(known)}")
    return body


def texts(body: dict[str, Any], name: str) -> list[str]:
    """A member that is a list of texts; raises ``bad_request``."""
    value = body.get(name)
    if type(value) is not list or not all(type(text) is str for text in value):
        raise KvError("bad_request", f"'{name}' must be a list of texts")
    return value


def end_of(body: dict[str, Any], now: int) -> int | None:
    """The end that ``for`` or ``expires_at`` gives, in milliseconds since the epoch; ``NO_END`` where that is
    null, None where there is neither. Raises ``bad_request``."""
    if "for" in body and "expires_at" in body:
        raise KvError("bad_request", "for and expires_at exclude each other")
    if body.get("expires_at", "") is None:
        return NO_END
    if "expires_at" in body:
        moment: int = _read(EXPIRES_AT, "expires_at", body["expires_at"])
        return moment
    if "for" not in body:
        return None
    seconds: float = _read(TTL, "for", body["for"])
    return min(now + round(seconds * 1000), MAX_MOMENT)


def _read(parameter: Parameter[Any], name: str, value: Any) -> Any:
    if type(value) in (int, float) and parameter is TTL:
        value = str(value)
    if type(value) is not str:
        raise KvError("bad_request", f"'{name}' must be {parameter.must_be}")
    try:
        return parameter.parse(value)
    except ValueError as error:
        raise KvError("bad_request", f"'{name}' must be {parameter.must_be}, not {value[:64]!r}") from error


def _body(req: falcon.Request, *known: str, may_be_empty: bool = False) -> dict[str, Any]:
    _refuse_promises(req)
    if may_be_empty and not req.env.get("CONTENT_TYPE") and not read_body(req.env):
        return {}
    require_type(req.env, JSON)
    return members(read_json(req.env), *known)


def _refuse_promises(req: falcon.Request) -> None:
    refuse_conditions(req.env, "an identity has no revision")
    refuse_idempotency_key(req.env, "a secret is shown only once")


def _grants(body: dict[str, Any], name: str) -> list[str]:
    grants = texts(body, name)
    try:
        GrantSet(grants)
    except ValueError as error:
        raise KvError("bad_request", str(error)) from error
    return grants


def _send_secret(resp: falcon.Response, body: dict[str, Any]) -> None:
    resp.status = "201 Created"
    resp.set_header("cache-control", "no-store")
    send_json(resp, body)


def _shown(row: Any) -> Any:
    """An identity with its times as texts."""
    if type(row) is list:
        return list(map(_shown, row))
    if type(row) is not dict:
        return row
    times = {name: timestamp(row[name]) for name in ("created_at", "expires_at") if name in row}
    return {**{name: _shown(value) for name, value in row.items()}, **times}
