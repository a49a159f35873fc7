"""The pictures of the page in the documentation, taken from a real service.

What is to be read on each stands beside it, and is compared: pixels depend on fonts, words do not. With
``KVSTORE_SCREENSHOTS=1`` (``make screenshots``) pictures and words are written anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import Browser, Page, open_browser
from support.servers import Service
from support.session import Session, path_of

IMAGES = Path(__file__).parents[2] / "docs" / "images"

WRITES = [
    ("app/config/web.json", b'{"port": 80, "hosts": ["a.example"], "debug": true}', "application/json"),
    ("app/config/web.json", b'{"port": 8080, "hosts": ["a.example"], "debug": false}', "application/json"),
    ("app/config/mail.json", b'{"from": "noreply@a.example"}', "application/json"),
    ("app/config/motd", b"Back at nine.\n", "text/plain"),
    ("app/config/flags/beta", b"on", "text/plain"),
    ("app/config/flags/search", b"off", "text/plain"),
]

LISTED = "json · 54 B"
"""What the list says of the key that is shown."""

PICTURES = {
    "list": (1100, {"key": "app/config/web.json"}, ["8080", LISTED]),
    "changes": (1100, {"view": "changes"}, ["a.example"]),
    "history": (1100, {"key": "app/config/web.json", "tab": "history"}, ["created", LISTED]),
    "phone": (390, {"prefix": "app/config/"}, [LISTED]),
    "conflict": (1100, {"key": "app/config/web.json"}, ["8080", LISTED]),
}
"""By name: width, the place in the page, and what is seen once all is there. The last one changes a value."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, shared_service: Service) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield Page(browser, shared_service.url)


@pytest.fixture(scope="module")
def written(session: Session) -> None:
    for key, value, kind in WRITES:
        session.put(path_of(key), value, content_type=kind)


def unfold_a_change(page: Page) -> None:
    page.wait(f"document.querySelectorAll('.tail .preview').length >= {len(WRITES)}")
    page.ask(
        "document.querySelectorAll('.tail li').forEach((row, at) => at >= 6 && row.remove());"
        "document.querySelectorAll('.tail .preview')[4].click()"
    )
    page.wait("document.querySelector('.tail .diff')")


def begin_a_conflict(page: Page, session: Session) -> None:
    page.click("Edit")
    page.fill("#edit-value", '{"port": 8443, "hosts": ["a.example"], "debug": false}')
    theirs = b'{"port": 8080, "hosts": ["a.example", "b.example"], "debug": false}'
    session.put(path_of("app/config/web.json"), theirs, content_type="application/json")
    page.click("Save")
    page.wait_for("Theirs, revision", ".conflict")
    page.wait_for(f"json · {len(theirs)} B")  # the list hears of it, too


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_show_the_page_as_it_is(page: Page, session: Session, name: str) -> None:
    width, place, seen = PICTURES[name]
    _view(page.browser, width)
    page.open(**place)
    for each in seen:
        page.wait_for(each, "main")
    if name == "changes":
        unfold_a_change(page)
    if name == "conflict":
        begin_a_conflict(page, session)
    words = _words(page.text("main"))
    file = IMAGES / f"{name}.txt"
    if os.environ.get("KVSTORE_SCREENSHOTS"):
        page.browser.screenshot(IMAGES / f"{name}.png")
        file.write_text(words)
    assert words == file.read_text(), "the page looks different: make screenshots takes its pictures anew"
    assert (IMAGES / f"{name}.png").is_file()


def _view(browser: Browser, width: int) -> None:
    browser.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=660, deviceScaleFactor=1, mobile=False
    )
    browser.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}]
    )


def _words(text: str) -> str:
    """What is to be read, without what differs from one time to the next: times, and revisions."""
    text = re.sub(r"\d+ (s|min|h|days?) ago|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", "…", text)
    text = re.sub(r"(?i)(revision|began with) [\d,]+", r"\1 …", text)
    return "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip()) + "\n"
