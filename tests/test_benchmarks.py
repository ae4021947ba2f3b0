"""The benchmarks measure what they say: statistics, goals and report on known data, and every case on ours."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as command
from benchmarks import counts, figures, goals, report
from benchmarks.cases import all_cases, churn, scaling
from benchmarks.harness import Case, Contender, Metric, Plan, Result, Row, measure
from benchmarks.peers import LIMIT, OURS, PEER, Missing, load

if TYPE_CHECKING:
    from collections.abc import Iterator

COST = [{"name": "cost", "unit": "ns", "what": "time per item"}]
PEERS = ("pyee", "blinker", "bubus", "psygnal", "pypubsub")


def result(name: str = "thread-to-thread-1", **costs: list[float]) -> Result:
    """A case's result: ``ours`` and peers by name (an underscore is a dot)."""
    rows = [
        Row(each.replace("_", "."), OURS if each == "ours" else PEER, "much", samples={"cost": samples})
        for each, samples in costs.items()
    ]
    return Result(name, "A <case> & more", COST, rows, "A note.")


ENVIRONMENT: dict[str, Any] = {
    "python": "CPython",
    "machine": "a machine",
    "cores": 2,
    "rounds": 7,
    "when": "today",
    "load": "0 and 1",
    "arguments": "",
    "versions": {"eventbus": "1"},
}


# Figures


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert figures.spread([5, 1, 3, 2, 4]) == figures.Spread(3, 2, 4)
    assert figures.spread([7.0]) == figures.Spread(7, 7, 7)
    with pytest.raises(ValueError, match="no samples"):
        figures.spread([])


def test_a_ratio_pairs_the_samples_of_one_round() -> None:
    """Rounds that are ten times slower for both leave it as it is."""
    found = figures.ratio([20, 200, 2000], [10, 100, 1000])
    assert found == figures.Spread(2, 2, 2)
    assert figures.ratio([1, 2], [0, 0]) is None


def test_a_percentile_is_a_sample() -> None:
    samples = list(range(100))
    assert figures.percentile(samples, 0.5) == 50
    assert figures.percentile(samples, 0.99) == 99
    assert figures.percentile([3], 0.99) == 3


# Harness


def fake(name: str, kind: str, log: list[str], cost: float) -> Contender:
    @contextmanager
    def opened() -> Iterator[Any]:
        log.append(f"{name} opens")

        def sample(n: int) -> dict[str, float]:
            log.append(name)
            if cost < 0:
                raise RuntimeError("broken")
            return {"cost": cost * n}

        yield sample
        log.append(f"{name} closes")

    return Contender(name, kind, opened, "much", share=0.5 if kind == PEER else 1.0)


def test_rounds_are_interleaved_and_begin_with_another_one_each_time() -> None:
    log: list[str] = []
    found = measure(
        Case("a", "A", lambda: [fake("x", OURS, log, 1), fake("y", PEER, log, 4)], 10), Plan(rounds=3), log.append
    )
    assert [each for each in log if each in "xy"] == ["x", "y", "y", "x", "x", "y"]
    assert log[:2] == ["x opens", "y opens"]
    assert log[-2:] == ["y closes", "x closes"]
    ours, peer = found.rows
    assert (ours.n, peer.n) == (10, 5)
    assert ours.samples == {"cost": [10, 10, 10]}
    times = found.times_ours(peer, "cost")
    assert times is not None
    assert times.median == 2


def test_one_that_is_missing_or_fails_is_a_row_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    log: list[str] = []
    case = Case("a", "A", lambda: [fake("x", OURS, log, 1), Missing("gone", "not here"), fake("y", PEER, log, -1)], 10)
    found = measure(case, Plan(rounds=2))
    ours, gone, broken = found.rows
    assert ours.samples["cost"] == [10, 10]
    assert gone.missing == "not here"
    assert broken.failed == "RuntimeError: broken"
    assert not broken.samples
    assert log.count("y") == 1
    assert "broken" in capsys.readouterr().err
    text = report.terminal(found)
    assert "gone: missing: not here" in text
    assert "y: failed: RuntimeError: broken" in text


def test_quick_does_less_and_rounds_may_be_bounded() -> None:
    log: list[str] = []
    case = Case("a", "A", lambda: [fake("x", OURS, log, 1)], 100, rounds=1, quick=0.1)
    row = measure(case, Plan(rounds=7, quick=True)).rows[0]
    assert (row.n, len(row.samples["cost"])) == (10, 1)


# Goals


def verdict(goal: goals.Goal, *results: Result) -> goals.Verdict:
    return goals.judge((goal,), {each.name: each for each in results})[0]


