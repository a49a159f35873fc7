"""``/livez`` and ``/readyz``: whether this process answers, and whether the service can do its work.

A check that *fails* makes the service unready: it cannot do its work, and a probe should know. A *warning*
names what an operator should look at soon; to take the service out of use for it would only make things
worse. Load alone never makes it unready: a daemon that is slow to answer this one request while it answers
others is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from time import monotonic, perf_counter, time
from typing import Any, NamedTuple

import falcon

from kvstore_core.access.grants import Need
from kvstore_core.access.principal import THE_FACADE
from kvstore_core.errors import KvError
from kvstore_core.media_types import JSON, TEXT
from kvstore_core.units import MILLISECONDS, in_largest_unit
from kvstore_http import routes
from kvstore_http.backend.daemon_client import DaemonClient
from kvstore_http.metrics import counters
from kvstore_http.metrics.counters import SharedCounters
from kvstore_http.protocol.bodies import choose_type, send_fresh_json
from kvstore_http.protocol.environ import WHO
from kvstore_http.protocol.json_records import timestamp
from kvstore_http.protocol.problems import RETRY_AFTER_SECONDS
from kvstore_http.protocol.query_params import EXCLUDE, VERBOSE, read_query
from kvstore_http.streaming.change_feed import ChangeFeed

OK, WARNING, FAILED = "ok", "warning", "failed"
_MARKS = {OK: "[+]", WARNING: "[!]", FAILED: "[-]"}

LOW_DISK_BYTES = 1024**3
LOW_DISK_SHARE = 0.1
"""The disk is low on space below the smaller of the two."""

FULL_STORE_SHARE = 0.9

SHORT_LOG_SECONDS = 3600.0
"""A log that is cut to less than this leaves a subscriber too little time to restart."""

CLOCK_SECONDS = 3600.0
"""How long a step of the daemon's clock is a warning."""

REFUSED_SECONDS = 60.0
"""How long a stream that found no room is a warning; its client comes back within seconds."""

CERTIFICATE_SECONDS = 14 * 86_400.0
"""A certificate that ends sooner is a warning."""

SILENT_SECONDS = 5.0
"""The daemon publishes a heartbeat every second."""

LATE_SECONDS = 5.0
"""A mirror that was last known to be current so long ago is a warning; it is asked for every second."""

Figures = dict[str, Any]
Status = Mapping[str, Any]


class ReadinessCheck(NamedTuple):
    """The result of one check: a state, a sentence, and its figures."""

    name: str
    state: str
    message: str
    figures: Figures

    def as_json(self) -> Figures:
        """The check as a member of the answer."""
        return {"name": self.name, "status": self.state, "message": self.message, **self.figures}

    def as_line(self) -> str:
        """The check as etcd and Kubernetes write it, followed by the sentence."""
        return f"{_MARKS[self.state]}{self.name} {self.state}: {self.message}"


class LivezResource:
    """``/livez``: this process answers, with or without the daemon. Restart it if it does not."""

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        read_query(req.env, routes.NOTHING)
        send_fresh_json(req, resp, {"status": "alive"})


class ReadyzResource:
    """``/readyz``: whether the service can do its work, as 200 or 503, and with ``verbose`` each check. What
    was found is only told to those who may monitor."""

    def __init__(
        self,
        daemon: DaemonClient,
        feed: ChangeFeed,
        shared_counters: SharedCounters,
        table_problem: Callable[[], str] = str,
    ) -> None:
        """``table_problem`` says why nobody can be let in, as the table of identities never came; empty where
        it did."""
        self._table_problem = table_problem
        self._daemon = daemon
        self._feed = feed
        self._shared_counters = shared_counters

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        query = read_query(req.env, routes.READYZ)
        media_type = choose_type(req, JSON, TEXT)
        excluded = {name for names in query.all(EXCLUDE) for name in names}
        checks = [check for check in self._checks() if check.name not in excluded]
        is_verbose, who = query.get(VERBOSE) or False, req.env[WHO]
        if not who.may(Need("monitor")):
            # who may monitor cannot be known without a table, and the admin has to find out
            lost = [check for check in checks if check.name == "access" and self._table_problem()]
            checks, is_verbose = lost or _verdict(checks), False
        if media_type == TEXT:
            _send_text(resp, checks, is_verbose=is_verbose)
            return
        failed = [check for check in checks if check.state == FAILED]
        if failed:
            message = "; ".join(check.message for check in failed)
            details = {"checks": [check.as_json() for check in checks if check is not NOT_READY]}
            raise KvError("unavailable", message, **details if details["checks"] else {})
        answer: dict[str, Any] = {"status": "ready"}
        if is_verbose:
            answer["checks"] = [check.as_json() for check in checks]
        send_fresh_json(req, resp, answer)

    def _checks(self) -> Iterator[ReadinessCheck]:
        """All checks; without the daemon only those that do not need it."""
        asked, is_away, access, problem = perf_counter(), False, None, self._table_problem()
        try:
            status = self._daemon.call({"op": "status"}, who=THE_FACADE)
        except KvError as error:
            answer = _no_answer(error)
            is_away = answer.state == FAILED
            yield answer
        else:
            yield _answered(perf_counter() - asked)
            if not problem:  # with one, the daemon may take this for somebody whom it tells less
                for check in (_writes, _disk, _store, _log, _clock, _connections):
                    yield check(status)
                cluster = status["cluster"]
                if cluster is not None:
                    yield _cluster(cluster)
                    yield _mirror(cluster["mirror"])
                access = status["access"]
        yield _heard(self._feed.silent_seconds)
        yield _streams(self._shared_counters, is_away=is_away)
        ends_at = self._shared_counters.certificate_ends_at
        if ends_at is not None:
            yield _certificate(self._shared_counters, ends_at)
        if problem:
            yield ReadinessCheck("access", FAILED, f"{problem}; nobody is let in", {})
        elif access is not None:
            yield _access(access)


