"""What several clients did at the same time, and whether one order explains all that they were told.

Two checkers read it, each for itself. :func:`check_witness` holds everything against the order that the
store gives out itself, its log: whole batches, versions, conditions, counters, times to live, and that the
order agrees with the clock. :func:`check_key` believes no revision: it looks for any order at all of what
was done to one key. It is Wing and Gong's search in the just-in-time form of Lowe, "Testing for
Linearizability" (2017): walk through the history, keep every state that the key may be in together with
the calls under way that were done already, and do a call no sooner than it has to be.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import NamedTuple

from kvstore_client import Event

CLOCK_SLACK_MS = 20
"""How far a time that the daemon gives and one of ours may lie apart: both are cut to milliseconds, and a
clock that is being adjusted runs a little faster or slower."""

MOST_STATES = 200_000
"""A search over more than this is given up, loudly."""

WRITE_MS = 5_000
"""A write of which nothing was heard is under way for no longer than this, unless a history says more."""

CHANGING = frozenset(("put", "delete", "incr", "touch", "persist"))


class WrongHistoryError(AssertionError):
    """No order of the operations explains what was answered."""


class Effect(NamedTuple):
    """What an operation does to one key, or by ``check`` requires of it. ``number`` is what a put stores and
    an incr adds."""

    op: str
    key: str
    number: int | None = None
    ttl_ms: int | None = None
    if_revision: int | None = None


class Found(NamedTuple):
    """What an operation says of one key: its state afterwards. ``revision`` is 0 for a key that is missing,
    and for one that was deleted that of the deletion. None is what was not told."""

    revision: int
    number: int | None = None
    version: int | None = None
    create_revision: int | None = None
    expires_at: int | None = None


@dataclass
class Operation:
    """A call of one client: what it asked, when, and what became of it.

    ``outcome`` is ``ok``, with a Found for each effect; ``failed``, with the code, and in ``at`` the effect
    that failed, of whose key ``found`` says the state; or ``unknown``: it may be done at any time after it
    was begun, once or not at all, so ``returned`` is None. ``invoked`` and ``returned`` are monotonic
    nanoseconds, ``began_at`` and ``ended_at`` wall-clock milliseconds. ``as_of`` is the earliest time by
    which it may be decided what has expired: when the oldest write under way began, since reads go by the
    beginning of a commit.
    """

    client: str
    number: int
    effects: tuple[Effect, ...]
    invoked: int
    began_at: int
    returned: int | None = None
    ended_at: int | None = None
    outcome: str = "unknown"
    code: str | None = None
    at: int = 0
    found: tuple[Found, ...] = ()
    as_of: int = -1

    def __post_init__(self) -> None:
        if self.as_of < 0:
            self.as_of = self.began_at

    @property
    def writes(self) -> bool:
        """Whether it asks for a change."""
        return any(effect.op in CHANGING for effect in self.effects)

    def ends(self) -> float:
        """When it is certain that it was done, in the nanoseconds of ``invoked``."""
        return inf if self.returned is None else self.returned

    def part(self, key: str) -> tuple[Effect, Found | None] | None:
        """What it asks and tells of ``key``; None if nothing."""
        if self.outcome == "failed":
            effect = self.effects[self.at]
            return (effect, self.found[0]) if effect.key == key else None
        for number, effect in enumerate(self.effects):
            if effect.key == key:
                return effect, self.found[number] if self.found else None
        return None

    def looks_at(self, key: str) -> bool:
        """Whether it leaves ``key`` as it is, and was answered."""
        part = self.part(key)
        if part is None or self.returned is None:
            return False
        return self.outcome == "failed" or part[0].op in ("get", "check")

    def __str__(self) -> str:
        ended = "…" if self.returned is None else f"{self.returned / 1e6:.3f}"
        asked, told = _words(self.effects), _words(self.found)
        span = f"[{self.invoked / 1e6:.3f}, {ended}]"
        return f"{self.client} #{self.number} {span} {asked} → {self.outcome} {self.code or ''} {told}"


def _words(parts: Sequence[Effect] | Sequence[Found]) -> str:
    said = [[f"{n}={v}" for n, v in part._asdict().items() if v is not None] for part in parts]
    return "; ".join(" ".join(words) for words in said)


@dataclass
class History:
    """All operations of all clients; they may be added from any thread."""

    operations: list[Operation] = field(default_factory=list)
    write_ms: int = WRITE_MS
    _writing: list[Operation] = field(default_factory=list, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, client: str, effects: Sequence[Effect]) -> Operation:
        """Note that ``client`` begins with an operation."""
        wall = time.time_ns() // 1_000_000
        with self._lock:
            operation = Operation(client, len(self.operations), tuple(effects), time.monotonic_ns(), wall)
            self._writing = [
                o for o in self._writing if o.returned is None and o.began_at > wall - self.write_ms
            ]
            operation.as_of = min([wall, *(other.began_at for other in self._writing)])
            if operation.writes:
                self._writing.append(operation)
            self.operations.append(operation)
        return operation

    def drop(self, operation: Operation) -> None:
        """Forget an operation that certainly did nothing and told nothing."""
        with self._lock:
            self.operations.remove(operation)
            self._writing = [other for other in self._writing if other is not operation]

    def __len__(self) -> int:
        return len(self.operations)

    def save(self, path: Path) -> None:
        """Write it as a JSON object for each operation."""
        path.write_text("".join(json.dumps(asdict(operation)) + "\n" for operation in self.operations))


def end(
    operation: Operation, outcome: str, found: Iterable[Found] = (), *, code: str | None = None, at: int = 0
) -> None:
    """Note what ``operation`` came to, now."""
    operation.returned = time.monotonic_ns()
    operation.ended_at = time.time_ns() // 1_000_000
    operation.outcome, operation.found, operation.code, operation.at = outcome, tuple(found), code, at


# ── against the order of the log ─────────────────────────────────────────────────────────────────


class _Past:
    """What a key was at every revision, by its events."""

    def __init__(self) -> None:
        self.revisions: list[int] = [0]
        self.states: list[Event | None] = [None]

    def add(self, event: Event) -> None:
        self.revisions.append(event.revision)
        self.states.append(event if event.op == "put" else None)

    def at(self, revision: int) -> Event | None:
        return self.states[bisect_right(self.revisions, revision) - 1]

    def first_fit(self, bound: int, found: Found, operation: Operation) -> int | None:
        """The first revision from ``bound`` on at which the key is as it was found."""
        start = bisect_right(self.revisions, bound) - 1
        for index in range(start, len(self.revisions)):
            if _is_as_found(self.states[index], found, operation):
                return max(bound, self.revisions[index])
        return None


def _is_as_found(state: Event | None, found: Found, operation: Operation) -> bool:
    record = None if state is None else state.record
    expires_at = None if record is None else record.expires_at
    ended_at = inf if operation.ended_at is None else operation.ended_at
    if not found.revision:
        return record is None or (expires_at is not None and expires_at <= ended_at + CLOCK_SLACK_MS)
    if record is None or record.revision != found.revision:
        return False
    told = found.number, found.version, found.create_revision
    real = int(record.value or b"0"), record.version, record.create_revision
    if any(one is not None and one != other for one, other in zip(told, real, strict=True)):
        return False
    return expires_at is None or expires_at > operation.as_of - CLOCK_SLACK_MS


def check_witness(operations: Sequence[Operation], log: Sequence[Event], *, is_shared: bool = False) -> None:
    """Raise WrongHistoryError unless ``log``, all events of the store in order, explains ``operations``.

    ``is_shared``: what several clients asked may have been committed together, in one revision; the changes
    of each still stand beside each other.
    """
    _Witness(operations, log, is_shared=is_shared).check()


class _Witness:
    def __init__(self, operations: Sequence[Operation], log: Sequence[Event], *, is_shared: bool) -> None:
        self._is_shared = is_shared
        self._operations = sorted(operations, key=lambda operation: operation.invoked)
        self._past: dict[str, _Past] = defaultdict(_Past)
        self._commits = {
            r: list(events) for r, events in itertools.groupby(log, key=lambda event: event.revision)
        }
        self._before: dict[tuple[int, str], Event | None] = {}
        self._claims: dict[tuple[int, str], Operation] = {}
        self._bounds: dict[int, int] = {}
        self._check_log(log)

    def check(self) -> None:
        """Everything."""
        written = [o for o in self._operations if o.outcome == "ok" and o.writes]
        # those that may have changed nothing are asked last: they take what nobody else did
        for operation in sorted(written, key=_only_persists):
            self._claim(operation)
        for operation in self._operations:
            if operation.code == "condition_failed":
                wanted, found = operation.effects[operation.at].if_revision, operation.found[0].revision
                _demand(wanted not in (None, found), f"the condition did hold: {operation}")
        self._check_time()
        self._match_the_unknown()
        for (revision, key), operation in self._claims.items():
            self._check_claim(operation, revision, key)

    def _check_log(self, log: Sequence[Event]) -> None:
        """The log by itself makes sense: places in order, and each event builds on the one before."""
        places = [(event.revision, event.index) for event in log]
        _demand(places == sorted(set(places)), "the log's places are out of order or repeated")
        for revision, events in self._commits.items():
            _demand(
                [e.index for e in events] == list(range(events[0].count)), f"revision {revision} is not whole"
            )
        for event in log:
            before = self._past[event.key].states[-1]
            self._before[event.revision, event.key] = before
            _demand(event.previous_revision == _revision(before), f"{event} replaces another record")
            _check_step(event, before)
            self._past[event.key].add(event)

    def _claim(self, operation: Operation) -> None:
        """The operation's revision is its own and holds what it did, all of it and nothing else; and right
        before it the keys were as it required."""
        pairs = [
            (effect, found)
            for effect, found in zip(operation.effects, operation.found, strict=True)
            if effect.op != "check"
        ]
        own = {found.revision for effect, found in pairs if effect.op != "persist"}
        _demand(len(own) <= 1, f"not atomic: {operation}")
        revision = max(found.revision for _, found in pairs)
        commit = self._commits.get(revision, [])
        changed = [effect for effect, found in pairs if found.revision == revision]
        events = self._together(commit, changed)
        fits = bool(events) and (self._is_shared or len(events) == len(commit))
        if not own:  # only the log tells whether a persist found a time to live to take away
            if fits and all(_is_persist(event, self._before) for event in events):
                for event in events:
                    self._claims.setdefault((revision, event.key), operation)
            return
        _demand(
            own == {revision} and fits, f"the log has {commit} at revision {revision}, and not {operation}"
        )
        for event in events:
            other = self._claims.setdefault((revision, event.key), operation)
            is_one = other is operation or _is_persist(event, self._before)
            _demand(is_one, f"one change for two: {other} and {operation}")
        _demand(self._held_before(operation, events[0]), f"not required of what was there: {operation}")

    def _held_before(self, operation: Operation, first: Event) -> bool:
        """Whether all that the operation checks was so right before ``first``, the first of its events."""
        return all(
            _revision(self._right_before(first, effect.key)) == effect.if_revision
            for effect in operation.effects
            if effect.op == "check"
        )

    def _right_before(self, first: Event, key: str) -> Event | None:
        """What a key was, also by the changes of others that share the commit, and stand before in it: one
        of them may be that the key had expired, which the check itself found."""
        state = self._past[key].at(first.revision - 1)
        for event in self._commits[first.revision][: first.index]:
            if event.key == key:
                state = event if event.op == "put" else None
        return state

    @staticmethod
    def _together(commit: list[Event], effects: list[Effect]) -> list[Event]:
        """The events of ``effects``, if they stand beside each other in this order; else none. That of a
        persist may be another's, before them: the key had no time to live any more."""
        for start in range(len(commit)):
            end = start
            for effect in effects:
                if end < len(commit) and commit[end].key == effect.key:
                    end += 1
                elif effect.op != "persist" or effect.key not in [event.key for event in commit[:end]]:
                    break
            else:
                if end > start:
                    return commit[start:end]
        return []

    def _check_time(self) -> None:
        """Put each operation at the lowest revision that what it says and the clock allow; whoever began
        after others had returned stands behind them."""
        returns = sorted((o for o in self._operations if o.returned is not None), key=Operation.ends)
        placed: dict[int, int] = {}
        bound = done = 0
        for operation in self._operations:
            while done < len(returns) and returns[done].ends() < operation.invoked:
                bound = max(bound, placed[id(returns[done])])
                done += 1
            self._bounds[id(operation)] = bound
            if operation.outcome != "unknown":
                placed[id(operation)] = self._place(operation, bound)

    def _place(self, operation: Operation, bound: int) -> int:
        if operation.outcome == "ok" and operation.writes:
            revision = max(found.revision for found in operation.found)
            claimed = [
                place
                for effect in operation.effects
                if self._claims.get(place := (revision, effect.key)) is operation
            ]
            if claimed and revision <= bound and _only_persists(operation):
                # it found no time to live: who took that away is one of which nobody knows
                for place in claimed:
                    del self._claims[place]
            elif claimed:
                _demand(revision > bound, f"after {bound} was seen came {operation}")
                return revision
        keys = [(e.key, f) for e, f in zip(operation.effects, operation.found, strict=False)]
        if operation.outcome == "failed":
            keys = [(operation.effects[operation.at].key, operation.found[0])]
        place = bound
        while True:
            fits = [self._past[key].first_fit(place, found, operation) for key, found in keys]
            for (key, _), fit in zip(keys, fits, strict=True):
                _demand(fit is not None, f"{key} was never so after revision {bound}: {operation}")
            latest = max((fit for fit in fits if fit is not None), default=place)
            if latest == place:
                return place
            place = latest

    def _match_the_unknown(self) -> None:
        """Each change that nobody was told of is that of one operation whose outcome is unknown."""
        free = [o for o in self._operations if o.outcome == "unknown" and o.writes]
        for revision, commit in self._commits.items():
            rest = [e for e in commit if e.op != "expire" and (revision, e.key) not in self._claims]
            while rest:
                for operation in free:
                    if self._bounds[id(operation)] < revision and (made := self._made(operation, rest)):
                        break
                else:
                    raise WrongHistoryError(f"nobody did this, or somebody twice: {rest}")
                self._claims.update(((revision, event.key), operation) for event in made)
                free.remove(operation)
                del rest[: len(made)]

    def _made(self, operation: Operation, rest: list[Event]) -> list[Event]:
        """Those of the first events that the operation may have made; it has to be all where changes of
        several are never in one commit."""
        keys = {effect.key for effect in operation.effects if effect.op != "check"}
        made = list(itertools.takewhile(lambda event: event.key in keys, rest))
        is_whole = self._is_shared or len(made) == len(rest)
        return made if made and is_whole and self._may_have_made(operation, made) else []

    def _may_have_made(self, operation: Operation, events: list[Event]) -> bool:
        by_key = {effect.key: effect for effect in operation.effects if effect.op != "check"}
        if not self._held_before(operation, events[0]):
            return False
        try:
            for event in events:
                self._check_effect(by_key[event.key], event, None, operation)
        except WrongHistoryError:
            return False
        changed = {event.key for event in events}
        return all(effect.op == "persist" for key, effect in by_key.items() if key not in changed)

    def _check_claim(self, operation: Operation, revision: int, key: str) -> None:
        event = next(event for event in self._commits[revision] if event.key == key)
        part = operation.part(key)
        _demand(part is not None, f"{event} by {operation}")
        if part is not None:
            self._check_effect(part[0], event, part[1], operation)

    def _check_effect(self, effect: Effect, event: Event, found: Found | None, operation: Operation) -> None:
        """The event is what the effect makes of the key's state before it, and what was told of it."""
        before, by = self._before[event.revision, effect.key], f"{event} by {operation}"
        _demand((event.op == "delete") == (effect.op == "delete"), by)
        if effect.if_revision is not None:
            at = _revision(before)
            _demand(at == effect.if_revision, f"at revision {at} was applied {operation}")
        record = event.record
        if record is None:
            return
        old = None if before is None else before.record
        number = _number_after(effect, old and int(old.value or b"0"))
        _demand(int(record.value or b"0") == number, by)
        if effect.op in ("put", "incr"):
            _demand(record.modified_at == event.time, by)
        else:
            _demand(old is not None and old.version == record.version, by)
        self._check_expiry(effect, event, operation)
        if found is not None:
            _demand(_agrees(found, record), f"{record} is not what was answered to {operation}")

    def _check_expiry(self, effect: Effect, event: Event, operation: Operation) -> None:
        before = self._before[event.revision, effect.key]
        old = None if before is None or before.record is None else before.record.expires_at
        new = None if event.record is None else event.record.expires_at
        if effect.ttl_ms is None:
            wanted = old if effect.op == "incr" else None
            _demand(new == wanted, f"expires at {new} and not {wanted}: {operation}")
            return
        _demand(new is not None, f"never expires: {operation}")
        since = operation.began_at + effect.ttl_ms - CLOCK_SLACK_MS
        until = (inf if operation.ended_at is None else operation.ended_at) + effect.ttl_ms + CLOCK_SLACK_MS
        _demand(new is not None and since <= new <= until, f"expires at {new}: {operation}")


