"""What it must reach (issue 7), each goal computed from a run's results: met, met with its aim, or not met.

The limits stand here as numbers because they are the goals; what was measured comes from the samples alone. Where the
issue gives no number there is a tolerance for noise: "no CPU" is under 0.5 ms a second and 5 wake-ups a second more
than a process that only sleeps. "Within 2 times" to a loop is asked of p50 and of p99. "Loop to thread alike" is judged
against ``run_in_executor``, that way's counterpart of ``run_coroutine_threadsafe``. "Not paid for" is judged by
``counts``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .figures import Spread, ratio
from .peers import PEER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .harness import Result, Row

    Reader = Callable[[Mapping[str, Result]], tuple[Spread, str] | None]

__all__ = ["AIM", "GOALS", "MET", "NOT_MEASURED", "NOT_MET", "Goal", "Verdict", "judge"]

MET, AIM, NOT_MET, NOT_MEASURED = "met", "met, aim too", "not met", "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """One limit: ``read`` gives what was measured, or None where it cannot be said."""

    text: str
    read: Reader
    limit: float
    at_least: bool  # else at most
    aim: float | None = None
    unit: str = "×"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, judged."""

    text: str
    measured: Spread | None
    against: str
    bound: str
    verdict: str


def judge(goals: tuple[Goal, ...], results: Mapping[str, Result]) -> list[Verdict]:
    """Judge by the medians."""
    return [_judge(goal, results) for goal in goals]


def _judge(goal: Goal, results: Mapping[str, Result]) -> Verdict:
    sign = "≥" if goal.at_least else "≤"
    bound = f"{sign} {goal.limit:,g}{_unit(goal.unit)}"
    if goal.aim is not None:
        bound += f" (aim {goal.aim:,g})"
    found = goal.read(results)
    if found is None:
        return Verdict(goal.text, None, "", bound, NOT_MEASURED)
    measured, against = found

    def reaches(limit: float) -> bool:
        return measured.median >= limit if goal.at_least else measured.median <= limit

    verdict = NOT_MET
    if reaches(goal.limit):
        verdict = AIM if goal.aim is not None and reaches(goal.aim) else MET
    return Verdict(goal.text, measured, against, bound, verdict)


def _unit(unit: str) -> str:
    return unit if unit in ("×", "%", "") else f" {unit}"


def _row(results: Mapping[str, Result], case: str, name: str | None, metric: str) -> Row | None:
    """A row with samples; without a name the first of ours."""
    result = results.get(case)
    row = None if result is None else result.ours() if name is None else result.row(name)
    return row if row is not None and row.samples.get(metric) else None


def faster_than(case: str, name: str, metric: str = "cost") -> Reader:
    """Theirs divided by ours."""

    def read(results: Mapping[str, Result]) -> tuple[Spread, str] | None:
        ours, theirs = _row(results, case, None, metric), _row(results, case, name, metric)
        if ours is None or theirs is None:
            return None
        found = ratio(theirs.samples[metric], ours.samples[metric])
        return None if found is None else (found, name)

    return read


def faster_than_peers(case: str) -> Reader:
    """Theirs divided by ours, of the fastest peer that was there."""

    def read(results: Mapping[str, Result]) -> tuple[Spread, str] | None:
        result = results.get(case)
        peers = [] if result is None else [row for row in result.rows if row.kind == PEER]
        found = [each for each in (faster_than(case, row.name)(results) for row in peers) if each is not None]
        return min(found, key=lambda each: each[0].median, default=None)

    return read


def slower_than(case: str, name: str, metric: str = "cost", ours: str | None = None) -> Reader:
    """Ours divided by theirs."""

    def read(results: Mapping[str, Result]) -> tuple[Spread, str] | None:
        mine, theirs = _row(results, case, ours, metric), _row(results, case, name, metric)
        if mine is None or theirs is None:
            return None
        found = ratio(mine.samples[metric], theirs.samples[metric])
        return None if found is None else (found, name)

    return read


def between(above: str, below: str) -> Reader:
    """Ours in one case divided by ours in another."""

    def read(results: Mapping[str, Result]) -> tuple[Spread, str] | None:
        upper, lower = _row(results, above, None, "cost"), _row(results, below, None, "cost")
        if upper is None or lower is None:
            return None
        found = ratio(upper.samples["cost"], lower.samples["cost"])
        return None if found is None else (found, below)

    return read


