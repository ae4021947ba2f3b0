"""Drain, close, leaks, exit and fork on the facade."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from typing import Any

import pytest
from kit import BOUND, Gate, dies, no_thread, settled, soon, threads_of
from loops import AsyncGate, LoopThread, others, passes, run, until

from eventbus import BusClosedError, CloseReport, DeadlockError, EventBus, EventTimeoutError, OptionError, Status
from eventbus._engine import primitives
from eventbus_async import AsyncEventBus
from eventbus_async._runner import LoopExecutor


class Payload:
    """Something that can be weakly referenced."""


def test_g10_drain_waits_for_what_was_accepted_and_what_that_causes() -> None:
    async def main() -> None:
        gate = AsyncGate()
        done: list[str] = []
        async with AsyncEventBus() as bus:

            async def first(payload: Any) -> None:
                await gate(payload)
                bus.emit("second")

            def second(payload: Any) -> None:
                bus.bus.emit("third")

            async def third(payload: Any) -> None:
                await asyncio.sleep(0.001)
                done.append("third")

            for topic, handler in (("first", first), ("second", second), ("third", third)):
                bus.on(topic, handler)
            bus.emit("first")
            task = asyncio.create_task(bus.drain())
            await gate.entered()
            await passes()
            assert not task.done()
            gate.open()
            await task
            assert done == ["third"]

    run(main())


def test_g10_drain_waits_for_what_was_pending_for_an_unbound_handler_once_it_is_bound() -> None:
    async def main() -> None:
        async with bus.serve():
            await gate.entered()
            with pytest.raises(EventTimeoutError):
                await bus.drain(0)
            gate.open()
            await bus.drain(BOUND)
            assert receipt.done
        await bus.close()

    bus, gate = AsyncEventBus(), AsyncGate()
    bus.on("a", gate)
    receipt = bus.emit("a")
    bus.bus.drain(0)
    run(main())


def test_g10_drain_acts_at_the_call() -> None:
    """What is emitted after the call is not waited for, however late the await comes."""

    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:

            async def quick(payload: Any) -> None: ...

            bus.on("quick", quick)
            bus.on("slow", gate)
            bus.emit("quick")
            drain = bus.drain()
            bus.emit("slow")
            await gate.entered()
            await asyncio.wait_for(drain, BOUND)
            assert gate.inside == 1
            gate.open()

    run(main())


def test_g10_drain_and_close_within_a_handler_leave_it_out() -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        closed: list[Any] = []

        async def handler(payload: Any) -> str:
            await bus.drain(BOUND)
            closed.append(await bus.close(BOUND))
            return "went on"

        bus.on("a", handler)
        receipt = bus.emit("a")
        await receipt
        assert receipt.results() == ["went on"]
        assert closed[0].cancelled == 0
        await bus.close()

    run(main())


def test_g10_a_drain_within_a_handler_ends_with_the_last_that_does_not_wait_for_it() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            gate = AsyncGate()

            async def waits(payload: Any) -> None:
                await bus.emit("b")

            async def drains(payload: Any) -> str:
                await bus.drain()
                return "went on"

            bus.on("a", waits)
            bus.on("b", drains)
            bus.on("c", gate)
            bus.emit("c")
            receipt = bus.emit("a")
            await until(lambda: bus._engine.keen, "the drain within the handler")
            assert not receipt.done
            gate.open()  # its end leaves only what waits for the drain
            await asyncio.wait_for(receipt, BOUND)

    run(main())


def test_g10_a_drain_within_a_handler_waits_for_an_earlier_one_that_does_not_wait_for_it() -> None:
    """A drain acts at the call: it does not wait for what comes before it is awaited."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            gate, later = AsyncGate(), AsyncGate()

            async def earlier(payload: Any) -> None:
                drain = bus.drain()
                await until(lambda: bus._engine.keen, "the other's drain")
                await drain
                await later(payload)

            async def drains(payload: Any) -> None:
                await bus.drain()

            bus.on("gate", gate)
            bus.on("earlier", earlier)
            bus.on("drains", drains)
            bus.emit("gate")
            epoch = bus._engine.epoch
            bus.emit("earlier")
            await until(lambda: bus._engine.epoch is not epoch, "the earlier drain")
            receipt = bus.emit("drains")
            await until(lambda: bus._engine.keen == 2, "both drains")
            gate.open()
            await later.entered()
            assert not receipt.done
            later.open()
            await receipt

    run(main())


