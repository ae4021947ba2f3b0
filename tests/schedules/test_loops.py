"""Threads and event loops together, under schedules: awaits, a loop's end, a task's cancelling.

The loops are asyncio's own; their sleep, their wake-ups and their clock are the scheduler's (``kit_schedule.loops``).
"""

from __future__ import annotations

import asyncio
import os

import pytest
from kit_schedule import Deadlock, DepthFirst, Pct, Program, Scheduler, explore
from kit_schedule.loops import Loop
from kit_schedule.scenarios import looped, program

SCALE = float(os.environ.get("EVENTBUS_SCHEDULES_SCALE", "1"))


@pytest.mark.parametrize("name", looped())
def test_loops_and_threads_keep_every_promise(name: str) -> None:
    """G1 to G4, G6, G10, G13: all schedules without a preemption, and random ones with points within the engine."""
    explore(program(name), DepthFirst(0), what="bound 0", seconds=0.1 * SCALE).check()
    explore(program(name), Pct(3, 1, 10_000), grain="switch", what="pct3 seed 1", seconds=0.1 * SCALE).check()


def bridge(sched: Scheduler, cleared_first: bool) -> None:
    """A hand-made crossing into a loop: a deque, and a flag that says that the loop is told already."""
    loop = Loop(sched)
    items: list[int] = []
    got: list[int] = []
    flag = [False]
    enough = asyncio.Event()

    def arrive() -> None:
        if cleared_first:
            flag[0] = False
        sched.point()
        while items:
            got.append(items.pop(0))
        sched.point()
        if not cleared_first:
            flag[0] = False
        if len(got) == 2:
            enough.set()

    def post(number: int) -> None:
        sched.point()
        items.append(number)
        sched.point()
        if not flag[0]:
            flag[0] = True
            loop.call_soon_threadsafe(arrive)

    receiver = sched.start(lambda: loop.run_until_complete(enough.wait()), "loop")
    posters = [sched.start(lambda number=number: post(number), f"post{number}") for number in (1, 2)]  # type: ignore[misc]
    sched.branching = True
    sched.point(lambda: all(task.over for task in (receiver, *posters)))
    loop.close()


def test_a_flag_that_is_cleared_too_late_is_found() -> None:
    """The textbook bug of every bridge: a wake-up between the last look and the clearing is lost."""
    right = Program("bridge", lambda sched: bridge(sched, True))
    wrong = Program("bridge", lambda sched: bridge(sched, False))
    assert explore(right, DepthFirst(2), seconds=10).check().distinct > 100
    assert isinstance(explore(wrong, DepthFirst(2), seconds=10).failure, Deadlock)


def test_the_time_of_a_loop_is_virtual() -> None:
    def body(sched: Scheduler) -> None:
        loop = Loop(sched)
        began = sched.now
        loop.run_until_complete(asyncio.sleep(3600))
        assert 3600 <= sched.now - began < 3601
        loop.close()

    explore(Program("hour", body), DepthFirst(0)).check()
