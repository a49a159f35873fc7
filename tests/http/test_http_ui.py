"""The files of the page at ``/ui/``, the ways to it, and what the headers keep browsers from."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

import kvstore_http
from support.session import Session, assert_problem, path_of

ROOT = Path(__file__).parents[2]
FOLDER = Path(kvstore_http.__file__).parent / "ui"
FILES = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.rglob("*") if file.is_file())
VENDOR = FOLDER / "vendor"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def target_of(name: str) -> str:
    return "/ui/" if name == "index.html" else f"/ui/{name}"


def policy(header: str) -> dict[str, str]:
    """The directives of a ``Content-Security-Policy``."""
    return {name: text for name, _, text in (part.strip().partition(" ") for part in header.split(";"))}


# ── the files ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_as_it_is_with_its_type(session: Session, name: str) -> None:
    answer = session.get(target_of(name))
    assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["content-length"] == str(len(answer.body))
    headed = session.request("HEAD", target_of(name))
    assert headed.body == b""
    assert headed.headers["content-length"] == answer.headers["content-length"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_compressed_for_those_who_take_that(session: Session, name: str) -> None:
    plain = session.get(target_of(name), accept_encoding="br, gzip;q=0")
    assert (plain.body, "content-encoding" in plain.headers) == ((FOLDER / name).read_bytes(), False)
    packed = session.get(target_of(name), accept_encoding="br;q=1.0, gzip;q=0.8, *;q=0.1")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers["content-length"] == str(len(packed.body))
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert packed.headers["etag"] != plain.headers["etag"]
    tag = packed.headers["etag"]
    assert session.get(target_of(name), accept_encoding="gzip", if_none_match=tag).status == 304


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_asked_for_anew_and_sent_when_it_changed(session: Session, name: str) -> None:
    answer = session.get(target_of(name))
    assert answer.headers["cache-control"] == "no-cache"
    again = session.get(target_of(name), if_none_match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    weak = session.get(target_of(name), if_none_match=f'"other", W/{answer.headers["etag"]}')
    assert weak.status == 304
    assert session.get(target_of(name), if_none_match='"other"').status == 200


@pytest.mark.parametrize("name", FILES)
def test_a_file_may_do_nothing_but_what_the_page_needs(session: Session, name: str) -> None:
    headers = session.get(target_of(name)).headers
    assert policy(headers["content-security-policy"]) == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith(".txt")])
def test_a_file_names_no_other_host_and_no_path_from_the_root(name: str) -> None:
    text = (FOLDER / name).read_text().replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"\w+://", text)
    assert not re.search(r"""(?:src|href|from|import)\s*[=(]?\s*["']/""", text)


def test_no_code_makes_markup_out_of_text() -> None:
    for file in FOLDER.rglob("*.js"):
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", file.read_text()
        )
        assert found is None, f"{file.name} has {found}"


def test_vendored_files_are_those_of_the_manifest_with_the_licence_of_every_package() -> None:
    manifest = json.loads((VENDOR / "manifest.json").read_text())
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in VENDOR.iterdir()}
    del found["manifest.json"]
    assert found == manifest["sha256"], "run 'make vendor'"
    licences = (VENDOR / "LICENSES.txt").read_text()
    for name, version in manifest["packages"].items():
        assert re.search(
            rf"^{re.escape(f'{name} {version}')} \((MIT|BSD-3-Clause)\)$", licences, re.MULTILINE
        ), name
    pinned = json.loads((ROOT / "js/vendor/package.json").read_text())["dependencies"]
    assert pinned.items() <= manifest["packages"].items()


def test_the_page_has_nothing_inline() -> None:
    text = (FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_other_files_are_no_route(session: Session) -> None:
    for target in ("/ui/index.html", "/ui/nothing.js", "/ui/../app.py", "/ui/%2e%2e/app.py", "/ui//", "/UI/"):
        assert_problem(session.get(target), "no_such_route")


def test_a_parameter_is_refused(session: Session) -> None:
    for target in ("/ui?x=1", "/ui/?x=1", "/ui/app.js?x=1"):
        assert_problem(session.get(target), "bad_request")


# ── the ways to it ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/html, application/json;q=0.5"])
def test_who_prefers_html_is_led_to_the_page(session: Session, accept: str, method: str) -> None:
    answer = session.request(method, "/", headers={"Accept": accept})
    assert (answer.status, answer.body) == (303, b"")
    assert answer.headers["location"] == "ui/"  # relative: a proxy may have mounted the service below a path
    assert answer.headers["vary"].lower() == "accept"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "accept", [None, "*/*", "application/json", "application/json, text/html", "text/html;q=0.5, */*", "x"]
)
def test_everybody_else_gets_the_index(session: Session, accept: str | None) -> None:
    answer = session.request("GET", "/", headers={} if accept is None else {"Accept": accept})
    assert (answer.status, answer.json["service"]) == (200, "kvstore")
    assert answer.headers["vary"].lower() == "accept"


def test_without_its_slash_the_address_leads_to_the_page(session: Session) -> None:
    answer = session.get("/ui")
    assert (answer.status, answer.headers["location"]) == (303, "ui/")


@pytest.mark.parametrize("key", ["ui", "ui/", "/ui/", "a", ".", ".."])
def test_a_key_never_causes_a_redirect(session: Session, key: str) -> None:
    session.put(path_of(key), b"value")
    for target in (f"/?key={path_of(key)[7:]}", path_of(key), f"/v1/kv?key={path_of(key)[7:]}"):
        assert (session.get(target, accept=BROWSER).status, session.get(target).body) == (200, b"value")


# ── values are no pages ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", ["", "?format=json", "?revision={revision}"])
@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/javascript"])
def test_a_value_comes_in_a_sandbox_whatever_its_type(
    session: Session, key: str, kind: str, suffix: str
) -> None:
    revision = session.put(path_of(key), b"<script>alert(1)</script>", content_type=kind).json["revision"]
    target = path_of(key) + suffix.format(revision=revision)
    answers = [
        session.get(target),
        session.get(target, if_none_match=f'"{revision}"'),
        session.get(target, range="bytes=0-3"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert policy(answer.headers["content-security-policy"]) == {"default-src": "'none'", "sandbox": ""}
    assert answers[1].status == 304


def test_a_value_of_the_old_route_is_text_and_not_guessed_at(session: Session, key: str) -> None:
    session.put(path_of(key), b"<script>alert(1)</script>", content_type="text/html")
    answer = session.get(f"/?key={key}", accept=BROWSER)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


# ── history by query ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("key", ["..", ".", "a/../b", "a b+c%2F#?&=é\n"])
def test_history_of_a_key_in_the_query_is_that_of_the_key_in_the_path(session: Session, key: str) -> None:
    session.put(path_of(key), b"value")
    by_path = session.get(path_of(key, "history")).json
    assert session.get("/v1/history?key=" + path_of(key)[7:]).json == by_path
    assert by_path["key"] == key
    page = session.get(f"/v1/history?limit=1&values=0&key={path_of(key)[7:]}").json
    assert "value" not in page["events"][0]


def test_history_without_a_key_says_what_is_missing(session: Session) -> None:
    assert assert_problem(session.get("/v1/history"), "bad_request")["parameter"] == "key"
