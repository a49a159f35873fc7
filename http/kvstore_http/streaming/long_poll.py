"""Waiting for a key to change: ``?wait=30s&since=7``."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from kvstore_core.access.grants import Need
from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.model import Cursor
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.streaming.change_feed import ChangeFeed

Asks = Callable[[], Principal]


class _State(NamedTuple):
    """A key as one read found it: its record (None: missing), and the revision of its last change, 0 if
    the log has none. ``head`` is the revision of the snapshot that was read."""

    record: dict[str, Any] | None
    changed: int
    head: int


class Unchanged(NamedTuple):
    """Nothing happened to the key since ``revision``; its ``record``, None if it is missing."""

    record: dict[str, Any] | None
    revision: int


def read_after_change(
    daemon: DaemonClient, feed: ChangeFeed, key: str, since: Cursor | None, seconds: float, asks: Asks
) -> dict[str, Any] | Unchanged:
    """The key's record once it has changed after ``since``; raises ``not_found`` if it is gone then.

    ``asks`` gives who asks, as of now, and raises if that is nobody any more: it is called before each read.

    ``since`` is the revision that the caller knows: 0 for a missing key. When nothing changed in
    ``seconds``, the answer is Unchanged. Without ``since`` the caller knows nothing: the next change
    from now on counts, and when there is none the answer is the state at the end of the wait.
    """
    deadline = time.monotonic() + seconds
    who = asks()

    def check() -> None:
        asks().check(_needs(key))

    state = _read(daemon, key, who)
    if since is not None and _is_news(daemon, state, since):
        return _answer(state)
    known = state.head
    while (remaining := deadline - time.monotonic()) > 0:
        goes_on = feed.wait_for_change(key, state.head, min(remaining, _seconds_left(who)), check)
        # read again even at the end of the time: if the feed was cut off, this finds what it missed, or
        # fails because the daemon is away
        who = asks()
        state = _read(daemon, key, who)
        if state.changed > known:
            return _answer(state)
        if not goes_on and remaining <= _seconds_left(who):
            break
    return _answer(state) if since is None else Unchanged(state.record, since.revision)


def _is_news(daemon: DaemonClient, state: _State, since: Cursor) -> bool:
    """Whether the state differs from what somebody saw who knows it as of ``since``."""
    if since.revision > state.head or (since.epoch and since.epoch != daemon.epoch):
        return True  # a revision of another history of the store
    if state.record is None and since.revision == 0:
        return False
    if state.record is None and state.changed == 0:
        # The log knows nothing of the key, so it was not deleted since, as far as the log goes.
        floor: int = daemon.call({"op": "status"}, who=THE_FACADE)["floor"]
        return since.revision < floor
    return state.changed > since.revision or not is_history(daemon, since.revision)


def is_history(daemon: DaemonClient, revision: int) -> bool:
    """Whether ``revision`` belongs to this history of the store. A restore skips revisions, which then belong
    to another history; what is older than the log counts as part of this one."""
    if revision == 0:
        return True
    try:
        # the facade asks: nothing is told of what happened, and to whom
        daemon.call({"op": "events", "since": revision, "limit": 1, "values": False}, who=THE_FACADE)
    except KvError as error:
        if error.code != "cursor_expired":
            raise
        return bool(error.details.get("reason") == "expired")
    return True


def _needs(key: str) -> list[Need]:
    return [Need("read", key), Need("watch", key)]


def _seconds_left(who: Principal) -> float:
    """How long the credential of ``who`` is still good."""
    return inf if who.expires_at is None else max(0.0, who.expires_at / 1000 - time.time())


def _read(daemon: DaemonClient, key: str, who: Principal) -> _State:
    who.check(_needs(key))
    get = {"op": "get", "key": key}
    last = {"op": "history", "key": key, "limit": 1, "values": False}
    reply = daemon.request([get, last], who=who)
    record, page = reply.results
    if not isinstance(record, KvError):
        return _State(record, record["revision"], reply.revision)
    if record.code != "not_found":
        raise record
    if isinstance(page, KvError):
        if page.code != "not_found":
            raise page
        return _State(None, 0, reply.revision)
    changed = page["events"][0]["revision"] if page["events"] else 0
    return _State(None, changed, reply.revision)


def _answer(state: _State) -> dict[str, Any]:
    if state.record is not None:
        return state.record
    revision = state.changed or state.head
    raise KvError("not_found", "the key is gone, or was never there", revision=revision)
