"""What fails between a commit and LMDB: each request is answered with what became of it, a stop and a start
wait for nobody, and what was acknowledged is there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore_core.errors import KvError
from kvstore_daemon.storage.interface import Retention, Write, WriteAnswer, WriteRequest
from kvstore_daemon.storage.lmdb_store.journaling import journal
from support.engine_store import LMDB, EngineKind, FakeClock, OpenStore, Store, lmdb_engine, opened, refused
from support.servers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.lmdb_only("its journal and its checkpoints")]

JOURNAL_BYTES = 16 * 1024
VALUE = b"x" * 1000
NUMBERS = range(20)
"""So many such values fill the first file of a journal, and begin the second."""

PLACE = "kvstore_daemon.storage.lmdb_store.journaling.journal_thread.os"


@pytest.fixture
def engine_kind() -> EngineKind:
    """One whose journal is often full."""
    return lmdb_engine(JOURNAL_BYTES)


def key_of(number: int) -> bytes:
    return b"key/%03d" % number


KEYS = [key_of(number) for number in NUMBERS]


def put(key: bytes, value: bytes = b"v", **fields: Any) -> WriteRequest:
    return WriteRequest([Write("put", key, value, "text/plain")], ticket=key, **fields)


def error_of(answer: WriteAnswer) -> KvError:
    """The error of a request, or of the one write that it has."""
    (error,) = [answer.error] if answer.results is None else answer.results
    assert isinstance(error, KvError)
    return error


def state_of(store: Store) -> tuple[list[bytes], int]:
    return store.keys(), store.engine.position().head


def checkpoints(store: Store) -> int:
    """How many were made."""
    store.engine.poll()
    return sum(store.engine.statistics().commits.checkpoint_seconds.counts)


def killed(store: Store, data: Path) -> Store:
    """The store as it is opened after SIGKILL: from its files as the system has them."""
    folder = data.with_name("killed")
    shutil.copytree(data, folder)
    return opened(folder, store.clock)


def done(action: Callable[[], Any]) -> Any:
    """What ``action`` gives. In a thread, so that a test of one which never ends fails."""
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(action()), daemon=True)
    thread.start()
    wait_until(lambda: not thread.is_alive(), what=f"{action} is done")
    return given[0]


class Faults:
    """The journal's writes and syncs fail as a test says: with the errno, if any, that it gives for a
    descriptor, and for what is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def of_writes(self, fault: Callable[[int, bytes], int | None]) -> None:
        write = os.pwrite

        def pwrite(file: int, data: bytes, at: int) -> int:
            self._fail(fault(file, data))
            return write(file, data, at)

        self._monkeypatch.setattr(f"{PLACE}.pwrite", pwrite)

    def of_syncs(self, fault: Callable[[int], int | None]) -> None:
        sync = os.fdatasync

        def fdatasync(file: int) -> None:
            self._fail(fault(file))
            sync(file)

        self._monkeypatch.setattr(f"{PLACE}.fdatasync", fdatasync)

    def _fail(self, number: int | None) -> None:
        if number is not None:
            raise OSError(number, os.strerror(number))

    def end(self) -> None:
        """The disk works again."""
        self._monkeypatch.undo()


@pytest.fixture
def faults() -> Iterator[Faults]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Faults(monkeypatch)


class HeldCheckpoint:
    """The first checkpoint of a store, stopped in the middle of its transaction, where it reads the journal:
    from a pipe, into which the test writes."""

    def __init__(self, data: Path, daemon: int) -> None:
        """For the store in ``data`` that the process ``daemon`` has just opened."""
        self._file, self._kept = data / "lmdb" / journal.NAMES[0], data / "kept"
        self._daemon, self._pipe = daemon, -1
        self.pid = 0
        self._file.rename(self._kept)
        os.mkfifo(self._file)

    def wait(self) -> None:
        """Wait until it is there."""
        wait_until(self._is_there, what="a checkpoint is in its transaction")
        self._kept.replace(self._file)
        self.pid = next(self._checkpointers())

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            self._pipe = os.open(self._file, os.O_WRONLY | os.O_NONBLOCK)
        return self._pipe >= 0

    def _checkpointers(self) -> Iterator[int]:
        for file in Path(f"/proc/{self._daemon}/task").glob("*/children"):
            for child in file.read_text().split():
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                if b"checkpointer" in command and os.fsencode(self._file.parent) in command:
                    yield int(child)

    def go_on(self) -> None:
        """Let it read what is in the file."""
        os.set_blocking(self._pipe, True)
        with os.fdopen(self._pipe, "wb", buffering=0) as pipe:
            pipe.write(self._file.read_bytes())
        self._pipe = -1

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        os.kill(self.pid, number)

    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] != "Z"

    def end(self) -> None:
        """Leave nothing behind."""
        if self._pipe >= 0:
            os.close(self._pipe)
        if self.pid and self.is_alive():
            self.send(signal.SIGKILL)


