"""G19: what caused what; ``follow=True``; ``max_depth``."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
from kit import BOUND, Gate, soon

from eventbus import Event, EventBus, EventCycleError, EventTimeoutError, Status
from eventbus._engine import engine
from eventbus._engine.delivery import Holder, current, held


class Trail:
    """Notes every event, by topic."""

    def __init__(self, bus: EventBus) -> None:
        self.events: dict[str, Event] = {}
        bus.on("**", self.note)

    def note(self, event: Event) -> None:
        self.events[event.topic] = event

    def __getitem__(self, topic: str) -> Event:
        return self.events[topic]


@pytest.mark.parametrize("inline", [False, True])
def test_parents_roots_and_depths(bus: EventBus, inline: bool) -> None:
    trail = Trail(bus)
    bus.on("a", lambda payload: bus.emit("b"), inline=inline)
    bus.on("b", lambda payload: bus.emit("c"), inline=inline)
    receipt = bus.emit("a", follow=True).wait(BOUND)
    bus.drain(BOUND)
    a, b, c = trail["a"], trail["b"], trail["c"]
    assert a.id == receipt.event_id
    assert (a.parent_id, a.root_id, a.depth) == (None, a.id, 0)
    assert (b.parent_id, b.root_id, b.depth) == (a.id, a.id, 1)
    assert (c.parent_id, c.root_id, c.depth) == (b.id, a.id, 2)
    assert len({a.id, b.id, c.id}) == 3
    assert a.seq < b.seq < c.seq


def test_events_outside_of_handlers_are_roots(bus: EventBus) -> None:
    trail = Trail(bus)
    bus.on("a", lambda payload: None)
    bus.emit("a").wait(BOUND)
    bus.emit("x").wait(BOUND)
    assert (trail["x"].parent_id, trail["x"].depth) == (None, 0)


def test_headers_travel_and_cannot_be_changed(bus: EventBus) -> None:
    trail = Trail(bus)
    headers = {"user": "me"}
    bus.emit("a", headers=headers).wait(BOUND)
    headers["user"] = "you"
    assert dict(trail["a"].headers) == {"user": "me"}
    with pytest.raises(TypeError):
        trail["a"].headers["user"] = "you"  # type: ignore[index]
    bus.emit("b").wait(BOUND)
    assert dict(trail["b"].headers) == {}


def test_a_thread_that_a_handler_starts_inherits_only_with_its_context(bus: EventBus) -> None:
    """The cause travels with the context, as a copy of it does to a thread."""
    trail = Trail(bus)

    def handler(payload: Any) -> None:
        context = contextvars.copy_context()
        inheriting = threading.Thread(target=context.run, args=(bus.emit, "inherited"))
        alone = threading.Thread(target=contextvars.Context().run, args=(bus.emit, "alone"))
        for each in (inheriting, alone):
            each.start()
            each.join(BOUND)

    bus.on("a", handler)
    bus.emit("a", follow=True).wait(BOUND)
    bus.drain(BOUND)
    assert trail["inherited"].parent_id == trail["a"].id
    assert trail["alone"].parent_id is None


@pytest.mark.parametrize("options", [{}, {"concurrency": 2}, {"inline": True}], ids=str)
def test_what_comes_after_the_end_of_a_handler_keeps_its_parents(
    bus: EventBus, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAMPLE_SECONDS", float("inf"))
    trail = Trail(bus)
    contexts: list[contextvars.Context] = []
    bus.on("a", lambda payload: bus.emit("b"))
    last = bus.on("b", lambda payload: contexts.append(contextvars.copy_context()), **options)
    for number in range(1, 4):  # the first ones are settled in steps, as are those that somebody waits for
        bus.emit("a")
        soon(lambda number=number: bus.stats().subscriptions[last.id].delivered == number)
    contexts[2].run(bus.emit, "late").wait(BOUND)
    bus.drain(BOUND)
    late = trail["late"]
    assert (late.parent_id, late.root_id, late.depth) == (trail["b"].id, trail["a"].id, 2)


def test_what_stands_for_a_delivery_in_a_context_that_serves_several_is_that_delivery(bus: EventBus) -> None:
    """As the hot path in C has it."""
    trail = Trail(bus)
    with Gate() as gate:
        bus.on("a", gate)
        receipt = bus.emit("a")
        holder = Holder()
        holder.delivery = receipt._deliveries[1]

        def emits() -> None:
            current.set(holder)
            assert held() is holder.delivery
            bus.emit("b").wait(BOUND)

        contextvars.Context().run(emits)
    assert trail["b"].parent_id == receipt.event_id


def test_an_event_of_another_bus_is_a_cause_as_well(bus: EventBus) -> None:
    with EventBus() as other:
        trail = Trail(other)
        receipts = []
        bus.on("a", lambda payload: receipts.append(other.emit("b")))
        receipt = bus.emit("a", follow=True).wait(BOUND)
        receipts[0].wait(BOUND)
        assert trail["b"].parent_id == receipt.event_id


class TestFollow:
    def test_it_waits_for_everything_that_the_event_causes(self, bus: EventBus) -> None:
        gated = Gate()
        bus.on("a", lambda payload: bus.emit("b"))
        bus.on("b", lambda payload: bus.emit("c"))
        bus.on("c", gated)
        followed = bus.emit("a", follow=True)
        gated.entered()
        assert not followed.done
        with pytest.raises(EventTimeoutError, match="c"):
            followed.wait(0)
        gated.open()
        assert followed.wait(BOUND).done
        assert followed.deliveries == 1  # its own
        assert [each.status for each in followed.outcomes] == [Status.DELIVERED]

    def test_without_it_the_receipt_is_done_with_its_own_deliveries(self, bus: EventBus) -> None:
        gated = Gate()
        bus.on("a", lambda payload: bus.emit("c"))
        bus.on("c", gated)
        receipt = bus.emit("a")
        assert receipt.wait(BOUND).done
        gated.entered()
        gated.open()

    def test_inline_handlers_too(self, bus: EventBus) -> None:
        gated = Gate()
        bus.on("a", lambda payload: bus.emit("b"), inline=True)
        bus.on("b", gated)
        followed = bus.emit("a", follow=True)
        assert not followed.done
        gated.open()
        followed.wait(BOUND)

    def test_through_threads_that_inherit_the_context(self, bus: EventBus) -> None:
        gated = Gate()

        def handler(payload: Any) -> None:
            thread = threading.Thread(target=contextvars.copy_context().run, args=(bus.emit, "b"))
            thread.start()
            thread.join(BOUND)

        bus.on("a", handler)
        bus.on("b", gated)
        followed = bus.emit("a", follow=True)
        gated.entered()
        assert not followed.done
        gated.open()
        followed.wait(BOUND)

    def test_what_outlives_its_handler_keeps_its_parent_and_is_not_waited_for(self, bus: EventBus) -> None:
        trail = Trail(bus)
        late = threading.Event()
        threads: list[threading.Thread] = []

        def emit_late() -> None:
            assert late.wait(BOUND)
            bus.emit("late")

        def handler(payload: Any) -> None:
            threads.append(threading.Thread(target=contextvars.copy_context().run, args=(emit_late,)))
            threads[0].start()

        gated = Gate()
        bus.on("a", handler)
        bus.on("late", gated)
        followed = bus.emit("a", follow=True).wait(BOUND)
        late.set()
        threads[0].join(BOUND)
        gated.entered()
        assert followed.done
        gated.open()
        bus.drain(BOUND)
        assert trail["late"].parent_id == followed.event_id
        assert trail["late"].depth == 1

    def test_several_follow_each_other(self, bus: EventBus) -> None:
        gated = Gate()
        inner: list[Any] = []
        bus.on("a", lambda payload: inner.append(bus.emit("b", follow=True)))
        bus.on("b", lambda payload: bus.emit("c"))
        bus.on("c", gated)
        outer = bus.emit("a", follow=True)
        gated.entered()
        assert not outer.done
        assert not inner[0].done
        gated.open()
        outer.wait(BOUND)
        inner[0].wait(BOUND)

    def test_errors_and_cancellations_below_settle_it_too(self, bus: EventBus) -> None:
        gated = Gate()

        def fail(payload: Any) -> None:
            raise ValueError("below")

        bus.on("a", lambda payload: (bus.emit("b"), bus.emit("c"), bus.emit("c")))
        bus.on("b", fail)
        subscription = bus.on("c", gated)
        followed = bus.emit("a", follow=True)
        gated.entered()
        subscription.cancel()  # the second one is cancelled while it is pending
        gated.open()
        followed.wait(BOUND)
        followed.raise_for_errors()  # its own deliveries succeeded

    def test_its_observers_still_get_the_payload(self, bus: EventBus) -> None:
        """An observer's delivery may come after the receipt is done, whoever settled it last."""
        gated, got = Gate(), []
        payload = {"a": 1}
        bus.on("a", lambda payload: bus.emit("b"))
        bus.on("b", lambda payload: None)
        blocker = bus.on("x", gated, lane="lane")
        bus.emit("x")
        gated.entered()
        bus.on("a", got.append, observer=True, lane="lane")
        bus.emit("a", payload, follow=True).wait(BOUND)
        gated.open()
        bus.drain(BOUND)
        assert got == [payload]
        assert blocker.active

    def test_many_at_once(self, bus: EventBus) -> None:
        seen: list[int] = []
        lock = threading.Lock()

        def grow(payload: int) -> None:
            with lock:
                seen.append(payload)
            if payload:
                bus.emit("grow", payload - 1)
                bus.emit("grow", payload - 1)

        bus.on("grow", grow, concurrency=4)
        bus.emit("grow", 7, follow=True).wait(BOUND)
        assert len(seen) == 2**8 - 1


