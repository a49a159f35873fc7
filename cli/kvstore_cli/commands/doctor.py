"""``kvstore doctor``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.parameters import TIME, json_option
from kvstore_cli.command_line.subcommand import configuration_of, exit_on_signals, subcommand
from kvstore_cli.terminal import output


@subcommand("client")
@click.option("--quick", is_flag=True, help="Skip the check of idle connections, which takes --idle.")
@click.option("--read-only", is_flag=True, help="Skip the checks that write.")
@click.option(
    "--idle",
    type=TIME,
    default="65s",
    metavar="TIME",
    show_default=True,
    help="How long to keep a connection idle: by default just past the 60 s that many proxies allow.",
)
@json_option("As one JSON object, at the end.")
def command(context: click.Context, quick: bool, read_only: bool, idle: int, as_json: bool) -> int:
    """Check the service through any proxy in front of it, and say what to change.

    It uses the service as clients do, from where this command runs, so proxies, load balancers, caches
    and networks in between are checked with it. Each check is ok, a note, a warning, failed or
    skipped, and says what to do about a problem. It writes only under kvstore-doctor/, with a new name
    each time and a TTL, and deletes its keys at the end. A token needs rw:kvstore-doctor/ for all of it.

    It also looks at what strangers reach from here: over HTTP, and at the ports of KVSTORE_REQUESTS and
    KVSTORE_CHANGES on the same host.

    Exit status: 0, also with warnings; 1 if a check failed; 6 if the service, or the daemon behind
    it, cannot be reached.

    \b
    Examples:
      kvstore doctor
      kvstore doctor --url https://kv.example.org --quick
      kvstore doctor --idle 10m --json
    """
    from kvstore_cli.config.token_source import TokenSource
    from kvstore_cli.doctor.findings import Finding, lines
    from kvstore_cli.doctor.probe import Probe
    from kvstore_cli.doctor.runner import longest_seconds, run_checks

    configuration = configuration_of(context, "client", "daemon")
    url = configuration["url"]
    probe = Probe(
        url,
        configuration["request-timeout"] / 1000,
        idle / 1000,
        configuration["ca-file"],
        TokenSource(configuration),
        _ports(configuration["requests"], configuration["changes"]),
    )

    def show(name: str, finding: Finding) -> None:
        for line in lines(name, finding, probe.server):
            output.write_line(line)

    # so that its keys are deleted
    exit_on_signals()
    seconds = longest_seconds(probe.idle, is_quick=quick, is_read_only=read_only)
    writes = (
        "writes nothing" if read_only else f"writes keys under {probe.scratch} and deletes them afterwards"
    )
    output.talk(f"checking {url}: takes at most {seconds} s, {writes}")
    results = run_checks(
        probe, (lambda *_: None) if as_json else show, is_quick=quick, is_read_only=read_only
    )
    if as_json:
        output.write_json({"url": url, **results.as_json()})
    return results.exit


def _ports(*endpoints: str) -> list[int]:
    """The TCP ports of a daemon that listens on ``endpoints``."""
    ports = (endpoint.rpartition(":")[2] for endpoint in endpoints if endpoint.startswith("tcp://"))
    return [int(port) for port in ports if port != "0"]
