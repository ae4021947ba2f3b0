"""Faults that others have shipped in pools, waits and shutdowns: none of them is here."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kit import BOUND, Gate, Log, Team, settled, sleeps, soon

from eventbus import EventBus, EventBusError, Status
from eventbus._engine import primitives


def test_g5_workers_that_are_killed_in_their_handlers_cost_the_pool_nothing(bus: EventBus) -> None:
    """A count of idle workers that outlives a worker stops the pool for good; ours is derived (F8)."""
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    inside: list[int] = []

    def victim(payload: Any) -> None:
        inside.append(threading.get_ident())
        end = time.monotonic() + BOUND
        while time.monotonic() < end:  # somebody else's exception comes at one of these lines
            pass

    bus.on("victim", victim)
    bus.on("a", lambda n: n)
    for number in range(20):
        receipt = bus.emit("victim")
        soon(lambda number=number: len(inside) == number + 1)
        assert raise_in(ctypes.c_ulong(inside[-1]), ctypes.py_object(SystemExit)) == 1
        (outcome,) = receipt.wait(BOUND).outcomes
        assert (outcome.status, type(outcome.error)) == (Status.FAILED, SystemExit)
        assert bus.emit("a", number).wait(BOUND).results() == [number]
    assert len(set(inside)) == 1  # it is the same worker all along
    assert bus.stats().pool.threads <= 2


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_g3_what_no_thread_could_be_started_for_runs_with_the_next(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """A thread that failed to start is counted as one that works, and nothing runs any more (F22)."""
    log = Log()
    bus.on("a", log)

    def refuse(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(primitives, "start_thread", refuse)
        for number in range(3):
            assert bus.emit("a", number).deliveries == 1
    assert log.items == []
    bus.emit("a", 3)
    assert log.reached(4) == [0, 1, 2, 3]


def test_g3_a_thread_that_takes_for_ever_to_start_holds_up_only_its_starter(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thread.start() waits for a thread that died of MemoryError before it could say so: no lock is held then (F22)."""
    start = primitives.start_thread
    starting, go_on = threading.Event(), threading.Event()

    def slow(target: Callable[[], None], name: str) -> threading.Thread:
        starting.set()
        assert go_on.wait(BOUND)
        return start(target, name)

    log = Log()
    bus.on("a", log)
    with monkeypatch.context() as patch:
        patch.setattr(primitives, "start_thread", slow)
        with Team() as team:
            team.add(bus.emit, "a", 1)
            team.go()
            assert starting.wait(BOUND)
            try:
                subscription = bus.on("b", lambda _: None)
                assert bus.emit("a", 2).deliveries == 1
                assert subscription.cancel()
                assert bus.stats().totals.pending == 2
            finally:
                go_on.set()
    assert log.reached(2) == [1, 2]


def test_g7_a_timer_whose_thread_failed_to_start_is_tried_again_by_a_wait(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the schedules: nobody would have noticed that the pool's only worker is stuck in its handler (F22)."""
    start = primitives.start_thread
    refused: list[str] = []

    def refuse_once(target: Callable[[], None], name: str) -> threading.Thread:
        if name.endswith("-timer") and not refused:
            refused.append(name)
            raise RuntimeError("can't start new thread")
        return start(target, name)

    monkeypatch.setattr(primitives, "start_thread", refuse_once)
    with Gate() as gate:
        bus.on("stuck", gate)
        bus.on("opens", lambda _: gate.open())
        bus.emit("stuck")
        gate.entered()
        receipt = bus.emit("opens")
        assert refused  # the watch over the stuck one has no thread now
        receipt.wait(BOUND)


@pytest.mark.parametrize("where", ["on_error", "bus/error", "finalizer"])
def test_g10_a_close_from_a_hook_does_not_wait_for_itself(where: str) -> None:
    """A shutdown that the pool's own thread asks for joins that thread (F25)."""
    reports: list[Any] = []

    def close(_: Any = None) -> None:
        reports.append(bus.close(BOUND))

    class Falls:
        def __del__(self) -> None:
            close()

    bus = EventBus(on_error=close if where == "on_error" else None)
    if where == "bus/error":
        bus.on("bus/error", close)

    def fails(payload: list[Any]) -> None:
        payload.clear()  # drops what closes the bus
        raise ValueError("on purpose")

    bus.on("a", fails)
    receipt = bus.emit("a", [Falls()] if where == "finalizer" else [0])
    assert receipt.wait(BOUND).outcomes[0].status is Status.FAILED
    soon(lambda: reports, "the close in the hook")
    assert reports[0].stuck == ()
    assert bus.close(BOUND).stuck == ()
    settled(bus)


@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="the platform cannot signal a thread")
@pytest.mark.parametrize("call", ["close", "drain", "wait", "cancel"])
def test_g10_ctrl_c_within_a_wait_and_then_close_again(call: str) -> None:
    """A shutdown that Ctrl-C has interrupted cannot be done again, or never ends (F36)."""
    bus = EventBus()
    main = threading.main_thread()
    pressed = threading.Event()

    def once(*_: Any) -> None:
        if not pressed.is_set():
            pressed.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, once)
    try:
        with Gate() as gate:
            subscription = bus.on("a", gate, name="gated")
            receipt = bus.emit("a")
            bus.emit("a")
            gate.entered()
            waits: dict[str, Callable[[], object]] = {
                "close": lambda: bus.close(BOUND),
                "drain": lambda: bus.drain(BOUND),
                "wait": lambda: receipt.wait(BOUND),
                "cancel": lambda: subscription.cancel(wait=True, timeout=BOUND),
            }

            def press() -> None:
                sleeps(main)
                while not pressed.is_set():  # one that comes just before the system call does not end it
                    signal.pthread_kill(main.ident, signal.SIGINT)  # type: ignore[arg-type]
                    pressed.wait(0.01)

            thread = threading.Thread(target=press)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                waits[call]()
            thread.join(BOUND)
            gate.open()
            assert bus.close(BOUND).stuck == ()
    finally:
        signal.signal(signal.SIGINT, before)
    receipt.wait(BOUND)
    settled(bus)


