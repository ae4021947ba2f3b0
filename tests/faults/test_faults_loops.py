"""Faults that others have shipped around event loops: none of them is here."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from kit import BOUND, Team, settled

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "facade"))

from loops import AsyncGate, LoopThread, passes, run, until

from eventbus import EventBus, Receipt, Status
from eventbus_async import AsyncEventBus


def test_g3_garbage_collection_while_coroutine_handlers_wait() -> None:
    """asyncio holds tasks weakly: one that nobody refers to is collected half-way, and its event lost (F10)."""

    async def main() -> None:
        futures: list[weakref.ref[Any]] = []
        done: list[int] = []

        async def handler(payload: int) -> None:
            # Nothing but the handler's own frame refers to what it waits for, and only weakly is that held here.
            future = asyncio.get_running_loop().create_future()
            futures.append(weakref.ref(future))
            await future
            done.append(payload)

        async with AsyncEventBus() as bus:
            bus.on("a", handler, concurrency=10)
            for number in range(10):
                bus.emit("a", number)  # the receipt is dropped
            await until(lambda: len(futures) == 10)
            for _ in range(5):
                gc.collect()
                await passes(2)
            alive = [each() for each in futures]
            assert None not in alive
            for future in alive:
                future.set_result(None)
            await bus.drain(BOUND)
        assert sorted(done) == list(range(10))

    run(main())


@pytest.mark.parametrize("first", ["settle", "cancel"])
def test_g6_an_await_that_is_cancelled_in_the_pass_in_which_it_ends(first: str) -> None:
    """wait_for swallowed a cancellation that came with the result (F19): here it comes out, the receipt whole."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            gate = AsyncGate("value")
            bus.on("a", gate)
            for _ in range(20):
                receipt = bus.emit("a")
                await gate.entered()

                async def waits(receipt: Receipt = receipt) -> None:
                    await receipt

                for wait in (waits(), asyncio.wait_for(waits(), BOUND)):
                    task = asyncio.ensure_future(wait)
                    await passes(3)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                last = asyncio.ensure_future(waits())
                await passes(3)
                if first == "settle":
                    gate.open()
                    last.cancel()
                else:
                    last.cancel()
                    gate.open()
                with pytest.raises(asyncio.CancelledError):
                    await last
                assert (await receipt).results() == ["value"]
                gate = AsyncGate("value")
                bus.off("a")
                bus.on("a", gate)

    run(main())


@pytest.mark.parametrize("order", ["event first", "cancellation first"])
def test_g3_a_reader_that_is_woken_and_cancelled_at_once_passes_the_event_on(order: str) -> None:
    """The one who was notified is cancelled, and the other sleeps on beside an event (F20, F13)."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            async with bus.stream("a") as stream:
                for number in range(20):
                    one = asyncio.ensure_future(stream.get(BOUND))
                    two = asyncio.ensure_future(stream.get(BOUND))
                    await passes(3)
                    if order == "event first":
                        bus.emit("a", number)
                        one.cancel()
                    else:
                        one.cancel()
                        bus.emit("a", number)
                    assert (await two).payload == number
                    with pytest.raises(asyncio.CancelledError):
                        await one

    run(main())


def test_g7_a_time_out_that_a_thread_sees_is_the_end_of_the_coroutine() -> None:
    """A cancellation from another thread that no loop hears of leaves the task running (F21)."""
    with EventBus() as core, LoopThread() as thread:
        bus = AsyncEventBus(core)
        ended = threading.Event()

        async def handler(payload: Any) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.set()

        async def register() -> None:
            bus.on("a", handler, timeout=0.02)

        thread.call(register())
        receipt = bus.bus.emit("a").wait(BOUND)
        assert receipt.outcomes[0].status is Status.TIMED_OUT
        assert ended.is_set()  # by then, not some time later


def test_g10_a_drain_that_is_cancelled_and_drains_of_a_closed_bus() -> None:
    """A join() of a closed queue, or one after a cancelled one, blocks for ever (F31)."""

    async def main() -> None:
        bus = AsyncEventBus()
        gate = AsyncGate()
        bus.on("a", gate)
        bus.emit("a")
        await gate.entered()
        drains = [asyncio.ensure_future(bus.drain()) for _ in range(3)]
        await passes(3)
        drains[1].cancel()
        await passes(3)
        assert [each.done() for each in drains] == [False, True, False]
        gate.open()
        await drains[0]
        await drains[2]
        await bus.drain(BOUND)
        await bus.close(BOUND)
        for _ in range(2):
            await bus.drain(BOUND)
            await asyncio.get_running_loop().run_in_executor(None, bus.bus.drain, BOUND)
        settled(bus.bus)

    run(main())


def test_g13_a_wake_up_of_the_loop_that_gets_lost() -> None:
    """asyncio's self-pipe can fail silently (F48): whatever wakes the loop next brings all that waited."""
    with EventBus() as core, LoopThread() as thread:
        bus = AsyncEventBus(core)
        got: list[int] = []

        async def handler(payload: int) -> None:
            got.append(payload)

        async def register() -> None:
            bus.on("a", handler)

        thread.call(register())
        wake: Any = thread.loop._write_to_self  # type: ignore[attr-defined]
        thread.loop._write_to_self = lambda: None  # type: ignore[attr-defined]
        try:
            receipts = [bus.bus.emit("a", number) for number in range(3)]
        finally:
            thread.loop._write_to_self = wake  # type: ignore[attr-defined]
        thread.loop.call_soon_threadsafe(lambda: None)
        for receipt in receipts:
            receipt.wait(BOUND)
        assert got == [0, 1, 2]
        assert bus.bus.emit("a", 3).wait(BOUND).done  # and the next one rings again


