"""A key or value that went in over one surface comes out of every other one as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvstore_core.errors import ERRORS, EXIT_USAGE, KvError
from kvstore_core.limits import MAX_KEY_BYTES
from support.servers import Service
from support.session import call, kv_path
from support.streams import open_stream
from support.surfaces import CommandSurface, HttpSurface, NativeSurface, Surface, kvstore

MIB = 1024 * 1024

PLANES = [f"plane {plane}: {chr(plane * 0x10000 + 0x1234)}" for plane in range(17)]
ADDRESSES = [
    *("/", "//", "/a//b/", ".", "..", "./a", "a/../b", "a/..", "a/.", "%", "%2F", "%2f%2F", "%25", "%2525"),
    *("%zz", "?", "a?b=c", "#", "a#b", "&", "a=b&c=d", " ", " a ", "a b", "+", "a+b", ";v=1", ":", "a:b@c"),
    *("\\", "'", '"', "`", "$HOME", "*", "~", "|", "<script>", "{key}", "[0]", "^"),
]
ODDITIES = [
    *("-", "--json", "-n 1", "@file", "\t", "\n", "\r\n", "a\nb", "\x01", "\x7f", "\u0080", "\ufeff"),
    *("é", "e\u0301", "ﬀ", "ß", "İ", "日本語", "עברית", "👩‍👩‍👧", "\ufffd", "\uffff", "\U0010ffff"),
    *("null", "0", "all", "v1", "heartbeat"),
]
LONGEST = ["k" * MAX_KEY_BYTES, "/" * MAX_KEY_BYTES, "😀" * 127 + "abc"]
KEYS = [*PLANES, *ADDRESSES, *ODDITIES, *LONGEST]


@pytest.fixture(scope="module")
def surfaces(shared_service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Surface]]:
    """Every way in to the shared service."""
    native = NativeSurface(shared_service.requests)
    folder = tmp_path_factory.mktemp("command")
    with native.client:
        yield [native, HttpSurface(shared_service.url), CommandSurface(shared_service.url, folder)]


@pytest.mark.parametrize("key", KEYS, ids=ascii)
def test_every_key_is_the_same_on_every_surface(key: str, surfaces: list[Surface]) -> None:
    for number, writer in enumerate(surfaces):
        value = f"{key} by {number}".encode()
        writer.put(key, value)
        for reader in surfaces:
            # a command asks the service over HTTP: once is enough for what another surface wrote
            if number != 1 or not isinstance(reader, CommandSurface):
                assert reader.get(key) == value, (writer, reader)


def test_every_key_is_the_same_in_lists_and_streams(shared_service: Service, surfaces: list[Surface]) -> None:
    prefix = "listed:"
    fitting = [key for key in KEYS if len((prefix + key).encode()) <= MAX_KEY_BYTES]
    for key in fitting:
        surfaces[0].put(prefix + key, b"v")
    expected = sorted((prefix + key for key in fitting), key=str.encode)
    page = call(shared_service.url, "GET", f"/v1/kv?prefix={prefix}&limit=1000").json
    assert [item["key"] for item in page["items"]] == expected
    with closing(open_stream(shared_service.url, f"prefix={prefix}&snapshot=1")) as stream:
        events = iter(stream)
        assert [next(events).json["key"] for _ in expected] == expected
        assert next(events).name == "sync"


@pytest.mark.parametrize(
    "key", ["k" * (MAX_KEY_BYTES + 1), "😀" * 128, ""], ids=["512", "512 of emoji", "empty"]
)
def test_a_key_out_of_bounds_is_refused_alike(key: str, shared_service: Service, tmp_path: Path) -> None:
    # an empty key is wrong usage to the command; how long one may be is the service's to say
    check_refused(shared_service, tmp_path, key, b"v", "invalid_key", None if key else EXIT_USAGE)


def check_refused(
    service: Service, folder: Path, key: str, value: bytes, code: str, status: int | None = None
) -> None:
    """A put is refused with the same error everywhere; ``status`` is the command's if not the table's."""
    row = ERRORS[code]
    native = NativeSurface(service.requests)
    with native.client, pytest.raises(KvError) as refused:
        native.put(key, value)
    assert refused.value.code == row.code
    answer = call(service.url, "PUT", kv_path(key), value)
    assert (answer.status, answer.json["code"]) == (row.status, row.code)
    done = kvstore(service.url, folder, "put", "--", key, "-", stdin=value)
    assert done.returncode == (status or row.exit), done


def test_a_key_that_is_no_text_is_refused_and_harms_nothing(shared_service: Service, tmp_path: Path) -> None:
    row = ERRORS["invalid_key"]
    for path in ("/v1/kv/%FF", "/v1/kv/a%00b", "/v1/kv/%ED%A0%80"):
        answer = call(shared_service.url, "PUT", path, b"v")
        assert (answer.status, answer.json["code"]) == (row.status, row.code), path
    done = kvstore(shared_service.url, tmp_path, "put", "--", b"\xff", "v")
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr


VALUES = {
    "empty": b"",
    "every byte": bytes(range(256)),
    "newlines": b"\n\r\n\n",
    "no end of line": b"a",
    "JSON": b'{"key": "value"}',
    "looks like base64": b"AAAA",
    "1 MiB": random.Random(1).randbytes(MIB),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_every_value_is_the_same_on_every_surface(value: bytes, surfaces: list[Surface]) -> None:
    for number, writer in enumerate(surfaces):
        writer.put(f"value {number}", value)
        for reader in surfaces:
            assert reader.get(f"value {number}") == value


def test_a_value_of_one_byte_more_is_refused_alike(shared_service: Service, tmp_path: Path) -> None:
    check_refused(shared_service, tmp_path, "too large", b"x" * (MIB + 1), "value_too_large")
    assert call(shared_service.url, "GET", kv_path("too large")).status == 404
