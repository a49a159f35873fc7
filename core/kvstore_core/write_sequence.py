"""The numbers under which writes are sent, so that none is applied twice."""

from __future__ import annotations

from typing import Any


class WriteSequence:
    """The requests that write of one ``client``, numbered from 1 on (protocol section 6).

    The daemon remembers the last reply for each client id, so only one request at a time may be under way.
    A number is used for one request only, whatever becomes of it: if a copy of a write whose outcome is
    unknown arrives after the next write, the daemon refuses it for its lower number.
    """

    __slots__ = ("_seq", "client")

    def __init__(self, client: str) -> None:
        self.client = client
        self._seq = 0

    def next(self) -> dict[str, Any]:
        """What to call :func:`kvstore_core.wire.encode_request` with for the next request."""
        self._seq += 1
        return {"client": self.client, "seq": self._seq}
