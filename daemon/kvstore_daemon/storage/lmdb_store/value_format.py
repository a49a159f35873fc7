"""The engine-neutral form in which a value is stored: media type and times, then the raw bytes.

Revisions are not part of it, since a distributed engine learns them only when a commit is done.
Layout, big-endian: format u8 (1), modified_at u64, expires_at u64 (0: none), length of the media type
u8, media type (ASCII), value (all that follows). It is packed and unpacked in one go with the row
around it: see :mod:`kvstore_daemon.storage.lmdb_store.row_format`.
"""

from __future__ import annotations

FORMAT = 1
HEAD = "BQQB"

Buffer = bytes | memoryview
