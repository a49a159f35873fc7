"""kvstore for Python programs: the client and the subscription.

::

    from kvstore_client import Client, Subscription

    with Client() as client:
        client.put("greeting", "hello")

Every error of the service has a class, such as ``kvstore_client.NotFound``; all are :class:`KvError`. Clients
that are given no address use ``KVSTORE_REQUESTS`` and ``KVSTORE_CHANGES``, or the daemon's defaults.

``AsyncClient`` and ``AsyncSubscription`` are the same for asyncio. The wire protocol is in
``docs/protocol.md``.

Names are imported at their first use, so that a program that only handles errors or records does not load
ZeroMQ.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from kvstore_client import commands
    from kvstore_client.async_client import AsyncClient
    from kvstore_client.async_subscription import AsyncSubscription
    from kvstore_client.client import Client
    from kvstore_client.mirroring.async_mirror import AsyncMirror
    from kvstore_client.mirroring.mirror import Mirror
    from kvstore_client.subscription import Subscription
    from kvstore_client.subscription_state import Reset, Sync
    from kvstore_client.transactions.async_transaction import AsyncTransaction
    from kvstore_client.transactions.transaction import Transaction
    from kvstore_core.errors import *
    from kvstore_core.filters import Filter
    from kvstore_core.model import Cursor, Event, Record
    from kvstore_core.wire import Heartbeat

__all__ = [
    "AsyncClient",
    "AsyncMirror",
    "AsyncSubscription",
    "AsyncTransaction",
    "BackupExists",
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
    "Mirror",
    "NoSuchRoute",
    "NotAcceptable",
    "NotAllowed",
    "NotAnInteger",
    "NotFound",
    "NotJson",
    "OutOfRange",
    "RangeNotSatisfiable",
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
    "Transaction",
    "Unauthenticated",
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
    "AsyncMirror": "kvstore_client.mirroring.async_mirror",
    "AsyncSubscription": "kvstore_client.async_subscription",
    "AsyncTransaction": "kvstore_client.transactions.async_transaction",
    "Client": "kvstore_client.client",
    "Cursor": "kvstore_core.model",
    "Event": "kvstore_core.model",
    "Filter": "kvstore_core.filters",
    "Heartbeat": "kvstore_core.wire",
    "Mirror": "kvstore_client.mirroring.mirror",
    "Record": "kvstore_core.model",
    "Reset": "kvstore_client.subscription_state",
    "Subscription": "kvstore_client.subscription",
    "Sync": "kvstore_client.subscription_state",
    "Transaction": "kvstore_client.transactions.transaction",
}


def __getattr__(name: str) -> Any:
    if name == "commands":
        return import_module("kvstore_client.commands")
    if name == "__version__":
        from kvstore_core.distribution import installed_version

        return installed_version()
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # the other names are the errors
    return getattr(import_module(_HOMES.get(name, "kvstore_core.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
