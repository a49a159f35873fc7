"""The results of Celery's tasks, as records below a prefix."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from math import inf
from typing import Any

from celery import states
from celery.backends.base import KeyValueStoreBackend
from celery.exceptions import BackendStoreError
from kombu.utils.compat import detect_environment
from kombu.utils.encoding import bytes_to_str
from kombu.utils.functional import retry_over_time

from kvstore_client import KvError, NotFound, Subscription, Sync
from kvstore_contrib.addresses import key_below, place_of
from kvstore_contrib.values import AWAY, NO_ROOM

DEFAULT_PREFIX = "celery/"

_FEW = 100
"""Up to so many results are subscribed to one by one. For more all are, and those of others are left out."""

_INTERVAL = 0.5
"""How many seconds pass between two calls of ``on_interval``, where nobody says."""

_LEAST = 0.1
"""How many seconds a wait lets the service answer at least, also one of 0 seconds."""

_TOO_LATE = "The operation timed out."

_log = logging.getLogger(__name__)


class KvstoreBackend(KeyValueStoreBackend):
    """A result backend below the prefix of ``url``, ``celery/`` by default: ``task/ID`` has the result of a
    task, ``group/ID`` the members of a group, ``chord/ID`` how many parts of a chord are done::

        app.conf.result_backend = "kvstore://127.0.0.1:5555/celery/"

    Results have a time to live, ``result_expires`` or ``result_failure_expires``, and end by themselves. Who
    waits for results gets them by a subscription that lasts as long as the wait, so nothing of it is
    inherited by a forked process; under gevent and eventlet, where that would hold up all others, they are
    asked for every ``interval``. Every thread and process may use a backend.

    A result too large for the store, or for which it has no room, raises BackendStoreError. While the service
    is away, or too busy, a result is stored again as ``retry_policy`` in ``result_backend_transport_options``
    has it, 20 times by default, as by Celery's backend for Redis. What else the service refuses, or that it
    is away, is raised as ``kvstore_client.KvError``; with ``result_backend_always_retry`` what may pass by
    waiting is repeated, by a wait until its time is over.
    """

    key_t = bytes_to_str
    task_keyprefix = "task/"
    group_keyprefix = "group/"
    chord_keyprefix = "chord/"

    supports_autoexpire = True
    supports_native_join = True
    supports_result_compression = True
    supports_failure_expires = True
    implements_incr = True

    def __init__(self, app: Any, url: str | None = None, **options: Any) -> None:
        super().__init__(app, url=url, **options)
        failures = app.conf.get("result_failure_expires")
        self._failure_expires = self.expires if failures is None else self.prepare_expires(failures)
        self._place = place_of(url or "kvstore://127.0.0.1", DEFAULT_PREFIX)
        self._client = self._place.client

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url, "expires": self.expires})

    @property
    def _retry_policy(self) -> dict[str, Any]:
        options = self.app.conf.get("result_backend_transport_options") or {}
        return {**self.retry_policy, **options.get("retry_policy", {})}

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        return isinstance(exc, KvError) and exc.row.is_temporary

    # ── records ──────────────────────────────────────────────────────────────────────────────────

    def _key(self, key: str) -> str:
        return key_below(self._place.prefix, key)

    def get(self, key: str) -> bytes | None:
        record = self._client.get(self._key(key), None)
        return None if record is None else record.value

    def mget(self, keys: Iterable[str], timeout: float | None = None) -> list[bytes | None]:
        names = [self._key(key) for key in keys]
        found = self._client.get_many(names, timeout=timeout)
        return [found[name].value if name in found else None for name in names]

    def _store_result(self, *args: Any, **kwargs: Any) -> Any:
        # unlike the incr of a chord, of which nobody knows whether it was done, this may be done twice
        store = super()._store_result
        return retry_over_time(store, AWAY, args, kwargs, errback=_log_retry, **self._retry_policy)

    def set(self, key: str, value: bytes | str) -> None:
        self._put(key, value, self.expires)

    def _set_with_state(self, key: str, value: bytes | str, state: str) -> None:
        self._put(key, value, self._failure_expires if state == states.FAILURE else self.expires)

    def _put(self, key: str, value: bytes | str, seconds: float | None) -> None:
        media_type = None if self.compression else self.content_type
        try:
            self._client.put(self._key(key), value, content_type=media_type, ttl=seconds or None)
        except NO_ROOM as error:
            raise BackendStoreError(f"the result was not stored: {error}") from error

    def delete(self, key: str) -> None:
        with suppress(NotFound):
            self._client.delete(self._key(key))

    def expire(self, key: str, value: float | None) -> None:
        name = self._key(key)
        with suppress(NotFound):
            if value:
                self._client.touch(name, value)
            else:
                self._client.persist(name)

    def incr(self, key: str) -> int:
        return self._client.incr(self._key(key)).value

    def _apply_chord_incr(self, header_result_args: Any, body: Any, **kwargs: Any) -> Any:
        # from 0, since a chord applied again has its old id; and with an end, which an incr leaves as it is
        counter = self._key(self.get_key_for_chord(header_result_args[0]))
        self._client.put(counter, "0", ttl=self.chord_expires or None)
        return super()._apply_chord_incr(header_result_args, body, **kwargs)

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_interval: Any = None,
    ) -> Any:
        """The result of one task; raises Celery's TimeoutError after ``timeout`` seconds."""
        if _is_cooperative():
            return super().wait_for(task_id, timeout, interval or _INTERVAL, no_ack, on_interval)
        self._ensure_not_eager()
        if task_id in self._cache:
            return self._cache[task_id]
        results = self._results({task_id}, timeout, interval or _INTERVAL, on_interval)
        meta = next(meta for _, meta in results if meta["status"] in states.READY_STATES)
        if meta["status"] == states.SUCCESS:
            self._cache[task_id] = meta
        return meta

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: Collection[str] = states.READY_STATES,  # noqa: N803 # as in the class above
    ) -> Iterator[tuple[str, Any]]:
        """Each task and its result, as they come; raises Celery's TimeoutError after ``timeout`` seconds."""
        waiting = {bytes_to_str(task_id) for task_id in task_ids}
        if max_iterations or _is_cooperative():
            yield from super().get_many(
                waiting, timeout, interval, no_ack, on_message, on_interval, max_iterations, READY_STATES
            )
            return
        known = [(task_id, self._cache[task_id]) for task_id in waiting if task_id in self._cache]
        results = self._results(waiting, timeout, interval or _INTERVAL, on_interval)
        for task_id, meta in chain(known, results):
            if meta["status"] in READY_STATES:
                waiting.discard(task_id)
                self._cache[task_id] = meta
                if on_message is not None:
                    on_message(meta)
                yield task_id, meta

    def _results(
        self, waiting: Collection[str], timeout: float | None, interval: float, on_interval: Any
    ) -> Iterator[tuple[str, Any]]:
        """What the store has of these tasks, then what becomes of them, whatever their state; until
        ``waiting`` is empty."""
        deadline = inf if timeout is None else time.monotonic() + timeout
        yield from self._present(waiting, deadline) or ()
        if waiting:
            yield from self._coming(waiting, deadline, interval, on_interval)

    def _present(self, waiting: Collection[str], deadline: float) -> list[tuple[str, Any]] | None:
        """What the store has of these tasks; None if it is away, where that is to be waited for."""
        ids = list(waiting)
        left = max(_LEAST, min(self._place.timeout, deadline - time.monotonic()))
        try:
            values = self.mget((self.get_key_for_task(task_id) for task_id in ids), left)
        except KvError as error:
            if self.always_retry and self.exception_safe_to_retry(error):
                return None
            raise
        found = zip(ids, values, strict=True)
        return [(task_id, self.decode_result(value)) for task_id, value in found if value is not None]

    def _coming(
        self, waiting: Collection[str], deadline: float, interval: float, on_interval: Any
    ) -> Iterator[tuple[str, Any]]:
        """What becomes of these tasks, also what has since somebody looked."""
        unseen = False
        names = {self._key(self.get_key_for_task(task_id)): task_id for task_id in waiting}
        with self._subscribe(names) as subscription:
            while waiting:
                if on_interval:
                    on_interval()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self.TimeoutError(_TOO_LATE)
                item = subscription.next_batch(min(interval, left))
                if unseen or isinstance(item, Sync):  # from here on nothing is missed
                    found = self._present(waiting, deadline)
                    unseen = found is None
                    yield from found or ()
                if isinstance(item, list):
                    for event in item:
                        task_id = names.get(event.key, "")
                        if task_id in waiting and event.record is not None:
                            yield task_id, self.decode_result(event.record.value)

    def _subscribe(self, names: Collection[str]) -> Subscription:
        if len(names) <= _FEW:
            return self._place.subscribe(keys=names, ops=["put"])
        return self._place.subscribe(prefixes=[self._key(self.task_keyprefix)], ops=["put"])


def _log_retry(error: Exception, intervals: Iterator[float], retries: int) -> float:
    seconds = next(intervals)
    _log.error("the result was not stored, retry %d in %g s: %s", retries + 1, seconds, error)
    return seconds


def _is_cooperative() -> bool:
    """Whether greenlets share this thread, all of which a wait for ZeroMQ would hold up."""
    return bool(detect_environment() != "default")
