"""G7: a handler past its time-out is settled though it runs on; its worker is replaced, its mailbox waits for it."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, Log, Team, an_hour_goes_by, past, soon

from eventbus import DeadlockError, Event, EventBus, EventTimeoutError, OptionError, Receipt, Status

SHORT = 0.005


def test_g7_a_delivery_past_its_time_out_is_settled_while_the_handler_goes_on(bus: EventBus) -> None:
    with Gate("late") as gate:
        subscription = bus.on("a", gate, timeout=LONG, name="sleeper")
        receipt = past(bus, gate, bus.emit("a"))
        outcome = receipt.outcomes[0]
        assert outcome.status is Status.TIMED_OUT
        assert outcome.duration == LONG
        assert isinstance(outcome.error, EventTimeoutError)
        assert isinstance(outcome.error, TimeoutError)
        assert "sleeper" in str(outcome.error)
        assert outcome.value is None
        assert gate.inside == 1
        stats = subscription.stats()
        assert (stats.timed_out, stats.running, stats.pending) == (1, 0, 0)
    assert receipt.outcomes[0].status is Status.TIMED_OUT


@pytest.mark.parametrize("status", [Status.TIMED_OUT, Status.CANCELLED])
def test_g7_what_runs_out_of_time_just_before_its_handler_begins_is_not_called(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, status: Status
) -> None:
    """Between a claim and the call there is time, for making the event at least. Nor is what a close has cancelled."""
    called: list[Event] = []
    as_event = Receipt._as_event

    def late(receipt: Receipt) -> Event:
        monkeypatch.undo()
        event = as_event(receipt)
        engine = bus._engine
        (worker,) = engine.dispatcher.alive
        assert worker.delivery is not None
        if status is Status.TIMED_OUT:
            engine.look(lambda: worker.expire(worker.delivery))
        else:
            engine.look(lambda: engine.settle(worker.delivery, status))
        return event

    def handler(event: Event) -> None:
        called.append(event)

    bus.on("a", handler, timeout=LONG if status is Status.TIMED_OUT else None)
    bus.emit("a").wait(BOUND)
    assert len(called) == 1
    monkeypatch.setattr(Receipt, "_as_event", late)
    assert bus.emit("a").wait(BOUND).outcomes[0].status is status
    bus.emit("a").wait(BOUND)
    bus.drain(BOUND)
    assert len(called) == 2
    assert bus.stats().pool.blocked == 0


def test_g7_its_mailbox_waits_until_the_handler_ends(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate, timeout=LONG)
        past(bus, gate, bus.emit("a", 0))
        second = bus.emit("a", 1)
        other = bus.on("b", lambda _: None)
        for _ in range(3):
            bus.emit("b").wait(BOUND)  # others go on
        assert gate.received == [0]
        assert not second.done
        assert subscription.stats().pending == 1
        gate.open()
        assert second.wait(BOUND).outcomes[0].status is Status.DELIVERED
        assert gate.most == 1
        assert other.active


def test_g7_a_time_out_comes_by_itself(bus: EventBus) -> None:
    """On the real clock; on a busy machine even before the handler has begun, which then never does."""
    with Gate() as gate:
        bus.on("a", gate, timeout=SHORT)
        begun = time.monotonic()
        assert bus.emit("a").wait(BOUND).outcomes[0].status is Status.TIMED_OUT
        assert SHORT <= time.monotonic() - begun < BOUND


def test_g7_a_waiting_delivery_is_not_timed_out_only_calls_are(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("b", lambda _: None, timeout=LONG, lane="lane")
        bus.on("c", gate, lane="lane")
        bus.emit("c")
        gate.entered()
        waiting = bus.emit("b")
        an_hour_goes_by(bus)
        with pytest.raises(EventTimeoutError):
            waiting.wait(4 * SHORT)
    assert waiting.wait(BOUND).outcomes[0].status is Status.DELIVERED


def test_g7_its_lane_waits_too(bus: EventBus) -> None:
    with Gate() as gate:
        log = Log()
        bus.on("a", gate, timeout=LONG, lane="db")
        bus.on("b", log, lane="db")
        bus.on("c", log)
        past(bus, gate, bus.emit("a"))
        laned = bus.emit("b", "laned")
        bus.emit("c", "free").wait(BOUND)
        assert log.items == ["free"]
        assert not laned.done
        gate.open()
        laned.wait(BOUND)


def test_g7_its_key_waits_and_other_keys_go_on(bus: EventBus) -> None:
    with Gate() as gate:

        def handler(payload: tuple[str, bool]) -> str:
            if payload[1]:
                gate(payload)
            return payload[0]

        bus.on("a", handler, timeout=LONG, key=lambda event: event.payload[0], concurrency=2)
        past(bus, gate, bus.emit("a", ("x", True)))
        held = bus.emit("a", ("x", False))
        assert bus.emit("a", ("y", False)).wait(BOUND).results() == ["y"]
        assert not held.done
        gate.open()
        assert held.wait(BOUND).results() == ["x"]


def test_g7_the_pool_keeps_its_strength_up_to_max_workers() -> None:
    """With one worker wanted and four threads allowed, three may be stuck; with four stuck the fifth has to wait."""
    with EventBus("strength", workers=1, max_workers=4, handler_timeout=LONG) as bus, Gate() as gate:
        for index in range(4):
            bus.on(f"stuck/{index}", gate)
        bus.on("free", lambda payload: payload)
        for index in range(3):
            assert past(bus, gate, bus.emit(f"stuck/{index}"), index + 1).outcomes[0].status is Status.TIMED_OUT
            assert bus.emit("free", index).wait(BOUND).results() == [index]
        assert bus.stats().pool.blocked == 3
        past(bus, gate, bus.emit("stuck/3"), 4)
        waiting = bus.emit("free", "waits")
        with pytest.raises(EventTimeoutError):
            waiting.wait(4 * SHORT)
        assert bus.stats().pool.threads == 4
        gate.open()
        assert waiting.wait(BOUND).results() == ["waits"]
        # The surplus retires: the figures are those of one worker again.
        soon(lambda: bus.stats().pool.blocked == 0)
        soon(lambda: bus.stats().pool.computing == 0)
        assert gate.most == 4


def test_g7_hammer_replacing_workers_keeps_their_number_right() -> None:
    """F8, F58: after many time-outs the pool counts what it has, and everything was settled once."""
    with EventBus("replaced", workers=2, max_workers=6, handler_timeout=0.002) as bus:
        gates = {number: threading.Event() for number in range(0, 60, 4)}

        def handler(payload: int) -> None:
            if payload in gates:
                assert gates[payload].wait(BOUND)
            if payload % 5 == 0:
                raise SystemExit

        for index in range(3):
            bus.on(f"a/{index}", handler)
        receipts = []
        for number in range(60):
            receipts.append(bus.emit(f"a/{number % 3}", number))
            if number % 4 == 0:
                soon(lambda receipt=receipts[-1]: receipt.done)
                gates[number].set()
        bus.drain(BOUND)
        totals = bus.stats().totals
        assert totals.timed_out >= 15
        assert totals.delivered + totals.failed + totals.timed_out == 60
        soon(lambda: bus.stats().pool.blocked == bus.stats().pool.computing == 0)
        pool = bus.stats().pool
        assert pool.threads == pool.idle <= 6
        engine = bus._engine.dispatcher
        assert engine.threads == pool.threads


def test_g7_a_stuck_handler_stops_no_other_subscription(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("stuck", gate)  # no time-out at all
        bus.emit("stuck")
        gate.entered()
        log = Log()
        for index in range(5):
            bus.on("a", log, name=f"other-{index}")
        for _ in range(20):
            bus.emit("a", 1).wait(BOUND)
        assert len(log.items) == 100


def test_g7_a_blocked_handler_delays_others_by_less_than_ten_milliseconds_at_the_median() -> None:
    delays = []
    with EventBus("delays", workers=1) as bus:
        for index in range(21):
            with Gate() as gate:
                arrived = Log()
                blocker = bus.on("blocks", gate, name=f"blocker-{index}")  # each a new one: nothing is known of it
                other = bus.on("other", lambda _, log=arrived: log(time.monotonic()))
                bus.emit("blocks")
                gate.entered()
                begun = time.monotonic()
                bus.emit("other")
                delays.append(arrived.reached(1)[0] - begun)
                gate.open()
                blocker.cancel(wait=True)
                other.cancel(wait=True)
    assert statistics.median(delays) < 0.010, sorted(delays)


def test_g7_the_default_of_the_bus_and_none_of_a_subscription() -> None:
    with EventBus("default", handler_timeout=LONG) as bus, Gate() as gate:
        bus.on("a", gate)
        bus.on("b", gate, timeout=None)
        bus.on("c", gate, timeout=30.0)
        assert past(bus, gate, bus.emit("a")).outcomes[0].status is Status.TIMED_OUT
        endless = [bus.emit("b"), bus.emit("c")]
        gate.entered(3)
        with pytest.raises(EventTimeoutError):
            endless[0].wait(4 * SHORT)
        gate.open()
        assert [each.wait(BOUND).outcomes[0].status for each in endless] == [Status.DELIVERED] * 2


def test_g7_a_handler_in_time_is_not_disturbed(bus: EventBus) -> None:
    bus.on("a", lambda payload: payload, timeout=BOUND)
    assert [bus.emit("a", n).wait(BOUND).results() for n in range(20)] == [[n] for n in range(20)]
    assert not bus._engine.timer._heap  # ended calls leave no deadline behind


def test_g7_a_handlers_time_out_does_not_cut_what_it_emitted(bus: EventBus) -> None:
    with Gate("child") as child:
        inner: list[Any] = []

        def parent(_: Any) -> None:
            inner.append(bus.emit("child"))
            inner[0].wait(BOUND)

        bus.on("parent", parent, timeout=LONG)
        bus.on("child", child)
        assert past(bus, child, bus.emit("parent")).outcomes[0].status is Status.TIMED_OUT
        child.open()
        assert inner[0].wait(BOUND).results() == ["child"]


def test_g7_a_late_error_is_ignored_by_the_receipt_but_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with EventBus("late") as bus, Gate() as gate:

        def handler(payload: Any) -> None:
            gate(payload)
            raise ValueError("too late")

        bus.on("a", handler, timeout=LONG)
        receipt = past(bus, gate, bus.emit("a"))
        gate.open()
        bus.emit("a").wait(BOUND)
        assert isinstance(receipt.outcomes[0].error, EventTimeoutError)
    assert any(record.exc_info and isinstance(record.exc_info[1], ValueError) for record in caplog.records)


def test_g7_a_handler_past_its_time_out_may_go_on_using_the_bus(bus: EventBus) -> None:
    with Gate() as gate:
        found: list[Any] = []

        def handler(payload: Any) -> None:
            gate(payload)
            found.append(bus.emit("other", 1).wait(BOUND).results())
            subscription = bus.on("other", lambda _: "late")
            found.append(bus.request("other", 1, BOUND))
            subscription.cancel(wait=True)
            found.append("end")

        bus.on("other", lambda n: n + 1)
        bus.on("a", handler, timeout=LONG)
        past(bus, gate, bus.emit("a"))
        gate.open()
        soon(lambda: found[-1:] == ["end"])
        assert found[0] == [2]


def test_g7_a_handler_past_its_time_out_that_waits_for_its_own_mailbox_is_told(bus: EventBus) -> None:
    """Its mailbox waits until it ends: a wait for what is pending there could never end (G8)."""
    with Gate() as gate:
        errors: list[DeadlockError] = []
        over = threading.Event()

        def handler(payload: Any) -> None:
            if payload == "first":
                gate(payload)
                try:
                    bus.emit("a", "second").wait(BOUND)
                except DeadlockError as error:
                    errors.append(error)
                over.set()

        bus.on("a", handler, timeout=LONG, name="itself")
        past(bus, gate, bus.emit("a", "first"))
        gate.open()
        assert over.wait(2.0), "it waits for itself"
        assert "itself" in str(errors[0])


def test_g7_a_handler_past_its_time_out_drains_without_what_waits_for_it(bus: EventBus) -> None:
    with Gate() as gate:
        over = threading.Event()

        def handler(payload: Any) -> None:
            if payload == "first":
                gate(payload)
                bus.drain(BOUND)
                over.set()

        bus.on("a", handler, timeout=LONG)
        past(bus, gate, bus.emit("a", "first"))
        second = bus.emit("a", "second")
        gate.open()
        assert over.wait(2.0), "it waits for what waits for it"
        second.wait(BOUND)


def test_g7_a_handler_that_waits_inside_the_bus_is_timed_out_too(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("inner", gate)
        bus.on("outer", lambda _: bus.emit("inner").wait(BOUND) and None, timeout=LONG)
        assert past(bus, gate, bus.emit("outer")).outcomes[0].status is Status.TIMED_OUT
        gate.open()
    bus.drain(BOUND)
    soon(lambda: bus.stats().pool.waiting == bus.stats().pool.blocked == bus.stats().pool.computing == 0)


def test_g7_cancel_wait_waits_for_a_handler_past_its_time_out(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate, timeout=LONG)
        past(bus, gate, bus.emit("a"))
        with pytest.raises(EventTimeoutError):
            subscription.cancel(wait=True, timeout=0)
        with Team() as team:
            team.add(subscription.cancel, True)
            team.go()
            gate.open()
        assert gate.inside == 0


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_g7_a_time_out_that_cannot_be_is_refused(bus: EventBus, timeout: float) -> None:
    with pytest.raises(OptionError, match="timeout"):
        bus.on("a", Log(), timeout=timeout)
    with pytest.raises(OptionError, match="handler_timeout"):
        EventBus(handler_timeout=timeout)
