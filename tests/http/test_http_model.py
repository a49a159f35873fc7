"""The whole service over HTTP against a plain dict."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlencode

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.lengths import examples
from support.servers import Service
from support.session import Answer, Session, assert_problem, path_of

KEYS = ["a", "a/", "a//b", "..", "%2F", "b c", "ключ", "\U0001f600", "~" * 511]
FAR = "1h"
NUMBERED = "a/"

keys = st.sampled_from(KEYS)
values = st.binary(max_size=8) | st.integers(-5, 10**6).map(lambda n: str(n).encode())
types = st.sampled_from(["text/plain", "application/json", "image/x"])
prefixes = st.sampled_from(["a", "a/", "%", ".", "кл", "x"])


@dataclass
class Known:
    """What the model knows of a key."""

    value: bytes
    content_type: str
    revision: int
    create_revision: int
    version: int
    expires: bool
    message: str | None = None


class ServiceModel(RuleBasedStateMachine):
    """Every step is done by the service and by a dict, and both must say the same."""

    session: Session
    url: str

    def __init__(self) -> None:
        super().__init__()
        for key in KEYS:
            self.session.delete(path_of(key))
        self.session.delete(f"/v1/kv?prefix={quote_plus(NUMBERED)}0")
        self.model: dict[str, Known] = {}
        self.last_numbered = ""
        self.head = int(self.session.get("/v1/status").json["revision"])

    # ── what a step must say ────────────────────────────────────────────────────────────────────

    def moved_to(self, answer: Answer) -> int:
        """The revision that a write made: higher than all before."""
        revision = int(answer.json["revision"])
        assert revision > self.head
        self.head = revision
        return revision

    def stored(
        self,
        key: str,
        revision: int,
        value: bytes,
        content_type: str,
        expires: bool,
        message: str | None = None,
    ) -> None:
        old = self.model.get(key)
        created = revision if old is None else old.create_revision
        version = 1 if old is None else old.version + 1
        self.model[key] = Known(value, content_type, revision, created, version, expires, message)

    def must_hold(self, key: str, if_revision: int | None) -> bool:
        """Whether a condition on the key's revision (0: missing) holds."""
        present = self.model[key].revision if key in self.model else 0
        return if_revision is None or if_revision == present

    def headers_for(self, if_revision: int | None) -> dict[str, str]:
        if if_revision is None:
            return {}
        return {"if_match": f'"{if_revision}"'} if if_revision else {"if_none_match": "*"}

    def some_revision(self, choice: int, key: str) -> int | None:
        """No condition, the right one, "must not exist", or one that is wrong."""
        present = self.model[key].revision if key in self.model else 0
        return (None, present, 0, self.head + 7)[choice]

    # ── writes ──────────────────────────────────────────────────────────────────────────────────

    @rule(
        key=keys,
        value=values,
        content_type=types,
        expires=st.booleans(),
        choice=st.integers(0, 3),
        message=st.sampled_from([None, "why", "ü 50%"]),
    )
    def put(
        self, key: str, value: bytes, content_type: str, expires: bool, choice: int, message: str | None
    ) -> None:
        if_revision = self.some_revision(choice, key)
        target = path_of(key) + (f"?ttl={FAR}" if expires else "")
        headers = self.headers_for(if_revision)
        if message is not None:
            headers["x_kvstore_message"] = quote(message)
        answer = self.session.put(target, value, content_type=content_type, **headers)
        if not self.must_hold(key, if_revision):
            assert_problem(answer, "condition_failed")
            return
        assert answer.status == (200 if key in self.model else 201)
        self.stored(key, self.moved_to(answer), value, content_type, expires, message)

    @rule(key=keys, choice=st.integers(0, 3))
    def delete(self, key: str, choice: int) -> None:
        if_revision = self.some_revision(choice, key)
        answer = self.session.delete(path_of(key), **self.headers_for(if_revision))
        if not self.must_hold(key, if_revision):
            assert_problem(answer, "condition_failed")
        elif key not in self.model:
            assert_problem(answer, "not_found")
        else:
            self.moved_to(answer)
            del self.model[key]

    @rule(key=keys, by=st.integers(-10, 10), choice=st.integers(0, 3))
    def incr(self, key: str, by: int, choice: int) -> None:
        if_revision = self.some_revision(choice, key)
        answer = self.session.post(path_of(key, "incr") + f"?by={by}", **self.headers_for(if_revision))
        old = self.model.get(key)
        if not self.must_hold(key, if_revision):
            assert_problem(answer, "condition_failed")
        elif old is not None and not old.value.removeprefix(b"-").isdigit():
            assert_problem(answer, "not_an_integer")
        else:
            number = by if old is None else int(old.value) + by
            assert answer.json["value"] == number
            content_type = "text/plain; charset=utf-8" if old is None else old.content_type
            self.stored(
                key, self.moved_to(answer), str(number).encode(), content_type, bool(old and old.expires)
            )

    @rule(
        key=keys,
        others=st.lists(st.tuples(keys, st.integers(1, 3)), min_size=1, max_size=2),
        how=st.sampled_from(["put", "delete", "numbered"]),
        value=values,
    )
    def guarded(self, key: str, others: list[tuple[str, int]], how: str, value: bytes) -> None:
        """A write on condition that other keys, or its own, have certain revisions."""
        guards = [(other, self.some_revision(choice, other)) for other, choice in others]
        query = "&".join(f"guard={quote(other)}@{revision}" for other, revision in guards)
        broken = next((other for other, revision in guards if not self.must_hold(other, revision)), None)
        if how == "put":
            answer = self.session.put(f"{path_of(key)}?{query}", value, content_type="image/x")
        elif how == "delete":
            answer = self.session.delete(f"{path_of(key)}?{query}")
        else:
            answer = self.session.request("POST", f"{path_of(NUMBERED)}?{query}", value)
        if broken is not None:
            problem = assert_problem(answer, "condition_failed")
            present = self.model[broken].revision if broken in self.model else 0
            assert (problem["key"], problem["revision"]) == (broken, present)
        elif how == "put":
            self.stored(key, self.moved_to(answer), value, "image/x", False)
        elif how == "numbered":
            self._numbered(answer.json, self.moved_to(answer), value)
        elif key not in self.model:
            assert_problem(answer, "not_found")
        else:
            self.moved_to(answer)
            del self.model[key]

    @rule(value=values)
    def numbered(self, value: bytes) -> None:
        answer = self.session.request("POST", path_of(NUMBERED), value)
        assert answer.status == 201
        self._numbered(answer.json, self.moved_to(answer), value)

    def _numbered(self, made: dict[str, Any], revision: int, value: bytes) -> None:
        key = made["key"]
        assert key.startswith(NUMBERED)
        assert key > self.last_numbered
        assert key not in self.model
        self.last_numbered = key
        self.stored(key, revision, value, "application/octet-stream", False)

    @rule(key=keys, right=st.booleans(), value=values)
    def put_by_value(self, key: str, right: bool, value: bytes) -> None:
        old = self.model.get(key)
        try:
            wanted = old.value.decode() if right and old is not None else "another"
        except UnicodeDecodeError:
            return  # in an address there is text
        answer = self.session.put(f"{path_of(key)}?if_value={quote(wanted)}", value, content_type="image/x")
        if old is None or old.value != wanted.encode():
            problem = assert_problem(answer, "condition_failed")
            assert problem["revision"] == (0 if old is None else old.revision)
        else:
            self.stored(key, self.moved_to(answer), value, "image/x", False)

    @rule(key=keys, expires=st.booleans(), choice=st.integers(0, 3))
    def change_lifetime(self, key: str, expires: bool, choice: int) -> None:
        if_revision = self.some_revision(choice, key)
        target = path_of(key, "touch") + f"?ttl={FAR}" if expires else path_of(key, "persist")
        answer = self.session.post(target, **self.headers_for(if_revision))
        if not self.must_hold(key, if_revision):
            assert_problem(answer, "condition_failed")
        elif key not in self.model:
            assert_problem(answer, "not_found")
        else:
            known = self.model[key]
            if expires or known.expires:
                known.revision, known.message = self.moved_to(answer), None
            known.expires = expires
            assert answer.json["version"] == known.version

    @rule(key=keys, member=st.sampled_from(["m", "n"]), number=st.none() | st.integers(0, 9))
    def patch(self, key: str, member: str, number: int | None) -> None:
        answer = self.session.patch(path_of(key), {member: number})
        old = self.model.get(key)
        try:
            target = {} if old is None else json.loads(old.value)
        except ValueError:
            assert_problem(answer, "not_json")
            return
        target = target if isinstance(target, dict) else {}
        target = {
            name: value
            for name, value in {**target, member: number}.items()
            if name != member or value is not None
        }
        # what was not named keeps its spelling, and what was named has the patch's
        value = self.session.get(path_of(key)).body
        assert json.loads(value) == target
        content_type = "application/json" if old is None else old.content_type
        self.stored(key, self.moved_to(answer), value, content_type, bool(old and old.expires))

    @rule(prefix=prefixes)
    def delete_prefix(self, prefix: str) -> None:
        gone = [key for key in self.model if key.startswith(prefix)]
        answer = self.session.delete(f"/v1/kv?prefix={quote_plus(prefix)}")
        assert answer.json["deleted"] == len(gone)
        if gone:
            self.moved_to(answer)
        for key in gone:
            del self.model[key]

    @rule(
        ops=st.lists(
            st.tuples(st.sampled_from(["put", "delete", "get"]), keys, values), min_size=1, max_size=5
        )
    )
    def independent_batch(self, ops: list[tuple[str, str, bytes]]) -> None:
        results = self.session.batch(*(_op(*op) for op in ops)).json["results"]
        for (op, key, value), result in zip(ops, results, strict=True):
            if op == "put":
                assert result["status"] == (200 if key in self.model else 201)
                self.stored(key, result["revision"], value, "application/octet-stream", False)
            elif op == "delete" and key in self.model:
                assert (result["status"], result["deleted"]) == (200, 1)
                del self.model[key]
            elif op == "delete":
                assert result["error"]["code"] == "not_found"
        for (op, key, _), result in zip(ops, results, strict=True):
            if op == "get":  # after all writes of the batch
                assert result["status"] == (200 if key in self.model else 404)
        self.head = max([self.head, *(result.get("revision", 0) for result in results)])

    @rule(
        chosen=st.lists(st.tuples(keys, values), min_size=1, max_size=4, unique_by=lambda p: p[0]),
        fails=st.booleans(),
        checks=st.lists(st.tuples(keys, st.integers(1, 3)), max_size=2),
    )
    def atomic_batch(
        self, chosen: list[tuple[str, bytes]], fails: bool, checks: list[tuple[str, int]]
    ) -> None:
        ops = [_op("put", *pair) for pair in chosen]
        for at, (key, choice) in enumerate(checks):
            ops.insert(at, {"op": "check", "key": key, "if_revision": self.some_revision(choice, key)})
        broken = [at for at, op in enumerate(ops) if not self.must_hold(op["key"], op.get("if_revision"))]
        if broken:
            problem = assert_problem(self.session.batch(*ops, atomic=True), "condition_failed")
            assert (problem["op"], problem["key"]) == (broken[0], ops[broken[0]]["key"])
            return
        if fails:
            ops[-1]["if_revision"] = self.head + 7
        answer = self.session.batch(*ops, atomic=True)
        if fails:
            assert assert_problem(answer, "condition_failed")["op"] == len(ops) - 1
            return
        results = answer.json["results"]
        for op, result in zip(ops, results[: len(checks)], strict=False):
            assert result == {"status": 200, "key": op["key"], "revision": op["if_revision"]}
        revisions = {result["revision"] for result in results[len(checks) :]}
        assert len(revisions) == 1
        assert revisions > {self.head} or min(revisions) > self.head
        self.head = revisions.pop()
        for key, value in chosen:
            self.stored(key, self.head, value, "application/octet-stream", False)

    # ── reads ───────────────────────────────────────────────────────────────────────────────────

    @rule(key=keys)
    def get(self, key: str) -> None:
        answer = self.session.get(path_of(key))
        if key not in self.model:
            assert_problem(answer, "not_found")
            return
        known = self.model[key]
        assert (answer.status, answer.body) == (200, known.value)
        assert answer.headers["content-type"] == known.content_type
        assert answer.headers["etag"] == f'"{known.revision}"'
        assert answer.headers["x-kvstore-create-revision"] == str(known.create_revision)
        assert answer.headers["x-kvstore-version"] == str(known.version)
        assert ("x-kvstore-expires-at" in answer.headers) is known.expires
        assert unquote(answer.headers.get("x-kvstore-message", "")) == (known.message or "")

    @rule(prefix=st.just("") | prefixes, limit=st.integers(1, 4))
    def listing(self, prefix: str, limit: int) -> None:
        expected = sorted((key for key in self.model if key.startswith(prefix)), key=str.encode)
        found = list(self._pages(f"prefix={quote_plus(prefix)}&limit={limit}"))
        assert [item["key"] for item in found] == expected
        for item in found:
            known = self.model[item["key"]]
            assert _value(item) == known.value
            assert (item["revision"], item["version"]) == (known.revision, known.version)
            assert ("expires_at" in item) is known.expires
            assert item.get("message") == known.message

    @rule(
        prefix=st.just("") | prefixes,
        delimiter=st.sampled_from(["/", "a", "é", "//"]),
        reverse=st.booleans(),
        limit=st.integers(1, 4),
    )
    def level(self, prefix: str, delimiter: str, reverse: bool, limit: int) -> None:
        expected: dict[str, int | None] = {}
        for key in filter(lambda key: key.startswith(prefix), self.model):
            name, found, _ = key[len(prefix) :].partition(delimiter)
            shown = prefix + name + found
            expected[shown] = (expected.get(shown) or 0) + 1 if found else None
        query = {"prefix": prefix, "delimiter": delimiter, "counts": 1, "reverse": int(reverse)}
        shown_so_far: list[tuple[str, int | None]] = []
        cursor: str | None = ""
        while cursor is not None:
            more = {"limit": limit, "cursor": cursor} if cursor else {"limit": limit}
            page = self.session.get(f"/v1/kv?{urlencode({**query, **more})}").json
            entries = [*zip(page["prefixes"], page["counts"], strict=True)]
            entries += [(item["key"], None) for item in page["items"]]
            assert len(entries) <= limit
            shown_so_far += sorted(entries, key=lambda entry: entry[0].encode(), reverse=reverse)
            cursor = page["cursor"]
        wanted = sorted(expected.items(), key=lambda entry: entry[0].encode(), reverse=reverse)
        assert shown_so_far == wanted

    def _pages(self, query: str) -> Iterator[dict[str, Any]]:
        cursor: str | None = ""
        while cursor is not None:
            page = self.session.get(f"/v1/kv?{query}" + (f"&cursor={cursor}" if cursor else "")).json
            yield from page["items"]
            cursor = page["cursor"]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def history(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        last = self.session.get(path_of(key, "history") + "?limit=1").json["events"][0]
        assert (last["op"], last["revision"]) == ("put", self.model[key].revision)
        assert _value(last) == self.model[key].value

    @invariant()
    def the_count_is_right(self) -> None:
        assert self.session.get("/v1/kv?count=1").json == {"count": len(self.model), "revision": self.head}


def _op(op: str, key: str, value: bytes) -> dict[str, Any]:
    if op != "put":
        return {"op": op, "key": key}
    return {"op": "put", "key": key, "value_b64": base64.b64encode(value).decode()}


def _value(item: dict[str, Any]) -> bytes:
    return base64.b64decode(item["value_b64"]) if "value_b64" in item else item["value"].encode()


@pytest.mark.timeout(600)
def test_the_service_does_what_a_dict_does(shared_service: Service, session: Session) -> None:
    model = type("Model", (ServiceModel,), {"session": session, "url": shared_service.url})
    run_state_machine_as_test(
        model, settings=settings(max_examples=examples(12), stateful_step_count=40, deadline=None)
    )
