"""The falcon application: resources on the routes of the table, problem documents for all errors."""

from __future__ import annotations

from functools import partial
from typing import Any

import falcon

from kvstore_core.errors import ERRORS
from kvstore_core.limits import MAX_BACKUP_PIECE_BYTES
from kvstore_core.media_types import JSON
from kvstore_http import routes
from kvstore_http.access.callers import Callers, everybody, nothing
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.inspection.processes import Processes
from kvstore_http.inspection.siblings import Siblings
from kvstore_http.metrics.counters import RequestCells, WorkerCounters
from kvstore_http.protocol import problems
from kvstore_http.protocol.origins import Cors, HostCheck, allowed_hosts, guarded
from kvstore_http.protocol.raw_router import RawPathRouter
from kvstore_http.resources import ui_files
from kvstore_http.resources.backups import BackupResource, BackupsResource, KeptBackups
from kvstore_http.resources.batch import BatchResource
from kvstore_http.resources.callers import NarrowResource, WhoamiResource
from kvstore_http.resources.changes import ChangesResource
from kvstore_http.resources.digest import DigestResource
from kvstore_http.resources.history import HistoryResource
from kvstore_http.resources.identities import (
    Identities,
    KeysResource,
    RotateResource,
    TokenResource,
    TokensResource,
)
from kvstore_http.resources.keys import KeyOpResource, KeyResource
from kvstore_http.resources.legacy import AllResource, RootResource
from kvstore_http.resources.listing import CollectionResource
from kvstore_http.resources.service.health import LivezResource, ReadyzResource
from kvstore_http.resources.service.openapi import OpenApiResource
from kvstore_http.resources.service.slow import SlowResource
from kvstore_http.resources.service.status import MetricsResource, StatusResource
from kvstore_http.resources.service.subscribers import SubscriberResource, SubscribersResource
from kvstore_http.resources.session import SessionResource
from kvstore_http.resources.subscribe import SubscribeResource
from kvstore_http.routes import Endpoint, Needs
from kvstore_http.server.short_path import ShortPath
from kvstore_http.settings import HttpSettings
from kvstore_http.streaming.broadcaster import Broadcaster
from kvstore_http.streaming.change_feed import ChangeFeed


def request_cells() -> RequestCells:
    """Where workers count requests: by the methods, routes and statuses of the table."""
    methods = {path: routes.methods_of(endpoints) for path, endpoints in routes.paths().items()}
    described = {response.status for endpoint in routes.ENDPOINTS for response in endpoint.responses}
    return RequestCells(methods, described | {row.status for row in ERRORS.values()} | {204})


