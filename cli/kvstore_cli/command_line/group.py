"""The ``kvstore`` command as click has it: the commands by section, of which only the one that runs is
imported."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

from kvstore_cli.terminal import output
from kvstore_core.errors import EXIT_USAGE

# The table of commands, by section of the help text. Their modules are only imported to run one, to keep the
# start-up short.
SECTIONS = {
    "Keys and values": {
        "get": "Print the value of a key, or of many with their keys",
        "put": "Store a value",
        "patch": "Change members of a JSON value",
        "edit": "Edit a value in an editor",
        "rename": "Give a record another key, or all with a prefix",
        "delete": "Remove keys, or all keys with a prefix",
        "list": "List keys",
        "ls": "List one level of keys, with folders",
        "incr": "Add to a number, atomically",
        "touch": "Give a key a new TTL",
        "persist": "Remove the TTL of a key",
        "history": "Show the changes of a key",
        "batch": "Run many operations, each on its own or all or none",
    },
    "Changes": {
        "subscribe": "Print every change as it happens, or run a command for it",
        "changes": "Print what has changed since a cursor or a time, and end",
        "log": "Show the changes of all keys, newest first: who, when, what, why",
        "blame": "Show who changed each key last, and why",
        "wait": "Wait until a key exists, is gone, changes, has a value, or fulfils a condition",
    },
    "Data": {
        "backup": "Write the store, as of one revision, to a file",
        "restore": "Restore a store from a backup",
        "export": "Write all records, as of one revision, to a file",
        "import": "Put the records of a file",
        "check": "Verify a whole store or backup",
        "digest": "Print the digest of all records, or of a prefix",
        "verify": "Compare two services, and print the first key that differs",
        "compact": "Give the store's free pages back to the disk",
    },
    "Access": {
        "login": "Store a token for all commands to use",
        "logout": "Forget a stored token",
        "whoami": "Print who you are to the service, and what you may do",
        "token": "Manage identities, their tokens and what they may do",
        "key": "Manage the keys of native clients",
    },
    "The service": {
        "serve": "Run the service: daemon and HTTP facade",
        "daemon": "Run only the daemon",
        "http": "Run only the HTTP facade",
        "status": "Print the state of the service",
        "top": "Show what the service is doing, as it happens",
        "subscribers": "Print who is subscribed, and how much waits for each",
        "slow": "Print the last requests that took long",
        "kick": "End a subscription, whose client may come back",
        "ping": "Check that the service answers, for health checks",
        "doctor": "Check the service through any proxy, and say what to change",
        "config": "Show and check the configuration",
        "completion": "Print the completion script for a shell",
    },
}


def _by_word(table: dict[str, str]) -> dict[str, str]:
    """Each word of the values with its key."""
    return {word: name for name, words in table.items() for word in words.split()}


# what users of other tools type
_MEANT = _by_word(
    {
        "get": "cat read show fetch mget hget getall hgetall exists ttl lookup",
        "put": "write store add create update insert save mset hset setex setnx echo",
        "delete": "rm remove unset unlink hdel erase clear",
        "list": "keys scan find count dbsize",
        "ls": "dir tree folders children",
        "incr": "incrby decr decrby increment",
        "touch": "expire pexpire renew lease",
        "history": "revisions versions",
        "log": "audit changelog recent",
        "blame": "annotate who why",
        "batch": "txn transaction multi pipeline",
        "patch": "merge",
        "edit": "vi vim nano modify",
        "rename": "mv move renamenx",
        "subscribe": "monitor psubscribe follow tail listen",
        "changes": "events poll since",
        "wait": "await until",
        "export": "dump",
        "import": "load",
        "backup": "snapshot",
        "check": "fsck",
        "digest": "checksum hash",
        "verify": "compare diff",
        "compact": "defrag vacuum",
        "serve": "server run start up",
        "status": "info stats member health",
        "top": "stat",
        "subscribers": "clients watchers connections",
        "kick": "kill disconnect",
        "slow": "slowlog",
        "login": "auth authenticate signin",
        "logout": "signout",
        "whoami": "who me id",
        "token": "user users role roles acl grant identity identities revoke",
        "key": "curve keygen",
        "--help": "help",
        "--version": "version",
    }
)
# the commands that share a module, each under its name there; any other is ``command`` in a module of its own
SHARED_MODULES = _by_word(
    {
        "updates": "patch incr touch persist",
        "offline": "backup restore check compact",
        "servers": "serve daemon http",
        "digest": "digest verify",
        "status": "status ping",
        "log": "log blame",
        "login": "login logout whoami",
        "access": "token key",
        "subscribers": "subscribers kick",
    }
)
ALIASES = {"set": "put", "del": "delete", "watch": "subscribe"}
"""Other names of commands, which users of other stores type. No list shows them."""
COMMANDS = {name: summary for section in SECTIONS.values() for name, summary in section.items()}


class LazyGroup(click.Group):
    """The commands of the table, imported on demand and shown by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"kvstore_cli.commands.{SHARED_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name if cmd_name in SHARED_MODULES else "command")
        command.name, command.short_help = cmd_name, COMMANDS[cmd_name]
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The command and its arguments; a usage error for an option before the command."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from kvstore_cli.config.options import OPTIONS

            name = error.option_name
            if name.removeprefix("--") not in OPTIONS:
                raise
            raise click.UsageError(
                f"{name} comes after the command: kvstore COMMAND {name} ...", ctx
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command; for an unknown one, a usage error that suggests the nearest."""
        if args[0] in ALIASES and not ctx.resilient_parsing:
            _hint_at(args[0])
        if args[0] in COMMANDS or args[0] in ALIASES or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        meant = _MEANT.get(args[0].lower()) or next(iter(get_close_matches(args[0], COMMANDS, n=1)), None)
        hint = f"; did you mean 'kvstore {meant}'?" if meant else ""
        raise click.UsageError(f"there is no command '{args[0]}'{hint}", ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()))


def _hint_at(alias: str) -> None:
    """Say to a person, and to no script, what the command is called."""
    if sys.stderr is not None and sys.stderr.isatty():
        output.talk(f"'{alias}' is 'kvstore {ALIASES[alias]}', whose --help says what it can do")


def _show_version(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    """Print the version, and which form of the modules that can be compiled would be imported."""
    if not is_asked or ctx.resilient_parsing:
        return
    from importlib.util import find_spec

    from kvstore_core.distribution import installed_version

    spec = find_spec("kvstore_core.wire")
    form = "pure Python" if spec is None or str(spec.origin).endswith(".py") else "compiled"
    click.echo(f"kvstore {installed_version()} ({form})")
    ctx.exit()


@click.command(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and whether it is compiled, and exit.",
)
def cli() -> None:
    """A key-value store with subscriptions.

    \b
    kvstore serve                      start the service
    kvstore put greeting 'Hello'       store a value
    kvstore get greeting               print it
    kvstore subscribe                  see every change as it happens

    The commands use the service at KVSTORE_URL, by default http://127.0.0.1:5000. 'kvstore COMMAND
    --help' explains a command with examples.

    \b
    Exit status: 0 done, 1 error, 2 usage, 3 no such key, 4 condition failed, 5 not allowed,
    6 cannot reach the service, 124 timed out, 130 interrupted.
    """


def run() -> int:
    """Run the command line; returns the exit status. Errors that are not click's are the caller's."""
    if output.COMPLETE_VARIABLE in os.environ:
        import_module("kvstore_cli.commands.completion")
    try:
        return int(
            cli.main(prog_name="kvstore", standalone_mode=False, complete_var=output.COMPLETE_VARIABLE) or 0
        )
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        output.talk(error.format_message())
        return error.exit_code
    except click.Abort:
        return output.EXIT_INTERRUPTED
