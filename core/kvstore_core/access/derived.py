"""Credentials that are derived from a token: ``kvd_STATEMENT.SIGNATURE``.

A statement names the token it comes from, says until when it holds, and to which grants it is narrowed. The
service signs it and keeps nothing. It is worth no more than its token: it ends with it, and gives nothing
that the token's identity is not granted at that moment. The session of a browser is one too; it holds the
digest of a second half that only the page knows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import NamedTuple

PREFIX = "kvd_"
MAX_SECONDS = 24 * 3600
MAX_DERIVED_GRANTS = 16
"""So that one is a line of a request's head."""

_PURPOSE = b"kvstore derived credential 1\0"


class Statement(NamedTuple):
    """What is signed. ``grants`` None: all of the token's but admin. ``half`` is the SHA-256, in hexadecimal,
    of the page's half of a session, empty for what is no session. ``expires_at`` is in milliseconds."""

    token: str
    expires_at: int
    grants: tuple[str, ...] | None = None
    half: str = ""


def sign(statement: Statement, key: bytes) -> str:
    """The text of a credential."""
    fields: dict[str, object] = {"t": statement.token, "e": statement.expires_at}
    if statement.grants is not None:
        fields["g"] = statement.grants
    if statement.half:
        fields["h"] = statement.half
    payload = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    return f"{PREFIX}{_encode(payload)}.{_encode(_mac(payload, key))}"


def verify(text: str, key: bytes) -> Statement | None:
    """The statement of a credential that :func:`sign` made with ``key``; None for anything else. Whether it
    has expired, and whether its token is good, is not looked at."""
    payload_text, dot, mac = text.removeprefix(PREFIX).partition(".")
    if not dot or not text.startswith(PREFIX):
        return None
    try:
        payload, given = _decode(payload_text), _decode(mac)
    except (binascii.Error, ValueError):
        return None
    if not hmac.compare_digest(given, _mac(payload, key)):
        return None
    fields = json.loads(payload)
    grants = fields.get("g")
    return Statement(fields["t"], fields["e"], None if grants is None else tuple(grants), fields.get("h", ""))


def half_digest(half: str) -> str:
    """What a statement holds of the page's half of a session."""
    return hashlib.sha256(half.encode()).hexdigest()


def _mac(payload: bytes, key: bytes) -> bytes:
    return hmac.digest(key, _PURPOSE + payload, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    raw = text.encode("ascii") + b"=" * (-len(text) % 4)
    data = base64.b64decode(raw, altchars=b"-_", validate=True)
    if _encode(data) != text:  # one credential has one text
        raise ValueError("not the shortest form")
    return data
