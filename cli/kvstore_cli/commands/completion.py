"""``kvstore completion``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.flags import Command
from kvstore_cli.terminal import output

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the script that completes kvstore's commands, options and keys in SHELL.

    \b
    Examples:
      source <(kvstore completion bash)          in ~/.bashrc
      source <(kvstore completion zsh)           in ~/.zshrc
      kvstore completion fish > ~/.config/fish/completions/kvstore.fish
    """
    from click.shell_completion import get_completion_class

    import kvstore_cli.command_line.shells  # noqa: F401 - registers itself
    from kvstore_cli.command_line.completion import COMPLETE_VARIABLE
    from kvstore_cli.main import cli

    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - for the type checker
    output.write(completion(cli, {}, "kvstore", COMPLETE_VARIABLE).source().encode())
