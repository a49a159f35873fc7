"""What is promised to survive the loss of power, on a disk that keeps only what was synced.

``kill -9`` cannot show it, since the system's cache outlives a process. So the files of real processes are
put on a disk that writes down what they ask of it (see ``support/disk.py``), and what could be left of them
is looked at.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from kvstore_client import Client
from kvstore_daemon.storage.lmdb_store.journaling import journal
from kvstore_daemon.storage.offline import reader_process
from kvstore_daemon.storage.offline.verify import verify
from support.disk import Disk, preloaded, run_script, steps
from support.lengths import Survived, times
from support.recorded import Recorded
from support.servers import StartDaemon, wait_until

SEEDS = times(1, full=40)
ROUNDS = times(10, full=150)
RUNS = times(2, full=5)
SAMPLES = times(1, full=4)

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.slow,
    pytest.mark.lmdb_only("what its file is after a power cut"),
]


@pytest.mark.torture
@pytest.mark.timeout(120 + 120 * SEEDS)
def test_a_power_cut_at_any_moment_takes_nothing_that_was_acknowledged(
    root: Path, tmp_path: Path, fast_folder: Path, survived: Survived
) -> None:
    """From the first start on, over later ones and ends of both kinds. The store opens, `kvstore check` finds
    nothing, and the present state of every key is at least what was acknowledged."""
    for _ in range(SEEDS):
        seed, record = random.randrange(2**32), tmp_path / "record"
        shutil.rmtree(root)
        root.mkdir()
        record.unlink(missing_ok=True)
        on_disk = {**os.environ, **preloaded(root, record)}
        for number in range(RUNS):
            run_script("keep_writing.py", root, record, seed + number, ROUNDS // RUNS, environment=on_disk)
        cuts = int(run_script("cut_power.py", root, record, fast_folder, seed, SAMPLES))
        assert cuts > 50
        survived(power_cuts=cuts)


def test_every_write_is_synced_before_its_acknowledgement_is_sent(
    start_daemon: StartDaemon, root: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    daemon = start_daemon(data=root / "data", environment=preloaded(root, record))
    with Client(daemon.requests) as client:
        for number in range(5):
            client.put(f"key{number}", b"value")
    disk, file, acknowledged, written = Disk(), str(root / "data" / "lmdb" / journal.NAMES[0]), 0, 0
    for step in steps(record):
        written += step.kind in "WD" and step.path == file
        if step.kind == "N" and f'"create_revision":{acknowledged + 1},'.encode() in step.data:
            assert written, "a write was acknowledged that nobody has written"
            assert disk.unsynced(file) == [], "a write was acknowledged that a power cut would take back"
            assert disk.is_durable(file)
            acknowledged, written = acknowledged + 1, 0
        disk.happen(step)
    assert acknowledged == 5


def writes_and_syncs(record: Path, file: Path) -> tuple[int, int]:
    """How many writes to the file are in the record, and how many syncs of it."""
    kinds = [step.kind for step in steps(record) if step.path == str(file)]
    return kinds.count("W") + kinds.count("D"), kinds.count("S")


@pytest.mark.parametrize("mode", ["interval", "none"])
def test_the_weaker_modes_sync_on_a_timer_or_at_the_end(
    start_daemon: StartDaemon, root: Path, tmp_path: Path, mode: str
) -> None:
    record, data = tmp_path / "record", root / "data"
    daemon = start_daemon(data=data, sync=mode, sync_interval="200ms", environment=preloaded(root, record))
    file = data / "lmdb" / journal.NAMES[0]
    started = writes_and_syncs(record, file)
    with Client(daemon.requests) as client:
        client.put("key", b"value")
    assert writes_and_syncs(record, file)[0] > started[0]
    if mode == "interval":
        wait_until(lambda: writes_and_syncs(record, file)[1] > started[1], what="the timer has synced")
    else:
        assert writes_and_syncs(record, file)[1] == started[1]
    daemon.stop()
    disk = Disk()
    for step in steps(record):
        disk.happen(step)
    assert disk.unsynced(str(data / "lmdb" / "data.mdb")) == []


def facts(folder: Path) -> tuple[str, int]:
    """Epoch and revision of the store in ``folder``, which is whole."""
    with reader_process.open_store(folder) as store:
        assert list(verify(store.env, store.txn, store.frames)) == []
        found = reader_process.facts(store)
    return found["epoch"], found["revision"]


@pytest.fixture(params=["closed", "killed"])
def store(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Path:
    """A store on the disk, stopped in either way, with its whole history in the record."""
    record = tmp_path / "record"
    on_disk = {**os.environ, **preloaded(root, record)}
    run_script("keep_writing.py", root, record, 1, 5, request.param, environment=on_disk)
    return root / "above" / "data"


def test_a_power_cut_while_compacting_leaves_a_whole_store(
    store: Path, recorded: Recorded, root: Path, survived: Survived
) -> None:
    before, since = facts(store), recorded.steps()
    recorded.run("compact", "--data", store)
    for left, _ in recorded.cuts(since):
        assert facts(left / store.relative_to(root)) == before
        survived(power_cuts=1)


def test_a_power_cut_while_restoring_leaves_the_old_store_or_the_new_one(
    store: Path, recorded: Recorded, root: Path, survived: Survived
) -> None:
    recorded.run("backup", root / "saved.kvb", "--data", store)
    before, since = facts(store), recorded.steps()
    recorded.run("restore", "--force", root / "saved.kvb", "--data", store)
    after = facts(store)
    for left, is_over in recorded.cuts(since):
        found = facts(left / store.relative_to(root))
        assert found == after if is_over else found in (before, after)
        survived(power_cuts=1)


def test_a_backup_that_was_said_to_be_made_survives_and_is_never_half_there(
    store: Path, recorded: Recorded, root: Path, survived: Survived
) -> None:
    since = recorded.steps()
    recorded.run("backup", root / "saved.kvb", "--data", store)
    whole = (root / "saved.kvb").read_bytes()
    for left, is_over in recorded.cuts(since):
        saved = left / "saved.kvb"
        assert saved.read_bytes() == whole if is_over or saved.exists() else not is_over
        survived(power_cuts=1)


def test_a_restore_into_a_new_folder_survives_once_it_was_said_to_be_done(
    store: Path, recorded: Recorded, root: Path
) -> None:
    recorded.run("backup", root / "saved.kvb", "--data", store)
    since = recorded.steps()
    recorded.run("restore", root / "saved.kvb", "--data", root / "new" / "below")
    *_, (left, _) = recorded.cuts(since)
    assert facts(left / "new" / "below") == facts(root / "new" / "below")
