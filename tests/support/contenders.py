"""Clients that contend for a few keys and note in a history what they asked and what they were told.

Each number that a put stores is stored once in the whole run, so that it says who stored it. What was not
answered is asked again under its number; a few operations are given up instead, and stay unknown.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import zmq

from kvstore_client import Client, KvError, commands
from support.history import Effect, Found, History, Operation, end
from support.load import Party
from support.patience import PATIENCE_SECONDS
from support.wire import pack, unpack

KEYS = 5
ATTEMPT_SECONDS = 1.0
HURRIED_SECONDS = 1.5
"""How long one waits who can ask elsewhere."""
PAUSE_SECONDS = 0.02
Turn = Callable[[int], None]

LISTING = "list"
"""Stands in for the op of a read that asks for all keys as one page."""


class NoAnswerError(Exception):
    """Nothing was answered, or that nobody knows. ``may_be_done``: so the write may be applied."""

    def __init__(self, *, may_be_done: bool = True) -> None:
        super().__init__("no answer")
        self.may_be_done = may_be_done


class Ground:
    """The few keys that are contended for. An operation that is never known of may still be done at any
    time, and the longer a history of the same keys, the more of them have to be thought of: so one
    :meth:`move`\\ s on to others now and then."""

    def __init__(self) -> None:
        self._number = 0

    def move(self) -> None:
        """From now on contend for other keys."""
        self._number += 1

    @property
    def keys(self) -> list[str]:
        """The present ones."""
        return [f"key/{self._number}/{number}" for number in range(KEYS)]


class Contender(Party):
    """Does random operations until it is told to stop. A subclass says how one reaches the service.

    ``turn`` is called before each operation and may make it wait.
    """

    def __init__(self, name: str, history: History, seed: int, turn: Turn) -> None:
        super().__init__(name)
        self.random = random.Random(f"{seed} {name}")
        self._history = history
        self._turn = turn
        self.ground = Ground()
        self._known: defaultdict[str, int] = defaultdict(int)

    def work(self) -> None:
        while not self.stopping.is_set():
            self._turn(max(self._known.values(), default=0))
            self._contend(self._effects())

    # ── what to do ───────────────────────────────────────────────────────────────────────────────

    def _effects(self) -> list[Effect]:
        chance, keys = self.random, self.ground.keys
        kinds = ["get", "put", "delete", "incr", "touch", "persist", "batch", "guarded", "all", LISTING]
        kind = chance.choices(kinds, [22, 20, 7, 12, 7, 5, 10, 12, 6, 3])[0]
        if kind == "guarded":  # one write or two, that depend on others
            guard, *changed = chance.sample(keys, chance.choice((2, 2, 3)))
            return [Effect("check", guard, if_revision=self._known[guard]), *map(self._change, changed)]
        if kind == "batch":
            return [self._change(key) for key in chance.sample(keys, chance.choice((2, 3)))]
        if kind in ("all", LISTING):
            return [Effect("get" if kind == "all" else LISTING, key) for key in keys]
        key = chance.choice(keys)
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
                found = (
                    self.listed([effect.key for effect in effects])
                    if listing
                    else self.attempt(effects, number, hurried=gives_up)
                )
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
        at = int(details.get("op", 0))
        if "key" in details:
            assert operation.effects[at].key == details["key"], (operation, details)
        end(operation, "failed", [found], code=error.code, at=at)
        self._known[operation.effects[operation.at].key] = operation.found[0].revision

    def _learn(self, operation: Operation) -> None:
        for effect, found in zip(operation.effects, operation.found, strict=True):
            self._known[effect.key] = 0 if effect.op == "delete" else found.revision

    def attempt(self, effects: list[Effect], number: str, *, hurried: bool) -> list[Found]:
        """What each effect found. Raises the KvError that refused it, or NoAnswerError; ``number`` is the
        same when it is attempted again. One that is ``hurried`` is not attempted again, and need not be
        given much time."""
        raise NotImplementedError

    def listed(self, keys: list[str]) -> list[Found]:
        """What a list says of all keys of a ground."""
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


def _all_found(keys: list[str], items: list[dict[str, Any]]) -> list[Found]:
    by_key = {item["key"]: found_in(item) for item in items}
    return [by_key.get(key, Found(0)) for key in keys]


def _prefix(keys: list[str]) -> str:
    return keys[0].rpartition("/")[0] + "/"


class HttpContender(Contender):
    """Over HTTP, with conditions in headers and an ``Idempotency-Key``.

    Now and then it hangs up before the answer is there and asks again, as a client does whose connection
    broke. One that has several addresses then asks the next.
    """

    def __init__(self, name: str, history: History, seed: int, turn: Turn, *urls: str) -> None:
        super().__init__(name, history, seed, turn)
        patience = PATIENCE_SECONDS if len(urls) == 1 else HURRIED_SECONDS
        self._connections = [HTTPConnection(urlsplit(url).netloc, timeout=patience) for url in urls]
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

    def listed(self, keys: list[str]) -> list[Found]:
        return _all_found(keys, self._call("GET", f"/v1/kv?prefix={_prefix(keys)}")["items"])

    def _write(self, effects: list[Effect], headers: dict[str, str], *, hurried: bool) -> list[Found]:
        self._hangs_up = hurried or self.random.random() < 0.08
        if len(effects) == 2 and effects[0].op == "check":
            return self._write_under_guard(*effects, headers)
        if len(effects) > 1:
            ops = [_op_in_json(effect) for effect in effects]
            return [found_in(result) for result in self._batch(ops, headers, atomic=True)]
        return [self._write_one(effects[0], headers)]

    def _write_under_guard(self, guard: Effect, effect: Effect, headers: dict[str, str]) -> list[Found]:
        assert guard.if_revision is not None
        try:
            found = self._write_one(effect, headers, [f"guard={guard.key}@{guard.if_revision}"])
        except KvError as error:
            error.details["op"] = int(
                "key" not in error.details
            )  # it names the key of the guard, and no other
            raise
        return [Found(guard.if_revision), found]  # that is what it had, then

    def _write_one(self, effect: Effect, headers: dict[str, str], query: Sequence[str] = ()) -> Found:
        if effect.if_revision is not None:
            headers |= (
                {"If-Match": f'"{effect.if_revision}"'} if effect.if_revision else {"If-None-Match": "*"}
            )
        parameters = [*query]
        if effect.ttl_ms is not None:
            parameters.append(f"ttl={effect.ttl_ms}ms")
        if effect.op == "incr":
            parameters.append(f"by={effect.number}")
        method = {"put": "PUT", "delete": "DELETE"}.get(effect.op, "POST")
        group = "kv" if method != "POST" else effect.op
        target = f"/v1/{group}/{effect.key}?{'&'.join(parameters)}"
        return found_in(self._call(method, target, str(effect.number) if effect.op == "put" else "", headers))

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
        connection = self._connections[0]
        try:
            connection.request(method, target, body.encode() or None, headers or {})
            if hangs_up:
                time.sleep(self.random.random() * 0.01)
                raise ConnectionError("the client hung up")
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read() or b"{}")
        except (OSError, HTTPException) as failure:
            connection.close()
            self._go_elsewhere()
            raise NoAnswerError from failure
        if response.status < 300:
            return answer
        if response.status in (503, 504, 304):
            self._go_elsewhere()
            raise NoAnswerError(may_be_done=answer.get("outcome") == "unknown")
        raise KvError.from_json({"message": answer["detail"], **answer})

    def _go_elsewhere(self) -> None:
        self._connections.append(self._connections.pop(0))

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


class Poller(HttpContender):
    """Long polls on one key, each from the revision that the last one told of."""

    def __init__(self, name: str, history: History, seed: int, turn: Turn, url: str) -> None:
        super().__init__(name, history, seed, turn, url)
        self._key, self._since = "", 0

    def _effects(self) -> list[Effect]:
        return [Effect("get", self.ground.keys[0])]

    def attempt(self, effects: list[Effect], number: str, *, hurried: bool) -> list[Found]:
        if effects[0].key != self._key:
            self._key, self._since = effects[0].key, 0
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

    def listed(self, keys: list[str]) -> list[Found]:
        page = self._client.list_page(prefix=_prefix(keys))
        assert page.cursor is None
        by_key = {record.key: _found(record) for record in page.records}
        return [by_key.get(key, Found(0)) for key in keys]

    def close(self) -> None:
        self._client.close()


def _command(effect: Effect) -> commands.Command[Any]:
    key, condition = effect.key, effect.if_revision
    if effect.op == "check":
        return commands.check(key, if_revision=condition)
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
    if result is None or isinstance(result, int):  # a check's
        return Found(result or 0)
    value = getattr(result, "value", None)
    told = (getattr(result, name, None) for name in ("version", "create_revision", "expires_at"))
    return Found(result.revision, None if value is None else int(value), *told)


class WireContender(Contender):
    """A DEALER socket and nothing of ours: sends every write twice under one number, and once more on a
    fresh socket when no answer comes. Both answers must be the same. Of several daemons each gets a copy."""

    def __init__(self, name: str, history: History, seed: int, turn: Turn, *requests: str) -> None:
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

    def listed(self, keys: list[str]) -> list[Found]:
        return _all_found(keys, self._ask([{"op": "list", "prefix": _prefix(keys)}], 1)[0]["items"])

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
        errors = [KvError.from_json(reply["error"]) for reply in replies if "error" in reply]
        if any(error.row.retryable for error in errors):
            raise NoAnswerError
        told = [(reply.get("results"), reply.get("error")) for reply in replies]
        assert told == told[:1] * copies, f"a repeat was told something else: {told}"
        if errors:
            raise errors[0]
        results: list[dict[str, Any]] = replies[0]["results"]
        return results

    def _open(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.linger = 0
            for endpoint in self._requests:
                self._socket.connect(endpoint)
        return self._socket

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._drop_socket()
        self._context.term()
