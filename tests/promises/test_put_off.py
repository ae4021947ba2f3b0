"""G2, G3, G10, G12: what interrupts a step of the bus takes effect after it, with all that makes it what it is.

Here steps are made to be interrupted; test_g12_anywhere.py has the real thing.
"""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from typing import Any

import pytest
from kit import BOUND, LONG, Alarm, Gate, Log, Team, settled, sleeps, soon

from eventbus import BusClosedError, DeadlockError, Event, EventBus, NoHandlerError, Receipt, Status, Subscription
from eventbus._engine import dispatcher, primitives
from eventbus._engine import engine as engine_module
from eventbus._engine.engine import CLOSING, Engine
from eventbus._engine.mailbox import ENDED, Mailbox
from eventbus._engine.monitor import steps
from eventbus._engine.registry import Registry


def put_off(bus: EventBus, topic: str, *args: Any, **options: Any) -> Receipt:
    """An emit in the midst of a step."""
    return bus._engine.monitor.run(lambda: bus.emit(topic, *args, **options))


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("inline", [False, True])
def test_g3_each_delivery_is_counted_once(bus: EventBus, inline: bool, warm: int) -> None:
    log = Log()
    subscription = bus.on("a", log, inline=inline)
    for _ in range(warm):
        bus.emit("a").wait(BOUND)
    receipt = put_off(bus, "a", "put off")
    assert receipt.wait(BOUND).deliveries == 1
    assert log.items[warm:] == ["put off"]
    assert (subscription.stats().deliveries, subscription.stats().delivered) == (warm + 1, warm + 1)
    settled(bus)


@pytest.mark.parametrize("way", ["put off", "in a step", "in sections"])
def test_g10_a_drain_waits_for_what_a_handler_emits_though_it_had_begun_by_then(bus: EventBus, way: str) -> None:
    """What it causes belongs to what the handler was called for."""
    with Team() as team, Gate() as last, Gate() as first:

        def handler(payload: Any) -> None:
            first(payload)
            if way == "put off":
                put_off(bus, "last")
            else:
                bus.emit("last", follow=way == "in a step")

        bus.on("a", handler)
        bus.on("last", last)
        last.let(3)
        for _ in range(3):
            bus.emit("last").wait(BOUND)
        receipt = bus.emit("a")
        first.entered()
        thread = team.add(bus.drain, BOUND)
        team.go()
        sleeps(thread)
        (drain,) = bus._engine.drains
        first.open()
        receipt.wait(BOUND)
        last.entered(4)
        assert not drain.done
        assert bus._engine.drains == [drain]
        last.open()
        thread.join(BOUND)
        assert drain.done