def test_g10_a_handler_that_drains_while_another_closes() -> None:
    """The close does not wait for the drain, which waits for whoever awaits the close."""

    async def main() -> None:
        bus = AsyncEventBus()

        async def closes(payload: Any) -> Any:
            return await bus.close(None)

        async def drains(payload: Any) -> str:
            await until(lambda: bus._engine.closers, "the wait for the close")
            await bus.drain()
            return "went on"

        bus.on("closes", closes)
        bus.on("drains", drains)
        draining, closing = bus.emit("drains"), bus.emit("closes")
        assert (await closing).results() == [CloseReport()]
        assert (await draining).results() == ["went on"]

    run(main())


def test_g10_close_drains_and_then_refuses() -> None:
    async def main() -> None:
        gate = AsyncGate("in time")
        bus = AsyncEventBus()
        bus.on("a", gate)
        receipt = bus.emit("a")
        await gate.entered()
        closing = bus.close()
        assert bus.closed  # at the call
        with pytest.raises(BusClosedError):
            bus.emit("a")
        with pytest.raises(BusClosedError):
            bus.on("a", gate)
        gate.open()
        report = await closing
        assert report.cancelled == 0
        assert receipt.results() == ["in time"]
        again = await asyncio.gather(bus.close(), bus.close(0))
        assert [each.cancelled for each in again] == [0, 0]
        assert not others()

    run(main())


def test_g10_close_cancels_what_is_left_when_the_time_is_up() -> None:
    async def main() -> None:
        gate = AsyncGate()
        bus = AsyncEventBus(name="hurried")
        bus.on("a", gate)
        receipts = [bus.emit("a", n) for n in range(3)]
        await gate.entered()
        report = await bus.close(0.02)
        assert report.cancelled == 3
        assert report.stuck == ()  # the coroutine could be cancelled, and has ended
        assert gate.cancelled == 1
        assert gate.inside == 0
        assert [each.outcomes[0].status for each in receipts] == [Status.CANCELLED] * 3
        assert not others()
        settled(bus)

    run(main())


def test_g10_a_coroutine_that_does_not_end_is_named_as_stuck() -> None:
    async def main() -> None:
        release = asyncio.Event()
        began = asyncio.Event()

        async def stubborn(payload: Any) -> None:
            began.set()
            for _ in range(3):  # it ignores so many cancellations
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
                break

        bus = AsyncEventBus()
        bus.on("a", stubborn, name="stubborn")
        bus.emit("a")
        await began.wait()
        report = await bus.close(0)
        assert report.stuck == ("stubborn",)
        release.set()
        await until(lambda: not others())

    run(main())


def test_g10_a_forgotten_close_closes() -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        bus.on("a", lambda payload: payload)
        receipt = bus.emit("a", 1)
        bus.close()
        await receipt
        assert receipt.results() == [1]
        await until(lambda: bus.bus._engine.closed_report is not None)

    run(main())


def test_g10_close_without_a_loop_acts_at_the_call() -> None:
    bus = AsyncEventBus()
    bus.on("a", lambda payload: payload)
    receipt = bus.emit("a", 1)
    bus.close()
    receipt.wait(BOUND)
    soon(lambda: bus.bus._engine.closed_report is not None)
    assert asyncio.run(bus.close()).cancelled == 0


def test_g10_a_close_of_no_time_cancels_at_the_call_and_one_of_some_by_itself() -> None:
    """Awaited or not, with a loop or without; one that comes in the midst of a step as soon as that has ended."""
    for amid in (False, True):
        for timeout in (0, 0.01):
            bus = AsyncEventBus()
            with Gate() as gate:
                bus.on("a", gate)
                receipt = bus.emit("a")
                gate.entered()
                if amid:
                    bus._engine.monitor.run(bus.close, timeout)
                else:
                    bus.close(timeout)
                assert receipt.done or timeout
                receipt.wait(BOUND)
                assert receipt.outcomes[0].status is Status.CANCELLED


