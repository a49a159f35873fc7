"""``/v1/digest``: what it says is the digest of the records, as of the revision that it says."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kvstore_core.digest import SetHash, record_hash
from support.servers import Service
from support.session import Session, assert_problem, path_of

MANY = 9_000
"""More than two pages look at."""


def value_of(record: dict[str, Any]) -> bytes:
    """The bytes of a record in JSON."""
    return base64.b64decode(record["value_b64"]) if "value_b64" in record else record["value"].encode()


def lines(session: Session, target: str) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = session.get(f"{target}&limit=1000{cursor}").json
        yield from page["items"]
        if page["cursor"] is None:
            return
        cursor = f"&cursor={page['cursor']}"


def added_up(session: Session, query: str = "") -> tuple[str, int]:
    """The digest of what a list shows."""
    found, count = SetHash(), 0
    for record in lines(session, f"/v1/kv?{query}"):
        found.replace(b"", record_hash(record["key"].encode(), record["revision"], value_of(record)))
        count += 1
    return found.hexdigest(), count


def fill(session: Session, prefix: str, count: int) -> None:
    for begin in range(0, count, 1000):
        numbers = range(begin, min(begin + 1000, count))
        session.batch(*({"op": "put", "key": f"{prefix}{n:05}", "value": str(n)} for n in numbers))


def test_it_is_that_of_what_a_list_shows(own: Session) -> None:
    assert own.get("/v1/digest").json["digest"] == "0" * 64
    for name, value in (("a", b"1"), ("a/\u00fc", b"\xff\0"), ("a/b", b""), ("b", bytes(100_000))):
        own.put(path_of(name), value)
    own.post(path_of("a", "incr"))
    head = own.delete(path_of("b")).json["revision"]
    own.put(path_of("b"), b"again")
    for query in ("", "prefix=a", "prefix=a/", "start=a/&end=b", "prefix=c", "start=b&end=a"):
        found = own.get(f"/v1/digest?{query}").json
        assert (found["digest"], found["count"]) == added_up(own, query)
        assert found["revision"] == head + 1
        assert found["epoch"] == own.get("/v1/status").json["epoch"]
    status = own.get("/v1/status").json
    assert own.get("/v1/digest").json["digest"] == status["digest"]


@pytest.mark.parametrize("query", ["prefix=%00", "limit=1", "stale=2", "cursor=x", "min_revision=-1"])
def test_what_it_does_not_take_is_refused(session: Session, query: str) -> None:
    assert_problem(session.get(f"/v1/digest?{query}"), "bad_request")


def test_a_revision_that_the_store_has_not_is_refused(session: Session) -> None:
    head = session.get("/v1/digest").json["revision"]
    assert_problem(session.get(f"/v1/digest?min_revision={head + 1000}"), "condition_failed")


def test_of_many_pages_it_is_that_of_one_revision_also_beside_writers(service: Service) -> None:
    """What the writer is told is put together to what each revision had."""
    session, writing = Session(service.url), Session(service.url)
    fill(session, "many/", MANY)
    records = {r["key"]: (r["revision"], value_of(r)) for r in lines(session, "/v1/kv?prefix=many/")}
    there = SetHash()
    for key, (revision, value) in records.items():
        there.replace(b"", record_hash(key.encode(), revision, value))
    told = {session.get("/v1/status").json["revision"]: (there.hexdigest(), len(records))}
    is_over = threading.Event()

    def write() -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            name = f"many/{number * 7919 % (2 * MANY):05}"
            old = record_hash(name.encode(), *records.pop(name)) if name in records else b""
            if number % 3 == 0 and old:
                revision, new = writing.delete(path_of(name)).json["revision"], b""
            else:
                value = str(number).encode()
                revision = writing.put(path_of(name), value).json["revision"]
                records[name] = (revision, value)
                new = record_hash(name.encode(), revision, value)
            there.replace(old, new)
            told[revision] = (there.hexdigest(), len(records))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        found = [session.get("/v1/digest?prefix=many/").json for _ in range(8)]
    finally:
        is_over.set()
        thread.join()
    assert len({each["revision"] for each in found}) > 1, "there was a writer beside it"
    for each in found:
        assert (each["digest"], each["count"]) == told[each["revision"]]
    last = session.get("/v1/digest?prefix=many/").json
    assert (last["digest"], last["count"]) == added_up(session, "prefix=many/")
    session.close()
    writing.close()
