"""Operations that take several requests: which commands to run next, given the last results.

Each is a generator that yields the commands of one request and is sent their results, in which the KvError
of a failed command is its result; the KvError of a request that failed as a whole is thrown in. It holds no
connection, so both forms of the client run the same ones.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from kvstore_client import commands
from kvstore_client.arguments import texts_of
from kvstore_client.commands import Command, CountPage, Deleted, HistoryPage
from kvstore_core.errors import KvError, fewer_ops
from kvstore_core.limits import MAX_PAGE
from kvstore_core.model import Record

T = TypeVar("T")

MultiRequest = Generator[Sequence[Command[Any]], list[Any], T]


def single(command: Command[T]) -> MultiRequest[T]:
    """Run one command; raises the KvError of a failed one."""
    (result,) = yield [command]
    if isinstance(result, KvError):
        raise result
    return result  # type: ignore[no-any-return]


def _as_many_as_it_takes(batch: Sequence[Command[Any]]) -> MultiRequest[list[Any]]:
    """The results of ``batch``, from several requests where the daemon does not take it in one."""
    results: list[Any] = []
    most = len(batch)
    while len(results) < len(batch):
        some = batch[len(results) :][:most]
        try:
            results += yield some
        except KvError as error:
            most = fewer_ops(error, len(some))
    return results


def get_many(keys: Sequence[str], *, stale: bool = False) -> MultiRequest[dict[str, Record]]:
    """The records of those keys that exist. A request has a bounded number of keys, fewer where the daemon
    takes fewer; those whose values did not fit into the reply go into the next one."""
    found: dict[str, Record] = {}
    most = MAX_PAGE
    left = list(dict.fromkeys(texts_of("keys", keys)))
    while left:
        some = left[:most]
        try:
            results = yield [commands.get(key, stale=stale) for key in some]
        except KvError as error:
            most = fewer_ops(error, len(some))
            continue
        postponed = []
        for key, result in zip(some, results, strict=True):
            if not isinstance(result, KvError):
                found[key] = result
            elif result.code == "reply_too_large" and len(some) > 1:
                postponed.append(key)
            elif result.code != "not_found":
                raise result
        left = postponed + left[len(some) :]
    return found


def delete_prefix(prefix: str, message: str | None) -> MultiRequest[Deleted]:
    """Remove all keys that begin with ``prefix``, in bounded steps."""
    total, revision = 0, None
    while True:
        step = yield from single(commands.delete_prefix(prefix, message=message))
        total, revision = total + step.deleted, step.revision or revision
        if not step.has_more:
            return Deleted(total, revision)


def count(
    prefix: str | None, start: str | None, end: str | None, *, stale: bool = False
) -> MultiRequest[int]:
    """Count a range part by part."""
    page = CountPage(0, None, 0)
    total = 0
    while True:
        page = yield from single(
            commands.count_page(prefix=prefix, start=start, end=end, cursor=page.cursor, stale=stale)
        )
        total += page.total
        if page.cursor is None:
            return total


def get_at(key: str, revision: int, *, stale: bool = False) -> MultiRequest[Record]:
    """The record as of ``revision``: from the newest event up to it, or the present record if that has not
    changed since. Raises ``revision_gone`` where the log does not reach back."""
    if type(revision) is not int:
        raise TypeError(f"revision is a whole number, not {type(revision).__name__}")
    cursor = None
    while True:
        # what is read first may be older, so that no record falls between the two
        present, past, status = yield from _as_many_as_it_takes(
            [
                commands.get(key, stale=stale),
                commands.history(key, before=revision + 1, limit=1, cursor=cursor, stale=stale),
                commands.status(),
            ]
        )
        if isinstance(present, Record) and present.revision <= revision:
            return present
        if isinstance(past, KvError):
            raise past if revision >= status["floor"] else _gone(key, revision)
        if past.events or past.cursor is None:
            return _record_of(past, key, revision)
        cursor = past.cursor


def _record_of(past: HistoryPage, key: str, revision: int) -> Record:
    if not past.events and past.is_truncated:
        raise _gone(key, revision)
    record = past.events[0].record if past.events else None
    if record is None:
        raise KvError("not_found", f"there was no key {key!r} at revision {revision}")
    return record


def _gone(key: str, revision: int) -> KvError:
    return KvError("revision_gone", f"the log no longer has {key!r} as of revision {revision}")
