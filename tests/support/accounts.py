"""Whether the log of a store, what can be read from it and what its watchers saw agree with what was
acknowledged to those who wrote."""

from __future__ import annotations

from collections import Counter

from support.load import COUNTER, LAST_KEY, Ledger, Seen


def check_log(log: list[Seen], ledger: Ledger) -> None:
    """Every acknowledged write is there once, as acknowledged, and no revision stands for two commits."""
    places = [(event.revision, event.index) for event in log]
    assert places == sorted(set(places)), "revisions are reused or out of order"
    by_place = {(event.revision, event.op, event.key): event for event in log}
    for write in ledger.writes:
        event = by_place.get((write.revision, write.op, write.key))
        assert event is not None, f"{write} was acknowledged and is missing"
        assert event.value == write.value, f"{write} was acknowledged and became {event}"
    written = Counter(
        event.value for event in log if event.op == "put" and event.key not in (COUNTER, LAST_KEY)
    )
    repeated = [value for value, times in written.items() if times > 1]
    assert not repeated, f"applied more than once: {repeated[:5]}"


def check_state(found: dict[str, str], log: list[Seen], ledger: Ledger) -> None:
    """What was ``found`` is what the events add up to; increments were applied once each."""
    expected: dict[str, str | None] = {}
    for event in log:
        if event.op == "put":
            expected[event.key] = event.value
        else:
            del expected[event.key]
    assert found == expected
    assert int(found[COUNTER]) == ledger.increments


def check_watcher(name: str, seen: list[Seen], log: list[Seen]) -> None:
    """Every event once and in order."""
    for number, (told, committed) in enumerate(zip(seen, log, strict=False)):
        assert told == committed, f"{name}: event {number} of {len(log)} differs"
    assert len(seen) == len(log), f"{name} saw {len(seen)} of {len(log)} events"
