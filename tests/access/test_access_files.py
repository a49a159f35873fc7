"""The files of access: made once, readable by their owner alone, and taken when they change."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstore_cli.config.resolve import resolve
from kvstore_client import Client, commands
from kvstore_core.access import changes
from kvstore_core.access import identities as identities_module
from kvstore_core.access.grants import GrantSet, Need
from kvstore_core.access.identities import MAX_IDENTITIES, AccessTable, Identity, StoredKey, StoredToken
from kvstore_core.access.login_file import login_for
from kvstore_core.access.principal import THE_FACADE
from kvstore_core.access.tokens import new_token
from kvstore_core.errors import BadRequest, KvError, NotAllowed, NotFound, TooBusy, Unauthenticated
from kvstore_daemon.access import authority as authority_module
from kvstore_daemon.access.access_files import OPERATOR, edit, make_first_admin, read_table, server_keys
from kvstore_daemon.access.authority import Authority, FileAuthority, open_authority
from kvstore_daemon.requests.pending_request import REPLY_BYTES
from support.servers import Daemon, StartDaemon, clean_environment, run_kvstore, wait_until

NOW = 1_800_000_000_000
KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
FILES = ("access.json", "access.key", "access.lock", "admin.token", "facade.key")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def put(name: str, *grants: str, key: str | None = None) -> changes.Change:
    return changes.put_identity(name, NOW, grants=grants, key=key and StoredKey(key, NOW))


def opened(folder: Path) -> FileAuthority:
    return FileAuthority(folder, None, None)


def refused_start(data: Path, *options: str) -> str:
    """What a daemon says that does not start."""
    addresses = ("--requests", "ipc://requests", "--changes", "ipc://changes")
    environment = clean_environment(data.parent, KVSTORE_LOG_FORMAT="text")
    arguments = ("--data", str(data), *addresses, *options)
    done = run_kvstore("daemon", *arguments, env=environment, cwd=data.parent)
    assert done.returncode == 1, done.stderr
    return done.stderr.decode()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ── the first start ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mask", [0, 0o077, 0o777])
def test_all_files_are_readable_by_their_owner_alone_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        opened(tmp_path)
    assert {path.name: mode_of(path) for path in tmp_path.iterdir()} == dict.fromkeys(FILES, 0o600)


def test_a_first_start_makes_an_admin_and_a_second_one_nothing(tmp_path: Path) -> None:
    first = opened(tmp_path)
    token = (tmp_path / "admin.token").read_text().strip()
    who = first.table.of_credential(token, NOW)
    assert (who.name, who.grants.texts) == ("admin", ("admin", "monitor", "all:*"))
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    second = opened(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    assert second.keys == first.keys
    (tmp_path / "admin.token").unlink()
    opened(tmp_path)
    assert not (tmp_path / "admin.token").exists()


def test_the_files_hold_no_token_but_the_one_that_is_named_so(tmp_path: Path) -> None:
    opened(tmp_path)
    secret = (tmp_path / "admin.token").read_text().strip()[12:]
    assert not [name for name in FILES if name != "admin.token" and secret in (tmp_path / name).read_text()]


def test_of_two_first_starts_at_once_one_makes_the_admin(tmp_path: Path) -> None:
    made: list[Path | None] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        made.append(make_first_admin(tmp_path))
        server_keys(tmp_path)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path is None for path in made) == [False] + [True] * 7
    token = (tmp_path / "admin.token").read_text().strip()
    assert read_table(tmp_path / "access.json").table.of_credential(token, NOW).name == "admin"


def test_a_start_says_where_the_token_is_and_not_what(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(access="required")
    token = daemon.data / "admin.token"
    assert f"made the identity 'admin'; its token is in {token}" in daemon.stderr
    assert token.read_text().strip()[12:] not in daemon.stderr
    daemon.restart()
    assert daemon.stderr.count("made the identity") == 1


def test_a_start_without_the_identities_that_there_were_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]

    opened(tmp_path)
    assert warnings() == []
    (tmp_path / "access.json").unlink()
    opened(tmp_path)
    (warning,) = warnings()
    assert warning.startswith(f"{tmp_path}/access.json was gone, and with it all identities")


@pytest.mark.parametrize("name", ["access.json", "access.key"])
def test_a_start_with_access_off_says_that_identities_are_not_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    settings = resolve(
        {"data": str(tmp_path), "access": "off"}, "daemon", environ={"KVSTORE_CONFIG": "/dev/null"}
    ).daemon_settings()
    assert not open_authority(settings).is_on
    assert caplog.messages == []
    (tmp_path / name).touch()
    assert not open_authority(settings).is_on
    assert caplog.messages == [
        f"access is off: {tmp_path / name} is not looked at, and everybody may do everything"
    ]


def test_the_key_of_the_facade_is_a_login_file_for_any_address(tmp_path: Path) -> None:
    keys = opened(tmp_path).keys
    assert login_for(tmp_path / "facade.key", "tcp://10.0.0.1:5555").keys == keys.facade
    assert keys.facade.server_key == keys.public_key
    (tmp_path / "facade.key").unlink()
    assert opened(tmp_path).keys == keys
    assert login_for(tmp_path / "facade.key", "tcp://10.0.0.1:5555").keys == keys.facade


# ── files that cannot be used ────────────────────────────────────────────────────────────────────

BAD_TABLES = {
    "empty": b"",
    "half written": AccessTable(()).encode()[:-5],
    "an empty object": b"{}",
    "another version": b'{"version": 2, "identities": []}',
    "no object": b"[]",
    "a name twice": json.dumps(
        {
            "version": 1,
            "identities": [
                {"name": "a", "created_at": "2027-01-31T12:00:00Z"},
                {"name": "a", "created_at": "2027-01-31T12:00:00Z"},
            ],
        }
    ).encode(),
    "the name of kvstore's own": AccessTable(())
    .encode()
    .replace(b"[]", b'[{"name": "%s", "created_at": "2027-01-31T12:00:00Z"}]' % OPERATOR.encode()),
    "an end of what has none": AccessTable(())
    .encode()
    .replace(
        b"[]",
        b'[{"name": "anonymous", "created_at": "2027-01-31T12:00Z", "expires_at": "2027-01-31T12:00Z"}]',
    ),
    "not UTF-8": b'{"version": 1, "identities": ["\xff"]}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("bad", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_not_started_with_and_not_taken(tmp_path: Path, bad: bytes) -> None:
    running = opened(tmp_path)
    before = running.table
    (tmp_path / "access.json").write_bytes(bad)
    assert not running.look()
    assert running.table is before
    assert "access.json cannot be used: " in str(running.status()["problem"])
    with pytest.raises(BadRequest, match=r"access\.json cannot be used: "):
        opened(tmp_path)
    with pytest.raises(BadRequest, match=r"access\.json cannot be used: "):
        edit(tmp_path, put("a"))
    assert (tmp_path / "access.json").read_bytes() == bad


def test_what_is_mended_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    running, path = opened(tmp_path), tmp_path / "access.json"
    good = path.read_bytes()
    path.write_bytes(b"{")
    assert [running.look() for _ in range(3)] == [False] * 3
    assert len([line for line in caplog.records if line.levelname == "ERROR"]) == 1
    path.write_bytes(good.replace(b'"monitor",', b"", 1))
    assert running.look()
    assert running.status()["problem"] is None


def test_two_changes_that_get_the_same_time_are_both_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority_module, "SETTLED_NS", 3_600_000_000_000)  # however long this test takes
    running, path = opened(tmp_path), tmp_path / "access.json"
    edit(tmp_path, put("one", "ro:a/"))
    assert running.look()
    before = path.stat()
    with path.open("r+b") as file:  # in place, so that the file stays the same one
        file.write(path.read_bytes().replace(b'"ro:a/"', b'"rw:b/"'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )
    assert running.look()
    assert running.table.identities["one"].grants.texts == ("rw:b/",)


def test_with_the_table_gone_nobody_is_let_in_but_the_facade(tmp_path: Path) -> None:
    running = opened(tmp_path)
    edit(tmp_path, put("ci", "rw:*", key=KEY))
    edit(tmp_path, put("anonymous", "ro:*"))
    assert running.look()
    assert running.principal_of(KEY).name == "ci"
    away = tmp_path / "away"
    (tmp_path / "access.json").rename(away)
    assert running.look()
    with pytest.raises(Unauthenticated):
        running.principal_of(KEY)
    assert not running.table.identities
    assert not running.table.anonymous.grants.texts
    assert "is gone: nobody is let in" in str(running.status()["problem"])
    assert running.principal_of(running.keys.facade.public_key) is THE_FACADE
    assert not running.look()
    away.rename(tmp_path / "access.json")  # with the time and the inode that it had
    assert running.look()
    assert running.principal_of(KEY).name == "ci"
    assert running.status()["problem"] is None


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660])
def test_keys_that_others_can_read_are_not_used(tmp_path: Path, mode: int) -> None:
    opened(tmp_path)
    key = tmp_path / "access.key"
    key.chmod(mode)
    with pytest.raises(NotAllowed, match=f"others can read {key}, which holds secrets: chmod 600 {key}"):
        opened(tmp_path)


def test_a_daemon_does_not_start_with_keys_that_others_can_read(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "access.key").chmod(0o644)
    assert "access.key, which holds secrets: chmod 600 " in refused_start(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"public_key": 7}', "x"])
def test_keys_that_are_none_are_not_replaced_silently(tmp_path: Path, text: str) -> None:
    opened(tmp_path)
    (tmp_path / "access.key").write_text(text)
    with pytest.raises(BadRequest, match=r"access\.key cannot be used: .* makes new keys"):
        opened(tmp_path)
    assert (tmp_path / "access.key").read_text() == text


# ── changes ──────────────────────────────────────────────────────────────────────────────────────


def test_changes_from_several_sides_all_last(tmp_path: Path) -> None:
    def add(side: int) -> None:
        for number in range(10):
            edit(tmp_path, put(f"n{side}-{number}", "ro:a/"))

    threads = [threading.Thread(target=add, args=(side,)) for side in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_table(tmp_path / "access.json").table.identities) == 40
    assert {path.name for path in tmp_path.iterdir()} == {"access.json", "access.lock"}


def test_what_a_killed_writer_left_goes_with_the_next_change(tmp_path: Path) -> None:
    opened(tmp_path)
    draft, other = tmp_path / ".access.key.0a1b2c3d.part", tmp_path / ".other.0a1b2c3d.part"
    for path in (draft, other):
        path.touch()
    edit(tmp_path, put("a"))
    assert [path.exists() for path in (draft, other)] == [False, True]


def test_the_daemon_does_not_wait_for_a_command_that_hangs(tmp_path: Path) -> None:
    running = opened(tmp_path)
    descriptor = os.open(tmp_path / "access.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(TooBusy, match="another command changes the identities; try again"):
            running.change(put("a"), "a")
    finally:
        os.close(descriptor)
    running.change(put("a"), "a")
    assert "a" in running.table.identities


def test_whoever_may_open_the_folder_cannot_hold_up_its_owner(tmp_path: Path) -> None:
    """To lock a file it is enough to be able to read it."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        running = opened(tmp_path)
        lock = (tmp_path / "access.lock").stat()
        running.change(put("a"), "a")
        edit(tmp_path, put("b"), patience=0)
    finally:
        os.close(descriptor)
    after = (tmp_path / "access.lock").stat()
    assert (after.st_ino, mode_of(tmp_path / "access.lock")) == (lock.st_ino, 0o600)  # or two could hold it
    (tmp_path / "access.lock").chmod(0o644)
    edit(tmp_path, put("c"))
    assert mode_of(tmp_path / "access.lock") == 0o600


