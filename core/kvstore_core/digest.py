"""The digest of a set of records, by which a copy proves that it is equal to the store.

It is a sum modulo 2 to the 256 of the SHA-256 of each record, so the order does not matter, a change takes
one term out and puts one in, and the digests of disjoint parts add up to that of the whole
(``docs/vectors/digests.json`` has examples).

Equal digests at the same revision of the same epoch prove that nothing was lost, done twice, done out of
order or altered on the way, on a disk, or by a fault of either program: with other records the sum is the
same once in 2 to the 256. They prove nothing against somebody who chooses what is written in order to
deceive. The sum of many hashes can be brought to a wanted value with far less work than a single hash, so one
who may write to the store, and wants two different sets of records to have the same digest, can find such
sets.

SHA-256, since every language has it, browsers too; one record's takes a microsecond. BLAKE2b takes the same
for small records and three times as long for large ones, where the processor has instructions for SHA.
"""

from __future__ import annotations

import struct
from hashlib import sha256

DIGEST_BYTES = 32

_pack_head = struct.Struct(">QH").pack
_number = int.from_bytes
_JOINED_BYTES = 1024
MODULUS = 1 << 8 * DIGEST_BYTES

# a copy of one that was begun costs less than to begin another
_begin = sha256().copy


def record_hash(key: bytes, revision: int, value: bytes | memoryview) -> bytes:
    """The SHA-256 of a record: of its revision (u64) and the length of its key (u16), both big-endian, then
    the key in UTF-8 and the value."""
    found = _begin()
    # no separator is needed: the key's length says where the value begins
    head = _pack_head(revision, len(key)) + key
    if len(value) <= _JOINED_BYTES:
        found.update(head + value)
    else:
        found.update(head)
        found.update(value)
    return found.digest()


def digest_text(total: int) -> str:
    """A digest as texts have it, 64 hexadecimal digits; ``total`` is that of a :class:`SetHash`."""
    return f"{total % MODULUS:064x}"


class SetHash:
    """The digest of a set of records that changes, by default of none. ``total`` modulo 2 to the 256 is the
    digest: to carry a few bits more meanwhile is cheaper than to cut them off with every change."""

    __slots__ = ("total",)

    def __init__(self, total: int = 0) -> None:
        self.total = total

    def replace(self, old: bytes, new: bytes) -> None:
        """Take out the record with the hash ``old``, which must be one that was put in, and put in the one
        with the hash ``new``; either may be empty, for no record."""
        self.total += _number(new) - _number(old)

    def hexdigest(self) -> str:
        """The digest of the present records, as 64 hexadecimal digits."""
        return digest_text(self.total)
