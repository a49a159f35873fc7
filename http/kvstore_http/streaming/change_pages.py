"""Pages of changes, which are asked for one at a time, and where one may begin."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import gevent

from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.model import Cursor
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.backend.stale_reads import Reads
from kvstore_http.streaming.change_cursor import RETRY_SECONDS
from kvstore_http.streaming.change_feed import ChangeFeed
from kvstore_http.streaming.long_poll import WaitingCaller


class ChangesPage(NamedTuple):
    """The events after a cursor, in whole revisions, and the ``cursor`` up to which that is all of them.
    There is ``more`` while the store's ``head`` was further on; events up to ``floor`` are no longer kept."""

    events: list[dict[str, Any]]
    cursor: Cursor
    floor: int
    head: int

    @property
    def more(self) -> bool:
        """Whether the next page need not be waited for."""
        return self.cursor.revision < self.head


def present(daemon: Reads) -> Cursor:
    """Where the store is now: all that was committed before this was called is up to there."""
    page, epoch = _first(daemon, {"since": 0})
    return Cursor(page.details["head"] if isinstance(page, KvError) else page["head"], epoch)


def position_at(daemon: DaemonClient, milliseconds: int) -> Cursor:
    """The cursor from which all follows that was committed after a time; one that has expired where the log
    begins later."""
    page, epoch = _first(daemon, {"since_time": milliseconds})
    if isinstance(page, KvError):
        return Cursor(0, epoch)
    return Cursor(page["events"][0]["revision"] - 1 if page["events"] else page["next"], epoch)


def _first(daemon: Reads, begin: dict[str, Any]) -> tuple[dict[str, Any] | KvError, str]:
    """A page with the first event, also where the caller may not see it, or that there is none any more; and
    the epoch."""
    reply = daemon.request([{"op": "events", **begin, "limit": 1, "values": False}], who=THE_FACADE)
    page = reply.results[0]
    if isinstance(page, KvError) and page.code != "cursor_expired":
        raise page
    return page, reply.epoch


def read_page(daemon: Reads, op: dict[str, Any], who: Principal) -> ChangesPage:
    """The page that an ``events`` op asks for; raises what it failed with."""
    reply = daemon.request([op], who=who)
    page = reply.results[0]
    if isinstance(page, KvError):
        raise page
    return ChangesPage(page["events"], Cursor(page["next"], reply.epoch), page["floor"], page["head"])


def wait_for_page(
    daemon: Reads, feed: ChangeFeed, op: dict[str, Any], seconds: float, caller: WaitingCaller
) -> ChangesPage:
    """The first page with an event, of ``op`` and those behind it; an empty one at the end of the time, or
    when the client has left or the service stops. While the daemon is away, if it was there at the beginning,
    this waits on."""
    deadline = time.monotonic() + seconds
    wanted = Filter.normalized(op.get("prefixes", ()), op.get("keys", ()), op.get("ops", ()))
    who = caller.asks()
    page = read_page(daemon, op, who)
    while not page.events and (remaining := deadline - time.monotonic()) > 0:
        if not page.more:
            woken = caller.wait(feed, who, wanted, page.cursor, remaining)
            page = page._replace(cursor=page.cursor._replace(revision=woken.revision))
            if not woken.goes_on and (feed.is_closed or caller.has_left()):
                break
        try:
            who = caller.asks()
            page = read_page(daemon, _behind(op, page.cursor), who)
        except KvError as error:
            remaining = deadline - time.monotonic()
            if not error.row.is_temporary or remaining <= 0:
                raise
            gevent.sleep(min(RETRY_SECONDS, remaining))
    return page


def _behind(op: dict[str, Any], cursor: Cursor) -> dict[str, Any]:
    return {name: field for name, field in op.items() if name != "since_time"} | {"since": str(cursor)}
