"""The commands as a user runs them: processes against a real service."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvstore_cli.command_line.group import COMMANDS, cli
from kvstore_cli.terminal import humanize
from kvstore_client import Client
from kvstore_core.operations import MESSAGE
from support.command_line import CommandLine
from support.scripted import answer
from support.servers import Daemon, Facade, free_port, kvstore_command, wait_until

pytestmark = pytest.mark.slow

Kvstore = Any

KEYS = ["//", ".", "..", "%2F", "%25", "?", "#", "+", " ", "a/../b", "-dash", "@at", "\n", "\t", "\x7f", "\\"]
KEYS += ["\u00e9", "e\u0301", "\u4e2d\u6587", "\U0001f511", "\U0010fffd", "\ufdd0", "'\"", "&=;", "x" * 511]


@pytest.mark.parametrize("key", KEYS)
def test_any_key_comes_back(kvstore: Kvstore, key: str) -> None:
    kvstore.out("put", "--", key, "v")
    assert kvstore.out("get", "--raw", "--", key) == b"v"
    assert kvstore.lines("get", "--json", "--", key)[0]["key"] == key
    assert kvstore.lines("history", "--json", "--", key)[0]["key"] == key
    kvstore.out("delete", "--", key)
    assert kvstore("get", "--", key).returncode == 3


def _keys() -> st.SearchStrategy[str]:
    characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    return st.text(characters, min_size=1, max_size=100).filter(lambda key: len(key.encode()) <= 511)


@settings(max_examples=15)
@given(key=_keys(), value=st.binary(max_size=2000))
@example(key="\u20ac" * 170, value=bytes(range(256)))
@example(key="k", value=b"")
def test_keys_and_values_round_trip(kvstore: Kvstore, key: str, value: bytes) -> None:
    kvstore.out("put", "--", key, "-", stdin=value)
    assert kvstore.out("get", "--raw", "--", key) == value
    assert kvstore.out("get", "--", key) == (value if value.endswith(b"\n") else value + b"\n")
    assert kvstore.out("wait", "--exists", "--raw", "--", key) == value


def test_a_value_of_the_largest_size_passes_and_one_more_byte_does_not(kvstore: Kvstore) -> None:
    kvstore.out("put", "large", "-", stdin=b"\xff" * 2**20)
    assert kvstore.out("get", "--raw", "large") == b"\xff" * 2**20
    for size in (2**20 + 1, 40_000_000):
        refused = kvstore("put", "large", "-", stdin=b"x" * size)
        assert refused.returncode == 1
        assert b"1048576" in refused.stderr


def test_a_value_can_come_from_a_file_an_argument_or_standard_input(kvstore: Kvstore) -> None:
    (kvstore.folder / "file").write_bytes(b"\0\xff")
    kvstore.out("put", "source", "@file")
    assert kvstore.out("get", "--raw", "source") == b"\0\xff"
    assert kvstore.lines("get", "--json", "source")[0]["content_type"] == "application/octet-stream"
    kvstore.out("put", "source", "@file", "--literal")
    assert kvstore.out("get", "--raw", "source") == b"@file"
    kvstore.out("put", "source", "-", "--literal")
    assert kvstore.out("get", "--raw", "source") == b"-"


def test_an_argument_that_is_not_utf8_is_stored_byte_for_byte(kvstore: Kvstore) -> None:
    command = [os.fsencode(part) for part in kvstore_command("put", "bytes")]
    subprocess.run([*command, b"\xff\xfe"], env=kvstore.environment, check=True, capture_output=True)
    assert kvstore.out("get", "--raw", "bytes") == b"\xff\xfe"


def test_the_locale_changes_nothing(kvstore: Kvstore) -> None:
    kvstore.out("put", "locale/\u00e9\U0001f511", "\u20ac")
    for name in ("C", "POSIX", "C.UTF-8", "de_DE.ISO-8859-1"):
        done = kvstore("get", "--prefix", "locale/", env={"LC_ALL": name, "PYTHONIOENCODING": "ascii"})
        assert done.stdout == "locale/\u00e9\U0001f511\t\u20ac\n".encode(), name


def test_text_is_stored_as_text_unless_another_type_is_given(kvstore: Kvstore) -> None:
    kvstore.out("put", "type", "text")
    assert kvstore.lines("get", "--json", "type")[0]["content_type"] == "text/plain; charset=utf-8"
    kvstore.out("put", "type", "{}", "--content-type", "application/json")
    assert kvstore.lines("get", "--json", "type")[0]["content_type"] == "application/json"


def test_put_prints_the_revision_for_the_next_condition(kvstore: Kvstore) -> None:
    revision = kvstore.out("put", "cas", "1").decode().strip()
    assert kvstore("put", "cas", "2", "--if-revision", str(int(revision) + 1)).returncode == 4
    newer = kvstore.out("put", "cas", "2", "--if-revision", revision).decode().strip()
    assert int(newer) > int(revision)
    assert kvstore("delete", "cas", "--if-revision", revision).returncode == 4
    assert kvstore("delete", "cas", "--if-revision", newer).returncode == 0


def test_if_absent_stores_only_once(kvstore: Kvstore) -> None:
    assert kvstore("put", "lock", "me", "--if-absent").returncode == 0
    refused = kvstore("put", "lock", "you", "--if-absent")
    assert refused.returncode == 4
    assert b"revision" in refused.stderr
    assert kvstore("put", "lock", "you", "--if-revision", "0").returncode == 4
    assert kvstore.out("get", "lock") == b"me\n"


def test_a_ttl_can_be_given_changed_and_taken_away(kvstore: Kvstore) -> None:
    kvstore.out("put", "ttl", "v", "--ttl", "1h")
    first = kvstore.lines("get", "--json", "ttl")[0]["expires_at"]
    kvstore.out("touch", "ttl", "--ttl", "2d")
    moment = kvstore.lines("get", "--json", "ttl")[0]["expires_at"]
    assert moment > first
    kvstore.out("put", "ttl", "w", "--keep-ttl")
    assert kvstore.lines("get", "--json", "ttl")[0]["expires_at"] == moment
    kvstore.out("persist", "ttl")
    assert "expires_at" not in kvstore.lines("get", "--json", "ttl")[0]
    kvstore.out("put", "ttl", "v", "--ttl", "50ms")
    assert kvstore("wait", "ttl", "--gone", "--timeout", "30s").returncode == 0


def test_incr_counts_in_both_directions_and_refuses_what_is_no_number(kvstore: Kvstore) -> None:
    assert kvstore.out("incr", "counted/visits") == b"1\n"
    assert kvstore.out("incr", "counted/visits", "--by", "-43") == b"-42\n"
    assert kvstore.lines("incr", "counted/visits", "--by", "42", "--json")[0]["value"] == 0
    kvstore.out("put", "counted/visits", "many")
    assert kvstore("incr", "counted/visits").returncode == 1


@pytest.mark.parametrize("number", ["-5", "-0.5", "-.5e3", "-2026-01-31"])
def test_a_negative_number_is_an_argument(kvstore: Kvstore, number: str) -> None:
    assert kvstore.out("put", "neg", number, "--ttl", "1h").strip().isdigit()
    assert kvstore.out("get", "neg") == number.encode() + b"\n"
    assert kvstore.out("put", "--if-absent", number, "as a key").strip().isdigit()
    assert kvstore.out("get", number, "neg", "--json").count(b"\n") == 2
    assert kvstore.out("wait", "--equals", number, "neg", "--quiet") == b""
    kvstore.out("delete", number)


def test_incr_takes_what_to_add_and_a_condition(kvstore: Kvstore) -> None:
    assert kvstore.out("incr", "adds", "-5") == b"-5\n"
    made = kvstore.lines("incr", "adds", "7", "--json")[0]
    assert made["value"] == 2
    assert kvstore.out("incr", "adds", "--if-revision", str(made["revision"])) == b"3\n"
    assert kvstore("incr", "adds", "-1", "--if-revision", str(made["revision"])).returncode == 4
    assert kvstore("incr", "adds", "--if-revision", "0").returncode == 4
    assert kvstore.out("incr", "adds", "0") == b"3\n"


def test_patch_changes_members_and_leaves_the_rest(kvstore: Kvstore) -> None:
    kvstore.out("put", "patch/k", '{"a": 1, "b": {"c": 2, "d": 3}}', "--content-type", "application/json")
    (kvstore.folder / "patch.json").write_text('{"b": {"c": null}}')
    kvstore.out("patch", "patch/k", "@patch.json")
    revision = kvstore.out("patch", "patch/k", "-", stdin=b'{"e": "x"}').decode().strip()
    assert json.loads(kvstore.out("get", "patch/k")) == {"a": 1, "b": {"d": 3}, "e": "x"}
    conditional = ("patch", "patch/k", '{"a": 5}', "--if-revision", revision)
    assert kvstore.lines(*conditional, "--ttl", "1h", "--json")[0]["expires_at"]
    assert kvstore(*conditional).returncode == 4
    assert json.loads(kvstore.out("get", "patch/k"))["a"] == 5
    kvstore.out("patch", "patch/new", "-5", "--if-revision", "0")
    assert kvstore.lines("get", "patch/new", "--json")[0]["content_type"] == "application/json"
    kvstore.out("put", "patch/text", "no JSON {")
    assert kvstore("patch", "patch/text", "{}").returncode == 1


def test_a_json_patch_is_refused_and_does_not_become_the_value(kvstore: Kvstore) -> None:
    kvstore.out("put", "patch/list", "[1]", "--content-type", "application/json")
    refused = kvstore("patch", "patch/list", "-", stdin=b' [{"op": "remove", "path": "/a"}]\n')
    assert (refused.returncode, b"RFC 6902" in refused.stderr) == (2, True)
    for value in ('[{"op": "remove"}]', "[]", "[2]"):
        kvstore.out("patch", "patch/list", value)
        assert kvstore.out("get", "patch/list").decode() == f"{value}\n"


def test_several_keys_come_in_the_order_in_which_they_were_asked_for(kvstore: Kvstore) -> None:
    for name in "abc":
        kvstore.out("put", f"some/{name}", f"value {name}")
    kvstore.out("put", "some/bin", "-", stdin=b"\xff\n")
    assert kvstore.out("get", "some/c", "some/bin", "some/a") == (
        b"some/c\tvalue c\nsome/bin\t\xff\n\nsome/a\tvalue a\n"
    )
    assert kvstore.out("get", "some/a", "some/a", "--raw") == b"value avalue a"
    assert kvstore.out("get", "some/bin", "some/b", "-0") == b"some/bin\0\xff\n\0some/b\0value b\0"
    assert kvstore.out("get", "some/b", "--null") == b"some/b\0value b\0"
    one, other = kvstore.lines("get", "some/b", "some/a", "--json")
    assert [one, other] == [kvstore.lines("get", key, "--json")[0] for key in ("some/b", "some/a")]


def test_of_several_keys_those_that_are_missing_are_named(kvstore: Kvstore) -> None:
    first = kvstore.out("put", "part/a", "1").decode().strip()
    kvstore.out("put", "part/a", "2")
    kvstore.out("put", "part/b", "3")
    done = kvstore("get", "part/no", "part/a", "part/never", "part/b")
    assert (done.returncode, done.stdout) == (3, b"part/a\t2\npart/b\t3\n")
    assert done.stderr.decode().splitlines() == [
        f"kvstore: no such key: 'part/{name}'" for name in ("no", "never")
    ]
    assert kvstore.out("get", "part/no", "part/a", "--default", "-") == b"part/no\t-\npart/a\t2\n"
    done = kvstore("get", "part/b", "part/a", "--revision", first)
    assert (done.returncode, done.stdout) == (3, b"part/a\t1\n")


def test_several_keys_may_be_more_than_one_answer_holds(kvstore: Kvstore) -> None:
    keys = [f"large/{number:02}" for number in range(40)]
    for key in keys:
        kvstore.out("put", key, "-", stdin=b"x" * 1024 * 1024)
    assert len(kvstore.out("get", *keys, "--raw")) == 40 * 1024 * 1024
    kvstore.out("delete", *keys)


def test_several_keys_are_deleted_each_for_itself_or_all_or_none(kvstore: Kvstore) -> None:
    keys = [f"gone/{name}" for name in "abcd"]
    for key in keys:
        kvstore.out("put", key, "")
    done = kvstore("delete", keys[0], "gone/no", keys[1])
    assert done.returncode == 3
    first, second = map(int, done.stdout.split())
    assert second >= first  # of changes that are committed together
    assert done.stderr == b"kvstore: no such key: 'gone/no'\n"
    done = kvstore("delete", keys[2], "gone/no", "--atomic")
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"'gone/no'; nothing was removed" in done.stderr
    assert len(kvstore.out("delete", keys[2], keys[3], "--atomic").split()) == 1
    assert kvstore.out("list", "gone/") == b""


def test_keys_with_newlines_go_through_a_pipe_behind_nuls(kvstore: Kvstore) -> None:
    for name in ("a\nb", " c ", "'\""):
        kvstore.out("put", f"nul/{name}", "")
    listed = kvstore.out("list", "nul/", "-0")
    assert listed.split(b"\0") == [b"nul/ c ", b"nul/'\"", b"nul/a\nb", b""]
    delete = ["xargs", "-0", *kvstore_command("delete")]
    subprocess.run(delete, input=listed, env=kvstore.environment, capture_output=True, check=True)
    assert kvstore.out("list", "nul/", "--count") == b"0\n"


def test_get_prints_a_default_for_a_missing_key_only(kvstore: Kvstore) -> None:
    assert kvstore.out("get", "no/such", "--default", "d\u00e9faut") == "d\u00e9faut\n".encode()
    assert kvstore.out("get", "no/such", "--default", "x", "--raw") == b"x"
    kvstore.out("put", "there", "v")
    assert kvstore.out("get", "there", "--default", "x") == b"v\n"


def test_get_reads_an_older_revision(kvstore: Kvstore) -> None:
    first = kvstore.out("put", "past", "old").decode().strip()
    kvstore.out("put", "past", "new")
    assert kvstore.out("get", "past", "--revision", first) == b"old\n"
    kvstore.out("delete", "past")
    after = kvstore.out("put", "past/new", "v").decode().strip()
    kvstore.out("put", "past", "again")
    of_both = kvstore("get", "past", "past/new", "--revision", first)
    assert (of_both.returncode, of_both.stdout) == (3, b"past\told\n")
    assert b"no key 'past/new'" in of_both.stderr or b"no such key: 'past/new'" in of_both.stderr
    assert b"no key 'past'" in kvstore("get", "past", "--revision", after).stderr


def test_many_keys_come_as_lines_in_key_order(kvstore: Kvstore) -> None:
    for key, value in (("many/b", "2"), ("many/a", "1"), ("many/\u00e9", "\u00fc")):
        kvstore.out("put", key, value)
    kvstore.out("put", "many/bin", "-", stdin=b"\xff\n\0")
    lines = b"many/a\t1\nmany/b\t2\nmany/bin\t\xff\n\0\nmany/\xc3\xa9\t\xc3\xbc\n"
    assert kvstore.out("get", "--prefix", "many/") == lines
    assert kvstore.out("get", "--prefix", "many/", "--raw") == b"12\xff\n\0\xc3\xbc"
    keys = [record["key"] for record in kvstore.lines("get", "--prefix", "many/", "--json")]
    assert keys == ["many/a", "many/b", "many/bin", "many/\u00e9"]
    assert lines in kvstore.out("get", "--all")


def test_a_prefix_is_an_argument_of_list(kvstore: Kvstore) -> None:
    kvstore.out("put", "arg/a", "")
    kvstore.out("put", "arg/b", "")
    assert kvstore.out("list", "arg/") == kvstore.out("list", "--prefix", "arg/") == b"arg/a\narg/b\n"
    assert kvstore.out("list", "arg/", "--count") == b"2\n"
    assert b"arg/a\n" in kvstore.out("list", "")


def test_ls_shows_one_level(kvstore: Kvstore) -> None:
    for name in ("a", "b/1", "b/2", "c/d/e", "né/x", "new\nline/x"):
        kvstore.out("put", f"level/{name}", "v")
    names = ["level/a", "level/b/", "level/c/", "level/new\nline/", "level/né/"]
    assert kvstore.out("ls", "level/").decode() == "".join(f"{name}\n" for name in names)
    assert kvstore.out("ls", "--prefix", "level/", "-0").decode().split("\0") == [*names, ""]
    assert kvstore.out("ls", "level").decode() == "level/\n"
    backwards = kvstore.out("ls", "level/", "--reverse", "--limit", "2").decode().splitlines()
    assert backwards == ["level/né/", "level/new", "line/"]
    assert kvstore.out("ls", "level/b/").decode() == "level/b/1\nlevel/b/2\n"
    assert kvstore.out("ls", "level/n", "-d", "é/").decode().splitlines()[-1] == "level/né/"
    entries = kvstore.lines("ls", "level/", "--json")
    assert [entry.get("prefix", entry.get("key")) for entry in entries] == names
    assert entries[1] == {"prefix": "level/b/", "count": 2}
    assert "value" not in entries[0]
    long = [line.split("\t") for line in kvstore.out("ls", "level/", "--long").decode().splitlines()]
    assert long[1] == ["-", "-", "-", "-", "2 keys", "level/b/"]
    assert long[0][-1] == "level/a"
    table = kvstore.on_terminal("ls", "level/", "--long")
    assert "level/new\\nline/" in table


def test_ls_goes_through_pages_and_says_where_many_keys_are(kvstore: Kvstore) -> None:
    puts = [f'{{"op": "put", "key": "folders/{n:04}/x", "value": ""}}' for n in range(1200)]
    puts += [f'{{"op": "put", "key": "folders/all/{n}", "value": ""}}' for n in range(1001)]
    kvstore.out("batch", "-", stdin="\n".join(puts).encode())
    names = kvstore.out("ls", "folders/").decode().splitlines()
    assert names == [*(f"folders/{n:04}/" for n in range(1200)), "folders/all/"]
    assert kvstore.out("ls", "folders/", "--reverse").decode().splitlines() == names[::-1]
    assert kvstore.out("ls", "folders/", "--limit", "1100").decode().splitlines() == names[:1100]
    assert kvstore.out("ls", "folders/a", "--long").split(b"\t")[4] == b"many keys"


def test_the_last_keys_are_listed_first_on_demand(kvstore: Kvstore) -> None:
    for name in "abc":
        kvstore.out("put", f"last/{name}", "v")
    assert kvstore.out("list", "last/", "--reverse", "--limit", "2") == b"last/c\nlast/b\n"


def test_a_read_is_as_new_as_it_is_asked_to_be(kvstore: Kvstore) -> None:
    here = int(kvstore.out("put", "newest", "v"))
    kvstore.out("put", "newer", "v")
    for command in (
        ["get", "newest"],
        ["get", "newest", "newer"],
        ["get", "--prefix", "new"],
        ["list", "new"],
        ["list", "new", "--count"],
        ["ls", "new"],
        ["history", "newest"],
    ):
        assert kvstore.out(*command, "--min-revision", str(here)) == kvstore.out(*command)
        refused = kvstore(*command, "--min-revision", str(here + 1000))
        assert (refused.returncode, refused.stdout) == (4, b"")
        assert b"min_revision" in refused.stderr


def test_list_pages_through_everything_and_stops_at_its_limit(kvstore: Kvstore) -> None:
    ops = [{"op": "put", "key": f"page/{number:05}", "value": ""} for number in range(2500)]
    kvstore.out("batch", "-", stdin="\n".join(map(json.dumps, ops)).encode())
    names = kvstore.out("list", "--prefix", "page/").decode().splitlines()
    assert names == [op["key"] for op in ops]
    assert kvstore.out("list", "--prefix", "page/", "--count") == b"2500\n"
    assert len(kvstore.lines("list", "--prefix", "page/", "--limit", "1001", "--json")) == 1001
    between = kvstore.out("list", "--start", "page/00010", "--end", "page/00012").decode().splitlines()
    assert between == ["page/00010", "page/00011"]
    long = kvstore.out("list", "--start", "page/00010", "--end", "page/00011", "--long").decode()
    assert long.rstrip("\n").split("\t")[-2:] == ["text/plain; charset=utf-8", "page/00010"]
    assert kvstore.out("delete", "--prefix", "page/") == b"2500\n"
    assert kvstore.out("delete", "--prefix", "page/") == b"0\n"


def test_history_shows_the_newest_first(kvstore: Kvstore) -> None:
    kvstore.out("put", "past/h", "1")
    kvstore.out("put", "past/h", "two\nlines")
    kvstore.out("delete", "past/h")
    rows = [line.split("\t") for line in kvstore.out("history", "past/h").decode().splitlines()]
    assert [row[2:] for row in rows] == [["delete", ""], ["put", "two\\nlines"], ["put", "1"]]
    before = kvstore.lines("history", "past/h", "--before", rows[1][0], "--json")
    assert [event["value"] for event in before] == ["1"]
    assert len(kvstore.lines("history", "past/h", "--limit", "2", "--json")) == 2


def test_history_says_where_the_log_does_not_reach_back(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], offline: Kvstore
) -> None:
    daemon = start_daemon(retain_events=2)
    at = ("--url", start_facade(daemon).url)
    offline.out("put", "old", "1", *at)
    whole = offline("history", "old", *at)
    assert (len(whole.stdout.splitlines()), whole.stderr) == (1, b"")
    for number in range(4):
        offline.out("put", f"new/{number}", "1", *at)
    with Client(daemon.requests) as client:
        wait_until(lambda: client.status()["log_events"] <= 2)
    for more in ((), ("--json",)):
        none = offline("history", "old", *at, *more)
        assert (none.returncode, none.stdout) == (0, b"")
        assert b"the log does not reach further back" in none.stderr


@pytest.mark.parametrize("limit", [{"max_batch_ops": 1}, {"max_batch_ops": 7}, {"max_batch_bytes": "1MiB"}])
def test_many_keys_go_in_requests_as_large_as_the_service_takes(
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
    offline: Kvstore,
    limit: dict[str, Any],
) -> None:
    at = ("--url", start_facade(start_daemon(**limit)).url)
    keys = [f"k{number:02}" for number in range(30)]
    value = "v" * 60_000
    puts = [{"op": "put", "key": key, "value": value} for key in keys]
    wrong = {"op": "put", "key": keys[0], "value": "", "ttl": -1}
    (offline.folder / "puts.ndjson").write_text("".join(json.dumps(op) + "\n" for op in puts))
    made = offline.lines("batch", "puts.ndjson", *at)
    assert [result["key"] for result in made] == keys
    assert [line.split("\t") for line in offline.out("get", *keys, *at).decode().splitlines()] == [
        [key, value] for key in keys
    ]
    (offline.folder / "wrong.ndjson").write_text("".join(json.dumps(op) + "\n" for op in [*puts, wrong]))
    assert b"ops[30]" in offline("batch", "wrong.ndjson", *at).stderr
    assert len(offline.out("delete", *keys, *at).splitlines()) == 30
    assert offline.out("list", *at) == b""


def test_each_command_that_writes_says_why(kvstore: Kvstore) -> None:
    folder = kvstore.folder
    (folder / "why.ndjson").write_text('{"key": "why/imported", "value": "1"}\n')
    ops = [
        {"op": "put", "key": "why/own", "value": "1", "message": "its own"},
        {"op": "incr", "key": "why/n"},
    ]
    kvstore.out("put", "why/a", "{}", "--ttl", "1h", "-m", "put")
    kvstore.out("patch", "why/a", '{"b": 1}', "--message", "patch, ü 50%")
    kvstore.out("touch", "why/a", "--ttl", "2h", "-m", "touch")
    kvstore.out("persist", "why/a", "-m", "persist")
    kvstore.out("incr", "why/n", "-m", "incr")
    kvstore.out("batch", "-", "-m", "batch", stdin=json.dumps(ops).encode())
    kvstore.out("import", "why.ndjson", "-m", "import")
    kvstore.out("delete", "why/a", "-m", "delete")
    kvstore.out("delete", "why/own", "why/n", "-m", "delete two")
    kvstore.out("delete", "--prefix", "why/", "-m", "delete all")
    said = [
        "delete all", "delete two", "delete two", "delete", "import", "batch", "its own", "incr", "persist",
        "touch", "patch, ü 50%", "put",
    ]  # fmt: skip
    assert [event["message"] for event in kvstore.lines("log", "why/", "--json")] == said
    rows = [line.split("\t") for line in kvstore.out("log", "--prefix", "why/").decode().splitlines()]
    assert [row[-1] for row in rows] == said
    assert {row[2] for row in rows} == {"-"}
    assert (rows[-1][3:5], rows[0][3:5]) == (["put", "why/a"], ["delete", "why/imported"])
    assert kvstore.lines("log", "why/", "-n", "1", "--before", rows[0][0], "--json")[0]["message"] == said[1]
    history = [line.split("\t") for line in kvstore.out("history", "why/own").decode().splitlines()]
    assert [row[2:] for row in history] == [["delete", "", "-", "delete two"], ["put", "1", "-", "its own"]]


def test_every_command_that_writes_takes_a_message() -> None:
    context = click.Context(cli)
    taking = set()
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        taking |= {name for parameter in command.params if "-m" in parameter.opts}
    changing = {"put", "patch", "edit", "rename", "delete", "incr", "touch", "persist"}
    assert taking == {*changing, "batch", "import"}


@pytest.mark.parametrize("message", ["", "two\nlines", "\x1b[31mred", "\u202e", "x" * 201, b"\xff"])
def test_what_is_no_message_is_refused_as_by_the_service(kvstore: Kvstore, message: str | bytes) -> None:
    done = kvstore("put", "why/refused", "v", "-m", message)
    assert done.returncode == 2
    assert (MESSAGE if isinstance(message, str) else "UTF-8").encode() in b" ".join(done.stderr.split())
    assert kvstore("get", "why/refused").returncode == 3


def test_blame_tells_of_each_key_who_changed_it_last(kvstore: Kvstore) -> None:
    kvstore.out("put", "blame/a", "1", "-m", "first")
    kvstore.out("put", "blame/a", "2", "-m", "second")
    kvstore.out("put", "blame/tab\t", "1")
    kvstore.out("put", "blame/gone", "1")
    kvstore.out("delete", "blame/gone")
    rows = [line.split("\t") for line in kvstore.out("blame", "blame/").decode().splitlines()]
    assert [row[2:] for row in rows] == [["-", "blame/a", "second"], ["-", "blame/tab\\t", ""]]
    first = kvstore.lines("blame", "--prefix", "blame/", "--json")[0]
    assert (first["key"], first["message"], str(first["revision"])) == ("blame/a", "second", rows[0][0])
    assert "value" not in first
    shown = re.sub(r"\x1b\[\d+m", "", kvstore.on_terminal("blame", "blame/")).splitlines()
    assert shown[0].split() == ["REVISION", "MODIFIED", "AUTHOR", "KEY", "MESSAGE"]
    assert len({line.index("blame/") for line in shown[1:]}) == 1


def test_a_long_log_is_written_as_it_is_read(kvstore: Kvstore) -> None:
    counts = [{"op": "incr", "key": f"long/{number}"} for number in range(2100)]
    kvstore.out("batch", "-", stdin=json.dumps(counts).encode())
    shown = re.sub(r"\x1b\[\d+m", "", kvstore.on_terminal("log", "long/")).splitlines()
    assert len(shown) == 2101
    assert sum("REVISION" in line for line in shown) == 1
    revisions = [int(line.split()[0]) for line in shown[1:]]
    assert revisions == sorted(revisions, reverse=True)


def test_status_has_every_figure_and_a_histogram_in_a_few_words(kvstore: Kvstore) -> None:
    kvstore.out("put", "counted", "x")
    status = kvstore.lines("status", "--json")[0]
    assert status["limits"]["key_bytes"] == 511
    assert sum(status["commits"]["ops"]["counts"]) > 0
    lines = kvstore.out("status").decode()
    assert "limits.key_bytes\t511\n" in lines
    assert re.search(r"^commits\.ops\tmean [0-9.]+, 99% at most [0-9]+$", lines, re.MULTILINE)


# ── batch ────────────────────────────────────────────────────────────────────────────────────────


def test_batch_reads_lines_lists_and_documents(kvstore: Kvstore) -> None:
    ops = [{"op": "put", "key": "form", "value": "\u00e9"}, {"op": "get", "key": "form"}]
    forms = ["\n\n".join(map(json.dumps, ops)), json.dumps(ops, indent=2), json.dumps({"ops": ops})]
    for text in forms:
        _, got = kvstore.lines("batch", "-", stdin=text.encode())
        assert (got["key"], got["value"]) == ("form", "\u00e9"), text
    assert len(kvstore.lines("batch", "-", stdin=json.dumps(ops[0]).encode())) == 1


def test_batch_goes_on_after_a_failure_and_tells_it_with_its_status(kvstore: Kvstore) -> None:
    ops = [
        {"op": "get", "key": "no/such"},
        {"op": "put", "key": "b", "value": "", "if_revision": 10**15},
        {"op": "incr", "key": "batch/n"},
    ]
    (kvstore.folder / "ops.json").write_text(json.dumps(ops))
    done = kvstore("batch", "ops.json")
    assert done.returncode == 3
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["status"] for result in results] == [404, 412, 200]
    assert b"1 succeeded, 2 failed" in done.stderr


@pytest.mark.parametrize("flag", [True, False])
def test_an_atomic_batch_is_all_or_nothing(kvstore: Kvstore, flag: bool) -> None:
    ops = [
        {"op": "put", "key": f"atomic/{flag}/a", "value": "1"},
        {"op": "put", "key": f"atomic/{flag}/b", "value": "", "if_revision": 10**15},
    ]
    document = json.dumps(ops if flag else {"atomic": True, "ops": ops}).encode()
    done = kvstore("batch", "-", *(["--atomic"] if flag else []), stdin=document)
    assert (done.returncode, done.stdout) == (4, b"")
    assert kvstore("get", f"atomic/{flag}/a").returncode == 3
    ops[1].pop("if_revision")
    first, second = kvstore.lines("batch", "-", "--atomic", stdin=json.dumps(ops).encode())
    assert first["revision"] == second["revision"]


def test_batch_says_which_line_is_not_json(kvstore: Kvstore) -> None:
    done = kvstore("batch", "-", stdin=b'{"op": "get", "key": "a"}\n{oops}\n')
    assert done.returncode == 2
    assert b"line 2 is not JSON" in done.stderr


# ── the past ─────────────────────────────────────────────────────────────────────────────────────


def test_a_value_is_read_as_it_was_at_a_time(kvstore: Kvstore) -> None:
    for value in ("one", "two", "three"):
        kvstore.out("put", "past/k", value)
    made = {event["value"]: event["time"] for event in kvstore.lines("history", "past/k", "--json")}
    assert len(set(made.values())) == 3
    for value, time in made.items():
        assert kvstore.out("get", "past/k", "--revision", time) == f"{value}\n".encode()
    kvstore.out("put", "past/other", "later")
    read = kvstore.lines("get", "past/k", "past/other", "--revision", "1ms-ago", "--json")
    assert [record["value"] for record in read] == ["three", "later"]
    assert kvstore("get", "past/k", "--revision", "1h-ago").returncode == 3
    done = kvstore("get", "past/k", "--revision", "10x-ago")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"'10x-ago' is neither a revision nor a time, such as 10m-ago" in done.stderr


def test_a_time_before_everything_has_no_record_and_one_before_the_log_is_gone(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    daemon = start_daemon(retain_events=3)
    line = CommandLine(tmp_path, start_facade(daemon).url)
    line.out("put", "k", "1")  # the store's first revision
    asked = ("--revision", "1h-ago")
    done = line("get", "k", *asked)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"nothing yet at 1h-ago" in done.stderr
    assert line.out("get", "k", *asked, "--default", "none") == b"none\n"
    assert line.lines("get", "k", *asked, "--default", "none", "--json") == [{"key": "k", "value": "none"}]
    assert line.out("get", "k", "l", *asked, "--default", "none") == b"k\tnone\nl\tnone\n"
    with Client(daemon.requests) as client:
        for number in range(50):
            client.put("k", str(number))
    done = line("get", "k", *asked, "--default", "none")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the log no longer says what was there at 1h-ago" in done.stderr


# ── exit statuses ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["get", "no/such"], 3, "no such key"),
        (["get", "no/such/"], 3, "to read all below it: --prefix no/such/"),
        (["get", "no/such/", "no/other"], 3, "to read all below it: --prefix no/such/"),
        (["delete", "no/such"], 3, "key"),
        (["touch", "no/such", "--ttl", "1s"], 3, "key"),
        (["persist", "no/such"], 3, "key"),
        (["history", "no/such"], 3, "no "),
        (["get", ""], 2, "the key is empty"),
        (["get", "x" * 512], 1, "511"),
        (["get", "k", "--revision", "99999999"], 1, "revision"),
        (["put", "k", "v", "--content-type", "caf\u00e9"], 2, "content-type"),
        (["put", "k", "v", "--content-type", "a/b\r\nX: y"], 2, "content-type"),
        (["subscribe", "--since", "yesterday"], 2, "neither a cursor, a revision nor a time"),
        (["wait", "no/such", "--exists", "--timeout", "50ms"], 124, "did not appear within 50ms"),
        (["get"], 2, "KEY, --all, --prefix"),
        (["get", "a", "--all"], 2, "not several"),
        (["get", "--all", "--default", "x"], 2, "need a KEY"),
        (["get", "a", "--null", "--json"], 2, "exclude each other"),
        (["put", "k", "-abc"], 2, "there is no option -a; if it is meant as the VALUE, write -- before it"),
        (["incr", "k", "1", "--by", "2"], 2, "N or --by, not both"),
        (["incr", "k", "many"], 2, "'many' is not a whole number"),
        (["list", "a", "--prefix", "b"], 2, "not both"),
        (["list", "--null", "--json"], 2, "--null excludes"),
        (["delete"], 2, "give one of KEY, --prefix"),
        (["delete", "a", "b", "--if-revision", "3"], 2, "need exactly one KEY"),
        (["delete", "--prefix", "a", "--atomic"], 2, "--atomic needs KEYs"),
        (["patch", "k", "{"], 1, "the patch is not JSON"),
        (["patch", "k", "@no-such-file"], 2, "no-such-file"),
        (["put", "k"], 2, "VALUE"),
        (["put", "k", "@no-such-file"], 2, "; --literal stores '@no-such-file' itself"),
        (["put", "k", "v", "--ttl", "9999999d"], 2, "100 years"),
        (["incr", "k", "--by", str(2**63)], 2, "--by"),
        (["get", "k", "--revision", "abc"], 2, "'abc' is neither a revision nor a time, such as 10m-ago"),
        (["get", "k", "--revision", "0"], 2, "0 is not from 1 to"),
        (["history", "k", "--since", "10m-ago"], 2, "kvstore changes --since"),
        (["get", "bad\udcff"], 2, "'bad\\xff' is not UTF-8"),
        (["list", "--prefix", "bad\udcff"], 2, "'bad\\xff' is not UTF-8"),
        (["subscribe", "--cursor", "nodir/x"], 2, "nodir/x: there is no folder"),
        (["put", "k", "v", "--ttl", "soon"], 2, "not a duration"),
        (["put", "k", "v", "--ttl", "1s", "--keep-ttl"], 2, "exclude each other"),
        (["put", "k", "v", "--if-absent", "--if-revision", "3"], 2, "exclude"),
        (["delete", "--prefix", ""], 2, "everything"),
        (["wait", "k"], 2, "--exists"),
        (["wait", "k", "--exists", "--gone"], 2, "not several"),
        (["wait", "k", "--exists", "--since", "3"], 2, "--changed"),
        (["list", "--count", "--long"], 2, "--count"),
        (["subscribe", "--fail-fast"], 2, "--exec"),
        (["subscribe", "--exec-marks"], 2, "--exec-marks needs --exec"),
        (["nonsense"], 2, "nonsense"),
        (["gte", "k"], 2, "did you mean 'kvstore get'"),
        (["dir"], 2, "did you mean 'kvstore ls'"),
        (["ls", "a", "--prefix", "b"], 2, "not both"),
        (["ls", "--null", "--long"], 2, "--null excludes"),
        (["ls", "--delimiter", ""], 1, "delimiter must be a text of 1 to 16 bytes"),
        (["ls", "--delimiter", "x" * 17], 1, "delimiter must be a text of 1 to 16 bytes"),
        (["ls", "--min-revision", "0"], 2, "0 is not from 1"),
        (["list", "--count", "--reverse"], 2, "--count"),
        (["get", "k", "--revision", "1", "--min-revision", "1"], 2, "exclude each other"),
        (["keys"], 2, "did you mean 'kvstore list'"),
        (["HGET"], 2, "did you mean 'kvstore get'"),
        (["unset"], 2, "did you mean 'kvstore delete'"),
        (["version"], 2, "did you mean 'kvstore --version'"),
        (["--url", "http://x", "get", "k"], 2, "--url comes after the command"),
        (["config", "check", "--requests", "ipc:///tmp/a", "--changes", "ipc:///tmp/a"], 2, "must differ"),
        (["get", "k", "--nonsense"], 2, "--nonsense"),
        (["completion", "tcsh"], 2, "tcsh"),
    ],
)
def test_what_goes_wrong_has_its_exit_status_and_a_sentence(
    kvstore: Kvstore, arguments: list[str], status: int, said: str
) -> None:
    done = kvstore(*arguments)
    assert done.returncode == status, done.stderr
    assert said in done.stderr.decode()
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_no_service_is_exit_6_and_says_how_to_start_one(offline: Kvstore) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for arguments in (["get", "k"], ["status"], ["subscribe"], ["wait", "k", "--exists"]):
        done = offline(*arguments, "--url", url)
        assert done.returncode == 6
        assert b"kvstore serve" in done.stderr


def test_a_facade_without_its_daemon_is_exit_6(
    offline: Kvstore, daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(daemon, daemon_timeout="300ms")
    daemon.kill()
    assert offline("get", "k", "--url", facade.url).returncode in (6, 124)
    assert offline("put", "k", "v", "--url", facade.url).returncode in (6, 124)
    daemon.start()


def test_what_is_not_allowed_is_exit_5(offline: Kvstore, script: Any) -> None:
    script.plays = [answer(b"", 403)]
    assert offline("get", "k", "--url", script.url).returncode == 5


def test_interrupted_is_exit_130(kvstore: Kvstore, start: Callable[..., Any]) -> None:
    waiting = start(kvstore, "subscribe")
    while "following" not in waiting.stderr:
        assert waiting.process.poll() is None
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.wait() == 130
    assert "Traceback" not in waiting.stderr


def test_a_reader_that_goes_away_ends_a_command_silently(kvstore: Kvstore) -> None:
    ops = [{"op": "put", "key": f"pipe/{number}", "value": "x" * 500} for number in range(1000)]
    kvstore.out("batch", "-", stdin=json.dumps(ops).encode())
    command = " ".join(kvstore_command("get", "--prefix", "pipe/", "--json"))
    line = f"{command} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], env=kvstore.environment, capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout.splitlines()[-1] == b"1"


# ── for people ───────────────────────────────────────────────────────────────────────────────────


def test_a_terminal_gets_a_table_without_control_characters(kvstore: Kvstore) -> None:
    kvstore.out("put", "tty/\x1b[2J", "\x1b]0;owned\x07")
    kvstore.out("put", "tty/bin", "-", stdin=b"\xff\xfe")
    shown = kvstore.on_terminal("get", "--prefix", "tty/")
    assert "\x1b[2J" not in shown
    assert "\x1b]0;" not in shown
    assert "tty/\\x1b[2J" in shown
    assert "(2 bytes, application/octet-stream)" in shown
    assert shown.startswith("\x1b[1mKEY")
    assert "\\x1b[2J" in kvstore.on_terminal("list", "--prefix", "tty/")


def test_a_terminal_gets_what_matters_of_the_status_in_units(kvstore: Kvstore) -> None:
    kvstore.out("put", "seen", "x")
    status = kvstore.lines("status", "--json")[0]
    shown = re.sub(r"\x1b\[\d+m", "", kvstore.on_terminal("status"))
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert rows["kvstore"].startswith(f"{status['version']}, up ")
    assert rows["writes"] == "taken"
    assert rows["revision"] == f"{status['revision']}, epoch {status['epoch']}"
    assert rows["store"].endswith(f"used of 1 TiB, in a file of {humanize.size(status['file_bytes'])}")
    assert rows["limits"].startswith("a key 511 bytes, a value 1 MiB, ")


def test_a_pipe_gets_neither_colours_nor_heads(kvstore: Kvstore) -> None:
    kvstore.out("put", "plain", "v")
    for command in (
        ["list", "--long"],
        ["log"],
        ["blame"],
        ["history", "plain"],
        ["status"],
        ["get", "--all"],
    ):
        out = kvstore.out(*command)
        assert b"\x1b[1m" not in out
        assert not out.startswith(b"REVISION")  # a key may have any word in it


# ── configuration ────────────────────────────────────────────────────────────────────────────────


def test_config_show_tells_each_value_and_where_it_came_from(offline: Kvstore) -> None:
    (offline.folder / "x.toml").write_text('retain-age = "2d"\n')
    done = offline(
        "config", "show", "--config", "x.toml", "--workers", "3", "--json", env={"KVSTORE_SYNC": "none"}
    )
    shown = {line["option"]: line for line in map(json.loads, done.stdout.splitlines())}
    path = offline.folder / "x.toml"
    assert (shown["retain-age"]["shown"], shown["retain-age"]["from"]) == ("2d", f"file {path}")
    assert (shown["workers"]["value"], shown["workers"]["from"]) == (3, "flag --workers")
    assert (shown["sync"]["value"], shown["sync"]["from"]) == ("none", "variable KVSTORE_SYNC")
    assert shown["url"]["from"] == "default"
    assert f"retain-age\t2d\tfile {path}\n" in offline.out("config", "show", "--config", "x.toml").decode()


def test_config_check_refuses_what_serve_would_refuse(offline: Kvstore) -> None:
    assert offline("config", "check").returncode == 0
    for arguments in (["--http", "0.0.0.0:80"], ["--config", "missing.toml"]):
        assert offline("config", "check", *arguments).returncode == 2
    assert offline("get", "k", env={"KVSTORE_URI": "x"}).returncode == 2


@pytest.mark.parametrize("command", ["daemon", "http", "serve"])
def test_listening_beyond_loopback_is_refused_with_what_to_do(offline: Kvstore, command: str) -> None:
    flag = ["--requests", "tcp://*:0"] if command == "daemon" else ["--http", "0.0.0.0:0"]
    done = offline(command, *flag)
    assert done.returncode == 2
    assert b"--allow-anonymous" in done.stderr


def test_the_version_is_told(offline: Kvstore) -> None:
    assert offline.out("--version").startswith(b"kvstore ")


def test_a_command_that_asks_the_service_loads_nothing_heavy(kvstore: Kvstore) -> None:
    kvstore.out("put", "light", "v")
    code = """
import sys
from kvstore_cli.main import main
sys.argv = ["kvstore", "get", "light"]
status = main()
heavy = {"ssl", "zmq", "orjson", "gevent", "falcon", "waitress", "lmdb", "asyncio", "json", "tomllib",
         "subprocess", "kvstore_daemon", "kvstore_http", "kvstore_core.wire", "importlib.metadata"}
print(sorted(heavy & sys.modules.keys()))
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=kvstore.environment, capture_output=True, check=True
    )
    assert done.stdout == b"v\n[]\n"
