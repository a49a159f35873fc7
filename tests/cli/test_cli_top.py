"""``kvstore top``: on a terminal, into a pipe, and while the service comes and goes."""

from __future__ import annotations

import fcntl
import io
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvstore_cli.commands.top import plain_line
from kvstore_cli.terminal import humanize
from kvstore_cli.top import screen
from kvstore_cli.top.overview import Sampler, overview
from kvstore_cli.top.prometheus_text import Interval, Reading
from kvstore_cli.top.screen import Screen
from support.patience import PATIENCE_SECONDS
from support.scripted import problem
from support.servers import Service, kvstore_command, wait_until
from support.terminal import Terminal

pytestmark = pytest.mark.slow

Kvstore = Any
Start = Callable[..., Any]
ROUTE = "/v1/kv/{key}"


@contextmanager
def on_terminal(
    kvstore: Kvstore, *arguments: str, size: tuple[int, int] = (80, 24), **environment: str
) -> Iterator[Terminal]:
    """``kvstore top`` on a terminal."""
    command = kvstore_command("top", *arguments)
    with Terminal(command, size, {**kvstore.environment, **environment}, kvstore.folder) as terminal:
        yield terminal


# ── what it says is so ───────────────────────────────────────────────────────────────────────────


def test_rates_are_what_was_sent(kvstore: Kvstore, shared_service: Service, start: Start) -> None:
    """Over all intervals the rates add up to every request, event and commit."""
    running = start(kvstore, "top", "--json", "--interval", "300ms")
    wait_until(lambda: running.lines(), what="it looks")
    with httpx.Client(base_url=shared_service.url, timeout=PATIENCE_SECONDS) as client:
        for number in range(120):
            client.put(f"/v1/kv/top{number % 10}", content=b"x").raise_for_status()
            client.get(f"/v1/kv/top{number % 10}").raise_for_status()
        for _ in range(30):
            assert client.get("/v1/kv/top-none").status_code == 404
        ops = [{"op": "put", "key": f"top{number}", "value": "v"} for number in range(100)]
        client.post("/v1/batch", json={"ops": ops}).raise_for_status()
    seen = len(running.lines())
    wait_until(lambda: len(running.lines()) > seen + 2, what="it has seen all of it")
    lines = running.lines()

    def total(pick: Callable[[dict[str, Any]], float | None]) -> float:
        return sum((pick(line) or 0.0) * line["seconds"] for line in lines)

    def of_route(method: str, status: str) -> float:
        return total(
            lambda line: sum(
                row["statuses"].get(status, 0)
                for row in line["http"]["routes"]
                if (row["method"], row["route"]) == (method, ROUTE)
            )
        )

    assert of_route("GET", "200") == pytest.approx(120, rel=0.02)
    assert of_route("GET", "404") == pytest.approx(30, rel=0.02)
    assert of_route("PUT", "200") + of_route("PUT", "201") == pytest.approx(120, rel=0.02)
    assert total(lambda line: line["daemon"]["operations_by_name"].get("put")) == pytest.approx(220, rel=0.02)
    assert total(lambda line: line["daemon"]["published"]) == pytest.approx(220, rel=0.02)
    assert total(lambda line: line["commits"]["commits"]) > 0
    last = lines[-1]
    status = httpx.get(f"{shared_service.url}/v1/status").json()
    assert (last["keys"], last["revision"]) == (status["keys"], status["revision"])
    assert last["service_up"] is True
    assert last["daemon_up"] is True
    busy = max(lines, key=lambda line: line["http"]["requests"])
    assert 0 < busy["http"]["p50"] <= busy["http"]["p99"] <= 10
    assert {"daemon", "worker-0"} == set(last["processes"])


def test_lines_into_a_pipe_are_text_with_a_head(kvstore: Kvstore) -> None:
    out = kvstore.out("top", "--count", "3", "--interval", "100ms").decode()
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["TIME", "REQ/S", "5XX/S"]
    assert len(lines) == 3
    assert "\x1b" not in out
    for line in lines:
        assert re.match(r"\d\d:\d\d:\d\d ", line)
        assert len(line) <= len(head)


def test_what_cannot_be_asked_for(kvstore: Kvstore, offline: Kvstore, script: Any) -> None:
    for arguments in (["--plain", "--json"], ["--interval", "1ms"], ["--count", "0"]):
        assert kvstore("top", *arguments).returncode == 2
    failed = offline("top", "--url", "http://127.0.0.1:1")
    assert failed.returncode == 6
    assert b"cannot reach the service" in failed.stderr
    script.plays = [problem("no_such_route")]
    failed = offline("top", "--url", script.url)
    assert failed.returncode == 1
    assert b"older version" in failed.stderr


