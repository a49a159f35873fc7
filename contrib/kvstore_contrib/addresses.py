"""Where a backend keeps its keys: a service, and a prefix in it, as one URL."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from kvstore_client import Client, Subscription
from kvstore_client.arguments import DEFAULT_TIMEOUT
from kvstore_core.errors import InvalidKey, KvError
from kvstore_core.model import check_key

_FORM = "kvstore://HOST[:PORT]/PREFIX[?login=FILE&changes=PORT&timeout=SECONDS&connections=NUMBER]"


class BackendPlace(NamedTuple):
    """A service, and the prefix of all keys that a backend has in it."""

    client: Client
    prefix: str
    url: str
    login: str | None
    timeout: float
    """Of the client, in seconds."""

    def subscribe(self, **options: Any) -> Subscription:
        """A new subscription to the service; ``options`` are those of :class:`Subscription`."""
        return Subscription.from_url(self.url, login=self.login, **options)


def place_of(url: str, default_prefix: str) -> BackendPlace:
    """What ``kvstore://HOST[:PORT]/PREFIX[?login=&changes=&timeout=&connections=]`` names.

    The prefix ends with ``/``, which need not be written; without one it is ``default_prefix``. ``login`` is
    the path of a login file. Nothing is sent yet. Raises ValueError for another kind of URL, TypeError for
    what is no text.
    """
    if not isinstance(url, str):
        raise TypeError(f"the address is one text, not a {type(url).__name__}: {_FORM}")
    try:
        return _parsed(url, default_prefix)
    except (ValueError, KvError) as error:
        shown = re.sub("//[^/]*@", "//…@", url)  # what is before it may be a password
        raise ValueError(f"{shown!r} is not an address of a backend, {_FORM}: {error}") from error


def _parsed(url: str, default_prefix: str) -> BackendPlace:
    parts = urlsplit(url)
    name = unquote(parts.path.strip("/"), errors="strict")
    prefix = f"{name}/" if name else default_prefix
    check_key(prefix)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    login = options.pop("login", None)
    service = urlunsplit(parts._replace(path="", query=urlencode(options, safe="/:")))
    client = _client_of(service, login)
    timeout = float(options.get("timeout", DEFAULT_TIMEOUT))
    return BackendPlace(client, prefix, service, login, timeout)


@cache
def _client_of(url: str, login: str | None) -> Client:
    """One for the whole process: frameworks make backends for each thread, and close few of them."""
    return Client.from_url(url, login=login)


def key_below(prefix: str, name: str) -> str:
    """The key for ``name``, which frameworks let be any text: one that no key may be, since it is too
    long, holds NUL or is not UTF-8, is replaced by its SHA-256."""
    key = prefix + name
    try:
        check_key(key)
    except InvalidKey:
        return f"{prefix}sha256-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()}"
    return key
