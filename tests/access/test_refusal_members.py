"""What a refusal says beside its sentence: why a credential is not good, which operation was meant."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from support.protected import Protected
from support.session import Session, assert_problem, bearer, call

TARGET = "/v1/kv/app/x"


def begun(protected: Protected) -> tuple[str, str]:
    """The cookie and the page's half of a session."""
    token = protected.kept_token("refusal-members", "ro:app/")
    body = json.dumps({"token": token}).encode()
    answer = call(protected.url, "POST", "/v1/session", body, {"Content-Type": "application/json"})
    assert answer.status < 300, answer
    return answer.headers["set-cookie"].partition(";")[0], answer.json["half"]


def test_every_refused_credential_has_a_reason(protected: Protected) -> None:
    cookie, half = begun(protected)
    page = "X-Kvstore-Page"
    refused: dict[str, list[dict[str, str]]] = {
        "missing": [{}],
        "unknown": [
            {"Cookie": cookie},
            {page: half},
            {"Cookie": cookie, page: "x"},
            {"Cookie": f"kvstore_{urlsplit(protected.url).port}=x", page: half},
            bearer(cookie.partition("=")[2]),
            bearer("kv_nobody"),
            {"Authorization": "Basic eDp5"},
        ],
        "cross_site": [{"Cookie": cookie, page: half, "Sec-Fetch-Site": "same-site"}],
    }
    for reason, all_headers in refused.items():
        for headers in all_headers:
            answer = call(protected.url, "GET", TARGET, headers=headers)
            assert assert_problem(answer, "unauthenticated").get("reason") == reason, headers


def test_a_cookie_alone_is_ignored_where_nothing_is_needed(protected: Protected) -> None:
    cookie, _ = begun(protected)
    for path in ("/", "/livez", "/v1/whoami", "/openapi.json"):
        assert call(protected.url, "GET", path, headers={"Cookie": cookie}).status < 400
    assert call(protected.url, "GET", "/v1/whoami", headers={"Cookie": cookie}).json["kind"] == "none"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/v1/kv/b", None),
        ("GET", "/v1/kv/b?revision=1", None),
        ("GET", "/v1/kv?prefix=b", None),
        ("GET", "/v1/history/b", None),
        ("PUT", "/v1/kv/b", b"v"),
        ("DELETE", "/v1/kv/b", None),
        ("DELETE", "/v1/kv?prefix=b", None),
    ],
)
@pytest.mark.parametrize("more", [{}, {"Idempotency-Key": "refused"}])
def test_only_a_batch_numbers_its_operations(
    protected: Protected, method: str, target: str, body: bytes | None, more: dict[str, Any]
) -> None:
    token = protected.kept_token("refusal-members", "ro:app/")
    if method == "GET":
        more = {}
    answer = call(protected.url, method, target, body, {**more, **bearer(token)})
    assert "op" not in assert_problem(answer, "not_allowed")


def test_a_batch_does(protected: Protected) -> None:
    session = Session(protected.url, protected.kept_token("refusal-members", "ro:app/"))
    answer = session.batch({"op": "get", "key": "app/x"}, {"op": "get", "key": "b"})
    session.close()
    assert assert_problem(answer, "not_allowed")["op"] == 1
