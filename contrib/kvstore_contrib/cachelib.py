"""A cache of cachelib, as Flask-Caching and Flask-Session take them, whose entries are records below a
prefix."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from cachelib.base import BaseCache

from kvstore_client import ConditionFailed, KvError, NotFound, Record, commands
from kvstore_contrib.addresses import key_below, place_of
from kvstore_contrib.batches import run_all
from kvstore_contrib.values import NO_ROOM, dump, load

DEFAULT_PREFIX = "cache/"


class CachelibCache(BaseCache):
    """A cache below the prefix of ``url``, ``cache/`` by default, and ``key_prefix`` behind it::

        cache = CachelibCache("kvstore://127.0.0.1:5555/cache/")

    The methods are those of cachelib. ``default_timeout`` is in seconds, 0 for no end.

    ``add``, ``inc`` and ``dec`` are atomic; ``clear`` removes what is below the prefix and nothing else.
    Integers are stored as text, all else is pickled (:mod:`kvstore_contrib.values`). What finds no room
    in the store, or is too large for it, is not stored: ``set`` and ``add`` return False, and ``inc`` None.
    What else the service refuses, or that it is away, is raised as ``kvstore_client.KvError``.
    """

    def __init__(
        self,
        url: str = "kvstore://127.0.0.1",
        default_timeout: Any = 300,
        key_prefix: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(default_timeout, **options)
        place = place_of(url, DEFAULT_PREFIX)
        self._client = place.client
        self._prefix = place.prefix + (key_prefix or "")

    def _key(self, key: str) -> str:
        return key_below(self._prefix, key)

    def _put(
        self, key: str, value: Any, timeout: Any, if_revision: int | None = None
    ) -> commands.Command[commands.Written]:
        seconds = self._normalize_timeout(timeout)
        data, media_type = dump(value)
        ttl = seconds or None  # 0 is for ever
        return commands.put(self._key(key), data, content_type=media_type, ttl=ttl, if_revision=if_revision)

    def get(self, key: str) -> Any:
        record: Record | None = self._client.get(self._key(key), None)
        return None if record is None else load(record)

    def get_many(self, *keys: str) -> list[Any]:
        names = [self._key(key) for key in keys]
        found = self._client.get_many(list(dict.fromkeys(names)))
        return [load(found[name]) if name in found else None for name in names]

    def set(self, key: str, value: Any, timeout: Any = None) -> bool:
        try:
            self._client.run(self._put(key, value, timeout))
        except NO_ROOM:
            return False
        return True

    def add(self, key: str, value: Any, timeout: Any = None) -> bool:
        try:
            self._client.run(self._put(key, value, timeout, if_revision=0))
        except (ConditionFailed, *NO_ROOM):
            return False
        return True

    def set_many(self, mapping: dict[str, Any], timeout: Any = None) -> list[str]:
        puts = (self._put(key, value, timeout) for key, value in mapping.items())
        stored = []
        for key, result in zip(mapping, run_all(self._client, puts), strict=True):
            if not isinstance(result, KvError):
                stored.append(key)
            elif not isinstance(result, NO_ROOM):
                raise result
        return stored

    def delete(self, key: str) -> bool:
        try:
            self._client.delete(self._key(key))
        except NotFound:
            return False
        return True

    def delete_many(self, *keys: str) -> list[str]:
        """Those of ``keys`` that are gone now. With ``ignore_delete_many_errors=False`` raises RuntimeError
        where there is one that the service does not delete."""
        deletes = (commands.delete(self._key(key)) for key in keys)
        gone = []
        for key, result in zip(keys, run_all(self._client, deletes), strict=True):
            if not isinstance(result, KvError) or isinstance(result, NotFound):
                gone.append(key)
            elif not self.ignore_delete_many_errors:
                raise RuntimeError(f"{key!r} was not deleted: {result}") from result
        return gone

    def has(self, key: str) -> bool:
        return self._client.get(self._key(key), None) is not None

    def clear(self) -> bool:
        self._client.delete_prefix(self._prefix)
        return True

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Raises ``not_an_integer`` where the entry is none. The end of an entry stays as it is; one that is
        new has the default timeout."""
        name = self._key(key)
        counted = [commands.check(name, exists=True), commands.incr(name, delta)]
        new = self._put(key, delta, None, if_revision=0)
        while True:
            try:
                with suppress(ConditionFailed):
                    return self._client.batch(counted, atomic=True)[1].value  # type: ignore[union-attr,no-any-return]
                with suppress(ConditionFailed):  # another has made it meanwhile
                    self._client.run(new)
                    return delta
            except NO_ROOM:
                return None

    def dec(self, key: str, delta: int = 1) -> int | None:
        return self.inc(key, -delta)
