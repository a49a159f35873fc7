"""``kvstore top``."""

from __future__ import annotations

import itertools
import ssl  # noqa: F401 - before http.client, which prometheus_client needs whole: see kvstore_cli.http_client.whole
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.command_line.parameters import TIME, WholeNumber, json_option
from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import configuration_of, subcommand
from kvstore_cli.config.option_values import show_duration
from kvstore_cli.config.resolve import Configuration
from kvstore_cli.config.token_source import TokenSource
from kvstore_cli.terminal import output
from kvstore_cli.terminal.humanize import count, duration, percent, rate
from kvstore_core.errors import KvError
from kvstore_core.media_types import TEXT

if TYPE_CHECKING:
    from kvstore_cli.top.overview import Sample, Sampler

_SHORTEST_MS = 100
_HEAD_EVERY = 20
_PLAIN_HEAD = (
    f"{'TIME':8} {'REQ/S':>8} {'5XX/S':>6} {'P99':>8} {'OPS/S':>8} {'COMMITS/S':>9} {'SYNC P99':>8} "
    f"{'STREAMS':>7} {'EVENTS/S':>9} {'LAG P99':>8} {'KEYS':>10} {'REVISION':>11} {'DAEMON':>6}"
)


@subcommand("client")
@click.option(
    "--interval", type=TIME, default="1s", show_default=True, metavar="TIME", help="How often to refresh."
)
@click.option("--count", type=WholeNumber(1), metavar="N", help="Stop after N intervals.")
@click.option("--plain", is_flag=True, help="A line for each interval, as in a pipe.")
@json_option("All figures of each interval as a JSON object.")
def command(context: click.Context, interval: int, count: int | None, plain: bool, as_json: bool) -> None:
    """Show what the service is doing, as it happens: requests, streams, commits, sizes, processes.

    Rates are per second and latencies are those of the last interval, from the service's /metrics. On a
    terminal it fills the screen until q or Ctrl-C; elsewhere it prints a line for each interval. It
    shows when the service is unavailable, and continues when it is back.

    \b
    Examples:
      kvstore top
      kvstore top --interval 5s --plain >> load.log
      kvstore top --count 1 --json | jq .http.p99
    """
    if plain and as_json:
        raise click.UsageError("--plain and --json exclude each other")
    if interval < _SHORTEST_MS:
        raise click.UsageError(f"--interval is at least {show_duration(_SHORTEST_MS)}")
    from kvstore_cli.top.overview import Sampler

    configuration = configuration_of(context, "client")
    tokens = TokenSource(configuration)
    sampler = Sampler(lambda: _metrics(configuration, tokens), interval / 1000)
    sampler.begin()
    if plain or as_json or not _has_screen():
        with suppress(KeyboardInterrupt):
            _print(sampler, count, as_json=as_json)
        return
    from kvstore_cli.top.screen import show

    show(sampler, configuration["url"], interval, count)


def _metrics(configuration: Configuration, tokens: TokenSource) -> bytes:
    """The text of ``/metrics``; raises the KvError of the request."""
    # no retries: the next interval asks again
    with new_client(configuration, tokens=tokens) as service:
        try:
            wanted = {"Accept": TEXT}
            return service.request("GET", "/metrics", headers=wanted, attempts=1).body
        except KvError as error:
            if error.code != "no_such_route":
                raise
            message = f"{configuration['url']} has no /metrics: it runs an older version of kvstore"
            raise KvError(error.code, message) from error


def _has_screen() -> bool:
    import os

    return output.on_terminal() and os.environ.get("TERM") not in (None, "", "dumb")


def _print(sampler: Sampler, count: int | None, *, as_json: bool) -> None:
    """A line for each interval."""
    write = _write_json if as_json else _write_plain
    for number in itertools.count() if count is None else range(count):
        write(number, sampler.samples.get())


def _write_json(_number: int, sample: Sample) -> None:
    if sample.error is None:
        output.write_json({"service_up": True, **(sample.shown or {})})
    else:
        output.write_json({"service_up": False, "time": _now(), "error": sample.error.message})


def _write_plain(number: int, sample: Sample) -> None:
    if number % _HEAD_EVERY == 0:
        output.write_line(_PLAIN_HEAD)
    if sample.shown is not None:
        output.write_line(plain_line(sample.shown))
    elif sample.error is not None:
        output.write_line(f"{_now()[11:19]} no figures from the service: {sample.error.message}")


def plain_line(shown: dict[str, Any]) -> str:
    """One interval under ``_PLAIN_HEAD``."""
    http, daemon, commits, streams = (shown[name] for name in ("http", "daemon", "commits", "streams"))
    cpu = shown["processes"].get("daemon", {}).get("cpu")
    return (
        f"{shown['time'][11:19]} {rate(http['requests']):>8} {rate(http['failed']):>6} "
        f"{duration(http['p99']):>8} {rate(daemon['operations']):>8} {rate(commits['commits']):>9} "
        f"{duration(commits['sync_p99']):>8} {count(streams['open']):>7} {rate(streams['events']):>9} "
        f"{duration(streams['lag_p99']):>8} {count(shown['keys']):>10} {count(shown['revision']):>11} "
        f"{percent(cpu) if shown['daemon_up'] else 'away':>6}"
    )


def _now() -> str:
    from kvstore_cli.top.overview import stamp

    return stamp(time.time())
