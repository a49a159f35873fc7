"""Which token a command sends, where it sends none, and what it says of one that is no good."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore_cli.config.port_owners import owners_of_port
from kvstore_cli.config.token_source import check_form
from kvstore_core.access.tokens import new_token
from kvstore_core.errors import KvError
from support.command_line import CommandLine
from support.scripted import Script, answer, chunks, problem, scripted

pytestmark = pytest.mark.slow

ELSEWHERE = "http://kv.example:5000"
"""An address of another machine. Nothing is looked up where nothing is sent."""

LISTENER = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
client, _ = server.accept()
print(client.recv(65536))
client.sendall(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
"""
"""A program that shows the request that it gets."""


@pytest.fixture
def script() -> Iterator[Script]:
    with scripted() as script:
        script.plays = [answer(b'{"revision": 1}')]
        yield script


@pytest.fixture
def kvstore(script: Script, tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, script.url)


def stored(kvstore: CommandLine, address: str, token: str, mode: int = 0o600) -> Path:
    """A login file with a token for ``address``."""
    path = kvstore.folder / ".config/kvstore/login.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({address: {"token": token}}))
    path.chmod(mode)
    return path


def sent(script: Script) -> list[str | None]:
    """The credentials of the requests that arrived."""
    return [seen.headers.get("Authorization") for seen in script.seen]


def test_the_first_that_names_a_token_wins(kvstore: CommandLine, script: Script) -> None:
    flag, file, variable, key, login, admin = (new_token().text for _ in range(6))
    folder = kvstore.folder
    for name, text in {"flag": flag, "file": file, "key": key}.items():
        (folder / name).write_text(text + "\n")
    data = folder / ".local/share/kvstore"
    data.mkdir(parents=True)
    (data / "admin.token").write_text(admin + "\n")
    (folder / "kvstore.toml").write_text(f'token-file = "{folder}/key"\n')
    in_file = {"KVSTORE_CONFIG": str(folder / "kvstore.toml")}
    by_file, by_text = {"KVSTORE_TOKEN_FILE": str(folder / "file")}, {"KVSTORE_TOKEN": f" {variable}\n"}

    kvstore("list", env={})
    stored(kvstore, script.url, login)
    kvstore("list", env={})
    kvstore("list", env=in_file)
    kvstore("list", env={**in_file, **by_text})
    kvstore("list", env={**in_file, **by_text, **by_file})
    kvstore("list", "--token-file", "flag", env={**in_file, **by_text, **by_file})
    kvstore("list", "--token-file", "-", stdin=f"{login}\n".encode(), env=by_text)
    expected = [admin, login, key, variable, file, flag, login]
    assert sent(script) == [f"Bearer {token}" for token in expected]


def test_every_request_and_stream_has_the_token(kvstore: CommandLine, script: Script) -> None:
    token = new_token().text
    event = b'{"event":"put","key":"k","revision":1,"index":0,"count":1,"value":"v","cursor":"a-1"}\n'
    script.plays = [answer(b'{"revision": 1}')] * 2 + [
        chunks(b'{"event":"sync","cursor":"a-0"}\n'),
        chunks(event),
    ]
    for arguments in (["put", "k", "v"], ["delete", "k"], ["subscribe", "--count", "1", "--json"]):
        done = kvstore(*arguments, env={"KVSTORE_TOKEN": token})
        assert done.returncode == 0, done.stderr
    assert len(script.seen) == 4  # the stream was cut off, and opened again
    assert set(sent(script)) == {f"Bearer {token}"}


def test_the_value_may_follow_the_token_on_standard_input(kvstore: CommandLine, script: Script) -> None:
    token = new_token().text
    kvstore.out("put", "k", "-", "--token-file", "-", stdin=f"{token}\nthe value\n".encode())
    assert (script.seen[0].body, sent(script)) == (b"the value\n", [f"Bearer {token}"])


def test_a_stored_token_goes_to_exactly_its_address(kvstore: CommandLine, script: Script) -> None:
    token = new_token().text
    others = (
        script.url.replace("127.0.0.1", "localhost"),
        script.url.replace("http:", "https:"),
        script.url[:-1],
        "*",
    )
    for address in others:
        stored(kvstore, address, token)
        kvstore.out("put", "k", "v")
    stored(kvstore, f"{script.url.upper().replace('HTTP', 'http')}/some/path", token)
    kvstore.out("put", "k", "v")
    assert sent(script) == [*[None] * len(others), f"Bearer {token}"]