def _check_step(event: Event, before: Event | None) -> None:
    """What every event is, whoever made it."""
    old = None if before is None else before.record
    if event.op != "put":
        _demand(old is not None, f"{event} of a key that was not there")
    if event.op == "expire":
        at = None if old is None else old.expires_at
        _demand(at is not None and at <= event.time + CLOCK_SLACK_MS, f"{event} before its time")
        return
    # no write builds on a record whose time is over
    _demand(
        old is None or old.expires_at is None or old.expires_at > event.time - CLOCK_SLACK_MS,
        f"{event} came late",
    )
    record = event.record
    if record is None:
        return
    _demand(record.revision == event.revision, f"{event} has a record of another revision")
    if old is None:
        _demand((record.create_revision, record.version) == (event.revision, 1), f"{event} is no creation")
    else:
        _demand(record.create_revision == old.create_revision, f"{event} was created anew")
        _demand(record.version - old.version in (0, 1), f"{event} follows version {old.version}")


def _only_persists(operation: Operation) -> bool:
    return {effect.op for effect in operation.effects} <= {"persist", "check"}


def _is_persist(event: Event, before: dict[tuple[int, str], Event | None]) -> bool:
    old = before[event.revision, event.key]
    if event.record is None or old is None or old.record is None:
        return False
    return old.record.version == event.record.version and event.record.expires_at is None


