"""Moments at which a record expires: what no date can say is refused, what is taken can be read back."""

from __future__ import annotations

import itertools
import json
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvstore_client import Client
from kvstore_core.errors import KvError
from kvstore_http.protocol.json_records import http_date, timestamp
from support.servers import Service
from support.session import Session, assert_problem, path_of

LAST = 253_402_300_799_999
LAST_TEXT = "9999-12-31T23:59:59.999Z"
BEYOND = [LAST + 1, LAST + 3_600_000, 2**53 - 1, 2**53, 2**63, -1, 0]
BEYOND_TEXTS = [
    "9999-12-31T23:59:59-01:00",
    "9999-12-31T23:59:59.9995Z",
    "9999-12-31T23:59:59.999999Z",
    "1970-01-01T00:00:00Z",
    "1970-01-01T00:00:00+01:00",
    "0001-01-01T00:00:00+23:00",
]
_numbers = itertools.count()


@pytest.mark.parametrize("moment", BEYOND)
def test_a_moment_that_no_date_can_say_is_refused(
    session: Session, shared_service: Service, key: str, moment: int
) -> None:
    answer = session.batch({"op": "put", "key": key, "value": "x", "expires_at": moment})
    assert_problem(answer, "bad_request")
    with Client(shared_service.daemon.requests) as client, pytest.raises(KvError) as refused:
        client.put(key, b"x", expires_at=moment)
    assert refused.value.code == "bad_request"
    assert session.get(path_of(key)).status == 404
    assert session.get(path_of(key, "history")).status == 404


@pytest.mark.parametrize("text", BEYOND_TEXTS)
def test_a_date_that_ends_beyond_what_can_be_said_is_refused(session: Session, key: str, text: str) -> None:
    problem = assert_problem(session.put(path_of(key) + f"?expires_at={quote(text)}", b"x"), "bad_request")
    assert "9999" in problem["detail"]
    session.batch({"op": "put", "key": key, "value": "x", "expires_at": text})
    assert session.get(path_of(key, "history")).status == 404


@given(moment=st.integers(1, LAST))
@example(moment=1)
@example(moment=LAST)
def test_whatever_is_taken_can_be_read_in_every_form(session: Session, moment: int) -> None:
    key = f"moment-{next(_numbers)}"
    text = timestamp(moment)
    put = session.put(path_of(key) + f"?expires_at={text}", b"x")
    assert (put.status, put.json["expires_at"]) == (201, text)
    revision = put.json["revision"]
    events = session.get(path_of(key, "history")).json["events"]
    assert events[-1]["expires_at"] == text
    got = session.get(path_of(key))
    is_gone = got.status == 404
    assert is_gone or got.headers["x-kvstore-expires-at"] == text
    assert session.get(path_of(key) + "?format=json").status == (404 if is_gone else 200)
    assert session.get(f"/v1/kv?prefix={key}").json["items"] == [] or not is_gone
    lines = session.get(f"/v1/kv?prefix={key}", accept="application/x-ndjson").body.splitlines()
    assert all(json.loads(line) for line in lines)
    assert session.get(path_of(key) + f"?revision={revision}&format=json").status in (200, 404, 410)


@given(st.integers())
def test_every_moment_is_shown_as_a_date(moment: int) -> None:
    shown = timestamp(moment)
    assert len(shown) == len(LAST_TEXT)
    assert "1970-01-01T00:00:00.000Z" <= shown <= LAST_TEXT
    assert http_date(moment).endswith(" GMT")
