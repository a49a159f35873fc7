"""The life of a request, from the message to its reply; this file reads from top to bottom.

A message is received, and begun at once or at its peer's turn. A request that writes goes to the committer
and comes back with the engine's answer. One that reads waits until the engine has caught up with what others
have committed, where it has to. Then its reads are done, in slices, and it is answered."""

from __future__ import annotations

import logging
import time
from typing import Any

from kvstore_core.access.principal import UNRESTRICTED, Principal
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_BACKUP_PIECE_BYTES, MAX_PAGE
from kvstore_core.process.logging import RateLimitedLog, request_extra
from kvstore_core.wire import Request, RequestId, decode_request, encode_error
from kvstore_daemon.access.authority import Authority
from kvstore_daemon.backups import Backups
from kvstore_daemon.event_loop import Loop
from kvstore_daemon.group_commit import GroupCommitter
from kvstore_daemon.peer_limits.peer import UNKNOWN, Peer
from kvstore_daemon.record_fields import Fields
from kvstore_daemon.requests import lone_get
from kvstore_daemon.requests.administration import CHANGES, Administration
from kvstore_daemon.requests.authors import authors_of, named
from kvstore_daemon.requests.fair_queue import SLICE_SECONDS, FairQueue, PendingLimit
from kvstore_daemon.requests.pending_request import Answer, PendingRequest
from kvstore_daemon.requests.permission import allowed, has_ended, recheck
from kvstore_daemon.requests.reads import READS, Page, Read
from kvstore_daemon.requests.router_socket import (
    MAX_ENVELOPE_BYTES,
    MAX_ENVELOPE_FRAMES,
    Frames,
    RequestMessage,
    RouterSocket,
)
from kvstore_daemon.requests.slow_requests import SlowRequests
from kvstore_daemon.requests.writes import write_request
from kvstore_daemon.settings import DaemonSettings
from kvstore_daemon.status import Counters, Status, limits_of
from kvstore_daemon.storage.interface import Engine, LogPosition, WriteAnswer
from kvstore_daemon.subscriber_list import SubscriberList

log = logging.getLogger("kvstore.daemon")

RECEIVE_AT_ONCE = 64
"""Requests received in one turn, before what was committed meanwhile is published and answered."""

PENDING_FACTOR = 4
"""The memory that a pending request may take, as a multiple of its bytes: they are copied out of what libzmq
received, into the store's pages, and into those of the log."""


