"""A daemon whose engine is LMDB's and behaves as one over a store that others write to as well: reads have to
catch up, and the log may be replaced. The data is real; only when a read is current is the test's to say.

As a script, this file is that daemon; it takes the test's orders on a socket in its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from kvstore_cli.main import main
from kvstore_core.errors import KvError
from kvstore_daemon.main import ENGINES
from kvstore_daemon.storage.interface import (
    Committed,
    Engine,
    EngineSettings,
    KeyCount,
    LogPosition,
    WriteAnswer,
)
from kvstore_daemon.storage.lmdb_store.engine import LmdbEngine
from support.servers import Daemon

NO_QUORUM = "no majority of the cluster answers"


class LaggingEngine:
    """An LMDB engine that catches up when the test says so."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings._replace(address="lmdb:")
        self._engine: Engine = LmdbEngine(self._settings)
        self._lock = threading.Lock()
        self._mode = "current"
        self._age = 0
        self._held: list[Any] = []
        self._told: deque[Committed] = deque()
        self._former: list[Engine] = []
        self._counts_left = 0
        self._orders = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def open(self, is_over: Callable[[], bool]) -> None:
        self._engine.open(is_over)
        self._readable = select.epoll()
        self._readable.register(self._engine.fileno(), select.EPOLLIN)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._readable.register(self._wake_reader, select.EPOLLIN)
        self._orders.bind("orders")
        self._orders.listen()
        threading.Thread(target=self._obey, daemon=True).start()

    def close(self) -> None:
        self._engine.close()
        for engine in self._former:
            engine.close()

    def fileno(self) -> int:
        return self._readable.fileno()

    def poll(self) -> Committed:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)
        with self._lock:
            events, answers, restarted = self._engine.poll()
            while self._told:
                _, more, position = self._told.popleft()
                answers += more
                restarted = position or restarted
            return Committed(events, answers, restarted)

    def catch_up(self, ticket: Any) -> bool:
        with self._lock:
            if self._mode == "current":
                return True
            self._held.append(ticket)
            if self._mode == "fail":
                self._let_go(KvError("unavailable", NO_QUORUM))
            return False

    def age(self) -> int:
        return self._age

    def count(self, start: bytes, end: bytes | None) -> KeyCount:
        counted = self._engine.count(start, end)
        self._counts_left -= 1
        if self._counts_left == 0:
            with self._lock:
                self._go_on_with(self._next)
        return counted

    # ── the test's orders ────────────────────────────────────────────────────────────────────────

    def _obey(self) -> None:
        while True:
            connection, _ = self._orders.accept()
            with connection:
                order, argument = json.loads(connection.recv(4096))
                with self._lock:
                    answer = getattr(self, f"_order_{order}")(argument)
                    os.write(self._wake_writer, b"\0")
                connection.sendall(json.dumps(answer).encode())

    def _order_catch_up(self, mode: str) -> None:
        """``hold``: reads wait; ``current``: they need not, and those that wait are let go; ``fail``: all
        fail."""
        self._mode = mode
        if mode != "hold":
            self._let_go(KvError("unavailable", NO_QUORUM) if mode == "fail" else None)

    def _let_go(self, error: KvError | None) -> None:
        answers = [WriteAnswer(ticket, [], error) for ticket in self._held]
        self._held.clear()
        self._told.append(Committed([], answers))
        os.write(self._wake_writer, b"\0")

    def _order_held(self, _: None) -> int:
        return len(self._held)

    def _order_age(self, milliseconds: int) -> None:
        self._age = milliseconds

    def _order_replace(self, argument: tuple[str, int]) -> LogPosition:
        """Go on with the store in a folder, as one that was restored there: at once, or after so many calls
        of ``count``."""
        data, self._counts_left = argument
        self._next = LmdbEngine(self._settings._replace(data=data))
        self._next.open()
        if not self._counts_left:
            self._go_on_with(self._next)
        return self._next.position()

    def _go_on_with(self, engine: Engine) -> None:
        self._readable.register(engine.fileno(), select.EPOLLIN)
        self._former.append(self._engine)
        self._engine = engine
        self._told.append(Committed([], [], engine.position()))
        os.write(self._wake_writer, b"\0")


class LaggingDaemon(Daemon):
    """``kvstore daemon`` with a :class:`LaggingEngine`."""

    places: ClassVar = {**Daemon.places, "engine": "lagging:"}

    def __init__(self, folder: Path, options: dict[str, Any], environment: dict[str, str] | None = None):
        tests = str(Path(__file__).parents[1])
        super().__init__(folder, options, {"PYTHONPATH": tests, **(environment or {})})

    def _begin(self, command: list[str]) -> Any:
        return super()._begin([sys.executable, __file__, *command[1:]])

    def order(self, order: str, argument: Any = None) -> Any:
        """Have the engine do something; see the ``_order_`` methods."""
        folder = os.open(self.folder, os.O_PATH)  # the path of a socket must be short
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(f"/proc/self/fd/{folder}/orders")
                connection.sendall(json.dumps([order, argument]).encode())
                return json.loads(connection.recv(4096))
        finally:
            os.close(folder)


StartLagging = Callable[..., LaggingDaemon]


if __name__ == "__main__":
    ENGINES["lagging"] = LaggingEngine
    main()
