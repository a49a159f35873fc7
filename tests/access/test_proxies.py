"""nginx in front of a service with access on: credentials pass, and one's answers are for nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.markdown import ROOT
from support.programs import Nginx
from support.protected import Protected
from support.servers import wait_until
from support.session import JSON_TYPE, Answer, call

SHIPPED = (ROOT / "deploy/nginx/kvstore.conf").read_text()
START = Callable[..., Nginx]


@pytest.fixture
def nginx(tmp_path: Path, protected: Protected) -> Iterator[START]:
    """``nginx(settings)``: with these settings, in front of the service."""
    running: list[Nginx] = []

    def start(http: str) -> Nginx:
        text = http.replace("{service}", protected.url.removeprefix("http://"))
        proxy = Nginx(tmp_path / f"nginx{len(running)}", text)
        # what a distribution sets, and a person who wants to see more
        proxy.file.write_text(proxy.file.read_text().replace("access_log off;", "access_log access.log;"))
        running.append(proxy.__enter__())
        return proxy

    yield start
    for proxy in running:
        proxy.__exit__()


def shipped(extra: str = "") -> str:
    text = SHIPPED.replace("listen 80;", "listen 127.0.0.1:{port};").replace(
        "server_name kv.example.org;", f"server_name 127.0.0.1; {extra}"
    )
    return text.replace("127.0.0.1:5000", "{service}")


def token_of(protected: Protected, name: str, *grants: str) -> str:
    """Another token, which the facade knows by now."""
    token = protected.token(name, *grants)
    wait_until(lambda: call(protected.url, "GET", "/v1/status", headers=bearer(token)).status == 200)
    return token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_token_passes_and_is_not_logged(protected: Protected, nginx: START) -> None:
    token = token_of(protected, "through-nginx", "rw:nginx/")
    proxy = nginx(shipped())
    assert call(proxy.url, "PUT", "/v1/kv/nginx/a", b"1", bearer(token)).status == 201
    assert call(proxy.url, "GET", "/v1/kv/nginx/a").status == 401
    assert call(proxy.url, "GET", "/v1/kv/nginx/a", headers=bearer(token + "x")).status == 401
    assert call(proxy.url, "GET", "/v1/kv/other", headers=bearer(token)).status == 403
    logged = (proxy.folder / "access.log").read_text() + proxy.said
    assert "/v1/kv/nginx/a" in logged
    assert token.split("_")[2] not in logged


def log_in(url: str, token: str, origin: str, *, prefix: str = "", fetched: str = "same-origin") -> Answer:
    """Log in as the page does that a browser has loaded from ``origin``."""
    headers = {**JSON_TYPE, "Origin": origin, "Sec-Fetch-Site": fetched}
    page = "" if not prefix else f', "page": "{prefix}/"'
    return call(url, "POST", f"{prefix}/v1/session", f'{{"token": "{token}"{page}}}'.encode(), headers)


def test_the_page_logs_in_behind_the_proxy_with_both_halves(protected: Protected, nginx: START) -> None:
    token = token_of(protected, "page-behind-nginx", "rw:nginx/")
    proxy = nginx(shipped())
    # TLS ends in front, which only the origin shows
    answer = log_in(proxy.url, token, "https://kv.example.org")
    assert answer.status == 200, answer
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-kvstore=")
    assert "; Secure; Path=/" in cookie
    halves = {"Cookie": cookie.partition(";")[0], "X-Kvstore-Page": answer.json["half"]}
    assert call(proxy.url, "GET", "/v1/kv?prefix=nginx/", headers=halves).status == 200
    for half in halves:
        assert call(proxy.url, "GET", "/v1/kv?prefix=nginx/", headers={half: halves[half]}).status == 401
    left = call(
        proxy.url,
        "DELETE",
        "/v1/session",
        headers={"Origin": "https://kv.example.org", "Sec-Fetch-Site": "same-origin"},
    )
    assert "kvstore=; Max-Age=0" in left.headers["set-cookie"]


def test_nobody_logs_in_through_the_proxy_over_an_open_network(protected: Protected, nginx: START) -> None:
    token = token_of(protected, "open-network", "rw:nginx/")
    text = SHIPPED.replace("listen 80;", "listen 127.0.0.1:{port};").replace("127.0.0.1:5000", "{service}")
    proxy = nginx(text)
    own = {**JSON_TYPE, "Host": "kv.example.org", "Origin": "http://kv.example.org"}
    # the page's other requests are shown to kvstore as its own, the login as what it is
    known = {**own, **bearer(token)}
    assert call(proxy.url, "POST", "/v1/incr/nginx/n", headers=known).status == 200
    body = f'{{"token": "{token}"}}'.encode()
    assert call(proxy.url, "POST", "/v1/session", body, own).status == 403
    fetched = {**own, "Sec-Fetch-Site": "same-origin"}
    assert call(proxy.url, "POST", "/v1/session", body, fetched).status == 403


def test_below_a_path_the_cookie_is_for_that_path(protected: Protected, nginx: START) -> None:
    token = token_of(protected, "below-a-path", "rw:nginx/")
    proxy = nginx(
        'map $request_uri $kvstore_path { "~^/kv(?<kvstore_rest>/.*)$" $kvstore_rest; }'
        + shipped()
        .replace("location / {", "location /kv/ {")
        .replace("proxy_pass http://kvstore;", "proxy_pass http://kvstore$kvstore_path;", 1)
    )
    answer = log_in(proxy.url, token, "https://kv.example.org", prefix="/kv")
    assert answer.status == 200, answer
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Secure-kvstore=")
    # so the browser sends it to the folder of the login, /kv/v1 (RFC 6265 section 5.1.4)
    assert "path=" not in cookie.lower()
    halves = {"Cookie": cookie.partition(";")[0], "X-Kvstore-Page": answer.json["half"]}
    assert call(proxy.url, "GET", "/kv/v1/kv?prefix=nginx/", headers=halves).status == 200


CACHE = "proxy_cache_path {folder}/cache keys_zone=kvstore:1m;"
CACHED = "proxy_cache kvstore; proxy_cache_valid any 10m; add_header X-Cache $upstream_cache_status always;"


@pytest.mark.parametrize("kind", ["token", "session", "anonymous"])
def test_a_cache_in_front_gives_ones_answers_to_nobody_else(
    protected: Protected, nginx: START, kind: str
) -> None:
    """With nginx's cache turned on for everything, as whoever adds it in good faith would."""
    token = token_of(protected, f"cached-{kind}", "rw:cached/")
    if kind == "anonymous":
        protected.change("identity_put", "anonymous", grant=["ro:cached/"])
    text = shipped(CACHED).replace("proxy_buffering off;", "proxy_buffering on;")
    proxy = nginx(CACHE + text)
    for _ in range(2):  # so that there is more than the first page of changes
        assert call(proxy.url, "PUT", "/v1/kv/cached/k", b"of the one", bearer(token)).status in (200, 201)
    who = bearer(token)
    if kind == "session":
        session = log_in(proxy.url, token, "https://kv.example.org")
        who = {
            "Cookie": session.headers["set-cookie"].partition(";")[0],
            "X-Kvstore-Page": session.json["half"],
        }
    if kind == "anonymous":
        who = {}
    other = bearer(token_of(protected, f"other-{kind}", "rw:other/"))
    epoch = call(protected.url, "GET", "/v1/status", headers=bearer(token)).json["epoch"]
    changes = f"/v1/changes?since=0-{epoch}&prefix=cached/&limit=1&cache=1d"
    for path in ("/v1/kv/cached/k", "/v1/kv?prefix=cached/", "/v1/history/cached/k", changes, "/v1/status"):
        for _ in range(3):
            answer = call(proxy.url, "GET", path, headers=who)
            assert answer.status == 200
            assert answer.headers["x-cache"] != "HIT", path
        others = call(proxy.url, "GET", path, headers=other)
        assert others.headers["x-cache"] != "HIT", path
        assert b"of the one" not in others.body
        assert others.status == (200 if path == "/v1/status" else 403)
        assert call(proxy.url, "GET", path, headers=bearer(token + "x")).status == 401
    if kind == "anonymous":
        protected.change("identity_put", "anonymous", ungrant=["ro:cached/"])
        wait_until(lambda: call(proxy.url, "GET", "/v1/kv/cached/k").status == 401)
