"""Several daemons commit to one etcd: nothing is lost, nothing is done twice, whatever becomes of the
calls."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_core.wall_clock import now_ms
from kvstore_daemon.storage.applier import Applier
from kvstore_daemon.storage.etcd_store import retention
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.cluster import EtcdError
from kvstore_daemon.storage.etcd_store.engine import EtcdEngine
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.transaction import EtcdTransaction
from kvstore_daemon.storage.interface import Retention, Write, WriteAnswer, WriteRequest
from support.engine_store import EngineKind, FakeClock, Store, opened
from support.etcd import EtcdCluster
from support.etcd_engine import etcd_kind
from support.servers import wait_until

DAY = 86_400_000

OpenDaemon = Callable[[str], Store]


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


def numbered(client: str, seq: int, *writes: Write, atomic: bool = False) -> WriteRequest:
    return WriteRequest(writes, atomic, client, seq, 7, ticket=client)


def in_parallel(*tasks: Callable[[], Any]) -> list[Any]:
    """What the tasks return that run at the same time; raises what one of them raised."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def results_of(answer: WriteAnswer) -> list[Any]:
    assert answer.error is None, answer.error
    assert answer.results is not None
    for result in answer.results:
        assert not isinstance(result, KvError), result
    return answer.results


def feed_of(store: Store) -> list[tuple[int, int, str, bytes]]:
    return [(event.revision, event.index, event.op, event.key) for event in store.feed]


def test_counters_of_two_daemons_miss_nothing(open_daemon: OpenDaemon) -> None:
    """Both change the same keys at the same time, so most transactions meet a conflict."""
    daemons = [open_daemon("a"), open_daemon("b")]

    def count(store: Store) -> None:
        for _ in range(20):
            for answer in store.submit(*(WriteRequest([Write("incr", b"n%d" % key)]) for key in range(5))):
                results_of(answer)

    in_parallel(*(partial(count, store) for store in daemons))
    for store in daemons:
        store.write("put", b"last of this one")  # by then it has all that was committed before
        for key in range(5):
            record = store.get(b"n%d" % key)
            assert record is not None
            assert (record.value, record.version) == (b"40", 40)


class Faults:
    """Between a daemon and etcd: transactions that are answered, not answered, not sent, or sent again
    late."""

    def __init__(self, engine: Any, chance: random.Random) -> None:
        self._call = engine._cluster.call
        self._chance = chance
        self._late: list[threading.Timer] = []
        self.met = 0
        engine._cluster.call = self

    def __call__(self, method: Any, request: Any, timeout: float) -> Any:
        lot = self._chance.random() if method is api.TXN else 1.0
        if lot < 0.1:
            self.met += 1
            raise EtcdError("not_sent", "no connection, says the test")
        if lot < 0.2:
            self.met += 1
            raise EtcdError("unknown", "lost on the way there, says the test")
        if lot < 0.3:
            self.met += 1
            self._late.append(threading.Timer(self._chance.random() / 10, self._send, (method, request)))
            self._late[-1].start()
            raise EtcdError("unknown", "delayed, says the test")
        answer = self._call(method, request, timeout)
        if lot < 0.5:
            self.met += 1
            raise EtcdError("unknown", "lost on the way back, says the test")
        return answer

    def _send(self, method: Any, request: Any) -> None:
        with contextlib.suppress(EtcdError):
            self._call(method, request, 5)

    def join(self) -> None:
        for timer in self._late:
            timer.join()


def test_what_was_not_answered_is_applied_once(open_daemon: OpenDaemon) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    daemons = [open_daemon("a"), open_daemon("b")]
    faults = [Faults(store.engine, random.Random(seed + at)) for at, store in enumerate(daemons)]
    clients = [f"client {at}" for at in range(4)]

    def work(at: int) -> None:
        store = daemons[at]
        for seq in range(1, 16):
            requests = [
                numbered(f"{at} {client}", seq, Write("incr", b"shared"), Write("incr", client.encode()))
                for client in clients
            ]
            while requests:
                answers = store.submit(*requests)
                refused = {each.ticket for each in answers if each.error and each.error.row.retryable}
                for answer in answers:
                    if answer.ticket not in refused:
                        results_of(answer)
                # as a client does that got no better answer in time
                requests = [each for each in requests if each.ticket in refused]

    in_parallel(lambda: work(0), lambda: work(1))
    for fault in faults:
        fault.join()
    assert sum(fault.met for fault in faults) > 20
    third = open_daemon("c")
    shared = third.get(b"shared")
    assert shared is not None
    assert shared.value == b"%d" % (2 * 15 * len(clients))
    for client in clients:
        record = third.get(client.encode())
        assert record is not None
        assert record.value == b"30"


