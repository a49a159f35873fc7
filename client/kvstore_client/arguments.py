"""Arguments of callers, checked where they are passed, so that an error names the argument.

A value of the wrong type is a TypeError, one out of range the KvError ``bad_request``, and a malformed
address a ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit

from kvstore_core.access.login_file import CurveKeys, default_path, login_for
from kvstore_core.addresses import DEFAULT_CHANGES, DEFAULT_PORT, DEFAULT_REQUESTS
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_TTL_SECONDS

REQUIRED: Any = object()
"""The default of an argument that has none."""

DEFAULT_TIMEOUT = 5.0
DEFAULT_CONNECTIONS = 16
MAX_CONNECTIONS = 10_000
LONGEST_TIMEOUT = float(MAX_TTL_SECONDS)
"""Longer time-outs, even infinity, are shortened to this: the clocks of waits cannot count further."""


def seconds_of(name: str, value: Any, *, may_be_zero: bool = False) -> float:
    """A time-out: a number of seconds above 0, or also 0."""
    if type(value) is not float and (not isinstance(value, (int, float)) or isinstance(value, bool)):
        raise TypeError(f"{name} is a number of seconds, not {_kind(value)}")
    if not (value >= 0 if may_be_zero else value > 0):
        least = "of at least 0" if may_be_zero else "above 0"
        raise KvError("bad_request", f"{name} is a number of seconds {least}, not {value:g}")
    return min(float(value) if abs(value) < LONGEST_TIMEOUT else LONGEST_TIMEOUT, LONGEST_TIMEOUT)


def ttl_of(ttl: Any) -> Any:
    """A time to live in seconds; anything but a timedelta is left to the table's check."""
    return ttl.total_seconds() if isinstance(ttl, timedelta) else ttl


def value_of(value: Any) -> bytes:
    """The bytes of a value; text is written as UTF-8."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise KvError("bad_request", "the value is text with a lone surrogate; pass bytes") from error
    try:
        return bytes(memoryview(value))
    except TypeError:
        how = "json.dumps(value)" if isinstance(value, (dict, list, tuple)) else "str(value)"
        raise TypeError(
            f"a value is bytes or text, not {_kind(value)}; turn it into either first, with {how} for example"
        ) from None


def flag_of(name: str, value: Any) -> bool:
    """True or False, and nothing else that counts as either."""
    if type(value) is not bool:
        raise TypeError(f"{name} is True or False, not {_kind(value)}")
    return value


def function_of(name: str, value: Any) -> Any:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} is a function, not {_kind(value)}")
    return value


def path_of(name: str, value: Any) -> str:
    """The path of a file."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is the path of a file, not {_kind(value)}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise KvError("bad_request", f"{name} is the path of a file, and {text!r} is none")
    return text


def count_of(name: str, value: Any) -> int:
    """A whole number from 1 to 10,000."""
    if type(value) is not int:
        raise TypeError(f"{name} is a whole number, not {_kind(value)}")
    if not 1 <= value <= MAX_CONNECTIONS:
        raise KvError("bad_request", f"{name} is a whole number from 1 to {MAX_CONNECTIONS}, not {value}")
    return value


def texts_of(name: str, values: Any) -> list[str]:
    """A collection of texts; not one text, which would be a collection of its letters."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is a list of texts, not {_kind(values)}")
    texts = list(values)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} is a list of texts; {_kind(text)} is none")
    return texts


def must_be(name: str, value: Any, kind: type[Any], what: str) -> None:
    """Raise TypeError unless ``value`` is of this type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {what}, not {_kind(value)}")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def requests_of(endpoint: str | None) -> str:
    """The request endpoint: the given one, else ``KVSTORE_REQUESTS``, else the default."""
    return _endpoint("requests", endpoint, "KVSTORE_REQUESTS", DEFAULT_REQUESTS)


def changes_of(endpoint: str | None) -> str:
    """The changes endpoint: the given one, else ``KVSTORE_CHANGES``, else the default."""
    return _endpoint("changes", endpoint, "KVSTORE_CHANGES", DEFAULT_CHANGES)


def changes_beside(requests: str | None, changes: str | None) -> str:
    """The changes endpoint that belongs to the request endpoint ``requests``: the given one; else, where
    ``requests`` is given, the port above; else as :func:`changes_of`. Raises ``bad_request`` where there is
    no such port."""
    if changes is not None or requests is None:
        return changes_of(changes)
    host, _, port = requests.rpartition(":")
    if not port.isdecimal():
        raise KvError("bad_request", f"the changes of {requests} have no known address: pass 'changes'")
    return f"{host}:{int(port) + 1}"


def _endpoint(name: str, endpoint: str | None, variable: str, default: str) -> str:
    if endpoint is None:
        return os.environ.get(variable) or default
    if not isinstance(endpoint, str):
        raise TypeError(f"{name} is an endpoint such as {default!r}, not {_kind(endpoint)}")
    return endpoint


def keys_of(login: str | os.PathLike[str] | None, requests: str) -> CurveKeys | None:
    """The keys for the daemon at ``requests``: those in the login file ``login``, or, without one, in the
    user's (``KVSTORE_LOGIN_FILE``). None if it has none for this endpoint, or for any. Raises as
    :func:`kvstore_core.access.login_file.login_for` does, and ``bad_request`` if ``login`` is not there.
    """
    if login is None:
        return login_for(default_path(), requests).keys
    if not isinstance(login, (str, os.PathLike)):
        raise TypeError(f"login is the path of a login file, not {_kind(login)}")
    if not os.path.exists(login):  # noqa: PTH110 - pathlib raises for what can be no path
        raise KvError("bad_request", f"there is no login file {os.fsdecode(login)!r}")
    return login_for(login, requests).keys


class Address(NamedTuple):
    """A daemon's endpoints, and the options of a client."""

    requests: str
    changes: str
    options: dict[str, Any]


_FORM = "kvstore://HOST:PORT?changes=PORT&timeout=SECONDS&connections=N"


def address_of(url: str) -> Address:
    """The parts of ``url``, which is ``kvstore://HOST[:PORT]`` and, after ``?``, any of

    - ``changes``: the port of the changes, by default the one above PORT, or a whole endpoint;
    - ``timeout`` and ``connections``, as :class:`Client` takes them.

    PORT is 5555 by default. Raises ValueError for anything else.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is text such as 'kvstore://localhost:5555', not {_kind(url)}")
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL of the form {_FORM}: {error}") from error
    if parts.scheme in ("http", "https"):
        raise ValueError(f"{url!r} is an address for HTTP; a native client needs the daemon's, {_FORM}")
    if parts.scheme != "kvstore" or not parts.hostname or parts.path.strip("/") or parts.fragment:
        raise ValueError(f"{url!r} is not a URL of the form {_FORM}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL has no users and no passwords; keys are in the login file (docs/access.md)")
    port = DEFAULT_PORT if port is None else port
    changes = query.pop("changes", str(port + 1))
    if "://" not in changes:
        changes = f"tcp://{_host(parts)}:{changes}"
    return Address(f"tcp://{_host(parts)}:{port}", changes, _options(query))


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host


def _options(query: dict[str, str]) -> dict[str, Any]:
    kinds = {"timeout": float, "connections": int}
    options = {}
    for name, text in query.items():
        if name not in kinds:
            raise ValueError(
                f"a URL of a client has no option {name!r}; it takes: changes, timeout, connections"
            )
        try:
            options[name] = kinds[name](text)
        except ValueError:
            raise ValueError(f"{name}={text!r} in the URL is not a number") from None
    return options
