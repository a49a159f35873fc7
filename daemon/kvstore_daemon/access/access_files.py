"""The files of access in the data folder, each readable by its owner only and replaced as a whole.

``access.json`` has the identities and lets nobody in; ``access.key`` has the daemon's secrets; ``facade.key``
is the login file of the facade; ``admin.token`` is the first token of the identity ``admin``. None of them is
part of the store, so that no backup has them and no restore brings a revoked token back.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import zmq

from kvstore_core.access.changes import Change
from kvstore_core.access.grants import GrantSet
from kvstore_core.access.identities import MAX_IDENTITIES, AccessTable, Identity, StoredToken, is_public_key
from kvstore_core.access.login_file import ANY, CurveKeys, encode_entries
from kvstore_core.access.tokens import NewToken, digest_of, new_token, token_id
from kvstore_core.errors import KvError
from kvstore_core.process.files import permission_advice, reason, whole_file

TABLE_FILE = "access.json"
KEY_FILE = "access.key"
FACADE_FILE = "facade.key"
ADMIN_FILE = "admin.token"

ADMIN = "admin"
ADMIN_GRANTS = ("admin", "monitor", "all:*")

OPERATOR = "admin-token-file"
"""The identity whose token the operator keeps in ``--admin-token-file``. It is in no file of ours."""

MAX_TABLE_BYTES = 64 * 1024 * 1024
"""Of ``access.json``; ten thousand identities take three."""

MAX_TOKEN_FILE_BYTES = 4096

LOCK_SECONDS = 10.0
"""How long a command waits for another one that changes the identities."""


class ServerKeys(NamedTuple):
    """The secrets of the daemon: its CURVE keys (Z85), what derived credentials are signed with, and the keys
    with which the facade logs in."""

    public_key: str
    secret_key: str
    signing_key: bytes
    facade: CurveKeys


class Stamp(NamedTuple):
    """By what a changed file is known."""

    inode: int
    mtime_ns: int
    size: int


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def table_path(folder: Path) -> Path:
    """Where the identities of a data folder are."""
    return folder / TABLE_FILE


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file, None where there is none. Raises KvError where that cannot be found out."""
    try:
        return _stamp(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_ino, found.st_mtime_ns, found.st_size)


