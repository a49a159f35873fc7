"""What rows take in LMDB's pages, at the smallest page size. Arithmetic alone."""

from __future__ import annotations

PAGE_BYTES = 4096
PAGE_HEAD = 16

_NODE_BYTES = 10
"""What LMDB needs beside a key and its row: the node's head, and its place in the page."""

_PAGE_NUMBER_BYTES = 8

_LARGEST_NODE = (PAGE_BYTES - PAGE_HEAD) // 2 - 2
"""Two nodes have to fit a page; the row of a larger one gets pages of its own."""


def pages_of(size: int) -> int:
    """The pages that a row of ``size`` bytes takes if it has pages of its own."""
    return (PAGE_HEAD - 1 + size) // PAGE_BYTES + 1


def record_bytes(key_length: int, row_length: int) -> int:
    """What a record takes: its key and its row, or whole pages for a row that is large. The room that is left
    free in pages which several records share is not part of it."""
    if _NODE_BYTES + key_length + row_length <= _LARGEST_NODE:
        return _NODE_BYTES + key_length + row_length
    return _NODE_BYTES + key_length + _PAGE_NUMBER_BYTES + pages_of(row_length) * PAGE_BYTES
