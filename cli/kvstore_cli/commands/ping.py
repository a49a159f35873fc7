"""``kvstore ping``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.context import configuration_of, new_client
from kvstore_cli.command_line.flags import with_options
from kvstore_cli.command_line.parameters import Subcommand
from kvstore_cli.config.option_values import connectable
from kvstore_cli.config.resolve import Configuration
from kvstore_cli.terminal import output

LONGEST_MS = 3000
"""Health checks need a quick answer: an orchestrator kills one after a few seconds, before it can say what
is wrong."""


@click.command(cls=Subcommand)
@click.option("--daemon", "is_daemon", is_flag=True, help="Ask the daemon itself, at KVSTORE_REQUESTS.")
@with_options("client")
@click.pass_context
def command(context: click.Context, is_daemon: bool) -> None:
    """Check that the service answers: the HTTP facade, and through it the daemon.

    It waits for at most 3 s, or --request-timeout if that is less. Use it as the health check of
    containers and orchestrators; 'kvstore status' prints more.

    Exit status: 0; 6 if the service, or the daemon behind it, cannot be reached; 124 if it does not
    answer in time.

    \b
    Examples:
      kvstore ping
      kvstore ping --daemon
      until kvstore ping; do sleep 1; done
    """
    configuration = configuration_of(context, "daemon")
    output.write_line((_ping_daemon if is_daemon else _ping_facade)(configuration))


def _ping_facade(configuration: Configuration) -> str:
    with new_client(configuration, at_most_ms=LONGEST_MS) as service:
        service.request("GET", "/readyz")
    return f"{configuration['url']} is ready"


def _ping_daemon(configuration: Configuration) -> str:
    from kvstore_client import Client

    requests = connectable(configuration["requests"])
    seconds = min(configuration["request-timeout"], LONGEST_MS) / 1000
    with Client(requests, timeout=seconds, connections=1) as client:
        client.status()
    return f"{requests} is ready"
