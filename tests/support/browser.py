"""A real Chromium, without a window, driven over its debugging pipe."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.programs import require_program

FLAGS = [
    "--headless",
    # Chromium's own sandbox cannot be set up by root, as which containers and CI run.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # Nothing that reaches for the network by itself.
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]


class Browser:
    """One page. Commands are those of the DevTools protocol, JSON ended by NUL, over two pipes: a
    WebSocket would need a library and a port, and this needs neither."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out = os.fdopen(to_browser, "wb", buffering=0)
        self._in = os.fdopen(from_browser, "rb")
        self._number = 0
        self._session: str | None = None
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.command("Page.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are dropped."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "the browser is gone"
            message += byte
        received: dict[str, Any] = json.loads(message)
        return received

    def open(self, url: str) -> None:
        """Go to ``url`` and return once its document is there."""
        answer = self.command("Page.navigate", url=url)
        assert "errorText" not in answer, answer["errorText"]
        while self.run("document.readyState") != "complete":
            pass

    def run(self, script: str) -> Any:
        """The value of the last expression of ``script`` in the page; a promise is waited for."""
        answer = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, replMode=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def close(self) -> None:
        """Let go of the pipes, whereupon the browser ends."""
        with contextlib.suppress(AssertionError, OSError):
            self._session = None
            self.command("Browser.close")
        self._out.close()
        self._in.close()


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in ``profile``, closed afterwards."""
    program = require_program("chromium", "chromium-browser", "google-chrome")
    its_in, our_out = os.pipe()
    our_in, its_out = os.pipe()
    # The browser looks for its pipes at the descriptors 3 and 4; the shell puts them there.
    command = 'reads=$1 writes=$2; shift 2; exec "$@" 3<&"$reads" 4>&"$writes"'
    folder = f"--user-data-dir={profile}"
    with (profile.parent / f"{profile.name}.stderr").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "browser", str(its_in), str(its_out), program, *FLAGS, folder],
            pass_fds=(its_in, its_out),
            stdout=log,
            stderr=log,
        )
    os.close(its_in)
    os.close(its_out)
    try:
        browser = Browser(our_out, our_in)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(profile, ignore_errors=True)
