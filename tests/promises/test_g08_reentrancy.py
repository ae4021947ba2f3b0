"""G8: a handler may do anything with the bus; waiting inside it starves nobody, and a wait that cannot end is refused.

Handlers below act on the payload that says so and let the others pass, so that what a cycle held up can run once it
is broken.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import random
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from kit import BOUND, Gate, Log, Team, no_thread, settled, sleeps, soon

from eventbus import (
    DeadlockError,
    DispatcherError,
    Event,
    EventBus,
    EventTimeoutError,
    MailboxFullError,
    Receipt,
    Status,
)
from eventbus._engine import primitives, waits
from eventbus._engine.delivery import running_here


def told(call: Callable[[], Any]) -> DeadlockError | None:
    """The DeadlockError that the call raises, if it does."""
    try:
        call()
    except DeadlockError as error:
        return error
    return None


def statuses(*receipts: Receipt) -> list[Status]:
    return [each.status for receipt in receipts for each in receipt.wait(BOUND).outcomes]


def names(error: DeadlockError | None, *handlers: str) -> bool:
    """The error's cycle is one, goes through these, and the message says the same."""
    assert error is not None, "no DeadlockError was raised"
    cycle = error.cycle
    assert len(cycle) >= 2
    assert cycle[-1] in cycle[:-1]
    assert all(each in str(error) for each in cycle)
    return all(any(handler in each for each in cycle) for handler in handlers)


class TestAHandlerMay:
    def test_g8_emit(self, bus: EventBus) -> None:
        log = Log()
        bus.on("inner", log)
        bus.on("outer", lambda n: bus.emit("inner", n))
        for n in range(50):
            bus.emit("outer", n)
        assert log.reached(50) == list(range(50))

    def test_g8_emit_to_itself(self, bus: EventBus) -> None:
        def count(n: int) -> int:
            if n:
                bus.emit("count", n - 1)
            return n

        bus.on("count", count)
        bus.emit("count", 100, follow=True).wait(BOUND)
        assert bus.stats().totals.delivered == 101

    def test_g8_subscribe_and_cancel(self, bus: EventBus) -> None:
        log = Log()

        def handler(payload: Any) -> None:
            subscription = bus.on("new", log)
            bus.emit("new", payload).wait(BOUND)
            assert subscription.cancel(wait=True)
            assert bus.emit("new", "late").deliveries == 0
            with bus.scope() as scope, bus.stream("new") as stream:
                scope.on("new", log)
                bus.emit("new", payload).wait(BOUND)
                assert next(stream).payload == payload

        bus.on("a", handler)
        assert statuses(bus.emit("a", 1), bus.emit("a", 2)) == [Status.DELIVERED] * 2
        assert log.items == [1, 1, 2, 2]

    def test_g8_cancel_itself_and_others(self, bus: EventBus) -> None:
        def handler(_: Any) -> tuple[bool, bool]:
            return other.cancel(wait=True), own.cancel(wait=True)

        own = bus.on("a", handler)
        other = bus.on("b", Log())
        assert bus.emit("a").wait(BOUND).results() == [(True, True)]
        assert bus.subscriptions() == ()

    def test_g8_wait_for_receipts_and_replies(self, bus: EventBus) -> None:
        bus.on("double", lambda n: 2 * n)
        bus.on("outer", lambda n: bus.emit("double", n).wait(BOUND).results()[0] + bus.request("double", n, BOUND))
        assert bus.request("outer", 3, BOUND) == 12

    def test_g8_drain(self, bus: EventBus) -> None:
        done: list[int] = []
        bus.on("inner", done.append)

        def outer(_: Any) -> int:
            for n in range(20):
                bus.emit("inner", n)
            bus.drain(BOUND)
            return len(done)

        bus.on("outer", outer)
        assert bus.emit("outer").wait(BOUND).results() == [20]

    def test_g8_close_the_bus(self) -> None:
        bus = EventBus()
        bus.on("a", lambda _: bus.close(BOUND))
        receipt = bus.emit("a").wait(BOUND)
        assert bus.closed
        assert receipt.results()[0].stuck == ()
        settled(bus)

    def test_g8_do_all_that_inline(self, bus: EventBus) -> None:
        bus.on("double", lambda n: 2 * n)

        def handler(n: int) -> Any:
            subscription = bus.on("new", lambda m: m)
            found = bus.emit("new", n).wait(BOUND).results(), bus.request("double", n, BOUND)
            subscription.cancel(wait=True)
            bus.drain(BOUND)
            return found

        bus.on("a", handler, inline=True)
        assert bus.emit("a", 3).results() == [([3], 6)]


