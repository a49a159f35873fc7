"""Who may have a backup of the store over HTTP, and who the log says had it."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from support.protected import Protected
from support.session import Session, assert_problem, bearer, connect

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("a cluster has a backup of its own")]

ROUTES = [
    ("GET", "/v1/backups"),
    ("POST", "/v1/backups"),
    ("GET", "/v1/backups/" + "0" * 16),
    ("DELETE", "/v1/backups/" + "0" * 16),
]


def test_all_keys_are_not_enough_and_no_more_is_a_token_that_is_derived(protected: Protected) -> None:
    everything = protected.token("all-but-admin", "all:*", "monitor")
    with closing(Session(protected.url, protected.admin_token)) as admin:
        narrowed = admin.post("/v1/narrow", {}).json["token"]
    for token in (everything, narrowed):
        with closing(Session(protected.url, token)) as session:
            for method, target in ROUTES:
                problem = assert_problem(session.request(method, target), "not_allowed")
                assert problem["needs"] == "admin"


def test_a_download_ends_when_the_right_to_it_does_and_the_log_says_whose_it_was(
    protected: Protected,
) -> None:
    token = protected.token("saver", "admin", "write:large/")
    values = random.Random(3)
    with (
        closing(Session(protected.url, token)) as session,
        closing(Session(protected.url, protected.admin_token)) as admin,
    ):
        for number in range(12):
            session.put(f"/v1/kv/large/{number}", values.randbytes(1_000_000))
        address = session.post("/v1/backups").headers["location"]
        length = int(session.request("HEAD", address).headers["content-length"])
        with closing(connect(protected.url, receive_buffer=4096)) as sock:
            head = "".join(f"{name}: {text}\r\n" for name, text in bearer(token).items())
            sock.sendall(f"GET {address} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
            got = len(sock.recv(65_536))
            assert admin.delete("/v1/tokens/saver").status == 200
            while piece := sock.recv(1 << 20):
                got += len(piece)
        assert 0 < got < length
        assert_problem(session.get(address), "unauthenticated")
        assert admin.delete(address).status == 200
        admin.delete("/v1/kv?prefix=large/")
    backup_id = address.rpartition("/")[2]
    told = protected.daemon.stderr
    assert f"backup_make of {backup_id}, asked for by 'saver'" in told
    assert f"backup_read of {backup_id}, asked for by 'saver'" in told
    assert f"backup_delete of {backup_id}, asked for by 'admin'" in told
