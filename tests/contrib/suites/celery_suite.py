"""Celery's own tests of backends that store keys and values, on kvstore."""

from __future__ import annotations

import os
import pickle
import uuid
from datetime import timedelta

import pytest
from celery import states
from celery.app.backends import by_url
from celery.exceptions import BackendStoreError
from t.unit.backends.test_base import test_KeyValueStoreBackend as KeyValueStoreTests

from kvstore_contrib.celery import KvstoreBackend

URL = os.environ["KVSTORE_FOR_SUITE"]


class TestKvstore(KeyValueStoreTests):
    # what this backend does otherwise: it counts the parts of chords, names its keys, and never sleeps
    test_on_chord_part_return = test_chord_apply_fallback = None
    test_global_keyprefix_missing = None
    test_get_many__does_not_sleep_past_the_timeout = None
    test_get_many__ids_completing_on_the_deadline_is_not_a_timeout = None

    def backend(self, **options):
        return KvstoreBackend(app=self.app, url=URL.format(self.place), **options)

    def setup_method(self):
        self.place = uuid.uuid4().hex
        self.b = self.backend()

    @pytest.mark.parametrize("serializer", ["json", "pickle"])
    def test_store_result_parent_id(self, serializer):
        super().test_store_result_parent_id(serializer)

    def record(self, key):
        return self.b._client.get(f"{self.place}/{key}", None)

    def ends_in(self, key):
        record = self.record(key)
        return None if record.expires_at is None else round((record.expires_at - record.modified_at) / 1000)

    def test_it_is_found_by_its_scheme(self):
        assert by_url(self.b.url, self.app.loader) == (KvstoreBackend, self.b.url)
        assert self.b.as_uri() == self.b.url.partition("?")[0]
        with pytest.raises(ValueError, match="HTTP"):
            KvstoreBackend(app=self.app, url="http://127.0.0.1:5000")

    def test_a_result_is_a_record_that_anybody_can_read(self):
        self.b.mark_as_done("a", {"sum": 5})
        record = self.record("task/a")
        assert record.content_type == "application/json"
        assert '"sum": 5' in record.text

    @pytest.mark.parametrize(
        ("expires", "seconds"), [(timedelta(hours=1), 3600), (7, 7), (None, 86400), (0, None)]
    )
    def test_results_end_after_result_expires(self, expires, seconds):
        self.b = self.backend(expires=expires)
        self.b.mark_as_done("a", 1)
        assert self.ends_in("task/a") == seconds

    def test_failures_end_after_result_failure_expires(self):
        self.app.conf.result_failure_expires = 60
        self.b = self.backend()
        self.b.mark_as_failure("a", KeyError("a"))
        assert self.ends_in("task/a") == 60
        self.b.mark_as_done("b", 1)
        assert self.ends_in("task/b") == 86400

    def test_a_counter_of_parts_begins_at_0_again_and_ends_by_itself(self):
        key = self.b.get_key_for_chord("g")
        for _ in range(2):
            self.b.apply_chord(("g", [self.app.AsyncResult("a")]), None)
            assert [self.b.incr(key), self.b.incr(key)] == [1, 2]
            assert self.ends_in("chord/g") == self.ends_in("group/g") == 86400
        self.b.expire(key, 0)
        assert self.ends_in("chord/g") is None
        self.b.expire(self.b.get_key_for_task("none"), 5)
        self.b.delete(self.b.get_key_for_task("none"))

    @pytest.mark.parametrize("serializer", ["json", "pickle"])
    def test_compressed_results_come_back(self, serializer):
        self.app.conf.result_compression = "gzip"
        self.app.conf.accept_content = [serializer]
        self.b = self.backend(serializer=serializer)
        self.b.mark_as_done("a", ["a repetitive value"] * 200)
        assert len(self.record("task/a").value) < 1000
        assert self.backend(serializer=serializer).get_result("a") == ["a repetitive value"] * 200

    def test_a_result_too_large_for_the_store_is_an_error_of_celery(self):
        with pytest.raises(BackendStoreError, match="1048576"):
            self.b.store_result("a", "x" * 2**20, states.SUCCESS)
        assert self.b.get_state("a") == states.PENDING

    @pytest.mark.usefixtures("depends_on_current_app")
    def test_it_can_be_pickled(self):
        self.b.mark_as_done("a", 1)
        copy = pickle.loads(pickle.dumps(self.backend(expires=7)))  # noqa: S301 # its own
        assert copy.get_result("a") == 1
        assert copy.expires == 7

    def test_what_may_pass_by_waiting_is_repeated(self):
        from kvstore_client import NotAllowed, Unavailable

        assert self.b.exception_safe_to_retry(Unavailable("unavailable", "away"))
        assert not self.b.exception_safe_to_retry(NotAllowed("not_allowed", "no"))
        assert not self.b.exception_safe_to_retry(ValueError())
