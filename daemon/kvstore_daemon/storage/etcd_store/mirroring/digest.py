"""A digest of a store's keys, by which two mirrors of it are compared.

The sum, modulo 2 to the 64, of a hash of every key with its revision: order does not matter, and a change
takes one term out and puts one in. It finds a missed event, not somebody who wants to deceive.
"""

from __future__ import annotations

from hashlib import blake2b

MODULUS = 1 << 64


def term(key: bytes, revision: int) -> int:
    """What a key that was last changed at ``revision`` adds to the digest."""
    # a key has no NUL and a revision always eight bytes: no two pairs are the same bytes
    return int.from_bytes(blake2b(key + revision.to_bytes(8), digest_size=8).digest())
