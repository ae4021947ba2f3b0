"""G13: a coroutine handler runs in the loop where it was registered, and nowhere else."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, Team, an_hour_goes_by, settled, soon

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "facade"))

from loops import AsyncGate, LoopThread, others, passes, run, until

from eventbus import EventTimeoutError, MailboxFullError, OptionError, ServiceError, Status
from eventbus._engine import primitives
from eventbus._engine.engine import Engine
from eventbus._engine.monitor import Monitor
from eventbus_async import AsyncEventBus
from eventbus_async._binding import Binding
from eventbus_async._runner import SLICE, LoopExecutor


@pytest.fixture
def bus() -> Iterator[AsyncEventBus]:
    made = AsyncEventBus(name="loops")
    yield made
    made.bus.close(BOUND)
    settled(made)


async def where(payload: Any) -> tuple[asyncio.AbstractEventLoop, int]:
    return asyncio.get_running_loop(), threading.get_ident()


async def register(bus: AsyncEventBus, topic: str, handler: Any, **options: Any) -> Any:
    return bus.on(topic, handler, **options)


def test_g13_ten_loops_in_ten_threads_share_one_bus(bus: AsyncEventBus) -> None:
    threads = [LoopThread() for _ in range(10)]
    try:
        for each in threads:
            each.call(register(bus, "a", where))
        for _ in range(20):
            receipt = bus.bus.emit("a").wait(BOUND)
            assert receipt.results() == [(each.loop, each.ident) for each in threads]

        async def emit() -> Any:
            return (await bus.emit("a")).results()

        assert threads[3].call(emit()) == [(each.loop, each.ident) for each in threads]
    finally:
        for each in threads:
            each.end()


def test_g13_loop_option_of_bus_and_on(bus: AsyncEventBus) -> None:
    with LoopThread() as one, LoopThread() as two:
        bus.on("a", where, loop=one.loop)
        other = AsyncEventBus(bus.bus, loop=two.loop)
        other.on("a", where)
        other.on("a", where, loop=one.loop)
        loops = [loop for loop, _ in bus.bus.emit("a").wait(BOUND).results()]
        assert loops == [one.loop, two.loop, one.loop]
        # They belong to that loop: no home is found for them.
        two.end()
        bus.bus.emit("a").wait(BOUND)
        assert len(bus.handlers("a")) == 2
    with pytest.raises(OptionError, match="closed"):
        bus.on("a", where, loop=two.loop)
    with pytest.raises(TypeError, match="loop"):
        bus.on("a", where, loop="main")  # type: ignore[call-overload]


def test_g13_a_module_level_bus_with_decorators_and_two_asyncio_runs(bus: AsyncEventBus) -> None:
    received: list[tuple[Any, int]] = []

    @bus.on("orders/*")
    async def note(payload: Any) -> None:
        received.append((payload, id(asyncio.get_running_loop())))

    early = bus.emit("orders/early", 0)
    assert not early.done
    loops: list[asyncio.AbstractEventLoop] = []

    async def main(n: int) -> None:
        loops.append(asyncio.get_running_loop())
        await bus.emit("orders/created", n)

    asyncio.run(main(1))
    assert early.done
    between = bus.emit("orders/between", 2)
    assert not between.done
    asyncio.run(main(3))
    assert between.done
    first, second = (id(loop) for loop in loops)
    assert received == [(0, first), (1, first), (2, second), (3, second)]


def test_g13_what_is_emitted_for_unbound_handlers_waits_and_a_full_mailbox_rejects(bus: AsyncEventBus) -> None:
    received: list[Any] = []

    async def handler(payload: Any) -> None:
        received.append(payload)

    bus.on("a", handler, max_pending=2, name="unbound")
    receipts = [bus.emit("a", n) for n in range(3)]
    outcome = receipts[2].outcomes[0]
    assert outcome.status is Status.REJECTED
    assert isinstance(outcome.error, MailboxFullError)
    assert "no loop" in str(outcome.error)
    bus.bus.drain(0)  # it does not wait for them

    async def main() -> None:
        await bus.drain()
        await receipts[1]

    run(main())
    assert received == [0, 1]


def test_g13_whatever_is_awaited_first_makes_the_home(bus: AsyncEventBus) -> None:
    async def main(await_it: Any) -> None:
        await await_it()
        assert (await bus.emit("a")).results()[0][0] is asyncio.get_running_loop()

    plain = bus.on("b", lambda payload: payload)
    bus.on("a", where)
    for await_it in (
        lambda: bus.on("b", lambda payload: None),
        lambda: bus.emit("b"),
        lambda: bus.request("b"),
        lambda: plain,
        lambda: bus.drain(),
        lambda: bus.remove_all_listeners("c"),
    ):
        run(main(await_it))


def test_g13_handlers_that_are_registered_later_go_home_too(bus: AsyncEventBus) -> None:
    with LoopThread() as home:

        async def await_something() -> None:
            await bus.drain()

        home.call(await_something())
        bus.on("a", where)  # in this thread no loop runs
        assert bus.bus.emit("a").wait(BOUND).results() == [(home.loop, home.ident)]


def test_g13_serve_binds_drains_and_unbinds_without_closing(bus: AsyncEventBus) -> None:
    gate = AsyncGate()
    bus.on("a", where)
    bus.on("b", gate)

    async def main() -> None:
        async with bus.serve() as served:
            assert served is bus
            receipt = bus.emit("b")
            assert (await bus.emit("a")).results()[0][0] is asyncio.get_running_loop()
            asyncio.get_running_loop().call_later(0.01, gate.open)
        assert receipt.outcomes[0].status is Status.DELIVERED
        assert not bus.closed
        unbound = bus.emit("a")
        await passes()
        assert not unbound.done  # nobody's home
        async with bus.serve():
            assert (await unbound).results()[0][0] is asyncio.get_running_loop()

    run(main())
    run(main())


def test_g13_serve_takes_over_from_a_home_that_was_found(bus: AsyncEventBus) -> None:
    bus.on("a", where)
    with LoopThread() as found, LoopThread() as serving:

        async def emit() -> Any:
            return (await bus.emit("a")).results()[0][0]

        assert found.call(emit()) is found.loop

        async def serve() -> None:
            async with bus.serve():
                assert await emit() is serving.loop
                assert await asyncio.wrap_future(found.begin(emit())) is serving.loop
                with pytest.raises(ServiceError, match="another loop"):
                    await asyncio.wrap_future(found.begin(serve()))

        serving.call(serve())
        assert found.call(emit()) is found.loop


def test_g13_a_loop_that_closes_ends_its_handlers_and_nobody_hears_of_it(bus: AsyncEventBus) -> None:
    with LoopThread() as thread:
        subscription = thread.call(register(bus, "a", where))
        bus.bus.emit("a").wait(BOUND)
        thread.end()
        bus.bus.on("a", lambda payload: "plain")
        receipt = bus.bus.emit("a").wait(BOUND)
        assert [each.status for each in receipt.outcomes] == [Status.CANCELLED, Status.DELIVERED]
        assert not subscription.active
        assert bus.bus.emit("a").wait(BOUND).deliveries == 1


@pytest.mark.parametrize("cancel_tasks", [True, False])
def test_g13_what_is_pending_and_running_when_a_loop_closes_is_cancelled(
    bus: AsyncEventBus, cancel_tasks: bool
) -> None:
    thread = LoopThread()
    gate = AsyncGate()
    thread.call(register(bus, "a", gate))
    receipts = [bus.bus.emit("a", n) for n in range(5)]
    thread.call(gate.entered())
    with Team() as team:
        for receipt in receipts:
            team.add(receipt.wait, 3.0)  # noticed at latest 1 s later
        team.go()
        if cancel_tasks:
            thread.end()
        else:
            thread.close()
    assert [receipt.outcomes[0].status for receipt in receipts] == [Status.CANCELLED] * 5
    assert gate.received == [0]
    assert bus.subscriptions("a") == ()
    if not cancel_tasks:
        # The forgotten task is collected with the message that asyncio has for it.
        gate._waiting.clear()
        del thread
        gc.collect()


def test_g13_an_emitter_that_waits_for_space_is_freed_when_the_loop_closes(bus: AsyncEventBus) -> None:
    with LoopThread() as thread:
        gate = AsyncGate()
        thread.call(register(bus, "a", gate, max_pending=1))
        bus.bus.emit("a")
        thread.call(gate.entered())
        bus.bus.emit("a")
        with Team() as team:
            team.add(bus.bus.emit, "a")
            team.go()
            soon(lambda: bus.stats().totals.pending == 2)
            thread.end()
        assert team.results[0].outcomes[0].status is Status.CANCELLED


@pytest.mark.leaves("tasks", reason="a loop is closed under it")
def test_g13_a_wait_whose_loop_closes_is_nobodys(bus: AsyncEventBus) -> None:
    """Else a bus would look at its loops for ever, for a task that never goes on."""
    engine = bus.bus._engine
    with Gate() as gate:
        bus.bus.on("a", gate)

        async def wait() -> None:
            await bus.emit("a")

        loop = asyncio.new_event_loop()
        task: Any = loop.create_task(wait())
        while not engine.sleepers:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        task._log_destroy_pending = False
        soon(lambda: engine.sleepers == 0, "the wait being left")
    bus.bus.drain(BOUND)


def test_g13_emitting_while_a_loop_closes_never_raises(bus: AsyncEventBus) -> None:
    for _ in range(4):
        thread = LoopThread()
        thread.call(register(bus, "a", where))
        stop = threading.Event()
        receipts: list[Any] = []

        def emit() -> None:
            while not stop.is_set():
                receipts.append(bus.bus.emit("a"))

        with Team(emit, emit) as team:
            team.go()
            soon(lambda: len(receipts) > 50)
            thread.end()
            stop.set()
        for receipt in receipts:
            receipt.wait(3.0)
    settled(bus)


class ClosesUnderhand:
    """A loop that is closed between the look and the call."""

    def __init__(self) -> None:
        self.seen_open = 0

    def is_closed(self) -> bool:
        self.seen_open += 1
        return self.seen_open > 3

    def call_soon_threadsafe(self, *args: Any, **options: Any) -> None:
        raise RuntimeError("Event loop is closed")


def test_g13_a_loop_that_closes_between_the_look_and_the_call(bus: AsyncEventBus) -> None:
    bus.on("a", where, loop=ClosesUnderhand())  # type: ignore[arg-type]
    assert bus.bus.emit("a").wait(3.0).outcomes[0].status is Status.CANCELLED


def test_g13_a_stopped_loop_keeps_its_deliveries(bus: AsyncEventBus) -> None:
    with LoopThread() as thread:
        received: list[Any] = []

        async def handler(payload: Any) -> None:
            received.append(payload)

        thread.call(register(bus, "a", handler))
        thread.stop()
        receipts = [bus.bus.emit("a", n) for n in range(100)]
        with pytest.raises(EventTimeoutError):
            receipts[0].wait(0.6)  # longer than a look at the loops takes
        assert received == []
        assert bus.stats().totals.pending == 100
        thread.start()
        receipts[-1].wait(BOUND)
        assert received == list(range(100))


def test_g13_a_stopped_loops_handlers_can_be_timed_out_and_cancelled(bus: AsyncEventBus) -> None:
    with LoopThread() as thread:
        gate = AsyncGate()
        thread.call(register(bus, "a", gate, timeout=LONG))
        subscription = thread.call(register(bus, "b", where))
        receipt = bus.bus.emit("a")
        thread.call(gate.entered())
        thread.stop()
        an_hour_goes_by(bus.bus)  # for the handler, and then it has a second to end
        assert receipt.wait(BOUND).outcomes[0].status is Status.TIMED_OUT
        pending = bus.bus.emit("b")
        assert subscription.cancel()
        assert pending.outcomes[0].status is Status.CANCELLED
        gate.open()
        thread.start()


def in_between(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Have something done between the choice of a loop and the registration."""
    place = Binding.place

    def placed(self: Binding, *args: Any) -> Any:
        found = place(self, *args)
        act()
        return found

    monkeypatch.setattr(Binding, "place", placed)


