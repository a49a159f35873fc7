"""An export of the store at one revision.

A listing is read page by page while others write, so its pages are of different revisions. The stream of
``/v1/subscribe?snapshot=1`` reads the same pages and then sends the changes that they miss, up to a ``sync``
with the revision of the whole. Both are spooled to unnamed temporary files until then, and then merged, each
key once and in byte order. Only the offset of each key that was changed meanwhile is kept in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any, NamedTuple, Self

import click
import orjson

from kvstore_cli.http_client.client import Query, RetryLimit, ServiceClient
from kvstore_cli.http_client.errors import AttemptError
from kvstore_cli.transfer.ndjson_format import line_of
from kvstore_core.errors import KvError
from kvstore_core.filters import disjoint
from kvstore_core.process.files import reason

_MOST_BREAKS = 10
_REPORT_EVERY = 500


class Scope(NamedTuple):
    """Which keys: those with one of ``prefixes`` (none: any) that are not before ``start`` and are
    before ``end``."""

    prefixes: tuple[str, ...] = ()
    start: str | None = None
    end: str | None = None

    def holds(self, key: str) -> bool:
        """Whether the key is within the bounds; the service looks at the prefixes."""
        # text is compared by code point, which is the byte order of UTF-8
        return (self.start is None or key >= self.start) and (self.end is None or key < self.end)

    def stream_query(self) -> Query:
        """The parameters of a stream with at least these keys, and few others."""
        prefixes = self.prefixes
        if not prefixes and self.start and self.end:
            # every key between the two has their common prefix
            common = os.path.commonprefix((self.start, self.end))  # noqa: RUF071 - of text, not of paths
            prefixes = (common,) if common else ()
        return [("snapshot", "1"), *(("prefix", prefix) for prefix in prefixes)]

    def bounds(self) -> dict[str, str]:
        """``start`` and ``end``, those that there are."""
        return {name: text for name, text in (("start", self.start), ("end", self.end)) if text}

    def count(self, service: ServiceClient) -> int:
        """About how many records there are now."""
        bounds = self.bounds().items()
        queries = [
            [("count", "1"), ("stale", "1"), ("prefix", prefix), *bounds]
            for prefix in disjoint(self.prefixes or ("",))
        ]
        return sum(service.request("GET", "/v1/kv", query).json()["count"] for query in queries)

    def head(self, service: ServiceClient) -> int:
        """The store's revision, by a read that is not stale: of one key, so that it takes no longer for more
        records."""
        prefix = (*self.prefixes, "")[0]
        query = [("keys", "1"), ("limit", "1"), ("prefix", prefix), *self.bounds().items()]
        revision: int = service.request("GET", "/v1/kv", query).json()["revision"]
        return revision


class RecordSpool:
    """The records of a scope as they were at ``revision``, in temporary files in ``folder`` (None: the
    system's). Use it in a ``with``, which removes them."""

    def __init__(self, scope: Scope, folder: str | None) -> None:
        self._scope = scope
        self._folder = folder or gettempdir()
        self._snapshot: IO[bytes] = TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._changes: IO[bytes] = TemporaryFile(dir=folder)  # noqa: SIM115
        # the offset of a key's last change in the file of changes; None if the key is gone
        self._changed: dict[str, int | None] = {}
        self._records = 0
        self.epoch = ""
        self.revision = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._snapshot, self._changes):
            with suppress(OSError):  # a full disk: the data is not needed any more
                file.close()

    def fill(
        self, service: ServiceClient, *, stall_ms: int, retry: RetryLimit, advance: Callable[[int], None]
    ) -> None:
        """Read everything. A stream that breaks is read again from the start; raises its error once ``retry``
        gives up, or after ten attempts."""
        for left in reversed(range(_MOST_BREAKS)):
            try:
                self._read(service, stall_ms / 1000, retry, advance)
                return
            except AttemptError as failure:
                error = failure.error
            except KvError as raised:
                error = raised
            except OSError as raised:
                raise click.ClickException(
                    f"cannot write a temporary file in {self._folder}: {reason(raised)}"
                ) from raised
            if left == 0:
                raise error
            retry.wait_after(error)

    def _read(
        self, service: ServiceClient, stall_seconds: float, retry: RetryLimit, advance: Callable[[int], None]
    ) -> None:
        self._clear()
        # a stream is answered from what the daemon has, which in a cluster may not be all
        least = self._scope.head(service)
        query = self._scope.stream_query()
        with service.open_stream("/v1/subscribe", query, stall_seconds=stall_seconds) as stream:
            for number, line in enumerate(stream.lines()):
                if number % _REPORT_EVERY == 0:
                    retry.progress()
                    advance(self._records)
                fields = orjson.loads(line)
                if fields["event"] == "sync":
                    revision, _, self.epoch = fields["cursor"].partition("-")
                    self.revision = int(revision)
                    if self.revision < least:
                        message = (
                            f"the records are of revision {revision}, and revision {least} was there before"
                        )
                        raise KvError("unavailable", f"{message}: the daemon lags behind")
                    return
                self._take(fields)

    def _clear(self) -> None:
        for file in (self._snapshot, self._changes):
            file.seek(0)
            file.truncate()
        self._changed.clear()
        self._records = 0

    def _take(self, fields: dict[str, Any]) -> None:
        event = fields["event"]
        if event == "reset":  # the log was trimmed past the snapshot: a new one follows
            self._clear()
        elif event in ("put", "delete", "expire") and self._scope.holds(fields["key"]):
            if "index" in fields:
                self._change(fields)
            else:
                self._snapshot.write(line_of(fields))
                self._records += 1

    def _change(self, fields: dict[str, Any]) -> None:
        if fields["op"] == "put":
            self._changed[fields["key"]] = self._changes.tell()
            self._changes.write(line_of(fields))
        else:
            self._changed[fields["key"]] = None

    @property
    def at_most(self) -> int:
        """How many records there are at most."""
        return self._records + len(self._changed)

    def lines(self) -> Iterator[bytes]:
        """The lines of the records, each key once, in byte order of the keys."""
        self._snapshot.seek(0)
        if not self._changed:
            yield from self._snapshot
            return
        changed = sorted(self._changed, reverse=True)
        for line in self._snapshot:
            key = orjson.loads(line)["key"]
            while changed and changed[-1] < key:
                yield from self._last_change(changed.pop())
            if not (changed and changed[-1] == key):
                yield line
        while changed:
            yield from self._last_change(changed.pop())

    def _last_change(self, key: str) -> Iterator[bytes]:
        offset = self._changed[key]
        if offset is not None:
            self._changes.seek(offset)
            yield self._changes.readline()
