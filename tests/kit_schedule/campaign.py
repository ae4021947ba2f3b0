"""The long run: programs by the hundred, each until it is exhausted or its share of the time is spent.

``python -m kit_schedule campaign --minutes 10`` (from ``tests/``), or :func:`campaign` from a program. A stage explores
more deeply than the one before; what is left of the time goes to random schedules with fresh seeds.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count

from .explore import Result, explore
from .scenarios import HARDEST, LYING, looped, pairs, program, triples
from .strategies import DepthFirst, Pct, Strategy

__all__ = ["Job", "Totals", "campaign", "run_job"]


@dataclass(frozen=True)
class Job:
    """One program, one way to explore it, and for how long."""

    name: str
    grain: str
    bound: int | None
    seed: int = 0
    seconds: float = 10.0

    def strategy(self) -> tuple[Strategy, str]:
        if self.bound is None:
            return Pct(3, self.seed, 1_000_000), f"pct3 seed {self.seed}"
        return DepthFirst(self.bound), f"bound {self.bound}"


@dataclass
class Totals:
    """What a campaign has found."""

    programs: int = 0
    schedules: int = 0
    distinct: int = 0
    exhausted: dict[str, int] = field(default_factory=dict)
    explored: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, job: Job, result: Result) -> None:
        self.programs += 1
        self.schedules += result.schedules
        self.distinct += result.distinct
        way = f"{job.grain} {'pct 3' if job.bound is None else f'bound {job.bound}'}"
        self.explored[way] = self.explored.get(way, 0) + 1
        if job.bound is not None:
            self.exhausted[way] = self.exhausted.get(way, 0) + result.exhausted

    def text(self) -> str:
        ways = [
            f"  {way}: {number} programs"
            + (f", {self.exhausted[way]} of them exhausted" if way in self.exhausted else "")
            for way, number in self.explored.items()
        ]
        return "\n".join(
            [f"{self.distinct:,} distinct schedules ({self.schedules:,} run), {len(self.failures)} failures", *ways]
        )


def run_job(job: Job) -> Result:
    """Explore; in a process of its own, where a campaign has several."""
    strategy, what = job.strategy()
    result = explore(program(job.name), strategy, grain=job.grain, what=what, seconds=job.seconds)
    result.seen.clear()
    if result.failure is not None:
        # Tracebacks do not travel between processes.
        result.failure = AssertionError(f"{type(result.failure).__name__}: {result.failure}")
    return result


def stages(seconds: float) -> Iterator[list[Job]]:
    """Deeper and deeper; each stage has its share of the time."""
    two, three, loops = pairs(), triples(), looped()

    def share(names: list[str], part: float, grain: str, bound: int | None, seed: int = 0) -> list[Job]:
        each = seconds * part / len(names)
        return [Job(name, grain, bound, seed, max(0.2, 4 * each if bound is not None else each)) for name in names]

    lying = [f"lying/{name}" for name in LYING]
    yield share(two, 0.1, "seam", 1)
    yield share(loops, 0.05, "seam", 1)
    yield share(lying, 0.05, "seam", 2)
    yield share(two, 0.1, "seam", 2)
    yield share(two, 0.2, "switch", 1)
    yield share(two, 0.05, "line", 1)
    yield share(loops, 0.05, "switch", 1)
    yield share(three, 0.1, "seam", 1)
    yield share([*HARDEST], 0.1, "switch", 2)
    for seed in count(1):
        yield share(three, 0.1, "switch", None, seed)
        yield share(loops, 0.05, "switch", None, seed)
        yield share(two, 0.05, "switch", None, seed)


def campaign(minutes: float, report: Callable[[str], object] = print, jobs: int | None = None) -> Totals:
    """Explore for so long, on all cores; ``report`` gets a line for each program, and the sums at the end."""
    totals = Totals()
    jobs = jobs or os.cpu_count() or 1
    end = time.monotonic() + minutes * 60
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running: dict[Future[Result], Job] = {}

        def gather(most: int) -> None:
            while len(running) > most:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    result = future.result()
                    totals.add(job, result)
                    report(result.line())
                    if result.failure is not None:
                        told = f"{result.failure}\n    replay '{job.name}' {job.grain} '{result.trace}'"
                        totals.failures.append(told)
                        report(told)

        for stage in stages(minutes * 60 * jobs):
            for job in stage:
                if time.monotonic() < end:
                    running[pool.submit(run_job, job)] = job
                    gather(jobs)
            if time.monotonic() >= end:
                break
        gather(0)
    report(totals.text())
    return totals
