"""The example subscribers, which use no code of ours, see every change once and in order."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstore_client import Client, commands
from support.patience import PATIENCE_SECONDS
from support.programs import install_examples
from support.proxy import CuttingProxy
from support.servers import Daemon, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples"

Command = list[str]


@pytest.fixture(scope="module")
def node_command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The Node example with the package that it needs, installed in a copy of the folder."""
    folder = tmp_path_factory.mktemp("node")
    return [install_examples(folder), str(folder / "subscriber.mjs")]


@pytest.fixture(params=["python", "node"])
def command(request: pytest.FixtureRequest) -> Command:
    """How to start one of the examples."""
    if request.param == "python":
        return [sys.executable, str(EXAMPLES / "subscriber.py")]
    started: Command = request.getfixturevalue("node_command")
    return started


class Output:
    """What a running example has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[dict[str, Any]] = []
        self._process = process
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))

    def until(self, is_there: Callable[[dict[str, Any]], bool]) -> None:
        """Wait for a line."""
        wait_until(lambda: any(map(is_there, self.lines)), timeout=50, what="the example prints it")

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        return [(line["op"], line["key"], line.get("value", "")) for line in self.lines if "op" in line]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_SECONDS)
        self._reader.join()


@contextmanager
def running(command: Command, *arguments: str) -> Iterator[Output]:
    """The example, from its first line on until the block ends."""
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True) as process:
        output = Output(process)
        try:
            output.until(lambda line: "start" in line)
            yield output
        finally:
            output.stop()


def endpoints(daemon: Daemon) -> list[str]:
    return ["--requests", daemon.requests, "--changes", daemon.changes]


def logged(client: Client, prefix: str = "") -> list[tuple[str, str, str]]:
    """What the example has to print: the log."""
    return [
        (event.op, event.key, (event.record.value or b"").decode() if event.record else "")
        for event in client.events(0).events
        if event.key.startswith(prefix)
    ]


def write(client: Client) -> None:
    """Changes of every kind; the last one is of the key ``p/last``."""
    for number in range(20):
        client.put(f"p/{number}", b"%d" % number)
        client.put("other", b"%d" % number)
    pair = [commands.put("p/a", b"1"), commands.put("other", b"1"), commands.put("p/b", b"2")]
    client.batch(pair, atomic=True)
    client.put("p/short", b"v", ttl=0.01)
    client.delete("p/a")
    wait_until(lambda: any(op == "expire" for op, _, _ in logged(client)))
    client.put("p/last", "\N{SNOWMAN}".encode())


@pytest.mark.parametrize("prefix", ["", "p/"])
def test_it_prints_every_change_of_what_it_follows(daemon: Daemon, command: Command, prefix: str) -> None:
    with Client(daemon.requests) as client, running(command, *endpoints(daemon), prefix) as output:
        write(client)
        output.until(lambda line: line.get("key") == "p/last")
        assert output.changes == logged(client, prefix)


def test_it_continues_from_a_cursor_with_all_that_it_missed(daemon: Daemon, command: Command) -> None:
    with Client(daemon.requests) as client:
        write(client)
        events = logged(client)
        with running(command, *endpoints(daemon), "--since", f"0-{client.status()['epoch']}") as output:
            output.until(lambda line: line.get("key") == "p/last")
            assert output.changes == events
            cursors = [line["cursor"] for line in output.lines if "op" in line]
        half = cursors[len(cursors) // 2]
        with running(command, *endpoints(daemon), "--since", half) as output:
            output.until(lambda line: line.get("key") == "p/last")
            assert output.changes == events[len(cursors) // 2 + 1 :]


def test_it_says_when_its_cursor_is_of_another_history(daemon: Daemon, command: Command) -> None:
    with running(command, *endpoints(daemon), "--since", "1-" + "0" * 16) as output:
        output.until(lambda line: line.get("reset") == "epoch")


def test_it_misses_nothing_while_connections_break_and_the_daemon_is_killed(
    daemon: Daemon, command: Command
) -> None:
    with (
        Client(daemon.requests, timeout=50) as client,
        CuttingProxy(daemon.changes, 3000) as changes,
        running(command, "--requests", daemon.requests, "--changes", changes.endpoint) as output,
    ):
        for number in range(100):
            client.put("k", b"%d" % number)
        daemon.kill()
        daemon.start()
        client.put("last", b"v")
        output.until(lambda line: line.get("key") == "last")
        assert output.changes == logged(client)
