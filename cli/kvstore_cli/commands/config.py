"""``kvstore config``."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.command_line.flags import Command, given_flags, with_options
from kvstore_cli.config.resolve import Configuration, Setting, resolve
from kvstore_cli.config.server_settings import daemon_settings, http_settings
from kvstore_cli.terminal import output

PARTS = ("daemon", "http", "client", "stream")


@click.group()
def command() -> None:
    """Show and check what the options are set to.

    Every option is a flag (--retain-age 2d), a variable (KVSTORE_RETAIN_AGE=2d) and a key of the
    TOML file (retain-age = "2d"). The flag wins over the variable, the variable over the file, the
    file over the default. The file is --config FILE, or KVSTORE_CONFIG, or kvstore/config.toml in
    the XDG config folder (~/.config).
    """


@command.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@with_options(*PARTS)
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    """Print each option's value and where it came from.

    \b
    Examples:
      kvstore config show
      kvstore config show --config ./kvstore.toml --json
    """
    settings = _resolved(context).settings()
    if as_json:
        for setting in settings:
            output.write_json(_described(setting))
    else:
        rows = [(setting.option.name, setting.shown(), setting.origin) for setting in settings]
        output.write_table(("OPTION", "VALUE", "FROM"), rows)


@command.command(cls=Command)
@with_options(*PARTS)
@click.pass_context
def check(context: click.Context) -> None:
    """Say whether the service can take this configuration.

    Exit status: 0, or 2 if something is wrong, which is said. Whether the data folder and the ports can
    be had is not tried: that the start says.

    \b
    Example:
      kvstore config check --config /etc/kvstore/config.toml
    """
    configuration = _resolved(context)
    daemon_settings(configuration)
    http_settings(configuration)
    output.talk("the configuration is fine")


def _resolved(context: click.Context) -> Configuration:
    return resolve(given_flags(context), *PARTS)


def _described(setting: Setting) -> dict[str, Any]:
    option = setting.option
    return {
        "option": option.name,
        "value": setting.value,
        "unit": "milliseconds" if option.field.endswith("_ms") else option.kind.unit,
        "shown": setting.shown(),
        "from": setting.origin,
        "variable": option.variable,
    }
