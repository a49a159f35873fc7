"""Reads a store's file in a process of its own, beside the daemon or without one.

``python -m kvstore_daemon.storage.offline.reader_process TASK PATH`` is that process;
:mod:`kvstore_daemon.storage.offline.reader_client` runs it. LMDB maps the file, so a damaged page can kill
the process that looks at it, or keep it busy for ever; here it is one that may die.

LMDB's readers never wait for the writer nor block it. A reader that is killed leaves its slot in the table of
readers taken; the daemon clears it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import orjson
from lmdb import verify as lmdb_verify

from kvstore_core.errors import KvError
from kvstore_daemon.storage.lmdb_store.file_errors import errno_of, file_error
from kvstore_daemon.storage.lmdb_store.row_format import DamageError, LogCounters
from kvstore_daemon.storage.lmdb_store.schema import FORMAT, OLDEST_FORMAT, open_tables
from kvstore_daemon.storage.offline.run_as_owner import become_owner
from kvstore_daemon.storage.offline.verify import verify

_MAP_RESERVE = 1 << 30
_OPEN_ATTEMPTS = 5


def data_file(path: Path) -> Path:
    """The LMDB file of the store in the folder ``path``; ``path`` itself if it is a file."""
    return path / "lmdb" / "data.mdb" if path.is_dir() else path


@contextmanager
def open_store(path: Path) -> Iterator[tuple[lmdb.Environment, lmdb.Transaction[bytes]]]:
    """The store in the data folder, or in the LMDB file, ``path``; and a read transaction on it.

    Nothing is written, except that a missing ``lock.mdb`` is made in a folder. While it is open its file is
    not replaced. Raises KvError: ``not_allowed``, ``bad_request``, ``damaged``, ``too_busy`` (another process
    may do it at once), ``unsupported_version``.
    """
    file = data_file(path)
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
        with env, _transaction(env) as txn:
            yield env, txn


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
            raise KvError("bad_request", f"there is no store: {file} does not exist") from error
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


def facts(env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> dict[str, Any]:
    """Format, epoch, position and sizes of the store, as ``txn`` sees it. ``bytes`` is the size of its pages
    without the free ones, which is that of a copy; ``file_bytes`` is the size of all."""
    try:
        tables = open_tables(env, txn)
    except DamageError as damage:
        raise KvError("damaged", str(damage)) from damage
    found = int(txn.get(b"format", b"0", db=tables["meta"]))
    if not OLDEST_FORMAT <= found <= FORMAT:
        raise KvError(
            "unsupported_version",
            f"the store has format {found}; this kvstore reads formats {OLDEST_FORMAT} to {FORMAT}",
        )
    stats = [env.stat(), *(txn.stat(table) for table in tables.values())]
    pages = sum(stat[kind] for stat in stats for kind in ("branch_pages", "leaf_pages", "overflow_pages"))
    position = LogCounters.decode(txn.get(b"position", db=tables["meta"]))
    page_bytes = stats[0]["psize"]
    return {
        "store_format": found,
        "epoch": txn.get(b"epoch", b"", db=tables["meta"]).decode("ascii", "replace"),
        "revision": position.head,
        "floor": position.floor,
        "keys": txn.stat(tables["data"])["entries"],
        "events": position.events,
        "bytes": (pages + 2) * page_bytes,
        "file_bytes": (env.info()["last_pgno"] + 1) * page_bytes,
    }


def _write(event: str, value: Any) -> None:
    os.write(1, orjson.dumps([event, value]) + b"\n")


def _facts(path: Path) -> None:
    """Write the facts."""
    with open_store(path) as (env, txn):
        _write("facts", facts(env, txn))


def _copy(path: Path) -> None:
    """Write the facts, then the image of the same revision."""
    with open_store(path) as (env, txn):
        _write("facts", facts(env, txn))
        env.copyfd(1, compact=True, txn=txn)


def _check(path: Path) -> None:
    """Write the facts and every fault, with progress."""
    try:
        with open_store(path) as (env, txn):
            # until this transaction ends, its pages and those of every later one stay as they are; so the
            # file can be checked while the daemon writes
            _check_pages(data_file(path))
            _walk(env, txn)
    except KvError as error:
        if error.code != "damaged":
            raise
        _write("fault", error.message)


def _walk(env: lmdb.Environment, txn: lmdb.Transaction[bytes]) -> None:
    try:
        for fault in verify(env, txn, lambda done, total: _write("progress", [done, total])):
            _write("fault", fault)
        _write("facts", facts(env, txn))
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


_TASKS = {"facts": _facts, "copy": _copy, "check": _check}


def _failed(error: KvError) -> int:
    os.write(2, orjson.dumps(error.as_json()) + b"\n")
    return 1


def main(task: str, path: str) -> int:
    """Do the task and write to standard output, one JSON array a line. An error goes to standard error, since
    standard output may have an image by then; the exit status is 1."""
    # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the daemon beside it has clients waiting
    os.nice(10)
    try:
        _TASKS[task](become_owner(Path(path)))
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
