"""``kvstore import``."""
# ruff: noqa: N999 - a module is called like its command, and this one is only ever imported by name

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line.completion import complete_file
from kvstore_cli.command_line.context import configured, long_retry_ms, service_of
from kvstore_cli.command_line.flags import TEXT, Command, with_options
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR, KvError

if TYPE_CHECKING:
    from kvstore_cli.transfer.import_file import Intake
    from kvstore_cli.transfer.importer import Importer, Policy, State, StateFile, Tally


@click.command(cls=Command)
@click.argument("file", shell_complete=complete_file)
@click.option("--if-absent", is_flag=True, help="Leave keys that exist as they are.  [default: put them]")
@click.option(
    "--prefix-strip", type=TEXT, default="", metavar="P", help="Take P from the front of every key."
)
@click.option(
    "--prefix-add", type=TEXT, default="", metavar="P", help="Put P in front of every key, after stripping."
)
@click.option("--keep-going", is_flag=True, help="Leave out lines that cannot be used, and say which.")
@click.option("--dry-run", is_flag=True, help="Check every line, and change nothing.")
@click.option(
    "--state",
    "state_path",
    metavar="FILE",
    shell_complete=complete_file,
    help="Where to keep how far it has come.  [default: FILE.import-state]",
)
@click.option("--restart", is_flag=True, help="Begin anew, not where an interrupted import stopped.")
@with_options("client")
@click.pass_context
def command(
    context: click.Context,
    file: str,
    if_absent: bool,
    prefix_strip: str,
    prefix_add: str,
    keep_going: bool,
    dry_run: bool,
    state_path: str | None,
    restart: bool,
) -> int:
    """Put the records in FILE (- is standard input): an export, or any JSON objects, one a line, with
    a "key", a "value" (text) or "value_b64", and if wanted "content_type" and "expires_at" or "ttl".
    It may be compressed with gzip.

    Keys that exist are overwritten, unless --if-absent is given; keys that are not in FILE stay as
    they are. Values, media types and the moments of expiry are kept, and what has expired is left
    out. Revisions, versions and times of change are new: they are those of this store.

    A file is read twice. First every line is checked, and whether the export is whole: if anything
    is wrong, the line is named and nothing is put. Then it is sent in batches. How far it has come
    stands in FILE.import-state until it is done: after an interruption, the same command goes on
    from there. Standard input is read once, so lines are put until one is wrong, and an
    interrupted import begins anew.

    Exit status: 0; 1 if lines were left out or the import stopped because of one; 6 if the service
    was away for longer than --retry-for.

    \b
    Examples:
      kvstore import store.ndjson.gz
      kvstore import users.ndjson --prefix-strip user: --prefix-add customer: --dry-run
      jq -c '.[] | {key: .id, value: .name, ttl: "1h"}' users.json | kvstore import - --if-absent
    """
    from kvstore_cli.terminal.signals import end_on_signals
    from kvstore_cli.transfer.import_file import opened
    from kvstore_cli.transfer.importer import Importer, Policy
    from kvstore_cli.transfer.retry import Patience

    end_on_signals()
    policy = Policy(if_absent, prefix_strip, prefix_add, keep_going)
    configuration = configured(context)
    patience = Patience(long_retry_ms(configuration), output.talk)
    with opened(file) as intake, service_of(configuration, is_patient=False) as service:
        status = service.request("GET", "/v1/status").json()
        limits = status["limits"]
        intake.value_bytes = limits["value_bytes"]
        importer = Importer(service, policy, limits, patience, output.talk)
        tally = _checked(intake, importer) if dry_run or intake.can_rewind else None
        if dry_run:
            assert tally is not None  # noqa: S101 - for the type checker
            output.talk(f"{tally.in_words(is_dry=True)}; nothing was changed")
        else:
            kept = _state_file(intake, state_path)
            tally = _imported(intake, importer, kept, _begin(intake, status["epoch"], policy, kept, restart))
            output.talk(tally.in_words())
    return EXIT_ERROR if tally.failed else EXIT_DONE


def _checked(intake: Intake, importer: Importer) -> Tally:
    """What would become of the whole file, once it was read to its end; sends nothing."""
    from kvstore_cli.terminal.progress import bar
    from kvstore_cli.transfer.importer import Tally

    tally = Tally()
    reader = intake.whole()
    with bar("checking", intake.size, is_bytes=True) as advance, _naming_file(intake, "nothing was put"):
        for so_far in importer.check(intake.entries(reader)):
            tally = so_far
            advance(intake.done)
    intake.sha256, intake.breaches = reader.sha256, reader.breaches
    return tally


def _state_file(intake: Intake, path: str | None) -> StateFile | None:
    from kvstore_cli.transfer.importer import StateFile

    if not intake.can_rewind:
        if path is not None:
            raise click.UsageError("--state goes with a FILE on disk: a pipe cannot be read again")
        return None
    chosen = Path(path) if path is not None else Path(intake.name + ".import-state")
    return StateFile(chosen)


def _begin(intake: Intake, epoch: str, policy: Policy, kept: StateFile | None, restart: bool) -> State:
    """Where the import begins: where it was interrupted, or with the first line."""
    from kvstore_cli.transfer.importer import State

    new = State(intake.sha256, epoch, policy._asdict())
    if kept is None or restart:
        return new
    state = kept.read()
    if state is None:
        return new
    state.refuse_other(new, kept.path)
    output.talk(f"going on behind line {state.line}, as {output.readable(str(kept.path))} says")
    return state


def _imported(intake: Intake, importer: Importer, kept: StateFile | None, state: State) -> Tally:
    """Send what is left of the file; what became of all of it."""
    from kvstore_cli.terminal.progress import bar

    is_checked = kept is not None
    reader = intake.behind(state.offset, state.line) if is_checked else intake.whole()
    if kept is not None:
        kept.write(state)  # a place that cannot be written to is better told before the first batch
    with bar("importing", intake.size, is_bytes=True) as advance, _telling_how_far(intake, kept, state):
        try:
            for _ in importer.send(intake.entries(reader), state, were_checked=is_checked):
                if kept is not None:
                    kept.write(state)
                advance(intake.done)
        except KvError:
            if kept is not None:
                kept.write(state)  # under which number to go on
            raise
    if kept is not None:
        kept.remove()
        state.tally.failed += intake.breaches  # which only the first reading sees
    return state.tally


@contextmanager
def _naming_file(intake: Intake, outcome: str) -> Iterator[None]:
    name = "standard input" if intake.name == "-" else output.readable(intake.name)
    try:
        yield
    except click.UsageError:
        raise
    except click.ClickException as error:
        raise click.ClickException(f"{name}: {error.message}; {outcome}") from error


@contextmanager
def _telling_how_far(intake: Intake, kept: StateFile | None, state: State) -> Iterator[None]:
    """Say with an error how much had been put, and how to go on."""
    try:
        yield
    except (click.ClickException, KvError, KeyboardInterrupt, SystemExit) as error:
        far = f"put up to line {state.line}" if state.line else "nothing was put"
        how = "; the same command goes on from there" if kept is not None and state.line else ""
        name = "standard input" if intake.name == "-" else output.readable(intake.name)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            output.talk(f"interrupted, {far}{how}")
            raise
        message = f"{name}: {error.message}; {far}{how}"
        if isinstance(error, KvError):
            raise KvError(error.code, message, **error.details) from error
        raise click.ClickException(message) from error
