"""The connection behind a socket: how one that is dead is noticed, and who tells that one has ended.

A request is sent once for each connection. As long as the connection lives, its answer is under way or
the daemon is busy, and a copy would only make that worse; what a connection took with it is sent again
on the next one (protocol section 6). ZeroMQ says nothing of connections by itself, so a monitor tells of
those that end, and ZMTP's heartbeats end those that are dead without a word.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from itertools import count

import zmq

Socket = zmq.Socket[bytes]

POLLIN, POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
NOBLOCK, SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
"""As plain numbers: pyzmq's enumerations are slow to combine with ``|`` and ``&``."""

PING_MS = 1_000
SILENCE_MS = 7_000
"""A connection on which nothing came for this long after a ping, not even the answer to it, is dead. It
is libzmq's own thread that answers, so a daemon that is only busy does; one that is stopped does not."""

_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_DISCONNECTED, _CLOSED = int(zmq.EVENT_DISCONNECTED), int(zmq.EVENT_CLOSED)
_REFUSED = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_BROKEN_OFF = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_MISUNDERSTOOD = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_HANDSHAKES = _SUCCEEDED | _REFUSED | _BROKEN_OFF | _MISUNDERSTOOD
_OTHER_MECHANISM = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_EVENT = struct.Struct("=HI")

_names = count(1)
"""What tells the monitors of this process apart: the name of one stays taken for a moment after its end."""


def notice_death(socket: Socket) -> None:
    """Let a socket that is not connected yet end a connection that is dead; it pings once it has one."""
    socket.heartbeat_ivl = PING_MS
    socket.heartbeat_timeout = SILENCE_MS


class Monitor:
    """Tells what becomes of the connection of a socket that is connected to one endpoint.

    ``has_ended`` says whether the last connection, or the last attempt to get one, is over. A socket that
    does not connect again by itself then never has another.

    ``is_refused`` says that the daemon does not know the key of this socket; libzmq does not try again then.
    ``broken_off`` counts the handshakes since the last good one that ended without a word, which is how a
    wrong server key looks, and a socket with a key at a daemon without, or the other way around. The latter
    two ``speak_differently``, if the daemon's greeting came before the end; libzmq does not try again then.
    """

    def __init__(self, watched: Socket) -> None:
        """Watch a socket that is not connected yet, and :func:`notice_death` on it."""
        notice_death(watched)
        self._watched = watched
        self.socket: Socket = watched.get_monitor_socket(
            _HANDSHAKES | _DISCONNECTED | _CLOSED, f"inproc://connection-{next(_names)}"
        )
        """Readable when something happened."""
        self._is_connected = False
        self.has_ended = False
        self.is_refused = False
        self.speak_differently = False
        self.broken_off = 0

    def take(self) -> bool:
        """Take note of what happened since the last call; returns whether a connection was lost. An
        attempt that got no further than the handshake has taken nothing with it, and does not count."""
        is_lost = False
        with suppress(zmq.Again):
            while not self.socket.closed:
                event, value = _EVENT.unpack(self.socket.recv(NOBLOCK))
                self.socket.recv(NOBLOCK)
                if event & _HANDSHAKES:
                    self._note_handshake(event, value)
                is_lost |= self._is_connected and event == _DISCONNECTED
                self._is_connected = event == _SUCCEEDED
                self.has_ended = not self._is_connected
        return is_lost

    def _note_handshake(self, event: int, value: int) -> None:
        self.is_refused = event == _REFUSED
        self.speak_differently = event == _MISUNDERSTOOD and value == _OTHER_MECHANISM
        self.broken_off = 0 if event == _SUCCEEDED else self.broken_off + 1

    def close(self) -> None:
        """Stop watching; to be called before the socket itself is closed."""
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close(0)
