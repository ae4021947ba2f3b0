"""G10: drain, the two steps of a close, forgotten buses, and the interpreter's exit (in processes of their own)."""

from __future__ import annotations

import contextvars
import gc
import re
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, Log, Team, dies, past, settled, sleeps, soon, threads_of
from kit_process import SAY, begin, kill

from eventbus import BusClosedError, CloseReport, DeadlockError, EventBus, EventTimeoutError, Receipt, Status
from eventbus._engine import dispatcher, draining, primitives, timer
from eventbus_async import AsyncEventBus

ROOT = Path(__file__).resolve().parents[2]


def statuses(*receipts: Receipt) -> list[str]:
    return [each.status.value for receipt in receipts for each in receipt.wait(BOUND).outcomes]


def refused(bus: EventBus, topic: str = "a") -> bool:
    """Whether an emit from here is refused because the bus closes."""
    try:
        bus.emit(topic)
    except BusClosedError:
        return True
    return False


class TestDrain:
    def test_g10_it_returns_when_what_was_accepted_before_is_settled(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate)
            receipts = [bus.emit("a", n) for n in range(5)]
            with Team() as team:
                thread = team.add(lambda: bus.drain(BOUND) or [each.done for each in receipts])
                team.go()
                sleeps(thread)
                assert not receipts[4].done
                gate.open()
            assert team.results == [[True] * 5]

    def test_g10_an_idle_bus_is_drained_at_once(self, bus: EventBus) -> None:
        bus.drain()
        bus.drain(0)
        bus.emit("nobody")
        bus.drain(0)

    def test_g10_it_does_not_wait_for_what_came_later(self, bus: EventBus) -> None:
        with Gate() as early, Gate() as late:
            bus.on("early", early)
            bus.on("late", late)
            bus.emit("early")
            with Team() as team:
                thread = team.add(bus.drain, BOUND)
                team.go()
                sleeps(thread)
                later = bus.emit("late")
                early.open()
                thread.join(BOUND)
                assert not thread.is_alive()
                assert not later.done
                late.open()

    def test_g10_it_waits_for_what_that_causes_at_any_depth(self, bus: EventBus) -> None:
        """Though it is emitted while the drain waits."""
        with Gate() as first, Gate() as last:

            def handler(n: int) -> None:
                (first if n == 0 else last if n == 3 else Log())(n)
                if n < 3:
                    bus.emit("chain", n + 1)

            bus.on("chain", handler)
            bus.emit("chain", 0)
            first.entered()
            with Team() as team:
                thread = team.add(bus.drain, BOUND)
                team.go()
                sleeps(thread)
                first.open()
                last.entered()
                with pytest.raises(EventTimeoutError):
                    bus.drain(0)
                assert thread.is_alive()
                last.open()

    def test_g10_it_waits_for_observers_and_for_those_in_line(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, observer=True, max_pending=1)
            bus.emit("a")
            gate.entered()
            bus.emit("a")
            team.go()
            team.add(bus.emit, "a")
            soon(lambda: subscription.stats().pending == 2)
            drainer = team.add(lambda: bus.drain(BOUND) or gate.left)
            sleeps(drainer)
            gate.open()
        assert team.results[1] == 3

    def test_g10_a_time_out_names_what_is_unsettled_and_undoes_nothing(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, name="slowpoke")
            receipts = [bus.emit("a"), bus.emit("a")]
            for timeout in (0, 0.005):
                with pytest.raises(TimeoutError, match="slowpoke"):
                    bus.drain(timeout)
            assert not bus.closed
            gate.open()
            bus.drain(BOUND)
            assert statuses(*receipts) == ["delivered"] * 2

    @pytest.mark.parametrize(("handlers", "more"), [(1, ""), (10, ""), (11, " and 1 more"), (13, " and 3 more")])
    def test_g10_the_message_of_a_drain_that_ran_out_is_whole(self, bus: EventBus, handlers: int, more: str) -> None:
        """It names ten at most."""
        with Gate() as gate:
            names = [f"h{n}" for n in range(handlers)]
            for name in names:
                bus.on("a", gate, name=name)
            bus.emit("a")
            with pytest.raises(EventTimeoutError) as caught:
                bus.drain(0)
        shown = ", ".join(f"{name} (a)" for name in names[:10])
        assert str(caught.value) == f"after 0 s the bus 'test' still has: {shown}{more}"

    def test_g10_what_was_overdue_may_be_settled_by_the_time_it_is_told(self, bus: EventBus) -> None:
        assert draining.overdue(bus._engine, 0.25) == "after 0.25 s the bus 'test' still has: nothing any more"

    def test_g12_a_drain_in_the_midst_of_the_buss_own_work_is_refused(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate)
            bus.emit("a")

            def within() -> str:
                with pytest.raises(DeadlockError) as caught:
                    bus.drain(0)
                return str(caught.value)

            assert bus._engine.monitor.run(within).startswith("cannot wait for the drain of the bus here: ")

    def test_g18_the_bus_keeps_nothing_of_drains_that_have_ended(self, bus: EventBus) -> None:
        """Those within handlers want to be told of each settling, others of the last alone."""
        engine = bus._engine
        with Gate() as gate, Team() as team:
            bus.on("a", gate)
            bus.on("drains", lambda _: bus.drain(BOUND), concurrency=2)
            bus.emit("a")
            thread = team.add(bus.drain, BOUND)
            team.go()
            sleeps(thread)
            assert (len(engine.drains), engine.keen) == (1, 0)
            receipts = [bus.emit("drains"), bus.emit("drains")]
            soon(lambda: len(engine.drains) == 3, "both drains within handlers")
            assert engine.keen == 2
            gate.open()
            assert statuses(*receipts) == ["delivered"] * 2
        assert (engine.drains, engine.keen) == ([], 0)

    def test_g10_several_threads_drain_at_once(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            bus.on("a", gate)
            bus.emit("a")
            threads = [team.add(bus.drain, BOUND) for _ in range(4)]
            team.go()
            for thread in threads:
                sleeps(thread)
            gate.open()

    def test_g10_a_drained_bus_goes_on(self, bus: EventBus) -> None:
        log = Log()
        bus.on("a", log)
        for n in range(20):
            bus.emit("a", n)
            bus.drain(BOUND)
            assert log.items == list(range(n + 1))

    def test_g10_hammer_every_drain_covers_all_emits_before_it(self, bus: EventBus) -> None:
        def work(number: int) -> list[bool]:
            log = Log()
            bus.on(f"own/{number}", lambda n: bus.emit(f"child/{number}", n))
            bus.on(f"child/{number}", log)
            found = []
            for n in range(40):
                bus.emit(f"own/{number}", n)
                bus.drain(BOUND)
                found.append(len(log.items) == n + 1)
            return found

        with Team() as team:
            for number in range(3):
                team.add(work, number)
        assert team.results == [[True] * 40] * 3

    def test_g10_on_a_closed_bus_there_is_nothing_to_drain(self, bus: EventBus) -> None:
        bus.close(BOUND)
        bus.drain(0)


class TestDrainInAHandler:
    def test_g10_it_leaves_out_itself_and_what_stands_behind_it_and_waits_for_the_rest(self, bus: EventBus) -> None:
        with Gate() as gate:
            left: list[int] = []
            bus.on("other", gate)
            bus.on("a", lambda payload: left.append(bus.drain(BOUND) or gate.left) if payload == "drains" else None)
            other = bus.emit("other")
            gate.entered()
            receipts = [bus.emit("a", "drains"), bus.emit("a", "behind")]
            soon(lambda: bus.stats().pool.waiting == 1)
            assert not other.done
            gate.open()
            assert statuses(*receipts) == ["delivered"] * 2
            assert left == [1]

    def test_g10_it_leaves_out_a_handler_that_waits_for_it(self, bus: EventBus) -> None:
        known = Log()
        bus.on("waits", lambda _: known.reached(1)[0].wait(BOUND) and None)

        def drains(_: Any) -> None:
            soon(lambda: bus.stats().pool.waiting == 1)
            bus.drain(BOUND)

        bus.on("drains", drains)
        waiting = bus.emit("waits")
        known(bus.emit("drains"))
        assert statuses(known.items[0], waiting) == ["delivered"] * 2

    def test_g10_it_leaves_out_a_handler_that_comes_to_wait_for_it_later(self, bus: EventBus) -> None:
        """It begins to wait while the drain waits for it."""
        known = Log()

        def waits(_: Any) -> None:
            soon(lambda: bus.stats().pool.waiting == 1)  # the drain
            known.reached(1)[0].wait(BOUND)

        bus.on("waits", waits)
        bus.on("drains", lambda _: bus.drain(BOUND))
        waiting = bus.emit("waits")
        soon(lambda: waiting.deliveries == 1 and bus.stats().totals.running == 1)
        known(bus.emit("drains"))
        assert statuses(known.items[0], waiting) == ["delivered"] * 2

    def test_g10_it_leaves_out_a_handler_that_waits_for_space_behind_it(self, bus: EventBus) -> None:
        """Whoever of the two comes to wait last: the space comes when the one that drains has ended."""
        inside = threading.Event()

        def drains(payload: Any) -> None:
            if payload == "drains":
                inside.set()
                soon(lambda: bus.stats().pool.waiting == 1)
                bus.drain(BOUND)

        def fills(_: Any) -> None:
            assert inside.wait(BOUND)
            for n in range(3):
                bus.emit("drains", n)

        subscription = bus.on("drains", drains, max_pending=2)
        bus.on("fills", fills)
        assert statuses(bus.emit("drains", "drains"), bus.emit("fills")) == ["delivered"] * 2
        bus.drain(BOUND)
        assert subscription.stats().delivered == 4

    def test_g10_two_handlers_that_drain_leave_each_other_out(self, bus: EventBus) -> None:
        meet = threading.Barrier(2)
        bus.on("a", lambda _: (meet.wait(BOUND) and None) or bus.drain(BOUND), concurrency=2)
        assert statuses(bus.emit("a"), bus.emit("a")) == ["delivered"] * 2

    def test_g10_what_it_has_emitted_itself_is_waited_for(self, bus: EventBus) -> None:
        log = Log()
        bus.on("child", log)

        def handler(_: Any) -> int:
            for n in range(10):
                bus.emit("child", n)
            bus.drain(BOUND)
            return len(log.items)

        bus.on("a", handler)
        assert bus.emit("a").wait(BOUND).results() == [10]

    def test_g10_it_does_not_wait_for_what_came_later(self, bus: EventBus) -> None:
        with Gate() as early, Gate() as late:
            bus.on("early", early)
            bus.on("late", late)
            bus.on("drains", lambda _: bus.drain(BOUND))
            bus.emit("early")
            receipt = bus.emit("drains")
            soon(lambda: bus.stats().pool.waiting == 1)
            later = bus.emit("late")
            late.entered()
            assert not receipt.done
            early.open()
            assert statuses(receipt) == ["delivered"]
            assert not later.done

    def test_g10_an_inline_handler_drains_too(self, bus: EventBus) -> None:
        log = Log()
        bus.on("a", lambda _: bus.drain(BOUND), inline=True)
        bus.on("a", log)
        assert statuses(bus.emit("a", 1)) == ["delivered"] * 2


class TestDraining:
    """The first step of a close."""

    def test_g10_emits_and_registrations_from_outside_are_refused_and_what_is_there_runs(self, bus: EventBus) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate)
            receipts = [bus.emit("a", n) for n in range(3)]
            gate.entered()
            with Team() as team:
                thread = team.add(bus.close, BOUND)
                team.go()
                sleeps(thread)
                assert bus.closed
                before = bus.stats().events
                assert refused(bus)
                with pytest.raises(BusClosedError, match="closing"):
                    bus.request("a")
                with pytest.raises(BusClosedError):
                    bus.on("a", Log())
                assert bus.stats().events == before
                assert subscription.active  # it still runs what was accepted
                gate.open()
            assert team.results == [CloseReport()]
            assert statuses(*receipts) == ["delivered"] * 3
            assert gate.received == [0, 1, 2]

    def test_g10_what_deliveries_of_before_cause_is_accepted_at_any_depth(self, bus: EventBus) -> None:
        """Also of one that was only pending at the call."""
        with Gate() as gate:
            log = Log()

            def handler(n: int) -> None:
                log(n)
                if n % 10 < 3:
                    bus.emit("chain", n + 1)

            bus.on("gate", gate, lane="lane")
            bus.on("chain", handler, lane="lane")
            bus.emit("gate")
            gate.entered()
            bus.emit("chain", 0)
            bus.emit("chain", 10)
            with Team() as team:
                thread = team.add(bus.close, BOUND)
                team.go()
                sleeps(thread)
                gate.open()
            assert sorted(log.items) == [0, 1, 2, 3, 10, 11, 12, 13]
            assert team.results == [CloseReport()]

    def test_g10_a_thread_that_a_handler_started_may_emit_until_that_is_settled(self, bus: EventBus) -> None:
        """With its context; without, and once it is settled, it is an outsider."""
        log = Log()
        found: list[bool] = []
        context: list[contextvars.Context] = []

        with Gate() as gate:

            def handler(_: Any) -> None:
                context.append(contextvars.copy_context())
                gate("entered")
                thread = threading.Thread(target=context[0].run, args=(bus.emit, "child", "in time"))
                thread.start()
                thread.join(BOUND)
                outsider = threading.Thread(target=lambda: found.append(refused(bus, "child")))
                outsider.start()
                outsider.join(BOUND)

            bus.on("a", handler)
            bus.on("child", log)
            with Gate() as holder:
                bus.on("hold", holder)
                bus.emit("hold")
                receipt = bus.emit("a")
                gate.entered()
                with Team() as team:
                    thread = team.add(bus.close, BOUND)
                    team.go()
                    sleeps(thread)
                    gate.open()
                    receipt.wait(BOUND)
                    found.append(context[0].run(refused, bus, "child"))  # settled, and the bus still drains
                    assert thread.is_alive()
                    holder.open()
        assert log.items == ["in time"]
        assert found == [True, True]

    def test_g10_the_buss_own_emits_are_accepted(self, bus: EventBus) -> None:
        with Gate() as gate:
            errors = Log()

            def handler(payload: Any) -> None:
                gate(payload)
                raise ValueError("while draining")

            bus.on("a", handler)
            bus.on("bus/error", errors)
            bus.emit("a")
            gate.entered()
            with Team() as team:
                thread = team.add(bus.close, BOUND)
                team.go()
                sleeps(thread)
                gate.open()
            assert [str(each.error) for each in errors.items] == ["while draining"]

    def test_g10_those_in_line_are_drained(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1)
            bus.emit("a", 0)
            gate.entered()
            bus.emit("a", 1)
            team.go()
            team.add(bus.emit, "a", 2)
            soon(lambda: subscription.stats().pending == 2)
            closer = team.add(bus.close, BOUND)
            sleeps(closer)
            gate.open()
        assert gate.received == [0, 1, 2]
        assert team.results[1] == CloseReport()


