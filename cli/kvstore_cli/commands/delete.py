"""``kvstore delete``."""

from __future__ import annotations

import click

from kvstore_cli import output
from kvstore_cli.client import connected, exactly_one
from kvstore_cli.commands.put import condition, print_revision
from kvstore_cli.completion import complete_key
from kvstore_cli.flags import KEY, TEXT, Command, WholeNumber, with_options
from kvstore_cli.service import Service, key_path


@click.command(cls=Command)
@click.argument("key", type=KEY, required=False, shell_complete=complete_key)
@click.option(
    "--prefix",
    type=TEXT,
    metavar="P",
    shell_complete=complete_key,
    help="Every key that begins with P; P may not be empty.",
)
@click.option(
    "--if-revision", type=WholeNumber(1), metavar="REV", help="Only if the key still has revision REV."
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@with_options("client")
@click.pass_context
def command(
    context: click.Context, key: str | None, prefix: str | None, if_revision: int | None, as_json: bool
) -> None:
    """Remove KEY and print the revision that this made, or remove all keys that begin with --prefix
    and print how many they were.

    Exit status: 0; 3 if there is no such key; 4 if the condition does not hold. Removing a prefix
    that no key begins with succeeds.

    \b
    Examples:
      kvstore delete greeting
      kvstore delete lock:build --if-revision 1042
      kvstore delete --prefix session:
    """
    which = exactly_one({"KEY": key, "--prefix": prefix})
    with connected(context) as service:
        if which == "KEY":
            headers = condition(if_revision)
            print_revision(
                service.request("DELETE", key_path("kv", key or ""), headers=headers).json(), as_json=as_json
            )
        elif if_revision is not None:
            raise click.UsageError("--if-revision goes with a KEY")
        else:
            _delete_prefix(service, prefix or "", as_json=as_json)


def _delete_prefix(service: Service, prefix: str, *, as_json: bool) -> None:
    if not prefix:
        raise click.UsageError("the prefix is empty: that would remove everything")
    outcome = service.request("DELETE", "/v1/kv", [("prefix", prefix)]).json()
    if as_json:
        output.write_json(outcome)
    elif output.on_terminal():
        output.write_line(f"{outcome['deleted']} removed")
    else:
        output.write_line(str(outcome["deleted"]))
