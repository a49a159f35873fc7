"""The table of checks, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvstore_cli.doctor import checks_connectivity, checks_latency, checks_passthrough, checks_streams
from kvstore_cli.doctor.findings import Finding
from kvstore_cli.doctor.probe import Probe


class DoctorCheck(NamedTuple):
    """One check. ``seconds`` is about the most that it takes through a slow or broken proxy, 0 if it takes as
    long as ``--idle``."""

    name: str
    run: Callable[[Probe], Iterator[Finding]]
    does_write: bool
    seconds: int


CHECKS = (
    DoctorCheck("reachable", checks_connectivity.reachable, False, 5),
    DoctorCheck("daemon", checks_connectivity.daemon, False, 5),
    DoctorCheck("protocol", checks_connectivity.protocol, False, 5),
    DoctorCheck("clock", checks_connectivity.clock, False, 1),
    DoctorCheck("daemon clock", checks_connectivity.daemon_clock, True, 1),
    DoctorCheck("durable writes", checks_latency.durable_writes, True, 10),
    DoctorCheck("fresh reads", checks_passthrough.fresh_reads, True, 2),
    DoctorCheck("conditions", checks_passthrough.conditions, True, 2),
    DoctorCheck("request headers", checks_passthrough.request_headers, True, 5),
    DoctorCheck("response headers", checks_passthrough.response_headers, True, 1),
    DoctorCheck("compression", checks_passthrough.compression, True, 1),
    DoctorCheck("methods", checks_passthrough.methods, True, 1),
    DoctorCheck("keys", checks_passthrough.keys, True, 3),
    DoctorCheck("bodies", checks_passthrough.bodies, True, 10),
    DoctorCheck("streams", checks_streams.opening, False, 6),
    DoctorCheck("events", checks_streams.events, True, 10),
    DoctorCheck("idle", checks_streams.idle, False, 0),
)