class RequestHandler:
    """Receives requests and answers them; used by the loop's thread only."""

    def __init__(
        self,
        loop: Loop,
        settings: DaemonSettings,
        engine: Engine,
        socket: RouterSocket,
        committer: GroupCommitter,
        counters: Counters,
        status: Status,
        authority: Authority,
        subscribers: SubscriberList,
        backups: Backups,
    ) -> None:
        self._loop = loop
        self._engine = engine
        self._socket = socket
        self._committer = committer
        self._counters = counters
        self._authority = authority
        self._limits = limits_of(settings)
        self._slow = SlowRequests(settings.slow_log_ms)
        self._reads = _answers(engine, status, authority, subscribers, self._slow, backups)
        self.pending = PendingLimit(settings.max_pending_requests)
        self.queue = FairQueue(loop, socket, self.pending, counters, self._begin, self.proceed)
        self._malformed = RateLimitedLog(log)
        # where everybody may do everything, and limits are none for what is so small
        self._knows_lone_gets = not authority.is_on and self._limits.request_bytes >= lone_get.MAX_BYTES
        self._is_empty = False
        self._is_draining = False
        self._epoch = ""
        self.head = 0
        """The revision of replies to requests that read nothing."""
        self.waiting: set[PendingRequest] = set()
        """Those that wait until the engine has caught up. They count as pending, and one whose peer has gone
        is dropped when the engine has answered."""
        self.is_stopping = False
        """Refuse what has not begun yet."""

    def start(self, position: LogPosition) -> None:
        """Watch the socket, and receive from the next turn on."""
        self._epoch, self.head = position.epoch, position.head
        self._loop.watch(self._socket.fileno(), self._note_readable)
        self._loop.watch(self._socket.monitor_fileno(), self._socket.note_connections)
        self._loop.watch(self._socket.incoming.fileno(), self._drain)

    def restart(self, position: LogPosition) -> None:
        """The store's history was replaced. What was read of the former one is read again, so that nothing in
        a reply is of another history than its epoch says."""
        self._epoch, self.head = position.epoch, position.head
        self.queue.restart_reads()

    def can_receive(self) -> bool:
        """Whether a request can be received now."""
        return self._may_receive() and self._socket.has_message()

    def accounted_bytes(self) -> int:
        """The bytes of memory that requests and replies may take; any thread may call this."""
        return PENDING_FACTOR * self.pending.bytes + self._socket.untaken + self.queue.making

    def _note_readable(self) -> None:
        self._is_empty = False

    def _drain(self) -> None:
        """libzmq keeps too much: receive all of it, and refuse what there is no room for."""
        self._socket.incoming.clear()
        self._is_draining = True
        self._is_empty = False

    def _may_receive(self) -> bool:
        return not self._is_empty and (self._is_draining or self.pending.has_room())

    def receive(self) -> None:
        """Receive until there is nothing left, there is no room, or enough was received for one turn. What
        cannot be done within a slice of time, or has to wait for its peer's turn, is only received.

        Once the socket was found empty it is not asked again until its descriptor is readable, or a reply may
        have consumed what that would have reported.
        """
        deadline = time.monotonic() + SLICE_SECONDS
        for number in range(RECEIVE_AT_ONCE):
            if not self._may_receive():
                break
            message = self._socket.receive()
            if message is not None:
                self._admit(message, deadline)
            # Often a lone request came, and to ask takes less than to receive nothing.
            if message is None or (number == 0 and not self._socket.has_message()):
                self._is_empty = True
        if self._is_empty and self._is_draining:
            self._is_draining = False
            self._socket.incoming.drained()

    def _admit(self, message: RequestMessage, deadline: float) -> None:
        """Begin a request at once, let it wait for its peer's turn, or refuse it."""
        peer, size = message.peer, message.size
        has_room = self.pending.has_room()
        self.pending.add(size)
        self._counters.requests += 1
        self._counters.bytes_received += size
        if not has_room:
            busy = "too many requests are in progress or waiting; try again"
            self._refuse(message, KvError("too_busy", busy))
        elif self.queue.is_open_to(peer) and time.monotonic() < deadline:
            self._begin(message)
        elif self.queue.is_full_for(peer):
            busy = "too many requests wait behind unread replies; read those, then try again"
            self._refuse(message, KvError("too_busy", busy))
        else:
            self.queue.add(message)

    def _begin(self, message: RequestMessage) -> None:
        """Check a request, and hand over its writes or do its reads."""
        try:
            key = lone_get.key_of(message.frames) if self._may_be_lone_get(message.peer) else None
            if key is not None:
                self._begin_lone_get(message, key)
                return
            request = self._decode(message)
            if message.peer.is_gone and not request.writes:
                self._drop(message)
                return
            who = UNRESTRICTED
            if self._authority.is_on:
                who = self._authority.principal_of(message.peer.user_id)
                request = allowed(request, who)
            authors = authors_of(who, request)
            self._counters.count_operations(request.ops)
            asks = who if request.writes else named(who, authors)
            pending = PendingRequest(message, request, asks, self._authority.table)
            if request.writes:
                self._committer.add(write_request(request, message.frames, pending, authors), message.size)
            else:
                self.proceed(pending)
        except Exception as error:  # every request gets one reply
            self._refuse(message, error)

    def _may_be_lone_get(self, peer: Peer) -> bool:
        is_usual = not (self.is_stopping or peer.is_gone or peer.descriptor == UNKNOWN)
        return self._knows_lone_gets and is_usual

    def _begin_lone_get(self, message: RequestMessage, key: bytes) -> None:
        """Answer a get of one key with its record. What needs more than that (others' commits to wait for, a
        key that is not there, damage, a line in the log) is done as with all other requests."""
        self._counters.count_operations(lone_get.OPS)
        pending = PendingRequest(message, lone_get.request_for(key), UNRESTRICTED, self._authority.table)
        pending.is_current = True
        if not self._engine.catch_up(pending):
            self.waiting.add(pending)
            return
        reply = None
        if not log.isEnabledFor(logging.DEBUG):
            reply = lone_get.reply_with(self._engine, key, self._epoch)
        if reply is None:
            self.proceed(pending)
        else:
            self._slow.look_at(pending)
            self._reply(message, reply)

    def _decode(self, message: RequestMessage) -> Request:
        if self.is_stopping:
            raise _stopping()
        if message.peer.descriptor == UNKNOWN:
            raise self._malformed_message(
                "its sender speaks a version of ZMTP before 3.0; use libzmq 4 or newer"
            )
        frames, limit = message.frames, self._limits.request_bytes
        if not frames:
            raise self._malformed_message(
                "a message needs an empty frame and the request behind it, as a REQ socket sends them; "
                f"before the empty one there may be {MAX_ENVELOPE_FRAMES - 2} frames, none of them empty, of "
                f"{MAX_ENVELOPE_BYTES} bytes together"
            )
        if len(frames[0]) > limit:
            raise KvError("request_too_large", f"frame 1 has more than {limit} bytes", limit=limit)
        return decode_request(frames, self._limits)

    def _malformed_message(self, message: str) -> KvError:
        """The error for a message that is no request. It is logged too: a sender that forgot the empty frame
        may not recognise a reply that begins with one."""
        self._malformed.warning("refused a message to the requests address: %s", message)
        return KvError("bad_request", message)

    def proceed(self, request: PendingRequest, answer: WriteAnswer | None = None) -> None:
        """Take the engine's answer to the writes, or its word that it has caught up, if it was asked for
        either; do the reads, or a slice of them; and reply if all is done. What comes back from the engine
        waits for its peer's turn as what has just come does: many reads come back at once, and their peer may
        not take its replies."""
        try:
            if answer is not None:
                self._take(answer, request)
            if request.peer.is_gone:
                self._drop(request, is_done=request.has_writes_only())
            elif request.has_writes_only():
                self._answer(request)
            elif not (request.is_current or self._catch_up(request)):
                self.waiting.add(request)
            elif answer is not None and not self.queue.is_open_to(request.peer):
                self.queue.add_reading(request)
            elif self._read(request):
                self._answer(request)
            else:
                self.queue.add_reading(request)
        except Exception as error:  # every request gets one reply
            self._refuse(request, error, request.request_id)

    def _take(self, answer: WriteAnswer, request: PendingRequest) -> None:
        if request not in self.waiting:
            request.accept(answer)
            return
        self.waiting.remove(request)
        if answer.error is not None:
            _refuse_rest(request, answer.error if self.is_stopping else _with_advice(answer.error))

    def _catch_up(self, request: PendingRequest) -> bool:
        """Whether the reads may begin at once. Also after writes: these may have changed nothing, and were
        then not committed after what others committed."""
        request.is_current = True
        return not request.must_catch_up(self._epoch, self.head) or self._engine.catch_up(request)

    def refuse_waiting(self) -> None:
        """Answer those that wait until the engine has caught up, which it will not do any more."""
        for request in list(self.waiting):
            self.proceed(request, WriteAnswer(request, None, _stopping()))

    def _read(self, request: PendingRequest) -> bool:
        """Do a slice of the reads; returns whether that was the last one. It may be long after the request
        was checked, so what it has not done yet is checked again if something else holds by now."""
        authority = self._authority
        if request.table is not authority.table or has_ended(request.who):
            try:
                recheck(request, authority)
            except KvError as error:
                _refuse_rest(request, error)
                return True
        if request.has_stale and request.age is None:
            request.age = self._engine.age()  # before it is read: afterwards it may be younger
        return request.read(self._engine, self._reads, time.monotonic() + SLICE_SECONDS)

    def _answer(self, request: PendingRequest) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("answered %s", request.summary(), extra=request_extra(request.request_id))
        self._slow.look_at(request)
        self._reply(request, request.reply(self._epoch, self.head))

    def _refuse(
        self, request: RequestMessage | PendingRequest, error: Exception, request_id: RequestId | None = None
    ) -> None:
        """Answer a whole request with an error."""
        if not isinstance(error, KvError):
            log.error("a request failed", exc_info=error, extra=request_extra(request_id))
            error = KvError("internal", "the daemon failed on this request; see its log")
        elif log.isEnabledFor(logging.DEBUG):
            # not its message: that of incr has the number that is stored
            log.debug("refused a request: %s", error.code, extra=request_extra(request_id))
        self._counters.requests_refused += 1
        self._reply(request, encode_error(error, request_id))

    def _reply(self, request: RequestMessage | PendingRequest, frames: Frames) -> None:
        self.pending.remove(request.size)
        self._counters.bytes_replied += self._socket.reply(request.peer, request.envelope, frames)
        self._is_empty = False

    def _drop(self, request: RequestMessage | PendingRequest, *, is_done: bool = False) -> None:
        """Let go of a request whose peer has gone; one that ``is_done`` needs only a reply."""
        self._counters.requests_dropped += not is_done
        self.pending.remove(request.size)


