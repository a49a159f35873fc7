"""``kvstore changes``, and ``kvstore wait --until``."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import Client, commands
from support.command_line import CommandLine
from support.metrics import scrape
from support.servers import Daemon, Facade, Service, kvstore_command, wait_until
from support.session import Session

Kvstore = Any
Start = Callable[..., Any]


@pytest.fixture
def own(service: Service, tmp_path: Path) -> CommandLine:
    """The command line against a service of the test's own."""
    return CommandLine(tmp_path, service.facade.url)


def rows(said: bytes) -> list[list[str]]:
    return [line.split("\t") for line in said.decode().splitlines()]


def position_said(done: Any) -> str:
    """The cursor that standard error says to go on with."""
    cursor: str = done.stderr.decode().split("--since ")[1].strip()
    return cursor


# ── changes ──────────────────────────────────────────────────────────────────────────────────────


def test_the_changes_are_printed_and_where_to_go_on(kvstore: Kvstore) -> None:
    first = int(kvstore.out("put", "print/a", "one"))
    kvstore.out("put", "other", "x")
    kvstore.out("delete", "print/a")
    done = kvstore("changes", "--since", str(first - 1), "--prefix", "print/")
    assert done.returncode == 0
    assert [(row[0], row[1], *row[3:]) for row in rows(done.stdout)] == [
        ("put", "print/a", "one"),
        ("delete", "print/a"),
    ]
    kvstore.out("put", "print/b", "two")
    again = kvstore("changes", "--since", position_said(done), "--prefix", "print/")
    assert [row[1] for row in rows(again.stdout)] == ["print/b"]
    nothing = kvstore("changes", "--since", position_said(again), "--prefix", "print/")
    assert (nothing.returncode, nothing.stdout) == (0, b"")


def test_as_json_the_lines_are_those_of_subscribe(kvstore: Kvstore) -> None:
    first = int(kvstore.out("put", "json/a", "1"))
    ops = [{"op": "put", "key": f"json/{key}", "value": "2"} for key in "ab"]
    kvstore.out("batch", "-", "--atomic", stdin="".join(json.dumps(op) + "\n" for op in ops).encode())
    kvstore.out("delete", "json/a")
    args = ("--since", str(first - 1), "--prefix", "json/", "--json")
    printed = kvstore("changes", *args, "--prev").stdout
    streamed = kvstore.out("subscribe", *args, "--count", "4")
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line.pop("previous", {}).get("value") for line in lines] == [None, "1", None, "2"]
    assert lines == [json.loads(line) for line in streamed.splitlines()]


def test_what_is_printed_can_be_chosen(kvstore: Kvstore) -> None:
    first = int(kvstore.out("put", "choose/a", "1"))
    kvstore.out("put", "choose/b", "2")
    kvstore.out("delete", "choose/b")

    def printed(*arguments: str) -> list[str]:
        done = kvstore("changes", "--since", str(first - 1), *arguments)
        assert done.returncode == 0, done.stderr
        return ["/".join((row[0], row[1], *row[3:])) for row in rows(done.stdout)]

    assert printed("choose/a") == ["put/choose/a/1"]
    assert printed("choose/a", "--prefix", "choose/b", "--no-values") == [
        "put/choose/a",
        "put/choose/b",
        "delete/choose/b",
    ]
    assert printed("--op", "delete", "--prefix", "choose/") == ["delete/choose/b"]
    assert printed("--limit", "2", "--prefix", "choose/") == ["put/choose/a/1", "put/choose/b/2"]
    assert "put/choose/a/1" in [
        "/".join((row[0], row[1], *row[3:])) for row in rows(kvstore("changes", "--since", "1h-ago").stdout)
    ]


def test_more_than_a_page_is_printed_whole_and_once(kvstore: Kvstore) -> None:
    begin = int(kvstore.out("put", "many", "x"))
    lines = "".join(json.dumps({"op": "put", "key": f"many/{n}", "value": "v"}) + "\n" for n in range(2500))
    kvstore.out("batch", "-", stdin=lines.encode())
    names = [f"many/{number}" for number in range(2500)]
    for limit in (2500, 2400, 1):
        limited = () if limit == 2500 else ("--limit", str(limit))
        done = kvstore("changes", "--since", str(begin), "--prefix", "many/", *limited)
        keys = [row[1] for row in rows(done.stdout)]
        assert keys == names[: len(keys)]
        # a revision is not cut in two: in a cluster all of a commit share one
        assert len(keys) >= limit


