"""``/v1/backups``: a backup of the store for another machine, which the daemon keeps for a while."""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
import time
from collections.abc import Iterator
from typing import Any

import falcon
import gevent

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_REPEATED
from kvstore_core.media_types import DEFAULT_CONTENT_TYPE
from kvstore_core.operations import is_backup_id
from kvstore_http import routes
from kvstore_http.access.callers import Refreshed
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.bodies import refuse_body, send_fresh_json, send_json
from kvstore_http.protocol.environ import WAITS, WHO, leaving_of
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.preconditions import idempotency_key_of, refuse_conditions
from kvstore_http.protocol.query_params import read_query
from kvstore_http.protocol.ranges import content_range, range_of
from kvstore_http.streaming.change_feed import ChangeFeed

log = logging.getLogger("kvstore.http")

WAIT_SECONDS = 20.0
"""How long a POST waits until the backup is made. Proxies often give a request up after 60 s."""

_LOOK_SECONDS = 0.1

Description = dict[str, Any]


class KeptBackups:
    """The backups that the daemon keeps, as it describes them to ``who``. ``refreshed`` says what they may do
    by now."""

    def __init__(self, daemon: DaemonClient, refreshed: Refreshed) -> None:
        self._daemon = daemon
        self._refreshed = refreshed

    def all(self, who: Principal) -> list[Description]:
        """All of them."""
        found: list[Description] = self._daemon.call({"op": "backups"}, who=who)["backups"]
        return found

    def make(self, backup_id: str, who: Principal) -> Description:
        """Begin to make one, unless it was begun already."""
        return self._daemon.call({"op": "backup_make", "id": backup_id}, who=who)

    def delete(self, backup_id: str, who: Principal) -> None:
        """Remove one."""
        self._daemon.call({"op": "backup_delete", "id": _checked(backup_id)}, who=who)

    def found(self, backup_id: str, who: Principal) -> Description:
        """One of them, made or not; raises ``not_found``, and what has failed with why."""
        found = next((each for each in self.all(who) if each["id"] == backup_id), None)
        if found is None:
            raise _gone(backup_id)
        if "error" in found:
            raise KvError.from_json(found["error"])
        return found

    def pieces(self, backup_id: str, part: range, size: int, who: Principal) -> Iterator[bytes]:
        """The bytes of ``part`` of a backup, ``size`` of them at a time. Each is asked for once the client
        has taken those before, and if ``who`` may still have it."""
        offset, op = part.start, {"op": "backup_read", "id": backup_id}
        while offset < part.stop:
            wanted = min(size, part.stop - offset)
            try:
                piece = self._daemon.call({**op, "offset": offset, "size": wanted}, who=self._refreshed(who))
            except KvError as error:
                log.warning("a download of the backup %s was cut off: %s", backup_id, error.message)
                return  # the response is cut off, as it is shorter than it says
            value = piece.pop("value")
            if not value:
                return
            offset += len(value)
            yield value
            del value


class BackupsResource:
    """``/v1/backups``."""

    def __init__(self, backups: KeptBackups, feed: ChangeFeed) -> None:
        self._backups = backups
        self._feed = feed

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        found = self._backups.all(req.env[WHO])
        send_fresh_json(req, resp, {"backups": list(map(_shown, found))})

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Begin a backup, and wait until it is made, unless that takes long or the service stops. A repeat
        under the same idempotency key is about the same backup."""
        read_query(req.env, routes.NOTHING)
        refuse_conditions(req.env, "a backup is of what the store is now")
        refuse_body(req.env)
        who, key = req.env[WHO], idempotency_key_of(req.env)
        backup_id = secrets.token_hex(8) if key is None else _id_of(who, key)
        found = self._backups.make(backup_id, who)
        req.env[WAITS] = True
        has_left, give_up_at = leaving_of(req.env), time.monotonic() + WAIT_SECONDS
        while found["state"] == "making" and time.monotonic() < give_up_at:
            if self._feed.is_closed or has_left():
                break
            gevent.sleep(_LOOK_SECONDS)
            found = self._backups.found(backup_id, who)
        resp.status = "201 Created"
        resp.set_header("location", f"/v1/backups/{backup_id}")
        resp.set_header("cache-control", "no-store")
        send_json(resp, _shown(found))


class BackupResource:
    """``/v1/backups/{id}``."""

    def __init__(self, backups: KeptBackups, piece_bytes: int) -> None:
        self._backups = backups
        self._piece_bytes = piece_bytes

    def on_get(self, req: falcon.Request, resp: falcon.Response, **parameters: str) -> None:
        """The backup's file, or a range of it."""
        backup_id = parameters["id"]
        read_query(req.env, routes.NOTHING)
        who = req.env[WHO]
        req.env[WAITS] = True  # how long it takes is up to the client
        found = self._backups.found(backup_id, who)
        if found["state"] != "ready":
            raise KvError("too_busy", f"the backup {backup_id} is not made yet: try again", id=backup_id)
        size, digest = found["bytes"], found["sha256"]
        tag = f'"{digest}"'
        part = range_of(req.env, tag, size)
        if part is not None and not part:
            raise KvError("range_not_satisfiable", f"the backup has {size} bytes", bytes=size)
        if part is not None:
            resp.status = "206 Partial Content"
            resp.set_header("content-range", content_range(part, size))
        resp.set_headers(
            {
                "accept-ranges": "bytes",
                "cache-control": "no-store",
                "content-disposition": f'attachment; filename="kvstore-{found["revision"]}.kvb"',
                "content-type": DEFAULT_CONTENT_TYPE,
                "etag": tag,
                "repr-digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
                "x-content-type-options": "nosniff",
                "x-kvstore-revision": str(found["revision"]),
            }
        )
        wanted = range(size) if part is None else part
        resp.set_stream(self._backups.pieces(backup_id, wanted, self._piece_bytes, who), len(wanted))

    def on_delete(self, req: falcon.Request, resp: falcon.Response, **parameters: str) -> None:
        backup_id = parameters["id"]
        read_query(req.env, routes.NOTHING)
        refuse_conditions(req.env, "a backup does not change")
        refuse_body(req.env)
        self._backups.delete(backup_id, req.env[WHO])
        send_json(resp, {"id": backup_id, "deleted": 1})


def _id_of(who: Principal, idempotency_key: str) -> str:
    return hashlib.sha256(f"{who.name}\0{idempotency_key}".encode()).hexdigest()[:16]


def _checked(backup_id: str) -> str:
    if not is_backup_id(backup_id):
        raise _gone(backup_id)
    return backup_id


def _gone(backup_id: str) -> KvError:
    return KvError(
        "not_found",
        f"there is no backup {backup_id[:MAX_REPEATED]!r}: it was removed, or the daemon has restarted; "
        "POST /v1/backups makes another",
    )


def _shown(found: Description) -> Description:
    """A description with its times as texts."""
    times = {name: timestamp(found[name]) for name in ("created_at", "expires_at")}
    return {**found, **times}
