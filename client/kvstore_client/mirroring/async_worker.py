"""What follows the store beside those who use the mirror: a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class AsyncMirrorWorker:
    """A task, and what it says to other tasks."""

    is_stopping = False
    """For the form with threads: a task is cancelled."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Event()

    def start(self, work: Callable[[], Any]) -> None:
        """Begin."""
        self._task = asyncio.create_task(work())

    def stop_soon(self) -> None:
        """For the form with threads."""

    async def stop(self) -> None:
        """End, and wait until it has ended."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def notify(self) -> None:
        """Let those who wait look again."""
        self._turn.set()
        self._turn = asyncio.Event()

    async def wait(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Whether ``is_so`` came true in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_so():
                    await self._turn.wait()
        return is_so()

    async def pause(self, seconds: float) -> None:
        """Wait, unless it is stopped."""
        await asyncio.sleep(seconds)

    async def aside(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what takes long, where it keeps nobody from working."""
        return await asyncio.to_thread(function, *arguments)