def test_a_change_reads_no_identity_that_the_daemon_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up everybody else, so it may not take as long as a start does."""
    opened(tmp_path)
    edit(tmp_path, rows(50, "ro:a/"))
    running = opened(tmp_path)
    read: list[str] = []
    real = identities_module._identity

    def spy(value: Any, where: str) -> Identity:
        read.append(value["name"])
        return real(value, where)

    monkeypatch.setattr(identities_module, "_identity", spy)
    running.change(put("new"), "new")
    assert not running.look()
    os.utime(tmp_path / "access.json")
    assert not running.look()
    assert read == ["new"]
    edit(tmp_path, put("other"))  # a command's
    assert running.look()
    assert "other" in running.table.identities


def rows(number: int, *grants: str) -> changes.Change:
    """Add so many identities at once."""
    more = [Identity(f"row{each}", GrantSet(grants), NOW) for each in range(number)]
    return lambda table: table.with_rows([*table.identities.values(), *more])


@pytest.mark.parametrize(
    ("number", "grants", "said"),
    [
        (MAX_IDENTITIES - 3, [], "it has 2000 identities; at most 1999"),
        (79, [f"read:{each:03}{'x' * 500}" for each in range(100)], "more than 4194304 bytes"),
    ],
    ids=["many", "large"],
)
def test_a_table_that_no_start_could_read_is_not_written(
    tmp_path: Path, number: int, grants: list[str], said: str
) -> None:
    opened(tmp_path)
    edit(tmp_path, rows(number, *grants))
    running = opened(tmp_path)
    running.change(put("n0", *grants), "n0")

    def change_until_refused() -> None:
        for each in range(1, 10):
            running.change(put(f"n{each}", *grants), f"n{each}")

    with pytest.raises(BadRequest, match=said):
        change_until_refused()
    again = opened(tmp_path)
    assert again.table.tag == running.table.tag
    assert "n0" in again.table.identities
    assert len(again.table.encode()) < REPLY_BYTES // 2


def test_what_a_change_raises_leaves_the_file(tmp_path: Path) -> None:
    opened(tmp_path)
    before = (tmp_path / "access.json").read_bytes()
    with pytest.raises(NotFound):
        edit(tmp_path, changes.delete_identity("nobody"))
    assert (tmp_path / "access.json").read_bytes() == before


def test_a_file_of_the_operators_is_read_and_never_written(tmp_path: Path) -> None:
    file = tmp_path / "identities.json"
    edit(tmp_path, put("ci", "rw:app/", key=KEY))
    (tmp_path / "access.json").rename(file)
    data = tmp_path / "data"
    data.mkdir()
    running = FileAuthority(data, file, None)
    assert running.principal_of(KEY).name == "ci"
    assert not (data / "access.json").exists()
    assert not (data / "admin.token").exists()
    with pytest.raises(NotAllowed, match=f"identities come from {file}"):
        running.change(put("a"), "a")
    # as Kubernetes does: another file behind the same name
    other = tmp_path / "other.json"
    other.write_bytes(AccessTable(()).encode())
    link = tmp_path / "link"
    link.symlink_to(other)
    link.rename(file)
    assert running.look()
    assert not running.table.identities
    file.unlink()
    running.look()
    assert "is gone" in str(running.status()["problem"])
    with pytest.raises(BadRequest, match=r"--access-file .*there is no such file"):
        FileAuthority(data, file, None)


# ── the operator's token ─────────────────────────────────────────────────────────────────────────


def token_file(folder: Path, text: str) -> Path:
    path = folder / "token"
    path.write_text(text)
    return path


def test_the_operators_token_is_admin_and_nothing_is_written_of_it(tmp_path: Path) -> None:
    data, token = tmp_path / "data", new_token()
    data.mkdir()
    running = FileAuthority(data, None, token_file(tmp_path, f"{token.text}\n"))
    who = running.table.of_credential(token.text, NOW)
    assert (who.name, who.may(Need("admin")), who.may(Need("monitor"))) == (OPERATOR, True, True)
    assert {path.name for path in data.iterdir()} == {"access.key", "access.lock", "facade.key"}
    running.change(put("ci", "ro:a/"), "ci")
    assert token.id not in (data / "access.json").read_text()
    for change in (changes.delete_identity(OPERATOR), put(OPERATOR)):
        with pytest.raises(NotAllowed, match="--admin-token-file"):
            running.change(change, OPERATOR)
    (data / "access.json").unlink()
    assert running.look()
    assert running.table.of_credential(token.text, NOW).name == OPERATOR
    with pytest.raises(Unauthenticated):
        FileAuthority(data, None, None).table.of_credential(token.text, NOW)


def test_a_token_that_an_identity_has_may_be_the_operators_too(tmp_path: Path) -> None:
    opened(tmp_path)
    token = (tmp_path / "admin.token").read_text().strip()
    running = FileAuthority(tmp_path, None, tmp_path / "admin.token")
    assert running.table.of_credential(token, NOW).name == OPERATOR


@pytest.mark.parametrize("text", ["", "secret", "kv_7q2m9xk4_" + "0" * 49, "x" * 10_000])
def test_a_file_without_a_token_is_not_used(tmp_path: Path, text: str) -> None:
    path = token_file(tmp_path, text)
    with pytest.raises(BadRequest, match=f"--admin-token-file {path} holds no token, or a mistyped") as error:
        FileAuthority(tmp_path, None, path)
    assert not text or text not in str(error.value)


def test_a_daemon_does_not_start_with_a_file_without_a_token(tmp_path: Path) -> None:
    path = token_file(tmp_path, "secret")
    said = refused_start(tmp_path / "data", "--admin-token-file", str(path))
    assert f"kvstore daemon: --admin-token-file {path} holds no token" in said
    assert "secret" not in said


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``clock(ms)``: set the wall clock by which credentials end."""

    def clock(now: int) -> None:
        monkeypatch.setattr(authority_module, "now_ms", lambda: now)

    clock(NOW)
    return clock