@pytest.fixture
def held(store: Store, tmp_path: Path) -> Iterator[HeldCheckpoint]:
    """The checkpoint of ``store``."""
    held = HeldCheckpoint(tmp_path / "data", os.getpid())
    yield held
    held.end()


# ── a checkpoint ─────────────────────────────────────────────────────────────────────────────────


def test_a_frame_that_finds_no_room_does_not_go_into_the_file_of_a_checkpoint(
    store: Store, held: HeldCheckpoint, faults: Faults, tmp_path: Path
) -> None:
    failed: list[int] = []

    def of_the_second_file(file: int, _: bytes) -> int | None:
        if failed or Path(f"/proc/self/fd/{file}").readlink().name != journal.NAMES[1]:
            return None
        failed.append(file)
        return errno.ENOSPC

    faults.of_writes(of_the_second_file)
    for key in KEYS:
        store.write("put", key, value=VALUE)
    assert failed
    held.wait()
    left = killed(store, tmp_path / "data")
    assert state_of(left) == state_of(store)
    left.engine.close()
    held.go_on()
    wait_until(lambda: checkpoints(store) == 1, what="the checkpoint is made")
    more = [key_of(number) for number in range(len(KEYS), 3 * len(KEYS))]
    for key in more:
        store.write("put", key, value=VALUE)
    assert store.keys() == KEYS + more


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_checkpoint_whose_process_is_stopped_or_killed_is_made_by_another_one(
    store: Store, held: HeldCheckpoint, number: signal.Signals
) -> None:
    checkpointer = vars(store.engine)["_checkpointer"]
    for key in KEYS:
        store.write("put", key, value=VALUE)
    held.wait()
    held.send(number)
    checkpointer._patience = 0.2
    wait_until(lambda: not held.is_alive(), what="it is given up")
    checkpointer._patience = 60.0
    for key in KEYS[:10]:
        store.write("put", key, value=VALUE)
    wait_until(lambda: checkpoints(store) > 0, what="the checkpoint is made")
    assert state_of(store) == (KEYS, len(KEYS) + 10)


def test_a_close_does_not_wait_for_a_checkpoint_that_is_stopped(
    store: Store, held: HeldCheckpoint, open_store: OpenStore, tmp_path: Path
) -> None:
    for key in KEYS:
        store.write("put", key, value=VALUE)
    held.wait()
    held.send(signal.SIGSTOP)
    done(store.engine.close)
    assert not held.is_alive()
    # it is all in LMDB, as ever
    assert not [name for name in journal.NAMES if (tmp_path / "data" / "lmdb" / name).exists()]
    assert state_of(open_store()) == (KEYS, len(KEYS))


DAEMON = f"""
import sys
from pathlib import Path
from support.engine_store import lmdb_engine, opened
store = opened(Path(sys.argv[1]), kind=lmdb_engine({JOURNAL_BYTES}))
print("opened", flush=True)
for line in sys.stdin:
    store.write("put", line.strip().encode(), value={VALUE!r})
    print("written", flush=True)
"""


def test_a_start_does_not_wait_for_a_checkpoint_of_a_daemon_that_was_killed(tmp_path: Path) -> None:
    """Also where the checkpoint is stopped in its transaction, and has LMDB's lock."""
    data = tmp_path / "data"
    tests = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(data)],
        env={**os.environ, "PYTHONPATH": tests},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "opened\n"
        held = HeldCheckpoint(data, daemon.pid)
        try:
            for key in KEYS:
                print(key.decode(), file=daemon.stdin, flush=True)
                assert daemon.stdout.readline() == "written\n"
            held.wait()
            held.send(signal.SIGSTOP)
            daemon.kill()
            daemon.wait()
            store = done(lambda: opened(data))
            wait_until(lambda: not held.is_alive(), what="the checkpoint has ended with the daemon")
        finally:
            held.end()
    assert state_of(store) == (KEYS, len(KEYS))
    assert store.faults() == []
    store.engine.close()


def test_a_repeat_of_a_committed_request_is_answered_while_checkpoints_fail(
    store: Store, tmp_path: Path
) -> None:
    file, kept = tmp_path / "data" / "lmdb" / journal.NAMES[0], tmp_path / "kept"
    count = WriteRequest([Write("incr", b"count")], client="counting", seq=1)
    (first,) = store.submit(count)
    file.rename(kept)  # no checkpoint finds it
    with refused("internal"):
        while True:
            store.write("put", value=VALUE)
    (again,) = store.submit(count)
    assert (again.error, again.results) == (None, first.results)
    # a new one gets the error, and its late copies too
    (refusal,) = store.submit(count._replace(seq=2))
    assert error_of(refusal).code == "internal"
    kept.rename(file)
    wait_until(lambda: checkpoints(store) > 0, what="the checkpoint is made")
    (again,) = store.submit(count._replace(seq=2))
    assert error_of(again).code == "internal"
    store.submit(count._replace(seq=3))
    found = store.get(b"count")
    assert found is not None
    assert found.value == b"2"