def create_app(
    daemon: DaemonClient,
    feed: ChangeFeed,
    broadcaster: Broadcaster,
    settings: HttpSettings,
    counters: WorkerCounters,
    siblings: Siblings,
    callers: Callers | None = None,
) -> falcon.App[Any, Any]:
    """The application that serves what the ``daemon`` has, changes from ``feed``, and the streams of
    ``broadcaster``, to those that ``callers`` lets in. Without it access is off, and the server says who
    asks. What each worker has by itself is asked of all ``siblings``.

    It keeps no state between requests, so any number of them may run beside each other. What
    the resources show of ``counters`` is of all workers.
    """
    table = routes.paths()
    processes = Processes(siblings, daemon)
    identities = Identities(daemon, nothing if callers is None else callers.follower.renew)
    refreshed = everybody if callers is None else callers.refreshed
    one, history = KeyResource(daemon, feed, refreshed), HistoryResource(daemon, settings.page_bytes)
    backups = KeptBackups(daemon, refreshed)
    resources: dict[str, object] = {
        "/v1/kv/{key}": one,
        "/v1/kv": CollectionResource(daemon, one, settings, refreshed),
        "/v1/batch": BatchResource(daemon),
        **{path: KeyOpResource(daemon, op, table[path][0]) for path, op in routes.KEY_OPS.items()},
        "/v1/history/{key}": history,
        "/v1/history": history,
        "/v1/changes": ChangesResource(daemon, feed, settings.page_bytes, refreshed),
        routes.SUBSCRIBE_PATH: SubscribeResource(daemon, feed, broadcaster, settings),
        "/v1/digest": DigestResource(daemon, refreshed),
        "/v1/status": StatusResource(daemon),
        "/v1/whoami": WhoamiResource(callers),
        "/v1/narrow": NarrowResource(callers),
        "/v1/tokens": TokensResource(identities),
        "/v1/tokens/{name}": TokenResource(identities),
        "/v1/tokens/{name}/rotate": RotateResource(identities),
        "/v1/tokens/{name}/keys": KeysResource(identities, "" if callers is None else callers.server_key),
        "/v1/subscribers": SubscribersResource(processes),
        "/v1/subscribers/{id}": SubscriberResource(processes),
        "/v1/backups": BackupsResource(backups, feed),
        "/v1/backups/{id}": BackupResource(backups, min(settings.part_bytes, MAX_BACKUP_PIECE_BYTES)),
        "/v1/slow": SlowResource(processes),
        "/v1/session": SessionResource(None if callers is None else callers.begin_session),
        "/livez": LivezResource(),
        "/readyz": ReadyzResource(
            daemon,
            feed,
            counters.shared_counters,
            str if callers is None else lambda: callers.follower.problem,
        ),
        "/metrics": MetricsResource(daemon, counters, dict if callers is None else callers.follower.ends),
        "/openapi.json": OpenApiResource(),
        "/": RootResource(daemon),
        "/all": AllResource(daemon, settings.part_bytes, refreshed),
        "/ui/": ui_files.File("index.html"),
    }
    assert resources.keys() == table.keys()  # noqa: S101 - for new routes
    responders = partial(_responders, origins=settings.cors_origins, callers=callers)
    router = RawPathRouter()
    for path, endpoints in table.items():
        router.mount(path, resources[path], responders(resources[path], endpoints))
    for path, part in ui_files.parts().items():
        router.mount(path, part, responders(part, table["/ui/"]))
    middleware: list[Any] = []
    middleware += filter(None, (host_check(settings), cors(settings)))
    if callers is not None:
        middleware.append(callers)
    app: falcon.App[Any, Any] = falcon.App(router=router, middleware=middleware)
    problems.install(app)
    return app


def host_check(settings: HttpSettings) -> HostCheck | None:
    """What the settings say of host names; None if any is taken."""
    hosts = allowed_hosts(settings.http, settings.allowed_hosts)
    return None if hosts is None else HostCheck(hosts)


def cors(settings: HttpSettings) -> Cors | None:
    """What the settings say of pages elsewhere; None if none of them is let in."""
    return Cors(settings.cors_origins) if settings.cors_origins else None


def short_path(daemon: DaemonClient, settings: HttpSettings, callers: Callers | None) -> ShortPath:
    """The short path beside the application of the same arguments."""
    return ShortPath(daemon, callers, host_check(settings), cors(settings))


def _responders(
    resource: object, endpoints: list[Endpoint], origins: tuple[str, ...], callers: Callers | None
) -> dict[str, Any]:
    """The responder of each method that the table names, for those who may use it; AttributeError where the
    resource has none."""
    methods = {endpoint.method: getattr(resource, f"on_{endpoint.method.lower()}") for endpoint in endpoints}
    needs: dict[str, Needs] = {endpoint.method: endpoint.needs for endpoint in endpoints}
    if "POST" in methods:
        methods["POST"] = guarded(methods["POST"], origins)
    allow = ", ".join(routes.methods_of(endpoints))
    takes_query = "QUERY" in methods

    def on_options(_req: falcon.Request, resp: falcon.Response, **_params: str) -> None:
        resp.status = "204 No Content"
        resp.set_header("allow", allow)
        if takes_query:
            resp.set_header("accept-query", JSON)

    methods["OPTIONS"], needs["OPTIONS"] = on_options, "public"
    if callers is not None:
        methods = {name: callers.guarded(responder, needs[name]) for name, responder in methods.items()}
    if "GET" in methods:
        methods["HEAD"] = methods["GET"]  # falcon leaves the body out and keeps its length
    return methods
