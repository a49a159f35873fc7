"""The one table of options, how a value is found, and how it is written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_cli.config import option_values
from kvstore_cli.config.options import CONFIG, OPTIONS, options_of
from kvstore_cli.config.resolve import Configuration, ConfigurationError, resolve
from kvstore_daemon.settings import DaemonSettings
from kvstore_http.settings import HttpSettings
from support.command_line import CommandLine

PARTS = ("daemon", "http", "client", "stream")

# Something else than the default, as text for flag and variable, for each option.
OTHERS: dict[str, Any] = {
    "data": "/srv/kvstore",
    "engine": "other:x",
    "sync": "none",
    "requests": "tcp://127.0.0.1:1",
    "changes": "ipc:///tmp/changes",
    "http": "127.0.0.1:1",
    "evict-prefix": "cache/,seen/",
    "cors-origins": "https://a.example,https://b.example",
    "allowed-hosts": "kv.example,kv2.example",
    "access": "required",
    "access-file": "/etc/kvstore/access.json",
    "admin-token-file": "/run/secrets/admin",
    "facade-key-file": "/run/secrets/facade.key",
    "plain-http": "1",
    "token-file": "/run/secrets/token",
    "tls-cert": "/etc/kvstore/tls.crt",
    "tls-key": "/etc/kvstore/tls.key",
    "allow-anonymous": "1",
    "log-level": "debug",
    "log-format": "json",
    "access-log": "on",
    "url": "https://kv.example",
    "ca-file": "/etc/ca.pem",
}


def other(name: str) -> str:
    """A value that is not the default."""
    by_unit = {"bytes": "2MiB", "duration": "123s", "count": "77"}
    return str(OTHERS.get(name) or by_unit[OPTIONS[name].kind.unit])


def found(name: str, *, flags: dict[str, Any] | None = None, env: dict[str, str] | None = None) -> Any:
    """Value and origin of an option."""
    configuration = resolve(flags or {}, *PARTS, environ=env or {})
    return next((s.value, s.origin) for s in configuration.settings() if s.option.name == name)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)


def toml_file(folder: Path, text: str) -> str:
    """A configuration file with ``text``."""
    path = folder / "kvstore.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(("part", "settings"), [("daemon", DaemonSettings), ("http", HttpSettings)])
def test_each_setting_is_an_option_and_each_option_a_setting(part: str, settings: type) -> None:
    fields = {field.name for field in dataclasses.fields(settings)}
    assert {row.field for row in options_of(part)} == fields


@pytest.mark.parametrize("name", list(OPTIONS))
def test_each_option_says_what_follows_from_it(name: str) -> None:
    row = OPTIONS[name]
    assert row.consequence.endswith(".")
    assert row.parts
    assert row.shown_default()


@pytest.mark.parametrize("name", list(OPTIONS))
def test_flag_wins_over_variable_over_file_over_default(name: str, tmp_path: Path) -> None:
    row = OPTIONS[name]
    value = row.kind.parse(other(name))
    path = toml_file(tmp_path, f"{name} = {json.dumps(other(name))}\n")
    in_file = {"KVSTORE_CONFIG": path}
    assert found(name) == (row.default_value(), "default")
    assert found(name, env=in_file) == (value, f"file {path}")
    assert found(name, env={**in_file, row.variable: other(name)}) == (value, f"variable {row.variable}")
    assert found(name, flags={name: value}, env={**in_file, row.variable: "?"}) == (value, f"flag {row.flag}")


@pytest.mark.parametrize("name", [name for name in OPTIONS if OPTIONS[name].kind.unit in ("bytes", "count")])
def test_numbers_may_stand_in_the_file_as_numbers(name: str, tmp_path: Path) -> None:
    number = OPTIONS[name].kind.parse(other(name))
    env = {"KVSTORE_CONFIG": toml_file(tmp_path, f"{name} = {number}\n")}
    assert found(name, env=env)[0] == number


def test_lists_and_truths_may_stand_in_the_file_as_such(tmp_path: Path) -> None:
    env = {"KVSTORE_CONFIG": toml_file(tmp_path, 'cors-origins = ["https://a"]\nallow-anonymous = true\n')}
    assert found("cors-origins", env=env)[0] == ("https://a",)
    assert found("allow-anonymous", env=env)[0] is True


@pytest.mark.parametrize("given", ["http://*.local", "https://a.example,https://*", "a.example", "null"])
def test_an_origin_is_given_in_full(given: str) -> None:
    with pytest.raises(ValueError, match=r"each in full, or \* alone for any"):
        OPTIONS["cors-origins"].kind.parse(given)
    assert OPTIONS["cors-origins"].kind.parse("http://a:1, *") == ("http://a:1", "*")


def test_a_flag_that_is_repeated_makes_a_list_and_only_a_variable_is_split_at_commas(tmp_path: Path) -> None:
    flags = ("--evict-prefix", "a/", "--evict-prefix", "b,c", "--evict-prefix=a/")
    shown = CommandLine(tmp_path, None)("config", "show", *flags)
    assert "evict-prefix\ta/,b,c\tflag --evict-prefix" in shown.stdout.decode().splitlines()
    assert found("evict-prefix", env={"KVSTORE_EVICT_PREFIX": "a/, b/"})[0] == ("a/", "b/")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"evict_prefix": ("a/",)}, "--evict-prefix needs --evict-bytes"),
        ({"evict_bytes": 2000}, "--evict-bytes needs --evict-prefix"),
        ({"evict_prefix": ("a/",), "evict_bytes": 2**40}, "more than half of --max-store-bytes 1 TiB"),
        ({"evict_prefix": ("a/",), "evict_bytes": 2000, "engine": "etcd://h"}, "for a store in a file"),
    ],
)
def test_a_cache_without_a_bound_or_beyond_what_can_be_kept_is_refused(
    flags: dict[str, Any], words: str
) -> None:
    given = {name.replace("_", "-"): value for name, value in flags.items()}
    with pytest.raises(ConfigurationError, match=words):
        resolve(given, "daemon", environ={}).daemon_settings()


def test_an_empty_variable_is_as_good_as_none() -> None:
    assert found("sync", env={"KVSTORE_SYNC": ""}) == ("always", "default")


def test_the_file_is_looked_for_in_the_xdg_config_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for home in (tmp_path / ".config", tmp_path / "xdg"):
        (home / "kvstore").mkdir(parents=True)
        (home / "kvstore" / "config.toml").write_text(f'data = "/from/{home.name}"\n')
    assert found("data")[0] == "/from/.config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert found("data")[0] == "/from/xdg"
    monkeypatch.setenv("XDG_CONFIG_HOME", "not/absolute")
    assert found("data")[0] == "/from/.config"


def test_the_data_folder_is_the_xdg_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("data")[0] == str(tmp_path / ".local/share/kvstore")
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg/data")
    assert found("data")[0] == "/xdg/data/kvstore"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("max_value_bytes = 5", "max-value-bytes"), ("htpp = ':1'", "http"), ("[sync]\nx = 1", "is a section")],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path, text: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=meant or "sync"):
        resolve({}, *PARTS, environ={"KVSTORE_CONFIG": toml_file(tmp_path, text)})


@pytest.mark.parametrize(
    "name", ["max-value-bytes", "retain-age", "workers", "sync", "http", "requests", "url"]
)
def test_a_value_that_cannot_be_read_is_refused_and_located(name: str, tmp_path: Path) -> None:
    row = OPTIONS[name]
    with pytest.raises(ConfigurationError, match=f"^{row.variable}: '\\?!'"):
        resolve({}, *PARTS, environ={row.variable: "?!"})
    path = toml_file(tmp_path, f'{name} = "?!"')
    with pytest.raises(ConfigurationError, match=f"kvstore.toml: {name}: '\\?!'"):
        resolve({}, *PARTS, environ={"KVSTORE_CONFIG": path})


def test_a_bad_value_of_another_part_does_not_stop_a_command() -> None:
    resolve({}, "client", environ={"KVSTORE_WORKERS": "many"})


def test_a_named_file_that_is_missing_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no configuration file /nowhere/x\.toml"):
        resolve({}, "client", environ={"KVSTORE_CONFIG": "/nowhere/x.toml"})


def test_a_file_that_is_not_toml_is_an_error_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is not TOML: .*line 2"):
        resolve({}, "client", environ={"KVSTORE_CONFIG": toml_file(tmp_path, "a = 1\nb\n")})


@pytest.mark.parametrize(
    ("name", "address"),
    [("http", "0.0.0.0:5000"), ("requests", "tcp://*:5555"), ("changes", "tcp://[::]:5556")],
)
def test_listening_beyond_loopback_needs_allow_anonymous(name: str, address: str) -> None:
    build = Configuration.http_settings if name == "http" else Configuration.daemon_settings
    with pytest.raises(ConfigurationError, match=rf"--{name} .*--allow-anonymous"):
        build(resolve({name: address}, "daemon", "http", environ={}))
    build(resolve({name: address}, "daemon", "http", environ={"KVSTORE_ALLOW_ANONYMOUS": "yes"}))


def test_the_facade_may_connect_to_a_daemon_elsewhere() -> None:
    configuration = resolve({"requests": "tcp://db.example:5555"}, "http", environ={})
    assert configuration.http_settings().requests == "tcp://db.example:5555"


def test_config_cannot_stand_in_the_file(tmp_path: Path) -> None:
    assert CONFIG.name not in OPTIONS
    with pytest.raises(ConfigurationError, match="config is not an option"):
        resolve({}, "client", environ={"KVSTORE_CONFIG": toml_file(tmp_path, 'config = "x"')})


@pytest.mark.parametrize(
    ("part", "whole"), [("max-value-bytes", "max-batch-bytes"), ("max-atomic-ops", "max-batch-ops")]
)
def test_a_limit_that_another_one_hides_is_refused(part: str, whole: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"--{part} is larger than --{whole}"):
        resolve({part: 5000, whole: 4000}, "daemon", environ={}).daemon_settings()


@pytest.mark.parametrize(
    ("flags", "ops"),
    [
        ({}, 10_000),
        ({"engine": "etcd://127.0.0.1:2379/kv"}, 100),
        ({"max-batch-ops": 500}, 500),
        ({"max-batch-ops": 500, "max-atomic-ops": 400}, 400),
        ({"engine": "etcd://127.0.0.1:2379/kv", "max-batch-ops": 500, "max-atomic-ops": 60}, 60),
    ],
    ids=str,
)
def test_an_atomic_batch_is_by_itself_as_large_as_the_rest_allows(flags: dict[str, Any], ops: int) -> None:
    assert resolve(flags, "daemon", environ={})["max-atomic-ops"] == ops


# ── values, as people write them ─────────────────────────────────────────────────────────────────


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


@given(st.integers(0, 2**50))
def test_a_shown_duration_reads_as_the_same_duration(ms: int) -> None:
    assert option_values.parse_duration(option_values.show_duration(ms)) == ms


HERE = ["127.0.0.1:5000", "localhost:0", "[::1]:5000", "127.8.8.8:1"]
HERE += ["tcp://127.0.0.1:5555", "tcp://[::1]:5555", "ipc:///tmp/x"]
ANYWHERE = ["0.0.0.0:5000", ":5000", "*:5000", "[::]:5000", "example.org:80", "192.168.1.1:1"]
ANYWHERE += ["tcp://*:5555", "tcp://0.0.0.0:1", "tcp://eth0:5555", "localhost.example.org:1"]


@pytest.mark.parametrize("address", [*HERE, *ANYWHERE])
def test_only_loopback_is_out_of_reach_of_other_machines(address: str) -> None:
    assert option_values.is_local(address) == (address in HERE)


REFUSED: dict[Callable[[Any], Any], tuple[str, list[Any]]] = {
    option_values.parse_size: (
        r"1MiB|whole number of bytes",
        ["", "k", "1x", "-1", "1.2b", "1e3", "0x10", "1 M i B", "٣", True, None],
    ),
    option_values.parse_duration: (
        r"30s|whole number of milliseconds",
        ["", "s", "-1s", "1h30m", "0.5ms", "1 y", True],
    ),
    option_values.parse_address: (
        "HOST:PORT",
        ["", "5000", "host:", "host:x", "host:65536", "::1:5000", "host:80 "],
    ),
    option_values.parse_endpoint: (
        "tcp://HOST:PORT",
        ["", "tcp://", "tcp://x", "udp://x:1", "127.0.0.1:5555", "ipc://", "tcp://:1"],
    ),
    option_values.parse_url: (
        "http://",
        [
            "localhost:5000",
            "ftp://x",
            "http://",
            "http://h/?q",
            "http://h:99999",
            "http://h:x",
            "http://a..b",
            "http://\udcff",
        ],
    ),
}


@pytest.mark.parametrize(
    ("parse", "given", "example"),
    [(parse, text, example) for parse, (example, texts) in REFUSED.items() for text in texts],
)
def test_what_cannot_be_read_is_refused_with_an_example(
    parse: Callable[[Any], Any], given: Any, example: str
) -> None:
    with pytest.raises(ValueError, match=example):
        parse(given)


def test_a_service_address_has_no_user() -> None:
    with pytest.raises(ValueError, match="user"):
        option_values.parse_url("http://u:p@h")


def test_a_service_address_may_have_a_path_and_ends_in_no_slash() -> None:
    assert option_values.parse_url("https://example.org/stores/a/") == "https://example.org/stores/a"


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_shown_default_reads_as_the_default(name: str) -> None:
    row = OPTIONS[name]
    value = row.default_value()
    if value not in (None, ()):
        assert row.kind.parse(row.kind.show(value)) == value
