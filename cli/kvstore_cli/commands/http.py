"""``kvstore http``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.flags import given_flags, with_options
from kvstore_cli.command_line.parameters import Subcommand
from kvstore_cli.config.resolve import resolve
from kvstore_cli.config.server_settings import http_settings


@click.command(cls=Subcommand)
@with_options("http")
@click.pass_context
def command(context: click.Context) -> int:
    """Run only the HTTP facade, for a daemon that runs separately.

    It stays in the foreground, reports on standard error when it is ready, and stops cleanly on
    SIGTERM and Ctrl-C. While the daemon is away it answers 503 and keeps its streams open. Sockets
    from a service manager (systemd's socket activation) replace --http.

    \b
    Examples:
      kvstore http --workers 2
      kvstore http --http 127.0.0.1:8080 --requests tcp://127.0.0.1:5555
    """
    from kvstore_cli.serve.socket_activation import address_of, inherited_sockets

    flags, inherited = given_flags(context), inherited_sockets()
    if inherited:
        flags = {**flags, "http": address_of(inherited)}
    settings = http_settings(resolve(flags, "http"))
    from kvstore_cli.serve.logging_setup import chosen_format, set_up
    from kvstore_core.process.sd_notify import Notifier
    from kvstore_http.main import run

    set_up("http", settings.log_level, chosen_format(settings.log_format))
    return run(settings, Notifier.from_environment(), inherited)
