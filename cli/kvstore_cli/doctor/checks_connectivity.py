"""Checks of the way to the service, and of the service itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from time import monotonic, time
from typing import Any

from kvstore_cli.doctor.findings import Finding, failed, note, ok, warning
from kvstore_cli.doctor.probe import Probe, Response, by_query, percentiles
from kvstore_cli.http_client.connection import reason
from kvstore_core.errors import KvError

_ROUND_TRIPS = 15
_SKEW_SECONDS = 2.0


def reachable(probe: Probe) -> Iterator[Finding]:
    """Name, connection, TLS, and that it is kvstore that answers. Raises ``unavailable``,
    ``timed_out``, or ``not_allowed`` for a certificate that is not trusted."""
    begin = monotonic()
    try:
        addresses = socket.getaddrinfo(probe.host, probe.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise KvError(
            "unavailable", f"the name {probe.host} does not lead anywhere: {reason(error)}"
        ) from error
    named = monotonic()
    try:
        probe.connect().close()
    except OSError as error:
        raise KvError(
            "unavailable", f"{probe.host}:{probe.port} does not take connections: {reason(error)}"
        ) from error
    connected = monotonic()
    reply = probe.ask("GET", "/livez")
    if (problem := _not_ours(reply)) is not None:
        yield problem
        return
    probe.server = reply.headers.get("Server", "")
    median, slow = percentiles([probe.ask("GET", "/livez").seconds for _ in range(_ROUND_TRIPS)])
    probe.round_trip = median / 1000
    name_ms, connect_ms = round((named - begin) * 1000, 2), round((connected - named) * 1000, 2)
    how = "connection with TLS" if probe.secure else "connection"
    front = f"; {probe.server} stands in front" if probe.server not in ("", "kvstore") else ""
    yield ok(
        f"{addresses[0][4][0]} port {probe.port}: name {name_ms} ms, {how} {connect_ms} ms, "
        f"round trip {median} ms (p99 {slow} ms){front}",
        name_ms=name_ms,
        connect_ms=connect_ms,
        round_trip_ms=median,
        round_trip_p99_ms=slow,
        server=probe.server,
    )


def _not_ours(reply: Response) -> Finding | None:
    """What is wrong if the facade did not say that it is alive."""
    if reply.status == 200 and reply.json().get("status") == "alive":
        return None
    if reply.code == "not_allowed":
        return failed("host_refused", f"kvstore refuses the name: {reply.json().get('detail', '')}")
    if reply.status in (401, 403, 407):
        return failed("login_wanted", f"something in front of kvstore refuses this machine ({reply.shown})")
    if reply.status in (502, 503, 504):
        return failed("no_upstream", f"something answers {reply.shown} in place of kvstore")
    return failed("not_kvstore", f"/livez was answered with {reply.shown}, and not by kvstore")


def daemon(probe: Probe) -> Iterator[Finding]:
    """Whether the facade reaches a daemon that can do its work, and of which version it is."""
    ready = probe.ask("GET", "/readyz?verbose=1")
    if ready.code == "bad_request":  # of a version that only says whether it is ready
        ready = probe.ask("GET", "/readyz")
    if ready.status != 200:
        detail = ready.json().get("detail", "")
        yield failed("daemon_away", f"the facade is not ready ({ready.shown}): {detail}")
        return
    reply = probe.ask("GET", "/v1/status")
    if reply.status != 200 or "version" not in reply.json():
        yield failed("daemon_away", f"the status cannot be had ({reply.shown})")
        return
    probe.status = status = reply.json()
    yield from _service_warnings(ready.json().get("checks", []))
    yield from _judged(status)
    yield ok(
        f"kvstore {status['version']}, up {status.get('uptime', 0):.0f} s, "
        f"revision {status.get('revision')}, {status.get('keys')} keys, sync {status.get('sync')}",
        version=status["version"],
    )


def _service_warnings(checks: list[dict[str, Any]]) -> Iterator[Finding]:
    """What the service itself warns of; refused writes are judged by the status."""
    for check in checks:
        if check.get("status") == "warning" and check.get("name") != "writes":
            cause = "store_full" if check["name"] in ("disk", "store") else "service_warns"
            yield warning(cause, f"{check['name']}: {check.get('message')}", name=check["name"])


def _judged(status: dict[str, Any]) -> Iterator[Finding]:
    own = version("kvstore")
    if status["version"] != own:
        message = f"the service is kvstore {status['version']}, this command is {own}"
        yield warning("version_differs", message, own=own, version=status["version"])
    if status.get("sync") != "always":
        message = f"sync is {status.get('sync')}: a power cut loses writes that were acknowledged"
        yield warning("weak_sync", message)
    if status.get("writes_refused") is not None:
        yield failed("store_full", f"writes are refused: {status['writes_refused'].get('message')}")


def clock(probe: Probe) -> Iterator[Finding]:
    """The clock of what answers, by ``Date``, which has whole seconds, against the one here."""
    before = time()
    reply = probe.ask("GET", "/livez")
    after = time()
    try:
        there = parsedate_to_datetime(reply.headers.get("Date", "")).timestamp()
    except ValueError:
        yield note("the answers have no Date, so the clock in front cannot be compared")
        return
    yield compared("the clock of what answers", there, 1.0, before, after)


def daemon_clock(probe: Probe) -> Iterator[Finding]:
    """The daemon's clock, by the time that it stamps on a write: TTLs and ``modified_at`` go by it."""
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
    """A stamp cut to multiples of ``step``, made somewhen between two moments of the clock here; all in
    seconds. What differs by less than that leaves open is no difference."""
    skew = max(stamp - after, 0.0) + min(stamp + step - before, 0.0)
    doubt = step + after - before
    figures = {"skew_seconds": round(skew, 3), "doubt_seconds": round(doubt, 3)}
    if abs(skew) > _SKEW_SECONDS:
        direction = "ahead of" if skew > 0 else "behind"
        message = f"{whose} is at least {abs(skew):.1f} s {direction} the one here"
        return warning("clock_skew", message, **figures)
    return ok(f"{whose} agrees with the one here to within {abs(skew) + doubt:.3f} s", **figures)


def protocol(probe: Probe) -> Iterator[Finding]:
    """Which HTTP browsers get: with 1.1 one of them opens six connections, and six streams take all."""
    if not probe.secure:
        yield note(
            "plain HTTP: a browser opens 6 connections to one name, and an event stream takes one of them; "
            "who is on the way can read along"
        )
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
        yield ok(f"{tls}, HTTP/2: a browser can hold many event streams", protocol=chosen)
    else:
        yield note(
            f"{tls}, HTTP/1.1 only: a browser opens 6 connections to one name, and an event stream takes one "
            "(nginx: http2 on the listen line)",
            protocol=chosen,
        )
