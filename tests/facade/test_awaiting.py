"""The facade acts at the call; what it returns can be awaited by anybody, any number of times, or dropped."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Coroutine
from typing import Any

import pytest
from kit import BOUND, Gate, settled
from loops import AsyncGate, LoopThread, others, passes, run, until

import eventbus
from eventbus import (
    DeadlockError,
    EventTimeoutError,
    MailboxFullError,
    NoHandlerError,
    NotRegisteredError,
    OptionTypeError,
    Status,
)
from eventbus_async import AsyncEventBus, Receipt, Subscription, SyncEventBus


def test_the_seeds_name_is_the_same_class() -> None:
    assert SyncEventBus is AsyncEventBus


@pytest.mark.parametrize("handler_is_async", [True, False])
def test_g6_awaiting_a_receipt_gives_the_receipt_with_its_outcomes(handler_is_async: bool) -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def coroutine(payload: int) -> int:
                return payload + 1

            subscription = bus.on("a", coroutine if handler_is_async else lambda payload: payload + 1)
            assert isinstance(subscription, Subscription)
            receipt = bus.emit("a", 1)
            assert isinstance(receipt, Receipt)
            assert await receipt is receipt
            assert receipt.done
            assert receipt.results() == [2]
            assert await receipt is receipt  # again

    run(main())


def test_registration_and_removal_may_be_awaited_and_need_not() -> None:
    async def main() -> None:
        bus = AsyncEventBus()

        async def handler(payload: Any) -> None: ...

        def other(payload: Any) -> None: ...

        first = await bus.sync_on("a", handler)
        second = await bus.on("a", other)
        assert isinstance(first, Subscription)
        assert bus.handlers("a") == (handler, other)
        assert bus.off("a", handler) == 1
        assert bus.handlers("a") == (other,)
        assert await bus.remove_listener("a", other) == 1
        with pytest.raises(NotRegisteredError):
            bus.off("a", other)
        assert not first.active
        assert not second.active
        third = bus.on("b", handler)
        assert third.cancel()
        assert not third.cancel()
        assert await third.cancel() is False
        bus.on("b", handler)
        assert await bus.remove_all_listeners() == 1
        assert await bus.remove_all_listeners() == 0
        await bus.close()

    run(main())


def test_the_decorator_returns_the_function_itself() -> None:
    bus = AsyncEventBus()

    async def handler(payload: Any) -> None: ...

    assert bus.on("a")(handler) is handler
    assert bus.handlers("a") == (handler,)
    bus.bus.close()


def test_everything_is_a_coroutine_that_asyncio_takes() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def handler(payload: Any) -> Any:
                await asyncio.sleep(0)
                return payload

            subscription = bus.on("a", handler)
            for made in (bus.emit("a"), subscription, bus.drain(), bus.off(subscription), subscription.cancel()):
                assert isinstance(made, Coroutine)
            bus.on("a", handler)
            receipts = [bus.emit("a", n) for n in range(10)]
            assert await asyncio.gather(*receipts) == receipts
            receipt = bus.emit("a", 1)
            assert await asyncio.wait_for(receipt, BOUND) is receipt
            assert await asyncio.create_task(bus.emit("a", 2))
            assert await asyncio.shield(bus.emit("a", 3))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(each) for each in (bus.emit("a", 4), bus.on("b", handler), bus.drain())]
            assert tasks[0].result().results() == [4]
            done, pending = await asyncio.wait([asyncio.ensure_future(bus.emit("a", 5))], timeout=BOUND)
            assert len(done) == 1
            assert not pending
            assert repr(asyncio.create_task(bus.emit("a")))

    run(main())


def test_asyncio_run_takes_a_receipt() -> None:
    bus = AsyncEventBus()
    bus.on("a", lambda payload: payload)
    assert asyncio.run(bus.emit("a", 7)).results() == [7]
    bus.bus.close()


def test_a_receipt_can_be_driven_by_hand_and_let_go() -> None:
    """As an event loop of another kind would: every step of it, and its end before it is done."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            gate = AsyncGate()
            bus.on("a", gate)
            receipt = bus.emit("a")
            receipt.close()  # nothing has begun
            future = receipt.send(None)
            assert asyncio.isfuture(future)
            receipt.close()
            receipt.close()
            assert not receipt._waiters
            with pytest.raises(ValueError, match="thrown"):
                receipt.throw(ValueError("thrown"))
            gate.open()
            assert await receipt is receipt

    run(main())


