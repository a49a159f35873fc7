"""A real Chromium, without a window, driven over its debugging pipe; and in it the page at ``/ui/``, as a
reader sees and uses it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support.programs import require_program
from support.servers import wait_until

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
    "--disable-extensions",
    # Names that are not of this machine, and lead here.
    "--host-resolver-rules=MAP *.example 127.0.0.1",
    "--remote-debugging-pipe",
]

ONE_PROCESS = [
    # One process for all pages and none kept for going back: a process of its own for each page takes as
    # long as everything that a test does there. What a page may do to another is decided above that.
    "--disable-site-isolation-trials",
    "--disable-features=IsolateOrigins,site-per-process,BackForwardCache",
    "--renderer-process-limit=1",
]

PROCESS_FOR_EACH_TAB = [
    # Tabs of one site would share a process where memory is short, and one would be kept in reserve.
    "--renderer-process-limit=100",
    "--disable-features=SpareRendererForSitePerProcess",
]

_CODES = {
    "Backspace": 8,
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "Delete": 46,
    "/": 191,
    "?": 191,
}
"""Windows' numbers of keys whose character is not their number."""


_LEFT = ("Inspected target navigated or closed", "Execution context was destroyed.")


class PageLeftError(AssertionError):
    """The page went to another place before it had answered."""


class Browser:
    """One page. Commands are those of the DevTools protocol, JSON ended by NUL, over two pipes: a
    WebSocket would need a library and a port, and this needs neither."""

    def __init__(self, to_browser: int, from_browser: int, pid: int) -> None:
        self.pid = pid
        self._out = os.fdopen(to_browser, "wb", buffering=0)
        self._in = from_browser
        self._received = bytearray()
        self._number = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._session: str | None = None
        _, self._session = self.attach()
        self.command("Page.enable")

    def attach(self) -> tuple[str, str]:
        """Open a further page, and attach to it: its target and its session."""
        with self.within(None):
            target = self.command("Target.createTarget", url="about:blank")["targetId"]
            return target, self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    @contextlib.contextmanager
    def within(self, session: str | None) -> Iterator[None]:
        """Meanwhile commands are for another page, or for the browser itself (None)."""
        usual, self._session = self._session, session
        try:
            yield
        finally:
            self._session = usual

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are kept in ``events``."""
        number = self._send(method, parameters)
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if answer.get("error", {}).get("message") in _LEFT:
                    raise PageLeftError(f"{method}: {answer['error']}")
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append((answer["method"], answer["params"]))
            if answer.get("method") == "Page.javascriptDialogOpening":
                # "Leave the page?" would hold up everything; its answer to this is skipped above.
                self._send("Page.handleJavaScriptDialog", {"accept": True})

    def tell(self, method: str, **parameters: Any) -> None:
        """Send a command that has no answer."""
        self._send(method, parameters)

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        return self._number

    def _receive(self) -> dict[str, Any]:
        while (end := self._received.find(b"\0")) < 0:
            more = os.read(self._in, 1 << 16)
            assert more, "the browser is gone"
            self._received += more
        received: dict[str, Any] = json.loads(self._received[:end])
        del self._received[: end + 1]
        return received

    def open(self, url: str) -> None:
        """Go to ``url`` and return once its document is there."""
        answer = self.command("Page.navigate", url=url)
        assert "errorText" not in answer, answer["errorText"]
        is_there = partial(self.holds, lambda: self.run("document.readyState") == "complete")
        wait_until(is_there, what=f"{url} is there", every=LOOK_SECONDS)

    @staticmethod
    def holds(condition: Callable[[], bool]) -> bool:
        """Whether it is so now; not so while the page goes to another place."""
        try:
            return condition()
        except PageLeftError:
            return False

    def run(self, script: str) -> Any:
        """The value of the last expression of ``script`` in the page; a promise is waited for."""
        answer = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, replMode=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def heard(self, event: str) -> list[dict[str, Any]]:
        """The parameters of the events of a name (``Network.requestWillBeSent``) since ``events`` was
        emptied; those of a domain come once it is enabled (``Network.enable``)."""
        self.run("0")
        return [parameters for name, parameters in self.events if name == event]

    def press(self, key: str, *, control: bool = False) -> None:
        """Press and let go of one key, ``a`` or ``Enter``, as a person does."""
        text = key if len(key) == 1 else {"Enter": "\r"}.get(key)
        named: dict[str, Any] = {"key": key, "modifiers": 2 if control else 0}
        named["windowsVirtualKeyCode"] = _CODES.get(key) or ord(key.upper())
        if text and not control:
            named["text"] = text
        self.command("Input.dispatchKeyEvent", type="keyDown", **named)
        self.command("Input.dispatchKeyEvent", type="keyUp", **named)

    def write(self, text: str) -> None:
        """Type ``text`` into what has the focus, all at once."""
        self.command("Input.insertText", text=text)

    def screenshot(self, file: Path) -> None:
        """Write what is to be seen as a PNG."""
        file.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """Let go of the pipes, whereupon the browser ends."""
        with contextlib.suppress(AssertionError, OSError):
            self._session = None
            self.command("Browser.close")
        self._out.close()
        os.close(self._in)


@contextlib.contextmanager
def open_browser(profile: Path, flags: Sequence[str] = ONE_PROCESS) -> Iterator[Browser]:
    """A browser with a fresh profile in ``profile``, closed afterwards."""
    # the first is Chromium without the parts for a window, which take as much time as the pages do
    program = require_program("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    its_in, our_out = os.pipe()
    our_in, its_out = os.pipe()
    # The browser looks for its pipes at the descriptors 3 and 4; the shell puts them there.
    command = 'reads=$1 writes=$2; shift 2; exec "$@" 3<&"$reads" 4>&"$writes"'
    folder = f"--user-data-dir={profile}"
    with (profile.parent / f"{profile.name}.stderr").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command, "browser", str(its_in), str(its_out), program, *FLAGS, *flags, folder],
            pass_fds=(its_in, its_out),
            stdout=log,
            stderr=log,
        )
    os.close(its_in)
    os.close(its_out)
    try:
        browser = Browser(our_out, our_in, process.pid)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(profile, ignore_errors=True)


LOOK_SECONDS = 0.03
"""Between two looks at the page, each of which has the browser lay it out."""


def _fragment(place: dict[str, str]) -> str:
    """What follows the page's address for a place."""
    return "#" + "&".join(f"{name}={quote(text, safe='')}" for name, text in place.items())


