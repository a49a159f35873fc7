"""``kvstore edit`` and ``rename``, and the other names of commands."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from support.command_line import CommandLine

pytestmark = pytest.mark.slow


def record(kvstore: CommandLine, key: str) -> dict[str, object]:
    (found,) = kvstore.lines("get", key, "--json")
    assert isinstance(found, dict)
    return found


def edited(kvstore: CommandLine, key: str, script: str, *more: str) -> tuple[int, str, str]:
    """The status and the output of an edit by a script of sed, or of the shell."""
    done = kvstore("edit", key, *more, env={"VISUAL": script, "TMPDIR": str(kvstore.folder)})
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def left_over(kvstore: CommandLine) -> list[Path]:
    return list(kvstore.folder.glob("kvstore-edit-*/*"))


def test_an_edit_keeps_type_expiry_and_line_ends_and_leaves_no_file(kvstore: CommandLine) -> None:
    kvstore.out("put", "edit/a", '{"n": 1}', "--content-type", "application/json", "--ttl", "1h")
    before = record(kvstore, "edit/a")
    status, out, _ = edited(kvstore, "edit/a", "sed -i 's/1/2/;$a\\'", "-m", "because")
    after = record(kvstore, "edit/a")
    assert (status, out) == (0, f"{after['revision']}\n")
    assert after["value"] == '{"n": 2}'
    assert [after[name] for name in ("content_type", "expires_at")] == [
        before[name] for name in ("content_type", "expires_at")
    ]
    assert after["message"] == "because"
    assert left_over(kvstore) == []


def test_an_edit_creates_a_key_and_writes_nothing_where_nothing_was_changed(kvstore: CommandLine) -> None:
    assert edited(kvstore, "edit/new", "printf 'first\\n' >")[0] == 0
    before = record(kvstore, "edit/new")
    assert before["value"] == "first"
    status, out, err = edited(kvstore, "edit/new", "true")
    assert (status, out, err) == (0, "", "kvstore: nothing was changed\n")
    assert record(kvstore, "edit/new") == before
    assert left_over(kvstore) == []


def test_an_edit_that_comes_too_late_shows_the_difference_and_keeps_what_was_typed(
    kvstore: CommandLine,
) -> None:
    kvstore.out("put", "edit/race", "mine")
    script = kvstore.folder / "slow-editor"
    program = f"{kvstore.environment['PATH'].split(':')[0]}/kvstore"
    script.write_text(f'#!/bin/sh\n{program} put edit/race theirs\necho ours >"$1"\n')
    script.chmod(0o755)
    status, _, err = edited(kvstore, "edit/race", str(script))
    assert status == 4
    assert "-theirs\n+ours\n" in err
    (kept,) = left_over(kvstore)
    assert str(kept) in err
    assert kept.read_text() == "ours\n"
    assert record(kvstore, "edit/race")["value"] == "theirs"
    kept.unlink()


def test_json_stays_json_and_what_was_typed_is_kept(kvstore: CommandLine) -> None:
    kvstore.out("put", "edit/json", "{}", "--content-type", "application/problem+json")
    status, _, err = edited(kvstore, "edit/json", "printf '{' >")
    (kept,) = left_over(kvstore)
    assert status == 1
    assert "not JSON any more" in err
    assert kept.suffix == ".json"
    assert str(kept) in err
    assert record(kvstore, "edit/json")["value"] == "{}"
    kept.unlink()


def test_what_an_editor_would_damage_is_not_opened_and_a_failing_editor_writes_nothing(
    kvstore: CommandLine,
) -> None:
    kvstore.out("put", "edit/binary", "-", stdin=b"\xff\x00")
    status, _, err = edited(kvstore, "edit/binary", "touch opened")
    assert (status, (kvstore.folder / "opened").exists()) == (1, False)
    assert "--raw" in err
    kvstore.out("put", "edit/fails", "1")
    status, _, err = edited(kvstore, "edit/fails", "exit 3;")
    assert status == 1
    assert "status 3" in err
    assert left_over(kvstore) == []


def test_a_rename_is_one_revision_and_keeps_value_type_and_expiry(kvstore: CommandLine) -> None:
    kvstore.out("put", "rename/a", "-", "--content-type", "image/png", "--ttl", "1h", stdin=b"\xff\x00")
    before = record(kvstore, "rename/a")
    (made,) = kvstore.lines("rename", "rename/a", "rename/b", "--json")
    after = record(kvstore, "rename/b")
    assert made == {name: after[name] for name in made}
    assert made["revision"] == after["revision"]
    kept = ("value_b64", "content_type", "expires_at")
    assert [after[name] for name in kept] == [before[name] for name in kept]
    (gone,) = kvstore.lines("history", "rename/a", "--limit", "1", "--json")
    assert (gone["op"], gone["revision"]) == ("delete", after["revision"])


def test_a_rename_replaces_nothing_unless_forced(kvstore: CommandLine) -> None:
    kvstore.out("put", "rename/from", "new")
    kvstore.out("put", "rename/to", "old")
    refused = kvstore("rename", "rename/from", "rename/to")
    assert (refused.returncode, b"'rename/to' already; --force" in refused.stderr) == (4, True)
    assert [record(kvstore, key)["value"] for key in ("rename/from", "rename/to")] == ["new", "old"]
    revision = kvstore.out("rename", "rename/from", "rename/to", "--force").decode()
    assert record(kvstore, "rename/to")["value"] == "new"
    assert revision == f"{record(kvstore, 'rename/to')['revision']}\n"
    assert kvstore("get", "rename/from").returncode == 3
    assert kvstore("rename", "rename/from", "rename/there").returncode == 3
    assert kvstore("rename", "rename/to", "rename/to").returncode == 2


def test_a_prefix_is_renamed_in_one_revision_or_not_at_all(kvstore: CommandLine) -> None:
    for n in range(3):
        kvstore.out("put", f"folder/{n}", str(n))
    kvstore.out("put", "moved/1", "taken")
    assert kvstore("rename", "--prefix", "folder/", "moved/").returncode == 4
    assert kvstore.out("list", "moved/") == b"moved/1\n"
    kvstore.out("delete", "moved/1")
    assert kvstore.out("rename", "--prefix", "folder/", "moved/") == b"3\n"
    assert kvstore.out("list", "folder/") == b""
    assert len({found["revision"] for found in kvstore.lines("get", "--prefix", "moved/", "--json")}) == 1
    assert kvstore("rename", "--prefix", "folder/", "moved/").returncode == 3
    kvstore.out("put", "moved/x/1", "1")
    refused = kvstore("rename", "--prefix", "moved/", "moved/x/")
    assert (refused.returncode, b"third prefix" in refused.stderr) == (1, True)


def test_a_prefix_and_a_folder_are_not_confused_in_a_rename(kvstore: CommandLine) -> None:
    kvstore.out("put", "slash/old/sub", "1")
    refused = kvstore("rename", "--prefix", "slash/old", "slash/new/")
    assert refused.returncode == 2
    assert b"'slash/new//sub'" in refused.stderr
    assert kvstore.out("list", "slash/") == b"slash/old/sub\n"
    assert kvstore.out("rename", "--prefix", "slash/old/", "slash/new/") == b"1\n"
    assert kvstore.out("list", "slash/") == b"slash/new/sub\n"
    done = kvstore("rename", "--prefix", "slash/new/", "slash/new")
    assert b"no slash: the first key is 'slash/newsub' now" in done.stderr


def test_a_key_that_is_written_all_the_time_is_renamed_with_its_last_value(kvstore: CommandLine) -> None:
    kvstore.out("put", "busy/a", "0")
    stopped = threading.Event()
    last = [0]

    def write() -> None:
        while not stopped.is_set():
            done = kvstore("incr", "busy/a")
            if done.returncode == 0 and not stopped.is_set():
                last[0] = int(done.stdout)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = kvstore("rename", "busy/a", "busy/b")
    finally:
        stopped.set()
        writer.join()
    assert done.returncode in (0, 4), done.stderr
    deleted = [event for event in kvstore.lines("history", "busy/a", "--json") if event["op"] == "delete"]
    assert len(deleted) == (done.returncode == 0)
    if deleted:
        (put,) = kvstore.lines(
            "history", "busy/a", "--before", str(deleted[0]["revision"]), "--limit", "1", "--json"
        )
        assert record(kvstore, "busy/b")["value"] == put["value"]


def test_set_del_and_watch_are_put_delete_and_subscribe(kvstore: CommandLine) -> None:
    assert re.fullmatch(rb"\d+\n", kvstore.out("set", "alias/a", "1"))
    assert kvstore("watch", "alias/a", "--snapshot", "--count", "1", "--json").stdout.startswith(
        b'{"event":"put"'
    )
    assert kvstore("del", "alias/a").stderr == b""
    assert kvstore("get", "alias/a").returncode == 3
    assert "'set' is 'kvstore put'" in kvstore.on_terminal("set", "alias/a", "1")
