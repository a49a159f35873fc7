"""``/v1/subscribers``: who is subscribed, over HTTP and over ZeroMQ, and the end of one."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_PAGE, MAX_REPEATED
from kvstore_core.operations import is_subscriber_id
from kvstore_http import routes
from kvstore_http.inspection.processes import Processes
from kvstore_http.protocol.bodies import send_fresh_json, send_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.query_params import SHOWN, read_query

SUBSCRIBERS, KICK = "subscribers", "kick"
"""What workers ask each other, and the daemon."""

_OF_STREAMS = ("unsent_bytes", "events", "revision", "lag", "blocked_seconds", "worker")
"""What is not known of native subscribers: libzmq hides what it keeps for them."""


class SubscribersResource:
    """``/v1/subscribers``."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with all that are heard in time, and the names of those that are not."""
        limit = read_query(req.env, routes.SHOWN).get(SHOWN) or MAX_PAGE
        heard = self._processes.ask(SUBSCRIBERS, req.env[WHO], limit=limit)
        pages = [*heard.workers, *filter(None, [heard.daemon])]
        rows: list[dict[str, Any]] = []
        for answer in heard.workers:
            rows += [{**row, "kind": "http"} for row in answer["subscribers"]]
        if heard.daemon is not None:
            nothing = dict.fromkeys(_OF_STREAMS)
            rows += [{**row, **nothing, "kind": "native"} for row in heard.daemon["subscribers"]]
        rows.sort(key=_waiting, reverse=True)
        shown = [{**row, "since": timestamp(row["since"])} for row in rows[:limit]]
        count = sum(page["count"] for page in pages)
        send_fresh_json(req, resp, {"subscribers": shown, "count": count, "unheard": heard.unheard})


class SubscriberResource:
    """``/v1/subscribers/{id}``."""

    def __init__(self, processes: Processes) -> None:
        self._siblings, self._daemon = processes.siblings, processes.daemon

    def on_delete(self, req: falcon.Request, resp: falcon.Response, **parameters: str) -> None:
        """End a subscription; its client may come back."""
        subscriber_id = parameters["id"]
        read_query(req.env, routes.NOTHING)
        if not is_subscriber_id(subscriber_id):
            shown = subscriber_id[:MAX_REPEATED]
            raise KvError("not_found", f"{shown!r} is no subscriber's id; GET /v1/subscribers lists them")
        who: Principal = req.env[WHO]
        gathered = self._siblings.ask(KICK, subscriber_id=subscriber_id, by=who.name or req.remote_addr)
        if not any(gathered.answers.values()):
            if gathered.unheard:
                silent = ", ".join(map(str, gathered.unheard))
                raise KvError("unavailable", f"worker {silent} did not answer in time, and may have it")
            self._daemon.call({"op": "kick", "id": subscriber_id}, who=who)
        send_json(resp, {"kicked": subscriber_id})


def _waiting(row: dict[str, Any]) -> int:
    """How many bytes wait for a subscriber, as far as that is known."""
    waiting: int = row["queued_bytes"] + (row["unsent_bytes"] or 0)
    return waiting
