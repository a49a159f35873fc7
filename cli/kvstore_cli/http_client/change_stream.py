"""The event stream as something that does not end: it is opened again whenever it breaks, and goes on
where it stood, with nothing lost and nothing twice.

The rules are those of docs/http.md: the position moves only with a line that carries a ``cursor``,
which is the last event of a revision, a ``sync`` or a ``heartbeat``. Events of a revision that was cut
off are therefore held back until the rest of it is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, NamedTuple

from kvstore_cli.http_client.client import Query, Service, new_backoff
from kvstore_cli.http_client.errors import Trouble
from kvstore_cli.http_client.line_stream import LineStream
from kvstore_core.backoff import Backoff
from kvstore_core.errors import KvError

SNAPSHOT, EVENTS, SYNC, RESET, HEARTBEAT = "snapshot", "events", "sync", "reset", "heartbeat"
_EVENT_NAMES = frozenset(("put", "delete", "expire"))


class Step(NamedTuple):
    """What a stream has come to.

    ``snapshot``: one present record. ``events``: all the events of one revision that were asked for.
    ``sync``: the snapshot, or the catching-up, is complete. ``reset``: what was told so far is void,
    a snapshot follows. ``heartbeat``: nothing happened. ``cursor`` is the position once the step is
    dealt with, None inside a snapshot.
    """

    kind: str
    lines: list[dict[str, Any]]
    cursor: str | None


@dataclass
class Position:
    """Where a stream stands, from the lines that arrived. It does no input or output."""

    cursor: str | None
    snapshot: bool
    _held: list[dict[str, Any]] = field(default_factory=list)
    _told: bool = False

    def query(self) -> Query:
        """The parameters with which the stream is to be opened now."""
        if self.cursor is not None:
            return [("since", self.cursor)]
        return [("snapshot", "1")] if self.snapshot else []

    def reopened(self) -> Iterator[Step]:
        """Begin with a new connection: forget what the old one left unfinished. A snapshot that was
        cut off starts over, which makes what was told of it void."""
        self._held.clear()
        if self.cursor is None and self._told:
            self._told = False
            yield Step(RESET, [{"event": RESET, "reason": "reconnected"}], None)

    def feed(self, line: dict[str, Any]) -> Iterator[Step]:
        """The steps that ``line`` completes; raises ``internal`` for a line that makes no sense."""
        name = line.get("event")
        if name in _EVENT_NAMES:
            yield from self._feed_event(line)
        elif name == RESET:
            self.cursor, self.snapshot, self._told = None, True, False
            self._held.clear()
            yield Step(RESET, [line], None)
        elif name in (SYNC, HEARTBEAT):
            self.cursor = line.get("cursor", self.cursor)
            yield Step(name, [line], self.cursor)
        # a name from a newer service is not for us

    def _feed_event(self, line: dict[str, Any]) -> Iterator[Step]:
        if "snapshot" in line:
            self._told = True
            yield Step(SNAPSHOT, [line], None)
            return
        self._held.append(line)
        if "cursor" in line:
            held, self._held = self._held, []
            self.cursor = line["cursor"]
            yield Step(EVENTS, held, self.cursor)


def follow(
    service: Service,
    wanted: Query,
    position: Position,
    *,
    stall_ms: int,
    deadline: float | None = None,
    output: int | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Generator[Step, None, None]:
    """The steps of the stream that ``wanted`` asks for, from ``position`` on, without end.

    Raises what the first connection fails with; later ones are opened again until they succeed, or
    until the service refuses them for a reason that time does not cure. ``notice`` is told when the
    stream breaks and when it is back. ``timed_out`` is raised at ``deadline`` (of the monotonic clock),
    BrokenPipeError when nobody reads any more what is written to the file descriptor ``output``.
    """

    def opener(open_it: Callable[..., LineStream]) -> LineStream:
        return open_it("/v1/subscribe", [*wanted, *position.query()], stall_seconds=stall_ms / 1000)

    stream = opener(service.open_stream)
    backoff = new_backoff()
    while True:
        try:
            with stream:
                for line in stream.lines(deadline, output):
                    backoff.reset()
                    yield from position.feed(_parsed(line))
        except Trouble as trouble:
            notice(f"{trouble.error.message}; opening it again")
            stream = _opened_again(lambda: opener(service.open_stream_once), backoff, trouble, deadline)
        notice("the stream is open again")
        yield from position.reopened()


def _opened_again(
    open_it: Callable[[], LineStream], backoff: Backoff, trouble: Trouble, deadline: float | None
) -> LineStream:
    while True:
        _sleep(backoff.next(trouble.pause), deadline)
        try:
            return open_it()
        except Trouble as next_trouble:
            trouble = next_trouble


def _parsed(line: bytes) -> dict[str, Any]:
    if not line:
        return {}
    try:
        parsed = json.loads(line)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise KvError("internal", f"the stream holds a line that is not a JSON object: {line[:80]!r}")
    return parsed


def _sleep(seconds: float, deadline: float | None) -> None:
    if deadline is not None and monotonic() + seconds >= deadline:
        sleep(max(0.0, deadline - monotonic()))
        raise KvError("timed_out", "the time is over")
    sleep(seconds)
