"""What was stored is there after everything was stopped and started again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvstore_client import Client, Event
from support.servers import Serve, Service, wait_until
from support.session import call, kv_path


def contents(url: str) -> dict[str, object]:
    """Everything that can be seen of the store, but how long ago it was."""
    page = call(url, "GET", "/v1/kv?limit=1000").json
    paths = [kv_path(item["key"]).replace("/kv/", "/history/", 1) for item in page["items"]]
    history = [call(url, "GET", path).json for path in paths]
    return {"items": page["items"], "revision": page["revision"], "history": history}


def fill(url: str) -> None:
    """A few records of every kind."""
    for number in range(20):
        call(url, "PUT", kv_path(f"key/{number}"), f"value {number}".encode(), {"Content-Type": "text/plain"})
    call(url, "PUT", kv_path("key/0"), bytes(range(256)), {"Content-Type": "application/octet-stream"})
    call(url, "PUT", kv_path("with a ttl") + "?ttl=1h", b"v")
    call(url, "POST", "/v1/incr/number?by=5")
    call(url, "DELETE", kv_path("key/1"))


def test_it_is_all_there_after_stop_and_start(service: Service) -> None:
    fill(service.url)
    before = contents(service.url)
    service.facade.stop()
    service.daemon.stop()
    service.daemon.start()
    service.facade.start()
    assert contents(service.url) == before


@pytest.mark.parametrize("mode", ["always", "interval", "none"])
def test_a_clean_stop_loses_nothing_in_any_mode(mode: str, start_serve: Callable[..., Serve]) -> None:
    serve = start_serve(sync=mode, workers=1)
    fill(serve.url)
    before = contents(serve.url)
    serve.restart()
    assert contents(serve.url) == before


def test_a_cursor_still_leads_on_after_a_restart(service: Service) -> None:
    with Client(service.requests) as client:
        client.put("before", b"1")
        page = client.events(0)
        service.daemon.restart()
        client.put("after", b"2")
        assert [event.key for event in client.events(page.next).events] == ["after"]


def test_revisions_go_on_and_are_not_reused_after_a_restart(service: Service) -> None:
    with Client(service.requests) as client:
        client.put("a", b"1")
        last = client.delete("a").revision
        assert last is not None
        service.daemon.restart()
        assert client.put("a", b"2").revision > last


def test_a_key_that_expired_while_nothing_ran_is_gone_and_told_of(service: Service) -> None:
    with Client(service.requests) as client:
        client.put("short", b"old value", ttl=0.001)
        client.put("lasting", b"v", ttl=3600)
        service.daemon.restart()
        assert [record.key for record in client.list()] == ["lasting"]
        expiry = wait_until(lambda: expiry_of(client, "short"), what="the expiry is in the log")
    assert expiry.previous is not None
    assert expiry.previous.value == b"old value"


def expiry_of(client: Client, key: str) -> Event | None:
    """The key's newest event if that is its expiry."""
    newest = client.history(key, limit=1).events[0]
    return newest if newest.op == "expire" else None
