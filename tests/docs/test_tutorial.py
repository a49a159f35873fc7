"""The front page and the tutorial, done as they are written: the commands in a shell, the page in two tabs
of a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from support.browser import PROCESS_FOR_EACH_TAB, open_browser
from support.servers import Serve, wait_until
from support.tabs import Tab
from support.walkthrough import Walk


def test_a_follower_of_the_front_page_sees_the_change_that_it_shows(
    walk: Callable[..., Walk], start_serve: Callable[..., Serve]
) -> None:
    walk("index.md", serve=start_serve(workers=1)).go()  # the tutorial begins with an empty store


def test_the_tutorial_ends_with_a_page_whose_readers_see_each_other(
    walk: Callable[..., Walk], shared_serve: Serve, page_port: int, tmp_path: Path
) -> None:
    reader = walk("tutorial.md")
    starts = [block.text.strip() for block in reader.blocks if block.text.startswith("kvstore serve")]
    assert starts == ["kvstore serve --cors-origins http://localhost:8000"], "as the fixture starts it"
    reader.go()
    with open_browser(tmp_path / "profile", PROCESS_FOR_EACH_TAB) as browser:
        first, second = (Tab(browser, f"http://localhost:{page_port}/") for _ in range(2))

        def shows(tab: Tab, *buttons: str) -> bool:
            texts = "JSON.stringify([...document.querySelectorAll('#votes button')].map((e) => e.innerText))"
            return bool(json.loads(tab.run(texts)) == list(buttons))

        for tab in (first, second):
            wait_until(lambda tab=tab: shows(tab, "noodles: 1"), what="the vote of the terminal")
        first.run(
            "document.querySelector('input').value = 'curry'; document.querySelector('form button').click()"
        )
        for tab in (first, second):
            wait_until(lambda tab=tab: shows(tab, "curry: 1", "noodles: 1"), what="a new dish in each tab")
        second.run("document.querySelector('#votes button').click()")
        wait_until(lambda: shows(first, "curry: 2", "noodles: 1"), what="a vote of the other tab")
        shared_serve.restart()
        second.run("document.querySelector('#votes button').click()")
        for tab in (first, second):
            wait_until(
                lambda tab=tab: shows(tab, "curry: 3", "noodles: 1"),
                what="pages go on by themselves",
                timeout=60,
            )