# ── no room ──────────────────────────────────────────────────────────────────────────────────────


def once(number: int) -> Callable[..., int | None]:
    """A fault of the first call only."""
    faults = [number]
    return lambda *_: faults.pop() if faults else None


def test_a_step_of_the_clock_is_kept_though_its_commit_found_no_room(
    store: Store, clock: FakeClock, faults: Faults, open_store: OpenStore, tmp_path: Path
) -> None:
    store.write("put", b"before")
    clock.step(-3_600_000)
    faults.of_writes(once(errno.ENOSPC))
    store.write("put", b"lease", ttl_ms=600_000)
    record = store.get(b"lease")
    assert record is not None
    left = killed(store, tmp_path / "data")
    assert left.get(b"lease") == record
    left.engine.close()
    store.engine.close()
    assert open_store().get(b"lease") == record


def test_of_a_group_that_found_no_room_what_needs_some_is_tried_once(store: Store, faults: Faults) -> None:
    """And what needs none is done: the system says that there is room, where a quota is used up."""
    store.submit(*(put(key) for key in KEYS[:10]))
    failed: list[bytes] = []

    def quota(_: int, data: bytes) -> int | None:
        if len(data) < len(VALUE):
            return None
        failed.append(data)
        return errno.EDQUOT

    faults.of_writes(quota)
    puts = [put(b"new/" + key, VALUE) for key in KEYS]
    deletes = [WriteRequest([Write("delete", key)], ticket=key) for key in KEYS[:10]]
    answers = store.submit(*puts, *deletes)
    by_ticket = {answer.ticket: answer for answer in answers}
    assert {error_of(by_ticket[request.ticket]).code for request in puts} == {"store_full"}
    for request in deletes:
        results = by_ticket[request.ticket].results
        assert results is not None
        assert results[0]["deleted"] == 1
    assert len(failed) == 2  # all together, and the first by itself
    assert store.keys() == []
    faults.end()
    store.write("put", b"again", value=VALUE)
    assert store.keys() == [b"again"]


def test_a_frame_that_was_refused_is_never_said_to_be_on_the_disk(
    open_store: OpenStore, faults: Faults, tmp_path: Path
) -> None:
    """A power cut that tears the frame after it would be taken for damage."""
    store = open_store(sync="interval")
    store.write("put", b"a")
    faults.of_writes(lambda *_: errno.ENOSPC)
    with refused("store_full"):
        store.write("put", b"b")
    faults.end()

    def syncs() -> int:
        store.engine.poll()
        return sum(store.engine.statistics().commits.sync_seconds.counts)

    wait_until(lambda: syncs() > 0, what="the sync on a timer")
    store.write("put", b"c")
    folder = tmp_path / "cut"
    shutil.copytree(tmp_path / "data", folder)
    file = folder / "lmdb" / journal.NAMES[0]
    content = file.read_bytes()
    (_, last) = journal.frames_of(memoryview(content), content[: journal.ID_BYTES])
    file.write_bytes(content[: last.end - 1] + bytes(1) + content[last.end :])
    cut = opened(folder, store.clock, sync="interval")
    assert cut.keys() == [b"a"]
    cut.engine.close()


# ── a sync that fails later ──────────────────────────────────────────────────────────────────────


def is_unknown(answer: WriteAnswer) -> bool:
    return error_of(answer).details == {"outcome": "unknown"}


