"""G12: the monitor of a bus by itself: what comes in the midst of a step, and what a signal handler that raises leaves.

Here whatever interrupts is called in so many words; test_g12_anywhere.py has the real thing, at every instruction.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import nullcontext
from typing import Any

import pytest
from kit import BOUND, Alarm

from eventbus import EventBusError
from eventbus._engine import primitives
from eventbus._engine.monitor import ATTEMPTS, NESTED, PATIENCE, Interrupted, Line, Monitor, steps

FAILED = "a wake-up or a call that was put off has failed"


class Broken:
    """A call that raises the first times that it is made."""

    def __init__(self, times: int, error: BaseException | None = None) -> None:
        self.times = times
        self.error = error or Alarm()
        self.made = 0

    def __call__(self) -> None:
        self.made += 1
        if self.made <= self.times:
            raise self.error


@pytest.fixture
def monitor() -> Monitor:
    return Monitor()


class TestPutOff:
    """Calls in the midst of a step."""

    def test_g12_they_take_effect_when_it_ends_in_their_order(self, monitor: Monitor) -> None:
        order: list[Any] = []

        def step(result: str) -> str:
            with pytest.raises(Interrupted):
                monitor.run(order.append, "in its midst")
            for number in (1, 2):
                monitor.defer(lambda number=number: monitor.run_late(order.append, number))
            assert monitor.pending_here()
            assert steps[threading.get_ident()] is monitor
            assert monitor.busy is True
            order.append("step")
            return result

        assert monitor.run(step, "result") == "result"
        assert order == ["step", 1, 2]
        assert monitor.busy is False
        assert monitor.deferred == {}
        assert threading.get_ident() not in steps

    def test_g12_they_are_made_one_after_another(self, monitor: Monitor) -> None:
        """What follows does not begin within the one before, though that has taken effect."""
        order: list[str] = []

        def late(name: str) -> None:
            monitor.run_late(order.append, name)
            order.append(f"{name} ends")

        monitor.run(lambda: [monitor.defer(lambda name=name: late(name)) for name in ("1", "2")])
        assert order == ["1", "1 ends", "2", "2 ends"]

    def test_g12_nor_where_a_signal_handler_raises_as_it_takes_effect(self) -> None:
        class Interrupted(Monitor):
            def leave_line(self) -> None:
                super().leave_line()
                if order == ["1"]:
                    raise Alarm

        def late(name: str) -> None:
            try:
                monitor.run_late(order.append, name)
            finally:
                order.append(f"{name} ends")

        order: list[str] = []
        monitor = Interrupted()
        with pytest.raises(Alarm):
            monitor.run(lambda: [monitor.defer(lambda name=name: late(name)) for name in ("1", "2")])
        assert order == ["1", "1 ends", "2", "2 ends"]

    @pytest.mark.parametrize("first", [None, "ends", "raises"])
    def test_g12_those_that_are_made_between_steps_nest_so_deep_and_no_deeper(
        self, monitor: Monitor, first: str | None
    ) -> None:
        """Whatever stood in line before the first of them, and however that ended."""
        active: list[int] = []
        deepest: list[int] = []
        made: list[int] = []

        def late(number: int) -> None:
            monitor.run_late(made.append, number)
            active.append(number)
            deepest.append(len(active))
            if number < 3 * NESTED:
                monitor.defer(lambda: late(number + 1))
            active.remove(number)

        def before() -> None:
            monitor.run_late(made.append, -1)
            if first == "raises":
                raise Alarm

        def step() -> None:
            if first:
                monitor.defer(before)
            monitor.defer(lambda: late(0))

        with pytest.raises(Alarm) if first == "raises" else nullcontext():
            monitor.run(step)
        assert made == [*([-1] if first else []), *range(3 * NESTED + 1)]
        assert max(deepest) == NESTED
        assert monitor.deferred == {}

    def test_g12_one_that_is_refused_leaves_the_line_too(self, monitor: Monitor) -> None:
        order: list[str] = []
        monitor.run(lambda: [monitor.defer(lambda: order.append("refused")), monitor.defer(lambda: order.append("b"))])
        assert order == ["refused", "b"]
        assert monitor.deferred == {}

    def test_g12_as_long_as_one_stands_in_line_later_calls_of_this_thread_are_out_of_turn(
        self, monitor: Monitor
    ) -> None:
        order: list[str] = []

        def late() -> None:
            with pytest.raises(Interrupted):
                monitor.run_in_turn(order.append, "out of turn")
            monitor.run_late(order.append, "late")
            monitor.run_in_turn(order.append, "in turn")

        monitor.run(monitor.defer, late)
        assert order == ["late", "in turn"]

    def test_g12_those_of_other_threads_are_nobodys_concern(self, monitor: Monitor) -> None:
        order: list[str] = []
        monitor.deferred[-1] = deque()
        monitor.deferred[-1].append(None)  # type: ignore[arg-type]
        assert not monitor.pending_here()
        monitor.run_in_turn(order.append, "at once")
        assert order == ["at once"]

    def test_g12_between_two_steps_a_call_is_made_at_once_though_others_are_in_one(self, monitor: Monitor) -> None:
        entered, made = threading.Event(), threading.Event()

        def step() -> None:
            entered.set()
            made.wait(BOUND)

        thread = threading.Thread(target=monitor.run, args=(step,))
        thread.start()
        assert entered.wait(BOUND)
        monitor.defer(made.set)
        at_once = made.is_set()
        made.set()
        thread.join(BOUND)
        assert at_once

    def test_g12_in_a_step_of_another_bus_it_waits_for_the_end_of_that(self, monitor: Monitor) -> None:
        other = Monitor()
        order: list[str] = []

        def step() -> None:
            monitor.defer(lambda: monitor.run_late(order.append, "late"))
            order.append("step of the other")

        other.run(step)
        assert order == ["step of the other", "late"]

    def test_g12_one_that_is_being_made_is_not_made_again_further_up(self, monitor: Monitor) -> None:
        order: list[str] = []

        def late() -> None:
            order.append("begins")
            monitor.flush()
            order.append("ends")

        monitor.run(monitor.defer, late)
        assert order == ["begins", "ends"]

    @pytest.mark.parametrize("again", [False, True])
    def test_g12_what_comes_while_the_line_is_forgotten_is_not(self, again: bool) -> None:
        class Interrupted(Monitor):
            def _forget_line(self, ident: int) -> None:
                if not order:
                    order.append("interrupted")
                    for number in ("1", "2"):
                        self.defer(lambda number=number: self.run_late(order.append, number))
                    if again:
                        self.deferred = Lines(self.deferred)
                super()._forget_line(ident)

        class Lines(dict[int, Any]):
            def pop(self, *args: Any) -> Any:
                line = super().pop(*args)
                if len(order) == 1:
                    order.append("once more")
                    monitor.defer(lambda: monitor.run_late(order.append, "3"))
                return line

        order: list[str] = []
        monitor = Interrupted()
        monitor.run(monitor.defer, lambda: None)
        assert order == (["interrupted", "once more", "1", "2", "3"] if again else ["interrupted", "1", "2"])
        assert monitor.deferred == {}
        monitor.run(monitor._forget_line, threading.get_ident())  # somebody else has done it

    def test_g11_in_a_forked_child_only_what_has_begun_stays_and_a_new_call_comes_next(self, monitor: Monitor) -> None:
        order: list[str] = []

        def begun() -> None:
            order.append("begun")
            monitor.deferred[0] = Line()  # of a thread that the child has not
            monitor.defer_alone(lambda: order.append("alone"))
            assert list(monitor.deferred) == [threading.get_ident()]
            monitor.run(order.append, "goes on")
            order.append("ends")

        def step() -> None:
            monitor.defer(begun)
            monitor.defer(lambda: order.append("never"))

        monitor.run(step)
        assert order == ["begun", "goes on", "ends", "alone"]
        assert not monitor.deferred

    def test_g11_so_it_does_where_nothing_was_put_off(self, monitor: Monitor) -> None:
        order: list[str] = []
        monitor.defer_alone(lambda: order.append("alone"))
        assert monitor.pending_here()
        monitor.flush()
        assert order == ["alone"]
        assert not monitor.deferred


class TestBroken:
    """By a signal handler that raises."""

    def test_g12_a_call_that_was_put_off_is_tried_again_and_given_up_in_the_end(
        self, monitor: Monitor, caplog: pytest.LogCaptureFixture
    ) -> None:
        call, following = Broken(99), Broken(0)

        def step() -> None:
            monitor.defer(call)
            monitor.defer(following)

        with pytest.raises(Alarm):
            monitor.run(step)
        assert call.made == ATTEMPTS
        assert following.made == 1
        assert monitor.deferred == {}
        assert caplog.messages == [FAILED] * (ATTEMPTS - 1)

    def test_g12_one_that_comes_through_at_last_is_made_no_more(
        self, monitor: Monitor, caplog: pytest.LogCaptureFixture
    ) -> None:
        call = Broken(1)
        with pytest.raises(Alarm):
            monitor.run(monitor.defer, call)
        assert call.made == 2
        assert not caplog.messages
        assert monitor.deferred == {}

    def test_g12_one_that_has_taken_effect_is_not_tried_again_and_the_rest_follows(self, monitor: Monitor) -> None:
        order: list[str] = []

        def late() -> None:
            monitor.run_late(order.append, "effect")
            raise Alarm

        def step() -> None:
            monitor.defer(late)
            monitor.defer(lambda: monitor.run_late(order.append, "rest"))

        with pytest.raises(Alarm):
            monitor.run(step)
        assert order == ["effect", "rest"]

    @pytest.mark.parametrize("error", [Alarm(), IndexError("of a signal handler")], ids=["alarm", "index error"])
    def test_g12_a_wake_up_is_not_lost(
        self, monitor: Monitor, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        wake, following = Broken(1, error), Broken(0)
        monitor.after.extend((wake, following))
        with pytest.raises(type(error)):
            monitor.flush()
        assert (wake.made, following.made) == (2, 1)
        assert not monitor.after
        assert not caplog.messages

    def test_g12_one_that_always_fails_is_tried_some_times_and_stays_for_the_next_step(
        self, monitor: Monitor, caplog: pytest.LogCaptureFixture
    ) -> None:
        wake = Broken(2 * ATTEMPTS + 1)
        monitor.after.append(wake)
        with pytest.raises(Alarm):
            monitor.flush()
        assert wake.made == ATTEMPTS + 1
        assert caplog.messages == [FAILED] * ATTEMPTS
        with pytest.raises(Alarm):
            monitor.run(lambda: None)
        assert wake.made == 2 * ATTEMPTS + 2
        assert not monitor.after

    def test_g12_a_wake_up_that_another_thread_has_taken_is_none(self, monitor: Monitor) -> None:
        class Emptied(deque[Any]):
            def __bool__(self) -> bool:
                return True

        monitor.after = Emptied()
        monitor.flush()

    def test_g12_what_a_broken_step_has_left_half_done_is_made_good(self, caplog: pytest.LogCaptureFixture) -> None:
        repaired: list[bool] = []
        monitor = Monitor(lambda: repaired.append(monitor.busy))
        for error in (Alarm(), ValueError("raised by a signal handler")):
            with pytest.raises(type(error)):
                monitor.run(Broken(1, error))
        assert repaired == [True, True]  # in a step
        with pytest.raises(EventBusError):
            monitor.run(Broken(1, EventBusError("the bus's own")))  # a step that refuses something has ended well
        assert len(repaired) == 2
        assert not caplog.messages

    def test_g12_if_the_repair_breaks_it_is_told_and_the_first_error_passes(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        monitor = Monitor(Broken(2))  # it is repaired by another
        with pytest.raises(ValueError, match="first"):
            monitor.run(Broken(1, ValueError("first")))
        assert caplog.messages == [FAILED] * 2

    def test_g12_a_monitor_without_a_repair_needs_none(
        self, monitor: Monitor, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(Alarm):
            monitor.run(Broken(1))
        assert not caplog.messages


class TestStandingBack:
    """Whoever finds another thread in a step lets that go on for a while, before he queues for the lock."""

    def pauses(self, monitor: Monitor, monkeypatch: pytest.MonkeyPatch, step: int) -> int:
        """How often he pauses where the other's step takes so many pauses."""
        made: list[None] = []

        def pause() -> None:
            made.append(None)
            monitor.busy = len(made) < step

        monkeypatch.setattr(primitives, "pause", pause)
        monitor.busy = True
        monitor.stand_back()
        return len(made)

    def test_g4_not_for_ever(self, monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.pauses(monitor, monkeypatch, PATIENCE + 1) == PATIENCE

    def test_g4_no_longer_than_the_other_is_in_it(self, monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.pauses(monitor, monkeypatch, 2) == 2

    def test_g12_not_for_his_own(self, monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
        with monitor.lock:
            assert self.pauses(monitor, monkeypatch, 2) == 0