def _agrees(found: Found, record: object) -> bool:
    return all(
        value is None or value == (int(record.value or b"0") if name == "number" else getattr(record, name))  # type: ignore[attr-defined]
        for name, value in found._asdict().items()
    )


def _revision(state: Event | None) -> int:
    return 0 if state is None else state.revision


def _number_after(effect: Effect, old: int | None) -> int | None:
    if effect.op == "put":
        return effect.number
    if effect.op == "incr":
        return (old or 0) + (effect.number or 0)
    return old


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WrongHistoryError(otherwise)


# ── any order at all, one key ────────────────────────────────────────────────────────────────────


class _State(NamedTuple):
    """A key that is there: its number, the revision that it was told to have (None: nobody was told), and
    between which times it expires."""

    number: int
    revision: int | None
    soonest: float = inf
    latest: float = inf


class _Configuration(NamedTuple):
    """A state that the key may be in, and which of the calls under way were done for that: those that will
    return, and those of which nobody will ever know."""

    state: _State | None
    done: frozenset[int] = frozenset()
    used: frozenset[int] = frozenset()


class _Frontier:
    """Configurations, but for those that others make superfluous: who came to the same with fewer of the
    calls of which nobody knows can do whatever the other can, since those may also not be done at all."""

    def __init__(self) -> None:
        self._least: dict[tuple[_State | None, frozenset[int]], list[frozenset[int]]] = {}
        self.size = 0

    def add(self, new: _Configuration) -> bool:
        """Whether it is new and not superfluous."""
        least = self._least.setdefault((new.state, new.done), [])
        if any(used <= new.used for used in least):
            return False
        least[:] = [used for used in least if not new.used <= used]
        least.append(new.used)
        self.size += 1
        return True

    def __iter__(self) -> Iterator[_Configuration]:
        for (state, done), least in self._least.items():
            for used in least:
                yield _Configuration(state, done, used)


