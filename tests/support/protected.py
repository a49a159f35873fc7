"""A service with access on: making identities, and coming in as one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import zmq

from kvstore_core.access.login_file import CurveKeys, login_for
from kvstore_core.access.tokens import new_token
from kvstore_core.curve import apply_curve
from support.servers import Daemon, Facade, wait_until
from support.session import call
from support.wire import PATIENCE_MS, Peer


class Protected:
    """A daemon with access on, and the facade in front of it where one was asked for.

    Identities are made by requests, which hold at once. Tests that share a service give theirs names of
    their own.
    """

    def __init__(self, daemon: Daemon, facade: Facade | None = None) -> None:
        self.daemon = daemon
        self.data = daemon.data
        self.requests, self.changes = daemon.requests, daemon.changes
        self.url = "" if facade is None else facade.url
        self._facade = facade
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        """Kept, so that none is closed by the garbage collector, which warns of it."""
        keys = login_for(self.data / "facade.key", self.requests).keys
        assert keys is not None
        self.facade_keys = keys
        self._root: Peer | None = None
        self._kept: dict[str, str] = {}

    @property
    def facade(self) -> Facade:
        """The facade's process."""
        assert self._facade is not None
        return self._facade

    @property
    def admin_token(self) -> str:
        """The token of the first start."""
        return (self.data / "admin.token").read_text().strip()

    @property
    def root(self) -> Peer:
        """One who may do everything, as the facade does."""
        if self._root is None:
            self._root = self.peer(self.facade_keys)
        return self._root

    def change(self, op: str, name: str, **fields: Any) -> dict[str, Any]:
        """Do one operation on an identity; it holds when this returns."""
        (result,) = self.root.ask({"op": op, "name": name, **fields})
        assert "error" not in result, result
        return result

    def token(self, name: str, *grants: str, **fields: Any) -> str:
        """Another token, of an identity that then has these grants besides those that it had."""
        token = new_token()
        self.change("identity_put", name, id=token.id, digest=token.digest, grant=grants, **fields)
        if self._facade is not None:
            self.await_facade(token.text, grants)
        return token.text

    def kept_token(self, name: str, *grants: str) -> str:
        """As :meth:`token`, the same one each time."""
        if name not in self._kept:
            self._kept[name] = self.token(name, *grants)
        return self._kept[name]

    def await_facade(self, token: str, grants: Iterable[str] = ()) -> None:
        """Wait until the facade has heard of a token, and that its identity has these grants."""

        def has_heard() -> bool:
            answer = call(self.url, "GET", "/v1/whoami", token=token)
            return answer.status == 200 and {*grants} <= {*answer.json["grants"]}

        wait_until(has_heard, what="the facade knows the token")

    def keys(self, name: str, *grants: str, **fields: Any) -> CurveKeys:
        """Other keys, of an identity that then has these grants besides those that it had."""
        public, secret = (key.decode() for key in zmq.curve_keypair())
        self.change("identity_put", name, public_key=public, grant=grants, **fields)
        return CurveKeys(self.facade_keys.server_key, public, secret)

    def socket(self, kind: int, keys: CurveKeys | None) -> zmq.Socket[bytes]:
        """A socket, not connected yet, of one who has these keys, or none."""
        socket = self._context.socket(kind)
        self._sockets.append(socket)
        socket.rcvtimeo = PATIENCE_MS
        apply_curve(socket, keys)
        return socket

    def peer(self, keys: CurveKeys | None, kind: int = zmq.REQ) -> Peer:
        """A peer of the requests address."""
        socket = self.socket(kind, keys)
        socket.connect(self.requests)
        return Peer(socket)

    def subscriber(self, keys: CurveKeys | None, *topics: bytes) -> Peer:
        """A peer of the changes address, that is subscribed to heartbeats too."""
        socket = self.socket(zmq.SUB, keys)
        socket.connect(self.changes)
        for topic in (*topics, b"\0heartbeat"):
            socket.subscribe(topic)
        return Peer(socket)

    def login_file(self, name: str, login: CurveKeys | str) -> str:
        """The path of a login file with keys, or a token, for any address."""
        entry = {"token": login} if isinstance(login, str) else login._asdict()
        path = self.data.parent / f"{name}.login"
        path.touch(0o600)
        path.write_text(json.dumps({"*": entry}))
        return str(path)

    def close(self) -> None:
        """Close what was opened here; the servers go on."""
        self._context.destroy(linger=0)
