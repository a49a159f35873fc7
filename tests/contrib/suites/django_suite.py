"""Django's own tests of caches on kvstore, as it runs them on its backend for Redis."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import pytest
from cache.tests import BaseCacheTests, caches_setting_for_tests
from django.core.cache import cache, caches
from django.core.exceptions import ImproperlyConfigured
from django.test import SimpleTestCase, override_settings

from kvstore_contrib.django import KvstoreCache
from kvstore_contrib.testing.link import Link
from kvstore_contrib.values import AWAY

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

    def test_an_entry_may_end_very_soon_or_very_late(self):
        for timeout in (1e-9, 10**15, float("inf")):
            cache.set("key", 1, timeout)
            assert cache.add("key", 1, timeout) in (True, False)
            cache.set("kept", 1)
            assert cache.touch("kept", timeout) is True
        assert cache.get("key") == 1

    def test_what_others_wrote_is_an_integer_where_it_is_one_as_the_store_counts(self):
        for value, found in [(b"-12", -12), (b"1_0", b"1_0"), (b" 1", b" 1"), (b"+1", b"+1"), (b"", b"")]:
            cache._client.put(cache._key("theirs", None), value)
            assert cache.get("theirs") == found
            assert type(cache.get("theirs")) is type(found)

    def test_a_full_store_is_done_without(self):
        full = KvstoreCache(os.environ["FULL_FOR_SUITE"].format("full"), {})
        full.clear()
        full.set("there", 1)
        number = 0
        while full.add(f"much/{number}", os.urandom(400_000)):
            number += 1
        assert full.touch("there", 100) is full.touch("there", None) is False
        with pytest.raises(ValueError, match="not found"):
            full.incr("there")
        assert full.get("there") == 1
        full.set("there", 2)
        assert full.get("there") is None
        full.clear()

    def test_many_entries_go_in_as_many_requests_as_they_need(self):
        entries = {str(number): number for number in range(2_500)}
        assert cache.set_many(entries) == []
        assert cache.get_many(entries) == entries
        cache.delete_many(entries)
        assert cache.get_many(entries) == {}

    def test_what_is_too_large_is_not_stored_and_leaves_no_old_value(self):
        large = "x" * 2**20
        cache.set("page", "old")
        cache.set("page", large)
        assert cache.get("page") is None
        cache.set("page", "old")
        assert cache.set_many({"small": 1, "page": large}) == ["page"]
        assert cache.get_many(["small", "page"]) == {"small": 1}
        assert cache.add("page", large) is False

    def test_a_service_that_is_away_can_be_passed_over(self):
        service = urlsplit(URL.format("django"))
        link = Link(service.port)
        self.addCleanup(link.close)
        location = f"kvstore://127.0.0.1:{link.port}{service.path}?{service.query}&timeout=0.2"
        away = KvstoreCache(location, {"OPTIONS": {"ignore_unavailable": True}})
        cache.set("a", 1)
        with link.stall():
            assert away.get("a", "none") == "none"
            assert away.get_many(["a"]) == {}
            assert not away.has_key("a")
            assert away.add("a", 1) is away.touch("a") is away.delete("a") is False
            away.set("a", 1)
            assert away.set_many({"a": 1}) == ["a"]
            with pytest.raises(ValueError, match="not found"):
                away.incr("a")
            away.delete_many(["a"])
            away.clear()
            with pytest.raises(AWAY):
                KvstoreCache(location, {}).get("a")
        assert away.get("b", "none") == "none"

    def test_what_is_wrong_in_the_settings_is_said_when_they_are_used_first(self):
        for location, options, said in [
            (["kvstore://a", "kvstore://b"], {}, "one text, not a list"),
            ("redis://127.0.0.1:6379", {}, "'redis://127.0.0.1:6379' is not .* kvstore://HOST"),
            ("kvstore://127.0.0.1/cache?color=red", {}, "color=red"),
            ("", {"MAX_ENTRIES": 3}, "ignore_unavailable.*MAX_ENTRIES"),
            ("", {"ignore_unavailable": "yes"}, "True or False"),
        ]:
            with pytest.raises(ImproperlyConfigured, match=said):
                KvstoreCache(location, {"OPTIONS": options})
