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
        return CachelibCache(f"{os.environ['KVSTORE_FOR_SUITE']}/{uuid.uuid4().hex}", **options)

    request.cls.cache_factory = factory


class TestKvstore(CommonTests, ClearTests, HasTests, DeleteManyWithPrefixTests):
    def test_inc_of_text_is_refused(self):
        from kvstore_client import NotAnInteger

        cache = self.cache_factory()
        cache.set("text", "bacon")
        with pytest.raises(NotAnInteger):
            cache.inc("text")