NOT_READY = ReadinessCheck("", FAILED, "the service cannot do its work; who may monitor it sees why", {})


def _verdict(checks: list[ReadinessCheck]) -> list[ReadinessCheck]:
    """What everybody may know of ``checks``: whether one of them failed."""
    return [NOT_READY] if any(check.state == FAILED for check in checks) else []


def _send_text(resp: falcon.Response, checks: list[ReadinessCheck], *, is_verbose: bool) -> None:
    is_ready = all(check.state != FAILED for check in checks)
    lines = [check.as_line() for check in checks if check is not NOT_READY]
    if is_ready and not is_verbose:
        lines.clear()
    verdict = "passed" if is_ready else "failed"
    lines.append(f"readyz check {verdict}" if lines or not is_ready else "ok")
    resp.text = "\n".join(lines) + "\n"
    resp.content_type = f"{TEXT}; charset=utf-8"
    resp.set_header("cache-control", "no-store")
    if not is_ready:
        resp.status = "503 Service Unavailable"
        resp.set_header("retry-after", str(RETRY_AFTER_SECONDS))


# ── the checks ───────────────────────────────────────────────────────────────────────────────────


def _no_answer(error: KvError) -> ReadinessCheck:
    if error.code == "timed_out":
        message = f"{error.message}, though it answers others: it has much to do"
        return ReadinessCheck("daemon", WARNING, message, {"code": error.code})
    return ReadinessCheck("daemon", FAILED, error.message, {"code": error.code})


def _answered(seconds: float) -> ReadinessCheck:
    figures = {"round_trip_seconds": round(seconds, 6)}
    return ReadinessCheck("daemon", OK, f"answered in {seconds * 1000:.1f} ms", figures)


def _writes(status: Status) -> ReadinessCheck:
    newest = status["newest_event_at"]
    figures: Figures = {"last_commit_at": None}
    last = "there was no write yet"
    if newest is not None:
        age = max(0.0, _now(status) - newest / 1000)
        last = f"the last commit was {_duration(age)} ago"
        figures = {"last_commit_at": timestamp(newest), "last_commit_age_seconds": round(age, 3)}
    refusal = status["writes_refused"]
    if refusal is None:
        return ReadinessCheck("writes", OK, f"writes are taken; {last}", figures)
    # a full store still takes reads and deletes; after a failed commit nothing is certain
    state = WARNING if refusal["code"] == "store_full" else FAILED
    message = f"writes are refused: {refusal['message']}; {last}"
    return ReadinessCheck("writes", state, message, {**figures, "code": refusal["code"]})


def _disk(status: Status) -> ReadinessCheck:
    free, size = status["disk_free_bytes"], status["disk_bytes"]
    low = min(LOW_DISK_BYTES, int(size * LOW_DISK_SHARE))
    figures = {"disk_free_bytes": free, "disk_bytes": size, "threshold_bytes": low}
    room = f"{_size(free)} of {_size(size)} are free"
    if _is_refused_for_disk(status):
        advice = "make room on it, or delete keys"
        return ReadinessCheck("disk", WARNING, f"{room}, too little to take writes: {advice}", figures)
    if free >= low:
        return ReadinessCheck("disk", OK, room, figures)
    message = f"{room}, less than {_size(low)}: make room before it is full"
    return ReadinessCheck("disk", WARNING, message, figures)


