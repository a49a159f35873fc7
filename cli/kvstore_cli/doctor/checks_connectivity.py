"""Checks of the connection to the service, and of the service itself: its daemon, clocks and disk."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from time import monotonic, time
from typing import Any

from kvstore_cli.doctor.findings import Finding, failed, note, ok, warning
from kvstore_cli.doctor.probe import Probe, ProbeResponse, by_query, percentiles
from kvstore_cli.http_client.connection import reason, speaks_tls
from kvstore_cli.http_client.errors import https_wanted
from kvstore_core.addresses import is_loopback
from kvstore_core.distribution import installed_version
from kvstore_core.errors import KvError

_ROUND_TRIPS = 15
WRITES = 40
# what etcd requires of a disk
_SLOW_SYNC_MS = 10.0
_SLOW_COMMIT_MS = 20.0
_SKEW_SECONDS = 2.0
_CERTIFICATE_SECONDS = 14 * 86_400.0


def reachable(probe: Probe) -> Iterator[Finding]:
    """The name resolves, a connection succeeds, and kvstore answers. Raises ``unavailable``,
    ``timed_out``, or ``not_allowed`` for a certificate that is not trusted."""
    begin = monotonic()
    try:
        addresses = socket.getaddrinfo(probe.host, probe.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise KvError("unavailable", f"cannot resolve {probe.host}: {reason(error)}") from error
    named = monotonic()
    try:
        probe.connect().close()
    except OSError as error:
        where = f"{probe.host}:{probe.port}"
        raise KvError("unavailable", f"cannot connect to {where}: {reason(error)}") from error
    connected = monotonic()
    reply = _first_answer(probe)
    if (problem := _not_ours(reply)) is not None:
        yield problem
        return
    probe.server = reply.headers.get("Server", "")
    median, slow = percentiles([probe.ask("GET", "/livez").seconds for _ in range(_ROUND_TRIPS)])
    probe.round_trip = median / 1000
    name_ms, connect_ms = round((named - begin) * 1000, 2), round((connected - named) * 1000, 2)
    how = "connection with TLS" if probe.secure else "connection"
    front = f", behind {probe.server}" if probe.server not in ("", "kvstore") else ""
    yield ok(
        f"{addresses[0][4][0]} port {probe.port}: name {name_ms} ms, {how} {connect_ms} ms, "
        f"round trip {median} ms (p99 {slow} ms){front}",
        name_ms=name_ms,
        connect_ms=connect_ms,
        round_trip_ms=median,
        round_trip_p99_ms=slow,
        server=probe.server,
    )


def _first_answer(probe: Probe) -> ProbeResponse:
    try:
        return probe.ask("GET", "/livez")
    except KvError as error:
        if not probe.secure and speaks_tls(probe.host, probe.port):
            message = "that port speaks TLS; write the address with https://"
            raise KvError("unavailable", message) from error
        raise


def _not_ours(reply: ProbeResponse) -> Finding | None:
    """The failure if something other than the facade answered."""
    if reply.status == 200 and reply.json().get("status") == "alive":
        return None
    if (advice := https_wanted(reply.status, reply.headers, reply.body)) is not None:
        return failed("wants_https", advice)
    if reply.code == "not_allowed":
        return failed("host_refused", f"kvstore refuses the host name: {reply.json().get('detail', '')}")
    if reply.status in (401, 403, 407):
        return failed("login_wanted", f"a proxy in front of kvstore refuses this machine ({reply.shown})")
    if reply.status in (502, 503, 504):
        return failed("no_upstream", f"a proxy answered {reply.shown} instead of kvstore")
    return failed("not_kvstore", f"/livez was answered {reply.shown} by something other than kvstore")


def daemon(probe: Probe) -> Iterator[Finding]:
    """The facade reaches a working daemon; its version."""
    ready = probe.ask("GET", "/readyz?verbose=1")
    if ready.code == "bad_request":  # an older version without ?verbose
        ready = probe.ask("GET", "/readyz")
    if ready.status != 200:
        detail = ready.json().get("detail", "")
        failing = {check["name"] for check in ready.json().get("checks", ()) if check["status"] == "failed"}
        cause = "service_fails" if "cluster" in failing else "daemon_away"
        yield failed(cause, f"the facade is not ready ({ready.shown}): {detail}")
        return
    reply = probe.ask("GET", "/v1/status")
    if reply.code in ("unauthenticated", "not_allowed"):  # the check of access says more
        yield ok("the facade reaches a daemon, which tells its state only to whoever has a token")
        return
    if reply.status != 200 or "version" not in reply.json():
        yield failed("daemon_away", f"the status is not available ({reply.shown})")
        return
    probe.status = status = reply.json()
    yield from _service_warnings(ready.json().get("checks", []))
    yield from _judged(status)
    told = (
        f", up {status['uptime']:.0f} s, {status['keys']} keys, sync {status['sync']}"
        if "uptime" in status
        else "; the rest is told to whoever has the grant monitor"
    )
    yield ok(
        f"kvstore {status['version']}, revision {status.get('revision')}{told}", version=status["version"]
    )


def _service_warnings(checks: list[dict[str, Any]]) -> Iterator[Finding]:
    """The service's own warnings, without that of refused writes, which the status shows."""
    for check in checks:
        if check.get("status") == "warning" and check.get("name") != "writes":
            cause = "store_full" if check["name"] in ("disk", "store") else "service_warns"
            yield warning(cause, f"{check['name']}: {check.get('message')}", name=check["name"])


