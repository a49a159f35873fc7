"""The command against a service with access on: who one is, and ``kvstore token`` and ``key`` over HTTP."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from kvstore_cli.command_line.group import COMMANDS
from kvstore_core.access.tokens import token_id
from support.command_line import CommandLine
from support.protected import Protected
from support.servers import wait_until


@pytest.fixture
def kvstore(protected: Protected, tmp_path: Path) -> CommandLine:
    """The command of the first admin."""
    return command_of(protected, tmp_path, protected.admin_token)


def command_of(protected: Protected, folder: Path, token: str | None) -> CommandLine:
    line = CommandLine(folder, protected.url)
    if token is not None:
        line.environment["KVSTORE_TOKEN"] = token
    line.environment["KVSTORE_REQUESTS"] = protected.requests
    line.environment["KVSTORE_CHANGES"] = protected.changes
    return line


@pytest.fixture
def by(protected: Protected, tmp_path: Path) -> Callable[[str], CommandLine]:
    return lambda token: command_of(protected, tmp_path, token)


@pytest.fixture
def stranger(protected: Protected, tmp_path: Path) -> CommandLine:
    return command_of(protected, tmp_path, None)


def made(kvstore: CommandLine, name: str, *arguments: str) -> str:
    return kvstore.out("token", "create", name, *arguments).decode().removesuffix("\n")


def refused(kvstore: CommandLine, *arguments: str) -> bool:
    """Whether it ends with the status of 401 and 403; nothing else may go wrong."""
    done = kvstore(*arguments)
    assert done.returncode in (0, 5), done.stderr
    return done.returncode == 5


def test_an_identity_may_what_it_was_granted_until_that_is_taken_away(
    kvstore: CommandLine, by: Callable[[str], CommandLine]
) -> None:
    ci = by(made(kvstore, "ci", "--grant", "rw:cli-ci/", "--for", "1d"))
    ci.out("put", "cli-ci/x", "1")
    assert refused(ci, "get", "cli-other")
    assert refused(ci, "token", "list")
    assert kvstore.out("token", "grant", "ci", "read:cli-other") == b"rw:cli-ci/\nread:cli-other\n"
    assert ci("get", "cli-other").returncode == 3
    assert kvstore.out("token", "ungrant", "ci", "rw:cli-ci/") == b"read:cli-other\n"
    assert refused(ci, "get", "cli-ci/x")
    kvstore.out("token", "revoke", "ci")
    done = ci("whoami")
    assert done.returncode == 5
    assert b"KVSTORE_TOKEN" in done.stderr


def test_a_refusal_says_what_was_needed_and_what_one_has(
    kvstore: CommandLine, by: Callable[[str], CommandLine], stranger: CommandLine
) -> None:
    ci = by(made(kvstore, "told", "--grant", "ro:cli-told/"))
    done = ci("put", "cli-told/x", "1")
    assert done.returncode == 5
    for word in (b"write", b"cli-told/x", b"ro:cli-told/"):
        assert word in done.stderr
    done = stranger("get", "cli-told/x")
    assert done.returncode == 5
    assert b"kvstore login" in done.stderr


URL = "URL"
"""Stands for the address of the service."""

ASKING = {
    **{name: [name, "no/x"] for name in ("get", "delete", "incr", "persist", "history", "subscribe", "edit")},
    "put": ["put", "no/x", "1"],
    "rename": ["rename", "no/x", "no/y"],
    "patch": ["patch", "no/x", "{}"],
    "touch": ["touch", "no/x", "--ttl", "1m"],
    "batch": ["batch", "ops"],
    "wait": ["wait", "no/x", "--exists", "--timeout", "1m"],
    "import": ["import", "ops"],
    "export": ["export"],
    **{name: [name, "--prefix", "no/"] for name in ("list", "log")},
    "changes": ["changes", "--since", "0", "--prefix", "no/"],
    **{name: [name, "no/"] for name in ("ls", "digest")},
    "backup": ["backup", "--url", URL, "far.kvb"],
    "verify": ["verify", URL, URL, "--prefix", "no/"],
    "blame": ["blame", "no/"],
    "top": ["top", "--count", "1", "--json"],
    "token": ["token", "list"],
    "key": ["key", "create", "x"],
    "subscribers": ["subscribers"],
    "kick": ["kick", "h1"],
    "slow": ["slow"],
}
"""Commands that ask for what not everybody is granted."""

OPEN = {
    *("login", "logout", "whoami", "status", "ping", "doctor"),  # each tested by itself
    *("restore", "check", "compact", "serve", "daemon", "http", "config", "completion"),
}
"""Those that ask for nothing, or for what whoever has a token may see."""


def test_every_command_is_known_to_ask_for_something_or_for_nothing() -> None:
    assert ASKING.keys() | OPEN == set(COMMANDS)


@pytest.mark.parametrize("name", ASKING)
def test_what_is_refused_ends_with_status_5_and_prints_nothing(
    kvstore: CommandLine, protected: Protected, stranger: CommandLine, name: str
) -> None:
    (stranger.folder / "ops").write_text('{"op":"put","key":"no/x","value":"1"}\n')
    other = protected.token(f"other-{name}", "rw:cli-yes/")
    for environment in ({}, {"KVSTORE_TOKEN": other}):
        arguments = [protected.url if each is URL else each for each in ASKING[name]]
        done = stranger(*arguments, env=environment)
        assert (done.returncode, done.stdout) == (5, b""), done.stderr
        assert b"this needs" in done.stderr
    assert kvstore.out("list", "--prefix", "no/") == b""


@pytest.mark.parametrize(
    ("scope", "what"),
    [
        ([], "every key"),
        (["--prefix", "no/"], "every key that begins with 'no/'"),
        (["--start", "no/a", "--end", "no/b"], "every key that begins with 'no/a'"),
    ],
)
def test_an_export_that_is_refused_names_what_was_to_be_exported(
    protected: Protected, stranger: CommandLine, scope: list[str], what: str
) -> None:
    token = protected.token("exporting", "rw:cli-yes/")
    done = stranger("export", *scope, env={"KVSTORE_TOKEN": token})
    assert done.returncode == 5
    assert f"this needs list on {what}, and".encode() in done.stderr


def test_rotation_and_revocation_of_one_token(kvstore: CommandLine, by: Callable[[str], CommandLine]) -> None:
    first = made(kvstore, "rotated", "--grant", "ro:cli-rotated/")
    second = kvstore.out("token", "rotate", "rotated", "--keep", "1h").decode().strip()
    by(first).out("whoami")
    by(second).out("whoami")
    shown = kvstore.lines("token", "show", "rotated", "--json")[0]
    ends = {token["id"]: token.get("expires_at") for token in shown["tokens"]}
    assert ends.keys() == {token_id(first), token_id(second)}
    assert ends[str(token_id(first))]
    assert ends[str(token_id(second))] is None
    kvstore.out("token", "revoke", "rotated", "--id", str(token_id(first)))
    assert refused(by(first), "whoami")
    third = kvstore.out("token", "rotate", "rotated").decode().strip()
    assert refused(by(second), "whoami")
    by(third).out("whoami")


def test_the_folder_and_the_service_describe_the_same(kvstore: CommandLine, protected: Protected) -> None:
    made(kvstore, "described", "--grant", "rw:cli-described/", "--for", "30d")
    kvstore.out("key", "create", "described")
    folder = ["--data", str(protected.data)]
    for words in (["token", "show", "described"], ["token", "show", "described", "--json"]):
        assert kvstore.out(*words) == kvstore.out(*words, *folder)
    assert kvstore.lines("token", "list", "--json") == kvstore.lines("token", "list", "--json", *folder)


def test_a_new_token_comes_with_its_identity_as_json(
    kvstore: CommandLine, by: Callable[[str], CommandLine]
) -> None:
    for words in (("create", "as-json", "--grant", "ro:app/"), ("rotate", "as-json", "--keep", "1h")):
        [made] = kvstore.lines("token", *words, "--json")
        token, token_id = made.pop("token"), made.pop("id")
        assert by(token).lines("whoami", "--json")[0]["name"] == "as-json"
        assert [made] == kvstore.lines("token", "show", "as-json", "--json")
        assert made["tokens"][-1]["id"] == token_id


def test_who_is_there_already_or_not_has_the_same_status_everywhere(
    kvstore: CommandLine, protected: Protected
) -> None:
    made(kvstore, "twice", "--grant", "ro:cli-twice/")
    for place in ([], ["--data", str(protected.data)]):
        for words, status in (
            (["create", "twice", "--grant", "ro:*"], 4),
            (["show", "nobody"], 3),
            (["grant", "nobody", "ro:*"], 3),
            (["ungrant", "twice", "rw:*"], 3),
            (["rotate", "nobody"], 3),
            (["revoke", "nobody"], 3),
            (["revoke", "twice", "--id", "00000000"], 3),
            (["create", "a b", "--grant", "ro:*"], 1),
            (["create", "anonymous", "--grant", "ro:*"], 1),
        ):
            assert kvstore("token", *words, *place).returncode == status, (words, place)


def test_an_admin_who_was_lost_is_made_in_the_folder_while_the_daemon_runs(
    protected: Protected, by: Callable[[str], CommandLine], stranger: CommandLine
) -> None:
    done = stranger("token", "create", "found", "--grant", "admin", "--data", str(protected.data))
    assert done.returncode == 0
    assert b"other admins: admin" in done.stderr
    found = by(done.stdout.decode().strip())
    wait_until(lambda: not refused(found, "token", "list"), what="the daemon takes the new identity")
    assert "found" in [row["name"] for row in found.lines("token", "list", "--json")]


def test_me_is_who_asks(
    kvstore: CommandLine, by: Callable[[str], CommandLine], stranger: CommandLine
) -> None:
    ci = by(made(kvstore, "asking", "--grant", "ro:cli-asking/"))
    assert ci.out("token", "test", "me", "read", "cli-asking/x") == b"yes: ro:cli-asking/\n"
    assert ci("token", "test", "me", "write", "cli-asking/x").returncode == 5
    assert stranger("token", "test", "me", "read", "cli-asking/x").returncode == 5
    assert (
        kvstore.out("token", "test", "asking", "list", "--prefix", "cli-asking/") == b"yes: ro:cli-asking/\n"
    )
    assert kvstore("token", "test", "asking", "monitor").returncode == 5
    assert ci("token", "test", "asking", "monitor").returncode == 5


def test_a_narrowed_token_may_less_and_ends(kvstore: CommandLine, by: Callable[[str], CommandLine]) -> None:
    whole = made(kvstore, "wide", "--grant", "rw:cli-wide/")
    ci = by(whole)
    ci.out("put", "cli-wide/x", "1")
    narrow = ci.out("token", "narrow", "--grant", "read:cli-wide/x", "--for", "10m").decode().strip()
    assert by(narrow).out("get", "cli-wide/x") == b"1\n"
    assert refused(by(narrow), "put", "cli-wide/x", "2")
    who = by(narrow).lines("whoami", "--json")[0]
    assert (who["name"], who["grants"]) == ("wide", ["read:cli-wide/x"])
    assert who["expires_at"]
    assert refused(ci, "token", "narrow", "--grant", "read:cli-elsewhere/", "--for", "10m")
    kvstore.out("token", "revoke", "wide")
    assert refused(by(narrow), "get", "cli-wide/x")


def test_rotation_keeps_the_lifetime_unless_told(kvstore: CommandLine) -> None:
    made(kvstore, "lasting", "--grant", "ro:cli-lasting/", "--for", "90d")

    def rotated(*arguments: str) -> int | None:
        """How long the new token lasts, in days."""
        kvstore.out("token", "rotate", "lasting", *arguments)
        token = kvstore.lines("token", "show", "lasting", "--json")[0]["tokens"][-1]
        if "expires_at" not in token:
            return None
        made_at, end = (datetime.fromisoformat(token[name]) for name in ("created_at", "expires_at"))
        return round((end - made_at).total_seconds() / 86_400)

    assert rotated("--keep", "1h") == 90
    assert rotated("--keep", "1h", "--for", "30d") == 30
    assert rotated() == 30
    assert rotated("--for", "never") is None
    assert rotated() is None


def test_a_login_is_used_by_what_follows(protected: Protected, stranger: CommandLine) -> None:
    assert refused(stranger, "list")
    assert stranger("login", stdin=f"{protected.admin_token}\n".encode()).returncode == 0
    stranger.out("list")
    assert stranger.out("whoami").startswith(b"admin, granted admin, monitor, all:*")
    assert stranger("logout").returncode == 0
    assert refused(stranger, "list")


def test_beside_the_service_nothing_has_to_be_named(protected: Protected, stranger: CommandLine) -> None:
    """As after ``make run``: the folder is the one that is configured."""
    stranger.environment["KVSTORE_DATA"] = str(protected.data)
    stranger.out("put", "cli-beside", "1")


def test_what_needs_no_token_works_without_one(stranger: CommandLine) -> None:
    stranger.out("ping")
    assert stranger.out("whoami") == b"anonymous, granted nothing\n"


def test_a_subscriber_is_told_when_its_token_ends(
    kvstore: CommandLine, by: Callable[[str], CommandLine]
) -> None:
    line = by(made(kvstore, "listening", "--grant", "ro:cli-l/"))
    running = line.start("subscribe", "--snapshot", "--prefix", "cli-l/", "--json")
    try:
        wait_until(lambda: b"sync" in running.stdout, what="it listens")
        kvstore.out("token", "revoke", "listening")
        assert running.wait() == 5
        assert "KVSTORE_TOKEN" in running.stderr
        assert "access was taken away (unauthenticated)" in running.stderr
        assert f"go on with --since {running.lines()[0]['cursor']}" in running.stderr
    finally:
        running.end()


def test_a_subscriber_goes_on_with_the_token_that_its_file_has_by_then(
    kvstore: CommandLine, stranger: CommandLine
) -> None:
    file = stranger.folder / "token"
    old = made(kvstore, "rotating", "--grant", "ro:cli-rotating/")
    file.write_text(old)
    wanted = ["--snapshot", "--prefix", "cli-rotating/", "--json", "--count", "2"]
    running = stranger.start("subscribe", *wanted, "--token-file", str(file))
    try:
        wait_until(lambda: b"sync" in running.stdout, what="it listens")
        kvstore.out("put", "cli-rotating/x", "1")
        file.write_text(kvstore.out("token", "rotate", "rotating", "--keep", "1h").decode())
        kvstore.out("token", "revoke", "rotating", "--id", str(token_id(old)))
        wait_until(lambda: "reconnected" in running.stderr, what="it comes back")
        kvstore.out("put", "cli-rotating/x", "2")
        assert running.wait() == 0, running.stderr
        assert [line["value"] for line in running.lines() if line["event"] == "put"] == ["1", "2"]
    finally:
        running.end()


def test_names_are_completed_for_whoever_may_see_them(
    kvstore: CommandLine, by: Callable[[str], CommandLine]
) -> None:
    token = made(kvstore, "completed-ci", "--grant", "ro:cli-completed/")
    words = {"COMP_WORDS": "token\x1fshow", "COMP_WORD": "completed-", "_KVSTORE_COMPLETE": "zsh_complete"}
    assert kvstore(env=words).stdout.split() == [b"plain", b"completed-ci"]
    done = by(token)(env=words)
    assert (done.stdout.strip(), done.stderr) == (b"", b"")


def test_state_is_shown_as_far_as_one_may_see_it(
    kvstore: CommandLine, by: Callable[[str], CommandLine], stranger: CommandLine
) -> None:
    little = by(made(kvstore, "little", "--grant", "ro:cli-little/"))
    assert little.lines("status", "--json")[0].keys() == {
        *("version", "protocol", "epoch", "revision", "floor", "writes_refused", "limits")
    }
    assert "monitor" in little.on_terminal("status")
    assert "commits" in kvstore.lines("status", "--json")[0]
    for line in (little, kvstore):
        assert b"access\trequired\n" in line.out("status")
        assert "required" in line.on_terminal("status")
    assert b"access.identities\t" in kvstore.out("status")
    number = kvstore.lines("status", "--json")[0]["access"]["identities"]
    assert f"required, {number} identities" in kvstore.on_terminal("status")
    assert refused(little, "top", "--count", "1", "--json")
    assert refused(stranger, "status")
    by(made(kvstore, "prometheus", "--grant", "monitor")).out("top", "--count", "1", "--json")


def test_the_doctor_skips_what_a_token_does_not_cover(
    kvstore: CommandLine, by: Callable[[str], CommandLine], stranger: CommandLine
) -> None:
    def outcome(line: CommandLine) -> dict[str, list[str]]:
        done = line("doctor", "--quick", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, list[str]] = {}
        for check in json.loads(done.stdout)["checks"]:
            found.setdefault(check["check"], []).append(check["status"])
        return found

    whole = outcome(by(made(kvstore, "doctor", "--grant", "rw:kvstore-doctor/")))
    assert "skipped" not in {status for name, each in whole.items() if name != "idle" for status in each}
    assert whole["access"] == ["ok"] * 4  # strangers, two ports that ask for a key, the token
    without = outcome(by(made(kvstore, "ill", "--grant", "ro:cli-ill/")))
    assert without["keys"] == without["streams"] == ["skipped"]
    assert without["daemon"] == ["ok"]
    assert outcome(stranger)["keys"] == ["skipped"]


def test_a_native_client_comes_in_by_the_file_of_its_key(
    kvstore: CommandLine, protected: Protected, tmp_path: Path
) -> None:
    kvstore.out("key", "create", "native", "--grant", "rw:cli-native/", "--output", "native.json")
    line = command_of(protected, tmp_path, None)
    login = {"KVSTORE_LOGIN_FILE": str(tmp_path / "native.json")}
    assert b"is ready" in line("ping", "--daemon", env=login).stdout
    code = """
import sys
from kvstore_client import Client
with Client(sys.argv[1]) as client:
    client.put("cli-native/x", b"1")
    print(client.whoami()["name"])
"""
    done = subprocess.run(
        [str(Path(line.environment["PATH"].partition(":")[0]) / "python"), "-c", code, protected.requests],
        env={**line.environment, **login},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "native\n"), done.stderr
    assert line("ping", "--daemon").returncode == 5
    assert b"is ready" in line("ping", "--daemon", env={"KVSTORE_DATA": str(protected.data)}).stdout


def test_no_secret_is_in_a_command_line_or_the_configuration(
    kvstore: CommandLine, protected: Protected
) -> None:
    secrets = [protected.admin_token.encode(), protected.facade_keys.secret_key.encode()]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes()
        except OSError:
            continue
        assert not any(secret in line for secret in secrets), process
    done = kvstore("config", "show")
    assert not any(secret in done.stdout + done.stderr for secret in secrets)
