"""The present records, and which of the changes that follow they already show."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import islice
from typing import Any

from kvstore_core.errors import KvError, fewer_ops
from kvstore_core.filters import Filter, disjoint
from kvstore_core.follower import RESTORED, LogPage
from kvstore_core.limits import MAX_PAGE, MAX_PAGE_BYTES
from kvstore_core.model import Cursor, Event, Record
from kvstore_core.wire import Reply, record_from

_GETS_PER_REQUEST = 100
_LAGS = "the daemon that answered had not seen yet what another one had"
_LOST = "the store lost data that its snapshot showed; it has a different history now"


class SnapshotMerge:
    """The present records of what is wanted, page by page, and which later events they already show.

    Reading takes several requests, each of which sees the store at another revision; so the reader takes
    the store's position, ``start``, *before* the first one, and afterwards follows the log from there,
    leaving out every event that the page covering its key had already seen. While :meth:`next_ops` gives
    ops, send them as one request and pass the reply to :meth:`accept`, or to :meth:`refuse` the error.

    What was shown is the state of the store at no revision before the log, asked after the last page,
    has been followed to its end: only then is there a cursor to give out. Pass each of its pages to
    :meth:`check`.
    """

    def __init__(
        self,
        wanted: Filter,
        start: Cursor,
        *,
        values: bool = True,
        page_size: int = MAX_PAGE,
        max_bytes: int = MAX_PAGE_BYTES,
    ) -> None:
        self.start = start
        self._values = values
        self._page_size = page_size
        self._max_bytes = max_bytes
        self._prefixes = deque(disjoint(wanted.prefixes or (() if wanted.keys else ("",))))
        self._keys = deque(sorted(key for key in wanted.keys if not key.startswith(tuple(self._prefixes))))
        self._cursor: str | None = None
        self._lower = self._prefixes[0] if self._prefixes else ""
        self._pending: int | None = None
        self._sent_keys: list[str] = []
        self._most_gets = _GETS_PER_REQUEST
        # pages in key order: one that starts at _starts[i] shows the store as of _revisions[i]
        self._starts: list[str] = []
        self._revisions: list[int] = []
        self._key_revisions: dict[str, int] = {}
        self.through = 0
        """The newest revision that any page shows; every event after it is to be delivered."""

    @property
    def is_complete(self) -> bool:
        """Whether every page has been read."""
        return not self._prefixes and not self._keys

    def next_ops(self) -> list[dict[str, Any]]:
        """The ops of the next request; empty when the snapshot is complete."""
        if self._prefixes:
            return [self._list_op(self._prefixes[0])]
        self._sent_keys = list(islice(self._keys, self._most_gets))
        return [{"op": "get", "key": key, "stale": True} for key in self._sent_keys]

    def _list_op(self, prefix: str) -> dict[str, Any]:
        op: dict[str, Any] = {"op": "list", "prefix": prefix, "limit": self._page_size, "stale": True}
        if self._max_bytes < MAX_PAGE_BYTES:
            op["max_bytes"] = self._max_bytes
        if not self._values:
            op["keys_only"] = True
        if self._cursor is not None:
            op["cursor"] = self._cursor
        return op

    def accept(self, reply: Reply) -> list[Record]:
        """The records of a page, in key order.

        Raises the KvError with which an op failed, and ``cursor_expired`` if the page does not go with the
        start, since the store was restored after it, or the page is that of a daemon that lags behind the
        one that gave the start: start over.
        """
        if reply.epoch != self.start.epoch:
            raise KvError("cursor_expired", RESTORED)
        if reply.revision < self.start.revision:
            raise KvError("cursor_expired", _LAGS)
        if self._prefixes:
            return self._accept_page(reply)
        return self._accept_gets(reply)

    def refuse(self, error: KvError) -> None:
        """The daemon refused the request as a whole: make the next one smaller, or raise ``error``."""
        self._most_gets = fewer_ops(error, len(self._sent_keys))

    def _accept_page(self, reply: Reply) -> list[Record]:
        result = reply.results[0]
        if isinstance(result, KvError):
            raise result
        records = [record_from(item) for item in result["items"]]
        revision = self._seen_at(reply, records)
        self._cursor = result["cursor"]
        # A page does not say how far it looked behind its last record. What lies between that and the
        # next record there is was seen by this page, or only by the one before: the older one holds.
        # No record was shown there, so none can come twice.
        between = revision if self._pending is None else min(revision, self._pending)
        if records or self._cursor is None:
            self._cover(self._lower, between)
        if records:
            self._cover(records[0].key, revision)
        self._pending = revision if records else between
        self._move_on(records)
        return records

    def _move_on(self, records: list[Record]) -> None:
        if self._cursor is None:
            self._prefixes.popleft()
            self._lower = self._prefixes[0] if self._prefixes else ""
            self._pending = None
        elif records:
            # the smallest text after the last key; never sent, since a key holds no NUL
            self._lower = records[-1].key + "\0"

    def _accept_gets(self, reply: Reply) -> list[Record]:
        records: list[Record] = []
        for key, result in zip(self._sent_keys, reply.results, strict=True):
            found = []
            if not isinstance(result, KvError):
                found = [record_from(result, key)]
            elif result.code == "reply_too_large" and len(self._sent_keys) > 1:
                continue  # the next request has room for it
            elif result.code != "not_found":
                raise result
            # each for itself: the gets of one request may be answered from several snapshots
            self._key_revisions[key] = self._seen_at(reply, found)
            self._keys.remove(key)
            records += found
        return records if self._values else [record._replace(value=None) for record in records]

    def _seen_at(self, reply: Reply, records: list[Record]) -> int:
        """The revision as of which a page shows the store. A reply states one that its reads saw at
        least; a newer record in it proves a newer one."""
        revision = max((record.revision for record in records), default=0)
        revision = max(revision, reply.revision)
        self.through = max(self.through, revision)
        return revision

    def check(self, page: LogPage) -> None:
        """Raise ``cursor_expired`` if the log, asked after the last page, ends before what was shown: a
        store with a weaker ``sync`` lost that in a crash, and will use its revisions for other changes."""
        if page.head < self.through:
            raise KvError("cursor_expired", _LOST, reason="epoch", floor=page.floor, head=page.head)

    def _cover(self, lower: str, revision: int) -> None:
        self._starts.append(lower)
        self._revisions.append(revision)

    def shows(self, event: Event) -> bool:
        """Whether the snapshot already contains the change, so that it is not to be delivered."""
        if event.revision > self.through:
            return False
        seen_at = self._key_revisions.get(event.key)
        if seen_at is None:
            # text is compared by code point, which is the byte order of UTF-8
            index = bisect_right(self._starts, event.key) - 1
            seen_at = self._revisions[index] if index >= 0 else 0
        return event.revision <= seen_at
