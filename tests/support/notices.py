"""The child's end of a socket for notices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from kvstore_core.process.sd_notify import NoticeSocket, Notifier


@contextmanager
def notifier_on(notices: NoticeSocket) -> Iterator[Notifier]:
    """What a child says that has inherited its end."""
    child = Notifier(descriptor=os.dup(notices.descriptor), is_watched=True)
    try:
        yield child
    finally:
        assert child._pair is not None
        child._pair.close()
