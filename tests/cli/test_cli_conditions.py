"""Writes on conditions, and keys that number themselves, as the commands do them."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Kvstore = Any

WRITES = [
    ["put", "KEY", "7"],
    ["put", "KEY", "7", "--sequence"],
    ["patch", "KEY", "7"],
    ["incr", "KEY"],
    ["touch", "KEY", "--ttl", "1h"],
    ["persist", "KEY"],
    ["delete", "KEY"],
]


def revision_of(kvstore: Kvstore, key: str) -> int:
    return int(kvstore.lines("get", "--json", key)[0]["revision"])


@pytest.mark.parametrize("line", WRITES, ids=" ".join)
def test_a_write_under_a_guard_is_refused_with_status_4_once_the_guard_has_moved(
    kvstore: Kvstore, line: list[str]
) -> None:
    lock, data = "guards/a@b c", f"guarded/{'-'.join(line)}"
    words = [data if word == "KEY" else word for word in line]
    token = kvstore.out("put", lock, "me").decode().strip()
    kvstore.out("put", data, "5", "--ttl", "1h")
    guard = f"{lock}@{token}"
    assert kvstore(*words, "--guard", guard, "--guard", "guards/none@0").returncode == 0
    kvstore.out("put", data, "5", "--ttl", "1h")
    moved = kvstore.out("put", lock, "you").decode().strip()
    before = revision_of(kvstore, data)
    refused = kvstore(*words, "--guard", guard)
    assert refused.returncode == 4
    assert lock in refused.stderr.decode()
    assert moved in refused.stderr.decode()
    assert revision_of(kvstore, data) == before


@pytest.mark.parametrize(
    "line", [line for line in WRITES if line[0] != "patch" and "--sequence" not in line], ids=" ".join
)
def test_a_write_can_depend_on_the_value(kvstore: Kvstore, line: list[str]) -> None:
    data = f"valued/{'-'.join(line)}"
    words = [data if word == "KEY" else word for word in line]
    kvstore.out("put", data, "5", "--ttl", "1h")
    refused = kvstore(*words, "--if-value", "6")
    assert refused.returncode == 4
    assert "'5'" not in refused.stderr.decode()
    assert kvstore(*words, "--if-value", "5").returncode == 0


def test_conditions_that_exclude_each_other_are_wrong_usage(kvstore: Kvstore) -> None:
    for line in (
        ["put", "k", "v", "--if-value", "x", "--if-revision", "1"],
        ["put", "k", "v", "--if-value", "x", "--if-absent"],
        ["put", "k", "v", "--if-absent", "--if-revision", "1"],
        ["put", "k", "v", "--sequence", "--if-absent"],
        ["put", "k", "v", "--sequence", "--if-revision", "1"],
        ["put", "k", "v", "--sequence", "--if-value", ""],
        ["put", "k", "v", "--sequence", "--keep-ttl"],
        *([*line, "--if-value", "x", "--if-revision", "1"] for line in (["incr", "k"], ["persist", "k"])),
        ["touch", "k", "--ttl", "1h", "--if-value", "x", "--if-revision", "1"],
        ["delete", "k", "--if-value", "x", "--if-revision", "1"],
        ["delete", "k", "l", "--if-value", "x"],
    ):
        done = kvstore(*line)
        assert done.returncode == 2, line
        assert b"exclude" in done.stderr or b"exactly one KEY" in done.stderr, done.stderr


@pytest.mark.parametrize("guard", ["", "lock", "@1", "lock@", "lock@-1", "lock@x", "lock@1.5", f"l@{2**63}"])
def test_what_is_no_guard_is_wrong_usage(kvstore: Kvstore, guard: str) -> None:
    done = kvstore("put", "k", "v", "--guard", guard)
    assert done.returncode == 2
    assert b"--guard" in done.stderr


def test_several_keys_are_deleted_under_a_guard_together_or_not_at_all(kvstore: Kvstore) -> None:
    token = kvstore.out("put", "several/lock", "me").decode().strip()
    for number in range(2):
        kvstore.out("put", f"several/{number}", "x")
    keys = ["several/0", "several/1"]
    alone = kvstore("delete", *keys, "--guard", f"several/lock@{token}")
    assert (alone.returncode, b"--atomic" in alone.stderr) == (2, True)
    wrong = kvstore("delete", *keys, "--atomic", "--guard", f"several/lock@{int(token) + 1}")
    assert wrong.returncode == 4
    assert "several/lock" in wrong.stderr.decode()
    assert b"nothing was removed" in wrong.stderr
    assert len(kvstore.lines("list", "several/", "--json")) == 3
    done = kvstore("delete", *keys, "--atomic", "--guard", f"several/lock@{token}")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert [each["key"] for each in kvstore.lines("list", "several/", "--json")] == ["several/lock"]
    by_prefix = kvstore("delete", "--prefix", "several/", "--guard", f"several/lock@{token}")
    assert by_prefix.returncode == 2
    assert len(kvstore.lines("list", "several/", "--json")) == 1


def test_put_with_sequence_prints_the_key_that_it_made(kvstore: Kvstore) -> None:
    keys = [kvstore.out("put", "jobs/é ", f"job {n}", "--sequence").decode().strip("\n") for n in range(3)]
    assert keys == sorted(set(keys))
    assert kvstore.out("get", keys[1]) == b"job 1\n"
    made = kvstore.lines("put", "jobs/é ", "-", "--sequence", "--ttl", "1h", "--json", stdin=b"\xff")[0]
    assert made["key"] > keys[-1]
    assert made["key"].removeprefix("jobs/é ").isdigit()
    record = kvstore.lines("get", made["key"], "--json")[0]
    assert (record["value_b64"], "expires_at" in record) == ("/w==", True)
    kvstore.out("put", "jobs/é ", "x", "--sequence", "-m", "why not")
    assert kvstore.lines("log", "--prefix", "jobs/", "--json", "--limit", "1")[0]["message"] == "why not"


def test_on_a_terminal_the_key_is_shown_with_its_control_characters_as_escapes(kvstore: Kvstore) -> None:
    shown = kvstore.on_terminal("put", "odd\x1b[2J/", "x", "--sequence")
    assert "\x1b[2J" not in shown
    assert "odd" in shown


def test_a_batch_may_begin_with_checks(kvstore: Kvstore) -> None:
    token = int(kvstore.out("put", "checked/lock", "me"))
    checks = [{"if_revision": token}, {"if_value": "me"}, {"exists": True}, {"if_value_b64": "bWU="}]
    ops = [{"op": "check", "key": "checked/lock", **fields} for fields in checks]
    lines = [*ops, {"op": "put", "key": "checked/data", "value": "x"}]
    batch = "\n".join(map(json.dumps, lines)).encode()
    results = kvstore.lines("batch", "-", "--atomic", stdin=batch)
    assert [result["revision"] for result in results[:4]] == [token] * 4
    kvstore.out("put", "checked/lock", "you")
    for wrong in range(4):
        lines = [ops[wrong], {"op": "delete", "key": "checked/data"}]
        batch = "\n".join(map(json.dumps, lines)).encode()
        refused = kvstore("batch", "-", "--atomic", stdin=batch)
        assert refused.returncode == (0 if wrong == 2 else 4), refused
        if wrong != 2:
            assert b"ops[0] (check 'checked/lock')" in refused.stderr
            continue
        kvstore.out("put", "checked/data", "x")
    assert kvstore("batch", "-", stdin=json.dumps([ops[0]]).encode()).returncode == 4
