"""Completing keys from the service while somebody types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMPLETE_VARIABLE = "_KVSTORE_COMPLETE"
"""Is set, to what is wanted, where a shell asks what a line can be completed to."""

_MOST = 50
_PATIENCE_MS = 1000


def complete_key(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Up to 50 keys that begin with ``incomplete``; none if the service has no quick answer.

    Nothing is said of errors: whatever is printed here lands in the line that is being typed.
    """
    from kvstore_cli.command_line.context import configured, service_of

    query = [("prefix", incomplete), ("keys", "1"), ("limit", str(_MOST))]
    try:
        with service_of(configured(context), at_most_ms=_PATIENCE_MS) as service:
            items = service.request("GET", "/v1/kv", query).json()["items"]
    except Exception:
        return []
    # a shell could not type the others, or the command would take them for options
    return [item["key"] for item in items if item["key"].isprintable() and item["key"][0] != "-"]


def complete_file(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """A file, which is the shell's to find."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_value(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """The file of an ``@FILE``; nothing for other values."""
    return complete_file(context, parameter, incomplete[1:]) if incomplete.startswith("@") else []
