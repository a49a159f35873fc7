"""Celery's own tests of backends that store keys and values, on kvstore."""

from __future__ import annotations

import logging
import os
import pickle
import threading
import uuid
from contextlib import ExitStack
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from celery import states
from celery.app.backends import by_url
from celery.exceptions import BackendStoreError
from celery.exceptions import TimeoutError as LateError
from t.unit.backends.test_base import test_KeyValueStoreBackend as KeyValueStoreTests

from kvstore_client import NotAllowed, Unavailable
from kvstore_contrib.celery import KvstoreBackend
from kvstore_contrib.testing.link import Link

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
        assert self.b.exception_safe_to_retry(Unavailable("unavailable", "away"))
        assert not self.b.exception_safe_to_retry(NotAllowed("not_allowed", "no"))
        assert not self.b.exception_safe_to_retry(ValueError())

    @pytest.fixture
    def link(self):
        before = set(threading.enumerate())
        link = Link(urlsplit(URL.format("")).port)
        yield link
        link.close()
        for thread in set(threading.enumerate()) - before:
            thread.join()

    def through(self, link):
        options = f"{urlsplit(URL).query}&timeout=0.2"
        return KvstoreBackend(app=self.app, url=f"kvstore://127.0.0.1:{link.port}/{self.place}?{options}")

    def test_a_result_is_stored_once_the_service_is_back(self, link, monkeypatch):
        self.b = self.through(link)
        said = []
        with ExitStack() as away:
            away.enter_context(link.stall())

            def come_back(*arguments):
                said.append(arguments[0] % arguments[1:])
                away.close()

            monkeypatch.setattr(logging.getLogger("kvstore_contrib.celery"), "error", come_back)
            self.b.mark_as_done("a", 5)
        assert "retry 1 in 0 s" in said[0]
        assert self.backend().get_result("a") == 5

    def test_who_stores_a_result_gives_up_as_the_policy_says(self, link):
        self.app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 1}}
        self.b = self.through(link)
        with link.stall(), pytest.raises(Unavailable):
            self.b.mark_as_done("a", 5)

    def test_a_wait_for_a_service_that_is_away_ends_after_its_time(self, link):
        self.app.conf.result_backend_always_retry = True
        self.b = self.through(link)
        with link.stall():
            for seconds in 0, 0.5:
                with pytest.raises(LateError):
                    self.b.wait_for("a", seconds)
                with pytest.raises(LateError):
                    list(self.b.get_many(["a", "b"], seconds))

    def test_a_wait_outlasts_a_service_that_is_away(self, link):
        self.app.conf.result_backend_always_retry = True
        self.b = self.through(link)
        self.backend().mark_as_done("a", 5)
        with ExitStack() as away:
            away.enter_context(link.stall())
            assert self.b.wait_for("a", 60, on_interval=away.close)["result"] == 5
