"""Django's own tests of caches on kvstore, as it runs them on its backend for Redis."""

from __future__ import annotations

import os

from cache.tests import BaseCacheTests, caches_setting_for_tests
from django.core.cache import cache, caches
from django.test import SimpleTestCase, override_settings

URL = os.environ["KVSTORE_FOR_SUITE"]
PLACE = {"BACKEND": "kvstore_contrib.django.KvstoreCache", "LOCATION": URL.format("django")}
# the backends that bound a cache by the number of its entries; here the service does, by bytes
EXCLUDED = {"cull", "zero_cull"}


@override_settings(CACHES=caches_setting_for_tests(base=PLACE, exclude=EXCLUDED))
class KvstoreCacheTests(BaseCacheTests, SimpleTestCase):
    databases = "__all__"

    incr_decr_type_error = TypeError

    def test_clear_leaves_what_is_outside_of_the_prefix(self):
        with self.settings(CACHES={**caches.settings, "other": {**PLACE, "LOCATION": URL.format("other")}}):
            other = caches["other"]
            other.set("key", 1)
            cache.clear()
            assert other.get("key") == 1

    def test_an_incr_leaves_the_end_of_an_entry(self):
        cache.set("number", 1, timeout=1000)
        cache.incr("number")
        record = cache._client.get(cache._key("number", None))
        assert record.expires_at is not None

    def test_many_entries_go_in_as_many_requests_as_they_need(self):
        entries = {str(number): number for number in range(2_500)}
        assert cache.set_many(entries) == []
        assert cache.get_many(entries) == entries
        cache.delete_many(entries)
        assert cache.get_many(entries) == {}
