"""``kvstore doctor`` names what is wrong with a proxy, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.programs import PLAIN
from support.surfaces import examine


def test_nginx_without_settings_refuses_large_bodies_and_speaks_http_1_0(
    front: Callable[[str], str], tmp_path: Path
) -> None:
    examined = examine(front(PLAIN), tmp_path)
    assert (examined.exit, examined.causes) == (1, {"body_limit", "http_1_0"})


def with_setting(setting: str, proxied: str = "proxy_pass http://{service};") -> str:
    """An nginx without other faults than ``setting``."""
    return (
        "server { listen 127.0.0.1:{port}; client_max_body_size 17m; "
        'proxy_http_version 1.1; proxy_set_header Connection ""; '
        f"location / {{ {proxied} {setting} }} }}"
    )


SETTINGS = {
    "proxy_ignore_headers X-Accel-Buffering;": set(),
    "client_max_body_size 1k;": {"body_limit"},
    "gzip on; gzip_types text/event-stream application/x-ndjson;": {"stream_compressed"},
    "gzip on; gzip_types application/json;": {"etag_weakened"},
    **{
        " ".join(f'proxy_set_header {name} "";' for name in names): {
            f"request_header_lost {name}" for name in names
        }
        # each is lost once, and arrives where another one is lost
        for names in (("If-Match", "Idempotency-Key", "Range"), ("If-None-Match", "Last-Event-ID"))
    },
    'proxy_set_header Accept "";': {"request_header_lost Accept", "stream_changed"},
    "proxy_set_header X-Request-Id $request_id;": {"request_header_lost X-Request-Id"},
    "proxy_hide_header ETag; proxy_hide_header X-Kvstore-Revision;": {
        "response_header_lost ETag",
        "response_header_lost X-Kvstore-Revision",
    },
    "proxy_hide_header Cache-Control;": {"response_header_lost Cache-Control", "stream_changed"},
    "limit_except GET PUT POST DELETE OPTIONS { deny all; }": {"method_refused PATCH"},
    "sub_filter_types application/octet-stream; sub_filter_once off; sub_filter aa bb;": {"body_changed"},
}
CONFIGURATIONS = {
    **{setting: (with_setting(setting), causes) for setting, causes in SETTINGS.items()},
    "a path behind the address": (with_setting("", "proxy_pass http://{service}/;"), {"path_rewritten"}),
    "a cache": (
        "proxy_cache_path {folder}/cache keys_zone=cache:1m;"
        + with_setting("proxy_cache cache; proxy_cache_valid any 1m; proxy_ignore_headers Cache-Control;"),
        {"cached"},
    ),
    "an upstream whose name is sent as Host": (
        "upstream kvstore { server {service}; }" + with_setting("", "proxy_pass http://kvstore;"),
        {"host_refused"},
    ),
    "the caller's Host": (with_setting("proxy_set_header Host kv.example.org;"), {"host_refused"}),
    "nobody behind it": (with_setting("", "proxy_pass http://127.0.0.1:1;"), {"no_upstream"}),
    "another site": (with_setting("", "return 200;"), {"not_kvstore"}),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_doctor_names_what_a_configuration_breaks_and_nothing_else(
    name: str, front: Callable[[str], str], tmp_path: Path
) -> None:
    http, causes = CONFIGURATIONS[name]
    assert examine(front(http), tmp_path).causes == causes


def test_an_idle_time_below_the_heartbeat_is_told_as_cut_by_something_in_front(
    front: Callable[[str], str], tmp_path: Path
) -> None:
    examined = examine(front(with_setting("proxy_read_timeout 1s;")), tmp_path, "--idle", "20s")
    assert examined.causes == {"idle_cut", "wait_cut"}
    (cut,) = [check for check in examined.checks if check.get("cause") == "idle_cut"]
    assert cut["figures"]["heartbeats"] <= 1  # one may be due in the very second
    assert "a proxy or the network cut it" in cut["message"]
    assert cut["fix"]["nginx"] == "proxy_read_timeout 660s;"


def test_what_events_are_held_back_by_is_measured(front: Callable[[str], str], tmp_path: Path) -> None:
    http = with_setting("proxy_ignore_headers X-Accel-Buffering; proxy_buffer_size 8k;")
    examined = examine(front(http.replace("proxy_http_version 1.1;", "")), tmp_path)
    assert examined.causes == {"buffered"}
    (lump,) = examined.figures("lump_bytes")
    assert 4096 < lump <= 8192


def test_the_largest_body_that_passes_is_measured(front: Callable[[str], str], tmp_path: Path) -> None:
    examined = examine(front(with_setting("client_max_body_size 100000;")), tmp_path)
    assert examined.figures("passing_bytes") == [100_000]
