"""What a server reports to the process that started it, in the format of sd_notify(3).

That process is a service manager, or a parent that is kvstore itself (``supervision``). This is the one
module that knows the format: each message is a datagram of ``NAME=value`` lines, sent to the socket that
``NOTIFY_SOCKET`` names.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import NamedTuple

PATIENCE_SECONDS = 5
"""How long READY, which must not be lost, waits for a manager that is busy."""

_WHERE = "X_KVSTORE_ADDRESSES"
"""A field of our own, as sd_notify(3) lets programs have them: the addresses as JSON."""

_LONGEST_NOTICE_BYTES = 65536


class Notifier:
    """Reports to the service manager, or to a parent. Without either, every method does nothing.

    ``address`` is the manager's datagram socket: a path, or a name after ``@`` in Linux's abstract
    space. With ``is_watched`` the manager ends a service that does not beat. No method raises: a manager that
    does not listen is no failure of the service. None but :meth:`ready` waits: what the manager has no room
    for is left out. Use it from one process: the manager takes messages from the process that it started,
    and from no other.

    A ``descriptor``, instead of the address, is the child's end of its parent's :class:`NoticeSocket`.
    """

    def __init__(self, address: str = "", *, is_watched: bool = False, descriptor: int | None = None) -> None:
        name = os.fsencode(address)
        self._address = b"\0" + name[1:] if name.startswith(b"@") else name
        self._is_watched = is_watched
        self._pair = None if descriptor is None else socket.socket(fileno=descriptor)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """A notifier for the manager that the environment names. Its variables are removed, so that processes
        which this one starts do not report to it."""
        address = environ.pop("NOTIFY_SOCKET", "")
        microseconds = environ.pop("WATCHDOG_USEC", "")
        watched_pid = environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        return cls(address, is_watched=bool(microseconds) and watched_pid == str(os.getpid()))

    def ready(self, where: Mapping[str, str]) -> None:
        """Say that the service answers from now on, and at which addresses, by name. Waits for a manager that
        is busy, up to ``PATIENCE_SECONDS``."""
        places = ", ".join(f"{name} {place}" for name, place in where.items())
        self._send(f"READY=1\n{_status(places)}\n{_WHERE}={json.dumps(dict(where))}", 0)

    def status(self, line: str) -> None:
        """Say how the service is, for people to read."""
        self._send(_status(line))

    def beat(self) -> None:
        """Say that the service does its work."""
        if self._is_watched:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that the service is about to end."""
        self._send(f"STOPPING=1\n{_status('stopping')}")

    def _send(self, message: str, flags: int = socket.MSG_DONTWAIT) -> None:
        said = message.encode(errors="replace")
        with suppress(OSError):
            if self._pair is not None:
                # for READY, the first message on its pair, there always is room
                self._pair.send(said, socket.MSG_DONTWAIT)
            elif self._address.startswith((b"/", b"\0")):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    # not settimeout, with which Python waits in spite of MSG_DONTWAIT
                    patience = struct.pack("ll", PATIENCE_SECONDS, 0)
                    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
                    sender.sendto(said, flags, self._address)


def _status(line: str) -> str:
    return "STATUS=" + " ".join(line.split())


class Notice(NamedTuple):
    """One message of a child: that it is ready, with its addresses in ``where``; how it is, in ``status``;
    or, with neither, that it works."""

    where: dict[str, str] | None = None
    status: str | None = None


class NoticeSocket:
    """The parent's end of a pair of sockets on which one child reports. They have no name, so no process but
    the child and those that it starts can write to them.

    ``descriptor`` is the child's end; call :meth:`close_theirs` once the child has inherited it.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours.setblocking(False)
        self.descriptor = self._theirs.fileno()

    def fileno(self) -> int:
        return self._ours.fileno()

    def read(self, places: Collection[str]) -> Iterator[Notice]:
        """The messages since the last call, in order. Others are left out, and so is READY without the
        addresses that ``places`` names: processes that the child starts may write here too."""
        with suppress(OSError):  # nothing more, or the child is gone
            while True:
                notice = _parsed(self._ours.recv(_LONGEST_NOTICE_BYTES), places)
                if notice is not None:
                    yield notice

    def close_theirs(self) -> None:
        self._theirs.close()

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


def _parsed(message: bytes, places: Collection[str]) -> Notice | None:
    pairs = (line.partition("=") for line in message.decode(errors="replace").split("\n"))
    fields = {name: value for name, _, value in pairs}
    if "READY" in fields:
        where = _addresses(fields.get(_WHERE, ""))
        return Notice(where=where) if where.keys() >= set(places) else None
    if fields.keys().isdisjoint(("STATUS", "STOPPING", "WATCHDOG")):
        return None
    return Notice(status=None if "STOPPING" in fields else fields.get("STATUS"))


def _addresses(written: str) -> dict[str, str]:
    try:
        read = json.loads(written)
    except (ValueError, RecursionError):
        return {}
    return (
        {name: place for name, place in read.items() if isinstance(place, str)}
        if isinstance(read, dict)
        else {}
    )
