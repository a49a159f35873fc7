"""Sizes, durations and addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_cli.config import option_values
from kvstore_cli.config.options import OPTIONS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("512k", 524288),
        ("1MiB", 1048576),
        ("1 mib", 1048576),
        ("2g", 2**31),
        ("1kB", 1000),
        ("3MB", 3000000),
        ("1.5KiB", 1536),
        ("12b", 12),
        ("1TiB", 2**40),
    ],
)
def test_a_size_reads_as_in_coreutils(text: str, size: int) -> None:
    assert option_values.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "1x", "-1", "1.2b", "1e3", "0x10", "1 M i B", "٣", True, None])
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r"1MiB|whole number of bytes"):
        option_values.parse_size(text)


@given(st.integers(0, 2**62))
def test_a_shown_size_reads_as_the_same_size(size: int) -> None:
    assert option_values.parse_size(option_values.show_size(size)) == size


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("30", 30000),
        (30, 30000),
        ("30s", 30000),
        ("500ms", 500),
        ("5m", 300000),
        ("2h", 7200000),
        ("7d", 604800000),
        ("1w", 604800000),
        ("0.5", 500),
        ("1.5h", 5400000),
        (0.25, 250),
    ],
)
def test_a_duration_counts_seconds_unless_it_has_a_unit(text: object, ms: int) -> None:
    assert option_values.parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "s", "-1s", "1h30m", "0.5ms", "1 y", True])
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match=r"30s|whole number of milliseconds"):
        option_values.parse_duration(text)


@given(st.integers(0, 2**50))
def test_a_shown_duration_reads_as_the_same_duration(ms: int) -> None:
    assert option_values.parse_duration(option_values.show_duration(ms)) == ms


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:5000",
        "localhost:0",
        "[::1]:5000",
        "127.8.8.8:1",
        "tcp://127.0.0.1:5555",
        "ipc:///tmp/x",
        "tcp://[::1]:5555",
    ],
)
def test_loopback_is_recognised(address: str) -> None:
    assert option_values.is_local(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:5000",
        ":5000",
        "*:5000",
        "[::]:5000",
        "example.org:80",
        "192.168.1.1:1",
        "tcp://*:5555",
        "tcp://0.0.0.0:1",
        "tcp://eth0:5555",
        "localhost.example.org:1",
    ],
)
def test_what_may_be_reached_from_elsewhere_is_not_loopback(address: str) -> None:
    assert not option_values.is_local(address)


@pytest.mark.parametrize("address", ["", "5000", "host:", "host:x", "host:65536", "::1:5000", "host:80 "])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        option_values.parse_address(address)


@pytest.mark.parametrize(
    "endpoint", ["", "tcp://", "tcp://x", "udp://x:1", "127.0.0.1:5555", "ipc://", "tcp://:1"]
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="tcp://HOST:PORT"):
        option_values.parse_endpoint(endpoint)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:5000", "http://"),
        ("ftp://x", "http://"),
        ("http://", "http://"),
        ("http://u:p@h", "user"),
        ("http://h/?q", "http://"),
        ("http://h:99999", "http://"),
        ("http://h:x", "http://"),
    ],
)
def test_what_is_no_service_address_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        option_values.parse_url(url)


def test_a_service_address_may_have_a_path_and_ends_in_no_slash() -> None:
    assert option_values.parse_url("https://example.org/stores/a/") == "https://example.org/stores/a"


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_shown_default_reads_as_the_default(name: str) -> None:
    row = OPTIONS[name]
    value = row.default_value()
    if value not in (None, ()):
        assert row.kind.parse(row.kind.show(value)) == value
