"""Who is let in now: the identities as the daemon last read them, and its keys. Loop's thread only."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from kvstore_core.access.changes import Change
from kvstore_core.access.identities import AccessTable, Identity
from kvstore_core.access.principal import THE_FACADE, UNRESTRICTED, Principal
from kvstore_core.errors import KvError
from kvstore_core.process.logging import announcer
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.access.access_files import (
    ADMIN,
    KEY_FILE,
    OPERATOR,
    TABLE_FILE,
    ServerKeys,
    Stamp,
    TableFile,
    edit,
    make_first_admin,
    operator_identity,
    read_table,
    server_keys,
    stamp_of,
    table_path,
)
from kvstore_daemon.settings import DaemonSettings

SETTLED_NS = 2_000_000_000
"""A file that was written before that is read once; a newer one again with each look, since file systems
have coarse clocks."""

UNSETTLED = Stamp(0, 0, 0)

log = logging.getLogger("kvstore.daemon")


class Authority:
    """The table of identities, and who has which key. While access is off it lets everybody do everything."""

    is_on = False

    def __init__(self) -> None:
        """Access is off."""
        self.table = AccessTable(())
        self.keys: ServerKeys | None = None

    def principal_of(self, user_id: str) -> Principal:  # noqa: ARG002 - nobody has to say who they are
        """Who has the CURVE public key ``user_id`` now; raises ``unauthenticated`` if nobody does."""
        return UNRESTRICTED

    def look(self) -> bool:
        """To be called every second: whether there is another table, or a credential has expired."""
        return False

    def change(self, change: Change, name: str) -> None:  # noqa: ARG002
        """Change the identity ``name``; the table is on disk, and holds, when this returns. Raises
        ``not_allowed`` where it is not the daemon's to change, and what ``change`` raises."""
        raise access_is_off()

    def status(self) -> dict[str, Any] | None:
        """What ``status`` says of access; None while it is off."""
        return None


def access_is_off() -> KvError:
    """The error for those who would see or change identities where there are none."""
    return KvError("not_allowed", "access is off, so there are no identities; start with --access required")


def open_authority(settings: DaemonSettings) -> Authority:
    """The authority that ``settings`` ask for. Makes what a first start needs, in the data folder, which must
    be there; raises KvError if its files cannot be used."""
    if settings.access == "off":
        _warn_of_unused(Path(settings.data))
        return Authority()
    files = (settings.access_file, settings.admin_token_file)
    return FileAuthority(Path(settings.data), *(None if name is None else Path(name) for name in files))


def _warn_of_unused(folder: Path) -> None:
    for name in (TABLE_FILE, KEY_FILE):
        if os.path.lexists(folder / name):
            log.warning("access is off: %s is not looked at, and everybody may do everything", folder / name)
            return


