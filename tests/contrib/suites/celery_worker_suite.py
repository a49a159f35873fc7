"""Results of a real worker, in one process or in several: ``CELERY_POOL``."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from celery import chain, chord, group, states
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as LateError
from celery.result import AsyncResult, GroupResult
from celery_tasks import FOLDER, add, app, fail, gated, large, silent, third_time, total

from kvstore_contrib.celery import KvstoreBackend

PATIENCE = 100


def end_with_parent():
    """Also where this process is killed: PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@pytest.fixture(scope="module", autouse=True)
def worker():
    command = [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--loglevel", "WARNING"]
    # without what asks other workers, which a folder as the broker is slow at
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    process = subprocess.Popen(
        [*command, *quiet, "--pool", os.environ["CELERY_POOL"], "--concurrency", "2"],
        preexec_fn=end_with_parent,  # nothing else runs yet
    )
    yield process
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


@pytest.fixture
def reads(monkeypatch):
    """How often the store was asked for results."""
    counts = Counter()
    for name in ("get", "mget"):
        real = getattr(KvstoreBackend, name)
        monkeypatch.setattr(
            KvstoreBackend,
            name,
            lambda self, *args, name=name, real=real: counts.update([name]) or real(self, *args),
        )
    return counts


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


def stored(result):
    return app.backend.get(app.backend.get_key_for_task(result.id))


def test_results_and_errors_come_back():
    assert add.delay(2, 3).get(PATIENCE) == 5
    failed = fail.delay()
    with pytest.raises(LookupError, match="no such thing"):
        failed.get(PATIENCE)
    assert failed.state == states.FAILURE
    assert "LookupError" in failed.traceback
    assert third_time.delay().get(PATIENCE) == 2


def test_a_wait_asks_twice_however_long_it_lasts(reads, gate):
    result = gated.delay(str(gate))
    threading.Timer(1.5, gate.touch).start()
    assert result.get(PATIENCE, interval=0.01) != os.getpid()
    # when the wait begins, and once its subscription has
    assert reads == {"mget": 2}


def test_a_wait_ends_after_its_time_and_another_one_gets_the_result(gate):
    result = gated.delay(str(gate))
    for seconds in 0, 0.2:
        with pytest.raises(LateError):
            result.get(seconds)
    with pytest.raises(LateError):
        group(gated.s(str(gate)), gated.s(str(gate)))().get(0.2)
    gate.touch()
    assert result.get(PATIENCE)


def test_chains_and_groups():
    assert chain(add.s(1, 2), add.s(3), add.s(4))().get(PATIENCE) == 10
    with pytest.raises(LookupError):
        chain(add.s(1, 2), fail.si(), add.s(4))().get(PATIENCE)
    many = group(add.s(number, 1) for number in range(120))()
    assert many.get(PATIENCE) == list(range(1, 121))
    many.save()
    assert GroupResult.restore(many.id, app=app).get(PATIENCE) == list(range(1, 121))


def test_a_chord_goes_on_with_all_results_and_leaves_nothing_but_those():
    result = chord((add.s(number, number) for number in range(10)), total.s())()
    assert result.get(PATIENCE) == 90
    inner = chord([group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)], total.s() | add.s(1))
    assert inner().get(PATIENCE) == 13
    for kind in "group", "chord":
        left = list(app.backend._client.list(prefix=f"celery/{kind}/{result.parent.id}"))
        assert not left
    with pytest.raises((ChordError, LookupError), match="no such thing"):
        chord([add.s(1, 1), fail.s()], total.s())().get(PATIENCE)


def test_what_nobody_wants_is_not_stored_and_what_is_forgotten_is_gone():
    ignored = silent.delay()
    result = add.delay(1, 1)
    assert result.get(PATIENCE) == 2
    assert silent.apply_async(ignore_result=True).get() is None
    assert stored(ignored) is None
    result.forget()
    assert stored(result) is None
    assert AsyncResult(result.id, app=app).state == states.PENDING


def test_a_result_ends_by_itself():
    result = add.delay(1, 1)
    result.get(PATIENCE)
    app.backend.expire(app.backend.get_key_for_task(result.id), 0.1)
    while stored(result):
        time.sleep(0.01)
    assert AsyncResult(result.id, app=app).state == states.PENDING


def test_a_result_that_finds_no_room_fails_its_task():
    result = large.delay()
    with pytest.raises(Exception, match="was not stored"):
        result.get(PATIENCE)


def test_threads_and_forked_processes_wait_side_by_side(gate):
    results = [add.delay(1, 1), gated.delay(str(gate))]
    found = []

    def wait(result):
        found.append(AsyncResult(result.id, app=app).get(PATIENCE))

    threads = [threading.Thread(target=wait, args=[result]) for result in results * 2]
    child = os.fork()  # before the threads: a lock that one of them holds would be held for ever in the child
    if not child:
        os._exit(AsyncResult(results[0].id, app=app).get(PATIENCE))
    for thread in threads:
        thread.start()
    gate.touch()  # the folder that is the broker may give the only worker the gated task first
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(found)[:2] == [2, 2]
    assert len(found) == 4
    assert not list(Path(FOLDER).glob("*.celery.msg"))