def test_an_end_is_told_once_and_goes_by_the_clock_as_it_is_set(
    tmp_path: Path, clock: Callable[[int], None]
) -> None:
    running = opened(tmp_path)
    key = StoredKey(KEY, NOW, NOW + 10)
    running.change(changes.put_identity("ci", NOW, grants=["ro:*"], key=key), "ci")
    assert not running.look()
    assert running.principal_of(KEY).name == "ci"
    clock(NOW + 10)
    assert [running.look(), running.look()] == [True, False]
    with pytest.raises(Unauthenticated):
        running.principal_of(KEY)
    clock(NOW)
    assert not running.look()
    assert running.principal_of(KEY).name == "ci"
    clock(NOW + 20)
    assert running.look()
    running.change(changes.delete_key("ci", KEY), "ci")
    clock(NOW - 86_400_000)
    running.look()
    with pytest.raises(Unauthenticated):
        running.principal_of(KEY)


# ── one change after another ─────────────────────────────────────────────────────────────────────


def token_of(number: int) -> tuple[StoredToken, str]:
    token = new_token()
    return StoredToken(token.id, token.digest, NOW + number), token.text


def test_a_rotation_lets_both_tokens_in_and_then_one() -> None:
    (old, old_text), (new, new_text) = token_of(0), token_of(1)
    table = changes.put_identity("ci", NOW, token=old)(AccessTable(()))
    rotated = changes.add_token("ci", new, NOW, keep_ms=1000)(table)
    assert changes.add_token("ci", new, NOW, keep_ms=1000)(rotated).tag == rotated.tag
    for text in (old_text, new_text):
        assert rotated.of_credential(text, NOW + 999).name == "ci"
    with pytest.raises(Unauthenticated, match="has expired"):
        rotated.of_credential(old_text, NOW + 1000)
    assert rotated.of_credential(new_text, NOW + 1000).name == "ci"
    at_once = changes.add_token("ci", new, NOW, keep_ms=0)(table)
    with pytest.raises(Unauthenticated, match="not known"):
        at_once.of_credential(old_text, NOW)
    later = changes.add_token("ci", token_of(2)[0], NOW + 5000)(rotated)
    assert old.id not in {token.id for token in later.identities["ci"].tokens}


