"""What a row needs to know about the run it is measured in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Stage:
    """One run. ``seconds`` is how long a figure is measured, ``largest`` how many keys the largest
    store has; ``folder`` is where every store is made, so all are on one disk."""

    def __init__(self, folder: Path, *, quick: bool, seconds: int, largest: int) -> None:
        self.folder = folder
        self.settings = {"quick": quick, "seconds": seconds, "largest": largest}
        self.quick = quick
        self.seconds = seconds
        self.largest = largest
        self.warm_seconds = 0.3 if quick else 1.0
        self.round = 0
        self._kept: dict[str, object] = {}

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for the time of the block."""
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def keep(self, name: str, make: Callable[[Path], T]) -> tuple[Path, T]:
        """A folder that ``make`` fills once in the run, and what it gave then."""
        folder = self.folder / name
        if name not in self._kept:
            folder.mkdir()
            self._kept[name] = make(folder)
        return folder, self._kept[name]  # type: ignore[return-value]

    def turns(self, contenders: Sequence[T]) -> list[T]:
        """The contenders in this round's order: each round begins with another one, so that none is
        always measured on the machine that the same other one has just warmed up or worn out."""
        first = self.round % len(contenders)
        return [*contenders[first:], *contenders[:first]]
