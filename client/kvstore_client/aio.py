"""The asyncio forms, under the name that users import them by."""

from kvstore_client.async_client import AsyncClient as AsyncClient
from kvstore_client.async_subscription import AsyncSubscription as AsyncSubscription
from kvstore_client.mirroring.async_mirror import AsyncMirror as AsyncMirror
from kvstore_client.transactions.async_transaction import AsyncTransaction as AsyncTransaction
