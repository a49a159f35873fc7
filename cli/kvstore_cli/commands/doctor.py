"""``kvstore doctor``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.context import TIME, configured
from kvstore_cli.command_line.flags import Command, with_options
from kvstore_cli.terminal import output


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Leave out the check that listens to silence.")
@click.option("--read-only", is_flag=True, help="Leave out the checks that write.")
@click.option(
    "--idle",
    type=TIME,
    default="65s",
    metavar="TIME",
    show_default=True,
    help="How long silence is listened to: just past the limit of 60 s that many proxies have.",
)
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, at the end.")
@with_options("client")
@click.pass_context
def command(context: click.Context, quick: bool, read_only: bool, idle: int, as_json: bool) -> int:
    """Measure the service through whatever stands in between, and say what to change.

    Asks it as clients do, from where this command runs: proxies, load balancers, caches and
    networks on the way are measured with it. Each check is ok, a note, a warning, failed or
    skipped, and says what to do where something is wrong. It writes only under kvstore-doctor/,
    under a name that is new each time, with a TTL, and deletes that at the end.

    Exit status: 0, also with warnings; 1 if a check failed; 6 if the service, or the daemon behind
    it, cannot be reached.

    \b
    Examples:
      kvstore doctor
      kvstore doctor --url https://kv.example.org --quick
      kvstore doctor --idle 10m --json
    """
    from kvstore_cli.doctor.findings import Finding
    from kvstore_cli.doctor.probe import Probe
    from kvstore_cli.doctor.report import lines
    from kvstore_cli.doctor.runner import examine, longest_seconds
    from kvstore_cli.terminal.signals import end_on_signals

    configuration = configured(context)
    url = configuration["url"]
    probe = Probe(url, configuration["request-timeout"] / 1000, idle / 1000, configuration["ca-file"])

    def tell(name: str, finding: Finding) -> None:
        for line in lines(name, finding, probe.server):
            output.write_line(line)

    # what was written is deleted then
    end_on_signals()
    seconds = longest_seconds(probe.idle, is_quick=quick, is_read_only=read_only)
    writes = (
        "writes nothing" if read_only else f"writes keys under {probe.scratch} and deletes them afterwards"
    )
    output.talk(f"examining {url}: takes at most {seconds} s, {writes}")
    outcome = examine(probe, (lambda *_: None) if as_json else tell, is_quick=quick, is_read_only=read_only)
    if as_json:
        output.write_json({"url": url, **outcome.as_json()})
    return outcome.exit
