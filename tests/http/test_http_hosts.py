"""Under which names the service is used: a stranger's that leads to this machine is refused."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.addresses import is_loopback
from kvstore_http.protocol.origins import allowed_hosts, host_of
from support.servers import Daemon, Facade, Serve
from support.session import Session, assert_problem

STRANGER = "rebound.example"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3:80", "localhost", "LocalHost:5000", "localhost.", "[::1]", "[::1]:9"]
)
def test_on_loopback_the_machine_s_own_names_are_taken(session: Session, host: str) -> None:
    assert session.get("/v1/status", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [STRANGER, f"{STRANGER}:5000", "127.0.0.1.example", "localhost.example:1", "10.0.0.1", "[::2]:1"],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_on_loopback_other_names_are_refused_whatever_is_asked(
    session: Session, host: str, method: str
) -> None:
    for target in ("/v1/kv/k", "/v1/subscribe", "/livez", "/nowhere"):
        answer = session.request(method, target, b"v" if method == "PUT" else None, headers={"Host": host})
        assert answer.status == 403
        assert_problem(answer, "not_allowed")
        assert "--allowed-hosts" in answer.json["detail"]


def test_a_request_of_http_1_0_without_a_host_is_taken(session: Session) -> None:
    address = ("127.0.0.1", session._connection.port)
    with closing(socket.create_connection(address)) as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.0 200")


def test_names_that_are_listed_are_taken_besides_the_own(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    session = Session(start_facade(daemon, allowed_hosts="kv.example.org,Other.example").url)
    with closing(session):
        for host in ("kv.example.org", "KV.example.org:443", "other.example", "localhost"):
            assert session.get("/livez", host=host).status == 200
        assert session.get("/livez", host=STRANGER).status == 403


def test_a_star_takes_any_name(daemon: Daemon, start_facade: Callable[..., Facade]) -> None:
    with closing(Session(start_facade(daemon, allowed_hosts="*").url)) as session:
        assert session.get("/livez", host=STRANGER).status == 200


def test_beyond_loopback_any_name_is_taken_until_some_are_listed(start_serve: Callable[..., Serve]) -> None:
    def status(**options: str) -> int:
        service = start_serve(http="0.0.0.0:0", allow_anonymous=True, workers=1, **options)
        port = urlsplit(service.url).port
        with closing(Session(f"http://127.0.0.1:{port}")) as session:
            assert session.get("/livez").status == 200
            return session.get("/livez", host=STRANGER).status

    assert status() == 200
    assert status(allowed_hosts="kv.example.org") == 403


@given(st.ip_addresses(network="127.0.0.0/8"), st.integers(1, 65535))
def test_every_loopback_address_with_every_port_is_the_machine_s_own(address: object, port: int) -> None:
    assert is_loopback(host_of(f"{address}:{port}"))


@given(st.text(min_size=1))
def test_any_text_has_a_verdict(text: str) -> None:
    assert is_loopback(host_of(text)) in (True, False)
    assert allowed_hosts("127.0.0.1:0", ()) == frozenset()