class FileAuthority(Authority):
    """The table is that of a file: the data folder's, or one of the operator's."""

    is_on = True

    def __init__(self, folder: Path, access_file: Path | None, admin_token_file: Path | None) -> None:
        """Make what is missing in the data folder, and read the rest; raises KvError if it cannot be used."""
        super().__init__()
        self._folder = folder
        self._access_file = access_file
        self._path = access_file or table_path(folder)
        self._operator = None if admin_token_file is None else operator_identity(admin_token_file)
        if access_file is None and self._operator is None:
            had_access = (folder / KEY_FILE).exists()
            made = make_first_admin(folder)
            if made is not None:
                if had_access:
                    log.warning(
                        "%s was gone, and with it all identities; bring it back, or make them again",
                        self._path,
                    )
                announcer.info("kvstore daemon: made the identity %r; its token is in %s", ADMIN, made)
        self.keys: ServerKeys = server_keys(folder)
        self._problem: str | None = None
        self._stamp: Stamp | None = None
        self._file: TableFile | None = None
        """What the file said when it was last good."""
        self._looked_at = now_ms()
        self._expires_at: int | None = None
        self._known: dict[str, Principal] = {}
        """By public key, those who have asked since there is this table; only keys of it are here."""
        self._load_first()

    def _load_first(self) -> None:
        try:
            self._hold(read_table(self._path, self.keys.signing_key))
        except FileNotFoundError:
            if self._access_file is not None:
                raise KvError("bad_request", f"--access-file {self._path}: there is no such file") from None
            self._take(AccessTable((), self.keys.signing_key))

    def _hold(self, file: TableFile) -> bool:
        """Let what is in the file hold; returns whether the table has changed."""
        self._settle(file.stamp)
        self._file, self._problem = file, None
        return self._take(file.table)

    def _take(self, table: AccessTable) -> bool:
        """Let a table hold if it says something else; returns whether it does."""
        table = self._with_operator(table)
        if table.tag == self.table.tag:
            return False
        self.table = table
        self._known = {self.keys.facade.public_key: THE_FACADE}
        self._expires_at = table.next_expiry(now_ms())
        return True

    def _with_operator(self, table: AccessTable) -> AccessTable:
        if self._operator is None:
            return table
        token = self._operator.tokens[0].id
        return table.with_rows(
            [*(_without_token(row, token) for row in table.identities.values()), self._operator]
        )

    def principal_of(self, user_id: str) -> Principal:
        known = self._known.get(user_id)
        if known is not None and (known.expires_at is None or now_ms() < known.expires_at):
            return known
        principal = self.table.of_public_key(user_id, now_ms())
        if principal is None:
            raise KvError("unauthenticated", "this key is not known here, or has expired; get another one")
        self._known[user_id] = principal
        return principal

    def look(self) -> bool:
        is_other = self._reload()
        now = now_ms()
        has_expired = self._expires_at is not None and now >= self._expires_at
        if is_other or has_expired or now < self._looked_at:
            self._expires_at = self.table.next_expiry(now)
        self._looked_at = now
        return is_other or has_expired

    def _reload(self) -> bool:
        """Read the file if it is another one; returns whether the table has changed."""
        stamp: Stamp | None = UNSETTLED
        try:
            stamp = stamp_of(self._path)
            if stamp == self._stamp:
                return False
            if stamp is None:
                raise FileNotFoundError
            file = read_table(self._path, self.keys.signing_key, self._file)
        except FileNotFoundError:
            self._stamp = self._file = None
            self._complain(f"{self._path} is gone: nobody is let in until it is there again")
            return self._take(AccessTable((), self.keys.signing_key))
        except KvError as error:
            self._complain(f"{error.message}; what it was before still holds")
            # that it may be read again changes no stamp
            self._settle(stamp if error.code == "bad_request" and stamp else UNSETTLED)
            return False
        if self._hold(file):
            log.info("took the identities in %s", self._path)
            return True
        return False

    def _settle(self, stamp: Stamp) -> None:
        """Note what was read, unless another change may still get the same time from the file system."""
        is_old = abs(time.time_ns() - stamp.mtime_ns) > SETTLED_NS
        self._stamp = stamp if is_old else UNSETTLED

    def _complain(self, problem: str) -> None:
        if problem != self._problem:
            log.error("%s", problem)
        self._problem = problem

    def change(self, change: Change, name: str) -> None:
        if self._access_file is not None:
            raise KvError("not_allowed", f"identities come from {self._access_file}: change them there")
        if name == OPERATOR:
            raise KvError("not_allowed", f"{OPERATOR!r} is whose token --admin-token-file names: change that")
        # what has expired meanwhile is for the caller of look to know
        self._hold(
            edit(self._folder, change, patience=0, signing_key=self.keys.signing_key, known=self._file)
        )

    def status(self) -> dict[str, Any]:
        return {
            "tag": self.table.tag,
            "identities": len(self.table.identities),
            "problem": self._problem,
            "is_gone": self._problem is not None and self._stamp is None,
        }


def _without_token(row: Identity, token: str) -> Identity:
    return row._replace(tokens=tuple(each for each in row.tokens if each.id != token))
