"""Many keys: pages, counts, streams of lines, deletion by prefix."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.client import HTTPConnection, IncompleteRead
from typing import Any
from urllib.parse import quote_plus, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.patience import PATIENCE_SECONDS
from support.servers import Daemon, Facade
from support.session import Session, assert_problem, path_of

NDJSON = "application/x-ndjson"
MIB = 1024 * 1024

names = st.text(st.sampled_from("ab/é\U0001f600~"), min_size=1, max_size=4)


def fill(session: Session, values: dict[str, bytes | str]) -> None:
    """Store text values, many at a time."""
    ops = [{"op": "put", "key": key, "value": value} for key, value in values.items()]
    for start in range(0, len(ops), 1000):
        assert session.batch(*ops[start : start + 1000]).status == 200


def listed(session: Session, query: str = "") -> list[dict[str, Any]]:
    """The items of all pages."""
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = session.get(f"/v1/kv?{query}{cursor}").json
        items += page["items"]
        if page["cursor"] is None:
            return items
        cursor = f"&cursor={page['cursor']}"


def lines(session: Session, query: str = "") -> list[dict[str, Any]]:
    """The objects of the same listing as lines."""
    answer = session.get(f"/v1/kv?{query}", accept=NDJSON)
    assert answer.status == 200
    assert answer.headers["content-type"] == NDJSON
    return [json.loads(line) for line in answer.body.splitlines()]


@given(
    stored=st.sets(names, max_size=12),
    prefix=st.just("") | names,
    start=st.just("") | names,
    end=st.just("") | names,
    limit=st.integers(1, 5),
)
def test_a_listing_is_a_slice_of_the_keys_in_byte_order(
    session: Session, stored: set[str], prefix: str, start: str, end: str, limit: int
) -> None:
    session.delete("/v1/kv?prefix=slice:")
    if stored:
        fill(session, {f"slice:{name}": name for name in stored})
    bounds = {"prefix": f"slice:{prefix}", "start": start and f"slice:{start}", "end": end and f"slice:{end}"}
    query = "&".join(f"{name}={quote_plus(text)}" for name, text in bounds.items())
    expected = [
        name
        for name in sorted(stored, key=str.encode)
        if name.startswith(prefix) and name.encode() >= start.encode()
    ]
    if end:
        expected = [name for name in expected if name.encode() < end.encode()]
    paged = listed(session, f"limit={limit}&{query}")
    assert [item["key"] for item in paged] == [f"slice:{name}" for name in expected]
    assert [item["value"] for item in paged] == expected
    assert lines(session, query) == paged
    assert session.get(f"/v1/kv?count=1&{query}").json["count"] == len(expected)


def test_an_item_is_the_record(session: Session, key: str) -> None:
    session.put(path_of(key) + "?ttl=1h", b"\xff", content_type="image/x")
    record = session.get(path_of(key) + "?format=json").json
    assert session.get(f"/v1/kv?prefix={key}").json["items"] == [record]
    assert record.pop("value_b64") == "/w=="
    record["bytes"] = 1
    assert session.get(f"/v1/kv?prefix={key}&keys=1").json["items"] == [record]
    assert lines(session, f"prefix={key}&keys") == [record]


def test_a_page_says_which_revision_it_shows(session: Session, key: str) -> None:
    revision = session.put(path_of(key), b"x").json["revision"]
    assert session.get(f"/v1/kv?prefix={key}").json["revision"] == revision
    assert session.get("/v1/kv?prefix=nothing-has-this").json == {
        "items": [],
        "revision": revision,
        "cursor": None,
    }
    assert session.get("/v1/kv?prefix=nothing-has-this&count=1").json == {"count": 0, "revision": revision}


def test_pages_are_bounded_and_lines_are_not(own: Session) -> None:
    fill(own, {f"{number:05}": "v" for number in range(2500)})
    first = own.get("/v1/kv").json
    assert len(first["items"]) == 100
    assert len(own.get("/v1/kv?limit=1000").json["items"]) == 1000
    assert [item["key"] for item in listed(own, "limit=1000")] == [f"{n:05}" for n in range(2500)]
    assert [item["key"] for item in lines(own)] == [f"{n:05}" for n in range(2500)]
    assert len(lines(own, "limit=2001")) == 2001
    assert len(lines(own, "limit=7")) == 7
    assert own.get("/v1/kv?count=1").json["count"] == 2500
    assert own.delete("/v1/kv?prefix=0").json["deleted"] == 2500
    assert own.get("/v1/kv?count=1").json["count"] == 0


def test_a_page_of_large_values_ends_early_and_goes_on(own: Session) -> None:
    for number in range(6):
        own.put(f"/v1/kv/{number}", b"x" * MIB)
    page = own.get("/v1/kv").json
    assert 1 <= len(page["items"]) < 6
    assert page["cursor"] is not None
    assert [item["key"] for item in listed(own)] == list("012345")


def test_a_level_is_shown_as_a_page_and_as_lines(session: Session, key: str) -> None:
    fill(session, {f"{key}/{name}": name for name in ("a", "b/1", "b/2", "c", "d//e", "ü/x")})
    level = f"prefix={key}/&delimiter=/&keys=1"
    page = session.get(f"/v1/kv?{level}&counts=1").json
    assert [item["key"] for item in page["items"]] == [f"{key}/a", f"{key}/c"]
    assert page["prefixes"] == [f"{key}/{name}/" for name in ("b", "d", "ü")]
    assert page["counts"] == [2, 1, 1]
    assert list(page) == ["items", "prefixes", "counts", "revision", "cursor"]
    assert list(session.get(f"/v1/kv?{level}").json) == ["items", "prefixes", "revision", "cursor"]
    shown = [f"{key}/{name}" for name in ("a", "b/", "c", "d/", "ü/")]
    for reverse in ("", "&reverse=1"):
        wanted = shown[::-1] if reverse else shown
        found = lines(session, level + reverse)
        assert [line.get("prefix") or line["key"] for line in found] == wanted
        assert lines(session, f"{level}{reverse}&limit=2") == found[:2]
    counted = lines(session, f"{level}&counts=1")
    assert {"prefix": f"{key}/b/", "count": 2} in counted
    assert session.get(f"/v1/kv?prefix={key}/&delimiter=//&keys=1").json["prefixes"] == [f"{key}/d//"]


def test_pages_of_a_level_join_in_both_directions(own: Session) -> None:
    fill(own, {f"{folder:02}/{name}": "v" for folder in range(25) for name in range(3)} | {"05": "v"})
    wanted = sorted(["05", *(f"{folder:02}/" for folder in range(25))])
    for reverse in ("", "&reverse=1"):
        for limit in (1, 7, 1000):
            shown: list[str] = []
            cursor: str | None = ""
            while cursor is not None:
                page = own.get(
                    f"/v1/kv?delimiter=/&limit={limit}{reverse}{cursor and '&cursor=' + cursor}"
                ).json
                entries = [*page["prefixes"], *(item["key"] for item in page["items"])]
                assert len(entries) <= limit
                shown += sorted(entries, reverse=bool(reverse))
                cursor = page["cursor"]
            assert shown == (wanted[::-1] if reverse else wanted)
    assert [item["key"] for item in own.get("/v1/kv?reverse=1&limit=2").json["items"]] == ["24/2", "24/1"]
    assert [line["key"] for line in lines(own, "reverse=1")] == [item["key"] for item in listed(own)][::-1]


def test_lines_of_a_level_go_on_over_pages(own: Session) -> None:
    fill(own, {f"{folder:04}/x": "v" for folder in range(2300)})
    shown = [line["prefix"] for line in lines(own, "delimiter=/")]
    assert shown == [f"{folder:04}/" for folder in range(2300)]
    assert [line["prefix"] for line in lines(own, "delimiter=/&reverse=1&limit=1500")] == shown[:799:-1]


def test_a_cursor_of_one_direction_is_none_of_the_other(own: Session) -> None:
    fill(own, dict.fromkeys(("a/1", "b/1", "c"), "v"))
    for way, other in (("0", "1"), ("1", "0")):
        cursor = own.get(f"/v1/kv?delimiter=/&limit=1&reverse={way}").json["cursor"]
        assert own.get(f"/v1/kv?limit=1&reverse={way}&cursor={cursor}").json["items"]
        for accept in ("application/json", NDJSON):
            answer = own.get(f"/v1/kv?reverse={other}&cursor={cursor}", accept=accept)
            assert "direction" in assert_problem(answer, "invalid_cursor")["detail"]


@pytest.mark.parametrize(
    ("target", "parameter"),
    [
        ("/v1/kv?delimiter=", "delimiter"),
        ("/v1/kv?delimiter", "delimiter"),
        ("/v1/kv?delimiter=%00", "delimiter"),
        ("/v1/kv?delimiter=12345678901234567", "delimiter"),
        ("/v1/kv?delimiter=%ff", "delimiter"),
        ("/v1/kv?delimiter=/&delimiter=:", "delimiter"),
        ("/v1/kv?counts=1", "counts"),
        ("/v1/kv?delimiter=/&counts=x", "counts"),
        ("/v1/kv?delimiter=/&count=1", "delimiter"),
        ("/v1/kv?reverse=1&count=1", "reverse"),
        ("/v1/kv?reverse=yes-please", "reverse"),
        ("/v1/kv?min_revision=0", "min_revision"),
        ("/v1/kv/k?min_revision=x", "min_revision"),
        ("/v1/kv/k?min_revision=1&wait=1s", "min_revision"),
        ("/v1/kv/k?min_revision=1&revision=1", "min_revision"),
        ("/v1/history/k?min_revision=-1", "min_revision"),
    ],
)
def test_what_no_level_has_is_refused_by_its_name(session: Session, target: str, parameter: str) -> None:
    for accept in ("application/json", NDJSON) if "/kv?" in target else ("*/*",):
        problem = assert_problem(session.get(target, accept=accept), "bad_request")
        assert problem["parameter"] == parameter


def test_a_read_is_as_new_as_it_is_asked_to_be(session: Session, key: str) -> None:
    here = session.put(path_of(key), b"x").json["revision"]
    targets = [
        f"{path_of(key)}?",
        f"/v1/kv?key={key}&",
        f"/v1/kv?prefix={key}&",
        f"/v1/kv?prefix={key}&count=1&",
        f"/v1/kv?prefix={key}&delimiter=/&",
        f"{path_of(key, 'history')}?",
        f"/v1/history?prefix={key}&",
    ]
    for target in targets:
        for stale in ("", "&stale=1"):
            assert session.get(f"{target}min_revision={here}{stale}").status == 200
            problem = assert_problem(
                session.get(f"{target}min_revision={here + 1}{stale}"), "condition_failed"
            )
            assert problem["revision"] == here
    assert_problem(session.get(f"/v1/kv?min_revision={here + 1}", accept=NDJSON), "condition_failed")
    results = session.batch({"op": "get", "key": key, "min_revision": here + 1}).json["results"]
    assert (results[0]["status"], results[0]["error"]["code"]) == (412, "condition_failed")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "keys=2",
        "count=maybe",
        "prefix=%00",
        "start=%ff",
        "limt=5",
    ],
)
def test_what_no_listing_takes_is_refused(session: Session, query: str) -> None:
    assert_problem(session.get(f"/v1/kv?{query}"), "bad_request")


@pytest.mark.parametrize(
    "cursor",
    ["x", "abc", "%20", "AAAA%3D", "Zg==", "!!", "a" * 5000, "YWJj", "12-0123456789abcdef", "7.0", "%C3%A9"],
)
def test_a_cursor_from_elsewhere_is_refused(session: Session, key: str, cursor: str) -> None:
    session.put(path_of(key), b"x")
    for query in ("", "&keys=1", "&count=1", "&limit=1", "&prefix=zzz", "&start=b&end=a"):
        assert_problem(session.get(f"/v1/kv?cursor={cursor}{query}"), "invalid_cursor")
    assert_problem(session.get(f"/v1/kv?cursor={cursor}", accept=NDJSON), "invalid_cursor")
    if cursor != "7.0":  # it might be one of this key's
        assert_problem(session.get(f"{path_of(key, 'history')}?cursor={cursor}"), "invalid_cursor")


@pytest.mark.parametrize(
    ("accept", "given"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        (NDJSON, NDJSON),
        (f"{NDJSON}, application/json;q=0.5", NDJSON),
        (f"{NDJSON};q=0.1, application/json;q=0.5", "application/json"),
        ("text/html, */*;q=0.1", "application/json"),
    ],
)
def test_the_client_chooses_the_form(session: Session, accept: str | None, given: str) -> None:
    headers = {} if accept is None else {"accept": accept}
    answer = session.get("/v1/kv?limit=1", **headers)
    assert answer.headers["content-type"] == given
    assert answer.headers["vary"] == "accept"


@pytest.mark.parametrize("accept", ["image/png", "text/html", "garbage", "application/json;q=0"])
def test_a_form_that_there_is_not_is_refused(session: Session, accept: str) -> None:
    for target in ("/v1/kv", "/v1/status", "/livez", "/v1/history/x"):
        if target != "/v1/history/x":
            assert_problem(session.get(target, accept=accept), "not_acceptable")


def test_lines_that_cannot_go_on_end_unmistakably(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    """Far more than all buffers between hold, read slowly, and the daemon killed meanwhile."""
    daemon = start_daemon(sync="none")
    facade = start_facade(daemon, daemon_timeout="3s")
    session = Session(facade.url)
    for number in range(64):
        assert session.put(f"/v1/kv/{number:02}", b"x" * MIB).status == 201
    session.close()
    connection = HTTPConnection(urlsplit(facade.url).netloc, timeout=PATIENCE_SECONDS)
    connection.request("GET", "/v1/kv", headers={"Accept": NDJSON})
    response = connection.getresponse()
    assert response.status == 200
    received = response.read(1000)
    daemon.kill()
    with pytest.raises(IncompleteRead) as cut:
        response.read()
    connection.close()
    records = (received + cut.value.partial).splitlines()
    problem = json.loads(records[-1])["error"]
    assert problem["code"] in ("unavailable", "timed_out")
    assert [json.loads(line)["key"] for line in records[:-1]] == [f"{n:02}" for n in range(len(records) - 1)]
    assert len(records) < 60


# ── deletion by prefix ───────────────────────────────────────────────────────────────────────────


def test_deleting_by_prefix_leaves_the_others(session: Session, key: str) -> None:
    fill(session, {f"{key}/a": "1", f"{key}/b": "2", f"{key}0": "3", key: "4"})
    answer = session.delete(f"/v1/kv?prefix={quote_plus(key + '/')}")
    assert answer.json["deleted"] == 2
    assert answer.json["prefix"] == f"{key}/"
    assert [item["key"] for item in listed(session, f"prefix={key}")] == [key, f"{key}0"]
    assert session.get(f"/v1/kv?prefix={key}").json["revision"] == answer.json["revision"]


def test_deleting_nothing_by_prefix_is_no_error(session: Session) -> None:
    answer = session.delete("/v1/kv?prefix=nothing-has-this")
    assert answer.json == {"prefix": "nothing-has-this", "deleted": 0, "revision": None}


@pytest.mark.parametrize(
    "query", ["", "?prefix=", "?prefix", "?prefx=a", "?prefix=a&prefix=b", "?prefix=a&key=b"]
)
def test_everything_is_never_deleted_by_accident(session: Session, key: str, query: str) -> None:
    session.put(path_of(key), b"x")
    assert_problem(session.delete(f"/v1/kv{query}"), "bad_request")
    assert session.get(path_of(key)).status == 200


def test_a_prefix_has_no_revision_to_be_conditional_on(session: Session, key: str) -> None:
    session.put(path_of(key), b"x")
    assert_problem(session.delete(f"/v1/kv?prefix={key}", if_match="*"), "bad_request")
    assert session.get(path_of(key)).status == 200
