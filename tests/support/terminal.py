"""A command on a terminal of its own, as a person would run it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import subprocess
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from support.patience import PATIENCE_SECONDS
from support.servers import wait_until

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HOME = "\x1b[H"


class Terminal:
    """Runs ``command`` on a pseudo-terminal of ``size`` (columns, lines), and kills it at the end of
    the ``with``, if it still runs."""

    def __init__(
        self, command: list[str], size: tuple[int, int], environment: dict[str, str], folder: Path
    ) -> None:
        self._master, self._slave = os.openpty()
        self.resize(*size)
        self.attributes = termios.tcgetattr(self._slave)
        setsid = shutil.which("setsid")
        assert setsid is not None, "util-linux is there on every Linux"
        self.process = subprocess.Popen(
            [setsid, "--ctty", *command],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={"TERM": "xterm-256color", **environment},
            cwd=folder,
        )
        self._output = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # ends when nobody has the other side open any more
        with suppress(OSError):
            while data := os.read(self._master, 65536):
                self._output += data

    @property
    def output(self) -> str:
        """All that came, escape sequences too."""
        return bytes(self._output).decode(errors="replace")

    def screen(self) -> list[str]:
        """The lines that are seen now, without escape sequences: of a program that draws whole screens
        from the top left corner, the last one that is complete."""
        frames = self.output.split(HOME)
        return _ESCAPE.sub("", frames[-2] if len(frames) > 2 else "").replace("\r", "").split("\n")

    def wait_for(self, text: str) -> list[str]:
        """The first screen seen that has ``text`` somewhere."""
        return self._wait_for(lambda lines: any(text in line for line in lines), f"{text!r} on the screen")

    def wait_for_height(self, height: int) -> list[str]:
        """The first screen seen that has ``height`` lines."""
        return self._wait_for(lambda lines: len(lines) == height, f"a screen of {height} lines")

    def _wait_for(self, is_right: Callable[[list[str]], bool], what: str) -> list[str]:
        found: list[str] = []

        def is_there() -> bool:
            found[:] = self.screen()
            return is_right(found)

        try:
            wait_until(is_there, timeout=40, what=what, every=0.05)
        except AssertionError as error:
            error.add_note(f"status {self.process.poll()}, what came last: {self.output[-3000:]!r}")
            raise
        return found

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, which also tells the command."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def attributes_now(self) -> list[Any]:
        """The settings of the terminal."""
        return termios.tcgetattr(self._slave)

    def wait(self) -> int:
        """The exit status, once the command has ended."""
        return self.process.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        self._reader.join()
        os.close(self._master)
