"""What goes with a request: its id, and what server and application leave for each other in its environ,
beside what PEP 3333 has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from kvstore_core.operations import is_request_id

RAW_PATH = "kvstore.raw_path"
RAW_QUERY = "kvstore.raw_query"
"""From the server: the two halves of the request target, exactly as they were sent."""

REQUEST_ID = "kvstore.request_id"
"""From the server: the id of the request in logs and answers, the one that its client sent or a new one."""

BODY_AWAITED = "kvstore.body_awaited"
"""From the server: True where the client waits to hear whether to send the body (``Expect: 100-continue``). A
resource refuses what it can before it reads the body."""

STRANGERS_BODY = "kvstore.strangers_body"
"""From the server: True where a large body was not read, since its sender does not seem to be known."""

NO_ROOM = "kvstore.no_room"
"""From the server: the KvError for which the connection is one too many."""

HAND_OVER = "kvstore.hand_over"
"""From the server: a function that takes a ``HandOver`` (:mod:`kvstore_http.server.response`), to which the
connection is given once the headers of the response are written."""

STALE_AGE = "kvstore.stale_age"
"""How many milliseconds ago the oldest of what was read, of what need not be current, was known to be."""

WHO = "kvstore.who"
"""From the server or from the route's guard: the Principal that makes the request. Without one no operation
is done."""

ROUTE = "kvstore.route"
"""From the router: the template of the route, for counters and logs."""

WAITS = "kvstore.waits"
"""From a resource: the client asked to wait, so how long the request took says nothing."""

_HAS_LEFT = "waitress.client_disconnected"


def leaving_of(environ: dict[str, Any]) -> Callable[[], bool]:
    """What says whether the client has closed the connection, or at least its half of it: one that waits for
    an answer keeps both open."""
    has_left: Callable[[], bool] = environ[_HAS_LEFT]
    return has_left


current_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id that goes to the daemon with what the present greenlet asks.

Set only if the client sent one, or if the access log is on and somebody may look for it in the daemon's log:
to send every id would slow down every get.
"""


def _random_ids() -> Iterator[str]:
    while True:  # in blocks: to ask the system for each would take longer than the rest
        block = os.urandom(2048).hex()
        for start in range(0, len(block), 16):
            yield block[start : start + 16]


_ids = _random_ids()


def reseed() -> None:
    """Make other ids, after a fork."""
    global _ids
    _ids = _random_ids()


os.register_at_fork(after_in_child=reseed)


def sent_id(headers: Mapping[str, str]) -> str | None:
    """The id that came with the request, if it may be used. ``headers`` as the parser names them."""
    request_id = headers.get("X_REQUEST_ID")
    return request_id if request_id is not None and is_request_id(request_id) else None


def new_id() -> str:
    """An id that no other request of the service has, for all practical purposes. It is random, since numbers
    would tell everybody how many requests there are."""
    return next(_ids)