@pytest.mark.parametrize(
    ("theirs", "expected"), [(700, goals.NOT_MET), (800, goals.MET), (999, goals.MET), (1000, goals.AIM)]
)
def test_a_goal_with_an_aim_is_judged_by_the_median_ratio(theirs: float, expected: str) -> None:
    goal = goals.Goal("", goals.faster_than("a", "pool"), 8, True, 10)
    found = verdict(goal, result("a", ours=[100, 100, 100], pool=[theirs, theirs, 1e6]))
    assert found.verdict == expected
    assert found.measured is not None
    assert found.measured.median == theirs / 100


def test_the_fastest_peer_counts() -> None:
    goal = goals.Goal("", goals.faster_than_peers("a"), 1, True)
    found = verdict(goal, result("a", ours=[100], slow=[900], quick=[90]))
    assert (found.verdict, found.against) == (goals.NOT_MET, "quick")


def test_limits_from_above_and_between_cases() -> None:
    goal = goals.Goal("", goals.between("many", "one"), 1.3, False)
    assert verdict(goal, result("one", ours=[10]), result("many", ours=[13])).verdict == goals.MET
    assert verdict(goal, result("one", ours=[10]), result("many", ours=[14])).verdict == goals.NOT_MET
    assert verdict(goals.Goal("", goals.value("a"), 0, False), result("a", ours=[0])).verdict == goals.MET
    assert (
        verdict(goals.Goal("", goals.slower_than("a", "q"), 2, False), result("a", ours=[4], q=[2])).verdict
        == goals.MET
    )
    less = verdict(goals.Goal("", goals.above("a", "floor", "cost"), 1, False), result("a", ours=[5, 7], floor=[5, 5]))
    assert less.measured is not None
    assert less.measured.median == 1


def test_what_was_not_measured_is_not_met_in_silence() -> None:
    goal = goals.Goal("", goals.faster_than("a", "pool"), 8, True)
    assert verdict(goal).verdict == goals.NOT_MEASURED
    assert verdict(goal, result("a", ours=[1])).verdict == goals.NOT_MEASURED
    assert verdict(goal, result("a", pool=[1])).verdict == goals.NOT_MEASURED


@pytest.mark.usefixtures("ours_alone")
def test_every_goal_reads_a_case_and_a_contender_that_exist() -> None:
    """All goals are measured once every case has given something: no name in the goals is misspelt."""
    results: dict[str, Result] = {}
    for case in all_cases():
        if case.name in ("import", "at-rest"):
            names = {"import": ["import eventbus", "its standard-library imports"], "at-rest": ["eventbus"]}[case.name]
            rows = [Row(name, OURS if "eventbus" in name else LIMIT) for name in (*names, "eventbus_async")]
        else:
            found = [each for each in case.contenders() if isinstance(each, Contender)]
            rows = [Row(each.name, each.kind) for each in found]
            if case.name == "on-loop":
                rows.append(Row("bubus", PEER))  # the only goal against a peer that must be installed
            if case.name.startswith("inline"):
                rows.append(Row("some peer", PEER))
        for row in rows:
            row.samples = {metric.name: [1.0] for metric in case.metrics}
        results[case.name] = Result(case.name, case.title, [], rows)
    assert {each.text for each in goals.judge(goals.GOALS, results) if each.verdict == goals.NOT_MEASURED} == set()


# Report


def test_the_report_survives_json() -> None:
    results = [result(ours=[100, 110, 120], pool=[1000, 1100, 1200])]
    document = json.loads(json.dumps(report.as_document(results, ENVIRONMENT)))
    assert document["cases"][0]["rows"][1]["times_ours"]["cost"]["median"] == 10
    assert document["cases"][0]["rows"][0]["spread"]["cost"] == {"median": 110, "low": 105, "high": 115}
    again = report.from_document(document)
    assert again == results


def test_markdown_shows_figures_ratios_and_what_a_peer_does_not_promise() -> None:
    text = report.markdown([result(ours=[100, 110, 120], pool=[1000, 1100, 1200])], ENVIRONMENT)
    assert "| pool | 1,100 (1,050–1,150) | 10.0 | much |" in text
    assert "| ours | 110 (105–115) | 1 | much |" in text
    assert "thread-to-thread-1.svg" in text


def test_a_plot_is_well_formed_and_its_bars_are_as_long_as_the_figures_say() -> None:
    svg = report.plot(result(ours=[100], pool=[400], other=[200]))
    tree = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    bars = [float(each.attrib["width"]) for each in tree.iter(f"{space}rect") if "x" in each.attrib]
    assert bars[1] / bars[0] == pytest.approx(2, rel=0.01)
    assert bars[2] / bars[0] == pytest.approx(4, rel=0.01)
    texts = [each.text for each in tree.iter(f"{space}text")]
    assert texts[0] == "A <case> & more"
    assert "400" in texts
    assert min(float(each.attrib["font-size"]) for each in tree.iter(f"{space}text")) >= 22
    assert "logarithmic" not in svg


