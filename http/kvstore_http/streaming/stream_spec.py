"""What a client asks of a stream: which events, how they are written, and from where on."""

from __future__ import annotations

from typing import NamedTuple

from kvstore_core.filters import Filter
from kvstore_core.model import Cursor
from kvstore_http.streaming.event_format import Format


class StreamSpec(NamedTuple):
    """What a stream is sent, and how. Streams with equal specs are sent the same bytes.

    ``wanted`` is normalized (:meth:`kvstore_core.filters.Filter.normalized`); with ``previous``
    events carry what they replaced.
    """

    wanted: Filter
    form: Format
    previous: bool


class StreamStart(NamedTuple):
    """Where a stream begins: after ``since`` (in the present epoch if it names none), with a snapshot of the
    present records, or, with neither, at the present.

    ``reset_reason`` says why the continuation that the client expected does not exist; ``floor`` is the
    oldest revision from which one would have.
    """

    since: Cursor | None
    snapshot: bool = False
    reset_reason: str | None = None
    floor: int = 0
