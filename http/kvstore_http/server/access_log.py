"""The access log, and what is said and kept of slow requests.

A line names the request as it was sent: method, path (so keys are shown), and the parts of the query that
cannot hold a value. Bodies, values, and headers other than User-Agent and X-Request-Id are never logged, and
nothing that looks like a token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import inf
from typing import Any

from kvstore_core.access.tokens import without_secrets
from kvstore_core.limits import MAX_SHOWN
from kvstore_core.process.logging import RateLimitedLog
from kvstore_http import routes
from kvstore_http.inspection.slow_log import SlowLog

log = logging.getLogger("kvstore.http")
access = logging.getLogger("kvstore.access")

_SHOWN = frozenset(
    parameter.name
    for endpoint in routes.ENDPOINTS
    for parameter in endpoint.query.values()
    if not parameter.tells_value
)

Ended = Callable[[str, int, int], None]
"""Called when a stream has ended: why, after how many events and how many bytes."""


class AccessLog:
    """The lines of one worker. ``mode`` is ``off``, ``errors`` (statuses from 400 on) or ``on``; at debug
    level every request is logged. A request of ``slow_ms`` or more (0: never) is a warning, and the
    ``slow_log`` keeps what took as long as it says.

    With ``shows_who`` a line names who asked, ``-`` for somebody whose credential is not good.

    ``is_on`` says that every request is logged, ``is_noting`` that some may be; ``slow_ns`` is how long one
    takes that is a warning or kept.
    """

    def __init__(
        self,
        mode: str = "off",
        slow_ms: int = 0,
        slow_log: SlowLog | None = None,
        *,
        shows_who: bool = False,
    ) -> None:
        self._mode = mode
        self._shows_who = shows_who
        self._kept = slow_log or SlowLog(0)
        self._warning_ns = slow_ms * 1_000_000 or inf
        self.slow_ns = min(self._warning_ns, self._kept.ns)
        self._slow_log = RateLimitedLog(log)
        self.refresh()

    def refresh(self) -> None:
        """Read the log level again; it is not read for each request."""
        is_debugging = log.isEnabledFor(logging.DEBUG)
        self.is_on = self._mode == "on" or is_debugging
        self.is_noting = self.is_on or self._mode == "errors"
        # the access log does not depend on --log-level
        access.setLevel(logging.DEBUG if is_debugging else logging.INFO)

    def request_ended(self, task: Any, elapsed_ns: int, *, is_ours: bool) -> None:
        """Log a request that was answered, or whose client left. Needs to be called only if it took
        ``slow_ns`` or longer, or if ``is_noting``. ``is_ours``: the client had no influence on how long it
        took."""
        seconds = elapsed_ns / 1e9
        if elapsed_ns >= self._warning_ns and is_ours:
            self._warn(task, seconds)
        if elapsed_ns >= self._kept.ns and is_ours:
            self._keep(task, seconds)
        if self.is_noting and task.hand_over is None:
            self._note(task, seconds)

    def _note(self, task: Any, seconds: float) -> None:
        status = _status(task)
        is_wanted = self._mode == "on" or (self._mode == "errors" and status >= 400)
        if not (is_wanted or self.is_on):
            return
        fields = self._fields(task)
        fields |= {"status": status, "bytes": task.content_bytes_written, "seconds": round(seconds, 6)}
        line = '"%(method)s %(path)s%(query)s" %(status)d %(bytes)d %(seconds).6f "%(user_agent)s"'
        self._write(logging.INFO if is_wanted else logging.DEBUG, line, fields)

    def _write(self, level: int, line: str, fields: dict[str, Any]) -> None:
        client = "%(client)s %(who)s " if self._shows_who else "%(client)s "
        access.log(level, client + line, fields, extra=fields)

    def _fields(self, task: Any) -> dict[str, Any]:
        fields = _fields(task)
        if self._shows_who:
            fields["who"] = "-" if task.who is None else task.who.name
        return fields

    def _warn(self, task: Any, seconds: float) -> None:
        fields = {**self._fields(task), "status": _status(task), "seconds": round(seconds, 3)}
        line = 'a request took %(seconds).2f s: "%(method)s %(path)s%(query)s" %(status)d'
        self._slow_log.warning(line, fields, extra=fields)

    def _keep(self, task: Any, seconds: float) -> None:
        fields = _fields(task)
        self._kept.note(
            {
                "seconds": round(seconds, 6),
                "daemon_seconds": round(task.daemon_ns / 1e9, 6),
                "client_seconds": round(task.client_ns / 1e9, 6),
                "what": f"{fields['method'][:MAX_SHOWN]} {fields['path']}{fields['query']}",
                "status": _status(task),
                "bytes": task.content_bytes_written,
                "address": fields["client"],
                "name": None if task.who is None else task.who.name or None,
                "request_id": fields["request_id"],
            }
        )

    def stream_opened(self, task: Any) -> Ended | None:
        """Log that a stream was opened; returns the function to call at its end, None if that is not
        logged."""
        if not self.is_on:
            return None
        fields, begun = self._fields(task), time.monotonic()
        level = logging.INFO if self._mode == "on" else logging.DEBUG
        self._write(level, '"%(method)s %(path)s%(query)s" opened', fields)

        def ended(reason: str, events: int, size: int) -> None:
            seconds = round(time.monotonic() - begun, 3)
            fields.update({"reason": reason, "events": events, "bytes": size, "seconds": seconds})
            line = (
                '"%(method)s %(path)s%(query)s" ended: %(reason)s; %(events)d events, '
                "%(bytes)d bytes, %(seconds).3f s"
            )
            self._write(level, line, fields)

        return ended


def _status(task: Any) -> int:
    """The status that was sent; 499, as in nginx's log, if the client left before."""
    return int(task.status[:3]) if task.wrote_header else 499


def _fields(task: Any) -> dict[str, Any]:
    request = task.request
    path, raw_query = getattr(request, "target", ("-", ""))
    return {
        "client": task.channel.addr[0],
        "method": getattr(request, "command", None) or "-",
        "path": without_secrets(path[:MAX_SHOWN]),
        "query": without_secrets(_shown_query(raw_query)[:MAX_SHOWN]),
        "route": task.route,
        "user_agent": without_secrets(request.headers.get("USER_AGENT", "-")[:MAX_SHOWN]),
        "request_id": task.request_id,
    }


def _shown_query(raw_query: str) -> str:
    """The query, with ``*`` for everything but known parameters that hold no value."""
    if not raw_query:
        return ""
    pairs = (pair if pair.partition("=")[0] in _SHOWN else "*" for pair in raw_query.split("&"))
    return "?" + "&".join(pairs)
