"""Checks of event streams: events arrive at once, one by one, and idle streams stay open."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from kvstore_cli.doctor.findings import Finding, failed, ok, skipped, warning
from kvstore_cli.doctor.probe import PROMPT_SECONDS, Probe, TimedStream, by_query, percentiles
from kvstore_cli.http_client.client import encode_query
from kvstore_core.media_types import NDJSON, SSE

EVENTS = 20
_SLOW_MEDIAN_MS = 100.0
_LUMP_STEP_BYTES = 1024
_LUMP_STEPS = 64
_LONGEST_WAIT_SECONDS = 600.0
# two heartbeats of the default --stream-heartbeat, and some slack
_LONGEST_GAP_SECONDS = 33.0


def opening(probe: Probe) -> Iterator[Finding]:
    """The first bytes of a stream arrive at once, with the headers of a stream."""
    for media_type in (SSE, NDJSON):
        begin = monotonic()
        with _open(probe, "opening", media_type) as stream:
            if not stream.wait_for(lambda: b"sync" in stream.text, PROMPT_SECONDS):
                yield _not_begun(probe, stream, media_type)
                return
            seconds = stream.arrivals[-1] - begin
            problems = list(_changes(stream, media_type))
            yield from problems
        if not problems:
            message = f"{media_type}: the first event arrived after {seconds * 1000:.1f} ms"
            yield ok(message, first_ms=round(seconds * 1000, 2))


def _open(probe: Probe, name: str, media_type: str) -> TimedStream:
    # as a browser asks, so that proxies compress what they compress for browsers
    target = f"/v1/subscribe{encode_query([('key', probe.key(name))])}"
    return probe.watch(target, {"Accept": media_type, "Accept-Encoding": "gzip"})


def _not_begun(probe: Probe, stream: TimedStream, media_type: str) -> Finding:
    probe.are_streams_live = False
    if stream.status not in (0, 200):
        return failed("no_answer", f"{media_type}: the stream was answered {stream.status}")
    if stream.ended is not None:
        ended = f"the stream ended after {stream.ended_after:.1f} s, before its first event"
        return failed("idle_cut", f"{media_type}: {ended}")
    silent = f"nothing arrived on an open stream within {PROMPT_SECONDS:g} s; a proxy buffers it"
    return failed("buffered", f"{media_type}: {silent}")


def _changes(stream: TimedStream, media_type: str) -> Iterator[Finding]:
    """What a proxy changed in the headers of a stream."""
    encoding = stream.headers.get("Content-Encoding")
    if encoding is not None:
        message = f"{media_type}: the stream is compressed ({encoding}) despite no-transform"
        yield warning("stream_compressed", message, encoding=encoding)
    if media_type == SSE and "X-Kvstore-Body-Ends" in stream.headers:  # the same for all streams
        yield warning(
            "http_1_0",
            "the proxy speaks HTTP/1.0 to kvstore, so a stream or list that is cut off looks complete, and "
            "each request takes a new connection",
        )
    kind = stream.headers.get("Content-Type", "")
    if kind.partition(";")[0] != media_type:
        yield failed("stream_changed", f"{media_type}: the stream arrives as Content-Type {kind or 'none'}")
    if "no-store" not in stream.headers.get("Cache-Control", ""):
        yield warning("stream_changed", f"{media_type}: the stream arrives without Cache-Control: no-store")


def events(probe: Probe) -> Iterator[Finding]:
    """How long a put takes to arrive on an open stream; each must arrive by itself."""
    for media_type in (SSE, NDJSON):
        name = f"events-{media_type.rpartition('/')[2]}"
        with _open(probe, name, media_type) as stream:
            stream.wait_for(lambda: b"sync" in stream.text, PROMPT_SECONDS)
            finding = _delivered(probe, stream, name, media_type)
            yield finding
            if finding.status == "failed":
                return


def _delivered(probe: Probe, stream: TimedStream, name: str, media_type: str) -> Finding:
    latencies = []
    for number in range(EVENTS):
        mark = b"mark-%d-" % number
        begin = monotonic()
        probe.store(probe.key(name), mark)
        if not stream.wait_for(lambda mark=mark: mark in stream.text, PROMPT_SECONDS):  # type: ignore[misc]
            return _held_back(probe, stream, name, media_type)
        latencies.append(stream.arrivals[-1] - begin)
    median, p99 = percentiles(latencies)
    message = (
        f"{media_type}: {EVENTS} puts arrived one by one, p50 {median} ms, p99 {p99} ms "
        f"after they were sent (round trip {probe.round_trip * 1000:.2f} ms)"
    )
    figures = {"event_p50_ms": median, "event_p99_ms": p99}
    if median > _SLOW_MEDIAN_MS + probe.round_trip * 1000:
        return warning("slow_events", message, **figures)
    return ok(message, **figures)


def _held_back(probe: Probe, stream: TimedStream, name: str, media_type: str) -> Finding:
    """The failure of a stream whose events do not arrive, with the size of the chunks in which they do."""
    probe.are_streams_live = False
    if stream.ended is not None:
        return failed("idle_cut", f"{media_type}: the stream ended after {stream.ended_after:.1f} s")
    known = stream.received_bytes
    for _ in range(_LUMP_STEPS):
        probe.store(probe.key(name), b"." * _LUMP_STEP_BYTES)
        if stream.wait_for(lambda: stream.received_bytes > known, 0.05):
            lump = stream.received_bytes - known
            message = f"{media_type}: events arrive late and in chunks, here of {lump} bytes"
            return failed("buffered", message, lump_bytes=lump)
    written = _LUMP_STEPS * _LUMP_STEP_BYTES
    return failed("buffered", f"{media_type}: {written} bytes of events were written and nothing arrived")


def idle(probe: Probe) -> Iterator[Finding]:
    """A stream without changes, and a request that waits for one, stay open for ``probe.idle`` seconds."""
    if not probe.are_streams_live:
        yield skipped("events are buffered, which looks like an idle stream: fix that first")
        return
    seconds = min(probe.idle, _LONGEST_WAIT_SECONDS)
    wait = by_query(probe.key("never"), wait=f"{int(seconds * 1000)}ms", since="0")
    with _open(probe, "idle", SSE) as stream, probe.watch(wait, {}) as waiting:
        stream.wait_for(lambda: False, probe.idle)
        yield _idle_stream(stream, probe.idle)
        waiting.wait_for(lambda: False, probe.timeout)
        yield _idle_request(waiting, seconds)


def _idle_stream(stream: TimedStream, idle_seconds: float) -> Finding:
    ended, gap = stream.ended, stream.longest_gap()
    heartbeats = stream.text.count(b"event: heartbeat")
    seconds = idle_seconds if ended is None else stream.ended_after
    figures = {
        "open_seconds": round(seconds, 1),
        "heartbeats": heartbeats,
        "longest_gap_seconds": round(gap, 1),
    }
    if ended is not None:
        who = f"the connection broke ({ended}), so a proxy or the network cut it"
        if ended == "":
            who = "it ended properly, as when the service stops"
        cut = f"a stream without changes was cut after {seconds:.1f} s, {heartbeats} heartbeats"
        return failed("idle_cut", f"{cut}; {who}", **figures)
    if gap > _LONGEST_GAP_SECONDS:
        return warning("idle_cut", f"nothing arrived on an idle stream for {gap:.1f} s", **figures)
    return ok(
        f"a stream without changes stayed open for {seconds:g} s, with {heartbeats} heartbeats, "
        f"silent for {gap:.1f} s at most",
        **figures,
    )


def _idle_request(waiting: TimedStream, seconds: float) -> Finding:
    """A request with ``?wait=`` for a key that never appears must be answered 304 in the end."""
    took = round(waiting.ended_after, 1)
    what = f"a request with ?wait={seconds:g}s"
    if waiting.status == 304:
        return ok(f"{what} was answered after {took} s", waited_seconds=took)
    if waiting.ended is None:
        return warning("wait_cut", f"{what} was not answered")
    how = f"was answered {waiting.status}" if waiting.status else f"broke ({waiting.ended})"
    return warning("wait_cut", f"{what} {how} after {took} s", waited_seconds=took)
