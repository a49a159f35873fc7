"""Times to live, the log and kept answers when the machine's clock is set."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

import orjson
import pytest

from kvstore_daemon.storage.clock import StoreClock
from kvstore_daemon.storage.interface import Retention, Write, WriteRequest
from kvstore_daemon.storage.lmdb_store.journaling import journal
from kvstore_daemon.storage.lmdb_store.journaling.overlay import Generation
from support.engine_store import OpenStore, Store, refused

pytestmark = pytest.mark.lmdb_only("times to live by a clock that nobody can set")

HOUR = 3_600_000
DAY = 24 * HOUR
STEPS = pytest.mark.parametrize("step", [-HOUR, HOUR, -30 * DAY, 30 * DAY, -1_000, 1_000])


def expired(store: Store) -> list[bytes]:
    """The keys whose events say that they have expired, after the daemon's timer ran."""
    store.expire_due()
    return [change.key for change in store.log().events if change.op == "expire"]


def tick(store: Store) -> None:
    """What the daemon does every second."""
    store.engine.trim()
    store.write("put", b"tick")


@STEPS
def test_a_step_of_the_clock_changes_no_time_to_live(store: Store, step: int) -> None:
    store.write("put", b"before", ttl_ms=5_000)
    store.clock.step(step)
    tick(store)
    result = store.write("put", b"after", ttl_ms=5_000)
    assert result["expires_at"] == store.clock.now + 5_000
    store.clock.now += 4_999
    assert store.keys() == [b"after", b"before", b"tick"]
    assert not expired(store)
    store.clock.now += 1
    assert store.keys() == [b"tick"]
    assert store.engine.count(b"", None).total == 1
    assert sorted(expired(store)) == [b"after", b"before"]