@pytest.mark.parametrize("warm", [0, 3])
def test_g4_inline_handlers_see_them_in_order_though_threads_are_started_for_others(
    bus: EventBus, warm: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a test of mutants: starting a thread takes a step, and that caught up with the next one."""
    monkeypatch.setattr(dispatcher, "IDLE_SECONDS", 0.001)
    seen: list[str] = []

    def inline(event: Event) -> None:
        seen.append(event.topic)

    bus.on(["a", "b", "c"], inline, inline=True)
    bus.on(["a", "b", "c"], Log())

    def step() -> None:
        for topic in "abc":
            bus.emit(topic)

    for _ in range(warm):
        step()
    bus.drain(BOUND)
    soon(lambda: not bus._engine.dispatcher.alive)
    seen.clear()
    bus._engine.monitor.run(step)
    assert seen == ["a", "b", "c"]
    assert not bus._engine.monitor.deferred


@pytest.mark.parametrize("warm", [0, 3])
def test_g4_what_they_emit_comes_after_what_was_put_off_before_it(bus: EventBus, warm: int) -> None:
    """A thread's calls keep their order."""
    order: list[str] = []

    def a(payload: Any) -> None:
        order.append("a")
        bus.emit("c")

    bus.on("a", a, inline=True)
    for topic in "bc":
        bus.on(topic, lambda _, topic=topic: order.append(topic), inline=True)
    for _ in range(warm):
        for topic in "abc":
            bus.emit(topic)
    order.clear()

    def step() -> None:
        bus.emit("a")
        bus.emit("b")

    both = Log()
    bus.on(["b", "c"], lambda event: both(event.topic), payload=Event)
    bus._engine.monitor.run(step)
    assert order == ["a", "b", "c"]
    assert both.reached(2) == ["b", "c"]
    assert not bus._engine.monitor.deferred


def test_g10_of_a_closing_bus_its_own_are_taken_and_others_refused(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    with EventBus("closes") as bus, Team() as team, Gate() as gate:
        engine = bus._engine
        bus.on("bus/late", log)
        for _ in range(2):
            engine.emit(Receipt, "bus/late", "before", own=True)
        bus.on("a", gate)
        bus.emit("a")
        gate.entered()
        team.add(bus.close, BOUND)
        team.go()
        soon(lambda: engine.state == CLOSING)
        engine.monitor.run(lambda: engine.emit(Receipt, "bus/late", "its own", own=True))
        engine.emit(Receipt, "bus/late", "directly", own=True)
        with caplog.at_level(logging.WARNING, "eventbus"):
            refused = put_off(bus, "a")
        with pytest.raises(BusClosedError):
            refused.wait(BOUND)
        assert log.reached(4) == ["before", "before", "its own", "directly"]
        with pytest.raises(BusClosedError, match=r"^the bus 'closes' is closing: 'a' was not emitted; use it before"):
            bus.emit("a")
    with pytest.raises(
        BusClosedError,
        match=r"^the bus 'closes' is closed: 'a' was not emitted; use it before it is closed, or make another bus$",
    ):
        bus.emit("a")
    (record,) = [record for record in caplog.records if "put off" in record.getMessage()]
    assert record.getMessage().startswith("an emit of 'a' that was put off is refused: the bus 'closes' is closing: ")


@pytest.mark.usefixtures("in_python")
def test_g2_what_has_been_cancelled_since_the_emit_took_effect_is_settled_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between its sections anything can come; here as a step is asked to admit what a section cannot."""
    admit = Engine._admit_rest

    def cancelled_before(engine: Engine, deliveries: Any, done: int) -> None:
        monkeypatch.undo()
        for subscription in (second, third, fourth):
            engine._cancel(subscription._box, False)
        assert list(engine.leftovers) == [second.id]  # a call of it goes on
        admit(engine, deliveries, done)

    with EventBus("test", workers=3) as bus, Gate() as gate:
        log = Log()
        first = bus.on("a", gate, max_pending=1, overflow="drop_oldest")
        second = bus.on("a", gate)
        third = bus.on("a", log, observer=True)
        fourth = bus.on("a", log)
        for number in range(2):
            bus.emit("a", number)
            gate.entered(2)
        soon(lambda: third.stats().delivered == fourth.stats().delivered == 2)
        monkeypatch.setattr(Engine, "_admit_rest", cancelled_before)
        bus.emit("a", 2)
        bus.emit("a", 3)
        gate.open()
        bus.drain(BOUND)
        assert [each.active for each in (first, second, third, fourth)] == [True, False, False, False]
        settled(bus)
        totals = bus.stats().totals
        assert (totals.deliveries, totals.delivered, totals.cancelled, totals.dropped) == (13, 7, 4, 2)


@pytest.mark.usefixtures("in_python")
def test_g3_those_whose_turn_it_was_before_a_step_was_wanted_have_a_worker() -> None:
    """An emit of which the first mailbox wants no more than an append, and the second a step."""
    log = Log()
    with EventBus("test", workers=2) as bus, Gate() as gate:
        bus.on("a", log)
        bus.on("a", gate, max_pending=1, overflow="drop_oldest")
        for number in range(5):
            bus.emit("a", number)
            assert log.reached(number + 1)[-1] == number
            soon(lambda: len(bus._engine.dispatcher.idle) == 1)


def test_latencies_of_a_first_delivery_are_measured_though_an_emit_was_refused_before_it(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscription that is not used much has figures, too."""
    monkeypatch.setattr(primitives, "wall_clock", lambda: 1e9)
    bus.on("a", Log(), inline=True)
    bus.emit("a")
    subscription = bus.on("b", Log())
    for _ in range(2):
        with pytest.raises(NoHandlerError):
            bus.emit("b", require=2)
    for _ in range(3):
        bus.emit("b").wait(BOUND)
    bus.drain(BOUND)
    assert subscription.stats().wait.count == 1


@pytest.mark.usefixtures("in_python")
def test_latencies_of_what_wants_a_step_are_measured_no_more_often(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "SAMPLE_SECONDS", float("inf"))
    with Gate() as gate:
        subscription = bus.on("a", gate, max_pending=1, overflow="drop_oldest")
        for number in range(10):
            bus.emit("a", number)
            gate.entered()
    bus.drain(BOUND)
    assert (subscription.stats().delivered, subscription.stats().wait.count) == (2, 1)  # of the first


@pytest.mark.parametrize("warm", [0, 3])
def test_g12_what_comes_in_another_buss_step_waits_for_the_end_of_that(bus: EventBus, warm: int) -> None:
    """No user code runs within a step, of whatever bus."""
    order: list[str] = []

    def step() -> None:
        order.append("begin")
        bus.emit("a")
        order.append("end")

    bus.on("a", lambda _: order.append("handler"), inline=True)
    for _ in range(warm):
        bus.emit("a")
    with EventBus("other") as other:
        other._engine.monitor.run(step)
    assert order[warm:] == ["begin", "end", "handler"]


@pytest.mark.parametrize("warm", [0, 3])
def test_g10_a_drain_waits_for_nothing_of_another_bus(bus: EventBus, warm: int) -> None:
    """Though one of its own handlers has emitted it there."""
    with EventBus("other") as other, Gate() as gate:
        other.on("b", lambda payload: gate(payload) if payload == "last" else None)
        for _ in range(warm):
            other.emit("b").wait(BOUND)
        bus.on("a", lambda _: other.emit("b", "last") and None)
        bus.emit("a").wait(BOUND)
        gate.entered()
        bus.drain(BOUND)
        assert gate.inside == 1
        assert other._engine.epoch.open == 1


class TestRegistrations:
    def test_g1_one_that_was_cancelled_before_it_took_effect_never_does(self, bus: EventBus) -> None:
        """By another thread, which may come between the step and what was put off."""
        log = Log()

        def step() -> Subscription:
            subscription = bus.on("a", log)
            assert bus._engine._cancel(subscription._box, False) is True
            assert bus._engine._cancel(subscription._box, False) is False
            return subscription

        subscription = bus._engine.monitor.run(step)
        assert repr(subscription).endswith(": ended>")
        assert bus.subscriptions() == ()
        assert bus.emit("a").deliveries == 0

    def test_g17_one_that_is_refused_then_is_told_of_in_the_log(
        self, bus: EventBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        log = Log()
        first = bus.on("a", log, name="mine")
        with caplog.at_level(logging.WARNING, "eventbus"):
            second = bus._engine.monitor.run(lambda: bus.on("a", log, name="mine", unique=True))
        assert repr(second).endswith(": ended>")
        assert caplog.messages == [
            "a registration of mine that was put off is refused: mine is registered for 'a' already (subscription"
            f" {first.id}) and unique=True refuses a second time; cancel the first or drop unique"
        ]
        assert bus.subscriptions() == (first,)

    @pytest.mark.parametrize("place", ["_refuse_second", "attach", "add"])
    def test_g12_of_one_that_a_signal_handler_breaks_nothing_stays(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, place: str
    ) -> None:
        """Before it took effect, or as far as it had come."""
        boxes: list[Mailbox] = []
        owner: Any = {"_refuse_second": Engine, "attach": Mailbox, "add": Registry}[place]
        real = getattr(owner, place)

        def alarmed(*args: Any) -> None:
            monkeypatch.undo()
            boxes.extend(each for each in args if isinstance(each, Mailbox))
            if place != "_refuse_second":
                real(*args)
            raise Alarm

        monkeypatch.setattr(owner, place, alarmed)
        with pytest.raises(Alarm):
            bus.on("a", Log(), unique=True)
        assert [box.state for box in boxes] == [ENDED]
        assert bus.subscriptions() == ()
        assert bus.topics() == ()
        assert not bus._engine.leftovers


class TestCancels:
    def test_g2_it_tells_whether_it_will_have_ended_it(self, bus: EventBus) -> None:
        subscription = bus.on("a", Log())
        cancel = bus._engine.monitor.run
        assert cancel(subscription.cancel) is True
        assert not subscription.active
        assert cancel(subscription.cancel) is False
        assert bus.subscriptions() == ()

    def test_g8_its_end_cannot_be_waited_for_there(self, bus: EventBus) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate, name="mine")
            bus.emit("a")
            gate.entered()
            with pytest.raises(DeadlockError, match=r"^cannot wait for the end of mine here: "):
                bus._engine.monitor.run(lambda: subscription.cancel(wait=True))
            assert not subscription.active

    @pytest.mark.parametrize("drain", [False, True])
    def test_g2_what_was_pending_is_cancelled_or_run_first(self, bus: EventBus, drain: bool) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate)
            receipts = [bus.emit("a", number) for number in range(3)]
            gate.entered()
            engine = bus._engine
            assert engine.monitor.run(engine.cancel, subscription._box, drain) is True
            assert not subscription.active
        last = Status.DELIVERED if drain else Status.CANCELLED
        assert [each.wait(BOUND).outcomes[0].status for each in receipts] == [Status.DELIVERED, last, last]

    def test_g18_what_was_pending_lets_go_of_its_mailbox(self, bus: EventBus) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate)
            bus.emit("a")
            receipt = bus.emit("a", {})
            (delivery,) = receipt._deliveries
            gate.entered()
            assert delivery.box is subscription._box
            subscription.cancel()
            assert (delivery.box, delivery.receipt) == (None, None)
            assert receipt.outcomes[0].subscription_id == subscription.id

    def test_g2_off_cancels_what_is_pending(self, bus: EventBus) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate)
            receipts = [bus.emit("a", number) for number in range(3)]
            gate.entered()
            assert bus.off(subscription) == 1
            assert [each.done for each in receipts] == [False, True, True]

    @pytest.mark.parametrize("put_off", [False, True])
    def test_g12_one_that_a_signal_handler_breaks_is_finished(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, put_off: bool
    ) -> None:
        engine = bus._engine

        def alarmed(*args: Any) -> None:
            monkeypatch.undo()
            raise Alarm

        with Gate() as gate:
            subscription = bus.on("a", gate)
            receipts = [bus.emit("a", number) for number in range(3)]
            gate.entered()
            monkeypatch.setattr(Engine, "_finish_cancel", alarmed)
            with pytest.raises(Alarm):
                if put_off:
                    engine.monitor.run(subscription.cancel)
                else:
                    subscription.cancel()
            assert not subscription.active
            assert bus.subscriptions() == ()
            assert bus.topics() == ()
            assert [each.done for each in receipts] == [False, True, True]
        bus.drain(BOUND)
        soon(lambda: not engine.leftovers)


