"""Reads a store's file in a process of its own, beside the daemon or without one.

``python -m kvstore_daemon.storage.offline.reader_process TASK PATH`` is that process;
:mod:`kvstore_daemon.storage.offline.reader_client` runs it. LMDB maps the file, so a damaged page can kill
the process that looks at it, or keep it busy for ever; here it is one that may die.

What LMDB does not have yet is read from the journal. LMDB's readers never wait for the writer nor block it. A
reader that is killed leaves its slot in the table of readers taken; the daemon clears it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import orjson
from lmdb import verify as lmdb_verify

from kvstore_core.digest import digest_text
from kvstore_core.errors import KvError
from kvstore_daemon.storage.damage import DamageError
from kvstore_daemon.storage.folder_kinds import require_store
from kvstore_daemon.storage.lmdb_store.file_errors import errno_of, file_error
from kvstore_daemon.storage.lmdb_store.journaling.journal import Frame
from kvstore_daemon.storage.lmdb_store.row_format import LogCounters
from kvstore_daemon.storage.lmdb_store.schema import FORMAT, OLDEST_FORMAT, open_tables
from kvstore_daemon.storage.offline.journaled import (
    Files,
    JournaledView,
    encoded,
    files_in,
    frames_beyond,
    section_of,
    size_of,
)
from kvstore_daemon.storage.offline.run_as_owner import become_owner
from kvstore_daemon.storage.offline.verify import verify

_MAP_RESERVE = 1 << 30
_OPEN_ATTEMPTS = 5
_JOURNAL_ATTEMPTS = 5


class OpenedStore(NamedTuple):
    """A store that is open for reading: what LMDB has in ``txn``, and the ``frames`` of the journal beyond
    that. Where the journal is damaged, ``fault`` says how, and there are no frames."""

    env: lmdb.Environment
    txn: lmdb.Transaction[bytes]
    frames: Sequence[Frame] = ()
    fault: KvError | None = None


def data_file(path: Path) -> Path:
    """The LMDB file of the store in the folder ``path``; ``path`` itself if it is a file."""
    return path / "lmdb" / "data.mdb" if path.is_dir() else path


@contextmanager
def open_store(path: Path, section: tuple[int, int] | None = None) -> Iterator[OpenedStore]:
    """The store in the data folder, or in the LMDB file, ``path``; the offset and the length of the
    ``section`` that has the file's journal.

    Nothing is written, except that a missing ``lock.mdb`` is made in a folder. While it is open its file is
    not replaced. Raises KvError: ``not_allowed``, ``bad_request``, ``damaged``, ``too_busy`` (another process
    may do it at once), ``unsupported_version``.
    """
    file = data_file(path)
    if path.is_dir():
        require_store(path)
    descriptor = _locked_file(file)
    stack = ExitStack()
    stack.callback(os.close, descriptor)
    with stack, _lmdb_errors(file):
        if path.is_dir() and os.statvfs(file).f_flag & os.ST_RDONLY:
            stack.enter_context(_without_daemon(path))
        env = lmdb.open(
            os.fspath(file.parent if path.is_dir() else file),
            subdir=path.is_dir(),
            lock=path.is_dir(),
            readonly=True,
            max_dbs=8,
            max_readers=64,
            map_size=2 * os.fstat(descriptor).st_size + _MAP_RESERVE,
            mode=0o600,
        )

        def files() -> Files | None:
            return files_in(file.parent) if path.is_dir() else section_of(file, *(section or (0, 0)))

        with env, _snapshot(env, file.parent, files) as store:
            yield store


@contextmanager
def _snapshot(
    env: lmdb.Environment, folder: Path, files: Callable[[], Files | None]
) -> Iterator[OpenedStore]:
    """One revision of the store. The daemon may write while the journal is read, so that what seems damaged
    is looked at again."""
    for attempt in range(_JOURNAL_ATTEMPTS):
        # before LMDB's snapshot: a file that the daemon uses again after this is in that
        journal = files()
        with _transaction(env) as txn:
            store = _with_frames(OpenedStore(env, txn), folder, journal)
            if store.fault is None or attempt == _JOURNAL_ATTEMPTS - 1:
                yield store
                return


def _with_frames(store: OpenedStore, folder: Path, files: Files | None) -> OpenedStore:
    try:
        tables = open_tables(store.env, store.txn)
        return store._replace(frames=frames_beyond(folder, store.txn, tables, files))
    except DamageError:
        return store  # of the tables; reading them finds it
    except KvError as fault:
        return store._replace(fault=fault)


@contextmanager
def _lmdb_errors(file: Path) -> Iterator[None]:
    """Raise LMDB's errors in the block as KvErrors."""
    try:
        yield
    except lmdb.LockError as error:
        # there is a reader with this process id already, in another container on the same volume
        raise KvError("too_busy", f"the reader's place in {file.parent} is taken: {error}") from error
    except lmdb.ReadonlyError as error:
        raise _not_readable(file, error) from error
    except lmdb.Error as error:
        raise file_error(file, error) from error