class TestClosed:
    """The second step."""

    def test_g10_out_of_time_what_is_left_is_cancelled_and_reported_without_an_error(self) -> None:
        with EventBus("late") as bus, Gate() as gate:
            bus.on("a", gate, name="stuck one")
            receipts = [bus.emit("a", n) for n in range(4)]
            gate.entered()
            report = bus.close(0.01)
            assert report == CloseReport(4, ("stuck one",))
            assert statuses(*receipts) == ["cancelled"] * 4
            settled(bus)

    def test_g10_a_thread_in_a_handler_is_a_daemon_and_ends_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It need not be idle for a while first."""
        monkeypatch.setattr(dispatcher, "IDLE_SECONDS", 60.0)
        bus = EventBus("daemons")
        refusals: list[bool] = []
        with Gate() as gate:
            bus.on("a", lambda payload: gate(payload) or refusals.append(refused(bus)))
            bus.emit("a")
            gate.entered()
            assert len(bus.close(0).stuck) == 1
            left = threads_of("daemons")
            assert left
            assert all(thread.daemon for thread in left)
            gate.open()
            soon(lambda: not threads_of("daemons"), "the end of the threads")
        assert refusals == [True]
        settled(bus)

    def test_g10_a_close_of_zero_seconds_runs_nothing_more(self) -> None:
        bus = EventBus("zero")
        with Gate() as gate:
            bus.on("a", gate)
            receipts = [bus.emit("a", n) for n in range(3)]
            gate.entered()
            bus.close(0)
            gate.open()
            assert statuses(*receipts) == ["cancelled"] * 3
        soon(lambda: gate.inside == 0)
        assert gate.received == [0]

    def test_g10_every_emit_raises_and_changes_nothing(self, bus: EventBus) -> None:
        subscription = bus.on("a", Log())
        bus.emit("a").wait(BOUND)
        bus.close(BOUND)
        before = bus.stats()
        for call in (lambda: bus.emit("a"), lambda: bus.request("a"), lambda: bus.on("a", Log())):
            with pytest.raises(BusClosedError, match="closed"):
                call()
        assert bus.stats().events == before.events
        assert bus.stats().totals == before.totals
        assert not subscription.active
        assert subscription.cancel() is False
        assert bus.subscriptions() == ()
        assert bus.handlers("a") == ()

    def test_g10_receipts_can_be_waited_for_afterwards(self, bus: EventBus) -> None:
        bus.on("a", lambda n: n)
        receipt = bus.emit("a", 1)
        bus.close(BOUND)
        assert receipt.wait(0).results() == [1]

    def test_g10_streams_end_and_what_they_hold_can_be_read(self, bus: EventBus) -> None:
        stream, empty = bus.stream("a"), bus.stream("b")
        for n in range(3):
            bus.emit("a", n)
        with Team() as team:
            reader = team.add(lambda: list(empty))
            team.go()
            sleeps(reader)
            bus.close(BOUND)
        assert team.results == [[]]
        assert [event.payload for event in stream] == [0, 1, 2]

    def test_g10_idle_threads_end_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Timer included; nobody waits for anything first."""
        monkeypatch.setattr(dispatcher, "IDLE_SECONDS", 60.0)
        monkeypatch.setattr(timer, "LINGER", 60.0)
        for _ in range(10):
            bus = EventBus("ends", workers=2)
            meet = threading.Barrier(3)
            bus.on("a", lambda _, meet=meet: meet.wait(BOUND), concurrency=3, timeout=30.0)
            receipts = [bus.emit("a") for _ in range(3)]
            for receipt in receipts:
                receipt.wait(BOUND)
            begun = time.monotonic()
            assert bus.close(BOUND) == CloseReport()
            soon(lambda: not threads_of("ends"), "the end of the threads")  # one may have been about to begin
            assert time.monotonic() - begun < 0.9  # a worker that was not woken is waited for a second

    def test_g10_a_thread_that_is_being_started_ends_at_once_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The timer's, asked for before the close, begins only after it: it must not stay for want of a wake-up."""
        monkeypatch.setattr(timer, "LINGER", 60.0)
        start = primitives.start_thread

        def start_late(target: Callable[[], None], name: str) -> threading.Thread:
            def late() -> None:
                soon(lambda: " closed" in repr(bus))
                target()

            return start(late if name.endswith("-timer") else target, name)

        monkeypatch.setattr(primitives, "start_thread", start_late)
        bus = EventBus("late")
        bus.on("a", lambda n: n, timeout=30.0)
        bus.emit("a", 1).wait(BOUND)
        assert bus.close(BOUND) == CloseReport()
        soon(lambda: not threads_of("late"), "the end of the threads")

    def test_g10_a_bus_that_was_never_used_closes_without_ever_having_a_thread(self) -> None:
        bus = EventBus("unused")
        assert threads_of("unused") == []
        assert bus.close() == CloseReport()
        assert threads_of("unused") == []

    def test_g10_leaving_with_is_close_with_its_time_out(self) -> None:
        with Gate() as gate:
            begun = time.monotonic()
            with EventBus("with", close_timeout=0.05) as bus:
                bus.on("a", gate)
                receipt = bus.emit("a")
                gate.entered()
            assert 0.05 <= time.monotonic() - begun < BOUND
            assert bus.closed
            assert receipt.outcomes[0].status is Status.CANCELLED

    def test_g10_all_that_is_left_is_counted_and_all_that_are_stuck_are_named(self) -> None:
        """Inline handlers in anybody's thread included; nobody's turn comes again."""
        with EventBus("left") as bus, Gate() as gate, Team() as team:
            bus.on("a", gate, name="one", concurrency=2)
            bus.on("b", gate, name="inline", inline=True)
            ended = bus.on("c", gate, name="draining", timeout=LONG)
            receipts = [bus.emit("a"), bus.emit("a"), bus.emit("c"), bus.emit("c")]
            emitter = team.add(bus.emit, "b")
            team.go()
            gate.entered(4)
            with pytest.raises(EventTimeoutError):
                ended.cancel(drain=True, timeout=0)
            assert bus.close(0) == CloseReport(5, ("one", "one", "inline", "draining"))
            assert statuses(*receipts) == ["cancelled"] * 4
            assert repr(ended).endswith("ended>")
            gate.open()
            emitter.join(BOUND)
            assert statuses(team.results[0]) == ["cancelled"]

    def test_g10_what_is_pending_without_a_loop_is_counted_too(self) -> None:
        bus = EventBus("homeless")
        facade = AsyncEventBus(bus)

        async def never(_: Any) -> None: ...

        facade.on("a", never)
        facade.on("a", never)
        receipts = [bus.emit("a"), bus.emit("a")]
        assert bus.close(BOUND) == CloseReport(4, ())
        assert statuses(*receipts) == ["cancelled"] * 4

    def test_g10_threads_that_are_idle_are_waited_for_and_others_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        joined: list[str] = []
        join = primitives.join_thread
        stand_in = threading.Thread(name="joins-timer")  # the timer's own may have ended by itself

        def note(thread: threading.Thread, timeout: float) -> bool:
            joined.append(thread.name)
            return thread is stand_in or join(thread, BOUND)

        monkeypatch.setattr(primitives, "join_thread", note)
        with EventBus("joins", workers=2) as bus, Gate() as gate:
            meet = threading.Barrier(2)
            bus.on("a", lambda _: meet.wait(BOUND) and None, concurrency=2)
            bus.on("stuck", gate)
            for receipt in (bus.emit("a"), bus.emit("a")):
                receipt.wait(BOUND)
            soon(lambda: bus.stats().pool.idle == 2)
            bus.emit("stuck")
            gate.entered()
            bus._engine.timer.thread = stand_in
            assert bus.close(0).stuck != ()
            stuck = [thread.name for thread in threads_of("joins") if "timer" not in thread.name]
            assert len(stuck) == 1
            assert sorted([*joined, *stuck]) == ["joins-1", "joins-2", "joins-timer"]

    def test_g10_a_handler_past_its_time_out_that_closes_is_not_called_stuck(self) -> None:
        bus = EventBus("late")
        reports: list[CloseReport] = []
        with Gate() as gate:
            bus.on("a", lambda payload: gate(payload) or reports.append(bus.close(0)), timeout=LONG)
            past(bus, gate, bus.emit("a"))
            gate.open()
            soon(lambda: reports)
        assert reports == [CloseReport()]

    def test_g12_one_in_the_midst_of_the_buss_own_work_is_made_in_a_thread_of_its_own(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """For it has to wait."""
        started: list[str] = []
        start = primitives.start_thread

        def note(target: Callable[[], None], name: str) -> threading.Thread:
            started.append(name)
            return start(target, name)

        monkeypatch.setattr(primitives, "start_thread", note)
        with EventBus("amid") as bus, Gate() as gate:
            bus.on("a", gate, name="stuck")
            receipt = bus.emit("a")
            gate.entered()
            assert bus._engine.monitor.run(bus.close, 0) == CloseReport()
            assert statuses(receipt) == ["cancelled"]
            assert bus.close(0) == CloseReport(1, ("stuck",))
            assert "amid-close" in started

    def test_g10_emitters_that_wait_for_space_are_woken(self) -> None:
        with EventBus("space") as bus, Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1)
            bus.emit("a")
            gate.entered()
            bus.emit("a")
            team.go()
            team.add(bus.emit, "a")
            soon(lambda: subscription.stats().pending == 2)
            bus.close(0)
        assert statuses(team.results[0]) == ["cancelled"]


