"""The one table of checks, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvstore_cli.doctor import passing, reach, speed, streams
from kvstore_cli.doctor.findings import Finding
from kvstore_cli.doctor.probe import Probe


class Check(NamedTuple):
    """One check. ``seconds`` is about the most that it takes through a proxy that is slow or broken,
    0 where it is as long as silence is listened to."""

    name: str
    run: Callable[[Probe], Iterator[Finding]]
    does_write: bool
    seconds: int


CHECKS = (
    Check("reachable", reach.reachable, False, 5),
    Check("daemon", reach.daemon, False, 5),
    Check("protocol", reach.protocol, False, 5),
    Check("clock", reach.clock, False, 1),
    Check("daemon clock", reach.daemon_clock, True, 1),
    Check("durable writes", speed.durable_writes, True, 10),
    Check("fresh reads", passing.fresh_reads, True, 2),
    Check("conditions", passing.conditions, True, 2),
    Check("request headers", passing.request_headers, True, 5),
    Check("response headers", passing.response_headers, True, 1),
    Check("compression", passing.compression, True, 1),
    Check("methods", passing.methods, True, 1),
    Check("keys", passing.keys, True, 3),
    Check("bodies", passing.bodies, True, 10),
    Check("streams", streams.opening, False, 6),
    Check("events", streams.events, True, 10),
    Check("idle", streams.idle, False, 0),
)
