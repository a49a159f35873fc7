"""Does what a page of the documentation says, as its reader would, and compares what comes of it.

The prose says how a block is meant, by the line above it:

- "... as `NAME`:" is a file of the reader's folder.
- "... another terminal ..." is a command that goes on; what it shows has to have come by the end of the page.
- "... a moment ..." is tried again until it gives what is shown.

Any other ``console`` block is typed once; other blocks are for the page's own test.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from support.markdown import Block, Step, blocks, looks_like, steps
from support.patience import PATIENCE_SECONDS
from support.servers import Serve, clean_environment, wait_until


class Walk:
    """A reader of ``page`` whose service is ``serve``; ``ports`` are those that the page names, with those
    that are in their place, and what follows. Programs are looked for in ``programs`` first."""

    def __init__(
        self,
        page: Path,
        serve: Serve,
        folder: Path,
        ports: Mapping[int | str, int | str] = {},
        programs: Path | None = None,
    ) -> None:
        self.blocks = list(blocks(page.read_text()))
        self.folder = folder
        self._places = {
            "http://127.0.0.1:5000": serve.url,
            **{f":{shown}": f":{real}" for shown, real in ports.items()},
            **{f" {shown}": f" {real}" for shown, real in ports.items()},
        }
        self._environment = {
            **clean_environment(
                folder,
                KVSTORE_URL=serve.url,
                KVSTORE_REQUESTS=serve.requests,
                KVSTORE_CHANGES=serve.changes,
                KVSTORE_DATA=str(serve.data),
            ),
            "PATH": os.pathsep.join(
                [*([str(programs)] if programs else []), sysconfig.get_path("scripts"), os.environ["PATH"]]
            ),
        }
        (folder / ".curlrc").write_text("silent\n")  # its progress is for a person at a terminal
        self._going_on: list[tuple[Step, Path]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def here(self, text: str) -> str:
        """``text`` with the addresses of this test in place of the page's."""
        for shown, real in self._places.items():
            text = text.replace(shown, real)
        return text

    def go(self) -> None:
        """Do all of the page."""
        for block in self.blocks:
            self.do(block)
        self.arrive()

    def do(self, block: Block) -> None:
        """Do what one block says."""
        if name := re.search(r"\bas `([^`]+)`.*:$", block.lead):
            (self.folder / name[1]).write_text(self.here(block.text))
        elif block.language == "console":
            for step in steps(block):
                if "another terminal" in block.lead:
                    self._begin(step)
                else:
                    self._type(step, is_tried_again="moment" in block.lead)

    def arrive(self) -> None:
        """Wait until the commands that go on have shown what they are said to."""
        for step, output in self._going_on:
            self._wait_for(Step(step.command, f"{step.output}…"), output.read_text)

    def _type(self, step: Step, *, is_tried_again: bool) -> None:
        if is_tried_again:
            self._wait_for(step, lambda: self._run(step.command))
            return
        real = self._run(step.command)
        assert looks_like(self.here(step.output), real), (
            f"$ {step.command}\nshown:\n{step.output}\nreal:\n{real}"
        )

    def _wait_for(self, step: Step, output: Callable[[], str]) -> None:
        seen = ""

        def is_there() -> bool:
            nonlocal seen
            seen = output()
            return looks_like(self.here(step.output), seen)

        try:
            wait_until(is_there, timeout=PATIENCE_SECONDS, what=f"$ {step.command}", every=0.1)
        except AssertionError as late:
            raise AssertionError(f"{late}\nshown:\n{step.output}\nreal:\n{seen}") from None

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", self.here(command)],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=50,
            check=False,
        )
        return done.stdout

    def _begin(self, step: Step) -> None:
        output = self.folder / f"terminal {len(self._going_on)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self.here(step.command)}"],
                env=self._environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._stack.callback(process.wait, 20)
        self._stack.callback(process.send_signal, signal.SIGTERM)
        self._going_on.append((step, output))
        first = step.output.partition("\n")[0]
        if first.strip("…"):  # as a reader, who goes on once it has begun
            self._wait_for(Step(step.command, f"{first}…"), output.read_text)