def test_g10_what_no_loop_runs_is_cancelled_before_the_rest_has_drained() -> None:
    bus = AsyncEventBus()

    @bus.on("a")
    async def handler(payload: Any) -> None: ...

    with Gate() as gate:
        bus.on("b", gate)
        receipts = [bus.emit("a"), bus.emit("b")]
        gate.entered()
        bus.close(None)
        assert receipts[0].outcomes[0].status is Status.CANCELLED
        assert not receipts[1].done
    receipts[1].wait(BOUND)
    assert asyncio.run(bus.close()) == CloseReport(1)


def test_g10_a_close_of_no_time_wants_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = AsyncEventBus()
    with Gate() as gate:
        bus.on("a", gate)
        receipt = bus.emit("a")
        gate.entered()
        with monkeypatch.context() as patch:
            patch.setattr(primitives, "start_thread", no_thread)
            bus.close(0)
            assert receipt.outcomes[0].status is Status.CANCELLED


def test_g10_a_handler_that_closes_is_spared_in_the_midst_of_a_step_too() -> None:
    bus = AsyncEventBus()
    bus.on("a", lambda payload: bus._engine.monitor.run(bus.close, 0) and None)
    receipt = bus.emit("a")
    receipt.wait(BOUND)
    assert receipt.outcomes[0].status is Status.DELIVERED
    assert bus.closed


def test_g18_whoever_waits_for_a_close_is_forgotten_when_he_waits_no_more() -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        gate = AsyncGate()
        bus.on("a", gate)
        bus.emit("a")
        await gate.entered()
        closing = asyncio.ensure_future(bus.close(None))
        await until(lambda: bus._engine.closers, "the wait for the close")
        closing.cancel()
        await passes()
        assert bus._engine.closers == []
        gate.open()
        await bus.close()
        assert bus._engine.closers == []

    run(main())


def test_g12_the_wait_for_a_close_in_the_midst_of_a_step_is_refused() -> None:
    async def main() -> None:
        bus = AsyncEventBus(name="refused")
        gate = AsyncGate()
        bus.on("a", gate)
        bus.emit("a")
        await gate.entered()
        closing = bus.close(None)

        def refused() -> None:
            with pytest.raises(DeadlockError, match=r"^cannot wait for the close of refused here"):
                closing.__await__().send(None)

        bus._engine.monitor.run(refused)
        gate.open()
        await closing

    run(main())


def test_g10_what_is_pending_for_unbound_handlers_is_cancelled_by_close() -> None:
    bus = AsyncEventBus()

    @bus.on("a")
    async def handler(payload: Any) -> None: ...

    receipt = bus.emit("a")
    bus.close()
    assert receipt.outcomes[0].status is Status.CANCELLED


def test_a_facade_of_a_given_core_ends_only_what_is_its_own() -> None:
    async def main() -> None:
        core = EventBus("shared")
        one, two = AsyncEventBus(core), AsyncEventBus(core)
        assert one.bus is core is two.bus
        assert AsyncEventBus(one).bus is core
        gate = AsyncGate()
        kept, ended = two.on("a", gate), one.on("a", gate)
        stream = one.stream("a")
        plain = core.on("a", lambda payload: "plain")
        receipt = one.emit("a")
        await gate.entered(2)
        closing = one.close()
        assert one.closed
        assert not two.closed
        assert not ended.active
        assert not stream.active
        gate.open()
        await closing
        assert receipt.outcomes[1].status is Status.DELIVERED
        assert kept.active
        assert plain.active
        with pytest.raises(BusClosedError):
            one.on("b", gate)
        with pytest.raises(BusClosedError):
            one.emit("a")
        assert (await two.emit("a")).deliveries == 2
        await two.close()
        assert not core.closed
        await asyncio.to_thread(core.close)

    run(main())


