"""``/v1/slow``: the last requests that took long, over HTTP and at the daemon."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_core.limits import MAX_PAGE
from kvstore_http import routes
from kvstore_http.inspection.processes import Processes
from kvstore_http.protocol.bodies import send_fresh_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.query_params import SHOWN, read_query

SLOW = "slow"
"""What workers ask each other, and the daemon."""

_OF_HTTP = ("daemon_seconds", "client_seconds", "status", "worker")
_OF_DAEMON = ("queued_seconds",)


class SlowResource:
    """``/v1/slow``."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with what all that are heard in time have kept, the newest first."""
        limit = read_query(req.env, routes.SHOWN).get(SHOWN) or MAX_PAGE
        heard = self._processes.ask(SLOW, req.env[WHO], limit=limit)
        rows: list[dict[str, Any]] = []
        for answer in heard.workers:
            rows += [{"side": "http", **row, **dict.fromkeys(_OF_DAEMON)} for row in answer["requests"]]
        if heard.daemon is not None:
            rows += [{"side": "daemon", **row, **dict.fromkeys(_OF_HTTP)} for row in heard.daemon["requests"]]
        rows.sort(key=lambda row: row["time"], reverse=True)
        shown = [{**row, "time": timestamp(row["time"])} for row in rows[:limit]]
        send_fresh_json(req, resp, {"requests": shown, "unheard": heard.unheard})
