"""The page at ``/ui/`` in a real Chromium: what a reader can do there, and what nobody can do to a reader."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from support.browser import Browser, Page, open_browser
from support.servers import Service, wait_until
from support.session import Session, assert_problem, call, path_of

_numbers = itertools.count()

MARK = "document.documentElement.dataset.ran = 'yes'"
"""What hostile values try to do to the page; nobody may find the mark."""

METAS = "[...document.querySelectorAll('#entries .meta')].map((each) => each.textContent)"
"""What stands beside the names in the list: the revision of a key, how many keys a folder has."""

STRANGE_KEYS = [
    "..",
    ".",
    "/",
    "//a//",
    "a/../b",
    ".hidden",
    "per%cent",
    "%2F",
    "#hash?query=1&x=+ y",
    "'\"`<b>&amp;</b>",
    "line\nbreak\ttab\rreturn",
    " spaces ",
    "grün/日本語/🎉/\U0010ffff",
    "javascript:alert(1)",
    "\u202ereversed\u200b",
    "é" * 255,
    "x" * 511,
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, shared_service: Service, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page of the shared service. Tests that only go to places in it (``go``) follow each other in one
    that was loaded once; what a test loaded for itself (``open``) is left to none. A test that made the
    browser complain, or ask another host, fails."""
    yield from watched(browser, shared_service.url, request)


