"""What follows the store beside those who use the mirror: a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class MirrorWorker:
    """A thread, and what it says to other threads."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._turn = threading.Condition()
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether the thread is to end."""
        return self._stopping.is_set()

    def stop_soon(self) -> None:
        """Let the thread end when it next looks."""
        self._stopping.set()

    def start(self, work: Callable[[], None]) -> None:
        """Begin."""
        self._thread = threading.Thread(target=work, name="kvstore-mirror", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until it has ended."""
        self.stop_soon()
        if self._thread is not None:
            self._thread.join()

    def notify(self) -> None:
        """Let those who wait look again."""
        with self._turn:
            self._turn.notify_all()

    def wait(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Whether ``is_so`` came true in time."""
        with self._turn:
            return self._turn.wait_for(is_so, seconds)

    def pause(self, seconds: float) -> None:
        """Wait, unless it is stopped."""
        self._stopping.wait(seconds)

    def aside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what takes long."""
        return function(*arguments)
