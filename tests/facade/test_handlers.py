"""Coroutine handlers: their task, their context, their cancellation, their time-out."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from typing import Any

import pytest
from kit import BOUND, Gate, settled
from loops import AsyncGate, LoopThread, others, passes, run, until
from pydantic import BaseModel, field_validator

from eventbus import Event, EventTimeoutError, HandlerTypeError, OptionError, Status
from eventbus._engine import engine
from eventbus_async import AsyncEventBus, Receipt, _runner

SHORT = 0.03
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


def test_handlers_of_all_kinds() -> None:
    """``async def``, plain functions, bound methods, partials, callable objects of either kind."""

    class Thing:
        async def method(self, payload: Any) -> tuple[str, str]:
            return "method", threading.current_thread().name

        def plain(self, payload: Any) -> tuple[str, str]:
            return "plain", threading.current_thread().name

    class AsyncCallable:
        async def __call__(self, payload: Any) -> tuple[str, str]:
            return "callable", threading.current_thread().name

    async def two(extra: str, payload: Any) -> tuple[str, str]:
        return extra, threading.current_thread().name

    async def main() -> None:
        here = threading.current_thread().name
        async with AsyncEventBus(name="kinds") as bus:
            for handler in (Thing().method, AsyncCallable(), functools.partial(two, "partial"), Thing().plain):
                bus.on("a", handler)
            results = (await bus.emit("a")).results()
            assert results[:3] == [("method", here), ("callable", here), ("partial", here)]
            assert results[3][0] == "plain"
            assert results[3][1].startswith("kinds-")  # never on the loop

    run(main())


def test_g4_a_coroutine_handler_cannot_run_inline() -> None:
    async def handler(payload: Any) -> None: ...

    bus = AsyncEventBus()
    with pytest.raises(OptionError, match="inline"):
        bus.on("a", handler, inline=True)
    bus.bus.close()


def test_loop_is_for_coroutine_handlers() -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        with pytest.raises(OptionError, match="loop"):
            bus.on("a", lambda payload: None, loop=asyncio.get_running_loop())
        await bus.close()

    run(main())


def test_g15_a_plain_function_that_returns_a_coroutine_fails_clearly() -> None:
    async def coroutine() -> None: ...

    async def main() -> None:
        async with AsyncEventBus() as bus:
            bus.on("a", lambda payload: coroutine())
            outcome = (await bus.emit("a")).outcomes[0]
            assert isinstance(outcome.error, HandlerTypeError)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="inspect.markcoroutinefunction came with Python 3.12")
def test_g15_a_function_that_is_marked_as_a_coroutine_function_may_return_any_awaitable() -> None:
    """What it returns is awaited, or, if it cannot be, the delivery fails with the reason."""

    class Awaitable:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "awaited"

    async def coroutine() -> str:
        return "returned"

    async def main() -> None:
        async with AsyncEventBus() as bus:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[str] = loop.create_future()
            for topic, made in (("a", Awaitable()), ("b", future), ("c", AsyncEventBus().emit("x")), ("d", 7)):
                handler: Any = lambda payload, made=made: made  # noqa: E731
                bus.on(topic, inspect.markcoroutinefunction(handler))  # type: ignore[attr-defined, unused-ignore]
            bus.on("e", inspect.markcoroutinefunction(lambda payload: coroutine()))  # type: ignore[attr-defined, unused-ignore]
            loop.call_soon(future.set_result, "done")
            assert (await bus.emit("a")).results() == ["awaited"]
            assert (await bus.emit("b")).results() == ["done"]
            assert isinstance((await bus.emit("c")).results()[0], Receipt)
            (outcome,) = (await bus.emit("d")).outcomes
            assert isinstance(outcome.error, HandlerTypeError)
            assert "returned int" in str(outcome.error)
            assert (await bus.emit("e")).results() == ["returned"]
            bus.on("f", inspect.markcoroutinefunction(lambda payload: next(iter(()))))  # type: ignore[attr-defined, unused-ignore]
            (outcome,) = (await bus.emit("f")).outcomes
            assert isinstance(outcome.error, RuntimeError)  # as of a coroutine; it ends nothing of the bus's

    run(main())


class Odd(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def stop(cls, value: int) -> int:
        raise StopIteration(value)


def test_g5_a_conversion_that_raises_stop_iteration_is_no_end_of_the_handler() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            called: list[Any] = []

            async def handler(payload: Odd) -> None:
                called.append(payload)

            bus.on("a", handler)
            (outcome,) = (await bus.emit("a", {"n": 1})).outcomes
            assert outcome.status is Status.FAILED
            assert called == []

    run(main())


def test_g4_no_coroutine_handler_begins_inside_emit() -> None:
    async def main() -> None:
        begun: list[Any] = []

        async def handler(payload: Any) -> None:
            begun.append(payload)

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            for n in range(100):
                receipt = bus.emit("a", n)
                assert len(begun) == n
                await receipt
                assert begun[-1] == n

    run(main())


def test_g4_one_at_a_time_and_in_order_though_they_suspend() -> None:
    async def main() -> None:
        log: list[tuple[str, int]] = []

        async def handler(payload: int) -> None:
            log.append(("in", payload))
            for _ in range(payload % 3):
                await asyncio.sleep(0)
            log.append(("out", payload))

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            receipts = [bus.emit("a", n) for n in range(50)]
            await asyncio.gather(*receipts)
            assert log == [(what, n) for n in range(50) for what in ("in", "out")]

    run(main())


@pytest.mark.parametrize("concurrency", [2, 5])
def test_g4_concurrency_runs_so_many_at_a_time(concurrency: int) -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:
            bus.on("a", gate, concurrency=concurrency)
            for n in range(10):
                bus.emit("a", n)
            await gate.entered(concurrency)
            await passes()
            assert gate.inside == concurrency
            gate.open()
            await bus.drain()
            assert gate.most <= concurrency + 1
            assert gate.left == 10

    run(main())


def test_g20_lanes_and_keys_on_a_loop() -> None:
    async def main() -> None:
        inside: list[str] = []
        order: list[Any] = []

        async def laned(payload: Any) -> None:
            inside.append(payload)
            assert len(inside) == 1
            order.append(payload)
            await asyncio.sleep(0)
            inside.remove(payload)

        async def other(payload: Any) -> None:
            await laned(payload)

        def plain(payload: Any) -> None:
            inside.append(payload)
            assert len(inside) == 1
            order.append(payload)
            inside.remove(payload)

        async with AsyncEventBus() as bus:
            for topic, handler in (("a", laned), ("b", other), ("c", plain)):
                bus.on(topic, handler, lane="db")
            receipts = [bus.emit("abc"[n % 3], n) for n in range(60)]
            await asyncio.gather(*receipts)
            assert order == list(range(60))
            assert all(receipt.outcomes[0].status is Status.DELIVERED for receipt in receipts)

            by_key: dict[int, list[int]] = {0: [], 1: [], 2: []}
            running: set[int] = set()

            async def keyed(payload: int) -> None:
                key = payload % 3
                assert key not in running
                running.add(key)
                await asyncio.sleep(0)
                by_key[key].append(payload)
                running.remove(key)

            bus.on("k", keyed, concurrency=3, key=lambda event: event.payload % 3)
            receipts = [bus.emit("k", n) for n in range(60)]
            await asyncio.gather(*receipts)
            assert all(receipt.outcomes[0].status is Status.DELIVERED for receipt in receipts)
            assert by_key == {key: list(range(key, 60, 3)) for key in range(3)}

    run(main())


def test_g14_each_delivery_runs_in_its_own_copy_of_the_emitters_context() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def handler(payload: str) -> None:
            seen.append(variable.get())
            variable.set("changed by " + payload)
            await asyncio.sleep(0)
            seen.append(variable.get())  # still its own after suspending
            await asyncio.create_task(child())

        async def child() -> None:
            seen.append(variable.get())

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            bus.on("a", handler)
            variable.set("emitter")
            await bus.emit("a", "one")
            assert seen.count("emitter") == 2
            assert seen.count("changed by one") == 4
            assert variable.get() == "emitter"

    run(main())


def test_g14_cleanup_of_a_cancelled_handler_runs_in_its_context() -> None:
    async def main() -> None:
        seen: list[str] = []

        async def handler(payload: Any) -> None:
            variable.set("handler")
            try:
                await asyncio.sleep(BOUND)
            finally:
                seen.append(variable.get())

        async with AsyncEventBus() as bus:
            bus.on("a", handler, timeout=SHORT)
            await bus.emit("a")
            assert seen == ["handler"]

    run(main())


def test_g14_the_tasks_of_the_bus_run_in_an_empty_context() -> None:
    async def main() -> None:
        variable.set("loud")
        contexts: list[Any] = []

        async def handler(payload: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            if hasattr(task, "get_context"):  # 3.12
                contexts.append(task.get_context().get(variable))
            await asyncio.sleep(0)

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            await bus.emit("a")
            assert set(contexts) <= {None}

    run(main())


@pytest.mark.parametrize("suspend", [True, False])
def test_g14_cancelling_current_task_cancels_only_this_delivery(suspend: bool) -> None:
    async def main() -> None:
        async def handler(payload: Any) -> str:
            if payload == "cancel":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                if suspend:
                    await asyncio.sleep(BOUND)
            await asyncio.sleep(0)
            return "fine"

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            receipts = [bus.emit("a", what) for what in ("x", "cancel", "y", "z")]
            await asyncio.gather(*receipts)
            assert [each.outcomes[0].status.value for each in receipts] == [
                "delivered",
                "cancelled",
                "delivered",
                "delivered",
            ]
            assert (await bus.emit("a")).results() == ["fine"]
            settled(bus)

    run(main())


def test_g14_a_handler_that_cancels_its_task_and_returns_harms_no_other() -> None:
    async def main() -> None:
        async def handler(payload: Any) -> str:
            if payload == "cancel":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            return "fine"

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            bus.on("b", handler)
            receipts = [bus.emit("a", "cancel"), bus.emit("a", 1), bus.emit("b", 2)]
            await asyncio.gather(*receipts)
            assert [each.results() for each in receipts[1:]] == [["fine"], ["fine"]]

    run(main())


def test_g5_a_cancelled_error_that_a_handler_raises_is_its_own() -> None:
    async def main() -> None:
        async def handler(payload: Any) -> None:
            raise asyncio.CancelledError

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            assert (await bus.emit("a")).outcomes[0].status is Status.CANCELLED
            assert (await bus.emit("a")).outcomes[0].status is Status.CANCELLED

    run(main())


@pytest.mark.parametrize("suspend", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, StopAsyncIteration, GeneratorExit])
def test_g5_what_a_handler_raises_ends_no_task_and_no_loop(error: type[BaseException], suspend: bool) -> None:
    async def main() -> None:
        told: list[Any] = []

        async def handler(payload: Any) -> str:
            if suspend:
                await asyncio.sleep(0)
            if payload == "raise":
                raise error("it")
            return "fine"

        async with AsyncEventBus(on_error=told.append) as bus:
            bus.on("a", handler)
            first, second = bus.emit("a", "raise"), bus.emit("a", "not")
            await asyncio.gather(first, second)
            outcome = first.outcomes[0]
            assert outcome.status is Status.FAILED
            assert isinstance(outcome.error, error)
            assert second.results() == ["fine"]
            assert [each.error for each in told] == [outcome.error]
            trace = outcome.error.__traceback__
            assert trace is not None
            assert trace.tb_frame.f_code is handler.__code__  # the bus's own frames are left out

    run(main())


def test_g14_asyncio_timeout_and_task_groups_work_in_a_handler() -> None:
    async def main() -> None:
        async def with_timeout(payload: Any) -> str:
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(BOUND)
            except TimeoutError:
                return "timed out inside"
            return "never"

        async def with_group(payload: Any) -> list[int]:
            async def square(n: int) -> int:
                await asyncio.sleep(0.001)
                return n * n

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(square(n)) for n in range(4)]
            return [task.result() for task in tasks]

        async def failing_group(payload: Any) -> str:
            async def fail() -> None:
                raise ValueError("child")

            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(fail())
                    await asyncio.sleep(BOUND)
            except* ValueError:
                pass
            return "caught"

        async def with_wait_for(payload: Any) -> str:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.sleep(BOUND), 0.01)
            return "waited"

        expected = ["timed out inside", [0, 1, 4, 9], "caught", "waited"]
        async with AsyncEventBus() as bus:
            for handler in (with_timeout, with_group, failing_group, with_wait_for):
                bus.on("a", handler)
            for _ in range(3):
                assert (await bus.emit("a")).results() == expected
            assert bus.stats().totals.cancelled == 0

    run(main())


def test_g14_anyio_works_in_a_handler() -> None:
    anyio = pytest.importorskip("anyio")

    async def main() -> None:
        async def with_anyio(payload: Any) -> str:
            with anyio.move_on_after(0.01) as scope:
                await anyio.sleep(BOUND)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, BOUND)
                group.cancel_scope.cancel()
            return f"moved on {scope.cancelled_caught}"

        async with AsyncEventBus() as bus:
            bus.on("a", with_anyio)
            for _ in range(3):
                assert (await bus.emit("a")).results() == ["moved on True"]
            assert bus.stats().totals.cancelled == 0

    run(main())


def test_g14_current_task_runs_nothing_else_while_a_handler_runs() -> None:
    async def main() -> None:
        running: dict[Any, int] = {}

        async def handler(payload: Any) -> None:
            task = asyncio.current_task()
            assert task is not main_task
            assert task not in running
            running[task] = 1
            await asyncio.sleep(0)
            assert asyncio.current_task() is task
            await asyncio.sleep(0.001)
            del running[task]

        main_task = asyncio.current_task()
        async with AsyncEventBus() as bus:
            for _ in range(4):
                bus.on("a", handler, concurrency=2)
            receipts = [bus.emit("a") for _ in range(10)]
            await asyncio.gather(*receipts)
            assert {outcome.status for each in receipts for outcome in each.outcomes} == {Status.DELIVERED}

    run(main())


def test_g7_a_coroutine_handler_past_its_timeout_is_cancelled_and_settled_at_its_end() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def handler(payload: Any) -> None:
            try:
                await asyncio.sleep(BOUND)
            finally:
                await asyncio.sleep(0.01)
                ended.append("cleaned up")

        async with AsyncEventBus() as bus:
            bus.on("a", handler, timeout=SHORT, name="slow")
            outcome = (await bus.emit("a")).outcomes[0]
            assert outcome.status is Status.TIMED_OUT
            assert isinstance(outcome.error, EventTimeoutError)
            assert "slow" in str(outcome.error)
            assert ended == ["cleaned up"]
            assert not others()
            assert (await bus.emit("a")).outcomes[0].status is Status.TIMED_OUT

    run(main())


def test_g7_one_that_ignores_its_cancellation_is_settled_a_second_later_and_keeps_its_mailbox_waiting() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        began: list[Any] = []

        async def handler(payload: Any) -> None:
            began.append(payload)
            while not gate.is_set():
                try:
                    await gate.wait()
                except asyncio.CancelledError:
                    pass

        async with AsyncEventBus() as bus:
            bus.on("a", handler, timeout=SHORT)
            loop = asyncio.get_running_loop()
            start = loop.time()
            first, second = bus.emit("a", 1), bus.emit("a", 2)
            assert (await first).outcomes[0].status is Status.TIMED_OUT
            assert 0.9 < loop.time() - start < 3
            await passes()
            assert began == [1]
            assert not second.done
            gate.set()
            await second
            assert began == [1, 2]
            settled(bus)

    run(main())


def test_g7_a_handler_in_time_is_not_disturbed() -> None:
    async def main() -> None:
        async def handler(payload: Any) -> Any:
            await asyncio.sleep(0)
            return payload

        async with AsyncEventBus() as bus:
            bus.on("a", handler, timeout=BOUND)
            assert [(await bus.emit("a", n)).results() for n in range(20)] == [[n] for n in range(20)]

    run(main())


def test_g7_one_slow_coroutine_stops_no_other_subscription() -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:
            bus.on("a", gate)

            async def quick(payload: Any) -> str:
                return "quick"

            bus.on("b", quick)
            bus.emit("a")
            await gate.entered()
            for _ in range(50):
                assert (await bus.emit("b")).results() == ["quick"]
            gate.open()

    run(main())


def test_g19_what_a_coroutine_handler_emits_is_caused_by_its_event() -> None:
    async def main() -> None:
        events: list[Event] = []
        later: list[asyncio.Task[Any]] = []

        async with AsyncEventBus() as bus:

            async def child(event: Event) -> None:
                events.append(event)

            async def outliving() -> None:
                await gate.wait()
                bus.emit("child", "late")

            async def parent(event: Event) -> None:
                events.append(event)
                await asyncio.sleep(0)
                bus.emit("child", "own")

                async def inner() -> None:
                    bus.emit("child", "task")

                await asyncio.create_task(inner())
                await asyncio.to_thread(bus.emit, "child", "thread")
                later.append(asyncio.create_task(outliving()))

            gate = asyncio.Event()
            bus.on("parent", parent)
            bus.on("child", child)
            receipt = await bus.emit("parent", follow=True)
            assert [event.payload for event in events] == [None, "own", "task", "thread"]
            root = events[0]
            assert root.id == receipt.event_id
            for event in events[1:]:
                assert (event.parent_id, event.root_id, event.depth) == (root.id, root.id, 1)
            gate.set()
            await later[0]
            await bus.drain()
            assert events[-1].parent_id == root.id  # it keeps its parent, though nobody waited for it

    run(main())


def test_a_bus_task_that_is_cancelled_comes_back() -> None:
    """G13: user code may cancel every task that it finds; what is pending is run all the same."""

    async def main() -> None:
        gate = AsyncGate()
        received: list[Any] = []

        async def handler(payload: Any) -> None:
            received.append(payload)

        async with AsyncEventBus() as bus:
            bus.on("a", gate)
            bus.on("b", handler)
            first, second = bus.emit("a", 1), bus.emit("a", 2)
            await gate.entered()
            for task in others():
                task.cancel()
            assert (await first).outcomes[0].status is Status.CANCELLED
            gate.open()
            assert (await second).outcomes[0].status is Status.DELIVERED
            threading.Thread(target=bus.bus.emit, args=("b", 1)).start()
            await until(lambda: received == [1])
            settled(bus)

    run(main())


@pytest.mark.parametrize("suspend", [True, False])
def test_g14_handlers_that_cancel_themselves_hold_nobody_up(suspend: bool) -> None:
    """The pause after a cancellation is for those that come from outside, as when a loop ends."""

    async def main() -> None:
        async def handler(payload: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            if suspend:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(BOUND)

        async with AsyncEventBus() as bus:
            bus.on("a", handler)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            receipts = [bus.emit("a", n) for n in range(200)]
            await asyncio.gather(*receipts)
            assert loop.time() - begun < 200 * 0.05 / 2
            assert {each.outcomes[0].status for each in receipts} == {Status.CANCELLED}

    run(main())


def test_g12_a_payloads_finalizer_finds_that_the_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies with the receipt, in the loop's own task; here it ends the subscription, which lets go of its handler."""
    monkeypatch.setattr(engine, "SAMPLE_SECONDS", float("inf"))

    class Dies:
        def __del__(self) -> None:
            subscription.cancel()

    async def handler(payload: Any) -> None: ...

    async def main() -> None:
        nonlocal subscription
        async with AsyncEventBus() as bus:
            subscription = bus.on("a", handler)
            await bus.emit("a")
            await bus.emit("a")
            receipt = bus.emit("a", Dies())
            await until(lambda: receipt.done)
            assert not subscription.active
            await until(lambda: subscription.handler is None, "the subscription having let go of its handler")

    subscription: Any = None
    run(main())


def test_g13_what_follows_a_call_in_an_earlier_home_runs_in_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mailbox has moved while the call went on."""
    monkeypatch.setattr(engine, "SAMPLE_SECONDS", float("inf"))
    monkeypatch.setattr(_runner, "SLICE", BOUND)  # however long that took
    bus = AsyncEventBus()
    loops: list[tuple[int, bool]] = []
    receipts: list[Receipt] = []

    async def handler(payload: int) -> None:
        loops.append((payload, asyncio.get_running_loop() is home.loop))
        if payload == 2:
            gate(payload)  # it holds up its loop

    async def begins() -> None:
        for number in range(2):
            await bus.emit("a", number)
        receipts.extend(bus.emit("a", number) for number in range(2, 6))

    async def goes_on() -> None:
        async with bus.serve():
            gate.open()
            await receipts[-1]
        await bus.close()

    bus.on("a", handler)
    with LoopThread() as home, Gate() as gate:
        begun = home.begin(begins())
        gate.entered()
        run(goes_on())
        begun.result(BOUND)
    assert loops == [(0, True), (1, True), (2, True), (3, False), (4, False), (5, False)]
