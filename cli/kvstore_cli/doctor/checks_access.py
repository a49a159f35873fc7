"""Checks of access: what strangers reach from here, and whether one's token arrives and holds."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from kvstore_cli.doctor.findings import Finding, failed, note, ok, warning
from kvstore_cli.doctor.probe import SCRATCH, Probe, ProbeResponse
from kvstore_cli.terminal.humanize import age
from kvstore_core.access.grants import KEY_VERBS, GrantSet, KeyRange, Need
from kvstore_core.access.principal import ANONYMOUS
from kvstore_core.addresses import is_loopback
from kvstore_core.units import MILLISECONDS

SOON_SECONDS = MILLISECONDS["w"] // 1000
"""A token that ends within this time is a warning."""

_NEEDED = tuple(Need(verb, KeyRange.of_prefix(SCRATCH)) for verb in KEY_VERBS)

_PROBE_SECONDS = 2.0

# what a peer of ZMTP says first (RFC 37): the signature and the version; who listens answers with its whole
# greeting, unless it knows already that the mechanisms differ
_SIGNATURE = bytes((0xFF, *8 * [0], 0x7F, 3, 0))
_GREETING_BYTES = 64
_MECHANISM_AT = slice(12, 32)


def access(probe: Probe) -> Iterator[Finding]:
    """Who one is here, who anybody is, and what lies open."""
    mine = probe.ask("GET", "/v1/whoami")
    if mine.code == "no_such_route":
        yield note("the service is older, and asks nobody who they are")
        return
    found = mine.json()
    if mine.status == 200 and not found.get("name"):
        yield from _without_access(probe)
        return
    strangers = probe.ask("GET", "/v1/whoami", anonymously=True)
    yield from _strangers(probe, strangers)
    yield from _native(probe, is_on=True)
    yield from _caller(probe, mine)
    if probe.has_token and not probe.secure and not is_loopback(probe.host):
        yield warning("token_in_the_clear", "the token crosses the network over plain HTTP, for all to read")


def _without_access(probe: Probe) -> Iterator[Finding]:
    if is_loopback(probe.host):
        yield ok("access is off: everybody on this machine may do everything")
    else:
        yield warning("open_to_all", "access is off: whoever reaches this address may do everything")
    if probe.has_token:
        yield note("a token was sent, and nobody looks at it")
    yield from _native(probe, is_on=False)


def _strangers(probe: Probe, reply: ProbeResponse) -> Iterator[Finding]:
    """What those without a credential may do here."""
    who = reply.json()
    if reply.status != 200 or who.get("name") != ANONYMOUS:
        yield failed(
            "credential_added",
            f"a request without a token comes as {who.get('name', reply.shown)!r}: something in front adds a "
            "credential to it",
        )
        return
    granted = who.get("grants", [])
    metrics = probe.ask("GET", "/metrics", anonymously=True).status == 200
    if granted:
        yield note(f"whoever has no token may: {', '.join(granted)}", grants=granted)
    elif metrics:
        yield warning("metrics_open", "/metrics is answered to whoever has no token")
    else:
        yield ok("without a token nothing is allowed")


def _native(probe: Probe, *, is_on: bool) -> Iterator[Finding]:
    """Whether the daemon's own ports can be reached from here, and whether they ask for a key."""
    for port in probe.native_ports:
        mechanism = _mechanism_of(probe.host, port)
        if mechanism is None:
            continue
        figures: dict[str, Any] = {"port": port, "mechanism": mechanism}
        if mechanism == "CURVE":
            yield ok(f"port {port} speaks ZeroMQ, and asks for a key", **figures)
        elif is_on or not is_loopback(probe.host):
            yield failed("zeromq_open", f"port {port} speaks ZeroMQ to everybody ({mechanism})", **figures)


def _mechanism_of(host: str, port: int) -> str | None:
    """The security mechanism of a ZeroMQ socket; None where there is none."""
    greeting = b""
    try:
        with socket.create_connection((host, port), _PROBE_SECONDS) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.sendall(_SIGNATURE)
            while len(greeting) < _GREETING_BYTES and (read := probe.recv(_GREETING_BYTES)):
                greeting += read
    except OSError:
        pass
    if len(greeting) < _MECHANISM_AT.stop or greeting[0] != 0xFF:
        return None
    return greeting[_MECHANISM_AT].rstrip(b"\0").decode("ascii", "replace")


def _caller(probe: Probe, reply: ProbeResponse) -> Iterator[Finding]:
    """Whether one's token arrives, holds, and gives the doctor what it needs."""
    if not probe.has_token:
        yield note("there is no token: checks that need one are skipped; 'kvstore login' stores one")
        probe.shortcoming = "needs a token"
        return
    if reply.status == 401:
        message = f"the token is refused: {reply.json().get('detail')}"
        yield failed("token_refused", message, code="unauthenticated")
        probe.shortcoming = "needs a token that is good"
        return
    who = reply.json()
    if who.get("name") == ANONYMOUS:
        yield failed("request_header_lost", "Authorization does not arrive", header="Authorization")
        probe.shortcoming = "needs a token that arrives"
        return
    yield from _end_of(who, reply)
    grants = GrantSet(who["grants"])
    missing = [need for need in _NEEDED if not grants.allow(need)]
    if missing:
        yield note(f"{who['name']} lacks rw:{SCRATCH}, so checks that use keys are skipped")
        probe.shortcoming = f"needs rw:{SCRATCH}"


def _end_of(who: dict[str, Any], reply: ProbeResponse) -> Iterator[Finding]:
    name = who["name"]
    if "expires_at" not in who:
        yield ok(f"the token of {name} arrives and has no end")
        return
    end = datetime.fromisoformat(who["expires_at"]).timestamp()
    left = end - _time_there(reply)
    figures = {"expires_at": who["expires_at"], "seconds_left": round(left)}
    message = f"the token of {name} ends at {who['expires_at']}, in {age(left)} by the server's clock"
    if left < SOON_SECONDS:
        yield warning("token_ends", message, **figures)
    else:
        yield ok(message, **figures)


def _time_there(reply: ProbeResponse) -> float:
    try:
        return parsedate_to_datetime(reply.headers.get("Date", "")).timestamp()
    except ValueError:
        return time()
