"""What the daemon lets an identity do: all of a request, or nothing of it."""

from __future__ import annotations

import time
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.access.grants import GrantSet
from kvstore_core.access.identities import AccessTable
from kvstore_core.access.principal import THE_FACADE, Principal
from kvstore_core.errors import KvError, NotAllowed
from kvstore_core.operations import OPERATIONS
from kvstore_core.wire import Limits, Request, decode_request, encode_request
from kvstore_daemon.access.authority import Authority
from kvstore_daemon.peer_limits.peer import Peer
from kvstore_daemon.requests.authors import authors_of
from kvstore_daemon.requests.pending_request import REPLY_BYTES, PendingRequest
from kvstore_daemon.requests.permission import allowed, has_ended, recheck
from kvstore_daemon.requests.reads import Page
from kvstore_daemon.requests.router_socket import RequestMessage
from kvstore_daemon.storage.interface import Engine

NOBODY = Principal("nobody", GrantSet(()), "key")
READER = Principal("reader", GrantSet(["ro:app/"]), "key")
WRITER = Principal("writer", GrantSet(["write:app/"]), "key")
ADMIN = Principal("admin", GrantSet(["admin"]), "key")

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
EVERY_OP: dict[str, dict[str, Any]] = {
    "get": {"key": "app/k"},
    "put": {"key": "app/k", "size": 0},
    "delete": {"key": "app/k"},
    "delete_prefix": {"prefix": "app/"},
    "incr": {"key": "app/k"},
    "touch": {"key": "app/k", "ttl": 1},
    "persist": {"key": "app/k"},
    "check": {"key": "app/k", "exists": True},
    "list": {"prefix": "app/"},
    "events": {"since": 0, "prefixes": ["app/"]},
    "history": {"key": "app/k"},
    "digest": {"prefix": "app/"},
    "status": {},
    "whoami": {},
    "access": {},
    "identities": {},
    "identity_put": {"name": "n"},
    "identity_delete": {"name": "n"},
    "token_add": {"name": "n", "id": "0" * 8, "digest": "0" * 64},
    "token_delete": {"name": "n", "id": "0" * 8},
    "key_add": {"name": "n", "public_key": KEY},
    "key_delete": {"name": "n", "public_key": KEY},
    "subscribers": {},
    "kick": {"id": "n1"},
    "backups": {},
    "backup_make": {"id": "0" * 16},
    "backup_read": {"id": "0" * 16, "offset": 0},
    "backup_delete": {"id": "0" * 16},
    "slow": {},
}

ADMINS = {
    "identities", "identity_put", "identity_delete", "token_add", "token_delete", "key_add", "key_delete",
    "subscribers", "kick", "slow",
    "backups", "backup_make", "backup_read", "backup_delete",
}  # fmt: skip


def request_of(*ops: dict[str, Any], **header: Any) -> Request:
    size = sum(op.get("size", 0) for op in ops)
    return decode_request(encode_request(ops, [bytes(size)] if size else (), **header), Limits())


def op_of(name: str, **fields: Any) -> dict[str, Any]:
    return {"op": name, **EVERY_OP[name], **fields}


def is_allowed(who: Principal, op: dict[str, Any]) -> bool:
    try:
        allowed(request_of(op), who)
    except NotAllowed:
        return False
    return True


def test_every_op_is_here() -> None:
    assert list(EVERY_OP) == list(OPERATIONS)


@pytest.mark.parametrize(
    ("who", "may"),
    [
        (NOBODY, {"status", "whoami"}),
        (READER, {"get", "check", "list", "events", "history", "digest", "status", "whoami"}),
        (WRITER, {"put", "persist", "status", "whoami"}),
        (ADMIN, {"status", "whoami", *ADMINS}),
        (THE_FACADE, set(OPERATIONS)),
    ],
    ids=["none", "ro", "write", "admin", "facade"],
)
def test_what_each_may_is_written_out(who: Principal, may: set[str]) -> None:
    assert {name for name in OPERATIONS if is_allowed(who, op_of(name))} == may


