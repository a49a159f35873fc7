"""Makes the checks of the table, one after another, and says what they come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

from kvstore_cli.doctor.check_list import CHECKS, Check
from kvstore_cli.doctor.findings import FAILED, NOTE, OK, SKIPPED, WARNING, Finding, failed, skipped
from kvstore_cli.doctor.probe import NotStoredError, Probe
from kvstore_cli.http_client.connection import reason
from kvstore_core.errors import ERRORS, EXIT_DONE, EXIT_ERROR, KvError

# Without these nothing else can be asked, and what they fail with is what any other command would.
_FIRST = ("reachable", "daemon")
_CODES = {
    "no_upstream": "unavailable",
    "daemon_away": "unavailable",
    "login_wanted": "not_allowed",
    "host_refused": "not_allowed",
}
_SPARE_SECONDS = 10
_BY_WEIGHT = (OK, SKIPPED, NOTE, WARNING, FAILED)

Tell = Callable[[str, Finding], None]
"""Is given each finding as soon as it is there, after the name of its check."""


class Outcome(NamedTuple):
    """All findings, each after the name of its check, and the exit status that they come to."""

    findings: list[tuple[str, Finding]]
    exit: int

    @property
    def status(self) -> str:
        """The gravest status of all."""
        return max((finding.status for _, finding in self.findings), key=_BY_WEIGHT.index)

    def as_json(self) -> dict[str, Any]:
        """The outcome for programs."""
        return {
            "status": self.status,
            "checks": [{"check": name, **finding.as_json()} for name, finding in self.findings],
        }


def longest_seconds(idle: float, *, is_quick: bool, is_read_only: bool) -> int:
    """How long an examination takes at most."""
    chosen = [check for check in CHECKS if not (is_read_only and check.does_write)]
    return sum(check.seconds for check in chosen) + _SPARE_SECONDS + (0 if is_quick else round(idle))


def examine(probe: Probe, tell: Tell, *, is_quick: bool, is_read_only: bool) -> Outcome:
    """Make the checks and clean up behind them, also when it is interrupted.

    ``is_quick`` leaves out those that take long, ``is_read_only`` those that write. It ends after
    :func:`longest_seconds` in any case.
    """
    probe.deadline = monotonic() + longest_seconds(0, is_quick=True, is_read_only=is_read_only)
    findings: list[tuple[str, Finding]] = []
    try:
        for check in CHECKS:
            why_not = _why_not(check, probe, is_quick=is_quick, is_read_only=is_read_only)
            for finding in [skipped(why_not)] if why_not else _made(check, probe):
                findings.append((check.name, finding))
                tell(check.name, finding)
                if check.name in _FIRST and finding.status == FAILED and finding.cause != "store_full":
                    return Outcome(findings, _exit_of(finding))
    finally:
        _clean(probe)
    has_failed = any(finding.status == FAILED for _, finding in findings)
    return Outcome(findings, EXIT_ERROR if has_failed else EXIT_DONE)


def _why_not(check: Check, probe: Probe, *, is_quick: bool, is_read_only: bool) -> str:
    if check.does_write and is_read_only:
        return "writes, and --read-only was given"
    if check.does_write and probe.status.get("writes_refused"):
        return "writes, and writes are refused"
    if check.seconds == 0 and is_quick:
        return "takes long, and --quick was given"
    return ""


def _made(check: Check, probe: Probe) -> Iterator[Finding]:
    """The findings of a check; what it could not ask is one too."""
    try:
        yield from check.run(probe)
    except NotStoredError as refused:
        is_limit = refused.reply.status == 413 and refused.reply.code is None
        cause = "body_limit" if is_limit else "no_answer"
        yield failed(cause, f"a value of {refused.size} bytes was refused with {refused.reply.shown}")
    except KvError as error:
        cause = "unreachable" if check.name == "reachable" else "no_answer"
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
        pass  # what was written has a TTL
    finally:
        probe.close()
