"""A key as it was right after some revision, as far as the log goes back."""

from __future__ import annotations

from typing import Any

from kvstore_core.errors import KvError
from kvstore_http.interfaces import Link
from kvstore_http.protocol.long_poll import is_history


def read_as_of(link: Link, key: str, revision: int) -> dict[str, Any]:
    """The record that ``key`` had right after ``revision``.

    Raises ``not_found`` if there was none, ``revision_gone`` if the log no longer says, and
    ``bad_request`` for a revision that is still to come.
    """
    present = _present(link, key)
    if revision > link.head:
        raise KvError("bad_request", f"revision {revision} is in the future", revision=link.head)
    if not is_history(link, revision):
        raise KvError("revision_gone", f"revision {revision} is of a history that a restore has put aside")
    if present is not None and present["revision"] <= revision:
        return present  # also where the log no longer holds the event that wrote it
    event = _last_event(link, key, revision)
    if event["op"] != "put":
        raise KvError(
            "not_found", f"at revision {revision} there was no such key", revision=event["revision"]
        )
    return event


def _present(link: Link, key: str) -> dict[str, Any] | None:
    result = link.request([{"op": "get", "key": key}])[0]
    if not isinstance(result, KvError):
        return result
    if result.code != "not_found":
        raise result
    return None


def _last_event(link: Link, key: str, revision: int) -> dict[str, Any]:
    """The key's last event up to ``revision``, with its value."""
    op: dict[str, Any] = {"op": "history", "key": key, "before": revision + 1, "limit": 1, "values": True}
    while True:
        page = link.call(op)
        if page["events"]:
            event: dict[str, Any] = page["events"][0]
            return event
        if page["cursor"] is None:
            break
        op = {**op, "cursor": page["cursor"]}
    if page["truncated"]:
        raise KvError("revision_gone", f"the log no longer says what {key!r} was at revision {revision}")
    raise KvError("not_found", f"at revision {revision} there was no such key")