def test_grants_are_replaced_added_and_taken_away() -> None:
    table = put("ci", "ro:a/", "rw:b/")(AccessTable(()))

    def grants_after(**more: object) -> tuple[str, ...]:
        changed = changes.put_identity("ci", NOW, **more)(table)  # type: ignore[arg-type]
        return changed.identities["ci"].grants.texts

    assert grants_after() == ("ro:a/", "rw:b/")
    assert grants_after(grants=["admin"]) == ("admin",)
    assert grants_after(grant=["ro:a/", "ro:c/"]) == ("ro:a/", "rw:b/", "ro:c/")
    assert grants_after(ungrant=["ro:a/"], grant=["ro:d/"]) == ("rw:b/", "ro:d/")
    assert grants_after(grants=[]) == ()
    with pytest.raises(NotFound, match=r"'ci' has no grant 'ro:b/'; it has: ro:a/, rw:b/"):
        grants_after(ungrant=["ro:b/"])
    with pytest.raises(BadRequest, match="unknown verb 'rx'"):
        grants_after(grant=["rx:a/"])


def test_creating_twice_is_told_and_repeating_a_creation_is_not() -> None:
    token, _ = token_of(0)
    create = changes.put_identity("ci", NOW, create=True, grants=["ro:a/"], token=token)
    table = create(AccessTable(()))
    assert create(table) is table
    with pytest.raises(KvError, match="there is an identity 'ci' already") as caught:
        changes.put_identity("ci", NOW, create=True, grants=["admin"], token=token_of(1)[0])(table)
    assert caught.value.code == "condition_failed"
    with pytest.raises(NotFound, match="there is no identity 'cj'"):
        changes.put_identity("cj", NOW, create=False)(table)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (changes.put_identity("facade", NOW), "bad_request", "kvstore's own"),
        (changes.put_identity("a/b", NOW), "bad_request", "not the name of an identity"),
        (changes.put_identity("anonymous", NOW, grants=["admin"]), "bad_request", "never admin"),
        (changes.put_identity("anonymous", NOW, key=StoredKey(KEY, NOW)), "bad_request", "it gets none"),
        (changes.put_identity("anonymous", NOW, expires_at=NOW), "bad_request", "has no end"),
        (changes.put_identity("other", NOW, key=StoredKey(KEY, NOW)), "condition_failed", "there twice"),
        (changes.delete_token("ci", "00000000"), "not_found", "'ci' has no token '00000000'"),
        (changes.delete_key("ci", KEY[::-1]), "not_found", "'ci' has no key"),
        (changes.add_token("nobody", token_of(0)[0], NOW), "not_found", "no identity 'nobody'"),
        (changes.delete_identity("nobody"), "not_found", "no identity 'nobody'"),
    ],
)
def test_what_cannot_be_is_said(change: changes.Change, code: str, said: str) -> None:
    table = put("ci", "ro:a/", key=KEY)(AccessTable(()))
    with pytest.raises(KvError, match=said) as caught:
        change(table)
    assert caught.value.code == code


