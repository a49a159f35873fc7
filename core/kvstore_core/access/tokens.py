"""The form of tokens: ``kv_ID_SECRETCHECK``.

The id, 8 characters, is public: lists and logs show it. The secret is 32 random bytes, so a plain SHA-256 of
the token is all that has to be kept of it: there is nothing that a slow hash could make harder to guess. The
check, a CRC-32, finds mistyped tokens before anybody is asked. Only letters, digits and ``_``, so that a
double click selects all of it and no shell or URL needs quotes.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from zlib import crc32

TOKEN_PATTERN = re.compile(r"kv_([0-9a-hjkmnp-tv-z]{8})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})", re.ASCII)

_LOOKS_SECRET = re.compile(
    r"((?:k|%6b)(?:v|%76)(?:_|%5f)(?:[0-9a-z]|%[0-9a-f]{2}){8}(?:_|%5f)|(?:k|%6b)(?:v|%76)(?:d|%64)(?:_|%5f))[0-9A-Za-z_%.-]+",
    re.ASCII | re.IGNORECASE,
)

_ID_CHARACTERS = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no letters that look like others."""

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class NewToken(NamedTuple):
    """A token just made. Only ``id`` and ``digest`` may be kept."""

    text: str
    id: str
    digest: str


def new_token() -> NewToken:
    """A token that nobody has."""
    import secrets  # slow to import, and whoever only sends a token needs none

    token_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(8))
    stem = f"kv_{token_id}_{_base62(secrets.randbits(256), 43)}"
    text = stem + _check_of(stem)
    return NewToken(text, token_id, digest_of(text))


def digest_of(text: str) -> str:
    """What is kept of a token: its SHA-256 in hexadecimal."""
    import hashlib  # as above

    return hashlib.sha256(text.encode()).hexdigest()


def token_id(text: str) -> str | None:
    """The id of a token; None for a text that is none, or was mistyped."""
    match = TOKEN_PATTERN.fullmatch(text)
    return match[1] if match is not None and _check_of(text[:-6]) == match[3] else None


def without_secrets(text: str) -> str:
    """``text`` with everything that looks like a token, or a credential derived from one, cut off after its
    id; also where characters of it are percent-encoded, or its end is missing."""
    return _LOOKS_SECRET.sub(r"\1...", text)


def is_token_id(value: object) -> bool:
    """Whether ``value`` may be a token's id."""
    return type(value) is str and len(value) == 8 and all(letter in _ID_CHARACTERS for letter in value)


def is_digest(value: object) -> bool:
    """Whether ``value`` may be a token's digest."""
    return type(value) is str and re.fullmatch("[0-9a-f]{64}", value) is not None


def _check_of(stem: str) -> str:
    return _base62(crc32(stem.encode()), 6)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
