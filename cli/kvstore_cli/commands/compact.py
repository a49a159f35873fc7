"""``kvstore compact``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.flags import Command, with_options
from kvstore_cli.store_folder import data_folder, size
from kvstore_cli.terminal import output, progress
from kvstore_cli.terminal.signals import end_on_signals


@click.command(cls=Command)
@click.option("--dry-run", is_flag=True, help="Only say how much would be gained, also beside a daemon.")
@with_options("store")
@click.pass_context
def command(context: click.Context, dry_run: bool) -> None:
    """Give the room of the store's free pages back to the disk.

    The daemon has to be stopped. The store is written anew beside the old file, verified, and then takes
    its place in one step; until then the disk needs room for both. Free pages are used again by new
    writes, so this is only for a store that has shrunk for good.

    \b
    Examples:
      kvstore compact --dry-run
      kvstore compact --data /var/lib/kvstore
    """
    end_on_signals()
    folder = data_folder(context)
    from kvstore_daemon.storage.offline import reader_client
    from kvstore_daemon.storage.offline.compact import Compacted, compact
    from kvstore_daemon.storage.offline.run_as_owner import become_owner

    if dry_run:
        found = reader_client.facts(folder)
        done, verb = Compacted(found["file_bytes"], found["bytes"]), "would become"
    else:
        with progress.steps() as steps:
            done, verb = compact(become_owner(folder), steps), "became"
    output.talk(f"{size(done.before_bytes)} {verb} {size(done.after_bytes)}")
