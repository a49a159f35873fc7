"""The command in surroundings that are not its own: variables of others, no home, another user."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvstore_cli.config.options import CONFIG, OPTIONS
from kvstore_cli.config.resolve import ConfigurationError, resolve
from support.servers import Service, kvstore_command

pytestmark = pytest.mark.slow

Kvstore = Any
NOBODY = 3_141_592  # no such user


def of_kubernetes(service: str) -> dict[str, str]:
    """What Kubernetes sets in each container for a Service of that name with two ports."""
    name = service.upper().replace("-", "_")
    found = {
        f"{name}_SERVICE_HOST": "10.0.171.239",
        f"{name}_SERVICE_PORT": "5000",
        f"{name}_SERVICE_PORT_HTTP": "5000",
        f"{name}_SERVICE_PORT_REQUESTS_2": "5555",
        f"{name}_PORT": "tcp://10.0.171.239:5000",
    }
    for port, protocol in ((5000, "tcp"), (5555, "tcp"), (53, "udp"), (9, "sctp")):
        front = f"{name}_PORT_{port}_{protocol.upper()}"
        found |= {
            front: f"{protocol}://[fd00::1]:{port}",
            f"{front}_PROTO": protocol,
            f"{front}_PORT": str(port),
            f"{front}_ADDR": "fd00::1",
        }
    return found


def of_docker(alias: str) -> dict[str, str]:
    """What ``docker run --link other:ALIAS`` sets besides."""
    name = alias.upper().replace("-", "_")
    return {
        f"{name}_NAME": f"/app/{alias}",
        f"{name}_ENV_KVSTORE_DATA": "/data",
        f"{name}_ENV_PATH": "/bin\n/usr/bin",
        f"{name}_PORT_5000_TCP_START": "tcp://172.17.0.2:5000",
    }


SERVICES = ["kvstore", *(f"kvstore-{name}" for name in ("http", "requests", "url", "data", "a-b", "service"))]


@pytest.mark.parametrize("service", SERVICES)
def test_what_kubernetes_docker_and_exec_set_is_let_be(
    service: str, capfd: pytest.CaptureFixture[str]
) -> None:
    of_exec = {"KVSTORE_EVENT_KEY": "k"}
    resolve({}, "client", environ={**of_kubernetes(service), **of_docker(service), **of_exec})
    assert capfd.readouterr().err == ""


def test_no_option_has_a_name_that_they_could_set() -> None:
    ends = tuple(name.removeprefix("X") for name in {**of_kubernetes("x"), **of_docker("x")})
    for option in (*OPTIONS.values(), CONFIG):
        assert not option.variable.endswith(ends)


@pytest.mark.parametrize(
    ("variable", "value", "meant"),
    [
        ("KVSTORE_HTTP_PORT", "8080", "KVSTORE_HTTP"),
        ("KVSTORE_REQUESTS_PORT", "5555", "KVSTORE_REQUESTS"),
        ("KVSTORE_ULR", "http://127.0.0.1:1", "KVSTORE_URL"),
        ("KVSTORE_CONFIGURATION", "x.toml", "KVSTORE_CONFIG"),
        ("KVSTORE_RETAIN_EVENT", "1", "KVSTORE_RETAIN_EVENTS"),
        ("KVSTORE_SYNC_INTERVAL_MS", "1", "KVSTORE_SYNC_INTERVAL"),
        ("KVSTORE_DATA_NAME", "mine", "KVSTORE_DATA"),
        ("KVSTORE_MAX_VALUE", "5", "KVSTORE_MAX_VALUE_BYTES"),
    ],
)
def test_who_means_an_option_is_told_also_where_the_name_could_be_of_others(
    variable: str, value: str, meant: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"{variable} is not an option; did you mean {meant}\?"):
        resolve({}, "client", environ={variable: value})


def test_a_variable_that_is_like_no_option_is_named_and_stops_nothing(kvstore: Kvstore) -> None:
    kvstore.out("put", "env/a", "1")
    done = kvstore("get", "env/a", env={"KVSTORE_PRT": "1", "KVSTORE_UNUSED": ""})
    assert done.stdout == b"1\n"
    said = done.stderr.decode()
    assert "KVSTORE_PRT is not an option and has no effect" in said
    assert "UNUSED" not in said


# ── where the service is ─────────────────────────────────────────────────────────────────────────


def url_of(environ: dict[str, str], file: Path | None = None, **flags: Any) -> tuple[str, str]:
    """The address that the commands ask, and where it came from."""
    named = {} if file is None else {"KVSTORE_CONFIG": str(file)}
    (setting,) = (
        s for s in resolve(flags, "client", environ={**named, **environ}).settings() if s.option.name == "url"
    )
    return setting.value, setting.origin


def test_the_address_follows_the_service_unless_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "kvstore.toml"
    file.write_text('http = "127.0.0.1:27000"\n')
    assert url_of({}, file) == ("http://127.0.0.1:27000", f"http, file {file}")
    moved = {"KVSTORE_HTTP": "127.0.0.1:27001"}
    assert url_of(moved, file) == ("http://127.0.0.1:27001", "http, variable KVSTORE_HTTP")
    file.write_text('http = "127.0.0.1:27000"\nurl = "http://kv:1"\n')
    assert url_of(moved, file) == ("http://kv:1", f"file {file}")
    named = {**moved, "KVSTORE_URL": "http://kv:2"}
    assert url_of(named, file) == ("http://kv:2", "variable KVSTORE_URL")
    assert url_of(named, file, url="http://kv:3") == ("http://kv:3", "flag --url")


@pytest.mark.parametrize(
    ("http", "url"),
    [
        ("0.0.0.0:27000", "http://127.0.0.1:27000"),
        (":27000", "http://127.0.0.1:27000"),
        ("*:27000", "http://127.0.0.1:27000"),
        ("[::]:27000", "http://[::1]:27000"),
        ("[::1]:27000", "http://[::1]:27000"),
        ("kv.example:80", "http://kv.example:80"),
        ("127.0.0.1:0", "http://127.0.0.1:5000"),
    ],
)
def test_an_address_to_listen_on_is_one_to_ask(http: str, url: str) -> None:
    assert url_of({"KVSTORE_HTTP": http})[0] == url


def test_the_commands_ask_the_service_of_the_same_file(
    offline: Kvstore, shared_service: Service, tmp_path: Path
) -> None:
    config = tmp_path / ".config" / "kvstore" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'http = "{shared_service.url.removeprefix("http://")}"\n')
    offline.out("put", "by-http", "1")
    assert offline.out("get", "by-http") == b"1\n"
    assert offline.out("ping") == f"{shared_service.url} is ready\n".encode()


# ── without a home ───────────────────────────────────────────────────────────────────────────────


def bare(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command run by a user who is not in the list of users, with nothing but ``environment``."""
    program = kvstore_command(*arguments)
    if os.geteuid() == 0:
        program = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *program]
    elif "HOME" not in environment:
        pytest.skip("only root can run a command as nobody that the system knows")
    return subprocess.run(
        program, env=environment, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


@pytest.mark.parametrize(
    "environment",
    [{}, {"HOME": ""}, {"HOME": "/nonexistent"}, {"HOME": "/dev/null"}, {"HOME": "/root"}, {"HOME": "~"}],
    ids=str,
)
def test_a_home_is_not_needed_to_ask_a_service(
    environment: dict[str, str], kvstore: Kvstore, shared_service: Service
) -> None:
    kvstore.out("put", "homeless", "1")
    done = bare("get", "homeless", "--url", shared_service.url, folder=Path("/"), **environment)
    assert (done.stdout, done.stderr) == (b"1\n", b"")


@pytest.mark.parametrize(
    "arguments", [["serve"], ["daemon"], ["check"], ["backup", "-"], ["config", "check"]]
)
def test_without_a_home_the_data_folder_has_to_be_named(arguments: list[str]) -> None:
    done = bare(*arguments, folder=Path("/"))
    assert done.returncode == 2
    assert done.stderr == b"kvstore: there is no home folder to keep data in; name a folder with --data\n"


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["get", "--help"], ["config", "show"], ["completion", "bash"], ["completion", "zsh"]],
    ids=" ".join,
)
def test_what_asks_nobody_needs_no_home(arguments: list[str]) -> None:
    done = bare(*arguments, folder=Path("/"))
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", [["get", "a", "--config", "~/x"], ["serve", "--data", "~/x"]])
def test_a_tilde_leads_nowhere_without_a_home(arguments: list[str]) -> None:
    done = bare(*arguments, folder=Path("/"))
    assert done.returncode == 2
    assert "you have no home folder; write a path that begins with /" in done.stderr.decode()


