"""A store in memory, and what a daemon that owns it would say: for tests of those who listen to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kvstore_core.errors import KvError
from kvstore_core.filters import Filter
from kvstore_core.follower import Batch, LogPage
from kvstore_core.model import Cursor, Event, Record
from kvstore_core.wire import Heartbeat, PublishedEvent, Reply

EPOCHS = [f"{number:016x}" for number in range(100)]
KEYS = ["a", "a1", "a2", "b", "b1", "c"]
SCAN = 4


def put(key: str, revision: int, index: int = 0, count: int = 1) -> Event:
    record = Record(key, b"v%d" % revision, "text/plain", revision, revision, 1, revision)
    return Event("put", key, revision, index, count, revision, record, None, 0)


def delete(key: str, revision: int, index: int = 0, count: int = 1) -> Event:
    return Event("delete", key, revision, index, count, revision, None, None, 1)


State = dict[str, Record]


class Store:
    """A daemon in a list: what it committed, and what it says of it on PUB and from the log."""

    def __init__(self) -> None:
        self.number = 0
        self.epoch = EPOCHS[0]
        self.log: list[Batch] = []
        self.floor = 0
        self.head = 0
        self.records: dict[str, Record] = {}
        self.states: list[tuple[str, int, State]] = [(self.epoch, 0, {})]

    def commit(self, keys: Sequence[str], deletes: bool, skip: int) -> list[PublishedEvent]:
        prev, self.head = self.head, self.head + 1 + skip
        make = delete if deletes else put
        batch = [make(key, self.head, index, len(keys)) for index, key in enumerate(keys)]
        self.log.append(batch)
        for event in batch:
            self.records.pop(event.key, None)
            if event.record is not None:
                self.records[event.key] = event.record
        self.states.append((self.epoch, self.head, dict(self.records)))
        return [PublishedEvent(event, prev, self.epoch) for event in batch]

    def restore(self) -> None:
        self.number += 1
        self.epoch = EPOCHS[self.number % len(EPOCHS)]
        self.states.append((self.epoch, self.head, dict(self.records)))

    def trim(self) -> None:
        if self.log:
            self.floor = self.log.pop(0)[0].revision

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(self.epoch, self.head, self.floor, 0)

    def state_at(self, cursor: Cursor) -> State:
        """All records as of ``cursor``."""
        return [s for epoch, head, s in self.states if epoch == cursor.epoch and head <= cursor.revision][-1]

    def events(self, since: Cursor, wanted: Filter) -> LogPage:
        if since.epoch != self.epoch or since.revision < self.floor:
            raise KvError("cursor_expired", "gone", floor=self.floor)
        after = [batch for batch in self.log if batch[0].revision > since.revision]
        looked_at = after[:SCAN]
        is_end = len(looked_at) == len(after)
        reached = self.head if is_end else looked_at[-1][0].revision
        events = [event for batch in looked_at for event in batch if wanted.matches(event.op, event.key)]
        return LogPage(events, max(reached, since.revision), self.floor, self.head, self.epoch)


def fields_of(record: Record) -> dict[str, Any]:
    return {name: value for name, value in record._asdict().items() if value is not None}


def serve(
    store: Store, ops: list[dict[str, Any]], scan: int, meanwhile: Callable[[], object] = lambda: None
) -> Reply:
    """Answer the ops of a snapshot; a list page looks at ``scan`` of all known keys, so it may be
    empty and yet not be the last. ``meanwhile`` happens between two ops."""
    results: list[dict[str, Any] | KvError] = []
    oldest = store.head
    for number, op in enumerate(ops):
        if number:
            meanwhile()
        if op["op"] == "get":
            record = store.records.get(op["key"])
            results.append(fields_of(record) if record else KvError("not_found", "no such key"))
            continue
        candidates = [key for key in KEYS if key.startswith(op["prefix"]) and key >= op.get("cursor", "")]
        looked_at, rest = candidates[:scan], candidates[scan:]
        items = [fields_of(store.records[key]) for key in looked_at if key in store.records]
        results.append({"items": items, "cursor": rest[0] if rest else None})
    return Reply(store.epoch, oldest, results)
