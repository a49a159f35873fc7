"""The service behind real proxies, as their configurations are shipped and shown."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import yaml

from kvstore_cli.doctor.probe import Probe
from support.markdown import ROOT, blocks
from support.metrics import scrape
from support.programs import PLAIN, HaProxy, Nginx, make_certificate
from support.servers import Daemon, Facade, Service, free_port, wait_until
from support.session import Answer, call
from support.surfaces import examine

SHIPPED = (ROOT / "deploy/nginx/kvstore.conf").read_text()
PAGE = (ROOT / "docs/proxies.md").read_text()


def shipped(service: str) -> str:
    """The configuration that is shipped, for the addresses of a test and else as it is."""
    text = SHIPPED.replace("listen 80;", "listen 127.0.0.1:{port};").replace(
        "server_name kv.example.org;", "server_name 127.0.0.1;"
    )
    assert "server 127.0.0.1:5000;" in text
    return text.replace("127.0.0.1:5000", service)


def before_a_cluster(*facades: str) -> str:
    """The shipped configuration as deploy/compose-cluster.yaml changes it, for the addresses of a test."""
    nginx = yaml.safe_load((ROOT / "deploy/compose-cluster.yaml").read_text())["services"]["nginx"]
    expressions = re.findall(r"-e '([^']+)'", nginx["command"][0].replace("$$", "$"))
    assert expressions
    command = ["sed", *(part for each in expressions for part in ("-e", each))]
    text = subprocess.run(command, input=SHIPPED, capture_output=True, text=True, check=True).stdout
    for name, facade in zip(("http-a:5000", "http-b:5000"), facades, strict=True):
        assert name in text
        text = text.replace(name, facade)
    return text.replace("listen 80;", "listen 127.0.0.1:{port};")


# ── nginx as it should be ────────────────────────────────────────────────────────────────────────


def notes(examined: Any) -> set[str]:
    """The checks with a note, but for one that the distribution's etcd is old."""
    found = [check for check in examined.checks if check["status"] == "note"]
    return {check["check"] for check in found if "has defects that later" not in check["message"]}


def test_the_shipped_configuration_is_accepted_without_a_warning(tmp_path: Path) -> None:
    said = Nginx(tmp_path / "nginx", shipped("127.0.0.1:5000")).check()
    assert "warn" not in said


def test_through_the_shipped_configuration_everything_is_as_without_it(
    front: Callable[[str], str], tmp_path: Path
) -> None:
    examined = examine(front(shipped("{service}")), tmp_path, "--idle", "3s")
    assert examined.causes == set()
    assert examined.exit == 0
    assert notes(examined) == {"protocol"}
    assert not [check for check in examined.checks if check["status"] == "skipped"]


def test_the_shipped_configuration_refuses_names_that_are_not_its_own(front: Callable[[str], str]) -> None:
    own = front(shipped("{service}"))
    assert call(own, "GET", "/v1/status").status == 200
    assert call(own, "GET", "/v1/status", headers={"Host": "evil.example.org"}).status == 421


def test_before_a_cluster_it_spreads_requests_and_passes_over_a_facade_that_cannot_answer(
    daemon: Daemon, start_facade: Callable[..., Facade], front: Callable[[str], str]
) -> None:
    """Also over one whose daemon is away, which answers 503."""
    facades = [start_facade(daemon), start_facade(daemon)]
    own = front(before_a_cluster(*(urlsplit(facade.url).netloc for facade in facades)))
    for number in range(8):
        assert call(own, "PUT", f"/v1/kv/{number}", b"x").status == 201
    for facade in facades:
        puts = scrape(facade.url).value(
            "kvstore_http_requests_total", method="PUT", route="/v1/kv/{key}", status="201"
        )
        assert 0 < puts < 8
    facades[1].kill()
    assert {call(own, "GET", f"/v1/kv/{number}").status for number in range(8)} == {200}
    assert call(own, "GET", "/v1/tokens").status == 403, "of the first facade, which has no access"

    class Away:
        requests = changes = f"tcp://127.0.0.1:{free_port()}"

    cut_off = start_facade(Away(), daemon_timeout="300ms")
    netlocs = (urlsplit(facade.url).netloc for facade in (facades[0], cut_off))
    own = front(before_a_cluster(*netlocs))
    assert {call(own, "GET", f"/v1/kv/{number}").status for number in range(8)} == {200}


