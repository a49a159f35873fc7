"""Checks of event streams: that events come at once, one by one, and go on coming."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from kvstore_cli.doctor.findings import Finding, failed, ok, skipped, warning
from kvstore_cli.doctor.probe import PATIENCE_SECONDS, Probe, by_query, percentiles
from kvstore_cli.doctor.timed_stream import WatchedStream
from kvstore_cli.http_client.client import encode_query
from kvstore_core.media_types import NDJSON, SSE

EVENTS = 20
_SLOW_MEDIAN_MS = 100.0
_LUMP_STEP_BYTES = 1024
_LUMP_STEPS = 64
_LONGEST_WAIT_SECONDS = 600.0
# Two heartbeats of the default --stream-heartbeat, with some to spare.
_LONGEST_GAP_SECONDS = 33.0


def opening(probe: Probe) -> Iterator[Finding]:
    """The first bytes of a stream come at once, and say that they are a stream."""
    for media_type in (SSE, NDJSON):
        begin = monotonic()
        with _open(probe, "opening", media_type) as stream:
            if not stream.wait_for(lambda: b"sync" in stream.text, PATIENCE_SECONDS):
                yield _not_begun(probe, stream, media_type)
                return
            seconds = stream.arrived - begin
            problems = list(_changes(stream, media_type))
            yield from problems
        if not problems:
            yield ok(
                f"{media_type}: the first event is there after {seconds * 1000:.1f} ms",
                first_ms=round(seconds * 1000, 2),
            )


def _open(probe: Probe, name: str, media_type: str) -> WatchedStream:
    # as a browser asks, so that what compresses for browsers compresses
    target = f"/v1/subscribe{encode_query([('key', probe.key(name))])}"
    return probe.watch(target, {"Accept": media_type, "Accept-Encoding": "gzip"})


def _not_begun(probe: Probe, stream: WatchedStream, media_type: str) -> Finding:
    probe.are_streams_live = False
    if stream.status not in (0, 200):
        return failed("no_answer", f"{media_type}: the stream was answered with {stream.status}")
    if stream.ended is not None:
        return failed(
            "idle_cut",
            f"{media_type}: the stream ended after {stream.ended_after:.1f} s, before its first event",
        )
    return failed(
        "buffered",
        f"{media_type}: nothing of an open stream came in {PATIENCE_SECONDS:g} s; something holds it back",
    )


def _changes(stream: WatchedStream, media_type: str) -> Iterator[Finding]:
    """What a proxy did to the head of a stream."""
    encoding = stream.headers.get("Content-Encoding")
    if encoding is not None:
        yield warning(
            "stream_compressed",
            f"{media_type}: the stream comes compressed ({encoding}), although it says no-transform",
            encoding=encoding,
        )
    if media_type == SSE and "X-Kvstore-Body-Ends" in stream.headers:  # which is so for all, if for one
        yield warning(
            "http_1_0",
            "kvstore is spoken to in HTTP/1.0, so a stream or list that is cut off looks complete, "
            "and each request takes a connection of its own",
        )
    kind = stream.headers.get("Content-Type", "")
    if kind.partition(";")[0] != media_type:
        yield failed("stream_changed", f"{media_type}: the stream says that it is {kind or 'nothing'}")
    if "no-store" not in stream.headers.get("Cache-Control", ""):
        yield warning("stream_changed", f"{media_type}: the stream came without its Cache-Control: no-store")


def events(probe: Probe) -> Iterator[Finding]:
    """How long a put takes to come out of an open stream, and that each comes by itself."""
    for media_type in (SSE, NDJSON):
        name = f"events-{media_type.rpartition('/')[2]}"
        with _open(probe, name, media_type) as stream:
            stream.wait_for(lambda: b"sync" in stream.text, PATIENCE_SECONDS)
            finding = _delivered(probe, stream, name, media_type)
            yield finding
            if finding.status == "failed":
                return


def _delivered(probe: Probe, stream: WatchedStream, name: str, media_type: str) -> Finding:
    latencies = []
    for number in range(EVENTS):
        mark = b"mark-%d-" % number
        begin = monotonic()
        probe.store(probe.key(name), mark)
        if not stream.wait_for(lambda mark=mark: mark in stream.text, PATIENCE_SECONDS):  # type: ignore[misc]
            return _held_back(probe, stream, name, media_type)
        latencies.append(stream.arrived - begin)
    median, p99 = percentiles(latencies)
    message = (
        f"{media_type}: {EVENTS} puts came out one by one, p50 {median} ms, p99 {p99} ms "
        f"after they were sent (round trip {probe.round_trip * 1000:.2f} ms)"
    )
    figures = {"event_p50_ms": median, "event_p99_ms": p99}
    if median > _SLOW_MEDIAN_MS + probe.round_trip * 1000:
        return warning("slow_events", message, **figures)
    return ok(message, **figures)


def _held_back(probe: Probe, stream: WatchedStream, name: str, media_type: str) -> Finding:
    """The failure of a stream whose events do not come, with the size of the lumps they come in."""
    probe.are_streams_live = False
    if stream.ended is not None:
        return failed("idle_cut", f"{media_type}: the stream ended after {stream.ended_after:.1f} s")
    written = 0
    known = stream.received_bytes
    for _ in range(_LUMP_STEPS):
        probe.store(probe.key(name), b"." * _LUMP_STEP_BYTES)
        written += _LUMP_STEP_BYTES
        if stream.wait_for(lambda: stream.received_bytes > known, 0.05):
            lump = stream.received_bytes - known
            return failed(
                "buffered",
                f"{media_type}: events do not come as they happen but in lumps, here of {lump} bytes",
                lump_bytes=lump,
            )
    return failed("buffered", f"{media_type}: {written} bytes of events were written and nothing came out")


def idle(probe: Probe) -> Iterator[Finding]:
    """Whether a stream without changes, and a request that waits for one, are left alone for
    ``probe.idle`` seconds."""
    if not probe.are_streams_live:
        yield skipped(
            "events do not come as they happen, so silence cannot be told from that: repair it first"
        )
        return
    seconds = min(probe.idle, _LONGEST_WAIT_SECONDS)
    wait = by_query(probe.key("never"), wait=f"{int(seconds * 1000)}ms", since="0")
    with _open(probe, "idle", SSE) as stream, probe.watch(wait, {}) as waiting:
        stream.wait_for(lambda: False, probe.idle)
        yield _of_silence(stream, probe.idle)
        waiting.wait_for(lambda: False, probe.timeout)
        yield _of_waiting(waiting, seconds)


def _of_silence(stream: WatchedStream, listened: float) -> Finding:
    ended, gap = stream.ended, stream.longest_gap()
    heartbeats = stream.text.count(b"event: heartbeat")
    seconds = listened if ended is None else stream.ended_after
    figures = {
        "open_seconds": round(seconds, 1),
        "heartbeats": heartbeats,
        "longest_gap_seconds": round(gap, 1),
    }
    if ended is not None:
        who = f"it broke off ({ended}), so something in front of the service cut it"
        if ended == "":
            who = "its end was a proper one, as when the service stops"
        return failed(
            "idle_cut",
            f"a stream without changes was cut after {seconds:.1f} s, {heartbeats} heartbeats; {who}",
            **figures,
        )
    if gap > _LONGEST_GAP_SECONDS:
        return warning("idle_cut", f"nothing came through a silent stream for {gap:.1f} s", **figures)
    return ok(
        f"a stream without changes stayed open for {seconds:g} s, with {heartbeats} heartbeats, "
        f"silent for {gap:.1f} s at most",
        **figures,
    )


def _of_waiting(waiting: WatchedStream, seconds: float) -> Finding:
    """A request with ``?wait=`` for a key that does not come is answered with 304 when the time is over."""
    took = round(waiting.ended_after, 1)
    what = f"a request with ?wait={seconds:g}s"
    if waiting.status == 304:
        return ok(f"{what} was answered after {took} s", waited_seconds=took)
    if waiting.ended is None:
        return warning("wait_cut", f"{what} was not answered, nor refused")
    how = f"was answered {waiting.status}" if waiting.status else f"broke off ({waiting.ended})"
    return warning("wait_cut", f"{what} {how} after {took} s", waited_seconds=took)
