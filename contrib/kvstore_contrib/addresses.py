"""Where a backend keeps its keys: a service, and a prefix in it, as one URL."""

from __future__ import annotations

import hashlib
from functools import cache
from urllib.parse import unquote, urlsplit, urlunsplit

from kvstore_client import Client
from kvstore_core.errors import InvalidKey
from kvstore_core.model import check_key


def open_place(url: str, default_prefix: str) -> tuple[Client, str]:
    """A client, and the prefix, of ``kvstore://HOST[:PORT]/PREFIX[?changes=&timeout=&connections=]``.

    The prefix ends with ``/``, which need not be written; without one it is ``default_prefix``. Nothing is
    sent yet. Raises ValueError for another kind of URL.
    """
    parts = urlsplit(url)
    prefix = unquote(parts.path.strip("/"))
    return _client_of(urlunsplit(parts._replace(path=""))), f"{prefix}/" if prefix else default_prefix


@cache
def _client_of(url: str) -> Client:
    """One for the whole process: frameworks make backends for each thread, and close few of them."""
    return Client.from_url(url)


def key_below(prefix: str, name: str) -> str:
    """The key for ``name``, which frameworks let be any text: one that no key may be, since it is too
    long, holds NUL or is not UTF-8, is replaced by its SHA-256."""
    key = prefix + name
    try:
        check_key(key)
    except InvalidKey:
        return f"{prefix}sha256-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()}"
    return key
