"""The Python packages. These pages name what is public; mkdocstrings puts its signature and docstring there
when the site is rendered, and fails for a name that does not exist."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import kvstore_contrib
from kvstore_cli.docs_tables import table
from kvstore_client import commands
from kvstore_core.errors import ERRORS, KvError

CLIENT = ("Client", "Transaction")
FOLLOWING = ("Subscription", "Mirror", "Sync", "Reset", "Heartbeat")
VALUES = ("Record", "Event", "Cursor", "Filter")
PLUGIN = "kvstore_contrib.testing.plugin"
FIXTURES = ("kvstore", "kvstore_clock", "kvstore_faults", "kvstore_service")
ASYNCIO = ("AsyncClient", "AsyncTransaction", "AsyncSubscription", "AsyncMirror")


def _page(title: str, lead: str, *names: str) -> str:
    return f"# {title}\n\n{lead}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def _public(names: tuple[str, ...]) -> list[str]:
    return [f"kvstore_client.{name}" for name in names]


def client() -> str:
    """The blocking client."""
    lead = (
        "[The client for Python](../../client.md) shows how it is used. All of this also exists\n"
        "[for asyncio](asyncio.md). What goes wrong is raised as a [`KvError`](errors.md)."
    )
    return _page("Python: client", lead, *_public(CLIENT))


def following() -> str:
    """Subscriptions and mirrors, and what they give."""
    lead = "How a program follows the store: [in the guide](../../client.md#changes)."
    return _page("Python: changes", lead, *_public(FOLLOWING))


def values() -> str:
    """What is read and written."""
    lead = "What the client takes and returns. Times are whole milliseconds since 1970, in UTC."
    return _page("Python: records and events", lead, *_public(VALUES))


def asyncio() -> str:
    """The forms for asyncio."""
    lead = (
        "The same for asyncio: what blocks in the [other form](client.md) is awaited here, and what is\n"
        "iterated there is iterated with `async for`. They are also in `kvstore_client.aio`."
    )
    return _page("Python: asyncio", lead, *_public(ASYNCIO))


def batches() -> str:
    """The commands of a batch, and their results."""
    lead = (
        "What [`Client.batch`][kvstore_client.Client.batch] takes, and what all methods return.\n"
        "A command is checked when it is made; it holds no connection, and may be run any number of times."
    )
    own = [
        (name, member)
        for name, member in vars(commands).items()
        if not name.startswith("_") and getattr(member, "__module__", "") == commands.__name__
    ]
    results = [name for name, member in own if inspect.isclass(member)]
    made = [name for name, member in own if inspect.isfunction(member) and _makes_command(member)]
    return _page("Python: batches", lead, *(f"kvstore_client.commands.{name}" for name in made + results))


def _makes_command(function: Callable[..., Any]) -> bool:
    returned = str(inspect.signature(function).return_annotation)
    # what that one gives is for the facade alone
    return returned.startswith("Command[") and function is not commands.access


def errors() -> str:
    """The classes of errors."""
    rows = [
        (f"`{type(KvError(row.code, '')).__name__}`", f"[`{row.code}`](../errors.md#{row.code})", row.title)
        for row in ERRORS.values()
    ]
    lead = (
        "Every error of the service has a class in `kvstore_client`, and all are a `KvError`. A value of\n"
        "the wrong type, such as a number for a key, is a `TypeError` or `ValueError`, and nothing is sent."
    )
    kinds = table(("Class", "Code", "Meaning"), rows)
    return f"{_page('Python: errors', lead, 'kvstore_client.KvError')}\n## The classes\n\n{kinds}"


def contrib() -> str:
    """Backends for frameworks, and the pytest plugin."""
    lead = (
        "Backends for [frameworks](../../howto/caches.md), and the fixtures of the\n"
        "[pytest plugin](../../howto/testing.md). Each module needs the framework that it is named after."
    )
    plugin = [f"{PLUGIN}.{name}" for name in (*FIXTURES, "KvstoreForTest", "KvstoreClock", "KvstoreFaults")]
    # their methods are those of the framework
    backends = [f"{name}\n    options:\n      members: false" for name in _backends()]
    return _page("Python: frameworks and tests", lead, *backends, *plugin)


def _backends() -> list[str]:
    return re.findall(r"``(kvstore_contrib\.\w+\.\w+)``", kvstore_contrib.__doc__ or "")


PYTHON = {
    "reference/python/client.md": client,
    "reference/python/changes.md": following,
    "reference/python/records.md": values,
    "reference/python/batches.md": batches,
    "reference/python/asyncio.md": asyncio,
    "reference/python/errors.md": errors,
    "reference/python/frameworks.md": contrib,
}