def test_g10_every_call_twice_after_the_close_from_two_threads() -> None:
    """An early return where the bus is closed leaves a lock behind (F34)."""
    bus = EventBus()
    subscription = bus.on("a", lambda n: n)
    stream = bus.stream("a")
    receipt = bus.emit("a", 1).wait(BOUND)
    scope = bus.scope()
    assert bus.close(BOUND).stuck == ()
    calls: list[Callable[[], object]] = [
        lambda: bus.emit("a"),
        lambda: bus.on("a", print),
        lambda: bus.request("a", 1, BOUND),
        lambda: bus.off("a"),
        lambda: bus.off(subscription),
        lambda: bus.remove_listener("a", print),
        lambda: bus.remove_all_listeners(),
        lambda: bus.stream("a"),
        lambda: bus.scope().on("a", print),
        lambda: scope.cancel(wait=True),
        lambda: subscription.cancel(wait=True, timeout=BOUND),
        lambda: subscription.cancel(drain=True),
        subscription.stats,
        lambda: stream.get(0),
        lambda: list(stream),
        lambda: receipt.wait(BOUND),
        receipt.results,
        receipt.raise_for_errors,
        lambda: bus.drain(BOUND),
        lambda: bus.close(BOUND),
        bus.topics,
        bus.subscriptions,
        lambda: bus.handlers("a"),
        lambda: bus.verify_subscriptions({"a": print}),
        bus.stats,
        lambda: repr((bus, subscription, stream, receipt, scope)),
    ]

    def all_of_them() -> list[str]:
        told: list[str] = []
        for call in (*calls, *calls):
            try:
                call()
                told.append("done")
            except (EventBusError, StopIteration) as error:
                told.append(type(error).__name__)
        return told

    one, two = Team(all_of_them, all_of_them).run()
    assert one[: len(calls)] == one[len(calls) :] or "done" in one  # streams are read out once
    assert one.count("BusClosedError") == two.count("BusClosedError") >= 6
    assert bus.stats().totals.delivered == 2
    settled(bus)


def test_g7_a_wall_clock_that_jumps_changes_no_time_out(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs that are reckoned in wall-clock time end at once, or never, when somebody sets the clock."""
    jumps = iter([1e9, -1e9] * 10_000)
    monkeypatch.setattr(primitives, "wall_clock", lambda: 1.7e9 + next(jumps))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + next(jumps))
    with Gate() as gate:
        bus.on("slow", gate, timeout=0.05)
        bus.on("quick", lambda n: n, timeout=60.0)
        slow = bus.emit("slow")
        for number in range(20):
            assert bus.emit("quick", number).wait(60.0).results() == [number]
        assert slow.wait(BOUND).outcomes[0].status is Status.TIMED_OUT
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            bus.stream("never").get(0.05)
        assert 0.04 < time.monotonic() - began < BOUND


@contextmanager
def shallow(limit: int) -> Iterator[None]:
    """Within it the stack ends soon; without collections, for other people's callbacks of these would fail there."""
    before = sys.getrecursionlimit()
    gc.disable()
    sys.setrecursionlimit(limit)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
        gc.enable()


@pytest.mark.parametrize("kind", ["queued", "inline"])
def test_g3_calls_on_an_exhausted_stack_leave_the_bus_whole(bus: EventBus, kind: str) -> None:
    """A RecursionError in the midst of a call leaves a lock held, a delivery that nobody runs, a drain without end."""
    log = Log()
    bus.on("a", log, max_pending=None)
    bus.on("inline", lambda _: bus.emit("a", "inner"), inline=True)
    emitted: list[Any] = []
    raised = 0

    def down() -> None:
        nonlocal raised
        try:
            emitted.append(bus.emit("a" if kind == "queued" else "inline", "outer"))
        except RecursionError:
            raised += 1
        try:
            bus.on("b", print).cancel()
        except RecursionError:
            raised += 1
        down()

    for limit in range(300, 340, 4):  # so that it ends at different steps of the bus
        with shallow(limit), pytest.raises(RecursionError):
            down()
    assert raised
    bus.drain(BOUND)
    assert all(receipt.done for receipt in emitted)
    if kind == "queued":
        assert len(log.items) >= len(emitted)  # one that was interrupted by raising may have happened or not
    assert bus.emit("a", "after").wait(BOUND).deliveries == 1
    settled(bus)


def test_g4_an_inline_handler_that_emits_to_itself_without_end() -> None:
    """The stack ends somewhere: an error of the innermost calls, and the bus goes on, drains and closes (F24)."""
    for limit in range(300, 340):
        depth = 0

        def again(payload: Any) -> None:
            nonlocal depth
            depth += 1
            bus.emit("a")

        bus = EventBus()
        bus.on("a", again, inline=True)
        with shallow(limit):
            try:
                bus.emit("a")
            except RecursionError:
                pass  # or it stands on the outermost receipt
        assert depth > 5
        bus.off("a")
        bus.on("a", lambda n: n)
        assert bus.emit("a", 1).wait(BOUND).results() == [1]
        bus.drain(BOUND)
        assert bus.close(BOUND).cancelled == 0
        settled(bus)