def test_a_page_of_the_proxys_own_site_may_write_and_another_may_not(front: Callable[[str], str]) -> None:
    own = front(shipped("{service}"))
    target = "/v1/incr/pages"
    assert call(own, "POST", target, headers={"Origin": own}).status == 200
    assert call(own, "POST", target, headers={"Origin": f"{own}0"}).status == 403
    assert call(own, "POST", target, headers={"Origin": "https://evil.example.org"}).status == 403


def test_a_request_without_an_id_is_given_one(front: Callable[[str], str]) -> None:
    own = front(shipped("{service}"))
    assert call(own, "GET", "/livez").headers["x-request-id"]
    assert call(own, "GET", "/livez", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"


def test_metrics_are_for_this_machine_only(front: Callable[[str], str]) -> None:
    address = urlsplit(front(shipped("{service}")))
    for source, status in (("127.0.0.1", 200), ("127.0.0.2", 403)):
        connection = HTTPConnection(
            address.hostname or "", address.port, source_address=(source, 0), timeout=30
        )
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == status
        connection.close()


def test_with_tls_as_the_shipped_configuration_has_it_browsers_get_http2(
    front: Callable[[str], str], tmp_path: Path
) -> None:
    certificate = make_certificate(tmp_path)
    text = shipped("{service}").replace("    listen 127.0.0.1:{port};\n", "")
    text = text.replace("# listen 443 ssl", "listen 127.0.0.1:{port} ssl").replace("# ssl_", "ssl_")
    for suffix in ("pem", "key"):
        text = text.replace(f"/etc/ssl/kv.example.org.{suffix};", f"{certificate};")
    secure = front(text).replace("http:", "https:")
    examined = examine(secure, tmp_path, "--ca-file", str(certificate), "--quick")
    assert examined.causes == set()
    assert not notes(examined)


def test_with_passwords_as_the_shipped_configuration_has_them_strangers_are_refused(
    front: Callable[[str], str], tmp_path: Path
) -> None:
    users = tmp_path / "users"
    users.write_text("somebody:{PLAIN}secret\n")
    text = (
        shipped("{service}")
        .replace("# auth_basic", "auth_basic")
        .replace('# proxy_set_header Authorization "";', 'proxy_set_header Authorization "";')
        .replace("/etc/nginx/kvstore.users;", f"{users};", 1)
    )
    own = front(text)
    assert call(own, "GET", "/livez").status == 401
    known = {"Authorization": "Basic c29tZWJvZHk6c2VjcmV0"}
    assert call(own, "GET", "/livez", headers=known).status == 200
    examined = examine(own, tmp_path)
    assert (examined.exit, examined.causes) == (5, {"login_wanted"})


@pytest.mark.parametrize(
    ("http", "is_told"), [(shipped("{service}"), True), (PLAIN, False)], ids=["shipped", "plain"]
)
def test_a_body_that_is_cut_off_is_seen_as_cut_off_only_with_http_1_1(
    http: str, is_told: bool, service: Service, tmp_path: Path
) -> None:
    own = http.replace("{service}", service.url.removeprefix("http://"))
    with (
        Nginx(tmp_path / "nginx", own) as nginx,
        Probe(nginx.url, 20, 0).watch("/v1/subscribe", {}) as stream,
    ):
        assert stream.wait_for(lambda: b"sync" in stream.text, 20)
        service.facade.kill()
        wait_until(lambda: stream.ended is not None, what="the stream ends")
        assert (stream.ended != "") is is_told


def test_under_a_path_of_another_site_everything_is_as_without_it(
    front: Callable[[str], str], tmp_path: Path
) -> None:
    example, _ = [block.text for block in blocks(PAGE) if block.language == "nginx"]
    cut_out, _, inside = example.partition("\n\n")
    location, proxied = inside.strip().splitlines()
    text = shipped("{service}").replace("location / {", location)
    text = text.replace("proxy_pass http://kvstore;", proxied.strip())
    examined = examine(f"{front(cut_out + text)}/kv", tmp_path)
    assert (examined.exit, examined.causes) == (0, set())


def cached_requests(url: str) -> float:
    """How many requests for pages of changes the service has answered."""
    return scrape(url).total("kvstore_http_requests_total", route="/v1/changes")


def test_a_cache_as_the_page_shows_it_keeps_full_pages_of_changes_and_nothing_else(
    start_daemon: Callable[..., Daemon], start_facade: Callable[..., Facade], tmp_path: Path
) -> None:
    _, example = [block.text for block in blocks(PAGE) if block.language == "nginx"]
    path, _, location = example.partition("\n\n")
    path = path.replace("/var/cache/nginx/kvstore", str(tmp_path / "cache"))
    facade = start_facade(start_daemon())
    text = shipped(facade.url.removeprefix("http://")).replace(
        "    location / {", f"{location}\n    location / {{"
    )

    def page(query: str, **headers: str) -> Answer:
        answer = call(nginx.url, "GET", f"/v1/changes?{query}", headers=headers)
        assert answer.status == 200, answer
        return answer

    with Nginx(tmp_path / "nginx", path + text) as nginx:
        begin = page("").json["cursor"]
        for number in range(5):
            call(facade.url, "PUT", f"/v1/kv/k{number}", b"1")
        full, rest = f"since={begin}&limit=2&cache=1h", f"since={begin}&cache=1h"
        first, before = page(full), cached_requests(facade.url)
        lines = page(full, Accept="application/x-ndjson")
        assert lines.body.count(b"\n") == 3, "not the page that is kept as JSON"
        for _ in range(10):
            assert page(full).body == first.body
            assert page(full, Accept="application/x-ndjson").body == lines.body
        assert cached_requests(facade.url) == before + 1
        for query in (rest, f"since={begin}&limit=2", f"since={begin.partition('-')[0]}&limit=2&cache=1h"):
            before = cached_requests(facade.url)
            assert [page(query).json["head"] for _ in range(3)] == [5, 5, 5]
            assert cached_requests(facade.url) == before + 3, query
        assert len(page(rest).json["events"]) == 5
        call(facade.url, "PUT", "/v1/kv/k5", b"1")
        assert len(page(rest).json["events"]) == 6
        facade.kill()
        assert page(full).body == first.body


def test_keys_that_climb_above_the_root_are_refused_by_nginx_and_go_as_a_parameter(
    front: Callable[[str], str],
) -> None:
    own = front(shipped("{service}"))
    key = "a/../../../../b"
    assert call(own, "PUT", f"/v1/kv/{quote(key, safe='')}", b"1").status == 400
    assert call(own, "PUT", f"/v1/kv?key={quote(key, safe='')}", b"1").status == 201


# ── HAProxy ──────────────────────────────────────────────────────────────────────────────────────


def haproxy_of(url: str, folder: Path, extra: str = "") -> HaProxy:
    """An HAProxy with the page's configuration in front of the service, and ``extra`` in its backend."""
    (example,) = [block.text for block in blocks(PAGE) if block.language == "haproxy"]
    example = example.replace("bind :80", "bind 127.0.0.1:{port}")
    assert "server kvstore 127.0.0.1:5000" in example
    return HaProxy(folder, example.replace("127.0.0.1:5000", url.removeprefix("http://")) + extra)


def test_through_haproxy_as_the_page_shows_it_everything_is_as_without_it(url: str, tmp_path: Path) -> None:
    with haproxy_of(url, tmp_path / "haproxy") as proxy:
        examined = examine(proxy.url, tmp_path, "--idle", "3s")
    assert (examined.exit, examined.causes) == (0, set())


@pytest.mark.parametrize(
    ("extra", "causes"),
    [
        ("    http-request del-header If-Match\n", {"request_header_lost If-Match"}),
        ("    http-response set-header Date 'Mon, 01 Jan 2001 00:00:00 GMT'\n", {"clock_skew"}),
        ("    http-request set-path %[path,regsub(//,/,g)]\n", {"path_rewritten"}),
        ("    http-request set-query %[query,url_dec]\n", {"query_rewritten"}),
    ],
)
def test_the_doctor_names_what_haproxy_breaks(extra: str, causes: set[str], url: str, tmp_path: Path) -> None:
    with haproxy_of(url, tmp_path / "haproxy", extra) as proxy:
        assert examine(proxy.url, tmp_path).causes == causes


def test_haproxy_delays_events_without_the_option_that_the_page_shows(url: str, tmp_path: Path) -> None:
    latencies = []
    for number, extra in enumerate(("", "    no option http-no-delay\n")):
        with haproxy_of(url, tmp_path / f"haproxy{number}", extra) as proxy:
            checks = examine(proxy.url, tmp_path).checks
        latencies.append([check["figures"]["event_p50_ms"] for check in checks if check["check"] == "events"])
    assert max(latencies[0]) < min(latencies[1])
    assert [check["cause"] for check in checks if check["check"] == "events"] == ["slow_events"] * 2


def test_the_doctor_names_haproxys_timeout(url: str, tmp_path: Path) -> None:
    with haproxy_of(url, tmp_path / "haproxy", "    timeout server 1s\n") as proxy:
        assert examine(proxy.url, tmp_path, "--idle", "3s").causes == {"idle_cut", "wait_cut"}
