"""Every change has its author, whoever makes it and however it gets there, and nobody can be another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import Client, Event, Subscription
from support.command_line import CommandLine
from support.protected import Protected
from support.servers import wait_until
from support.session import Session, call, path_of
from support.wire import get, put

_numbers = itertools.count()


@pytest.fixture
def scope() -> str:
    """A prefix that is the test's own."""
    return f"authors/{next(_numbers)}/"


class As:
    """HTTP as one identity."""

    def __init__(self, protected: Protected, token: str) -> None:
        self.session = Session(protected.url)
        self.header = {"authorization": f"Bearer {token}"}

    def close(self) -> None:
        self.session.close()

    def put(self, key: str, value: bytes = b"v", **headers: str) -> int:
        answer = self.session.put(path_of(key), value, **self.header, **headers)
        assert answer.status in (200, 201), answer
        return int(answer.json["revision"])

    def get(self, target: str) -> Any:
        answer = self.session.get(target, **self.header)
        assert answer.status == 200, answer
        return answer.json


def token_of(protected: Protected, name: str) -> str:
    """A token that the facade knows of."""
    token = protected.token(name, "rw:authors/")
    headers = {"Authorization": f"Bearer {token}"}
    known = "/v1/kv?prefix=authors/&count=1"
    wait_until(lambda: call(protected.url, "GET", known, None, headers).status == 200, what="it is known")
    return token


@pytest.fixture
def ann(protected: Protected) -> Iterator[As]:
    ann = As(protected, token_of(protected, "ann"))
    yield ann
    ann.close()


def test_what_is_shown_of_a_change_says_who_made_it(protected: Protected, ann: As, scope: str) -> None:
    key = scope + "k"
    since = ann.put(key, x_kvstore_message="why") - 1
    told = [
        ann.get(path_of(key) + "?format=json"),
        *ann.get(f"/v1/kv?prefix={scope}&keys=1")["items"],
        *ann.get(path_of(key, "history"))["events"],
        *ann.get(f"/v1/history?prefix={scope}")["events"],
        *protected.root.ask(get(key)),
        *protected.root.ask({"op": "events", "since": since, "prefixes": [scope]})[0]["events"],
    ]
    assert len(told) == 6
    assert {(each["author"], each["message"]) for each in told} == {("ann", "why")}
    headers = ann.session.get(path_of(key), **ann.header).headers
    assert (headers["x-kvstore-author"], headers["x-kvstore-message"]) == ("ann", "why")


def test_every_way_to_write_names_its_author(protected: Protected, ann: As, scope: str) -> None:
    changes = protected.subscriber(protected.facade_keys, scope.encode())
    assert changes.heartbeat()
    for method, target, body in (
        ("PUT", path_of(scope + "a"), b"{}"),
        ("PATCH", path_of(scope + "a"), b'{"b": 1}'),
        ("POST", path_of(scope + "a", "touch") + "?ttl=1h", None),
        ("POST", path_of(scope + "a", "persist"), None),
        ("POST", path_of(scope + "n", "incr"), None),
        ("POST", "/v1/batch", b'{"ops":[{"op":"put","key":"%sb","value":"1"}]}' % scope.encode()),
        ("PUT", "/", b'{"key":"%sc","value":"1"}' % scope.encode()),
        ("DELETE", path_of(scope + "a"), None),
        ("DELETE", f"/v1/kv?prefix={scope}", None),
    ):
        kind = {"PATCH": "application/merge-patch+json", "POST": "application/json"}.get(method, "text/plain")
        headers = {**ann.header, **({"content-type": kind} if body else {})}
        assert call(protected.url, method, target, body, headers).status < 300, (method, target)
    told = [changes.change()[1] for _ in range(11)]
    assert [each["op"] for each in told] == ["put"] * 7 + ["delete"] * 4
    assert {each["author"] for each in told} == {"ann"}


def test_a_native_client_is_the_author_of_its_changes(
    protected: Protected, scope: str, tmp_path: Path
) -> None:
    login = protected.login_file("ned", protected.keys("ned", "rw:authors/"))
    where = {"requests": protected.requests, "login": login}
    with Client(**where) as client:
        written = client.put(scope + "k", "1", message="natively")
        assert (client.get(scope + "k").author, client.get(scope + "k").message) == ("ned", "natively")
        page = client.history(prefix=scope)
    assert [(event.author, event.message) for event in page.events] == [("ned", "natively")]
    subscription = Subscription(
        protected.requests, protected.changes, prefixes=[scope], since=written.revision - 1, login=login
    )
    with subscription:
        event = next(item for item in subscription if isinstance(item, Event))
    assert (event.author, event.record.author if event.record else None) == ("ned", "ned")


def test_nobody_but_the_facade_says_for_whom_it_acts(protected: Protected, scope: str) -> None:
    peer = protected.peer(protected.keys("eve", "rw:authors/", "admin"))
    for author in ("ann", "eve", ["ann"], [None]):
        assert peer.refusal(put(scope + "k"), author=author)["code"] == "not_allowed"
    assert peer.ask(get(scope + "k"))[0]["error"]["code"] == "not_found"
    assert protected.root.ask(put(scope + "k"), put(scope + "l"), author=["ann", None])
    assert [each.get("author") for each in protected.root.ask(get(scope + "k"), get(scope + "l"))] == [
        "ann",
        None,
    ]


