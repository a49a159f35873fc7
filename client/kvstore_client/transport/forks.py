"""Which side of a fork this is.

ZeroMQ's sockets do not work across a fork: the threads behind them stay in the parent, so that a call in
the child would never end. And of two processes with the same client id, each would take the other's
answers for its own. So owners of sockets remember the :func:`generation` in which they made them, and in
another one make new sockets with new ids. Inherited ones are left alone, not even closed: their
descriptors are shared with the parent.
"""

from __future__ import annotations

import os
import threading
from typing import NoReturn

lock = threading.Lock()
"""For replacing what was inherited, once. It is new in each process: a thread of the parent might hold
a lock of the client's own."""

_generation = 0
_inherited: list[object] = []


def generation() -> int:
    """A number that differs in each process forked from this one."""
    return _generation


def leave_to_parent(*inherited: object) -> None:
    """Keep what belongs to the parent for as long as this process lives: Python would close it when it
    collects it."""
    _inherited.append(inherited)


class NotPortable:
    """An owner of sockets, which can be neither copied nor sent to another process: that is a TypeError."""

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"a {name} can be neither pickled nor copied: make one where it is used")


def _is_child() -> None:
    global _generation, lock
    _generation += 1
    lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_is_child)
