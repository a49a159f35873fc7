"""The ``kvstore`` command: finds the subcommand, and turns what goes wrong into words and an exit status."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from kvstore_client.errors import EXIT_USAGE, KvError

EXIT_INTERRUPTED = 130

# name -> section of the help text. The module of a command is imported when the command is called:
# click alone takes half of the time that `kvstore get` may take.
COMMANDS = {
    "serve": "Run the service",
    "daemon": "Run the service",
    "http": "Run the service",
}


class Commands(click.Group):
    """The commands of the table, imported one by one and shown by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"kvstore_cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101 - for the type checker
        command.name = cmd_name
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kvstore", message="%(prog)s %(version)s")
def cli() -> None:
    """A key-value store with subscriptions."""


def main() -> int:
    """Run the command line; returns the exit status."""
    from kvstore_cli.configuration import ConfigurationError

    try:
        return int(cli.main(prog_name="kvstore", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ConfigurationError as error:
        return _complain(str(error), EXIT_USAGE)
    except KvError as error:
        return _complain(error.message, error.row.exit)
    except click.Abort:
        return EXIT_INTERRUPTED


def _complain(message: str, status: int) -> int:
    click.echo(f"kvstore: {message}", err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
