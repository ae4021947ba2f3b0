"""The explorer itself: it goes through all schedules, tells what is wrong, and replays it from the printed line."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from kit_schedule import (
    Deadlock,
    DepthFirst,
    Failed,
    Livelock,
    Pct,
    Program,
    Scheduler,
    Uniform,
    explore,
    replay,
)
from kit_schedule.seam import Lock, Sleeper

from eventbus._engine import primitives


def run(sched: Scheduler, *parts: Callable[[], None]) -> None:
    """Each part in a thread of its own, explored."""
    tasks = [sched.start(part, f"part{index}") for index, part in enumerate(parts)]
    sched.branching = True
    sched.point(lambda: all(task.over for task in tasks))
    sched.branching = False


def lost_update(sched: Scheduler) -> None:
    counter = [0]

    def add() -> None:
        sched.point()
        value = counter[0]
        sched.point()
        counter[0] = value + 1

    run(sched, add, add)
    assert counter == [2]


def crossed_locks(sched: Scheduler) -> None:
    one, two = Lock(), Lock()

    def nest(outer: Lock, inner: Lock) -> None:
        with outer, inner:
            pass

    run(sched, lambda: nest(one, two), lambda: nest(two, one))


def steps(threads: int, points: int) -> Callable[[Scheduler], None]:
    def body(sched: Scheduler) -> None:
        def part() -> None:
            for _ in range(points):
                sched.point()

        run(sched, *[part] * threads)

    return body


def test_depth_first_visits_every_schedule_once() -> None:
    """Two threads with a point each: whoever begins may be interrupted at his point, or not."""
    for bound, expected in ((0, 2), (1, 4), (2, 6), (3, 6)):
        # Unbounded, two threads of two atomic parts have 4!/(2!·2!) = 6 interleavings.
        result = explore(Program("steps", steps(2, 1)), DepthFirst(bound)).check()
        assert result.exhausted
        assert result.distinct == result.schedules == expected


def test_a_lost_update_needs_one_preemption() -> None:
    assert explore(Program("lost", lost_update), DepthFirst(0)).failure is None
    result = explore(Program("lost", lost_update), DepthFirst(1))
    assert isinstance(result.failure, AssertionError)


@pytest.mark.parametrize("strategy", [DepthFirst(2), Pct(2, 1, 200), Uniform(1, 200)], ids=lambda s: type(s).__name__)
def test_every_strategy_finds_it_and_the_printed_line_replays_it(strategy: DepthFirst) -> None:
    program = Program("lost", lost_update)
    result = explore(program, strategy)
    assert result.failure is not None
    with pytest.raises(Failed, match=f"replay 'lost' 'seam' '{result.trace}'"):
        result.check()
    assert replay(program, "") is None
    assert repr(replay(program, result.trace)) == repr(result.failure)


def test_a_deadlock_is_told_with_the_stacks() -> None:
    result = explore(Program("crossed", crossed_locks), DepthFirst(1))
    assert isinstance(result.failure, Deadlock)
    assert "nest" in str(result.failure)


def test_a_schedule_without_end_is_told() -> None:
    def body(sched: Scheduler) -> None:
        while True:
            sched.point()

    assert isinstance(explore(Program("endless", body), DepthFirst(0)).failure, Livelock)


def test_a_time_out_comes_first_or_last() -> None:
    seen: set[bool] = set()

    def body(sched: Scheduler) -> None:
        sleeper = Sleeper()
        run(sched, lambda: seen.add(sleeper.sleep(1.0)), sleeper.wake)

    assert explore(Program("timeout", body), DepthFirst(0)).check().exhausted
    assert seen == {True}
    explore(Program("timeout", body), DepthFirst(1)).check()
    assert seen == {True, False}


def test_what_blocks_for_ever_in_virtual_time_takes_none() -> None:
    def body(sched: Scheduler) -> None:
        sched.sleep(86_400.0)
        assert sched.now >= 86_400.0
        assert primitives.monotonic() == sched.now

    explore(Program("day", body), DepthFirst(0), seconds=5).check()


def test_primitives_may_lie_when_asked_to() -> None:
    outcomes: set[str] = set()

    def body(sched: Scheduler) -> None:
        try:
            primitives.start_thread(lambda: None, "x")
            outcomes.add("started")
        except RuntimeError:
            outcomes.add("failed")

    def explored(sched: Scheduler) -> None:
        run(sched, lambda: body(sched))

    explore(Program("honest", explored), DepthFirst(2)).check()
    assert outcomes == {"started"}
    explore(Program("lying", explored, frozenset({"start"})), DepthFirst(2)).check()
    assert outcomes == {"started", "failed"}


def test_outside_of_it_the_seam_is_the_real_one() -> None:
    explore(Program("nothing", lambda sched: None), DepthFirst(0)).check()
    assert primitives.monotonic.__module__ == "time"
    assert isinstance(primitives.make_lock(), type(threading.RLock()))


def test_other_threads_are_left_alone_meanwhile() -> None:
    answers: list[object] = []

    def body(sched: Scheduler) -> None:
        other = threading.Thread(target=lambda: answers.append((primitives.get_ident(), primitives.make_lock())))
        other.start()
        other.join()
        answers.append(primitives.get_ident())

    explore(Program("foreign", body), DepthFirst(0)).check()
    (foreign, lock), mine = answers  # type: ignore[misc]
    assert foreign > 100_000
    assert mine == 1001
    assert not isinstance(lock, Lock)