def _judged(status: dict[str, Any]) -> Iterator[Finding]:
    own = installed_version()
    if status["version"] != own:
        message = f"the service is kvstore {status['version']}, this command is {own}"
        yield warning("version_differs", message, own=own, version=status["version"])
    if status.get("sync", "always") != "always":
        message = f"sync is {status['sync']}: a power cut loses acknowledged writes"
        yield warning("weak_sync", message)
    for found in (status.get("cluster") or {}).get("warnings", ()):
        if found["about"] == "version":  # the others are among those of /readyz
            yield note(found["message"], about=found["about"])
    if status.get("writes_refused") is not None:
        yield failed("store_full", f"writes are refused: {status['writes_refused'].get('message')}")


def clock(probe: Probe) -> Iterator[Finding]:
    """The clock of the server that answers (``Date``, in whole seconds) against the local one."""
    before = time()
    reply = probe.ask("GET", "/livez")
    after = time()
    try:
        there = parsedate_to_datetime(reply.headers.get("Date", "")).timestamp()
    except ValueError:
        yield note("the responses have no Date, so the server's clock cannot be compared")
        return
    yield compared("the server's clock", there, 1.0, before, after)


def daemon_clock(probe: Probe) -> Iterator[Finding]:
    """The daemon's clock, by ``modified_at`` of a write: TTLs depend on it."""
    key = probe.key("clock")
    before = time()
    probe.store(key, b"tick")
    after = time()
    stamp = probe.ask("GET", by_query(key, format="json")).json().get("modified_at")
    if not isinstance(stamp, str):
        yield failed("no_answer", "a key that was just stored could not be read as JSON")
        return
    there = datetime.fromisoformat(stamp).timestamp()
    yield compared("the daemon's clock", there, 0.001, before, after)


def compared(whose: str, stamp: float, step: float, before: float, after: float) -> Finding:
    """Compare ``stamp``, rounded down to multiples of ``step``, with the local clock ``before`` and ``after``
    it was made; all in seconds. A difference within this uncertainty is none."""
    skew = max(stamp - after, 0.0) + min(stamp + step - before, 0.0)
    uncertainty = step + after - before
    figures = {"skew_seconds": round(skew, 3), "doubt_seconds": round(uncertainty, 3)}
    if abs(skew) > _SKEW_SECONDS:
        direction = "ahead of" if skew > 0 else "behind"
        message = f"{whose} is at least {abs(skew):.1f} s {direction} the local one"
        return warning("clock_skew", message, **figures)
    return ok(f"{whose} agrees with the local one to within {abs(skew) + uncertainty:.3f} s", **figures)


