"""Where a task, a block or a loop ends sooner than what it has begun; where a handler begins in somebody's midst."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import Any

import pytest
from kit import BOUND, Gate
from loops import AsyncGate, LoopThread, passes, run, until

from eventbus import BusClosedError, EventBus, EventTimeoutError, OptionTypeError, ServiceError, Status
from eventbus_async import AsyncEventBus, BaseService, EventSynchronizer, ServiceGroup


class Plain(BaseService):
    """A service whose start takes a while, if it has a gate."""

    gate: AsyncGate | None = None

    async def _start(self) -> None:
        self.subscribe("topic", lambda _: None)
        if self.gate is not None:
            await self.gate(None)


# Tasks that end before their first step


def cancel_the_others() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        if "bounded" not in repr(task.get_coro()):
            task.cancel()


def test_a_start_whose_task_is_cancelled_before_its_first_step_has_ended() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = Plain(bus)
            service.gate = AsyncGate()
            started = service.start()
            cancel_the_others()
            with pytest.raises(ServiceError, match="cancelled"):
                await asyncio.wait_for(started, BOUND)
            assert service.status == "error"
            service.gate.open()
            await asyncio.wait_for(service.start(), BOUND)
            assert service.status == "running"
            await asyncio.wait_for(service.stop(), BOUND)

    run(main())


def test_a_groups_start_that_is_dropped_with_its_loop_does_not_keep_that_from_ending() -> None:
    for rounds in range(4):
        bus = AsyncEventBus()
        services = Plain("a", bus), Plain("b", bus)
        for service in services:
            service.gate = AsyncGate()

        async def main(services: Any = services, rounds: int = rounds) -> None:
            ServiceGroup(*services).start()
            await passes(rounds)

        thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
        thread.start()
        thread.join(BOUND)
        assert not thread.is_alive(), rounds
        assert {service.status for service in services} <= {"initializing", "error", "stopped"}
        bus.bus.close(0)


@pytest.mark.parametrize("grouped", [False, True])
def test_g22_a_block_that_is_cancelled_on_entering_stops_what_it_had_begun(grouped: bool) -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = Plain(bus)
            service.gate = gate = AsyncGate()

            async def enter() -> None:
                async with ServiceGroup(service) if grouped else service:
                    raise AssertionError("entered")

            task = asyncio.ensure_future(enter())
            await gate.entered()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            gate.open()
            await until(lambda: service.status == "stopped")
            assert not bus.subscriptions("topic")

    run(main())


def test_a_block_that_is_cancelled_on_entering_leaves_a_start_alone_that_others_began() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = Plain(bus)
            service.gate = gate = AsyncGate()
            own = service.start()

            async def enter() -> None:
                async with service:
                    raise AssertionError("entered")

            task = asyncio.ensure_future(enter())
            await gate.entered()
            task.cancel()
            await asyncio.wait([task])
            gate.open()
            await own
            assert service.status == "running"
            await service.stop()

    run(main())


# Blocks that end before what they were for


@pytest.mark.parametrize("bound", [True, False])
def test_g10_a_cancelled_wait_for_the_close_at_the_end_of_a_block_cancels_no_delivery(bound: bool) -> None:
    async def main() -> None:
        bus = AsyncEventBus(close_timeout=BOUND)
        gate = AsyncGate()
        entered = asyncio.Event()

        async def block() -> None:
            async with bus:
                if bound:
                    bus.on("topic", gate)
                receipts.extend(bus.emit("topic", number) for number in range(3))
                await gate.entered()
                entered.set()

        if not bound:
            await asyncio.to_thread(bus.on, "topic", gate)
        receipts: list[Any] = []
        task = asyncio.ensure_future(block())
        await entered.wait()
        await passes()
        task.cancel()
        await asyncio.wait([task])
        gate.open()
        report = await bus.close()
        assert report.cancelled == 0
        assert gate.received == [0, 1, 2]
        assert [each.outcomes[0].status for each in receipts] == [Status.DELIVERED] * 3

    run(main())


def test_g10_a_face_of_a_given_core_that_drains_takes_what_handlers_emit() -> None:
    async def main(core: EventBus) -> list[Any]:
        got: list[Any] = []
        gate = AsyncGate()
        async with AsyncEventBus(core) as other, AsyncEventBus(core) as bus:

            async def first(payload: Any) -> None:
                await gate(payload)
                await bus.emit("second", payload)

            async def second(payload: Any) -> None:
                got.append(payload)

            bus.on("first", first)
            other.on("second", second)
            receipt = bus.emit("first", 1)
            await gate.entered()
            closing = asyncio.ensure_future(asyncio.wait_for(bus.close(), BOUND))
            await passes()
            gate.open()
            await closing
            assert receipt.results() == [None]
            with pytest.raises(Exception, match="closed"):
                bus.emit("second", 2)
        return got

    with EventBus() as core:
        assert run(main(core)) == [1]


def test_a_closed_face_takes_nothing_from_handlers_of_others() -> None:
    """Draining it takes what handlers emit; not afterwards."""

    async def main(core: EventBus) -> None:
        told: list[str] = []
        async with AsyncEventBus(core) as face:
            face.on("y", lambda _: None)

        def handler(_: Any) -> None:
            try:
                face.emit("y")
            except BusClosedError:
                told.append("refused")

        core.on("x", handler)
        await asyncio.to_thread(lambda: core.emit("x").wait(BOUND))
        assert told == ["refused"]

    with EventBus() as core:
        run(main(core))


def test_g6_a_request_of_the_facade_in_a_thread_has_anothers_answer_too() -> None:
    """As the core's: whatever waits for space in a full mailbox."""
    with EventBus("requests", workers=2) as core, Gate() as gate:
        bus = AsyncEventBus(core)
        core.on("t", gate, max_pending=1)
        core.emit("t")
        gate.entered()
        core.emit("t")
        core.on("t", lambda _: "answer")
        requested = bus.request("t", timeout=BOUND)  # in a thread without a loop

        async def main() -> Any:
            return await requested

        assert run(main()) == "answer"


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="came with Python 3.12")
def test_g8_a_task_may_await_what_begins_after_the_handler_that_made_it() -> None:
    """An eager one begins to wait on the emit's stack, and suspends itself only."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        async with AsyncEventBus() as bus:
            tasks: list[Any] = []
            ended: list[str] = []

            async def other() -> None:
                await second.cancel(drain=True)
                ended.append("drained")

            bus.on("t", lambda _: tasks.append(asyncio.ensure_future(other())), inline=True)
            second = bus.on("t", lambda _: ended.append("handled"), inline=True)
            bus.emit("t")
            await asyncio.gather(*tasks)
            assert ended == ["handled", "drained"]

    run(main())


def test_g22_the_time_of_a_scopes_end_is_one_for_all_of_it() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            scope = bus.scope()
            gates = [AsyncGate() for _ in range(3)]
            for number, gate in enumerate(gates):
                scope.on(f"topic/{number}", gate)
                bus.emit(f"topic/{number}", number)
                await gate.entered()
            loop = asyncio.get_running_loop()
            begun = loop.time()
            # The latest is waited for first. When that has ended, less than all the time is left.
            loop.call_later(0.1, gates[2].open)
            with pytest.raises(EventTimeoutError):
                await scope.cancel(True, 0.15)
            took = loop.time() - begun
            assert gates[2].left
            for gate in gates:
                gate.open()
            assert took < 0.1 + 0.15

    run(main())


# Loops that change


def test_g6_a_wait_is_woken_though_its_loop_goes_on_in_another_thread() -> None:
    """And the thread that it began in settles what it waits for, in the task of another loop."""
    core = EventBus()
    bus = AsyncEventBus(core)
    moving, staying = asyncio.new_event_loop(), asyncio.new_event_loop()
    gate = AsyncGate("answer")

    async def register() -> None:
        bus.on("ask", gate)

    async def wait() -> Any:
        return await bus.request("ask", 1)

    staying.run_until_complete(register())
    waiting = moving.create_task(wait())
    moving.run_until_complete(passes())
    thread = threading.Thread(target=moving.run_until_complete, args=(asyncio.wait_for(waiting, BOUND),), daemon=True)

    async def answer() -> None:
        thread.start()
        await gate.entered()
        await asyncio.sleep(0.05)  # the other loop sleeps by then, or it is woken all the same
        gate.open()
        await until(lambda: not thread.is_alive())

    staying.run_until_complete(asyncio.wait_for(answer(), BOUND))
    assert waiting.result() == "answer"
    core.close(0)
    moving.close()
    staying.close()


def test_g9_what_waits_for_space_moves_home_with_its_handler() -> None:
    """From one open loop to another: at no time is the handler nobody's."""
    bus = AsyncEventBus()
    gate = AsyncGate()
    bus.on("topic", gate, max_pending=1)
    with LoopThread() as first:

        async def begin() -> list[Any]:
            first = bus.emit("topic", 0)
            waits = asyncio.ensure_future(first)
            await gate.entered()  # by that await this loop is home
            waits.cancel()
            return [first, *(bus.emit("topic", number) for number in range(1, 4))]

        receipts = first.call(begin())

        async def main() -> None:
            async with bus.serve():
                gate.open()
                await asyncio.gather(*receipts)
                assert [each.outcomes[0].status for each in receipts] == [Status.DELIVERED] * 4
                assert gate.received == [0, 1, 2, 3]

        run(main())
    bus.bus.close(BOUND)