def test_the_credentials_of_an_identity_are_bounded() -> None:
    table = put("ci")(AccessTable(()))
    for number in range(20):
        table = changes.add_token("ci", token_of(number)[0], NOW)(table)
    with pytest.raises(BadRequest, match="'ci' has 20 tokens and keys; revoke one first"):
        changes.add_token("ci", token_of(20)[0], NOW)(table)


# ── beside the daemon ────────────────────────────────────────────────────────────────────────────


def test_a_change_of_the_file_is_taken_by_a_running_daemon(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(access="required")
    edit(daemon.data, put("ci", "ro:a/"))
    wait_until(lambda: "took the identities in" in daemon.stderr, what="the daemon takes the file")


@pytest.mark.lmdb_only("backup and restore of its file")
def test_no_backup_has_what_is_secret_and_a_restore_revives_nothing(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    daemon = start_daemon()
    with Client(daemon.requests) as client:
        client.batch([commands.put(f"k{number}", b"v" * 100) for number in range(100)])
    daemon.restart(access="required")
    token = new_token()
    stored = StoredToken(token.id, token.digest, NOW)
    edit(daemon.data, changes.put_identity("revoked-one", NOW, token=stored))
    secrets = [(daemon.data / name).read_text() for name in FILES if name != "access.json"]
    words = {word for text in secrets for word in re.findall(r"[^\s\"]{16,}", text)} - {"facade_public_key"}
    words |= {token.id, token.digest, "revoked-one"}

    def kvstore(*arguments: str) -> bytes:
        done = run_kvstore(*arguments, "--data", str(daemon.data), env=daemon.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    backup = kvstore("backup", "-")
    assert b"v" * 100 in backup
    assert not [word for word in words if word.encode() in backup]
    edit(daemon.data, changes.delete_identity("revoked-one"))
    before = {name: (daemon.data / name).read_bytes() for name in FILES}
    daemon.stop()
    file = tmp_path / "backup"
    file.write_bytes(backup)
    kvstore("restore", "--force", str(file))
    kvstore("check")
    kvstore("compact")
    daemon.start()
    assert {name: (daemon.data / name).read_bytes() for name in FILES} == before
    with pytest.raises(Unauthenticated):
        read_table(daemon.data / "access.json").table.of_credential(token.text, NOW)


def test_without_identities_access_is_off_and_nothing_is_written(daemon: Daemon) -> None:
    assert not {path.name for path in daemon.data.iterdir()} & set(FILES)
    with pytest.raises(NotAllowed, match="start with --access required"):
        Authority().change(put("a"), "a")
