"""Run a program under one schedule after another until one fails, all are done, or the budget is spent."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from eventbus._engine.monitor import steps

from .baton import Scheduler, Stuck
from .loops import janus_swapped
from .points import points_within
from .seam import swapped
from .strategies import Replay, Strategy

__all__ = ["Failed", "Program", "Result", "explore", "replay", "tally"]

COLLECT = 200  # schedules between two collections of garbage
tally: Counter[str] = Counter()  # distinct schedules explored in this process, by grain


@dataclass(frozen=True)
class Program:
    """What is run under every schedule: ``body`` starts threads by the scheduler, waits for them and judges."""

    name: str
    body: Callable[[Scheduler], None]
    lies: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name


class Failed(AssertionError):
    """A schedule broke a promise. The message ends with the line that replays it."""


@dataclass
class Result:
    """What an exploration has done."""

    program: str
    how: str
    schedules: int = 0
    distinct: int = 0
    points: int = 0
    switches: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    failure: BaseException | None = None
    trace: str = ""
    seen: set[int] = field(default_factory=set, repr=False)

    def line(self) -> str:
        """One row of a report."""
        state = "FAILED" if self.failure else "all" if self.exhausted else "budget"
        rate = self.schedules / self.seconds if self.seconds else 0.0
        return f"{self.program:<44} {self.how:<16} {state:<6} {self.distinct:>8,} distinct {rate:>7,.0f}/s"

    def check(self) -> Result:
        """Raise what went wrong, with the replay."""
        if self.failure is not None:
            raise Failed(
                f"{self.program}: {type(self.failure).__name__}: {self.failure}\n"
                f"schedule {self.schedules} of {self.how}; replay:\n"
                f"  python -m kit_schedule replay '{self.program}' '{self.how.split()[0]}' '{self.trace}'"
            ) from self.failure
        return self


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection at moments of its own choice, no logging: neither is part of the schedule."""
    logs = [logging.getLogger(name) for name in ("eventbus", "asyncio")]
    disabled = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()  # of what is new alone: the rest is frozen still
        gc.unfreeze()
        if enabled:
            gc.enable()
        for log, before in zip(logs, disabled, strict=True):
            log.disabled = before


def explore(
    program: Program,
    strategy: Strategy,
    *,
    grain: str = "seam",
    what: str = "",
    schedules: int = 1_000_000,
    seconds: float = 1e9,
) -> Result:
    """Run a program under the schedules of a strategy. ``grain``: ``"seam"``, ``"switch"`` or ``"line"``."""
    result = Result(program.name, f"{grain} {what or type(strategy).__name__}")
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(swapped(sections=grain != "line"))
        stack.enter_context(janus_swapped())
        wrap = None if grain == "seam" else stack.enter_context(points_within(grain))
        while True:
            strategy.begin()
            steps.clear()  # a thread that was given up within a step has left it there
            sched = Scheduler(strategy, wrap, program.lies)
            try:
                failure = sched.run(lambda: program.body(sched))
            except Stuck as error:
                failure = error
            result.schedules += 1
            result.points += sched.points
            result.switches += sched.switches
            result.seen.add(hash(tuple(sched.trace)))
            if failure is not None:
                result.failure = failure
                result.trace = sched.replay()
                break
            more = strategy.next(sched.decisions)
            del sched
            if not more:
                result.exhausted = True
                break
            if result.schedules >= schedules or time.monotonic() - began >= seconds:
                break
            if result.schedules % COLLECT == 0:
                gc.collect()
    result.seconds = time.monotonic() - began
    result.distinct = len(result.seen)
    tally[grain] += result.distinct
    return result


def replay(program: Program, trace: str, grain: str = "seam") -> BaseException | None:
    """Run one schedule again; gives what went wrong, or None."""
    return explore(program, Replay(trace), grain=grain, what="replay").failure
