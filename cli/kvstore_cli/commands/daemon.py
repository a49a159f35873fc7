"""``kvstore daemon``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.flags import given_flags, with_options
from kvstore_cli.command_line.parameters import Subcommand
from kvstore_cli.config.resolve import resolve
from kvstore_cli.config.server_settings import daemon_settings


@click.command(cls=Subcommand)
@with_options("daemon")
@click.pass_context
def command(context: click.Context) -> int:
    """Run only the daemon, which owns the data and speaks ZeroMQ.

    It stays in the foreground, reports on standard error when it is ready, and stops cleanly on
    SIGTERM and Ctrl-C. 'kvstore serve' runs it together with the HTTP facade.

    \b
    Examples:
      kvstore daemon --data /var/lib/kvstore
      kvstore daemon --requests tcp://127.0.0.1:0 --changes tcp://127.0.0.1:0
    """
    settings = daemon_settings(resolve(given_flags(context), "daemon"))
    from kvstore_cli.serve.logging_setup import chosen_format, set_up
    from kvstore_core.process.sd_notify import Notifier
    from kvstore_daemon.main import run

    set_up("daemon", settings.log_level, chosen_format(settings.log_format))
    return run(settings, Notifier.from_environment())
