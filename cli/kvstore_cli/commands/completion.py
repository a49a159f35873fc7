"""``kvstore completion``."""

from __future__ import annotations

import click

from kvstore_cli.command_line.parameters import Subcommand
from kvstore_cli.terminal import output

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Subcommand)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the script that completes kvstore's commands, options and keys in SHELL.

    \b
    Examples:
      source <(kvstore completion bash)          in ~/.bashrc
      source <(kvstore completion zsh)           in ~/.zshrc
      kvstore completion fish > ~/.config/fish/completions/kvstore.fish
    """
    from click.shell_completion import get_completion_class

    import kvstore_cli.command_line.shells  # noqa: F401 - registers itself

    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - for the type checker
    output.write(
        completion(context.find_root().command, {}, "kvstore", output.COMPLETE_VARIABLE).source().encode()
    )
