"""What the commands read and write: bounded input, readers that go away, terminals."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.servers import free_port, kvstore_command

pytestmark = pytest.mark.slow

Kvstore = Any
LIMIT = 2**20


# ── input ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("source", ["-", "@/dev/zero"])
def test_input_without_end_is_refused_with_the_limit_of_a_value(kvstore: Kvstore, source: str) -> None:
    with Path("/dev/zero").open("rb") as endless:
        done = subprocess.run(
            kvstore_command("put", "endless", source),
            stdin=endless,
            capture_output=True,
            env=kvstore.environment,
            check=False,
        )
    assert done.returncode == 1
    assert f"a value has at most {LIMIT} bytes" in done.stderr.decode()


def test_a_file_that_is_too_large_is_told_by_its_size_and_not_read(kvstore: Kvstore) -> None:
    with (kvstore.folder / "sparse").open("wb") as file:
        file.truncate(2**40)
    done = kvstore("put", "sparse", "@sparse")
    assert done.returncode == 1
    assert f"sparse has {2**40} bytes; a value has at most {LIMIT} bytes" in done.stderr.decode()
    assert b"more than 64 MiB" in kvstore("batch", "sparse").stderr
    (kvstore.folder / "sparse").unlink()


def test_an_at_sign_alone_is_asked_for_its_file(kvstore: Kvstore) -> None:
    done = kvstore("put", "at", "@")
    assert done.returncode == 2
    assert b"--literal" in done.stderr
    kvstore.out("put", "at", "@", "--literal")
    assert kvstore.out("get", "at", "--raw") == b"@"


# ── output ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_subscription_whose_reader_is_gone_ends_without_another_event(
    kvstore: Kvstore, form: list[str]
) -> None:
    command = kvstore_command("subscribe", "gone/reader", "--snapshot", *form)
    kvstore.out("put", "gone/reader", "v")
    process = subprocess.Popen(
        command, env=kvstore.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert b"gone/reader" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1


def test_a_value_ends_with_one_newline_and_raw_adds_none(kvstore: Kvstore) -> None:
    for value, shown in ((b"v", b"v\n"), (b"v\n", b"v\n"), (b"v\n\n", b"v\n\n"), (b"", b"\n")):
        kvstore.out("put", "newline", "-", stdin=value)
        assert kvstore.out("get", "newline") == shown
        assert kvstore.out("wait", "newline", "--exists") == shown
        assert kvstore.out("get", "newline", "--raw") == value


def test_keys_that_look_alike_are_told_apart_on_a_terminal(kvstore: Kvstore) -> None:
    kvstore.out("put", " alike/a", "x")
    for end in ("", " ", "\u00a0", "\u3164", "\ufe0f", "\u200b"):
        kvstore.out("put", f"alike/a{end}", "x")
    names = kvstore.on_terminal("list", "alike/").splitlines()
    escaped = ["\\x20", "\\xa0", "\\u200b", "\\u3164", "\\ufe0f"]
    assert names == ["alike/a", *(f"alike/a{end}" for end in escaped)]
    assert kvstore.on_terminal("list", " ").splitlines() == ["\\x20alike/a"]
    assert "\\x20alike/a" in kvstore.on_terminal("list", " ", "--long")


def test_a_terminal_gets_no_control_characters_unless_they_are_asked_for(kvstore: Kvstore) -> None:
    kvstore.out("put", "tty/one", "a\tb\n\x1b]0;owned\x07")
    for command in (["get", "tty/one"], ["wait", "tty/one", "--exists"]):
        assert kvstore.on_terminal(*command).split() == ["a", "b", "\\x1b]0;owned\\x07"]
    assert "\x1b]0;owned\x07" in kvstore.on_terminal("get", "tty/one", "--raw")
    kvstore.out("put", "tty/bytes", "-", stdin=b"\xff\x1b")
    assert (
        kvstore.on_terminal("get", "tty/bytes") == "(2 bytes, application/octet-stream; --raw prints them)\n"
    )


@pytest.mark.parametrize(
    "command", [["get", "full"], ["put", "full", "w"], ["list"], ["subscribe", "--snapshot"]]
)
def test_output_that_cannot_be_written_is_told_as_that(kvstore: Kvstore, command: list[str]) -> None:
    kvstore.out("put", "full", "v")
    for redirection, said in (
        (">/dev/full", "cannot write to standard output"),
        (">&-", "output is closed"),
    ):
        line = " ".join(kvstore_command(*command)) + redirection
        done = subprocess.run(
            ["sh", "-c", line], env=kvstore.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert ("revision" in done.stderr and "was made, but" in done.stderr) == (command[0] == "put")


def test_closed_input_is_told(kvstore: Kvstore) -> None:
    line = " ".join(kvstore_command("put", "closed", "-")) + " <&-"
    done = subprocess.run(["sh", "-c", line], env=kvstore.environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"standard input is closed" in done.stderr


# ── batch ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "document",
    [
        {"ops": [{"op": "get", "key": "k"}], "atomically": True},
        [{"op": "put", "key": "k", "value": "", "tll": 3}],
        [{"op": "delete", "key": "k", "if_revison": 3}],
    ],
)
def test_members_that_no_batch_has_are_refused(kvstore: Kvstore, document: Any) -> None:
    done = kvstore("batch", "-", stdin=json.dumps(document).encode())
    assert done.returncode in (1, 2)
    assert any(name in done.stderr.decode() for name in ("atomically", "tll", "if_revison"))


def test_a_failed_atomic_batch_names_the_op(kvstore: Kvstore) -> None:
    kvstore.out("put", "at", "text")
    ops = [{"op": "put", "key": "other", "value": ""}, {"op": "incr", "key": "at"}]
    done = kvstore("batch", "--atomic", "-", stdin=json.dumps(ops).encode())
    assert done.returncode == 1
    assert "ops[1] (incr 'at'): " in done.stderr.decode()


def test_an_op_of_a_later_part_is_counted_from_the_beginning(kvstore: Kvstore) -> None:
    ops = [{"op": "get", "key": "k"}] * 1000 + [{"op": "delete", "key": ""}]
    done = kvstore("batch", "-", stdin=json.dumps(ops).encode())
    assert "ops[1000]" in done.stderr.decode()


# ── command line ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["list", "get", "delete"])
def test_an_option_that_is_taken_once_is_refused_twice(offline: Kvstore, command: str) -> None:
    done = offline(command, "--prefix", "a", "--prefix", "b")
    assert done.returncode == 2
    assert b"--prefix is given more than once" in done.stderr


@pytest.mark.parametrize("command", ["status", "ping"])
def test_a_service_that_does_not_come_is_waited_for_as_long_as_was_asked(
    offline: Kvstore, command: str
) -> None:
    began = time.monotonic()
    done = offline(command, "--url", f"http://127.0.0.1:{free_port()}", "--retry-for", "3200ms")
    assert done.returncode == 6
    assert time.monotonic() - began > 3.2


def test_a_service_that_is_not_there_yet_is_waited_for_where_that_is_asked_for(
    offline: Kvstore, start: Callable[..., Any]
) -> None:
    port = free_port()
    running = start(offline, "get", "k", "--url", f"http://127.0.0.1:{port}", "--retry-for", "40s")

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nv")

    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        assert running.wait() == 0
        thread.join()
    assert running.stdout == b"v\n"