def read_table(path: Path) -> tuple[AccessTable, Stamp]:
    """The identities in ``path``, and the stamp of what was read. Raises FileNotFoundError where there is no
    file, and KvError, with a sentence that says what is wrong, where it cannot be used."""
    try:
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            data = file.read(MAX_TABLE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        if len(data) > MAX_TABLE_BYTES:
            raise ValueError(f"it has more than {MAX_TABLE_BYTES} bytes")
        return _decoded(data), stamp
    except ValueError as error:
        raise KvError("bad_request", f"{path} cannot be used: {error}") from error


def _decoded(data: bytes) -> AccessTable:
    table = AccessTable.decode(data)
    if OPERATOR in table.identities:
        raise ValueError(f"the name {OPERATOR!r} is kvstore's own")
    if len(table.identities) >= MAX_IDENTITIES:  # there must be room for that one
        raise ValueError(f"it has {len(table.identities)} identities; at most {MAX_IDENTITIES - 1}")
    return table


def edit(folder: Path, change: Change, *, patience: float = LOCK_SECONDS) -> AccessTable:
    """Replace the identities of a data folder by what ``change`` makes of them; returns the new table.

    It works beside a daemon, which takes the new table within a second. Of two at once each sees what the
    other did. Where there is no file yet, ``change`` gets a table without identities. What it raises leaves
    the file as it is; so does ``too_busy``, raised where the file is locked for ``patience`` seconds, and
    what :func:`read_table` raises. The new file is on disk when this returns.
    """
    path = table_path(folder)
    with _locked(folder, patience):
        try:
            old, _ = read_table(path)
        except FileNotFoundError:
            old = AccessTable(())
        new = change(old)
        if new is not old:
            data = new.encode()
            try:
                _decoded(data)  # whatever was changed, the next start can read it
            except ValueError as error:
                raise KvError("bad_request", str(error)) from error
            _write(path, data)
    return new


@contextmanager
def _locked(folder: Path, patience: float) -> Iterator[None]:
    # the folder and not the file, which is another one after each change
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(folder, error) from error
    try:
        _lock(descriptor, patience)
        _remove_drafts(folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise KvError("too_busy", "another command changes the identities; try again") from None
            time.sleep(0.01)
        else:
            return


def _remove_drafts(folder: Path) -> None:
    """Remove what a writer left that was killed: nobody else writes now."""
    for name in (TABLE_FILE, KEY_FILE, FACADE_FILE, ADMIN_FILE):
        for draft in folder.glob(f".{name}.*.part"):
            draft.unlink(missing_ok=True)


# ── the first start ──────────────────────────────────────────────────────────────────────────────


def make_first_admin(folder: Path) -> Path | None:
    """Make the identity ``admin`` where there is no table yet, and return the file with its token; None if
    there is a table."""
    with _locked(folder, LOCK_SECONDS):
        if table_path(folder).exists():
            return None
        token, path = new_token(), folder / ADMIN_FILE
        # first the token: one that opens nothing is better than an identity that nobody can be
        _write(path, f"{token.text}\n".encode())
        _write(table_path(folder), AccessTable((_admin(token),)).encode())
        return path


def _admin(token: NewToken) -> Identity:
    now = time.time_ns() // 1_000_000
    return Identity(ADMIN, GrantSet(ADMIN_GRANTS), now, tokens=(StoredToken(token.id, token.digest, now),))


def operator_identity(path: Path) -> Identity:
    """The identity that ``--admin-token-file`` names; of its token only the digest is kept. Raises KvError
    if the file has no token."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKEN_FILE_BYTES).decode(errors="replace").strip()
            changed_at = os.fstat(file.fileno()).st_mtime_ns // 1_000_000
    except OSError as error:
        raise KvError("bad_request", f"--admin-token-file {path}: {reason(error)}") from error
    found = token_id(text)
    if found is None:
        raise KvError(
            "bad_request",
            f"--admin-token-file {path} holds no token, or a mistyped one: it has the form kv_ID_SECRET",
        )
    token = StoredToken(found, digest_of(text), changed_at)
    return Identity(OPERATOR, GrantSet(ADMIN_GRANTS), changed_at, tokens=(token,))


# ── the daemon's secrets ─────────────────────────────────────────────────────────────────────────


def server_keys(folder: Path) -> ServerKeys:
    """The daemon's secrets, made where there are none yet; so is the facade's login file. Raises KvError if
    they cannot be used, or others can read them."""
    with _locked(folder, LOCK_SECONDS):
        path = folder / KEY_FILE
        if not path.exists():
            _write(path, json.dumps(_new_keys(), indent=2).encode() + b"\n")
        keys = _read_keys(path)
        facade = {ANY: keys.facade._asdict()}
        if _read_or_none(folder / FACADE_FILE) != (data := encode_entries(facade)):
            _write(folder / FACADE_FILE, data)
        return keys


def _new_keys() -> dict[str, str]:
    public, secret = zmq.curve_keypair()
    facade_public, facade_secret = zmq.curve_keypair()
    return {
        "public_key": public.decode(),
        "secret_key": secret.decode(),
        "signing_key": secrets.token_hex(32),
        "facade_public_key": facade_public.decode(),
        "facade_secret_key": facade_secret.decode(),
    }


def _read_keys(path: Path) -> ServerKeys:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise KvError("not_allowed", f"others can read {path}, which holds secrets: chmod 600 {path}")
            fields = json.loads(file.read())
        public, secret, facade_public, facade_secret = (
            _curve_key(fields[name])
            for name in ("public_key", "secret_key", "facade_public_key", "facade_secret_key")
        )
        signing_key = bytes.fromhex(fields["signing_key"])
        if len(signing_key) < 32:
            raise ValueError("the signing key is too short")
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvError(
            "bad_request",
            f"{path} cannot be used: it is not what the daemon wrote. Without it the daemon makes new keys, "
            "and every native client has to be given the new public key",
        ) from error
    return ServerKeys(public, secret, signing_key, CurveKeys(public, facade_public, facade_secret))


def _curve_key(text: Any) -> str:
    if not is_public_key(text):
        raise ValueError("not a key in Z85")
    return str(text)


def _read_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes) -> None:
    try:
        folder = path.parent.stat()
        with whole_file(path, replace=True) as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask
            if os.geteuid() == 0:  # a command of root's must not lock the daemon's user out
                os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
            file.write(data)
    except OSError as error:
        raise KvError("internal", f"{path} cannot be written: {reason(error)}") from error


def _unreadable(path: Path, error: OSError) -> KvError:
    if isinstance(error, PermissionError):
        return KvError("not_allowed", f"cannot read {path}: {permission_advice(path, 'u+rw', 'the daemon')}")
    return KvError("not_allowed", f"cannot read {path}: {reason(error)}")
