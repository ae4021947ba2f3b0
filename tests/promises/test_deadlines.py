"""G7, G9, G10: the timer by itself, on a clock that the test sets; nobody's thread but the test's plays its part."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kit import BOUND, soon

from eventbus._engine import primitives
from eventbus._engine.monitor import Monitor
from eventbus._engine.timer import LINGER, RETRY_SECONDS, Timer


class Stage:
    """A timer with its monitor; ``started`` has the names of the threads that it wanted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.started: list[str] = []
        self.target: Any = None  # of what was started last
        self.refusing = False
        self.woken = 0
        self.called: list[str] = []
        self.monitor = Monitor()
        self.timer = Timer(self.monitor, "stage")

    def start(self, target: Callable[[], None], name: str) -> Any:
        self.started.append(name)
        self.target = target
        if self.refusing:
            raise RuntimeError("can't start new thread")
        return threading.current_thread()

    def at(self, delay: float, what: str = "") -> Any:
        return self.monitor.run(self.timer.at, delay, lambda: self.called.append(what))

    def begin(self) -> bool:
        """As its thread does first."""
        return self.monitor.run(self.timer._begin)

    def tick(self, after: float = 0.0) -> float | None:
        """As its thread does whenever it wakes."""
        self.now += after
        return self.monitor.run(self.timer._tick)

    def woke(self) -> bool:
        """Whether its thread was woken since the last look."""
        return self.timer._sleeper.sleep(0)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    monkeypatch.setattr(primitives, "monotonic", lambda: made.now)
    monkeypatch.setattr(primitives, "start_thread", made.start)
    return made


def test_g7_deadlines_come_in_order_at_their_time_and_each_once(stage: Stage) -> None:
    """Equal ones in the order in which they were asked for."""
    for delay, what in ((0.5, "third"), (0.25, "first"), (0.25, "second"), (0.75, "fourth")):
        stage.at(delay, what)
    assert stage.started == ["stage-timer"]  # one for all of them
    assert stage.begin()
    assert stage.tick() == 0.25
    assert stage.called == []
    assert stage.tick(0.25) == 0.25
    assert stage.called == ["first", "second"]
    assert stage.tick(0.25) == 0.25
    assert stage.tick(0.5) == LINGER
    assert stage.called == ["first", "second", "third", "fourth"]


def test_g7_whoever_comes_earlier_than_the_next_look_wakes_the_thread(stage: Stage) -> None:
    stage.at(0.5)
    stage.begin()
    stage.tick()
    stage.at(0.5)
    stage.at(0.75)
    assert not stage.woke()
    stage.at(0.25, "early")
    assert stage.woke()
    assert stage.tick() == 0.25
    stage.tick(0.25)
    assert stage.called == ["early"]


def test_g10_the_thread_looks_each_second_and_ends_when_there_was_nothing_for_one(stage: Stage) -> None:
    """Also if what it was waiting for has been forgotten."""
    entry = stage.at(60.0)
    stage.begin()
    assert stage.timer.thread is not None
    assert stage.tick() == LINGER
    assert stage.tick(LINGER) == LINGER
    stage.monitor.run(stage.timer.forget, entry)
    assert stage.tick(0.5) == LINGER  # woken before its time, it does not end yet
    assert stage.tick(LINGER) is None
    assert stage.timer.thread is None
    assert stage.called == []


def test_g10_a_thread_that_finds_nothing_when_it_begins_stays_a_while(stage: Stage) -> None:
    stage.monitor.run(stage.timer.forget, stage.at(1.0))
    stage.begin()
    assert stage.tick() == LINGER
    stage.at(0.25)
    assert stage.started == ["stage-timer"]


def test_g7_after_the_end_of_its_thread_the_next_deadline_has_another(stage: Stage) -> None:
    for number in (1, 2):
        stage.at(0.25)
        stage.at(0.125)
        assert stage.started == ["stage-timer"] * number
        assert stage.begin()
        stage.tick(0.5)
        assert stage.tick(LINGER) is None


def test_g10_at_the_end_of_the_bus_the_thread_ends_at_once(stage: Stage) -> None:
    stage.at(60.0, "never")
    stage.begin()
    stage.tick()
    stage.monitor.run(stage.timer.stop)
    assert stage.woke()
    assert stage.tick() is None
    assert stage.called == []


