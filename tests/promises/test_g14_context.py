"""G14, on threads: each delivery runs in its own copy of the emitter's context."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from contextvars import ContextVar
from typing import Any

import pytest
from kit import BOUND

from eventbus import EventBus
from eventbus._engine import dispatcher

variable: ContextVar[Any] = ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
def clean_context() -> Any:
    token = variable.set("unset")
    yield
    variable.reset(token)


def test_a_handler_runs_in_the_emitters_context_as_it_was_at_the_emit() -> None:
    gate = threading.Event()
    seen: list[Any] = []

    def handler(payload: Any) -> None:
        assert gate.wait(BOUND)
        seen.append(variable.get())

    with EventBus() as bus:
        bus.on("t", handler)
        for value in ("first", "second"):
            variable.set(value)
            bus.emit("t")
        variable.set("later")
        gate.set()
        bus.drain(BOUND)
    assert seen == ["first", "second"]


def test_emits_of_several_threads_carry_each_its_own_context() -> None:
    seen: list[tuple[int, int]] = []
    with EventBus() as bus:
        bus.on("t", lambda payload: seen.append((payload, variable.get())))

        def emitter(number: int) -> None:
            variable.set(number)
            for _ in range(20):
                bus.emit("t", number)

        threads = [threading.Thread(target=emitter, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(BOUND)
        bus.drain(BOUND)
    assert sorted(seen) == [(number, number) for number in range(4) for _ in range(20)]


def test_no_handler_sees_anothers_changes_nor_its_own_earlier_ones() -> None:
    seen: list[Any] = []

    def handler(payload: Any) -> None:
        seen.append(variable.get())
        variable.set(f"changed by {payload}")

    with EventBus() as bus:
        bus.on("t", handler)
        bus.on("t", handler)
        variable.set("emitter's")
        for n in range(3):
            bus.emit("t", n)
        bus.drain(BOUND)
        assert seen == ["emitter's"] * 6
        assert variable.get() == "emitter's"


def test_a_handlers_emits_carry_its_changed_context_on() -> None:
    seen: list[Any] = []
    with EventBus() as bus:

        def first(payload: Any) -> None:
            variable.set("handler's")
            bus.emit("second")

        bus.on("first", first)
        bus.on("second", lambda payload: seen.append(variable.get()))
        variable.set("emitter's")
        bus.emit("first").wait(BOUND)
        bus.drain(BOUND)
    assert seen == ["handler's"]


def test_an_inline_handler_runs_in_the_emitting_context_itself() -> None:
    """G3's option says so: before ``emit()`` returns, in the emitting thread and context."""
    with EventBus() as bus:
        bus.on("t", lambda payload: variable.set("by the inline handler"), inline=True)
        bus.emit("t")
        assert variable.get() == "by the inline handler"


def test_an_explicit_context_is_the_emitters() -> None:
    context = contextvars.Context()
    context.run(variable.set, "of its own")
    with EventBus() as bus:
        bus.on("t", lambda payload: variable.get())
        assert context.run(bus.emit, "t").wait(BOUND).results() == ["of its own"]
        assert contextvars.Context().run(bus.emit, "t").wait(BOUND).results() == ["unset"]


class Value:
    """Weakly referenceable."""


def test_the_event_drops_its_context_once_settled() -> None:
    """And so do the threads that ran it, while they idle (G18); without the collector's help."""
    gc.disable()
    try:
        with EventBus() as bus:
            bus.on("t", lambda payload: None)
            bus.on("t", lambda payload: None, inline=True)
            value = Value()
            alive = weakref.ref(value)
            token = variable.set(value)
            receipt = bus.emit("t").wait(BOUND)
            variable.reset(token)
            del value, token
            bus.drain(BOUND)
            # The worker may still be on its way to sleep; its next delivery tells that it has let go of the last.
            bus.emit("t").wait(BOUND)
            assert alive() is None
            assert receipt.done
    finally:
        gc.enable()


def test_the_buss_own_threads_run_in_an_empty_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was set when a thread was started is not kept alive by it, nor seen in it."""
    monkeypatch.setattr(dispatcher, "IDLE_SECONDS", 60.0)
    value = Value()
    alive = weakref.ref(value)
    token = variable.set(value)
    with EventBus() as bus:
        bus.on("t", lambda payload: None)
        bus.on("slow", lambda payload: None, timeout=30)  # the timer's thread is started as well
        bus.emit("t").wait(BOUND)
        bus.emit("slow").wait(BOUND)
        variable.reset(token)
        del value, token
        # Another context, for the last delivery that a worker holds.
        contextvars.Context().run(bus.emit, "t").wait(BOUND)
        gc.collect()
        assert bus.stats().pool.threads >= 1
        assert alive() is None


def test_error_hooks_do_not_disturb_the_emitters_context() -> None:
    def hook(problem: Any) -> None:
        variable.set("by the hook")

    def fail(payload: Any) -> None:
        raise ValueError(payload)

    with EventBus(on_error=hook) as bus:
        bus.on("t", fail)
        bus.on("t", lambda payload: variable.get())
        variable.set("emitter's")
        assert bus.emit("t").wait(BOUND).results() == ["emitter's"]
        assert variable.get() == "emitter's"