class TestThePool:
    @pytest.mark.parametrize(("workers", "max_workers"), [(1, 2), (2, 2), (1, 1)])
    def test_g8_a_hundred_nested_waits_starve_nobody(self, workers: int, max_workers: int) -> None:
        with EventBus("nested", workers=workers, max_workers=max_workers) as bus:

            def handler(n: int) -> int:
                return 1 + bus.emit(f"level/{n - 1}", n - 1).wait(BOUND).results()[0] if n else 0

            for n in range(101):
                bus.on(f"level/{n}", handler)
            assert bus.emit("level/100", 100).wait(BOUND).results() == [100]
            soon(lambda: bus.stats().pool.waiting == bus.stats().pool.computing == 0)
            settled(bus)

    @pytest.mark.parametrize("kind", ["receipt", "request", "cancel", "drain", "space", "stream"])
    def test_g8_no_kind_of_wait_starves_the_pool(self, kind: str) -> None:
        """The one thread that there may be waits; what it waits for runs all the same."""
        with EventBus("kinds", workers=1, max_workers=1) as bus, Gate() as gate:
            answer = bus.on("answer", lambda _: "answer")
            gated = bus.on("gated", gate, max_pending=1)
            stream = bus.stream("gated/stream")

            def handler(_: Any) -> Any:
                if kind == "receipt":
                    return bus.emit("answer").wait(BOUND).results()
                if kind == "request":
                    return [bus.request("answer", None, BOUND)]
                if kind == "stream":
                    bus.on("to stream", lambda _: bus.emit("gated/stream", "answer"))
                    bus.emit("to stream")
                    return [stream.get(BOUND).payload]
                opener = bus.on("opener", lambda _: gate.open())
                for _ in range(2):
                    bus.emit("gated")
                bus.emit("opener")
                if kind == "cancel":
                    gated.cancel(drain=True, timeout=BOUND)
                elif kind == "drain":
                    bus.drain(BOUND)
                else:
                    bus.emit("gated")
                opener.cancel()
                return ["answer"]

            bus.on("a", handler)
            if kind not in ("receipt", "request", "stream"):
                gate.open()  # with one thread nobody else could open it
            assert bus.emit("a").wait(BOUND).results() == [["answer"]]
            assert answer.active
            bus.drain(BOUND)

    def test_g8_a_worker_that_was_seen_blocking_before_it_waits_starves_nobody(self) -> None:
        """The watch has given its slot away, but with one thread nobody could take it before it waits."""
        with EventBus("seen", workers=1, max_workers=1) as bus:
            bus.on("b", lambda _: "b")

            def handler(_: Any) -> Any:
                first = bus.emit("b")
                soon(lambda: bus.stats().pool.blocked == 1, "the watch")
                return first.wait(BOUND).results()

            bus.on("a", handler)
            assert bus.emit("a").wait(BOUND).results() == [["b"]]

    def test_g8_a_waiting_worker_counts_neither_against_workers_nor_against_max_workers(self) -> None:
        with EventBus("counts", workers=1, max_workers=1) as bus:
            inside: list[Any] = []

            def handler(n: int) -> None:
                if n:
                    bus.emit(f"level/{n - 1}", n - 1).wait(BOUND)
                else:
                    inside.append(bus.stats().pool)

            for n in range(6):
                bus.on(f"level/{n}", handler)
            bus.emit("level/5", 5).wait(BOUND)
            (pool,) = inside
            assert (pool.waiting, pool.computing, pool.blocked) == (5, 1, 0)
            assert pool.threads >= 6
            # Back again, and more than are wanted: all but one compute no more.
            soon(lambda: bus.stats().pool.waiting == bus.stats().pool.computing == 0)

    def test_g8_no_other_handler_runs_on_the_stack_of_one_that_waits(self, bus: EventBus) -> None:
        found: list[tuple[int, int]] = []

        def handler(n: int) -> int:
            frame: FrameType | None = sys._getframe()
            depth = 0
            while frame is not None:
                depth += frame.f_code is handler.__code__
                frame = frame.f_back
            found.append((threading.get_ident(), depth))
            if n:
                bus.emit(f"level/{n - 1}", n - 1).wait(BOUND)
            return threading.get_ident()

        for n in range(20):
            bus.on(f"level/{n}", handler)
        bus.emit("level/19", 19).wait(BOUND)
        assert [depth for _, depth in found] == [1] * 20
        assert len({ident for ident, _ in found}) == 20

    def test_g8_many_handlers_wait_at_once_and_the_rest_of_the_bus_goes_on(self) -> None:
        with EventBus("many", workers=2, max_workers=2) as bus, Gate("open") as gate:
            bus.on("gate", gate)
            bus.on("waiting", lambda _: bus.emit("gate").wait(BOUND).results()[0], concurrency=40)
            bus.on("free", lambda payload: payload)
            receipts = [bus.emit("waiting") for _ in range(40)]
            soon(lambda: bus.stats().pool.waiting == 40)
            assert bus.emit("free", 0).wait(BOUND).results() == [0]
            gate.open()
            assert [receipt.wait(BOUND).results() for receipt in receipts] == [["open"]] * 40
            assert bus.emit("free", 1).wait(BOUND).results() == [1]

    def test_g8_where_no_thread_can_be_started_the_wait_of_a_handler_raises(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner: list[Receipt] = []
        outside = threading.current_thread()

        def handler(_: Any) -> None:
            sleeps(outside)  # else its wait might find that no thread can be started, too
            with monkeypatch.context() as patch:
                patch.setattr(primitives, "start_thread", no_thread)
                inner.append(bus.emit("inner"))
                inner[0].wait(BOUND)

        bus.on("inner", lambda _: "inner")
        bus.on("outer", handler)
        (outcome,) = bus.emit("outer").wait(BOUND).outcomes
        assert isinstance(outcome.error, DispatcherError)
        assert inner[0].wait(BOUND).results() == ["inner"]  # it is not lost

    def test_g8_a_look_wants_no_thread(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        bus.on("a", Log())
        with monkeypatch.context() as patch:
            patch.setattr(primitives, "start_thread", no_thread)
            with pytest.raises(EventTimeoutError):
                bus.emit("a").wait(0)

    @pytest.mark.parametrize("call", ["wait", "request", "drain"])
    def test_g8_where_no_thread_can_be_started_a_wait_from_outside_raises_too(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        log = Log()
        bus.on("a", log)

        with monkeypatch.context() as patch:
            patch.setattr(primitives, "start_thread", no_thread)
            whole = (
                "^no thread can be started for the deliveries that this wait depends on; free some threads of the"
                " process$"
            )
            with pytest.raises(DispatcherError, match=whole):
                if call == "request":
                    bus.request("a", 1, BOUND)
                else:
                    receipt = bus.emit("a", 1)
                    receipt.wait(BOUND) if call == "wait" else bus.drain(BOUND)
        bus.drain(BOUND)
        assert log.items == [1]


class TestCycles:
    @pytest.mark.parametrize("timeout", [None, 30.0, 0])
    def test_g8_a_wait_for_what_stands_behind_itself(self, bus: EventBus, timeout: float | None) -> None:
        """Time-out or not."""
        inner: list[Receipt] = []

        def handler(payload: Any) -> DeadlockError | None:
            if payload != "start":
                return None
            inner.append(bus.emit("a", "behind"))
            return told(lambda: inner[0].wait(timeout))

        bus.on("a", handler, name="myself")
        (error,) = bus.emit("a", "start").wait(BOUND).results()
        assert names(error, "myself")
        assert statuses(inner[0]) == [Status.DELIVERED]  # the handler has gone on, and so does its mailbox

    def test_g8_a_wait_for_its_own_event(self, bus: EventBus) -> None:
        known: queue.SimpleQueue[Receipt] = queue.SimpleQueue()
        bus.on("a", lambda _: told(known.get(timeout=BOUND).wait), name="myself")
        receipt = bus.emit("a")
        known.put(receipt)
        assert names(receipt.wait(BOUND).results()[0], "myself")

    def test_g8_an_observer_may_wait_for_its_own_event(self, bus: EventBus) -> None:
        """It stands on no receipt, so nothing waits for it."""
        known: queue.SimpleQueue[Receipt] = queue.SimpleQueue()
        log = Log()
        with Gate("late") as gate:
            bus.on("a", lambda _: log(known.get(timeout=BOUND).wait(BOUND).results()), observer=True)
            bus.on("a", gate)
            known.put(bus.emit("a"))
            soon(lambda: bus.stats().pool.waiting == 1)
        assert log.reached(1) == [["late"]]

    @pytest.mark.parametrize("size", [2, 3, 7])
    def test_g8_a_ring_of_handlers_across_threads(self, bus: EventBus, size: int) -> None:
        """Each waits for the next one's mailbox; the one that closes the ring is told, the others get their answers."""
        meet = threading.Barrier(size)

        def member(number: int) -> Callable[[Any], Any]:
            def handler(payload: Any) -> Any:
                if payload != "start":
                    return "passed"
                meet.wait(BOUND)
                return told(bus.emit(f"ring/{(number + 1) % size}").wait)

            return handler

        for number in range(size):
            bus.on(f"ring/{number}", member(number), name=f"member-{number}")
        receipts = [bus.emit(f"ring/{number}", "start") for number in range(size)]
        errors = [each for receipt in receipts if (each := receipt.wait(BOUND).results()[0])]
        assert len(errors) == 1
        assert names(errors[0], *(f"member-{number}" for number in range(size)))

    def test_g8_a_chain_of_waits_that_comes_back(self, bus: EventBus) -> None:
        """Not all at once: the first waits for the second, which waits for the third, which asks the first."""
        errors: list[DeadlockError | None] = []

        def first(payload: Any) -> None:
            if payload == "start":
                bus.emit("second").wait(BOUND)

        bus.on("first", first, name="first")
        bus.on("second", lambda _: bus.emit("third").wait(BOUND) and None, name="second")
        bus.on("third", lambda _: errors.append(told(bus.emit("first", "again").wait)), name="third")
        assert statuses(bus.emit("first", "start")) == [Status.DELIVERED]
        assert names(errors[0], "first", "second", "third")

    def test_g8_every_slot_of_a_subscription_with_concurrency(self, bus: EventBus) -> None:
        meet = threading.Barrier(3)

        def handler(payload: Any) -> Any:
            if payload != "start":
                return "passed"
            meet.wait(BOUND)
            return told(bus.emit("a", "behind").wait)

        bus.on("a", handler, concurrency=3, name="slots")
        receipts = [bus.emit("a", "start") for _ in range(3)]
        errors = [each for receipt in receipts if (each := receipt.wait(BOUND).results()[0])]
        assert len(errors) == 1  # the last one: as long as one slot is free to end, there is no cycle
        assert names(errors[0], "slots")

    def test_g8_a_free_slot_is_no_cycle(self, bus: EventBus) -> None:
        def handler(n: int) -> int:
            return 1 + bus.emit("a", n - 1).wait(BOUND).results()[0] if n else 0

        bus.on("a", handler, concurrency=20)
        assert bus.emit("a", 19).wait(BOUND).results() == [19]

    def test_g8_one_slot_too_few_is_a_cycle_through_all_of_them(self, bus: EventBus) -> None:
        errors: list[DeadlockError | None] = []

        def handler(n: int) -> None:
            if n:
                errors.append(told(bus.emit("a", n - 1).wait))

        bus.on("a", handler, concurrency=5, name="slots")
        bus.emit("a", 5, follow=True).wait(BOUND)
        assert [each is not None for each in errors] == [True, False, False, False, False]
        assert names(errors[0], "slots")

    def test_g8_a_lane(self, bus: EventBus) -> None:
        inner: list[Receipt] = []

        def first(_: Any) -> DeadlockError | None:
            inner.append(bus.emit("second"))
            return told(inner[0].wait)

        bus.on("first", first, lane="db", name="first")
        bus.on("second", lambda _: None, lane="db", name="second")
        bus.on("third", lambda _: bus.emit("second").wait(BOUND) and "waited", lane="files")
        assert names(bus.emit("first").wait(BOUND).results()[0], "first", "second")
        assert statuses(inner[0]) == [Status.DELIVERED]
        assert bus.emit("third").wait(BOUND).results() == ["waited"]

    def test_g8_two_lanes_that_wait_for_each_other(self, bus: EventBus) -> None:
        meet = threading.Barrier(2)

        def ask(other: str) -> Callable[[Any], Any]:
            def handler(_: Any) -> DeadlockError | None:
                meet.wait(BOUND)
                return told(bus.emit(other).wait)

            return handler

        for mine, other in (("x", "y"), ("y", "x")):
            bus.on(f"ask/{mine}", ask(f"answer/{other}"), lane=mine, name=f"ask-{mine}")
            bus.on(f"answer/{mine}", lambda _: None, lane=mine, name=f"answer-{mine}")
        receipts = [bus.emit("ask/x"), bus.emit("ask/y")]
        errors = [each for receipt in receipts if (each := receipt.wait(BOUND).results()[0])]
        assert len(errors) == 1
        assert names(errors[0], "ask-x", "ask-y")

    @pytest.mark.parametrize(("key", "cycle"), [("same", True), ("other", False)])
    def test_g8_a_key_waits_for_itself_and_not_for_others(self, bus: EventBus, key: str, cycle: bool) -> None:
        def handler(payload: tuple[str, bool]) -> Any:
            return told(bus.emit("a", (key, False)).wait) if payload[1] else None

        bus.on("a", handler, key=lambda event: event.payload[0], concurrency=2, name="keyed")
        (error,) = bus.emit("a", ("same", True)).wait(BOUND).results()
        if cycle:
            assert names(error, "keyed")
        else:
            assert error is None

    def test_g8_a_cancel_that_waits_for_a_handler_that_waits(self, bus: EventBus) -> None:
        """The cancel has taken effect all the same."""
        errors: list[DeadlockError | None] = []

        def canceller(payload: Any) -> None:
            if payload == "start":
                soon(lambda: bus.stats().pool.waiting == 1)
                errors.append(told(lambda: other.cancel(wait=True)))

        bus.on("canceller", canceller, name="canceller")
        other = bus.on("other", lambda _: bus.emit("canceller").wait(BOUND) and None, name="other")
        receipts = [bus.emit("canceller", "start"), bus.emit("other")]
        assert statuses(*receipts) == [Status.DELIVERED] * 2
        assert names(errors[0], "canceller", "other")
        assert not other.active

    def test_g8_two_handlers_that_cancel_each_other(self, bus: EventBus) -> None:
        meet = threading.Barrier(2)
        errors: list[DeadlockError | None] = []

        def handler(mine: int) -> None:
            meet.wait(BOUND)
            errors.append(told(lambda: subscriptions[1 - mine].cancel(wait=True)))

        subscriptions = [bus.on(f"a/{n}", handler, name=f"canceller-{n}") for n in range(2)]
        assert statuses(bus.emit("a/0", 0), bus.emit("a/1", 1)) == [Status.DELIVERED] * 2
        (error,) = [each for each in errors if each]
        assert names(error, "canceller-0", "canceller-1")
        assert not any(each.active for each in subscriptions)

    def test_g8_leaving_a_scope_whose_handler_waits_for_the_leaver(self, bus: EventBus) -> None:
        errors: list[DeadlockError | None] = []

        def leave() -> None:
            with bus.scope() as scope:
                scope.on("in scope", lambda _: bus.emit("leaver").wait(BOUND) and None, name="inner")
                bus.emit("in scope")
                soon(lambda: bus.stats().pool.waiting == 1)

        bus.on("leaver", lambda payload: errors.append(told(leave)) if payload == "start" else None, name="leaver")
        assert statuses(bus.emit("leaver", "start")) == [Status.DELIVERED]
        assert names(errors[0], "leaver", "inner")
        bus.drain(BOUND)

    def test_g8_a_request_that_only_the_asker_could_answer(self, bus: EventBus) -> None:
        bus.on("q", lambda payload: told(lambda: bus.request("q")) if payload == "start" else 1, name="asker")
        error = bus.request("q", "start", BOUND)
        assert names(error, "asker")
        assert str(error).startswith("waiting for a reply to 'q' here would never end: asker (q) -> ")

    def test_g8_a_request_that_somebody_else_answers_is_no_cycle(self, bus: EventBus) -> None:
        """One of its handlers is the asker himself; the other is enough."""
        bus.on(["ask", "q"], lambda event: bus.request("q") if event.topic == "ask" else "asker", payload=Event)
        bus.on("q", lambda _: "other")
        assert bus.request("ask", None, BOUND) == "other"

    @pytest.mark.parametrize("how", ["fails", "cancelled"])
    def test_g8_a_request_whose_other_answer_is_lost_while_it_waits(self, bus: EventBus, how: str) -> None:
        """As long as somebody else may answer it is no cycle; when that is over, the asker is told."""
        go = threading.Event()

        def ask(payload: Any) -> DeadlockError | None:
            return told(lambda: bus.request("q")) if payload == "start" else None

        def other(_: Any) -> None:
            assert go.wait(BOUND)
            raise ValueError("no answer")

        bus.on(["ask", "q"], ask, name="asker")
        gone = bus.on("q", other)
        with Gate() as gate:
            if how == "cancelled":
                bus.on("hold", gate, lane="lane")
                gone.cancel()
                gone = bus.on("q", other, lane="lane")
                bus.emit("hold")
                gate.entered()
            receipt = bus.emit("ask", "start")
            soon(lambda: bus.stats().pool.waiting == 1)
            go.set() if how == "fails" else gone.cancel()
            assert names(receipt.wait(BOUND).results()[0], "asker")

    def test_g8_a_request_of_a_ring(self, bus: EventBus) -> None:
        errors: list[DeadlockError | None] = []

        def first(payload: Any) -> Any:
            return bus.request("second", None, BOUND) if payload == "start" else "first"

        def second(_: Any) -> str:
            soon(lambda: bus.stats().pool.waiting == 1)  # or the first would be told
            errors.append(told(lambda: bus.request("first")))
            return "second"

        bus.on("first", first, name="first")
        bus.on("second", second, name="second")
        assert bus.request("first", "start", BOUND) == "second"
        assert names(errors[0], "first", "second")

    def test_g8_an_inline_handler_holds_up_whoever_it_runs_for(self, bus: EventBus) -> None:
        def outer(payload: Any) -> Any:
            return bus.emit("inline").results()[0] if payload == "start" else None

        bus.on("outer", outer, name="outer")
        bus.on("inline", lambda _: told(bus.emit("outer").wait), inline=True, name="inline")
        assert names(bus.emit("outer", "start").wait(BOUND).results()[0], "outer")

    def test_g8_an_inline_handler_holds_up_those_that_come_after_it(self, bus: EventBus) -> None:
        """Its own emit cannot return before it, so a wait for a later handler of that emit could never end."""
        errors: list[DeadlockError | None] = []
        bus.on("t", lambda _: errors.append(told(lambda: later.cancel(drain=True))), inline=True, name="earlier")
        log = Log()
        later = bus.on("t", log, inline=True, name="later")
        with Team(limit=5.0) as team:
            team.add(lambda: bus.emit("t", 1))
        assert names(errors[0], "earlier")
        assert log.items == [1]  # it drains once the earlier one has returned

    def test_g8_one_that_has_not_begun_is_waited_for_from_elsewhere(self, bus: EventBus) -> None:
        """It begins when the one before it in its emit has ended."""
        receipts: list[Any] = []
        with Gate() as gate, Team() as team:

            def earlier(_: Any) -> None:
                receipts.append(running_here(threading.get_ident()).receipt)  # type: ignore[union-attr]
                gate(None)

            bus.on("t", earlier, inline=True)
            bus.on("t", lambda _: "later", inline=True)
            bus.on("asks", lambda _: told(lambda: receipts[0].wait(BOUND)) or receipts[0].results())
            team.add(bus.emit, "t")
            team.go()
            gate.entered()
            asks = bus.emit("asks")
            soon(lambda: asks.done or bus.stats().pool.waiting == 1)
            gate.open()
            assert asks.wait(BOUND).results() == [[None, "later"]]

    def test_g8_an_emit_that_makes_an_earlier_wait_endless_wakes_that_wait(self, bus: EventBus) -> None:
        """The follower waits for all that its event causes; then that comes to include what stands behind itself."""
        errors: list[DeadlockError | None] = []

        def follower(payload: Any) -> None:
            if payload == "start":
                errors.append(told(lambda: bus.emit("child", follow=True).wait(BOUND)))

        def child(_: Any) -> None:
            soon(lambda: bus.stats().pool.waiting == 1)
            bus.emit("follower", "behind")

        bus.on("follower", follower, name="follower")
        bus.on("child", child)
        assert statuses(bus.emit("follower", "start")) == [Status.DELIVERED]
        assert names(errors[0], "follower")

    def test_g8_of_two_that_wait_for_the_same_only_the_one_behind_whom_something_stands_is_told(
        self, bus: EventBus
    ) -> None:
        receipts: list[Receipt] = []
        errors: dict[str, DeadlockError | None] = {}

        def waits(payload: Any) -> None:
            if payload in ("one", "two"):
                errors[payload] = told(lambda: receipts[0].wait(BOUND))

        def chain(_: Any) -> None:
            soon(lambda: bus.stats().pool.waiting == 2)
            bus.emit("one", "behind")

        with Gate() as gate:
            bus.on("one", waits, name="one")
            bus.on("two", waits, name="two")
            bus.on("chain", gate)
            bus.on("chain", chain)
            receipts.append(bus.emit("chain", follow=True))
            gate.entered()
            asked = [bus.emit(topic, topic) for topic in ("one", "two")]
            assert statuses(asked[0]) == [Status.DELIVERED]
        assert statuses(asked[1]) == [Status.DELIVERED]
        assert names(errors["one"], "one")
        assert errors["two"] is None

    def test_g8_after_the_error_everything_goes_on(self, bus: EventBus) -> None:
        """The same cycle again and again: nothing of it stays behind."""
        bus.on("a", lambda payload: told(bus.emit("a", "behind").wait) and "told" if payload == "start" else None)
        for _ in range(30):
            assert bus.emit("a", "start").wait(BOUND).results() == ["told"]
        bus.drain(BOUND)
        assert bus.stats().pool.waiting == 0

    def test_g8_whoever_was_told_may_be_waited_for(self, bus: EventBus) -> None:
        """He does not wait any more."""
        begun: list[Receipt] = []
        once = threading.Event()

        def told_of(_: Any) -> str:
            soon(lambda: begun)
            assert told(begun[0].wait) is not None
            once.set()
            soon(lambda: bus.stats().pool.waiting == 1)
            return "went on"

        bus.on("a", told_of)
        bus.on("b", lambda _: begun[0].wait(BOUND).results())
        begun.append(bus.emit("a"))
        assert once.wait(BOUND)
        assert bus.emit("b").wait(BOUND).results() == [["went on"]]

    def test_g8_whoever_has_waited_in_vain_may_be_waited_for(self, bus: EventBus) -> None:
        """Also by what he has waited for."""
        begun: list[Receipt] = []
        once = threading.Event()

        def in_vain(_: Any) -> str:
            with pytest.raises(EventTimeoutError):
                bus.emit("b").wait(0)
            once.set()
            soon(lambda: bus.stats().pool.waiting == 1)
            return "went on"

        def waits(_: Any) -> None:
            assert once.wait(BOUND)
            soon(lambda: begun)
            found.append(begun[0].wait(BOUND).results())

        found: list[Any] = []
        bus.on("a", in_vain)
        bus.on("b", waits)
        begun.append(bus.emit("a"))
        bus.drain(BOUND)
        assert found == [["went on"]]

    def test_g8_a_wait_that_an_emit_has_added_to_is_still_one(self, bus: EventBus) -> None:
        """It was looked at anew then, and could still end."""
        errors: list[DeadlockError | None] = []
        receipts: list[Receipt] = []

        def child(_: Any) -> None:
            soon(lambda: bus.stats().pool.waiting == 1 and receipts)
            bus.emit("grandchild")
            errors.append(told(receipts[0].wait))

        bus.on("follower", lambda _: bus.emit("child", follow=True).wait(BOUND) and None, name="follower")
        bus.on("child", child)
        bus.on("grandchild", Log())
        receipts.append(bus.emit("follower"))
        assert statuses(receipts[0]) == [Status.DELIVERED]
        assert names(errors[0], "follower", "child")

    def test_g8_an_uncaught_deadlock_error_is_the_handlers_failure(self, bus: EventBus) -> None:
        bus.on("a", lambda payload: bus.emit("a").wait() if payload == "start" else None)
        (outcome,) = bus.emit("a", "start").wait(BOUND).outcomes
        assert outcome.status is Status.FAILED
        assert isinstance(outcome.error, RuntimeError)


class TestWhatIsNotTheBussToJudge:
    def test_g8_waits_of_threads_that_a_handler_started(self, bus: EventBus) -> None:
        """Even with the handler's context: that thread may wait for ever, the bus lets it."""
        found: list[BaseException] = []

        def wait(receipt: Receipt) -> None:
            try:
                receipt.wait(0.01)
            except BaseException as error:
                found.append(error)

        def handler(payload: Any) -> None:
            if payload == "start":
                thread = threading.Thread(target=contextvars.copy_context().run, args=(wait, bus.emit("a", "behind")))
                thread.start()
                thread.join(BOUND)

        bus.on("a", handler)
        bus.emit("a", "start").wait(BOUND)
        assert [type(each) for each in found] == [EventTimeoutError]

    def test_g8_waits_from_outside(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate)
            bus.emit("a")
            gate.entered()
            with pytest.raises(EventTimeoutError):
                bus.emit("a").wait(0.005)

    def test_g8_locks_and_events_of_the_users(self, bus: EventBus) -> None:
        happened = threading.Event()
        bus.on("a", lambda _: bus.emit("b") and happened.wait(BOUND))
        bus.on("b", lambda _: happened.set())
        assert bus.emit("a").wait(BOUND).results() == [True]

    def test_g8_a_wait_for_another_bus(self, bus: EventBus) -> None:
        """And the worker that waits there counts against nothing here."""
        with EventBus("other") as other, EventBus("single", workers=1, max_workers=1) as single:
            single.on("free", lambda _: "free")
            other.on("b", lambda _: single.emit("free").wait(BOUND).results()[0])
            single.on("a", lambda _: other.emit("b").wait(BOUND).results()[0])
            assert single.emit("a").wait(BOUND).results() == ["free"]

    def test_g8_a_wait_for_another_bus_has_its_time_out(self, bus: EventBus) -> None:
        with EventBus("other") as other, Gate() as gate:
            other.on("b", gate)

            def handler(_: Any) -> str:
                with pytest.raises(EventTimeoutError):
                    other.emit("b").wait(0.01)
                return "went on"

            bus.on("a", handler)
            assert bus.emit("a").wait(BOUND).results() == ["went on"]

    def test_g8_an_inline_handler_in_any_thread_waits_for_another_bus(self, bus: EventBus) -> None:
        with EventBus("other") as other:
            other.on("b", lambda _: soon(lambda: other._engine.sleepers) or "other")
            bus.on("a", lambda _: other.emit("b").wait(BOUND).results()[0], inline=True)
            assert bus.emit("a").wait(BOUND).results() == ["other"]

    def test_g8_a_wait_for_another_bus_stands_in_neither_wait_graph(self, bus: EventBus) -> None:
        """Each graph is of its own bus, and under that one's monitor."""
        mine: list[Any] = []
        seen: list[Any] = []
        with EventBus("other") as other:

            def looks(_: Any) -> None:
                soon(lambda: other._engine.sleepers)
                seen.extend((mine[0].waiter, dict(other._engine.waiting), dict(bus._engine.waiting)))

            def asks(_: Any) -> None:
                mine.append(running_here(threading.get_ident()))
                other.emit("b").wait(BOUND)

            other.on("b", looks)
            bus.on("a", asks)
            assert statuses(bus.emit("a")) == [Status.DELIVERED]
            assert seen == [None, {}, {}]

    def test_g18_of_waits_that_have_ended_nothing_is_left(self, bus: EventBus) -> None:
        """However they ended; they are counted, for the sake of loops that close meanwhile."""
        engine = bus._engine
        with Gate() as gate, Team() as team:
            bus.on("a", gate)
            bus.on("itself", lambda payload: told(bus.emit("itself", False).wait) and None if payload else None)
            bus.on("waits", lambda payload: payload.wait(BOUND) and None, concurrency=2)
            receipt = bus.emit("a")
            gate.entered()
            threads = [team.add(receipt.wait, BOUND), team.add(bus.drain, BOUND)]
            team.go()
            for thread in threads:
                sleeps(thread)
            assert (engine.sleepers, len(engine.waiting)) == (2, 0)
            waiting = [bus.emit("waits", receipt), bus.emit("waits", receipt)]
            soon(lambda: bus.stats().pool.waiting == 2)
            assert (engine.sleepers, len(engine.waiting)) == (4, 2)
            with pytest.raises(EventTimeoutError):
                receipt.wait(0)
            assert engine.sleepers == 4
            gate.open()
            for each in (*waiting, bus.emit("itself", True), bus.emit("nobody")):
                each.wait(BOUND)
        assert (engine.sleepers, engine.waiting) == (0, {})

    def test_g18_a_wait_may_be_left_twice(self, bus: EventBus) -> None:
        """A signal handler that raises at the end of the first time has it done again."""
        engine = bus._engine
        with Gate() as gate:
            bus.on("a", gate)
            receipt = bus.emit("a")
            waiter = receipt._waiter()
            assert not engine.monitor.run(waits.begin, engine, waiter, None, lambda: None)
            assert repr(waiter) == "<Waiter for the receipt of 'a'>"
            for _ in range(2):
                assert not engine.monitor.run(waits.end, engine, waiter)
                assert engine.sleepers == 0


class TestOnALoopsOwnThread:
    @pytest.mark.parametrize("call", ["wait", "request", "cancel", "drain", "close"])
    def test_g8_a_wait_that_would_block_the_loop_raises_and_names_await(self, bus: EventBus, call: str) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate)
            receipt = bus.emit("a")
            gate.entered()

            async def main() -> DeadlockError | None:
                calls: dict[str, Callable[[], Any]] = {
                    "wait": receipt.wait,
                    "request": lambda: bus.request("a", 1),
                    "cancel": lambda: subscription.cancel(wait=True),
                    "drain": bus.drain,
                    "close": bus.close,
                }
                return told(calls[call])

            error = asyncio.run(main())
            assert error is not None
            assert "await" in str(error)
            loops = "would block the event loop that runs in this thread; await it on an AsyncEventBus"
            whole = {"drain": f"drain() {loops} instead", "close": f"close() {loops}, or close(0)"}
            whole["cancel"] = f"cancel(wait=True) {loops} instead"
            whole["wait"] = (
                "receipt.wait() for 'a' would block the event loop that runs in this thread; await the receipt of an"
                " AsyncEventBus instead"
            )
            assert str(error) == whole.get(call, str(error))
            assert not bus.closed

    def test_g8_what_has_nothing_to_wait_for_is_fine_there(self, bus: EventBus) -> None:
        receipt = bus.emit("a")
        subscription = bus.on("a", Log())

        async def main() -> None:
            receipt.wait()
            bus.drain()
            subscription.cancel(wait=True)
            bus.close()

        asyncio.run(main())


class TestSpace:
    """A wait for space never raises: where it would close a cycle, that delivery is rejected."""

    def test_g8_a_handler_that_fills_its_own_mailbox(self, bus: EventBus) -> None:
        receipts: list[Receipt] = []
        other = Log()

        def handler(payload: Any) -> None:
            if payload == "start":
                receipts.extend(bus.emit("a", n) for n in range(5))

        bus.on("a", handler, max_pending=2, name="filler")
        bus.on("a", other)
        assert statuses(bus.emit("a", "start"))[0] is Status.DELIVERED
        outcomes = [receipt.wait(BOUND).outcomes for receipt in receipts]
        assert [each[0].status for each in outcomes] == [Status.DELIVERED] * 2 + [Status.REJECTED] * 3
        assert [each[1].status for each in outcomes] == [Status.DELIVERED] * 5  # that delivery alone
        for each in outcomes[2:]:
            assert isinstance(each[0].error, MailboxFullError)
            assert str(each[0].error) == (
                "waiting for space in the mailbox of filler would never end: filler (a) -> filler (a);"
                " the delivery of 'a' was rejected"
            )
        assert other.items == ["start", 0, 1, 2, 3, 4]

    def test_g8_a_cycle_of_two_full_mailboxes(self, bus: EventBus) -> None:
        """Each emits into the other's; the second to wait would close the cycle."""
        full = threading.Event()
        inside = Log()
        made: list[Receipt] = []

        def handler(other: str) -> Callable[[Any], None]:
            def handle(payload: Any) -> None:
                if payload == "start":
                    inside(payload)
                    assert full.wait(BOUND)
                    made.append(bus.emit(other, "one too many"))

            return handle

        for mine, other in (("x", "y"), ("y", "x")):
            bus.on(mine, handler(other), max_pending=1, name=f"box-{mine}")
            bus.emit(mine, "start")
        inside.reached(2)
        filling = [bus.emit("x", "fills it"), bus.emit("y", "fills it")]
        full.set()
        bus.drain(BOUND)
        assert statuses(*filling) == [Status.DELIVERED] * 2
        assert sorted(statuses(*made)) == [Status.DELIVERED, Status.REJECTED]
        (error,) = [each.error for receipt in made for each in receipt.outcomes if each.error]
        assert isinstance(error, MailboxFullError)
        assert "box-x" in str(error)
        assert "box-y" in str(error)

    def test_g8_a_cycle_of_space_and_receipts(self, bus: EventBus) -> None:
        """The first waits for the second's end, which waits for space behind the first."""
        inner: list[Receipt] = []

        def first(payload: Any) -> None:
            if payload == "start":
                bus.emit("first", "fills it")
                bus.emit("second").wait(BOUND)

        bus.on("first", first, max_pending=1, name="first")
        bus.on("second", lambda _: inner.append(bus.emit("first", "too many")), name="second")
        assert statuses(bus.emit("first", "start")) == [Status.DELIVERED]
        (outcome,) = inner[0].wait(BOUND).outcomes
        assert outcome.status is Status.REJECTED
        assert "first" in str(outcome.error)
        assert "second" in str(outcome.error)

    def test_g8_a_receipt_wait_that_would_close_a_cycle_through_space_raises(self, bus: EventBus) -> None:
        errors: list[DeadlockError | None] = []
        inside = threading.Event()

        def filler(payload: Any) -> None:
            if payload == "start":
                assert inside.wait(BOUND)
                bus.emit("asker", "fills it")
                bus.emit("asker", "waits for space")

        def asker(payload: Any) -> None:
            if payload == "start":
                inside.set()
                soon(lambda: bus.stats().pool.waiting == 1)
                errors.append(told(bus.emit("filler", "behind").wait))

        bus.on("filler", filler, name="filler")
        bus.on("asker", asker, max_pending=1, name="asker")
        receipts = [bus.emit("asker", "start"), bus.emit("filler", "start")]
        assert statuses(*receipts) == [Status.DELIVERED] * 2
        assert names(errors[0], "asker", "filler")
        bus.drain(BOUND)
        assert bus.stats().totals.rejected == 0

    def test_g8_space_that_comes_free_is_waited_for(self) -> None:
        """Inside a handler too, and by the only thread that there may be."""
        with EventBus("space", workers=1, max_workers=1) as bus:
            log = Log()
            bus.on("small", log, max_pending=1)

            def handler(_: Any) -> None:
                for n in range(30):
                    bus.emit("small", n)

            bus.on("a", handler)
            assert statuses(bus.emit("a", follow=True)) == [Status.DELIVERED]
            assert log.items == list(range(30))


class TestHammers:
    @pytest.mark.parametrize("seed", range(6))
    def test_g8_hammer_waits_that_only_go_down_are_never_refused(self, seed: int) -> None:
        """Handlers wait for those of higher numbers alone: there is no cycle, whatever happens."""
        with EventBus(f"down-{seed}", workers=1 + seed % 2, max_workers=2, max_pending=None) as bus:
            failed: list[BaseException] = []

            def handler(number: int) -> Callable[[Any], None]:
                chance = random.Random(seed * 100 + number)

                def handle(_: Any) -> None:
                    try:
                        for _ in range(2):
                            if number < 7:
                                bus.emit(f"n/{chance.randint(number + 1, 7)}").wait(BOUND)
                    except BaseException as error:
                        failed.append(error)

                return handle

            for number in range(8):
                bus.on(f"n/{number}", handler(number), concurrency=1 + number % 2)
            with Team() as team:
                for _ in range(3):
                    team.add(lambda: [bus.emit("n/0").wait(BOUND) for _ in range(2)])
            bus.drain(BOUND)
            assert failed == []
            settled(bus)

    @pytest.mark.parametrize("seed", range(6))
    def test_g8_hammer_whatever_waits_for_whatever_it_ends(self, seed: int) -> None:
        """Random waits in all directions, for receipts, replies, space and cancels: errors, but never a hang."""
        with EventBus(f"any-{seed}", workers=1 + seed % 2, max_workers=2) as bus:
            chance = random.Random(seed)
            lock = threading.Lock()
            errors: list[BaseException] = []

            def pick(most: int) -> int:
                with lock:
                    return chance.randrange(most)

            def handle(depth: int) -> None:
                if not depth:
                    return
                for _ in range(2):
                    topic = f"n/{pick(6)}"
                    try:
                        what = pick(6)
                        if what == 0:
                            bus.request(topic, depth - 1)
                        elif what == 1:
                            bus.emit(topic, depth - 1)
                        elif what == 2:
                            bus.emit(topic, depth - 1, follow=True).wait()
                        elif what == 3:
                            with bus.on(topic, handle):
                                bus.emit(topic, depth - 1)
                        else:
                            bus.emit(topic, depth - 1).wait()
                    except (DeadlockError, BaseExceptionGroup) as error:
                        errors.append(error)

            for number in range(6):
                lane = {"lane": "lane"} if number in (2, 3) else {}
                bus.on(f"n/{number}", handle, concurrency=1 + number // 4, max_pending=3, **lane)
            with Team(limit=20.0) as team:
                for number in range(3):
                    team.add(lambda number=number: [bus.emit(f"n/{number + k}", 3).wait(15.0) for k in range(3)])
            bus.drain(15.0)
            settled(bus)
            assert errors or bus.stats().totals.rejected  # it was no walk in the park
