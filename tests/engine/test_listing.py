"""Listing one level of keys, in either direction, and the revision of a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore_core.access.grants import prefix_end
from kvstore_daemon.storage.interface import MAX_COUNTED, Folding, RangePage, Retention, Write, WriteRequest
from kvstore_daemon.storage.lmdb_store import snapshot_reads
from kvstore_daemon.storage.lmdb_store.range_rows import RangeRows
from support.engine_store import LMDB, MIB, FakeClock, OpenStore, Store, lmdb_engine, opened
from support.lengths import examples

ATOMIC = 100


class Shown(NamedTuple):
    """One entry of a listing: a key, or a prefix with how many keys are below it."""

    name: bytes
    is_prefix: bool = False
    count: int | None = None


def expected(
    keys: set[bytes], start: bytes, end: bytes | None, folding: Folding | None, *, reverse: bool
) -> list[Shown]:
    """What a listing of ``keys`` must be."""
    counted: dict[bytes, int] = {}
    shown: list[Shown] = []
    for key in keys:
        if key < start or (end is not None and key >= end):
            continue
        prefix = None
        if folding is not None:
            before, found, _ = key[folding.after :].partition(folding.delimiter)
            prefix = key[: folding.after] + before + found if found else None
        if prefix is None:
            shown.append(Shown(key))
        else:
            counted[prefix] = counted.get(prefix, 0) + 1
    shown += [
        Shown(prefix, True, count if folding and folding.counts else None)
        for prefix, count in counted.items()
    ]
    return sorted(shown, reverse=reverse)


def entries(page: RangePage, *, reverse: bool) -> list[Shown]:
    """All that a page shows, in one order."""
    counts = page.counts or [None] * len(page.prefixes)
    folders = [Shown(name, True, count) for name, count in zip(page.prefixes, counts, strict=True)]
    items = [Shown(key) for key, _ in page.items]
    for part in (items, folders):
        assert part == sorted(part, reverse=reverse)
    return sorted([*items, *folders], reverse=reverse)


def pages(
    store: Store,
    start: bytes = b"",
    end: bytes | None = None,
    limit: int = 1000,
    *,
    folding: Folding | None = None,
    reverse: bool = False,
    max_bytes: int = MIB,
) -> Iterator[RangePage]:
    """All pages of a listing."""
    while end is None or start < end:
        page = store.engine.range(
            start, end, limit, values=True, max_bytes=max_bytes, folding=folding, reverse=reverse
        )
        yield page
        if page.next_key is None:
            return
        start, end = (start, page.next_key) if reverse else (page.next_key, end)


def listed(store: Store, prefix: bytes = b"", limit: int = 1000, **how: Any) -> list[Shown]:
    """What all pages of a prefix show, in their order."""
    reverse = how.get("reverse", False)
    found = pages(store, prefix, prefix_end(prefix), limit, **how)
    return [shown for page in found for shown in entries(page, reverse=reverse)]


def names(shown: list[Shown]) -> list[bytes]:
    return [each.name for each in shown]


def fill(store: Store, *keys: bytes, **how: Any) -> None:
    for at in range(0, len(keys), 1000):
        group = [Write("put", key, b"v", "t", **how) for key in keys[at : at + 1000]]
        store.submit(WriteRequest(group))


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[RangeRows]:
    """What was looked at for each call that was made: the real thing, remembered."""
    made: list[RangeRows] = []

    class Remembered(RangeRows):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            made.append(self)

    monkeypatch.setattr(snapshot_reads, "RangeRows", Remembered)
    return made


# ── what is shown ────────────────────────────────────────────────────────────────────────────────

SIXTEEN = "0123456789abcdef"

LEVELS: dict[str, tuple[str, str, str, str]] = {
    "one level": ("/", "app/", "app/a/1 app/a/2 app/b apple/c", "app/a/ app/b"),
    "the top": ("/", "", "a a/b b/c/d c/", "a a/ b/ c/"),
    "a prefix inside a name": ("/", "ap", "ap app/a apx apy/z/q b/c", "ap app/ apx apy/"),
    "the delimiter first": ("/", "", "/ // //a /b", "/"),
    "the delimiter twice": ("/", "a/", "a//b a//c a/d//e", "a// a/d/"),
    "several characters": ("::", "", "a::b a::c::d a:b b: c::", "a:: a:b b: c::"),
    "a prefix that ends inside": ("::", "a:", "a::b a:::c a:d a:e::f", "a::b a::: a:d a:e::"),
    "overlapping itself": ("aa", "", "aaa aab baa baaa ba", "aa ba baa"),
    "not ASCII": ("é", "", "caféine café cafe é éé", "cafe café é"),
    "four bytes": ("🔑", "x", "x🔑y x🔒y x🔑 🔑", "x🔑 x🔒y"),
    "sixteen bytes": (SIXTEEN, "", f"p{SIXTEEN}q p{SIXTEEN[1:]}q", f"p{SIXTEEN} p{SIXTEEN[1:]}q"),
    "control characters": ("\x01", "", "a\x01b a\x02b a\x7fc", "a\x01 a\x02b a\x7fc"),
    "none has it": ("|", "", "a/b c", "a/b c"),
}
"""By what each is of: the delimiter, the prefix, the keys, and what is shown of them."""


@pytest.mark.parametrize("level", LEVELS)
def test_one_level_is_shown(store: Store, level: str) -> None:
    delimiter, prefix, stored, shown = LEVELS[level]
    keys = stored.split(" ")
    fill(store, *(key.encode() for key in keys))
    folding = Folding(delimiter.encode(), len(prefix.encode()), counts=True)
    wanted = sorted(name.encode() for name in shown.split(" "))
    for limit in (1, 2, 1000):
        found = listed(store, prefix.encode(), limit, folding=folding)
        assert names(found) == wanted
        assert listed(store, prefix.encode(), limit, folding=folding, reverse=True) == found[::-1]
        below = [key.encode() for key in keys if key.startswith(prefix)]
        assert sum(each.count or 1 for each in found) == len(below)
        assert all(each.is_prefix == (each.count is not None) for each in found)


def test_the_longest_key_may_be_a_prefix_and_a_place_to_go_on(store: Store) -> None:
    longest = b"k" * 510 + b"/"
    fill(store, longest, b"k" * 511, b"l")
    assert names(listed(store, limit=1, folding=Folding(b"/"))) == [longest, b"k" * 511, b"l"]
    assert names(listed(store, limit=1, folding=Folding(b"/"), reverse=True)) == [b"l", b"k" * 511, longest]


def test_what_is_gone_makes_no_prefix(store: Store) -> None:
    fill(store, b"deleted/a", b"deleted/b", b"half/a", b"half/b", b"kept/a")
    fill(store, b"expired/a", b"half/c", b"half/0", ttl_ms=1000)
    store.write("delete_prefix", b"deleted/")
    store.write("delete", b"half/a")
    store.clock.now += 1000
    for reverse in (False, True):
        found = listed(store, folding=Folding(b"/", counts=True), reverse=reverse)
        assert sorted(found) == [Shown(b"half/", True, 1), Shown(b"kept/", True, 1)]
    store.expire_due()
    store.write("put", b"expired/a")
    assert names(listed(store, folding=Folding(b"/"))) == [b"expired/", b"half/", b"kept/"]


def test_a_range_cuts_what_is_counted(store: Store) -> None:
    fill(store, *(b"f/%d" % n for n in range(6)), b"g")
    folding = Folding(b"/", counts=True)
    for reverse in (False, True):
        (page,) = pages(store, b"f/2", b"f/5", folding=folding, reverse=reverse)
        assert (page.prefixes, page.counts) == ([b"f/"], [3])


def test_a_page_backwards_ends_at_its_bytes_but_holds_at_least_one(store: Store) -> None:
    for key in (b"a", b"b", b"c", b"d/e"):
        store.write("put", key, value=b"x" * 100)
    found = list(pages(store, max_bytes=150, reverse=True, folding=Folding(b"/")))
    assert [names(entries(page, reverse=True)) for page in found] == [[b"d/", b"c", b"b"], [b"a"]]
    one_each = pages(store, max_bytes=1, reverse=True)
    assert [[key for key, _ in page.items] for page in one_each] == [[b"d/e"], [b"c"], [b"b"], [b"a"]]


def test_the_last_ones_are_the_first_backwards(store: Store) -> None:
    fill(store, *(b"job/%03d" % n for n in range(300)), b"jobs")
    page = store.engine.range(b"job/", b"job0", 3, values=False, max_bytes=MIB, reverse=True)
    assert [key for key, _ in page.items] == [b"job/299", b"job/298", b"job/297"]
    assert page.next_key == b"job/297"


# ── what it takes ────────────────────────────────────────────────────────────────────────────────


def test_a_folder_takes_one_step_however_much_is_in_it(store: Store, looked: list[RangeRows]) -> None:
    fill(store, *(b"app/%d/%04d" % (folder, n) for folder in range(4) for n in range(500)), b"app/z")
    for reverse in (False, True):
        looked.clear()
        (page,) = pages(store, b"app/", b"app0", folding=Folding(b"/", 4), reverse=reverse)
        (rows,) = looked
        assert len(page.prefixes) == 4
        assert (rows.seeks, rows.looked_at) == (5, 5)


@pytest.mark.lmdb_only("a mirror has its rows from the same code")
def test_counts_end_where_many_are_and_where_the_page_has_looked_enough(
    store: Store, looked: list[RangeRows]
) -> None:
    fill(
        store, *(b"a/%04d" % n for n in range(MAX_COUNTED)), *(b"b/%04d" % n for n in range(3 * MAX_COUNTED))
    )
    fill(store, *(b"c%02d/%03d" % (folder, n) for folder in range(12) for n in range(800)), b"d/1")
    (page,) = pages(store, folding=Folding(b"/", counts=True))
    counts = dict(zip(page.prefixes, page.counts, strict=True))
    assert (counts.pop(b"a/"), counts.pop(b"b/")) == (MAX_COUNTED, None)
    told = [count for count in counts.values() if count is not None]
    assert len(told) < len(counts), "a page looks at so much and no more"
    assert set(told) <= {800, 1}
    assert looked[0].looked_at <= 10_000 + len(page.prefixes)


def test_what_has_expired_is_passed_in_pages(store: Store, looked: list[RangeRows]) -> None:
    fill(store, *(b"gone/%05d" % n for n in range(10_500)), ttl_ms=1000)
    fill(store, b"a/1", b"z/1")
    store.clock.now += 1000
    check_passed_in_pages(store, looked)


@pytest.mark.lmdb_only("a mirror has no rows of what is deleted")
def test_what_is_deleted_is_passed_in_pages(store: Store, looked: list[RangeRows]) -> None:
    fill(store, *(b"gone/%05d" % n for n in range(10_500)), b"a/1", b"z/1")
    while store.write("delete_prefix", b"gone/", limit=1000)["deleted"]:
        pass
    check_passed_in_pages(store, looked)
    looked.clear()
    start: bytes | None = b"a"
    total = 0
    while start is not None:
        page = store.engine.digest(start, b"zz")
        start, total = page.next_key, total + page.records
    assert total == 2
    assert all(rows.looked_at <= 10_001 for rows in looked)
    assert len(looked) > 1


def check_passed_in_pages(store: Store, looked: list[RangeRows]) -> None:
    """There are two keys, and 10,500 that are gone between them."""
    for folding, wanted in ((None, [b"a/1", b"z/1"]), (Folding(b"/"), [b"a/", b"z/"])):
        for reverse in (False, True):
            looked.clear()
            found = list(pages(store, limit=5, folding=folding, reverse=reverse))
            assert all(rows.looked_at <= 10_002 for rows in looked)
            shown = [name for page in found for name in names(entries(page, reverse=reverse))]
            assert shown == sorted(wanted, reverse=reverse)
            assert len(found) == 2
    looked.clear()
    assert store.engine.count(b"a", b"zz").total == 2
    assert all(rows.looked_at <= 20_001 for rows in looked)


@pytest.mark.lmdb_only("a mirror has its rows from the same code")
def test_a_count_is_bounded_however_many_keys_wait_to_be_removed(
    store: Store, looked: list[RangeRows]
) -> None:
    fill(store, *(b"gone/%05d" % n for n in range(20_100)), ttl_ms=1000)
    fill(store, b"a", b"gone/x", b"z")
    store.clock.now += 1000
    for start, end, total in ((b"", None, 3), (b"gone/", b"gone0", 1)):
        looked.clear()
        counted, place = 0, start
        while place is not None and (place or not looked):
            found = store.engine.count(place, end)
            counted, place = counted + found.total, found.next_key
        assert counted == total
        assert all(rows.looked_at <= 20_001 for rows in looked)


# ── against a plain model ────────────────────────────────────────────────────────────────────────

PARTS = st.sampled_from(["a", "b", "/", "//", ":", "::", "é", "🔑", "\x01", "~"])
NAMES = st.lists(PARTS, min_size=1, max_size=6).map(lambda parts: "".join(parts).encode())
BOUNDS = st.just(b"") | st.lists(PARTS, max_size=3).map(lambda parts: "".join(parts).encode())
CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "expiring", "delete", "later"]), NAMES), max_size=25
)


class Listing(NamedTuple):
    prefix: bytes
    start: bytes
    end: bytes
    delimiter: bytes | None
    counts: bool
    reverse: bool
    limit: int


LISTINGS = st.builds(
    Listing,
    BOUNDS,
    BOUNDS,
    BOUNDS,
    st.none() | st.sampled_from(["/", "//", "::", "é", "🔑", "a", "ab/"]).map(str.encode),
    st.booleans(),
    st.booleans(),
    st.integers(1, 6),
)


class ListingModel:
    """A store, and which keys must be in it until when."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ends: dict[bytes, int | None] = {}

    def clear(self) -> None:
        self.store.expire_due()
        while self.store.write("delete_prefix", b"", limit=1000)["deleted"]:
            pass
        self.ends.clear()

    def change(self, changes: list[tuple[str, bytes]]) -> None:
        for op, key in changes:
            if op == "later":
                self.store.clock.now += 3
            elif op == "delete":
                if key in self.live():
                    self.store.write("delete", key)
                self.ends.pop(key, None)
            else:
                ttl = 7 if op == "expiring" else None
                self.store.write("put", key, ttl_ms=ttl)
                self.ends[key] = None if ttl is None else self.store.clock.now + ttl

    def live(self) -> set[bytes]:
        now = self.store.clock.now
        return {key for key, end in self.ends.items() if end is None or end > now}


