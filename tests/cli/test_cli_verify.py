"""``kvstore digest`` and ``kvstore verify``: what is equal, and the first key that is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kvstore_core.digest import SetHash, record_hash
from support.command_line import CommandLine
from support.servers import Facade, Service, StartDaemon
from support.session import Session, path_of

pytestmark = pytest.mark.lmdb_only("two stores whose revisions keep step")

LEFT, RIGHT = 0, 1


class Pair(NamedTuple):
    """Two services that were written the same, and the command line."""

    sessions: tuple[Session, Session]
    urls: tuple[str, str]
    kvstore: CommandLine

    def put(self, key: str, *values: bytes) -> None:
        """One value in both, or one in each."""
        for session, value in zip(self.sessions, values * 2, strict=False):
            session.put(path_of(key), value)

    def verify(self, *arguments: str) -> tuple[int, list[str]]:
        """The exit status, and the lines printed."""
        done = self.kvstore("verify", *self.urls, *arguments)
        assert done.stderr == b""
        return done.returncode, done.stdout.decode().splitlines()


@pytest.fixture
def pair(start_daemon: StartDaemon, start_facade: Callable[..., Facade], tmp_path: Path) -> Iterator[Pair]:
    urls = [start_facade(start_daemon()).url for _ in range(2)]
    sessions = Session(urls[0]), Session(urls[1])
    yield Pair(sessions, (urls[0], urls[1]), CommandLine(tmp_path, None))
    for session in sessions:
        session.close()


def test_the_digest_is_that_of_the_records(kvstore: CommandLine) -> None:
    assert kvstore.out("digest", "nothing/") == b"0" * 64 + b"\n"
    there = SetHash()
    for number in range(3):
        revision = int(kvstore.out("put", f"sum/{number}", str(number)))
        there.replace(b"", record_hash(b"sum/%d" % number, revision, b"%d" % number))
    assert kvstore.out("digest", "sum/").decode() == there.hexdigest() + "\n"
    (found,) = kvstore.lines("digest", "--prefix", "sum/", "--json")
    assert (found["digest"], found["count"], found["revision"]) == (there.hexdigest(), 3, revision)
    (part,) = kvstore.lines("digest", "--start", "sum/1", "--end", "sum/2", "--json")
    assert part["count"] == 1


def test_what_was_written_the_same_is_equal(pair: Pair) -> None:
    assert pair.verify() == (0, [f"equal: 0 records at revision 0, with the digest {'0' * 64}"])
    for number in range(20):
        pair.put(f"k{number}", b"%d" % number)
    status, (line,) = pair.verify()
    assert (status, line[:36]) == (0, "equal: 20 records at revision 20, wi")
    pair.put("other", b"x", b"y")
    assert pair.verify("--prefix", "k")[0] == 0
    assert pair.verify("--quiet") == (1, [])


def test_the_first_key_that_differs_is_shown_with_what_each_has(pair: Pair) -> None:
    """Each is before the last in the order of the keys, so that the one before it is the first no longer."""
    for number in range(2_300):  # some pages
        if number % 100 == 0:
            ops = [{"op": "put", "key": f"m/{n:04}", "value": "v"} for n in range(number, number + 100)]
            for session in pair.sessions:
                session.batch(*ops)
    assert pair.verify()[0] == 0
    one, other = pair.sessions
    one.put(path_of("z"), b"")
    status, (key, _, right) = pair.verify()
    assert (status, key, right) == (1, "z", f"  {pair.urls[RIGHT]} has no such key")
    other.put(path_of("m/2250"), b"more")
    status, (key, left, right) = pair.verify()
    assert (status, key) == (1, "m/2250")
    assert left.startswith(
        f"  {pair.urls[LEFT]} has it at revision 2251, 1 byte with SHA-256 4c94485e0c21ae6c"
    )
    assert right.startswith(
        f"  {pair.urls[RIGHT]} has it at revision 2301, 4 bytes with SHA-256 187897ce0afcf20b"
    )
    other.put(path_of("m/1100\u00e9"), b"")
    (said,) = pair.kvstore("verify", *pair.urls, "--json").stdout.splitlines()
    assert b'"key":"m/1100\xc3\xa9","differs":"missing","first":null,"second":{"revision":2302,' in said
    pair.put("a", b"left", b"right")
    assert pair.verify()[1][0] == "a"
    for session in pair.sessions:
        session.delete(path_of("a"))
    one.delete(path_of("m/0000"))
    status, (key, left, _) = pair.verify("--prefix", "m/")
    assert (status, key, left) == (1, "m/0000", f"  {pair.urls[LEFT]} has no such key")


def test_another_value_at_the_same_revision_is_found(pair: Pair) -> None:
    pair.put("k", b"one", b"two")
    done = pair.kvstore("verify", *pair.urls, "--json")
    assert done.returncode == 1
    assert b'"key":"k","differs":"value","first":{"revision":1,"size":3,' in done.stdout


def test_a_restored_copy_is_equal_until_it_is_written(
    service: Service, start_daemon: StartDaemon, start_facade: Callable[..., Facade], offline: CommandLine
) -> None:
    with_url = {"KVSTORE_URL": service.url}
    for number in range(30):
        offline.out("put", f"k{number}", "v", env=with_url)
    offline.out("touch", "k3", "--ttl", "1h", env=with_url)
    offline.out("backup", "b.kvb", "--data", str(service.daemon.data))
    offline.out("restore", "b.kvb", "--data", "copy")
    copy = start_facade(start_daemon(data=offline.folder / "copy")).url
    assert offline.out("verify", service.url, copy).startswith(b"equal: 30 records at revision 31 and ")
    offline.out("put", "k7", "v", env={"KVSTORE_URL": copy})
    done = offline("verify", service.url, copy)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, b"k7")


def test_two_facades_of_one_store_are_equal_while_it_is_written(
    service: Service, start_facade: Callable[..., Facade], offline: CommandLine
) -> None:
    other, is_over = start_facade(service.daemon).url, threading.Event()

    def write() -> None:
        with_service = Session(service.url)
        while not is_over.is_set():
            with_service.post(path_of("hot", "incr"))
        with_service.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            done = offline("verify", service.url, other)
            assert (done.returncode, done.stderr) == (0, b""), done.stdout.decode()
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def test_what_it_does_not_take_is_refused(kvstore: CommandLine) -> None:
    for arguments in (("verify", "http://a"), ("verify", "http://a", "http://b", "--url", "http://c")):
        assert kvstore(*arguments).returncode == 2
    assert kvstore("verify", "a", "http://b").returncode == 2
    assert kvstore("digest", "a", "--prefix", "b").returncode == 2
    assert kvstore("digest", "--min-revision", "999999999").returncode == 4