def _stopping() -> KvError:
    return KvError("unavailable", "the daemon is stopping; try again when it is back")


def _with_advice(error: KvError) -> KvError:
    """The error for a read that has to be current and cannot be."""
    message = f"{error.message}; a read with 'stale' is answered from what the daemon has"
    return KvError(error.code, message, **error.details)


def _refuse_rest(request: PendingRequest, error: KvError) -> None:
    """Let ``error`` be the result of what was not done; raises it if nothing was."""
    if not request.has_changed_something():
        raise error
    request.refuse_rest(error)


def _answers(
    engine: Engine,
    status: Status,
    authority: Authority,
    subscribers: SubscriberList,
    slow: SlowRequests,
    backups: Backups,
) -> dict[str, Answer]:
    """What does each op that is no write, by its name, except gets."""
    administration = Administration(authority)

    def page(fields: Fields, *values: bytes) -> Page:
        return Page(fields, values, engine.position().head)

    def read_backup(op: dict[str, Any], who: Principal) -> Page:
        size = op.get("size", MAX_BACKUP_PIECE_BYTES)
        piece = backups.read(op["id"], op["offset"], size, who.name)
        return page({"size": len(piece)}, piece)

    def delete_backup(op: dict[str, Any], who: Principal) -> Page:
        backups.delete(op["id"], who.name)
        return page({"deleted": 1})

    answers: dict[str, Answer] = {
        "status": lambda _op, who: page(status.fields_for(who)),
        "whoami": lambda _op, who: page(administration.whoami(who)),
        "access": lambda _op, _who: page(*administration.access()),
        "identities": lambda _op, _who: page(administration.identities()),
        "subscribers": lambda op, _who: page(subscribers.shown(op.get("limit", MAX_PAGE))),
        "slow": lambda op, _who: page(slow.shown(op.get("limit", MAX_PAGE))),
        "kick": lambda op, who: page(subscribers.kick(op["id"], who.name)),
        "backups": lambda _op, _who: page({"backups": backups.described()}),
        "backup_make": lambda op, who: page(backups.make(op["id"], who.name)),
        "backup_read": read_backup,
        "backup_delete": delete_backup,
    }
    for name in CHANGES:
        answers[name] = lambda op, who: page(administration.change(op, who))
    return {**answers, **{name: _of_engine(engine, read) for name, read in READS.items()}}


def _of_engine(engine: Engine, read: Read) -> Answer:
    return lambda op, _who: read(engine, op)