def protocol(probe: Probe) -> Iterator[Finding]:
    """The HTTP version for browsers: with 1.1 a browser opens six connections, so six streams use them up."""
    if not probe.secure:
        yield note("plain HTTP: a browser opens 6 connections to one host, and each event stream takes one")
        return
    import ssl

    context = ssl.create_default_context(cafile=probe.ca_file)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection((probe.host, probe.port), probe.timeout) as plain,
        context.wrap_socket(plain, server_hostname=probe.host) as secured,
    ):
        chosen, tls = secured.selected_alpn_protocol() or "http/1.1", secured.version()
    if chosen == "h2":
        yield ok(f"{tls}, HTTP/2: a browser can open many event streams", protocol=chosen)
    else:
        yield note(
            f"{tls}, HTTP/1.1 only: a browser opens 6 connections to one host, and each stream takes one "
            "(nginx: http2 on the listen line)",
            protocol=chosen,
        )


def certificate(probe: Probe) -> Iterator[Finding]:
    """How long the certificate is valid; or whether there should be one."""
    if not probe.secure:
        if is_loopback(probe.host):
            yield ok("plain HTTP, which does not leave this machine")
        else:
            yield warning("no_tls", "plain HTTP: all on the way can read values and tokens, and change them")
        return
    import ssl

    with closing(probe.connect()) as connection:
        assert isinstance(connection.sock, ssl.SSLSocket)  # noqa: S101 - what a secure probe connects with
        found = connection.sock.getpeercert() or {}
    left = ssl.cert_time_to_seconds(str(found["notAfter"])) - time()
    message = f"the certificate is trusted, and valid for {left / 86_400:.1f} days"
    if left < _CERTIFICATE_SECONDS:
        yield warning("certificate_ends", message, left_seconds=round(left))
    else:
        yield ok(message, left_seconds=round(left))


def durable_writes(probe: Probe) -> Iterator[Finding]:
    """How much longer a put takes than a get, and how much of that is the disk, by the daemon's own
    figures of its commits."""
    key = probe.key("disk")
    puts: list[float] = []
    gets: list[float] = []
    before = _syncs(probe)
    for number in range(WRITES):
        puts.append(probe.store(key, b"%d" % number).seconds)
        gets.append(probe.ask("GET", by_query(key)).seconds)
    after = _syncs(probe)
    (put_median, put_p99), (get_median, get_p99) = percentiles(puts), percentiles(gets)
    commits, synced = after[0] - before[0], after[1] - before[1]
    # where a cluster keeps the store its members sync, and the daemon does not see it
    sync = round(synced / commits * 1000, 2) if commits and synced else None
    extra = max(0.0, round(put_median - get_median, 2))
    message = (
        f"{WRITES} sequential puts: p50 {put_median} ms, p99 {put_p99} ms, {extra} ms more than a get "
        f"(p50 {get_median} ms)" + ("" if sync is None else f"; the disk took {sync} ms for each commit")
    )
    figures = {
        "writes": WRITES,
        "put_p50_ms": put_median,
        "put_p99_ms": put_p99,
        "get_p50_ms": get_median,
        "get_p99_ms": get_p99,
        "sync_ms": sync,
    }
    if sync is not None and sync > _SLOW_SYNC_MS:
        yield warning("slow_disk", message, **figures)
    elif extra > _SLOW_COMMIT_MS:
        yield warning("slow_writes" if sync is not None else "slow_disk", message, **figures)
    else:
        yield ok(message, **figures)


def _syncs(probe: Probe) -> tuple[int, float]:
    """The number of commits since the daemon started, and the seconds that their syncs took; zeros from a
    daemon that does not report them or does not wait for syncs."""
    commits = probe.ask("GET", "/v1/status").json().get("commits", {})
    return commits.get("count", 0), commits.get("sync_seconds", {}).get("sum", 0.0)
