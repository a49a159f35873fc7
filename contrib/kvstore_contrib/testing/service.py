"""A service for tests: its processes, in a temporary folder and on free ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import IO

from kvstore_contrib.testing.link import Link

_STOP_SECONDS = 20
_ANYWHERE = "tcp://127.0.0.1:0"
_DAEMON = re.compile(r"ready, requests (tcp://\S+), changes (tcp://[^\s,]+)")
_FACADE = re.compile(r"ready, (http://[^\s,]+)")


class TestService:
    """A daemon, started at once, and the HTTP facade, started when :attr:`url` is first asked for.

    Clients come through :attr:`links`; the facade has its own way to the daemon. ``folder`` takes the data
    and the logs. Raises RuntimeError with its log where a process does not start. Use :meth:`close`.
    """

    __test__ = False  # pytest: its name begins like that of a class of tests

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.links: list[Link] = []
        options = ["--data", str(folder / "data"), "--requests", _ANYWHERE, "--changes", _ANYWHERE]
        self._processes: list[subprocess.Popen[str]] = []
        self._daemon, found = self._start(["kvstore_contrib.testing.daemon", *options], _DAEMON)
        self._direct = found[1], found[2]
        self.requests = self._linked(found[1])
        """The endpoint for requests."""
        self.changes = self._linked(found[2])
        """The endpoint for changes."""
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The address for HTTP, without a slash at its end."""
        if self._url is None:
            requests, changes = self._direct
            options = ["--requests", requests, "--changes", changes, "--http", "127.0.0.1:0"]
            _, found = self._start(["kvstore_cli", "http", *options], _FACADE)
            self._url = self._linked(found[1].rstrip("/"))
        return self._url

    def advance(self, seconds: float) -> None:
        """Move the daemon's clock forward; what has expired by then is gone when this returns."""
        to, back = self._daemon.stdin, self._daemon.stdout
        assert to is not None  # noqa: S101 # for the types
        assert back is not None  # noqa: S101 # for the types
        to.write(f"{round(seconds * 1000)}\n")
        to.flush()
        if not back.readline():
            raise RuntimeError("the daemon has ended")

    def close(self) -> None:
        """End the processes, the facade first, and cut what is connected."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for link in self.links:
            link.close()

    def _linked(self, address: str) -> str:
        start, _, port = address.rpartition(":")
        self.links.append(Link(int(port)))
        return f"{start}:{self.links[-1].port}"

    def _start(
        self, arguments: list[str], ready: re.Pattern[str]
    ) -> tuple[subprocess.Popen[str], re.Match[str]]:
        # what configures the machine's own service is not for this one
        environment = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}
        environment |= {"KVSTORE_LOG_FORMAT": "text", "HOME": str(self._folder)}
        process = subprocess.Popen(  # noqa: S603 # our own command
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._processes.append(process)
        log = process.stderr
        assert log is not None  # noqa: S101 # for the types
        said = ""
        for line in log:
            said += line
            if found := ready.search(line):
                Thread(target=_drain, args=(log, self._folder / "log"), daemon=True).start()
                return process, found
        self.close()
        raise RuntimeError(f"{arguments[0]} did not start:\n{said}")


def _drain(log: IO[str], file: Path) -> None:
    """Keep what a process says, which would wait for who reads it otherwise."""
    with file.open("a") as out:
        try:
            for line in log:
                out.write(line)
        except ValueError:  # closed
            return
