"""A connection to the daemon that carries one request at a time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import zmq

from kvstore_client.arguments import DEFAULT_REQUESTS
from kvstore_client.transport import forks
from kvstore_client.transport.retry import Exchange, Step
from kvstore_client.transport.sans_io import Routine, Wait
from kvstore_core.connection_monitor import NOBLOCK, POLLIN, POLLOUT, SNDMORE, Monitor, Socket
from kvstore_core.wire import Reply, encode_request

Context = zmq.Context[Socket]

QUICK_SECONDS = 0.1
"""Most answers come sooner. Only for one that does not is the monitor looked at as well, since to wait for
two sockets takes longer: what it tells does not pass."""

SOCKETS = 3
"""What a lane takes of those that a context has: its own and both ends of the monitor."""


def connect(socket: Socket, endpoint: str) -> None:
    """Connect; raises ValueError for what is no endpoint, and closes the socket then."""
    try:
        socket.connect(endpoint)
    except (zmq.ZMQError, UnicodeEncodeError) as error:
        socket.close(0)
        raise ValueError(f"{endpoint!r} is not a ZeroMQ endpoint such as {DEFAULT_REQUESTS}") from error


class Body(NamedTuple):
    """What a request consists of before it is numbered. ``writes`` says whether it must be."""

    ops: Sequence[dict[str, Any]]
    values: Sequence[bytes] = ()
    is_atomic: bool = False
    writes: bool = False


class Lane:
    """A DEALER socket, a client id and the number of its last write.

    The daemon remembers one reply for each client id, so a lane has one request under way at a time,
    and whoever wants several at once uses several lanes. A number is used for one request only, whatever
    became of it: should a copy of a write whose outcome is unknown arrive after the lane's next write,
    its lower number makes the daemon refuse it.

    A lane is used by one thread or task at a time; handing it on needs a lock or a queue in between,
    which is the memory barrier that ZeroMQ asks for.
    """

    def __init__(self, context: Context, endpoint: str) -> None:
        self._context = context
        self._endpoint = endpoint
        self._generation = forks.generation()
        self._client = secrets.token_hex(16)
        self._last_number = 0
        self._open()

    def _open(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        # accept a message only when there is a connection for it, and have one only, see Exchange. So an
        # idle lane does not come back by itself to a daemon that ends it, and its monitor stays small
        socket.immediate = True
        socket.reconnect_ivl = -1
        self._socket, self._monitor = socket, Monitor(socket)
        try:
            connect(socket, self._endpoint)
        except ValueError:
            self._monitor.close()
            raise

    def call(self, body: Body, seconds: float) -> Routine[Reply]:
        """Send the request, again after each connection that was lost, until it is answered; gives the
        reply or raises the KvError.

        A request that was given up leaves a fresh socket behind: no answer of it is ever taken for that of
        another, and the daemon drops what it has not begun yet for a connection that is closed.
        """
        exchange = Exchange(
            self._encode(body),
            writes=body.writes,
            endpoint=self._endpoint,
            seconds=seconds,
            now=time.monotonic(),
        )
        is_answered = False
        try:
            while True:
                step = exchange.next(time.monotonic())
                if step.is_fresh:
                    self._replace_socket()
                if not step.is_sending:
                    yield self._wait(POLLIN, step)
                elif self._send(exchange.frames):
                    exchange.sent()
                    # no reply is there as soon as its request is sent, and a recv in vain is an exception
                    yield Wait(((self._socket, POLLIN),), min(QUICK_SECONDS, step.until - time.monotonic()))
                else:
                    yield self._wait(POLLOUT, step)
                frames = self._receive()
                if frames is None and self._has_ended():
                    frames = self._receive()  # what came before the end
                    if frames is None:
                        exchange.lost(time.monotonic())
                if frames is None:
                    continue
                reply = exchange.receive(frames, time.monotonic())
                if reply is not None:
                    is_answered = True
                    return reply
        finally:
            if not is_answered:
                self._replace_socket()

    def _wait(self, flag: int, step: Step) -> Wait:
        watched = ((self._socket, flag), (self._monitor.socket, POLLIN))
        return Wait(watched, step.until - time.monotonic())

    def _has_ended(self) -> bool:
        self._monitor.take()
        return self._monitor.has_ended

    def _encode(self, body: Body) -> list[bytes]:
        if not body.writes:
            return encode_request(body.ops, body.values, atomic=body.is_atomic)
        self._last_number += 1
        return encode_request(
            body.ops, body.values, atomic=body.is_atomic, client=self._client, seq=self._last_number
        )

    def _send(self, frames: list[bytes]) -> bool:
        """Whether there was a connection to hand the frames to."""
        send = self._socket.send
        try:
            for frame in frames[:-1]:
                send(frame, NOBLOCK | SNDMORE)
            send(frames[-1], NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _receive(self) -> list[bytes] | None:
        socket = self._socket
        recv = socket.recv
        try:
            # name, delimiter and header are there in every reply: asking for more costs as much as
            # they do. What has fewer frames is no reply, and whatever is then read instead neither.
            frames = [recv(NOBLOCK), recv(NOBLOCK), recv(NOBLOCK)]
            while socket.getsockopt(zmq.RCVMORE):
                frames.append(recv(NOBLOCK))
            return frames
        except zmq.Again:
            return None

    def _replace_socket(self) -> None:
        if self._generation != forks.generation():
            return  # a call of the parent's that ends here, in the child
        self.close()
        self._open()

    def close(self) -> None:
        """Close the socket; what was not yet sent is dropped."""
        if self._generation == forks.generation():
            self._monitor.close()
            self._socket.close()
