"""What lets the daemon beat: a loop that turns, and an engine that commits."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvstore_cli.config.resolve import resolve
from kvstore_cli.config.server_settings import daemon_settings
from kvstore_core.process.sd_notify import NoticeSocket, Notifier
from kvstore_daemon.group_commit import GroupCommitter
from kvstore_daemon.main import open_engine
from kvstore_daemon.server import PATIENCE_TICKS, Beats
from kvstore_daemon.status import Counters
from kvstore_daemon.storage.interface import Engine, Write, WriteRequest
from support.disk import write_lock_held
from support.manager import notifier_on


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
    settings = daemon_settings(resolve({"data": str(store)}, "daemon", environ={"HOME": str(store)}))
    with (
        closing(open_engine(settings)) as engine,
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
