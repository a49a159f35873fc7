"""``kvstore serve`` with access on: it decides for both parts, hands on no secret, says how to come in."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from kvstore_core.access.tokens import new_token
from support.command_line import CommandLine
from support.servers import Serve, children, run_kvstore, wait_until

StartServe = Callable[..., Serve]


def processes(pid: int) -> list[int]:
    """A process and all that are below it."""
    return [pid, *(below for child in children(pid) for below in processes(child))]


def secrets_of(data: Path) -> list[bytes]:
    keys = json.loads((data / "access.key").read_text())
    texts = [text for name, text in keys.items() if "public" not in name]
    return [text.encode() for text in (*texts, (data / "admin.token").read_text().strip())]


def test_the_first_start_makes_an_admin_and_shows_no_secret(start_serve: StartServe, tmp_path: Path) -> None:
    service = start_serve(access="required", workers=1, log_level="debug")
    line = CommandLine(tmp_path, service.url)
    assert line("get", "k").returncode == 5
    # beside the service nothing has to be named
    line.environment["KVSTORE_DATA"] = str(service.data)
    line.out("put", "k", "1")
    wait_until(lambda: "TOKEN=$(cat " in service.stderr, what="how to come in")
    for name in ("access.json", "access.key", "facade.key", "admin.token"):
        assert stat.S_IMODE((service.data / name).stat().st_mode) == 0o600
    secrets = secrets_of(service.data)
    assert len(secrets) == 4
    for pid in processes(service.pid):
        for file in ("cmdline", "environ"):
            text = Path(f"/proc/{pid}/{file}").read_bytes()
            assert not any(secret in text for secret in secrets), (pid, file)
    assert not any(secret.decode() in service.stderr for secret in secrets)


def test_once_there_are_identities_access_stays_on(start_serve: StartServe, tmp_path: Path) -> None:
    service = start_serve(workers=1)
    line = CommandLine(tmp_path, service.url)
    line.out("put", "k", "1")
    made = line("token", "create", "ci", "--grant", "read:k", "--data", str(service.data))
    assert b"from its next start on" in made.stderr
    line.out("get", "k")
    service.restart()
    line.environment["KVSTORE_URL"] = service.url
    assert line("get", "k").returncode == 5
    line.environment["KVSTORE_TOKEN"] = made.stdout.decode().strip()
    assert line.out("get", "k") == b"1\n"
    assert line("put", "k", "2").returncode == 5
    assert "admin.token" not in [each.name for each in service.data.iterdir()]


def test_an_operator_may_bring_the_admins_token(start_serve: StartServe, tmp_path: Path) -> None:
    token = new_token().text
    (tmp_path / "secret").write_text(token + "\n")
    service = start_serve(admin_token_file=str(tmp_path / "secret"), workers=1)
    line = CommandLine(tmp_path, service.url)
    line.environment["KVSTORE_TOKEN_FILE"] = str(tmp_path / "secret")
    made = line.out("token", "create", "ci", "--grant", "rw:app/").decode().strip()
    line.environment["KVSTORE_TOKEN_FILE"] = ""
    line.environment["KVSTORE_TOKEN"] = made
    line.out("put", "app/x", "1")
    kept = "".join(file.read_text() for file in service.data.glob("a*.*"))
    assert token[12:] not in kept
    assert "TOKEN=$(cat" not in service.stderr


def test_what_the_guide_shows_works(start_serve: StartServe, tmp_path: Path) -> None:
    service = start_serve(access="required", workers=1)
    wait_until(lambda: "ZeroMQ " in service.stderr, what="the guide")
    guide = service.stderr
    script = re.findall(r"^ +\w+ +(TOKEN=.*|curl -H.*hello)$", guide, re.MULTILINE)
    shell = re.findall(r"^ +(?:shell)? +(export .*|kvstore (?:put|get) greeting.*)$", guide, re.MULTILINE)
    assert (len(script), len(shell)) == (2, 3)
    environment = CommandLine(tmp_path, None).environment
    done = subprocess.run(
        ["sh", "-ec", "\n".join([*script, *shell])], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("hello\n")


def test_a_facade_without_its_key_says_what_to_do(tmp_path: Path) -> None:
    environment = CommandLine(tmp_path, None).environment
    done = run_kvstore("http", "--access", "required", env=environment)
    assert done.returncode == 2
    assert b"--facade-key-file" in done.stderr
