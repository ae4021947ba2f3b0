"""Flows: what both faces do alike, as the core drives it; the services and the synchronizer are made of these."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kit import BOUND, no_thread

from eventbus import DeadlockError, EventBus
from eventbus._engine import primitives
from eventbus._engine.flow import Call, Flow, Pause, drive
from eventbus._engine.waits import LENIENT, Waiter


def waiter(ready: bool = False) -> Waiter:
    return Waiter("what comes", lambda: ready, lambda waiter, begin: None, LENIENT, list)


def test_it_is_sent_what_its_calls_return_and_gives_what_it_returns() -> None:
    def flow() -> Flow[list[Any]]:
        return [(yield Call(lambda: 1)), (yield Call(lambda: None)), (yield Call(lambda: 3))]

    assert drive(flow()) == [1, None, 3]


def test_g5_it_is_thrown_what_its_calls_raise_once() -> None:
    def fails() -> None:
        raise error

    def flow() -> Flow[Any]:
        with pytest.raises(KeyError, match="on purpose"):
            yield Call(fails)
        found = yield Call(lambda: "went on")
        yield Call(fails)
        return found

    error = KeyError("on purpose")
    with pytest.raises(KeyError) as caught:
        drive(flow())
    assert caught.value is error


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_g7_a_pause_tells_whether_it_came_true_in_time(bus: EventBus, timeout: float) -> None:
    assert Pause(bus._engine, waiter(), timeout).block() is False
    assert Pause(bus._engine, waiter(True), timeout).block() is True


def test_g8_it_blocks_no_event_loop_unless_it_only_looks(bus: EventBus) -> None:
    async def main() -> str:
        assert Pause(bus._engine, waiter(), 0).block() is False
        assert Pause(bus._engine, waiter(True), BOUND).block() is True
        with pytest.raises(DeadlockError) as caught:
            Pause(bus._engine, waiter(), BOUND).block()
        return str(caught.value)

    assert asyncio.run(main()) == (
        "waiting for what comes would block the event loop that runs in this thread; use the class of the same name in"
        " eventbus_async and await it"
    )


def test_it_does_not_insist_on_threads(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it waits for may come from elsewhere."""

    monkeypatch.setattr(primitives, "start_thread", no_thread)
    bus.on("a", lambda payload: None)
    bus.emit("a")
    assert Pause(bus._engine, waiter(), 0.01).block() is False
    monkeypatch.undo()
    bus.emit("a")
    bus.drain(BOUND)
