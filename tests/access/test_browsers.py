"""The page at ``/ui/`` with access on, in a real Chromium: the session in two halves, what it is safe
against, and what the page makes of grants. And a page of another origin, which uses a token."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kvstore_core.access.tokens import new_token
from kvstore_http.routes import ENDPOINTS
from support.browser import Browser, Page, open_browser
from support.markdown import ROOT
from support.programs import Nginx, make_certificate
from support.protected import Protected
from support.servers import Daemon, Facade, wait_until
from support.session import Answer, Session, assert_problem

MARK = "document.documentElement.dataset.ran = 'yes'"
SVG = (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20" onload="{MARK}"><script>{MARK}</script>'
    '<rect width="30" height="20"/></svg>'
)


class Site(ThreadingHTTPServer):
    """A web site on a port of its own: the example of a page, and an empty page everywhere else. It notes the
    cookies that it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cookies: list[str] = []
        self.origin = f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Site

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(ROOT / "examples"))

    def do_GET(self) -> None:
        self.server.cookies.append(self.headers.get("Cookie", ""))
        if self.path == "/page.html":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def served() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def friend() -> Iterator[Site]:
    """A site whose origin is in --cors-origins."""
    yield from served()


@pytest.fixture(scope="module")
def stranger() -> Iterator[Site]:
    """A site whose origin is not."""
    yield from served()


class Home:
    """A service with access on, by the address that the page has."""

    def __init__(self, protected: Protected, facade: Facade) -> None:
        self.protected = protected
        self.daemon = protected.daemon
        self.url = facade.url
        self.admin = protected.admin_token
        self.session = Session(self.url)
        self.facade_options = {"facade_key_file": str(protected.data / "facade.key")}

    def grant(self, name: str, token: str | None, *grants: str) -> None:
        """Give the identity that has the token just these grants; returns once the facade knows."""
        self.protected.change("identity_put", name, grants=grants)
        self._wait_for(token, name, grants)

    def person(self, name: str, *grants: str) -> str:
        """Another token of an identity, which has these grants."""
        token = self.protected.token(name, *grants)
        self._wait_for(token, name, grants)
        return token

    def _wait_for(self, token: str | None, name: str, grants: tuple[str, ...]) -> None:
        def is_known() -> bool:
            told = self.ask("GET", "/v1/whoami", token)
            return told.status == 200 and (told.json["name"], tuple(told.json["grants"])) == (name, grants)

        wait_until(is_known, what=f"the facade knows {name} with {grants}")

    def revoke(self, name: str, token: str) -> None:
        """Take a token away."""
        self.protected.change("token_delete", name, id=token.split("_")[1])

    def ask(self, method: str, target: str, token: str | None = None, **more: Any) -> Answer:
        """An answer to a request with a token, over a connection kept open."""
        headers = {**more.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        return self.session.request(method, target, more.pop("body", None), headers)

    def put(self, key: str, value: str, kind: str = "text/plain", **headers: str) -> None:
        """Store a value as the admin."""
        more = {"Content-Type": kind, **headers}
        answer = self.ask("PUT", f"/v1/kv/{key}", self.admin, body=value.encode(), headers=more)
        assert answer.status in (200, 201), answer.body


@pytest.fixture(scope="module")
def home(protected: Protected, _shared_starter: Any, friend: Site) -> Iterator[Home]:
    """The shared service, with a facade that lets the friend's pages in."""
    key = str(protected.data / "facade.key")
    facade = _shared_starter.start_facade(protected.daemon, facade_key_file=key, cors_origins=friend.origin)
    home = Home(protected, facade)
    yield home
    home.session.close()


@pytest.fixture(scope="module")
def reader(home: Home) -> str:
    """A token that may see ``app/`` and no more."""
    for name in ("a", "b/c"):
        home.put(f"page/{name}", f"value of {name}")
    home.put("hidden-page/x", "hidden")
    return home.person("page-reader", "ro:page/")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, home: Home) -> Iterator[Page]:
    """The page of the service, without a session. A test that made the browser complain fails."""
    yield from fresh(browser, home.url)


