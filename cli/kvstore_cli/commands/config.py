"""``kvstore config``."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.command_line.parameters import json_option
from kvstore_cli.command_line.subcommand import configuration_of, subcommand
from kvstore_cli.config.resolve import Setting
from kvstore_cli.terminal import output

PARTS = ("daemon", "http", "client", "stream")


@subcommand(*PARTS)
@json_option("One JSON object a line.")
def show(context: click.Context, as_json: bool) -> None:
    """Print each option's value and where it comes from.

    \b
    Examples:
      kvstore config show
      kvstore config show --config ./kvstore.toml --json
    """
    settings = configuration_of(context, *PARTS).settings()
    if as_json:
        for setting in settings:
            output.write_json(_described(setting))
    else:
        rows = [(setting.option.name, setting.shown(), setting.origin) for setting in settings]
        output.write_table(("OPTION", "VALUE", "FROM"), rows)


@subcommand(*PARTS)
def check(context: click.Context) -> None:
    """Check that the service can start with this configuration.

    Exit status: 0, or 2 with a message if something is wrong. Whether the data folder and the ports are
    available is only known when the service starts.

    \b
    Example:
      kvstore config check --config /etc/kvstore/config.toml
    """
    configuration_of(context, *PARTS).service_settings()
    output.talk("the configuration is valid")


@click.group(commands=[show, check])
def command() -> None:
    """Show and check the configuration.

    Every option is a flag (--retain-age 2d), an environment variable (KVSTORE_RETAIN_AGE=2d) and a key
    in the TOML file (retain-age = "2d"). A flag overrides the variable, which overrides the file, which
    overrides the default. The file is --config FILE, or KVSTORE_CONFIG, or kvstore/config.toml in the
    XDG config folder (~/.config).
    """


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
