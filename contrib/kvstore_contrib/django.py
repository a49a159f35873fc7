"""A cache of Django, whose entries are records below a prefix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from kvstore_client import Client, ConditionFailed, KvError, NotAnInteger, NotFound, Record, commands
from kvstore_contrib.addresses import BackendPlace, key_below, place_of
from kvstore_contrib.batches import run_all
from kvstore_contrib.values import dump, load

DEFAULT_PREFIX = "cache/"


class KvstoreCache(BaseCache):
    """A cache below the prefix that ``LOCATION`` names, ``cache/`` by default::

        CACHES = {
            "default": {
                "BACKEND": "kvstore_contrib.django.KvstoreCache",
                "LOCATION": "kvstore://127.0.0.1:5555/cache/",
            }
        }

    The methods are those of Django's caches.

    ``add``, ``incr`` and ``decr`` are atomic, and an ``incr`` leaves the end of the entry as it is. ``clear``
    removes what is below the prefix, whatever ``KEY_PREFIX`` and version it has, and nothing else.
    Integers are stored as text, all else is pickled (:mod:`kvstore_contrib.values`). Timeouts may be parts of
    a second. What the service refuses, or that it is away, is raised as ``kvstore_client.KvError``.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._location = location or "kvstore://127.0.0.1"

    @cached_property
    def _place(self) -> BackendPlace:
        return place_of(self._location, DEFAULT_PREFIX)

    @property
    def _client(self) -> Client:
        return self._place.client

    def _key(self, key: Any, version: int | None) -> str:
        return key_below(self._place.prefix, self.make_and_validate_key(key, version=version))

    def _ttl(self, timeout: Any) -> float | None:
        """Seconds; None for ever, and 0 for what is over already."""
        if timeout == DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return None if timeout is None else max(0, timeout)

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name, ttl = self._key(key, version), self._ttl(timeout)
        data, media_type = dump(value)
        if ttl == 0:
            return self._client.get(name, None) is None
        try:
            self._client.create(name, data, content_type=media_type, ttl=ttl)
        except ConditionFailed:
            return False
        return True

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        record: Record | None = self._client.get(self._key(key, version), None)
        return default if record is None else load(record)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self.set_many({key: value}, timeout, version)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name, ttl = self._key(key, version), self._ttl(timeout)
        try:
            if ttl is None:
                self._client.persist(name)
            elif ttl == 0:
                self._client.delete(name)
            else:
                self._client.touch(name, ttl)
        except NotFound:
            return False
        return True

    def delete(self, key: Any, version: int | None = None) -> bool:
        try:
            self._client.delete(self._key(key, version))
        except NotFound:
            return False
        return True

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self._client.get(self._key(key, version), None) is not None

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Raises ValueError where there is no such entry, and TypeError where it is not an integer."""
        name = self._key(key, version)
        counted = [commands.check(name, exists=True), commands.incr(name, delta)]
        try:
            return self._client.batch(counted, atomic=True)[1].value  # type: ignore[union-attr,no-any-return]
        except ConditionFailed:
            raise ValueError(f"Key {key!r} not found") from None
        except NotAnInteger as error:
            raise TypeError(f"the value of {key!r} is not an integer") from error

    def get_many(self, keys: Collection[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self._key(key, version): key for key in keys}
        found = self._client.get_many(list(names))
        return {names[name]: load(record) for name, record in found.items()}

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        ttl = self._ttl(timeout)
        if ttl == 0:
            self.delete_many(data, version)
            return []
        writes = []
        for key, value in data.items():
            raw, media_type = dump(value)
            writes.append(commands.put(self._key(key, version), raw, content_type=media_type, ttl=ttl))
        self._write(writes)
        return []

    def delete_many(self, keys: Collection[Any], version: int | None = None) -> None:
        self._write([commands.delete(self._key(key, version)) for key in keys])

    def _write(self, writes: list[commands.Command[Any]]) -> None:
        for result in run_all(self._client, writes):
            if isinstance(result, KvError) and not isinstance(result, NotFound):
                raise result

    def clear(self) -> None:
        self._client.delete_prefix(self._place.prefix)
