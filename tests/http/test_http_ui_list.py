"""The list of the page at ``/ui/`` in a real Chromium: what can be found, moved, deleted and exported there;
and how the service fares."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import Browser, Page, open_browser
from support.servers import Service, wait_until
from support.session import Session, path_of

_numbers = itertools.count()

METAS = "[...document.querySelectorAll('#entries .meta')].map((each) => each.textContent).join('|')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, shared_service: Service) -> Iterator[Page]:
    browser.command(
        "Emulation.setDeviceMetricsOverride", width=1280, height=800, deviceScaleFactor=1, mobile=False
    )
    browser.events.clear()
    page = Page(browser, shared_service.url)
    yield page
    assert page.complaints() == []
    browser.open("about:blank")


@pytest.fixture
def folder(session: Session) -> str:
    """A prefix of the test's own."""
    return f"list{next(_numbers)}/"


def choose(page: Page, label: str) -> None:
    """Choose what can be done with the open folder."""
    page.wait("document.querySelector('#folder-actions button')")
    page.click("More")
    page.click(label, "#folder-actions")


def test_the_list_shows_type_and_size_and_follows_changes(page: Page, session: Session, folder: str) -> None:
    session.put(path_of(f"{folder}a"), b'{"a":1}', content_type="application/json")
    session.put(path_of(f"{folder}b"), b"x" * 5000, content_type="text/plain")
    session.put(path_of(f"{folder}in/c"), b"x")
    page.open(prefix=folder)
    page.wait(f"{METAS} === 'json · 7 B|text · 4.9 KiB|1 key'")
    session.put(path_of(f"{folder}a") + "?ttl=1h", b"\x89PNG", content_type="image/png")
    page.wait(f"{METAS} === 'expires · png · 4 B|text · 4.9 KiB|1 key'")


def test_a_link_to_a_key_opens_its_folder_there(page: Page, session: Session, folder: str) -> None:
    session.batch(*({"op": "put", "key": f"{folder}{at:04}", "value": "x"} for at in range(800)))
    page.open(key=f"{folder}0777")
    shown = (
        "(() => { const row = document.querySelector('#entries [aria-current]')?.getBoundingClientRect();"
        " return row && row.top > 0 && row.bottom <= innerHeight; })()"
    )
    page.wait(shown)
    assert page.ask("document.querySelector('#entries [aria-current] .name').textContent") == "0777"


def test_keys_are_found_by_any_part_of_them_and_it_says_how_many_were_looked_at(
    page: Page, session: Session, folder: str
) -> None:
    session.batch(*({"op": "put", "key": f"{folder}{at:04}/x", "value": "x"} for at in range(1200)))
    session.batch(*({"op": "put", "key": f"{folder}deep/{name}/z", "value": "x"} for name in ("A.b", "aXb")))
    page.open(prefix=folder)
    page.wait_for("0000/", "#entries")
    page.fill("#find", "a.B")
    page.wait_for("1 key found, 1,202 keys looked at.", "#find-foot")
    assert page.ask("document.querySelector('#found .name').innerHTML") == "".join(
        (folder, "deep/<mark>A.b</mark>/z")
    )
    page.fill("#find", "/")
    page.wait_for("so far", "#find-foot")
    assert page.ask("document.querySelectorAll('#found li').length") == 1000
    page.click("Look further", "#find-foot")
    page.wait_for("1,202 keys found, 1,202 keys looked at.", "#find-foot")
    page.fill("#find", "")
    page.wait("!document.querySelector('#entries').hidden && document.querySelector('#found').hidden")


def test_a_key_is_renamed_with_all_that_it_has_and_overwrites_none(
    page: Page, session: Session, folder: str
) -> None:
    session.put(path_of(f"{folder}old") + "?ttl=1h", b"\xff\x00", content_type="image/x")
    session.put(path_of(f"{folder}taken"), b"stays")
    before = session.get(path_of(f"{folder}old") + "?format=json").json
    page.open(key=f"{folder}old")
    page.click("Rename")
    page.fill("#move-name", f"{folder}taken")
    page.wait("!document.querySelector('dialog[open] .primary').disabled")
    page.click("Rename", "dialog[open]")
    page.wait_for(f"{folder}taken: ", "dialog[open] .box")
    assert session.get(path_of(f"{folder}taken")).body == b"stays"
    page.fill("#move-name", f"{folder}new")
    page.click("Try again", "dialog[open]")
    page.wait_for_rows("new", "taken")
    page.wait_for(f"{folder}new", "h2")
    after = session.get(path_of(f"{folder}new") + "?format=json").json
    assert [after[name] for name in ("value_b64", "content_type", "expires_at")] == [
        before[name] for name in ("value_b64", "content_type", "expires_at")
    ]
    assert session.get(path_of(f"{folder}old")).status == 404