def check_keys(operations: Sequence[Operation], *, is_shared: bool = False) -> None:
    """:func:`check_key` for every key that occurs; if each of them is linearizable, so are all together."""
    for key in sorted({effect.key for operation in operations for effect in operation.effects}):
        check_key(key, operations, is_shared=is_shared)


def check_key(key: str, operations: Sequence[Operation], *, is_shared: bool = False) -> None:
    """Raise WrongHistoryError unless some order explains what ``operations`` did to ``key`` and were told.

    ``is_shared``: several daemons serve the store. Then one may not show a key any more whose time is over,
    while a write that found it alive is still on its way from another, and keeps it.
    """
    concerned = [operation for operation in operations if operation.part(key) is not None]
    moments = sorted(
        [(float(o.invoked), 0, n) for n, o in enumerate(concerned)]
        + [(o.ends(), 1, n) for n, o in enumerate(concerned) if o.returned is not None]
    )
    configurations = [_Configuration(None)]
    pending: set[int] = set()
    for _, is_return, number in moments:
        if not is_return:
            pending.add(number)
            continue
        after = _linearized(key, number, configurations, pending, concerned, is_shared=is_shared)
        if not after:
            raise WrongHistoryError(_shown(key, number, configurations, pending, concerned))
        configurations = after
        pending.discard(number)


