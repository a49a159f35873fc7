"""Requests of one kind that wait to be sent, and how they are merged and answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter_ns
from typing import Any

from gevent.hub import Hub, Waiter
from greenlet import getcurrent

from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_core.wire import Authors, RequestId, WriteSequence
from kvstore_http.backend.dealer_socket import DealerSocket, Outcome
from kvstore_http.protocol.environ import current_request_id

MERGED_OPS = 500
MERGED_BYTES = 1024 * 1024

_LOGGED = frozenset(
    name
    for name in OPERATIONS
    if name == "kick" or name.startswith(("identity_", "token_", "key_", "backup_"))
)
"""They change no key, so they are not numbered, but the daemon's log says for whom they were done."""

OpResult = dict[str, Any] | KvError


class QueuedRequest:
    """A request whose :meth:`finish` is called with its outcome, in the hub."""

    __slots__ = ("atomic", "author", "deadline", "is_alone", "ops", "request_id", "size", "values")

    def __init__(
        self,
        ops: Sequence[dict[str, Any]],
        values: Sequence[bytes],
        deadline: float,
        *,
        author: str,
        atomic: bool = False,
        request_id: str | None = None,
    ) -> None:
        self.ops = ops
        self.values = values
        self.size = sum(map(len, values)) if values else 0
        self.atomic = atomic
        self.deadline = deadline
        self.request_id = request_id
        self.author = author or None
        """In whose name it is made; None while access is off."""
        self.is_alone = False
        """Whether it is not to be merged with others (again)."""

    def finish(self, outcome: Any) -> None:
        """Take the ``outcome``."""
        raise NotImplementedError


class WaitingRequest(QueuedRequest):
    """A request whose greenlet waits at ``waiter``."""

    __slots__ = ("waiter",)

    def __init__(self, hub: Hub, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, request_id=current_request_id.get(), **kwargs)
        self.waiter = Waiter(hub)

    def wait(self) -> Any:
        """Block the greenlet until there is an outcome."""
        began, this = perf_counter_ns(), getcurrent()
        try:
            return self.waiter.get()
        finally:
            this.waited_ns = waited_ns() + perf_counter_ns() - began

    def finish(self, outcome: Any) -> None:
        """Let the greenlet go on with ``outcome``."""
        self.waiter.switch(outcome)


def waited_ns() -> int:
    """How long the present greenlet has waited for the daemon since it began."""
    waited: int = getattr(getcurrent(), "waited_ns", 0)
    return waited


class RequestQueue:
    """Requests that wait for one of a few ``slots``; each slot has one request under way at a time.

    A slot is a WriteSequence, which numbers what it sends, or None for requests that only read. With
    ``merges`` the requests have one op each, share the requests that are sent, and get the result of their
    op; otherwise each is sent as it is and gets the reply.
    """

    def __init__(
        self,
        socket: DealerSocket,
        slots: Iterable[WriteSequence | None],
        on_free: Callable[[], None],
        *,
        merges: bool,
    ) -> None:
        self.waiting: deque[QueuedRequest] = deque()
        """In the order of their deadlines."""
        self._socket = socket
        self._free = list(slots)
        self._on_free = on_free
        self._merges = merges

    def send(self) -> None:
        """Send what waits, as far as there are free slots; ``on_free`` is called when one is free again."""
        while self.waiting and self._free:
            self._send(self._take(), self._free.pop())

    def take_overdue(self, now: float) -> list[QueuedRequest]:
        """Take out the requests whose deadline has passed."""
        late = []
        while self.waiting and self.waiting[0].deadline <= now:
            late.append(self.waiting.popleft())
        return late

    def _take(self) -> list[QueuedRequest]:
        """Take from the front what is sent as one request; at least one."""
        waiting = self.waiting
        first = waiting.popleft()
        requests, size = [first], first.size
        if not self._merges or first.is_alone:
            return requests
        while waiting and len(requests) < MERGED_OPS:
            request = waiting[0]
            size += request.size
            if request.is_alone or size > MERGED_BYTES:
                break
            requests.append(waiting.popleft())
        return requests

    def _send(self, requests: list[QueuedRequest], slot: WriteSequence | None) -> None:
        def done(outcome: Outcome) -> None:
            self._free.append(slot)
            self._finish(requests, outcome)
            self._on_free()

        first = requests[0]
        ops, values = first.ops, first.values
        if len(requests) > 1:
            ops = [request.ops[0] for request in requests]
            values = [request.values[0] for request in requests if request.values]
        header: dict[str, Any] = {"atomic": first.atomic, "request_id": _request_ids(requests)}
        if slot is not None:
            header |= slot.next()
        if slot is not None or first.ops[0]["op"] in _LOGGED:
            header["author"] = _authors(requests)
        self._socket.send(ops, values, done, first.deadline, **header)

    def _finish(self, requests: list[QueuedRequest], outcome: Outcome) -> None:
        """Give each of the requests its part of the outcome."""
        if isinstance(outcome, KvError):
            self._refuse(requests, outcome)
        elif not self._merges:
            requests[0].finish(outcome)
        else:
            for request, result in zip(requests, outcome.results, strict=True):
                if isinstance(result, KvError) and result.code == "reply_too_large" and len(requests) > 1:
                    self._send_alone(request)
                else:
                    request.finish(with_age(result, outcome.age))

    def _refuse(self, requests: list[QueuedRequest], error: KvError) -> None:
        """A request that is wrong was not applied. If several share it, one of them is at fault, or it is
        too large only because they do: each is then sent alone."""
        is_wrong = error.row.status < 500 or error.code == "reply_too_large"
        for request in requests:
            if is_wrong and len(requests) > 1:
                self._send_alone(request)
            else:
                # a copy each: one that was raised collects the frames of its raiser
                request.finish(KvError(error.code, error.message, **error.details))

    def _send_alone(self, request: QueuedRequest) -> None:
        request.is_alone = True
        self.waiting.appendleft(request)


def with_age(result: OpResult, age: int | None) -> OpResult:
    """The result, or error, of a ``stale`` op with the ``age`` of its reply; others as they are."""
    if age is not None:
        (result.details if isinstance(result, KvError) else result)["age"] = age
    return result


def _request_ids(requests: Sequence[QueuedRequest]) -> RequestId | None:
    """The ids of requests that are sent as one; None if none of them has one."""
    ids = [request.request_id for request in requests]
    if not any(ids):
        return None
    return ids if len(ids) > 1 else ids[0]


def _authors(requests: Sequence[QueuedRequest]) -> Authors | None:
    """In whose names the changes of requests that are sent as one are made."""
    authors = [request.author for request in requests]
    return authors[0] if len(set(authors)) == 1 else authors
