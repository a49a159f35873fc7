"""The login file, as ``kvstore login``, ``logout`` and ``key`` write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvstore_cli.config.resolve import ConfigurationError
from kvstore_cli.files.output_file import written_whole
from kvstore_core.access.login_file import VARIABLE, default_path, encode_entries, normalized, read_entries


def login_path() -> Path:
    """Where the login file is; ConfigurationError for a user without a home folder."""
    path = default_path()
    if path is None:
        raise ConfigurationError(f"there is no home folder for the login file; name one with {VARIABLE}")
    return Path(path)


def store_token(path: Path, address: str, token: str) -> None:
    """Keep a token for one address. The file is replaced as a whole, and only its owner can read it. Raises
    ``not_allowed`` if others can read what is there, ``bad_request`` if that is no login file."""
    entries = read_entries(path)
    entries.setdefault(normalized(address), {})["token"] = token
    _write(path, entries)


def remove_login(path: Path, address: str) -> bool:
    """Forget the token for one address; whether there was one. Raises as :func:`store_token` does."""
    entries = read_entries(path)
    entry = entries.get(normalized(address), {})
    if "token" not in entry:
        return False
    del entry["token"]
    _write(path, {name: fields for name, fields in entries.items() if fields})
    return True


def _write(path: Path, entries: Mapping[str, Mapping[str, str]]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with written_whole(path, replace=True) as file:
        file.write(encode_entries(entries))
