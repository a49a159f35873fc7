"""``kvstore status`` and ``kvstore ping``: what the service says of itself, and whether it says anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import click

from kvstore_cli.command_line.parameters import json_option
from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import client_of, configuration_of, subcommand
from kvstore_cli.config.option_values import connectable
from kvstore_cli.config.resolve import Configuration
from kvstore_cli.http_client.client import RetryLimit
from kvstore_cli.terminal import output
from kvstore_cli.terminal.humanize import NOTHING, age, count, duration, size
from kvstore_core.errors import KvError

LONGEST_MS = 3000
"""Health checks need a quick answer: an orchestrator kills one after a few seconds, before it can say what
is wrong."""


@subcommand("client")
@click.option("--daemon", "is_daemon", is_flag=True, help="Ask the daemon itself, at KVSTORE_REQUESTS.")
def ping(context: click.Context, is_daemon: bool) -> None:
    """Check that the service answers: the HTTP facade, and through it the daemon.

    It waits for an answer for at most 3 s, or --request-timeout if that is less, and with --retry-for it
    asks again for so long. It needs no token; for --daemon, where access is on, a key in the login file, or
    to be able to read facade.key in the data folder. Use it as the health check of containers and
    orchestrators; 'kvstore status' prints more.

    Exit status: 0; 6 if the service, or the daemon behind it, cannot be reached; 124 if it does not
    answer in time.

    \b
    Examples:
      kvstore ping
      kvstore ping --daemon
      kvstore ping --retry-for 1m
    """
    configuration = configuration_of(context, "client", "daemon")
    ask = _ping_daemon if is_daemon else _ping_facade
    retry_ms = configuration["retry-for"]
    output.write_line(_retried(ask, configuration, retry_ms) if retry_ms else ask(configuration))


def _retried(ask: Callable[[Configuration], str], configuration: Configuration, retry_ms: int) -> str:
    limit = RetryLimit(retry_ms, output.talk)
    while True:
        try:
            return ask(configuration)
        except KvError as error:
            limit.wait_after(error)


def _ping_facade(configuration: Configuration) -> str:
    # who is there needs no proof, and a token that has ended would make a healthy service look ill
    with new_client(configuration, at_most_ms=LONGEST_MS, retries=False, is_anonymous=True) as service:
        service.request("GET", "/readyz")
    return f"{configuration['url']} is ready"


def _ping_daemon(configuration: Configuration) -> str:
    from kvstore_client import Client

    requests = connectable(configuration["requests"])
    seconds = min(configuration["request-timeout"], LONGEST_MS) / 1000
    login = _daemon_login(configuration, requests)
    with Client(requests, timeout=seconds, connections=1, login=login) as client:
        client.status()
    return f"{requests} is ready"


def _daemon_login(configuration: Configuration, requests: str) -> str | None:
    """The login file to come in by: that of the facade beside the daemon, which a health check in its
    container can read, unless access is off or one's own has keys for the daemon; None for one's own."""
    import os

    from kvstore_core.access.login_file import default_path, login_for

    beside = f"{configuration.service_folder}/facade.key"
    if not os.access(beside, os.R_OK) or configuration.access_of_daemon() == "off":
        return None  # a daemon without access takes no keys, also where it had some before
    return beside if login_for(default_path(), requests).keys is None else None


@subcommand("client")
@json_option("As one JSON object.")
def status(context: click.Context, as_json: bool) -> None:
    """Print the state of the service: version, revision, number of keys, sizes, commits, limits.

    A terminal gets a summary, a pipe all figures, a name and a value a line, with the mean and the 99th
    percentile of each histogram; --json has all of it. Without the grant monitor it is the version, the
    revision, the limits, and whether writes are taken.

    Exit status: 0; 5 without a token where one is needed; 6 if the service, or the daemon behind it,
    cannot be reached.

    \b
    Examples:
      kvstore status
      kvstore status | grep bytes
      kvstore status --json | jq .revision
    """
    with client_of(context) as service:
        status = service.request("GET", "/v1/status").json()
    if as_json:
        output.write_json(status)
    elif output.on_terminal():
        for name, value in _digest(status).items():
            output.write_line(f"{output.coloured(f'{name:9}', 'bold')} {output.visible(value)}")
    else:
        output.write_table(("NAME", "VALUE"), list(_flattened(_with_access(status))))


def _with_access(status: dict[str, Any]) -> dict[str, Any]:
    """The figures, with a word for whether there is access at all; who is told less came in by it."""
    access = status.get("access")
    if "access" in status and access is None:
        return {**status, "access": "off"}
    return {**status, "access": "required"} | {
        f"access.{name}": value for name, value in (access or {}).items()
    }


def _access(status: dict[str, Any]) -> str:
    access = status.get("access")
    if access is None:
        return "off: everybody may do everything"
    problem = f"; {access['problem']}" if access["problem"] else ""
    known = access["identities"]
    return f"required, {count(known)} {'identity' if known == 1 else 'identities'}{problem}"


def _digest(status: dict[str, Any]) -> dict[str, str]:
    """The summary: a sentence for each part of the service."""
    if "commits" not in status:
        return _digest_for_all(status)
    commits, counters = status["commits"], status["counters"]
    process = status["process"]
    return {
        "kvstore": (
            f"{status['version']}, up {age(status['uptime'])}, pid {status['pid']}, sync {status['sync']}"
        ),
        "writes": _writes(status),
        "access": _access(status),
        "keys": f"{count(status['keys'])}, {count(status['expiring_keys'])} of which expire",
        "revision": f"{status['revision']}, epoch {status['epoch']}",
        "log": (
            f"{count(status['log_events'])} events, {size(status['log_bytes'])} of at most "
            f"{size(status['max_log_bytes'])}, the oldest of "
            f"{status['oldest_event_at'] or NOTHING}; one can resume from revision {status['floor']} on"
        ),
        "store": (
            f"{size(status['store_bytes'])} used of {size(status['max_store_bytes'])}, "
            f"in a file of {size(status['file_bytes'])}"
        ),
        **_cache(status.get("eviction")),
        "disk": f"{size(status['disk_free_bytes'])} free of {size(status['disk_bytes'])}",
        "commits": (
            f"{count(commits['count'])} for {count(commits['requests'])} requests; on average "
            f"{_mean(commits['seconds'])}, of which the sync {_mean(commits['sync_seconds'])}"
        ),
        "requests": (
            f"{count(counters['requests'])}, {count(counters['requests_refused'])} of which refused; "
            f"{count(status['pending'])} under way"
        ),
        "process": (
            f"{size(process['resident_bytes'])} of memory, {duration(process['cpu_seconds'])} of CPU time, "
            f"{count(process['open_files'])} of {count(process['max_files'])} files open"
        ),
        **_cluster(status.get("cluster")),
        "limits": _limits(status),
    }


def _cache(eviction: dict[str, Any] | None) -> dict[str, str]:
    """The line of a cache, if there is one."""
    if eviction is None:
        return {}
    return {
        "cache": (
            f"{count(eviction['records'])} records below {', '.join(eviction['prefixes'])}, "
            f"{size(eviction['bytes'])} of {size(eviction['max_bytes'])}; "
            f"{count(eviction['evicted_records'])} evicted since the start"
        )
    }


def _cluster(cluster: dict[str, Any] | None) -> dict[str, str]:
    """The lines of a store that a cluster keeps: its members, and what an operator should know of them."""
    if cluster is None:
        return {}
    mirror, members = cluster["mirror"], cluster["members"]
    healthy = sum(member["healthy"] for member in members)
    lines = {
        "cluster": (
            f"{healthy} of {len(members)} members serve requests, {cluster['leader'] or 'nobody'} leads; "
            f"this daemon asks {cluster['endpoint']}, after {count(cluster['rotations'])} turns to another"
        ),
        "mirror": (
            f"known to be current {duration(mirror['lag_ms'] / 1000)} ago, "
            f"{count(mirror['lag_revisions'])} revisions behind; since the start it was made "
            f"{count(mirror['rebuilds'])} times"
        ),
    }
    for number, member in enumerate(members, 1):
        lines[f"member {number}"] = _member(member)
    for number, warning in enumerate(cluster["warnings"], 1):
        lines[f"warning {number}"] = warning["message"]
    return lines


def _member(member: dict[str, Any]) -> str:
    state = "leads" if member["leader"] else "serves" if member["healthy"] else "AWAY"
    room = "" if member["db_bytes"] is None else f", {size(member['db_bytes'])}"
    what = f", etcd {member['version']}" if member["version"] else ""
    return f"{member['name'] or '?'} at {member['endpoint']}: {state}{what}{room}"


def _digest_for_all(status: dict[str, Any]) -> dict[str, str]:
    """The summary of what is told without the grant ``monitor``."""
    return {
        "kvstore": status["version"],
        "writes": _writes(status),
        "access": "required",
        "revision": f"{status['revision']}, epoch {status['epoch']}",
        "log": f"one can resume from revision {status['floor']} on",
        "limits": _limits(status),
        "more": "is told to whoever has the grant monitor",
    }


def _writes(status: dict[str, Any]) -> str:
    refused = status["writes_refused"]
    return "taken" if refused is None else f"REFUSED: {refused['message']}"


def _limits(status: dict[str, Any]) -> str:
    limits = status["limits"]
    return (
        f"a key {limits['key_bytes']} bytes, a value {size(limits['value_bytes'])}, a batch "
        f"{count(limits['batch_ops'])} operations and {size(limits['batch_bytes'])}"
    )


def _mean(histogram: dict[str, Any]) -> str:
    number = sum(histogram["counts"])
    return duration(histogram["sum"] / number) if number else NOTHING


def _flattened(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict) and "bounds" in value:
            yield f"{above}{name}", _summary(value)
        elif isinstance(value, dict):
            yield from _flattened(value, f"{above}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from _flattened(
                {str(number): each for number, each in enumerate(value, 1)}, f"{above}{name}."
            )
        elif isinstance(value, list) and value:
            yield f"{above}{name}", ", ".join(map(str, value))
        else:
            yield f"{above}{name}", "-" if value is None else str(value)


def _summary(histogram: dict[str, Any]) -> str:
    """A histogram in a few words: its mean and its 99th percentile."""
    bounds, counts = histogram["bounds"], histogram["counts"]
    number = sum(counts)
    if not number:
        return "-"
    seen = accumulate(counts)
    at = next(index for index, below in enumerate(seen) if below >= 0.99 * number)
    most = f"at most {bounds[at]:g}" if at < len(bounds) else f"above {bounds[-1]:g}"
    return f"mean {histogram['sum'] / number:.3g}, 99% {most}"
