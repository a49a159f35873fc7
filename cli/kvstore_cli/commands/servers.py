"""``kvstore serve``, ``daemon`` and ``http``, which run the service or one of its two parts.

What needs Linux is imported after the settings, whose import says so elsewhere.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from kvstore_cli.command_line.subcommand import configuration_of, given_flags, subcommand
from kvstore_cli.config.option_values import connectable
from kvstore_cli.config.options import OPTIONS, default_data
from kvstore_core.distribution import require


@subcommand("daemon", "http")
def serve(context: click.Context) -> int:
    """Run the service: the daemon and the HTTP facade, as two processes under this one.

    It stays in the foreground and prints its addresses on standard error. If one of the two crashes it
    is restarted, at once at first and then with growing delays. SIGTERM and Ctrl-C stop the facade, then
    the daemon; a second Ctrl-C does not wait for them.

    Exit status: 0 after a clean stop, 1 or 2 if the service cannot run.

    \b
    Examples:
      kvstore serve
      kvstore serve --data ./data --http 127.0.0.1:8080 --workers 2
      kvstore serve --access required
      kvstore serve --http 0.0.0.0:5000 --allow-anonymous
    """
    require("server")  # before it is each child that fails
    daemon, http = configuration_of(context, "daemon", "http").service_settings()
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
            write_through(_guide(addresses, is_protected=daemon.access == "required").encode())

    chosen = {"log_format": log_format}
    parts = {**asdict(daemon), **chosen}, {**asdict(http), **chosen}
    return ServiceSupervisor(*parts, on_ready, Notifier.from_environment()).run()


def _guide(addresses: dict[str, str], *, is_protected: bool) -> str:
    from shlex import quote
    from shutil import which
    from urllib.parse import urlsplit

    url, data = connectable(addresses["url"]), addresses["data"]
    variables = [] if url == OPTIONS["url"].default else [f"KVSTORE_URL={url}"]
    client = "kvstore"
    if not which(client):
        program = Path(sys.argv[0]).absolute()
        if program.name == client:
            variables.append(f"PATH={quote(str(program.parent))}:$PATH")
        else:
            client = f"{quote(sys.executable)} -m kvstore_cli"
    curl = "curl"
    access = "\n  access   off: whoever is on this machine may do everything (--access required: with a key)"
    if is_protected:
        first = Path(data, "admin.token")
        access = f"\n  access   TOKEN=$(cat {quote(str(first))})" if first.exists() else ""
        curl = 'curl -H "Authorization: Bearer $TOKEN"'
        if data != default_data():
            variables.append("KVSTORE_TOKEN=$TOKEN")
    tls = ""
    if url.startswith("https:"):
        tls = f"\n  TLS      instead of {urlsplit(url).hostname} write a name that the certificate is for"
    export = f"export {' '.join(variables)}\n           " if variables else ""
    return f"""
kvstore is ready. Its data is in {data}; Ctrl-C stops it.
{access}{tls}
  browser  {url}/
  HTTP     {curl} -X PUT {url}/v1/kv/greeting -d hello
           {curl} {url}/v1/kv/greeting
  shell    {export}{client} put greeting hello
           {client} get greeting
  changes  {client} subscribe
           {curl} -N {url}/v1/subscribe
  ZeroMQ   requests {addresses["requests"]}, changes {addresses["changes"]}

"""


@subcommand("daemon")
def daemon(context: click.Context) -> int:
    """Run only the daemon, which owns the data and speaks ZeroMQ.

    It stays in the foreground, reports on standard error when it is ready, and stops cleanly on
    SIGTERM and Ctrl-C. 'kvstore serve' runs it together with the HTTP facade.

    \b
    Examples:
      kvstore daemon --data /var/lib/kvstore
      kvstore daemon --requests tcp://127.0.0.1:0 --changes tcp://127.0.0.1:0
    """
    settings = configuration_of(context, "daemon").daemon_settings()
    from kvstore_cli.serve.logging_setup import chosen_format, set_up
    from kvstore_core.process.sd_notify import Notifier
    from kvstore_daemon.main import run

    set_up("daemon", settings.log_level, chosen_format(settings.log_format))
    return run(settings, Notifier.from_environment())


@subcommand("http")
def http(context: click.Context) -> int:
    """Run only the HTTP facade, for a daemon that runs separately.

    It stays in the foreground, reports on standard error when it is ready, and stops cleanly on
    SIGTERM and Ctrl-C. While the daemon is away it answers 503 and keeps its streams open. Sockets
    from a service manager (systemd's socket activation) replace --http.

    \b
    Examples:
      kvstore http --workers 2
      kvstore http --http 127.0.0.1:8080 --requests tcp://127.0.0.1:5555
    """
    require("server")  # before it is each worker that fails
    from kvstore_cli.serve.socket_activation import address_of, inherited_sockets

    inherited = inherited_sockets()
    if inherited:
        given_flags(context)["http"] = address_of(inherited)
    settings = configuration_of(context, "http").http_settings()
    from kvstore_cli.serve.logging_setup import chosen_format, set_up
    from kvstore_core.process.sd_notify import Notifier
    from kvstore_http.main import run

    set_up("http", settings.log_level, chosen_format(settings.log_format))
    return run(settings, Notifier.from_environment(), inherited)
