"""The identities of a daemon, written to its file as an operator would, and the keys that they have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import orjson
import zmq

from kvstore_core.access.grants import GrantSet
from kvstore_core.access.identities import AccessTable, Identity, StoredKey
from kvstore_core.access.login_file import CurveKeys

SERVER_KEY_OF_NOBODY = zmq.curve_keypair()[0].decode()


class KeyPair(NamedTuple):
    """A CURVE key, in Z85."""

    public: str
    secret: str


def new_key() -> KeyPair:
    """A key that nobody has."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


class Identities:
    """``access.json`` in the folder ``data``, which may not be there yet."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._rows: dict[str, Identity] = {}

    def add(self, name: str, *grants: str) -> KeyPair:
        """Let in a new identity with these grants; returns its key."""
        key = new_key()
        now = time.time_ns() // 1_000_000
        self._rows[name] = Identity(name, GrantSet(grants), now, keys=(StoredKey(key.public, now),))
        self.write()
        return key

    def grant(self, name: str, *grants: str) -> None:
        """Give an identity these grants instead of what it has."""
        self._rows[name] = self._rows[name]._replace(grants=GrantSet(grants))
        self.write()

    def end(self, name: str, at: int) -> None:
        """Let an identity expire at a time in milliseconds."""
        self._rows[name] = self._rows[name]._replace(expires_at=at)
        self.write()

    def remove(self, name: str) -> None:
        """Let an identity in no more."""
        del self._rows[name]
        self.write()

    def write(self) -> None:
        """Replace the file as an editor does."""
        self.data.mkdir(parents=True, exist_ok=True)
        new = self.data / "access.json.new"
        _write_secret(new, AccessTable(self._rows.values()).encode())
        new.rename(self.data / "access.json")

    @property
    def server_key(self) -> str:
        """The daemon's public key, once it has started."""
        key: str = orjson.loads((self.data / "facade.key").read_bytes())["*"]["server_key"]
        return key

    def keys(self, pair: KeyPair) -> CurveKeys:
        """What a client with this key needs."""
        return CurveKeys(self.server_key, *pair)

    @staticmethod
    def write_login(keys: CurveKeys, endpoint: str, path: Path) -> Path:
        """Write the login file of one who has these keys for an endpoint; returns its path."""
        _write_secret(path, orjson.dumps({endpoint: keys._asdict()}))
        return path


def _write_secret(path: Path, data: bytes) -> None:
    path.touch(0o600)
    path.write_bytes(data)
