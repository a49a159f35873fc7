"""Putting the records of a file: read with bounded memory, sent in batches, and able to go on where it
was interrupted.

After each batch that the service acknowledged, a small file keeps how far the import has come. An import
that ends in between, however it ends, sends the last batch again at most: with the same Idempotency-Key
while nothing in it has changed, and a put that is done twice comes to the same anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
import orjson

from kvstore_cli.files.position_file import KeptFile
from kvstore_cli.http_client.client import Service
from kvstore_cli.http_client.errors import problem_error
from kvstore_cli.terminal.output import counted
from kvstore_cli.transfer.ndjson_format import Entry, Put
from kvstore_cli.transfer.retry import Patience
from kvstore_core.errors import KvError
from kvstore_core.limits import MAX_TTL_SECONDS
from kvstore_core.media_types import JSON, TEXT_CONTENT_TYPE
from kvstore_core.model import check_key
from kvstore_core.process.files import reason

_MOST_OPS = 1000
# Proxies commonly take 1 MiB and no more, and larger requests are no faster.
_REQUEST_BYTES = 1_000_000
_GROWTH = 4
_TOLD_EVERY = 500
_STATE_FORMAT = 1


class Policy(NamedTuple):
    """What is done with a record: its key's prefix is exchanged, ``if_absent`` leaves keys alone that
    exist, and with ``keep_going`` what cannot be put is said and left out."""

    if_absent: bool = False
    prefix_strip: str = ""
    prefix_add: str = ""
    keep_going: bool = False

    def renamed(self, key: str) -> str:
        """The key under which a record is put; raises ValueError if there is nothing to strip, and
        ``invalid_key`` if nothing is left or it grew too long."""
        if not self.prefix_strip and not self.prefix_add:
            return key
        if not key.startswith(self.prefix_strip):
            raise ValueError(f"its key {key!r} does not begin with {self.prefix_strip!r}")
        renamed = self.prefix_add + key[len(self.prefix_strip) :]
        check_key(renamed)
        return renamed


@dataclass
class Tally:
    """What became of the records so far."""

    put: int = 0
    expired: int = 0
    existed: int = 0
    failed: int = 0

    def add(self, other: Tally) -> None:
        """Count what ``other`` counted, too."""
        self.put += other.put
        self.expired += other.expired
        self.existed += other.existed
        self.failed += other.failed

    def in_words(self, *, is_dry: bool = False) -> str:
        """A sentence for a person."""
        words = [f"{counted(self.put, 'record')} {'would be put' if is_dry else 'put'}"]
        if self.expired:
            words.append(f"{self.expired} left out because they have expired")
        if self.existed:
            words.append(f"{self.existed} left alone because the key exists")
        if self.failed:
            words.append(f"{counted(self.failed, 'line')} that could not be used")
        return ", ".join(words)


@dataclass
class State:
    """How far an import has come: behind line ``line``, which ends at byte ``offset``. ``run`` tells
    two imports of the same file apart."""

    sha256: str
    epoch: str
    policy: dict[str, Any]
    run: str = field(default_factory=lambda: os.urandom(16).hex())
    offset: int = 0
    line: int = 0
    tally: Tally = field(default_factory=Tally)

    def refuse_other(self, now: State, path: Path) -> None:
        """Raise a usage error if this, read from ``path``, does not belong to the import ``now``."""
        differences = {
            "the file was changed since": self.sha256 != now.sha256,
            "it went to another store, or that one was restored since": self.epoch != now.epoch,
            "it was begun with other options": self.policy != now.policy,
        }
        for difference, is_there in differences.items():
            if is_there:
                raise click.UsageError(
                    f"{path} is about an import that was interrupted and cannot be gone on with: "
                    f"{difference}. --restart begins anew, and puts again what was put before"
                )


class StateFile:
    """A state that outlives the process."""

    def __init__(self, path: Path) -> None:
        """Raises a usage error for a file that could not be kept."""
        self.path = path
        try:
            self._file = KeptFile(str(path))
        except OSError as error:
            raise click.UsageError(
                f"cannot keep how far the import is in {path}: {reason(error)}; name another "
                "place with --state"
            ) from error

    def read(self) -> State | None:
        """The state that was kept, None if none was; a usage error if it cannot be used."""
        try:
            line = self._file.read()
            if not line:
                return None
            fields = json.loads(line)
            if fields.pop("kvstore_import") != _STATE_FORMAT:
                raise ValueError("it is of another version of kvstore")
            return State(**{**fields, "tally": Tally(**fields["tally"])})
        except OSError as error:
            raise click.UsageError(f"cannot read {self.path}: {reason(error)}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise click.UsageError(
                f"{self.path} does not say how far an import has come; remove it, or name another "
                "with --state"
            ) from error

    def write(self, state: State) -> None:
        """Keep ``state``. A machine that crashes may keep an older one, and batches are put again."""
        try:
            self._file.write(json.dumps({"kvstore_import": _STATE_FORMAT, **asdict(state)}))
        except OSError as error:
            raise click.ClickException(
                f"cannot keep how far the import is in {self.path}: {reason(error)}; name another "
                "place with --state"
            ) from error

    def remove(self) -> None:
        """The import is done."""
        self._file.discard()


@dataclass
class _Batch:
    """The ops of one request and the entries they were made of; the file has been dealt with up to
    ``offset``, which is behind line ``line``, once it was sent. ``tally`` counts what is not sent."""

    ops: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    size: int = 0
    offset: int = 0
    line: int = 0
    tally: Tally = field(default_factory=Tally)

    def has_room(self, op: bytes, most_ops: int, most_bytes: int) -> bool:
        """Whether ``op`` fits; one alone always does."""
        return not self.ops or (len(self.ops) < most_ops and self.size + len(op) < most_bytes)

    def add(self, entry: Entry, op: bytes) -> None:
        """Take in an op."""
        self.ops.append(op)
        self.entries.append(entry)
        self.size += len(op) + 1

    def body(self) -> bytes:
        """The request."""
        return b'{"ops":[%b]}' % b",".join(self.ops)


class Importer:
    """Puts entries, and counts what becomes of them. ``say`` is told of each that cannot be put, where
    the policy is to keep going."""

    def __init__(
        self,
        service: Service,
        policy: Policy,
        limits: Mapping[str, int],
        patience: Patience,
        say: Callable[[str], None],
    ) -> None:
        self._service = service
        self._policy = policy
        self._most_ops = min(_MOST_OPS, limits["batch_ops"])
        # what a small op takes on its way to the daemon is up to three times what it takes in our request
        self._most_bytes = min(_REQUEST_BYTES, limits["batch_bytes"] // _GROWTH)
        self._patience = patience
        self._say = say

    def check(self, entries: Iterable[Entry]) -> Iterator[Tally]:
        """What would become of ``entries``, now and then and at the end; sends nothing. Raises
        ClickException for the first that cannot be put, unless the policy is to keep going."""
        tally = Tally()
        for number, entry in enumerate(entries, 1):
            if self._prepared(entry, tally, self._say) is not None:
                tally.put += 1
            if number % _TOLD_EVERY == 0:
                yield tally
        yield tally

    def send(self, entries: Iterable[Entry], state: State, *, were_checked: bool) -> Iterator[State]:
        """Put ``entries``; gives ``state``, brought up to date, after each batch that was acknowledged.

        Raises ClickException for the first entry that cannot be put, after all before it have been
        put, unless the policy is to keep going; and the KvError of a service that does not come back,
        has no room, or refuses.
        """
        batch = _Batch()
        say = _unsaid if were_checked else self._say
        try:
            for entry in entries:
                op = self._prepared(entry, batch.tally, say)
                if op is not None and not batch.has_room(op, self._most_ops, self._most_bytes):
                    yield self._sent(batch, state)
                    batch = _Batch()
                if op is not None:
                    batch.add(entry, op)
                batch.offset, batch.line = entry.end, entry.number
        except click.ClickException:
            if batch.line:
                yield self._sent(batch, state)
            raise
        if batch.line:
            yield self._sent(batch, state)

    def _prepared(self, entry: Entry, tally: Tally, say: Callable[[str], None]) -> bytes | None:
        """The op of an entry, None if there is nothing to put."""
        fault = entry.fault
        if entry.put is not None:
            try:
                op = self._op(entry.put)
            except (ValueError, KvError) as error:
                fault = str(error)
            else:
                tally.expired += op is None
                return op
        if not self._policy.keep_going:
            raise click.ClickException(f"line {entry.number}: {fault}")
        tally.failed += 1
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
                raise ValueError("expires_at is more than 100 years from now; leave it out for ever")
            op["expires_at"] = put.expires_at
        elif put.ttl is not None:
            op["ttl"] = put.ttl / 1000
        return _with_value(op, put.value, put.content_type)

    def _sent(self, batch: _Batch, state: State) -> State:
        if batch.ops:
            body = batch.body()
            number = hashlib.sha256(f"{state.run} {state.offset} ".encode() + body).hexdigest()
            try:
                self._account(batch, self._answer(body, number, batch))
            except KvError as error:
                if error.code == "store_full":
                    # a repeat of it would be refused as a copy that comes late
                    state.run = os.urandom(16).hex()
                raise
        state.offset, state.line = batch.offset, batch.line
        state.tally.add(batch.tally)
        return state

    def _answer(self, body: bytes, number: str, batch: _Batch) -> list[dict[str, Any]]:
        headers = {"Content-Type": JSON, "Idempotency-Key": number}
        while True:
            try:
                answer = self._service.request("POST", "/v1/batch", body=body, headers=headers).json()
            except KvError as error:
                self._patience.after(_naming_line(error, batch))
                continue
            self._patience.progress()
            results: list[dict[str, Any]] = answer["results"]
            return results

    def _account(self, batch: _Batch, results: list[dict[str, Any]]) -> None:
        """Count what became of each op; raises the KvError of the first that failed in a way that
        another attempt may cure, or of any unless the policy is to keep going."""
        for entry, result in zip(batch.entries, results, strict=True):
            if "error" not in result:
                batch.tally.put += 1
                continue
            error = problem_error(result["error"])
            if error.code == "condition_failed" and self._policy.if_absent:
                batch.tally.existed += 1
            elif self._policy.keep_going and not error.row.retryable:
                batch.tally.failed += 1
                self._say(f"line {entry.number}: {error.message}")
            else:
                raise KvError(error.code, f"line {entry.number}: {error.message}", **error.details)


def _with_value(op: dict[str, Any], value: str | bytes, content_type: str | None) -> bytes:
    if isinstance(value, str):
        # the type that a text has anyway is left out, which is quicker for the service
        typed = op if content_type in (None, TEXT_CONTENT_TYPE) else {**op, "content_type": content_type}
        line = orjson.dumps({**typed, "value": value})
        # text that is mostly control characters takes six bytes for each of them
        if len(line) <= _REQUEST_BYTES or len(line) < len(value) * 4 / 3:
            return line
        value, content_type = value.encode(), content_type or TEXT_CONTENT_TYPE
    if content_type is not None:
        op["content_type"] = content_type
    return orjson.dumps({**op, "value_b64": b64encode(value).decode()})


def _naming_line(error: KvError, batch: _Batch) -> KvError:
    """The error with the line that it is about, if it is about one."""
    index = error.details.get("op")
    if not isinstance(index, int) or not 0 <= index < len(batch.entries):
        return error
    return KvError(error.code, f"line {batch.entries[index].number}: {error.message}", **error.details)


def _unsaid(_message: str) -> None:
    """For what was said before."""
