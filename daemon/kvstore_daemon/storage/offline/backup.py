"""A backup: a store at one revision, and a trailer that describes and verifies it.

Layout: the image, LMDB's compact copy, which it can open in place; the frames of the journal that the image
does not have; the trailer, a JSON object; the footer: the SHA-256 of the trailer (32 bytes), its length (u32,
big-endian), the format's version (u32), the magic (8 bytes). The trailer has the SHA-256 of image and frames,
so a change of any byte is noticed.

The frames are kept as they are so that a backup can go to a pipe. To put them into the image first would take
the room of a whole store somewhere, and standard output may be all that a container can write to.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from kvstore_core.distribution import installed_version
from kvstore_core.errors import KvError
from kvstore_daemon.storage.offline import OnBegun, Progress, Steps, never_ended, no_progress, reader_client

FORMAT = 2
"""1 had no frames behind its image."""

OLDEST_FORMAT = 1

MAGIC = b"kvbackup"

_FOOTER = struct.Struct(">32sII8s")
_MAX_TRAILER_BYTES = 64 * 1024
_CHUNK_BYTES = 1 << 20
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh")
"""How the files of gzip, zstd, xz and bzip2 begin."""
_PACKED_BYTES = 5

SAME = ("epoch", "revision", "keys", "events")
"""The facts that both a backup's trailer and its image have."""


class Backup(NamedTuple):
    """What a backup's trailer says. ``keys`` and ``events`` are counts, ``bytes`` is the size of image and
    frames, ``created_at`` is in milliseconds since the epoch, ``sha256`` is that of image and frames, in
    hexadecimal, and ``journal_bytes`` is the size of the frames."""

    kvstore: str
    store_format: int
    epoch: str
    revision: int
    keys: int
    events: int
    bytes: int
    created_at: int
    sha256: str
    journal_bytes: int

    @property
    def section(self) -> tuple[int, int]:
        """The offset of the frames, and their size."""
        return self.bytes - self.journal_bytes, self.journal_bytes


def back_up(
    folder: Path,
    write: Callable[[bytes], Any],
    created_at: int,
    progress: Progress = no_progress,
    on_begun: OnBegun = never_ended,
) -> Backup:
    """Pass a backup of the store in the data folder to ``write``, piece by piece; returns what it holds.

    The store may be in use: the backup is of one revision, and nobody waits for it. ``progress`` counts
    bytes, and ``on_begun`` can end the process that reads the store. Raises KvError, also if that was ended;
    what was written until then is no backup.
    """
    digest, size = hashlib.sha256(), 0

    def take(chunk: bytes) -> None:
        nonlocal size
        digest.update(chunk)
        size += len(chunk)
        write(chunk)

    found = reader_client.copy(folder, take, progress, on_begun)
    backup = Backup(
        installed_version(),
        found["store_format"],
        found["epoch"],
        found["revision"],
        found["keys"],
        found["events"],
        size,
        created_at,
        digest.hexdigest(),
        found["journal_bytes"],
    )
    trailer = orjson.dumps({"format": FORMAT, **backup._asdict()})
    write(trailer + _FOOTER.pack(hashlib.sha256(trailer).digest(), len(trailer), FORMAT, MAGIC))
    return backup


def read_trailer(file: BinaryIO) -> Backup:
    """The trailer of the backup in ``file``. Raises ``damaged`` if it is no backup or only a part of one, and
    ``unsupported_version``. What it describes is not read: see :func:`read_image`."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _FOOTER.size))
    footer = file.read(_FOOTER.size)
    if len(footer) < _FOOTER.size or not footer.endswith(MAGIC):
        file.seek(0)
        is_packed = file.read(_PACKED_BYTES).startswith(_PACKED)
        advice = "it is compressed: unpack it first" if is_packed else "or its end is missing"
        raise KvError("damaged", f"this is not a backup, {advice}")
    checksum, length, form, _ = _FOOTER.unpack(footer)
    start = size - _FOOTER.size - length
    if length > _MAX_TRAILER_BYTES or start < 0:
        raise KvError("damaged", "the backup's footer is damaged")
    file.seek(start)
    trailer = file.read(length)
    if hashlib.sha256(trailer).digest() != checksum:
        raise KvError("damaged", "the backup's trailer is damaged")
    if not OLDEST_FORMAT <= form <= FORMAT:
        raise KvError(
            "unsupported_version",
            f"the backup has format {form}; this kvstore reads formats {OLDEST_FORMAT} to {FORMAT}",
        )
    said = {"journal_bytes": 0, **orjson.loads(trailer)}
    backup = Backup(*(said[name] for name in Backup._fields))
    if backup.bytes != start:
        raise KvError("damaged", f"the backup has {start} bytes of the store, and should have {backup.bytes}")
    return backup


def read_image(file: BinaryIO, backup: Backup, progress: Progress = no_progress) -> None:
    """Read all of image and frames; raises ``damaged`` if it is not what was written."""
    digest, done = hashlib.sha256(), 0
    file.seek(0)
    while done < backup.bytes and (chunk := file.read(min(_CHUNK_BYTES, backup.bytes - done))):
        digest.update(chunk)
        done += len(chunk)
        progress(done, backup.bytes)
    if digest.hexdigest() != backup.sha256:
        raise KvError("damaged", "the backup is not what was written: its SHA-256 does not match")


def check_backup(file: BinaryIO, on_fault: Callable[[str], None], steps: Steps) -> dict[str, Any]:
    """Call ``on_fault`` with each fault of the backup in ``file``, which has a name; returns what its trailer
    and its image say."""
    try:
        backup = read_trailer(file)
    except KvError as error:
        on_fault(error.message)
        return {}
    try:
        read_image(file, backup, steps("verifying the checksum"))
    except KvError as error:
        on_fault(error.message)
    said = backup._asdict()
    found = reader_client.check(Path(file.name), on_fault, steps("verifying the records"), backup.section)
    for name in SAME if found else ():
        if found[name] != said[name]:
            on_fault(f"the trailer says that {name} is {said[name]}, and it is {found[name]}")
    found.pop("file_bytes", None)  # of the image alone, without the frames
    return {**found, **said}