@pytest.fixture(scope="module", params=["journal", "checkpoints"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ListingModel]:
    """All of it in the journal; and with a journal that goes into LMDB every few writes."""
    kind = lmdb_engine(*([2000] if request.param == "checkpoints" else []))
    store = opened(tmp_path_factory.mktemp("model") / "data", FakeClock(), kind=kind, sync="none")
    yield ListingModel(store)
    faults = store.faults()
    store.engine.close()
    assert not faults


def asked(listing: Listing) -> tuple[bytes, bytes | None, Folding | None]:
    start, end = max(listing.prefix, listing.start), prefix_end(listing.prefix)
    if listing.end:
        end = listing.end if end is None else min(end, listing.end)
    if listing.delimiter is None:
        return start, end, None
    return start, end, Folding(listing.delimiter, len(listing.prefix), listing.counts)


@pytest.mark.slow
@settings(max_examples=examples(100))
@given(CHANGES, st.lists(LISTINGS, min_size=1, max_size=8))
def test_a_listing_is_what_the_keys_say(
    model: ListingModel, changes: list[tuple[str, bytes]], listings: list[Listing]
) -> None:
    model.clear()
    model.change(changes)
    for listing in listings:
        start, end, folding = asked(listing)
        found: list[Shown] = []
        for page in pages(model.store, start, end, listing.limit, folding=folding, reverse=listing.reverse):
            shown = entries(page, reverse=listing.reverse)
            assert 1 <= len(shown) <= listing.limit or page.next_key is None
            found += shown
        assert found == expected(model.live(), start, end, folding, reverse=listing.reverse)


@pytest.mark.slow
@settings(max_examples=examples(100))
@given(CHANGES, LISTINGS, st.lists(CHANGES, min_size=1, max_size=6))
def test_writes_between_pages_neither_repeat_nor_hide_what_stays(
    model: ListingModel,
    changes: list[tuple[str, bytes]],
    listing: Listing,
    between: list[list[tuple[str, bytes]]],
) -> None:
    model.clear()
    model.change(changes)
    start, end, folding = asked(listing)
    limit, reverse = min(listing.limit, 2), listing.reverse
    always, ever = model.live(), model.live()
    left = iter(between)
    found: list[Shown] = []
    for page in pages(model.store, start, end, limit, folding=folding, reverse=reverse):
        shown = entries(page, reverse=reverse)
        present = {each.name for each in expected(model.live(), start, end, folding, reverse=reverse)}
        assert {each.name for each in shown} <= present
        found += shown
        model.change(next(left, []))
        always &= model.live()
        ever |= model.live()
    in_order = names(found)
    assert in_order == sorted(set(in_order), reverse=reverse)
    stayed = {each.name for each in expected(always, start, end, folding, reverse=reverse)}
    assert stayed <= set(in_order)


# ── the revision of a time ───────────────────────────────────────────────────────────────────────


def test_a_time_is_that_of_the_last_revision_at_or_before_it(store: Store) -> None:
    times: list[tuple[int, int]] = []
    for _ in range(20):
        store.clock.now += 10
        result = store.write("put", b"k")
        times.append((store.clock.now, result["revision"]))
        if len(times) % 5 == 0:  # several at one time
            times.append((store.clock.now, store.write("put", b"l")["revision"]))
    floor, head = store.engine.position().floor, store.engine.position().head
    for time in range(times[0][0], times[-1][0] + 20, 3):
        revision, position = store.engine.revision_at(time)
        assert revision == max(at for moment, at in times if moment <= time)
        assert position.head == head
    first, _ = store.engine.revision_at(times[0][0] - 1)
    assert first == (None if floor else 0)


def test_where_times_run_backwards_a_later_revision_follows(store: Store) -> None:
    clock = store.clock
    known: list[tuple[int, int]] = []
    for step in (0, 50, -120, 7, -40, 300, -250, 0, 11, -3):
        clock.now += 10
        clock.step(step * 1000)
        if store.kind is LMDB:  # it knows by how much the clock was set
            known = [(time + step * 1000, revision) for time, revision in known]
        known.append((clock.now, store.write("put", b"k")["revision"]))
    floor = store.engine.position().floor
    times = {revision: time for time, revision in known}
    for time in {moment + more for moment, _ in known for more in (-1, 0, 1)}:
        revision, _ = store.engine.revision_at(time)
        found = floor if revision is None else revision
        assert found == floor or times[found] <= time
        following = min((each for each in times if each > found), default=None)
        assert following is None or times[following] > time


@pytest.mark.lmdb_only("the clocks of a cluster are not known to have been set")
def test_a_time_counts_by_how_long_ago_it_is_where_the_clock_was_set(store: Store) -> None:
    clock = store.clock
    revisions = []
    for step in (0, -3_600_000, 7_200_000, -60_000):
        clock.step(step)
        clock.now += 1000
        revisions.append(store.write("put", b"k")["revision"])
    for ago, revision in zip((3000, 2000, 1000, 0), revisions, strict=True):
        assert store.engine.revision_at(clock.now - ago)[0] == revision
        assert store.engine.revision_at(clock.now - ago - 1)[0] == revision - 1
    stamps = [event.time for event in store.log().events]
    assert stamps != sorted(stamps)


def test_before_the_log_begins_no_revision_is_known(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(5, 1 << 30, 86_400_000))
    times = []
    for _ in range(20):
        store.clock.now += 10
        store.write("put", b"k")
        times.append(store.clock.now)
    position = store.trim_until(lambda position: position.head - position.floor <= 5)
    kept = store.log(position.floor).events
    assert store.engine.revision_at(kept[0].time)[0] == kept[0].revision
    assert store.engine.revision_at(kept[0].time - 1)[0] is None
    assert store.engine.revision_at(times[0])[0] is None
    assert store.engine.revision_at(store.clock.now + 1)[0] == position.head


@pytest.mark.lmdb_only("in a cluster the newest event stays")
def test_where_nothing_is_kept_only_now_is_known(open_store: OpenStore) -> None:
    store = open_store(retention=Retention(1000, 1 << 30, 86_400_000))
    store.write("put", b"k")
    store.clock.now += 86_400_001
    store.submit(WriteRequest([Write("delete", b"none")]))
    position = store.trim_until(lambda position: position.head == position.floor)
    assert store.engine.revision_at(store.clock.now)[0] == position.head
    assert store.engine.revision_at(store.clock.now - 1)[0] is None