def test_a_repeat_gets_the_first_answer_at_any_daemon(open_daemon: OpenDaemon) -> None:
    one, other = open_daemon("a"), open_daemon("b")
    writes = [
        Write("incr", b"n"),
        put(b"k"),
        Write("delete", b"gone"),
        *(put(b"k%d" % at) for at in range(300)),
    ]
    (first,) = one.submit(numbered("me", 3, *writes))
    assert first.results is not None
    other.write("put", b"catch up")
    (again,) = other.submit(numbered("me", 3, *writes))
    assert [str(each) for each in again.results or ()] == [str(each) for each in first.results]
    record = other.get(b"n")
    assert record is not None
    assert record.value == b"1"
    (stale,) = other.submit(numbered("me", 2, put(b"k")))
    assert stale.error is not None
    assert stale.error.code == "sequence_stale"
    (reused,) = one.submit(numbered("me", 3, put(b"k"))._replace(fingerprint=8))
    assert reused.error is not None
    assert reused.error.code == "sequence_reused"


def test_one_request_at_two_daemons_is_applied_once(open_daemon: OpenDaemon) -> None:
    """A client that gets no answer in time turns to another daemon, while the first is still at it."""
    daemons = [open_daemon("a"), open_daemon("b")]
    answers: list[WriteAnswer] = []
    for seq in range(1, 6):
        request = numbered("me", seq, *(Write("incr", b"n%d" % at) for at in range(250)))
        tasks = (partial(store.submit, request) for store in daemons)
        answers += [answer for (answer,) in in_parallel(*tasks)]
    for answer in answers:
        results_of(answer)
    for one, other in zip(answers[::2], answers[1::2], strict=True):
        assert one.results == other.results
    for at in range(250):
        record = open_daemons_last(daemons).get(b"n%d" % at)
        assert record is not None
        assert record.value == b"5"


def test_of_a_request_left_to_the_next_transaction_nothing_is_in_this_one(open_daemon: OpenDaemon) -> None:
    """Nor its reply: that would wipe out the one which the request got at another daemon meanwhile."""
    mirror = open_daemon("a").engine._mirror  # type: ignore[attr-defined]
    with mirror.tables.env.begin() as txn:
        transaction = EtcdTransaction(Names(b"/p"), mirror.tables, txn, mirror.watched, 1)
        begun = transaction.mark()
        transaction.expect_reply("me", 5)
        transaction.keys(b"k", 10)
        Applier(transaction, None).one(put(b"x"))
        transaction.undo_to(begun)
        assert transaction.is_empty
        transaction.expect_reply("me", 6)  # its place is free again


def test_refusals_hold_no_snapshots_of_the_mirror(open_daemon: OpenDaemon) -> None:
    """LMDB has room for 64 readers, and what is only found by a collection is not found for a while."""
    store = open_daemon("a")
    gc.disable()
    try:
        for turn in range(100):
            exists = WriteRequest([put(b"k", if_revision=9), put(b"other")], atomic=turn % 2 == 0)
            store.submit(exists, WriteRequest([put(b"n")]), WriteRequest([Write("incr", b"n")]))
    finally:
        gc.enable()
    assert store.get(b"n") is not None


def open_daemons_last(daemons: list[Store]) -> Store:
    """A daemon that has all that was committed."""
    daemons[-1].write("put", b"catch up")
    return daemons[-1]


def test_both_see_every_event_once_and_in_the_same_order(open_daemon: OpenDaemon) -> None:
    daemons = [open_daemon("a"), open_daemon("b")]

    def work(store: Store, name: bytes) -> None:
        for turn in range(15):
            store.submit(
                *(WriteRequest([put(b"%s%d" % (name, turn % 4))]) for name in (name, b"both")),
                WriteRequest([put(b"x" + name), put(b"y" + name)], atomic=True),
                WriteRequest([Write("delete", b"both%d" % ((turn + 1) % 4))]),
            )

    in_parallel(lambda: work(daemons[0], b"a"), lambda: work(daemons[1], b"b"))
    for store in daemons:
        store.write("put", b"end")
    for store in daemons:
        store.write("put", b"end")
    ends = [max(event[0] for event in feed_of(store)) for store in daemons]
    feeds = [[event for event in feed_of(store) if event[0] <= min(ends)] for store in daemons]
    assert feeds[0] == feeds[1]
    assert len(set(feeds[0])) == len(feeds[0])
    assert feeds[0] == sorted(feeds[0], key=lambda event: event[:2])


