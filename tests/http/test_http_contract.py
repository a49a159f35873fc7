"""The table of routes, the description made from it, the page about it, and what is really mounted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from kvstore_core.errors import ERRORS
from kvstore_http.resources.service.openapi import SCHEMAS, document, member_of
from kvstore_http.routes import ENDPOINTS, Endpoint, methods_of, paths
from support.markdown import ROOT, table_rows
from support.session import Answer, Session, assert_problem

PAGE = (ROOT / "docs/http.md").read_text()
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "QUERY", "OPTIONS", "TRACE", "PROPFIND")


def name_of(endpoint: Endpoint) -> str:
    return f"{endpoint.method} {endpoint.path}"


@pytest.mark.parametrize("path", paths())
@pytest.mark.parametrize("method", METHODS)
def test_a_path_takes_the_methods_of_the_table_and_no_other(session: Session, path: str, method: str) -> None:
    target = path.replace("{key}", "some-key")
    if path == "/v1/subscribe":
        target += "?since=nonsense"  # a stream does not end, its refusal does
    answer = session.request(method, target)
    allowed = methods_of(paths()[path])
    if method in allowed:
        assert answer.status != 405
    else:
        assert answer.status == 405
        assert answer.headers["allow"] == ", ".join(allowed)
        if method != "HEAD":
            assert assert_problem(answer, "method_not_allowed")["allow"] == list(allowed)


@pytest.mark.parametrize("path", paths())
def test_options_names_the_methods(session: Session, path: str) -> None:
    answer = session.request("OPTIONS", path.replace("{key}", "some-key"))
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["allow"] == ", ".join(methods_of(paths()[path]))


@pytest.mark.parametrize(
    "path",
    [path for path, endpoints in paths().items() if endpoints[0].method == "GET" and path != "/v1/subscribe"],
)
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "missing"])
def test_head_answers_as_get_does_without_the_body(session: Session, path: str, stored: bool) -> None:
    target = path.replace("{key}", "headed" if stored else "never-stored")
    session.put("/v1/kv/headed", b"x")
    got, headed = session.get(target), session.request("HEAD", target)
    assert headed.body == b""
    assert headed.status == got.status
    varying = {"date", "x-request-id", *(["content-length"] if path in ("/v1/status", "/metrics") else [])}
    kept = {name: text for name, text in got.headers.items() if name not in varying}
    # the length of what is made as it is sent is not known beforehand
    kept.pop("transfer-encoding", None)
    assert {name: text for name, text in headed.headers.items() if name in kept} == kept


@pytest.mark.parametrize(
    "target",
    [
        "/v1",
        "/v1/",
        "/v2/kv/a",
        "/v1/kw/a",
        "/kv/a",
        "/livez/",
        "/openapi.json/x",
        "/favicon.ico",
        "//",
        "/ALL",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE"])
def test_other_addresses_are_no_route(session: Session, target: str, method: str) -> None:
    problem = assert_problem(session.request(method, target), "no_such_route")
    assert repr(target) in problem["detail"]


def test_an_absolute_address_is_the_same(session: Session) -> None:
    here = {"Host": "localhost:1"}
    assert session.request("PUT", "http://localhost:1/v1/kv/absolute", b"x", here).status == 201
    assert session.get("/v1/kv/absolute").body == b"x"
    found = session.request("GET", "http://localhost:1/v1/kv/absolute?format=json", headers=here)
    assert found.json["key"] == "absolute"


def ask(session: Session, endpoint: Endpoint, query: str) -> Answer:
    """What the endpoint answers to a query."""
    headers = {"Content-Type": next(iter(endpoint.body))} if endpoint.body else {}
    target = endpoint.path.replace("{key}", "some-key") + f"?{query}"
    return session.request(endpoint.method, target, b"" if headers else None, headers)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_an_unknown_parameter_is_refused_and_the_known_are_named(
    session: Session, endpoint: Endpoint
) -> None:
    problem = assert_problem(ask(session, endpoint, "nonsense=1"), "bad_request")
    assert problem["parameter"] == "nonsense"


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.query], ids=name_of)
def test_a_parameter_is_given_once(session: Session, endpoint: Endpoint) -> None:
    for name, parameter in endpoint.query.items():
        if not parameter.many:
            assert_problem(ask(session, endpoint, f"{name}=1&{name}=1"), "bad_request")


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.query], ids=name_of)
def test_what_is_not_percent_encoded_utf_8_is_refused_alike_everywhere(
    session: Session, endpoint: Endpoint
) -> None:
    for name in endpoint.query:
        answer = ask(session, endpoint, f"{name}=%FF")
        assert assert_problem(answer, "invalid_key" if name == "key" else "bad_request")["parameter"] == name


# ── /openapi.json ────────────────────────────────────────────────────────────────────────────────


def test_the_description_is_a_valid_openapi_document(session: Session) -> None:
    served = session.get("/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.json == document()
    from openapi_spec_validator import validate  # takes a third of a second, in each worker

    validate(served.json)


def test_the_description_names_every_route_and_no_other() -> None:
    described = {
        (method.removeprefix("x-").upper(), path)
        for path, item in document()["paths"].items()
        for method in item
        if method != "parameters"
    }
    mounted = {
        (m, path) for path, endpoints in paths().items() for m in methods_of(endpoints) if m != "OPTIONS"
    }
    assert described == mounted


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_the_description_names_every_parameter(endpoint: Endpoint) -> None:
    operation = document()["paths"][endpoint.path][member_of(endpoint.method)]
    assert [p["name"] for p in operation["parameters"] if p["in"] == "query"] == list(endpoint.query)
    assert [p["name"] for p in operation["parameters"] if p["in"] == "header"] == [
        h.name for h in endpoint.headers
    ]


@pytest.mark.parametrize(
    "endpoint",
    # the one does not end, the others take one of two
    [e for e in ENDPOINTS if name_of(e) not in ("GET /v1/subscribe", "DELETE /v1/kv", "GET /v1/history")],
    ids=name_of,
)
def test_the_description_says_which_parameter_a_request_must_have(
    session: Session, endpoint: Endpoint
) -> None:
    operation = document()["paths"][endpoint.path][member_of(endpoint.method)]
    required = [each["name"] for each in operation["parameters"] if each.get("required")]
    answer = ask(session, endpoint, "")
    missing = answer.json.get("parameter") if answer.status == 400 else None
    assert required == [name for name in [missing] if name]


def test_operation_ids_are_unique() -> None:
    ids = [
        operation["operationId"]
        for item in document()["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    ]
    assert len(set(ids)) == len(ids)


def test_every_schema_is_used() -> None:
    assert {
        name for name in SCHEMAS if f'#/components/schemas/{name}"' not in str(document()).replace("'", '"')
    } == set()


ANSWERS = [
    ("GET", "/v1/kv/described?format=json", "Record"),
    ("PUT", "/v1/kv/described", "Written"),
    ("DELETE", "/v1/kv/described", "Deleted"),
    ("DELETE", "/v1/kv?prefix=nothing-here", "Deleted"),
    ("GET", "/v1/kv", "Page"),
    ("GET", "/v1/kv?count=1", "Page"),
    ("POST", "/v1/incr/described?by=2", "Counted"),
    ("POST", "/v1/touch/described?ttl=1h", "Written"),
    ("POST", "/v1/persist/described", "Written"),
    ("GET", "/v1/history/described", "History"),
    ("GET", "/v1/digest", "Digest"),
    ("GET", "/v1/digest?prefix=described", "Digest"),
    ("GET", "/v1/status", "Status"),
    ("GET", "/v1/subscribers", "Subscribers"),
    ("GET", "/v1/slow", "SlowRequests"),
    ("GET", "/livez", "Health"),
    ("GET", "/readyz", "Health"),
    ("GET", "/v1/kv/never-stored", "Problem"),
]


@pytest.mark.parametrize(("method", "target", "schema"), ANSWERS)
def test_answers_are_as_described(session: Session, method: str, target: str, schema: str) -> None:
    session.put("/v1/kv/described?ttl=1h", b"5")
    answer = session.request(method, target, b"5" if method == "PUT" else None).json
    _assert_fits(answer, SCHEMAS[schema])


def test_times_in_the_status_are_times(session: Session) -> None:
    session.put("/v1/kv/timed", b"x")
    status = session.get("/v1/status").json
    for name in ("started_at", "oldest_event_at", "newest_event_at"):
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", status[name])


def test_batches_are_as_described(session: Session) -> None:
    answer = session.batch(
        {"op": "put", "key": "described", "value": "5"}, {"op": "get", "key": "never-stored"}
    ).json
    _assert_fits(answer, SCHEMAS["BatchResults"])


def _assert_fits(answer: Any, schema: dict[str, Any]) -> None:
    from openapi_schema_validator import OAS31Validator

    OAS31Validator({**schema, "components": {"schemas": SCHEMAS}}).validate(answer)
    unknown = answer.keys() - schema["properties"].keys()
    assert not unknown or schema is SCHEMAS["Status"], f"not described: {unknown}"


# ── docs/http.md ─────────────────────────────────────────────────────────────────────────────────


def sections() -> Iterator[tuple[str, str]]:
    """The page's sections about a route: its name, and the text up to the next heading."""
    parts = re.split(r"^##+ (.*)$", PAGE, flags=re.MULTILINE)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        route = re.fullmatch(r"`([A-Z]+ /\S*)`", heading)
        if route:
            yield route[1], text


SECTIONS = dict(sections())


def test_the_page_has_a_section_for_every_route_and_no_other() -> None:
    assert set(SECTIONS) == set(map(name_of, ENDPOINTS))


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_the_page_names_every_parameter_and_header(endpoint: Endpoint) -> None:
    section = SECTIONS[name_of(endpoint)]
    for name in (*endpoint.query, *(header.name for header in endpoint.headers)):
        assert f"`{name}`" in section


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=name_of)
def test_the_page_names_no_parameter_and_header_that_there_is_not(endpoint: Endpoint) -> None:
    section = SECTIONS[name_of(endpoint)]
    for head, known in (
        ("parameter", set(endpoint.query)),
        ("request header", {header.name for header in endpoint.headers}),
    ):
        for table in re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", section, flags=re.MULTILINE):
            for row in table.splitlines():
                assert set(re.findall(r"`([^`]+)`", row.split("|")[1])) <= known


def test_the_page_lists_every_error_with_its_status() -> None:
    rows = {row[0].strip("`"): int(row[1]) for row in table_rows(PAGE, "Errors")}
    assert rows == {code: row.status for code, row in ERRORS.items()}