class LateSync:
    """With the sync on a timer: it is due while a write is under way that finds no room, and fails. The write
    ``arrives``, and ends once ``goes_on`` is set."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self._journal = vars(store.engine)["_journal"]
        self._journal._interval = 3_600_000  # no sooner
        store.write("put", b"before")
        self.arrives, self.goes_on, self._is_over = threading.Event(), threading.Event(), False
        faults.of_writes(self._write)
        faults.of_syncs(self._sync)

    def _write(self, *_: object) -> int | None:
        self.arrives.set()
        assert self.goes_on.wait(30)
        self._journal._sync_due_at = 0.0
        return None if self._is_over else errno.ENOSPC

    def _sync(self, _: int) -> int:
        self._is_over = True
        return errno.EIO


def hand_over(store: Store, request: WriteRequest) -> None:
    """Commit a request that is planned by then, however slow the machine is."""
    store.engine.commit([request])
    planner = vars(store.engine)["_planner"]
    while planner.is_planning():
        planner.go_on()


def test_a_late_sync_that_fails_leaves_no_group_without_an_answer(
    open_store: OpenStore, faults: Faults
) -> None:
    store = open_store(sync="interval")
    late = LateSync(store, faults)
    hand_over(store, put(b"first"))
    assert late.arrives.wait(30)
    hand_over(store, put(b"second"))
    late.goes_on.set()
    assert [is_unknown(answer) for answer in store.answers(2)] == [True, True]
    (third,) = store.submit(put(b"third"))
    assert "restarted" in error_of(third).message
    assert store.keys() == [b"before"]
    done(store.engine.close)
    faults.end()
    again = open_store(sync="interval")
    assert again.get(b"before") is not None


def test_after_a_late_sync_that_failed_nothing_is_tried_again(open_store: OpenStore, faults: Faults) -> None:
    """The loop hears of the write that found no room first, and would try it by itself."""
    store = open_store(sync="interval")
    late = LateSync(store, faults)
    late.goes_on.set()
    hand_over(store, put(b"first"))
    # not by a poll, which would take the one without the other
    wait_until(lambda: vars(store.engine)["_news"].qsize() == 2, what="both have failed")
    (first,) = store.answers(1)
    assert is_unknown(first)
    assert store.keys() == [b"before"]
    done(store.engine.close)


def test_after_a_failed_sync_a_repeat_is_told_what_became_of_the_first(store: Store, faults: Faults) -> None:
    count = WriteRequest([Write("incr", b"count")], client="counting", seq=1)
    (first,) = store.submit(count)
    faults.of_syncs(lambda _: errno.EIO)
    (second,) = store.submit(count._replace(seq=2))
    assert is_unknown(second)
    again = store.submit(count, count._replace(seq=2), put(b"new"))
    assert (again[0].error, again[0].results) == (None, first.results)
    assert is_unknown(again[1])
    assert error_of(again[2]).details == {}


def files_left(data: Path) -> list[str]:
    return [name for name in journal.NAMES if (data / "lmdb" / name).exists()]


def test_a_close_whose_last_sync_fails_leaves_the_journal(
    open_store: OpenStore, faults: Faults, tmp_path: Path
) -> None:
    store = open_store(sync="none")
    for key in KEYS[:5]:
        store.write("put", key)
    faults.of_syncs(lambda _: errno.EIO)
    store.engine.close()
    assert files_left(tmp_path / "data") == list(journal.NAMES)
    faults.end()
    store = open_store(sync="none")
    assert store.keys() == KEYS[:5]
    store.engine.close()
    assert files_left(tmp_path / "data") == []


def test_a_close_that_does_not_find_all_of_the_journal_leaves_it(
    open_store: OpenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(sync="none")
    for key in KEYS[:5]:
        store.write("put", key)
    file = tmp_path / "data" / "lmdb" / journal.NAMES[0]
    content = file.read_bytes()
    *_, last = journal.frames_of(memoryview(content), content[: journal.ID_BYTES])
    os.truncate(file, last.end - 1)
    store.engine.close()
    assert files_left(tmp_path / "data") == list(journal.NAMES)
    assert "has not all that was written" in caplog.text


# ── what was deleted ─────────────────────────────────────────────────────────────────────────────


class CountedRows(dict[bytes, Any]):
    """Rows of a generation that count how often one is looked at."""

    looked_up = 0

    def get(self, key: bytes, default: Any = None) -> Any:
        self.looked_up += 1
        return super().get(key, default)


def test_rows_that_were_deleted_are_not_passed_with_every_call(tmp_path: Path, clock: FakeClock) -> None:
    """Of leases that have expired, and of a log that was trimmed, all in memory on top of LMDB."""
    store = opened(tmp_path / "data", clock, kind=LMDB, retention=Retention(10, 1 << 30, 10**9))
    leases = [Write("put", b"%d" % number, b"", "t", ttl_ms=1000) for number in range(300)]
    store.submit(WriteRequest(leases))
    store.write("put", b"last", ttl_ms=10**6)
    clock.now += 2000
    store.expire_due()
    store.trim_until(lambda position: position.head - position.floor <= 10)
    planner = vars(store.engine)["_planner"]
    counted = []
    for overlay in (planner._published, planner._planned):
        for table in overlay.active.tables:
            table.rows = CountedRows(table.rows)
            counted.append(table.rows)
    assert sum(map(len, counted)) > 1000
    assert store.engine.due(10)[0] == []
    for call in (
        lambda: store.engine.due(10),
        lambda: store.engine.count(b"", None),
        store.engine.statistics,
        lambda: store.write("put", b"more"),
    ):
        before = sum(rows.looked_up for rows in counted)
        call()
        assert sum(rows.looked_up for rows in counted) - before < 100
    # one that is due sooner than all that are there is found all the same
    sooner = store.write("put", b"sooner", ttl_ms=500)
    clock.now += 1000
    assert store.engine.due(10)[0] == [(b"sooner", sooner["revision"])]
    store.engine.close()
