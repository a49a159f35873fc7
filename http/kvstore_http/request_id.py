"""The id of a request in logs and answers: the one that its client sent, or a new one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from contextvars import ContextVar

from kvstore_core.operations import is_request_id

current_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id that goes to the daemon with what the present greenlet asks.

Set only if the client sent one, or if the access log is on and somebody may look for it in the daemon's log:
to send every id would slow down every get.
"""

_prefix = os.urandom(4).hex()
_numbers = itertools.count(1)


def reseed() -> None:
    """Take another prefix, after a fork."""
    global _prefix
    _prefix = os.urandom(4).hex()


os.register_at_fork(after_in_child=reseed)


def sent_id(headers: Mapping[str, str]) -> str | None:
    """The id that came with the request, if it may be used. ``headers`` as the parser names them."""
    request_id = headers.get("X_REQUEST_ID")
    return request_id if request_id is not None and is_request_id(request_id) else None


def new_id() -> str:
    """An id that no other request of the service has, for all practical purposes."""
    return f"{_prefix}-{next(_numbers):x}"
