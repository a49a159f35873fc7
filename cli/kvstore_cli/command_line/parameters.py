"""Arguments and options that several commands share, and how their values are completed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kvstore_cli.command_line.service import new_client
from kvstore_cli.command_line.subcommand import KindType, configuration_of
from kvstore_cli.config.options import DURATION
from kvstore_cli.config.token_source import TokenSource

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from kvstore_cli.http_client.client import Query

_MOST_COMPLETIONS = 50
_MOST_LEVELS = 8
_COMPLETION_TIMEOUT_MS = 1000
_A_DATE = "2026-01-31T12:00:00Z"

_Function = TypeVar("_Function", bound=Callable[..., Any])


def complete_key(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """Up to 50 keys and folders that begin with ``incomplete``, as a shell completes files, and what is in a
    folder that is alone; none if the service does not answer within 1 s.

    Errors are swallowed: what is printed here would land in the line that is being typed.
    """
    return _completed(context, incomplete, lambda item: str(item["key"]))


def _completed(
    context: click.Context, incomplete: str, word: Callable[[dict[str, Any]], str]
) -> list[CompletionItem[Any]]:
    """For each key of the level that ``incomplete`` begins its ``word``, and the folders there."""
    from click.shell_completion import CompletionItem

    how = (("delimiter", "/"), ("limit", str(_MOST_COMPLETIONS)), ("keys", "1"), ("stale", "1"))
    keys, folders = [], [incomplete]
    for _ in range(_MOST_LEVELS):
        found = _asked(context, "/v1/kv", (("prefix", folders[0]), *how))
        keys, folders = found.get("items", []), found.get("prefixes", [])
        if keys or len(folders) != 1:
            break
    words = [(item["key"], word(item), "plain") for item in keys]
    words += [(folder, folder, "folder") for folder in folders]
    # a shell could not type the others, or the command would take them for options
    return [
        CompletionItem(text, type=kind)
        for name, text, kind in sorted(words)
        if name.isprintable() and name[0] != "-"
    ]


def complete_identity(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The names of identities that begin with ``incomplete``, for whoever may see them; as for keys."""
    names = [row["name"] for row in _asked(context, "/v1/tokens", ()).get("identities", ())]
    return [name for name in names if name.startswith(incomplete)][:_MOST_COMPLETIONS]


def _asked(context: click.Context, path: str, query: Query) -> dict[str, Any]:
    try:
        configuration = configuration_of(context, "client")
        tokens = TokenSource(configuration, may_read_stdin=False)
        with new_client(configuration, _COMPLETION_TIMEOUT_MS, tokens=tokens) as service:
            found: dict[str, Any] = service.request("GET", path, query).json()
            return found
    except Exception:
        return {}