def _linearized(
    key: str,
    number: int,
    before: Sequence[_Configuration],
    pending: set[int],
    concerned: Sequence[Operation],
    *,
    is_shared: bool,
) -> list[_Configuration]:
    """All configurations in which operation ``number`` was done."""
    seen, after = _Frontier(), _Frontier()
    looking = {other for other in pending if concerned[other].looks_at(key)}

    def with_looks(configuration: _Configuration) -> _Configuration:
        """The same, and done is also whatever only looks at the key and finds it so. It is under way, and
        changes nothing for what comes after it, so to do it later could not explain more."""
        state, done, used = configuration
        fits = {
            other
            for other in looking - done
            if list(_steps(key, concerned[other], state, is_shared=is_shared)) == [state]
        }
        return _Configuration(state, done | fits, used) if fits else configuration

    queue = deque(configuration for configuration in map(with_looks, before) if seen.add(configuration))
    while queue:
        state, done, used = queue.popleft()
        if number in done:
            after.add(_Configuration(state, done - {number}, used))
            continue
        for other in pending - done - used:
            is_known = concerned[other].returned is not None
            for changed in _steps(key, concerned[other], state, is_shared=is_shared):
                if is_known:
                    new = _Configuration(changed, done | {other}, used)
                elif changed != state:
                    new = _Configuration(changed, done, used | {other})
                else:
                    continue
                new = with_looks(new)
                if seen.add(new):
                    queue.append(new)
        if seen.size > MOST_STATES:
            raise AssertionError(f"too much at once on {key} to be decided: {len(pending)} operations")
    return list(after)


