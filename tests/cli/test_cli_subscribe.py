"""``kvstore subscribe`` and ``kvstore wait`` against a real service that is stopped and killed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.load import HttpWriter, Ledger
from support.servers import Daemon, Facade, Service, kvstore_command, wait_until

Kvstore = Any
Start = Callable[..., Any]


def following(start: Start, kvstore: Kvstore, *arguments: str) -> Any:
    """A subscription that is in place: everything from now on is seen by it."""
    running = start(kvstore, "subscribe", *arguments)
    wait_until(lambda: "following the changes" in running.stderr, what="it follows")
    return running


def until_lines(running: Any, count: int) -> list[Any]:
    """Its JSON lines, once there are so many."""
    wait_until(lambda: len(running.lines()) >= count, what=f"{count} lines")
    return running.lines()


# ── subscribe ────────────────────────────────────────────────────────────────────────────────────


def test_each_change_is_a_line(kvstore: Kvstore, start: Start) -> None:
    running = following(start, kvstore, "--prefix", "line/", "--count", "4")
    kvstore.out("put", "line/a", "one")
    kvstore.out("put", "line/tab\t", "two\nlines\t\x1b[2J")
    kvstore.out("put", "line/bin", "-", stdin=b"\xff")
    kvstore.out("delete", "line/a")
    assert running.wait() == 0
    rows = [line.split("\t") for line in running.stdout.decode().splitlines()]
    assert [[row[0], row[1], *row[3:]] for row in rows] == [
        ["put", "line/a", "one"],
        ["put", "line/tab\\t", "two\\nlines\\t\\x1b[2J"],
        ["put", "line/bin", "(1 bytes, application/octet-stream)"],
        ["delete", "line/a"],
    ]


def test_json_lines_are_the_whole_event(kvstore: Kvstore, start: Start) -> None:
    running = following(start, kvstore, "json/k", "--json", "--count", "2")
    revision = int(kvstore.out("put", "json/k", "v", "--ttl", "1h"))
    kvstore.out("delete", "json/k")
    assert running.wait() == 0
    put, delete = running.lines()
    assert (put["event"], put["op"], put["key"], put["value"]) == ("put", "put", "json/k", "v")
    assert put["revision"] == revision
    assert put["cursor"].startswith(f"{revision}-")
    assert "expires_at" in put
    assert (delete["event"], delete["previous_revision"]) == ("delete", revision)


def test_only_what_was_asked_for_comes(kvstore: Kvstore, start: Start) -> None:
    running = following(
        start, kvstore, "only/a", "--prefix", "only/p", "--op", "put", "--json", "--no-values"
    )
    for key in ("only/a", "only/b", "only/p1", "other"):
        kvstore.out("put", key, "v")
    kvstore.out("delete", "only/a")
    kvstore.out("put", "only/p2", "v")
    lines = until_lines(running, 3)
    assert [line["key"] for line in lines] == ["only/a", "only/p1", "only/p2"]
    assert all("value" not in line for line in lines)


def test_a_snapshot_comes_first_and_its_end_is_told(kvstore: Kvstore, start: Start) -> None:
    kvstore.out("put", "snap/a", "1")
    kvstore.out("put", "snap/b", "2")
    running = following(start, kvstore, "--prefix", "snap/", "--snapshot", "--json", "--count", "3")
    kvstore.out("put", "snap/a", "3")
    assert running.wait() == 0
    lines = running.lines()
    assert [(line["event"], line.get("key")) for line in lines] == [
        ("put", "snap/a"),
        ("put", "snap/b"),
        ("sync", None),
        ("put", "snap/a"),
    ]


def test_since_goes_on_after_a_cursor(kvstore: Kvstore) -> None:
    first = kvstore.lines("put", "since/k", "1", "--json")[0]
    second = kvstore.lines("put", "since/k", "2", "--json")[0]
    kvstore.out("put", "since/k", "3")
    seen = kvstore.lines("subscribe", "since/k", "--since", str(first["revision"]), "--count", "2", "--json")
    assert [line["value"] for line in seen] == ["2", "3"]
    assert seen[0]["revision"] == second["revision"]
    again = kvstore.lines("subscribe", "since/k", "--since", seen[0]["cursor"], "--count", "1", "--json")
    assert again == seen[1:]


def test_a_cursor_file_carries_the_position_to_the_next_run(kvstore: Kvstore, start: Start) -> None:
    position = kvstore.folder / "position"
    running = following(start, kvstore, "cur/k", "--cursor", "position", "--json", "--count", "1")
    kvstore.out("put", "cur/k", "1")
    assert running.wait() == 0
    assert position.read_text().strip() == running.lines()[0]["cursor"]
    kvstore.out("put", "cur/k", "2")
    kvstore.out("put", "cur/k", "3")
    command = ("subscribe", "cur/k", "--cursor", "position", "--json", "--count", "1")
    assert [kvstore.lines(*command)[0]["value"] for _ in range(2)] == ["2", "3"]


def test_an_atomic_batch_that_count_cuts_comes_again(kvstore: Kvstore, start: Start) -> None:
    running = following(start, kvstore, "--prefix", "cut/", "--cursor", "cut", "--json", "--count", "2")
    kvstore.out("put", "cut/before", "")
    ops = [{"op": "put", "key": f"cut/{name}", "value": ""} for name in "ab"]
    kvstore.out("batch", "-", "--atomic", stdin=json.dumps(ops).encode())
    assert running.wait() == 0
    again = kvstore.lines("subscribe", "--prefix", "cut/", "--cursor", "cut", "--json", "--count", "2")
    assert [line["key"] for line in again] == ["cut/a", "cut/b"]


def test_a_cursor_file_that_holds_no_cursor_is_refused(kvstore: Kvstore) -> None:
    (kvstore.folder / "bad").write_text("tomorrow")
    done = kvstore("subscribe", "--cursor", "bad")
    assert done.returncode == 2
    assert "does not contain a cursor" in done.stderr.decode()


# ── --exec ───────────────────────────────────────────────────────────────────────────────────────


def test_exec_gets_the_event_in_its_environment_and_the_value_on_stdin(
    kvstore: Kvstore, start: Start
) -> None:
    command = 'env | grep ^KVSTORE_EVENT_ | sort; echo "[$(cat)]"'
    running = following(start, kvstore, "ex\u00e9/k", "--exec", command, "--count", "2")
    revision = int(kvstore.out("put", "ex\u00e9/k", "two\nlines", "--ttl", "1h"))
    kvstore.out("delete", "ex\u00e9/k")
    assert running.wait() == 0
    put, delete = [part.split("\n") for part in running.stdout.decode().removesuffix("]\n").split("]\n")]
    told = dict(line.split("=", 1) for line in put if "=" in line)
    assert told["KVSTORE_EVENT_OP"] == "put"
    assert told["KVSTORE_EVENT_KEY"] == "ex\u00e9/k"
    assert told["KVSTORE_EVENT_REVISION"] == str(revision)
    assert (told["KVSTORE_EVENT_INDEX"], told["KVSTORE_EVENT_COUNT"]) == ("0", "1")
    assert told["KVSTORE_EVENT_CONTENT_TYPE"] == "text/plain; charset=utf-8"
    assert "KVSTORE_EVENT_EXPIRES_AT" in told
    assert told["KVSTORE_EVENT_CURSOR"].startswith(f"{revision}-")
    assert put[-2:] == ["[two", "lines"]
    assert "KVSTORE_EVENT_OP=delete" in delete
    assert delete[-1] == "["


def test_a_subscription_in_the_command_of_another_passes_on_its_own_events_alone(kvstore: Kvstore) -> None:
    kvstore.out("put", "within/k", "v", "--ttl", "1h")
    asked = ("subscribe", "within/k", "--snapshot", "--count", "1", "--exec", "env")
    outer = {"KVSTORE_EVENT_KEY": "outer", "KVSTORE_EVENT_MESSAGE": "why", "KVSTORE_EVENT_REASON": "epoch"}
    told = dict(line.split("=", 1) for line in kvstore.out(*asked, env=outer).decode().splitlines())
    assert told["KVSTORE_EVENT_KEY"] == "within/k"
    assert not {"KVSTORE_EVENT_MESSAGE", "KVSTORE_EVENT_REASON"} & told.keys()


def test_exec_gets_the_last_value_of_a_key_that_expired(kvstore: Kvstore, start: Start) -> None:
    running = following(start, kvstore, "gone/k", "--op", "expire", "--exec", "cat", "--count", "1")
    kvstore.out("put", "gone/k", "the last words", "--ttl", "100ms")
    assert running.wait() == 0
    assert running.stdout == b"the last words"


def test_of_the_latest_a_slow_command_gets_the_newest_and_how_many_it_stands_for(
    kvstore: Kvstore, start: Start, tmp_path: Path
) -> None:
    gate, seen = tmp_path / "gate", tmp_path / "seen"
    os.mkfifo(gate)
    # the first run waits until all changes are made
    script = f'[ -s {seen} ] || read x < {gate}; echo "$KVSTORE_EVENT_SKIPPED $(cat)" >> {seen}'
    following(start, kvstore, "latest/k", "--deliver", "latest", "--exec", script)
    changes, padding = 400, "x" * 5000
    ops = [{"op": "put", "key": "latest/k", "value": f"{number} {padding}"} for number in range(changes)]
    for begin in range(0, changes, 100):
        kvstore.out("batch", "-", stdin=json.dumps({"ops": ops[begin : begin + 100]}).encode())
    with gate.open("w") as opened:  # waits until the command reads
        opened.write("go\n")

    def rows() -> list[list[str]]:
        return [line.split() for line in seen.read_text().splitlines()] if seen.exists() else []

    wait_until(lambda: rows() and rows()[-1][1] == str(changes - 1), what="the newest has come")
    assert sum(1 + int(row[0]) for row in rows()) == changes, "delivered and skipped are all changes"
    assert len(rows()) < changes // 2, "it was not run for what was old by then"


def test_with_a_sample_each_key_comes_at_once_and_its_next_change_waits(
    kvstore: Kvstore, start: Start
) -> None:
    running = following(start, kvstore, "--prefix", "sample/", "--sample", "1h", "--json", "--count", "2")
    for key in ("sample/a", "sample/a", "sample/b"):
        kvstore.out("put", key, "v")
    assert running.wait() == 0
    assert [(line["key"], line["skipped"]) for line in running.lines()] == [("sample/a", 0), ("sample/b", 0)]


def test_what_cannot_be_delivered_is_said(kvstore: Kvstore) -> None:
    for arguments, status in (
        (["--sample", "1s", "--deliver", "all"], 2),
        (["--sample", "soon"], 2),
        (["--deliver", "newest"], 2),
        (["--sample", "2h"], 1),
    ):
        refused = kvstore("subscribe", *arguments)
        assert refused.returncode == status, refused
        assert b"sample" in refused.stderr or b"deliver" in refused.stderr


def test_any_number_of_keys_is_followed(kvstore: Kvstore, start: Start) -> None:
    names = [f"number/{'k' * 100}{number}" for number in range(900)]
    running = following(start, kvstore, *names, "--op", "put", "--no-values", "--count", "1", "--json")
    kvstore.out("put", "number/other", "v")
    kvstore.out("put", names[-1], "v")
    assert running.wait() == 0
    (line,) = running.lines()
    assert (line["key"], "value" in line) == (names[-1], False)


def test_a_command_may_itself_run_kvstore(kvstore: Kvstore, start: Start) -> None:
    copy = " ".join(kvstore_command("put", "copy", "-"))
    running = following(start, kvstore, "original", "--exec", f"{copy} > copied", "--count", "1")
    kvstore.out("put", "original", "v")
    assert running.wait() == 0
    assert kvstore.out("get", "copy") == b"v\n"


def test_a_command_that_does_not_read_its_input_is_no_trouble(kvstore: Kvstore, start: Start) -> None:
    running = following(start, kvstore, "unread", "--exec", "true", "--count", "1")
    kvstore.out("put", "unread", "-", stdin=b"x" * 1_000_000)
    assert running.wait() == 0


def test_a_failing_command_is_told_and_the_stream_goes_on(kvstore: Kvstore, start: Start) -> None:
    command = 'read v; [ "$v" = good ] && echo "$v"'
    running = following(start, kvstore, "fail/k", "--exec", command, "--count", "2")
    kvstore.out("put", "fail/k", "bad")
    kvstore.out("put", "fail/k", "good")
    assert running.wait() == 1
    assert running.stdout == b"good\n"
    assert "failed with status 1" in running.stderr


def test_with_fail_fast_the_failed_event_comes_again_next_time(kvstore: Kvstore, start: Start) -> None:
    running = following(start, kvstore, "fast/k", "--cursor", "fast", "--fail-fast", "--exec", "kill -9 $$")
    kvstore.out("put", "fast/k", "1")
    kvstore.out("put", "fast/k", "2")
    assert running.wait() == 1
    assert "signal 9; stopping there" in running.stderr
    command = ("subscribe", "fast/k", "--cursor", "fast", "--exec", "cat; echo", "--count", "2")
    assert kvstore.out(*command) == b"1\n2\n"


# ── over restarts ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("victim", ["facade", "daemon"])
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_subscription_survives_a_restart_with_nothing_lost_and_nothing_twice(
    offline: Kvstore, service: Service, start: Start, victim: str, how: str
) -> None:
    offline.environment["KVSTORE_URL"] = service.url
    running = following(start, offline, "--prefix", "w/", "--json")
    ledger = Ledger()
    writer = HttpWriter("w", ledger, service.url)
    writer.start()
    try:
        server: Daemon | Facade = getattr(service, victim)
        for _ in range(2):
            count = len(ledger)
            wait_until(lambda: len(ledger) > count + 3, what="writes")  # noqa: B023
            getattr(server, how)()
            server.start()
        count = len(ledger)
        wait_until(lambda: len(ledger) > count + 3, what="writes after the restarts")
    finally:
        writer.finish()
    acknowledged = [(write.revision, write.op, write.key) for write in ledger.writes]
    wait_until(lambda: running.lines()[-1]["revision"] >= acknowledged[-1][0], what="the last event")
    events = [line for line in running.lines() if "index" in line]
    seen = [(line["revision"], line["index"]) for line in events]
    assert seen == sorted(set(seen))
    assert set(acknowledged) <= {(line["revision"], line["op"], line["key"]) for line in events}


def test_a_log_that_does_not_reach_back_leads_to_a_reset_and_the_present(
    offline: Kvstore, start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(start_daemon(retain_events=5))
    offline.environment["KVSTORE_URL"] = facade.url
    first = int(offline.out("put", "k", "0"))
    ops = [{"op": "put", "key": f"k{number}", "value": ""} for number in range(200)]
    offline.out("batch", "-", stdin=json.dumps(ops).encode())

    def is_trimmed() -> bool:
        return bool(offline.lines("status", "--json")[0]["floor"] > first)

    wait_until(is_trimmed, what="the log is trimmed")
    facade.restart()  # which forgets what it remembers of the log
    lines = offline.lines("subscribe", "--since", str(first), "--json", "--count", "201")
    assert lines[0]["event"] == "reset"
    assert lines[0]["reason"] == "expired"
    assert {line["key"] for line in lines[1:]} == {"k", *(op["key"] for op in ops)}


def test_a_copy_that_a_command_keeps_loses_what_is_gone_once_marks_are_wanted(
    offline: Kvstore, start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], start: Start
) -> None:
    offline.environment["KVSTORE_URL"] = start_facade(start_daemon()).url
    (offline.folder / "copy").mkdir()
    keep = """
    case $KVSTORE_EVENT_OP in
      reset) rm -f copy/*; echo "$KVSTORE_EVENT_REASON" > reset ;;
      sync) ls copy > complete ;;
      put) cat > "copy/$KVSTORE_EVENT_KEY" ;;
    esac"""
    follow = ("subscribe", "--snapshot", "--cursor", "position", "--exec", keep, "--exec-marks")
    complete, position = offline.folder / "complete", offline.folder / "position"

    def follow_until_complete() -> str:
        complete.unlink(missing_ok=True)
        position_before = position.read_text().strip() if position.exists() else ""
        running = start(offline, *follow)
        wait_until(
            lambda: complete.exists() and position.read_text().strip() not in ("", position_before),
            what="the present is complete",
        )
        running.process.terminate()
        running.wait()
        return complete.read_text()

    offline.out("put", "gone", "1")
    assert follow_until_complete() == "gone\n"
    complete.unlink()
    offline.out("put", "stays", "2")
    running = start(offline, *follow)
    wait_until((offline.folder / "copy" / "stays").exists, what="it has caught up")
    offline.out("put", "later", "3")
    wait_until((offline.folder / "copy" / "later").exists, what="it follows")
    running.process.terminate()
    running.wait()
    assert not complete.exists()  # a catch-up says nothing of what is gone
    assert not (offline.folder / "reset").exists()
    offline.environment["KVSTORE_URL"] = start_facade(start_daemon()).url  # another epoch
    offline.out("put", "stays", "3")
    assert follow_until_complete() == "stays\n"
    assert (offline.folder / "reset").read_text() == "epoch\n"


# ── wait ─────────────────────────────────────────────────────────────────────────────────────────


def test_wait_ends_at_once_when_it_is_so_already(kvstore: Kvstore) -> None:
    kvstore.out("put", "wait/now", "v")
    assert kvstore.out("wait", "wait/now", "--exists") == b"v\n"
    assert kvstore.out("wait", "wait/now", "--equals", "v", "--raw") == b"v"
    assert kvstore.out("wait", "wait/now", "--changed", "--since", "0") == b"v\n"
    assert kvstore.out("wait", "wait/now", "--exists", "--quiet") == b""
    assert kvstore.out("wait", "wait/never", "--gone") == b""


@pytest.mark.parametrize(
    "condition",
    [["--exists"], ["--equals", "v"], ["--changed", "--since", "0"], ["--until", "exists"]],
    ids=" ".join,
)
def test_wait_prints_the_record_as_get_does(kvstore: Kvstore, condition: list[str]) -> None:
    kvstore.out("put", "wait/record", "v", "--ttl", "1h", "-m", "because")
    record = kvstore.lines("get", "wait/record", "--json")
    assert kvstore.lines("wait", "wait/record", *condition, "--json") == record


@pytest.mark.parametrize("forms", [("--raw", "--json"), ("--json", "--quiet"), ("--raw", "-q")])
def test_wait_prints_in_one_form(kvstore: Kvstore, forms: tuple[str, str]) -> None:
    refused = kvstore("wait", "wait/now", "--gone", *forms)
    assert refused.returncode == 2
    assert b"exclude each other" in refused.stderr


@pytest.mark.parametrize(
    ("condition", "actions", "printed"),
    [
        (["--exists"], [["put", "K", "v"]], b"v\n"),
        (["--equals", "b"], [["put", "K", "a"], ["put", "K", "b"]], b"b\n"),
        (["--changed", "--since", "0"], [["put", "K", "v"]], b"v\n"),
    ],
)
def test_wait_ends_when_it_comes_to_be_so(
    kvstore: Kvstore,
    start: Start,
    request: pytest.FixtureRequest,
    condition: Any,
    actions: Any,
    printed: bytes,
) -> None:
    key = f"wait/{request.node.name}"
    running = start(kvstore, "wait", key, *condition, "--timeout", "30s")
    for action in actions:
        kvstore.out(*(key if word == "K" else word for word in action))
    assert running.wait() == 0
    assert running.stdout == printed


def test_wait_changed_ends_with_the_first_change_after_it_looked(kvstore: Kvstore, start: Start) -> None:
    running = start(kvstore, "wait", "wait/changed", "--changed")

    def has_ended() -> bool:
        kvstore.out("put", "wait/changed", "v")
        return running.process.poll() is not None

    wait_until(has_ended, what="it ends")
    assert (running.wait(), running.stdout) == (0, b"v\n")


def test_wait_gone_ends_when_the_key_is_deleted_or_expires(kvstore: Kvstore, start: Start) -> None:
    kvstore.out("put", "wait/gone", "v")
    running = start(kvstore, "wait", "wait/gone", "--gone")
    kvstore.out("delete", "wait/gone")
    assert running.wait() == 0
    assert running.stdout == b""
    kvstore.out("put", "wait/gone", "v", "--ttl", "200ms")
    assert kvstore("wait", "wait/gone", "--gone", "--timeout", "30s").returncode == 0


def test_wait_goes_on_over_a_restart_of_the_whole_service(
    offline: Kvstore, service: Service, start: Start
) -> None:
    offline.environment["KVSTORE_URL"] = service.url
    # the first kill may come before it has had an answer
    retrying = {"KVSTORE_RETRY_FOR": "50s"}
    running = start(offline, "wait", "late", "--equals", "done", "--timeout", "50s", env=retrying)
    offline.out("put", "late", "not yet")
    service.facade.kill()
    service.daemon.kill()
    service.daemon.start()
    service.facade.start()
    offline.out("put", "late", "done")
    assert running.wait() == 0
    assert running.stdout == b"done\n"