class TestEnd:
    """What an ended subscription lets go of, and when (G18)."""

    def test_g18_its_handler_when_its_last_call_has_ended(self, bus: EventBus) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate)
            bus.emit("a")
            gate.entered()
            subscription.cancel()
            assert subscription.handler is gate
            assert list(bus._engine.leftovers) == [subscription.id]
        soon(lambda: subscription.handler is None)
        assert not bus._engine.leftovers

    def test_g18_its_key_function_and_nothing_else_of_its_options(self, bus: EventBus) -> None:
        def by_payload(event: Event) -> Any:
            return event.payload

        subscription = bus.on("a", Log(), key=by_payload, max_pending=7)
        bus.emit("a", 1).wait(BOUND)
        key = weakref.ref(by_payload)
        del by_payload
        subscription.cancel(wait=True)
        bus.drain(BOUND)
        gc.collect()
        assert key() is None
        assert subscription._box.options.max_pending == 7

    def test_g12_outside_of_steps_for_finalizers_are_user_code(self, bus: EventBus) -> None:
        seen: list[bool] = []

        class Handler:
            def __call__(self, payload: Any) -> None:
                pass

            def __del__(self) -> None:
                seen.append(threading.get_ident() in steps)

        subscription = bus.on("a", Handler())
        bus.emit("a").wait(BOUND)
        bus.drain(BOUND)
        subscription.cancel(wait=True)
        soon(lambda: gc.collect() >= 0 and seen)
        assert seen == [False]

    @pytest.mark.parametrize("value", [None, object()], ids=str)
    @pytest.mark.parametrize("inline", [False, True])
    def test_g12_so_is_what_was_emitted(self, bus: EventBus, inline: bool, value: object) -> None:
        seen: list[bool] = []

        class Payload:
            def __del__(self) -> None:
                seen.append(threading.get_ident() in steps)

        bus.on("a", lambda _: value, inline=inline)
        for number in range(4):
            bus.emit("a", Payload())
            bus.drain(BOUND)
            soon(lambda number=number: gc.collect() >= 0 and len(seen) == number + 1)
        assert seen == [False] * 4

    @pytest.mark.parametrize("overflow", ["latest", "drop_oldest"])
    @pytest.mark.parametrize("warm", [0, 3])
    def test_g18_nothing_is_kept_of_what_was_dropped(self, bus: EventBus, overflow: Any, warm: int) -> None:
        """And its finalizer runs outside of steps."""
        seen: list[bool] = []

        class Payload:
            def __del__(self) -> None:
                seen.append(threading.get_ident() in steps)

        with Gate() as gate:
            bus.on("a", gate, max_pending=1, overflow=overflow)
            gate.let(warm)
            for _ in range(warm):
                bus.emit("a").wait(BOUND)
            bus.emit("a")
            gate.entered(warm + 1)
            for number in range(3):
                bus.emit("a", Payload())
                gc.collect()
                assert seen == [False] * number
            bus.emit("a")
            gc.collect()
            assert seen == [False] * 3

    def test_its_latencies_stay_with_the_bus_each_with_its_like(self, bus: EventBus) -> None:
        subscription, other = bus.on("a", Log()), bus.on("b", Log())
        for each, wait, run in ((subscription, 1.0, 2.0), (other, 4.0, 8.0)):
            bus._engine.look(lambda each=each, wait=wait, run=run: each._box.sample(wait, run))
        for _ in range(2):
            totals = bus.stats().totals
            assert (totals.wait.count, totals.wait.max) == (2, 4.0)
            assert (totals.run.count, totals.run.max) == (2, 8.0)
            other.cancel()
        other = bus.on("b", Log())
        subscription.cancel()
        totals = bus.stats().totals
        assert (totals.wait.max, totals.run.max) == (4.0, 8.0)

    def test_g3_what_is_pending_is_summed_up(self, bus: EventBus) -> None:
        with Gate() as gate:
            for number in range(3):
                bus.on(f"t/{number}", gate, concurrency=1)
                for _ in range(number + 2):
                    bus.emit(f"t/{number}")
            gate.entered()
            totals = bus.stats().totals
            assert totals.pending + totals.running == 9
            assert totals.pending >= 6
        bus.drain(BOUND)


