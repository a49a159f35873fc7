"""What every command is made with: its flags, and what it gets from them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from kvstore_cli.config.options import CONFIG, FLAG, Kind, Option, options_of
from kvstore_cli.config.resolve import Configuration, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from kvstore_cli.http_client.client import ServiceClient

_NEGATIVE = r"(?s)-\.?[0-9].*"
_LONG_RETRY_MS = 60_000
_ELSEWHERE: dict[tuple[str | None, str], str] = {("history", "--since"): "kvstore changes --since"}
"""Options that are looked for at one command, and are another's."""


class Subcommand(click.Command):
    """A command that takes negative numbers as arguments, and refuses an option that is given twice, of which
    click would take the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = self._with_numbers_apart(ctx, args)
        if not ctx.resilient_parsing:
            try:
                _, _, order = self.make_parser(ctx).parse_args(list(args))
            except click.NoSuchOption as error:
                raise self._hinting_at_dashes(error, ctx) from error
            for parameter in order:
                if _takes_value(parameter) and not parameter.multiple and order.count(parameter) > 1:
                    raise click.UsageError(f"{parameter.opts[0]} is given more than once", ctx)
        return super().parse_args(ctx, args)

    def _with_numbers_apart(self, ctx: click.Context, args: list[str]) -> list[str]:
        """``args``; if an argument is a negative number, with all arguments after a ``--``."""
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
        elsewhere = _ELSEWHERE.get((self.name, error.option_name))
        if elsewhere is not None:
            return click.UsageError(f"there is no option {error.option_name} here: see {elsewhere}", ctx)
        arguments = [param for param in self.params if isinstance(param, click.Argument)]
        if not arguments or error.possibilities:
            return error
        name = arguments[-1].make_metavar(ctx).strip("[].")
        return click.UsageError(
            f"there is no option {error.option_name}; if it is meant as the {name}, write -- before it", ctx
        )


def _takes_value(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not parameter.is_flag


class KindType(click.ParamType[Any]):
    """A kind of value as a click type: a value that cannot be read is a usage error. Each one of a kind that
    repeats is a list of its own."""

    def __init__(self, kind: Kind) -> None:
        self.name = kind.unit
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value in base units."""
        try:
            return self._kind.parse([value] if self._kind.repeats else value)
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


def subcommand(*parts: str) -> Callable[[Callable[..., Any]], Subcommand]:
    """Make a command of a function that takes the click context and the command's own options. It gets the
    flags of ``parts``, too, last in its help; :func:`given_flags` has those that were set."""

    def decorate(function: Callable[..., Any]) -> Subcommand:
        command = click.command(cls=Subcommand)(click.pass_context(function))
        command.params += map(_flag, (*options_of(*parts), CONFIG))
        return command

    return decorate


def _flag(row: Option) -> click.Option:
    def remember(context: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if row.kind.repeats:
            value = tuple(dict.fromkeys(itertools.chain.from_iterable(value))) or None
        if value is not None:
            given_flags(context)[row.name] = value

    help_text = f"{row.consequence}  [{row.variable}; default: {row.shown_default()}]"
    common: dict[str, Any] = {"expose_value": False, "callback": remember, "help": help_text}
    if row.kind is FLAG:
        return click.Option([row.flag], is_flag=True, default=None, **common)
    if row.kind.repeats:
        common["multiple"] = True
    return click.Option([row.flag], type=KindType(row.kind), metavar=row.kind.metavar, **common)


def given_flags(context: click.Context) -> dict[str, Any]:
    """The options that are set on this command line, by name, in base units."""
    flags: dict[str, Any] = context.ensure_object(dict)
    return flags


def configuration_of(context: click.Context, *parts: str) -> Configuration:
    """The settings of ``parts``."""
    return resolve(given_flags(context), *parts)


def client_of(context: click.Context) -> ServiceClient:
    """A client for the service that the flags, the environment or the configuration file name."""
    from kvstore_cli.command_line.service import client_for  # servers need none

    return client_for(given_flags(context))


@contextmanager
def reader_of(context: click.Context, *, stale: bool) -> Iterator[ServiceClient]:
    """As :func:`client_of`, for a command that only reads. If ``stale``, its reads need not be current, and
    in the end a line on standard error says how old what it printed may be, unless that is current."""
    with client_of(context) as service:
        if not stale:
            yield service
            return
        service.age_ms = 0
        try:
            yield service
        finally:
            if service.age_ms:
                from kvstore_cli.terminal import output

                output.talk(f"this may be {service.age_ms / 1000:.3f} s old")


def long_retry_ms(configuration: Configuration) -> int:
    """``retry-for`` of commands that run for long: a minute unless it is set."""
    retry_ms: int | None = configuration["retry-for"]
    return _LONG_RETRY_MS if retry_ms is None else retry_ms


def data_folder(context: click.Context) -> Path:
    """The folder of the store that a command works on."""
    from pathlib import Path  # slow to import, and needed by few commands

    return Path(configuration_of(context, "store").data_folder())


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, so that the command cleans up as after Ctrl-C.

    Only the first counts: a shell and the system may both send one, and the second must not interrupt the
    cleanup. A signal that is ignored from the start, as under nohup, stays ignored."""
    import signal  # needed by few commands

    # Windows has no SIGHUP
    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def end(number: int, _frame: Any) -> None:
        for other in ending:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in ending:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
