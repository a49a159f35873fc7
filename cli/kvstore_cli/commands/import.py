"""``kvstore import``."""
# ruff: noqa: N999 - a module is called like its command, and this one is only ever imported by name

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from kvstore_cli.command_line.parameters import TEXT, complete_file, file_argument, message_option
from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import (
    configuration_of,
    exit_on_signals,
    long_retry_ms,
    subcommand,
)
from kvstore_cli.files.input_file import shown_name
from kvstore_cli.http_client.client import RetryLimit
from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_DONE, EXIT_ERROR, KvError

if TYPE_CHECKING:
    from kvstore_cli.transfer.importer import ImportCounts, Importer, ImportState, Policy, StateFile
    from kvstore_cli.transfer.ndjson_format import ImportFile


@subcommand("client")
@file_argument
@click.option("--if-absent", is_flag=True, help="Do not overwrite keys that exist.  [default: overwrite]")
@click.option(
    "--prefix-strip", type=TEXT, default="", metavar="P", help="Remove the prefix P from every key."
)
@click.option(
    "--prefix-add", type=TEXT, default="", metavar="P", help="Add the prefix P to every key, after stripping."
)
@message_option
@click.option("--keep-going", is_flag=True, help="Skip lines that cannot be used, and report them.")
@click.option("--dry-run", is_flag=True, help="Check every line, but put nothing.")
@click.option(
    "--state",
    "state_path",
    metavar="FILE",
    shell_complete=complete_file,
    help="Where to keep the position.  [default: FILE.import-state]",
)
@click.option("--restart", is_flag=True, help="Start over instead of resuming an interrupted import.")
def command(
    context: click.Context,
    file: str,
    if_absent: bool,
    prefix_strip: str,
    prefix_add: str,
    message: str | None,
    keep_going: bool,
    dry_run: bool,
    state_path: str | None,
    restart: bool,
) -> int:
    """Put the records in FILE (- is standard input): an export, or any JSON objects, one a line, with
    a "key", a "value" (text) or "value_b64", and optionally "content_type" and "expires_at" or "ttl".
    It may be compressed with gzip.

    Keys that exist are overwritten, unless --if-absent is given; keys that are not in FILE are not
    touched. Values, media types and expiry times are kept, and expired records are skipped.
    Revisions, versions and times of change are new: they are those of this store. So are author and
    message: an import is a change of its own, and --message says why it was made.

    A file is read twice. First every line is checked, and that the export is complete: on an error the
    line is named and nothing is put. Then the records are sent in batches. FILE.import-state keeps
    the position until the import is done: after an interruption, the same command resumes there.
    Standard input is read once, so lines are put up to the first bad one, and an interrupted import
    starts over.

    Exit status: 0; 1 if lines were skipped or the import stopped at one; 6 if the service was
    unavailable for longer than --retry-for.

    \b
    Examples:
      kvstore import store.ndjson.gz
      kvstore import users.ndjson --prefix-strip user: --prefix-add customer: --dry-run
      jq -c '.[] | {key: .id, value: .name, ttl: "1h"}' users.json | kvstore import - --if-absent
    """
    from kvstore_cli.transfer.importer import Importer, Policy
    from kvstore_cli.transfer.ndjson_format import opened_import

    exit_on_signals()
    policy = Policy(if_absent, prefix_strip, prefix_add, keep_going, message)
    configuration = configuration_of(context, "client")
    retry = RetryLimit(long_retry_ms(configuration), output.talk)
    with opened_import(file) as source, new_client(configuration, retries=False) as service:
        status = service.request("GET", "/v1/status").json()
        limits = status["limits"]
        source.value_bytes = limits["value_bytes"]
        importer = Importer(service, policy, limits, retry, output.talk)
        counts = _checked(source, importer) if dry_run or source.can_rewind else None
        if dry_run:
            assert counts is not None  # noqa: S101 - for the type checker
            output.talk(f"{counts.in_words(is_dry=True)}; nothing was changed")
        else:
            kept = _state_file(source, state_path)
            counts = _imported(source, importer, kept, _begin(source, status["epoch"], policy, kept, restart))
            output.talk(counts.in_words())
    return EXIT_ERROR if counts.failed else EXIT_DONE


def _checked(source: ImportFile, importer: Importer) -> ImportCounts:
    """Read the whole file and count what would be put; sends nothing."""
    from kvstore_cli.terminal.progress import bar
    from kvstore_cli.transfer.importer import ImportCounts

    counts = ImportCounts()
    reader = source.whole()
    with bar("checking", source.size, is_bytes=True) as advance, _naming_file(source, "nothing was put"):
        for so_far in importer.check(source.entries(reader)):
            counts = so_far
            advance(source.done)
    source.sha256, source.export_faults = reader.sha256, reader.export_faults
    return counts


def _state_file(source: ImportFile, path: str | None) -> StateFile | None:
    from kvstore_cli.transfer.importer import StateFile

    if not source.can_rewind:
        if path is not None:
            raise click.UsageError("--state needs a FILE on disk: a pipe cannot be read again")
        return None
    return StateFile(path if path is not None else f"{source.name}.import-state")


def _begin(
    source: ImportFile, epoch: str, policy: Policy, kept: StateFile | None, restart: bool
) -> ImportState:
    """Where the import starts: where it was interrupted, or at the first line."""
    from kvstore_cli.transfer.importer import ImportState

    new = ImportState(source.sha256, epoch, policy._asdict())
    if kept is None or restart:
        return new
    state = kept.load()
    if state is None:
        return new
    state.refuse_other(new, kept.name)
    output.talk(f"resuming after line {state.line}, from {kept.name}")
    return state


def _imported(
    source: ImportFile, importer: Importer, kept: StateFile | None, state: ImportState
) -> ImportCounts:
    """Send the rest of the file; the counts of all of it."""
    from kvstore_cli.terminal.progress import bar

    is_checked = kept is not None
    keep: Callable[[ImportState], None] = kept.save if kept is not None else lambda _: None
    reader = source.after(state.offset, state.line) if is_checked else source.whole()
    keep(state)  # fail before the first batch if it cannot be written
    with bar("importing", source.size, is_bytes=True) as advance, _reporting_progress(source, kept, state):
        try:
            for _ in importer.send(source.entries(reader), state, were_checked=is_checked):
                keep(state)
                advance(source.done)
        except KvError:
            keep(state)  # with the Idempotency-Keys to go on with
            raise
    if kept is not None:
        kept.discard()
        state.counts.failed += source.export_faults  # which only the first reading counts
    return state.counts


@contextmanager
def _naming_file(source: ImportFile, outcome: str) -> Iterator[None]:
    try:
        yield
    except click.UsageError:
        raise
    except click.ClickException as error:
        raise click.ClickException(f"{shown_name(source.name)}: {error.message}; {outcome}") from error


@contextmanager
def _reporting_progress(source: ImportFile, kept: StateFile | None, state: ImportState) -> Iterator[None]:
    """Add to an error how much was put, and how to resume."""
    try:
        yield
    except (click.ClickException, KvError, KeyboardInterrupt, SystemExit) as error:
        far = f"put up to line {state.line}" if state.line else "nothing was put"
        how = "; the same command resumes there" if kept is not None and state.line else ""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            output.talk(f"interrupted, {far}{how}")
            raise
        message = f"{shown_name(source.name)}: {error.message}; {far}{how}"
        if isinstance(error, KvError):
            raise KvError(error.code, message, **error.details) from error
        raise click.ClickException(message) from error
