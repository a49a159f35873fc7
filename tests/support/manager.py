"""A service manager as a server sees it: the datagram socket that ``NOTIFY_SOCKET`` names; and a child as its
parent hears it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from kvstore_core.process.sd_notify import NoticeSocket, Notifier
from support.servers import wait_until

WATCHDOG_SECONDS = 30


class Manager:
    """Hears what is sent to it, in order, with the process ids of the senders as the kernel tells them.

    ``address`` is a path, or ``@name`` in the abstract space.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[tuple[int, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.setblocking(False)

    @property
    def environment(self) -> dict[str, str]:
        """What systemd sets for a service with ``Type=notify`` and ``WatchdogSec=``."""
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 1_000_000)}

    def listen(self) -> list[str]:
        """Everything that was heard until now."""
        while True:
            try:
                message, credentials, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
            except BlockingIOError:
                return [said for _, said in self.heard]
            [(_, _, who)] = credentials
            self.heard.append((int.from_bytes(who[:4], "little"), message.decode()))

    def wait_for(self, start: str, *, times: int = 1) -> str:
        """Wait until a message that begins with ``start`` was heard so many ``times``; returns it."""

        def found() -> list[str]:
            said = [message for message in self.listen() if message.startswith(start)]
            return said if len(said) >= times else []

        return wait_until(found, timeout=60, what=f"the manager hears {start}")[-1]

    def count(self, start: str) -> int:
        """How many messages that begin with ``start`` were heard until now."""
        return sum(message.startswith(start) for message in self.listen())

    def close(self) -> None:
        self._socket.close()


@contextmanager
def notifier_on(notices: NoticeSocket) -> Iterator[Notifier]:
    """What a child says that has inherited its end."""
    child = Notifier(descriptor=os.dup(notices.descriptor), is_watched=True)
    try:
        yield child
    finally:
        assert child._pair is not None
        child._pair.close()
