"""What becomes of writes and of reads that must be current while something is in their way: each gets an
answer, which is true, and the daemon goes on."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.cluster import EtcdError
from kvstore_daemon.storage.etcd_store.engine import EtcdEngine
from kvstore_daemon.storage.interface import Write, WriteAnswer, WriteRequest
from support.engine_store import EngineKind, Store, flipped, opened, refused
from support.etcd import EtcdCluster
from support.etcd_engine import etcd_kind
from support.servers import wait_until

OpenDaemon = Callable[[str], Store]
FULL = KvError("store_full", "full, says the test")


@pytest.fixture
def open_daemon(etcd_address: str, etcd: EtcdCluster, tmp_path: Path) -> Iterator[OpenDaemon]:
    """The engines of several daemons over one store, by name."""
    kind = EngineKind(
        lambda settings, _clock: EtcdEngine(settings), lambda _data: etcd_address, etcd_kind(etcd).faults
    )
    stores: list[Store] = []

    def open_one(name: str) -> Store:
        stores.append(opened(tmp_path / name, kind=kind))
        return stores[-1]

    yield open_one
    faults = [fault for store in stores for fault in store.faults()]
    for store in stores:
        store.engine.close()
    assert not faults


def put(key: bytes, value: bytes = b"v", **fields: Any) -> Write:
    return Write("put", key, value, "text/plain", **fields)


def codes(answer: WriteAnswer) -> list[str]:
    """What became of each write of a request."""
    assert answer.error is None, answer.error
    return [each.code if isinstance(each, KvError) else "ok" for each in answer.results or ()]


def failure(answer: WriteAnswer) -> tuple[str, Any]:
    """The code with which a request was refused, and its outcome."""
    assert answer.error is not None, answer.results
    return answer.error.code, answer.error.details.get("outcome")


def caught_up(store: Store) -> KvError | None:
    """Wait for the answer to a read that must be current; the error that it gets."""
    answers: list[WriteAnswer] = []
    store.engine.catch_up("read")
    while not answers:
        readable, _, _ = select.select([store.engine.fileno()], [], [], 30)
        assert readable, "the engine never answered"
        answers = store.engine.poll().answers
    return answers[0].error


class Calls:
    """Between a daemon and etcd: each transaction goes through the next of ``steps``, if there is one."""

    def __init__(self, store: Store, *steps: Callable[[Callable[[], Any]], Any]) -> None:
        cluster = store.engine._cluster
        self._call, self._steps = cluster.call, list(steps)
        cluster.call = self

    def __call__(self, method: Any, request: Any, timeout: float) -> Any:
        step = self._steps.pop(0) if method is api.TXN and self._steps else lambda send: send()
        return step(lambda: self._call(method, request, timeout))


def lost(_send: Any) -> Any:
    raise EtcdError("unknown", "lost on the way there, says the test")


def test_a_mirror_that_does_not_follow_delays_nobody_for_long(open_daemon: OpenDaemon) -> None:
    one, other = open_daemon("a"), open_daemon("b")
    mirror: Any = one.engine._mirror
    apply, gate = mirror.apply, threading.Event()

    def held(*args: Any) -> Any:
        gate.wait()
        return apply(*args)

    mirror.apply = held
    try:
        other.write("put", b"k")
        conflict, behind = one.submit(WriteRequest([put(b"k", if_revision=0)]), WriteRequest([put(b"j")]))
        assert (failure(conflict), failure(behind)) == (("unavailable", None), ("unavailable", None))
        (committed,) = one.submit(WriteRequest([put(b"new")]))
        assert failure(committed) == ("unavailable", "unknown")
        (later,) = one.submit(WriteRequest([put(b"newer")]))
        assert failure(later) == ("unavailable", None), "nor sent: its answer would have to wait as well"
    finally:
        gate.set()
    wait_until(lambda: one.get(b"new") is not None)
    assert one.write("put", b"newer", if_revision=0)


def test_a_mirror_that_cannot_be_written_takes_no_writes(open_daemon: OpenDaemon) -> None:
    one, other = open_daemon("a"), open_daemon("b")
    watcher: Any = one.engine._watcher
    watcher.broken = KvError("damaged", "the file is gone, says the test")
    with refused("damaged"):
        one.write("put", b"k")
    assert one.engine.statistics().writes_refused == watcher.broken
    watcher.broken = None
    other.write("put", b"k", if_revision=0)


@pytest.mark.parametrize("full", [range(2, 100), range(1, 2), range(1, 100)], ids=["later", "first", "all"])
def test_a_long_request_that_meets_a_full_store_gets_one_answer_for_good(
    open_daemon: OpenDaemon, full: range
) -> None:
    """``full`` are its transactions at which the store is full."""
    one, other = open_daemon("a"), open_daemon("b")
    committer: Any = one.engine._committer
    turns = iter(range(1, 1000))
    committer._refusal = lambda: FULL if next(turns) in full else None
    count = 300 if full.start > 1 else 4600  # what is refused takes little room in a transaction
    request = WriteRequest([put(b"%d" % at) for at in range(count)], client="me", seq=1, fingerprint=7)
    (first,) = one.submit(request)
    said = codes(first)
    assert len(said) == count
    assert set(said) == ({"store_full"} if len(full) == 99 else {"ok", "store_full"})
    other.write("put", b"catch up")
    for store in (one, other):
        (again,) = store.submit(request)
        assert codes(again) == said


def test_a_fault_of_ours_is_answered_and_the_next_write_goes_on(
    open_daemon: OpenDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, encode = open_daemon("a"), layout.encode_record

    def encode_all_but_one(record: Any) -> bytes:
        if record.value == b"poison":
            raise ValueError("says the test")
        return encode(record)

    monkeypatch.setattr(layout, "encode_record", encode_all_but_one)
    requests = [WriteRequest([put(b"k%d" % at, value)]) for at, value in enumerate((b"v", b"poison", b"v"))]
    good, bad, later = store.submit(*requests)
    assert (codes(good), failure(bad), codes(later)) == (["ok"], ("internal", None), ["ok"])


def test_after_a_fault_it_is_not_known_what_was_sent(open_daemon: OpenDaemon) -> None:
    def answered_with_nonsense(send: Callable[[], Any]) -> Any:
        send()
        raise ValueError("says the test")

    store = open_daemon("a")
    Calls(store, answered_with_nonsense)
    (sent,) = store.submit(WriteRequest([put(b"k")]))
    assert failure(sent) == ("internal", "unknown")
    assert store.write("put", b"k")["version"] == 2


def test_a_fault_in_a_look_at_etcd_fails_the_reads_that_wait_for_it(open_daemon: OpenDaemon) -> None:
    store = open_daemon("a")
    cluster: Any = store.engine._cluster
    ask = cluster.ask

    def fail(*_: Any) -> Any:
        raise ValueError("says the test")

    cluster.ask = fail
    error = caught_up(store)
    cluster.ask = ask
    assert error is not None
    assert error.code == "internal"
    assert caught_up(store) is None


def test_a_damaged_record_of_the_mirror_is_waited_for(open_daemon: OpenDaemon) -> None:
    store = open_daemon("a")
    store.write("put", b"k")
    engine: Any = store.engine
    tables = engine._mirror.tables
    with tables.env.begin(write=True) as txn:
        txn.put(b"k", flipped(txn.get(b"k", db=tables.data), 3), db=tables.data)
    plans, plan = [], engine._committer._plan

    def counted(*args: Any) -> Any:
        plans.append(1)
        return plan(*args)

    engine._committer._plan = counted
    assert store.write("put", b"k")["version"] == 2
    assert (len(plans), engine._watcher.rebuilds) == (2, 1), "it is not planned again and again meanwhile"


def test_only_what_is_too_large_for_etcd_is_refused(
    start_etcd: Callable[..., EtcdCluster], tmp_path: Path
) -> None:
    etcd = start_etcd(1, flags=["--max-request-bytes=20000"])
    kind = EngineKind(lambda settings, _: EtcdEngine(settings), lambda _: etcd.address(), list)
    store, big = opened(tmp_path / "a", kind=kind), b"x" * 30_000
    try:
        answers = store.submit(
            WriteRequest([put(b"a")]),
            WriteRequest([put(b"b", big)]),
            WriteRequest([put(b"c"), put(b"d", big)], atomic=True),
            WriteRequest([put(b"e"), put(b"f", big), put(b"g")]),
            WriteRequest([put(b"h%d" % at, b"x" * 3000) for at in range(12)], client="me", seq=1),
            WriteRequest([put(b"i", big)], client="you", seq=1),
            WriteRequest([put(b"j")]),
        )
        assert [codes(answers[at]) for at in (0, 1, 3, 4, 6)] == [
            ["ok"],
            ["request_too_large"],
            ["ok", "request_too_large", "ok"],
            ["ok"] * 12,
            ["ok"],
        ]
        assert [failure(answers[at]) for at in (2, 5)] == [("request_too_large", None)] * 2
        assert store.get(b"c") is None
    finally:
        store.engine.close()


def test_a_late_copy_adds_nothing_to_an_answer_that_was_given(open_daemon: OpenDaemon) -> None:
    """The first copy of a transaction is on its way for so long that another fails, for a key that is there
    for a moment; then the first is applied, and the mirror shows the reply before the thread knows."""
    one, other = open_daemon("a"), open_daemon("b")
    copies: list[Callable[[], Any]] = []

    def delayed(send: Callable[[], Any]) -> Any:
        copies.append(send)
        other.write("put", b"n")
        return lost(send)

    def failing(send: Callable[[], Any]) -> Any:
        answer = send()
        other.write("delete", b"n")
        late = copies[0]()
        assert (answer.succeeded, late.succeeded) == (False, True)
        assert one.engine._mirror.wait_for(late.header.revision, 30)
        return answer

    Calls(one, delayed, failing)
    numbered = WriteRequest([Write("incr", b"n")], client="me", seq=1, fingerprint=7)
    first, second = one.submit(numbered, WriteRequest([Write("incr", b"m")]))
    assert (codes(first), codes(second)) == (["ok"], ["ok"])
    assert [getattr(one.get(key), "value", None) for key in (b"n", b"m")] == [b"1", b"1"]


def test_what_was_sent_to_an_etcd_that_got_full_is_not_known(open_daemon: OpenDaemon) -> None:
    """A copy that was not answered may be applied after the one that was refused."""

    def full(_send: Any) -> Any:
        raise EtcdError("full", "says the test")

    store = open_daemon("a")
    Calls(store, lost, full, full)
    (sent,) = store.submit(WriteRequest([put(b"k")]))
    assert failure(sent) == ("store_full", "unknown")
    (sent,) = store.submit(WriteRequest([put(b"k")]))
    assert failure(sent) == ("store_full", None)


@pytest.mark.parametrize("other", [{"cluster": 1}, {"watched": 1 << 40}], ids=["cluster", "restored"])
@pytest.mark.parametrize("is_write", [False, True], ids=["read", "write"])
def test_nothing_is_answered_from_another_history_than_that_of_etcd(
    open_daemon: OpenDaemon, other: dict[str, int], is_write: bool
) -> None:
    store = open_daemon("a")
    store.write("put", b"k")
    epoch = store.engine.position().epoch
    mirror: Any = store.engine._mirror
    mirror._state = mirror.state._replace(**other)
    if is_write:
        with refused("unavailable") as caught:
            store.write("put", b"k")
        error: KvError | None = caught.value
    else:
        error = caught_up(store)
    assert error is not None
    assert "another history" in error.message
    wait_until(lambda: store.engine.position().epoch != epoch, what="the watcher has noticed")
    wait_until(lambda: caught_up(store) is None)
    store.write("put", b"k")
