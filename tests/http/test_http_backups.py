"""``/v1/backups``: the store's backup over HTTP, in pieces that fit together, for one at a time."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore_client import Client, commands
from kvstore_daemon.storage.offline import no_progress
from kvstore_daemon.storage.offline.backup import check_backup
from kvstore_http import routes
from support.lengths import examples
from support.servers import Daemon, Facade, Service, children, wait_until
from support.session import Answer, Session, assert_problem, call, connect

pytestmark = pytest.mark.lmdb_only("a cluster has a backup of its own")


class Made(NamedTuple):
    """A backup that a service keeps, and its whole file."""

    session: Session
    address: str
    file: bytes

    def __repr__(self) -> str:
        return f"{self.address} of {len(self.file)} bytes"

    @property
    def tag(self) -> str:
        """The file's entity tag."""
        return f'"{hashlib.sha256(self.file).hexdigest()}"'


def fill(requests: str) -> None:
    """Store two megabytes."""
    values = random.Random(1)
    with Client(requests) as client:
        client.batch([commands.put(f"k{n}", values.randbytes(20_000)) for n in range(100)])


@pytest.fixture(scope="module")
def made(session: Session, shared_service: Service) -> Iterator[Made]:
    """The backup of the module's service."""
    fill(shared_service.requests)
    address = session.post("/v1/backups").headers["location"]
    yield Made(session, address, session.get(address).body)
    assert session.delete(address).status == 200


def test_the_file_is_a_whole_backup_of_the_revision_that_is_told(made: Made, tmp_path: Path) -> None:
    (told,) = made.session.get("/v1/backups").json["backups"]
    assert told["state"] == "ready"
    assert told["bytes"] == len(made.file)
    assert told["sha256"] == hashlib.sha256(made.file).hexdigest()
    path = tmp_path / "b.kvb"
    path.write_bytes(made.file)
    faults: list[str] = []
    with path.open("rb") as file:
        found = check_backup(file, faults.append, lambda _step: no_progress)
    assert not faults
    assert all(found[name] == told[name] for name in ("revision", "epoch", "keys"))
    assert found["events"] == told["log_events"]


def test_head_tells_all_but_the_file(made: Made) -> None:
    head, get = made.session.request("HEAD", made.address), made.session.get(made.address)
    of_one = ("date", "x-request-id")
    assert head.body == b""
    assert {name: text for name, text in head.headers.items() if name not in of_one} == {
        name: text for name, text in get.headers.items() if name not in of_one
    }
    assert head.headers["etag"] == made.tag
    assert head.headers["accept-ranges"] == "bytes"
    assert int(head.headers["content-length"]) == len(made.file)
    # RFC 9110 section 14.2: Range is for GET alone
    assert made.session.request("HEAD", made.address, headers={"Range": "bytes=0-1"}).status == 200


@st.composite
def ranges(draw: st.DrawFn, size: int = 4_000_000) -> tuple[str, slice | None]:
    """A Range header, and what it asks for as a slice; None where it asks for nothing that can be."""
    places = st.integers(0, size) | st.sampled_from([0, 1, 65_535, 65_536, 262_144, 10**17])
    first, last = draw(st.none() | places), draw(st.none() | places)
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    if first is None:
        return text, None if last is None else slice(-last, None) if last else slice(0, 0)
    if last is None:
        return text, slice(first, None)
    return text, slice(first, last + 1) if first <= last else None


