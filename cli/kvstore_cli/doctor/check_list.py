"""The one table of checks, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvstore_cli.doctor import checks_connectivity, checks_latency, checks_passthrough, checks_streams
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
    Check("reachable", checks_connectivity.reachable, False, 5),
    Check("daemon", checks_connectivity.daemon, False, 5),
    Check("protocol", checks_connectivity.protocol, False, 5),
    Check("clock", checks_connectivity.clock, False, 1),
    Check("daemon clock", checks_connectivity.daemon_clock, True, 1),
    Check("durable writes", checks_latency.durable_writes, True, 10),
    Check("fresh reads", checks_passthrough.fresh_reads, True, 2),
    Check("conditions", checks_passthrough.conditions, True, 2),
    Check("request headers", checks_passthrough.request_headers, True, 5),
    Check("response headers", checks_passthrough.response_headers, True, 1),
    Check("compression", checks_passthrough.compression, True, 1),
    Check("methods", checks_passthrough.methods, True, 1),
    Check("keys", checks_passthrough.keys, True, 3),
    Check("bodies", checks_passthrough.bodies, True, 10),
    Check("streams", checks_streams.opening, False, 6),
    Check("events", checks_streams.events, True, 10),
    Check("idle", checks_streams.idle, False, 0),
)
