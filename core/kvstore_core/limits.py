"""The limits of keys, values, requests and pages: protocol section 4 and what the options begin with.

Nothing is imported here, so that a command which starts quickly can use them.
"""

from __future__ import annotations

INT64 = 2**63
MAX_REVISION = INT64 - 1
MAX_MOMENT = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z, the last moment that RFC 3339 can write."""
MAX_TTL_SECONDS = 100 * 366 * 24 * 3600

MAX_KEY_BYTES = 511
MAX_SEQUENCE_PREFIX_BYTES = MAX_KEY_BYTES - 26
"""Of the prefix of keys that number themselves: 20 digits, and ``-`` and 5 more, have to fit behind it."""
MAX_DELIMITER_BYTES = 16
MAX_VALUE_BYTES = 1024 * 1024
MAX_CONTENT_TYPE_BYTES = 255

MAX_OPS = 10_000
MAX_REQUEST_BYTES = 16 * 1024 * 1024
MAX_ATOMIC_OPS = 10_000
MAX_CLUSTER_ATOMIC_OPS = 100
"""In a transaction of etcd, which has at most 128 operations, and as many comparisons."""
MAX_ATOMIC_BYTES = 1024 * 1024
MAX_PRESENT_BYTES = 32 * 1024 * 1024
"""Of the values that a request does not bring and still needs: to compare them, to store them with a new TTL,
or to say that they have expired. A short request may name ten thousand keys with a megabyte each."""
MAX_CLIENT_BYTES = 128
MAX_REQUEST_ID = 128
MAX_AUTHOR_BYTES = 100
MAX_MESSAGE_BYTES = 200

MAX_PAGE = 1_000
MAX_PAGE_BYTES = 4 * 1024 * 1024
MAX_BACKUP_PIECE_BYTES = 1024 * 1024
"""Of a backup, what one op reads."""
MAX_FILTERS = 1_000
"""Prefixes, and keys, of one op."""
MAX_REQUEST_FILTERS = 10_000
"""Prefixes and keys of all ops of a request. Each is looked at before anything is done."""

SLOW_KEPT = 128
"""How many slow requests each process keeps for operators."""
MAX_SHOWN = 1024
"""The most characters that are shown of what a client asked for."""
MAX_REPEATED = 64
"""The most characters, or bytes of a value, that an error or a log repeats of what it is about."""