def test_g13_a_loop_that_closes_while_a_handler_is_registered_gets_none(
    bus: AsyncEventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.new_event_loop()

    def act() -> None:
        loop.close()
        bus._engine.look(lambda: [each.check() for each in bus._engine.executors])

    in_between(monkeypatch, act)
    bus.on("a", lambda _: None)
    loop = asyncio.new_event_loop()
    with pytest.raises(OptionError, match=r"the loop of .* was closed before it was registered"):
        bus.on("a", where, loop=loop, name="late")
    assert len(bus.subscriptions()) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_g13_a_handler_that_is_registered_while_the_home_changes_goes_to_the_new_one(
    bus: AsyncEventBus, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    blocks: list[Any] = []

    async def serve() -> None:
        blocks.append(bus.serve())
        await blocks[-1].__aenter__()

    async def leave() -> None:
        await blocks.pop().__aexit__(None, None, None)

    with LoopThread() as first, LoopThread() as second:

        def act() -> None:
            first.call(leave())
            if closed:
                first.close()
                bus.emit("other")
            second.call(serve())

        register = Engine.register
        receipts: list[Any] = []

        def registered(self: Engine, *args: Any, **options: Any) -> Any:
            made = register(self, *args, **options)
            receipts.extend(bus.emit("a") for _ in range(2))  # the second one stands in line
            return made

        first.call(serve())
        in_between(monkeypatch, act)
        monkeypatch.setattr(Engine, "register", registered)
        bus.on("a", where, max_pending=1)
        monkeypatch.undo()
        assert [each.wait(BOUND).results()[0][0] for each in receipts] == [second.loop] * 2
        second.call(leave())


def test_g13_a_handler_that_is_registered_while_the_home_goes_waits_for_the_next(
    bus: AsyncEventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts: list[Any] = []

    async def first() -> None:
        async with bus.serve() as block:
            assert block is not None
            home = bus._binding.home
            assert home is not None
            in_between(monkeypatch, lambda: bus._binding.leave(home))
            await asyncio.to_thread(bus.on, "a", where)
            receipts.append(bus.emit("a"))
            await passes()
            assert not receipts[0].done

    async def second() -> None:
        async with bus.serve():
            assert (await receipts[0]).results()[0][0] is asyncio.get_running_loop()

    run(first())
    run(second())


def test_g13_whoever_does_what_a_cancelled_task_s_step_has_left_the_loop_goes_on(
    bus: AsyncEventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any thread may: here another one comes between the step and the loop's own thread."""
    flush = Monitor.flush
    came: list[threading.Thread] = []

    def overtaken(self: Monitor, *args: Any, **options: Any) -> None:
        if not came and LoopExecutor._resume_later in [getattr(each, "__func__", None) for each in self.after.copy()]:
            came.append(threading.Thread(target=flush, args=(self,)))
            came[0].start()
            came[0].join(BOUND)
        flush(self, *args, **options)

    monkeypatch.setattr(Monitor, "flush", overtaken)
    tasks: list[Any] = []
    stuck = AsyncGate()

    async def handler(payload: int) -> int:
        tasks.append(asyncio.current_task())
        if payload == 0:
            await stuck(payload)
        return payload

    async def main() -> None:
        bus.on("a", handler)
        receipts: list[Any] = []
        emitter = threading.Thread(target=lambda: receipts.extend(bus.bus.emit("a", number) for number in range(3)))
        emitter.start()
        await stuck.entered()
        await asyncio.to_thread(emitter.join, BOUND)
        tasks[0].cancel()
        await until(lambda: all(each.done for each in receipts))
        assert [each.outcomes[0].value for each in receipts] == [None, 1, 2]

    run(main())
    assert came


def test_g13_unbound_handlers_survive_their_home(bus: AsyncEventBus) -> None:
    gate = AsyncGate("done")
    bus.on("a", gate)

    async def leave() -> list[Any]:
        receipts = [bus.emit("a", n) for n in range(3)]
        task = asyncio.create_task(receipts[0])
        await gate.entered()
        task.cancel()
        return receipts

    first, *rest = asyncio.run(leave())
    assert bus.subscriptions("a")[0].active
    assert first.wait(3.0).outcomes[0].status is Status.CANCELLED  # it was running there
    assert not any(receipt.done for receipt in rest)
    gate.open()

    async def resume() -> None:
        await asyncio.gather(*rest)

    run(resume())
    assert [receipt.results() for receipt in rest] == [["done"]] * 2


def test_g13_a_loop_that_is_ending_begins_no_further_handler(bus: AsyncEventBus) -> None:
    gate = AsyncGate()

    async def main() -> None:
        bus.on("a", gate)
        for n in range(5):
            bus.emit("a", n)
        await gate.entered()

    asyncio.run(main())
    assert gate.received == [0]
    assert gate.cancelled == 1
    assert bus.subscriptions("a") == ()
    assert bus.stats().totals.cancelled == 5


def test_g13_a_bridge_is_gone_with_its_loop(bus: AsyncEventBus) -> None:
    async def main() -> weakref.ref[Any]:
        await bus.emit("nothing")
        bus.on("a", where)
        await bus.emit("a")
        return weakref.ref(asyncio.get_running_loop())

    reference = asyncio.run(main())
    gc.collect()
    assert reference() is None
    run(main())
    assert len(bus.bus._engine.executors) == 1  # the first one's was dropped when the next one was made


def test_g13_an_idle_bus_has_no_task_on_any_loop(bus: AsyncEventBus) -> None:
    with LoopThread() as thread:
        thread.call(register(bus, "a", where))

        async def look() -> int:
            return len(others())

        for _ in range(20):
            bus.bus.emit("a").wait(BOUND)
        bus.bus.drain(BOUND)
        assert thread.call(look()) == 0


def test_g13_a_handler_that_cancelled_its_task_leaves_none_behind(bus: AsyncEventBus) -> None:
    async def handler(payload: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def main() -> None:
        subscription = bus.on("a", handler)
        for _ in range(3):
            await bus.emit("a")
        await bus.drain()
        assert others() == set()
        assert subscription.stats().deliveries == 3

    run(main())


@pytest.mark.parametrize("suspends", [False, True])
def test_g13_a_loop_that_is_closed_without_its_last_pass_makes_no_noise(
    caplog: pytest.LogCaptureFixture, suspends: bool
) -> None:
    """No "Task was destroyed but it is pending!": what was running is settled as cancelled, the rest waits."""
    gc.collect()  # other tests' tasks
    caplog.clear()
    began = 0

    async def handler(payload: Any) -> None:
        nonlocal began
        began += 1
        if suspends:
            await asyncio.get_running_loop().create_future()
        else:
            time.sleep(2 * SLICE)  # others' turn: the slot's task yields

    async def main() -> Any:
        bus = AsyncEventBus()
        bus.on("a", handler)
        bus.on("a", handler)
        return bus, bus.emit("a")

    loop = asyncio.new_event_loop()
    bus, receipt = loop.run_until_complete(main())
    assert began == 1
    assert {task.done() for task in asyncio.all_tasks(loop)} == {False}
    loop.close()
    bus.bus.close(0)
    assert [outcome and outcome.status for outcome in receipt.outcomes].count(Status.CANCELLED) == 2 - (not suspends)
    del bus, receipt  # and with them the tasks
    gc.collect()
    assert caplog.records == []


def test_g13_a_bus_task_that_was_cancelled_comes_back_by_timer(bus: AsyncEventBus) -> None:
    gate = AsyncGate()
    with LoopThread() as thread:
        thread.call(register(bus, "a", gate))
        first, second = bus.bus.emit("a", 1), bus.bus.emit("a", 2)

        async def cancel() -> None:
            await gate.entered()
            for task in others():
                task.cancel()
            gate.open()

        thread.call(cancel())
        assert first.wait(BOUND).outcomes[0].status is Status.CANCELLED
        assert second.wait(BOUND).outcomes[0].status is Status.DELIVERED


def test_g13_plain_functions_never_run_on_the_loop(bus: AsyncEventBus) -> None:
    async def main() -> None:
        with Gate() as gate:
            bus.on("a", gate)
            receipt = bus.emit("a")
            await until(lambda: gate.inside)  # this loop goes round while the handler blocks
            gate.open()
            await receipt
        bus.off("a")

    run(main())


def test_g13_a_loop_that_closes_at_the_very_moment_of_a_wake_up(
    bus: AsyncEventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look whether it is closed and the call: what was for it is cancelled, the emitter hears nothing."""
    honest = primitives.wake_loop
    with LoopThread() as thread:
        thread.call(register(bus, "a", AsyncGate()))

        def closes(loop: Any, callback: Any, context: Any) -> None:
            monkeypatch.undo()
            thread.close()
            honest(loop, callback, context)

        monkeypatch.setattr(primitives, "wake_loop", closes)
        receipt = bus.bus.emit("a", 1)
        assert receipt.wait(BOUND).outcomes[0].status is Status.CANCELLED
        assert bus.bus.emit("a", 2).wait(BOUND).deliveries == 0


def test_g12_a_wake_up_in_the_midst_of_a_wake_up_is_not_lost(
    bus: AsyncEventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal handler or a finalizer that emits for the same loop, there and then."""
    honest = primitives.wake_loop
    gate = AsyncGate()
    gate.open()
    with LoopThread() as thread:
        thread.call(register(bus, "a", gate))
        inner: list[Any] = []

        def interrupted(loop: Any, callback: Any, context: Any) -> None:
            monkeypatch.undo()
            honest(loop, callback, context)
            soon(lambda: not bus._engine.executors[0].bridge._rung, "the answer of the loop")
            inner.append(bus.bus.emit("a", "inner"))

        monkeypatch.setattr(primitives, "wake_loop", interrupted)
        outer = bus.bus.emit("a", "outer")
        assert outer.wait(BOUND).outcomes[0].status is Status.DELIVERED
        assert inner[0].wait(BOUND).outcomes[0].status is Status.DELIVERED


def test_g12_after_a_wake_up_that_a_signal_handler_broke_off_the_next_one_rings(
    bus: AsyncEventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = AsyncGate()
    gate.open()
    with LoopThread() as thread:
        thread.call(register(bus, "a", gate))

        def broken(loop: Any, callback: Any, context: Any) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(primitives, "wake_loop", broken)
        with pytest.raises(KeyboardInterrupt):
            bus.bus.emit("a", 1)
        assert bus.bus.emit("a", 2).wait(BOUND).outcomes[0].status is Status.DELIVERED


def test_g13_serving_within_serving_ends_with_the_outer_one(bus: AsyncEventBus) -> None:
    gate = AsyncGate()
    gate.open()
    bus.on("a", gate)

    async def main() -> None:
        async with bus.serve():
            async with bus.serve():
                await bus.emit("a", 1)
            assert (await bus.emit("a", 2)).outcomes[0].status is Status.DELIVERED
        assert bus._binding.home is None

    run(main())
    assert gate.received == [1, 2]
