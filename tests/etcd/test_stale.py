"""While the cluster does not answer, writes and reads that must be current are refused; stale ones go on, and
are as new as they are asked to be."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from kvstore_client import Client
from kvstore_http.protocol.query_params import AGE_HEADER
from support.etcd import EtcdCluster
from support.servers import Daemon, Facade, wait_until
from support.session import Answer, Session, assert_problem
from support.streams import open_stream

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("they choose their engine themselves")]


def test_without_a_quorum(
    start_etcd: Callable[..., EtcdCluster],
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
) -> None:
    cluster = start_etcd(1)
    daemon = start_daemon(engine=cluster.address())
    url = start_facade(daemon).url
    stop = time.monotonic() + 12.0

    def write_on(_: int) -> list[Answer]:
        with closing(Session(url)) as session:
            answers = []
            while time.monotonic() < stop:
                answers.append(session.put("/v1/kv/other", b"w"))
            return answers

    def read_on(_: int) -> list[Answer]:
        with closing(Session(url)) as session:
            answers = []
            while time.monotonic() < stop:
                answers.append(session.get("/v1/kv/k"))
                assert session.get("/v1/kv/k?stale=1").body == b"v"
            return answers

    with closing(Session(url)) as session, Client(daemon.requests) as client:
        here = session.put("/v1/kv/k", b"v").json["revision"]
        with closing(open_stream(url, "snapshot=1")) as stream, ThreadPoolExecutor(10) as pool:
            assert stream.first().json["value"] == "v"
            with cluster.members[0].paused():
                writes = pool.map(write_on, range(2))
                for answer in (found for answers in pool.map(read_on, range(8)) for found in answers):
                    problem = assert_problem(answer, "unavailable")
                    assert "etcd" in problem["detail"], "the daemon says so: it does not seem to be away"
                    assert problem["detail"].count("'stale'") == 1
                    assert answer.headers["retry-after"] == "1"
                for answer in (found for answers in writes for found in answers):
                    assert "etcd" in assert_problem(answer, "unavailable")["detail"]
                assert int(session.get("/v1/kv/k?stale=1").headers[AGE_HEADER]) > 1000
                assert client.get("k", stale=True).value == b"v"
                assert session.get(f"/v1/kv/k?stale=1&min_revision={here}").body == b"v"
                ahead = session.get(f"/v1/kv/k?stale=1&min_revision={here + 1000}")
                assert_problem(ahead, "unavailable")
            wait_until(lambda: session.get("/v1/kv/k").status == 200, what="reads are current again")
            assert session.put("/v1/kv/k", b"w").status == 200
            assert next(event for event in stream if '"w"' in event.data)
        wait_until(lambda: int(session.get("/v1/kv/k?stale=1").headers[AGE_HEADER]) < 5000)


def test_a_stale_read_at_another_daemon_is_as_new_as_it_is_asked_to_be(
    etcd: EtcdCluster,
    tmp_path: Path,
    start_daemon: Callable[..., Daemon],
    start_facade: Callable[..., Facade],
) -> None:
    address = etcd.store_address(tmp_path / "shared")
    here, there = (Session(start_facade(start_daemon(engine=address)).url) for _ in range(2))
    with closing(here), closing(there):
        for number in range(50):
            revision = here.put(f"/v1/kv/a/{number}", b"%d" % number).json["revision"]
            newest = f"stale=1&min_revision={revision}"
            assert there.get(f"/v1/kv/a/{number}?{newest}").body == b"%d" % number
            revision = here.put(f"/v1/kv/b/{number}", b"").json["revision"]
            newest = f"stale=1&min_revision={revision}"
            level = there.get(f"/v1/kv?delimiter=/&counts=1&{newest}").json
            assert (level["prefixes"], level["counts"]) == (["a/", "b/"], [number + 1, number + 1])
            assert there.get(f"/v1/kv?count=1&{newest}").json["count"] == 2 * number + 2
            assert there.get(f"/v1/history/b/{number}?{newest}").json["events"][0]["revision"] == revision
        for session in (here, there):
            for stale in ("", "stale=1&"):
                answer = session.get(f"/v1/kv?{stale}min_revision={revision + 1000}")
                assert assert_problem(answer, "condition_failed")["revision"] == revision
