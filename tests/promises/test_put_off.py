"""G3, G10, G12: emits that interrupt a step of the bus take effect after it, with all that makes them what they are.

Here steps are made to be interrupted; test_g12_anywhere.py has the real thing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from kit import BOUND, Gate, Log, Team, settled, sleeps, soon

from eventbus import BusClosedError, EventBus, Receipt, Status
from eventbus._engine import engine as engine_module
from eventbus._engine import hot
from eventbus._engine.engine import CLOSING, Engine


def put_off(bus: EventBus, topic: str, *args: Any, **options: Any) -> Receipt:
    """An emit in the midst of a step."""
    return bus._engine.monitor.run(lambda: bus.emit(topic, *args, **options))


@pytest.fixture
def in_python() -> Iterator[None]:
    before = hot.use(False)
    yield
    hot.use(before)


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


def test_g10_a_drain_waits_for_what_a_handler_has_emitted_thus(bus: EventBus) -> None:
    """Though the drain had begun by then: it belongs to what the handler was called for."""
    with Team() as team, Gate() as gate:
        last = Log()

        def handler(payload: Any) -> None:
            gate(payload)
            put_off(bus, "last", "put off")

        def slow(payload: Any) -> None:
            assert not drains.is_set()
            last(payload)

        bus.on("a", handler)
        bus.on("last", slow)
        bus.emit("a")
        gate.entered()

        def drain() -> None:
            bus.drain(BOUND)
            drains.set()

        drains = Flag()
        thread = team.add(drain)
        team.go()
        sleeps(thread)
        gate.open()
        assert last.reached(1) == ["put off"]


class Flag:
    def __init__(self) -> None:
        self.value = False

    def set(self) -> None:
        self.value = True

    def is_set(self) -> bool:
        return self.value


def test_g10_of_a_closing_bus_its_own_are_taken_and_others_refused(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    bus = EventBus("closes")
    with Team() as team, Gate() as gate:
        bus.on("bus/late", log)
        bus.on("a", gate)
        bus.emit("a")
        gate.entered()
        team.add(bus.close, BOUND)
        team.go()
        engine = bus._engine
        soon(lambda: engine.state == CLOSING)
        engine.monitor.run(lambda: engine.emit(Receipt, "bus/late", "its own", own=True))
        with caplog.at_level(logging.WARNING, "eventbus"):
            refused = put_off(bus, "a")
        with pytest.raises(BusClosedError):
            refused.wait(BOUND)
        assert log.reached(1) == ["its own"]
    (record,) = [record for record in caplog.records if "put off" in record.getMessage()]
    assert record.getMessage().startswith("an emit of 'a' that was put off is refused: the bus 'closes' is closing: ")


@pytest.mark.usefixtures("in_python")
def test_g2_what_has_been_cancelled_since_the_emit_took_effect_is_settled_as_that(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its sections anything can come; here as a step is asked to admit what a section cannot."""
    monkeypatch.setattr(engine_module, "SAMPLE_SECONDS", float("inf"))
    admit = Engine._admit_rest

    def cancelled_before(engine: Engine, deliveries: Any, done: int) -> None:
        monkeypatch.undo()
        for subscription in (second, third):
            engine._cancel(subscription._box, False)
        admit(engine, deliveries, done)

    with Gate() as gate:
        first = bus.on("a", gate, max_pending=1, overflow="drop_oldest")
        second = bus.on("a", gate)
        third = bus.on("a", gate, observer=True)
        receipts = [bus.emit("a", number) for number in range(2)]
        gate.entered(1)
        monkeypatch.setattr(Engine, "_admit_rest", cancelled_before)
        bus.emit("a", 2)
        receipts.append(bus.emit("a", 3))
    bus.drain(BOUND)
    assert not second.active
    assert not third.active
    for receipt in receipts:
        assert receipt.wait(BOUND).done
    assert Status.CANCELLED in {outcome.status for receipt in receipts for outcome in receipt.outcomes}
    assert first.stats().pending == 0
    settled(bus)
    totals = bus.stats().totals
    assert totals.deliveries == sum(
        (totals.delivered, totals.failed, totals.timed_out, totals.cancelled, totals.dropped, totals.rejected)
    )
    assert totals.cancelled >= 2