@pytest.mark.parametrize("closed", [False, True], ids=["in a foreign thread", "once its loop has closed"])
def test_g12_facade_objects_that_are_dropped_where_their_loop_is_not(closed: bool) -> None:
    """A finalizer that calls its loop directly raises in other threads, and after the loop (F44)."""
    core = EventBus()
    gate = AsyncGate()
    kept: list[Any] = []

    async def main() -> None:
        bus = AsyncEventBus(core)
        stream = bus.stream("a")
        scope = bus.scope()
        scope.on("a", gate)
        kept.extend([stream, stream.get(), scope, bus.request("a", 1), bus.drain(), bus.emit("b"), bus])

    with LoopThread() as thread:
        with pytest.MonkeyPatch.context() as patch:
            told: list[Any] = []
            patch.setattr(sys, "unraisablehook", told.append)
            thread.call(main())
            if closed:
                thread.end()
            drop = threading.Thread(target=kept.clear)
            drop.start()
            drop.join(BOUND)
            gc.collect()
            assert told == []
        gate.open()
        assert core.emit("c").wait(BOUND).deliveries == 0
        assert core.close(BOUND).stuck == ()
    settled(core)


def test_g10_a_close_while_coroutine_handlers_wait_is_no_failure_of_theirs() -> None:
    """A cancellation at shutdown is booked as the handler's error elsewhere (F17)."""
    errors: list[Any] = []

    async def main() -> None:
        bus = AsyncEventBus(on_error=errors.append)
        gate = AsyncGate()
        bus.on("a", gate)
        receipts = [bus.emit("a", number) for number in range(3)]
        await gate.entered()
        report = await bus.close(0)
        assert (report.cancelled, report.stuck) == (3, ())
        assert [receipt.outcomes[0].status for receipt in receipts] == [Status.CANCELLED] * 3
        assert gate.cancelled == 1
        for receipt in receipts:
            receipt.raise_for_errors()
        settled(bus.bus)

    run(main())
    assert errors == []


def test_g13_emitters_of_many_threads_meet_a_loop_that_begins_and_ends() -> None:
    """Two asyncio.run in one program, with emitters that never stop: nothing is lost between the two (F49)."""
    bus = AsyncEventBus()
    got: list[int] = []

    @bus.on("a", max_pending=None)
    async def handler(payload: int) -> None:
        got.append(payload)

    async def serve(count: int) -> None:
        async with bus.serve():
            await until(lambda: len(got) >= count)

    def emit(first: int) -> None:
        for number in range(first, first + 300):
            bus.bus.emit("a", number)

    with Team() as team:
        team.add(emit, 0)
        team.add(emit, 1000)
        team.go()
        for count in (50, 200, 400):
            asyncio.run(serve(count))
    asyncio.run(serve(600))
    assert sorted(got) == [*range(300), *range(1000, 1300)]
    assert bus.bus.close(BOUND).cancelled == 0