def test_g10_a_facade_of_a_given_core_cancels_what_is_left_when_its_time_is_up() -> None:
    async def main() -> None:
        core = EventBus("shared")
        bus = AsyncEventBus(core)
        gate = AsyncGate()
        bus.on("a", gate, name="slow")
        receipts = [bus.emit("a", n) for n in range(3)]
        await gate.entered()
        report = await bus.close(0.02)
        assert report.cancelled == 2
        assert report.stuck == ("slow",)
        gate.open()
        assert (await receipts[0]).outcomes[0].status is Status.DELIVERED
        await asyncio.to_thread(core.close)

    run(main())


def test_g10_a_facade_of_a_given_core_has_its_time_once_however_many_are_stuck() -> None:
    async def main() -> None:
        core = EventBus("shared")
        bus = AsyncEventBus(core)
        gate = AsyncGate()
        names = [f"slow-{number}" for number in range(20)]
        for name in names:
            bus.on("a", gate, name=name)
        receipt = bus.emit("a")
        await gate.entered(20)
        async with asyncio.timeout(1.0):  # and not twenty times as long
            report = await bus.close(0.1)
        assert (report.cancelled, sorted(report.stuck)) == (0, sorted(names))
        gate.open()
        await receipt
        await asyncio.to_thread(core.close)

    run(main())


def test_g10_a_close_of_zero_seconds_of_a_facade_of_a_given_core() -> None:
    """What has not begun is cancelled at the call; closing again gives the same end."""

    async def main() -> None:
        core = EventBus("shared")
        bus = AsyncEventBus(core)
        gate = AsyncGate()
        bus.on("a", gate, name="slow")
        receipts = [bus.emit("a", n) for n in range(3)]
        await gate.entered()
        closing = bus.close(0)
        assert [each.status for each in receipts[1].outcomes] == [Status.CANCELLED]
        assert bus.close(0) is closing
        assert await closing == CloseReport(2, ("slow",))
        gate.open()
        await receipts[0]
        await asyncio.to_thread(core.close)

    run(main())


def test_g10_a_close_without_end_waits_for_handlers() -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        gate = AsyncGate()
        bus.on("a", gate)
        receipt = bus.emit("a")
        await gate.entered()
        closing = asyncio.ensure_future(bus.close(None))
        await passes()
        assert not closing.done()
        gate.open()
        assert await closing == CloseReport()
        assert receipt.outcomes[0].status is Status.DELIVERED

    run(main())


def test_g10_the_end_of_serving_leaves_what_has_not_begun_to_the_next_loop() -> None:
    """When the time for draining is up; what waits for space is rejected, for nobody makes any."""
    bus = AsyncEventBus(close_timeout=0.02)
    gate = AsyncGate()
    bus.on("a", gate, max_pending=1, lane="one")
    receipts: list[Any] = []

    async def first() -> None:
        async with bus.serve():
            receipts.extend(bus.emit("a", n) for n in range(3))
            await gate.entered()
        assert [each.status for each in receipts[2].outcomes] == [Status.REJECTED]
        assert not receipts[1].done
        gate.open()
        await until(lambda: receipts[0].done)

    async def second() -> None:
        async with bus.serve():
            await receipts[1]
            await bus.close(BOUND)

    run(first())
    run(second())
    assert gate.received == [0, 1]


@pytest.mark.parametrize("keyed", [False, True])
def test_g20_what_is_left_to_the_next_loop_has_no_place_in_its_lane_until_then(keyed: bool) -> None:
    """Then it stands behind those that were there, in its own order."""
    bus = AsyncEventBus(close_timeout=0.02)
    order: list[Any] = []
    gate = Gate()

    @bus.on("a", lane="one", **({"key": lambda event: event.payload, "concurrency": 2} if keyed else {}))
    async def unbound(payload: Any) -> None:
        order.append(payload)

    def held(payload: Any) -> None:
        gate(payload)
        order.append(payload)

    bus.on("b", held, lane="one")

    async def first() -> None:
        async with bus.serve():
            bus.emit("b", "b1")
            gate.entered()
            for topic, payload in (("a", "a1"), ("b", "b2"), ("a", "a2"), ("b", "b3")):
                bus.emit(topic, payload)

    async def second() -> None:
        async with bus.serve():
            gate.open()
            await bus.drain(BOUND)
            await bus.close(BOUND)

    run(first())
    bus.bus.emit("a", "a3")
    gate.let()
    gate.entered(2)  # a1 is nobody's now
    run(second())
    assert order == ["b1", "b2", "b3", "a1", "a2", "a3"]