def test_what_a_write_finds_alive_no_read_has_shown_as_gone(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.write("put", ttl_ms=100)
    decided, may_commit = threading.Event(), threading.Event()

    def encode_rows(staged: Generation) -> Generator[None, None, bytes]:
        decided.set()
        assert may_commit.wait(30)
        return original(staged)

    original = journal.encode_rows
    monkeypatch.setattr(journal, "encode_rows", encode_rows)
    with ThreadPoolExecutor(1) as pool:
        persisted = pool.submit(store.write, "persist")
        assert decided.wait(30)
        store.clock.now += 100
        shown = store.keys(), store.get() is not None, store.engine.count(b"", None).total
        may_commit.set()
        assert "expires_at" not in persisted.result()
    assert shown == ([b"k"], True, 1)
    assert store.keys() == [b"k"]


@STEPS
def test_the_expiry_of_a_key_is_given_as_the_clock_shows_it_now(store: Store, step: int) -> None:
    store.write("put", ttl_ms=60_000)
    store.clock.step(step)
    tick(store)
    moment = store.clock.now + 60_000
    found = store.get()
    (event,) = [change for change in store.log().events if change.key == b"k"]
    page = store.engine.range(b"k", None, 1, values=True, max_bytes=1)
    history = store.engine.history(b"k", None, None, 10, values=True, max_bytes=100)
    assert found is not None
    assert event.record is not None
    assert history.events[0].record is not None
    assert page.items[0][1].expires_at == found.expires_at == moment
    assert event.record.expires_at == history.events[0].record.expires_at == moment
    assert store.engine.due(10) == ([], moment)
    assert store.write("put", ttl_ms=1_000)["version"] == 2
    assert store.engine.due(10) == ([], store.clock.now + 1_000)


def test_a_step_is_logged_and_counted(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert store.engine.statistics().clock[1:] == (0, None, None)
    store.clock.step(-HOUR)
    tick(store)
    assert store.engine.statistics().clock == (store.clock.now, 1, -HOUR, store.clock.now)
    assert "set back by 3600.0 s" in caplog.text


def test_what_changes_the_clock_by_little_is_no_step_but_adds_up(store: Store) -> None:
    for _ in range(4):
        store.clock.step(100)
        tick(store)
    assert store.engine.statistics().clock.steps == 0
    store.clock.step(100)
    tick(store)
    assert store.engine.statistics().clock[1:3] == (1, 500)


def test_a_pause_between_two_looks_at_the_clocks_is_no_step() -> None:
    moments = iter(range(0, 10**9, 5_000))
    clock = StoreClock(lambda: 10**12, lambda: next(moments), "boot")
    assert clock.notice(1) is None


@STEPS
def test_a_step_is_remembered_when_the_store_is_opened_again(open_store: OpenStore, step: int) -> None:
    store = open_store()
    store.write("put", ttl_ms=5_000)
    store.clock.step(step)
    tick(store)
    store.write("put", b"later", ttl_ms=5_000)
    store.engine.close()
    store.clock.now += 3_000
    again = open_store()
    assert again.keys() == [b"k", b"later", b"tick"]
    again.clock.now += 2_000
    assert again.keys() == [b"tick"]


@STEPS
def test_a_step_while_the_store_is_closed_is_noticed(
    open_store: OpenStore, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store()
    store.write("put", ttl_ms=5_000)
    store.engine.close()
    store.clock.step(step)
    again = open_store()
    assert "while the store was closed" in caplog.text
    found = again.get()
    assert found is not None
    assert found.expires_at == again.clock.now + 5_000
    again.clock.now += 5_000
    assert again.get() is None


def test_a_clock_that_was_ahead_before_a_start_of_the_machine_makes_no_key_live_longer(
    open_store: OpenStore,
) -> None:
    store = open_store()
    store.clock.step(HOUR)
    tick(store)
    store.write("put", b"lock", ttl_ms=2_000)
    store.engine.close()
    store.clock.reboot(after=-HOUR)
    again = open_store()
    assert again.engine.statistics().clock[1:3] == (1, -HOUR)
    assert again.write("put", b"new", ttl_ms=2_000)["expires_at"] == again.clock.now + 2_000
    again.clock.now += 2_000
    assert again.keys() == [b"tick"]


def test_no_expired_key_comes_back_to_life_with_a_clock_that_is_behind(
    open_store: OpenStore,
) -> None:
    store = open_store()
    store.write("put", b"short", ttl_ms=1_000)
    store.clock.now += 1_000
    tick(store)
    store.engine.close()
    store.clock.reboot(after=-30 * DAY)
    assert open_store().keys() == [b"tick"]


def test_time_that_went_by_while_the_machine_was_off_counts(open_store: OpenStore) -> None:
    store = open_store()
    store.write("put", ttl_ms=5_000)
    store.engine.close()
    store.clock.reboot(after=4_999)
    again = open_store()
    assert again.get() is not None
    again.engine.close()
    again.clock.reboot(after=1)
    assert open_store().get() is None


def test_a_wrong_date_trims_nothing(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(10**6, 1 << 30, DAY))
    store.write("put")
    for _ in range(2):
        store.clock.step(365 * DAY)
        tick(store)
        store.clock.step(-365 * DAY)
        tick(store)
    store.clock.step(365 * DAY)
    store.engine.close()
    again = open_store(retention=Retention(10**6, 1 << 30, DAY))
    tick(again)
    assert again.engine.position().floor == 0
    again.clock.now += DAY + 1
    tick(again)
    assert again.engine.position().floor == again.engine.position().head - 1


@pytest.mark.parametrize("restarts", [False, True])
def test_after_a_start_of_the_machine_a_date_is_believed_once_it_has_stood_for_an_hour(
    open_store: OpenStore, restarts: bool
) -> None:
    retention = Retention(10**6, 1 << 30, DAY)
    store = open_store(retention=retention)
    store.write("put")
    store.engine.close()
    store.clock.reboot(after=365 * DAY)
    again = open_store(retention=retention)
    for minutes in (0, 1, 58):
        again.clock.now += minutes * 60_000
        if restarts:
            again.engine.close()
            again = open_store(retention=retention)
        tick(again)
        assert again.engine.position().floor == 0
    again.clock.now += 60_001
    if restarts:
        again.engine.close()
        again = open_store(retention=retention)
    tick(again)
    assert again.engine.position().floor == 1


@pytest.mark.parametrize("restart", [False, True])
@STEPS
def test_a_step_does_not_make_a_repeat_a_new_request(open_store: OpenStore, step: int, restart: bool) -> None:
    store = open_store()
    request = WriteRequest([Write("incr", b"n")], client="c", seq=1)
    (first,) = store.submit(request)
    store.clock.now += 60_000
    if restart:
        store.engine.close()
        store.clock.reboot(after=step)
        store = open_store()
    else:
        store.clock.step(step)
    tick(store)
    store.clock.now += 9 * 60_000 - 1
    tick(store)
    (again,) = store.submit(request)
    assert again.results == first.results
    store.clock.now += 12 * 60_000
    tick(store)
    (third,) = store.submit(request)
    assert third.results is not None
    assert third.results != first.results


def test_more_steps_than_are_kept(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore_daemon.storage.clock._MANY_STEPS", 4)
    store = open_store()
    store.write("put", b"old", ttl_ms=30_000)
    for nth in range(10):
        store.clock.step(1_000 if nth % 2 else -1_000)
        tick(store)
    store.write("put", b"new", ttl_ms=5_000)
    line = store.engine._clock._line  # type: ignore[attr-defined]
    assert len(line.after) <= 4
    store.engine.close()
    store = open_store()
    assert store.keys() == [b"new", b"old", b"tick"]
    store.clock.now += 5_000
    assert store.keys() == [b"old", b"tick"]
    store.clock.now += 25_000
    assert store.keys() == [b"tick"]


def test_the_row_of_a_version_that_kept_no_grace_is_read() -> None:
    said = {"boot": "boot", "anchor": 7, "idle": 5, "after": [-1], "shifts": [0]}
    row = orjson.dumps(said)
    clock = StoreClock(lambda: 1_007, lambda: 1_000, "boot")
    clock.begin(crc32(row).to_bytes(4, "big") + row, (500, 1), 1)
    assert (clock.steady(), clock.running(), clock.age_of(500, 1)) == (1_007, 1_002, 507)


@STEPS
@pytest.mark.parametrize("moment", [1, HOUR, 253_402_300_799_999])
def test_a_moment_may_lie_at_either_end_of_time_when_the_clock_steps(
    store: Store, step: int, moment: int
) -> None:
    store.write("put", b"before", expires_at=moment)
    store.clock.step(step)
    tick(store)
    store.write("put", b"after", expires_at=moment)
    assert not store.faults()
    store.expire_due()
    store.expire_due()
    assert (store.get(b"after") is None) == (store.get(b"before") is None) == (moment <= HOUR)
    store.write("put", b"before", keep_ttl=True)
    store.write("put", b"after")
    assert not store.faults()


def test_a_time_to_live_that_ends_beyond_the_year_9999_is_refused(store: Store) -> None:
    store.write("put")
    store.clock.step(253_402_300_799_999 - store.clock.now - 1_000)
    tick(store)
    assert store.write("put", ttl_ms=1_000)["expires_at"] == 253_402_300_799_999
    for op in ("put", "touch"):
        with refused("bad_request"):
            store.write(op, ttl_ms=1_001)
    store.clock.step(DAY)
    tick(store)
    found = store.get()
    assert found is not None
    assert found.expires_at == 253_402_300_799_999 + DAY
    assert not store.faults()