def complete_file(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """A file: the shell finds it."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def complete_value(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """The file of an ``@FILE``; nothing for other values."""
    return complete_file(context, parameter, incomplete[1:]) if incomplete.startswith("@") else []


class TextType(click.ParamType[str]):
    """UTF-8 text; a key must not be empty."""

    name = "text"

    def __init__(self, *, may_be_empty: bool) -> None:
        self._may_be_empty = may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text and not self._may_be_empty:
            self.fail("the key is empty; a key has 1 to 511 bytes of UTF-8", param, ctx)
        if text.isascii():
            return text
        try:
            # the bytes of the argument must be UTF-8, whatever the locale is
            return os.fsencode(text).decode()
        except UnicodeError:
            from kvstore_cli.terminal.output import readable

            self.fail(f"'{readable(text)}' is not UTF-8 text", param, ctx)


class WholeNumber(click.ParamType[int]):
    """A whole number from ``low`` to ``high``."""

    name = "number"

    def __init__(self, low: int, high: int = 2**63 - 1) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number", param, ctx)
        if not self._low <= number <= self._high:
            self.fail(f"{number} is not from {self._low} to {self._high}", param, ctx)
        return number


def no_revision(text: str) -> str:
    """What is wrong with ``text`` where a revision or a time is wanted."""
    return f"{text!r} is neither a revision nor a time, such as 10m-ago or {_A_DATE}"


class RevisionType(WholeNumber):
    """A revision, as a number, or a time, as the text that the service takes."""

    name = "revision"

    def __init__(self) -> None:
        super().__init__(1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if not is_cursor(text) and is_beginning(text):
            return text
        if not re.fullmatch(r"-?[0-9]+", text):
            self.fail(no_revision(text), param, ctx)
        return super().convert(text, param, ctx)


class MessageType(TextType):
    """Why a change is made, as the service takes it."""

    def __init__(self) -> None:
        super().__init__(may_be_empty=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from kvstore_core.operations import MESSAGE, is_message  # few commands have one

        text = super().convert(value, param, ctx)
        if not is_message(text):
            self.fail(f"it must be {MESSAGE}", param, ctx)
        return text


class GuardType(TextType):
    """``KEY@REVISION``, as the service takes it: a key, which may have ``@`` in it, and a whole number."""

    name = "guard"

    def __init__(self) -> None:
        super().__init__(may_be_empty=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = super().convert(value, param, ctx)
        key, _, revision = text.rpartition("@")
        if not key or not revision:
            self.fail(f"{text!r} is not KEY@REVISION, such as locks/deploy@41", param, ctx)
        WholeNumber(0).convert(revision, param, ctx)
        return text


def complete_guard(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[Any]]:
    """As for keys, each with its present revision."""
    return _completed(context, incomplete, lambda item: f"{item['key']}@{item['revision']}")


KEY = TextType(may_be_empty=False)
TEXT = TextType(may_be_empty=True)
TIME = KindType(DURATION)

key_argument = click.argument("key", type=KEY, shell_complete=complete_key)
keys_argument = click.argument("keys", type=KEY, nargs=-1, metavar="[KEY]...", shell_complete=complete_key)
file_argument = click.argument("file", shell_complete=complete_file)
if_revision_option = click.option(
    "--if-revision",
    type=WholeNumber(0),
    metavar="REV",
    help="Only if the key still has revision REV; 0: only if there is no such key.",
)
if_value_option = click.option(
    "--if-value",
    type=TEXT,
    metavar="TEXT",
    help="Only if TEXT is the whole value; of any bytes: kvstore batch.",
)
guards_option = click.option(
    "--guard",
    "guards",
    type=GuardType(),
    metavar="KEY@REV",
    multiple=True,
    shell_complete=complete_guard,
    help="Only if KEY, another one, has revision REV (0: there is no such key); may be repeated.",
)


def condition_options(function: _Function) -> _Function:
    """``--if-revision``, ``--if-value``, and ``--guard``, which is passed as ``guards``."""
    return if_revision_option(if_value_option(guards_option(function)))


def _key_option(
    *names: str, metavar: str, help_text: str, multiple: bool = False
) -> Callable[[_Function], _Function]:
    return click.option(
        *names, type=TEXT, metavar=metavar, shell_complete=complete_key, help=help_text, multiple=multiple
    )


message_option = click.option(
    "--message", "-m", type=MessageType(), metavar="TEXT", help="Why; kept with the change: see kvstore log."
)
start_option = _key_option("--start", metavar="KEY", help_text="Only keys from KEY on, in byte order.")
end_option = _key_option("--end", metavar="KEY", help_text="Only keys before KEY, in byte order.")


def prefix_option(help_text: str) -> Callable[[_Function], _Function]:
    """``--prefix P``, once."""
    return _key_option("--prefix", metavar="P", help_text=help_text)


start_of_keys_argument = click.argument(
    "start_of_keys", metavar="[PREFIX]", type=TEXT, required=False, shell_complete=complete_key
)


def prefix_of(start_of_keys: str | None, prefix: str | None) -> str | None:
    """The prefix, which is given as PREFIX or as ``--prefix``."""
    if start_of_keys is not None and prefix is not None:
        raise click.UsageError("give PREFIX or --prefix, not both")
    return prefix if start_of_keys is None else start_of_keys


def prefixes_option(help_text: str) -> Callable[[_Function], _Function]:
    """``--prefix P`` as often as wanted, passed as ``prefixes``."""
    help_text = f"{help_text}; may be repeated."
    return _key_option("--prefix", "prefixes", metavar="P", help_text=help_text, multiple=True)


def ttl_option(help_text: str, *, required: bool = False) -> Callable[[_Function], _Function]:
    """``--ttl TIME``, in milliseconds."""
    return click.option("--ttl", type=TIME, metavar="TIME", required=required, help=help_text)


def json_option(help_text: str) -> Callable[[_Function], _Function]:
    """``--json``, passed as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


reverse_option = click.option("--reverse", is_flag=True, help="From the last key to the first.")
limit_option = click.option("--limit", type=WholeNumber(1), metavar="N", help="At most N.  [default: all]")
min_revision_option = click.option(
    "--min-revision",
    type=WholeNumber(1),
    metavar="REV",
    help="Only what is at least as new as REV; with --stale, waits where this daemon is behind.",
)


def min_revision_query(min_revision: int | None) -> list[tuple[str, str]]:
    """The query of ``--min-revision``."""
    return [] if min_revision is None else [("min_revision", str(min_revision))]


stale_option = click.option(
    "--stale", is_flag=True, help="At once, what this daemon has; others may have written since."
)


def is_cursor(text: str) -> bool:
    """Whether ``text`` looks like a cursor or a revision."""
    return re.fullmatch(r"[0-9]{1,19}(?:-[0-9a-f]+)?", text) is not None


def is_beginning(text: str) -> bool:
    """Whether changes may begin there: at a cursor, a revision, a time ago, or a date. The service looks more
    closely."""
    return is_cursor(text) or re.fullmatch(r"[0-9]\S*-ago|[0-9-]{10}[Tt]\S+", text) is not None


def query_of_changes(
    keys: Iterable[str], prefixes: Iterable[str], ops: Iterable[str], *, values: bool
) -> list[tuple[str, str]]:
    """Which changes are wanted, and whether with their values."""
    query = [*(("key", key) for key in keys), *(("prefix", prefix) for prefix in prefixes)]
    if ops:
        query.append(("ops", ",".join(ops)))
    if not values:
        query.append(("values", "0"))
    return query


ops_option = click.option(
    "--op",
    "ops",
    multiple=True,
    type=click.Choice(["put", "delete", "expire"]),
    help="Only events of this kind; may be repeated.",
)


def at_most_one(given: dict[str, bool]) -> None:
    """A usage error if several things in ``given`` are set."""
    names = [name for name, is_set in given.items() if is_set]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)} exclude each other")


def exactly_one(given: dict[str, Any]) -> str:
    """The name of the one thing in ``given`` that is set; a usage error if it is none or several."""
    names = [name for name, value in given.items() if value not in (None, False)]
    if len(names) != 1:
        raise click.UsageError(f"give one of {', '.join(given)}" + (", not several" if names else ""))
    return names[0]
