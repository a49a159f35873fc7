"""What the service tells of itself: ``/v1/status`` of the daemon, and ``/metrics`` of workers and daemon."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import falcon
from prometheus_client.exposition import choose_encoder

from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.operations import status_for
from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.metrics.counters import WorkerCounters
from kvstore_http.metrics.exposition import MetricsCollector
from kvstore_http.protocol.bodies import send_fresh_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import reply_json, timestamp
from kvstore_http.protocol.query_params import read_query


class StatusResource:
    """``/v1/status``."""

    def __init__(self, daemon: DaemonClient) -> None:
        self._daemon = daemon

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        who: Principal = req.env[WHO]
        status = status_for(who, reply_json(self._daemon.call({"op": "status"}, who=who)))
        for name in ("oldest_event_at", "newest_event_at"):
            if status.get(name) is not None:
                status[name] = timestamp(status[name])
        send_fresh_json(req, resp, status)


class MetricsResource:
    """``/metrics``: text, or OpenMetrics where ``Accept`` asks for it. ``ends`` gives when whose last
    credential ends."""

    def __init__(
        self, daemon: DaemonClient, counters: WorkerCounters, ends: Callable[[], Mapping[str, int]]
    ) -> None:
        self._daemon = daemon
        self._ends = ends
        self._counters = counters

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer with or without the daemon; ``kvstore_up`` says which."""
        read_query(req.env, routes.NOTHING)
        encode, content_type = choose_encoder(req.env.get("HTTP_ACCEPT", ""))
        resp.data = encode(MetricsCollector(self._counters, self._status(), self._ends()))
        resp.content_type = content_type
        resp.set_header("cache-control", "no-store")
        resp.set_header("vary", "Accept")

    def _status(self) -> dict[str, Any] | None:
        try:
            return self._daemon.call({"op": "status"}, who=THE_FACADE)
        except KvError:
            return None
