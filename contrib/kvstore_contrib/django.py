"""A cache of Django, whose entries are records below a prefix."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from typing import Any, TypeVar

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from django.core.exceptions import ImproperlyConfigured

from kvstore_client import ConditionFailed, KvError, NotAnInteger, NotFound, Record, commands
from kvstore_contrib.addresses import key_below, place_of
from kvstore_contrib.batches import run_all
from kvstore_contrib.values import AWAY, NO_ROOM, dump, load
from kvstore_core.limits import MAX_TTL_SECONDS

DEFAULT_PREFIX = "cache/"

_LEAST_TTL_SECONDS = 0.001

_Method = TypeVar("_Method", bound=Callable[..., Any])

_log = logging.getLogger(__name__)


def _while_away(missed: Callable[[], Any]) -> Callable[[_Method], _Method]:
    """With ``ignore_unavailable`` the method returns what ``missed`` does while the service is away."""

    def decorate(method: _Method) -> _Method:
        @wraps(method)
        def ask(self: KvstoreCache, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except AWAY as error:
                if not self._ignores_unavailable:
                    raise
                _log.warning("the cache is passed over: %s", error)
                return missed()

        return ask  # type: ignore[return-value]

    return decorate


def _nothing() -> None:
    return None


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
    a second; none is shorter than a millisecond, or longer than 100 years.

    What is too large for the store, or finds no room in it, is not stored, nor does its key keep an old
    value, as by Django's backend for memcached: ``add`` returns False, and ``set_many`` the keys. In a full
    store ``touch`` returns False and ``incr`` finds no entry, with a warning in the log. What else
    the service refuses, or that it is away, is raised as ``kvstore_client.KvError``. With
    ``"OPTIONS": {"ignore_unavailable": True}`` a service that is away, or too busy, is a cache that has
    nothing and takes nothing, and each call that it missed is a warning in the log. Raises
    ImproperlyConfigured for another option, and for a malformed address.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        options = dict(params.get("OPTIONS") or {})
        self._ignores_unavailable = options.pop("ignore_unavailable", False)
        if options or not isinstance(self._ignores_unavailable, bool):
            raise ImproperlyConfigured(
                f"OPTIONS of KvstoreCache are ignore_unavailable, True or False; not {params['OPTIONS']!r}"
            )
        try:
            place = place_of(location or "kvstore://127.0.0.1", DEFAULT_PREFIX)
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"LOCATION of KvstoreCache: {error}") from error
        self._client = place.client
        self._prefix = place.prefix

    def _key(self, key: Any, version: int | None) -> str:
        return key_below(self._prefix, self.make_and_validate_key(key, version=version))

    def _ttl(self, timeout: Any) -> float | None:
        """Seconds; None for ever, and 0 for what is over already."""
        if timeout == DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        if timeout is None:
            return None
        return min(max(timeout, _LEAST_TTL_SECONDS), MAX_TTL_SECONDS) if timeout > 0 else 0

    @_while_away(_nothing)
    def _record(self, key: Any, version: int | None) -> Record | None:
        record: Record | None = self._client.get(self._key(key, version), None)
        return record

    @_while_away(bool)
    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        name, ttl = self._key(key, version), self._ttl(timeout)
        data, media_type = dump(value)
        if ttl == 0:
            return self._client.get(name, None) is None
        try:
            self._client.create(name, data, content_type=media_type, ttl=ttl)
        except (ConditionFailed, *NO_ROOM):
            return False
        return True

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        record = self._record(key, version)
        return default if record is None else load(record)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        self.set_many({key: value}, timeout, version)

    @_while_away(bool)
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
        except NO_ROOM as error:
            _log.warning("%r was not touched: %s", key, error)
            return False
        return True

    @_while_away(bool)
    def delete(self, key: Any, version: int | None = None) -> bool:
        try:
            self._client.delete(self._key(key, version))
        except NotFound:
            return False
        return True

    def has_key(self, key: Any, version: int | None = None) -> bool:
        return self._record(key, version) is not None

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Raises ValueError where there is no such entry, and TypeError where it is not an integer."""
        value = self._counted(key, delta, version)
        if value is None:
            raise ValueError(f"Key {key!r} not found")
        return value

    @_while_away(_nothing)
    def _counted(self, key: Any, delta: int, version: int | None) -> int | None:
        name = self._key(key, version)
        counted = [commands.check(name, exists=True), commands.incr(name, delta)]
        try:
            return self._client.batch(counted, atomic=True)[1].value  # type: ignore[union-attr,no-any-return]
        except ConditionFailed:
            return None
        except NO_ROOM as error:
            _log.warning("%r was not counted: %s", key, error)
            return None
        except NotAnInteger as error:
            raise TypeError(f"the value of {key!r} is not an integer") from error

    @_while_away(dict)
    def get_many(self, keys: Collection[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self._key(key, version): key for key in keys}
        found = self._client.get_many(list(names))
        return {names[name]: load(record) for name, record in found.items()}

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Returns the keys of what was not stored."""
        failed = self._set_all(data, timeout, version)
        return list(data) if failed is None else failed

    @_while_away(_nothing)
    def _set_all(self, data: Mapping[Any, Any], timeout: Any, version: int | None) -> list[Any] | None:
        ttl = self._ttl(timeout)
        if ttl == 0:
            self.delete_many(data, version)
            return []
        writes = []
        for key, value in data.items():
            raw, media_type = dump(value)
            writes.append(commands.put(self._key(key, version), raw, content_type=media_type, ttl=ttl))
        failed = []
        for key, result in zip(data, run_all(self._client, writes), strict=True):
            if isinstance(result, NO_ROOM):
                _log.warning("%r was not stored: %s", key, result)
                failed.append(key)
            elif isinstance(result, KvError):
                raise result
        self.delete_many(failed, version)  # an old value would be taken for the new one
        return failed

    @_while_away(_nothing)
    def delete_many(self, keys: Collection[Any], version: int | None = None) -> None:
        for result in run_all(self._client, [commands.delete(self._key(key, version)) for key in keys]):
            if isinstance(result, KvError) and not isinstance(result, NotFound):
                raise result

    @_while_away(_nothing)
    def clear(self) -> None:
        self._client.delete_prefix(self._prefix)
