"""The table of checks, in the order in which they are run one by one, and the sum of what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

from kvstore_cli.doctor import checks_access, checks_connectivity, checks_passthrough, checks_streams
from kvstore_cli.doctor.findings import FAILED, NOTE, OK, SKIPPED, WARNING, Finding, failed, skipped
from kvstore_cli.doctor.probe import OWN_FAILURES, NotStoredError, Probe
from kvstore_cli.http_client.connection import reason
from kvstore_core.errors import ERRORS, EXIT_DONE, EXIT_ERROR, KvError


class DoctorCheck(NamedTuple):
    """One check. ``seconds`` is about the most that it takes through a slow or broken proxy, 0 if it takes as
    long as ``--idle``. Nearly all use keys of the doctor's, so that a token has to be granted those."""

    name: str
    run: Callable[[Probe], Iterator[Finding]]
    does_write: bool
    seconds: int
    needs_keys: bool = True


CHECKS = (
    DoctorCheck("reachable", checks_connectivity.reachable, False, 5, needs_keys=False),
    DoctorCheck("daemon", checks_connectivity.daemon, False, 5, needs_keys=False),
    DoctorCheck("certificate", checks_connectivity.certificate, False, 5, needs_keys=False),
    DoctorCheck("protocol", checks_connectivity.protocol, False, 5, needs_keys=False),
    DoctorCheck("access", checks_access.access, False, 10, needs_keys=False),
    DoctorCheck("clock", checks_connectivity.clock, False, 1, needs_keys=False),
    DoctorCheck("daemon clock", checks_connectivity.daemon_clock, True, 1),
    DoctorCheck("durable writes", checks_connectivity.durable_writes, True, 10),
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

# if these fail, the others cannot run, and the exit status is that of any other command
_FIRST = ("reachable", "daemon")
_CODES = {
    "no_upstream": "unavailable",
    "daemon_away": "unavailable",
    "service_fails": "unavailable",
    "wants_https": "unavailable",
    "login_wanted": "not_allowed",
    "host_refused": "not_allowed",
}
_SPARE_SECONDS = 10
_BY_WEIGHT = (OK, SKIPPED, NOTE, WARNING, FAILED)


class Results(NamedTuple):
    """All findings, each with the name of its check, and the exit status."""

    findings: list[tuple[str, Finding]]
    exit: int

    def as_json(self) -> dict[str, Any]:
        """The results as JSON, with the worst status of all."""
        return {
            "status": max((finding.status for _, finding in self.findings), key=_BY_WEIGHT.index),
            "checks": [{"check": name, **finding.as_json()} for name, finding in self.findings],
        }


def longest_seconds(idle: float, *, is_quick: bool, is_read_only: bool) -> int:
    """How long all checks take at most."""
    chosen = [check for check in CHECKS if not (is_read_only and check.does_write)]
    return sum(check.seconds for check in chosen) + _SPARE_SECONDS + (0 if is_quick else round(idle))


def run_checks(
    probe: Probe, tell: Callable[[str, Finding], None], *, is_quick: bool, is_read_only: bool
) -> Results:
    """Run the checks and clean up after them, also when interrupted.

    ``tell`` is called with the name of the check and each finding, as it is made. ``is_quick`` skips those
    that take long, ``is_read_only`` those that write. This takes :func:`longest_seconds` at most.
    """
    probe.deadline = monotonic() + longest_seconds(0, is_quick=True, is_read_only=is_read_only)
    findings: list[tuple[str, Finding]] = []
    try:
        for check in CHECKS:
            skip_reason = _reason_to_skip(check, probe, is_quick=is_quick, is_read_only=is_read_only)
            for finding in [skipped(skip_reason)] if skip_reason else _findings_of(check, probe):
                findings.append((check.name, finding))
                tell(check.name, finding)
                if check.name in _FIRST and finding.status == FAILED and finding.cause != "store_full":
                    return Results(findings, _exit_of(finding))
    finally:
        _clean(probe)
    has_failed = any(finding.status == FAILED for _, finding in findings)
    return Results(findings, EXIT_ERROR if has_failed else EXIT_DONE)


def _reason_to_skip(check: DoctorCheck, probe: Probe, *, is_quick: bool, is_read_only: bool) -> str:
    if check.does_write and is_read_only:
        return "writes, and --read-only was given"
    if check.does_write and (probe.is_refused or probe.status.get("writes_refused")):
        return "writes, and writes are refused"
    if check.needs_keys and probe.shortcoming:
        return probe.shortcoming
    if check.seconds == 0 and is_quick:
        return "takes long, and --quick was given"
    return ""


def _findings_of(check: DoctorCheck, probe: Probe) -> Iterator[Finding]:
    """The findings of a check; a request that fails is one too."""
    try:
        yield from check.run(probe)
    except NotStoredError as refused:
        if refused.reply.code in OWN_FAILURES:
            cause = "store_full" if refused.reply.code == "store_full" else "service_fails"
            detail = refused.reply.json().get("detail", "")
            yield failed(cause, f"the service cannot write ({refused.reply.shown}): {detail}")
            return
        is_ours = refused.reply.code is not None
        cause = "body_limit" if refused.reply.status == 413 and not is_ours else "no_answer"
        who = "kvstore" if is_ours else "something in front of it"
        yield failed(cause, f"{who} refuses a value of {refused.size} bytes with {refused.reply.shown}")
    except KvError as error:
        cause = "unreachable" if check.name == "reachable" else "no_answer"
        if error.code == "not_allowed":
            cause = "certificate_refused"
        yield failed(cause, error.message, code=error.code)
    except OSError as error:
        yield failed("no_answer", f"the connection failed: {reason(error)}")


def _exit_of(finding: Finding) -> int:
    code = finding.figures.get("code") or _CODES.get(finding.cause or "")
    return ERRORS[code].exit if code else EXIT_ERROR


def _clean(probe: Probe) -> None:
    try:
        probe.clean()
    except KvError:
        pass  # the keys have a TTL
    finally:
        probe.close()