def _steps(
    key: str, operation: Operation, state: _State | None, *, is_shared: bool
) -> Iterator[_State | None]:
    """The states that the operation may leave behind, where it can be done at all."""
    part = operation.part(key)
    assert part is not None
    effect, found = part
    ended_at = inf if operation.ended_at is None else operation.ended_at
    if state is not None and state.soonest <= ended_at + CLOCK_SLACK_MS:
        for changed in _step(operation, effect, found, None):
            yield changed
            if is_shared and changed is None and effect.op != "delete":
                yield state
    if state is None or state.latest > operation.as_of - CLOCK_SLACK_MS:
        yield from _step(operation, effect, found, state)


def _step(
    operation: Operation, effect: Effect, found: Found | None, state: _State | None
) -> Iterator[_State | None]:
    if operation.outcome == "failed" or effect.op == "get":
        assert found is not None
        if operation.code != "condition_failed" or effect.if_revision != found.revision:
            yield from _observed(found, state)
        return
    if effect.if_revision is not None and not _has_revision(state, effect.if_revision):
        return
    if effect.op == "check":
        yield from [state] if found is None else _observed(found, state)
        return
    if effect.op not in ("put", "incr") and state is None:
        return
    if effect.op == "delete":
        yield None
        return
    number = _number_after(effect, None if state is None else state.number)
    assert number is not None
    if found is not None and found.number is not None and found.number != number:
        return
    if effect.op == "persist" and state is not None and state.soonest == inf:
        yield from [state] if found is None else _observed(found, state)
        return
    yield _State(number, None if found is None else found.revision, *_expiry(operation, effect, found, state))