@pytest.mark.parametrize("room", [None, 1])
def test_g10_a_close_counts_what_it_cancels_in_line_or_not(room: int | None) -> None:
    with EventBus("closes") as bus, Team() as team, Gate() as gate:
        subscription = bus.on("a", gate, max_pending=room)
        bus.emit("a", 0)
        gate.entered()
        for number in range(1, 4):
            team.add(bus.emit, "a", number)
        team.go()
        soon(lambda: subscription.stats().pending == 3)
        report = bus.close(0)
        assert report.cancelled == 4


class TestBrokenEmits:
    """A signal handler raises in the midst of one that has taken effect: what was not admitted is cancelled (G12)."""

    @pytest.mark.parametrize("admitted", [False, True])
    @pytest.mark.parametrize("observer", [False, True])
    @pytest.mark.parametrize("follow", [False, True])
    def test_g12_in_its_step(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, admitted: bool, observer: bool, follow: bool
    ) -> None:
        offer, receipts = Engine._offer, list[Receipt]()

        def alarmed(engine: Engine, box: Mailbox, delivery: Any, keys: Any) -> None:
            receipts.append(delivery.receipt)
            if len(receipts) == 2:
                monkeypatch.undo()
                if not admitted:
                    raise Alarm
                offer(engine, box, delivery, keys)
                raise Alarm
            offer(engine, box, delivery, keys)

        logs = [Log() for _ in range(3)]
        for index, log in enumerate(logs):
            bus.on("a", log, overflow="latest", observer=observer and index == 1)  # which no section admits to
        monkeypatch.setattr(Engine, "_offer", alarmed)
        with pytest.raises(Alarm):
            bus.emit("a", 1, follow=follow)
        bus.drain(BOUND)
        assert [log.items for log in logs] == [[1], [1] if admitted else [], []]
        assert receipts[0].wait(BOUND).done
        second = Status.DELIVERED if admitted else Status.CANCELLED
        expected = [Status.DELIVERED, *([] if observer else [second]), Status.CANCELLED]
        assert [each.status for each in receipts[0].outcomes] == expected
        assert not follow or not receipts[0]._family
        settled(bus)
        totals = bus.stats().totals
        assert (totals.deliveries, totals.delivered, totals.cancelled) == (3, 1 + admitted, 2 - admitted)

    @pytest.mark.usefixtures("in_python")
    def test_g12_between_its_sections_though_one_has_been_cancelled_since(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def alarmed(engine: Engine, deliveries: Any, done: int) -> None:
            monkeypatch.undo()
            engine._cancel(second._box, False)
            raise Alarm

        with Gate() as gate:
            first = bus.on("a", gate, max_pending=1, overflow="drop_oldest")
            second = bus.on("a", Log())
            bus.emit("a", 0)
            gate.entered()
            bus.emit("a", 1)
            monkeypatch.setattr(Engine, "_admit_rest", alarmed)
            with pytest.raises(Alarm):
                bus.emit("a", 2)
            assert first.stats().pending == 1
        bus.drain(BOUND)
        assert (first.stats().delivered, first.stats().cancelled) == (2, 1)
        settled(bus)
        assert bus.stats().totals.deliveries == 6

    def test_g12_as_one_is_settled_that_had_been_waiting_for_space(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What tells others of it is done once more, with nothing left of its timer."""
        complete, calls = Engine._complete, list[Receipt]()

        def alarmed(engine: Engine, receipt: Receipt) -> None:
            calls.append(receipt)
            if len(calls) == 2:
                raise Alarm
            complete(engine, receipt)

        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1, block_timeout=LONG)
            bus.emit("a", 0)
            gate.entered()
            bus.emit("a", 1)
            thread = team.add(bus.emit, "a", 2)
            team.go()
            sleeps(thread)
            monkeypatch.setattr(Engine, "_complete", alarmed)
            with pytest.raises(Alarm):
                subscription.cancel()
            monkeypatch.undo()
            thread.join(BOUND)
            assert not thread.is_alive()
            assert calls[1] is calls[2]
            assert all(each.done for each in calls)
        bus.drain(BOUND)
        assert bus.stats().totals.cancelled == 2
        settled(bus)


def test_g18_a_registration_that_is_refused_when_its_turn_comes_leaves_no_watcher(
    bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Log()
    bus.on("t", handler)
    made: list[Any] = []
    bus._engine.look(lambda: made.append(bus._on("t", handler, {"unique": True}, None, lambda problem: None)))
    assert not made[0].active
    assert bus._engine.error_watchers == {}
    assert "that was put off is refused" in caplog.text


def test_g18_a_registration_that_is_cancelled_before_it_takes_effect_leaves_no_watcher(bus: EventBus) -> None:
    """Whoever ends a service has its handle as soon as it is admitted."""
    handle = bus._on("t", Log(), {}, lambda handle: handle.cancel(), lambda problem: None)
    assert not handle.active
    assert bus._engine.error_watchers == {}
