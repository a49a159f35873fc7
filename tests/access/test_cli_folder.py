"""``kvstore token`` and ``key`` on the files of a data folder, without asking a service."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.access.grants import Need
from kvstore_core.access.identities import AccessTable
from kvstore_core.access.tokens import token_id
from kvstore_core.errors import KvError
from support.command_line import CommandLine

pytestmark = pytest.mark.slow


@pytest.fixture
def kvstore(tmp_path: Path) -> CommandLine:
    (tmp_path / "data").mkdir()
    return CommandLine(tmp_path, None)


def table(kvstore: CommandLine) -> AccessTable:
    return AccessTable.decode((kvstore.folder / "data/access.json").read_bytes())


def created(kvstore: CommandLine, name: str, *arguments: str) -> str:
    """The token of a new identity."""
    return kvstore.out("token", "create", name, *arguments, "--data", "data").decode().removesuffix("\n")


def listed(kvstore: CommandLine) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in kvstore.lines("token", "list", "--json", "--data", "data")}


def test_a_token_is_made_and_only_its_digest_is_kept(kvstore: CommandLine) -> None:
    done = kvstore(
        "token",
        "create",
        "ci",
        "--grant",
        "rw:app/",
        "--grant",
        "ro:shared/",
        "--for",
        "90d",
        "--data",
        "data",
    )
    assert done.returncode == 0
    token = done.stdout.decode().removesuffix("\n")
    assert b"/data yet; the identities" in done.stderr
    assert b"access.json was made" not in done.stderr
    assert token_id(token) is not None
    path = kvstore.folder / "data/access.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token[12:] not in path.read_text()
    found = table(kvstore)
    created_at = found.identities["ci"].created_at
    who = found.of_credential(token, created_at)
    assert (who.name, who.grants.texts) == ("ci", ("rw:app/", "ro:shared/"))
    assert who.expires_at == created_at + 90 * 86_400_000
    assert kvstore("token", "create", "ci", "--grant", "ro:*", "--data", "data").returncode == 4
    assert table(kvstore).tag == found.tag


def test_a_name_or_grant_that_cannot_be_is_refused_and_nothing_is_made(kvstore: CommandLine) -> None:
    for arguments, said in (
        (["ci", "--grant", "everything"], b"is not a grant"),
        (["ci", "--grant", "rw:"], b"rw:*"),
        (["ci", "--grant", "red:app/"], b"unknown verb"),
        (["ci"], b"--grant"),
        (["a b", "--grant", "ro:*"], b"is not the name"),
        (["facade", "--grant", "ro:*"], b"facade"),
        (["me", "--grant", "ro:*"], b"the name 'me' is kvstore's own"),
        (["anonymous", "--grant", "ro:*"], b"anonymous"),
    ):
        done = kvstore("token", "create", *arguments, "--data", "data")
        assert done.returncode in (1, 2), arguments
        assert said in done.stderr
        assert done.stdout == b""
    # nor keys, with which access would be on
    assert kvstore("key", "create", "nobody", "--data", "data").returncode == 3
    assert [path.name for path in (kvstore.folder / "data").iterdir()] == ["access.lock"]


@pytest.mark.parametrize(
    ("grant", "is_one_key"),
    [
        ("rw:app", True),
        ("ro:a/b", True),
        ("rw:app/", False),
        ("rw:app*", False),
        ("all:*", False),
        ("monitor", False),
    ],
)
def test_a_grant_for_one_key_is_said_to_be_one(kvstore: CommandLine, grant: str, is_one_key: bool) -> None:
    done = kvstore("token", "create", "x", "--grant", grant, "--data", "data")
    assert (b"one key" in done.stderr) is is_one_key
    done = kvstore("token", "grant", "x", grant, "--data", "data")
    assert (b"one key" in done.stderr) is is_one_key
    assert (f"kvstore token ungrant x {grant}" in done.stderr.decode()) is is_one_key


def test_grants_are_given_and_taken_away(kvstore: CommandLine) -> None:
    created(kvstore, "ci", "--grant", "ro:app/")
    granted = kvstore.out("token", "grant", "ci", "rw:logs/", "list:*", "--data", "data")
    assert granted == b"ro:app/\nrw:logs/\nlist:*\n"
    assert kvstore.out("token", "ungrant", "ci", "ro:app/", "--data", "data") == b"rw:logs/\nlist:*\n"
    done = kvstore("token", "ungrant", "ci", "ro:app/", "--data", "data")
    assert done.returncode == 3
    assert b"rw:logs/" in done.stderr
    assert kvstore("token", "grant", "nobody", "ro:*", "--data", "data").returncode == 3
    kvstore.out("token", "grant", "anonymous", "ro:public/", "--data", "data")
    assert table(kvstore).anonymous.may(Need("read", "public/x"))
    assert kvstore("token", "grant", "anonymous", "admin", "--data", "data").returncode == 1


def test_rotation_keeps_the_old_token_as_long_as_told(kvstore: CommandLine) -> None:
    first = created(kvstore, "ci", "--grant", "ro:app/")
    second = kvstore.out("token", "rotate", "ci", "--keep", "1h", "--data", "data").decode().strip()
    found = table(kvstore)
    now = found.identities["ci"].tokens[1].created_at
    assert found.of_credential(first, now).expires_at == now + 3_600_000
    assert found.of_credential(second, now).expires_at is None
    third = kvstore.out("token", "rotate", "ci", "--data", "data").decode().strip()
    found = table(kvstore)
    assert found.of_credential(third, now).name == "ci"
    for old in (first, second):
        with pytest.raises(KvError):
            found.of_credential(old, now)
    assert kvstore("token", "rotate", "nobody", "--data", "data").returncode == 3


def test_rotation_keeps_the_lifetime_unless_told(kvstore: CommandLine) -> None:
    created(kvstore, "ci", "--grant", "ro:app/", "--for", "90d")

    def rotated(*arguments: str) -> int | None:
        """How long the new token lasts, in days."""
        kvstore.out("token", "rotate", "ci", *arguments, "--data", "data")
        token = table(kvstore).identities["ci"].tokens[-1]
        return None if token.expires_at is None else (token.expires_at - token.created_at) // 86_400_000

    assert rotated("--keep", "1h") == 90
    assert rotated("--keep", "1h", "--for", "30d") == 30
    assert rotated() == 30
    assert rotated("--for", "never") is None
    assert rotated() is None
    assert kvstore("token", "rotate", "ci", "--for", "always", "--data", "data").returncode == 2


def test_a_new_token_comes_with_its_identity_as_json(kvstore: CommandLine) -> None:
    there = ("--json", "--data", "data")
    for words in (("create", "ci", "--grant", "ro:app/"), ("rotate", "ci", "--keep", "1h")):
        [made] = kvstore.lines("token", *words, *there)
        token, token_id = made.pop("token"), made.pop("id")
        assert table(kvstore).of_credential(token, 0).name == "ci"
        assert [made] == kvstore.lines("token", "show", "ci", *there)
        assert made["tokens"][-1]["id"] == token_id


def test_a_token_is_written_to_a_file_of_ones_own(kvstore: CommandLine) -> None:
    path = kvstore.folder / "ci.token"
    to_file = ("--output", "ci.token", "--data", "data")
    assert kvstore.out("token", "create", "ci", "--grant", "ro:app/", *to_file) == b""
    first = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token_id(first.removesuffix("\n"))
    # what cannot be written changes nobody
    assert kvstore("token", "rotate", "ci", *to_file).returncode == 2
    assert (
        kvstore("token", "create", "x", "--grant", "ro:*", "--output", "no/x", *to_file[2:]).returncode == 2
    )
    assert path.read_text() == first
    assert list(listed(kvstore)) == ["ci"]
    kvstore.out("token", "rotate", "ci", "--force", *to_file)
    now = table(kvstore).identities["ci"].created_at
    assert table(kvstore).of_credential(path.read_text().strip(), now).name == "ci"
    # an identity that is there leaves the file as it is
    second = path.read_text()
    assert kvstore("token", "create", "ci", "--grant", "ro:*", "--force", *to_file).returncode == 4
    assert path.read_text() == second
    assert sorted(each.name for each in kvstore.folder.iterdir()) == ["ci.token", "data"]


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root; CI has it")
def test_root_keeps_what_it_makes_for_itself(kvstore: CommandLine) -> None:
    """The data folder is another user's, and the file is to be in root's own."""
    os.chown(kvstore.folder / "data", 4711, 4711)
    (kvstore.folder / "own").mkdir(mode=0o700)
    kvstore.out("key", "create", "k", "--grant", "ro:*", "--output", "own/k.json", "--data", "data")
    kvstore.out("token", "create", "t", "--grant", "ro:*", "--output", "own/t.token", "--data", "data")
    own = sorted((kvstore.folder / "own").iterdir())
    assert [path.name for path in own] == ["k.json", "t.token"]
    assert {path.stat().st_uid for path in own} == {0}
    assert {path.stat().st_uid for path in (kvstore.folder / "data").iterdir()} == {4711}
    login = json.loads(own[0].read_text())["*"]
    assert table(kvstore).of_public_key(login["public_key"], 0) is not None
    assert (
        kvstore("key", "create", "k", "--grant", "ro:*", "--output", "own/x", "--data", "data").returncode
        == 4
    )
    assert sorted((kvstore.folder / "own").iterdir()) == own


def test_a_token_or_an_identity_is_revoked(kvstore: CommandLine) -> None:
    first = created(kvstore, "ci", "--grant", "ro:app/")
    second = kvstore.out("token", "rotate", "ci", "--keep", "1h", "--data", "data").decode().strip()
    done = kvstore("token", "revoke", "ci", "--id", str(token_id(first)), "--data", "data")
    assert f"the token {token_id(first)} of 'ci' is gone; the identity stays" in done.stderr.decode()
    assert [token["id"] for token in listed(kvstore)["ci"]["tokens"]] == [token_id(second)]
    assert kvstore("token", "revoke", "ci", "--id", "00000000", "--data", "data").returncode == 3
    done = kvstore("token", "revoke", "ci", "--data", "data")
    assert f"the identity 'ci' is gone: token {token_id(second)}" in done.stderr.decode()
    assert listed(kvstore) == {}
    assert kvstore("token", "revoke", "ci", "--data", "data").returncode == 3


def test_who_is_there_is_shown_without_secrets(kvstore: CommandLine) -> None:
    token = created(kvstore, "ci", "--grant", "rw:app/", "--for", "1d")
    created(kvstore, "ops", "--grant", "monitor")
    shown = [kvstore.out("token", *words, "--data", "data").decode() for words in (["list"], ["show", "ci"])]
    shown += [
        kvstore.out("token", *words, "--json", "--data", "data").decode()
        for words in (["list"], ["show", "ci"])
    ]
    digest = table(kvstore).identities["ci"].tokens[0].digest
    for text in shown:
        assert str(token_id(token)) in text
        assert "rw:app/" in text
        assert token[12:] not in text
        assert digest not in text
    fields = shown[0].splitlines()[0].split("\t")
    assert fields[:4] == ["ci", "rw:app/", token_id(token), "-"]
    assert fields[4][:16] < fields[5][:16]
    assert json.loads(shown[3]) == listed(kvstore)["ci"]
    assert kvstore("token", "show", "nobody", "--data", "data").returncode == 3


def test_what_one_may_is_told_with_the_grant_that_decides(kvstore: CommandLine) -> None:
    created(kvstore, "ci", "--grant", "ro:shared/", "--grant", "rw:app/", "--grant", "monitor")

    def asked(*words: str) -> tuple[int, str]:
        done = kvstore("token", "test", "ci", *words, "--data", "data")
        return done.returncode, done.stdout.decode().strip()

    assert asked("read", "shared/x") == (0, "yes: ro:shared/")
    assert asked("write", "app/x") == (0, "yes: rw:app/")
    assert asked("delete", "--prefix", "app/y") == (0, "yes: rw:app/")
    assert asked("monitor") == (0, "yes: monitor")
    for words in (
        ["write", "shared/x"],
        ["read", "app"],
        ["list", "--prefix", "app"],
        ["list", "--prefix", ""],
    ):
        status, said = asked(*words)
        assert (status, said[:4]) == (5, "no: ")
        assert "ro:shared/, rw:app/, monitor" in said
    assert asked("admin")[0] == 5
    for words in (["read"], ["monitor", "app/x"], ["read", "app/x", "--prefix", "app/"], ["see", "app/x"]):
        assert asked(*words)[0] == 2


def test_where_a_store_is_it_is_said_that_access_comes_on(kvstore: CommandLine) -> None:
    (kvstore.folder / "data/lmdb").mkdir()
    (kvstore.folder / "data/lmdb/data.mdb").touch()
    make = ("--grant", "ro:*", "--data", "data")
    done = kvstore("token", "create", "ci", *make)
    assert b"access.json was made: from its next start on" in done.stderr
    assert b"no store" not in done.stderr
    assert kvstore("token", "create", "second", *make).stderr == b""
    # a service that has been asking for tokens all along
    (kvstore.folder / "data/facade.key").touch(0o600)
    (kvstore.folder / "data/access.json").unlink()
    assert kvstore("token", "create", "ci", *make).stderr == b""


def test_the_last_admin_is_not_taken_away_without_force(kvstore: CommandLine) -> None:
    token = created(kvstore, "root", "--grant", "admin", "--grant", "ro:*")
    created(kvstore, "ended", "--grant", "admin", "--for", "1ms")
    created(kvstore, "ci", "--grant", "ro:*")
    takings = (
        ["ungrant", "root", "admin"],
        ["revoke", "root"],
        ["revoke", "root", "--id", str(token_id(token))],
    )
    before = table(kvstore).tag
    for words in takings:
        done = kvstore("token", *words, "--data", "data")
        assert done.returncode == 2, words
        assert b"root is the last admin" in done.stderr
        assert b"--grant admin --data DIR" in done.stderr
    assert table(kvstore).tag == before
    # by a key it is one as well
    login = json.loads(kvstore.out("key", "create", "root", "--data", "data"))["*"]
    kvstore.out("token", *takings[2], "--data", "data")
    done = kvstore("key", "revoke", "root", "--data", "data", "--", login["public_key"])
    assert done.returncode == 2
    assert b"last admin" in done.stderr
    # what leaves an admin is done, and so is the rest with --force
    kvstore.out("token", "ungrant", "root", "ro:*", "--data", "data")
    kvstore.out("token", "revoke", "ci", "--data", "data")
    created(kvstore, "second", "--grant", "admin")
    kvstore.out("token", "revoke", "root", "--data", "data")
    assert kvstore("token", "revoke", "second", "--data", "data").returncode == 2
    kvstore.out("token", "revoke", "second", "--force", "--data", "data")
    assert list(listed(kvstore)) == ["ended"]


def test_another_admin_is_told_of_the_others(kvstore: CommandLine) -> None:
    created(kvstore, "first", "--grant", "admin")
    created(kvstore, "ci", "--grant", "rw:app/")
    done = kvstore("token", "create", "second", "--grant", "admin", "--data", "data")
    assert b"other admins: first;" in done.stderr
    assert token_id(done.stdout.decode().strip())


def test_a_key_comes_as_a_login_file(kvstore: CommandLine) -> None:
    done = kvstore.out(
        "key", "create", "prices", "--grant", "rw:prices/", "--output", "k.json", "--data", "data"
    )
    assert done == b""
    path = kvstore.folder / "k.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    login = json.loads(path.read_text())["*"]
    assert login["server_key"] == json.loads((kvstore.folder / "data/access.key").read_text())["public_key"]
    found = table(kvstore)
    who = found.of_public_key(login["public_key"], found.identities["prices"].created_at)
    assert who is not None
    assert who.grants.texts == ("rw:prices/",)
    kept = "".join(file.read_text() for file in (kvstore.folder / "data").iterdir())
    assert login["secret_key"] not in kept

    assert kvstore("key", "create", "prices", "--grant", "ro:*", "--data", "data").returncode == 4
    second = json.loads(kvstore.out("key", "create", "prices", "--for", "1d", "--data", "data"))["*"]
    assert kvstore("key", "create", "nobody", "--data", "data").returncode == 3
    assert kvstore("key", "create", "prices", "--output", "k.json", "--data", "data").returncode == 2
    assert [key["public_key"] for key in listed(kvstore)["prices"]["keys"]] == [
        login["public_key"],
        second["public_key"],
    ]
    kvstore.out("key", "revoke", "prices", "--data", "data", "--", login["public_key"])
    assert [key["public_key"] for key in listed(kvstore)["prices"]["keys"]] == [second["public_key"]]
    assert kvstore("key", "revoke", "prices", "--data", "data", "--", login["public_key"]).returncode == 3


def test_what_cannot_be_said_of_a_folder_is_a_usage_error(kvstore: CommandLine) -> None:
    assert kvstore("token", "list", "--data", "data", "--url", "http://127.0.0.1:1").returncode == 2
    done = kvstore("token", "list", "--data", "nowhere")
    assert done.returncode == 5
    assert b"there is no data folder" in done.stderr
    done = kvstore("token", "list", "--data", "data")
    assert done.returncode == 3
    assert b"access is off" in done.stderr


def test_a_file_of_identities_that_cannot_be_read_is_left_as_it_is(kvstore: CommandLine) -> None:
    path = kvstore.folder / "data/access.json"
    for text in ("", "{}", '{"version": 2, "identities": []}', "not JSON"):
        path.write_text(text)
        done = kvstore("token", "create", "x", "--grant", "ro:*", "--data", "data")
        assert done.returncode == 1
        assert b"access.json cannot be used" in done.stderr
        assert path.read_text() == text


def test_two_at_once_lose_nothing(kvstore: CommandLine) -> None:
    names = [f"n{number}" for number in range(4)]
    running = [
        kvstore.start("token", "create", name, "--grant", f"ro:{name}/", "--data", "data") for name in names
    ]
    assert [each.wait() for each in running] == [0] * len(names)
    assert sorted(listed(kvstore)) == names