class TestCloseAgainAndAtOnce:
    def test_g10_it_may_be_repeated_and_tells_the_same(self) -> None:
        with Gate() as gate:
            bus = EventBus("again")
            bus.on("a", gate, name="stuck")
            bus.emit("a")
            gate.entered()
            first = bus.close(0)
            gate.open()
            assert [bus.close(), bus.close(0), bus.close(None)] == [first] * 3
        with bus:
            pass
        assert first == CloseReport(1, ("stuck",))

    def test_g10_of_many_closes_at_once_all_return_the_same(self) -> None:
        for _ in range(20):
            bus = EventBus("many")
            bus.on("a", lambda n: n)
            receipts = [bus.emit("a", n) for n in range(20)]
            reports = Team(*[lambda bus=bus: bus.close(BOUND)] * 4).run()
            assert reports == [CloseReport()] * 4
            assert statuses(*receipts) == ["delivered"] * 20
            settled(bus)

    def test_g10_an_impatient_close_ends_a_patient_one(self) -> None:
        with EventBus("impatient") as bus, Gate() as gate, Team() as team:
            bus.on("a", gate, name="stuck")
            bus.emit("a")
            gate.entered()
            patient = team.add(bus.close, None)
            team.go()
            sleeps(patient)
            report = bus.close(0)
            patient.join(BOUND)
            assert not patient.is_alive()
        assert team.results == [report]
        assert report.stuck == ("stuck",)

    def test_g10_a_close_while_others_drain_wait_and_read(self) -> None:
        """Whoever waits is woken: receipts are settled as cancelled, drains are over, streams end."""
        with EventBus("others") as bus, Gate() as gate:
            bus.on("a", gate)
            stream = bus.stream("b")
            receipts = [bus.emit("a"), bus.emit("a")]
            gate.entered()
            with Team() as team:
                threads = [
                    team.add(bus.drain, BOUND),
                    team.add(receipts[1].wait, BOUND),
                    team.add(lambda: list(stream)),
                ]
                team.go()
                for thread in threads:
                    sleeps(thread)
                bus.close(0)
            assert team.results == [None, receipts[1], []]

    def test_g10_hammer_emitters_and_closers(self) -> None:
        """Every accepted emit is accounted for, every other one raised; in threads that know nothing of the close."""
        for round_ in range(15):
            bus = EventBus("hammer")
            log = Log()
            bus.on("a", log)
            bus.on("a", lambda n: bus.emit("child", n) and None)
            bus.on("child", log)

            def emitter(bus: EventBus = bus) -> list[Receipt]:
                made = []
                for n in range(2000):
                    try:
                        made.append(bus.emit("a", n))
                    except BusClosedError:
                        break
                return made

            with Team() as team:
                for _ in range(2):
                    team.add(emitter)
                team.go()
                log.reached(round_)
                report = bus.close(BOUND)
            assert report == CloseReport()
            receipts = [receipt for result in team.results for receipt in result]
            assert set(statuses(*receipts)) <= {"delivered"}
            assert len(log.items) == 2 * len(receipts)
            settled(bus)


