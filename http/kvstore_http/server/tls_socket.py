"""TLS on a connection: its handshake, and then a socket that hides that it is encrypted.

Everything that reads, writes or closes a connection takes a :class:`TlsSocket` for a plain one, so there is
no second path for TLS behind the handshake, and none of its costs without it.
"""

from __future__ import annotations

import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from kvstore_core.errors import KvError

log = logging.getLogger("kvstore.http")

READ, WRITE = 1, 2  # libev's event bits

RECORD_BYTES = 16 * 1024
"""The most that one TLS record carries (RFC 8446 section 5.1)."""

_CLIENT_HELLO = 0x16
"""The first byte from a TLS client: the type of a handshake's record. No request of HTTP begins with it."""

SPEAKS_HTTPS = KvError("bad_request", "this port speaks HTTPS; write the address with https://")


class TlsSocket(ssl.SSLSocket):
    """A non-blocking socket that acts like a plain one: BlockingIOError says that it cannot go on for now,
    and any failure of TLS is a connection that broke.

    A peer that asks for new keys while it does not read, or sends half a message about them, would make reads
    wait for room and writes for input. It is taken for gone instead: the system would go on to report that
    the socket can be read or written, and the loop would spin. No usual client does either.
    """

    _held: bytes | memoryview | None = None
    """A record that OpenSSL has made and that the network did not take. It has to be offered again, whole,
    before anything else."""
    _ahead = 0
    """How much of what the caller still keeps as unsent was sent with such a record."""

    def recv(self, _bufsize: int = 0, _flags: int = 0) -> bytes:
        """One record, whatever was asked for: what stayed in OpenSSL would be seen by no watcher."""
        try:
            return super().recv(RECORD_BYTES)
        except ssl.SSLWantReadError:
            raise BlockingIOError(errno.EAGAIN, "nothing to read") from None
        except ssl.SSLError as error:
            raise _broken(error) from None

    def send(self, data: Any, _flags: int = 0) -> int:
        """Send what the network takes now; data is counted as sent by whole records.

        After a BlockingIOError, or when only a part was sent, the next call must begin with the bytes that
        were not; it may have fewer or more of them.
        """
        if self._held is not None or self._ahead:
            return self._send_after_held(data)
        if len(data) <= RECORD_BYTES:
            return self._send_record(data) if data else 0
        view, sent = memoryview(data), 0
        while sent < len(view):
            try:
                sent += self._send_record(view[sent : sent + RECORD_BYTES])
            except BlockingIOError:
                if not sent:
                    raise
                break
        return sent

    def sendmsg(self, buffers: Sequence[Any], *_unused: Any) -> int:  # type: ignore[override]
        """Send the buffers one after the other; OpenSSL cannot gather them."""
        sent = 0
        for data in buffers:
            try:
                taken = self.send(data)
            except BlockingIOError:
                if not sent:
                    raise
                break
            sent += taken
            if taken < len(data):
                break
        return sent

    def _send_record(self, record: bytes | memoryview) -> int:
        try:
            return super().send(record)
        except ssl.SSLWantWriteError:
            self._held = record
            raise BlockingIOError(errno.EAGAIN, "no room to send") from None
        except ssl.SSLError as error:
            raise _broken(error) from None

    def _send_after_held(self, data: bytes | memoryview) -> int:
        if self._held is not None:
            record, self._held = self._held, None
            self._ahead = self._send_record(record)
        skipped = min(self._ahead, len(data))
        self._ahead -= skipped
        if skipped == len(data):
            return skipped
        try:
            return skipped + self.send(memoryview(data)[skipped:])
        except BlockingIOError:
            return skipped

    def shutdown(self, how: int) -> None:
        """Say that nothing more comes. What is read from then on stays encrypted."""
        self._say_goodbye()
        super().shutdown(how)

    def close(self) -> None:
        self._say_goodbye()
        super().close()

    def _say_goodbye(self) -> None:
        """A close_notify (RFC 8446 section 6.1): without it a client cannot tell an end from a cut."""
        with suppress(OSError, ValueError):
            self.unwrap()


def _broken(error: ssl.SSLError) -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, f"TLS failed: {error.reason or error.strerror}")


class Handshake:
    """A connection until its handshake is done, for which its client has so many ``seconds``.

    Then ``on_done`` is called with the :class:`TlsSocket`, or ``on_refused`` with the bare socket of a client
    that does not speak TLS. If the handshake fails or takes too long, the connection is closed. Before each
    of these ``on_end`` is called, with whether TLS failed. A handshake takes a millisecond, so its steps are
    given to ``soon``, to be run when the loop has looked at the others.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        seconds: float,
        loop: Any,
        soon: Callable[[Callable[[], None]], None],
        on_end: Callable[[Handshake, bool], None],
        on_done: Callable[[TlsSocket], None],
        on_refused: Callable[[socket.socket, KvError], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._context = context
        self._loop = loop
        self._soon = soon
        self._on_end = on_end
        self._on_done = on_done
        self._on_refused = on_refused
        self._waits_since: float | None = None
        self._left_seconds = seconds
        self._watcher: Any = None
        self._watch(READ)

    @property
    def has_begun(self) -> bool:
        """Whether the client has sent something."""
        return isinstance(self._sock, TlsSocket)

    def _watch(self, event: int) -> None:
        self._waits_since = time.monotonic()
        self._watcher = self._loop.io(self._sock.fileno(), event)
        self._watcher.start(self._on_ready)

    def _on_ready(self) -> None:
        self._unwatch()
        self._soon(self._step)

    def _unwatch(self) -> None:
        if self._waits_since is not None:
            # the time that this process was busy is not the client's
            self._left_seconds -= time.monotonic() - self._waits_since
            self._waits_since = None
            self._watcher.close()

    def _step(self) -> None:
        if self._sock.fileno() < 0:
            return  # closed since
        try:
            if not self.has_begun and not self._begin():
                return
            self._sock.do_handshake()  # type: ignore[attr-defined]
        except (BlockingIOError, ssl.SSLWantReadError):
            self._watch(READ)
        except ssl.SSLWantWriteError:
            self._watch(WRITE)
        except OSError as error:
            log.debug("a TLS handshake failed: %s", error)
            self.close(has_failed=True)
        else:
            self._on_end(self, False)
            self._on_done(self._sock)  # type: ignore[arg-type]

    def _begin(self) -> bool:
        """Look at the first byte, and wrap the socket if it is one of TLS."""
        first = self._sock.recv(1, socket.MSG_PEEK)
        if first and first[0] == _CLIENT_HELLO:
            self._sock = self._context.wrap_socket(
                self._sock, server_side=True, do_handshake_on_connect=False
            )
            return True
        if not first:
            self.close()
        else:
            self._on_end(self, False)
            self._on_refused(self._sock, SPEAKS_HTTPS)
        return False

    def sweep(self, now: float) -> None:
        """End it if the client has taken too long; called every few seconds."""
        if self._waits_since is not None and now - self._waits_since > self._left_seconds:
            self.close(has_failed=self.has_begun)

    def close(self, *, has_failed: bool = False) -> None:
        """Close the connection."""
        self._unwatch()
        self._on_end(self, has_failed)
        self._sock.close()
