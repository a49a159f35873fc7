"""Reads that need not be current, for ``?stale=1``: each asks the daemon with ``stale``, and the answer says
how old it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import falcon

from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_core.wire import Reply
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.protocol.environ import STALE_AGE
from kvstore_http.protocol.query_params import AGE_HEADER, EMPTY, STALE, Query

_MAY_BE_STALE = frozenset(row.name for row in OPERATIONS.values() if "stale" in row.fields)


class StaleReads:
    """What a :class:`DaemonClient` does for one request that reads, with each read ``stale``.

    How many milliseconds ago the oldest of what was read was last known to be current is noted in the
    request's ``environ``.
    """

    def __init__(self, daemon: DaemonClient, environ: dict[str, Any]) -> None:
        self._daemon = daemon
        self._environ = environ

    @property
    def epoch(self) -> str:
        """As of :class:`DaemonClient`."""
        return self._daemon.epoch

    @property
    def head(self) -> int:
        """As of :class:`DaemonClient`."""
        return self._daemon.head

    def call(self, op: dict[str, Any], *, who: Principal) -> dict[str, Any]:
        """As of :class:`DaemonClient`."""
        try:
            result = self._daemon.call(_stale(op), who=who)
        except KvError as error:
            self._note(error.details.pop("age", None))
            raise
        self._note(result.pop("age", None))
        return result

    def read(self, op: dict[str, Any], *, who: Principal) -> tuple[dict[str, Any], int]:
        """As of :class:`DaemonClient`."""
        reply = self.request([op], who=who)
        result = reply.results[0]
        if isinstance(result, KvError):
            raise result
        return result, reply.revision

    def request(self, ops: Sequence[dict[str, Any]], *, who: Principal) -> Reply:
        """As of :class:`DaemonClient`, for reads."""
        reply = self._daemon.request([*map(_stale, ops)], who=who)
        self._note(reply.age)
        return reply

    def _note(self, age: int | None) -> None:
        if age is not None:
            self._environ[STALE_AGE] = max(age, self._environ.get(STALE_AGE, 0))


Reads = DaemonClient | StaleReads


def reads_of(daemon: DaemonClient, query: Query, environ: dict[str, Any]) -> Reads:
    """How a request with this query reads."""
    return daemon if query is EMPTY or not query.get(STALE) else StaleReads(daemon, environ)


def say_age(environ: dict[str, Any], resp: falcon.Response) -> None:
    """Let the answer say how old it may be, if anything that is stale was read for it."""
    age = environ.get(STALE_AGE)
    if age is not None:
        resp.set_header(AGE_HEADER, str(age))


def _stale(op: dict[str, Any]) -> dict[str, Any]:
    return {**op, "stale": True} if op["op"] in _MAY_BE_STALE else op
