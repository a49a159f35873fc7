"""Identities and operations against a model that knows nothing of the code: HTTP, ZeroMQ and it agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore_core.access.grants import GrantSet
from kvstore_core.access.principal import Principal
from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_http.routes import ENDPOINTS, Endpoint
from support.lengths import examples
from support.protected import Protected
from support.session import Session, kv_path
from support.wire import Peer

pytestmark = pytest.mark.slow

Op = dict[str, Any]

# ── the model ────────────────────────────────────────────────────────────────────────────────────

SHORT = {"ro": "read list watch", "rw": "read list watch write delete"}

GRANTS: tuple[list[str], ...] = (
    [],
    ["monitor"],
    ["ro:m/app/"],
    ["rw:m/app/"],
    ["write:m/app/", "read:m/app/x"],
    ["list:*", "watch:m/app/", "read:m/app/x"],
    ["read,list:m/app*", "delete:m/app/x"],
    ["rw:m/app/x"],
    ["watch,list:*", "write:*"],
    ["rw:*", "monitor", "admin"],
)
Wanted = tuple[str, str]
"""``("key", KEY)``, or ``("prefix", P)`` for all that begins with P."""

KEYS = ["m/app/x", "m/app/y", "m/app", "m/apple", "m/other", "m/app/../other"]
PREFIXES = ["", "m/a", "m/app", "m/app/", "m/app/x", "m/other"]


def covers(scope: str, wanted: Wanted) -> bool:
    """Whether a scope covers all that is wanted."""
    kind, text = wanted
    if scope.endswith("*"):
        return text.startswith(scope[:-1])
    if scope.endswith("/"):
        return text.startswith(scope)
    return kind == "key" and text == scope


def granted(grants: list[str], verb: str, wanted: Wanted | None) -> bool:
    for grant in grants:
        verbs, colon, scope = grant.partition(":")
        if not colon:
            if verb == grant:
                return True
            continue
        named = " ".join(SHORT.get(name, name) for name in verbs.split(",")).split()
        if wanted is not None and verb in named and covers(scope, wanted):
            return True
    return False


ON_KEY = {
    "get": ["read"],
    "history": ["read"],
    "put": ["write"],
    "delete": ["delete"],
    "incr": ["read", "write"],
    "touch": ["write", "delete"],
    "persist": ["write"],
}


def needed(op: Op) -> list[tuple[str, Wanted | None]]:
    """What the documentation says that an op needs."""
    name = op["op"]
    if name in ON_KEY:
        verbs = [*ON_KEY[name], *(["delete"] if name == "put" and "ttl" in op else [])]
        return [(verb, ("key", op["key"])) for verb in verbs]
    if name in ("identities", "subscribers", "slow"):
        return [("admin", None)]
    if name == "events":
        wanted = [("prefix", text) for text in op.get("prefixes", [])]
        wanted += [("key", text) for text in op.get("keys", [])]
        verbs = ["watch", "read"] if op["values"] or op["previous"] else ["watch"]
        return [(verb, each) for each in wanted or [("prefix", "")] for verb in verbs]
    verbs = ["delete"] if name == "delete_prefix" else ["list"]
    if name == "list" and not (op.get("keys_only") or op.get("count")):
        verbs.append("read")
    return [(verb, ("prefix", op["prefix"])) for verb in verbs]


def allowed(grants: list[str], op: Op) -> bool:
    return all(granted(grants, verb, wanted) for verb, wanted in needed(op))


# ── the same op on both ways in ──────────────────────────────────────────────────────────────────

keys = st.sampled_from(KEYS)
prefixes = st.sampled_from(PREFIXES)
flags = st.booleans()


def op_of(name: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Op]:
    return st.fixed_dictionaries({"op": st.just(name), **fields})


in_batches = st.one_of(
    op_of("get", key=keys),
    op_of("put", key=keys),
    op_of("put", key=keys, ttl=st.just(3600)),
    op_of("delete", key=keys),
    op_of("incr", key=keys),
    op_of("touch", key=keys, ttl=st.just(3600)),
    op_of("persist", key=keys),
)
ops = in_batches | st.one_of(
    op_of("delete_prefix", prefix=prefixes.filter(bool)),
    op_of("list", prefix=prefixes),
    op_of("list", prefix=prefixes, keys_only=st.just(True)),
    op_of("list", prefix=prefixes, count=st.just(True)),
    op_of("events", prefixes=st.lists(prefixes, max_size=2), values=flags, previous=flags),
    op_of("events", keys=st.lists(keys, min_size=1, max_size=2), values=flags, previous=flags),
    op_of("history", key=keys),
    op_of("identities"),
    op_of("subscribers"),
    op_of("slow"),
)


def over_http(session: Session, op: Op, token: str | None) -> int:
    """The status of the request that makes this op."""
    name, key = op["op"], op.get("key", "")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    ttl = f"?ttl={op['ttl']}s" if "ttl" in op else ""
    body = None
    match name:
        case "get":
            method, target = "GET", kv_path(key)
        case "put":
            method, target, body = "PUT", kv_path(key) + ttl, b"1"
        case "delete":
            method, target = "DELETE", kv_path(key)
        case "delete_prefix":
            method, target = "DELETE", "/v1/kv?" + urlencode({"prefix": op["prefix"]})
        case "incr" | "touch" | "persist":
            method, target = "POST", f"/v1/{name}/{quote(key)}{ttl}"
        case "list":
            shown = {"keys": "1"} if op.get("keys_only") else {"count": "1"} if op.get("count") else {}
            method, target = "GET", "/v1/kv?" + urlencode({"prefix": op["prefix"], **shown})
        case "events":
            wanted = [("prefix", text) for text in op.get("prefixes", [])]
            wanted += [("key", text) for text in op.get("keys", [])]
            wanted += [("prev", "1")] * op["previous"] + [("values", "0")] * (not op["values"])
            method, target = "HEAD", "/v1/subscribe?" + urlencode(wanted)
        case "history":
            method, target = "GET", f"/v1/history/{quote(key)}"
        case "identities" | "subscribers" | "slow":
            method, target = "GET", {"identities": "/v1/tokens"}.get(name, f"/v1/{name}")
    return session.request(method, target, body, headers).status


def wired(op: Op) -> Op:
    """The op as it is sent over ZeroMQ."""
    more: dict[str, Op] = {"events": {"since": 0}, "put": {"value": b"1"}}
    return {**op, **more.get(op["op"], {})}


def native(peer: Peer, op: Op) -> str:
    """The code of the error that the op gets over ZeroMQ; empty for none."""
    reply = peer.reply_to(wired(op))
    error = reply.get("error") or reply["results"][0].get("error") or {"code": ""}
    return str(error["code"])


class Callers(NamedTuple):
    """One identity on both ways in."""

    grants: list[str]
    token: str
    peer: Peer


@pytest.fixture(scope="module")
def callers(protected: Protected) -> list[Callers]:
    return [
        Callers(grants, protected.token(name, *grants), protected.peer(protected.keys(name, *grants)))
        for number, grants in enumerate(GRANTS)
        for name in [f"model-{number}"]
    ]


@pytest.fixture(scope="module")
def session(protected: Protected) -> Iterator[Session]:
    session = Session(protected.url)
    yield session
    session.close()


REFUSED = {401: "unauthenticated", 403: "not_allowed"}


@settings(max_examples=examples(300))
@given(number=st.integers(0, len(GRANTS) - 1), op=ops)
def test_both_ways_in_allow_what_the_grants_say(
    protected: Protected, callers: list[Callers], session: Session, number: int, op: Op
) -> None:
    grants, token, peer = callers[number]
    may = allowed(grants, op)
    before = revision(protected)
    status, code = over_http(session, op, token), native(peer, op)
    assert (REFUSED.get(status) is None, code != "not_allowed") == (may, may), (status, code)
    if not may:
        assert revision(protected) == before


@settings(max_examples=examples(50))
@given(op=ops)
def test_without_a_credential_nothing_is_done(protected: Protected, session: Session, op: Op) -> None:
    before = revision(protected)
    assert over_http(session, op, None) == 401
    assert revision(protected) == before


@settings(max_examples=examples(50))
@given(
    number=st.integers(0, len(GRANTS) - 1),
    batch=st.lists(in_batches, min_size=2, max_size=5),
    atomic=st.booleans(),
)
def test_a_batch_with_one_forbidden_op_changes_nothing(
    protected: Protected, callers: list[Callers], session: Session, number: int, batch: list[Op], atomic: bool
) -> None:
    grants, token, peer = callers[number]
    if atomic:
        batch = list({op["key"]: op for op in batch}.values())
    forbidden = [at for at, op in enumerate(batch) if not allowed(grants, op)]
    before = revision(protected)
    body = {
        "atomic": atomic,
        "ops": [{**op, "value": "1"} if op["op"] == "put" else op for op in batch],
    }
    answer = session.post("/v1/batch", body, Authorization=f"Bearer {token}")
    if not forbidden:
        assert answer.status in (200, 404, 409, 412)
        return
    assert (answer.status, answer.json["code"], answer.json["op"]) == (403, "not_allowed", forbidden[0])
    refusal = peer.refusal(*map(wired, batch), atomic=atomic)
    assert (refusal["code"], refusal["op"]) == ("not_allowed", forbidden[0])
    assert revision(protected) == before


def revision(protected: Protected) -> int:
    """The store's revision now."""
    return int(protected.root.ask({"op": "status"})[0]["revision"])


