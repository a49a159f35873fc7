"""What the doctor says of access, of a service with a script, and of real ZeroMQ sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from time import time
from typing import Any

import pytest
import zmq

from kvstore_cli.config.resolve import resolve
from kvstore_cli.config.token_source import GivenToken
from kvstore_cli.doctor.checks_access import SOON_SECONDS, access
from kvstore_cli.doctor.findings import FAILED, NOTE, OK, WARNING, Finding
from kvstore_cli.doctor.probe import SCRATCH, Probe
from kvstore_cli.top.overview import stamp
from kvstore_core.access.tokens import new_token
from support.scripted import Script, answer, problem, scripted

pytestmark = pytest.mark.slow

ANONYMOUS = {"name": "anonymous", "grants": []}
CI = {"name": "ci", "grants": [f"rw:{SCRATCH}"]}


class Front:
    """A service where a token makes one ``known``, and no token makes one ``strangers``; None: refused."""

    def __init__(self, script: Script) -> None:
        self.url = script.url
        self.known: dict[str, Any] | None = CI
        self.strangers: dict[str, Any] | None = ANONYMOUS
        self.metrics = problem("unauthenticated")
        self.at = time()
        script.plays = [self.play]

    def play(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/metrics":
            self.metrics(handler)
            return
        who = self.known if "Authorization" in handler.headers else self.strangers
        if who is None:
            problem("unauthenticated", detail="this token has expired")(handler)
        else:
            handler.date_time_string = lambda *_: formatdate(self.at, usegmt=True)  # type: ignore[method-assign]
            answer(json.dumps(who).encode())(handler)

    def probe(self, *, token: bool = True, ports: tuple[int, ...] = ()) -> Probe:
        configuration = resolve({"url": self.url}, "client", environ={"KVSTORE_CONFIG": "/dev/null"})
        tokens = GivenToken(configuration, new_token().text, "the test") if token else None
        return Probe(self.url, 10, 1, tokens=tokens, native_ports=ports)


@pytest.fixture
def front() -> Iterator[Front]:
    with scripted() as script:
        yield Front(script)


def found(probe: Probe) -> list[Finding]:
    try:
        return list(access(probe))
    finally:
        probe.close()


def worst(findings: list[Finding]) -> list[tuple[str, str | None]]:
    """What is not simply well."""
    return [(finding.status, finding.cause) for finding in findings if finding.status != OK]


def test_a_token_that_arrives_and_strangers_that_may_nothing_are_well(front: Front) -> None:
    probe = front.probe()
    assert worst(found(probe)) == []
    assert probe.shortcoming == ""


def test_access_that_is_off_is_well_on_this_machine(front: Front) -> None:
    front.known = front.strangers = {"name": "", "grants": []}
    assert worst(found(front.probe(token=False))) == []
    front.url = front.url.replace("127.0.0.1", "localhost")
    assert worst(found(front.probe())) == [(NOTE, None)]  # a token that nobody looks at


def test_a_header_that_is_stripped_is_told_from_a_token_that_is_refused(front: Front) -> None:
    front.known = ANONYMOUS
    probe = front.probe()
    assert worst(found(probe)) == [(FAILED, "request_header_lost")]
    assert probe.shortcoming
    front.known = None
    probe = front.probe()
    assert worst(found(probe)) == [(FAILED, "token_refused")]
    assert probe.shortcoming


def test_a_front_that_adds_a_credential_for_everybody_is_found(front: Front) -> None:
    front.strangers = CI
    assert worst(found(front.probe())) == [(FAILED, "credential_added")]


def test_what_strangers_may_is_said(front: Front) -> None:
    front.strangers = {"name": "anonymous", "grants": ["ro:public/"]}
    findings = found(front.probe())
    assert worst(findings) == [(NOTE, None)]
    assert "ro:public/" in findings[0].message
    front.strangers = ANONYMOUS
    front.metrics = answer(b"kvstore_up 1")
    assert worst(found(front.probe())) == [(WARNING, "metrics_open")]


@pytest.mark.parametrize(("left", "cause"), [(SOON_SECONDS - 60, "token_ends"), (SOON_SECONDS + 60, None)])
def test_the_end_of_a_token_is_seen_by_the_clock_of_the_service(
    front: Front, left: float, cause: str | None
) -> None:
    front.at = time() + 10 * SOON_SECONDS
    front.known = {**CI, "expires_at": stamp(front.at + left)}
    assert [cause for _, cause in worst(found(front.probe()))] == ([cause] if cause else [])


def test_without_a_token_or_its_grants_what_needs_keys_is_skipped(front: Front) -> None:
    probe = front.probe(token=False)
    assert worst(found(probe)) == [(NOTE, None)]
    assert "token" in probe.shortcoming
    front.known = {"name": "ci", "grants": [f"ro:{SCRATCH}", "monitor"]}
    probe = front.probe()
    assert worst(found(probe)) == [(NOTE, None)]
    assert f"rw:{SCRATCH}" in probe.shortcoming


def test_a_zeromq_port_that_asks_for_no_key_is_found(front: Front) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as null, context.socket(zmq.XPUB) as curve:
        public, secret = zmq.curve_keypair()
        curve.curve_server, curve.curve_publickey, curve.curve_secretkey = True, public, secret
        ports = tuple(socket.bind_to_random_port("tcp://127.0.0.1") for socket in (null, curve))
        http = int(front.url.rpartition(":")[2])
        findings = found(front.probe(ports=(*ports, http, 1)))
        assert worst(findings) == [(FAILED, "zeromq_open")]
        spoken = [each.figures["mechanism"] for each in findings if "mechanism" in each.figures]
        assert spoken == ["NULL", "CURVE"]
        # where access is off, this machine may speak to it
        front.known = front.strangers = {"name": "", "grants": []}
        assert worst(found(front.probe(ports=ports, token=False))) == []
