"""The parts of the daemon that need no process: grouping, ranges, cursors, timers, beats."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore_core.access.grants import prefix_end
from kvstore_core.errors import KvError
from kvstore_core.operations import OPERATIONS
from kvstore_core.process.sd_notify import NoticeSocket, Notifier
from kvstore_core.wire import Limits, Request, decode_request
from kvstore_daemon.event_loop import Loop
from kvstore_daemon.group_commit import GROUP_BYTES, GROUP_OPS, SLICE_BYTES, SLICE_OPS, GroupCommitter
from kvstore_daemon.peer_limits.connections import ConnectionWatcher
from kvstore_daemon.requests.pending_request import CHANGING
from kvstore_daemon.requests.reads import READS, _bounds, _cursor, _parse_cursor
from kvstore_daemon.requests.writes import WRITES, write_request
from kvstore_daemon.server import PATIENCE_TICKS, Beats
from kvstore_daemon.status import Counters
from kvstore_daemon.storage.interface import Engine, Write, WriteRequest
from kvstore_daemon.storage.write_rules import _PLANS
from support.disk import write_lock_held
from support.engine_store import opened, refused
from support.manager import notifier_on
from support.wire import pack, put

keys = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_every_operation_is_either_read_or_written_as_its_row_says() -> None:
    answered_together = {"get"}
    about_access = {"whoami", "access", "identities"}
    for_operators = {"status", "subscribers", "slow", "backups", "backup_read"}
    about_the_daemon = for_operators | about_access | CHANGING
    by_the_engine, by_the_daemon = {"delete_prefix"}, {"expire"}
    assert _PLANS.keys() - by_the_daemon | by_the_engine == WRITES
    reads = READS.keys() | answered_together | about_the_daemon
    assert reads == {row.name for row in OPERATIONS.values() if not row.writes}


class RecordingEngine:
    """Keeps the groups that it is handed."""

    def __init__(self, *, plans_at_once: bool) -> None:
        self.plans_at_once = plans_at_once
        self.groups: list[Sequence[WriteRequest]] = []

    def commit(self, group: Sequence[WriteRequest]) -> None:
        self.groups.append(group)


def write(ops: int = 1, size: int = 1) -> WriteRequest:
    return WriteRequest([Write("put", b"k", bytes(size))] * ops)


def grouped(*requests: WriteRequest, plans_at_once: bool = False) -> list[list[int]]:
    """The sizes of the groups in which ``requests``, all waiting at once, are handed over: a list of those
    that are under way together, each time that all before are answered."""
    engine = RecordingEngine(plans_at_once=plans_at_once)
    committer = GroupCommitter(cast(Engine, engine), Counters())
    for request in requests:
        committer.add(request, sum(len(write.key) + len(write.value) for write in request.writes))
    together: list[list[int]] = []
    while not committer.is_idle():
        before = len(engine.groups)
        while committer.can_flush():
            assert committer.flush()
        assert not committer.flush()
        assert committer.group_under_way() == before + 1
        together.append([len(group) for group in engine.groups[before:]])
        for _ in range(sum(together[-1])):
            committer.answered()
    assert committer.group_under_way() is None
    assert [request for group in engine.groups for request in group] == list(requests)
    return together


def test_all_that_waits_is_one_group() -> None:
    assert grouped(*[write()] * 100) == [[100]]


def test_a_group_is_bounded_by_ops_and_bytes_but_takes_any_single_request() -> None:
    assert grouped(*[write(GROUP_OPS // 2)] * 3) == [[2], [1]]
    assert grouped(*[write(1, GROUP_BYTES // 2 - 1)] * 3) == [[2], [1]]
    assert grouped(write(), write(GROUP_OPS), write()) == [[1], [1], [1]]
    assert grouped(write(1, 2 * GROUP_BYTES)) == [[1]]


def test_an_engine_that_plans_at_once_gets_small_groups_and_full_ones_ahead() -> None:
    full, half = SLICE_OPS, SLICE_OPS // 2
    assert grouped(*[write()] * (2 * full + 1), plans_at_once=True) == [[full, full], [1]]
    assert grouped(*[write(half)] * 3, plans_at_once=True) == [[2], [1]]
    assert grouped(write(), write(full), write(), plans_at_once=True) == [[1, 1], [1]]
    # of bytes, a group has a slice; and it does not matter whether what waits has
    assert grouped(*[write(1, SLICE_BYTES // 2 - 1)] * 3, plans_at_once=True) == [[2], [1]]


def test_peers_take_turns_in_each_group() -> None:
    engine = RecordingEngine(plans_at_once=True)
    committer = GroupCommitter(cast(Engine, engine), Counters())
    greedy, late = (SimpleNamespace(peer=name, request_id=None) for name in ("greedy", "late"))
    for _ in range(3 * SLICE_OPS):
        committer.add(write()._replace(ticket=greedy), 1)
    assert committer.flush()
    committer.add(write()._replace(ticket=late), 1)
    assert committer.flush()
    assert [request.ticket for request in engine.groups[0]] == [greedy] * SLICE_OPS
    assert [request.ticket for request in engine.groups[1][:3]] == [greedy, late, greedy]


def test_what_is_under_way_is_bounded_however_much_an_engine_plans_at_once() -> None:
    many = [write(SLICE_OPS)] * (GROUP_OPS // SLICE_OPS + 2)
    assert grouped(*many, plans_at_once=True) == [[1] * (GROUP_OPS // SLICE_OPS + 1), [1]]
    large = [write(SLICE_OPS, GROUP_BYTES // SLICE_OPS // 4)] * 5
    assert grouped(*large, plans_at_once=True) == [[1] * 4, [1]]


@given(prefix=st.binary(max_size=4), key=st.binary(max_size=6))
def test_a_prefix_is_the_range_up_to_its_end(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    assert key.startswith(prefix) == (key >= prefix and (end is None or key < end))


@given(prefix=keys | st.just(""), start=keys | st.just(""), end=keys | st.just(""), key=keys)
def test_the_bounds_of_a_list_are_the_intersection(prefix: str, start: str, end: str, key: str) -> None:
    low, high = _bounds({"prefix": prefix, "start": start, "end": end}, reverse=False)
    raw = key.encode()
    wanted = key.startswith(prefix) and raw >= start.encode() and (not end or raw < end.encode())
    assert wanted == (raw >= low and (high is None or raw < high))


@given(key=keys, reverse=st.booleans())
def test_a_cursor_leads_back_to_its_key_in_one_direction(key: str, reverse: bool) -> None:
    cursor = _cursor(key.encode(), reverse=reverse)
    assert cursor is not None
    assert _parse_cursor(cursor, reverse=reverse) == key.encode()
    with refused("invalid_cursor"):
        _parse_cursor(cursor, reverse=not reverse)


@given(cursor=st.text(max_size=12), reverse=st.booleans())
def test_a_cursor_is_accepted_only_as_it_was_written(cursor: str, reverse: bool) -> None:
    with contextlib.suppress(KvError):
        assert _cursor(_parse_cursor(cursor, reverse=reverse), reverse=reverse) == cursor


def translated(*ops: dict[str, Any], **header: Any) -> WriteRequest:
    frames = pack(*ops, **header)
    request: Request = decode_request(frames, Limits())
    return write_request(request, frames, "ticket")


def test_a_write_request_holds_the_writes_in_their_order() -> None:
    request = translated(put("a", b"1", ttl=0.0015), {"op": "get", "key": "b"}, {"op": "delete", "key": "c"})
    assert [(write.op, write.key, write.value, write.ttl_ms) for write in request.writes] == [
        ("put", b"a", b"1", 2),
        ("delete", b"c", b"", None),
    ]
    assert (request.client, request.ticket) == (None, "ticket")


def test_a_fingerprint_tells_requests_apart_that_use_one_number() -> None:
    prints = [
        translated(put("k", value), client="c", seq=1).fingerprint for value in (b"1", b"2", b"1", b"", b"11")
    ]
    assert prints[0] == prints[2]
    assert len(set(prints)) == 4
    assert all(0 <= number < 2**32 for number in prints)


def test_a_timer_fires_once_each_time_it_is_set() -> None:
    fired = []
    with closing(Loop()) as loop:
        timer = loop.timer(lambda: fired.append(1))
        timer.set(0)
        loop.turn(wait=True)
        loop.turn(wait=False)
        assert fired == [1]
        timer.set(3600)
        timer.set(0)
        loop.turn(wait=True)
        assert fired == [1, 1]


def test_a_loop_runs_the_callbacks_of_what_is_readable() -> None:
    seen = []
    reader, writer = os.pipe()
    with closing(Loop()) as loop:
        loop.watch(reader, lambda: seen.append(os.read(reader, 10)))
        loop.turn(wait=False)
        os.write(writer, b"x")
        loop.turn(wait=True)
    os.close(reader)
    os.close(writer)
    assert seen == [b"x"]


def test_a_connection_is_looked_at_though_all_that_came_was_read_before() -> None:
    is_seen = threading.Event()

    class Seeing(ConnectionWatcher):
        def watch(self, descriptor: int) -> None:
            self._watch(descriptor)

        def _look(self, descriptors: list[int]) -> bool:
            assert descriptors == [ours.fileno()]
            is_seen.set()
            return False

    ours, theirs = socket.socketpair()
    with ours, theirs, closing(Seeing("seeing")) as arrivals:
        theirs.sendall(b"all there is")
        assert ours.recv(100) == b"all there is"
        arrivals.watch(ours.fileno())
        arrivals.start()
        assert is_seen.wait(30)


class Writing:
    """A real engine with the daemon's way of handing groups to it, and what its parent hears."""

    def __init__(self, engine: Engine, notices: NoticeSocket, notifier: Notifier) -> None:
        self._engine = engine
        self._committer = GroupCommitter(engine, Counters())
        self._notices = notices
        self._beats = Beats(notifier, self._committer)
        self.beats = 0
        self.lines: list[str] = []

    def begin(self) -> None:
        """Hand a write over, if none is under way."""
        self._committer.add(WriteRequest([Write("put", b"k", b"v")]), 2)
        self._committer.flush()

    def end(self) -> None:
        """Wait until what is under way is answered."""
        readable, _, _ = select.select([self._engine.fileno()], [], [], 30)
        assert readable, "the engine never answered"
        for _ in self._engine.poll()[1]:
            self._committer.answered()

    def tick(self, times: int) -> None:
        for _ in range(times):
            self._beats.tick()
            for notice in self._notices.read(()):
                if notice.status is None:
                    self.beats += 1
                else:
                    self.lines.append(notice.status)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def writing(store: Path) -> Iterator[Writing]:
    with (
        closing(opened(store).engine) as engine,
        closing(NoticeSocket()) as notices,
        notifier_on(notices) as notifier,
    ):
        yield Writing(engine, notices, notifier)


def test_an_idle_daemon_beats_on_every_tick(writing: Writing) -> None:
    writing.tick(1000)
    assert writing.beats == 1000


def test_a_daemon_that_writes_beats_on_every_tick(writing: Writing) -> None:
    for _ in range(2 * PATIENCE_TICKS):
        writing.begin()
        writing.tick(1)
        writing.end()
    assert writing.beats == 2 * PATIENCE_TICKS


def test_a_commit_that_does_not_end_silences_the_daemon_after_its_patience(
    writing: Writing, store: Path
) -> None:
    with write_lock_held(store):
        writing.begin()
        writing.tick(PATIENCE_TICKS)
        assert writing.beats == PATIENCE_TICKS
        assert not writing.lines
        writing.tick(50)
        assert writing.beats == PATIENCE_TICKS
        assert len(writing.lines) == 1
        assert "a commit" in writing.lines[0]
    writing.end()
    writing.tick(5)
    assert writing.beats == PATIENCE_TICKS + 5, "it ended after all"
