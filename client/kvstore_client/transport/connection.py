"""A connection to the daemon that carries one request at a time, apart from how it is waited for.

What a client does with its sockets is written once, as generators that never block and yield a
:class:`SocketWait` where there is nothing to do but wait. :func:`kvstore_client.transport.sync_io.drive`
waits in a poll, :func:`kvstore_client.transport.async_io.drive` in an event loop. A blocking call begins with
:meth:`Connection.call_at_once`, which suffices where nothing fails and costs half as much.
"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import zmq

from kvstore_client.transport import forks, handshake
from kvstore_client.transport.retry import NextAction, RetryState, enveloped, reply_at_once
from kvstore_client.transport.wait import IoGenerator, SocketWait
from kvstore_core.access.login_file import CurveKeys
from kvstore_core.addresses import DEFAULT_REQUESTS
from kvstore_core.connection_monitor import NOBLOCK, POLLIN, POLLOUT, SNDMORE, Monitor, Socket
from kvstore_core.curve import apply_curve
from kvstore_core.errors import KvError
from kvstore_core.wire import Reply, WriteSequence, encode_request

QUICK_SECONDS = 0.1
"""Most answers come sooner. Only after this is the monitor waited for as well, since a wait for two
sockets takes longer; its events stay queued until then."""

_QUICK_MS = int(1000 * QUICK_SECONDS)

_EVENTS = int(zmq.EVENTS)

SOCKETS = 4
"""How many sockets of its context a connection uses: its own, both ends of the monitor, and the one that asks
why handshakes fail."""


def connect(socket: Socket, endpoint: str) -> None:
    """Connect; closes the socket and raises ValueError if ``endpoint`` is not one."""
    try:
        socket.connect(endpoint)
    except (zmq.ZMQError, UnicodeEncodeError) as error:
        socket.close(0)
        raise ValueError(f"{endpoint!r} is not a ZeroMQ endpoint such as {DEFAULT_REQUESTS}") from error


def check_endpoint(endpoint: str) -> None:
    """Raise ValueError if ``endpoint`` is not one; nothing is sent."""
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        connect(socket, endpoint)


def _waiter(socket: Socket) -> Callable[[int], object]:
    """Waits until ``socket`` may have a message, for at most so many milliseconds; true if it may.

    As zmq_poll does, which takes twice as long, since it looks at the socket's events three times. Once
    before is needed: the descriptor is readable only for what comes after that."""
    if not hasattr(select, "poll"):  # Windows
        return partial(zmq.zmq_poll, ((socket, POLLIN),))
    get, wait = socket.getsockopt, select.poll()
    wait.register(socket.fileno(), select.POLLIN)
    return lambda milliseconds: get(_EVENTS) & POLLIN or wait.poll(milliseconds)  # type: ignore[operator]


class RequestBody(NamedTuple):
    """A request without its number. ``writes`` says whether it needs one."""

    ops: Sequence[dict[str, Any]]
    values: Sequence[bytes] = ()
    is_atomic: bool = False
    writes: bool = False


class Connection:
    """A DEALER socket and the numbers of its writes. It carries one request at a time.

    A connection is used by one thread or task at a time; handing it on needs a lock or a queue in between,
    which is the memory barrier that ZeroMQ asks for.
    """

    slots: Any = None
    """The pool's slots, to which this connection's slot returns after the call."""

    def __init__(self, context: zmq.Context[Socket], endpoint: str, keys: CurveKeys | None = None) -> None:
        """``keys`` are those to speak CURVE with, None for a daemon where access is off."""
        self._context = context
        self._endpoint = endpoint
        self._keys = keys
        self._broken_off = 0
        self.generation = forks.generation()
        self._sequence = WriteSequence(secrets.token_hex(16))
        self._open()

    def _open(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        # RetryState needs both: the socket accepts a message only when it is connected, and it connects
        # once. So an idle one does not come back by itself to a daemon that cuts it off either.
        socket.immediate = True
        socket.reconnect_ivl = -1
        try:
            apply_curve(socket, self._keys)
        except KvError:
            socket.close(0)
            raise
        # the forms of the base class: pyzmq's own add only what DEALERs have no use for
        self._send_frame, self._receive_frame = super(zmq.Socket, socket).send, socket.recv
        self._wait_soon = _waiter(socket)
        self._socket, self._monitor = socket, Monitor(socket)
        try:
            connect(socket, self._endpoint)
        except ValueError:
            self._monitor.close()
            raise

    def call(self, body: RequestBody, seconds: float) -> IoGenerator[Reply]:
        """Send the request, again after each lost connection, until it is answered. Returns the reply, or
        raises the KvError of a request that failed.

        A request that was given up leaves a new socket behind: no answer to it is ever taken for that to
        another, and the daemon drops what it has not begun yet for a connection that is closed.
        """
        return self._complete(self._retry(enveloped(self._encode(body)), body, seconds, time.monotonic()))

    def call_at_once(self, body: RequestBody, seconds: float) -> Reply | IoGenerator[Reply]:
        """The reply, if it comes as nearly all do: within ``QUICK_SECONDS``, over a connection that is there.
        Else what is left of the :meth:`call`. Waits in the calling thread."""
        began = time.monotonic()
        frames = enveloped(self._encode(body))
        received = None
        try:
            is_sent = seconds > QUICK_SECONDS and self._send(frames)
            if is_sent and self._wait_soon(_QUICK_MS):
                received = self._receive()
                reply = None if received is None else reply_at_once(frames, received)
                if reply is not None:
                    return reply
            retry = self._retry(frames, body, seconds, began)
            if is_sent:
                retry.sent()
            return self._complete(retry, received)
        except BaseException:
            self._replace_socket()
            raise

    def _retry(self, frames: list[bytes], body: RequestBody, seconds: float, now: float) -> RetryState:
        return RetryState(frames, writes=body.writes, endpoint=self._endpoint, seconds=seconds, now=now)

    def _complete(self, retry: RetryState, frames: list[bytes] | None = None) -> IoGenerator[Reply]:
        """The rest of a call, which may have been sent already, and got a message with ``frames``."""
        is_answered = False
        try:
            while True:
                if frames is None:
                    frames = yield from self._next_message(retry)
                reply = None if frames is None else retry.receive(frames, time.monotonic())
                if reply is not None:
                    is_answered = True
                    return reply
                frames = None
        finally:
            if not is_answered:
                self._replace_socket()

    def _next_message(self, retry: RetryState) -> IoGenerator[list[bytes] | None]:
        """Do what is to be done next, and wait; the message that came, if one did."""
        action = retry.next(time.monotonic())
        if action.needs_new_socket:
            self._replace_socket()
        if not action.is_sending:
            yield self._wait(POLLIN, action)
        elif self._send(retry.frames):
            retry.sent()
            # no reply is there as soon as its request is sent, and a recv in vain is an exception
            seconds = min(QUICK_SECONDS, action.until - time.monotonic())
            yield SocketWait(((self._socket, POLLIN),), seconds)
        else:
            yield self._wait(POLLOUT, action)
        frames = self._receive()
        if frames is None and self._has_ended():
            frames = self._receive()  # what came before the end
            if frames is None:
                yield from self._lost(retry)
        return frames

    def _wait(self, flag: int, action: NextAction) -> SocketWait:
        watched = ((self._socket, flag), (self._monitor.socket, POLLIN))
        return SocketWait(watched, action.until - time.monotonic())

    def _has_ended(self) -> bool:
        self._monitor.take()
        return self._monitor.has_ended

    def _lost(self, retry: RetryState) -> IoGenerator[None]:
        """The connection has ended, or there was none; raises the error if there never will be."""
        refusal = yield from self._refusal()
        if refusal is not None:
            raise retry.refused(refusal)
        retry.lost(time.monotonic())

    def _refusal(self) -> IoGenerator[KvError | None]:
        """The error of a handshake that the next attempt would not do better with, if that is why the
        connection has ended."""
        if self._monitor.is_refused:
            return handshake.refused_key(self._endpoint)
        self._broken_off = self._broken_off + 1 if self._monitor.broken_off else 0
        if self._broken_off < handshake.HANDSHAKES:
            return None
        self._broken_off = 0
        mechanism = yield from handshake.mechanism_of(self._context, self._endpoint)
        return handshake.reason(self._endpoint, mechanism, has_keys=self._keys is not None)

    def _encode(self, body: RequestBody) -> list[bytes]:
        if not body.writes:
            return encode_request(body.ops, body.values, atomic=body.is_atomic)
        return encode_request(body.ops, body.values, atomic=body.is_atomic, **self._sequence.next())

    def _send(self, frames: list[bytes]) -> bool:
        """Whether there was a connection to hand the frames to."""
        send = self._send_frame
        try:
            for frame in frames[:-1]:
                send(frame, NOBLOCK | SNDMORE)
            send(frames[-1], NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _receive(self) -> list[bytes] | None:
        recv = self._receive_frame
        try:
            # Every reply has id, delimiter and header. The last of these is not copied, since it then knows
            # whether more follow; to ask the socket costs as much as four frames.
            # A message with fewer frames is no reply, nor is the next one, of which frames are read then.
            frames = [recv(NOBLOCK), recv(NOBLOCK)]
            last: zmq.Frame = recv(NOBLOCK, copy=False)
            frames.append(last.bytes)
            while last.more:
                last = recv(NOBLOCK, copy=False)
                frames.append(last.bytes)
            return frames
        except zmq.Again:
            return None

    def _replace_socket(self) -> None:
        if self.generation != forks.generation():
            return  # a call of the parent that ends in the child
        self.close()
        self._open()

    def close(self) -> None:
        """Close the socket and drop what was not sent yet."""
        if self.generation == forks.generation():
            self._monitor.close()
            self._socket.close()