def test_options_beside_a_bus_are_refused() -> None:
    core = EventBus()
    with pytest.raises(OptionError, match="workers"):
        AsyncEventBus(core, workers=2)
    with pytest.raises(TypeError, match="EventBus"):
        AsyncEventBus("name")  # type: ignore[arg-type]
    core.close()


def test_g10_async_with_closes_even_when_the_body_raises() -> None:
    async def main() -> None:
        gate = AsyncGate()
        gate.open()
        with pytest.raises(ValueError, match="body"):
            async with AsyncEventBus() as bus:
                bus.on("a", gate)
                receipt = bus.emit("a")
                raise ValueError("body")
        assert receipt.done
        assert bus.closed
        with pytest.raises(asyncio.CancelledError):
            async with AsyncEventBus() as bus:
                bus.on("a", gate)
                receipt = bus.emit("a")
                raise asyncio.CancelledError
        assert receipt.outcomes[0].status is Status.DELIVERED

    run(main())


def test_g18_finished_receipts_and_ended_subscriptions_hold_nothing() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def handler(payload: Any) -> None:
                if isinstance(payload, Payload):
                    await asyncio.sleep(0)

            def plain(payload: Any) -> None: ...

            references = [weakref.ref(handler), weakref.ref(plain)]
            subscriptions = [bus.on("a", handler), bus.on("a", plain)]
            payload = Payload()
            reference = weakref.ref(payload)
            receipt = bus.emit("a", payload)
            del payload
            await receipt
            await passes(2)
            assert dies(reference)
            await bus.emit("a", 1)
            for subscription in subscriptions:
                await subscription.cancel(wait=True)
            del handler, plain
            gc.collect()
            assert [dies(each) for each in references] == [True, True]
            assert subscriptions[0].handler is None
            assert len(receipt.outcomes) == 2

    run(main())