def test_g13_a_block_that_its_closed_loop_has_left_open_takes_nobodys_home() -> None:
    bus = AsyncEventBus()
    got: list[Any] = []

    @bus.on("topic")
    async def handler(payload: Any) -> None:
        got.append(payload)

    async def hold() -> None:
        async with bus.serve():
            await asyncio.get_running_loop().create_future()

    loop = asyncio.new_event_loop()
    held = [loop.create_task(hold())]
    held[0]._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(passes())
    loop.close()

    async def main() -> None:
        async with bus.serve():
            await bus.emit("topic", 1)
            held.clear()
            gc.collect()  # its "async with" ends
            await asyncio.wait_for(bus.emit("topic", 2), BOUND)
        assert got == [1, 2]

    run(main())
    bus.bus.close(BOUND)


# In somebody's midst


def test_g5_a_handler_that_begins_within_an_except_does_not_see_that_exception() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            seen: list[Any] = []

            async def handler(_: Any) -> None:
                seen.append(sys.exc_info()[1])
                raise ValueError("mine")

            bus.on("topic", handler)
            await bus.emit("topic")
            try:
                raise KeyError("the emitter's")
            except KeyError:
                receipt = await bus.emit("topic")
            error = receipt.outcomes[0].error
            assert isinstance(error, ValueError)
            assert error.__context__ is None
            assert seen == [None, None]

    run(main())


def test_g17_a_condition_cannot_be_a_coroutine_function() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:

            async def condition(payload: Any) -> bool:
                return False

            with pytest.raises(OptionTypeError, match="condition"):
                sync.wait_for_event("topic", condition=condition)

    run(main())
