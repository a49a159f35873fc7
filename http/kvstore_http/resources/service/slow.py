"""``/v1/slow``: the last requests that took long, over HTTP and at the daemon."""

from __future__ import annotations

from typing import Any

import falcon

from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_PAGE
from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.inspection.siblings import Siblings
from kvstore_http.protocol.bodies import send_fresh_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.query_params import SHOWN, read_query

SLOW = "slow"
"""What workers ask each other."""

_OF_HTTP = ("daemon_seconds", "client_seconds", "status", "worker")
_OF_DAEMON = ("queued_seconds",)


class SlowResource:
    """``/v1/slow``."""

    def __init__(self, daemon: DaemonClient, siblings: Siblings) -> None:
        self._daemon = daemon
        self._siblings = siblings

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with what all that are heard in time have kept, the newest first."""
        limit = read_query(req.env, routes.SHOWN).get(SHOWN) or MAX_PAGE
        gathered = self._siblings.ask(SLOW, limit=limit)
        unheard = [f"worker {number}" for number in gathered.unheard]
        rows: list[dict[str, Any]] = []
        for answer in gathered.answers.values():
            rows += [{"side": "http", **row, **dict.fromkeys(_OF_DAEMON)} for row in answer["requests"]]
        try:
            found = self._daemon.call({"op": "slow", "limit": limit}, who=req.env[WHO])
        except KvError as error:
            if not error.row.is_temporary:
                raise
            unheard.append("daemon")
        else:
            rows += [{"side": "daemon", **row, **dict.fromkeys(_OF_HTTP)} for row in found["requests"]]
        rows.sort(key=lambda row: row["time"], reverse=True)
        shown = [{**row, "time": timestamp(row["time"])} for row in rows[:limit]]
        send_fresh_json(req, resp, {"requests": shown, "unheard": unheard})
