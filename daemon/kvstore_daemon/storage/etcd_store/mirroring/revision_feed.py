"""One watch over all keys of a store, as whole revisions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Self

from kvstore_daemon.storage.etcd_store import layout
from kvstore_daemon.storage.etcd_store.connection import api
from kvstore_daemon.storage.etcd_store.connection.cluster import Cluster, EtcdError
from kvstore_daemon.storage.etcd_store.layout import Names
from kvstore_daemon.storage.etcd_store.mirroring.revisions import Change, KeyValue, Revision

ASK_SECONDS = 1.0
"""A stream that says nothing for so long is asked how far it is. Left alone it would speak up every ten
minutes."""

SILENCE_SECONDS = 3.0
"""A member that does not answer for so long is given up. Its connection may look sound for much longer."""

PATIENT_SECONDS = 60.0
"""A member that has a long log to read for us first may be busy for so long, and answer nothing meanwhile.
Given up, it or the next one would only begin again; a dead connection is noticed without this.
"""

# what is taken together at most, but for a revision that is larger: one LMDB transaction for more would not
# be cheaper
_MOST_CHANGES = 1000
_MOST_BYTES = 16 << 20


class RevisionFeed:
    """The revisions after ``start`` from the present member, for one thread; those up to ``last`` are there
    already, and etcd is at ``now``. Raises EtcdError: ``compacted`` where they are not there any more, and
    ``too_large`` where they come in messages that are not taken whole: then they are to be asked for in
    ``fragments``. The revision ``start`` may come as well.

    etcd cuts a long message into fragments if it is asked to. Whatever it has added to one so far it measures
    anew with every event, so a catch-up of many small ones takes it a minute instead of a second: hence not
    always. A message may have several revisions, and a fragment may end within one. A revision is whole when
    a later one begins, or when a message ends that is the last of its fragments.
    """

    def __init__(
        self, cluster: Cluster, names: Names, start: int, last: int, now: int, *, fragments: bool = False
    ) -> None:
        self._stream = cluster.stream()
        self._last = last
        self._seen = start
        self._partial: Revision | None = None
        self._coming: Iterator[Revision] = iter(())
        self._asked_at: float | None = None
        self._waiting_since: float | None = None
        self.heard_at = time.monotonic()
        """When the member was last heard of, in the time of ``time.monotonic()``."""
        self.current_at: float | None = None
        """When it last had said all that it had to say, and that is handed out; None before."""
        request = api.WatchRequest()
        create = request.create_request
        create.key, create.range_end = names.all, layout.range_end(names.all)
        # of a watch that begins with a revision which is not there yet, some versions never say how far it is
        create.start_revision, create.fragment = min(start + 1, now), fragments
        self._stream.send(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the watch."""
        self._stream.close()

    @property
    def seen(self) -> int:
        """The last revision that was handed out."""
        return self._seen

    @property
    def is_behind(self) -> bool:
        """Whether what was there from the beginning is still coming."""
        return self._seen < self._last

    def wait_until_created(self) -> list[Revision]:
        """Wait for the member's first answer: raises EtcdError if it cannot give what was asked for. What
        came with it is returned, as :meth:`take` does."""
        asked_at = time.monotonic()
        # a member that reads a long log, for us or for another daemon, creates no watch meanwhile
        patience = PATIENT_SECONDS if self.is_behind else SILENCE_SECONDS
        while time.monotonic() - asked_at < patience:
            response = self._stream.next(ASK_SECONDS)
            if response is not None:
                return self._taken(response)
        raise self._stream.give_up(f"no watch within {patience:g} s")

    def take(self, timeout: float) -> list[Revision]:
        """The whole revisions that came, perhaps none within ``timeout`` seconds."""
        response = None
        found = self._taken(None)
        if not found:
            response = self._stream.next(timeout)
            found = self._taken(response)
        if found or response is not None:
            return found
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        if self.is_behind and now - self._waiting_since > PATIENT_SECONDS:
            raise self.give_up(f"nothing of what comes after revision {self._seen}")
        if self._asked_at is None:
            if now - self.heard_at > ASK_SECONDS:
                request = api.WatchRequest()
                request.progress_request.SetInParent()
                self._stream.send(request)
                self._asked_at = now
        elif now - self._asked_at > SILENCE_SECONDS and not self.is_behind:
            raise self.give_up(f"no word for {now - self.heard_at:.0f} s")
        return []

    def give_up(self, why: str) -> EtcdError:
        """Put the member aside; the error to raise."""
        return self._stream.give_up(why)

    def _taken(self, response: api.Message | None) -> list[Revision]:
        """The next whole revisions of the responses that are here, of which ``response`` is the last."""
        found: list[Revision] = []
        changes = size = 0
        is_all = False
        while not is_all:
            if response is not None:
                self._asked_at, self.heard_at = None, time.monotonic()
                self._coming = self._whole(response)
            for revision in self._coming:
                found.append(revision)
                changes += len(revision.changes)
                size += sum(len(change.kv.value) for change in revision.changes)
                if changes >= _MOST_CHANGES or size >= _MOST_BYTES:
                    break
            else:
                response = self._stream.next(0)
                is_all = response is None
                continue
            break
        if found:
            self._seen, self._waiting_since = found[-1].revision, None
        if is_all and self._partial is None and not self.is_behind:
            self.current_at = self.heard_at
        return found

    def _whole(self, response: api.Message) -> Iterator[Revision]:
        """The revisions that the response ends; its last one may be left to be ended by the next response."""
        partial, self._partial = self._partial, None
        for event in response.events:
            kv = event.kv
            number = kv.mod_revision
            if partial is None or partial.revision != number:
                if partial is not None:
                    yield partial
                partial = Revision(number, [])
            partial.changes.append(Change(event.type == 0, key_value(kv)))
        if partial is not None and response.fragment:
            self._partial = partial
        elif partial is not None:
            yield partial


def key_value(kv: api.Message) -> KeyValue:
    """etcd's message of a key, as we handle it."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision)
