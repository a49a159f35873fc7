"""``kvstore subscribe``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, closing, nullcontext

import click

from kvstore_cli.command_line.completion import complete_key
from kvstore_cli.command_line.context import configured, service_of
from kvstore_cli.command_line.flags import KEY, TEXT, Command, WholeNumber, with_options
from kvstore_cli.http_client.change_stream import EVENTS, RESET, SNAPSHOT, SYNC, Position, Step, follow
from kvstore_cli.http_client.client import Query
from kvstore_cli.subscribe.sinks import CursorFile, Delivery, JsonLines, Lines, ShellCommand, is_position
from kvstore_cli.terminal import output
from kvstore_cli.terminal.signals import end_on_signals


@click.command(cls=Command)
@click.argument("keys", type=KEY, nargs=-1, metavar="[KEY]...", shell_complete=complete_key)
@click.option(
    "--prefix",
    "prefixes",
    multiple=True,
    type=TEXT,
    metavar="P",
    shell_complete=complete_key,
    help="Keys that begin with P; may be repeated.",
)
@click.option(
    "--op",
    "ops",
    multiple=True,
    type=click.Choice(["put", "delete", "expire"]),
    help="Only events of this kind; may be repeated.",
)
@click.option("--since", metavar="C", help="Go on after the cursor, or the revision, C.")
@click.option("--snapshot", is_flag=True, help="Begin with the present records.")
@click.option("--count", type=WholeNumber(1), metavar="N", help="Stop after N events.")
@click.option("--no-values", is_flag=True, help="Leave the values out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--exec", "shell_command", metavar="CMD", help="Run the shell command CMD for each event.")
@click.option("--fail-fast", is_flag=True, help="Stop with status 1 as soon as a command of --exec fails.")
@click.option(
    "--cursor",
    "cursor_file",
    metavar="FILE",
    help="Keep the position in FILE, and go on from there next time.",
)
@with_options("client", "stream")
@click.pass_context
def command(
    context: click.Context,
    keys: tuple[str, ...],
    prefixes: tuple[str, ...],
    ops: tuple[str, ...],
    since: str | None,
    snapshot: bool,
    count: int | None,
    no_values: bool,
    as_json: bool,
    shell_command: str | None,
    fail_fast: bool,
    cursor_file: str | None,
) -> int:
    """Print every change of the KEYs and prefixes as it happens; of everything if none is named.

    Each event is a line: what happened, the key, the revision, and the value that was put, with
    tabs between; a value's control characters are written as escapes. --json gives all there is;
    it adds a line "sync" where a --snapshot is complete, and "reset" where what came so far is void
    because the log no longer reaches back: a snapshot follows.

    A broken connection is opened again, and the stream goes on with nothing lost and nothing
    twice. --cursor FILE carries the position over to the next run; an event counts as delivered
    once it was printed or its command has ended.

    --exec runs CMD in a shell, one event at a time, with the value (of an expired key the last
    one) on standard input and the event in KVSTORE_EVENT_OP, _KEY, _REVISION, _INDEX, _COUNT,
    _TIME, _CONTENT_TYPE, _VERSION, _EXPIRES_AT, _PREVIOUS_REVISION and _CURSOR. A command that
    fails is reported on standard error and the stream goes on; the exit status is then 1. With
    --fail-fast it ends there, and the event stays undelivered. A CMD never outlives this command.

    \b
    Examples:
      kvstore subscribe
      kvstore subscribe config/port --prefix user: --json
      kvstore subscribe --snapshot --prefix user: --exec './sync-user "$KVSTORE_EVENT_KEY"'
      kvstore subscribe --cursor /var/lib/mirror/position --json >> changes.ndjson
    """
    if fail_fast and shell_command is None:
        raise click.UsageError("--fail-fast goes with --exec")
    if since is not None and not is_position(since):
        raise click.UsageError(f"--since {output.readable(since)} is not a cursor and not a revision")
    configuration = configured(context, "stream")
    delivery = _delivery(shell_command, fail_fast=fail_fast, as_json=as_json, with_sync=snapshot)
    if shell_command is not None:
        end_on_signals()
    with service_of(configuration) as service, _kept(cursor_file) as kept:
        start = (kept.read() if kept else None) or since
        steps = follow(
            service,
            _wanted(keys, prefixes, ops, values=not no_values),
            Position(start, snapshot and start is None),
            stall_ms=configuration["stall-timeout"],
            # a command of --exec need not write anything, and then nobody needs to read it
            output=None if shell_command is not None else output.descriptor(),
            notice=output.talk,
        )
        with closing(steps):
            _deliver(steps, delivery, count, kept)
    return delivery.status


def _kept(path: str | None) -> AbstractContextManager[CursorFile | None]:
    return nullcontext() if path is None else CursorFile(path)


def _wanted(keys: Iterable[str], prefixes: Iterable[str], ops: Iterable[str], *, values: bool) -> Query:
    query = [*(("key", key) for key in keys), *(("prefix", prefix) for prefix in prefixes)]
    if ops:
        query.append(("ops", ",".join(ops)))
    if not values:
        query.append(("values", "0"))
    return query


def _delivery(shell_command: str | None, *, fail_fast: bool, as_json: bool, with_sync: bool) -> Delivery:
    if shell_command is not None:
        return ShellCommand(shell_command, fail_fast=fail_fast)
    return JsonLines(with_sync=with_sync) if as_json else Lines()


def _deliver(steps: Iterable[Step], delivery: Delivery, count: int | None, kept: CursorFile | None) -> None:
    """Deliver events until there were ``count``, and keep the position behind what was delivered."""
    following = False
    for step in steps:
        events = step.lines if step.kind in (EVENTS, SNAPSHOT) else []
        wanted = events[:count]
        for line in wanted:
            delivery.event(line)
        if step.kind in (SYNC, RESET):
            delivery.mark(step.lines[0])
        if step.kind == SYNC and not following:
            following = True
            output.talk(f"following the changes after {step.cursor}")
        # a revision that --count cuts in two is not done with
        if kept and step.cursor and len(wanted) == len(events):
            kept.write(step.cursor)
        if count is not None:
            count -= len(wanted)
            if count == 0:
                return