def test_a_folder_is_duplicated_renamed_in_steps_and_deleted_after_its_name_is_typed(
    page: Page, session: Session, folder: str
) -> None:
    names = [f"{at:03}" for at in range(600)]
    session.batch(*({"op": "put", "key": f"{folder}a/{name}", "value": name} for name in names))
    page.open(prefix=f"{folder}a/")
    choose(page, "Rename folder …")
    page.wait_for("600 keys. This takes several steps", "dialog[open]")
    page.fill("#move-name", f"{folder}a/inside/")
    page.wait_for("inside itself", "dialog[open]")
    page.fill("#move-name", f"{folder}b/")
    page.wait("!document.querySelector('dialog[open] .primary').disabled")
    page.click("Rename", "dialog[open]")
    page.wait("!document.querySelector('dialog[open]')")
    assert session.get(f"/v1/kv?count=1&prefix={folder}a/").json["count"] == 0
    items = [item for at in ("", f"&start={folder}b/500") for item in _items(session, f"{folder}b/", at)]
    assert {item["key"]: item["value"] for item in items} == {f"{folder}b/{name}": name for name in names}

    choose(page, "Duplicate folder …")
    page.wait("!document.querySelector('dialog[open] .primary').disabled")
    page.click("Duplicate", "dialog[open]")
    page.wait("!document.querySelector('dialog[open]')")
    assert session.get(f"/v1/kv?count=1&prefix={folder}").json["count"] == 1200

    page.open(prefix=f"{folder}b/")
    choose(page, "Delete folder …")
    page.wait_for("Delete 600 keys", "dialog[open]")
    assert page.ask("document.querySelector('dialog[open] .danger').disabled")
    page.fill("#delete-name", f"{folder}b/")
    page.click("Delete 600 keys", "dialog[open]")
    page.wait("!document.querySelector('dialog[open]')")
    assert session.get(f"/v1/kv?count=1&prefix={folder}").json["count"] == 600


def _items(session: Session, prefix: str, more: str) -> list[dict[str, str]]:
    items: list[dict[str, str]] = session.get(f"/v1/kv?limit=1000&prefix={prefix}{more}").json["items"]
    return items


def test_an_export_is_what_the_command_imports(
    page: Page, session: Session, folder: str, shared_service: Service, tmp_path: Path
) -> None:
    session.put(path_of(f"{folder}a"), "grün".encode(), content_type="text/plain")
    session.put(path_of(f"{folder}b"), b"\xff", content_type="image/x")
    page.open(prefix=folder)
    page.ask(
        "window.files = []; const make = URL.createObjectURL;"
        " URL.createObjectURL = (file) => (files.push(file), make.call(URL, file)); 0"
    )
    choose(page, "Export …")
    page.click("NDJSON", "dialog[open]")
    page.wait("files.length === 1")
    page.wait_for("Done", "dialog[open]")
    page.click("JSON", "dialog[open]")
    page.wait("files.length === 2")
    lines, array = json.loads(page.ask("JSON.stringify(await Promise.all(files.map((file) => file.text())))"))
    assert [json.loads(line) for line in lines.splitlines()] == json.loads(array)
    file = tmp_path / "export.ndjson"
    file.write_text(lines)
    url = ["--url", shared_service.url, "--prefix-strip", folder, "--prefix-add", f"{folder}again/"]
    command = Path(sys.executable).with_name("kvstore")
    subprocess.run([command, "import", file, *url], check=True)
    [first, second] = _items(session, f"{folder}again/", "")
    assert (first["value"], first["content_type"]) == ("grün", "text/plain")
    assert base64.b64decode(second["value_b64"]) == b"\xff"


def test_health_shows_rates_room_and_checks(page: Page, session: Session, folder: str) -> None:
    page.open(view="health")
    page.wait_for("daemon ok", "#health-view")
    figures = "document.querySelector('#health-view').innerText"

    def is_counted() -> bool:
        session.put(path_of(f"{folder}x"), b"x")
        return bool(page.ask(f"/Changes\\n(?!0\\.0)[\\d.,]+\\/s/.test({figures})"))

    wait_until(is_counted, what="changes per second")
    page.wait(f"/99 of 100 requests\\n≤ [\\d.]+ m?s/.test({figures})")
    page.wait(f"/Store\\n[\\d.]+ .?i?B of/.test({figures})")
    assert page.ask("document.querySelectorAll('.spark polyline').length") == 8


def test_a_change_shows_what_was_stored_and_unfolds_to_the_difference(
    page: Page, session: Session, folder: str
) -> None:
    for port in (80, 8080):
        value = json.dumps({"port": port, "hosts": ["a"]}).encode()
        session.put(path_of(f"{folder}config"), value, content_type="application/json")
    session.delete(path_of(f"{folder}config"))
    page.open(view="changes", prefix=folder)
    page.wait("document.querySelectorAll('.tail .preview').length === 3")
    previews = "[...document.querySelectorAll('.tail .preview')].map((each) => each.textContent)"
    assert page.ask(previews) == [
        "what it was",
        '{"port": 8080, "hosts": ["a"]}',
        '{"port": 80, "hosts": ["a"]}',
    ]
    page.ask("document.querySelectorAll('.tail .preview')[1].click()")
    page.wait("document.querySelector('.tail .diff .added')?.innerText.includes('8080')")
    page.ask("document.querySelectorAll('.tail .preview')[0].click()")
    page.wait("document.querySelectorAll('.tail pre')[0]?.innerText.includes('8080')")
