"""The table of etcd's defects: which versions are warned of, and which are refused."""

from __future__ import annotations

import pytest

from kvstore_daemon.storage.etcd_store.versions import (
    DEFECTS,
    FLOOR,
    Defect,
    defects_of,
    parse,
    version_refusal,
    version_warning,
)


@pytest.mark.parametrize(
    ("version", "has", "has_not"),
    [
        ("3.4.23", "reads may be stale", "different data"),
        ("3.4.45", "users and roles", "reads may be stale"),
        ("3.5.16", "a part of a transaction", "lose events after a compaction"),
        ("3.5.28", "users and roles", "reads may be stale"),
        ("3.6.1", "before where it began", "a part of a transaction"),
        ("3.6.8", "reads may be stale", "before where it began"),
    ],
)
def test_a_defect_is_said_until_the_version_that_cures_it(version: str, has: str, has_not: str) -> None:
    warning = version_warning(version)
    assert warning is not None
    assert version in warning
    assert has in warning
    assert has_not not in warning


@pytest.mark.parametrize("version", ["3.5.33", "3.6.16", "3.7.2", "3.8.0", "4.0.0"])
def test_versions_without_known_defects_are_not_warned_of(version: str) -> None:
    assert version_warning(version) is None


def test_the_cure_is_of_the_same_line_where_there_is_one() -> None:
    stale = next(defect for defect in DEFECTS if "stale" in defect.words)
    assert [stale.cure(version) for version in ((3, 4, 23), (3, 5, 1), (3, 6, 0))] == [
        "3.4.42",
        "3.5.28",
        "3.6.9",
    ]
    bypass = next(defect for defect in DEFECTS if "users and roles" in defect.words)
    assert bypass.cure((3, 4, 45)) == "3.5.33"  # the line 3.4 ended without a cure


@pytest.mark.parametrize(
    ("version", "why"),
    [("3.3.27", "too old"), ("2.3.8", "too old"), ("3.5.0", "different data"), ("3.5.2", "different data")],
)
def test_versions_that_would_break_promises_are_refused(version: str, why: str) -> None:
    refusal = version_refusal(version)
    assert refusal is not None
    assert refusal.code == "unsupported_version"
    assert version in refusal.message
    assert why in refusal.message


@pytest.mark.parametrize("version", ["3.4.0", "3.4.23", "3.5.3", "3.6.0-rc.1", "3.7.2", "not a version", ""])
def test_all_others_are_used(version: str) -> None:
    assert version_refusal(version) is None


def test_what_follows_the_numbers_does_not_matter() -> None:
    assert parse("3.6.0-rc.3") == (3, 6, 0)
    assert parse("3.5.16+git") == (3, 5, 16)
    assert parse("three") is None


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: str(defect.words))
def test_the_table_is_in_order(defect: Defect) -> None:
    assert [*defect.fixed] == sorted(defect.fixed)
    lines = [fix[:2] for fix in defect.fixed]
    assert len(lines) == len(set(lines))


def test_no_defect_is_known_of_the_newest_line() -> None:
    assert not defects_of((99, 0, 0))
    assert min(defect.fixed[0] for defect in DEFECTS) > FLOOR
