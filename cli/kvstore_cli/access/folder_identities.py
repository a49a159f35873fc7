"""The identities in a data folder on this machine, whose daemon may be running or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kvstore_cli.access.identity_store import NEVER, Description, IdentityStore
from kvstore_core.access import changes
from kvstore_core.access.identities import AccessTable, StoredKey, StoredToken, described
from kvstore_core.access.principal import ANONYMOUS
from kvstore_core.access.tokens import NewToken, new_token
from kvstore_core.errors import KvError
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.access.access_files import (
    ADMIN_FILE,
    FACADE_FILE,
    edit,
    read_table,
    server_keys,
    table_path,
)
from kvstore_daemon.storage.offline.run_as_owner import become_owner


class FolderIdentities(IdentityStore):
    """Those in ``folder``. A running daemon takes each change within a second. ``notice`` is told what
    follows from a file that was not there before."""

    def __init__(self, folder: Path, notice: Callable[[str], None]) -> None:
        if not folder.is_dir():
            raise KvError("not_allowed", f"there is no data folder {folder}")
        self._name = folder
        self._folder = become_owner(folder)
        self._notice = notice
        # the store itself, or the mirror of one that a cluster keeps
        self._has_store = any((self._folder / kind / "data.mdb").exists() for kind in ("lmdb", "mirror"))
        if not self._has_store:
            notice(
                f"there is no store in {folder} yet; the identities in it are for a service that makes "
                "one there"
            )

    def everybody(self) -> list[Description]:
        try:
            table = read_table(table_path(self._folder)).table
        except FileNotFoundError:
            raise KvError("not_found", f"there are no identities in {self._name}: access is off") from None
        return [_shown(described(row)) for row in table.identities.values()]

    def described(self, name: str) -> Description:
        found = next((row for row in self.everybody() if row["name"] == name), None)
        if found is None:
            raise KvError("not_found", f"there is no identity {name!r}")
        return found

    def create(self, name: str, grants: Sequence[str], ends_in: int | None) -> Description:
        token, now = new_token(), now_ms()
        stored = StoredToken(token.id, token.digest, now, _end(now, ends_in))
        change = changes.put_identity(name, now, create=True, grants=grants, token=stored)
        return self._issued(name, token, change)

    def regrant(self, name: str, grant: Sequence[str], ungrant: Sequence[str]) -> Description:
        # who comes without a credential is made by what they are granted
        create = None if name == ANONYMOUS and grant else False
        change = changes.put_identity(name, now_ms(), create=create, grant=grant, ungrant=ungrant)
        return _shown(described(self._edit(change).identities[name]))

    def rotate(self, name: str, keep: int, ends_in: int | None) -> Description:
        token, now = new_token(), now_ms()
        end = None if ends_in == NEVER else _end(now, ends_in)
        stored = StoredToken(token.id, token.digest, now, end)
        change = changes.add_token(name, stored, now, keep_ms=keep, as_before=ends_in is None)
        return self._issued(name, token, change)

    def revoke(self, name: str) -> None:
        self._edit(changes.delete_identity(name))

    def revoke_token(self, name: str, token_id: str) -> None:
        self._edit(changes.delete_token(name, token_id))

    def revoke_key(self, name: str, public_key: str) -> None:
        self._edit(changes.delete_key(name, public_key))

    def add_key(self, name: str, grants: Sequence[str], public_key: str, ends_in: int | None) -> str:
        now = now_ms()
        key = StoredKey(public_key, now, _end(now, ends_in))
        if grants:
            change = changes.put_identity(name, now, create=True, grants=grants, key=key)
        else:
            change = changes.add_key(name, key, now)
        change(self._table())  # what is refused makes no keys: with them access would be on
        server_key = server_keys(self._folder).public_key  # then what can fail and changes nobody
        self._edit(change)
        return server_key

    def _table(self) -> AccessTable:
        try:
            return read_table(table_path(self._folder))[0]
        except FileNotFoundError:
            return AccessTable(())

    def _issued(self, name: str, token: NewToken, change: changes.Change) -> Description:
        row = _shown(described(self._edit(change).identities[name]))
        return {**row, "id": token.id, "token": token.text}

    def _edit(self, change: changes.Change) -> AccessTable:
        is_new = not table_path(self._folder).exists()
        had_access = (self._folder / ADMIN_FILE).exists() or (self._folder / FACADE_FILE).exists()
        table = edit(self._folder, change).table
        if is_new and self._has_store and not had_access:
            self._notice(
                f"{self._name / 'access.json'} was made: from its next start on the service asks everybody "
                "for a token or a key, unless it has --access off"
            )
        return table


def _shown(row: Description) -> Description:
    """A description with its times as over HTTP."""
    shown = dict(row)
    for name, value in row.items():
        if name.endswith("_at"):
            shown[name] = _text(value)
        elif name in ("tokens", "keys"):
            shown[name] = list(map(_shown, value))
    return shown


def _text(ms: int) -> str:
    moment = datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _end(now: int, ends_in: int | None) -> int | None:
    return None if ends_in is None else now + ends_in
