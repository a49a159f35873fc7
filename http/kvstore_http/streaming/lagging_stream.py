"""A stream that is being caught up: how far it is, and what it gets next."""

from __future__ import annotations

from typing import TypeAlias

from kvstore_core.model import Cursor
from kvstore_core.snapshot_merge import SnapshotMerge
from kvstore_http.streaming.messages import NOTHING, Messages
from kvstore_http.streaming.stream_sockets import Stream
from kvstore_http.streaming.stream_spec import StreamSpec, StreamStart

Audience: TypeAlias = tuple[StreamSpec, SnapshotMerge | None]
"""What streams that are sent the same have in common: their spec, and the snapshot that what follows is
compared with."""


class LaggingStream:
    """A stream that has everything up to ``position``.

    ``is_confirmed`` says that the store is known to have used that revision. With a ``merge``, which it
    shares with others at the same page of the same snapshot, it is being sent that snapshot, or has been
    sent it and what follows has to be compared with it. ``page`` is the page that it is being sent, from
    message ``next_message`` on. ``unsent`` and ``progress_at`` tell whether a blocked one still reads.
    """

    __slots__ = (
        "is_confirmed",
        "merge",
        "next_message",
        "page",
        "position",
        "progress_at",
        "spec",
        "start",
        "stream",
        "unsent",
    )

    def __init__(self, stream: Stream, spec: StreamSpec, start: StreamStart) -> None:
        self.stream = stream
        self.spec = spec
        self.start = start
        self.position = Cursor(0, "")
        self.is_confirmed = True
        self.merge: SnapshotMerge | None = None
        self.page: Messages = NOTHING
        self.next_message = 0
        self.unsent = 0
        self.progress_at = 0.0

    @property
    def audience(self) -> Audience:
        """Equal for all that are sent the same."""
        return self.spec, self.merge

    @property
    def has_page(self) -> bool:
        """Whether there is more to send of the page of the snapshot that was read last."""
        return self.next_message < len(self.page)

    @property
    def needs_snapshot(self) -> bool:
        """Whether pages of a snapshot are to be read for it."""
        return self.start.snapshot and (self.merge is None or not self.merge.is_complete)

    def begin(self, start: StreamStart, here: Cursor) -> None:
        """Begin from ``start``, with the store at ``here``; forgets what it was sent before."""
        self.start, self.merge, self.page, self.next_message = start, None, NOTHING, 0
        since = start.since
        if not start.snapshot and since is not None:
            # the store may never have used this revision: the log has to confirm it
            self.position, self.is_confirmed = Cursor(since.revision, since.epoch or here.epoch), False
        else:
            self.position, self.is_confirmed = here, True