class TestCloseInAHandler:
    def test_g10_it_leaves_out_the_caller_whose_delivery_ends_as_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dispatcher, "IDLE_SECONDS", 60.0)
        bus = EventBus("inside")
        other = Log()
        emitted = threading.Event()
        bus.on("a", lambda _: bus.close(BOUND) if emitted.wait(BOUND) else None)
        bus.on("b", other)
        bus.emit("b", 1)
        receipt = bus.emit("a")
        bus.emit("b", 2)
        emitted.set()
        assert receipt.wait(BOUND).results() == [CloseReport()]
        assert other.items == [1, 2]  # drained
        assert refused(bus)
        soon(lambda: not threads_of("inside"), "the end of the threads")
        settled(bus)

    def test_g10_what_stands_behind_the_caller_is_cancelled(self) -> None:
        bus = EventBus("behind")
        with Gate() as gate:
            bus.on("a", lambda payload: gate(payload) or bus.close(BOUND))
            receipts = [bus.emit("a", n) for n in range(3)]
            gate.open()
            assert statuses(*receipts) == ["delivered", "cancelled", "cancelled"]
        assert receipts[0].results() == [CloseReport(2, ())]

    def test_g10_a_handler_that_waits_for_the_caller_goes_on_when_that_returns(self) -> None:
        bus = EventBus("waits")
        known = Log()

        def closes(_: Any) -> CloseReport:
            soon(lambda: bus.stats().pool.waiting == 1)
            return bus.close(BOUND)

        bus.on("closes", closes)
        bus.on("waits", lambda _: known.reached(1)[0].wait(BOUND).results())
        waiting = bus.emit("waits")
        known(bus.emit("closes"))
        assert statuses(known.items[0]) == ["delivered"]
        assert waiting.wait(BOUND).results() == [[CloseReport()]]

    def test_g10_two_handlers_close_at_once(self) -> None:
        bus = EventBus("two")
        meet = threading.Barrier(2)
        bus.on("a", lambda _: (meet.wait(BOUND) and None) or bus.close(BOUND), concurrency=2)
        receipts = [bus.emit("a"), bus.emit("a")]
        assert statuses(*receipts) == ["delivered"] * 2
        assert [each.results()[0].stuck for each in receipts] == [(), ()]

    def test_g10_a_handler_closes_while_a_thread_outside_does(self) -> None:
        for _ in range(10):
            bus = EventBus("both")
            with Gate() as gate, Team() as team:
                bus.on("a", lambda payload, bus=bus, gate=gate: gate(payload) or bus.close(BOUND))
                receipt = bus.emit("a")
                gate.entered()
                outside = team.add(bus.close, BOUND)
                team.go()
                sleeps(outside)
                gate.open()
            assert statuses(receipt) == ["delivered"]
            assert team.results[0].stuck == ()

    def test_g10_inline_handlers_close_too(self) -> None:
        bus = EventBus("inline")
        later = Log()
        bus.on("a", lambda _: bus.close(BOUND), inline=True)
        bus.on("a", later)
        receipt = bus.emit("a", 1)
        assert statuses(receipt) == ["delivered"] * 2
        assert later.items == [1]
        settled(bus)

    def test_g10_a_close_from_a_handler_of_another_bus(self, bus: EventBus) -> None:
        other = EventBus("other")
        log = Log()
        other.on("b", log)
        other.emit("b", 1)
        bus.on("a", lambda _: other.close(BOUND))
        assert bus.emit("a").wait(BOUND).results() == [CloseReport()]
        assert log.items == [1]


