"""kvstore for Python programs: a client, subscriptions, and what they are made of.

::

    from kvstore_client import Client, Subscription

    with Client() as client:
        client.put("greeting", "hello")

Every error that the service can answer with has a class: ``except kvstore_client.NotFound``; all of them
are :class:`KvError`. Without an address of their own, clients go to that in ``KVSTORE_REQUESTS`` and
``KVSTORE_CHANGES``, or to the daemon's defaults.

``AsyncClient`` and ``AsyncSubscription`` are the same for asyncio. The wire protocol that they speak
is ``docs/protocol.md``.

Names are imported when they are first used, so that a program which only handles errors or records
does not load ZeroMQ.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from kvstore_client import commands
    from kvstore_client.async_client import AsyncClient
    from kvstore_client.async_subscription import AsyncSubscription
    from kvstore_client.client import Client
    from kvstore_client.subscription import Subscription
    from kvstore_client.subscription_state import Reset, Sync
    from kvstore_core.errors import (
        BadRequest,
        ConditionFailed,
        CursorExpired,
        Damaged,
        ExpectationFailed,
        HeadersTooLarge,
        HttpVersionNotSupported,
        Internal,
        InvalidCursor,
        InvalidKey,
        KvError,
        LengthRequired,
        MethodNotAllowed,
        NoSuchRoute,
        NotAcceptable,
        NotAllowed,
        NotAnInteger,
        NotFound,
        NotJson,
        OutOfRange,
        ReplyTooLarge,
        RequestTimeout,
        RequestTooLarge,
        RevisionGone,
        SequenceReused,
        SequenceStale,
        StoreFull,
        TimedOut,
        TooBusy,
        Unavailable,
        UnknownOperation,
        UnsupportedMediaType,
        UnsupportedVersion,
        UriTooLong,
        ValueTooLarge,
    )
    from kvstore_core.filters import Filter
    from kvstore_core.model import Cursor, Event, Record
    from kvstore_core.wire import Heartbeat

__all__ = [
    "AsyncClient",
    "AsyncSubscription",
    "BadRequest",
    "Client",
    "ConditionFailed",
    "Cursor",
    "CursorExpired",
    "Damaged",
    "Event",
    "ExpectationFailed",
    "Filter",
    "HeadersTooLarge",
    "Heartbeat",
    "HttpVersionNotSupported",
    "Internal",
    "InvalidCursor",
    "InvalidKey",
    "KvError",
    "LengthRequired",
    "MethodNotAllowed",
    "NoSuchRoute",
    "NotAcceptable",
    "NotAllowed",
    "NotAnInteger",
    "NotFound",
    "NotJson",
    "OutOfRange",
    "Record",
    "ReplyTooLarge",
    "RequestTimeout",
    "RequestTooLarge",
    "Reset",
    "RevisionGone",
    "SequenceReused",
    "SequenceStale",
    "StoreFull",
    "Subscription",
    "Sync",
    "TimedOut",
    "TooBusy",
    "Unavailable",
    "UnknownOperation",
    "UnsupportedMediaType",
    "UnsupportedVersion",
    "UriTooLong",
    "ValueTooLarge",
    "__version__",
    "commands",
]

_HOMES = {
    "AsyncClient": "kvstore_client.async_client",
    "AsyncSubscription": "kvstore_client.async_subscription",
    "Client": "kvstore_client.client",
    "Cursor": "kvstore_core.model",
    "Event": "kvstore_core.model",
    "Filter": "kvstore_core.filters",
    "Heartbeat": "kvstore_core.wire",
    "Record": "kvstore_core.model",
    "Reset": "kvstore_client.subscription_state",
    "Subscription": "kvstore_client.subscription",
    "Sync": "kvstore_client.subscription_state",
}


def __getattr__(name: str) -> Any:
    if name == "commands":
        return import_module("kvstore_client.commands")
    if name == "__version__":
        from importlib.metadata import version

        return version("kvstore")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # what has no home in the list is an error of the table
    return getattr(import_module(_HOMES.get(name, "kvstore_core.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
