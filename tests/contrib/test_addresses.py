"""Addresses of backends: the service, its options, the prefix, and the login; and when it is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvstore_client import Event, NotAllowed, Sync, Unauthenticated
from kvstore_contrib.addresses import key_below, place_of
from kvstore_contrib.values import AWAY
from kvstore_core.errors import ERRORS, KvError
from support.protected import Protected
from support.servers import Daemon


def test_away_is_a_service_whose_errors_may_pass_by_waiting() -> None:
    assert {code for code in ERRORS if isinstance(KvError(code, "no"), AWAY)} == {
        code for code, row in ERRORS.items() if row.is_temporary
    }


def test_a_login_file_lets_backends_in_below_their_prefix(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon(access="required")
    protected = Protected(daemon)
    login = protected.login_file("shop", protected.keys("shop", "rw:shop/"))
    service = f"{daemon.requests.replace('tcp', 'kvstore')}/shop?changes={daemon.changes.rpartition(':')[2]}"
    place = place_of(f"{service}&login={login}&timeout=20", "cache/")
    assert place.prefix == "shop/"
    key = key_below(place.prefix, "tea")
    for chosen in {"keys": [key]}, {"prefixes": [place.prefix]}:
        with place.subscribe(**chosen) as changes:
            assert isinstance(changes.next(20), Sync)
            place.client.put(key, "3")
            event = changes.next(20)
            assert isinstance(event, Event)
            assert event.record is not None
            assert event.record.text == "3"
    with pytest.raises(NotAllowed):
        place.client.put("other/tea", "3")
    with pytest.raises(Unauthenticated):
        place_of(service, "cache/").client.get(key)
    assert place_of(f"{service}&login={login}&timeout=20", "cache/").client is place.client
    place.client.close()
    protected.close()


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("kvstore://127.0.0.1", "cache/"),
        ("kvstore://127.0.0.1:5555/", "cache/"),
        ("kvstore://127.0.0.1/a%20b/c/", "a b/c/"),
    ],
)
def test_the_path_is_the_prefix(url: str, prefix: str) -> None:
    assert place_of(url, "cache/").prefix == prefix


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("http://127.0.0.1:5000/cache", r"'http://127.0.0.1:5000/cache' .*/PREFIX\[\?login=.*native client"),
        ("kvstore://127.0.0.1/cache?color=red", "'color'"),
        ("kvstore://shop:secret@127.0.0.1/cache", "'kvstore://…@127.0.0.1/cache'.* no passwords"),
        ("cache", "'cache' .* kvstore://HOST"),
        ("kvstore://127.0.0.1/cache?timeout=0", "'kvstore://.* timeout is .* not 0"),
        ("kvstore://127.0.0.1/cache?connections=0", "'kvstore://.* connections is .* not 0"),
        ("kvstore://127.0.0.1/cache?login=/no/file", "'kvstore://.* no login file '/no/file'"),
        ("kvstore://127.0.0.1/%ff", "'kvstore://127.0.0.1/%ff' is not"),
        ("kvstore://127.0.0.1/a%00", "'kvstore://127.0.0.1/a%00' is not .* NUL"),
    ],
)
def test_another_kind_of_address_is_refused_at_once(url: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        place_of(url, "cache/")


def test_several_addresses_are_refused_at_once() -> None:
    several: Any = ["kvstore://a", "kvstore://b"]
    with pytest.raises(TypeError, match="one text, not a list"):
        place_of(several, "cache/")


@pytest.mark.parametrize("name", ["a" * 600, "\ud800", "a\0b"])
def test_a_name_that_no_key_may_have_gets_one(name: str) -> None:
    key = key_below("cache/", name)
    assert key.startswith("cache/sha256-")
    assert key == key_below("cache/", name) != key_below("cache/", name + "x")
