"""G21: how many heard it; ``require``; observers."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from kit import BOUND

from eventbus import EventBus, NoHandlerError, Receipt


def fail(payload: Any) -> None:
    raise ValueError("no")


def test_the_receipt_counts_what_an_emit_reached(bus: EventBus) -> None:
    assert bus.emit("t").deliveries == 0
    one = bus.on("t", lambda payload: None)
    bus.on("*", lambda payload: None)
    bus.on("**", lambda payload: None, inline=True)
    bus.on("other", lambda payload: None)
    bus.on(["t", "*", "**"], lambda payload: None)  # overlapping patterns of one registration are one delivery
    assert bus.emit("t").deliveries == 4
    one.cancel()
    assert bus.emit("t").deliveries == 3


def test_an_unheard_event_is_done_at_once(bus: EventBus) -> None:
    receipt = bus.emit("t")
    assert receipt.done
    assert receipt.outcomes == ()
    assert receipt.wait(0) is receipt
    receipt.raise_for_errors()


def test_require_raises_and_delivers_nothing_when_fewer_listen(bus: EventBus) -> None:
    got: list[Any] = []
    subscription = bus.on("t", got.append)
    assert bus.emit("t", 1, require=1).deliveries == 1
    with pytest.raises(NoHandlerError, match=r"2.*1"):
        bus.emit("t", 2, require=2)
    bus.drain(BOUND)
    assert got == [1]
    assert subscription.stats().deliveries == 1
    assert bus.stats().events == 1
    subscription.cancel()
    with pytest.raises(NoHandlerError):
        bus.emit("t", require=1)


def test_a_pattern_that_does_not_match_is_not_heard(bus: EventBus) -> None:
    bus.on("a/*", lambda payload: None)
    bus.on("a/b/**", lambda payload: None)
    assert bus.emit("a").deliveries == 0
    assert bus.emit("a/x").deliveries == 1
    assert bus.emit("a/b").deliveries == 2
    assert bus.emit("a/b/c").deliveries == 1


class TestObservers:
    def test_they_stand_on_no_receipt(self, bus: EventBus) -> None:
        got: list[Any] = []
        subscription = bus.on("t", got.append, observer=True)
        receipt = bus.emit("t", 1)
        assert receipt.deliveries == 0
        assert receipt.done
        assert receipt.wait(0).outcomes == ()
        bus.drain(BOUND)
        assert got == [1]
        with pytest.raises(NoHandlerError):
            bus.emit("t", 2, require=1)
        with pytest.raises(NoHandlerError):
            bus.request("t", 3, BOUND)
        bus.drain(BOUND)
        assert got == [1]
        assert subscription.stats().delivered == 1

    def test_a_wait_does_not_wait_for_them(self, bus: EventBus) -> None:
        begun, gate = threading.Event(), threading.Event()

        def slow(payload: Any) -> None:
            begun.set()
            assert gate.wait(BOUND)

        bus.on("t", slow, observer=True)
        bus.on("t", lambda payload: "handled")
        receipt = bus.emit("t")
        assert begun.wait(BOUND)
        assert receipt.wait(BOUND).results() == ["handled"]
        gate.set()

    @pytest.mark.parametrize("inline", [False, True])
    def test_their_errors_are_reported_and_raised_to_nobody(self, bus: EventBus, inline: bool) -> None:
        problems: list[Any] = []
        bus.on("bus/error", problems.append)
        bus.on("t", fail, observer=True, inline=inline)
        receipt = bus.emit("t", propagate_errors=True).wait(BOUND)
        receipt.raise_for_errors()
        bus.drain(BOUND)
        assert len(problems) == 1

    def test_drain_close_and_statistics_include_them(self) -> None:
        begun, gate = threading.Event(), threading.Event()
        order: list[str] = []

        def slow(payload: Any) -> None:
            begun.set()
            assert gate.wait(BOUND)
            order.append("observed")

        bus = EventBus()
        subscription = bus.on("t", slow, observer=True)
        receipt: Receipt = bus.emit("t")
        assert begun.wait(BOUND)
        assert receipt.done
        with pytest.raises(TimeoutError):
            bus.drain(0)
        stats = bus.stats()
        assert (stats.totals.deliveries, stats.totals.running) == (1, 1)
        assert stats.subscriptions[subscription.id].running == 1
        threading.Timer(0.02, gate.set).start()
        bus.drain(BOUND)
        assert order == ["observed"]
        gate.clear()
        begun.clear()
        bus.emit("t")
        assert begun.wait(BOUND)
        threading.Timer(0.02, gate.set).start()
        report = bus.close(BOUND)
        assert order == ["observed"] * 2
        assert report.cancelled == 0

    def test_lookups_of_handlers_leave_them_out(self, bus: EventBus) -> None:
        observer = bus.on("t", fail, observer=True)
        assert bus.handlers("t") == ()
        assert bus.subscriptions("t") == (observer,)


@pytest.mark.parametrize("warm", [0, 3])
def test_g21_an_observer_is_not_among_the_deliveries_of_a_receipt(bus: EventBus, warm: int) -> None:
    bus.on("a", lambda _: "handler")
    bus.on("a", lambda _: "observer", observer=True)
    for _ in range(warm + 1):
        receipt = bus.emit("a").wait(BOUND)
        assert (receipt.deliveries, receipt.results()) == (1, ["handler"])


def test_g21_require_tells_how_many_there_are_and_what_to_do(bus: EventBus) -> None:
    bus.on("a", lambda _: None)
    for _ in range(3):
        bus.emit("a", require=1).wait(BOUND)
        with pytest.raises(
            NoHandlerError, match=r"^require=2 handlers for 'a', but 1 listen; register before you emit$"
        ):
            bus.emit("a", require=2)
