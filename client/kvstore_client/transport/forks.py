"""Which side of a fork this is.

ZeroMQ's sockets do not work across a fork: the threads behind them stay in the parent, so that a call in
the child would wait for ever. And of two processes with the same client id, each would take the other's
answers for its own. So whoever has sockets remembers the :func:`generation` in which they were made, and
makes new ones, with new ids, in another. What was inherited is left alone, not even closed: its
descriptors are shared with the parent.
"""

from __future__ import annotations

import os
import threading

lock = threading.Lock()
"""For replacing what was inherited, once; a lock of its owner might be held by a thread of the parent."""

_generation = 0


def generation() -> int:
    """A number that is another one in each process that was forked from this."""
    return _generation


def _is_child() -> None:
    global _generation, lock
    _generation += 1
    lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_is_child)
