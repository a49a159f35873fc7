"""Clients that contend for a few keys and note in a history what they asked and what they were told.

Each number that a put stores is stored once in the whole run, so that it says who stored it. What was not
answered is asked again under its number; a few operations are given up instead, and stay unknown.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import zmq

from kvstore_client import Client, KvError, commands
from support.history import Effect, Found, History, Operation, end
from support.load import Party
from support.wire import pack, unpack

PREFIX = "key/"
KEYS = [f"{PREFIX}{number}" for number in range(5)]
PATIENCE_SECONDS = 60
ATTEMPT_SECONDS = 1.0
PAUSE_SECONDS = 0.02
Turn = Callable[[int], None]

LISTING = "list"
"""Stands in for the op of a read that asks for all keys as one page."""


class NoAnswerError(Exception):
    """Nothing was answered, or that nobody knows. ``may_be_done``: so the write may be applied."""

    def __init__(self, *, may_be_done: bool = True) -> None:
        super().__init__("no answer")
        self.may_be_done = may_be_done


class Contender(Party):
    """Does random operations until it is told to stop. A subclass says how one reaches the service.

    ``turn`` is called before each operation and may make it wait.
    """

    def __init__(self, name: str, history: History, seed: int, turn: Turn) -> None:
        super().__init__(name)
        self.random = random.Random(f"{seed} {name}")
        self._history = history
        self._turn = turn
        self._known = dict.fromkeys(KEYS, 0)

    def work(self) -> None:
        while not self.stopping.is_set():
            self._turn(max(self._known.values()))
            self._contend(self._effects())

    # ── what to do ───────────────────────────────────────────────────────────────────────────────

    def _effects(self) -> list[Effect]:
        chance = self.random
        kinds = ["get", "put", "delete", "incr", "touch", "persist", "batch", "all", LISTING]
        kind = chance.choices(kinds, [22, 22, 7, 14, 7, 5, 12, 6, 3])[0]
        if kind == "batch":
            return [self._change(key) for key in chance.sample(KEYS, chance.choice((2, 3)))]
        if kind in ("all", LISTING):
            return [Effect("get" if kind == "all" else LISTING, key) for key in KEYS]
        key = chance.choice(KEYS)
        return [Effect("get", key)] if kind == "get" else [self._change(key, kind)]

    def _change(self, key: str, kind: str | None = None) -> Effect:
        chance = self.random
        kind = kind or chance.choices(["put", "incr", "delete", "touch", "persist"], [5, 4, 1, 1, 1])[0]
        number = None
        if kind == "put":
            number = int(uuid4().int % 10**12) * 1000
        elif kind == "incr":
            number = chance.randrange(1, 9)
        has_ttl = kind == "touch" or (kind == "put" and chance.random() < 0.3)
        ttl = chance.randrange(20, 400) if has_ttl else None
        has_condition = kind != "persist" and chance.random() < 0.35
        condition = chance.choice((0, self._known[key], self._known[key])) if has_condition else None
        return Effect(kind, key, number, ttl, condition)

    # ── doing it ─────────────────────────────────────────────────────────────────────────────────

    def _contend(self, effects: list[Effect]) -> None:
        """Do an operation until it is answered; or, now and then, only once."""
        listing = effects[0].op == LISTING
        noted = [effect._replace(op="get") for effect in effects] if listing else effects
        writes = noted[0].op != "get"
        gives_up = writes and self.random.random() < 0.02
        number = uuid4().hex
        operation = self._history.begin(self.name, noted)
        may_be_done = False
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                found = self.listed() if listing else self.attempt(effects, number, hurried=gives_up)
            except NoAnswerError as failure:
                may_be_done |= failure.may_be_done
                if gives_up or not writes:
                    if not (writes and may_be_done):
                        self._history.drop(operation)
                    break
                assert time.monotonic() < deadline, f"never answered: {operation}"
                time.sleep(PAUSE_SECONDS)
            except KvError as error:
                self._refused(operation, error)
                break
            else:
                end(operation, "ok", found)
                self._learn(operation)
                break

    def _refused(self, operation: Operation, error: KvError) -> None:
        details = error.details
        assert error.code in ("condition_failed", "not_found"), (operation, error, details)
        found = Found(int(details.get("revision", 0)))
        end(operation, "failed", [found], code=error.code, at=int(details.get("op", 0)))
        self._known[operation.effects[operation.at].key] = operation.found[0].revision

    def _learn(self, operation: Operation) -> None:
        for effect, found in zip(operation.effects, operation.found, strict=True):
            self._known[effect.key] = 0 if effect.op == "delete" else found.revision

    def attempt(self, effects: list[Effect], number: str, *, hurried: bool) -> list[Found]:
        """What each effect found. Raises the KvError that refused it, or NoAnswerError; ``number`` is the
        same when it is attempted again. One that is ``hurried`` is not attempted again, and need not be
        given much time."""
        raise NotImplementedError

    def listed(self) -> list[Found]:
        """What a list says of all keys."""
        raise NotImplementedError


def found_in(fields: dict[str, Any]) -> Found:
    """What a result, or a record, says in JSON; an error is raised."""
    if "error" in fields:
        error = KvError.from_json(fields["error"])
        if error.code != "not_found":
            raise error
        return Found(0)
    value = fields.get("value")
    expires_at = fields.get("expires_at")
    if isinstance(expires_at, str):
        moment = datetime.fromisoformat(expires_at)
        expires_at = round(moment.timestamp() * 1000)
    return Found(
        fields["revision"],
        None if value is None else int(value),
        fields.get("version"),
        fields.get("create_revision"),
        expires_at,
    )


def _all_found(items: list[dict[str, Any]]) -> list[Found]:
    by_key = {item["key"]: found_in(item) for item in items}
    return [by_key.get(key, Found(0)) for key in KEYS]


class HttpContender(Contender):
    """Over HTTP, with conditions in headers and an ``Idempotency-Key``.

    Now and then it hangs up before the answer is there and asks again, as a client does whose connection
    broke.
    """

    def __init__(self, name: str, history: History, seed: int, turn: Turn, url: str) -> None:
        super().__init__(name, history, seed, turn)
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_SECONDS)
        self._hangs_up = False

    def attempt(self, effects: list[Effect], number: str, *, hurried: bool) -> list[Found]:
        first = effects[0]
        if first.op != "get":
            return self._write(effects, {"Idempotency-Key": number}, hurried=hurried)
        if len(effects) > 1:
            results = self._batch([{"op": "get", "key": effect.key} for effect in effects], {})
            return [found_in(result) for result in results]
        try:
            return [found_in(self._call("GET", f"/v1/kv/{first.key}?format=json"))]
        except KvError as error:
            if error.code != "not_found":
                raise
            return [Found(0)]

    def listed(self) -> list[Found]:
        return _all_found(self._call("GET", f"/v1/kv?prefix={PREFIX}")["items"])

    def _write(self, effects: list[Effect], headers: dict[str, str], *, hurried: bool) -> list[Found]:
        self._hangs_up = hurried or self.random.random() < 0.08
        if len(effects) > 1:
            ops = [_op_in_json(effect) for effect in effects]
            return [found_in(result) for result in self._batch(ops, headers, atomic=True)]
        effect = effects[0]
        if effect.if_revision is not None:
            headers |= (
                {"If-Match": f'"{effect.if_revision}"'} if effect.if_revision else {"If-None-Match": "*"}
            )
        ttl = "" if effect.ttl_ms is None else f"?ttl={effect.ttl_ms}ms"
        if effect.op == "put":
            return [found_in(self._call("PUT", f"/v1/kv/{effect.key}{ttl}", str(effect.number), headers))]
        if effect.op == "delete":
            return [found_in(self._call("DELETE", f"/v1/kv/{effect.key}", "", headers))]
        query = f"?by={effect.number}" if effect.op == "incr" else ttl
        return [found_in(self._call("POST", f"/v1/{effect.op}/{effect.key}{query}", "", headers))]

    def _batch(
        self, ops: list[dict[str, Any]], headers: dict[str, str], *, atomic: bool = False
    ) -> list[dict[str, Any]]:
        body = json.dumps({"atomic": atomic, "ops": ops})
        answer = self._call("POST", "/v1/batch", body, {**headers, "Content-Type": "application/json"})
        results: list[dict[str, Any]] = answer["results"]
        return results

    def _call(
        self, method: str, target: str, body: str = "", headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        hangs_up, self._hangs_up = self._hangs_up, False
        try:
            self._connection.request(method, target, body.encode() or None, headers or {})
            if hangs_up:
                time.sleep(self.random.random() * 0.01)
                raise ConnectionError("the client hung up")
            response = self._connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read() or b"{}")
        except (OSError, HTTPException) as failure:
            self._connection.close()
            raise NoAnswerError from failure
        if response.status < 300:
            return answer
        if response.status in (503, 504, 304):
            raise NoAnswerError(may_be_done=answer.get("outcome") == "unknown")
        raise KvError.from_json({"message": answer["detail"], **answer})

    def close(self) -> None:
        self._connection.close()


class Poller(HttpContender):
    """Long polls on one key, each from the revision that the last one told of."""

    def __init__(self, name: str, history: History, seed: int, turn: Turn, url: str) -> None:
        super().__init__(name, history, seed, turn, url)
        self._since = 0

    def _effects(self) -> list[Effect]:
        return [Effect("get", KEYS[0])]

    def attempt(self, effects: list[Effect], number: str, *, hurried: bool) -> list[Found]:
        target = f"/v1/kv/{effects[0].key}?format=json&wait=1s&since={self._since}"
        try:
            found = found_in(self._call("GET", target))
            revision = found.revision
        except KvError as error:
            if error.code != "not_found":
                raise
            found, revision = Found(0), int(error.details["revision"])
        assert revision > self._since, f"{revision} is no news after {self._since}"
        self._since = revision
        return [found]


def _op_in_json(effect: Effect) -> dict[str, Any]:
    op: dict[str, Any] = {"op": effect.op, "key": effect.key}
    if effect.op == "put":
        op["value"] = str(effect.number)
    if effect.op == "incr":
        op["by"] = effect.number
    if effect.ttl_ms is not None:
        op["ttl"] = f"{effect.ttl_ms}ms"
    if effect.if_revision is not None:
        op["if_revision"] = effect.if_revision
    return op


class NativeContender(Contender):
    """With the native client, which numbers and repeats by itself; one that is hurried gives up early."""

    def __init__(self, name: str, history: History, seed: int, turn: Turn, requests: str) -> None:
        super().__init__(name, history, seed, turn)
        self._client = Client(requests, timeout=PATIENCE_SECONDS)

    def attempt(self, effects: list[Effect], number: str, *, hurried: bool) -> list[Found]:
        timeout = self.random.random() * 0.01 if hurried else None
        try:
            if effects[0].op == "get" and len(effects) > 1:
                records = self._client.get_many([effect.key for effect in effects])
                return [_found(records.get(effect.key)) for effect in effects]
            if effects[0].op == "get":
                return [_found(self._client.get(effects[0].key))]
            batch = [_command(effect) for effect in effects]
            is_atomic = len(batch) > 1
            results = self._client.batch(batch, atomic=is_atomic, timeout=timeout)
        except KvError as error:
            if error.code == "not_found" and effects[0].op == "get":
                return [Found(0)]
            if error.row.retryable:
                raise NoAnswerError(may_be_done=error.details.get("outcome") == "unknown") from error
            raise
        for result in results:
            if isinstance(result, KvError):
                raise result
        return [_found(result) for result in results]

    def listed(self) -> list[Found]:
        page = self._client.list_page(prefix=PREFIX)
        assert page.cursor is None
        by_key = {record.key: _found(record) for record in page.records}
        return [by_key.get(key, Found(0)) for key in KEYS]

    def close(self) -> None:
        self._client.close()


def _command(effect: Effect) -> commands.Command[Any]:
    key, condition = effect.key, effect.if_revision
    ttl = None if effect.ttl_ms is None else effect.ttl_ms / 1000
    if effect.op == "put":
        return commands.put(key, str(effect.number).encode(), ttl=ttl, if_revision=condition)
    if effect.op == "incr":
        return commands.incr(key, effect.number or 0, if_revision=condition)
    if effect.op == "delete":
        return commands.delete(key, if_revision=condition)
    if effect.op == "touch":
        return commands.touch(key, ttl or 0, if_revision=condition)
    return commands.persist(key, if_revision=condition)


def _found(result: Any) -> Found:
    """What a record, or the result of a write, says."""
    if result is None:
        return Found(0)
    value = getattr(result, "value", None)
    told = (getattr(result, name, None) for name in ("version", "create_revision", "expires_at"))
    return Found(result.revision, None if value is None else int(value), *told)


class WireContender(Contender):
    """A DEALER socket and nothing of ours: sends every write twice under one number, and once more on a
    fresh socket when no answer comes. Both answers must be the same."""

    def __init__(self, name: str, history: History, seed: int, turn: Turn, requests: str) -> None:
        super().__init__(name, history, seed, turn)
        self._requests = requests
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._number = 0
        self._sent = ""

    def attempt(self, effects: list[Effect], number: str, *, hurried: bool) -> list[Found]:
        ops = [self._op(effect) for effect in effects]
        if effects[0].op == "get":
            return [found_in(result) for result in self._ask(ops, 1)]
        if number != self._sent:  # an attempt of a new write, and not one more of the last
            self._number, self._sent = self._number + 1, number
        header = {"client": self.name, "seq": self._number}
        results = self._ask(ops, 2, atomic=len(ops) > 1, **header)
        for result in results:
            if "error" in result:
                raise KvError.from_json(result["error"])
        return [found_in(result) for result in results]

    def listed(self) -> list[Found]:
        return _all_found(self._ask([{"op": "list", "prefix": PREFIX}], 1)[0]["items"])

    def _op(self, effect: Effect) -> dict[str, Any]:
        op = _op_in_json(effect)
        if "value" in op:
            op["value"] = op["value"].encode()
        if effect.ttl_ms is not None:
            op["ttl"] = effect.ttl_ms / 1000
        return op

    def _ask(self, ops: list[dict[str, Any]], copies: int, **header: Any) -> list[dict[str, Any]]:
        name = uuid4().bytes
        frames = [name, b"", *pack(*ops, **header)]
        socket = self._open()
        for _ in range(copies):
            socket.send_multipart(frames)
        replies: list[dict[str, Any]] = []
        while len(replies) < copies:
            if not socket.poll(int(ATTEMPT_SECONDS * 1000)):
                self._drop_socket()
                raise NoAnswerError
            received = socket.recv_multipart()
            if received[0] == name:
                replies.append(unpack(received[2:]))
        told = [(reply.get("results"), reply.get("error")) for reply in replies]
        assert told == told[:1] * copies, f"a repeat was told something else: {told}"
        if "error" in replies[0]:
            error = KvError.from_json(replies[0]["error"])
            if error.row.retryable:
                raise NoAnswerError
            raise error
        results: list[dict[str, Any]] = replies[0]["results"]
        return results

    def _open(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.linger = 0
            self._socket.connect(self._requests)
        return self._socket

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._drop_socket()
        self._context.term()
