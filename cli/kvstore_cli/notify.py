"""What a server tells the service manager that started it, in the manner of sd_notify(3).

The one module that knows how systemd wants to be told: each message is a datagram of ``NAME=value``
lines, sent to the socket that ``NOTIFY_SOCKET`` names.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import MutableMapping
from contextlib import suppress

PATIENCE_SECONDS = 5
"""How long a message that must not be lost waits for a manager that is busy."""


class Notifier:
    """Tells the service manager what it waits for. Without one, every method does nothing.

    ``address`` is the manager's datagram socket: a path, or a name after ``@`` in Linux's abstract
    space. With ``is_watched`` the manager ends a service that does not beat. A manager that cannot be
    told is no failure of the service, so no method raises for it. Use it from one process: the manager
    believes nobody but the process that it started.
    """

    def __init__(self, address: str = "", *, is_watched: bool = False) -> None:
        name = os.fsencode(address)
        self._address = b"\0" + name[1:] if name.startswith(b"@") else name
        self._is_watched = is_watched

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """The manager that the environment names. Its variables are taken out, so that processes
        which this one starts do not speak in its place."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        watched_pid = environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        return cls(address, is_watched=bool(microseconds) and watched_pid == str(os.getpid()))

    def ready(self, status: str) -> None:
        """Say that the service answers from now on."""
        self._send(f"READY=1\n{_status(status)}")

    def status(self, line: str) -> None:
        """Say how the service is, for people to read."""
        self._send(_status(line))

    def beat(self) -> None:
        """Say that the service still does its work. A beat that the manager has no room for is left
        out: its sender has more to do than to wait."""
        if self._is_watched:
            self._send("WATCHDOG=1", socket.MSG_DONTWAIT)

    def stopping(self) -> None:
        """Say that the service is about to end."""
        self._send(f"STOPPING=1\n{_status('stopping')}")

    def _send(self, message: str, flags: int = 0) -> None:
        if not self._address.startswith((b"/", b"\0")):
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # not settimeout, with which Python waits in spite of MSG_DONTWAIT
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", PATIENCE_SECONDS, 0))
            sender.sendto(message.encode(errors="replace"), flags, self._address)


def _status(line: str) -> str:
    return "STATUS=" + " ".join(line.split())
