"""The table of options, as flags of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvstore_cli.config.options import CONFIG, FLAG, Kind, Option, options_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_Function = TypeVar("_Function", bound=Callable[..., Any])


class KindType(click.ParamType[Any]):
    """A kind of value as a click type: a value that cannot be read is a usage error."""

    def __init__(self, kind: Kind) -> None:
        self.name = kind.unit
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value in base units."""
        try:
            return self._kind.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem[Any]]:
        """The possible words; the shell completes files and folders."""
        from click.shell_completion import CompletionItem

        if self._kind.metavar in ("FILE", "DIR"):
            return [CompletionItem(incomplete, type=self._kind.metavar.lower())]
        return [CompletionItem(word) for word in self._kind.words if word.startswith(incomplete)]


def with_options(*parts: str) -> Callable[[_Function], _Function]:
    """Give a command the flags of ``parts``; :func:`given_flags` has those that were set."""
    rows = [*options_of(*parts), CONFIG]

    def decorate(function: _Function) -> _Function:
        for row in reversed(rows):
            function = _flag(row)(function)
        return function

    return decorate


def _flag(row: Option) -> Callable[[_Function], _Function]:
    help_text = f"{row.consequence}  [{row.variable}; default: {row.shown_default()}]"
    common: dict[str, Any] = {"expose_value": False, "callback": _remember(row), "help": help_text}
    if row.kind is FLAG:
        return click.option(row.flag, is_flag=True, default=None, **common)
    return click.option(row.flag, type=KindType(row.kind), metavar=row.kind.metavar, **common)


def _remember(row: Option) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            given_flags(context)[row.name] = value

    return callback


def given_flags(context: click.Context) -> dict[str, Any]:
    """The options that are set on this command line, by name, in base units."""
    flags: dict[str, Any] = context.ensure_object(dict)
    return flags
