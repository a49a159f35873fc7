"""The files of access in the data folder, each readable by its owner only and replaced as a whole.

``access.json`` has the identities and lets nobody in; ``access.key`` has the daemon's secrets; ``facade.key``
is the login file of the facade; ``admin.token`` is the first token of the identity ``admin``. None of them is
part of the store, so that no backup has them and no restore brings a revoked token back.
"""

from __future__ import annotations

import fcntl
import hashlib
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
from kvstore_core.wall_clock import now_ms

TABLE_FILE = "access.json"
KEY_FILE = "access.key"
FACADE_FILE = "facade.key"
ADMIN_FILE = "admin.token"
LOCK_FILE = "access.lock"

ADMIN = "admin"
ADMIN_GRANTS = ("admin", "monitor", "all:*")

OPERATOR = "admin-token-file"
"""The identity whose token the operator keeps in ``--admin-token-file``. It is in no file of ours."""

MAX_TABLE_BYTES = 4 * 1024 * 1024
"""Of ``access.json``; two thousand identities with a token and three grants take one. What it costs to read
goes by this too (:data:`MAX_IDENTITIES`). Written out with indents, a file that has none may be three times
as long, and still fits into the reply to the op ``access``."""

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


class TableFile(NamedTuple):
    """A table, and the file that has it: its stamp, and the SHA-256 of its text."""

    table: AccessTable
    stamp: Stamp
    digest: bytes


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


def read_table(path: Path, signing_key: bytes = b"", known: TableFile | None = None) -> TableFile:
    """The identities in ``path``, which sign with ``signing_key``; the table of ``known`` if the file says
    what that one said. Raises FileNotFoundError where there is no file, and KvError, with a sentence that
    says what is wrong, where it cannot be used."""
    try:
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            data = file.read(MAX_TABLE_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    digest = hashlib.sha256(data).digest()
    if known is not None and known.digest == digest:
        return known._replace(stamp=stamp)
    try:
        _check_size(data)
        return TableFile(_decoded(data, signing_key), stamp, digest)
    except ValueError as error:
        raise KvError("bad_request", f"{path} cannot be used: {error}") from error


def _check_size(data: bytes) -> None:
    if len(data) > MAX_TABLE_BYTES:
        raise ValueError(f"{TABLE_FILE} has more than {MAX_TABLE_BYTES} bytes: remove identities, or grants")


def _decoded(data: bytes, signing_key: bytes = b"") -> AccessTable:
    table = AccessTable.decode(data, signing_key)
    if OPERATOR in table.identities:
        raise ValueError(f"the name {OPERATOR!r} is kvstore's own")
    _check_number(table)
    return table


def _check_number(table: AccessTable) -> None:
    if len(table.identities) >= MAX_IDENTITIES:  # there must be room for the operator
        raise ValueError(f"it has {len(table.identities)} identities; at most {MAX_IDENTITIES - 1}")


def edit(
    folder: Path,
    change: Change,
    *,
    patience: float = LOCK_SECONDS,
    signing_key: bytes = b"",
    known: TableFile | None = None,
) -> TableFile:
    """Replace the identities of a data folder by what ``change`` makes of them; returns the new table.

    It works beside a daemon, which takes the new table within a second. Of two at once each sees what the
    other did. Where there is no file yet, ``change`` gets a table without identities. What it raises leaves
    the file as it is; so do ``bad_request`` for a table that no start could read, ``too_busy``, raised where
    the file is locked for ``patience`` seconds, and what :func:`read_table` raises. The new file is on disk
    when this returns.
    """
    path = table_path(folder)
    with _locked(folder, patience):
        try:
            old = read_table(path, signing_key, known)
        except FileNotFoundError:
            old = TableFile(AccessTable((), signing_key), Stamp(0, 0, 0), b"")
        new = change(old.table)
        if new is old.table:
            return old
        data = new.encode()
        try:
            _check_readable(new, data, old.table)
        except ValueError as error:
            raise KvError("bad_request", str(error)) from error
        return TableFile(new, _write(path, data), hashlib.sha256(data).digest())


def _check_readable(new: AccessTable, data: bytes, old: AccessTable) -> None:
    """Raise ValueError if the next start could not read ``data``, which is ``new``. Only what is not in
    ``old``, which was read, is read for that."""
    before = old.identities
    rows = [row for row in new.identities.values() if before.get(row.name) is not row]
    _decoded(AccessTable(rows).encode())
    _check_number(new)
    _check_size(data)


@contextmanager
def _locked(folder: Path, patience: float) -> Iterator[None]:
    # not the table, which is another file after each change, and not the folder, which others may open: to
    # lock a file is enough to be able to read it
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unreadable(path if os.path.lexists(path) else folder, error) from error
    try:
        try:
            _keep_private(descriptor, folder)
        except OSError as error:
            raise _unreadable(path, error) from error
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
    now = now_ms()
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


def _write(path: Path, data: bytes) -> Stamp:
    try:
        with whole_file(path, replace=True) as file:
            _keep_private(file.fileno(), path.parent)
            file.write(data)
            file.flush()
            return _stamp(os.fstat(file.fileno()))
    except OSError as error:
        raise KvError("internal", f"{path} cannot be written: {reason(error)}") from error


def _keep_private(descriptor: int, folder: Path) -> None:
    """Let the file be that of the folder's owner alone."""
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != 0o600:
        os.fchmod(descriptor, 0o600)  # whatever the umask
    if os.geteuid() == 0:  # a command of root's must not lock the daemon's user out
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _unreadable(path: Path, error: OSError) -> KvError:
    if isinstance(error, PermissionError):
        return KvError("not_allowed", f"cannot read {path}: {permission_advice(path, 'u+rw', 'the daemon')}")
    return KvError("not_allowed", f"cannot read {path}: {reason(error)}")
