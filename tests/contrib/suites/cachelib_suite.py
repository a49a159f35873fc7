"""cachelib's own tests on kvstore, in the place of those that it runs on Redis."""

from __future__ import annotations

import os
import uuid

import pytest
from clear import ClearTests
from common import CommonTests
from delete_many_with_prefix import DeleteManyWithPrefixTests
from has import HasTests

from kvstore_contrib.cachelib import CachelibCache


@pytest.fixture(autouse=True)
def cache_factory(request, key_prefix):
    def factory(self, **options):
        options.setdefault("key_prefix", key_prefix)
        return CachelibCache(os.environ["KVSTORE_FOR_SUITE"].format(uuid.uuid4().hex), **options)

    request.cls.cache_factory = factory


@pytest.fixture
def full_cache():
    """A cache whose store is full, with an entry in it."""
    cache = CachelibCache(os.environ["FULL_FOR_SUITE"].format("full"))
    cache.clear()
    cache.set("there", 1)
    number = 0
    while cache.set(f"much/{number}", os.urandom(400_000)):
        number += 1
    return cache


class TestKvstore(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests):
    def test_inc_of_text_is_refused(self):
        from kvstore_client import NotAnInteger

        cache = self.cache_factory()
        cache.set("text", "bacon")
        with pytest.raises(NotAnInteger):
            cache.inc("text")

    def test_many_entries_go_in_as_many_requests_as_their_number_and_size_need(self):
        cache = self.cache_factory()
        few = {str(number): b"x" * 600_000 for number in range(30)}
        many = {str(number): number for number in range(30, 2_500)}
        assert cache.set_many({**few, **many}) == [*few, *many]
        assert cache.get_many("0", "29", "30", "2499") == [few["0"], few["29"], 30, 2499]
        assert cache.set_many({"new": 1, "large": b"x" * 2**21}) == ["new"]
        assert cache.delete_many(*few, *many, "none") == [*few, *many, "none"]
        assert cache.get_many("0", "2499", "new") == [None, None, 1]

    def test_a_value_that_is_too_large_is_not_stored(self):
        cache = self.cache_factory()
        assert cache.set("key", b"x" * 2**21) is False
        assert cache.add("key", b"x" * 2**21) is False
        assert cache.has("key") is False

    def test_a_full_store_takes_nothing_more_until_there_is_room(self, full_cache):
        value = os.urandom(400_000)
        assert full_cache.set("more", value) is False
        assert full_cache.add("more", value) is False
        assert full_cache.set_many({"more": value}) == []
        assert full_cache.get("there") == 1
        full_cache.clear()
        assert full_cache.set("more", value) is True
