"""A backup that a service on another machine makes, fetched piece by piece from where it was cut off.

What has come is in ``FILE.KEY.part`` and then ``FILE.KEY.TAG.part`` until it is all there. KEY is the
Idempotency-Key that it was asked for under, so that the same command finds the same backup again, and TAG the
beginning of its SHA-256, since the service may have made another one since.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO, Self

from kvstore_cli.http_client.client import RetryLimit, ServiceClient
from kvstore_cli.terminal import output
from kvstore_cli.terminal.humanize import exact_size
from kvstore_cli.terminal.progress import Report
from kvstore_core.errors import Damaged, KvError, NotFound
from kvstore_core.process.files import sync_folder

Description = dict[str, Any]

_PATH = "/v1/backups"
_LOOK_SECONDS = 0.5
_SERVICE_WAITS_SECONDS = 20.0
"""For how long the service lets a request for a backup wait until it is made."""

_LEAST_BYTES, _FIRST_BYTES, _MOST_BYTES = 64 * 1024, 1024 * 1024, 8 * 1024 * 1024
"""Of a piece. It is doubled while one takes less than a second, and halved when one does not arrive."""

_SYNC_BYTES = 8 * 1024 * 1024
_READ_BYTES = 1024 * 1024

_PART = re.compile(r"\.([0-9a-f]{16})(?:\.([0-9a-f]{16}))?\.part")


class BackupSource:
    """The backups of a service. Requests are repeated as long as ``retry`` allows."""

    def __init__(self, service: ServiceClient, retry: RetryLimit) -> None:
        self._service = service
        self._retry = retry

    def kept(self) -> list[Description]:
        """What the service keeps: one backup, or none."""
        answer = self._steadily(lambda: self._service.request("GET", _PATH, attempts=1))
        found: list[Description] = answer.json()["backups"]
        return found

    def make(self, key: str, progress: Report) -> Description:
        """A backup that is ready: that which was asked for under ``key`` before, or a new one; ``progress``
        is called then. Raises ``backup_exists`` if there is another, ``store_full``, and what else went
        wrong in making it."""
        answer = self._steadily(
            lambda: self._service.request(
                "POST",
                _PATH,
                headers={"Idempotency-Key": key},
                attempts=1,
                wait_seconds=_SERVICE_WAITS_SECONDS,
            )
        )
        made: Description = answer.json()
        while made["state"] == "making":
            sleep(_LOOK_SECONDS)
            made = self._found(made["id"])
        if "error" in made:
            raise KvError.from_json(made["error"])
        progress(1, 1)
        return made

    def _found(self, backup_id: str) -> Description:
        for each in self.kept():
            if each["id"] == backup_id:
                return each
        raise KvError("not_found", "the daemon has restarted while it made the backup; try again")

    def pieces(self, backup: Description, offset: int) -> Iterator[bytes]:
        """Its bytes from ``offset`` on."""
        size, total = _FIRST_BYTES, backup["bytes"]
        while offset < total:
            end = min(offset + size, total)
            began = monotonic()
            try:
                piece = self._piece(backup, offset, end)
            except KvError as error:
                size = max(size // 2, _LEAST_BYTES)
                self._retry.wait_after(error, f"at {exact_size(offset)} of {exact_size(total)}")
                continue
            self._retry.progress()
            if monotonic() - began < 1:
                size = min(size * 2, _MOST_BYTES)
            offset += len(piece)
            yield piece

    def _piece(self, backup: Description, start: int, end: int) -> bytes:
        wanted = {
            "Accept": "*/*",
            "Range": f"bytes={start}-{end - 1}",
            "If-Range": f'"{backup["sha256"]}"',
        }
        answer = self._service.request("GET", f"{_PATH}/{backup['id']}", headers=wanted, attempts=1)
        # something between here and there may have taken the range away
        piece = answer.body if answer.status == 206 else answer.body[start:end]
        if len(piece) != end - start:
            raise KvError("internal", f"{len(piece)} bytes of the backup came instead of {end - start}")
        return piece

    def delete(self, backup: Description) -> None:
        """Remove it at the service, unless it is not there any more."""
        with suppress(NotFound):
            self._service.request("DELETE", f"{_PATH}/{backup['id']}")

    def _steadily(self, ask: Callable[[], Any]) -> Any:
        while True:
            try:
                answer = ask()
            except KvError as error:
                self._retry.wait_after(error)
            else:
                self._retry.progress()
                return answer


class PartFile:
    """What has come of the backup that is to be ``path``: what an interrupted command left there, or nothing
    yet. Readable by its owner only. Raises ``not_allowed`` while another command uses it, and OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = next(iter(_parts_of(path)), None)
        self.key, self._tag = found or (os.urandom(8).hex(), "")
        self._name = _part_name(path, self.key, self._tag)
        descriptor = os.open(self._name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.file: BinaryIO = open(descriptor, "r+b")  # noqa: PTH123, SIM115 - it is open, until it is closed
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_part = os.path.samestat(os.fstat(descriptor), self._name.stat())
        except (BlockingIOError, FileNotFoundError):
            is_part = False
        if not is_part:  # it has another name by now, or will have
            self.file.close()
            raise KvError("not_allowed", f"another kvstore backup is fetching {path}")

    def take(self, backup: Description) -> int:
        """Begin with ``backup``; returns how many bytes of it are there already."""
        tag = backup["sha256"][:16]
        if tag != self._tag:
            self.file.truncate(0)
            name = _part_name(self._path, self.key, tag)
            self._name.rename(name)
            self._name, self._tag = name, tag
        offset = min(self.file.seek(0, os.SEEK_END), int(backup["bytes"]))
        self.file.truncate(offset)
        return offset

    def finish(self, *, replace: bool) -> None:
        """Give it its name, once all of it is on disk. Raises FileExistsError, unless ``replace``, if there
        is such a file by now."""
        if not replace and os.path.lexists(self._path):
            raise FileExistsError(errno.EEXIST, "File exists", os.fspath(self._path))
        self.file.flush()
        os.fsync(self.file.fileno())
        self._name.replace(self._path)
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove it."""
        self._name.unlink(missing_ok=True)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come yet."""
        return os.fstat(self.file.fileno()).st_size == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def discard_parts(path: Path) -> None:
    """Remove what earlier commands left of ``path``."""
    for key, tag in _parts_of(path):
        _part_name(path, key, tag).unlink(missing_ok=True)


def _parts_of(path: Path) -> list[tuple[str, str]]:
    """The key and the tag of each part that there is of ``path``."""
    begin = len(path.name)
    names = sorted(each.name for each in path.parent.iterdir() if each.name.startswith(path.name))
    return [(found[1], found[2] or "") for name in names if (found := _PART.fullmatch(name[begin:]))]


def _part_name(path: Path, key: str, tag: str) -> Path:
    return path.with_name(".".join((path.name, key, *filter(None, (tag,)), "part")))


def fetch_file(
    source: BackupSource, path: Path, begin: Callable[[str], Report], *, replace: bool
) -> Description:
    """Have the file ``path`` be a backup of the service. It goes on with what an interrupted command left of
    it. ``begin`` is called with the name of each step, and what it returns with the bytes that are done and
    with all. Raises ``damaged`` if what came is not what was made."""
    with PartFile(path) as part:
        try:
            backup = source.make(part.key, begin("making"))
        except KvError as error:
            if part.is_empty and not error.row.is_temporary:
                part.discard()
            raise
        offset = part.take(backup)
        digest = hashlib.sha256()
        if offset:
            output.talk(f"going on at {exact_size(offset)} of {exact_size(backup['bytes'])}")
            _read(part.file, offset, digest.update, begin("verifying what is here"))
        try:
            _copy(source, backup, offset, digest, _synced(part.file, offset), begin("downloading"))
        except NotFound:
            part.discard()
            raise
        except Damaged:
            part.file.truncate(0)  # and the next time from the beginning
            raise
        part.finish(replace=replace)
    return backup


def fetch(source: BackupSource, write: Callable[[bytes], Any], begin: Callable[[str], Report]) -> Description:
    """Pass a backup of the service to ``write``. Raises ``damaged`` at its end if it is not what was made."""
    backup = source.make(os.urandom(8).hex(), begin("making"))
    try:
        _copy(source, backup, 0, hashlib.sha256(), write, begin("downloading"))
    except BaseException:  # nobody can go on with it
        with suppress(KvError):
            source.delete(backup)
        raise
    return backup


def _copy(
    source: BackupSource,
    backup: Description,
    offset: int,
    digest: Any,
    write: Callable[[bytes], Any],
    progress: Report,
) -> None:
    for piece in source.pieces(backup, offset):
        digest.update(piece)
        write(piece)
        offset += len(piece)
        progress(offset, backup["bytes"])
    if digest.hexdigest() != backup["sha256"]:
        message = "what came is not the backup that was made: its SHA-256 does not match; try again"
        raise KvError("damaged", message)


def _synced(file: BinaryIO, offset: int) -> Callable[[bytes], None]:
    """A function that writes to ``file`` from ``offset`` on, and puts it on disk every few megabytes, so that
    a crash of this machine leaves most of it."""
    file.seek(offset)
    unsynced = 0

    def write(piece: bytes) -> None:
        nonlocal unsynced
        file.write(piece)
        unsynced += len(piece)
        if unsynced >= _SYNC_BYTES:
            file.flush()
            os.fdatasync(file.fileno())
            unsynced = 0

    return write


def _read(file: BinaryIO, size: int, take: Callable[[bytes], Any], progress: Report) -> None:
    """Pass the first ``size`` bytes on."""
    done = 0
    file.seek(0)
    while done < size and (piece := file.read(min(_READ_BYTES, size - done))):
        take(piece)
        done += len(piece)
        progress(done, size)
