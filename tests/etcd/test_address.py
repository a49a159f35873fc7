"""The address of a store in etcd, as ``--engine`` has it."""

from __future__ import annotations

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store.connection.address import EtcdAddress, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("etcd://h1", EtcdAddress(("h1:2379",))),
        ("etcd://h1/", EtcdAddress(("h1:2379",), b"/kvstore")),
        (
            "etcd://h1:1,10.0.0.2,H3.example:3/a/b/",
            EtcdAddress(("h1:1", "10.0.0.2:2379", "h3.example:3"), b"/a/b"),
        ),
        ("etcd://[::1]:4,[fd00::2]/p", EtcdAddress(("[::1]:4", "[fd00::2]:2379"), b"/p")),
        ("etcd://h/a%20b", EtcdAddress(("h:2379",), b"/a b")),
        (
            "etcd://h/p?ca=/c a.pem&cert=b.pem&key=k%26.pem&server-name=etcd",
            EtcdAddress(("h:2379",), b"/p", ca="/c a.pem", cert="b.pem", key="k&.pem", server_name="etcd"),
        ),
        (
            "etcd://localhost,127.0.0.2,[::1]?user=u&password-file=f",
            EtcdAddress(("localhost:2379", "127.0.0.2:2379", "[::1]:2379"), user="u", password_file="f"),  # noqa: S106
        ),
        (
            "etcd://h?user=u&password-file=f&ca=c",
            EtcdAddress(("h:2379",), user="u", password_file="f", ca="c"),  # noqa: S106
        ),
        ("etcd://h?quota=8GiB", EtcdAddress(("h:2379",), quota=8 * 1024**3)),
        ("etcd://h?quota=8589934592", EtcdAddress(("h:2379",), quota=8 * 1024**3)),
        ("etcd://h/key/keys/a.reply", EtcdAddress(("h:2379",), b"/key/keys/a.reply")),
    ],
)
def test_an_address_is_read(text: str, expected: EtcdAddress) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("etcd:", "begin with etcd://"),
        ("etcd://", "host is missing"),
        ("etcd:///p", "host is missing"),
        ("etcd://a,,b", "host is missing"),
        ("etcd://a,b,", "host is missing"),
        ("etcd://a, b", "not HOST or HOST:PORT"),
        ("etcd://a:", "not HOST or HOST:PORT"),
        ("etcd://a:x", "not HOST or HOST:PORT"),
        ("etcd://::1", "not HOST or HOST:PORT"),
        ("etcd://https://a:1", "not HOST or HOST:PORT"),
        ("etcd://[a]", "not an IPv6 address"),
        ("etcd://a:0", "1 to 65535"),
        ("etcd://a:70000", "1 to 65535"),
        ("etcd://a,b,A:2379", "twice"),
        ("etcd://a/b//c", "printable ASCII"),
        ("etcd://a/b%0a", "printable ASCII"),
        ("etcd://a/%ff", "printable ASCII"),
        ("etcd://a/ü", "printable ASCII"),
        ("etcd://a/b#c", "'#'"),
        ("etcd://a/" + 257 * "x", "256 bytes"),
        ("etcd://a/b/key", "has 'key' in it"),
        ("etcd://a/b/key/c/d", "has 'key' in it"),
        ("etcd://a/b/c/reply/d", "has 'reply' in it"),
        ("etcd://a/b/%77riter", "has 'writer' in it"),
        ("etcd://a?quota=much", "'much' is not a size"),
        ("etcd://a?quota=8", "less than 1 MiB"),
        ("etcd://a?user=x&password-file=y", "the password would go to a in clear"),
        ("etcd://localhost,10.0.0.1?user=x&password-file=y", "the password would go to 10.0.0.1 in clear"),
        ("etcd://a?tls=1", "no parameter 'tls', only ca, cert,"),
        ("etcd://a?ca=", "'ca' is empty"),
        ("etcd://a?ca", "'ca' is empty"),
        ("etcd://a?ca=x&ca=x", "'ca' is there twice"),
        ("etcd://a?ca=x&cert=y", "'cert' needs 'key'"),
        ("etcd://a?ca=x&key=y", "'key' needs 'cert'"),
        ("etcd://a?cert=x&key=y", "'cert' needs 'ca'"),
        ("etcd://a?user=x", "'user' needs 'password-file'"),
        ("etcd://a?password-file=x", "'password-file' needs 'user'"),
        ("etcd://a?server-name=x", "'server-name' needs 'ca'"),
    ],
)
def test_an_error_says_what_is_wrong_and_what_is_right(text: str, why: str) -> None:
    with pytest.raises(KvError) as caught:
        parse_address(text)
    assert caught.value.code == "bad_request"
    assert why in caught.value.message
    assert "etcd://host1:2379,host2:2379" in caught.value.message


@pytest.mark.parametrize(
    "text", ["etcd://user:hunter2@a:1", "etcd://a?password=hunter2", "etcd://a?user=hunter2&user=hunter2"]
)
def test_no_error_repeats_a_password(text: str) -> None:
    with pytest.raises(KvError) as caught:
        parse_address(text)
    assert "hunter2" not in caught.value.message


def test_what_is_logged_names_neither_user_nor_files() -> None:
    address = parse_address("etcd://h1,h2:3/p?ca=secret&user=secret&password-file=secret")
    assert address.redacted == "etcd://h1:2379,h2:3/p"
