"""``kvstore wait``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from time import monotonic, sleep
from typing import Any

import click

from kvstore_cli.command_line import parameters
from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import configuration_of, subcommand
from kvstore_cli.config.option_values import show_duration
from kvstore_cli.http_client import change_stream
from kvstore_cli.http_client.client import SLICE_SECONDS, key_path, new_backoff
from kvstore_cli.terminal import output
from kvstore_core.errors import KvError

Record = dict[str, Any] | None


@subcommand("client", "stream")
@parameters.key_argument
@click.option("--exists", is_flag=True, help="Until the key exists.")
@click.option("--gone", is_flag=True, help="Until the key does not exist.")
@click.option("--equals", metavar="V", help="Until the value is V.")
@click.option("--changed", is_flag=True, help="Until anything happens to the key.")
@click.option(
    "--until",
    type=parameters.TEXT,
    metavar="CONDITION",
    help="Until its JSON fulfils this: '/state == \"done\"', '/jobs/0 exists', '/n >= 3'.",
)
@click.option(
    "--since",
    type=parameters.WholeNumber(0),
    metavar="REV",
    help="With --changed: the revision you know, 0 for a missing key.  [default: the current one]",
)
@click.option(
    "--timeout",
    type=parameters.TIME,
    metavar="TIME",
    help="How long to wait: 30, 30s, 5m.  [default: for ever]",
)
@click.option("--raw", is_flag=True, help="Print only the bytes of the value, without a newline.")
@parameters.json_option("Print the record as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing.")
def command(
    context: click.Context,
    key: str,
    exists: bool,
    gone: bool,
    equals: str | None,
    changed: bool,
    until: str | None,
    since: int | None,
    timeout: int | None,
    raw: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Wait until the condition holds for KEY, and print its value, if it has one.

    This returns at once if the condition already holds, and misses no change between the check and the
    wait. Without --timeout it waits for ever, also through restarts of the service.

    The CONDITION of --until is POINTER OP JSON, where POINTER is a JSON pointer (nothing: the whole value)
    and OP one of == != < <= > >=; or POINTER exists, POINTER gone; or as the other options: exists, gone,
    'equals V'. It is enough that it held for a moment. If the key is gone then, nothing is printed.

    Exit status: 0, or 124 after --timeout.

    \b
    Examples:
      kvstore wait jobs/42/result --exists --timeout 5m
      kvstore wait lock:build --gone && make
      kvstore wait deploy/state --equals done --timeout 1h
      kvstore wait config --changed --since 1042
      kvstore wait jobs/42 --until '/state == "done"' --timeout 1h
    """
    which = parameters.exactly_one(
        {"--exists": exists, "--gone": gone, "--equals": equals, "--changed": changed, "--until": until}
    )
    if since is not None and not changed:
        raise click.UsageError("--since needs --changed")
    parameters.at_most_one({"--raw": raw, "--json": as_json, "--quiet": quiet})
    if until is not None:
        record = _wait_until(context, key, until, timeout)
    else:
        is_fulfilled = _conditions(equals, since)[which]
        record = _wait(context, key, is_fulfilled, timeout, _SHORTFALLS[which].format(equals))
    if record is not None and not quiet:
        _print(record, raw=raw, as_json=as_json)


_SHORTFALLS = {
    "--exists": "did not appear",
    "--gone": "still existed",
    "--equals": "did not become {!r}",
    "--changed": "did not change",
}


def _conditions(equals: str | None, since: int | None) -> dict[str, Callable[[Record], bool]]:
    wanted = os.fsencode(equals or "")
    known = since

    def has_changed(record: Record) -> bool:
        nonlocal known
        revision = 0 if record is None else record["revision"]
        if known is None:
            known = revision
        return bool(revision != known)

    return {
        "--exists": lambda record: record is not None,
        "--gone": lambda record: record is None,
        "--equals": lambda record: record is not None and output.value_of(record) == wanted,
        "--changed": has_changed,
    }


def _wait_until(context: click.Context, key: str, until: str, timeout: int | None) -> Record:
    """The record that fulfilled ``until``, None if it was fulfilled by there being none.

    The service looks at each change. It is asked again and again, each time from where the last answer ended.
    Raises the KvError of the first request.
    """
    deadline = None if timeout is None else monotonic() + timeout / 1000
    query, since, backoff = [("until", until), ("format", "json")], "", new_backoff()
    with new_client(configuration_of(context, "client"), at_most_ms=timeout) as service:
        while True:
            left = SLICE_SECONDS if deadline is None else deadline - monotonic()
            # the first looks only: a service that is there from the beginning is waited for when it restarts
            seconds = min(SLICE_SECONDS, max(0.0, left)) if since else 0.0
            asked = [*query, ("wait", f"{seconds * 1000:.0f}ms"), *([("since", since)] if since else [])]
            try:
                answer = service.request("GET", key_path("kv", key), asked, wait_seconds=seconds)
            except KvError as error:
                if error.code == "bad_request":  # the service alone knows the grammar
                    raise click.UsageError(f"--until: {error.message}") from error
                if not error.row.is_temporary or not service.was_reached:
                    raise
                since = error.details.get("cursor", since)
                pause = 0.0 if error.code == "timed_out" else backoff.next()
                if deadline is not None and monotonic() + pause >= deadline:
                    message = f"{key!r} did not fulfil {until!r} within {show_duration(timeout or 0)}"
                    raise KvError("timed_out", message) from error
                sleep(pause)
            else:
                record: Record = None if answer.status == 204 else answer.json()
                return record


def _wait(
    context: click.Context,
    key: str,
    is_fulfilled: Callable[[Record], bool],
    timeout: int | None,
    shortfall: str,
) -> Record:
    configuration = configuration_of(context, "client", "stream")
    deadline = None if timeout is None else monotonic() + timeout / 1000
    with new_client(configuration, at_most_ms=timeout) as service:
        updates = change_stream.follow(
            service,
            [("key", key)],
            change_stream.StreamPosition(cursor=None, snapshot=True),
            stall_ms=configuration["stall-timeout"],
            deadline=deadline,
            notice=output.talk,
        )
        with closing(updates):
            try:
                return _first(updates, is_fulfilled)
            except KvError as error:
                if error.code == "timed_out" and timeout is not None:
                    message = f"{key!r} {shortfall} within {show_duration(timeout)}"
                    raise KvError("timed_out", message) from error
                raise


_OF_EVENTS = {"event", "op", "snapshot", "index", "count", "time", "previous_revision", "cursor"}
"""The members of an event that are not its record's."""


def _first(updates: Iterable[change_stream.StreamUpdate], is_fulfilled: Callable[[Record], bool]) -> Record:
    """The key's record, None if it does not exist, once it fulfils the condition.

    The check and the wait are one stream: a snapshot, and the changes after it.
    """
    record: Record = None
    is_known = False
    for update in updates:
        if update.kind == change_stream.RESET:
            record, is_known = None, False
        elif update.kind in (change_stream.SNAPSHOT, change_stream.EVENTS):
            last = update.lines[-1]
            is_there = last["op"] == "put"
            record = {name: last[name] for name in last if name not in _OF_EVENTS} if is_there else None
        elif update.kind == change_stream.SYNC:
            is_known = True
        if is_known and update.kind in (change_stream.SYNC, change_stream.EVENTS) and is_fulfilled(record):
            return record
    raise AssertionError("the stream does not end")


def _print(record: dict[str, Any], *, raw: bool, as_json: bool) -> None:
    if as_json:
        output.write_json(record)
    else:
        output.write_value(output.value_of(record), record["content_type"], raw=raw)
