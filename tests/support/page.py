"""The page at ``/ui/`` in a real browser, as a reader sees and uses it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from support.browser import Browser
from support.waiting import wait_until

LOOK_SECONDS = 0.03
"""Between two looks at the page, each of which has the browser lay it out."""


class Page:
    """The page of the service at ``url``. What it shows is waited for, never slept for."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        for domain in ("Runtime", "Log", "Network"):
            browser.command(f"{domain}.enable")

    def open(self, **place: str) -> None:
        """Load the page anew at a place: ``open(prefix="a/", key="a/b", tab="history")``."""
        fragment = "&".join(f"{name}={quote(text, safe='')}" for name, text in place.items())
        self.browser.open("about:blank")
        self.browser.open(f"{self.url}/ui/#{fragment}")

    def ask(self, script: str) -> Any:
        """The value of a script."""
        return self.browser.run(script)

    def wait(self, script: str) -> None:
        """Wait until the script's value is true."""
        wait_until(
            lambda: self.ask(f"Boolean({script})"), what=f"{script} in\n{self.text()}", every=LOOK_SECONDS
        )

    def text(self, selector: str = "body") -> str:
        """What is to be read in the first element that matches; empty if there is none."""
        return str(self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait_for(self, text: str, selector: str = "body") -> None:
        """Wait until ``text`` is to be read in what matches."""
        wait_until(
            lambda: text in self.text(selector),
            what=f"{text!r} in {selector}, which says\n{self.text(selector)}",
            every=LOOK_SECONDS,
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

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change'))")

    def rows(self) -> list[str]:
        """The names in the list of keys."""
        names: list[str] = self.ask(
            "[...document.querySelectorAll('#entries .name')].map((e) => e.textContent)"
        )
        return names

    def wait_for_rows(self, *names: str) -> None:
        """Wait until the list shows just these."""
        wait_until(
            lambda: self.rows() == list(names),
            what=f"the list shows {names}, not {self.rows()}",
            every=LOOK_SECONDS,
        )

    def focused(self) -> str:
        """The text, or else the id, of what has the focus."""
        return str(self.ask("document.activeElement.innerText || document.activeElement.id"))

    def complaints(self) -> list[str]:
        """What the browser's console says of the page, but for the answers that the service meant."""
        logged = [each["entry"] for each in self.browser.heard("Log.entryAdded")]
        said = [entry["text"] for entry in logged if entry["source"] != "network"]
        thrown = [str(each["exceptionDetails"]) for each in self.browser.heard("Runtime.exceptionThrown")]
        return said + thrown