def test_what_is_followed_reaches_keyed_handlers_on_a_topic_that_is_new(bus: EventBus) -> None:
    """G19, G6: the emit is tried again once the keys are known, and is followed by the same receipts as before."""
    got: list[int] = []
    with Gate() as gate:
        # Each of these topics is emitted to for the first time: its route is made in the step, which asks for keys.
        bus.on("new", gate, key=lambda event: event.payload, concurrency=2)
        bus.on("newer", got.append, key=lambda event: event.payload)
        bus.on("root", lambda payload: bus.emit("new", 1, follow=True) and None)
        bus.on("root", lambda payload: bus.emit("newer", 2) and None)
        receipt = bus.emit("root", follow=True)
        with pytest.raises(EventTimeoutError):
            receipt.wait(0)
        gate.open()
        receipt.wait(BOUND)
    receipt.raise_for_errors()
    assert gate.received == [1]
    assert got == [2]


class TestMaxDepth:
    @pytest.mark.parametrize("follow", [False, True])
    def test_an_emit_that_goes_deeper_raises_with_the_chain(self, follow: bool) -> None:
        errors: list[EventCycleError] = []
        with EventBus(max_depth=3) as bus:

            def ping(payload: Any) -> None:
                bus.emit("pong")

            def pong(payload: Any) -> None:
                try:
                    bus.emit("ping")
                except EventCycleError as error:
                    errors.append(error)
                    raise

            bus.on("ping", ping)
            bus.on("pong", pong)
            bus.emit("ping", follow=follow).wait(BOUND)
            bus.drain(BOUND)
            assert bus.stats().events == 4  # depths 0 to 3
        (error,) = errors
        assert error.chain == ("ping", "pong", "ping", "pong", "ping")
        assert "ping -> pong" in str(error)

    def test_zero_forbids_emits_in_handlers(self) -> None:
        with EventBus(max_depth=0) as bus:
            bus.on("a", lambda payload: bus.emit("b"))
            receipt = bus.emit("a").wait(BOUND)
            assert isinstance(receipt.outcomes[0].error, EventCycleError)
            bus.emit("b")  # a root is at depth 0

    def test_without_it_chains_may_be_long_and_use_no_stack(self, bus: EventBus) -> None:
        """F24: two handlers that emit each other, far beyond the recursion limit."""
        count = 5_000
        done = threading.Event()

        def ping(payload: int) -> None:
            if payload:
                bus.emit("pong", payload - 1)
            else:
                done.set()

        bus.on("ping", ping)
        bus.on("pong", lambda payload: bus.emit("ping", payload))
        bus.emit("ping", count)
        assert done.wait(BOUND)


@pytest.mark.parametrize("warm", [0, 3])
def test_g19_a_limit_of_depth_counts_what_comes_from_a_bus_without_one(bus: EventBus, warm: int) -> None:
    with EventBus("shallow", max_depth=1) as shallow:
        bus.on("a", lambda _: shallow.emit("b") and None)
        shallow.on("b", lambda _: shallow.emit("c") and None)
        for _ in range(warm + 1):
            (outcome,) = bus.emit("a").wait(BOUND).outcomes
            assert outcome.error is None
            shallow.drain(BOUND)
        assert shallow.stats().totals.failed == warm + 1  # the emit of "c" is one too deep
