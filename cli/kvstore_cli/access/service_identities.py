"""The identities of a service, asked over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from kvstore_cli.access.identity_store import NEVER, Description, IdentityStore
from kvstore_cli.http_client.client import Query, ServiceClient
from kvstore_core.media_types import JSON


class ServiceIdentities(IdentityStore):
    """Those of the service that is asked, which needs a token with the grant ``admin``."""

    def __init__(self, service: ServiceClient) -> None:
        self._service = service

    def everybody(self) -> list[Description]:
        found: list[Description] = self._ask("GET", "/v1/tokens")["identities"]
        return found

    def described(self, name: str) -> Description:
        return self._ask("GET", _path(name))

    def create(self, name: str, grants: Sequence[str], ends_in: int | None) -> Description:
        body = {"name": name, "grants": list(grants), **_for(ends_in)}
        return self._ask("POST", "/v1/tokens", body)

    def regrant(self, name: str, grant: Sequence[str], ungrant: Sequence[str]) -> Description:
        lists = {"grant": list(grant), "ungrant": list(ungrant)}
        return self._ask("PATCH", _path(name), {member: texts for member, texts in lists.items() if texts})

    def rotate(self, name: str, keep: int, ends_in: int | None) -> Description:
        query = [("keep", f"{keep}ms")]
        body = {"expires_at": None} if ends_in == NEVER else _for(ends_in)
        return self._ask("POST", f"{_path(name)}/rotate", body, query)

    def revoke(self, name: str) -> None:
        self._ask("DELETE", _path(name))

    def revoke_token(self, name: str, token_id: str) -> None:
        self._ask("DELETE", _path(name), query=[("id", token_id)])

    def revoke_key(self, name: str, public_key: str) -> None:
        self._ask("DELETE", _path(name), query=[("public_key", public_key)])

    def add_key(self, name: str, grants: Sequence[str], public_key: str, ends_in: int | None) -> str:
        body = {"public_key": public_key, **({"grants": list(grants)} if grants else {}), **_for(ends_in)}
        return str(self._ask("POST", f"{_path(name)}/keys", body)["server_key"])

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, query: Query = ()
    ) -> Description:
        import json

        sent = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": JSON}
        # a secret is shown once: what may have been done is not done again
        reply = self._service.request(method, path, query, body=sent, headers=headers, is_once=True)
        found: Description = reply.json()
        return found


def _path(name: str) -> str:
    return f"/v1/tokens/{quote(name, safe='')}"


def _for(ends_in: int | None) -> dict[str, str]:
    return {} if ends_in is None else {"for": f"{ends_in}ms"}