# ── on a terminal ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda terminal: terminal.type("q"), 0),
        (lambda terminal: terminal.type("\x03"), 0),
        (lambda terminal: terminal.process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
        (lambda terminal: terminal.process.send_signal(signal.SIGHUP), 128 + signal.SIGHUP),
        (lambda _: None, 0),
    ],
    ids=["q", "Ctrl-C", "SIGTERM", "SIGHUP", "--count"],
)
def test_the_terminal_is_left_as_it_was(
    kvstore: Kvstore, end: Callable[[Terminal], None], status: int, request: pytest.FixtureRequest
) -> None:
    count = ["--count", "3"] if "--count" in request.node.name else []
    with on_terminal(kvstore, "--interval", "200ms", *count) as terminal:
        terminal.wait_for("REQUESTS")
        end(terminal)
        assert terminal.wait() == status
        assert terminal.attributes_now() == terminal.attributes
        assert "\x1b[?1049h" in terminal.output
        wait_until(lambda: "\x1b[?1049l" in terminal.output, what="it leaves the alternate screen")
        assert terminal.output.rindex("\x1b[?1049l") > terminal.output.rindex("\x1b[?1049h")
        wait_until(
            lambda: terminal.output.rfind("\x1b[?25h") > terminal.output.rfind("\x1b[?25l"), what="a cursor"
        )
        assert "Traceback" not in terminal.output


def test_the_screen_fits_the_terminal_and_follows_its_size(kvstore: Kvstore) -> None:
    # as exported by a shell, or by whoever runs the tests
    exported = {"COLUMNS": "80", "LINES": "24"}
    with on_terminal(kvstore, "--interval", "200ms", **exported) as terminal:
        lines = terminal.wait_for("PROCESSES")
        assert len(lines) == 24
        assert max(map(len, lines)) <= 80
        labels = ("UP", "REQUESTS", "STREAMS", "DAEMON", "COMMITS", "LOG", "STORE", "PROCESSES", "q quits")
        for label in labels:
            assert any(line.startswith(f" {label}") for line in lines), label
        terminal.resize(120, 40)
        terminal.wait_for_height(40)
        lines = terminal.wait_for("commits/s  ")
        assert 80 < max(map(len, lines)) <= 120
        terminal.resize(50, 12)
        assert max(map(len, terminal.wait_for_height(12))) <= 50
        terminal.type("q")
        assert terminal.wait() == 0


def test_colour_is_left_out_where_it_is_not_wanted(kvstore: Kvstore) -> None:
    colours = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|4[0-7]|9[0-7]|38|48)[;m]")
    for environment, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with on_terminal(kvstore, "--interval", "200ms", **environment) as terminal:
            terminal.wait_for("REQUESTS")
            assert bool(colours.search(terminal.output)) == is_coloured
    with on_terminal(kvstore, "--interval", "100ms", "--count", "2", TERM="dumb") as terminal:
        assert terminal.wait() == 0
        wait_until(lambda: terminal.output.count("\n") >= 3)
        assert "\x1b" not in terminal.output


def test_it_shows_that_something_is_away_and_goes_on_when_it_is_back(
    start_daemon: Callable[..., Any], start_facade: Callable[..., Any], offline: Kvstore, start: Start
) -> None:
    daemon = start_daemon()
    facade = start_facade(daemon, daemon_timeout="1s")
    lines = start(offline, "top", "--url", facade.url, "--json", "--interval", "200ms")
    plain = start(offline, "top", "--url", facade.url, "--plain", "--interval", "200ms")
    with on_terminal(offline, "--url", facade.url, "--interval", "200ms") as terminal:
        terminal.wait_for(" UP ")
        daemon.kill()
        terminal.wait_for("the daemon does not answer")
        wait_until(lambda: any(line.get("daemon_up") is False for line in lines.lines()))
        wait_until(lambda: b" away\n" in plain.stdout)
        daemon.start()
        terminal.wait_for(" UP ")
        facade.stop()
        terminal.wait_for("no figures from the service: cannot reach the service")
        wait_until(lambda: any(line["service_up"] is False for line in lines.lines()))
        wait_until(lambda: re.search(rb"\d\d no figures from the service: cannot reach", plain.stdout))
        facade.start()
        terminal.wait_for(" UP ")
        wait_until(lambda: lines.lines()[-1]["service_up"] is True)
        facade.signal(signal.SIGSTOP)
        try:
            terminal.wait_for("the service has not answered for")
            # it ends at once all the same
            terminal.type("q")
            assert terminal.wait() == 0
        finally:
            facade.signal(signal.SIGCONT)


def test_it_goes_on_looking_where_nobody_waits_for_the_bell() -> None:
    """As into a pipe, for days: the bell's own pipe is full by then."""
    looks = 5000

    def fetch() -> bytes:
        if sampler.samples.qsize() >= looks:
            threading.Event().wait()  # enough was seen
        return b""

    sampler = Sampler(fetch, 0)
    assert fcntl.fcntl(sampler.wakeup, fcntl.F_SETPIPE_SZ, 4096) < looks
    sampler.begin()
    wait_until(lambda: sampler.samples.qsize() >= looks, timeout=60, what="it looks")


# ── the figures ──────────────────────────────────────────────────────────────────────────────────


