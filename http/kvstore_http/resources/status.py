"""``/v1/status``: the state of the daemon."""

from __future__ import annotations

import falcon

from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.bodies import send_fresh_json
from kvstore_http.protocol.json_records import reply_json, timestamp
from kvstore_http.protocol.query_params import read_query


class StatusResource:
    """``/v1/status``."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        status = reply_json(self._daemon.call({"op": "status"}))
        for name in ("oldest_event_at", "newest_event_at"):
            if status[name] is not None:
                status[name] = timestamp(status[name])
        send_fresh_json(req, resp, status)