@pytest.fixture
def own_page(browser: Browser, service: Service, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page of a service of the test's own, which it may stop."""
    yield from watched(browser, service.url, request)


def watched(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    browser.command(
        "Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False
    )
    browser.events.clear()
    page = Page(browser, url)
    failed = request.session.testsfailed
    yield page
    complaints = page.complaints()
    asked = {each["request"]["url"] for each in browser.heard("Network.requestWillBeSent")}
    if page.was_loaded_anew or request.session.testsfailed > failed:
        browser.open("about:blank")  # what was done there is not for the test after it
    browser.command("Storage.clearDataForOrigin", origin=url, storageTypes="all")
    assert complaints == []
    assert {
        address for address in asked if not address.startswith((f"{url}/", "blob:", "about:", "data:"))
    } == set()


@pytest.fixture
def folder(session: Session) -> str:
    """A prefix of the test's own."""
    return f"test{next(_numbers)}/"


def stored(session: Session, key: str, value: str | bytes, kind: str = "text/plain", query: str = "") -> int:
    """Store a value; its revision."""
    data = value if isinstance(value, bytes) else value.encode()
    revision: int = session.put(path_of(key) + query, data, content_type=kind).json["revision"]
    return revision


def value_of(session: Session, key: str) -> bytes:
    return session.get(path_of(key)).body


# ── browsing ─────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_browsed_by_folder(page: Page, session: Session, folder: str) -> None:
    for name in ("b", "a/1", "a/2/x", "a/2/y", "c/d"):
        stored(session, folder + name, name)
    page.go(prefix=folder)
    page.wait_for_rows("a/", "b", "c/")
    page.ask("document.querySelector('#entries a.folder').click()")
    page.wait_for_rows("1", "2/")
    page.ask("document.querySelector('#entries a.key').click()")
    page.wait_for("a/1", "#detail pre")
    page.ask("history.back()")
    page.ask("history.back()")
    page.wait_for_rows("a/", "b", "c/")
    page.ask("history.forward()")
    page.wait_for_rows("1", "2/")
    page.ask("document.querySelector('#flat').click()")
    page.wait_for_rows(f"{folder}a/1", f"{folder}a/2/x", f"{folder}a/2/y")


def test_the_field_filters_by_the_beginning_of_the_key(page: Page, session: Session, folder: str) -> None:
    for name in ("apple", "apricot", "pear"):
        stored(session, folder + name, name)
    page.go(prefix=folder)
    page.wait_for_rows("apple", "apricot", "pear")
    page.fill("#prefix", folder + "ap")
    page.wait_for_rows("apple", "apricot")
    page.fill("#prefix", folder + "x")
    page.wait_for("No key begins with")


def test_a_large_list_is_read_as_far_as_it_is_scrolled_and_folders_are_skipped(
    page: Page, session: Session, folder: str
) -> None:
    names = [f"{number:03d}" for number in range(500)]
    session.batch(*({"op": "put", "key": f"{folder}{name}", "value": "x"} for name in names))
    # more than the service lists at once
    session.batch(*({"op": "put", "key": f"{folder}300/{at:04}", "value": "x"} for at in range(1001)))
    page.open(prefix=folder)
    page.wait("document.querySelectorAll('#entries li').length >= 200")
    assert len(page.rows()) < 500

    def all_are_there() -> bool:
        page.ask("document.querySelector('#browser').scrollTop = 1e9")
        return len(page.rows()) == 501

    wait_until(all_are_there, what="all rows")
    assert page.rows() == [*names[:301], "300/", *names[301:]]


def lists_asked_for(page: Page) -> list[str]:
    """The queries of all lists that the page asked for since it was watched."""
    sent = [each["request"]["url"] for each in page.browser.heard("Network.requestWillBeSent")]
    return [url.partition("?")[2] for url in sent if "/v1/kv?" in url]


def test_a_view_is_one_request_however_much_is_in_its_folders(
    page: Page, session: Session, folder: str
) -> None:
    for each in "abc":
        session.batch(*({"op": "put", "key": f"{folder}{each}/{n:04}", "value": "x"} for n in range(450)))
    stored(session, f"{folder}a/deep/x", "x")
    stored(session, f"{folder}key", "x")
    page.open(prefix=folder)
    page.wait_for_rows("a/", "b/", "c/", "key")
    assert page.ask(METAS)[:3] == ["451 keys", "450 keys", "450 keys"]
    assert len(lists_asked_for(page)) == 1
    page.ask("document.querySelector('#entries a.folder').click()")
    page.wait("document.querySelectorAll('#entries li').length >= 200")
    assert len(lists_asked_for(page)) == 2


def test_the_counts_of_folders_follow_changes(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}a/1", "x")
    page.open(prefix=folder)
    page.wait_for_rows("a/")
    assert page.ask(METAS) == ["1 key"]
    stored(session, f"{folder}a/1", "again")
    stored(session, f"{folder}a/2", "x")
    page.wait(METAS + "[0] === '2 keys'")
    # two of one revision, in a folder that was not there
    session.batch(*({"op": "put", "key": f"{folder}b/{n}", "value": "x"} for n in range(3)), atomic=True)
    page.wait_for_rows("a/", "b/")
    page.wait(METAS + "[1] === '3 keys'")
    session.delete(path_of(f"{folder}a/1"))
    page.wait(METAS + "[0] === '1 key'")
    asked = len(lists_asked_for(page))
    assert asked == 1, "what is known is not asked for"
    session.delete(path_of(f"{folder}a/2"))
    page.wait_for_rows("b/")
    assert len(lists_asked_for(page)) == 2
    assert page.ask(METAS) == ["3 keys"]


@pytest.mark.parametrize("key", STRANGE_KEYS, ids=range(len(STRANGE_KEYS)))
def test_any_key_can_be_linked_to_shown_edited_and_looked_back_at(
    page: Page, session: Session, key: str
) -> None:
    stored(session, key, "before")
    page.go(key=key)
    page.wait_for("before", "#detail pre")
    page.edit("after")
    page.wait_for("after", "#detail pre")
    assert value_of(session, key) == b"after"
    page.click("History")
    page.wait_for("before", ".diff")
    session.delete(path_of(key))
    page.wait_for("deleted")


def test_what_cannot_be_seen_in_a_key_is_written_out(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder} a\n\u202eb ", "x")
    page.go(prefix=folder)
    page.wait_for_rows("␣a␊\\u{202e}b␣")


def test_an_empty_store_says_how_to_begin(own_page: Page, service: Service) -> None:
    page = own_page
    page.open()
    page.wait_for(f"curl -X PUT -d 'hello' {service.url}/v1/kv/greeting")
    page.click("Create a key")
    page.fill("#edit-key", "first")
    page.fill("#edit-value", "words")
    page.click("Save")
    page.wait_for("words", "#detail pre")
    page.wait_for_rows("first")
    revision = call(service.url, "GET", "/v1/status").json["revision"]
    page.wait_for(f"revision {revision} · 1 key", "#figures")


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def test_json_is_shown_by_lines_with_every_digit_and_as_stored(
    page: Page, session: Session, folder: str
) -> None:
    text = '{"n":12345678901234567890,"n":1.10,"a":[],"s":"x, {y}: \\"z\\""}'
    stored(session, f"{folder}j", text, "application/json")
    page.open(key=f"{folder}j")
    page.wait_for(
        '{\n  "n": 12345678901234567890,\n  "n": 1.10,\n  "a": [],\n  "s": "x, {y}: \\"z\\""\n}',
        "#detail pre",
    )
    page.click("As stored")
    page.wait_for(text, "#detail pre")
    page.click("Hex")
    page.wait_for("7b 22 6e 22", "#detail pre")


PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAB4AAAAUCAAAAAC/wNIYAAAAE0lEQVR42mNowAsYRqVHpaklDQBfsSwQ9im0ZAAAAABJRU5ErkJggg=="
)
"""A grey PNG, 30 by 20."""


def test_a_picture_is_shown_and_binary_is_only_replaced_by_a_file(
    page: Page, session: Session, folder: str
) -> None:
    stored(session, f"{folder}p", PICTURE, "image/png")
    page.open(key=f"{folder}p")
    page.wait_for("30 × 20", "figcaption")
    page.click("Hex")
    page.wait_for("89 50 4e 47", "#detail pre")
    page.click("Edit")
    page.wait_for("A text field would damage it")
    assert not page.ask("document.querySelector('#edit-value').checkVisibility()")
    page.click("Save")
    page.wait_for("No file is chosen")
    page.ask(
        "{const files = new DataTransfer();"
        "files.items.add(new File([new Uint8Array([0, 255, 13, 10])], 'f.bin'));"
        "const field = document.querySelector('#edit-file'); field.files = files.files;"
        "field.dispatchEvent(new Event('change'))}"
    )
    page.click("Save")
    page.wait_for("00 ff 0d 0a", "#detail pre")
    assert value_of(session, f"{folder}p") == b"\0\xff\r\n"


def is_coloured(page: Page) -> None:
    """Wait until the editor of JSON is there and has coloured what it holds."""
    page.wait("document.querySelector('code-field')?.shadowRoot.querySelectorAll('.cm-line span').length > 0")


def test_broken_json_is_saved_as_json_only_by_who_insists(page: Page, session: Session, folder: str) -> None:
    key = f"{folder}j"
    stored(session, key, "{}", "application/vnd.x+json; charset=utf-8")
    page.go(key=key)
    page.edit('{"a":1,}')
    page.wait_for("This is not JSON", "#detail [role=alert]")
    assert value_of(session, key) == b"{}"
    page.fill("#edit-value", '{"a":2,}')  # what was insisted on was another text
    page.click("Save")
    page.click("Save anyway")
    page.wait_for('{"a":2,}', "#detail pre")
    assert value_of(session, key) == b'{"a":2,}'
    page.edit('{"a":1}')
    page.wait_for('"a": 1', "#detail pre")


def test_json_is_edited_with_colours_checked_formatted_and_saved_by_keys(
    page: Page, session: Session, folder: str
) -> None:
    key = f"{folder}j"
    text = '{"n":12345678901234567890,"list":[1.10,null]}'
    stored(session, key, text, "application/json")
    page.open(key=key)
    page.click("Edit")
    is_coloured(page)
    assert page.focused() == "edit-value"
    colours = (
        "new Set([...document.querySelector('code-field').shadowRoot.querySelectorAll('.cm-line span')]"
        ".map((each) => getComputedStyle(each).color)).size"
    )
    assert page.ask(colours) >= 3
    names = [
        node["name"]["value"]
        for node in page.browser.command("Accessibility.getFullAXTree")["nodes"]
        if node["role"]["value"] == "textbox" and not node["ignored"]
    ]
    assert "Value" in names
    page.click("Format")
    page.ask("document.querySelector('#edit-value').focus()")
    pretty = '{\n  "n": 12345678901234567890,\n  "list": [\n    1.10,\n    null\n  ]\n}'
    assert page.ask("document.querySelector('#edit-value').value") == pretty
    for _ in range(3):
        page.browser.press("z", control=True)
    assert page.ask("document.querySelector('#edit-value').value") == text, "undone, and no further"
    page.browser.press("f", control=True)  # its styles and fields too are to pass the policy
    page.wait("document.querySelector('code-field').shadowRoot.querySelector('.cm-search')")
    page.browser.press("Escape")
    page.wait("!document.querySelector('code-field').shadowRoot.querySelector('.cm-search')")
    assert page.ask("document.querySelector('#edit-value').checkVisibility()"), "Esc closed only the search"
    page.browser.press("a", control=True)
    page.browser.write('{"e":')
    page.wait("document.querySelector('code-field').shadowRoot.querySelector('.cm-lint-marker-error')")
    page.browser.write("1}")
    page.wait("!document.querySelector('code-field').shadowRoot.querySelector('.cm-lint-marker-error')")
    page.browser.press("Enter", control=True)
    page.wait_for('"e": 1', "#detail pre")
    assert value_of(session, key) == b'{"e":1}'


def test_json_of_more_lines_than_a_page_can_lay_out_is_left_as_it_is(
    page: Page, session: Session, folder: str
) -> None:
    key, text = f"{folder}long", "[" + "1," * 20_000 + "1]"
    stored(session, key, text, "application/json")
    page.open(key=key)
    page.click("Edit")
    page.click("Format")
    page.wait_for("It would be 20,003 lines")
    assert page.ask("document.querySelector('#edit-value').value") == text


def test_json_typed_as_a_new_value_is_coloured_and_offered_to_be_stored_as_json(
    page: Page, session: Session, folder: str
) -> None:
    page.go(new="1", prefix=folder)
    page.fill("#edit-key", f"{folder}new")
    page.fill("#edit-value", '{"a"')
    is_coloured(page)
    page.wait("document.activeElement.id === 'edit-value'")
    page.browser.write(":[1]}")  # goes on where it was when the field changed
    page.click("Store as application/json")
    page.click("Save")
    page.wait_for('"a": [', "#detail pre")
    assert page.ask("document.querySelector('#detail pre .json-number').textContent") == "1"
    answer = session.get(path_of(f"{folder}new"))
    assert (answer.body, answer.headers["content-type"]) == (b'{"a":[1]}', "application/json")


def test_json_that_is_large_or_without_its_editor_is_edited_as_a_text(
    page: Page, session: Session, folder: str
) -> None:
    stored(session, f"{folder}large", json.dumps(["x" * 525_000]), "application/json")
    page.open(key=f"{folder}large")
    page.edit("[1]")
    page.wait_for("1", "#detail pre")
    assert value_of(session, f"{folder}large") == b"[1]"
    page.browser.command("Network.setCacheDisabled", cacheDisabled=True)
    page.browser.command("Network.setBlockedURLs", urls=["*/codemirror.js"])
    try:
        stored(session, f"{folder}j", "{}", "application/json")
        page.open(key=f"{folder}j")
        page.edit('{"a":1}')
        page.wait_for('"a": 1', "#detail pre")
        assert page.ask("document.querySelector('code-field')") is None
    finally:
        page.browser.command("Network.setBlockedURLs", urls=[])
        page.browser.command("Network.setCacheDisabled", cacheDisabled=False)


def test_why_a_change_was_made_is_asked_for_and_shown(page: Page, session: Session, folder: str) -> None:
    key, why = f"{folder}why", "für <b>später</b> 50%"
    session.put(path_of(key), b"one")
    page.go(key=key)
    page.click("Edit")
    page.fill("#edit-message", why)
    page.fill("#edit-value", "two")
    page.click("Save")
    page.wait_for(why, ".facts .byline")
    assert session.get(path_of(key) + "?format=json").json["message"] == why
    page.edit("three")
    page.wait_for("three", "#detail pre")
    assert "message" not in session.get(path_of(key) + "?format=json").json
    page.click("Edit")
    page.fill("#edit-message", "x" * 201)
    page.click("Save")
    page.wait_for("must be a text of 1 to 200 bytes", "#detail [role=alert]")
    page.fill("#edit-message", "short")
    page.click("Save")
    page.wait_for("short", ".facts .byline")


def test_line_ends_stay_as_they_are(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}dos", "one\r\ntwo\r\n")
    page.go(key=f"{folder}dos")
    page.click("Edit")
    page.wait_for("Its lines end with CR LF")
    page.fill("#edit-value", "one\nzwei\n")
    page.click("Save")
    page.wait_for("zwei", "#detail pre")
    assert value_of(session, f"{folder}dos") == b"one\r\nzwei\r\n"


# ── changing ─────────────────────────────────────────────────────────────────────────────────────


def begin_conflict(page: Page, session: Session, key: str) -> None:
    """Edit a value, have somebody else write it meanwhile, and try to save."""
    stored(session, key, "one\ntwo\nthree\nfour\nfive\n")
    page.go(key=key)
    page.click("Edit")
    page.fill("#edit-value", "ONE\ntwo\nthree\nfour\nfive\n")
    revision = stored(session, key, "one\ntwo\nthree\nfour\nFIVE\n")
    page.wait_for(f"Changed to revision {revision} by someone else")
    page.browser.press("s", control=True)
    page.wait_for("Theirs, revision", ".conflict")
    assert {"ONE", "one", "FIVE", "five"} <= set(page.text(".conflict").split())


def test_a_conflict_is_merged(page: Page, session: Session, folder: str) -> None:
    begin_conflict(page, session, f"{folder}k")
    page.click("Edit a merge")
    page.wait_for("Both changes are in the text below")
    page.click("Save")
    page.wait_for("FIVE", "#detail pre")
    assert value_of(session, f"{folder}k") == b"ONE\ntwo\nthree\nfour\nFIVE\n"


def test_changes_of_json_are_compared_and_merged_by_members_and_a_phone_has_room_for_it(
    page: Page, session: Session, folder: str
) -> None:
    key = f"{folder}j"
    stored(session, key, '{"one":"a small house","two":2,"three":3}', "application/json")
    page.browser.command(
        "Emulation.setDeviceMetricsOverride", width=390, height=720, deviceScaleFactor=1, mobile=True
    )
    page.go(key=key)
    page.click("Edit")
    page.fill("#edit-value", '{"one":"a large house","two":2,"three":3}')
    stored(session, key, '{"one":"a small house","two":2,"three":33}', "application/json")
    page.click("Save")
    page.wait_for("Theirs, revision", ".conflict")
    marked = "[...document.querySelectorAll('.conflict mark')].map((each) => each.textContent)"
    assert page.ask(marked) == ["small", "large", "33", "3"]
    assert page.ask("document.documentElement.scrollWidth") == 390
    for label in ("Keep theirs", "Edit a merge", "Overwrite with mine"):
        bottom = page.ask(
            "[...document.querySelectorAll('.conflict button')]"
            f".find((each) => each.innerText === '{label}').getBoundingClientRect().bottom"
        )
        assert bottom <= 720
    page.click("Edit a merge")
    page.wait_for("Both changes are in the text below")
    page.click("Save")
    page.wait_for("33", "#detail pre")
    assert json.loads(value_of(session, key)) == {"one": "a large house", "two": 2, "three": 33}
    page.click("History")
    page.wait("document.querySelector('.events .diff')")
    assert page.ask("document.querySelectorAll('.events mark').length") == 2
    page.click("Value", ".change")
    page.wait_for('"one": "a large house"', ".change pre")


def test_a_conflict_is_overwritten_with_the_new_revision_as_the_condition(
    page: Page, session: Session, folder: str
) -> None:
    begin_conflict(page, session, f"{folder}k")
    stored(session, f"{folder}k", "a third writer")  # what was compared is not what would be overwritten
    page.click("Overwrite with mine")
    page.wait_for("a third writer", ".conflict")
    page.click("Overwrite with mine")
    page.wait_for("ONE", "#detail pre")
    assert value_of(session, f"{folder}k") == b"ONE\ntwo\nthree\nfour\nfive\n"


def test_theirs_is_kept_and_what_was_typed_stays_as_a_draft(
    page: Page, session: Session, folder: str
) -> None:
    begin_conflict(page, session, f"{folder}k")
    page.click("Keep theirs")
    page.wait_for("FIVE", "#detail pre")
    page.open(key=f"{folder}k")  # loaded anew
    page.wait_for("You typed something here that is not saved.")
    page.click("Go on editing")
    page.wait("document.querySelector('#edit-value').value.startsWith('ONE')")
    page.wait_for("Your draft began at revision")
    page.click("Close")
    page.click("Discard it")
    page.click("Edit")
    page.wait("document.querySelector('#edit-value').value.startsWith('one')")


def test_a_key_deleted_meanwhile_is_a_conflict_too(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}k", "x")
    page.go(key=f"{folder}k")
    page.click("Edit")
    page.fill("#edit-value", "mine")
    session.delete(path_of(f"{folder}k"))
    page.browser.press("Enter", control=True)
    page.wait_for("It has been deleted meanwhile", ".conflict")
    page.click("Overwrite with mine")
    page.wait_for("mine", "#detail pre")
    assert session.get(path_of(f"{folder}k")).headers["x-kvstore-version"] == "1"


def test_a_new_key_does_not_overwrite_one_that_exists(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}k", "theirs")
    page.open(new="1", prefix=folder)
    page.fill("#edit-key", f"{folder}k")
    page.fill("#edit-value", "mine")
    page.click("Save")
    page.wait_for("It has been created meanwhile", ".conflict")
    assert value_of(session, f"{folder}k") == b"theirs"


@pytest.mark.parametrize(("key", "fault"), [("", "at least one character"), ("ü" * 256, "at most 511 bytes")])
def test_a_key_that_cannot_be_is_refused_before_it_is_sent(page: Page, key: str, fault: str) -> None:
    page.open(new="1")
    page.fill("#edit-key", key)
    page.click("Save")
    page.wait_for(fault)


def test_a_key_is_deleted_after_a_question_and_only_if_it_did_not_change(
    page: Page, session: Session, folder: str
) -> None:
    stored(session, f"{folder}k", "x")
    page.go(prefix=folder, key=f"{folder}k")
    page.click("Delete")
    page.wait_for("Delete this key?", "dialog[open]")
    page.click("Cancel", "dialog[open]")
    assert value_of(session, f"{folder}k") == b"x"
    page.click("Delete", "#detail")
    stored(session, f"{folder}k", "y")
    page.click("Delete", "dialog[open]")
    page.wait_for("The condition does not hold")
    page.wait_for("y", "#detail pre")
    page.click("Delete", "#detail")
    page.click("Delete", "dialog[open]")
    page.wait_for("No such key")
    page.wait_for_rows()
    assert_problem(session.get(path_of(f"{folder}k")), "not_found")


def test_an_expiry_is_set_kept_and_taken_away(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}k", "x")
    page.go(key=f"{folder}k")
    page.wait_for("never", ".facts")
    page.click("Change")
    page.fill("#ttl", "nonsense")
    page.click("Set")
    page.wait_for("ttl", ".box.bad")
    page.fill("#ttl", "1h")
    page.click("Set")
    page.wait_for("in 59 min", ".facts")
    expires = session.get(path_of(f"{folder}k")).headers["x-kvstore-expires-at"]
    page.edit("y")
    page.wait_for("y", "#detail pre")
    kept = session.get(path_of(f"{folder}k")).headers["x-kvstore-expires-at"]
    assert kept[:15] == expires[:15] or kept[:13] == expires[:13]
    page.click("Change")
    page.click("Never")
    page.wait_for("never", ".facts")
    assert "x-kvstore-expires-at" not in session.get(path_of(f"{folder}k")).headers


def test_history_shows_what_changed_and_gives_it_back(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}k", "one\ntwo\n")
    stored(session, f"{folder}k", "one\n2\n")
    session.delete(path_of(f"{folder}k"))
    page.go(key=f"{folder}k")
    page.wait_for("No such key")
    page.click("What happened to it")
    page.wait("document.querySelectorAll('.events > li').length === 3")
    names = page.ask("[...document.querySelectorAll('.events .op')].map((each) => each.innerText)")
    assert names == ["deleted", "stored", "created"]
    page.ask("document.querySelectorAll('.events summary')[1].click()")
    page.wait_for("2", ".events li:nth-child(2) .added")
    page.wait_for("two", ".events li:nth-child(2) .removed")
    page.click("Restore this version")
    page.click("Restore", "dialog[open]")
    page.wait("document.querySelectorAll('.events > li').length === 4")
    assert value_of(session, f"{folder}k") == b"one\n2\n"


def test_a_change_says_why_it_was_made(page: Page, session: Session, folder: str) -> None:
    session.put(path_of(f"{folder}k"), b"1", x_kvstore_message="<b>by hand</b>")
    page.go(view="changes", prefix=folder)
    page.wait_for("<b>by hand</b>", ".tail .byline")
    page.go(key=f"{folder}k", tab="history")
    page.wait_for("<b>by hand</b>", "summary .byline")
    page.wait_for("<b>by hand</b>", ".facts")
    assert "by " not in page.text(".facts .byline").replace("by hand", ""), "nobody is known to have made it"


def test_where_access_is_off_nobody_is_asked_who_they_are(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}k", "x")
    page.open(prefix=folder, key=f"{folder}k")
    page.wait_for("x", "#detail pre")
    seen = "[...document.querySelectorAll('#who, #login')].some((each) => each.checkVisibility())"
    assert page.ask(seen) is False
    assert page.ask("JSON.stringify([{...localStorage}, document.cookie])") == '[{},""]'


# ── what others do meanwhile ─────────────────────────────────────────────────────────────────────


def test_list_and_value_follow_changes(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}m", "first")
    page.go(prefix=folder, key=f"{folder}m")
    page.wait_for("first", "#detail pre")
    page.wait_for_rows("m")
    stored(session, f"{folder}z", "x")
    stored(session, f"{folder}a/inner", "x")
    stored(session, f"{folder}m", "second")
    page.wait_for_rows("a/", "m", "z")
    page.wait_for("second", "#detail pre")
    session.delete(path_of(f"{folder}a/inner"))
    session.delete(path_of(f"{folder}z"))
    page.wait_for_rows("m")


def test_changes_are_shown_as_they_happen_from_a_while_ago_on(
    page: Page, session: Session, folder: str
) -> None:
    stored(session, f"{folder}before", "x")
    stored(session, f"not-{folder}", "x")
    page.go(view="changes", prefix=folder)
    page.wait_for(f"{folder}before", ".tail")
    stored(session, f"{folder}now", "x")
    page.wait_for(f"{folder}now", ".tail li:first-child")
    assert f"not-{folder}" not in page.text(".tail")
    page.click("Pause")
    session.delete(path_of(f"{folder}now"))
    page.wait_for("1 new change waiting")
    assert "deleted" not in page.text(".tail")
    page.click("Resume")
    page.wait_for("deleted", ".tail li:first-child")


def test_the_number_of_shown_changes_is_bounded(page: Page, session: Session, folder: str) -> None:
    page.open(view="changes", prefix=folder)
    page.wait_for("Connected", ".state")
    for _ in range(3):
        session.batch(*({"op": "put", "key": f"{folder}{number}", "value": "x"} for number in range(300)))
    page.wait_for("400 older ones left out")
    assert page.ask("document.querySelectorAll('.tail li').length") == 500


def names_in_tail(page: Page) -> list[str]:
    names: list[str] = page.ask(
        "[...document.querySelectorAll('.tail .name')].map((each) => each.textContent)"
    )
    return names[::-1]


def test_changes_go_on_without_loss_over_restarts_and_the_page_says_so(
    own_page: Page, service: Service
) -> None:
    page = own_page
    session = Session(service.url)
    page.open(view="changes")
    page.wait_for("Connected", ".state")
    stored(session, "1", "x")
    page.wait_for("1", ".tail")
    service.daemon.stop()
    page.wait_for("the daemon is away since", ".state")
    page.wait_for("The daemon is away since", "#health")
    service.daemon.start()
    wait_until(lambda: session.get("/readyz").status == 200, what="the facade reaches the daemon")
    stored(session, "2", "x")
    page.wait_for("Connected", "#health")
    wait_until(lambda: names_in_tail(page) == ["1", "2"], what="the change after the daemon's restart")
    service.facade.stop()
    page.wait_for("Reconnecting since", ".state")
    page.wait_for("Not reachable since", "#health")
    service.facade.start()
    session.close()
    stored(session, "3", "x")
    wait_until(lambda: names_in_tail(page) == ["1", "2", "3"], what="the change after the facade's restart")
    page.wait_for("The connection is lost", ".tail")
    page.wait_for("Connected again", ".tail")
    page.wait_for("Connected", ".state")
    session.close()


def test_what_was_typed_outlasts_an_absence_of_the_service(own_page: Page, service: Service) -> None:
    page = own_page
    session = Session(service.url)
    stored(session, "k", "x")
    page.open(key="k")
    page.click("Edit")
    page.fill("#edit-value", "typed with care")
    service.daemon.stop()
    page.click("Save")
    page.wait_for("Nothing is lost: what you typed is kept here.")
    service.facade.stop()
    page.click("Try again")
    page.wait_for("The service cannot be reached")
    assert page.ask("document.querySelector('#edit-value').value") == "typed with care"
    service.daemon.start()
    service.facade.start()
    page.click("Try again")
    page.wait_for("typed with care", "#detail pre")
    session.close()
    assert value_of(session, "k") == b"typed with care"
    session.close()


# ── hostile values ───────────────────────────────────────────────────────────────────────────────

HOSTILE = {
    "text/html": f'<!doctype html><script>{MARK}</script><img src=x onerror="{MARK}"><p>shown</p>',
    "image/svg+xml": (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" onload="{MARK}">'
        f"<script>{MARK}</script><text>shown</text></svg>"
    ),
    "application/xhtml+xml": (
        f'<html xmlns="http://www.w3.org/1999/xhtml"><body><script>{MARK}</script>shown</body></html>'
    ),
    "text/plain": f'<script>{MARK}</script><img src=x onerror="{MARK}">shown',
    "application/json": json.dumps({"shown": f'<img src=x onerror="{MARK}">'}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_value_is_only_shown(page: Page, session: Session, folder: str, kind: str) -> None:
    key = f"{folder}<img src=x onerror={MARK}>"
    stored(session, key, HOSTILE[kind], kind)
    page.open(prefix=folder, key=key)
    page.wait("document.querySelector('.forms button')")
    for form in ("Text", "As stored", "Picture", "Hex"):
        if page.ask(f"[...document.querySelectorAll('.forms button')].some((e) => e.innerText === '{form}')"):
            page.click(form)
    page.wait_for("3c", "#detail pre")
    page.click("History")
    page.wait("document.querySelector('.change')")
    page.go(view="changes", prefix=folder)
    page.wait_for("onerror", ".tail")
    assert page.ask("document.documentElement.dataset.ran ?? 'no'") == "no"
    assert (
        page.ask("document.querySelectorAll('main :is(script, iframe, object, embed), main img').length") == 0
    )


@pytest.mark.parametrize(
    "address", ["/v1/kv/{key}", "/v1/kv?key={key}", "/?key={key}", "/v1/history/{key}", "/all"]
)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_value_opened_by_itself_runs_nothing(
    browser: Browser, shared_service: Service, session: Session, folder: str, kind: str, address: str
) -> None:
    key = f"{folder}k"
    stored(session, key, HOSTILE[kind], kind)
    browser.open(shared_service.url + address.format(key=path_of(key)[7:]))
    assert browser.run("document.documentElement.dataset.ran ?? 'no'") == "no"
    assert "shown" in browser.run("document.documentElement.textContent")
    if address.startswith("/v1/kv"):
        assert browser.run("origin") == "null", (
            "a value is of no origin, so it could not ask this one anything"
        )


def test_another_site_can_neither_frame_nor_write(
    browser: Browser,
    start_serve: Callable[..., object],
    shared_service: Service,
    session: Session,
    folder: str,
) -> None:
    stored(session, f"{folder}k", "1")
    # another port is another origin
    other = start_serve(workers=1)
    browser.open(f"{other.url}/v1/status")  # type: ignore[attr-defined]
    target = shared_service.url
    script = f"""
      await (async () => {{
        const key = {json.dumps(f"{folder}k")};
        const tried = [
          fetch("{target}/v1/kv?key=" + key, {{ method: "PUT", body: "2" }}),
          fetch("{target}/v1/kv?key=" + key, {{ method: "DELETE" }}),
          fetch("{target}/v1/incr/" + encodeURIComponent(key), {{ method: "POST" }}),
          fetch("{target}/v1/incr/" + encodeURIComponent(key), {{ method: "POST", mode: "no-cors" }}),
          fetch("{target}/v1/kv?key=" + key),
        ];
        return (await Promise.allSettled(tried)).map((each) => each.value?.type ?? "refused");
      }})()"""
    assert browser.run(script) == ["refused", "refused", "refused", "opaque", "refused"]
    assert value_of(session, f"{folder}k") == b"1"
    framed = browser.run(
        f"""await new Promise((done) => {{
          const frame = document.createElement("iframe");
          frame.onload = () => done(frame.contentDocument === null);
          frame.src = "{target}/ui/";
          document.body.append(frame);
        }})"""
    )
    assert framed, "what the frame holds is an error page of the browser, which is of no origin"


# ── keyboard, eyes, phones ───────────────────────────────────────────────────────────────────────


def test_everything_can_be_done_by_keyboard(page: Page, session: Session, folder: str) -> None:
    press = page.browser.press
    stored(session, f"{folder}a", "value of a")
    stored(session, f"{folder}b", "value of b")
    page.open()
    page.wait("document.querySelectorAll('#entries li').length")
    press("/")
    page.browser.write(folder)
    page.wait_for_rows("a", "b")
    press("Enter")
    page.wait("document.activeElement.innerText.startsWith('a')")
    press("j")
    assert page.focused().startswith("b")
    press("k")
    press("ArrowDown")
    press("Enter")
    page.wait_for("value of b", "#detail pre")
    press("e")
    page.wait("document.activeElement.id === 'edit-value'")
    press("a", control=True)
    page.browser.write("typed ? / j e")
    press("Enter", control=True)
    page.wait_for("typed ? / j e", "#detail pre")
    press("h")
    page.wait("document.querySelector('.events')")
    press("h")
    page.wait_for("typed", "#detail pre")
    press("d")
    page.wait_for("Delete this key?", "dialog[open]")
    press("Escape")
    page.wait("!document.querySelector('dialog[open]')")
    press("d")
    press("Tab")
    assert page.focused() == "Delete"
    press("Enter")
    page.wait_for("No such key")
    press("Escape")
    page.wait("document.activeElement.innerText.startsWith('a')")
    press("n")
    page.wait("document.activeElement.id === 'edit-key'")
    press("Escape")
    press("?")
    page.wait_for("Keyboard", "dialog[open]")
    press("Escape")
    press("c")
    page.wait("document.querySelector('#changes-view').checkVisibility()")
    press("p")
    page.wait_for("Paused")
    press("c")
    page.wait("document.querySelector('#keys-view').checkVisibility()")


def test_tab_goes_through_everything_and_the_focus_is_to_be_seen(
    page: Page, session: Session, folder: str
) -> None:
    for number in range(5):
        stored(session, f"{folder}{number}", "x")
    page.open(prefix=folder, key=f"{folder}3")
    page.wait_for("x", "#detail pre")
    reached = []
    for _ in range(40):
        page.browser.press("Tab")
        if page.ask("document.activeElement === document.body"):
            break
        reached.append(page.focused().split("\n")[0])
        assert page.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached
    else:
        pytest.fail(f"Tab never comes to an end: {reached}")
    stops = {"Keys", "Changes", "prefix", "New", "Edit", "Delete", "Download", "Value", "History", "Hex"}
    assert stops <= set(reached)
    assert sum(name in "01234" for name in reached) == 1, "the list is one stop; arrows move in it"


NAMED_ROLES = {"button", "link", "textbox", "searchbox", "checkbox", "combobox", "region", "navigation"}


def test_every_control_has_a_name(page: Page, session: Session, folder: str) -> None:
    stored(session, f"{folder}k", "x", query="?ttl=1h")
    key = f"{folder}k"
    for place in ({"key": key}, {"new": "1"}, {"view": "changes"}, {"key": key, "tab": "history"}):
        page.go(**place)
        page.wait(
            "document.querySelector('main section').checkVisibility() || document.querySelector('.state')"
        )
        nodes = page.browser.command("Accessibility.getFullAXTree")["nodes"]
        nameless = [
            node["role"]["value"]
            for node in nodes
            if node["role"]["value"] in NAMED_ROLES and not node["ignored"] and not node["name"]["value"]
        ]
        assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(page: Page, session: Session, folder: str, scheme: str) -> None:
    page.browser.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    stored(session, f"{folder}k", '{"a":"one word","n":[1,true]}', "application/json")
    stored(session, f"{folder}k", '{"a":"another word","n":[1,true]}', "application/json")
    page.go(prefix=folder, key=f"{folder}k")
    page.wait_for("another", "#detail pre")
    ratios = page.ask(CONTRASTS)
    page.click("History")
    page.wait("document.querySelectorAll('.diff mark').length === 2")
    ratios |= page.ask(CONTRASTS)
    assert min(ratios.values()) >= 4.5, ratios  # WCAG 2.2, 1.4.3
    is_dark = page.ask("getComputedStyle(document.body).backgroundColor") != "rgb(246, 247, 248)"
    assert is_dark == (scheme == "dark")


CONTRASTS = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = (layers) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((byte) => {
      const part = byte / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratios = {};
  for (const node of document.querySelectorAll("body *")) {
    const texts = [...node.childNodes].filter((child) => child.nodeType === 3);
    const text = texts.map((child) => child.data).join("").trim();
    if (!text || !node.checkVisibility()) continue;
    const layers = [];
    for (let each = node; each; each = each.parentElement) {
      layers.unshift(getComputedStyle(each).backgroundColor);
    }
    const [a, b] = [luminance(layers), luminance([...layers, getComputedStyle(node).color])];
    ratios[text.slice(0, 40)] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }
  return ratios;
})()"""


def test_a_phone_needs_no_sideways_scrolling_and_has_room_for_fingers(
    page: Page, session: Session, folder: str
) -> None:
    long = "x" * 400
    stored(session, f"{folder}{long}", f"{long}\n" * 3)
    stored(session, f"{folder}{long}", f"{long}\n" * 2)
    page.browser.command(
        "Emulation.setDeviceMetricsOverride", width=375, height=720, deviceScaleFactor=1, mobile=True
    )
    key = f"{folder}{long}"
    for place in (
        {"prefix": folder},
        {"prefix": folder, "key": key},
        {"key": key, "tab": "history"},
        {"view": "changes", "prefix": folder},
        {"new": "1", "prefix": key},
    ):
        page.go(**place)
        page.wait(
            "[...document.querySelectorAll('#entries a, .diff, .tail .name, #edit-value, #detail pre')]"
            ".some((e) => e.checkVisibility())"
        )
        assert page.ask("document.documentElement.scrollWidth") == 375, place
        panes = "[...document.querySelectorAll('#browser, #detail, #changes-view')]"
        assert page.ask(f"{panes}.every((each) => each.scrollWidth <= each.clientWidth)"), place
        controls = (
            "document.querySelectorAll("
            "'button, .button, input:not([type=checkbox]), select, #entries a, nav a')"
        )
        # a row that has not come into view yet has no height of its own
        page.ask("await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        low = page.ask(
            f"[...{controls}].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 40)"
            ".map((e) => [e.innerText || e.id, e.getBoundingClientRect().height])"
        )
        assert low == [], place


def test_movement_is_left_out_for_those_who_ask(page: Page, session: Session, folder: str) -> None:
    media = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.browser.command("Emulation.setEmulatedMedia", features=media)
    page.open(prefix=folder)
    page.wait_for("No key begins with")
    stored(session, f"{folder}k", "x")
    page.wait_for_rows("k")
    assert page.ask("document.getAnimations().length") == 0


# ── the browser's own reader of event streams ────────────────────────────────────────────────────


def test_an_event_source_outlives_a_start_in_which_the_daemon_comes_last(
    browser: Browser, service: Service
) -> None:
    page = Page(browser, service.url)
    page.open()
    page.ask(
        "window.seen = []; window.opened = 0; window.synced = 0;"
        "window.source = new EventSource('/v1/subscribe');"
        "source.onopen = () => opened++;"
        "source.addEventListener('sync', () => synced++);"
        "source.addEventListener('put', (event) => seen.push(JSON.parse(event.data).key)); 0"
    )
    page.wait("synced === 1")
    service.daemon.kill()
    service.facade.restart()
    page.wait("opened === 2")
    assert page.ask("synced") == 1
    service.daemon.start()
    page.wait("synced === 2")
    with closing(Session(service.url)) as session:
        session.put("/v1/kv/after", b"x")
    page.wait("seen.includes('after')")
    assert page.ask("source.readyState") == 1
    page.ask("source.close()")