@pytest.mark.parametrize(
    "op",
    [
        op_of("put", ttl=60),
        op_of("put", expires_at=1),
        op_of("touch"),
        op_of("delete"),
        op_of("delete_prefix"),
        op_of("incr"),
        op_of("get"),
        op_of("history"),
        op_of("list", keys_only=True),
        op_of("list", count=True),
        op_of("list", keys_only=True, delimiter="/", counts=True, reverse=True),
        op_of("events", values=False),
        op_of("digest"),
    ],
    ids=str,
)
def test_writing_alone_neither_ends_nor_shows_a_key(op: dict[str, Any]) -> None:
    assert not is_allowed(WRITER, op)


@pytest.mark.parametrize("key", ["app", "app2", "ap", "APP/k", "app\u2215k", "\u0430pp/k", "sec", "app0"])
def test_keys_beside_the_scope_are_refused_the_same_for_every_op(key: str) -> None:
    for name, fields in EVERY_OP.items():
        if "key" in fields:
            assert not is_allowed(Principal("all", GrantSet(["all:app/"])), op_of(name, key=key)), name


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({"prefix": "app/"}, True),
        ({"prefix": "app/x"}, True),
        ({"start": "app/", "end": "app0"}, True),
        ({"start": "app/a", "end": "app/b"}, True),
        ({"prefix": "app"}, False),
        ({"prefix": ""}, False),
        ({}, False),
        ({"start": "app/"}, False),
        ({"end": "app0"}, False),
        ({"start": "app", "end": "app0"}, False),
        ({"start": "app/", "end": "app1"}, False),
        ({"prefix": "app", "start": "app/", "end": "app0"}, True),
    ],
    ids=str,
)
def test_a_range_must_be_covered_as_a_whole(fields: dict[str, Any], may: bool) -> None:
    op = {"op": "list", **fields}
    assert is_allowed(READER, op) is may
    assert is_allowed(READER, {**op, "cursor": "YWFhYWFhYWE"}) is may  # a cursor gives nothing
    assert is_allowed(READER, {**op, "delimiter": "/", "counts": True, "reverse": True}) is may


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prefixes": []},
        {"prefixes": ["app"]},
        {"prefixes": ["app/", "b/"]},
        {"keys": ["app/k", "b"]},
        {"prefixes": ["app/"], "keys": ["b"]},
    ],
    ids=str,
)
def test_events_of_anything_else_are_refused(fields: dict[str, Any]) -> None:
    op = {"op": "events", "since": 0, **fields}
    assert not is_allowed(READER, op)
    assert not is_allowed(READER, {**op, "values": False})


def test_previous_values_need_read() -> None:
    watcher = Principal("watcher", GrantSet(["watch:app/"]))
    assert is_allowed(watcher, op_of("events", values=False))
    assert not is_allowed(watcher, op_of("events", values=False, previous=True))
    assert not is_allowed(watcher, op_of("events"))


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("atomic", [False, True])
def test_one_op_that_is_not_granted_refuses_the_request_and_is_named(at: int, atomic: bool) -> None:
    ops = [op_of("put", key=f"app/{number}") for number in range(4)]
    ops[at] = op_of("get", key="secret")
    with pytest.raises(NotAllowed) as caught:
        allowed(request_of(*ops, atomic=atomic), WRITER)
    assert caught.value.details == {
        "needs": "read",
        "on": "secret",
        "grants": ["write:app/"],
        "op": at,
    }


def test_numbers_of_two_identities_never_meet() -> None:
    request = request_of(op_of("put"), client="c", seq=1)
    names = {allowed(request, Principal(name, GrantSet(["rw:*"]))).client for name in ("a", "b", "http")}
    assert len(names) == 3
    assert not [name for name in names if str(name).startswith(("http:", "facade:", "c"))]
    assert allowed(request, THE_FACADE).client == "c"


@pytest.mark.parametrize("client", ["http:x", "http:", "facade:x"])
def test_names_of_the_facade_are_its_own(client: str) -> None:
    request = request_of(op_of("put"), client=client, seq=1)
    assert allowed(request, THE_FACADE).client == client
    with pytest.raises(NotAllowed, match="only the facade"):
        allowed(request, WRITER)


def test_the_author_is_the_identity_and_only_the_facade_names_another() -> None:
    plain, named = request_of(op_of("put")), request_of(op_of("put"), author="zoe")
    assert authors_of(WRITER, plain) == "writer"
    assert authors_of(THE_FACADE, plain) == ""
    assert authors_of(THE_FACADE, named) == "zoe"
    for name in ("writer", "zoe", "facade"):
        with pytest.raises(NotAllowed, match="'author'"):
            authors_of(Principal(name, GrantSet(["rw:*"])), named)


