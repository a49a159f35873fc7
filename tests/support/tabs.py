"""Many tabs of one browser, each with a process of its own, which can be killed or stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from support.browser import Browser
from support.servers import wait_until


class Tab:
    """One page of a :class:`~support.browser.Browser` beside its first."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        before = renderers(browser)
        self._target, self._session = browser.attach()
        with browser.within(self._session):
            browser.command("Page.enable")
            browser.open(url)
        new = wait_until(lambda: renderers(browser) - before, what="the tab has a process of its own")
        self.pid = max(new)

    def run(self, script: str) -> Any:
        """The value of the last expression of ``script``; a promise is waited for."""
        with self._browser.within(self._session):
            return self._browser.run(script)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the DevTools protocol to this page."""
        with self._browser.within(self._session):
            return self._browser.command(method, **parameters)

    def kill(self) -> None:
        """SIGKILL to its process."""
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: self.pid not in renderers(self._browser), what="the tab's process is gone")

    def crash(self) -> None:
        """Have the page fail as by a fault of the browser."""
        with self._browser.within(self._session):
            self._browser.tell("Page.crash")
        wait_until(lambda: self.pid not in renderers(self._browser), what="the tab's process is gone")

    def close(self) -> None:
        """Close the tab as its reader would."""
        with self._browser.within(None):
            self._browser.command("Target.closeTarget", targetId=self._target)


def renderers(browser: Browser) -> set[int]:
    """The processes that show pages."""
    found = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"--type=renderer" in command and _descends(int(folder.name), browser.pid):
            found.add(int(folder.name))
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(status.rpartition(")")[2].split()[1])
    return False