def test_a_refusal_tells_what_is_so_now(open_daemon: OpenDaemon) -> None:
    """Not what the mirror of the daemon that was asked happens to show."""
    one, other = open_daemon("a"), open_daemon("b")
    for turn in range(30):
        revision = one.write("put", b"k", value=b"%d" % turn)["revision"]
        assert other.write("put", b"k", if_revision=revision)["revision"] > revision
        with pytest.raises(KvError, match="is at revision"):
            other.write("put", b"k", if_revision=revision)
        one.write("delete", b"k")
        with pytest.raises(KvError, match="no such key"):
            other.write("delete", b"k")
        other.write("put", b"k", if_revision=0)
        with pytest.raises(KvError, match="exists already"):
            one.write("put", b"k", if_revision=0)


def test_a_check_tells_what_is_so_now(open_daemon: OpenDaemon) -> None:
    """It is asserted, and nothing is committed for it, alone or with others."""
    one, other = open_daemon("a"), open_daemon("b")
    for turn in range(20):
        revision = one.write("put", b"k", value=b"%d" % turn)["revision"]
        head = one.engine.position().head
        checks = [
            Write("check", b"k", if_revision=revision),
            Write("check", b"k", if_value=b"%d" % turn),
            Write("check", b"k", must_exist=True),
            Write("check", b"none", if_revision=0),
        ]
        answers = other.submit(WriteRequest(checks, atomic=True), *(WriteRequest([each]) for each in checks))
        for answer in answers:
            found = [result["revision"] for result in results_of(answer)]
            assert found in ([revision] * 3 + [0], [revision], [0])
        old = Write("check", b"k", if_revision=revision - 1)
        for request in (WriteRequest([put(b"never"), old], atomic=True), WriteRequest([old])):
            (refused,) = other.submit(request)
            error = refused.error or (refused.results or [None])[0]
            assert isinstance(error, KvError)
            assert (error.code, error.details["revision"]) == ("condition_failed", revision)
            assert error.details["key"] == "k"
        assert other.engine.position().head == head, "a check changes nothing"
    assert other.get(b"never") is None


def test_what_is_written_beside_checks_is_written_while_they_hold(open_daemon: OpenDaemon) -> None:
    """Two daemons move amounts between accounts; each transaction checks the two that it has read."""
    daemons = [open_daemon("a"), open_daemon("b")]
    accounts = [b"account %d" % number for number in range(3)]
    for each in accounts:
        daemons[0].write("put", each, value=b"100")

    def move(store: Store, seed: int) -> int:
        chance, done = random.Random(seed), 0
        for _ in range(40):
            source, target = chance.sample(accounts, 2)
            found = [store.get(key) for key in (source, target)]
            if None in found:
                continue  # this mirror does not have them yet
            one, other = (record for record in found if record is not None)
            writes = [
                Write("check", source, if_revision=one.revision),
                Write("check", target, if_value=other.value),
                put(source, b"%d" % (int(one.value or b"") - 1)),
                put(target, b"%d" % (int(other.value or b"") + 1)),
            ]
            (answer,) = store.submit(WriteRequest(writes, atomic=True))
            assert answer.error is None or answer.error.code == "condition_failed"
            done += answer.error is None
        return done

    assert sum(in_parallel(*(partial(move, store, at) for at, store in enumerate(daemons)))) > 0
    store = open_daemons_last(daemons)
    assert sum(int(record.value or b"") for key in accounts if (record := store.get(key))) == 300


def test_a_lock_that_moves_lets_no_late_write_through(open_daemon: OpenDaemon) -> None:
    """One daemon gives the lock to others all the time, the other writes under it."""
    one, other = open_daemon("a"), open_daemon("b")
    moves, written = [one.write("put", b"lock")["revision"]], []
    is_over = threading.Event()

    def write() -> None:
        while not is_over.is_set():
            token = moves[-1]
            guarded = [Write("check", b"lock", if_revision=token), Write("incr", b"n")]
            (answer,) = other.submit(WriteRequest(guarded, atomic=True))
            if answer.error is None:
                written.append((token, results_of(answer)[1]["revision"]))

    def give_away() -> None:
        try:
            for turn in range(40):
                moves.append(one.write("put", b"lock")["revision"])
                if turn % 4 == 0:
                    wait_until(lambda: written and written[-1][0] == moves[-1], what="this one is used")
        finally:
            is_over.set()

    in_parallel(write, give_away)
    ends = dict(zip(moves, [*moves[1:], 1 << 62], strict=True))
    assert len({token for token, _ in written}) >= 10
    for token, revision in written:
        assert token < revision < ends[token]


