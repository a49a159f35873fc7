"""``kvstore serve``."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict

import click

from kvstore_cli.command_line.flags import given_flags, with_options
from kvstore_cli.command_line.parameters import Subcommand
from kvstore_cli.config.option_values import connectable
from kvstore_cli.config.options import OPTIONS
from kvstore_cli.config.resolve import resolve
from kvstore_cli.config.server_settings import daemon_settings, http_settings


@click.command(cls=Subcommand)
@with_options("daemon", "http")
@click.pass_context
def command(context: click.Context) -> int:
    """Run the service: the daemon and the HTTP facade, as two processes under this one.

    It stays in the foreground and prints its addresses on standard error. If one of the two crashes it
    is restarted, at once at first and then with growing delays. SIGTERM and Ctrl-C stop the facade, then
    the daemon; a second Ctrl-C does not wait for them.

    Exit status: 0 after a clean stop, 1 or 2 if the service cannot run.

    \b
    Examples:
      kvstore serve
      kvstore serve --data ./data --http 127.0.0.1:8080 --workers 2
      kvstore serve --http 0.0.0.0:5000 --allow-anonymous
    """
    configuration = resolve(given_flags(context), "daemon", "http")
    daemon, http = daemon_settings(configuration), http_settings(configuration)
    from kvstore_cli.serve.logging_setup import chosen_format, set_up, write_through
    from kvstore_cli.serve.supervisor import ServiceSupervisor, announce
    from kvstore_core.process.sd_notify import Notifier

    # The children's standard error is a pipe: what reads ours decides how they write.
    log_format = chosen_format(daemon.log_format)
    set_up("serve", daemon.log_level, log_format)

    def on_ready(addresses: dict[str, str]) -> None:
        if log_format == "json":
            announce(addresses)
        else:
            write_through(_guide(addresses).encode())

    chosen = {"log_format": log_format}
    parts = {**asdict(daemon), **chosen}, {**asdict(http), **chosen}
    return ServiceSupervisor(*parts, on_ready, Notifier.from_environment()).run()


def _guide(addresses: dict[str, str]) -> str:
    url = connectable(addresses["url"])
    program = "kvstore" if shutil.which("kvstore") else sys.argv[0]
    client = program if url == OPTIONS["url"].default else f"KVSTORE_URL={url} {program}"
    return f"""
kvstore is ready. Its data is in {addresses["data"]}; Ctrl-C stops it.

  browser  {url}/
  HTTP     curl -X PUT {url}/v1/kv/greeting -d hello
           curl {url}/v1/kv/greeting
  shell    {client} put greeting hello
           {client} get greeting
  changes  {client} subscribe
           curl -N {url}/v1/subscribe
  ZeroMQ   requests {addresses["requests"]}, changes {addresses["changes"]}

"""