def value(case: str, metric: str = "cost", name: str | None = None) -> Reader:
    """Ours as it is."""

    def read(results: Mapping[str, Result]) -> tuple[Spread, str] | None:
        row = _row(results, case, name, metric)
        found = None if row is None else row.spread(metric)
        return None if found is None else (found, "")

    return read


def above(case: str, name: str, metric: str) -> Reader:
    """Ours less the floor."""

    def read(results: Mapping[str, Result]) -> tuple[Spread, str] | None:
        ours, floor = value(case, metric)(results), value(case, metric, name)(results)
        if ours is None or floor is None:
            return None
        less = floor[0].median
        return Spread(ours[0].median - less, ours[0].low - less, ours[0].high - less), name

    return read


POOL, TASKS = "ThreadPoolExecutor.submit", "a task each"

GOALS = (
    Goal("inline, 1 handler: faster than every peer", faster_than_peers("inline-1"), 1, True),
    Goal("inline, 10 handlers: faster than every peer", faster_than_peers("inline-10"), 1, True),
    Goal("thread to thread: times the pool's rate", faster_than("thread-to-thread-1", POOL), 8, True, 10),
    Goal("thread to thread: faster than queue.Queue", faster_than("thread-to-thread-1", "queue.Queue"), 1, True),
    Goal("4 publishers: cost of one", between("thread-to-thread-4", "thread-to-thread-1"), 1.3, False),
    Goal("fan-out to 8: cost a delivery", value("fan-out-8"), 500, False, unit="ns"),
    Goal("fan-out to 64: cost a delivery at 8", between("fan-out-64", "fan-out-8"), 1, False),
    Goal("thread to loop: times janus per item", faster_than("thread-to-loop", "janus per item"), 1.5, True, 2.5),
    Goal(
        "thread to loop: times run_coroutine_threadsafe",
        faster_than("thread-to-loop", "run_coroutine_threadsafe"),
        15,
        True,
        25,
    ),
    Goal("loop to thread: times janus per item", faster_than("loop-to-thread", "janus per item"), 1.5, True, 2.5),
    Goal("loop to thread: times run_in_executor", faster_than("loop-to-thread", "run_in_executor"), 15, True, 25),
    Goal("on one loop: times bubus", faster_than("on-loop", "bubus"), 500, True),
    Goal("on one loop: times a task each", faster_than("on-loop", TASKS), 2.5, True, 4),
    Goal("idle latency to a thread, p50", slower_than("latency-thread", "SimpleQueue", "p50"), 2, False),
    Goal("idle latency to a thread, p99", slower_than("latency-thread", "SimpleQueue", "p99"), 3, False),
    Goal("idle latency to a loop, p50", slower_than("latency-loop", "call_soon_threadsafe", "p50"), 2, False),
    Goal("idle latency to a loop, p99", slower_than("latency-loop", "call_soon_threadsafe", "p99"), 2, False),
    Goal("1 of 8 blocks: throughput that the others keep", value("one-blocks", "kept"), 80, True, unit="%"),
    Goal("1 of 8 blocks: median delay of the others", value("one-blocks", "delay"), 10, False, unit="ms"),
    *(
        Goal(f"emit beside {name}: cost beside none", slower_than("scaling", "empty registry", ours=name), 1.2, False)
        for name in ("10,000 other subscriptions", "100,000 other topics", "1,000 patterns")
    ),
    Goal("on() and cancel() beside 10", value("churn-10"), 10, False, unit="µs"),
    Goal("on() and cancel() beside 100,000", value("churn-100000"), 10, False, unit="µs"),
    Goal(
        "on() and cancel() beside 100,000 on one topic",
        value("churn-100000", name="eventbus, all on one topic"),
        10,
        False,
        unit="µs",
    ),
    Goal("memory of a subscription", value("memory-subscription", "memory"), 1536, False, unit="bytes"),
    Goal("memory of a pending event", value("memory-pending", "memory"), 600, False, unit="bytes"),
    Goal("idle bus: processor time above none", above("idle", "no bus in use", "cpu"), 0.5, False, unit="ms/s"),
    Goal("idle bus: wake-ups above none", above("idle", "no bus in use", "switches"), 5, False, unit="/s"),
    Goal(
        "import: its standard-library imports",
        slower_than("import", "its standard-library imports", "time"),
        1.5,
        False,
    ),
    *(
        Goal(f"at rest, {name}: {what}", value("at-rest", what, name), 0, False, unit="")
        for name in ("eventbus", "eventbus_async")
        for what in ("records", "threads", "tasks")
    ),
)