def test_a_file_of_options_that_is_there_and_closed_is_said(tmp_path: Path) -> None:
    config = tmp_path / ".config" / "kvstore" / "config.toml"
    config.parent.mkdir(parents=True)
    config.touch(mode=0o000)
    for folder in config.parents[:-2]:
        folder.chmod(folder.stat().st_mode | 0o011)
    done = bare("get", "a", folder=Path("/"), HOME=str(tmp_path))
    assert done.returncode == 2
    assert f"{config} cannot be read: Permission denied" in done.stderr.decode()


def test_a_working_folder_that_is_gone_is_not_needed(kvstore: Kvstore, tmp_path: Path) -> None:
    kvstore.out("put", "adrift", "1")
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'rmdir "$PWD"; "$0" get adrift && "$0" get adrift --config kvstore.toml'
    command = ["sh", "-c", script, *kvstore_command()]
    done = subprocess.run(command, cwd=gone, env=kvstore.environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"1\n")
    assert "the working folder is gone" in done.stderr.decode()


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.ISO-8859-1", "nonsense"])
@pytest.mark.parametrize("mode", [{}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=str)
def test_keys_are_utf8_in_every_locale(kvstore: Kvstore, locale: str, mode: dict[str, str]) -> None:
    environment = {**mode, "LC_ALL": locale}
    done = kvstore("put", "ключ/é", "wert/ß", env=environment)
    assert done.returncode == 0, done.stderr.decode()
    done = kvstore("get", "ключ/é", "nö", "--default", "ä", env=environment)
    assert done.stdout.decode() == "ключ/é\twert/ß\nnö\tä\n"
    assert kvstore.out("list", "ключ") == "ключ/é\n".encode()
