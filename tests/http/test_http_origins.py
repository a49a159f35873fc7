"""Pages of other origins: refused, or with CORS let in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from support.servers import Daemon, Facade
from support.session import Session, assert_problem, path_of

FRIEND, STRANGER = "https://friend.example", "https://stranger.example"


@pytest.fixture
def open_to(daemon: Daemon, start_facade: Callable[..., Facade]) -> Iterator[Callable[[str], Session]]:
    """A connection to a facade whose --cors-origins are given."""
    with ExitStack() as stack:
        yield lambda origins: stack.enter_context(
            closing(Session(start_facade(daemon, cors_origins=origins).url))
        )


def preflight(session: Session, origin: str, target: str = "/v1/kv/a") -> dict[str, str]:
    """The headers that answer a browser's question before a PUT."""
    answer = session.request(
        "OPTIONS",
        target,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type, if-match",
        },
    )
    assert answer.status == 204
    return answer.headers


def allowed(headers: dict[str, str]) -> set[str]:
    """The names of the CORS headers."""
    return {name for name in headers if name.startswith("access-control-")}


def test_without_a_list_no_page_is_let_in(session: Session) -> None:
    assert not allowed(session.get("/v1/status", origin=FRIEND).headers)
    assert not allowed(preflight(session, FRIEND))


def test_listed_origins_are_let_in_and_others_are_not(open_to: Callable[[str], Session]) -> None:
    session = open_to(FRIEND)
    assert session.post("/v1/incr/n", origin=FRIEND).json["value"] == 1
    assert_problem(session.post("/v1/incr/n", origin=STRANGER), "not_allowed")
    for target in ("/v1/kv/a", "/v1/kv", "/v1/status", "/nowhere"):
        friend, stranger = session.get(target, origin=FRIEND), session.get(target, origin=STRANGER)
        assert friend.headers["access-control-allow-origin"] == FRIEND
        exposed = friend.headers["access-control-expose-headers"].lower()
        for name in ("etag", "x-kvstore-revision", "x-kvstore-expires-at", "location", "retry-after"):
            assert name in exposed
        assert not allowed(stranger.headers)
        assert not allowed(session.get(target).headers)
        for answer in (friend, stranger):
            assert "origin" in answer.headers["vary"].lower()


def test_a_preflight_is_answered_with_what_the_path_takes(open_to: Callable[[str], Session]) -> None:
    session = open_to(f"{FRIEND},https://other.example")
    headers = preflight(session, FRIEND)
    assert headers["access-control-allow-origin"] == FRIEND
    assert "PUT" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == "content-type, if-match"
    assert int(headers["access-control-max-age"]) > 0
    assert not allowed(preflight(session, STRANGER))


def test_a_star_lets_every_origin_in(open_to: Callable[[str], Session]) -> None:
    session = open_to("*")
    assert session.get("/v1/status", origin=STRANGER).headers["access-control-allow-origin"] == "*"
    assert preflight(session, STRANGER)["access-control-allow-origin"] == "*"
    assert session.post("/v1/incr/n", origin=STRANGER).status == 200


@pytest.mark.parametrize("origin", [STRANGER, "null", "http://127.0.0.1:1", "garbage"])
def test_a_page_of_another_origin_cannot_post(session: Session, key: str, origin: str) -> None:
    session.put(path_of(key), b"1")
    for target in (path_of(key, "incr"), path_of(key, "touch") + "?ttl=1", path_of(key, "persist")):
        assert_problem(session.post(target, origin=origin), "not_allowed")
    assert_problem(
        session.post("/v1/batch", {"ops": [{"op": "incr", "key": key}]}, origin=origin), "not_allowed"
    )
    assert session.get(path_of(key)).body == b"1"


def test_a_page_of_the_own_origin_can_post(session: Session, key: str) -> None:
    own = f"http://{session._connection.host}:{session._connection.port}"
    assert session.post(path_of(key, "incr"), origin=own).status == 200


def test_a_page_whose_browser_calls_it_the_same_origin_can_post(session: Session, key: str) -> None:
    # behind a proxy that changes Host, Origin names an address that the service never hears of
    for site in ("same-origin", "same-site", "cross-site", "none"):
        answer = session.post(path_of(key, "incr"), origin="https://kv.example.org", sec_fetch_site=site)
        assert (answer.status == 200) is (site == "same-origin")