def test_a_file_keeps_the_position_from_run_to_run(kvstore: Kvstore) -> None:
    def run() -> list[str]:
        done = kvstore("changes", "--since", "@position", "--prefix", "file/")
        assert done.returncode == 0, done.stderr
        return [row[1] for row in rows(done.stdout)]

    kvstore.out("put", "file/before", "x")
    assert run() == [], "it begins now"
    for number in range(3):
        kvstore.out("put", f"file/{number}", "x")
    assert run() == ["file/0", "file/1", "file/2"]
    assert run() == []
    (kvstore.folder / "position").write_text("0\n")
    assert run() == ["file/before", "file/0", "file/1", "file/2"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_the_position_stays_where_it_is_if_the_lines_could_not_be_written(kvstore: Kvstore) -> None:
    kvstore.out("changes", "--since", "@lost", "--prefix", "lost/")
    kvstore.out("put", "lost/a", "x")
    before = (kvstore.folder / "lost").read_bytes()
    with Path("/dev/full").open("wb") as full:
        command = kvstore_command("changes", "--since", "@lost", "--prefix", "lost/")
        status = subprocess.run(
            command, cwd=kvstore.folder, env=kvstore.environment, stdout=full, check=False
        )
    assert status.returncode == 1
    assert (kvstore.folder / "lost").read_bytes() == before
    assert [row[1] for row in rows(kvstore.out("changes", "--since", "@lost", "--prefix", "lost/"))] == [
        "lost/a"
    ]


def test_runs_that_overlap_print_each_change_once(kvstore: Kvstore) -> None:
    """Of one file, beside a writer."""
    kvstore.out("changes", "--since", "@shared", "--prefix", "shared/")
    with ThreadPoolExecutor(4) as pool, closing(Session(kvstore.environment["KVSTORE_URL"])) as session:
        runs = []
        for number in range(60):
            session.put(f"/v1/kv/shared/{number}", b"x")
            if number % 6 == 0:
                runs.append(pool.submit(kvstore, "changes", "--since", "@shared", "--prefix", "shared/"))
        seen = [row[1] for run in runs for row in rows(run.result().stdout)]
    seen += [row[1] for row in rows(kvstore.out("changes", "--since", "@shared", "--prefix", "shared/"))]
    assert sorted(seen) == sorted(f"shared/{number}" for number in range(60))


def test_it_waits_for_the_first_change_if_asked_to(kvstore: Kvstore, start: Start) -> None:
    begin = int(kvstore.out("put", "waiting", "x"))
    assert kvstore.out("changes", "--since", str(begin), "--prefix", "waiting/", "--wait", "50ms") == b""
    running = start(kvstore, "changes", "--since", str(begin), "--prefix", "waiting/", "--wait", "10m")
    kvstore.out("put", "elsewhere", "x")
    kvstore.out("put", "waiting/a", "x")
    assert running.wait() == 0
    assert [row[1] for row in rows(running.stdout)] == ["waiting/a"]


def test_a_position_that_the_log_no_longer_has_is_an_error_that_says_what_to_do(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    facade = start_facade(start_daemon(retain_events=10))
    kvstore = CommandLine(tmp_path, facade.url)
    kvstore.out("changes", "--since", "@old")
    with closing(Session(facade.url)) as session:

        def is_trimmed() -> bool:
            session.put("/v1/kv/k", b"x")
            return bool(session.get("/v1/status").json["floor"])

        wait_until(is_trimmed, what="the log is trimmed")
    done = kvstore("changes", "--since", "@old")
    assert done.returncode == 1
    assert "remove old to begin now" in done.stderr.decode()
    assert kvstore("changes", "--since", "0").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--since"),
        (("--since", "x"), "a time, such as 10m-ago or 2026"),
        (("--since", ""), "neither a cursor"),
        (("--since", "@"), "@FILE"),
        (("--since", "@."), "cannot write the position"),
        (("--since", "@no/such/folder"), "no folder"),
        (("--since", "0", "--limit", "0"), "0"),
        (("--since", "0", "--op", "get"), "get"),
        (("--since", "0", "--wait", "x"), "x"),
        (("--since", "0", ""), "the key is empty"),
    ],
)
def test_what_cannot_be_asked_for_is_a_usage_error(
    offline: CommandLine, arguments: tuple[str, ...], says: str
) -> None:
    done = offline("changes", *arguments)
    assert done.returncode == 2
    assert says in done.stderr.decode()


