"""``kvstore config``."""

from __future__ import annotations

from typing import Any

import click

from kvstore_cli.command_line.flags import given_flags, with_options
from kvstore_cli.command_line.parameters import Subcommand, json_option
from kvstore_cli.config.resolve import Configuration, Setting, resolve
from kvstore_cli.config.server_settings import daemon_settings, http_settings
from kvstore_cli.terminal import output

PARTS = ("daemon", "http", "client", "stream")


@click.group()
def command() -> None:
    """Show and check the configuration.

    Every option is a flag (--retain-age 2d), an environment variable (KVSTORE_RETAIN_AGE=2d) and a key
    in the TOML file (retain-age = "2d"). A flag overrides the variable, which overrides the file, which
    overrides the default. The file is --config FILE, or KVSTORE_CONFIG, or kvstore/config.toml in the
    XDG config folder (~/.config).
    """


@command.command(cls=Subcommand)
@json_option("One JSON object a line.")
@with_options(*PARTS)
@click.pass_context
def show(context: click.Context, as_json: bool) -> None:
    """Print each option's value and where it comes from.

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


@command.command(cls=Subcommand)
@with_options(*PARTS)
@click.pass_context
def check(context: click.Context) -> None:
    """Check that the service can start with this configuration.

    Exit status: 0, or 2 with a message if something is wrong. Whether the data folder and the ports are
    available is only known when the service starts.

    \b
    Example:
      kvstore config check --config /etc/kvstore/config.toml
    """
    configuration = _resolved(context)
    daemon_settings(configuration)
    http_settings(configuration)
    output.talk("the configuration is valid")


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
