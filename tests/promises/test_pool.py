"""G7, G8, G12: how many threads compute, who is taken for blocked, what a signal handler that raises leaves of that.

The looks of the watch are made by the tests themselves: on a busy machine any worker may seem blocked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from kit import BOUND, LONG, Alarm, Gate, Log, Team, at_rest, no_thread, soon

from eventbus import DispatcherError, EventBus, Status
from eventbus._engine import dispatcher, primitives
from eventbus._engine.dispatcher import Dispatcher


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "WATCH_SECONDS", LONG)
    monkeypatch.setattr(dispatcher, "SLICE_SECONDS", LONG)
    monkeypatch.setattr(dispatcher, "IDLE_SECONDS", LONG)
    monkeypatch.setattr(primitives, "wall_clock", lambda: 1e9)  # so that latencies are measured once


def look(bus: EventBus) -> None:
    """As the watch would."""
    bus._engine.look(bus._engine.dispatcher._look)


class TestBlocked:
    """A worker that two looks find in the same handler, while others wait for one, is replaced."""

    def test_g7_two_looks_find_it_and_its_mailbox_is_known_as_slow(self, bus: EventBus) -> None:
        other = Log()
        with Gate() as gate:
            slow = bus.on("slow", gate)._box
            quick = bus.on("quick", other)._box
            bus.emit("slow", 1)
            gate.entered()
            bus.emit("quick", 1)
            look(bus)
            assert (bus.stats().pool.blocked, slow.slow, other.items) == (0, False, [])
            look(bus)
            assert other.reached(1) == [1]
            assert (bus.stats().pool.blocked, slow.slow, quick.slow) == (1, True, False)
        bus.drain(BOUND)

    def test_g7_a_worker_that_goes_on_between_two_looks_is_not_taken_for_blocked(self, bus: EventBus) -> None:
        with Gate() as gate:
            box = bus.on("t", gate)._box
            bus.on("other", lambda _: None)
            for number in range(6):
                bus.emit("t", number)
            gate.let(2)
            gate.entered(3)  # the first ones may be measured, and after those it is others' turn
            bus.emit("other")
            for number in range(4, 7):
                look(bus)
                gate.let()
                gate.entered(number)
            assert (bus.stats().pool.blocked, box.slow) == (0, False)
            look(bus)
            look(bus)
            assert (bus.stats().pool.blocked, box.slow) == (1, True)
        bus.drain(BOUND)

    def test_g7_nor_is_one_that_goes_on_with_another_mailbox(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dispatcher, "SLICE_SECONDS", 0.0)
        with Gate() as gate:
            boxes = [bus.on(topic, gate)._box for topic in "abc"]
            for _ in range(3):
                for topic in "abc":
                    bus.emit(topic)
            for number in range(1, 7):
                gate.entered(number)
                look(bus)
                gate.let()
            gate.entered(7)
            assert (bus.stats().pool.blocked, [box.slow for box in boxes]) == (0, [False] * 3)
        bus.drain(BOUND)

    @pytest.mark.parametrize("slice_seconds", [0.0, LONG])
    @pytest.mark.parametrize("concurrency", [1, 2])
    @pytest.mark.parametrize("follow", [False, True])  # which takes a step
    def test_g3_a_mailbox_stands_in_the_ready_queue_once(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, slice_seconds: float, concurrency: int, follow: bool
    ) -> None:
        """However its worker came to leave it, and whatever is emitted then."""
        monkeypatch.setattr(dispatcher, "SLICE_SECONDS", slice_seconds)
        ready = bus._engine.dispatcher.ready
        with Gate() as gate:
            for topic in "ab":
                bus.on(topic, gate, concurrency=concurrency)
            for number in range(8):
                gate.entered(number)
                if number:
                    gate.let()
                    gate.passed(number)
                    gate.entered(number + 1)
                for topic in "abab":
                    bus.emit(topic, follow=follow)
                found = bus._engine.look(lambda: tuple(ready))
                assert len(found) == len(set(found))
        bus.drain(BOUND)

    def test_g7_a_pool_in_which_all_are_stuck_is_not_looked_at(self) -> None:
        """It may be stuck for hours, and costs nothing meanwhile."""
        other = Log()
        with EventBus(workers=1, max_workers=1) as bus, Gate() as gate:
            pool = bus._engine.dispatcher
            bus.on("slow", gate)
            bus.on("quick", other)
            bus.emit("slow")
            gate.entered()
            bus.emit("quick", 1)
            assert pool.watching
            look(bus)
            assert pool.watching
            look(bus)
            assert (pool.computing, pool.watching, len(pool.ready)) == (0, False, 1)
            gate.open()
            assert other.reached(1) == [1]
            bus.drain(BOUND)

    def test_g7_one_that_retires_leaves_a_watch_on_those_that_stay(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A handler is back from a wait inside the bus, so there are two; then it waits for what is ready elsewhere."""
        monkeypatch.setattr(dispatcher, "SLICE_SECONDS", 0.0)
        with Gate() as gate, Gate() as stuck:

            def asks(_: Any) -> None:
                receipts = [bus.emit("t", number) for number in range(3)]
                receipts[0].wait(BOUND)
                stuck(None)

            bus.on("t", gate)
            bus.on("asks", asks)
            bus.emit("asks")
            gate.entered()
            gate.let()
            gate.entered(2)
            stuck.entered()
            look(bus)  # nothing is ready
            assert not bus._engine.dispatcher.watching
            gate.let()
            soon(lambda: bus.stats().pool.idle == 1, "one of them retires")
            assert (bus.stats().pool.ready, bus._engine.dispatcher.watching) == (1, True)
            look(bus)
            look(bus)
            gate.entered(3)
        bus.drain(BOUND)

    def test_g7_one_that_is_back_from_a_wait_is_watched(self) -> None:
        """All others being stuck, nobody was."""
        with EventBus(workers=1, max_workers=1) as bus, Gate() as stuck:
            pool = bus._engine.dispatcher

            def asks(_: Any) -> None:
                with bus.stream("over") as over:
                    bus.emit("stuck")
                    bus.emit("t")
                    next(over)
                stuck(None)

            for topic in ("stuck", "t"):
                bus.on(topic, stuck)
            bus.on("asks", asks)
            bus.emit("asks")
            stuck.entered()
            look(bus)
            look(bus)
            assert (pool.computing, pool.watching, len(pool.ready)) == (0, False, 1)
            bus.emit("over")
            stuck.entered(2)
            assert (pool.computing, pool.watching) == (1, True)
            stuck.open()
            bus.drain(BOUND)

    def test_g7_where_no_more_threads_are_allowed_those_that_compute_are_watched(self) -> None:
        with EventBus(workers=2, max_workers=2) as bus, Gate() as gate:
            pool = bus._engine.dispatcher
            slow = bus.on("slow", gate)._box
            bus.on("t", gate)
            bus.on("u", gate)
            bus.emit("t")
            gate.entered()
            slow.slow = True
            bus._engine.look(lambda: [bus.emit("slow"), bus.emit("u")])  # two at once
            gate.entered(2)
            assert (pool.computing, pool.watching, len(pool.ready)) == (1, True, 1)
            gate.open()
            bus.drain(BOUND)

    def test_g12_a_watch_that_a_signal_handler_has_prevented_is_made_good(self, bus: EventBus) -> None:
        pool = bus._engine.dispatcher
        with Gate() as gate:
            bus.on("t", gate)
            bus.on("quick", lambda _: None)
            bus.emit("t")
            gate.entered()
            bus.emit("quick")

            def prevented() -> None:
                bus._engine.timer._heap.clear()
                pool.watching = False

            bus._engine.look(prevented)
            bus._engine.look(lambda: pool.mend(bus._engine.all_boxes()))
            assert pool.watching
        bus.drain(BOUND)

    def test_g7_nobody_is_blocked_while_nobody_waits_for_a_worker(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("t", gate)
            bus.emit("t")
            gate.entered()
            for _ in range(3):
                look(bus)
            assert bus.stats().pool.blocked == 0

    def test_g7_whoever_waits_inside_the_bus_is_not_taken_for_blocked(self, bus: EventBus) -> None:
        with Gate() as gate:
            asks = bus.on("asks", lambda _: bus.emit("t").wait(BOUND) and None)._box
            bus.on("t", gate)
            bus.emit("asks")
            gate.entered()
            bus.on("other", lambda _: None)
            bus.emit("other")
            look(bus)
            look(bus)
            assert (bus.stats().pool.waiting, bus.stats().pool.blocked, asks.slow) == (1, 1, False)
        bus.drain(BOUND)

    def test_g7_what_is_known_as_slow_is_counted_out_as_it_begins_until_it_is_quick(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = Log()
        bus.on("quick", other)
        with Gate() as gate:
            box = bus.on("slow", gate)._box
            bus.emit("slow")
            gate.entered()
            bus.emit("quick", 1)
            look(bus)
            look(bus)
            assert other.reached(1) == [1]
            monkeypatch.setattr(dispatcher, "QUICK_SECONDS", 0.0)  # nothing is
            gate.let()
            bus.drain(BOUND)
            assert box.slow is True
            bus.emit("slow")
            gate.entered(2)
            assert bus.stats().pool.blocked == 1
            bus.emit("quick", 2)
            assert other.reached(2) == [1, 2]
            monkeypatch.setattr(dispatcher, "QUICK_SECONDS", LONG)  # everything is
            gate.let()
            bus.drain(BOUND)
            assert box.slow is False
            bus.emit("slow")
            gate.entered(3)
            assert bus.stats().pool.blocked == 0
        bus.drain(BOUND)

    def test_g7_one_look_is_planned_at_a_time(self, bus: EventBus) -> None:
        """However often a worker takes something up while others wait."""
        timer = bus._engine.timer
        with Gate() as gate:
            for name in ("one", "two", "three"):
                bus.on(name, gate)
            for _ in range(3):
                for name in ("one", "two", "three"):
                    bus.emit(name)
            gate.entered()
            gate.let(4)
            gate.entered(5)
            assert len(timer._heap) == 1
            assert bus._engine.dispatcher.watching is True
            look(bus)
            assert len(timer._heap) == 2  # the one that was planned has not come, for it was made out of turn
        bus.drain(BOUND)

    def test_g7_past_its_time_out_it_is_replaced_at_once(self, bus: EventBus) -> None:
        other = Log()
        with Gate() as gate:
            bus.on("slow", gate, timeout=LONG)
            bus.on("quick", other)
            receipt = bus.emit("slow")
            gate.entered()
            (worker,) = bus._engine.dispatcher.alive
            bus.emit("quick", 1)
            assert worker.delivery is not None
            bus._engine.look(lambda: worker.expire(worker.delivery))
            assert receipt.wait(BOUND).outcomes[0].status is Status.TIMED_OUT
            assert other.reached(1) == [1]
            assert bus.stats().pool.blocked == 1
        bus.drain(BOUND)

    def test_g7_who_has_gone_on_since_is_not_replaced(self, bus: EventBus) -> None:
        """A handler that ran inline, say, on the stack of the one that he runs."""
        with Gate() as gate:
            bus.on("a", gate, timeout=LONG)
            bus.emit("a")
            gate.entered()
            (worker,) = bus._engine.dispatcher.alive
            mine, worker.delivery = worker.delivery, None
            assert mine is not None
            bus._engine.look(lambda: worker.expire(mine))
            assert bus.stats().pool.blocked == 0
            worker.delivery = mine
        bus.drain(BOUND)


class TestWaits:
    """A worker whose handler waits inside the bus counts against nothing, however many waits of it there are."""

    def test_g8_it_gives_up_its_place_with_the_first_and_takes_it_with_the_last(self, bus: EventBus) -> None:
        pool = bus._engine.dispatcher
        seen: list[tuple[int, int, int]] = []

        def numbers() -> None:
            seen.append((pool.threads, pool.computing, worker.waits))

        with Gate() as gate:
            bus.on("t", gate)
            bus.emit("t")
            gate.entered()
            (worker,) = pool.alive
            for step in (numbers, worker.enter_wait, numbers, worker.enter_wait, numbers, worker.exit_wait, numbers):
                bus._engine.look(step)
            bus._engine.look(worker.exit_wait)
            bus._engine.look(numbers)
        assert seen == [(1, 1, 0), (0, 0, 1), (0, 0, 2), (0, 0, 1), (1, 1, 0)]

    def test_g8_blocked_as_well_it_counts_once(self, bus: EventBus) -> None:
        pool = bus._engine.dispatcher
        seen: list[tuple[int, int]] = []

        def numbers() -> None:
            seen.append((pool.threads, pool.computing))

        with Gate() as gate:
            bus.on("t", gate)
            bus.emit("t")
            gate.entered()
            (worker,) = pool.alive
            waits, ends = worker.enter_wait, worker.exit_wait
            for step in (worker.block, numbers, waits, numbers, worker.block, numbers, ends, numbers):
                bus._engine.look(step)
        bus.drain(BOUND)
        assert seen == [(1, 0), (0, 0), (0, 0), (1, 0)]

    def test_g8_its_place_is_taken_only_by_whom_something_waits_for(self, bus: EventBus) -> None:
        pool, third = bus._engine.dispatcher, Log()
        with Gate() as gate, Gate() as second:
            bus.on("t", gate)
            bus.on("second", second)
            bus.emit("t")
            gate.entered()
            (worker,) = pool.alive
            bus._engine.look(worker.enter_wait)
            assert (pool.starting, pool.computing, len(pool.alive)) == (0, 0, 1)
            bus._engine.look(worker.exit_wait)
            bus.emit("second")
            bus._engine.look(worker.enter_wait)
            second.entered()
            assert (pool.threads, pool.computing, len(pool.alive)) == (1, 1, 2)
            bus._engine.look(worker.exit_wait)
            assert (pool.threads, pool.computing) == (2, 2)  # until somebody retires
            bus.on("third", third)
            bus.emit("third", 3)
            for step in (pool.retry, worker.enter_wait, pool.retry):
                bus._engine.look(step)
            assert (pool.threads, pool.computing, pool.starting, len(pool.alive)) == (1, 1, 0, 2)
            bus._engine.look(worker.exit_wait)
            gate.open()
            soon(lambda: pool.idle)  # though something is ready: the other one goes on
            assert (pool.threads, pool.computing, third.items) == (2, 1, [])
        bus.drain(BOUND)
        assert third.items == [3]


class TestNumbers:
    """How many compute, of several."""

    def test_g7_as_many_as_there_are_workers_for(self) -> None:
        with EventBus("test", workers=3) as bus, Gate() as gate:
            pool = bus._engine.dispatcher
            for topic in "abcd":
                bus.on(topic, gate)
            for number, topic in enumerate("abc", 1):
                bus.emit(topic)
                gate.entered(number)
                assert (pool.threads, pool.computing) == (number, number)
            bus.emit("d")
            assert (pool.threads, pool.computing, len(pool.ready)) == (3, 3, 1)
            workers = sorted(pool.alive, key=lambda worker: worker.actor)
            bus._engine.look(workers[0].block)
            gate.entered(4)
            assert (pool.threads, pool.computing) == (4, 3)
            gate.open()
            bus.drain(BOUND)
            soon(lambda: not any(at_rest(bus)))

    def test_g7_whoever_is_tried_for_again_is_one_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with EventBus("test", workers=4) as bus, Gate() as gate:
            pool = bus._engine.dispatcher
            for topic in "abc":
                bus.on(topic, gate)
            for number, topic in enumerate("ab", 1):
                bus.emit(topic)
                gate.entered(number)
            with monkeypatch.context() as patch:
                patch.setattr(primitives, "start_thread", no_thread)
                bus.emit("c")
                assert (pool.threads, pool.computing, len(pool.ready)) == (2, 2, 1)
            bus._engine.look(pool.retry)
            gate.entered(3)
            assert (pool.threads, pool.computing, len(pool.ready)) == (3, 3, 0)
            gate.open()
            bus.drain(BOUND)
            soon(lambda: not any(at_rest(bus)))

    def test_g8_where_the_watch_has_no_thread_a_wait_for_what_nobody_takes_raises(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Only the timer's thread would find that the one worker is stuck."""

        log = Log()
        bus.on("b", log)
        with Gate() as gate:
            bus.on("a", gate)
            bus.emit("a")
            gate.entered()
            with monkeypatch.context() as patch:
                patch.setattr(primitives, "start_thread", no_thread)
                receipt = bus.emit("b", 1)
                with pytest.raises(DispatcherError, match="no thread can be started"):
                    receipt.wait(BOUND)
        assert receipt.wait(BOUND).done
        assert log.items == [1]

    def test_g7_no_more_than_max_workers_and_the_next_that_returns_takes_what_is_ready(self) -> None:
        log = Log()
        with EventBus("test", max_workers=1) as bus, Gate() as gate:
            pool = bus._engine.dispatcher
            bus.on("a", gate)
            bus.on("b", log)
            bus.emit("a")
            gate.entered()
            bus.emit("b", 1)
            (worker,) = pool.alive
            bus._engine.look(worker.block)
            assert (pool.threads, pool.computing, pool.starting) == (1, 0, 0)
            gate.open()
            assert log.reached(1) == [1]
            bus.drain(BOUND)
            soon(lambda: not any(at_rest(bus)))

    def test_g10_who_becomes_idle_after_the_pool_was_stopped_does_not_sleep(self, bus: EventBus) -> None:
        timeouts: list[float | None] = []

        class Recording(primitives.Sleeper):
            def sleep(self, timeout: float | None = None) -> bool:
                timeouts.append(timeout)
                return super().sleep(timeout)

        pool = bus._engine.dispatcher
        with Gate() as gate:
            bus.on("a", gate)
            bus.emit("a")
            gate.entered()
            (worker,) = pool.alive
            worker.sleeper = Recording()
            bus._engine.look(pool.stop)
        soon(lambda: not pool.alive)
        assert timeouts == [0.0]
        pool.stopping = False


class TestBroken:
    """A signal handler raises as a thread is roused or started: nobody is lost, and nobody counted twice."""

    def test_g12_before_the_thread_was_started(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken(bus, monkeypatch, lambda start, arguments: None)

    def test_g12_after_the_thread_was_started(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken(bus, monkeypatch, lambda start, arguments: start(*arguments))

    def test_g12_after_the_thread_has_begun(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        def begins(start: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
            start(*arguments)
            soon(lambda: any(worker.begun for worker in bus._engine.dispatcher.alive))

        self.broken(bus, monkeypatch, begins)

    @staticmethod
    def broken(bus: EventBus, monkeypatch: pytest.MonkeyPatch, first: Callable[..., None]) -> None:
        start, calls = primitives.start_thread, list[Any]()

        def alarmed(*arguments: Any) -> Any:
            calls.append(arguments)
            if len(calls) > 1:
                return start(*arguments)
            first(start, arguments)
            raise Alarm

        monkeypatch.setattr(primitives, "start_thread", alarmed)
        log = Log()
        bus.on("a", log)
        with pytest.raises(Alarm):
            bus.emit("a", 1)
        assert log.reached(1) == [1]
        bus.emit("a", 2)
        bus.drain(BOUND)
        assert log.items == [1, 2]
        soon(lambda: not any(at_rest(bus)))

    @pytest.mark.usefixtures("in_python")
    def test_g12_after_an_idle_one_was_chosen(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        """And before anybody was told to wake it."""
        log = Log()
        bus.on("a", log)
        bus.emit("a", 1)
        soon(lambda: log.items and not any(at_rest(bus)))

        def alarmed(pool: Dispatcher) -> None:
            monkeypatch.undo()
            pool.idle.pop()
            raise Alarm

        monkeypatch.setattr(Dispatcher, "rouse", alarmed)
        with pytest.raises(Alarm):
            bus.emit("a", 2)
        assert log.reached(2) == [1, 2]


class TestThreads:
    def test_g3_where_none_can_be_started_the_next_emit_tries_again(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As does whoever finds one later: the timer, here without a thread itself."""
        calls: list[Any] = []

        def refuse(*arguments: Any) -> None:
            calls.append(arguments)
            raise RuntimeError("can't start new thread")

        log = Log()
        box = bus.on("a", log)._box
        pool = bus._engine.dispatcher
        with monkeypatch.context() as patch:
            patch.setattr(primitives, "start_thread", refuse)
            bus.emit("a", 1)
            assert calls
            assert (pool.threads, pool.computing, pool.starting, len(pool.alive)) == (0, 0, 0, 0)
            assert (box.queued, len(pool.ready)) == (False, 1)
            bus.emit("a", 2)
            assert (pool.threads, pool.computing, pool.starting, len(pool.alive)) == (0, 0, 0, 0)
        bus.emit("a", 3)
        bus.drain(BOUND)
        assert log.items == [1, 2, 3]

    def test_g3_where_one_works_the_next_that_cannot_be_started_is_tried_for_later(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start, refused = primitives.start_thread, list[str]()

        def refuse_second(target: Callable[[], None], name: str) -> Any:
            if "test-" in name and not refused:
                refused.append(name)
                raise RuntimeError("can't start new thread")
            return start(target, name)

        log = Log()
        bus.on("other", log)
        with Gate() as gate, Team() as team:
            bus.on("t", gate)
            bus.emit("t")
            gate.entered()
            bus.emit("other", 1)
            (worker,) = bus._engine.dispatcher.alive
            monkeypatch.setattr(primitives, "start_thread", refuse_second)
            team.add(bus._engine.look, worker.block)
            team.go()
            assert log.reached(1) == [1]
            assert len(refused) == 1
        bus.drain(BOUND)

    def test_a_thread_is_a_worker_between_handlers_but_not_in_one(self, bus: EventBus) -> None:
        pool = bus._engine.dispatcher
        inside: list[bool] = []
        bus.on("a", lambda _: inside.append(pool.between(threading.get_ident())))
        bus.emit("a").wait(BOUND)
        (worker,) = pool.alive
        assert worker.thread is not None
        ident = worker.thread.ident
        assert ident is not None
        assert inside == [False]
        assert pool.between(ident)
        assert not pool.between(threading.get_ident())