def sequence(prefix: bytes, value: bytes = b"v") -> Write:
    return put(prefix, value, sequence=True)


def numbers_of(store: Store, prefix: bytes) -> list[tuple[int, int, bytes]]:
    """The numbered keys that were put, with their places in the log."""
    return [
        (event.revision, event.index, event.key)
        for event in store.feed
        if event.key.startswith(prefix) and event.op == "put"
    ]


@pytest.mark.parametrize("has_faults", [False, True])
def test_numbers_of_two_daemons_are_unique_and_in_the_order_of_their_commits(
    open_daemon: OpenDaemon, has_faults: bool
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    daemons = [open_daemon("a"), open_daemon("b")]
    faults = [
        Faults(store.engine, random.Random(seed + at)) for at, store in enumerate(daemons) if has_faults
    ]
    made: list[str] = []

    def work(at: int) -> None:
        for seq in range(1, 9):
            requests = [
                numbered(f"{at} alone", seq, *[sequence(b"jobs/")] * 3),
                numbered(
                    f"{at} atomic", seq, *[sequence(b"jobs/"), put(b"x"), sequence(b"jobs/")], atomic=True
                ),
                numbered(f"{at} one", seq, sequence(b"other/")),
            ]
            while requests:
                answers = daemons[at].submit(*requests)
                refused = {each.ticket for each in answers if each.error and each.error.row.retryable}
                for answer in answers:
                    if answer.ticket not in refused:
                        made.extend(result["key"] for result in results_of(answer) if "key" in result)
                requests = [each for each in requests if each.ticket in refused]

    in_parallel(lambda: work(0), lambda: work(1))
    for fault in faults:
        fault.join()
    third = open_daemon("c")
    keys = [
        key.decode() for key, _ in third.engine.range(b"", None, 1000, values=False, max_bytes=1 << 20).items
    ]
    assert sorted(made) == [key for key in keys if "/" in key], seed
    assert len(set(made)) == len(made) == 2 * 8 * 6
    for store in daemons:
        store.write("put", b"end")
        found = numbers_of(store, b"jobs/")
        assert len(found) == 2 * 8 * 5
        assert [key for _, _, key in found] == sorted(key for _, _, key in found)
        assert all(int(key[5:25]) >= 0 for _, _, key in found)


def test_a_number_is_above_every_revision_before_it_and_never_given_again(open_daemon: OpenDaemon) -> None:
    one = open_daemon("a")
    last = 0
    for turn in range(4):
        store = one if turn < 2 else open_daemon(f"new {turn}")
        head = store.write("put", b"x")["revision"]
        results = results_of(store.submit(WriteRequest([sequence(b"s/")] * 300))[0])
        numbers = [int(result["key"].removeprefix("s/")) for result in results]
        assert numbers == sorted(set(numbers))
        assert numbers[0] > max(last, head)
        last = numbers[-1]
        while store.write("delete_prefix", b"s/", limit=1000)["more"]:
            pass


def test_a_number_out_of_a_mirror_that_lags_is_not_given(open_daemon: OpenDaemon) -> None:
    """It would be lower than one that was given already, and no key is in its way."""
    one, other = open_daemon("a"), open_daemon("b")
    may_follow, succeeded = threading.Event(), list[bool]()
    engine: Any = other.engine
    take_in, call = engine._watcher._take_in, engine._cluster.call

    def take_in_later(revisions: Any) -> None:
        may_follow.wait(30)
        take_in(revisions)

    def note(method: Any, request: Any, timeout: float) -> Any:
        answer = call(method, request, timeout)
        if method is api.TXN:
            succeeded.append(answer.succeeded)
        return answer

    engine._watcher._take_in, engine._cluster.call = take_in_later, note
    for _ in range(5):
        one.write("put", b"x")
    first = results_of(one.submit(WriteRequest([sequence(b"s/")]))[0])[0]["key"]
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(other.submit, WriteRequest([sequence(b"s/")]))
        wait_until(lambda: succeeded, what="it has tried")
        may_follow.set()
        (answer,) = late.result()
    assert results_of(answer)[0]["key"] > first
    assert succeeded[0] is False


def test_numbers_go_on_above_keys_that_came_from_elsewhere_and_come_once(open_daemon: OpenDaemon) -> None:
    one, other = open_daemon("a"), open_daemon("b")
    one.write("put", b"s/%020d" % 1_000_000)
    given: list[int] = []
    for store in (one, other, one):
        store.write("put", b"catch up")
        requests = [WriteRequest([sequence(b"s/")] * 2), WriteRequest([sequence(b"s/")])]
        results = [result for answer in store.submit(*requests) for result in results_of(answer)]
        assert len({result["revision"] for result in results}) == 1, "one transaction is enough"
        given += [int(result["key"].removeprefix("s/")) for result in results]
        store.write("delete_prefix", b"s/", limit=1000)
    assert given == sorted(set(given))
    assert given[0] == 1_000_001


def test_a_numbered_key_that_is_there_already_is_passed_over(open_daemon: OpenDaemon) -> None:
    store = open_daemon("a")
    taken = results_of(store.submit(WriteRequest([sequence(b"s/")]))[0])[0]["key"]
    number = int(taken.removeprefix("s/"))
    later = [put(b"s/%020d" % at) for at in range(number + 1, number + 60)]
    results_of(store.submit(WriteRequest(later))[0])
    for at in range(3):
        (result,) = results_of(store.submit(WriteRequest([sequence(b"s/")]))[0])
        assert int(result["key"].removeprefix("s/")) == number + 60 + at


def test_a_repeat_gets_the_same_key_at_any_daemon(open_daemon: OpenDaemon) -> None:
    one, other = open_daemon("a"), open_daemon("b")
    prefix = "\x01" * 485  # in JSON six bytes each
    writes = [sequence(prefix.encode())] * 200 + [Write("check", prefix.encode(), if_revision=7)] * 100
    (first,) = one.submit(numbered("me", 1, *writes))
    (again,) = other.submit(numbered("me", 1, *writes))
    assert [str(each) for each in again.results or ()] == [str(each) for each in first.results or ()]
    assert len(first.results or ()) == 300


def test_more_checks_than_a_transaction_takes_are_refused_together_and_done_apart(
    open_daemon: OpenDaemon,
) -> None:
    store = open_daemon("a")
    checks = [Write("check", b"none %d" % at, if_revision=0) for at in range(400)]
    (refused,) = store.submit(WriteRequest(checks, atomic=True))
    assert refused.error is not None
    assert refused.error.code == "request_too_large"
    (done,) = store.submit(WriteRequest(checks))
    assert [result["revision"] for result in results_of(done)] == [0] * 400
    most = [*checks[:50], *(put(b"new %d" % at) for at in range(49)), sequence(b"s/")]
    (answer,) = store.submit(numbered("me", 1, *most, atomic=True))
    assert len({result["revision"] for result in results_of(answer)[50:]}) == 1


def test_a_check_of_a_key_whose_time_has_come_finds_none(
    etcd_address: str, etcd: EtcdCluster, tmp_path: Path
) -> None:
    clock = FakeClock()
    with ExitStack() as stack:
        store = opened(tmp_path / "data", clock, kind=etcd_kind(etcd))
        stack.callback(store.engine.close)
        for writes in (
            [Write("check", b"k", if_revision=0), put(b"k", if_revision=0)],
            [put(b"k"), Write("check", b"k", if_revision=0), sequence(b"s/")],
        ):
            store.write("put", b"k", ttl_ms=1000)
            clock.now += 2000
            (answer,) = store.submit(WriteRequest(writes, atomic=True))
            assert len(results_of(answer)) == len(writes)
        assert [event.op for event in store.feed if event.key == b"k"] == ["put", "expire", "put"] * 2


def test_a_delete_by_prefix_misses_no_key_that_was_there(open_daemon: OpenDaemon) -> None:
    one, other = open_daemon("a"), open_daemon("b")
    for turn in range(10):
        count = 250 if turn == 0 else 3
        one.submit(*(WriteRequest([put(b"p/%d" % at)]) for at in range(count)))
        deleted, more = 0, True
        while more:
            result = other.write("delete_prefix", b"p/", limit=1000)
            deleted, more = deleted + result["deleted"], result["more"]
        assert deleted == count


def test_the_log_gets_shorter_while_etcd_gets_full(
    open_daemon: OpenDaemon,
    etcd: EtcdCluster,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """But not shorter than a little, and an operator is told."""
    monkeypatch.setattr(retention, "LEAST_EVENTS", 20)
    one, other = open_daemon("a"), open_daemon("b")
    revisions = [one.write("put", b"k", value=b"%d" % at)["revision"] for at in range(40)]
    one.engine._committer._crowding = lambda: (0.9, 1e12)  # type: ignore[attr-defined]  # as members of 3.6 say it
    one.engine._committer._floor_due_at = 0.0  # type: ignore[attr-defined]
    one.engine.trim()
    for store in (one, other):
        wait_until(lambda store=store: store.engine.position().floor > 0)  # type: ignore[misc]
        assert store.engine.position().floor == revisions[9]
        assert store.engine.statistics().log_events == 30
    one.write("put", b"k")  # done after the compaction, by the same thread
    with pytest.raises(AssertionError, match="compacted"):
        etcd.etcdctl("get", "x", f"--rev={revisions[8]}")
    for look in range(2, 7):
        one.engine._committer._crowding = lambda look=look: (0.9, look * 1e12)  # type: ignore[attr-defined]
        one.engine._committer._floor_due_at = 0.0  # type: ignore[attr-defined]
        one.engine.trim()
        one.write("put", b"k")
    assert one.engine.statistics().log_events >= 20
    assert sum("the log is cut from 40 events to 30" in line for line in caplog.messages) == 1


def test_a_clock_that_is_ahead_makes_no_event_too_old(
    etcd_address: str, etcd: EtcdCluster, tmp_path: Path
) -> None:
    """Neither while its daemon only looks, nor when it has written, and another tells of it."""
    ahead = FakeClock()
    ahead.now = now_ms() + 8 * DAY
    with ExitStack() as stack:

        def open_one(name: str, clock: FakeClock | None) -> Store:
            kind = EngineKind(
                lambda settings, _: EtcdEngine(
                    settings, **({} if clock is None else {"wall": lambda: clock.now})
                ),
                lambda _: etcd_address,
                etcd_kind(etcd).faults,
            )
            store = opened(tmp_path / name, kind=kind, retention=Retention(1000, 1 << 30, 7 * DAY))
            stack.callback(store.engine.close)
            return store

        def trim() -> None:
            wrong.engine._committer._floor_due_at = 0.0  # type: ignore[attr-defined]
            wrong.engine.trim()
            wrong.submit(WriteRequest([Write("delete", b"none")]))

        right = open_one("right", None)
        events = [right.write("put", b"k")]
        wrong = open_one("wrong", ahead)
        trim()
        assert wrong.engine.statistics().log_events == 1

        def is_noticed() -> bool:
            events.append(right.write("put", b"k"))
            return bool(wrong.engine._clocks.lead() > 7 * DAY)  # type: ignore[attr-defined]

        wait_until(is_noticed)
        events.append(wrong.write("put", b"k"))
        trim()
        assert wrong.engine.statistics().log_events == len(events)
        # it is a clock after all: with time, events get old
        ahead.now += 8 * DAY
        wrong.write("put", b"k")
        trim()
        wait_until(lambda: right.engine.statistics().log_events == 2, what="only what it wrote is left")


def test_what_a_full_etcd_refuses_is_not_there(
    start_etcd: Callable[..., EtcdCluster], tmp_path: Path
) -> None:
    """etcd says that it is full also of the change by which it notices, and has applied that one."""
    etcd = start_etcd(1, flags=[f"--quota-backend-bytes={4 * 2**20}"])
    stores = [
        opened(tmp_path / name, kind=EngineKind(lambda s, _: EtcdEngine(s), lambda _: etcd.address(), list))
        for name in ("a", "b")
    ]
    taken: set[bytes] = set()
    refusals: list[KvError] = []

    def fill(store: Store, name: bytes) -> None:
        for at in range(200):
            key = b"%s%d" % (name, at)
            try:
                store.write("put", key, value=b"x" * 50_000)
            except KvError as error:
                refusals.append(error)
                return
            taken.add(key)

    in_parallel(*(partial(fill, store, name) for store, name in zip(stores, (b"a", b"b"), strict=True)))
    assert {(error.code, error.details.get("outcome")) for error in refusals} == {("store_full", None)}
    for word in ("NOSPACE", "etcdctl compact", "etcdctl defrag", "--quota-backend-bytes", "alarm disarm"):
        assert all(word in error.message for error in refusals)
    names = Names(b"/kvstore")
    there = {name.removeprefix(names.keys) for name in etcd.keys(names.keys.decode())}
    for store in stores:
        store.engine.close()
    assert there == taken
