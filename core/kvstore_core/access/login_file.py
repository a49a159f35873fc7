"""The login file of a client: a credential for each service, by its address.

JSON: ``{"http://127.0.0.1:5000": {"token": "kv_…"}, "tcp://127.0.0.1:5555": {"server_key": …,
"public_key": …, "secret_key": …}}``, keys in Z85. ``*`` stands for any
address of that kind. Only its owner may read it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kvstore_core.errors import KvError

VARIABLE = "KVSTORE_LOGIN_FILE"
ANY = "*"


class CurveKeys(NamedTuple):
    """What a ZeroMQ client needs for CURVE: the server's public key, and its own two, in Z85."""

    server_key: str
    public_key: str
    secret_key: str


class Login(NamedTuple):
    """What the file has for one address; None for what it has not."""

    token: str | None = None
    keys: CurveKeys | None = None


def default_path() -> str | None:
    """Where the file is: at ``KVSTORE_LOGIN_FILE``, or ``kvstore/login.json`` in the user's folder of
    configurations; None for a user without a home."""
    if given := os.environ.get(VARIABLE):
        return given
    folder = os.environ.get("XDG_CONFIG_HOME", "")
    if folder.startswith("/"):
        return f"{folder}/kvstore/login.json"
    home = os.environ.get("HOME")
    return f"{home}/.config/kvstore/login.json" if home else None


def login_for(path: str | os.PathLike[str] | None, address: str) -> Login:
    """What the file at ``path`` has for exactly this scheme, host and port, or for any; nothing where there
    is no file. Raises ``not_allowed`` for one that others may read, ``bad_request`` for no login file.
    """
    entries = {} if path is None else read_entries(path)
    entry = entries.get(normalized(address))
    if entry is None:
        entry = entries.get(ANY, {})
    keys = [entry.get(name, "") for name in CurveKeys._fields]
    return Login(entry.get("token"), CurveKeys(*keys) if all(keys) else None)


def read_entries(path: str | os.PathLike[str]) -> dict[str, dict[str, str]]:
    """The whole file; empty where there is none. Raises as :func:`login_for` does."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is slow to import, and `kvstore get` reads this
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise KvError("not_allowed", f"others can read {path}, which holds secrets: chmod 600 {path}")
            text = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        # in a container that runs as another user, HOME is often a folder that this user may not enter
        if not os.path.exists(path):  # noqa: PTH110
            return {}
        raise KvError("not_allowed", f"cannot read {path}: {error.strerror}") from error
    import json  # most commands find no file

    try:
        entries = json.loads(text)
    except ValueError as error:
        raise KvError("bad_request", f"{path} is not a login file: {error}") from error
    if not _is_login(entries):
        raise KvError("bad_request", f"{path} is not a login file: it maps addresses to their credentials")
    return {normalized(address): entry for address, entry in entries.items()}


def encode_entries(entries: Mapping[str, Mapping[str, str]]) -> bytes:
    """The text of a login file."""
    import json

    return json.dumps(entries, indent=2).encode() + b"\n"


def normalized(address: str) -> str:
    """Scheme, host and port of an address, as the file names it: no path, no user, the port always there."""
    if address == ANY or address.startswith("ipc://"):
        return address
    parts = urlsplit(address)
    try:
        port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return address
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{f':{port}' if port else ''}"


def _is_login(entries: Any) -> bool:
    return type(entries) is dict and all(
        type(entry) is dict and all(type(value) is str for value in entry.values())
        for entry in entries.values()
    )
