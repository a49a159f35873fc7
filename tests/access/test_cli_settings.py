"""What the options of access mean together: whether it is on, and where the service may listen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvstore_cli.config.resolve import Configuration, ConfigurationError, resolve


def configured(*parts: str, **flags: Any) -> Configuration:
    return resolve(
        {name.replace("_", "-"): value for name, value in flags.items()},
        *(parts or ("daemon", "http")),
        environ={"KVSTORE_CONFIG": "/dev/null"},
    )


def test_access_is_off_until_something_says_who_may_come_in(tmp_path: Path) -> None:
    data = str(tmp_path)
    daemon, http = configured(data=data).service_settings()
    assert (daemon.access, http.access, http.facade_key_file) == ("off", "off", None)
    for name in ("access_file", "admin_token_file"):
        daemon, http = configured(data=data, **{name: "/x"}).service_settings()
        assert daemon.access == http.access == "required"
    (tmp_path / "access.json").symlink_to(tmp_path / "away")  # what a volume left behind is there, too
    daemon, http = configured(data=data).service_settings()
    assert (daemon.access, http.access) == ("required", "required")
    assert http.facade_key_file == f"{data}/facade.key"


@pytest.mark.parametrize("name", ["access.json", "access.key", "facade.key", "admin.token"])
def test_a_file_that_is_lost_does_not_turn_access_off(tmp_path: Path, name: str) -> None:
    """Whichever of the files is left."""
    (tmp_path / name).touch()
    daemon, http = configured(data=str(tmp_path)).service_settings()
    assert (daemon.access, http.access) == ("required", "required")


@pytest.mark.parametrize("access", ["required", "off"])
def test_access_can_be_set_whatever_is_there(tmp_path: Path, access: str) -> None:
    for _ in range(2):
        daemon, http = configured(data=str(tmp_path), access=access).service_settings()
        assert (daemon.access, http.access) == (access, access)
        (tmp_path / "access.json").touch()


def test_a_facade_on_its_own_goes_by_its_key() -> None:
    assert configured("http").http_settings().access == "off"
    settings = configured("http", facade_key_file="/k").http_settings()
    assert (settings.access, settings.facade_key_file) == ("required", "/k")
    settings = configured("http", facade_key_file="/k", access="off").http_settings()
    assert (settings.access, settings.facade_key_file) == ("off", None)
    with pytest.raises(ConfigurationError, match="--facade-key-file"):
        configured("http", access="required").http_settings()


def test_a_facade_that_is_given_an_empty_login_file_has_no_key(tmp_path: Path) -> None:
    """A unit always names the file; systemd writes an empty one where the daemon has made no key."""
    file = tmp_path / "facade.key"
    file.touch(0o600)
    file.write_text("{}")
    assert configured("http", facade_key_file=str(file)).http_settings().access == "off"
    required = configured("http", facade_key_file=str(file), access="required").http_settings()
    assert (required.access, required.facade_key_file) == ("required", str(file))
    for other in ("", "no JSON", '{"*": {}}'):
        file.write_text(other)
        assert configured("http", facade_key_file=str(file)).http_settings().access == "required"


@pytest.mark.parametrize(
    ("name", "address"),
    [("http", "0.0.0.0:5000"), ("requests", "tcp://*:5555"), ("changes", "tcp://[::]:5556")],
)
def test_beyond_loopback_without_access_is_refused_with_both_ways_out(
    tmp_path: Path, name: str, address: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"--access required,.*--allow-anonymous"):
        configured(data=str(tmp_path), **{name: address}).service_settings()


def test_with_access_zeromq_may_listen_anywhere(tmp_path: Path) -> None:
    addresses = {"requests": "tcp://*:5555", "changes": "tcp://*:5556"}
    daemon, _ = configured(data=str(tmp_path), access="required", **addresses).service_settings()
    assert daemon.requests == "tcp://*:5555"


@pytest.mark.parametrize("allowed", [False, True])
def test_tokens_do_not_cross_a_network_unless_told(tmp_path: Path, allowed: bool) -> None:
    """--allow-anonymous is about access that is off, and says nothing of tokens."""
    flags = {"data": str(tmp_path), "access": "required", "http": "0.0.0.0:5000", "allow_anonymous": allowed}
    with pytest.raises(ConfigurationError, match=r"tokens would cross.*--plain-http"):
        configured(**flags).service_settings()
    _, http = configured(**flags, plain_http=True).service_settings()
    assert http.http == "0.0.0.0:5000"