def _is_refused_for_disk(status: Status) -> bool:
    """Whether writes are refused for want of room, and not for the store's own limit, which names itself."""
    refusal = status["writes_refused"]
    return refusal is not None and refusal["code"] == "store_full" and "limit" not in refusal


def _store(status: Status) -> ReadinessCheck:
    used, most = status["store_bytes"], status["max_store_bytes"]
    figures = {"store_bytes": used, "file_bytes": status["file_bytes"], "max_store_bytes": most}
    room = f"{_size(used)} of {_size(most)} are used"
    if used >= FULL_STORE_SHARE * most:
        advice = "delete keys, shorten the log, or restart with a larger --max-store-bytes"
        return ReadinessCheck("store", WARNING, f"{room}: {advice}", figures)
    return ReadinessCheck("store", OK, room, figures)


def _log(status: Status) -> ReadinessCheck:
    oldest, floor, retention = status["oldest_event_at"], status["floor"], status["retention"]
    figures = {"floor": floor, "log_events": status["log_events"], "log_bytes": status["log_bytes"]}
    if floor == 0 or oldest is None:
        return ReadinessCheck(
            "log", OK, "the log reaches back to the beginning", {**figures, "shortened_by": None}
        )
    reach = max(0.0, _now(status) - oldest / 1000)
    bound = _shortened_by(status, reach)
    figures |= {"reach_seconds": round(reach, 3), "shortened_by": bound}
    message = f"subscribers can resume from {_duration(reach)} ago (revision {floor})"
    if bound is None:
        return ReadinessCheck("log", OK, f"{message}, as long as --retain-age says", figures)
    figures["max_log_bytes"] = status["max_log_bytes"]
    age = _duration(retention["age"] / 1000)
    message += f": the log is cut by {_in_words(bound, status)} before it is {age} old"
    if bound != "disk":
        message += f"; raise {bound}"
    return ReadinessCheck("log", WARNING if reach < SHORT_LOG_SECONDS else OK, message, figures)


def _shortened_by(status: Status, reach: float) -> str | None:
    """What cuts the log before ``--retain-age`` does, None if that one does: an option, or ``disk``."""
    retention = status["retention"]
    if reach >= 0.95 * retention["age"] / 1000:
        return None
    by_events = status["log_events"] / retention["events"]
    by_bytes = status["log_bytes"] / status["max_log_bytes"]
    if by_events >= by_bytes:
        return "--retain-events"
    if status["max_log_bytes"] >= retention["bytes"]:
        return "--retain-bytes"
    return "--max-store-bytes" if status["max_store_bytes"] <= status["disk_bytes"] else "disk"


def _in_words(bound: str, status: Status) -> str:
    """What ``bound`` is, and, where it is no option of the log, how large it lets the log become."""
    most = f"of which it may take a quarter ({_size(status['max_log_bytes'])})"
    if bound == "--max-store-bytes":
        return f"{bound}, {most},"
    if bound == "disk":
        return f"the size of the disk, {most},"
    return bound


def _now(status: Status) -> float:
    """The time of the daemon's clock, which stamps the events."""
    now: int = status["clock"]["now"]
    return now / 1000


def _clock(status: Status) -> ReadinessCheck:
    clock = status["clock"]
    if not clock["steps"]:
        figures: Figures = {"steps": 0, "last_step_at": None, "last_step_seconds": None}
        return ReadinessCheck("clock", OK, "the machine's clock was not set since the start", figures)
    step, age = clock["step"] / 1000, _now(status) - clock["step_at"] / 1000
    figures = {
        "steps": clock["steps"],
        "last_step_at": timestamp(clock["step_at"]),
        "last_step_seconds": step,
    }
    direction = "forward" if step > 0 else "back"
    message = f"the machine's clock was set {direction} by {_duration(abs(step))}, {_duration(age)} ago"
    if age >= CLOCK_SECONDS:
        return ReadinessCheck("clock", OK, message, figures)
    advice = "TTLs keep their length, earlier dates are off"
    return ReadinessCheck("clock", WARNING, f"{message}: {advice}", figures)


def _connections(status: Status) -> ReadinessCheck:
    taken, most = status["connections"], status["max_connections"]
    figures = {"connections": taken, "max_connections": most}
    room = f"{taken} of at most {most} connections to the daemon are open"
    if taken >= most:
        advice = "further ones are closed: raise its limit of open files (ulimit -n, LimitNOFILE=)"
        return ReadinessCheck("connections", WARNING, f"{room}, {advice}", figures)
    return ReadinessCheck("connections", OK, room, figures)


