"""Calls to a cluster of etcd: which member is asked, for how long, and what a failure means.

A channel for each member, and our own choice between them: gRPC's would go on with a member that accepts
connections and answers nothing. A member that fails is put aside for a while, and the next one is asked. It
is never asked again behind the caller's back whether to apply something: see :meth:`Cluster.call`.

gRPC does not survive a fork: nothing here is made, or even imported, in a process that forks workers.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal, Self, TypeAlias

import grpc

from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.address import EtcdAddress
from kvstore_daemon.storage.etcd_store.connection.credentials import read_password, read_tls

Kind = Literal[
    "not_sent", "unknown", "full", "compacted", "too_large", "lease_gone", "auth", "unimplemented", "refused"
]

Metadata: TypeAlias = tuple[tuple[str, str], ...]

NEEDS_LEADER: Metadata = (("hasleader", "true"),)
"""Has a member without a leader say so at once, where it would hold the call until that times out, and a
stream for ever. For data only: of itself a member can speak without one."""

WATCH_BYTES = 128 << 20
"""The longest response of a watch that is taken in one piece. etcd puts up to 1000 revisions of 1.5 MiB or
more into one unless it is asked for fragments, and those cost it time with the square of their events."""

OPTIONS = (
    # One ping in 6 s, of which etcd allows one in 5 s, and the connection is given up when none is answered
    # for 2 s. keepalive_timeout_ms alone is without effect: ping_timeout_ms is what ends the connection.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The second one is also how long a connection may take to be made; its default is 20 s.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
    # What is sent is bounded by etcd, and what it answers by what was asked for, but for watches.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    (
        "grpc.service_config",
        json.dumps(
            {
                "methodConfig": [
                    {"name": [{"service": "etcdserverpb.Watch"}], "maxResponseMessageBytes": WATCH_BYTES}
                ]
            }
        ),
    ),
    # A proxy of the environment is for the web.
    ("grpc.enable_http_proxy", 0),
)

_NOT_CONNECTED = "failed to connect to all addresses"
_NO_CONNECTION = (_NOT_CONNECTED, "errors resolving", "DNS resolution failed")

# What etcd and gRPC say, where the code alone would not tell: etcd's own client compares texts as well. The
# first are of calls that were certainly not applied, whatever they would have done.
_TEXTS: tuple[tuple[str, Kind], ...] = (
    *((text, "not_sent") for text in _NO_CONNECTION),
    ("etcdserver: no leader", "not_sent"),
    ("etcdserver: too many requests", "not_sent"),
    ("not supported for learner", "not_sent"),
    ("database space exceeded", "full"),
    ("has been compacted", "compacted"),
    ("message larger than max", "too_large"),
    ("request is too large", "too_large"),
    ("too many operations in txn", "too_large"),
    ("requested lease not found", "lease_gone"),
    ("invalid auth token", "auth"),
    ("revision of auth store is old", "auth"),
    ("user name is empty", "auth"),
    ("authentication failed", "auth"),
    ("permission denied", "auth"),
)
_CODES: dict[grpc.StatusCode, Kind] = {
    grpc.StatusCode.UNIMPLEMENTED: "unimplemented",
    grpc.StatusCode.UNAUTHENTICATED: "auth",
    grpc.StatusCode.PERMISSION_DENIED: "auth",
    grpc.StatusCode.INVALID_ARGUMENT: "refused",
    grpc.StatusCode.FAILED_PRECONDITION: "refused",
    grpc.StatusCode.OUT_OF_RANGE: "refused",
    grpc.StatusCode.NOT_FOUND: "refused",
    grpc.StatusCode.ALREADY_EXISTS: "refused",
    grpc.StatusCode.DATA_LOSS: "refused",
}
_TOKEN_LOST = ("invalid auth token", "revision of auth store is old", "user name is empty")

PENALTY_SECONDS = (1.0, 10.0)
"""For how long a member that failed is asked only if all others did: the first time, and at most."""

SHORTEST_SECONDS = 0.5
PAUSE_SECONDS = (0.02, 0.5)
TOKEN_SECONDS = 5.0

READ_AHEAD_BYTES = 8 << 20
"""Of the responses of a stream so many bytes wait for us, and one response more; the rest waits in the
connection, and then at the member."""

_LEAST_BYTES = READ_AHEAD_BYTES // 64


class EtcdError(Exception):
    """A call that failed; the message is for people and names the endpoint. ``kind`` is for programs:

    - ``not_sent``: it was certainly not applied: no connection, no leader, too many requests under way.
    - ``unknown``: it may have been applied, or may yet be: no answer in time, a lost connection, another
      leader.
    - ``full``: the quota of etcd is used up (NOSPACE); it stays so until somebody makes room. The
      change by which etcd noticed is answered like that, and is applied.
    - ``compacted``: that revision is no longer there; ``compact_revision`` is the first one that is, where
      etcd says it (on a watch), else 0.
    - ``too_large``: the request has more bytes or operations than etcd takes.
    - ``lease_gone``: there is no such lease.
    - ``auth``: etcd does not know us, or does not let us.
    - ``unimplemented``: this version has no such method.
    - ``refused``: anything else that etcd has said no to, and will again.

    All but ``unknown`` and ``full`` say that nothing was applied.
    """

    def __init__(self, kind: Kind, message: str, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.compact_revision = compact_revision

    @property
    def is_of_member(self) -> bool:
        """Whether another member may do better."""
        return self.kind in ("not_sent", "unknown")


class MemberChannel:
    """The channel to a member, which connects when it is first used, and whether the member is put aside."""

    def __init__(self, endpoint: str, address: EtcdAddress, tls: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        self.failed_at = self.penalty_until = 0.0
        self.penalty = Backoff(*PENALTY_SECONDS)
        self.unconnected = ""
        """Why there was no connection, as it was said since the last reply; empty if it was not."""
        options: list[tuple[str, Any]] = [*OPTIONS]
        if address.server_name is not None:
            options.append(("grpc.ssl_target_name_override", address.server_name))
        if tls is None:
            self.channel = grpc.insecure_channel(endpoint, options)
        else:
            self.channel = grpc.secure_channel(endpoint, tls, options)
        self._unary: dict[str, grpc.UnaryUnaryMultiCallable] = {}

    def trouble(self, now: float) -> float:
        """0 for a member that is in order, else when it failed last."""
        return self.failed_at if self.penalty_until > now else 0.0

    def unary(self, method: api.Method) -> grpc.UnaryUnaryMultiCallable:
        """The function that calls a method with one request and one reply."""
        made = self._unary.get(method.path)
        if made is None:
            made = self._unary[method.path] = self.channel.unary_unary(
                method.path, method.request.SerializeToString, method.reply.FromString
            )
        return made


class Cluster:
    """All members of the cluster at ``address``, called one at a time. Any thread may call.

    Raises KvError where the files that ``address`` names cannot be used. Nothing is connected before the
    first call, so the members need not be there.
    """

    def __init__(self, address: EtcdAddress) -> None:
        self._address = address
        tls = read_tls(address)
        if address.password_file is not None:
            read_password(address.password_file)  # to say now what is wrong with it
        self._members = [MemberChannel(endpoint, address, tls) for endpoint in address.endpoints]
        self._present = 0
        self._lock = threading.Lock()
        self._authenticating = threading.Lock()
        self._token: str | None = None  # empty: etcd wants none
        self._is_closed = False
        self.rotations = 0
        """How often another member was turned to."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections; calls under way fail."""
        self._is_closed = True
        for member in self._members:
            member.channel.close()

    @property
    def endpoint(self) -> str:
        """The one that is asked at present: at first the first of the address."""
        return self._members[self._present].endpoint

    def call(self, method: api.Method, request: api.Message, timeout: float) -> api.Message:
        """Ask the present endpoint once, and return its reply; raises EtcdError.

        It is asked a second time only where it said that our token is none: then it has done nothing.
        ``timeout`` is in seconds, and for everything together.
        """
        return self._call(self._members[self._present], method, request, timeout)

    def ask(self, method: api.Method, request: api.Message, timeout: float) -> api.Message:
        """Ask one endpoint after another until one replies or ``timeout`` is over; raises the last EtcdError.

        For what may be done more than once. No endpoint gets all of the time while there are others.
        """
        deadline = time.monotonic() + timeout
        pause = Backoff(*PAUSE_SECONDS, jitter=0.5)
        while True:
            left = deadline - time.monotonic()
            share = max(left / len(self._members), min(left, SHORTEST_SECONDS))
            try:
                return self.call(method, request, share)
            except EtcdError as error:
                left = deadline - time.monotonic()
                if not error.is_of_member or left < PAUSE_SECONDS[0] or self._is_closed:
                    raise
            time.sleep(min(pause.next(), left))

    def each(
        self, method: api.Method, request: api.Message, timeout: float
    ) -> dict[str, api.Message | EtcdError]:
        """Ask all endpoints at the same time; what each replied, or how it failed, by endpoint."""
        found: dict[str, api.Message | EtcdError] = {}

        def ask(member: MemberChannel) -> None:
            try:
                found[member.endpoint] = self._call(member, method, request, timeout)
            except EtcdError as error:
                found[member.endpoint] = error

        threads = [threading.Thread(target=ask, args=(member,), daemon=True) for member in self._members]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {member.endpoint: found[member.endpoint] for member in self._members}

    def range_stream(self, request: api.Message, timeout: float) -> Iterator[api.Message]:
        """The reply to a range in pieces, from the present endpoint; the header is in the last one only.
        Raises EtcdError: ``unimplemented`` before etcd 3.7."""
        member = self._members[self._present]
        method = api.RANGE_STREAM
        metadata = self._metadata(member, method, timeout)
        call = None
        try:
            call = member.channel.unary_stream(
                method.path, method.request.SerializeToString, method.reply.FromString
            )(request, timeout=timeout, metadata=metadata)
            for piece in call:
                yield piece.range_response
        except (grpc.RpcError, ValueError) as error:
            raise self.failed(member, method, metadata, error) from error
        finally:
            if call is not None:
                call.cancel()

    def stream(self) -> WatchStream:
        """A stream for watches at the present endpoint; raises EtcdError if no token is to be had there."""
        member = self._members[self._present]
        return WatchStream(self, member, self._metadata(member, api.WATCH, TOKEN_SECONDS))

    # ── one call ─────────────────────────────────────────────────────────────────────────────────

    def _call(
        self, member: MemberChannel, method: api.Method, request: api.Message, timeout: float
    ) -> api.Message:
        deadline = time.monotonic() + timeout
        try:
            return self._attempt(member, method, request, deadline)
        except EtcdError as error:
            if self._address.user is None or not _is_token_lost(error):
                raise
        return self._attempt(member, method, request, deadline)

    def _attempt(
        self, member: MemberChannel, method: api.Method, request: api.Message, deadline: float
    ) -> api.Message:
        metadata = self._metadata(member, method, deadline - time.monotonic())
        try:
            reply = member.unary(method)(request, timeout=deadline - time.monotonic(), metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self.failed(member, method, metadata, error) from error
        member.penalty.reset()
        member.unconnected = ""
        return reply

    def failed(
        self, member: MemberChannel, method: api.Method, metadata: Metadata, error: Exception
    ) -> EtcdError:
        """What an error of gRPC means, after :meth:`blame`."""
        if isinstance(error, grpc.RpcError):
            said = error.details() or error.code().name
            kind = _kind(error.code(), said)
            if said.startswith(_NO_CONNECTION):
                member.unconnected = said
            elif member.unconnected and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                said = f"{said}, after: {member.unconnected}"  # which alone tells what is wrong
        else:  # of a channel that was closed
            kind, said = "not_sent", str(error)
        found = EtcdError(kind, f"etcd at {member.endpoint}, {method.name}: {said}")
        self.blame(member, metadata, found)
        return found

    def blame(self, member: MemberChannel, metadata: Metadata, error: EtcdError) -> None:
        """Draw the conclusions from an error: put the member aside, or forget the token."""
        if error.is_of_member:
            self._put_aside(member)
        sent = dict(metadata).get("token", "")
        if _is_token_lost(error) and self._token == sent:  # else there is a new one already
            self._token = None

    def _put_aside(self, member: MemberChannel) -> None:
        with self._lock:
            now = member.failed_at = time.monotonic()
            if member.penalty_until <= now:  # else another call has met the same trouble
                member.penalty_until = now + member.penalty.next()
            if member is not self._members[self._present]:
                return
            count = len(self._members)
            others = [(self._present + step) % count for step in range(1, count)]
            # the next one that is in order, or else the one that failed longest ago
            best = min(others, key=lambda number: self._members[number].trouble(now), default=self._present)
            if best != self._present:
                self._present = best
                self.rotations += 1

    # ── tokens ───────────────────────────────────────────────────────────────────────────────────

    def _metadata(self, member: MemberChannel, method: api.Method, timeout: float) -> Metadata:
        ours = NEEDS_LEADER if method.is_of_data else ()
        if self._address.user is None or method is api.AUTHENTICATE:
            return ours
        token = self._token
        if token is None:
            token = self._authenticate(member, timeout)
        return (*ours, ("token", token)) if token else ours

    def _authenticate(self, member: MemberChannel, timeout: float) -> str:
        """A token, which is good at all members. One thread asks for it, and those that wait share it."""
        deadline = time.monotonic() + timeout
        with self._authenticating:
            token = self._token
            if token is None:
                token = self._token = self._new_token(member, deadline)
            return token

    def _new_token(self, member: MemberChannel, deadline: float) -> str:
        try:
            password = read_password(str(self._address.password_file))
            request = api.AuthenticateRequest(name=self._address.user, password=password)
            token: str = self._attempt(member, api.AUTHENTICATE, request, deadline).token
        except KvError as error:
            raise EtcdError("auth", error.message) from error
        except EtcdError as error:
            if "authentication is not enabled" in str(error):
                return ""
            # whatever became of it: the call that wants the token was not sent
            raise EtcdError("not_sent" if error.is_of_member else "auth", str(error)) from error
        return token


class WatchStream:
    """A stream of watches at one endpoint. Of one thread, but for :meth:`send`. It is over when :meth:`next`
    has raised, and has to be closed by :meth:`close` or as a context.

    A member that hangs makes it silent, and nothing else: ask for progress, and :meth:`give_up` if there is
    no answer.
    """

    def __init__(self, cluster: Cluster, member: MemberChannel, metadata: Metadata) -> None:
        self.endpoint = member.endpoint
        self._cluster, self._member, self._metadata = cluster, member, metadata
        self._requests: queue.SimpleQueue[api.Message | None] = queue.SimpleQueue()
        self._responses = _Responses()
        method = api.WATCH
        try:
            self._call = member.channel.stream_stream(
                method.path,
                method.request.SerializeToString,
                lambda data: (len(data), method.reply.FromString(data)),
            )(iter(self._requests.get, None), metadata=metadata)
        except ValueError as error:
            raise cluster.failed(member, method, metadata, error) from error
        self._reader = threading.Thread(target=self._read, name="etcd-watch", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream."""
        self._call.cancel()
        self._requests.put(None)
        while self._reader.is_alive():  # it may wait to put what it has, and the end
            with suppress(queue.Empty):
                self._responses.get(timeout=0.01)

    def send(self, request: api.Message) -> None:
        """Hand over a request; never waits."""
        self._requests.put(request)

    def next(self, timeout: float) -> api.Message | None:
        """The next response, None if there is none within ``timeout`` seconds; raises EtcdError if the stream
        failed, and if the response says that the watch is canceled, with etcd's reason."""
        try:
            _, found = self._responses.get(timeout=max(timeout, 0))
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise self._cluster.failed(self._member, api.WATCH, self._metadata, found) from found
        if found.canceled:
            raise self._canceled(found)
        return found

    def give_up(self, why: str) -> EtcdError:
        """Put the member aside; the error to raise, ``why`` is said in it."""
        return self._blamed(EtcdError("unknown", f"etcd at {self.endpoint}, Watch: {why}"))

    def _canceled(self, response: api.Message) -> EtcdError:
        compacted = response.compact_revision
        why = response.cancel_reason or "the watch was canceled"
        kind = "compacted" if compacted else _kind(grpc.StatusCode.UNKNOWN, why)
        return self._blamed(EtcdError(kind, f"etcd at {self.endpoint}, Watch: {why}", compacted))

    def _blamed(self, error: EtcdError) -> EtcdError:
        self._cluster.blame(self._member, self._metadata, error)
        return error

    def _read(self) -> None:
        try:
            for found in self._call:
                self._responses.put(found)
            self._responses.put((0, ValueError("the stream ended")))
        except grpc.RpcError as error:
            self._responses.put((0, error))


class _Responses(queue.Queue[tuple[int, Any]]):
    """A queue of items with their bytes, bounded by those. A small one takes more than it has."""

    def __init__(self) -> None:
        super().__init__(READ_AHEAD_BYTES)
        self._bytes = 0

    def _qsize(self) -> int:
        return self._bytes

    def _put(self, item: tuple[int, Any]) -> None:
        self._bytes += max(item[0], _LEAST_BYTES)
        super()._put(item)

    def _get(self) -> tuple[int, Any]:
        item = super()._get()
        self._bytes -= max(item[0], _LEAST_BYTES)
        return item


def _kind(code: grpc.StatusCode, said: str) -> Kind:
    return next((kind for text, kind in _TEXTS if text in said), _CODES.get(code, "unknown"))


def _is_token_lost(error: EtcdError) -> bool:
    return error.kind == "auth" and any(text in str(error) for text in _TOKEN_LOST)
