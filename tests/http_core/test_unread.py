"""What a worker keeps for clients that do not read what they asked for."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from support.servers import Service, children
from support.session import Session, connect

READERS = 24
VALUE = b"v" * 1_000_000
MOST_BYTES = 3 * 1024 * 1024
"""The buffer of a connection, a value, and what Python and the allocator add; it was 18 MiB."""

NDJSON = "Accept: application/x-ndjson"


@pytest.fixture(scope="module")
def loaded(shared_service: Service) -> Service:
    """A service of one worker that holds 30 values of 1 MB."""
    with closing(Session(shared_service.url)) as session:
        for number in range(30):
            session.put(f"/v1/kv/big/{number}", VALUE)
            session.put("/v1/kv/changed", VALUE)
    return shared_service


def private_bytes(pid: int) -> int:
    """The memory of a process that is its own: RssAnon."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(kib) * 1024


@pytest.mark.parametrize(
    ("target", "header"),
    [
        ("/v1/kv", NDJSON),
        ("/v1/kv?limit=1000", ""),
        ("/all", ""),
        ("/v1/kv/big/1", ""),
        ("/v1/history/changed?limit=1000", ""),
    ],
)
def test_a_client_that_does_not_read_costs_no_more_than_its_buffer(
    loaded: Service, target: str, header: str
) -> None:
    session = Session(loaded.url)
    with ExitStack() as stack:
        stack.callback(session.close)
        facade = loaded.facade.pid
        worker = next(iter(children(facade)), facade)
        before = private_bytes(worker)
        most = 0
        for _ in range(READERS):
            sock = stack.enter_context(connect(loaded.url, 4096))
            head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{header}\r\n"
            sock.sendall((head + "\r\n" * bool(header)).encode())
            sock.recv(16)  # it is being answered
        for _ in range(100):  # all that can be read ahead has been read by the time these are answered
            assert session.get("/v1/kv/big/0").status == 200
            most = max(most, private_bytes(worker))
    assert (most - before) / READERS < MOST_BYTES, f"{(most - before) / READERS / 2**20:.1f} MiB each"