class Page:
    """The page of the service at ``url``. What it shows is waited for, never slept for."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        self.was_loaded_anew = False
        for domain in ("Runtime", "Log", "Network"):
            browser.command(f"{domain}.enable")

    def open(self, **place: str) -> None:
        """Load the page anew at a place: ``open(prefix="a/", key="a/b", tab="history")``."""
        self.was_loaded_anew = True
        self._load(place)

    def _load(self, place: dict[str, str]) -> None:
        if self.ask("location.href") != "about:blank":
            self.browser.open("about:blank")
        self.browser.open(f"{self.url}/ui/{_fragment(place)}")

    def go(self, **place: str) -> None:
        """Go to a place as by a link in the page, which is loaded only if it is not there: to load it takes
        ten times as long as to go on in it."""
        if not self.ask("location.href").startswith(f"{self.url}/ui/"):
            self._load(place)
            return
        fragment = json.dumps(_fragment(place))
        self.ask(
            f"if (location.hash !== {fragment}) await new Promise((done) => {{"
            f" addEventListener('popstate', done, {{once: true}}); location.hash = {fragment}; }}); 0"
        )

    def ask(self, script: str) -> Any:
        """The value of a script."""
        return self.browser.run(script)

    def wait(self, script: str) -> None:
        """Wait until the script's value is true."""
        self._until(lambda: self.ask(f"Boolean({script})"), lambda: f"{script} in\n{self.text()}")

    def _until(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """``what`` says how the page is if the condition did not come true: to read all of it takes as long
        as most waits."""
        try:
            wait_until(partial(self.browser.holds, condition), every=LOOK_SECONDS)
        except AssertionError as late:
            raise AssertionError(f"{late}: {what()}") from None

    def text(self, selector: str = "body") -> str:
        """What is to be read in the first element that matches; empty if there is none."""
        return str(self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait_for(self, text: str, selector: str = "body") -> None:
        """Wait until ``text`` is to be read in what matches."""
        self._until(
            lambda: text in self.text(selector),
            lambda: f"{text!r} in {selector}, which says\n{self.text(selector)}",
        )

    def click(self, label: str, within: str = "body") -> None:
        """Click the visible button or link whose text is ``label``, once it is there."""
        found = (
            f"[...document.querySelectorAll({json.dumps(within)} + ' :is(button, a, summary)')]"
            f".find((each) => each.innerText.trim() === {json.dumps(label)} && each.checkVisibility())"
        )
        self.wait(found)
        self.ask(f"{found}.click()")

    def fill(self, selector: str, text: str) -> None:
        """Replace what stands in a field, as typing would."""
        self.wait(f"document.querySelector({json.dumps(selector)})")
        self.ask(f"document.querySelector({json.dumps(selector)}).select()")
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        self.browser.write(text)
        if not text:
            self.browser.press("Delete")

    def edit(self, value: str) -> None:
        """Write over the value that is shown, and save."""
        self.click("Edit")
        self.fill("#edit-value", value)
        self.click("Save")

    def rows(self) -> list[str]:
        """The names in the list of keys."""
        names: list[str] = self.ask(
            "[...document.querySelectorAll('#entries .name')].map((e) => e.textContent)"
        )
        return names

    def wait_for_rows(self, *names: str) -> None:
        """Wait until the list shows just these."""
        self._until(lambda: self.rows() == list(names), lambda: f"the list shows {names}, not {self.rows()}")

    def focused(self) -> str:
        """The text, or else the id, of what has the focus."""
        return str(self.ask("document.activeElement.innerText || document.activeElement.id"))

    def complaints(self) -> list[str]:
        """What the browser's console says of the page, but for the answers that the service meant."""
        logged = [each["entry"] for each in self.browser.heard("Log.entryAdded")]
        said = [entry["text"] for entry in logged if entry["source"] != "network"]
        thrown = [str(each["exceptionDetails"]) for each in self.browser.heard("Runtime.exceptionThrown")]
        return said + thrown
