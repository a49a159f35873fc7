"""``kvstore compact``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.context import data_folder
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.parameters import Subcommand
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.humanize import exact_size
from kvstore_cli.terminal.signals import exit_on_signals


@click.command(cls=Subcommand)
@click.option("--dry-run", is_flag=True, help="Only print how much it would save; the daemon may be running.")
@with_options("store")
@click.pass_context
def command(context: click.Context, dry_run: bool) -> None:
    """Give the space of the store's free pages back to the disk.

    Stop the daemon first. A new file is written beside the old one, verified, and then replaces it in one
    step; until then the disk needs space for both. New writes reuse free pages, so this is only for a
    store that has shrunk for good.

    \b
    Examples:
      kvstore compact --dry-run
      kvstore compact --data /var/lib/kvstore
    """
    exit_on_signals()
    folder = data_folder(context)
    from kvstore_daemon.storage.offline import reader_client
    from kvstore_daemon.storage.offline.replace_store import Compacted, compact
    from kvstore_daemon.storage.offline.run_as_owner import become_owner

    if dry_run:
        found = reader_client.facts(folder)
        done, verb = Compacted(found["file_bytes"], found["bytes"]), "would become"
    else:
        with progress.steps() as steps:
            done, verb = compact(become_owner(folder), steps), "became"
    output.talk(f"{exact_size(done.before_bytes)} {verb} {exact_size(done.after_bytes)}")
