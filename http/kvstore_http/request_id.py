"""What each request is called in logs and answers: as its client calls it, or by a name made up here."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from contextvars import ContextVar

from kvstore_core.operations import is_request_id

current_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id that the daemon is told with what the present greenlet asks of it.

Set only where somebody sent one, or may look for it in the daemon's log: to tell it every id would take
some 3% of a gathered get.
"""

_prefix = os.urandom(4).hex()
_numbers = itertools.count(1)


def reseed() -> None:
    """Begin ids of this process' own, after a fork."""
    global _prefix
    _prefix = os.urandom(4).hex()


os.register_at_fork(after_in_child=reseed)


def sent_id(headers: Mapping[str, str]) -> str | None:
    """The id that came with the request, if it may be used. ``headers`` as the parser names them."""
    request_id = headers.get("X_REQUEST_ID")
    return request_id if request_id is not None and is_request_id(request_id) else None


def new_id() -> str:
    """An id that no other request of the service has, to all intents and purposes."""
    return f"{_prefix}-{next(_numbers):x}"
