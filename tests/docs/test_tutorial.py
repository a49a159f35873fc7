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


def test_the_tutorial_ends_with_a_page_whose_readers_see_each_other_and_overwrite_nothing_unseen(
    walk: Callable[..., Walk], start_serve: Callable[..., Serve], page_port: int, tmp_path: Path
) -> None:
    serve = start_serve(workers=1, cors_origins=f"http://localhost:{page_port}")  # empty, as the reader's
    reader = walk("tutorial.md", serve=serve)
    starts = [block.text.strip() for block in reader.blocks if block.text.startswith("kvstore serve")]
    assert starts[0] == "kvstore serve --cors-origins http://localhost:8000", "as it is started here"
    assert starts[1].startswith(f"{starts[0]} --http"), "where the ports are taken"
    reader.go()
    (line,) = [block.text for block in reader.blocks if block.text.startswith("<script ")]
    with (tmp_path / "index.html").open("a") as page:
        page.write(line)
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
        serve.stop()
        for tab in (first, second):
            wait_until(lambda tab=tab: says(tab, "#state", "Not connected"), what="the page notices")
        assert shows(second, "curry: 2", "noodles: 1")
        serve.start()
        for tab in (first, second):
            wait_until(lambda tab=tab: says(tab, "#state", "Live."), what="it is live again", timeout=60)
        second.run("document.querySelector('#votes button').click()")
        for tab in (first, second):
            wait_until(
                lambda tab=tab: shows(tab, "curry: 3", "noodles: 1"),
                what="pages go on by themselves",
                timeout=60,
            )
        first.run(SAVE.format("the corner"))
        wait_until(lambda: says(first, "#said", "Saved."), what="the first plan is taken")
        second.run(SAVE.format("the harbour"))
        wait_until(lambda: says(second, "#said", "Somebody was faster"), what="who has not seen it is told")
        assert has_plan(second, "the corner"), "what is there"
        second.run(SAVE.format("the harbour"))
        wait_until(lambda: says(second, "#said", "Saved."), what="the next one is taken")
        second.run("document.querySelector('#undo').click()")
        wait_until(lambda: has_plan(second, "the corner"), what="undo brings back what was there")


def says(tab: Tab, selector: str, words: str) -> bool:
    """Whether what an element shows begins with ``words``."""
    return str(tab.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")).startswith(words)


SAVE = "document.querySelector('#place').value = '{}'; document.querySelector('#save').click()"
"""Type a plan, and save it."""


def has_plan(tab: Tab, place: str) -> bool:
    """Whether the field shows ``place``."""
    return bool(tab.run("document.querySelector('#place').value") == place)
