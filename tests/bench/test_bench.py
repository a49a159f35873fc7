"""The benchmark's table, its documentation and what it makes of samples agree; nothing is measured."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kvstore_bench.before import Checkout, python_of
from kvstore_bench.comparison import comparison
from kvstore_bench.machine import Conditions
from kvstore_bench.registry import ROWS, Goal, Row, chosen
from kvstore_bench.report import (
    BEGIN,
    END,
    conditions,
    losses,
    markdown,
    readme_part,
    summary_table,
    with_part,
)
from kvstore_bench.results import Load, Results, Sample, rate
from kvstore_bench.stage import Stage
from kvstore_bench.summary import figures, ratios, verdict
from kvstore_bench.workload import LARGE, SMALL, EtcdHttp, KvstoreHttp, WebdisHttp, key, value
from support.markdown import ROOT, table_rows

RESULTS = ROOT / "benchmarks" / "results" / "results.json"
CONSTRAINTS = (ROOT / "benchmarks" / "constraints.txt").read_text()
README = (ROOT / "README.md").read_text()


def samples(case: str, unit: str, *, less_is_better: bool = False, **values: list[float]) -> list[Sample]:
    """Samples of one case, contender by contender."""
    return [
        Sample(case, contender, value, unit, less_is_better)
        for contender, each in values.items()
        for value in each
    ]


def a_row(_: Stage) -> Iterator[Sample]:
    return iter(())


def row(*goals: Goal) -> Row:
    return Row(a_row, "what", "something else", "twice", goals)


def results(*found: tuple[str, int, Sample]) -> Results:
    settings = {"began": "today", "quick": False, "rounds": 3, "seconds": 5, "largest": 10, "options": {}}
    return Results(settings, {"processor": "a fast one"}, {"etcd": "3.4"}, list(found))


# ── the table and its documentation ──────────────────────────────────────────────────────────────


def test_rows_have_names_that_make_can_pass_on() -> None:
    names = [each.name for each in ROWS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z_]+", name) for name in names)


@pytest.mark.parametrize("each", ROWS, ids=lambda each: each.name)
def test_every_row_has_a_goal_that_can_be_missed(each: Row) -> None:
    assert any(goal.at_least is not None for goal in each.goals)
    assert each.measure.__doc__


def test_the_documentation_has_the_rows_of_the_registry() -> None:
    documented = table_rows((ROOT / "benchmarks" / "README.md").read_text(), "What is measured")
    assert [name.strip("`") for name, _ in documented] == [each.name for each in ROWS]


def test_the_readme_shows_what_the_last_full_run_came_to() -> None:
    last = Results.load(RESULTS) if RESULTS.exists() else None
    assert with_part(README, readme_part(last)) == README


def test_the_readme_names_every_row_in_the_words_of_the_registry() -> None:
    part = README.partition(BEGIN)[2].partition(END)[0]
    for each in ROWS:
        assert each.what.replace("|", "\\|") in part
        assert each.against.replace("|", "\\|") in part


def test_rows_are_chosen_by_name_and_all_without_one() -> None:
    assert chosen("") == list(ROWS)
    assert [each.name for each in chosen("http_put, http_get")] == ["http_get", "http_put"]
    with pytest.raises(ValueError, match="no such row: nothing"):
        chosen("nothing")


# ── from samples to a verdict ────────────────────────────────────────────────────────────────────


def test_a_figure_is_the_median_of_its_rounds_with_the_extremes() -> None:
    (figure,) = figures(samples("gets", "/s", ours=[3, 1, 2]))
    assert (figure.median, figure.low, figure.high) == (2, 1, 3)


@pytest.mark.parametrize(
    ("less_is_better", "ratio"),
    [(False, 4.0), (True, 0.25)],
    ids=["more is better", "less is better"],
)
def test_a_ratio_above_one_says_that_ours_is_better(less_is_better: bool, ratio: float) -> None:
    found = figures(samples("a case", "x", less_is_better=less_is_better, ours=[8], theirs=[2]))
    assert [each.value for each in ratios(row(Goal("ours", "theirs", 1.0)), found)] == [ratio]


def test_the_best_of_several_that_fit_stands_for_them() -> None:
    found = figures(samples("a case", "/s", ours_a=[2], ours_b=[6], theirs_a=[1], theirs_b=[3]))
    (ratio,) = ratios(row(Goal("ours*", "theirs*", 1.0)), found)
    assert (ratio.ours, ratio.rival, ratio.value) == ("ours_b", "theirs_b", 2.0)


def test_a_goal_looks_at_its_own_cases() -> None:
    found = figures(
        [*samples("p50", "µs", ours=[1], theirs=[2]), *samples("memory", "MB", ours=[1], theirs=[9])]
    )
    assert [each.value for each in ratios(row(Goal("ours", "theirs", 1.0, "memory")), found)] == [1 / 9]


@pytest.mark.parametrize(
    ("goals", "said"),
    [
        ((Goal("ours", "theirs", 2.0),), "yes"),
        ((Goal("ours", "theirs", 2.1),), "no"),
        ((Goal("ours", "theirs", 2.0), Goal("ours", "theirs", None)), "yes"),
        ((Goal("ours", "theirs", 2.0), Goal("ours", "nobody", 1.0)), "not measured"),
    ],
    ids=["reached", "missed", "only stated", "a contender is missing"],
)
def test_a_row_is_met_when_every_goal_is_measured_and_reached(goals: tuple[Goal, ...], said: str) -> None:
    measured = row(*goals)
    assert verdict(measured, ratios(measured, figures(samples("gets", "/s", ours=[4], theirs=[2])))) == said


def test_a_rate_comes_with_cpu_for_a_thousand_operations_and_names_a_generator_at_its_limit() -> None:
    calm = rate("c", "ours", Load(2_000, seconds=2, server_cpu=3, load_cpu=1))
    assert (calm.value, calm.server_cpu, calm.load_cpu, calm.limit) == (1_000, 1.5, 0.5, "")
    busy = rate("c", "ours", Load(1, seconds=2, server_cpu=1, load_cpu=1.95), generator="wrk")
    assert busy.limit == "wrk"
    with pytest.raises(RuntimeError, match="did nothing"):
        rate("c", "ours", Load(0, seconds=2, server_cpu=1, load_cpu=1))


# ── what is shown ────────────────────────────────────────────────────────────────────────────────


def test_results_are_read_back_as_they_were_saved(tmp_path: Path) -> None:
    saved = results(("http_get", 0, Sample("a case", "kvstore", 5.0, "/s", server_cpu=0.25, load_cpu=0.5)))
    saved.conditions["http_get"] = Conditions(0.5, 0.0, 900)
    saved.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == saved


def test_the_report_shows_figures_ratios_and_failures() -> None:
    found = results(
        *((("a_row", 0, sample)) for sample in samples("gets", "requests/s", ours=[4_000], theirs=[2_000]))
    )
    found.failures["a_row"] = "it fell over"
    report = markdown(found, [row(Goal("ours", "theirs", 1.5))])
    assert "| what | something else | twice | 2.00 | yes |" in report
    assert "| gets | ours | 4,000 requests/s |" in report
    assert "| gets | ours | theirs | 2.00 | 1.5 | yes |" in report
    assert "it fell over" in report


@pytest.mark.parametrize(
    ("seen", "is_quiet"),
    [
        ([Conditions(0.01, 0.0, 900), Conditions(0.02, 0.01, 950)], True),
        ([Conditions(0.5, 0.0, 900)], False),
        ([Conditions(0.0, 0.5, 900)], False),
        ([Conditions(0.0, 0.0, 900), Conditions(0.0, 0.0, 1_800)], False),
    ],
    ids=["quiet", "other programs", "another guest", "a slower core"],
)
def test_a_run_on_a_machine_that_was_not_quiet_says_so(seen: list[Conditions], is_quiet: bool) -> None:
    run = results()
    run.conditions = {str(number): each for number, each in enumerate(seen)}
    assert ("no quiet machine" not in conditions(run)) is is_quiet


def test_where_we_lose_is_said_of_aims_and_of_what_is_only_stated() -> None:
    measured = row(
        Goal("ours", "missed", 2.0),
        Goal("ours", "faster", None, label="it"),
        Goal("ours", "slower", None, label="that"),
    )
    found = samples("gets", "/s", ours=[4], missed=[3], faster=[8], slower=[1])
    said = losses(results(*(("a_row", 0, sample) for sample in found)), [measured])
    assert said.splitlines() == [
        "- what: 1.33, where the aim is twice",
        "- what, against it: 0.50",
    ]


def test_a_row_without_figures_is_said_not_to_have_run() -> None:
    assert "not run" in summary_table(results(), [row(Goal("ours", "theirs", 1.5))])


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    text = summary_table(None, [row()._replace(what="a | b")])
    assert text.splitlines()[-1] == "| a \\| b | something else | twice |"


def test_the_readme_keeps_everything_around_its_part() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_part(text, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    with pytest.raises(ValueError, match="the README has no"):
        with_part("nothing", "new")


# ── before and after ─────────────────────────────────────────────────────────────────────────────


def test_two_checkouts_are_shown_side_by_side() -> None:
    before, after = (
        results(
            ("a_row", 0, Sample("gets", "ours", ours, "/s", server_cpu=cpu)),
            ("a_row", 0, Sample("gets", "theirs", 100, "/s")),
            ("a_row", 0, Sample("wait", "ours", wait, "µs", less_is_better=True)),
        )
        for ours, cpu, wait in ((50, 0.4, 30), (150, 0.1, 20))
    )
    before.settings, before.versions["kvstore"], after.versions["kvstore"] = {"checkout": "/old"}, "1", "2"
    before.failures["a_row"] = "it fell over"
    shown = comparison(before, after, [row(Goal("ours", "theirs", 1.25, label="them"))])
    assert "Before: /old, 1; after: this checkout, 2; 3 rounds" in shown
    assert "| a_row | gets | them | 0.50 | 1.50 | 1.25 | yes |" in shown
    assert "| a_row | gets | ours | 50 /s | 150 /s | 3.00 | 400 µs | 100 µs | 4.00 |" in shown
    assert "| a_row | wait | ours | 30 µs | 20 µs | 1.50 |  |  |  |" in shown
    assert "a_row failed before:\n```\nit fell over" in shown


def test_another_checkout_is_asked_round_by_round_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / "old" / ".venv"
    venv.parent.mkdir()
    venv.symlink_to(sys.prefix)
    stage = Stage(tmp_path, quick=True, seconds=1, largest=10)
    monkeypatch.setenv("PATH", str(tmp_path))  # where no program is
    with Checkout.started(venv.parent, stage, tmp_path / "before.json") as checkout:
        with pytest.raises(RuntimeError, match=r"(?s)/old:\n.*No such file or directory: 'etcd'"):
            list(checkout.samples("http_get", 1))
        assert list(checkout.samples("cluster_memory", 1)) == [], "it is only measured in the first round"
        checkout.save()
    saved = Results.load(tmp_path / "before.json")
    assert saved.settings["checkout"] == str(venv.parent)
    assert re.match(r"\d", saved.versions["kvstore"])


def test_a_checkout_without_an_environment_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \.venv: run 'make bench"):
        python_of(tmp_path)


# ── the work ─────────────────────────────────────────────────────────────────────────────────────


def test_keys_have_16_bytes_and_values_what_they_are_called() -> None:
    assert {len(key(number)) for number in (0, 9_999_999)} == {16}
    assert (len(value(SMALL)), len(value(LARGE))) == (100, 10_000)


@pytest.mark.parametrize("routes", [KvstoreHttp, EtcdHttp, WebdisHttp])
def test_prepared_requests_say_how_long_they_are(routes: type) -> None:
    for request in (routes.get(key(1)), routes.put(key(1), value(SMALL))):  # type: ignore[attr-defined]
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert (int(length[1]) if length else 0) == len(body)


def test_each_round_begins_with_another_contender(tmp_path: Path) -> None:
    stage = Stage(tmp_path, quick=True, seconds=1, largest=10)
    orders = []
    for stage.round in range(3):
        orders.append(stage.turns(("a", "b", "c")))
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


def test_a_kept_folder_is_filled_once_a_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path, quick=True, seconds=1, largest=10)
    calls: list[Path] = []
    for _ in range(2):
        folder, made = stage.keep("store", lambda folder: calls.append(folder) or 7)  # type: ignore[func-returns-value]
    assert (calls, folder, made) == ([tmp_path / "store"], tmp_path / "store", 7)


# ── what it installs ─────────────────────────────────────────────────────────────────────────────


def test_its_constraints_hold_versions_and_hashes_and_no_address() -> None:
    for line in CONSTRAINTS.splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9.-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


def test_its_constraints_satisfy_what_it_asks_for_and_fit_to_those_of_the_project() -> None:
    pinned, base = (
        dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))
        for text in (CONSTRAINTS, (ROOT / "constraints.txt").read_text())
    )
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    for requirement in map(Requirement, groups["bench"]):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
    assert {name: base[name] for name in pinned.keys() & base.keys()} == {
        name: pinned[name] for name in pinned.keys() & base.keys()
    }
