"""The ``kvstore`` command, run in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from support.patience import PATIENCE_SECONDS
from support.servers import clean_environment, kvstore_command, run_kvstore
from support.terminal import Terminal


class CommandLine:
    """Runs ``kvstore`` in a folder of its own, against one service."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder
        self.environment = clean_environment(folder, **({"KVSTORE_URL": url} if url else {}))
        self.find_in(Path(kvstore_command()[0]).parent)

    def __call__(
        self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end."""
        return run_kvstore(
            *arguments,
            stdin=stdin,
            env={**self.environment, **(env or {})},
            cwd=self.folder,
            timeout=PATIENCE_SECONDS,
        )

    def find_in(self, binaries: Path) -> None:
        """Have shells find the command in that folder."""
        self.environment["PATH"] = f"{binaries}:{os.environ['PATH']}"

    def out(self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> bytes:
        """What it prints; it has to succeed."""
        done = self(*arguments, stdin=stdin, env=env)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def lines(self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> list[Any]:
        """The JSON lines that it prints; it has to succeed."""
        return [json.loads(line) for line in self.out(*arguments, stdin=stdin, env=env).splitlines()]

    def on_terminal(self, *arguments: str) -> str:
        """What it shows on a terminal; it has to succeed."""
        with Terminal(kvstore_command(*arguments), (80, 24), self.environment, self.folder) as terminal:
            assert terminal.wait() == 0, terminal.output
        return terminal.output.replace("\r\n", "\n")

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> Running:
        """Start it and leave it running."""
        return Running(kvstore_command(*arguments), self.folder, {**self.environment, **(env or {})})


class Running:
    """A command that was started and goes on, its output in files."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        number = len(list(folder.glob("*.out")))
        self.out_path, self.err_path = folder / f"{number}.out", folder / f"{number}.err"
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def stdout(self) -> bytes:
        """What it printed so far."""
        return self.out_path.read_bytes()

    @property
    def stderr(self) -> str:
        """What it said so far."""
        return self.err_path.read_text(encoding="utf-8", errors="replace")

    def lines(self) -> list[Any]:
        """The whole JSON lines that it printed so far."""
        return [json.loads(line) for line in self.stdout.split(b"\n")[:-1]]

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