def test_g12_an_await_in_the_midst_of_a_step_is_refused_and_one_may_be_let_go_there() -> None:
    """A collector, or a signal handler, can do such things anywhere."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            gate = AsyncGate()
            bus.on("a", gate)
            receipt = bus.emit("a")
            await gate.entered()
            monitor = bus.bus._engine.monitor

            def refused() -> None:
                with pytest.raises(DeadlockError, match="interrupted"):
                    receipt.__await__().send(None)

            monitor.run(refused)
            waiting = receipt.__await__()
            waiting.send(None)
            assert receipt._waiters
            monitor.run(waiting.close)
            assert not receipt._waiters
            gate.open()
            await receipt
            closing: list[Any] = []
            monitor.run(lambda: closing.append(bus.close()))
            assert (await closing[0]).stuck == ()
            assert bus.closed

    run(main())


def test_g17_propagate_errors_is_true_or_false() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            with pytest.raises(OptionTypeError, match="propagate_errors"):
                bus.emit("a", propagate_errors="yes")  # type: ignore[arg-type]
            with pytest.raises(OptionTypeError, match="propagate_errors"):
                bus.bus.emit("a", propagate_errors=1)  # type: ignore[arg-type]

    run(main())


def test_two_tasks_drive_the_same_receipt_at_once() -> None:
    async def main() -> None:
        gate = AsyncGate("value")
        async with AsyncEventBus() as bus:
            bus.on("a", gate)
            receipt = bus.emit("a")
            tasks = [asyncio.create_task(receipt) for _ in range(3)]
            waits = [asyncio.create_task(waiting(receipt)) for _ in range(3)]
            await gate.entered()
            await passes()
            assert not any(task.done() for task in (*tasks, *waits))
            gate.open()
            for task in (*tasks, *waits):
                assert (await task).results() == ["value"]

    async def waiting(receipt: Receipt) -> Receipt:
        return await receipt

    run(main())


def test_a_receipt_is_awaited_in_several_loops_and_after_the_close() -> None:
    async def waiting(receipt: Receipt) -> Any:
        return (await receipt).results()

    with LoopThread() as one, LoopThread() as two, Gate("plain") as gate:
        bus = AsyncEventBus()
        bus.on("a", gate)
        receipt = bus.emit("a")
        futures = [one.begin(waiting(receipt)), two.begin(waiting(receipt)), two.begin(waiting(receipt))]
        gate.entered()
        gate.open()
        assert [each.result(BOUND) for each in futures] == [["plain"]] * 3
        bus.bus.close()
        assert one.call(waiting(receipt)) == ["plain"]


def test_g6_a_cancelled_waiter_cancels_no_handler() -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:
            bus.on("a", gate)
            receipt = bus.emit("a")
            for task in [asyncio.create_task(receipt), asyncio.create_task(bus.drain())]:
                await gate.entered()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receipt, 0.01)
            gate.open()
            assert (await receipt).outcomes[0].status is Status.DELIVERED
            assert gate.cancelled == 0
            assert receipt._waiters is None

    run(main())


def test_a_forgotten_await_loses_nothing_and_warns_of_nothing() -> None:
    async def main() -> None:
        received: list[int] = []

        async def handler(payload: int) -> None:
            received.append(payload)

        bus = AsyncEventBus()
        bus.sync_on("a", handler)
        for n in range(5):
            bus.emit("a", n)
        bus.request("a", 5)
        bus.drain()
        await until(lambda: len(received) == 6)
        bus.off("a")
        assert bus.handlers("a") == ()
        bus.close()
        await until(lambda: bus.bus.closed)
        gc.collect()
        await bus.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main())


def test_wait_on_the_loops_own_thread_names_await() -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:
            bus.on("a", gate)
            receipt = bus.emit("a")
            await gate.entered()
            with pytest.raises(DeadlockError, match="await"):
                receipt.wait(1)
            for call in (bus.bus.drain, bus.bus.close):
                with pytest.raises(DeadlockError, match="await"):
                    call()
            with pytest.raises(DeadlockError, match="await"):
                eventbus.Subscription(bus.subscriptions("a")[0]._box).cancel(wait=True)
            gate.open()

    run(main())


def test_timeouts_of_waits_undo_nothing() -> None:
    async def main() -> None:
        gate = AsyncGate("late")
        async with AsyncEventBus() as bus:
            subscription = bus.on("a", gate, name="slowpoke")
            receipt = bus.emit("a", timeout=0.01)
            with pytest.raises(EventTimeoutError, match="slowpoke"):
                await receipt
            with pytest.raises(EventTimeoutError, match="slowpoke"):
                await bus.emit("a", timeout=0)
            with pytest.raises(EventTimeoutError, match="slowpoke"):
                await bus.drain(0.01)
            with pytest.raises(EventTimeoutError):
                await bus.request("a", timeout=0.01)
            with pytest.raises(TimeoutError, match="slowpoke"):
                await subscription.cancel(wait=True, timeout=0.01)
            assert gate.inside == 1
            gate.open()
            await until(lambda: receipt.done)
            assert (await receipt).results() == ["late"]

    run(main())


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
def test_g17_times_that_cannot_be_are_refused_at_the_call(timeout: Any) -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        subscription = bus.on("a", lambda payload: None)
        for call in (
            lambda: bus.emit("a", timeout=timeout),
            lambda: bus.drain(timeout),
            lambda: bus.close(timeout),
            lambda: bus.request("a", timeout=timeout),
            lambda: subscription.cancel(timeout=timeout),
        ):
            with pytest.raises(eventbus.EventBusError, match="timeout"):
                call()
        assert subscription.active
        assert bus.stats().events == 0
        await bus.close()

    run(main())


def test_g6_request_gives_the_first_success() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def fails(payload: Any) -> None:
                raise ValueError("no")

            with pytest.raises(NoHandlerError):
                await bus.request("a")
            bus.on("a", fails)
            with pytest.raises(ExceptionGroup) as caught:
                await bus.request("a")
            assert isinstance(caught.value.exceptions[0], ValueError)
            gate = AsyncGate()
            bus.on("a", gate)
            bus.on("a", lambda payload: None)
            assert await bus.request("a", timeout=BOUND) is None  # the gate is still shut
            assert gate.left == 0
            gate.open()

    run(main())


def test_g5_propagate_errors_raises_at_the_await_once_all_are_settled() -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus(propagate_errors=True) as bus:

            async def fails(payload: Any) -> None:
                raise KeyError("one")

            bus.on("a", fails)
            bus.on("a", gate)
            task = asyncio.create_task(bus.emit("a"))
            await gate.entered()
            await passes()
            assert not task.done()
            gate.open()
            with pytest.raises(KeyError, match="one"):
                await task
            bus.on("a", fails)
            with pytest.raises(ExceptionGroup):
                await bus.emit("a")
            assert (await bus.emit("a", propagate_errors=False)).outcomes[0].status is Status.FAILED

            async def stops(payload: Any) -> None:
                raise StopAsyncIteration

            bus.on("b", stops)
            with pytest.raises(ExceptionGroup):
                await bus.emit("b")

    run(main())


def test_g9_accepted_waits_for_admission_alone() -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:
            bus.on("a", gate, max_pending=1)
            first = bus.emit("a", 1)
            await gate.entered()
            second, third = bus.emit("a", 2), bus.emit("a", 3)  # one is pending, one in line: nothing blocks
            assert await second.accepted() is second
            with pytest.raises(EventTimeoutError, match="space"):
                await third.accepted(0.01)
            task = asyncio.create_task(third.accepted())
            await passes()
            assert not task.done()
            gate.open()
            assert await task is third
            await asyncio.gather(first, second, third)
            assert gate.received == [1, 2, 3]
            assert await third.accepted() is third
            settled(bus)

    run(main())


def test_g9_what_waits_for_space_is_delivered_though_the_receipts_are_dropped() -> None:
    async def main() -> None:
        received: list[int] = []

        async def handler(payload: int) -> None:
            received.append(payload)
            await asyncio.sleep(0)

        async with AsyncEventBus() as bus:
            bus.on("a", handler, max_pending=3)
            for n in range(50):
                bus.emit("a", n)
            await bus.drain()
            assert received == list(range(50))

    run(main())


def test_g9_waiting_for_space_in_ones_own_mailbox_rejects_that_delivery() -> None:
    async def main() -> None:
        seen: list[Receipt] = []

        async with AsyncEventBus() as bus:

            async def handler(payload: int) -> None:
                if payload == 0:
                    for n in (1, 2):
                        seen.append(await bus.emit("a", n).accepted())

            bus.on("a", handler, max_pending=1, name="itself")
            await bus.emit("a", 0)
            await bus.drain()
            assert [each.outcomes[0].status for each in seen] == [Status.DELIVERED, Status.REJECTED]
            error = seen[1].outcomes[0].error
            assert isinstance(error, MailboxFullError)
            assert "itself" in str(error)

    run(main())


def test_g2_cancel_waits_for_calls_that_have_begun() -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:
            async with bus.on("a", gate) as subscription:
                bus.emit("a", 1)
                pending = bus.emit("a", 2)
                await gate.entered()
                task = asyncio.create_task(subscription.cancel(wait=True))
                await passes()
                assert not task.done()
                assert not subscription.active
                assert pending.outcomes[0].status is Status.CANCELLED
                gate.open()
                assert await task is True
            assert gate.inside == 0

            second = bus.on("b", gate)
            receipts = [bus.emit("b", n) for n in range(3)]
            assert await second.cancel(drain=True) is True
            assert [each.outcomes[0].status for each in receipts] == [Status.DELIVERED] * 3

    run(main())


def test_g2_a_handler_cancels_itself_and_waits() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def handler(payload: Any) -> str:
                assert await subscription.cancel(wait=True)
                return "still here"

            subscription = bus.on("a", handler)
            assert (await bus.emit("a")).results() == ["still here"]

    run(main())


def test_g8_waiting_for_oneself_raises_with_the_cycle() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def first(payload: Any) -> None:
                if payload == "begin":
                    await bus.emit("second")

            async def second(payload: Any) -> None:
                await bus.emit("first")

            bus.on("first", first, name="one")
            bus.on("second", second, name="two")
            receipt = await bus.emit("first", "begin")
            await bus.drain()
            errors = [outcome.error for outcome in receipt.outcomes]
            assert errors == [None]  # the second's wait closed the cycle and was refused
            assert bus.stats().totals.failed == 1

            async def itself(payload: Any) -> None:
                if payload == "begin":
                    await bus.emit("itself", timeout=5)

            bus.on("itself", itself, name="me")
            outcome = (await bus.emit("itself", "begin")).outcomes[0]
            assert isinstance(outcome.error, DeadlockError)
            assert "me" in outcome.error.cycle[0]

    run(main())


def test_g8_a_cycle_of_a_loop_and_a_thread_raises() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            found: list[BaseException] = []

            async def on_loop(payload: Any) -> None:
                if payload == "begin":
                    try:
                        await bus.emit("thread")
                    except DeadlockError as error:
                        found.append(error)

            def in_thread(payload: Any) -> None:
                try:
                    bus.bus.emit("loop").wait(BOUND)
                except DeadlockError as error:
                    found.append(error)

            bus.on("loop", on_loop)
            bus.on("thread", in_thread)
            await bus.emit("loop", "begin")
            await bus.drain()
            assert len(found) == 1  # whoever's wait came last

    run(main())


def test_g8_handlers_of_one_loop_wait_for_each_other_without_a_thread() -> None:
    """A chain of handlers that each await what the next one does, deeper than any stack of tasks should be."""
    depth = 200

    async def main() -> None:
        async with AsyncEventBus() as bus:
            for n in range(depth):

                async def handler(payload: int, n: int = n) -> int:
                    if n + 1 == depth:
                        return payload
                    return (await bus.emit(f"t{n + 1}", payload + 1)).results()[0]

                bus.on(f"t{n}", handler)
            assert (await bus.emit("t0", 0)).results() == [depth - 1]

    run(main())


def test_emitting_and_awaiting_leaves_others_their_turn() -> None:
    """A task that awaits one emit after another must not keep the loop from others."""

    async def main() -> None:
        async with AsyncEventBus() as bus:

            async def handler(payload: Any) -> None: ...

            bus.on("a", handler)
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            for _ in range(10_000):
                await bus.emit("a")
            task.cancel()
            assert turns > 20

    run(main())


def test_many_pending_deliveries_leave_others_their_turn() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            ticks = 0

            async def handler(payload: Any) -> None:
                until_then = loop.time() + 0.001
                while loop.time() < until_then:
                    pass

            loop = asyncio.get_running_loop()
            bus.on("a", handler)
            receipts = [bus.emit("a", n) for n in range(100)]
            while not receipts[-1].done:
                ticks += 1
                await asyncio.sleep(0)
            assert ticks >= 10  # 100 ms of handlers, at most some 5 ms at once

    run(main())


def test_g18_an_idle_bus_has_no_task() -> None:
    async def main() -> None:
        bus = AsyncEventBus()

        async def handler(payload: Any) -> None:
            await asyncio.sleep(0.001)

        bus.on("a", handler)
        bus.on("b", lambda payload: None)
        assert not others()
        await bus.emit("a")
        assert not others()
        await asyncio.gather(*[bus.emit("a") for _ in range(10)])
        await bus.emit("b")
        await bus.drain()
        assert not others()
        threading.Thread(target=bus.emit, args=("a",)).start()
        await until(lambda: bus.stats().totals.delivered == 13)
        await passes(3)
        assert not others()
        await bus.close()
        assert not others()

    run(main())
