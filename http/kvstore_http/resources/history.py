"""The past, as far as the log goes back: the events of a key or a prefix, and a record as of a revision."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import Reads, reads_of, say_age
from kvstore_http.protocol.bodies import send_fresh_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import reply_json
from kvstore_http.protocol.query_params import (
    BEFORE,
    CURSOR,
    DEFAULT_LIMIT,
    INLINE,
    KEY,
    LIMIT,
    MIN_REVISION,
    PREFIX,
    VALUES,
    Parameter,
    Query,
    read_keyed_query,
    read_query,
)
from kvstore_http.resources.writes import present_record
from kvstore_http.streaming.long_poll import is_history

_OF_OP: tuple[Parameter[Any], ...] = (BEFORE, CURSOR, VALUES, MIN_REVISION)
"""The parameters that are fields of the op."""


class HistoryResource:
    """``/v1/history/{key}``, ``/v1/history?key=``, and ``/v1/history?prefix=``."""

    def __init__(self, daemon: DaemonClient, page_bytes: int) -> None:
        self._daemon = daemon
        self._page_bytes = page_bytes

    def on_get(self, req: falcon.Request, resp: falcon.Response, key: str | None = None) -> None:
        of, query = _read_query(req.env, key)
        limit, inline = query.get(LIMIT) or DEFAULT_LIMIT, query.get(INLINE) or False
        op: dict[str, Any] = {"op": "history", **of, "limit": limit, "max_bytes": self._page_bytes}
        for parameter in _OF_OP:
            choice = query.get(parameter)
            if choice is not None:
                op[parameter.name] = choice
        page = reads_of(self._daemon, query, req.env).call(op, who=req.env[WHO])
        say_age(req.env, resp)
        events = [reply_json(event, inline=inline) for event in page["events"]]
        body = {**of, "events": events, "cursor": page["cursor"], "truncated": page["truncated"]}
        send_fresh_json(req, resp, body)


def _read_query(environ: dict[str, Any], key: str | None) -> tuple[dict[str, str], Query]:
    """Of which key or prefix the history is wanted, and the parameters beside it."""
    if key is None:
        query = read_query(environ)
        if KEY not in query:
            query.expect(routes.HISTORY_OF_PREFIX)
            if PREFIX not in query:
                message = "give the parameter key, or prefix, which may be empty"
                raise KvError("bad_request", message, parameter="key")
            return {"prefix": query.required(PREFIX)}, query
    key, query = read_keyed_query(environ, key, routes.HISTORY)
    return {"key": key}, query


def read_as_of(daemon: Reads, key: str, revision: int, who: Principal) -> dict[str, Any]:
    """The record that ``key`` had right after ``revision``.

    Raises ``not_found`` if there was none, ``revision_gone`` if the log no longer says, and
    ``bad_request`` for a revision that is still to come.
    """
    present = present_record(daemon, key, who)
    if revision > daemon.head:
        is_history(daemon, revision)  # where the daemon lags, and reads are stale, this waits for it
        present = present_record(daemon, key, who)
    if revision > daemon.head:
        raise KvError("bad_request", f"revision {revision} is in the future", revision=daemon.head)
    if not is_history(daemon, revision):
        raise KvError("revision_gone", f"revision {revision} is from before a restore")
    if present is not None and present["revision"] <= revision:
        return present  # also where the log no longer holds the event that wrote it
    event = _last_event(daemon, key, revision, who)
    if event["op"] != "put":
        raise KvError(
            "not_found", f"at revision {revision} there was no key {key!r}", revision=event["revision"]
        )
    return event


def _last_event(daemon: Reads, key: str, revision: int, who: Principal) -> dict[str, Any]:
    """The key's last event up to ``revision``, with its value."""
    op: dict[str, Any] = {"op": "history", "key": key, "before": revision + 1, "limit": 1, "values": True}
    while True:
        page = daemon.call(op, who=who)
        if page["events"]:
            event: dict[str, Any] = page["events"][0]
            return event
        if page["cursor"] is None:
            break
        op = {**op, "cursor": page["cursor"]}
    if page["truncated"]:
        raise KvError("revision_gone", f"the log no longer has {key!r} as of revision {revision}")
    raise KvError("not_found", f"at revision {revision} there was no key {key!r}")