def test_g18_failed_deliveries_hold_no_cycle(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")  # a record would keep the traceback

    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def fails(payload: Any) -> None:
                await asyncio.sleep(0)
                raise ValueError

            bus.on("a", fails)
            payload = Payload()
            reference = weakref.ref(payload)
            receipt = bus.emit("a", payload)
            del payload
            await receipt
            del receipt
            await passes(2)
            gc_was = gc.isenabled()
            gc.disable()
            try:
                assert dies(reference)
            finally:
                if gc_was:
                    gc.enable()

    run(main())


def test_g18_a_closed_and_forgotten_bus_is_collected() -> None:
    async def main() -> None:
        async with AsyncEventBus(name="forgotten") as bus:

            async def handler(payload: Any) -> None:
                await asyncio.sleep(0)

            bus.on("a", handler)
            bus.on("a", lambda payload: None)
            await bus.emit("a")
        references = [weakref.ref(bus), weakref.ref(bus.bus), weakref.ref(handler)]
        del bus, handler
        gc.collect()
        assert [dies(each) for each in references] == [True] * 3
        soon(lambda: not threads_of("forgotten"), "the end of its threads")

    run(main())


def test_g10_exit_with_deliveries_for_a_loop_pending_does_not_hang() -> None:
    script = """
        import asyncio, threading, atexit
        from eventbus_async import AsyncEventBus
        bus = AsyncEventBus(exit_timeout=2)
        done = []
        @bus.on("unbound")
        async def handler(payload): ...
        bus.on("plain", done.append)
        loop = asyncio.new_event_loop()
        async def register():
            async def stuck(payload):
                await asyncio.sleep(1000)
            bus.on("bound", stuck)
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(register(), loop).result(5)
        for topic in ("unbound", "bound", "bound", "plain"):
            bus.emit(topic)
        print("end of main")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "end of main\n"
    assert "Traceback" not in result.stderr
    assert "cancelled" in result.stderr  # logged once


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_g11_fork_with_handlers_of_a_loop() -> None:
    """In the child a loop's handlers have ended, and unbound ones wait for a loop of the child's."""
    with LoopThread() as thread:
        bus = AsyncEventBus()
        received: list[Any] = []

        @bus.on("unbound")
        async def unbound(payload: Any) -> Any:
            received.append(payload)
            return payload

        async def bound(payload: Any) -> None: ...

        gate = AsyncGate("parent's")

        async def register() -> None:
            bus.on("bound", bound)
            bus.on("gate", gate)
            await bus.emit("unbound", 0)  # its home is the thread's loop

        thread.call(register())
        pending = bus.bus.emit("gate")
        thread.call(gate.entered())
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert pending.done
                assert pending.outcomes[0].status is Status.CANCELLED
                assert bus.handlers("bound") == ()
                assert bus.handlers("unbound") == (unbound,)
                waits = bus.emit("unbound", "child")
                assert not waits.done

                async def main() -> None:
                    await waits
                    assert (await bus.emit("unbound", "again")).results() == ["again"]

                asyncio.run(main())
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        gate.open()
        assert pending.wait(BOUND).results() == ["parent's"]
        assert received == [0]
        thread.call(bus_close(bus))


async def bus_close(bus: AsyncEventBus) -> None:
    await bus.close()


@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_g12_emits_of_a_signal_handler_that_interrupts_a_loop() -> None:
    """Also while the loop sleeps, and while the bridge is at its janus queue."""

    async def main() -> None:
        received: list[int] = []
        count = 0

        async with AsyncEventBus() as bus:

            async def handler(payload: int) -> None:
                received.append(payload)

            async def work(payload: int) -> None: ...

            def tick(*_: Any) -> None:
                nonlocal count
                if count < 200:
                    mine = count
                    count += 1  # first, for this handler may be interrupted by the next signal
                    bus.emit("tick", mine)

            bus.on("tick", handler, max_pending=None)
            bus.on("work", work)
            bus.on("plain", lambda payload: None)
            before = signal.signal(signal.SIGALRM, tick)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            try:
                async with asyncio.timeout(BOUND):
                    while count < 200:
                        await bus.emit("work")
                        await bus.emit("plain")  # its worker wakes this loop
                        if count % 10 == 0:
                            await asyncio.sleep(0.002)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            await bus.drain(BOUND)
            assert sorted(received) == list(range(200))

    run(main())


@pytest.mark.usefixtures("untraced")
def test_g12_an_emit_of_a_signal_handler_wakes_a_loop_that_sleeps() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals come to the main thread")

    async def main() -> None:
        got = asyncio.Event()

        async def handler(payload: Any) -> None:
            got.set()

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            before = signal.signal(signal.SIGALRM, lambda *_: bus.emit("a") and None)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                loop = asyncio.get_running_loop()
                start = loop.time()
                await asyncio.wait_for(got.wait(), BOUND)
                assert loop.time() - start < 3
            finally:
                signal.signal(signal.SIGALRM, before)

    run(main())


def test_g12_a_ring_that_a_loop_has_lost_is_repeated_while_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that raises within the loop's own code can make it lose what it was about to call."""
    ring = primitives.wake_loop
    lost: list[Any] = []

    def lose_one(loop: Any, callback: Any, context: Any) -> None:
        if lost:
            ring(loop, callback, context)
        else:
            lost.append(callback)

    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def handler(payload: int) -> int:
                return payload + 1

            bus.on("a", handler)
            monkeypatch.setattr(primitives, "wake_loop", lose_one)
            receipt = await asyncio.to_thread(lambda: bus.bus.emit("a", 1).wait(BOUND))
            assert lost
            assert receipt.results() == [2]

    run(main())


def test_g12_facade_objects_are_dropped_anywhere() -> None:
    """Receipts, streams and subscriptions that die in a foreign thread, or after their loop has closed."""
    kept: list[Any] = []

    async def main() -> None:
        bus = AsyncEventBus()

        async def handler(payload: Any) -> None: ...

        kept.extend([bus.on("a", handler), bus.stream("a"), bus.emit("a"), bus.drain(), bus.scope(), bus])
        await bus.emit("a")

    asyncio.run(main())
    bus = kept[-1].bus
    thread = threading.Thread(target=kept.clear)
    thread.start()
    thread.join(BOUND)
    gc.collect()
    assert bus.subscriptions() == () or not any(each.active for each in bus.subscriptions() if "stream" in each.name)
    bus.close(BOUND)


@pytest.mark.parametrize("rounds", [3])
def test_mixed_program_accounts_for_every_delivery(rounds: int) -> None:
    """Two loops in two threads, worker threads, a blocking handler, one bus; random in order, exact in sum."""
    for _ in range(rounds):
        core = EventBus("mixed")
        bus = AsyncEventBus(core)
        counts = {"loop-a": 0, "loop-b": 0, "plain": 0, "blocking": 0}
        lock = threading.Lock()

        def count(name: str) -> None:
            with lock:
                counts[name] += 1

        def on_loop(name: str, bus: AsyncEventBus = bus) -> Any:
            async def handler(payload: int) -> None:
                if payload % 5 == 0:
                    await asyncio.sleep(0)
                if payload % 50 == 7:
                    await bus.emit("echo", payload)
                count(name)
                if payload % 20 == 3:
                    raise ValueError(payload)

            return handler

        async def register(name: str, bus: AsyncEventBus = bus) -> None:
            bus.on("work/*", on_loop(name), max_pending=16)

        def emit_from_thread(core: EventBus = core) -> None:
            for n in range(200):
                core.emit("work/thread", n)

        async def emit_from_loop(bus: AsyncEventBus = bus) -> None:
            for n in range(200):
                receipt = bus.emit("work/loop", n)
                if n % 3 == 0:
                    await receipt
                elif n % 3 == 1:
                    await receipt.accepted()

        with LoopThread() as a, LoopThread() as b, Gate() as gate:
            a.call(register("loop-a"))
            b.call(register("loop-b"))
            core.on("work/*", lambda payload: count("plain"))
            core.on("echo", gate)
            core.on("work/*", lambda payload: count("blocking"), inline=True)
            workers = [threading.Thread(target=emit_from_thread) for _ in range(2)]
            futures = [a.begin(emit_from_loop()), b.begin(emit_from_loop())]
            for worker in workers:
                worker.start()
            gate.entered()
            gate.open()
            for worker in workers:
                worker.join(2 * BOUND)
                assert not worker.is_alive()
            for future in futures:
                future.result(2 * BOUND)
            core.drain(BOUND)
            total = 4 * 200
            assert counts == dict.fromkeys(counts, total)
            stats = core.stats()
            settled(core)
            assert stats.events == total + stats.topics["echo"]
            assert stats.totals.failed == 2 * total // 20
            assert core.close(BOUND).cancelled == 0


@pytest.mark.parametrize("concurrency", [1, 2])
def test_g12_a_signal_handler_that_raises_as_a_task_claims_loses_nothing(
    concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the claim and the slot's having it: that delivery is cancelled, and the mailbox goes on."""
    armed: list[BaseException] = []
    pull = LoopExecutor.pull

    def broken(executor: LoopExecutor) -> Any:
        claimed = pull(executor)
        if claimed is not None and armed:
            raise armed.pop()
        return claimed

    monkeypatch.setattr(LoopExecutor, "pull", broken)

    async def main() -> None:
        got: list[Any] = []

        async def handler(payload: Any) -> None:
            got.append(payload)

        raised: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context.get("exception")))
        async with AsyncEventBus() as bus:
            bus.on("t", handler, concurrency=concurrency, timeout=BOUND)  # a time-out is armed in a step
            await bus.emit("t", "warm")
            armed.append(Alarm())
            receipts = [bus.emit("t", number) for number in range(3)]
            await until(lambda: all(each.done for each in receipts))
            assert not armed
            assert [type(each) for each in raised] == [Alarm]
            assert [receipt.outcomes[0].status for receipt in receipts] == ["cancelled", "delivered", "delivered"]
            await bus.emit("t", "after", timeout=BOUND)
            assert got == ["warm", 1, 2, "after"]
            settled(bus.bus)

    run(main())


class Alarm(BaseException):
    """What the signal handler raises."""
