"""A key as it was right after some revision, as far as the log goes back."""

from __future__ import annotations

from typing import Any

from kvstore_core.errors import KvError
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.resources.writes import present_record
from kvstore_http.streaming.long_poll import is_history


def read_as_of(daemon: DaemonClient, key: str, revision: int) -> dict[str, Any]:
    """The record that ``key`` had right after ``revision``.

    Raises ``not_found`` if there was none, ``revision_gone`` if the log no longer says, and
    ``bad_request`` for a revision that is still to come.
    """
    present = present_record(daemon, key)
    if revision > daemon.head:
        raise KvError("bad_request", f"revision {revision} is in the future", revision=daemon.head)
    if not is_history(daemon, revision):
        raise KvError("revision_gone", f"revision {revision} is from before a restore")
    if present is not None and present["revision"] <= revision:
        return present  # also where the log no longer holds the event that wrote it
    event = _last_event(daemon, key, revision)
    if event["op"] != "put":
        raise KvError(
            "not_found", f"at revision {revision} there was no such key", revision=event["revision"]
        )
    return event


def _last_event(daemon: DaemonClient, key: str, revision: int) -> dict[str, Any]:
    """The key's last event up to ``revision``, with its value."""
    op: dict[str, Any] = {"op": "history", "key": key, "before": revision + 1, "limit": 1, "values": True}
    while True:
        page = daemon.call(op)
        if page["events"]:
            event: dict[str, Any] = page["events"][0]
            return event
        if page["cursor"] is None:
            break
        op = {**op, "cursor": page["cursor"]}
    if page["truncated"]:
        raise KvError("revision_gone", f"the log no longer has {key!r} as of revision {revision}")
    raise KvError("not_found", f"at revision {revision} there was no such key")