def test_a_narrowed_token_is_its_parents_author(protected: Protected, ann: As, scope: str) -> None:
    body = json.dumps({"grants": [f"write:{scope}"]}).encode()
    answer = call(
        protected.url, "POST", "/v1/narrow", body, {**ann.header, "content-type": "application/json"}
    )
    assert answer.status == 201, answer
    with closing(As(protected, answer.json["token"])) as narrow:
        narrow.put(scope + "k", x_kvstore_message="narrowly")
    record = ann.get(path_of(scope + "k") + "?format=json")
    assert (record["author"], record["message"]) == ("ann", "narrowly")


def test_a_header_makes_nobody_another(ann: As, scope: str) -> None:
    ann.put(scope + "k", x_kvstore_author="root", x_author="root")
    assert ann.get(path_of(scope + "k") + "?format=json")["author"] == "ann"


def test_changes_that_travel_together_keep_their_authors(protected: Protected, scope: str) -> None:
    """The facade merges what is asked in one moment."""
    names = [f"together{number}" for number in range(5)]
    tokens = {name: token_of(protected, name) for name in names}

    def write(number: int) -> None:
        name = names[number % 5]
        writer = As(protected, tokens[name])
        for step in range(20):
            writer.put(f"{scope}{name}/{number}/{step}", x_kvstore_message=name)
        writer.close()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(write, range(10)))
    (page,) = protected.root.ask({"op": "list", "prefix": scope, "keys_only": True})
    assert len(page["items"]) == 200
    for item in page["items"]:
        name = item["key"].removeprefix(scope).partition("/")[0]
        assert (item["author"], item["message"]) == (name, name)


def test_a_repeat_keeps_the_author_of_the_first(protected: Protected, scope: str) -> None:
    count = {"op": "incr", "key": scope + "n"}
    number = {"client": scope, "seq": 1}
    first = protected.root.ask(count, **number, author="ann")
    assert protected.root.ask(count, **number, author="bob") == first
    assert protected.root.ask(get(scope + "n"))[0]["author"] == "ann"


def test_an_expiry_is_nobodys(protected: Protected, ann: As, scope: str) -> None:
    key = scope + "short"
    answer = ann.session.put(path_of(key) + "?ttl=50ms", b"v", **ann.header)
    assert answer.status == 201

    def events() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ann.get(path_of(key, "history"))["events"]
        return found

    wait_until(lambda: len(events()) == 2, what="it is expired")
    assert [event.get("author") for event in events()] == [None, "ann"]


def test_the_command_shows_who_did_it(protected: Protected, scope: str, tmp_path: Path) -> None:
    shell = CommandLine(tmp_path, protected.url)
    ann, bob = ({"KVSTORE_TOKEN": token_of(protected, name)} for name in ("ann", "bob"))
    shell.out("put", scope + "k", "1", "-m", "begin", env=ann)
    shell.out("put", scope + "k", "2", env=bob)
    shell.out("delete", scope + "k", "-m", "end", env=ann)
    shell.out("put", scope + "l", "1", "-m", "again", env=bob)
    log = [line.split("\t") for line in shell.out("log", scope, env=ann).decode().splitlines()]
    assert [[row[2], row[3], *row[5:]] for row in log] == [
        ["bob", "put", "again"], ["ann", "delete", "end"], ["bob", "put", ""], ["ann", "put", "begin"]
    ]  # fmt: skip
    blame = [line.split("\t") for line in shell.out("blame", scope, env=bob).decode().splitlines()]
    assert [row[2:] for row in blame] == [["bob", scope + "l", "again"]]
    history = [
        line.split("\t")[2:] for line in shell.out("history", scope + "k", env=ann).decode().splitlines()
    ]
    assert history == [["delete", "", "ann", "end"], ["put", "2", "bob", ""], ["put", "1", "ann", "begin"]]
    exported = shell.out("export", "--prefix", scope, env=ann).decode().splitlines()
    assert '"author":"bob","message":"again"' in exported[1]
    (tmp_path / "e").write_text("\n".join(exported) + "\n")
    shell.out("import", "e", "-m", "moved", env=ann)
    assert shell.lines("blame", scope, "--json", env=ann)[0]["author"] == "ann"
    denied = shell("log", env=ann)
    assert (denied.returncode, b"watch" in denied.stderr) == (5, True)


def test_the_log_of_a_prefix_is_for_who_may_watch_it(protected: Protected, scope: str) -> None:
    protected.root.ask(put(scope + "k", b"secret"), put(scope + "l"))
    watcher = protected.peer(protected.keys("watcher", f"watch:{scope}"))
    reader = protected.peer(protected.keys("reader", f"read:{scope}"))
    both = protected.peer(protected.keys("both", f"read,watch:{scope}k"))
    log = {"op": "history", "prefix": scope, "values": False}
    (page,) = watcher.ask(log)
    assert [event["key"] for event in page["events"]] == [scope + "l", scope + "k"]
    assert all("value" not in event for event in page["events"])
    for peer, op in (
        (watcher, {**log, "values": True}),
        (watcher, {"op": "history", "prefix": scope}),
        (watcher, {"op": "history", "prefix": "", "values": False}),
        (watcher, {"op": "history", "key": scope + "k"}),
        (reader, log),
        (both, log),
        (both, {"op": "history", "prefix": scope + "k"}),  # other keys begin like this
    ):
        assert peer.refusal(op)["code"] == "not_allowed"
    assert both.ask({"op": "history", "key": scope + "k"})[0]["events"]
