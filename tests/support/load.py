"""Writers that keep account of what was acknowledged to them, and subscribers that remember all they were
told, each in the manner of one surface."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import zmq

from kvstore_client import Client, Event, Subscription, commands
from kvstore_core.wire import PublishedEvent, decode_change
from support.patience import PATIENCE_SECONDS
from support.servers import clean_environment, kvstore_command, wait_until
from support.streams import StreamEvent, open_stream

COUNTER = "counter"
RETRY_SECONDS = 0.02


class Acknowledged(NamedTuple):
    """A write that the service said it had done: what it changed, and in which revision."""

    revision: int
    op: str
    key: str
    value: str | None


class Ledger:
    """What was acknowledged to all writers together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.writes: list[Acknowledged] = []
        self.increments = 0

    def note(self, *writes: Acknowledged) -> None:
        with self._lock:
            self.writes.extend(writes)

    def note_increment(self) -> None:
        with self._lock:
            self.increments += 1

    def __len__(self) -> int:
        return len(self.writes)


class Party(threading.Thread):
    """Does its ``work`` until it is told to stop; with ``patience``, until it has come to its end by itself,
    for which it is given so many seconds."""

    patience: float | None = None

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as failure:
            self.failure = failure
        finally:
            self.close()

    def work(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close what was opened."""

    def so_far(self) -> str:
        """How far it came."""
        return "it works on"

    def finish(self) -> None:
        """Wait for the end, and raise what went wrong."""
        if self.patience is None:
            self.stopping.set()
        self.join(self.patience)
        if self.failure is not None:
            raise AssertionError(f"{self.name} failed") from self.failure
        assert not self.is_alive(), f"{self.name} has not come to its end: {self.so_far()}"


def wait_for_more(counted: Sized, number: int, parties: Iterable[Party]) -> None:
    """Wait until there are ``number`` more; fails at once where one of the parties failed."""
    target, parties = len(counted) + number, list(parties)

    def enough() -> bool:
        for party in parties:
            assert party.failure is None, f"{party.name}: {party.failure!r}"
        return len(counted) >= target

    wait_until(enough, timeout=120, what=f"{number} more than {target - number}")


class Writer(Party):
    """Writes until it is told to stop, each write again and again until it is acknowledged.

    Every value is written once in the whole test, so that an event says which write made it. A subclass
    says how a write reaches the service.
    """

    pace_seconds = 0.0
    """How long it rests after each write."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        super().__init__(name)
        self._ledger = ledger

    def work(self) -> None:
        for number in itertools.count():
            if self.stopping.wait(self.pace_seconds):
                return
            self._write(number)

    def _write(self, number: int) -> None:
        """A little of everything: mostly puts, now and then what else changes the store."""
        key, value = f"{self.name}/{number % 50}", f"{self.name} wrote {number}"
        if number % 10 == 7:
            self.increment()
            self._ledger.note_increment()
        elif number % 10 == 8:
            pairs = [(f"{self.name}/batch/{part}", f"{value}.{part}") for part in range(3)]
            revision = self.put_together(pairs)
            self._ledger.note(*(Acknowledged(revision, "put", *pair) for pair in pairs))
        elif number % 10 == 9:
            revision = self.delete(f"{self.name}/{(number - 5) % 50}")
            self._ledger.note(Acknowledged(revision, "delete", f"{self.name}/{(number - 5) % 50}", None))
        else:
            ttl = 0.5 if number % 10 == 3 else None
            revision = self.put(key, value, ttl)
            self._ledger.note(Acknowledged(revision, "put", key, value))

    def put(self, key: str, value: str, ttl: float | None) -> int:
        raise NotImplementedError

    def put_together(self, pairs: list[tuple[str, str]]) -> int:
        raise NotImplementedError

    def delete(self, key: str) -> int:
        raise NotImplementedError

    def increment(self) -> None:
        raise NotImplementedError


class HttpWriter(Writer):
    """Repeats what was not answered under the same ``Idempotency-Key``."""

    def __init__(self, name: str, ledger: Ledger, url: str) -> None:
        super().__init__(name, ledger)
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        self._connection.close()

    def put(self, key: str, value: str, ttl: float | None) -> int:
        query = "" if ttl is None else f"?ttl={int(ttl * 1000)}ms"
        return int(self._request("PUT", f"/v1/kv/{key}{query}", value)["revision"])

    def put_together(self, pairs: list[tuple[str, str]]) -> int:
        ops = [{"op": "put", "key": key, "value": value} for key, value in pairs]
        answer = self._request("POST", "/v1/batch", json.dumps({"atomic": True, "ops": ops}))
        revisions = {result["revision"] for result in answer["results"]}
        assert len(revisions) == 1, answer
        return int(revisions.pop())

    def delete(self, key: str) -> int:
        return int(self._request("DELETE", f"/v1/kv/{key}")["revision"])

    def increment(self) -> None:
        self._request("POST", f"/v1/incr/{COUNTER}")

    def _request(self, method: str, path: str, body: str = "") -> dict[str, Any]:
        headers = {"Idempotency-Key": uuid4().hex}
        if path == "/v1/batch":
            headers["Content-Type"] = "application/json"
        for _ in range(int(PATIENCE_SECONDS / RETRY_SECONDS)):
            status, answer = self._attempt(method, path, body, headers)
            if status in (200, 201):
                return answer
            assert status in (0, 503, 504), (method, path, status, answer)
            time.sleep(RETRY_SECONDS)
        raise AssertionError(f"{method} {path} was never answered: {status} {answer}")

    def _attempt(
        self, method: str, path: str, body: str, headers: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        try:
            self._connection.request(method, path, body.encode() or None, headers)
            response = self._connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, HTTPException) as failure:
            self._connection.close()
            return 0, {"failure": repr(failure)}


class NativeWriter(Writer):
    """Leaves the repeating to the client."""

    def __init__(self, name: str, ledger: Ledger, requests: str) -> None:
        super().__init__(name, ledger)
        self._client = Client(requests, timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        self._client.close()

    def put(self, key: str, value: str, ttl: float | None) -> int:
        return self._client.put(key, value.encode(), ttl=ttl).revision

    def put_together(self, pairs: list[tuple[str, str]]) -> int:
        puts = [commands.put(key, value.encode()) for key, value in pairs]
        revisions = {result.revision for result in self._client.batch(puts, atomic=True)}
        assert len(revisions) == 1
        return int(revisions.pop())

    def delete(self, key: str) -> int:
        revision = self._client.delete(key).revision
        assert revision is not None
        return revision

    def increment(self) -> None:
        self._client.incr(COUNTER)


LAST_KEY = "~last"
"""A put of this key tells every watcher that there is no more to come."""


class Seen(NamedTuple):
    """An event as every surface can tell it; ``value`` is that of a put, the old one of an expire."""

    revision: int
    index: int
    op: str
    key: str
    value: str | None


def seen_event(event: Event) -> Seen:
    """What an event of the native client says."""
    record = event.previous if event.op == "expire" else event.record
    value = record.value.decode() if record is not None and record.value is not None else None
    return Seen(event.revision, event.index, event.op, event.key, value)


def seen_json(data: dict[str, Any], op: str) -> Seen:
    """What an event in JSON says."""
    record = data["previous"] if op == "expire" else data
    value = None if op == "delete" else record["value"]
    return Seen(data["revision"], data.get("index", 0), op, data["key"], value)


def whole_log(client: Client) -> list[Event]:
    """Everything that the daemon's log holds."""
    found: list[Event] = []
    page = client.events(0)
    while True:
        found += page.events
        if page.next >= page.head:
            return found
        page = client.events(page.next)


class Watcher(Party):
    """Follows the store from its beginning until :data:`LAST_KEY` is put."""

    patience = 50

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.seen: list[Seen] = []
        self.reconnections = 0

    def so_far(self) -> str:
        return f"it has seen {len(self.seen)} events and not the last"

    def is_complete(self) -> bool:
        """Whether the last event was seen."""
        return bool(self.seen) and self.seen[-1].key == LAST_KEY


class SseWatcher(Watcher):
    """Server-sent events, resumed by ``Last-Event-ID``.

    As a browser would: what came without an ``id`` since the last one is forgotten when the
    connection ends, since it comes again. With ``hangs_up`` the watcher cuts the connection itself
    after a random number of events, over and over. ``headers`` are sent with each request.
    """

    def __init__(
        self, name: str, url: str, *, hangs_up: bool = False, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(name)
        self._url = url
        self._headers = headers
        self._hangs_up = hangs_up
        self._last_id: str | None = None

    def work(self) -> None:
        for attempt in itertools.count():
            self.reconnections = attempt
            try:
                with closing(
                    open_stream(self._url, "since=0", self._last_id, headers=self._headers)
                ) as stream:
                    self._take(iter(stream))
            except (OSError, HTTPException):
                pass
            if self.is_complete():
                return
            time.sleep(RETRY_SECONDS)

    def _take(self, events: Iterator[StreamEvent]) -> None:
        patience = random.randrange(1, 400) if self._hangs_up else None
        pending: list[Seen] = []
        for event in itertools.islice(events, patience):
            if event.name in ("put", "delete", "expire"):
                pending.append(seen_json(event.json, event.name))
            else:
                assert event.name in ("sync", "heartbeat"), event
            if event.id is not None:
                self._last_id = event.id
                self.seen += pending
                pending = []
            if self.is_complete():
                return


class NativeWatcher(Watcher):
    """``Subscription`` of the native client."""

    def __init__(self, name: str, requests: str, changes: str) -> None:
        super().__init__(name)
        self._endpoints = {"requests": requests, "changes": changes}

    def work(self) -> None:
        with Subscription(**self._endpoints, since=0) as subscription:
            for item in subscription:
                if isinstance(item, Event):
                    self.seen.append(seen_event(item))
                if self.is_complete():
                    return


class PlainSubscriber(Party):
    """A SUB socket and nothing else, with each message the ``prev`` that it came with: it may miss events,
    but none may be false. It stops once nothing more comes."""

    def __init__(self, changes: str) -> None:
        super().__init__("plain")
        self._changes = changes
        self.messages: list[tuple[Seen, int]] = []

    def work(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.SUB)
        with context, socket:
            socket.rcvhwm = 0
            socket.linger = 0
            socket.connect(self._changes)
            socket.subscribe(b"")
            while socket.poll(100) or not self.stopping.is_set():
                change = decode_change(socket.recv_multipart()) if socket.poll(0) else None
                if isinstance(change, PublishedEvent):
                    self.messages.append((seen_event(change.event), change.prev))
                elif self.stopping.is_set():
                    return  # a heartbeat: what was published before it has come


class CommandWatcher(Watcher):
    """``kvstore subscribe --json`` as a process."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        super().__init__(name)
        self._log = folder / f"{name}.stderr"
        self._environment = clean_environment(folder, KVSTORE_URL=url)

    def work(self) -> None:
        command = kvstore_command("subscribe", "--json", "--since", "0")
        with (
            self._log.open("wb") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=self._environment) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    data = json.loads(line)
                    self.seen.append(seen_json(data, data["event"]))
                    if self.is_complete():
                        return
                raise AssertionError(f"kvstore subscribe ended: {self._log.read_text()}")
            finally:
                process.terminate()
