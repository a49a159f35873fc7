"""Checks that proxies leave requests and responses as they are: headers, methods, paths, bodies, caching."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kvstore_cli.doctor.findings import Finding, failed, ok, warning
from kvstore_cli.doctor.probe import PROMPT_SECONDS, Probe, ProbeResponse, by_path, by_query
from kvstore_cli.http_client.client import encode_query
from kvstore_core.media_types import JSON, MERGE_PATCH, NDJSON, SSE, TEXT

# types that proxies compress, and a length above their minimum
_COMPRESSIBLE = (TEXT, JSON)
_COMPRESSIBLE_BYTES = 4096
_KEPT_TYPE = 'application/x-kvstore-doctor; note="as it is"'
_OTHER_HEADERS = (
    "Last-Modified",
    "X-Content-Type-Options",
    "Content-Security-Policy",
    "X-Kvstore-Revision",
    "X-Kvstore-Create-Revision",
    "X-Kvstore-Version",
    "X-Kvstore-Expires-At",
)
_CACHE_ROUNDS = 3
_SEARCH_STEPS = 24


def conditions(probe: Probe) -> Iterator[Finding]:
    """Conditional requests: If-Match and If-None-Match arrive, on writes and on reads."""
    key = probe.key("conditions")
    wrong = {"If-Match": f'"{_revision(probe.store(key, b"1")) + 1}"'}
    asked = (
        ("If-Match", 412, probe.put(key, b"2", wrong)),
        ("If-None-Match", 412, probe.put(key, b"3", {"If-None-Match": "*"})),
        ("If-None-Match", 304, _conditional_read(probe)),
    )
    lost = {name: (wanted, reply) for name, wanted, reply in asked if reply.status != wanted}
    for name, (wanted, reply) in lost.items():
        yield _header_lost(name, f"a condition that does not hold was answered {reply.shown}, not {wanted}")
    if not lost:
        yield ok("If-Match and If-None-Match arrive: 412 for a write, 304 for a read")


def _conditional_read(probe: Probe) -> ProbeResponse:
    # another key, since a cache would answer a second read itself
    key = probe.key("conditions-read")
    tag = f'"{_revision(probe.store(key, b"1"))}"'
    return probe.ask("GET", by_query(key), headers={"If-None-Match": tag})


def _revision(reply: ProbeResponse) -> int:
    return int(reply.json().get("revision", 0))


def _header_lost(name: str, message: str) -> Finding:
    return failed("request_header_lost", f"{name} does not arrive: {message}", header=name)


def request_headers(probe: Probe) -> Iterator[Finding]:
    """The other request headers that matter arrive."""
    checks = (_idempotency_key, _request_id, _accept, _range, _last_event_id)
    problems = [problem for check in checks if (problem := check(probe)) is not None]
    yield from problems
    if not problems:
        yield ok("Idempotency-Key, X-Request-Id, Accept, Range and Last-Event-ID arrive")


def _idempotency_key(probe: Probe) -> Finding | None:
    headers = {"Idempotency-Key": os.urandom(16).hex()}
    first, second = (_revision(probe.store(probe.key("once"), b"1", headers)) for _ in range(2))
    if first == second:
        return None
    return _header_lost("Idempotency-Key", "a put repeated under one key was applied twice")


def _request_id(probe: Probe) -> Finding | None:
    name, sent = "X-Request-Id", os.urandom(8).hex()
    got = probe.ask("GET", by_query(probe.key(sent)), headers={name: sent}).headers.get(name)
    if got == sent:
        return None
    message = f"{name} was sent back as {got or 'nothing'}, not as it was sent"
    return warning("request_header_lost", message, header=name)


def _accept(probe: Probe) -> Finding | None:
    target = f"/v1/kv{encode_query([('prefix', probe.scratch), ('keys', '1')])}"
    got = probe.ask("GET", target, headers={"Accept": NDJSON}).headers.get("Content-Type", "")
    if got.startswith(NDJSON):
        return None
    return _header_lost("Accept", f"a list requested as NDJSON came as {got}")


def _range(probe: Probe) -> Finding | None:
    key = probe.key("range")
    probe.store(key, b"0123456789")
    reply = probe.ask("GET", by_query(key), headers={"Range": "bytes=2-3"})
    if (reply.status, reply.body) == (206, b"23"):
        return None
    message = f"Range does not arrive: two bytes of a value were requested, and {len(reply.body)} came"
    return warning("request_header_lost", message, header="Range")


def _last_event_id(probe: Probe) -> Finding | None:
    """A stream that resumes before a write starts with that write."""
    key = probe.key("resumed")
    cursor = f"{_revision(probe.store(key, b'1')) - 1}-{probe.status.get('epoch', '')}"
    headers = {"Accept": SSE, "Last-Event-ID": cursor}
    with probe.watch(f"/v1/subscribe{encode_query([('key', key)])}", headers) as stream:
        if not stream.wait_for(lambda: b"event: sync" in stream.text, PROMPT_SECONDS):
            return None  # another check reports a stream that does not start
        if b"event: put" in stream.text.partition(b"event: sync")[0]:
            return None
    message = "a stream that should resume started over, so events in between are lost"
    return _header_lost("Last-Event-ID", message)


def response_headers(probe: Probe) -> Iterator[Finding]:
    """The response headers of a value arrive: type, revision, expiry, caching."""
    key = probe.key("headers")
    revision = _revision(probe.store(key, b"1", {"Content-Type": _KEPT_TYPE}))
    headers = probe.ask("GET", by_query(key)).headers
    kept = {"ETag": f'"{revision}"', "Content-Type": _KEPT_TYPE}
    wanted = (*kept, "Cache-Control", *_OTHER_HEADERS)
    lost = [name for name in wanted if not (got := headers.get(name)) or got != kept.get(name, got)]
    if "no-cache" not in headers.get("Cache-Control", "no-cache"):
        lost.append("Cache-Control")
    for name in lost:
        got = headers.get(name)
        how = "does not arrive" if got is None else f"arrives as {got}"
        yield failed("response_header_lost", f"{name} of a value {how}", header=name)
    if not lost:
        yield ok(f"{', '.join(wanted[:3])} and {len(wanted) - 3} others arrive unchanged")


def compression(probe: Probe) -> Iterator[Finding]:
    """Clients that accept compression still get strong ETags, which If-Match needs."""
    weakened = []
    for media_type in _COMPRESSIBLE:
        key = probe.key(f"compressed-{media_type.rpartition('/')[2]}")
        probe.store(key, b"a" * _COMPRESSIBLE_BYTES, {"Content-Type": media_type})
        headers = probe.ask("GET", by_query(key), headers={"Accept-Encoding": "gzip, br, zstd"}).headers
        if headers.get("ETag", "").startswith("W/"):
            weakened.append(f"{media_type} comes with ETag {headers.get('ETag')}")
    if weakened:
        message = f"compression weakens ETags: {', '.join(weakened)}"
        yield failed("etag_weakened", message, types=len(weakened))
    else:
        yield ok("ETags stay strong for clients that accept compression")


def methods(probe: Probe) -> Iterator[Finding]:
    """Every method arrives."""
    key = probe.key("methods")
    probe.store(key, b'{"a": 1}', {"Content-Type": JSON})
    target = by_query(key)
    answers = {
        "PATCH": probe.ask("PATCH", target, b'{"b": 2}', {"Content-Type": MERGE_PATCH}),
        "HEAD": probe.ask("HEAD", target),
        "OPTIONS": probe.ask("OPTIONS", target),
        "POST": probe.ask("POST", "/v1/batch", b'{"ops": []}', {"Content-Type": JSON}),
        "DELETE": probe.ask("DELETE", target),
    }
    refused = [name for name, reply in answers.items() if reply.status >= 300 and reply.code is None]
    for name in refused:
        message = f"{name} was answered {answers[name].shown} by something other than kvstore"
        yield failed("method_refused", message, method=name)
    if not refused:
        yield ok(f"GET, PUT, {', '.join(answers)} arrive")


def keys(probe: Probe) -> Iterator[Finding]:
    """Keys in the path arrive unchanged. They are written by ``?key=`` and read by the path, so that nothing
    is written under a name that a proxy changed."""
    moved, unread = [], []
    for number, (shown, key, path) in enumerate(_awkward_keys(probe)):
        value = b"value %d" % number
        if probe.put(key, value).json().get("key") != key:
            unread.append(shown)
        elif probe.ask("GET", path).body != value:
            moved.append(shown)
    if unread:
        yield failed("query_rewritten", f"keys in ?key= are changed on the way: {', '.join(unread)}")
    if moved:
        message = f"keys in the path are changed on the way: {', '.join(moved)}"
        yield failed("path_rewritten", message, keys=moved)
    if not (unread or moved):
        yield ok("keys with //, ., %2F, %25, +, spaces and letters of any language arrive unchanged")


def _awkward_keys(probe: Probe) -> Iterator[tuple[str, str, str]]:
    """Keys that proxies tend to normalise: how to show the key, the key, and its path."""
    for name in ("a//b", "a/./b", "a/b/../c", "a/", "50%", "a%2Fb", "a+b", "a b", "Zürich/日本", ";x=1&y=?#"):
        yield f"{name} (encoded)", probe.key(name), by_path(probe.key(name))
    long = probe.key("long/").ljust(511, "-")
    yield "a key of 511 bytes", long, by_path(long)
    plain = f"/v1/kv/{probe.scratch}"
    for raw, name in (("p//q", "p//q"), ("p%2Fq", "p/q"), ("p%252Fq", "p%2Fq"), ("p+q", "p+q"), ("p/", "p/")):
        yield raw, probe.key(name), plain + raw


def bodies(probe: Probe) -> Iterator[Finding]:
    """The largest value and the largest batch get through."""
    limits = probe.status.get("limits", {})
    sizes = {"value": limits.get("value_bytes", 0), "batch": limits.get("batch_bytes", 0)}
    targets = {"value": ("PUT", by_query(probe.key("announced"))), "batch": ("POST", "/v1/batch")}
    too_large = {}
    silent = False
    for what, size in sizes.items():
        status = probe.expect_continue(*targets[what], size)
        silent = silent or status == 0
        if status not in (0, 100):
            too_large[what] = status
    if too_large:
        passing = _largest_passing(probe, max(sizes.values()))
        what, status = next(iter(too_large.items()))
        yield failed(
            "body_limit",
            f"a proxy refuses a body of {sizes[what]} bytes, the largest {what}, with {status}; up to "
            f"{passing} bytes get through",
            passing_bytes=passing,
        )
        if "value" in too_large:
            return
    if silent:
        yield warning("expect_ignored", f"Expect: 100-continue was not answered within {PROMPT_SECONDS:g} s")
    yield from _whole_value(probe, sizes["value"])


def _largest_passing(probe: Probe, refused: int) -> int:
    """About the largest body that gets through, found with Expect: 100-continue, so that none is sent."""
    low = 0
    for _ in range(_SEARCH_STEPS):
        middle = (low + refused) // 2
        status = probe.expect_continue("POST", "/v1/batch", middle)
        if status == 0:
            break  # each further step would take as long
        if status == 413:
            refused = middle
        else:
            low = middle
    return low


def _whole_value(probe: Probe, size: int) -> Iterator[Finding]:
    """A value of the largest size is stored and read back. It is random, so that any compression or
    conversion shows."""
    key = probe.key("large")
    value = os.urandom(size)
    took_ms = probe.store(key, value).seconds * 1000
    if probe.ask("GET", by_query(key)).body != value:
        yield failed("body_changed", f"a value of {size} bytes was read back changed")
    else:
        message = f"a value of {size} bytes, the largest, was stored in {took_ms:.0f} ms and read back intact"
        yield ok(message, value_bytes=size)


def fresh_reads(probe: Probe) -> Iterator[Finding]:
    """A read after a write sees it, even if the key was read as missing before."""
    key = probe.key("fresh")
    for target in (by_query(key), by_path(key)):
        probe.ask("GET", target)
    for number in range(_CACHE_ROUNDS):
        value = b"%d" % number
        probe.store(key, value)
        for target in (by_query(key), by_path(key)):
            reply = probe.ask("GET", target)
            if reply.body != value:
                age = reply.headers.get("Age")
                old = f"an older state, {age} s old" if age else "an older state"
                yield failed("cached", f"a get right after a put was answered {reply.shown} with {old}")
                return
    yield ok(f"{2 * _CACHE_ROUNDS} gets right after puts all saw the new value")