def test_the_token_beside_the_service_is_for_this_machine_alone(
    kvstore: CommandLine, script: Script, tmp_path: Path
) -> None:
    token = new_token().text
    (tmp_path / "data").mkdir()
    (tmp_path / "data/admin.token").write_text(token)
    beside = {"KVSTORE_DATA": str(tmp_path / "data")}
    kvstore("put", "k", "v", env=beside)
    # with a token it would be refused with another status: it would cross the network
    done = kvstore("ping", "--url", "http://kv.invalid:1", env=beside)
    assert done.returncode == 6
    done = kvstore("get", "k", "--url", "http://kv.invalid:1", "--request-timeout", "1s", env=beside)
    assert done.returncode == 6
    assert sent(script) == [f"Bearer {token}"]


def test_the_token_beside_the_service_goes_to_nobody_else_who_listens(
    kvstore: CommandLine, script: Script, tmp_path: Path
) -> None:
    port = int(script.url.rpartition(":")[2])
    assert owners_of_port(port) == {os.getuid()}
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        assert owners_of_port(other.getsockname()[1]) == set()  # it does not listen yet
        other.listen()
        assert owners_of_port(other.getsockname()[1]) == {os.getuid()}
    if os.getuid() != 0:
        return  # only root can let somebody else listen
    (tmp_path / "data").mkdir()
    (tmp_path / "data/admin.token").write_text(new_token().text)
    nobody = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-IS", "-c", LISTENER]
    with subprocess.Popen(nobody, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        kvstore("delete", "k", "--url", url, env={"KVSTORE_DATA": str(tmp_path / "data")})
        request = server.stdout.read()
    assert "DELETE /v1/kv/k" in request
    assert "kv_" not in request


def test_no_token_crosses_a_network_in_the_clear_unless_told(kvstore: CommandLine) -> None:
    token = new_token().text
    env = {"KVSTORE_TOKEN": token}
    done = kvstore("get", "k", "--url", ELSEWHERE, env=env)
    assert done.returncode == 5
    assert b"--plain-http" in done.stderr
    assert b"https://" in done.stderr
    # told, it tries, and finds no such machine
    invalid = "http://kv.invalid:1"
    for told in (["--plain-http"], []):
        if not told:
            stored(kvstore, invalid, token)  # which is to have been told at the login
            env = {}
        done = kvstore("get", "k", "--url", invalid, "--request-timeout", "1s", *told, env=env)
        assert done.returncode == 6, done.stderr


def test_a_redirect_is_not_followed(kvstore: CommandLine, script: Script) -> None:
    with scripted() as other:
        other.plays = [answer()]
        script.plays = [answer(b"", 302, Location=f"{other.url}/v1/kv/k")]
        assert kvstore("get", "k", env={"KVSTORE_TOKEN": new_token().text}).returncode == 1
        assert other.seen == []


def test_a_mistyped_token_is_told_without_asking(kvstore: CommandLine, script: Script) -> None:
    token = new_token().text
    mistyped = token[:20] + ("a" if token[20] != "a" else "b") + token[21:]
    for text in (mistyped, token[:-1], token + "x", "secret", "kvd_abc", "Bearer " + token):
        (kvstore.folder / "file").write_text(text)
        for env in ({"KVSTORE_TOKEN": text}, {"KVSTORE_TOKEN_FILE": str(kvstore.folder / "file")}):
            done = kvstore("get", "k", env=env)
            assert done.returncode == 5, text
            assert b"mistyped" in done.stderr
            assert text.encode() not in done.stderr
    (kvstore.folder / "file").write_text("")
    assert kvstore("get", "k", "--token-file", "file").returncode == 5
    assert script.seen == []


def test_the_check_finds_every_wrong_character_and_swapped_pair() -> None:
    token = new_token().text
    for at in range(len(token)):
        for wrong in {"0", "Z", "_"} - {token[at]}:
            with pytest.raises(KvError):
                check_form(token[:at] + wrong + token[at + 1 :], "x")
        if at and token[at - 1] != token[at]:
            with pytest.raises(KvError):
                check_form(token[: at - 1] + token[at] + token[at - 1] + token[at + 1 :], "x")


def test_a_token_file_that_is_not_there_is_a_usage_error(kvstore: CommandLine, script: Script) -> None:
    for env, arguments in (({}, ["--token-file", "nowhere"]), ({"KVSTORE_TOKEN_FILE": "/nowhere"}, [])):
        done = kvstore("get", "k", *arguments, env=env)
        assert done.returncode == 2
        assert b"nowhere: No such file" in done.stderr
    assert script.seen == []


def test_a_login_file_that_others_can_read_is_refused(kvstore: CommandLine, script: Script) -> None:
    path = stored(kvstore, script.url, new_token().text, 0o640)
    done = kvstore("get", "k")
    assert done.returncode == 5
    assert f"chmod 600 {path}".encode() in done.stderr
    assert script.seen == []


def test_a_refusal_says_where_the_token_came_from(kvstore: CommandLine, script: Script) -> None:
    script.plays = [problem("unauthenticated", detail="this token is not known here", request_id="r")]
    token = new_token().text
    done = kvstore("get", "k", env={"KVSTORE_TOKEN": token})
    assert done.returncode == 5
    assert b"the variable KVSTORE_TOKEN" in done.stderr
    assert token.encode() not in done.stderr
    done = kvstore("get", "k")
    assert done.returncode == 5
    assert b"kvstore login" in done.stderr


def test_a_file_with_a_new_token_is_read_again(kvstore: CommandLine, script: Script) -> None:
    """As a secret that was rotated: what has run for long goes on."""
    old, new = new_token().text, new_token().text
    file = kvstore.folder / "token"
    file.write_text(old)

    def rotate(handler: object) -> None:
        file.write_text(new)
        problem("unauthenticated", request_id="r")(handler)  # type: ignore[arg-type]

    script.plays = [rotate, answer(b'{"revision": 1}')]
    assert kvstore.out("put", "k", "v", "--token-file", "token") == b"1\n"
    assert sent(script) == [f"Bearer {old}", f"Bearer {new}"]


def test_ping_sends_no_token(kvstore: CommandLine, script: Script) -> None:
    kvstore.out("ping", "--token-file", "nowhere")
    assert sent(script) == [None]


def test_completion_reads_no_standard_input(kvstore: CommandLine, script: Script) -> None:
    script.plays = [answer(b'{"items": [{"key": "found"}]}')]
    words = "\x1f".join(["get", "--token-file", "-"])
    completing = {"_KVSTORE_COMPLETE": "zsh_complete", "COMP_WORDS": words, "COMP_WORD": "f"}
    done = kvstore(stdin=f"{new_token().text}\n".encode(), env=completing)
    assert b"found" in done.stdout
    assert sent(script) == [None]


def test_no_variable_and_no_file_shows_its_token_in_the_configuration(kvstore: CommandLine) -> None:
    token = new_token().text
    (kvstore.folder / "token").write_text(token)
    env = {"KVSTORE_TOKEN": token, "KVSTORE_TOKEN_FILE": str(kvstore.folder / "token")}
    for arguments in (["show"], ["show", "--json"], ["check"]):
        done = kvstore("config", *arguments, env=env)
        assert done.returncode == 0, done.stderr
        assert token.encode() not in done.stdout + done.stderr
        if arguments != ["check"]:
            assert str(kvstore.folder / "token").encode() in done.stdout


def test_a_token_in_the_environment_is_no_misspelt_option(kvstore: CommandLine) -> None:
    done = kvstore("put", "k", "v", env={"KVSTORE_TOKEN": new_token().text, "KVSTORE_LOGIN_FILE": "/nowhere"})
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_command_with_a_token_loads_nothing_slow(kvstore: CommandLine, script: Script) -> None:
    script.plays = [answer(b"v", Content_Type="text/plain")]
    code = """
import sys
from kvstore_cli.main import main
sys.argv = ["kvstore", "get", "k"]
main()
slow = {"secrets", "hashlib", "hmac", "pathlib", "ssl", "orjson", "kvstore_core.wire"}
print(sorted(slow & sys.modules.keys()))
"""
    stored(kvstore, "http://other", "x")
    environment = {**kvstore.environment, "KVSTORE_TOKEN": new_token().text}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"v\n[]\n"
