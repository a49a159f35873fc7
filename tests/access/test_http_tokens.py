"""Over HTTP: who one is, and the routes that manage identities and their tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import pytest

from kvstore_core.access.tokens import token_id
from support.protected import Protected
from support.servers import Service
from support.session import Answer, Session, assert_problem, call


@pytest.fixture
def admin(protected: Protected) -> Iterator[Session]:
    with closing(Session(protected.url, protected.admin_token)) as session:
        yield session


def whoami(protected: Protected, token: str | None) -> dict[str, Any]:
    answer = call(protected.url, "GET", "/v1/whoami", token=token)
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    return found


def made(admin: Session, name: str, *grants: str, **fields: Any) -> dict[str, Any]:
    answer = admin.post("/v1/tokens", {"name": name, "grants": grants, **fields})
    assert answer.status == 201, answer
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json
    return found


def milliseconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp() * 1000


# ── who one is ───────────────────────────────────────────────────────────────────────────────────


def test_whoami_tells_the_identity_its_grants_and_until_when(protected: Protected, admin: Session) -> None:
    new = made(admin, "who-1", "ro:a/", "monitor", **{"for": "1h"})
    found = whoami(protected, new["token"])
    assert (found["access"], found["name"], found["kind"]) == (True, "who-1", "token")
    assert (found["grants"], found["credential"]) == (["ro:a/", "monitor"], token_id(new["token"]))
    assert found["expires_at"] == new["tokens"][0]["expires_at"]
    assert abs(milliseconds(found["expires_at"]) - time.time() * 1000 - 3_600_000) < 600_000


def test_without_a_token_one_is_anonymous_which_may_nothing(protected: Protected) -> None:
    nobody = {"access": True, "name": "anonymous", "kind": "none", "credential": "", "grants": []}
    assert whoami(protected, None) == nobody


def test_a_service_without_access_says_so(shared_service: Service) -> None:
    session = Session(shared_service.url)
    found = session.get("/v1/whoami").json
    assert found == {"access": False, "name": "", "kind": "none", "credential": "", "grants": []}
    assert_problem(session.get("/v1/tokens"), "not_allowed")
    assert_problem(session.post("/v1/narrow", {"for": "1m"}), "not_allowed")
    session.close()


# ── managing identities ──────────────────────────────────────────────────────────────────────────


def test_an_identity_lives_from_its_token_to_its_end(protected: Protected, admin: Session) -> None:
    new = made(admin, "life", "rw:life/")
    token = new["token"]
    with closing(Session(protected.url, token)) as own:
        assert own.put("/v1/kv/life/a", b"1").status == 201
        assert_problem(own.put("/v1/kv/other", b"1"), "not_allowed")
        shown = admin.get("/v1/tokens/life").json
        assert token not in str(shown)
        assert shown["tokens"] == [{"id": new["id"], "created_at": new["tokens"][0]["created_at"]}]
        assert shown in admin.get("/v1/tokens").json["identities"]

        changed = admin.request(
            "PATCH",
            "/v1/tokens/life",
            b'{"grant": ["ro:other"], "ungrant": ["rw:life/"]}',
            {"Content-Type": "application/json"},
        )
        assert changed.json["grants"] == ["ro:other"]
        assert_problem(own.put("/v1/kv/life/a", b"2"), "not_allowed")
        assert_problem(own.get("/v1/kv/other"), "not_found")

        assert admin.delete("/v1/tokens/life").json == {"name": "life", "deleted": 1}
        assert assert_problem(own.get("/v1/kv/other"), "unauthenticated")["reason"] == "unknown"
    assert_problem(admin.get("/v1/tokens/life"), "not_found")
    assert "identity_put of 'life', asked for by 'admin'" in protected.daemon.stderr
    assert_problem(admin.delete("/v1/tokens/life"), "not_found")


def test_a_name_that_is_taken_and_a_body_that_is_wrong_are_told(admin: Session) -> None:
    made(admin, "taken", "ro:a/")
    assert_problem(admin.post("/v1/tokens", {"name": "taken", "grants": []}), "condition_failed")
    wrong: list[Any] = [
        [],
        {},
        {"name": "x"},
        {"name": "x y", "grants": []},
        {"name": "facade", "grants": []},
        {"name": "x", "grants": "ro:a/"},
        {"name": "x", "grants": ["ro"]},
        {"name": "x", "grants": ["root:a/"]},
        {"name": "x", "grants": [], "for": "soon"},
        {"name": "x", "grants": [], "for": True},
        {"name": "x", "grants": [], "expires_at": "tomorrow"},
        {"name": "x", "grants": [], "for": "1h", "expires_at": "2100-01-01T00:00:00Z"},
        {"name": "x", "grants": [], "secret": "mine"},
    ]
    for body in wrong:
        assert_problem(admin.post("/v1/tokens", body), "bad_request")
    keyed = admin.post("/v1/tokens", {"name": "x", "grants": []}, Idempotency_Key="a")
    assert_problem(keyed, "bad_request")
    assert_problem(admin.get("/v1/tokens/x"), "not_found")


def test_rotation_keeps_the_old_token_for_as_long_as_is_said(protected: Protected, admin: Session) -> None:
    first = made(admin, "rotor", "ro:a/")["token"]
    second = admin.post("/v1/tokens/rotor/rotate?keep=1h").json["token"]
    assert whoami(protected, first)["name"] == whoami(protected, second)["name"] == "rotor"
    assert "expires_at" in whoami(protected, first)
    assert "expires_at" not in whoami(protected, second)
    third = admin.post("/v1/tokens/rotor/rotate", {"for": 7200}).json["token"]
    assert "expires_at" in whoami(protected, third)
    for old in (first, second):
        assert_problem(call(protected.url, "GET", "/v1/whoami", token=old), "unauthenticated")


def test_one_token_or_key_of_several_can_be_revoked(protected: Protected, admin: Session) -> None:
    one = made(admin, "pair", "ro:a/")
    two = admin.post("/v1/tokens/pair/rotate?keep=1h").json
    public = "a" * 40
    added = admin.post("/v1/tokens/pair/keys", {"public_key": public})
    assert (added.status, added.json["server_key"]) == (201, protected.facade_keys.server_key)
    left = admin.delete(f"/v1/tokens/pair?id={one['id']}").json
    assert [token["id"] for token in left["tokens"]] == [two["id"]]
    assert_problem(admin.delete(f"/v1/tokens/pair?id={one['id']}"), "not_found")
    assert admin.delete(f"/v1/tokens/pair?public_key={public}").json["keys"] == []
    assert_problem(call(protected.url, "GET", "/v1/whoami", token=one["token"]), "unauthenticated")
    assert whoami(protected, two["token"])["name"] == "pair"


def test_what_anonymous_may_do_is_given_and_taken_like_any_grant(
    protected: Protected, admin: Session
) -> None:
    json_type = {"Content-Type": "application/json"}

    def patch(body: bytes) -> Answer:
        return admin.request("PATCH", "/v1/tokens/anonymous", body, json_type)

    admin_answer = assert_problem(patch(b'{"grant": ["admin"]}'), "bad_request")
    assert "anonymous" in admin_answer["detail"]
    assert patch(b'{"grant": ["ro:open/"]}').json["grants"] == ["ro:open/"]
    try:
        assert_problem(call(protected.url, "GET", "/v1/kv/open/x"), "not_found")
        assert_problem(call(protected.url, "PUT", "/v1/kv/open/x", b"1"), "unauthenticated")
        assert call(protected.url, "GET", "/v1/status").json.keys() == {
            "version",
            "protocol",
            "epoch",
            "revision",
            "floor",
            "writes_refused",
            "limits",
        }
        # a token that is not good gives no more than none, and less than nothing
        bad = call(protected.url, "GET", "/v1/kv/open/x", headers={"Authorization": "Bearer nonsense"})
        assert_problem(bad, "unauthenticated")
    finally:
        assert admin.delete("/v1/tokens/anonymous").status == 200
    assert_problem(call(protected.url, "GET", "/v1/kv/open/x"), "unauthenticated")


# ── narrowing ────────────────────────────────────────────────────────────────────────────────────


def narrow(protected: Protected, token: str, **body: Any) -> Answer:
    with closing(Session(protected.url, token)) as session:
        return session.post("/v1/narrow", body)


def test_a_narrowed_token_may_what_it_says_and_dies_with_its_own(
    protected: Protected, admin: Session
) -> None:
    token = made(admin, "parent", "rw:p/", "ro:q/")["token"]
    answer = narrow(protected, token, grants=["ro:p/x/"], **{"for": "5m"})
    assert (answer.status, answer.headers["cache-control"]) == (201, "no-store")
    child = answer.json["token"]
    found = whoami(protected, child)
    assert (found["name"], found["kind"], found["grants"]) == ("parent", "derived", ["ro:p/x/"])
    assert found["expires_at"] == answer.json["expires_at"]
    assert_problem(call(protected.url, "GET", "/v1/kv/p/x/a", token=child), "not_found")
    assert_problem(call(protected.url, "GET", "/v1/kv/p/y", token=child), "not_allowed")
    assert_problem(call(protected.url, "PUT", "/v1/kv/p/x/a", b"1", token=child), "not_allowed")
    grandchild = narrow(protected, child, grants=["read:p/x/y"]).json["token"]
    assert whoami(protected, grandchild)["grants"] == ["read:p/x/y"]
    admin.delete("/v1/tokens/parent")
    for dead in (child, grandchild):
        problem = assert_problem(call(protected.url, "GET", "/v1/whoami", token=dead), "unauthenticated")
        assert problem["reason"] == "revoked"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"grants": ["rw:n/"]}, "not_allowed"),
        ({"grants": ["ro:*"]}, "not_allowed"),
        ({"grants": ["ro:n*"]}, "not_allowed"),
        ({"grants": ["monitor"]}, "not_allowed"),
        ({"grants": ["admin"]}, "not_allowed"),
        ({"grants": ["ro"]}, "bad_request"),
        ({"grants": ["ro:n/"], "for": "25h"}, "bad_request"),
        ({"grants": [f"ro:n/{number}" for number in range(17)]}, "bad_request"),
        ({"more": 1}, "bad_request"),
    ],
)
def test_nobody_narrows_to_more_than_they_have(protected: Protected, body: dict[str, Any], code: str) -> None:
    token = protected.token("narrower", "ro:n/")
    assert_problem(narrow(protected, token, **body), code)
    child = narrow(protected, token, grants=["read:n/"]).json["token"]
    assert_problem(narrow(protected, child, grants=["list:n/"]), "not_allowed")


def test_a_derived_token_without_end_is_refused_and_says_to_give_one(protected: Protected) -> None:
    answer = narrow(protected, protected.kept_token("endless", "ro:n/"), expires_at=None)
    assert "give one within 24 hours" in assert_problem(answer, "bad_request")["detail"]


def test_admin_is_never_handed_on(protected: Protected) -> None:
    derived = narrow(protected, protected.admin_token).json["token"]
    assert "admin" not in whoami(protected, derived)["grants"]
    assert_problem(call(protected.url, "GET", "/v1/tokens", token=derived), "not_allowed")
    with closing(Session(protected.url, derived)) as session:
        assert_problem(session.post("/v1/tokens", {"name": "by-derived", "grants": []}), "not_allowed")
    assert_problem(narrow(protected, protected.admin_token, grants=["admin"]), "not_allowed")