class TestForgotten:
    @pytest.fixture
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dispatcher, "IDLE_SECONDS", 0.02)
        monkeypatch.setattr(timer, "LINGER", 0.02)

    @pytest.mark.usefixtures("short")
    def test_g10_threads_end_when_idle_and_come_back_when_needed(self) -> None:
        with EventBus("idle", workers=2) as bus:
            bus.on("a", lambda n: n, timeout=30.0)
            for n in range(3):
                assert bus.emit("a", n).wait(BOUND).results() == [n]
                soon(lambda: not threads_of("idle"), "the end of idle threads")
                assert bus.stats().pool.threads == 0

    @pytest.mark.usefixtures("short")
    def test_g10_hammer_work_that_comes_as_a_thread_ends_is_not_lost(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """F7: idle for no time at all, so that leaving and assigning meet often."""
        monkeypatch.setattr(dispatcher, "IDLE_SECONDS", 0.0)
        with EventBus("leaving") as bus:
            bus.on("a", lambda n: n)
            with Team() as team:
                for number in range(2):
                    team.add(lambda k=number: [bus.emit("a", (k, n)).wait(BOUND).results() for n in range(200)])
            assert team.results == [[[(number, n)] for n in range(200)] for number in range(2)]
            settled(bus)

    @pytest.mark.usefixtures("short")
    def test_g10_a_forgotten_bus_leaves_no_thread_and_is_collected(self) -> None:
        bus: EventBus | None = EventBus("forgotten")
        bus.on("a", lambda n: n)
        bus.emit("a", 1).wait(BOUND)
        reference = weakref.ref(bus)
        bus = None
        soon(lambda: not threads_of("forgotten"), "the end of a forgotten bus's threads")
        gc.collect()
        assert dies(reference)

    @pytest.mark.parametrize("how", ["from outside", "in a handler", "stuck"])
    def test_g10_a_closed_forgotten_bus_is_collected(self, how: str) -> None:
        class Handler:
            def __call__(self, payload: Callable[[], object]) -> object:
                return payload()

        bus: EventBus | None = EventBus("closed")
        handler: Handler | None = Handler()
        stream = bus.stream("b")
        references: list[weakref.ref[Any]] = [weakref.ref(bus), weakref.ref(bus._engine), weakref.ref(handler)]
        bus.on("a", handler, timeout=30.0)
        receipts = [bus.emit("a", int)]
        with Gate() as gate:
            if how == "in a handler":
                receipts.append(bus.emit("a", bus.close))
                receipts[1].wait(BOUND)
            elif how == "stuck":
                receipts.append(bus.emit("a", lambda: gate(None)))
                gate.entered()
                bus.close(0)
            else:
                bus.close(BOUND)
        del bus, handler, receipts, stream
        soon(lambda: not threads_of("closed"))
        gc.collect()
        assert all(map(dies, references))


# The interpreter's exit

PRELUDE = """
import atexit, logging, sys, threading, time
from eventbus import *
logging.basicConfig(format="LOG %(message)s")

def stuck(payload):
    say("stuck")
    threading.Event().wait(60)
"""
PRELUDE += SAY


def program(text: str, code: int = 0, within: float = 15.0) -> tuple[str, float]:
    """Run a program that prints "end" as its last line of code; its output, and how long the exit took after that."""
    process = begin(textwrap.dedent(text) + '\nsay("end")\n', PRELUDE)
    killer = threading.Timer(within, kill, (process,))
    killer.start()
    output = []
    ended = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if line == "end\n":
                ended = time.monotonic()
        process.wait()
    finally:
        killer.cancel()
        assert process.stdout is not None
        process.stdout.close()
    took = time.monotonic() - (ended or time.monotonic())
    text = "".join(output)
    assert process.returncode == code, f"exit code {process.returncode}:\n{text}"
    return text, took


class TestExit:
    def test_g10_a_forgotten_idle_bus_costs_no_time(self) -> None:
        """Nor does its idle worker, which would sleep for a minute."""
        output, took = program(
            """
            from eventbus._engine import dispatcher
            dispatcher.IDLE_SECONDS = 60.0
            bus = EventBus(exit_timeout=60)
            bus.on("a", lambda n: n, timeout=60)
            assert bus.emit("a", 1).wait(5).results() == [1]
            """
        )
        assert output == "end\n"
        assert took < 5.0

    def test_g10_a_backlog_for_plain_functions_is_run_and_what_that_causes(self) -> None:
        """On the bus's threads, never on the exiting one."""
        output, _ = program(
            """
            done = []
            def handler(n):
                assert threading.current_thread() is not threading.main_thread()
                if n == 0:
                    assert gate.wait(10)
                done.append(n)
                if n < 100:
                    bus.emit("b", n + 100)
            bus, gate = EventBus(), threading.Event()
            bus.on(["a", "b"], handler)
            for n in range(100):
                bus.emit("a", n)
            atexit.register(lambda: say(len(done), sorted(done) == list(range(200))))
            threading._register_atexit(gate.set)  # runs before the bus's own hook
            """
        )
        assert output == "end\n200 True\n"

    def test_g10_a_stuck_handler_is_left_after_exit_timeout(self) -> None:
        output, took = program(
            """
            bus = EventBus(exit_timeout=0.3)
            bus.on("a", stuck)
            receipts = [bus.emit("a") for _ in range(5)]
            atexit.register(lambda: say([each.outcomes[0].status.value for each in receipts]))
            atexit.register(lambda: say("waited", time.monotonic() - begun >= 0.3))
            begun = time.monotonic()
            """
        )
        assert took < 5.0
        assert "waited True\n" in output
        assert f"{['cancelled'] * 5}\n" in output
        logged = [line for line in output.splitlines() if line.startswith("LOG")]
        assert len(logged) == 1  # once, not for every delivery
        assert "5 deliveries" in logged[0]

    def test_g10_several_buses_each_have_their_time(self) -> None:
        output, took = program(
            """
            buses = [EventBus(f"bus-{n}", exit_timeout=0.2) for n in range(3)]
            for bus in buses:
                bus.on("a", stuck)
                bus.emit("a")
            fine = EventBus("fine")
            fine.on("a", lambda n: say("ran", n))
            fine.emit("a", 1)
            """
        )
        assert took < 8.0
        assert "ran 1\n" in output

    def test_g10_the_exit_code_and_the_traceback_of_the_program_stay(self) -> None:
        output, _ = program(
            """
            bus = EventBus()
            bus.on("a", lambda n: say("ran", n))
            bus.emit("a", 1)
            sys.exit(3)
            """,
            code=3,
        )
        assert "ran 1\n" in output
        output, _ = program(
            """
            bus = EventBus()
            bus.on("a", lambda n: say("ran", n))
            bus.emit("a", 1)
            raise ValueError("of the program")
            """,
            code=1,
        )
        assert "ran 1\n" in output
        assert "ValueError" in output
        assert "of the program" in output

    def test_g10_an_emit_in_an_atexit_hook_is_refused_by_a_bus_that_has_ended(self) -> None:
        output, took = program(
            """
            def hook():
                for bus in (used, unused):
                    try:
                        bus.emit("a")
                    except BusClosedError as error:
                        say("refused")
            used, unused = EventBus(), EventBus()
            used.on("a", lambda _: None)
            unused.on("a", lambda _: None)
            used.emit("a").wait(5)
            atexit.register(hook)
            """
        )
        assert output == "end\nrefused\nrefused\n"
        assert took < 5.0

    @pytest.mark.parametrize("where", ["atexit.register", "threading._register_atexit"])
    @pytest.mark.parametrize("made", ["before", "in the hook"])
    def test_g10_the_first_emit_ever_in_an_exit_hook_ends_in_bounded_time(self, where: str, made: str) -> None:
        """It runs, or it says why not: the bus has ended, or no thread can be started any more."""
        output, took = program(
            f"""
            def hook():
                target = bus or EventBus(exit_timeout=1)
                try:
                    target.on("a", lambda n: n)
                    say("ran", target.emit("a", 1).wait(3).results())
                except (BusClosedError, DispatcherError) as error:
                    say(type(error).__name__)
            bus = EventBus(exit_timeout=1) if {made == "before"} else None
            {where}(hook)
            """
        )
        assert took < 6.0
        allowed = r"end\n(ran \[1\]|BusClosedError|DispatcherError)\n(LOG .* cancelled 1 deliver.*\n)?"
        assert re.fullmatch(allowed, output), output

    def test_g10_an_emit_in_an_exit_hook_that_nobody_waits_for(self) -> None:
        """A thread may be started for it, and the interpreter ends under it: no crash, no hang."""
        output, took = program(
            """
            def hook():
                bus = EventBus()
                bus.on("a", lambda n: time.sleep(0.01))
                for n in range(100):
                    bus.emit("a", n)
            atexit.register(hook)
            """
        )
        assert "Traceback" not in output
        assert "Fatal" not in output
        assert took < 5.0

    def test_g10_a_thread_that_outlives_main_is_told_that_the_bus_has_ended(self) -> None:
        output, took = program(
            """
            def outlive():
                threading.main_thread().join()
                while True:
                    try:
                        bus.emit("a", 1).wait(5)
                    except BusClosedError:
                        say("told")
                        return
            bus = EventBus()
            bus.on("a", lambda n: n)
            bus.emit("a", 1).wait(5)
            threading.Thread(target=outlive).start()
            """
        )
        assert output == "end\ntold\n"
        assert took < 8.0

    def test_g10_what_no_thread_can_be_started_for_is_cancelled_and_logged_once(self) -> None:
        """And the user's code never runs on the exiting thread instead."""
        output, took = program(
            """
            from eventbus._engine import primitives
            def refuse(*_):
                raise RuntimeError("can't start new thread at interpreter shutdown")
            primitives.start_thread = refuse
            bus = EventBus(exit_timeout=60)
            bus.on("a", lambda n: say("must not run"))
            receipts = [bus.emit("a", n) for n in range(7)]
            atexit.register(lambda: say({each.outcomes[0].status.value for each in receipts}))
            """
        )
        assert took < 5.0
        assert "must not run" not in output
        assert "{'cancelled'}\n" in output
        logged = [line for line in output.splitlines() if line.startswith("LOG")]
        assert len(logged) == 1
        assert "7 deliveries" in logged[0]

    def test_g10_emitters_in_daemon_threads_do_not_hold_the_exit_up(self) -> None:
        output, took = program(
            """
            def emitter():
                try:
                    while True:
                        bus.emit("a", 1)
                except BusClosedError:
                    pass
            bus = EventBus(max_pending=10)
            bus.on("a", lambda n: None)
            for _ in range(3):
                threading.Thread(target=emitter, daemon=True).start()
            bus.emit("a", 1).wait(5)
            """
        )
        assert output == "end\n"
        assert took < 8.0

    def test_g10_a_handler_that_emits_for_ever_is_stopped(self) -> None:
        """Each of its emits is caused by a delivery of before, so draining alone would never end."""
        output, took = program(
            """
            bus = EventBus(exit_timeout=0.3)
            def handler(n):
                bus.emit("a", n + 1)
            bus.on("a", handler)
            bus.emit("a", 1)
            """
        )
        assert took < 6.0
        assert "Fatal" not in output

    def test_g10_a_handler_that_closes_the_bus_or_exits_at_exit(self) -> None:
        output, took = program(
            """
            def handler(n):
                assert gate.wait(10)
                if n == 0:
                    sys.exit(5)
                say(type(bus.close(5)).__name__)
            bus, gate = EventBus(), threading.Event()
            bus.on("a", handler, concurrency=2)
            bus.emit("a", 0)
            bus.emit("a", 1)
            threading._register_atexit(gate.set)
            """
        )
        assert "CloseReport\n" in output
        assert took < 5.0