def test_g10_so_does_one_that_is_being_started(stage: Stage) -> None:
    stage.at(60.0)
    stage.monitor.run(stage.timer.stop)
    assert stage.begin()
    assert stage.tick() is None


def test_g12_of_two_threads_for_the_same_purpose_one_ends_at_once(stage: Stage) -> None:
    """A signal handler that raises while a thread is started leaves it open whether it runs."""
    stage.at(0.25)
    stage.timer._start()
    assert stage.begin()
    assert not stage.begin()
    stage.timer._start()
    assert stage.started == ["stage-timer"] * 2


def test_g7_an_error_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """Time-outs are told of after it, too: memory may have run out for a moment."""
    caplog.set_level(logging.CRITICAL, "eventbus")
    over = threading.Event()
    monitor = Monitor()
    timer = Timer(monitor, "errors")

    def fail() -> None:
        raise MemoryError

    monitor.run(timer.at, 0.0, fail)  # in a step
    monitor.run(timer.at, 0.0, lambda: monitor.after.append(over.set))
    assert over.wait(BOUND)
    monitor.run(timer.stop)
    soon(lambda: timer.ident == 0, "the thread's end")


def test_g10_a_thread_that_has_ended_looks_no_more(stage: Stage) -> None:
    """An error may hide from it that its last look was the last: by then there may be another."""
    stage.at(0.25, "due")
    stage.begin()
    stage.timer.ident += 1
    assert stage.tick(0.25) is None
    assert stage.called == []


def test_g8_where_no_thread_can_be_started_the_next_deadline_or_wait_tries_again(stage: Stage) -> None:
    lacks = stage.timer.lacks_thread
    assert not stage.monitor.run(lacks)  # it needs none
    stage.refusing = True
    stage.at(0.25)
    assert len(stage.started) == 1
    stage.at(0.25)
    assert len(stage.started) == 2
    assert stage.monitor.run(lacks)
    assert len(stage.started) == 3
    stage.refusing = False
    assert stage.monitor.run(lacks)
    assert len(stage.started) == 4
    assert not stage.monitor.run(lacks)  # one is on its way
    assert stage.begin()
    assert not stage.monitor.run(lacks)
    assert len(stage.started) == 4


def test_g7_a_thread_that_cannot_be_started_is_tried_again_a_little_later(stage: Stage) -> None:
    """Nothing is raised: it comes after a step, which may be anybody's."""

    def job() -> None: ...

    stage.at(60.0)
    stage.begin()
    stage.refusing = True
    stage.timer.start_thread(job, "job")
    assert stage.started == ["stage-timer", "job"]
    assert stage.target is job
    stage.tick(RETRY_SECONDS / 2)
    assert stage.started == ["stage-timer", "job"]
    stage.tick(RETRY_SECONDS)
    assert stage.started == ["stage-timer", "job", "job"]
    stage.refusing = False
    stage.tick(2 * RETRY_SECONDS)
    stage.tick(2 * RETRY_SECONDS)
    assert stage.started == ["stage-timer", "job", "job", "job"]
    assert stage.target is job


@pytest.mark.parametrize(("many", "before_it_is_swept"), [(64, 60), (65, 32), (100, 50)])
def test_g18_forgotten_deadlines_do_not_pile_up(stage: Stage, many: int, before_it_is_swept: int) -> None:
    """More than a few are swept out once they are more than the others."""
    stage.at(0.5, "kept")
    entries = [stage.at(100.0 - n, str(n)) for n in range(1, many)]
    for entry in entries[:before_it_is_swept]:
        stage.monitor.run(stage.timer.forget, entry)
        assert len(stage.timer._heap) == many
    stage.monitor.run(stage.timer.forget, entries[before_it_is_swept])
    left = many - before_it_is_swept - 1
    assert len(stage.timer._heap) == (many if many <= 64 else left)
    stage.begin()
    stage.tick(100.0)
    assert stage.called == ["kept", *(str(n) for n in range(many - 1, before_it_is_swept + 1, -1))]
