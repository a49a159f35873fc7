"""Whatever a request carries, the answer is one of the table and never a failure of the service."""

from __future__ import annotations

import json
import math
import random
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvstore_core.errors import ERRORS
from kvstore_http.resources.batch import OPS
from kvstore_http.routes import ENDPOINTS, Endpoint
from support.lengths import examples
from support.session import Session

NASTY = (
    "", " ", "0", "-0", "+1", "-1", "1_000", "1e3", "1e400", "inf", "nan", "NaN", "0x10", "1.5", "٣", "۷s",
    "²", "9" * 19, "9" * 20, "9" * 400, "1" * 5000, "-" + "9" * 5000, "9" * 5000 + "s", "1" * 5000 + "-abc",
    "0" * 5000, "9223372036854775807", "9223372036854775808", "18446744073709551616", "1.5h", "1ms",
    "0.0000001s", "1e9h", "true", "false", "True", "null", "[]", "{}", '"', '"7"', 'W/"7"', '"7", "8"', '"',
    ",", ",,", ";q=", "*", "*/*", "a/b;q=nan", "a/b;q=-1", "*/*;q=1e400", "text/html;level=1;q=0.4",
    "application/x-ndjson, text/event-stream", "7-", "-7", "7-abc", "7-" + "0" * 16, "AAAA", "====",
    "a" * 3000, "\x7f", "\x85", "\xa0", "\ufeff", "\ud7ff", "\U0010ffff", "bytes=0-", "bytes=-0",
    "bytes=-" + "9" * 30, "bytes=9-1", "bytes=0-0,2-3", "bytes 0-1/2", "bytes=" + "1" * 5000,
    "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 99999 08:49:37 GMT", "Sun, 31 Feb 1994 08:49:37 GMT",
    "Sun, 06 Nov 0000 08:49:37 GMT", "Sun, 06 Nov -1 08:49:37 GMT", "Sun, 06 Nov 1994 99:99:99 +9999",
    "Sun Nov  6 08:49:37 1994", "Sunday, 06-Nov-94 08:49:37 GMT", "0", "06 Nov " + "9" * 5000, "put,",
    "put,get", "http://a", "null", "same-origin", "cross-site", "gzip", "identity;q=0", "a" * 200, "%",
    "%zz", "a=b&c=d", "fuzzed@0", "fuzzed@1", "@@", "a@", "@0", "fuzzed@-1", "fuzzed@" + "9" * 30,
)  # fmt: skip
HEADERS = (
    "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Range",
    "Last-Event-ID", "X-Request-Id", "Idempotency-Key", "Accept", "Accept-Encoding", "Content-Type",
    "Content-Encoding", "Content-Range", "Origin", "Sec-Fetch-Site", "Access-Control-Request-Method",
    "Connection", "Upgrade", "TE", "X-Kvstore-Message",
)  # fmt: skip
STATUSES = {row.status for row in ERRORS.values()} - {500, 503, 504, 507} | {200, 201, 204, 206, 303, 304}

nasty = st.sampled_from(NASTY) | st.text(st.characters(codec="utf-8"), max_size=12)
headers = st.dictionaries(st.sampled_from(HEADERS), nasty, max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | nasty,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["op", "key", "ttl"]), inner),
    max_leaves=4,
)
fields = (
    "key",
    "value",
    "value_b64",
    "content_type",
    "ttl",
    "if_revision",
    "if_value",
    "if_value_b64",
    "exists",
    "sequence",
    "by",
    "prefix",
    "limit",
    "size",
    "message",
)
ops = st.fixed_dictionaries(
    {"op": st.sampled_from(OPS) | nasty},
    optional=dict.fromkeys(fields, values | st.just("fuzzed")),
)


def sendable(text: str) -> str:
    """The text as a header may carry it."""
    return "".join(
        byte for byte in text.encode().decode("latin-1") if "\x20" <= byte <= "\x7e" or byte >= "\xa0"
    ).strip(" ")


def ask(
    session: Session, endpoint: Endpoint, query: dict[str, str], headers: dict[str, str], body: Any
) -> None:
    target = endpoint.path.replace("{key}", "fuzzed")
    if endpoint.path == "/v1/subscribe":
        query = {**query, "ops": "nonsense"}  # else the answer does not end
    if query.get("wait", "x")[:1].isdigit():
        query = {**query, "wait": "1ms"}
    target += "?" + "&".join(f"{quote(name)}={quote(text)}" for name, text in query.items())
    sent = {name: sendable(text) for name, text in headers.items()}
    if endpoint.body:
        sent.setdefault("Content-Type", next(iter(endpoint.body)))
    answer = session.request(endpoint.method, target, body if endpoint.body else None, sent)
    assert answer.status in STATUSES, (endpoint.method, target, sent, body, answer)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: f"{e.method} {e.path}")
@settings(max_examples=examples(8), suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_parameter_and_no_header_makes_the_service_fail(
    session: Session, endpoint: Endpoint, data: st.DataObject
) -> None:
    names = st.sampled_from(sorted(endpoint.query) or ["nothing"])
    query = data.draw(st.dictionaries(names, nasty, max_size=3))
    ask(session, endpoint, query, data.draw(headers), b'{"key": "fuzzed", "value": "1"}')


SEED = random.SystemRandom().randrange(2**32)

Place = tuple[str, str]
"""``header`` or ``query``, and a name."""


def places(endpoint: Endpoint) -> list[Place]:
    """Every header and parameter that the endpoint names."""
    headers = {h.name for h in endpoint.headers} | {"Accept", "X-Request-Id"}
    return [*(("header", name) for name in sorted(headers)), *(("query", name) for name in endpoint.query)]


def troubles(endpoint: Endpoint, place: Place) -> tuple[str, ...]:
    """The nasty texts that the endpoint meets in the place. They are dealt out: each comes in each place at
    one endpoint at least, and ten by chance at each; in the long profile all of them at each."""
    named = [each for each in ENDPOINTS if place in places(each)]
    texts = random.Random(f"{SEED} {place}").sample(NASTY, len(NASTY))
    share = max(examples(10), math.ceil(len(texts) / len(named)))
    begin = named.index(endpoint) * len(texts) // len(named)
    return tuple((texts[begin:] + texts[:begin])[:share])


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: f"{e.method} {e.path}")
def test_each_known_trouble_is_met_in_each_place(session: Session, endpoint: Endpoint) -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown where the test fails
    session.put("/v1/kv/fuzzed", b'{"a": 1}')
    for place in places(endpoint):
        kind, name = place
        for text in troubles(endpoint, place):
            query, headers = ({name: text}, {}) if kind == "query" else ({}, {name: text})
            ask(session, endpoint, query, headers, b"{}")


def test_every_known_trouble_comes_in_every_place() -> None:
    met: dict[Place, set[str]] = {}
    for endpoint in ENDPOINTS:
        for place in places(endpoint):
            met.setdefault(place, set()).update(troubles(endpoint, place))
    assert all(texts == set(NASTY) for texts in met.values())


@settings(max_examples=examples(60))
@given(batch=st.lists(ops, min_size=1, max_size=4), atomic=st.booleans() | values)
def test_no_batch_makes_the_service_fail(session: Session, batch: list[Any], atomic: Any) -> None:
    body = json.dumps({"ops": batch, "atomic": atomic}).encode()
    answer = session.request("POST", "/v1/batch", body, {"Content-Type": "application/json"})
    assert answer.status in STATUSES, (body, answer)
    if answer.status == 200:
        assert {result["status"] for result in answer.json["results"]} <= STATUSES, (body, answer)
