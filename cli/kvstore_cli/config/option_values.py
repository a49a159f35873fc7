"""Sizes, durations, addresses and paths as people write them: text to base units and back.

Every ``parse_*`` takes what a flag or a variable holds (text) or what a TOML file holds (text, number,
truth value or list) and raises ValueError with a sentence that says what was expected.
"""

from __future__ import annotations

import re
from typing import Any

from kvstore_core import units
from kvstore_core.units import BYTES, MILLISECONDS, split_duration


def parse_size(given: Any) -> int:
    """Bytes. A bare letter means powers of 1024 and ``kB`` powers of 1000, as in coreutils."""
    return units.parse_size(_text_or_number(given))


def show_size(size: int) -> str:
    """The shortest exact way to write ``size``: ``1 MiB``, ``1000``."""
    for unit, length in BYTES.items():
        if size and size % length == 0:
            return f"{size // length} {unit}"
    return str(size)


def parse_duration(given: Any) -> int:
    """Milliseconds; a number without a unit counts seconds."""
    try:
        number, unit = split_duration(_text_or_number(given))
    except ValueError as error:
        example = "write seconds, or for example 500ms, 30s, 5m, 2h, 7d"
        raise ValueError(f"{given!r} is not a duration; {example}") from error
    return units.whole(number, unit, given, "milliseconds")


def show_duration(ms: int) -> str:
    """The shortest exact way to write ``ms``: ``7d``, ``1500ms``, ``0s``."""
    for unit in ("d", "h", "m", "s"):
        if ms % MILLISECONDS[unit] == 0:
            return f"{ms // MILLISECONDS[unit]}{unit}"
    return f"{ms}ms"


def parse_flag(given: Any) -> bool:
    """Truth, as a TOML boolean or as one of the usual words."""
    if isinstance(given, bool):
        return given
    try:
        return units.parse_flag(str(given))
    except ValueError as error:
        raise ValueError(f"{given!r} is neither true nor false; write 1 or 0") from error


def parse_address(given: Any) -> str:
    """``HOST:PORT`` for listening on; the host is a name, an IPv4 or a bracketed IPv6 address."""
    text = _text(given)
    host, colon, port = text.rpartition(":")
    if not colon or not _is_port(port) or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise ValueError(f"{text!r} is not HOST:PORT; write for example 127.0.0.1:5000 or [::1]:5000")
    return text


def parse_endpoint(given: Any) -> str:
    """A ZeroMQ address: ``tcp://HOST:PORT`` or ``ipc://PATH``."""
    text = _text(given)
    scheme, _, rest = text.partition("://")
    host, _, port = rest.rpartition(":")
    if (scheme == "ipc" and rest) or (scheme == "tcp" and host and _is_port(port)):
        return text
    raise ValueError(f"{text!r} is not an endpoint; write tcp://HOST:PORT or ipc://PATH")


def connectable(address: str) -> str:
    """Where this machine connects to what listens on ``address``, an endpoint or a URL whose host may mean
    all addresses."""
    everywhere = re.sub(r"^(tcp|https?)://(?:\*|0\.0\.0\.0)?:", r"\1://127.0.0.1:", address)
    return everywhere.replace("//[::]:", "//[::1]:")


def parse_url(given: Any) -> str:
    """The service's address, ``http://`` or ``https://``, without a slash at the end."""
    from urllib.parse import urlsplit

    text = _text(given)
    refusal = ValueError(f"{text!r} is not a service's address; write for example http://127.0.0.1:5000")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise refusal from error
    if (
        parts.scheme not in ("http", "https")
        or not _is_host(parts.hostname)
        or parts.query
        or parts.fragment
        or port == 0
    ):
        raise refusal
    if parts.username is not None:
        raise ValueError("an address with a user name is not taken: the service does not know users")
    return text.rstrip("/")


def _is_host(host: str | None) -> bool:
    """Whether a resolver can be asked for it. Names of other alphabets are asked for as IDNA."""
    if not host:
        return False
    try:
        name = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return False
    return all(0 < len(label) < 64 for label in name.removesuffix(".").split("."))


def parse_origins(given: Any) -> tuple[str, ...]:
    """Origins for CORS: a TOML list, or text with commas between them; ``*`` is any origin."""
    origins = tuple(origin.rstrip("/") for origin in _listed(given))
    what = "an origin; write for example https://app.example.org, each in full, or * alone for any"
    return _each_like(r"https?://[^/\s*]+", origins, what)


def parse_hosts(given: Any) -> tuple[str, ...]:
    """Host names: a TOML list, or text with commas between them; ``*`` is any name."""
    names = tuple(name.strip("[]").rstrip(".").lower() for name in _listed(given))
    what = "a host's name; write for example kv.example.org, without a port"
    return _each_like(r"[a-z0-9._-]+|[0-9a-f:.]+", names, what)


def parse_prefixes(given: Any) -> tuple[str, ...]:
    """Prefixes of keys: a list, or text with commas between them."""
    from kvstore_core.errors import KvError
    from kvstore_core.model import check_key  # only servers need it

    prefixes = [_text(part) for part in given] if isinstance(given, list) else _listed(given)
    for prefix in prefixes:
        if not prefix:
            raise ValueError(
                "an empty prefix is that of all keys; write that of the cache, for example cache/"
            )
        try:
            check_key(prefix)
        except KvError as error:
            raise ValueError(f"{prefix!r} is not what a key begins with: {error.message}") from error
    return tuple(dict.fromkeys(prefixes))


def _listed(given: Any) -> list[str]:
    parts = given if isinstance(given, list) else _text(given).split(",")
    return [_text(part).strip() for part in parts if part]


def _each_like(pattern: str, parts: tuple[str, ...], what: str) -> tuple[str, ...]:
    for part in parts:
        if part != "*" and not re.fullmatch(pattern, part):
            raise ValueError(f"{part!r} is not {what}")
    return parts


def parse_path(given: Any) -> str:
    """An absolute path, of one that may begin with ``~``."""
    # Absolute at once: the processes that serve starts must not depend on where they were started.
    # pathlib is not needed to run `kvstore get`, whose time is spent on imports.
    from pathlib import Path

    path = Path(_text(given))
    try:
        return str(path.expanduser().absolute())
    except (RuntimeError, OSError) as error:
        why = "you have no home folder" if isinstance(error, RuntimeError) else "the working folder is gone"
        raise ValueError(f"{given!r} leads nowhere, since {why}; write a path that begins with /") from error


def parse_path_or_stdin(given: Any) -> str:
    """A path as :func:`parse_path` makes it, or ``-`` as it is."""
    return "-" if given == "-" else parse_path(given)


def parse_engine(given: Any) -> str:
    """A storage engine's address, which begins with a scheme."""
    text = _text(given)
    if ":" not in text:
        raise ValueError(f"{text!r} is not an engine's address; write for example lmdb:")
    return text


def is_local(address: str) -> bool:
    """Whether listening on ``address`` (HOST:PORT or an endpoint) is out of other machines' reach."""
    from kvstore_core.addresses import is_loopback  # only servers need it

    scheme, _, rest = address.rpartition("://")
    return scheme == "ipc" or is_loopback(rest.rpartition(":")[0].strip("[]"))


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{given!r} is not text; put it in quotes")
    return given


def _text_or_number(given: Any) -> str:
    return "" if isinstance(given, bool) else str(given).strip()


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= 65535