@contextmanager
def _without_daemon(folder: Path) -> Iterator[None]:
    """Keep daemons out of a folder on a read-only file system; raises ``not_allowed`` if one uses it.

    It may be mounted writable elsewhere. Here LMDB reads without a lock, so a daemon would not know that the
    pages are in use.
    """
    with (folder / "owner").open("rb") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KvError(
                "not_allowed",
                f"{folder.absolute()} is in use, and mounted read-only here, so a reader cannot be "
                "registered: mount it writable",
            ) from error
        yield


def _locked_file(file: Path) -> int:
    """A descriptor of ``file``, locked so that no other file takes its name."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            message = f"there is no store: {file} does not exist; name its folder with --data or KVSTORE_DATA"
            raise KvError("bad_request", message) from error
        except PermissionError as error:
            raise _not_readable(file, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise KvError("not_allowed", f"{file} is being replaced; try again when that is done") from error
        if os.path.samestat(os.fstat(descriptor), file.stat()):
            return descriptor
        os.close(descriptor)


def _not_readable(file: Path, error: Exception) -> KvError:
    reason = error.strerror if isinstance(error, OSError) else error
    return KvError(
        "not_allowed", f"{file} cannot be read: {reason}; do this as the user who runs the daemon, or as root"
    )


@contextmanager
def _transaction(env: lmdb.Environment) -> Iterator[lmdb.Transaction[bytes]]:
    for attempt in range(_OPEN_ATTEMPTS):
        try:
            txn = env.begin()
        except lmdb.MapResizedError:
            # since it was opened the daemon has made the file larger than the map
            if attempt == _OPEN_ATTEMPTS - 1:
                raise
            env.set_mapsize(0)
        else:
            break
    with txn:
        yield txn


def facts(store: OpenedStore) -> dict[str, Any]:
    """Format, epoch, position and sizes of the store, and the digest of its records, which format 4 does not
    have. ``bytes`` is the size of LMDB's pages without the free ones, which is that of a copy, and
    ``file_bytes`` the size of all; ``journal_bytes`` is the size of the frames beyond that. Raises
    KvError."""
    env, txn, frames, fault = store
    if fault is not None:
        raise fault
    try:
        tables = open_tables(env, txn)
    except DamageError as damage:
        raise KvError("damaged", str(damage)) from damage
    view = JournaledView(txn, tables, frames)
    found = int(view.get(b"format", b"0", db=tables["meta"]))
    if not OLDEST_FORMAT <= found <= FORMAT:
        raise KvError(
            "unsupported_version",
            f"the store has format {found}; this kvstore reads formats {OLDEST_FORMAT} to {FORMAT}",
        )
    stats = [env.stat(), *(txn.stat(table) for table in tables.values())]
    pages = sum(stat[kind] for stat in stats for kind in ("branch_pages", "leaf_pages", "overflow_pages"))
    try:
        position = LogCounters.decode(view.get(b"position", db=tables["meta"]))
    except DamageError as damage:
        raise KvError("damaged", str(damage)) from damage
    page_bytes = stats[0]["psize"]
    return {
        "store_format": found,
        "epoch": view.get(b"epoch", b"", db=tables["meta"]).decode("ascii", "replace"),
        "revision": position.head,
        "floor": position.floor,
        "keys": view.stat(tables["data"])["entries"],
        "events": position.events,
        "digest": None if position.digest is None else digest_text(position.digest),
        "bytes": (pages + 2) * page_bytes,
        "file_bytes": (env.info()["last_pgno"] + 1) * page_bytes,
        "journal_bytes": size_of(frames),
    }


def _write(event: str, value: Any) -> None:
    os.write(1, orjson.dumps([event, value]) + b"\n")


def _facts(path: Path) -> None:
    """Write the facts."""
    with open_store(path) as store:
        _write("facts", facts(store))


def _copy(path: Path) -> None:
    """Write the facts, then the image that LMDB has of the same revision and the frames beyond it."""
    with open_store(path) as store:
        _write("facts", facts(store))
        store.env.copyfd(1, compact=True, txn=store.txn)
        tables = open_tables(store.env, store.txn)
        with open(1, "wb", closefd=False) as output:
            output.writelines(encoded(store.txn, tables, store.frames))


def _check(path: Path, *section: str) -> None:
    """Write the facts and every fault, with progress. The ``section`` of a file has the journal."""
    start_and_length = (int(section[0]), int(section[1])) if section else None
    try:
        with open_store(path, start_and_length) as store:
            # until this transaction ends, its pages and those of every later one stay as they are; so the
            # file can be checked while the daemon writes
            _check_pages(data_file(path))
            if store.fault is not None:
                _write("fault", store.fault.message)
            _walk(store._replace(fault=None))
    except KvError as error:
        if error.code != "damaged":
            raise
        _write("fault", error.message)


def _walk(store: OpenedStore) -> None:
    try:
        env, txn, frames, _ = store
        for fault in verify(env, txn, frames, lambda done, total: _write("progress", [done, total])):
            _write("fault", fault)
        _write("facts", facts(store))
    except (lmdb.Error, ValueError) as error:
        # an error of LMDB that is not the system's comes from the pages, since it only reads
        if isinstance(error, lmdb.Error) and errno_of(error):
            raise
        _write("fault", f"the check could not continue: {error}")


def _check_pages(file: Path) -> None:
    # twice where there is a fault: the daemon may have made the file longer between two looks at it
    found = _page_faults(file) and _page_faults(file)
    for fault in found:
        _write("fault", f"pages: {fault}")


def _page_faults(file: Path) -> list[str]:
    """What py-lmdb's own check of the pages finds; it does not map the file."""
    find: Callable[[str], list[str]] = lmdb_verify.verify
    try:
        return find(os.fspath(file))
    except lmdb_verify.VerifyError as error:
        return [str(error)]


_TASKS: dict[str, Callable[..., None]] = {"facts": _facts, "copy": _copy, "check": _check}


def _failed(error: KvError) -> int:
    os.write(2, orjson.dumps(error.as_json()) + b"\n")
    return 1


def main(task: str, path: str, *more: str) -> int:
    """Do the task and write to standard output, one JSON array a line. An error goes to standard error, since
    standard output may have an image by then; the exit status is 1."""
    # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the daemon beside it has clients waiting
    os.nice(10)
    try:
        _TASKS[task](become_owner(Path(path)), *more)
    except KvError as error:
        return _failed(error)
    except lmdb.Error as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        return _failed(file_error(data_file(Path(path)), error))
    except MemoryError:
        return _failed(file_error(data_file(Path(path)), OSError(errno.ENOMEM, "")))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
