"""The harness: cases, contenders, and the interleaved rounds that measure them.

A :class:`Case` is one question. Each of its contenders is opened once (a context manager), and gives a sampler: a
function of ``n`` that does the work ``n`` times, with its own warm-up, and returns one figure a metric. Rounds are
interleaved: every contender once a round, beginning with another one each round, so that a slow minute of the machine
falls on all of them. A contender that is missing, or fails, is a row that says so.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .figures import Spread, ratio, spread
from .peers import OURS, Missing, Offer, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["Case", "Contender", "Metric", "Missing", "Plan", "Result", "Row", "constant", "line_up", "measure"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that a case measures."""

    name: str
    unit: str
    what: str


COST = Metric("cost", "ns", "time per item")


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who does a case's work."""

    name: str
    kind: str
    open: Callable[[], AbstractContextManager[Any]]
    lacks: str = ""
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """One question: what is measured, on whom, and how often per sample."""

    name: str
    title: str
    contenders: Callable[[], list[Contender | Missing]]
    n: int
    metrics: tuple[Metric, ...] = (COST,)
    rounds: int | None = None  # counts and sizes need no seven rounds
    quick: float = 0.25  # share of n with --quick
    note: str = ""


@dataclass(slots=True)
class Row:
    """One contender's samples in one case."""

    name: str
    kind: str
    lacks: str = ""
    missing: str = ""
    failed: str = ""
    n: int = 0
    samples: dict[str, list[float]] = field(default_factory=dict)

    def spread(self, metric: str) -> Spread | None:
        samples = self.samples.get(metric)
        return spread(samples) if samples else None


@dataclass(slots=True)
class Result:
    """A case's rows. The first row of ours is what the others are compared with."""

    name: str
    title: str
    metrics: list[dict[str, str]]
    rows: list[Row]
    note: str = ""
    seconds: float = 0.0

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def ours(self) -> Row | None:
        return next((row for row in self.rows if row.kind == OURS and row.samples), None)

    def times_ours(self, row: Row, metric: str) -> Spread | None:
        """How many times ours it is, by pairs of one round."""
        ours = self.ours()
        if ours is None or metric not in row.samples or metric not in ours.samples:
            return None
        return ratio(row.samples[metric], ours.samples[metric])


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int = 7
    scale: float = 1.0  # of each case's n
    quick: bool = False

    def count(self, case: Case, share: float) -> int:
        return max(1, int(case.n * share * self.scale * (case.quick if self.quick else 1.0)))


def line_up(sampler: Callable[[Offer], Any], *references: str) -> list[Contender | Missing]:
    """Contenders from the adapters' offers; ``sampler`` makes the sampler of one offer."""
    found: list[Contender | Missing] = []
    for reference in references:
        offer = load(reference)
        if isinstance(offer, Missing):
            found.append(offer)
        else:
            found.append(
                Contender(
                    offer.name, offer.kind, lambda offer=offer: constant(sampler(offer)), offer.lacks, offer.share
                )
            )
    return found


@contextmanager
def constant(value: Any) -> Iterator[Any]:
    """A context manager of what needs no closing."""
    yield value


def measure(case: Case, plan: Plan, tell: Callable[[str], None] = lambda text: None) -> Result:
    """Measure one case: open all, then round by round; nothing that a contender raises ends it."""
    began = time.perf_counter()
    metrics = [{"name": each.name, "unit": each.unit, "what": each.what} for each in case.metrics]
    rows: list[Row] = []
    rounds = min(plan.rounds, case.rounds or plan.rounds)
    with ExitStack() as stack:
        running: list[tuple[Row, Contender, Any]] = []
        for contender in case.contenders():
            if isinstance(contender, Missing):
                rows.append(Row(contender.name, "missing", missing=contender.reason))
                continue
            row = Row(contender.name, contender.kind, contender.lacks, n=plan.count(case, contender.share))
            rows.append(row)
            try:
                running.append((row, contender, stack.enter_context(contender.open())))
            except Exception as error:
                _failed(row, error)
        gc.collect()
        gc.freeze()  # what was set up is not looked through again during the rounds
        try:
            for number in range(rounds):
                shift = number % max(1, len(running))
                for row, _, sampler in running[shift:] + running[:shift]:
                    if row.failed:
                        continue
                    tell(f"{case.name}: round {number + 1} of {rounds}, {row.name}")
                    gc.collect()
                    try:
                        for name, value in sampler(row.n).items():
                            row.samples.setdefault(name, []).append(float(value))
                    except Exception as error:
                        _failed(row, error)
        finally:
            gc.unfreeze()
    return Result(case.name, case.title, metrics, rows, case.note, time.perf_counter() - began)


def _failed(row: Row, error: Exception) -> None:
    row.failed = f"{type(error).__name__}: {error}"
    row.samples.clear()
    traceback.print_exception(error, file=sys.stderr)