def histogram(name: str, observed: list[float], bounds: list[float]) -> str:
    """A histogram as ``/metrics`` exposes it."""
    lines = [f"# TYPE {name} histogram"]
    for bound in [*bounds, float("inf")]:
        shown = "+Inf" if bound == float("inf") else repr(bound)
        lines.append(f'{name}_bucket{{le="{shown}"}} {sum(value <= bound for value in observed)}')
    return "\n".join([*lines, f"{name}_count {len(observed)}", f"{name}_sum {sum(observed)}", ""])


BOUNDS = [0.5, 1.0, 2.5, 5.0, 10.0]
observations = st.lists(st.floats(0, 20), max_size=50)


@given(observations, observations, st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_lies_in_the_bucket_of_the_value_it_stands_for(
    before: list[float], since: list[float], q: float
) -> None:
    interval = Interval(
        Reading(histogram("h", before, BOUNDS), 0), Reading(histogram("h", before + since, BOUNDS), 1)
    )
    found = interval.quantile("h", q)
    if not since:
        assert found is None
        return
    exact = sorted(since)[max(0, -int(-q * len(since) // 1) - 1)]
    lower = max([0.0, *(bound for bound in BOUNDS if bound < exact)])
    upper = min([bound for bound in BOUNDS if bound >= exact], default=BOUNDS[-1])
    assert found is not None
    assert lower <= found <= upper or q == 0.0
    assert interval.mean("h") == pytest.approx(sum(since) / len(since), abs=1e-6)


def counter(*samples: tuple[str, float]) -> str:
    return "# TYPE c counter\n" + "".join(f'c_total{{of="{of}"}} {value}\n' for of, value in samples)


def test_rates_of_counters_that_begin_anew_or_were_not_there() -> None:
    before = Reading(counter(("a", 10), ("b", 5)), 0)
    after = Reading(counter(("a", 14), ("b", 2), ("c", 6)), 2)
    interval = Interval(before, after)
    # one that is smaller than before was begun anew; one that is new began at 0
    assert interval.rates("c_total", "of") == {("a",): 2.0, ("b",): 1.0, ("c",): 3.0}
    assert interval.rate("c_total") == 6.0
    assert interval.rate("c_total", of="a") == 2.0
    # without the metric, as while the daemon is away, there is nothing to count from
    nothing = Reading("", 0)
    assert Interval(nothing, after).rate("c_total") is None
    assert Interval(nothing, after).rates("c_total", "of") == {}
    assert Interval(before, nothing).rate("c_total") is None


def test_without_any_metric_nothing_is_known_and_nothing_fails() -> None:
    nothing = Reading("", 0)
    shown = overview(nothing, Reading("", 1), nothing)
    assert shown["http"]["requests"] is None
    assert shown["http"]["p99"] is None
    assert plain_line(shown).count(" - ") > 5


numbers = st.one_of(st.none(), st.floats(0, 1e18), st.integers(0, 10**6))


@given(st.data(), st.integers(10, 200), st.integers(3, 60))
def test_whatever_the_figures_the_screen_keeps_its_size(data: st.DataObject, width: int, height: int) -> None:
    nothing = Reading("", 0)
    shown = overview(nothing, Reading("", 1), nothing)
    for fields in (shown, *(value for value in shown.values() if isinstance(value, dict))):
        for name, value in fields.items():
            if value is None and name not in ("version", "sync", "writes_refused"):
                fields[name] = data.draw(numbers)
    routes = data.draw(st.integers(0, 30))
    shown["http"]["routes"] = [
        {
            "method": "PROPPATCH",
            "route": "/v1/" + "x" * data.draw(st.integers(0, 60)),
            "requests": number,
            "statuses": {"200": 1.0, "503": 0.2},
            "p50": data.draw(numbers),
            "p99": None,
        }
        for number in range(routes)
    ]
    shown["processes"] = {f"worker-{number}": {"cpu": 0.5, "memory_bytes": 10**8} for number in range(routes)}
    drawn = Screen("http://127.0.0.1:5000", "1s")
    drawn.note(shown)
    drawn.trouble = data.draw(st.sampled_from([None, "away " * 50]))
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(drawn, height=height, end="")
    lines = captured.get().split("\n")
    assert len(lines) == height
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (humanize.count(None), "-"),
        (humanize.count(12345), "12,345"),
        (humanize.count(12_345_678), "12.3M"),
        (humanize.rate(0), "0"),
        (humanize.rate(0.25), "0.2"),
        (humanize.size(1024**4), "1 TiB"),
        (humanize.size(1536), "1.5 KiB"),
        (humanize.duration(0.00034), "340 µs"),
        (humanize.duration(0.0021), "2.1 ms"),
        (humanize.duration(12), "12.0 s"),
        (humanize.age(90_061), "1d 1h"),
        (humanize.age(59), "59s"),
        (humanize.percent(0.345), "34%"),
        (humanize.percent(1, None), "-"),
        (screen.sparkline([0, 5, 10], 2), "▅█"),
        (screen.sparkline([0, 0], 5), "▁▁"),
    ],
)
def test_figures_are_short(shown: str, expected: str) -> None:
    assert shown == expected