def test_what_only_the_service_can_refuse_is_an_error(kvstore: Kvstore) -> None:
    for since in ("10x-ago", "2026-13-01T00:00:00Z", "7-0123456789abcdef"):
        done = kvstore("changes", "--since", since)
        assert done.returncode == 1, since
        assert done.stdout == b""
    (kvstore.folder / "strange").write_text("what is this?\n")
    assert kvstore("changes", "--since", "@strange").returncode == 2


def test_subscribe_begins_at_a_time_too(kvstore: Kvstore) -> None:
    kvstore.out("put", "timed/a", "x")
    done = kvstore.out("subscribe", "--prefix", "timed/", "--since", "1h-ago", "--count", "1")
    assert rows(done)[0][1] == "timed/a"


def until_it_waits(url: str) -> None:
    """Beside the request that asks for that."""
    in_progress = "kvstore_http_requests_in_progress"
    wait_until(lambda: scrape(url).value(in_progress) == 2, what="the command waits")


# ── wait --until ─────────────────────────────────────────────────────────────────────────────────


def test_a_wait_prints_the_value_that_fulfilled_the_condition(kvstore: Kvstore, start: Start) -> None:
    kvstore.out("put", "until/a", '{"state": "new", "n": 1}')
    assert json.loads(kvstore.out("wait", "until/a", "--until", "/n == 1.0"))["state"] == "new"
    running = start(kvstore, "wait", "until/a", "--until", '/state == "done"', "--json")
    until_it_waits(kvstore.environment["KVSTORE_URL"])
    ops = [
        {"op": "put", "key": "until/a", "value": json.dumps({"state": state})} for state in ("done", "old")
    ]
    kvstore.out("batch", "-", stdin="".join(json.dumps(op) + "\n" for op in ops).encode())
    assert running.wait() == 0
    assert json.loads(running.lines()[0]["value"]) == {"state": "done"}


def test_a_wait_until_there_is_no_key_prints_nothing(kvstore: Kvstore) -> None:
    done = kvstore("wait", "until/missing", "--until", "gone")
    assert (done.returncode, done.stdout) == (0, b"")


def test_a_wait_that_was_in_vain_ends_with_124(kvstore: Kvstore) -> None:
    done = kvstore("wait", "until/never", "--until", "/a == 1", "--timeout", "100ms")
    assert done.returncode == 124
    assert "within 100ms" in done.stderr.decode()


def test_a_condition_that_is_none_is_an_error_that_says_the_grammar(kvstore: Kvstore) -> None:
    for condition in ("", "exist", "/a = 1", "a == 1"):
        done = kvstore("wait", "k", "--until", condition)
        assert done.returncode == 2, condition
        assert "POINTER OP JSON" in done.stderr.decode()
    assert kvstore("wait", "k", "--until", "gone", "--gone").returncode == 2


def test_a_wait_goes_on_from_where_the_service_ended_it(
    own: CommandLine, service: Service, start: Start
) -> None:
    """What came between two requests of the command is found, though nobody could read it any more."""
    own.out("put", "k", "0")
    running = start(own, "wait", "k", "--until", "equals hit")
    until_it_waits(service.url)
    service.facade.stop()
    with Client(service.requests) as client:
        client.batch([commands.put("k", value) for value in ("hit", "miss")])
    service.facade.start()
    assert running.wait() == 0
    assert running.stdout == b"hit\n"
