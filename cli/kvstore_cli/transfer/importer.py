"""Putting the records of a file: in bounded memory, in batches, and resumable.

After each acknowledged batch, a small file keeps the position of the import. However an import ends, at most
the last batch is sent again when it resumes: with the same Idempotency-Key, unless the batch has changed, and
a put that is done twice has the same result.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import click
import orjson

from kvstore_cli.command_line.writes import message_headers
from kvstore_cli.files.position_file import PositionFile
from kvstore_cli.http_client.client import RetryLimit, ServiceClient
from kvstore_cli.http_client.errors import problem_error
from kvstore_cli.terminal.output import counted
from kvstore_cli.transfer.ndjson_format import Entry, Put
from kvstore_core.errors import KvError, fewer_ops
from kvstore_core.limits import MAX_TTL_SECONDS
from kvstore_core.media_types import JSON, TEXT_CONTENT_TYPE
from kvstore_core.model import check_key

_MOST_OPS = 1000
# Proxies commonly take 1 MiB and no more, and larger requests are no faster.
_REQUEST_BYTES = 1_000_000
_GROWTH = 4
_REPORT_EVERY = 500
_STATE_FORMAT = 1


class Policy(NamedTuple):
    """What to do with a record: which prefix of its key to replace, whether to keep keys that exist
    (``if_absent``), whether to skip records that cannot be put (``keep_going``), and why they are put."""

    if_absent: bool = False
    prefix_strip: str = ""
    prefix_add: str = ""
    keep_going: bool = False
    message: str | None = None

    def renamed(self, key: str) -> str:
        """The key to put a record under; raises ValueError if it lacks the prefix to strip, and
        ``invalid_key`` if the result is empty or too long."""
        if not self.prefix_strip and not self.prefix_add:
            return key
        if not key.startswith(self.prefix_strip):
            raise ValueError(f"key {key!r} does not begin with {self.prefix_strip!r}")
        renamed = self.prefix_add + key[len(self.prefix_strip) :]
        check_key(renamed)
        return renamed


@dataclass
class ImportCounts:
    """How many records were put, and how many were not, by reason."""

    put: int = 0
    expired: int = 0
    existed: int = 0
    failed: int = 0

    def add(self, other: ImportCounts) -> None:
        """Add the counts of ``other``."""
        self.put += other.put
        self.expired += other.expired
        self.existed += other.existed
        self.failed += other.failed

    def in_words(self, *, is_dry: bool = False) -> str:
        """The counts as a sentence."""
        words = [f"{counted(self.put, 'record')} {'would be put' if is_dry else 'put'}"]
        if self.expired:
            words.append(f"{self.expired} skipped because they have expired")
        if self.existed:
            words.append(f"{self.existed} skipped because the key exists")
        if self.failed:
            words.append(f"{counted(self.failed, 'line')} skipped as unusable")
        return ", ".join(words)


@dataclass
class ImportState:
    """The position of an import: after line ``line``, which ends at byte ``offset``. ``run`` distinguishes
    imports of the same file."""

    sha256: str
    epoch: str
    policy: dict[str, Any]
    run: str = field(default_factory=lambda: os.urandom(16).hex())
    offset: int = 0
    line: int = 0
    counts: ImportCounts = field(default_factory=ImportCounts)

    def refuse_other(self, now: ImportState, name: str) -> None:
        """Raise a usage error if this, from the file ``name``, is not of the import ``now``."""
        differences = {
            "the file has changed since": self.sha256 != now.sha256,
            "it went to another store, or the store was restored since": self.epoch != now.epoch,
            "it was started with other options": Policy()._asdict() | self.policy != now.policy,
        }
        for difference, is_there in differences.items():
            if is_there:
                raise click.UsageError(
                    f"cannot resume the import in {name}: {difference}. --restart starts over, and puts "
                    "again what was already put"
                )


class StateFile(PositionFile):
    """The file that keeps the state of an import."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "the state of the import", "; name another file with --state")

    def load(self) -> ImportState | None:
        """The state in the file, None if it is empty; a usage error if it cannot be used."""
        line = self.read()
        if not line:
            return None
        try:
            fields = json.loads(line)
            if fields.pop("kvstore_import") != _STATE_FORMAT:
                raise ValueError("it is of another version of kvstore")
            fields["counts"] = ImportCounts(**fields.pop("tally"))
            return ImportState(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise click.UsageError(
                f"{self.name} is not the state of an import; remove it, or name another file with --state"
            ) from error

    def save(self, state: ImportState) -> None:
        """Write ``state``. After a crash of the machine an older one may be there, and batches repeat."""
        fields = {"kvstore_import": _STATE_FORMAT, **asdict(state)}
        fields["tally"] = fields.pop("counts")  # its name in the file
        self.write(json.dumps(fields))


@dataclass
class _ImportBatch:
    """The ops of one request, and the entries that they are made from. Once it is sent, the import is at
    ``offset``, after line ``line``. ``counts`` counts the entries without an op."""

    ops: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    size: int = 0
    offset: int = 0
    line: int = 0
    counts: ImportCounts = field(default_factory=ImportCounts)

    def has_room(self, op: bytes, most_ops: int, most_bytes: int) -> bool:
        """Whether ``op`` fits; the first always does."""
        return not self.ops or (len(self.ops) < most_ops and self.size + len(op) < most_bytes)

    def split(self, most_ops: int) -> Iterator[_ImportBatch]:
        """The same in batches of at most ``most_ops``."""
        for first in range(0, len(self.ops), most_ops):
            ops, entries = self.ops[first : first + most_ops], self.entries[first : first + most_ops]
            yield _ImportBatch(ops, entries, offset=entries[-1].end, line=entries[-1].number)
        yield _ImportBatch(offset=self.offset, line=self.line, counts=self.counts)

    def add(self, entry: Entry, op: bytes) -> None:
        """Add an op."""
        self.ops.append(op)
        self.entries.append(entry)
        self.size += len(op) + 1


class Importer:
    """Puts entries, and counts the results. ``say`` is called for each that cannot be put, if the policy is
    to keep going."""

    def __init__(
        self,
        service: ServiceClient,
        policy: Policy,
        limits: Mapping[str, int],
        retry: RetryLimit,
        say: Callable[[str], None],
    ) -> None:
        self._service = service
        self._policy = policy
        self._most_ops = min(_MOST_OPS, limits["batch_ops"])
        # on its way to the daemon, a small op takes up to three times its size here
        self._most_bytes = min(_REQUEST_BYTES, limits["batch_bytes"] // _GROWTH)
        self._retry = retry
        self._say = say

    def check(self, entries: Iterable[Entry]) -> Iterator[ImportCounts]:
        """The counts so far, every now and then and at the end; sends nothing. Raises ClickException for the
        first entry that cannot be put, unless the policy is to keep going."""
        counts = ImportCounts()
        for number, entry in enumerate(entries, 1):
            if self._prepared(entry, counts, self._say) is not None:
                counts.put += 1
            if number % _REPORT_EVERY == 0:
                yield counts
        yield counts

    def send(
        self, entries: Iterable[Entry], state: ImportState, *, were_checked: bool
    ) -> Iterator[ImportState]:
        """Put ``entries``; yields ``state``, updated, after each acknowledged batch.

        Unless the policy is to keep going, raises ClickException for the first entry that cannot be put,
        after all before it have been put. Raises the KvError of a service that stays unavailable, is full,
        or refuses.
        """
        batch = _ImportBatch()
        # what was checked was said then
        say = (lambda _: None) if were_checked else self._say
        try:
            for entry in entries:
                op = self._prepared(entry, batch.counts, say)
                if op is not None and not batch.has_room(op, self._most_ops, self._most_bytes):
                    yield self._sent(batch, state)
                    batch = _ImportBatch()
                if op is not None:
                    batch.add(entry, op)
                batch.offset, batch.line = entry.end, entry.number
        except click.ClickException:
            if batch.line:
                yield self._sent(batch, state)
            raise
        if batch.line:
            yield self._sent(batch, state)

    def _prepared(self, entry: Entry, counts: ImportCounts, say: Callable[[str], None]) -> bytes | None:
        """The op of an entry, None if there is none."""
        fault = entry.fault
        if entry.put is not None:
            try:
                op = self._op(entry.put)
            except (ValueError, KvError) as error:
                fault = str(error)
            else:
                counts.expired += op is None
                return op
        if not self._policy.keep_going:
            raise click.ClickException(f"line {entry.number}: {fault}")
        counts.failed += 1
        say(f"line {entry.number}: {fault}")
        return None

    def _op(self, put: Put) -> bytes | None:
        """The op that puts a record, None if it has expired. Raises ValueError or ``invalid_key``."""
        op: dict[str, Any] = {"op": "put", "key": self._policy.renamed(put.key)}
        if self._policy.if_absent:
            op["if_revision"] = 0
        if put.expires_at is not None:
            left_ms = put.expires_at - time.time_ns() // 1_000_000
            if left_ms <= 0:
                return None
            if left_ms > MAX_TTL_SECONDS * 1000:
                raise ValueError(
                    "expires_at is more than 100 years from now; leave it out to keep the key for ever"
                )
            op["expires_at"] = put.expires_at
        elif put.ttl is not None:
            op["ttl"] = put.ttl / 1000
        return _with_value(op, put.value, put.content_type)

    def _sent(self, batch: _ImportBatch, state: ImportState) -> ImportState:
        if batch.ops:
            body = b'{"ops":[%b]}' % b",".join(batch.ops)
            idempotency_key = hashlib.sha256(f"{state.run} {state.offset} ".encode() + body).hexdigest()
            try:
                self._account(batch, self._results(body, idempotency_key, batch))
            except KvError as error:
                if error.code == "store_full":
                    # a repeat under the same key would be refused as stale
                    state.run = os.urandom(16).hex()
                self._most_ops = fewer_ops(error, len(batch.ops))
                for part in batch.split(self._most_ops):
                    self._sent(part, state)
                return state
        state.offset, state.line = batch.offset, batch.line
        state.counts.add(batch.counts)
        return state

    def _results(self, body: bytes, idempotency_key: str, batch: _ImportBatch) -> list[dict[str, Any]]:
        headers = {"Content-Type": JSON, "Idempotency-Key": idempotency_key}
        headers |= message_headers(self._policy.message)
        while True:
            try:
                answer = self._service.request("POST", "/v1/batch", body=body, headers=headers).json()
            except KvError as error:
                self._retry.wait_after(_naming_line(error, batch))
                continue
            self._retry.progress()
            results: list[dict[str, Any]] = answer["results"]
            return results

    def _account(self, batch: _ImportBatch, results: list[dict[str, Any]]) -> None:
        """Count the result of each op; raises the KvError of the first failure that is retryable, or of any
        unless the policy is to keep going."""
        for entry, result in zip(batch.entries, results, strict=True):
            if "error" not in result:
                batch.counts.put += 1
                continue
            error = problem_error(result["error"])
            if error.code == "condition_failed" and self._policy.if_absent:
                batch.counts.existed += 1
            elif self._policy.keep_going and not error.row.retryable:
                batch.counts.failed += 1
                self._say(f"line {entry.number}: {error.message}")
            else:
                raise KvError(error.code, f"line {entry.number}: {error.message}", **error.details)


def _with_value(op: dict[str, Any], value: str | bytes, content_type: str | None) -> bytes:
    if isinstance(value, str):
        # the default type is left out, which is faster for the service
        typed = op if content_type in (None, TEXT_CONTENT_TYPE) else {**op, "content_type": content_type}
        line = orjson.dumps({**typed, "value": value})
        # text of many control characters, which take six bytes each, is smaller in base64
        if len(line) <= _REQUEST_BYTES or len(line) < len(value) * 4 / 3:
            return line
        value, content_type = value.encode(), content_type or TEXT_CONTENT_TYPE
    if content_type is not None:
        op["content_type"] = content_type
    return orjson.dumps({**op, "value_b64": b64encode(value).decode()})


def _naming_line(error: KvError, batch: _ImportBatch) -> KvError:
    """The error, with the number of the line that it is about."""
    index = error.details.get("op")
    if not isinstance(index, int) or not 0 <= index < len(batch.entries):
        return error
    return KvError(error.code, f"line {batch.entries[index].number}: {error.message}", **error.details)