def test_status_is_for_those_who_are_known() -> None:
    needs = list(OPERATIONS["status"].needs({"op": "status"}))
    Principal("anonymous", GrantSet(["read:m/app/x"])).check(needs)
    Principal("somebody", GrantSet(())).check(needs)
    with pytest.raises(KvError) as caught:
        Principal("anonymous", GrantSet(())).check(needs)
    assert caught.value.code == "unauthenticated"


# ── routes ───────────────────────────────────────────────────────────────────────────────────────

PUBLIC = {
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("GET", "/ui/"),
    ("GET", "/"),
    ("GET", "/v1/whoami"),
    ("POST", "/v1/session"),
    ("DELETE", "/v1/session"),
}
WANTED = [row for row in ENDPOINTS if (row.method, row.path) not in PUBLIC]


def target_of(row: Endpoint) -> str:
    return row.path.replace("{key}", "m/app/x").replace("{name}", "ci")


@pytest.mark.parametrize("row", WANTED, ids=lambda row: f"{row.method} {row.path}")
def test_a_stranger_is_told_nothing_but_to_come_with_a_token(
    protected: Protected, session: Session, row: Endpoint
) -> None:
    """Not even what is wrong with the request: no query that a route needs, and a body that is nothing."""
    before = revision(protected)
    for method in (row.method, *(["HEAD"] if row.method == "GET" else [])):
        body = None if method in ("GET", "HEAD") else b"\xff"
        answer = session.request(method, f"{target_of(row)}?bad=1", body)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith('Bearer realm="kvstore"')
    assert revision(protected) == before


@pytest.mark.parametrize(
    "row",
    [row for row in WANTED if row.needs in ("admin", "monitor")],
    ids=lambda row: f"{row.method} {row.path}",
)
def test_all_keys_are_no_office(protected: Protected, session: Session, row: Endpoint) -> None:
    token = protected.token("all-keys", "all:*")
    body = b"{" if row.body else None
    answer = session.request(row.method, target_of(row), body, {"Authorization": f"Bearer {token}"})
    assert (answer.status, answer.json["needs"]) == (403, row.needs)