def _expiry(
    operation: Operation, effect: Effect, found: Found | None, state: _State | None
) -> tuple[float, float]:
    if effect.ttl_ms is not None:
        if found is not None and found.expires_at is not None:
            return found.expires_at, found.expires_at
        ended_at = inf if operation.ended_at is None else operation.ended_at
        return operation.began_at + effect.ttl_ms, ended_at + effect.ttl_ms
    if effect.op == "incr" and state is not None:
        return state.soonest, state.latest
    return inf, inf


def _has_revision(state: _State | None, revision: int) -> bool:
    if state is None or not revision:
        return state is None and not revision
    return state.revision in (revision, None)


def _observed(found: Found, state: _State | None) -> Iterator[_State | None]:
    """The state, if it is as found; with what was learned of it."""
    if not _has_revision(state, found.revision):
        return
    if state is None:
        yield None
    elif found.number in (None, state.number):
        known = state._replace(revision=found.revision)
        if found.expires_at is not None:
            known = known._replace(soonest=found.expires_at, latest=found.expires_at)
        yield known


def _shown(
    key: str, number: int, before: Sequence[_Configuration], pending: set[int], concerned: Sequence[Operation]
) -> str:
    """The operation that nothing explains, what was under way beside it, and what was just before."""
    operation = concerned[number]
    earlier = sorted((o for o in concerned if o.ends() < operation.ends()), key=Operation.ends)[-10:]
    beside = [concerned[other] for other in pending if other != number]
    lines = [f"no order explains {operation}", f"{key} may have been:"]
    lines += [f"  {one.state}, with {len(one.done)} + {len(one.used)} done" for one in before[:10]]
    lines += [
        "under way beside it:",
        *(f"  {o}" for o in beside),
        "just before it:",
        *(f"  {o}" for o in earlier),
    ]
    return "\n".join(lines)