def fresh(browser: Browser, url: str, *tolerated: str) -> Iterator[Page]:
    size(browser, 1280, 800)
    browser.events.clear()
    page = Page(browser, url)
    browser.command("Storage.clearCookies")
    yield page
    assert [said for said in page.complaints() if not said.startswith(tolerated or ("-",))] == []
    browser.open("about:blank")
    browser.command("Storage.clearDataForOrigin", origin=url, storageTypes="all")


def size(browser: Browser, width: int, height: int, *, mobile: bool = False) -> None:
    browser.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
    )


IS_OPEN = "document.querySelector('#login[open]')"


def log_in(page: Page, token: str, **place: str) -> None:
    page.open(**place)
    enter(page, token)


def enter(page: Page, token: str) -> None:
    page.wait(IS_OPEN)
    page.fill("#token", token)
    page.click("Log in", "#login")
    page.wait(f"!{IS_OPEN}")


def cookies(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.browser.command("Network.getCookies", urls=[f"{page.url}/v1/session"])[
        "cookies"
    ]
    return found


def stored(page: Page) -> dict[str, str]:
    """All that the page's scripts can read of what the browser keeps for it."""
    text = page.ask(
        "JSON.stringify({...localStorage, ...sessionStorage, cookie: document.cookie, name: window.name,"
        " address: location.href, state: JSON.stringify(history.state),"
        " field: document.querySelector('#token').value,"
        " bases: JSON.stringify(await indexedDB.databases()), caches: JSON.stringify(await caches.keys())})"
    )
    kept: dict[str, str] = json.loads(text)
    return kept


def half_of(page: Page) -> str:
    return str(page.ask("Object.entries(localStorage).find(([name]) => name.startsWith('kvstore.half:'))[1]"))


# ── logging in and out ───────────────────────────────────────────────────────────────────────────


def test_a_token_becomes_a_session_and_is_kept_nowhere(page: Page, home: Home, reader: str) -> None:
    log_in(page, reader)
    page.wait_for_rows("page/")
    page.wait_for("page-reader", "#who")
    kept = stored(page)
    assert reader not in json.dumps(kept)
    assert kept["cookie"] == kept["field"] == ""
    (cookie,) = cookies(page)
    port = urlsplit(home.url).port
    assert (cookie["name"], cookie["path"], cookie["domain"]) == (f"kvstore_{port}", "/v1", "127.0.0.1")
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert cookie["value"] not in json.dumps(kept)
    assert reader not in cookie["value"]
    page.open(prefix="page/")
    page.wait_for_rows("a", "b/")
    page.click("Log out")
    page.wait(IS_OPEN)
    assert cookies(page) == []
    assert [name for name in stored(page) if name.startswith("kvstore.half")] == []
    assert page.rows() == []


def test_a_bad_token_is_refused_in_the_words_of_the_service(page: Page, home: Home) -> None:
    page.open()
    page.wait(IS_OPEN)
    page.fill("#token", new_token().text)
    page.click("Log in", "#login")
    page.wait_for("this token is not known here", "#login")
    assert cookies(page) == []
    page.browser.press("Escape")
    page.wait(IS_OPEN)
    page.open()
    page.wait(IS_OPEN)
    enter(page, home.admin)
    page.wait_for("admin", "#who")


def test_what_anonymous_may_see_needs_no_token(page: Page, home: Home) -> None:
    home.put("public/x", "for all")
    home.put("hidden-page/x", "hidden")
    home.grant("anonymous", None, "ro:public/")
    try:
        page.open()
        page.wait_for_rows("public/")
        page.click("public/")
        page.wait_for_rows("x")
        page.open(key="hidden-page/x")
        page.wait_for(": send a token", "#login")  # for the key or for its folder, whichever is refused first
        assert "'hidden-page/" in page.text("#login")
        page.click("Go on without", "#login")
        page.wait(f"!{IS_OPEN}")
        page.click("Log in", "#who")
        enter(page, home.admin)
        page.wait_for("hidden", "#detail pre")
    finally:
        home.grant("anonymous", None)


def test_nobody_logs_in_over_plain_http_beyond_this_machine(
    browser: Browser, home: Home, start_facade: Callable[..., Facade]
) -> None:
    facade = start_facade(home.daemon, plain_http=True, http="0.0.0.0:0", **home.facade_options)
    port, admin = facade.url.rpartition(":")[2], home.admin
    for page in fresh(browser, f"http://kv.example:{port}", "The Cross-Origin-Opener-Policy"):
        page.open()
        page.wait(IS_OPEN)
        page.fill("#token", admin)
        page.click("Log in", "#login")
        page.wait_for("Others could read the token on its way", "#login")
        assert not any(
            each["request"]["url"].endswith("/v1/session")
            for each in browser.heard("Network.requestWillBeSent")
        )
    with closing(Session(f"http://127.0.0.1:{port}")) as session:
        host = f"kv.example:{port}"
        for more in ({"host": host, "origin": f"http://{host}"}, {"host": host}):
            refused = assert_problem(session.post("/v1/session", {"token": admin}, **more), "not_allowed")
            assert "plain http" in refused["detail"]
        safe = session.post("/v1/session", {"token": admin}, host="kv.example", origin="https://kv.example")
        assert safe.headers["set-cookie"].startswith("__Host-kvstore=")
        below = {"token": admin, "page": "/kv/"}
        safe = session.post("/v1/session", below, host="kv.example", origin="https://kv.example")
        assert safe.headers["set-cookie"].startswith("__Secure-kvstore=")


def test_over_https_the_cookie_is_bound_to_the_host(
    browser: Browser, home: Home, start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    options = {"tls_cert": make_certificate(tmp_path), **home.facade_options}
    url = start_facade(home.daemon, **options).url.replace("127.0.0.1", "localhost")
    browser.command("Security.setIgnoreCertificateErrors", ignore=True)
    for page in fresh(browser, url):
        log_in(page, home.admin, prefix="tls/", new="1")
        page.wait_for("No key begins with")
        (cookie,) = cookies(page)
        assert (cookie["name"], cookie["path"], cookie["secure"]) == ("__Host-kvstore", "/", True)
        page.fill("#edit-key", "tls/k")
        page.click("Save")
        page.wait_for_rows("k")
        page.open(view="changes", prefix="tls/")
        page.wait_for("by admin", ".tail")


def test_below_a_path_of_a_proxy_that_takes_tls_away_the_session_stays_below_it(
    browser: Browser, home: Home, tmp_path: Path
) -> None:
    settings = f"""
      server {{
        listen 127.0.0.1:{{port}} ssl;
        ssl_certificate {make_certificate(tmp_path)};
        ssl_certificate_key {tmp_path}/certificate.pem;
        location /kv/ {{
          proxy_pass {home.url}/;
          proxy_http_version 1.1;
          proxy_buffering off;
          proxy_set_header Host $http_host;
        }}
      }}"""
    browser.command("Security.setIgnoreCertificateErrors", ignore=True)
    with Nginx(tmp_path / "nginx", settings) as nginx:
        url = nginx.url.replace("http://127.0.0.1", "https://localhost") + "/kv"
        for page in fresh(browser, url):
            log_in(page, home.admin, view="changes", prefix="below/")
            page.wait_for("Connected", ".state")
            (cookie,) = cookies(page)
            assert (cookie["name"], cookie["path"], cookie["secure"]) == ("__Secure-kvstore", "/kv/v1", True)
            assert "kvstore.half:/kv/" in stored(page)
            home.put("below/k", "x")
            page.wait_for("below/k", ".tail")
            page.click("Log out")
            page.wait(IS_OPEN)
            assert cookies(page) == []


def test_only_the_page_itself_begins_a_session(home: Home, friend: Site, stranger: Site) -> None:
    body, kind = json.dumps({"token": home.admin}).encode(), {"Content-Type": "application/json"}
    for headers in (
        {"Origin": friend.origin},
        {"Origin": stranger.origin},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": home.url, "Sec-Fetch-Site": "cross-site"},
    ):
        answer = home.ask("POST", "/v1/session", body=body, headers={**kind, **headers})
        assert_problem(answer, "not_allowed")
        assert "set-cookie" not in answer.headers
    assert_problem(home.ask("POST", "/v1/session", body=body), "unsupported_media_type")
    for wrong in (b"{}", b'{"token": 1}', b'{"token": "x", "more": 1}', b'{"token": "x", "page": 1}', b"[]"):
        assert_problem(home.ask("POST", "/v1/session", body=wrong, headers=kind), "bad_request")
    assert_problem(home.ask("POST", "/v1/session", body=b'{"token": "x"}', headers=kind), "unauthenticated")


# ── what the grants allow ────────────────────────────────────────────────────────────────────────


def test_a_narrow_identity_begins_where_it_may_look(page: Page, home: Home) -> None:
    home.put("page/a", "value of a")
    home.put("page-one", "x")
    token = home.person("page-narrow", "ro:page/", "rw:page-one", "rw:page2*", "monitor")
    log_in(page, token)
    page.wait_for_rows("page-one", "page/", "page2*")
    assert page.text("#list-problem") == ""
    page.click("page-one")
    page.edit("changed")
    page.wait_for("changed", "#detail pre")
    page.open(prefix="page-")
    page.wait_for_rows("page-one")
    page.open(prefix="page2")
    page.wait_for("No key begins with", "#list-foot")
    page.open(view="changes")
    page.wait_for("page-one", ".tail")
    home.put("hidden-page/x", "unseen")
    home.put("page/live", "x")
    page.wait_for("page/live", ".tail")
    assert "hidden-page" not in page.text(".tail")


def test_what_one_may_not_do_cannot_be_pressed_or_is_explained(page: Page, reader: str) -> None:
    log_in(page, reader, prefix="page/", key="page/a")
    page.wait_for("value of a", "#detail pre")
    buttons = "[...document.querySelectorAll('#detail > .actions button')]"
    state = f"{buttons}.map((each) => [each.disabled, each.title])"
    may_not = [[True, f"You may not {what} this key"] for what in ("write", "delete")]
    # a rename deletes; a duplicate goes to a key that is asked for first
    assert page.ask(state) == [*may_not, [False, ""], may_not[1]]
    assert not page.ask("document.querySelector('#new-key').checkVisibility()")
    for key in "edn":
        page.browser.press(key)
    assert page.ask("document.querySelector('#edit-value, dialog[open]')") is None
    page.open(prefix="hidden-page/", key="hidden-page/x")
    page.wait_for(
        "this needs list on every key that begins with 'hidden-page/', and 'page-reader' has: ro:page/",
        "#list-problem",
    )
    page.wait_for("this needs read on 'hidden-page/x', and 'page-reader' has: ro:page/", "#detail")
    page.open(view="changes", prefix="hidden-page/")
    page.wait_for("this needs watch on every key that begins with 'hidden-page/'", ".state")


def test_a_phone_has_room_for_who_one_is(page: Page, reader: str) -> None:
    size(page.browser, 390, 844, mobile=True)
    page.open()
    page.wait(IS_OPEN)
    assert page.ask("document.querySelector('#login').getBoundingClientRect().right <= 390")
    enter(page, reader)
    page.wait_for_rows("page/")
    for place in ({}, {"view": "changes"}, {"key": "page/a"}):
        page.open(**place)
        page.wait_for("Log out", "#who")
        assert page.ask("document.documentElement.scrollWidth <= 390 && document.body.scrollWidth <= 390")


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def test_a_revoked_session_goes_on_after_another_login_with_nothing_lost(page: Page, home: Home) -> None:
    token = home.person("page-watcher", "ro:log/")
    log_in(page, token, view="changes", prefix="log/")
    page.wait_for("Connected", ".state")
    home.put("log/1", "x")
    page.wait_for("log/1", ".tail")
    home.revoke("page-watcher", token)
    page.wait(IS_OPEN)
    page.wait_for("revoked", "#login")
    home.put("log/2", "x")
    home.put("log/3", "x")
    enter(page, home.person("page-watcher", "ro:log/"))
    page.wait_for("log/3", ".tail")
    names = page.ask("[...document.querySelectorAll('.tail .name')].map((each) => each.textContent)")
    assert names == ["log/3", "log/2", "log/1"]
    assert "The connection is lost" not in page.text(".tail")
    page.wait_for("Connected", ".state")


HOLD_THE_NEXT_WHOAMI = """
  const real = window.fetch;
  const go = new Promise((done) => (window.go = done));
  window.fetch = async (url, init) => {
    if (!String(url).includes("whoami")) return real(url, init);
    window.fetch = real;
    const answer = await real(url, init);
    window.isHeld = true;
    await go;
    return answer;
  };
  const key = `kvstore.half:${new URL("../", document.baseURI).pathname}`;
  dispatchEvent(new StorageEvent("storage", {key}));
"""


def test_an_answer_of_before_the_login_asks_for_no_other(page: Page, home: Home) -> None:
    page.open(view="changes", prefix="log/")
    page.wait(IS_OPEN)
    page.ask(f"(() => {{ {HOLD_THE_NEXT_WHOAMI} }})()")
    page.wait("window.isHeld")
    enter(page, home.person("page-early", "ro:log/"))
    page.ask("go()")
    page.ask("await new Promise((done) => setTimeout(done, 50))")
    assert not page.ask(f"Boolean({IS_OPEN})")
    page.wait_for("Connected", ".state")


def test_grants_taken_and_given_back_are_felt_by_an_open_page(page: Page, home: Home) -> None:
    token = home.person("page-wavering", "ro:log/")
    log_in(page, token, view="changes", prefix="log/")
    page.wait_for("Connected", ".state")
    home.grant("page-wavering", token, "ro:other/")
    page.wait_for("this needs watch", ".state")
    home.put("log/meanwhile", "x")
    home.grant("page-wavering", token, "ro:log/")
    for _ in "there and back":
        page.browser.press("c")  # or else it tries again after some seconds
    page.wait_for("log/meanwhile", ".tail")


def test_a_session_outlives_restarts_of_all_and_is_asked_for_once_that_can_be_told(
    browser: Browser, start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade]
) -> None:
    daemon = start_daemon(access="required")
    token = (daemon.data / "admin.token").read_text().strip()
    daemon.stop()
    key = str(daemon.data / "facade.key")
    facade = start_facade(daemon, facade_key_file=key, daemon_timeout="1s")
    for page in fresh(browser, facade.url):
        page.open(view="changes")
        page.wait_for("daemon is away", "#health")
        assert not page.ask(f"Boolean({IS_OPEN})"), "nobody can say yet whether that is needed"
        daemon.start()
        enter(page, token)
        page.wait_for("Connected", ".state")
        daemon.stop()
        facade.stop()
        page.wait_for("Not reachable since", "#health")
        facade.start()
        daemon.start()
        page.wait_for("Connected", ".state")
        with closing(Session(facade.url)) as session:
            stored = session.put("/v1/kv/after", b"x", authorization=f"Bearer {token}")
            assert stored.status == 201
        page.wait_for("after", ".tail")
        assert not page.ask(f"Boolean({IS_OPEN})")
        page.wait_for("admin", "#who")


def test_a_change_says_who_made_it_and_why(page: Page, home: Home) -> None:
    home.put("why/k", "1", **{"X-Kvstore-Message": "<b>by hand</b>"})
    log_in(page, home.admin, view="changes", prefix="why/")
    page.wait_for("<b>by hand</b>", ".tail .byline")
    assert "by admin" in page.text(".tail .byline")
    page.open(key="why/k", tab="history")
    page.wait_for("<b>by hand</b>", "summary .byline")


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def test_values_are_drawn_and_downloaded_by_the_session_alone(page: Page, home: Home, tmp_path: Path) -> None:
    home.put("pic/drawing", SVG, "image/svg+xml")
    home.put("pic/file", "first")
    home.put("pic/file", "second")
    page.browser.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    log_in(page, home.admin, key="pic/drawing")
    page.wait_for("30 × 20", "figcaption")
    assert page.ask("document.documentElement.dataset.ran ?? 'no'") == "no"
    address = page.ask("document.querySelector('figure img').src")
    again = "const i = new Image(); i.onload = () => done('there'); i.onerror = () => done('gone');"
    shown = f"await new Promise((done) => {{ {again} i.src = {json.dumps(address)}; }})"
    assert page.ask(shown) == "gone", "nobody opens the drawing by itself, as a page of this origin"
    page.open(key="pic/file")
    page.wait_for("second", "#detail pre")
    page.click("Download")
    wait_until(lambda: downloaded(tmp_path / "file") == "second", what="the download")
    (tmp_path / "file").unlink()
    page.open(key="pic/file", tab="history")
    page.wait("document.querySelectorAll('.events summary').length === 2")
    page.ask("document.querySelectorAll('.events summary')[1].click()")
    page.click("Download", ".events li:last-child")
    wait_until(lambda: downloaded(tmp_path / "file") == "first", what="the download of an old value")


def downloaded(file: Path) -> str:
    """What is in a file, which the browser makes before it writes to it."""
    return file.read_text() if file.exists() else ""


def test_a_hostile_value_finds_no_token_and_runs_nothing(page: Page, home: Home) -> None:
    hostile = f'<script>{MARK}</script><img src=x onerror="{MARK}">'
    home.put("evil/k", hostile, "text/html")
    log_in(page, home.admin, prefix="evil/", key="evil/k")
    page.wait_for(hostile, "#detail pre")
    page.click("History")
    page.wait_for(hostile, "#detail details[open] pre")
    assert page.ask("document.documentElement.dataset.ran ?? 'no'") == "no"
    assert home.admin not in json.dumps(stored(page))


# ── what others do with the browser of somebody who is logged in ─────────────────────────────────

ATTEMPTS = """
  await (async () => {
    const target = TARGET, half = {headers: {"X-Kvstore-Page": HALF}};
    const post = {method: "POST", credentials: "include", mode: "no-cors"};
    const tries = {
      read: () => fetch(target + "/v1/kv/page/a", {credentials: "include", mode: "no-cors"}),
      write: () => fetch(target + "/v1/incr/csrf", post),
      batch: () => fetch(target + "/v1/batch", {...post, body: BATCH}),
      cors: () => fetch(target + "/v1/kv/page/a", {credentials: "include"}),
      put: () => fetch(target + "/v1/kv/csrf", {method: "PUT", credentials: "include", body: "x"}),
      both: () => fetch(target + "/v1/kv/page/a", {credentials: "include", ...half}),
      half: () => fetch(target + "/v1/kv/page/a", half),
      session: () => fetch(target + "/v1/session", {method: "DELETE", credentials: "include"}),
      login: () => fetch(target + "/v1/session", {...post, body: LOGIN}),
    };
    const results = {};
    for (const [name, attempt] of Object.entries(tries)) {
      results[name] = await attempt().then(
        (answer) => answer.type === "opaque" ? "opaque" : answer.status,
        () => "refused",
      );
    }
    results.image = await new Promise((done) => {
      const image = new Image();
      image.onload = () => done("shown");
      image.onerror = () => done("refused");
      image.src = target + "/v1/kv/pic/drawing";
    });
    results.stream = await new Promise((done) => {
      const source = new EventSource(target + "/v1/subscribe", {withCredentials: true});
      source.onopen = () => done("open");
      source.onerror = () => (source.close(), done("refused"));
    });
    results.form = await new Promise((done) => {
      const frame = document.createElement("iframe");
      const form = document.createElement("form");
      frame.name = form.target = "framed";
      form.method = "POST";
      form.action = target + "/v1/incr/csrf";
      document.body.append(frame, form);
      frame.onload = () => done("answered");
      form.submit();
    });
    return results;
  })()"""


@pytest.mark.parametrize("who", ["friend", "stranger", "localhost"])
def test_a_page_of_elsewhere_can_do_nothing_with_the_cookie(
    page: Page, home: Home, friend: Site, stranger: Site, who: str
) -> None:
    home.put("page/a", "value of a")
    home.put("pic/drawing", SVG, "image/svg+xml")
    log_in(page, home.admin)
    page.wait_for("admin", "#who")
    half, (cookie,) = half_of(page), cookies(page)
    site = friend if who == "friend" else stranger
    origin = site.origin.replace("127.0.0.1", "localhost") if who == "localhost" else site.origin
    site.cookies.clear()
    page.browser.open(origin + "/")
    if (
        who != "localhost"
    ):  # the danger is real: the other port is sent cookies of the host, were their path its own
        page.browser.open(origin + "/v1/")
        assert f"{cookie['name']}={cookie['value']}" in site.cookies
    page.browser.events.clear()
    revision = home.ask("GET", "/v1/status", home.admin).json["revision"]
    script = ATTEMPTS.replace("TARGET", json.dumps(home.url)).replace("HALF", json.dumps(half))
    script = script.replace("BATCH", json.dumps('{"ops": [{"op": "put", "key": "csrf", "value": "x"}]}'))
    script = script.replace("LOGIN", json.dumps(json.dumps({"token": home.admin})))
    results = page.ask(script)
    statuses = {
        each["response"]["status"]
        for each in page.browser.heard("Network.responseReceived")
        if each["response"]["url"].startswith(home.url) and each["type"] != "Preflight"
    }
    assert results.pop("form") == "answered"
    assert {name: results.pop(name) for name in ("read", "write", "batch", "login")} == dict.fromkeys(
        ("read", "write", "batch", "login"), "opaque"
    )
    assert set(results.values()) <= {"refused", 401, 403}
    assert statuses <= {401, 403, 415}
    assert home.ask("GET", "/v1/status", home.admin).json["revision"] == revision
    assert cookies(page) == [cookie]
    page.browser.events.clear()


def test_either_half_is_worth_nothing_alone_or_elsewhere(page: Page, home: Home, reader: str) -> None:
    log_in(page, home.admin)
    page.wait_for("admin", "#who")
    half, (cookie,) = half_of(page), cookies(page)
    sent = f"{cookie['name']}={cookie['value']}"
    both = {"Cookie": sent, "X-Kvstore-Page": half}
    assert home.ask("GET", "/v1/kv/page/a", headers=both).status in (200, 404)
    for headers in (
        {"Cookie": sent},
        {"X-Kvstore-Page": half},
        {"Cookie": sent, "X-Kvstore-Page": half[::-1]},
        {"Authorization": f"Bearer {cookie['value']}"},
        {"Authorization": f"Bearer {cookie['value']}", "X-Kvstore-Page": half},
        {**both, "Authorization": f"Bearer {half}"},
        {**both, "Authorization": f"Bearer {new_token().text}"},
        {**both, "Authorization": ""},
        {**both, "Sec-Fetch-Site": "same-site"},
        {**both, "Sec-Fetch-Site": "cross-site"},
    ):
        for target in ("/v1/kv/page/a", "/v1/subscribe", "/v1/status"):
            answer = home.ask("GET", target, headers=headers)
            assert_problem(answer, "unauthenticated")
    # the browser adds the cookie to what a page sends with a token
    alone = home.ask("GET", "/v1/status", home.admin, headers={"Cookie": sent})
    assert alone.status == 200
    two = home.ask("GET", "/v1/whoami", reader, headers=both)
    assert two.json["name"] == "page-reader", "what was sent by hand is what counts"
    for target in ("/ui/", "/ui/app.js", "/v1/whoami", "/livez"):
        assert home.ask("GET", target, headers={"Cookie": sent}).status == 200
    assert home.ask("GET", "/v1/whoami", headers={"Cookie": sent}).json["name"] == "anonymous"


def test_a_session_cannot_administer(page: Page, home: Home) -> None:
    log_in(page, home.admin)
    page.wait_for("admin", "#who")
    grants = page.ask(
        f"await fetch('../v1/whoami', {{headers: {{'X-Kvstore-Page': '{half_of(page)}'}}}})"
        ".then((answer) => answer.json()).then((told) => told.grants)"
    )
    assert "admin" not in grants
    assert "all:*" in grants
    (cookie,) = cookies(page)
    both = {"Cookie": f"{cookie['name']}={cookie['value']}", "X-Kvstore-Page": half_of(page)}
    rows = [row for row in ENDPOINTS if row.needs == "admin"]
    assert rows
    for row in rows:
        answer = home.ask(row.method, row.path.replace("{name}", "admin"), body=b"{}", headers=both)
        assert assert_problem(answer, "not_allowed")["needs"] == "admin"


def test_the_page_may_send_as_much_as_a_value_holds(page: Page, home: Home) -> None:
    log_in(page, home.admin)
    page.wait_for("admin", "#who")
    stored = page.ask(
        f"await fetch('../v1/kv/large', {{method: 'PUT', headers: {{'X-Kvstore-Page': '{half_of(page)}'}},"
        " body: 'x'.repeat(1 << 20)}).then((answer) => answer.status)"
    )
    assert stored in (200, 201)


def test_another_name_for_this_machine_has_no_session(page: Page, home: Home) -> None:
    page.url = home.url.replace("127.0.0.1", "localhost")
    log_in(page, home.admin)
    page.wait_for("admin", "#who")
    page.browser.events.clear()
    # a name whose owner lets it lead here; the browser knows *.localhost to be this machine
    rebound = home.url.replace("127.0.0.1", "evil.localhost")
    page.browser.open(f"{rebound}/v1/kv/page/a")
    (sent,) = [
        each
        for each in page.browser.heard("Network.requestWillBeSentExtraInfo")
        if each["headers"].get("Host", "").startswith("evil.localhost")
    ][:1]
    assert "Cookie" not in sent["headers"]
    assert "does not accept the host name" in page.text()
    page.browser.events.clear()


# ── a page of another origin ─────────────────────────────────────────────────────────────────────


def test_the_example_follows_from_another_origin_and_goes_on_where_it_stopped(
    browser: Browser, home: Home, friend: Site
) -> None:
    token = home.person("page-example", "ro:ex/")
    for page in fresh(browser, friend.origin):
        browser.open(f"{friend.origin}/page.html")
        page.fill("[name=service]", home.url)
        page.fill("[name=prefix]", "ex/")
        page.fill("[name=token]", token)
        page.click("Watch")
        page.wait_for("Watching", "#state")
        _wait_for_change(page, home, "ex/1")
        home.revoke("page-example", token)
        page.wait_for("revoked", "#state")
        home.put("ex/2", "two")
        page.fill("[name=token]", home.person("page-example", "ro:ex/"))
        page.click("Watch")
        page.wait_for("ex/2 two", "#changes")
        rows = page.ask("[...document.querySelectorAll('#changes li')].map((each) => each.textContent)")
        assert rows[0] == "put ex/2 two"
        assert len(set(rows)) == len(rows)
        sent = [
            each["request"]["url"]
            for each in browser.heard("Network.requestWillBeSent")
            if each["request"]["url"].startswith(home.url)
        ]
        assert sent
        assert not any("kv_" in address for address in sent)


_tries = iter(range(1_000))


def _wait_for_change(page: Page, home: Home, key: str) -> None:
    """Change a key until the page shows it, whose stream may not have begun before."""

    def is_seen() -> bool:
        if key in page.text("#changes"):
            return True
        home.put(key, str(next(_tries)))
        return False

    wait_until(is_seen, what="a change in the page")


def test_a_page_of_another_origin_that_is_not_listed_learns_nothing(
    browser: Browser, home: Home, stranger: Site, reader: str
) -> None:
    browser.open(stranger.origin + "/")
    headers = json.dumps({"headers": {"Authorization": f"Bearer {reader}"}})
    asked = f"await fetch('{home.url}/v1/kv/page/a', {headers}).then(() => 'answered', () => 'refused')"
    assert browser.run(asked) == "refused"


def test_a_picture_of_a_value_is_not_told_apart(home: Home) -> None:
    """What nobody may see is refused alike whether it is there: also to a picture, which tells sizes."""
    answers = [home.ask("GET", f"/v1/kv/{key}") for key in ("pic/drawing", "pic/nothing")]
    assert [answer.status for answer in answers] == [401, 401]
    assert len({base64.b64encode(answer.body[:40]) for answer in answers}) == 1


def test_a_page_of_a_listed_origin_uses_the_services_own_module(
    browser: Browser, home: Home, friend: Site
) -> None:
    token = home.person("page-of-a-friend", "rw:friend/")
    for page in fresh(browser, friend.origin):
        browser.open(f"{friend.origin}/empty")
        page.ask(
            f"const {{connect}} = await import('{home.url}/ui/kvstore.js');"
            f"window.kv = connect({{token: '{token}'}}); window.seen = [];"
            "(async () => {for await (const item of kv.watch({prefix: 'friend/'})) seen.push(item)})(); 0"
        )
        page.wait("seen.some(({op}) => op === 'sync')")
        page.ask("await kv.put('friend/a', 'x', {guard: {'friend/none': 0}}); 0")
        page.wait("seen.some(({op, value}) => op === 'put' && value === 'x')")
        assert page.ask("(await kv.get('friend/a')).value") == "x"
        assert page.ask("await kv.get('elsewhere').catch(({code}) => code)") == "not_allowed"
        # more than an address holds
        many = "Array.from({length: 300}, (_, number) => `friend/${number}/xxxxxxxxxx`)"
        assert page.ask(f"(await kv.watch({{keys: {many}}}).next()).value.op") == "sync"
        asked = [each["request"]["url"] for each in browser.heard("Network.requestWillBeSent")]
        assert not [address for address in asked if token in address]
