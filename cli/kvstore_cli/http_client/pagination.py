"""Lists that come in pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvstore_cli.http_client.client import Query, ServiceClient

_PAGE_ITEMS = 1000


def items(
    service: ServiceClient, path: str, query: Query, limit: int | None = None, name: str = "items"
) -> Iterator[Any]:
    """The items of all pages, ``limit`` at most. Each page is a snapshot of its own."""
    cursor: str | None = None
    while limit is None or limit > 0:
        wanted = [*query, ("limit", str(_PAGE_ITEMS if limit is None else min(_PAGE_ITEMS, limit)))]
        if cursor is not None:
            wanted.append(("cursor", cursor))
        page = service.request("GET", path, wanted).json()
        yield from page[name]
        cursor = page["cursor"]
        if cursor is None:
            return
        if limit is not None:
            limit -= len(page[name])