def _cluster(cluster: Figures) -> ReadinessCheck:
    members, leader = cluster["members"], cluster["leader"]
    working = [member for member in members if member["healthy"]]
    figures = {"members": len(members), "healthy": len(working), "leader": leader}
    message = f"{len(working)} of {len(members)} members of the cluster serve requests"
    if not working:
        return ReadinessCheck("cluster", FAILED, f"{message}: {cluster['warnings'][0]['message']}", figures)
    message += f", {leader or 'nobody'} leads"
    # a version that should be upgraded some day is said by status, and would be here for ever
    found = [warning["message"] for warning in cluster["warnings"] if warning["about"] != "version"]
    if found:
        return ReadinessCheck("cluster", WARNING, f"{message}: {'; '.join(found)}", figures)
    return ReadinessCheck("cluster", OK, message, figures)


def _mirror(mirror: Figures) -> ReadinessCheck:
    age, behind = mirror["lag_ms"] / 1000, mirror["lag_revisions"]
    figures = {"lag_seconds": age, "lag_revisions": behind, "rebuilds": mirror["rebuilds"]}
    message = (
        f"the mirror was current {_duration(age)} ago; since the start it was made {mirror['rebuilds']} times"
    )
    if age < LATE_SECONDS:
        return ReadinessCheck("mirror", OK, message, figures)
    message += f"; {behind} revisions are known to be missing. Stale reads are as old, others wait"
    return ReadinessCheck("mirror", WARNING, message, figures)


def _heard(silent_seconds: float) -> ReadinessCheck:
    figures = {"silent_seconds": round(silent_seconds, 3)}
    if silent_seconds < SILENT_SECONDS:
        return ReadinessCheck("feed", OK, "changes are received", figures)
    message = (
        f"no changes or heartbeats were received for {_duration(silent_seconds)}, so events come late: "
        "is that the daemon's --changes?"
    )
    return ReadinessCheck("feed", WARNING, message, figures)


def _streams(shared_counters: SharedCounters, *, is_away: bool) -> ReadinessCheck:
    cells = shared_counters.totals(counters.FIXED_CELLS)
    there, behind = cells[counters.STREAMS], cells[counters.CATCHING_UP]
    refused = cells[counters.STREAMS_DROPPED["no_room"]]
    refused_at = shared_counters.highest(counters.STREAM_REFUSED_AT)
    age = monotonic() - refused_at if refused_at else None
    figures = {
        "streams": there,
        "catching_up": behind,
        "refused": refused,
        "last_refused_age_seconds": age and round(age, 3),
    }
    message = f"{there} streams are open, {behind} of them catch up"
    is_waiting = is_away and behind > 0
    if is_waiting:
        message = f"{behind} of {there} streams wait for the daemon"
    is_full = age is not None and age < REFUSED_SECONDS
    if is_full:
        message += f"; {refused} were refused since the start: raise --max-streams or --workers"
    return ReadinessCheck("streams", WARNING if is_waiting or is_full else OK, message, figures)


def _certificate(shared_counters: SharedCounters, ends_at: int) -> ReadinessCheck:
    left = ends_at - time()
    figures: Figures = {"expires_at": timestamp(ends_at * 1000), "left_seconds": round(left)}
    if left <= 0:
        message = f"the certificate expired {_duration(-left)} ago, and clients refuse it: renew it"
        return ReadinessCheck("certificate", WARNING, message, figures)
    message = f"the certificate is valid for {_duration(left)}"
    if shared_counters.highest(counters.CERTIFICATE_REFUSED):
        message += ", but its files now hold another that cannot be used; the log says why"
        return ReadinessCheck("certificate", WARNING, message, figures)
    if left < CERTIFICATE_SECONDS:
        message += ": renew it; the service takes the new one without a restart"
        return ReadinessCheck("certificate", WARNING, message, figures)
    return ReadinessCheck("certificate", OK, message, figures)


def _access(access: Figures) -> ReadinessCheck:
    figures: Figures = {"identities": access["identities"]}
    if access["problem"] is not None:
        # what was good before still lets people in; a file that is gone lets in nobody
        state = FAILED if access["is_gone"] else WARNING
        return ReadinessCheck("access", state, access["problem"], figures)
    return ReadinessCheck("access", OK, f"there are {access['identities']} identities", figures)


# ── for people ───────────────────────────────────────────────────────────────────────────────────


def _duration(seconds: float) -> str:
    for unit in ("days", "hours", "minutes"):
        length = MILLISECONDS[unit[0]] // 1000
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(count: int) -> str:
    number, unit = in_largest_unit(count)
    return f"{count} bytes" if unit == "B" else f"{number:.1f} {unit}"
