"""``kvstore login``, ``logout`` and ``whoami`` against a service with a script."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore_core.access.tokens import new_token
from support.command_line import CommandLine
from support.scripted import Script, answer, chunks, problem, scripted
from support.servers import kvstore_command, wait_until
from support.terminal import Terminal

WHO = {"name": "ci", "grants": ["rw:app/"], "expires_at": "2027-01-31T12:00:00.000Z"}


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as script:
        script.plays = [answer(json.dumps(WHO).encode())]
        yield script


@pytest.fixture
def kvstore(script: Script, tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, script.url)


def login_file(kvstore: CommandLine) -> Path:
    return kvstore.folder / ".config/kvstore/login.json"


def entries(kvstore: CommandLine) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(login_file(kvstore).read_text())
    return found


def test_a_token_is_stored_once_the_service_knows_it(kvstore: CommandLine, script: Script) -> None:
    token = new_token().text
    done = kvstore("login", stdin=f"{token}\n".encode())
    assert done.returncode == 0
    assert done.stdout == b""
    assert b"as ci, granted rw:app/, until 2027-01-31" in done.stderr
    assert token.encode() not in done.stderr
    assert entries(kvstore) == {script.url: {"token": token}}
    assert stat.S_IMODE(login_file(kvstore).stat().st_mode) == 0o600
    assert stat.S_IMODE(login_file(kvstore).parent.stat().st_mode) == 0o700
    assert script.seen[0].target == "/v1/whoami"
    kvstore.out("whoami")
    assert [seen.headers["Authorization"] for seen in script.seen] == [f"Bearer {token}"] * 2


def test_the_token_that_is_entered_is_sent_and_no_other(kvstore: CommandLine, script: Script) -> None:
    entered, other = new_token().text, new_token().text
    done = kvstore("login", stdin=f"{entered}\n".encode(), env={"KVSTORE_TOKEN": other})
    assert b"KVSTORE_TOKEN is set, and wins" in done.stderr
    assert script.seen[0].headers["Authorization"] == f"Bearer {entered}"
    (kvstore.folder / "file").write_text(other)
    kvstore.out("login", "--token-file", "file")
    assert script.seen[1].headers["Authorization"] == f"Bearer {other}"
    assert entries(kvstore) == {script.url: {"token": other}}


def test_a_token_is_asked_for_without_an_echo(kvstore: CommandLine) -> None:
    token = new_token().text
    with Terminal(kvstore_command("login"), (80, 24), kvstore.environment, kvstore.folder) as terminal:
        wait_until(lambda: "Token for" in terminal.output, what="the prompt")
        terminal.type(f"{token}\n")
        assert terminal.wait() == 0
    assert token not in terminal.output
    assert entries(kvstore) != {}


@pytest.mark.parametrize("code", ["unauthenticated", "not_allowed"])
@pytest.mark.parametrize("words", [["wait", "k", "--exists"], ["subscribe", "--snapshot"]])
def test_one_who_follows_is_told_that_access_was_taken_away(
    kvstore: CommandLine, script: Script, words: list[str], code: str
) -> None:
    cursor = "7-0123456789abcdef"
    lines = (
        {"event": "sync", "revision": 5, "cursor": "5-0123456789abcdef"},
        {"event": "end", "code": code, "cursor": cursor},
    )
    stream = chunks(*(json.dumps(line).encode() + b"\n" for line in lines), end=True)
    script.plays = [stream, problem(code, detail="no more", request_id="r")]
    done = kvstore(*words)
    assert done.returncode == 5
    said = done.stderr.decode()
    assert f"access was taken away ({code}): no more" in said
    assert (f"go on with --since {cursor}" in said) is (words[0] == "subscribe")


def test_the_last_admin_of_a_service_is_not_taken_away_without_force(
    kvstore: CommandLine, script: Script
) -> None:
    row = {"grants": ["admin"], "created_at": "2026-01-01T00:00:00.000Z", "keys": []}
    tokens = [{"id": "00000001", "created_at": "2026-01-01T00:00:00.000Z"}]
    ended = {"expires_at": "2026-01-02T00:00:00.000Z"}
    rows = [{"name": "root", **row, "tokens": tokens}, {"name": "old", **row, **ended, "tokens": tokens}]
    script.plays = [answer(json.dumps({"identities": rows, **rows[0]}).encode())]  # the list, and the one
    for words in (["ungrant", "root", "admin"], ["revoke", "root"], ["revoke", "root", "--id", "00000001"]):
        done = kvstore("token", *words)
        assert done.returncode == 2
        assert b"root is the last admin" in done.stderr
    assert {each.method for each in script.seen} == {"GET"}
    kvstore.out("token", "revoke", "root", "--force")
    kvstore.out("token", "revoke", "old")
    assert [each.method for each in script.seen[-5:]] == ["GET", "DELETE", "GET", "GET", "DELETE"]


def test_what_the_service_refuses_is_not_stored(kvstore: CommandLine, script: Script) -> None:
    token = new_token().text
    script.plays = [problem("unauthenticated", detail="not known here", request_id="r")]
    done = kvstore("login", stdin=f"{token}\n".encode())
    assert done.returncode == 5
    assert b"(the token is from the input)" in done.stderr
    assert not login_file(kvstore).exists()
    seen = len(script.seen)
    for text, said in (
        ("", b"there is no token in the input;"),
        (token[:-1], b"there is no token of kvstore, or a mistyped or cut off one, in the input;"),
        ("hunter2", b"there is no token of kvstore"),
    ):
        done = kvstore("login", stdin=f"{text}\n".encode())
        assert done.returncode == 5
        assert said in done.stderr
    assert len(script.seen) == seen


def test_nothing_is_stored_where_nobody_is_asked(kvstore: CommandLine, script: Script) -> None:
    script.plays = [answer(b'{"access": false, "name": "", "grants": []}')]
    done = kvstore("login", stdin=f"{new_token().text}\n".encode())
    assert done.returncode == 1
    assert b"access is off" in done.stderr
    assert not login_file(kvstore).exists()
    assert b"access is off" in kvstore.out("whoami")


def test_a_login_over_plain_http_has_to_be_told_and_is_remembered(kvstore: CommandLine) -> None:
    token = new_token().text
    far = ["--url", "http://kv.invalid:1", "--request-timeout", "1s"]
    assert kvstore("login", *far, stdin=f"{token}\n".encode()).returncode == 5
    assert kvstore("login", *far, "--plain-http", stdin=f"{token}\n".encode()).returncode == 6
    assert not login_file(kvstore).exists()


def test_logins_of_other_services_and_keys_stay(kvstore: CommandLine, script: Script) -> None:
    other = {"https://kv.example:443": {"token": new_token().text}, "*": {"server_key": "s"}}
    login_file(kvstore).parent.mkdir(parents=True)
    login_file(kvstore).write_text(json.dumps(other))
    login_file(kvstore).chmod(0o600)
    token = new_token().text
    assert kvstore("login", stdin=f"{token}\n".encode()).returncode == 0
    assert entries(kvstore) == {**other, script.url: {"token": token}}
    assert kvstore("logout").returncode == 0
    assert entries(kvstore) == other
    done = kvstore("logout")
    assert done.returncode == 0
    assert b"has no token for" in done.stderr


def test_a_login_file_that_others_can_read_is_not_written(kvstore: CommandLine) -> None:
    login_file(kvstore).parent.mkdir(parents=True)
    login_file(kvstore).write_text("{}")
    login_file(kvstore).chmod(0o644)
    done = kvstore("login", stdin=f"{new_token().text}\n".encode())
    assert done.returncode == 5
    assert b"chmod 600" in done.stderr
    assert login_file(kvstore).read_text() == "{}"


def test_another_file_may_be_named(kvstore: CommandLine) -> None:
    path = kvstore.folder / "mine.json"
    done = kvstore("login", stdin=f"{new_token().text}\n".encode(), env={"KVSTORE_LOGIN_FILE": str(path)})
    assert done.returncode == 0
    assert str(path).encode() in done.stderr
    assert path.exists()


def test_who_one_is_is_told(kvstore: CommandLine, script: Script) -> None:
    assert kvstore.out("whoami") == b"ci, granted rw:app/, until 2027-01-31T12:00:00.000Z\n"
    assert kvstore.lines("whoami", "--json") == [WHO]
    script.plays = [answer(b'{"name": "anonymous", "grants": []}')]
    assert kvstore.out("whoami") == b"anonymous, granted nothing\n"