@settings(max_examples=examples(60))
@given(asked=ranges())
def test_a_range_is_that_slice_of_the_file(made: Made, asked: tuple[str, slice | None]) -> None:
    text, wanted = asked
    answer = made.session.get(made.address, range=text, if_range=made.tag)
    if wanted is None:  # no range at all, which is ignored
        assert (answer.status, answer.body) == (200, made.file)
        return
    part = range(len(made.file))[wanted]
    if not part:
        assert_problem(answer, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{len(made.file)}"
        return
    assert answer.status == 206
    assert answer.body == made.file[wanted]
    assert answer.headers["content-range"] == f"bytes {part[0]}-{part[-1]}/{len(made.file)}"


@pytest.mark.parametrize("other", ['"0"', "W/" + '"0"', "Sat, 31 Jan 2026 12:00:00 GMT"])
def test_a_range_of_another_file_is_answered_with_all_of_this_one(made: Made, other: str) -> None:
    answer = made.session.get(made.address, range="bytes=5-9", if_range=other)
    assert (answer.status, answer.body) == (200, made.file)


def test_a_second_backup_is_refused_until_the_first_is_deleted(made: Made) -> None:
    refused = made.session.post("/v1/backups")
    problem = assert_problem(refused, "backup_exists")
    assert "retry-after" not in refused.headers, "it does not go away in a moment"
    assert made.address.endswith(problem["id"])
    assert "delete" in problem["detail"]


def test_a_client_that_leaves_takes_nothing_with_it(made: Made, shared_service: Service) -> None:
    for _ in range(5):
        sock = connect(shared_service.url, receive_buffer=4096)
        sock.sendall(f"GET {made.address} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        sock.close()
    assert made.session.get(made.address, range="bytes=7-").body == made.file[7:]


def test_what_is_no_backup_is_not_found(made: Made) -> None:
    for name in ("0" * 16, "..", "x", "%2e"):
        assert_problem(made.session.get(f"/v1/backups/{name}"), "not_found")
        assert_problem(made.session.delete(f"/v1/backups/{name}"), "not_found")


def test_a_repeat_under_the_same_idempotency_key_is_about_the_same_backup(own: Session) -> None:
    own.put("/v1/kv/k", b"v")
    first, again = (own.post("/v1/backups", idempotency_key="a").headers["location"] for _ in range(2))
    assert first == again
    own.delete(first)
    assert own.get("/v1/backups").json == {"backups": []}


# ── while it is made ─────────────────────────────────────────────────────────────────────────────


def reader_of(daemon: Daemon) -> int:
    """The process that reads the store for a backup; 0 if there is none."""
    for pid in children(daemon.pid):
        if b"reader_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return 0


class Making(NamedTuple):
    """A backup that is being made: the process that makes it, and what the one who asked for it is told."""

    pid: int
    answers: list[Answer]


@contextmanager
def making(service: Service) -> Iterator[Making]:
    """A backup that is being made until the block ends, by a process that is stopped."""
    answers: list[Answer] = []
    asking = Thread(target=lambda: answers.append(call(service.url, "POST", "/v1/backups")))
    asking.start()
    pid = wait_until(lambda: reader_of(service.daemon))
    os.kill(pid, signal.SIGSTOP)
    # the facade has its answer: else it asks again after a restart of the daemon, and begins another
    wait_until(lambda: call(service.url, "GET", "/v1/backups").json["backups"])
    try:
        yield Making(pid, answers)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        asking.join()


@pytest.mark.slow
def test_while_it_is_made_nothing_of_it_is_given_out_and_all_else_goes_on(
    service: Service, own: Session
) -> None:
    fill(service.requests)
    with making(service):
        (told,) = own.get("/v1/backups").json["backups"]
        assert told["state"] == "making"
        answer = own.get(f"/v1/backups/{told['id']}")
        assert_problem(answer, "too_busy")
        assert answer.headers["retry-after"] == "1"
        assert_problem(own.post("/v1/backups"), "backup_exists")
        assert own.put("/v1/kv/later", b"1").status == 201
        assert own.get("/v1/kv/later").body == b"1"
    wait_until(lambda: own.get("/v1/backups").json["backups"][0]["state"] == "ready")


@pytest.mark.slow
def test_a_backup_whose_process_hangs_makes_room_for_another_once_it_is_deleted(
    service: Service, own: Session
) -> None:
    fill(service.requests)
    with making(service) as hung:
        (told,) = own.get("/v1/backups").json["backups"]
        assert own.delete(f"/v1/backups/{told['id']}").status == 200
        wait_until(lambda: hung.pid not in children(service.daemon.pid))
        made = wait_until(lambda: begun(own))
        assert made.json["state"] == "ready"
    assert_problem(hung.answers[0], "not_found")
    assert "not_found" in next(row for row in routes.ENDPOINTS if row[:2] == ("POST", "/v1/backups")).errors
    assert f"the backup {told['id']} failed" not in service.daemon.stderr


@pytest.mark.slow
def test_a_facade_that_stops_answers_who_waits_for_a_backup(service: Service) -> None:
    fill(service.requests)
    with making(service) as waiting:
        service.facade.stop()
        (answer,) = wait_until(lambda: waiting.answers)
    assert (answer.status, answer.json["state"]) == (201, "making")


def begun(session: Session) -> Answer | None:
    """The answer to a request for a backup; None while a deleted one is being ended."""
    answer = session.post("/v1/backups")
    if answer.status == 201:
        return answer
    assert_problem(answer, "too_busy")
    return None


@pytest.mark.slow
def test_a_daemon_that_is_killed_meanwhile_leaves_nothing_behind(service: Service, own: Session) -> None:
    fill(service.requests)
    with making(service):
        before = set(service.daemon.data.iterdir())
        service.daemon.kill()
        service.daemon.start()
    assert wait_until(lambda: own.get("/v1/backups").status == 200)
    assert own.get("/v1/backups").json == {"backups": []}
    assert set(service.daemon.data.iterdir()) == before
    assert own.post("/v1/backups").json["state"] == "ready"


@pytest.mark.slow
def test_a_restart_of_the_daemon_in_the_middle_ends_a_download_before_its_end(
    daemon: Daemon, start_facade: Callable[..., Facade]
) -> None:
    fill(daemon.requests)
    facade = start_facade(daemon, stream_buffer_bytes=65_536)
    address = call(facade.url, "POST", "/v1/backups").headers["location"]
    sock = connect(facade.url, receive_buffer=4096)
    sock.sendall(f"GET {address} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = sock.recv(65_536).partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    daemon.restart()
    got = len(body)
    while piece := sock.recv(65_536):
        got += len(piece)
    sock.close()
    assert 0 < got < length
    assert_problem(call(facade.url, "GET", address), "not_found")
    assert "was cut off" in facade.stderr
    assert "Traceback" not in facade.stderr
