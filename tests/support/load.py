"""Writers that keep account of what was acknowledged to them, over HTTP and over ZeroMQ."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from kvstore_client import Client, commands

COUNTER = "counter"
PATIENCE_SECONDS = 60
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


class Writer(threading.Thread):
    """Writes until it is told to stop, each write again and again until it is acknowledged.

    Every value is written once in the whole test, so that an event says which write made it. A subclass
    says how a write reaches the service; what it raises fails the test when the writer is joined.
    """

    def __init__(self, name: str, ledger: Ledger) -> None:
        super().__init__(name=name)
        self._ledger = ledger
        self._stopping = threading.Event()
        self.failure: BaseException | None = None

    def finish(self) -> None:
        """Stop after the write that is under way, and raise what went wrong."""
        self._stopping.set()
        self.join()
        if self.failure is not None:
            raise AssertionError(f"the writer {self.name} failed") from self.failure

    def run(self) -> None:
        number = 0
        try:
            while not self._stopping.is_set():
                self._write(number)
                number += 1
        except BaseException as failure:
            self.failure = failure

    def _write(self, number: int) -> None:
        """A little of everything: mostly puts, now and then what else changes the store."""
        key, value = f"{self.name}/{number % 50}", f"{self.name} wrote {number}"
        if number % 10 == 7:
            self._increment()
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

    def _increment(self) -> None:
        self.increment()
        self._ledger.note_increment()

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
        self._address = urlsplit(url).netloc
        self._connection = HTTPConnection(self._address, timeout=PATIENCE_SECONDS)

    def run(self) -> None:
        with closing(self._connection):
            super().run()

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
            threading.Event().wait(RETRY_SECONDS)
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

    def run(self) -> None:
        with self._client:
            super().run()

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
