"""kvstore for Python programs: a client, subscriptions, and what they are made of.

::

    from kvstore_client import Client, Subscription

    with Client() as client:
        client.put("greeting", b"hello")

``AsyncClient`` and ``AsyncSubscription`` are the same for asyncio. The wire protocol that they speak
is ``docs/protocol.md``.

Names are imported when they are first used, so that ``kvstore_client.errors`` costs no more than it
needs: the command reads it at every start.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore_client import commands
    from kvstore_client.aio import AsyncClient, AsyncSubscription
    from kvstore_client.client import Client
    from kvstore_client.errors import KvError
    from kvstore_client.model import Cursor, Event, Record
    from kvstore_client.protocol import Heartbeat
    from kvstore_client.subscription import Subscription
    from kvstore_client.watcher import Reset, Sync

__all__ = [
    "AsyncClient",
    "AsyncSubscription",
    "Client",
    "Cursor",
    "Event",
    "Heartbeat",
    "KvError",
    "Record",
    "Reset",
    "Subscription",
    "Sync",
    "commands",
]

_HOMES = {
    "AsyncClient": "aio",
    "AsyncSubscription": "aio",
    "Client": "client",
    "Cursor": "model",
    "Event": "model",
    "Heartbeat": "protocol",
    "KvError": "errors",
    "Record": "model",
    "Reset": "watcher",
    "Subscription": "subscription",
    "Sync": "watcher",
}


def __getattr__(name: str) -> Any:
    if name == "commands":
        return import_module("kvstore_client.commands")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