keys = st.text("ap/s2 \u2215", min_size=1, max_size=6)
scopes = st.sampled_from(["app/", "app*", "a*", "s", "*", "app/s"])


@given(key=keys, granted=st.lists(scopes, max_size=3))
def test_a_key_is_granted_as_its_bytes_say(key: str, granted: list[str]) -> None:
    def covers(scope: str) -> bool:
        raw, wanted = key.encode(), scope.removesuffix("*").encode()
        return raw.startswith(wanted) if scope[-1] in "*/" else raw == wanted

    who = Principal("x", GrantSet([f"read:{scope}" for scope in granted]))
    assert is_allowed(who, {"op": "get", "key": key}) == any(map(covers, granted))


def test_a_change_is_done_once_however_often_the_reads_beside_it_begin_again() -> None:
    done: list[str] = []

    def answer(op: dict[str, Any], _who: Principal) -> Page:
        done.append(op["op"])
        return Page({}, (), 1)

    request = request_of(op_of("identity_put"), op_of("list"))
    message = RequestMessage(Peer(b"", 1), [], [], 0, 0.0)
    pending = PendingRequest(message, request, ADMIN, AccessTable(()))
    for _ in range(3):
        while not pending.read(cast(Engine, None), dict.fromkeys(OPERATIONS, answer), time.monotonic() + 60):
            pass
        pending.restart_reads()
    assert done == ["identity_put", "list", "list", "list"]


def test_a_change_is_done_only_if_the_reply_has_room_to_say_so() -> None:
    """And what was done keeps its result, however large the reply is."""
    done: list[str] = []
    grants = [f"read:{number:03}{chr(1) * 500}" for number in range(100)]  # each byte takes six in JSON

    def answer(op: dict[str, Any], _who: Principal) -> Page:
        if op["op"] == "identity_put":
            done.append(op["name"])
            return Page({"name": op["name"], "grants": grants}, (), 1)
        return Page({}, (bytes(REPLY_BYTES - 2_000_000),), 1)

    puts = [{"op": "identity_put", "name": f"n{number}"} for number in range(20)]
    pending = PendingRequest(
        RequestMessage(Peer(b"", 1), [], [], 0, 0.0), request_of(op_of("list"), *puts), ADMIN, AccessTable(())
    )
    while not pending.read(cast(Engine, None), dict.fromkeys(OPERATIONS, answer), time.monotonic() + 60):
        pass
    results = orjson.loads(pending.reply("", 1)[0])["results"][1:]
    assert done
    assert [result["name"] for result in results if "error" not in result] == done
    codes = [result["error"]["code"] for result in results if "error" in result]
    assert codes == ["reply_too_large"] * (20 - len(done))
    assert codes


class _Known(Authority):
    """The table and its one identity are those of the test."""

    def __init__(self, who: Principal | None) -> None:
        super().__init__()
        self._who = who

    def principal_of(self, user_id: str) -> Principal:
        if self._who is None:
            raise KvError("unauthenticated", user_id)
        return self._who


@pytest.mark.parametrize(
    ("now", "code"),
    [
        (None, "unauthenticated"),
        (Principal("reader", GrantSet(["ro:other/"])), "not_allowed"),
        (Principal("reader", GrantSet(["ro:app/", "ro:other/"])), None),
        (THE_FACADE, None),
    ],
    ids=["revoked", "regranted", "granted more", "facade"],
)
def test_what_is_to_be_done_is_checked_by_the_table_of_now(now: Principal | None, code: str | None) -> None:
    before, authority = AccessTable(()), _Known(now)
    message = RequestMessage(Peer(b"", 1, "key"), [], [], 0, 0.0)
    pending = PendingRequest(message, request_of(op_of("get"), op_of("list")), READER, before)
    if code is None:
        recheck(pending, authority)
        assert pending.table is authority.table
        assert pending.who is (READER if now is THE_FACADE else now)
    else:
        with pytest.raises(KvError) as caught:
            recheck(pending, authority)
        assert caught.value.code == code
        assert (pending.table, pending.who) == (before, READER)


def test_a_credential_ends_while_a_request_is_under_way() -> None:
    now = time.time_ns() // 1_000_000
    ends = [None, now + 60_000, now]
    assert [has_ended(Principal("a", GrantSet(()), "key", end)) for end in ends] == [False, False, True]
