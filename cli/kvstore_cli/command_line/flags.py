"""The table of options as flags of commands."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvstore_cli.config.options import CONFIG, FLAG, Kind, Option, options_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_NEGATIVE = r"(?s)-\.?[0-9].*"
_Function = TypeVar("_Function", bound=Callable[..., Any])


class KindType(click.ParamType[Any]):
    """A kind of value as click knows it: a value that cannot be read is a usage error."""

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
        """The words that can be given; files and folders are the shell's to find."""
        from click.shell_completion import CompletionItem

        if self._kind.metavar in ("FILE", "DIR"):
            return [CompletionItem(incomplete, type=self._kind.metavar.lower())]
        return [CompletionItem(word) for word in self._kind.words if word.startswith(incomplete)]


class TextType(click.ParamType[str]):
    """Text that can be sent: UTF-8, and for a key not empty."""

    name = "text"

    def __init__(self, *, may_be_empty: bool) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        text = str(value)
        if not text and not self._may_be_empty:
            self.fail("the key is empty; a key has 1 to 511 bytes of UTF-8", param, ctx)
        if text.isascii():
            return text
        try:
            # the argument's bytes are UTF-8 whatever the locale took them for
            return os.fsencode(text).decode()
        except UnicodeError:
            from kvstore_cli.terminal.output import readable

            self.fail(f"'{readable(text)}' is not UTF-8 text", param, ctx)


KEY = TextType(may_be_empty=False)
TEXT = TextType(may_be_empty=True)


class WholeNumber(click.ParamType[int]):
    """A whole number from ``low`` to ``high``, for a person in plain words."""

    name = "number"

    def __init__(self, low: int, high: int = 2**63 - 1) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        if not self._low <= number <= self._high:
            self.fail(f"{number} is not from {self._low} to {self._high}", param, ctx)
        return number


class Command(click.Command):
    """A command that takes a negative number for the argument that it is, and refuses an option given
    twice where one is taken: click would go by the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments that are left over; a usage error for what cannot be parsed."""
        args = self._with_numbers_apart(ctx, args)
        if not ctx.resilient_parsing:
            try:
                _, _, order = self.make_parser(ctx).parse_args(list(args))
            except click.NoSuchOption as error:
                raise self._hinting_at_dashes(error, ctx) from error
            for parameter in order:
                if _takes_one(parameter) and order.count(parameter) > 1:
                    raise click.UsageError(f"{parameter.opts[0]} is given more than once", ctx)
        return super().parse_args(ctx, args)

    def _with_numbers_apart(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``args``; if a negative number is among the arguments, with all of these behind a ``--``."""
        takes_value = {
            name: _takes_value(parameter) for parameter in self.get_params(ctx) for name in parameter.opts
        }
        options: list[str] = []
        arguments: list[str] = []
        left = iter(args)
        for arg in left:
            if arg == "--":
                arguments += left
            elif arg[:1] != "-" or arg == "-" or (re.fullmatch(_NEGATIVE, arg) and arg not in takes_value):
                arguments.append(arg)
            else:
                options.append(arg)
                if takes_value.get(arg):
                    options += itertools.islice(left, 1)
        if any(re.fullmatch(_NEGATIVE, argument) for argument in arguments):
            return [*options, "--", *arguments]
        return args

    def _hinting_at_dashes(self, error: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
        arguments = [param for param in self.params if isinstance(param, click.Argument)]
        if not arguments or error.possibilities:
            return error
        name = arguments[-1].make_metavar(ctx).strip("[].")
        return click.UsageError(
            f"there is no option {error.option_name}; write -- before a {name} that begins with a dash", ctx
        )


def _takes_value(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not parameter.is_flag


def _takes_one(parameter: click.Parameter) -> bool:
    return _takes_value(parameter) and not parameter.multiple


def with_options(*parts: str) -> Callable[[_Function], _Function]:
    """Give a command the flags of ``parts``, and pass those that were set as ``flags``, by option name."""
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
    """The options of the table that stand on this command line, by name, in base units."""
    flags: dict[str, Any] = context.ensure_object(dict)
    return flags