def test_a_plot_with_far_figures_says_that_it_is_logarithmic() -> None:
    assert "logarithmic" in report.plot(result(ours=[100], pool=[100_000]))


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0, "0"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234"), (-2.5, "-2.50")],
)
def test_numbers_have_three_digits_that_matter(figure: float, text: str) -> None:
    assert report.number(figure) == text


def test_files_are_written_and_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "verdicts", list)
    written = report.write(tmp_path, [result(ours=[100], pool=[400])], ENVIRONMENT)
    assert {each.name for each in written} == {"results.json", "results.md", "thread-to-thread-1.svg"}
    before = (tmp_path / "results.md").read_text(encoding="utf-8")
    (tmp_path / "results.md").unlink()
    assert command.main(["report", "--json", str(tmp_path / "results.json")]) == 0
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == before


# Counts


def test_a_callgrind_file_is_read() -> None:
    text = (
        "fn=(1) main\ncalls=0 0\ncfn=(2) _PyObject_Malloc\ncalls=3 10\ncfn=(2)\ncalls=4 11\ncfn=(3) other\ncalls=9 1\n"
    )
    assert counts.read_callgrind(f"{text}summary: 500\n") == {"instructions": 500, "allocations": 7}
    with pytest.raises(ValueError, match="no totals"):
        counts.read_callgrind(text)


def test_one_event_is_the_difference_by_n() -> None:
    assert counts.difference({"instructions": 1000}, {"instructions": 1500, "locks": 1}, 10) == {"instructions": 50}


def test_the_readme_has_room_for_the_tables(tmp_path: Path) -> None:
    readme = counts.README.read_text(encoding="utf-8")
    now = {"inline": {"instructions": 900.0}, "thread to thread": {"instructions": 1000.0, "locks": 2.0}}
    features = {
        f"thread to thread/lanes/{mode}": {"instructions": cost} for mode, cost in (("elsewhere", 1010), ("used", 1500))
    }
    document = {
        "when": "today",
        "tool": "x",
        "python": "y",
        "before_when": "z",
        "before": {},
        "noise": {"thread to thread": 0.001},
        "now": now,
        "features": features,
    }
    text = counts.replace_tables(readme, document)
    assert "| thread to thread | – | 1,000 | – | – | – | 2.00 | – | – |" in text
    assert "| thread to thread | lanes | +1.0% | met | +50.0% |" in text
    assert counts.replace_tables(text, document) == text
    kept = tmp_path / "counts.json"
    assert counts.verdicts(kept) == []
    kept.write_text(json.dumps(document), encoding="utf-8")
    assert [each.verdict for each in counts.verdicts(kept)] == [goals.MET]
    kept.write_text(json.dumps({**document, "noise": {"thread to thread": 0.03}}), encoding="utf-8")
    assert [each.verdict for each in counts.verdicts(kept)] == [counts.NOT_SETTLED]
    with pytest.raises(ValueError, match="must hold"):
        counts.replace_tables("nothing", document)


# Cases


@pytest.fixture
def ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers cannot be imported, what is large is small, and idle threads end soon."""
    monkeypatch.setattr("eventbus._engine.dispatcher.IDLE_SECONDS", 0.05)
    for name in PEERS:
        monkeypatch.setitem(sys.modules, f"benchmarks.peers.{name}", None)
    for name in ("SUBSCRIPTIONS", "TOPICS", "PATTERNS"):
        monkeypatch.setattr(scaling, name, 50)
    monkeypatch.setattr(churn, "MANY", 50)


@pytest.mark.usefixtures("ours_alone")
def test_a_peer_that_is_not_installed_is_missing() -> None:
    found = load("pyee:inline")
    assert isinstance(found, Missing)
    assert found.name == "pyee"


@pytest.mark.usefixtures("ours_alone")
@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_every_case_runs_on_ours_and_on_the_limits(case: Case) -> None:
    found = measure(case, Plan(rounds=1, scale=20 / case.n))
    assert found.ours() is not None
    for row in found.rows:
        assert not row.failed
        assert row.missing or set(row.samples) == {metric.name for metric in case.metrics}
        assert all(math.isfinite(each) and each >= 0 for samples in row.samples.values() for each in samples)


def test_cases_have_names_of_their_own_and_metrics() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert set(report.PLOTS) <= {case.name for case in cases}
    assert all(isinstance(metric, Metric) for case in cases for metric in case.metrics)
