"""Streams, scopes and marked methods on the facade."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from kit import BOUND
from loops import AsyncGate, passes, run, until

from eventbus import (
    BusClosedError,
    DeadlockError,
    Event,
    EventTimeoutError,
    NotRegisteredError,
    OptionError,
    Status,
    handles,
)
from eventbus_async import AsyncEventBus


def test_g3_a_stream_has_what_was_emitted_since_the_call() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            stream = bus.stream("a/*")
            receipt = bus.emit("a/1", 1)
            assert receipt.outcomes[0].status is Status.DELIVERED  # once the buffer has it
            bus.bus.emit("a/2", 2)
            seen: list[Event] = []
            async with stream:
                async for event in stream:
                    seen.append(event)
                    if len(seen) == 2:
                        break
            assert [(event.topic, event.payload) for event in seen] == [("a/1", 1), ("a/2", 2)]
            assert not stream.active
            assert bus.emit("a/3").deliveries == 0

    run(main())


def test_g3_events_from_threads_reach_a_waiting_reader_in_order() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            seen: list[int] = []

            async def read() -> None:
                async for event in bus.stream("a"):
                    seen.append(event.payload)
                    if event.payload == 199:
                        return

            task = asyncio.create_task(read())
            await passes()

            def emit() -> None:
                for n in range(200):
                    bus.bus.emit("a", n)

            thread = threading.Thread(target=emit)
            thread.start()
            await task
            thread.join(BOUND)
            assert seen == list(range(200))

    run(main())


def test_g3_a_cancelled_reader_has_taken_nothing() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            stream = bus.stream("a")
            for n in range(50):
                task = asyncio.create_task(stream.get())
                await passes(n % 3)
                bus.emit("a", n)  # it is woken and cancelled at once
                task.cancel()
                try:
                    first = (await task).payload
                except asyncio.CancelledError:
                    first = (await stream.get(BOUND)).payload
                assert first == n

    run(main())


def test_several_readers_share_a_stream() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            stream = bus.stream("a")
            seen: list[int] = []

            async def read() -> None:
                async for event in stream:
                    seen.append(event.payload)
                    await asyncio.sleep(0)

            tasks = [asyncio.create_task(read()) for _ in range(3)]
            await passes()
            for n in range(30):
                bus.emit("a", n)
            await until(lambda: len(seen) == 30)
            assert sorted(seen) == list(range(30))
            stream.cancel()
            await asyncio.gather(*tasks)  # the end of the stream ends them

    run(main())


def test_get_times_out_polls_and_ends() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            stream = bus.stream("a", max_pending=2, overflow="drop_oldest")
            with pytest.raises(EventTimeoutError, match="stream"):
                await stream.get(0)
            with pytest.raises(EventTimeoutError):
                await stream.get(0.01)
            for n in range(4):
                bus.emit("a", n)
            assert stream.dropped == 2
            stream.cancel()
            assert [(await stream.get(0)).payload for _ in range(2)] == [2, 3]
            with pytest.raises(StopAsyncIteration):
                await stream.get(0)

    run(main())


def test_g10_streams_end_when_the_bus_closes() -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        stream = bus.stream("a")

        async def read() -> list[Any]:
            return [event.payload async for event in stream]

        task = asyncio.create_task(read())
        bus.emit("a", 1)
        await passes()
        await bus.close()
        assert await task == [1]

    run(main())


def test_g9_a_full_stream_holds_emitters_up_until_it_is_read_or_forgotten() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            stream = bus.stream("a", max_pending=1)
            bus.emit("a", 1)
            waiting = bus.emit("a", 2)
            with pytest.raises(EventTimeoutError):
                await waiting.accepted(0)
            assert (await stream.get()).payload == 1
            assert await waiting.accepted(BOUND)
            bus.emit("a", 3)
            del stream
            gc.collect()
            assert bus.subscriptions() == ()

    run(main())


def test_a_stream_that_is_always_full_leaves_others_their_turn() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            stream = bus.stream("a", max_pending=None)
            for n in range(1000):
                bus.emit("a", n)
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            for _ in range(1000):
                await stream.get()
            task.cancel()
            assert turns >= 10

    run(main())


def test_g22_what_a_scope_began_ends_with_it() -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with AsyncEventBus() as bus:
            async with bus.scope() as scope:
                subscription = scope.on("a", gate)

                @scope.on("a")
                def plain(payload: Any) -> str:
                    return "plain"

                stream = scope.stream("a")
                inner = scope.scope()
                inner.on("b", gate)
                assert bus.emit("a").deliveries == 3
                await gate.entered()
                gate.open()
            assert gate.inside == 0  # it was waited for
            assert not subscription.active
            assert not stream.active
            assert bus.handlers("a") == bus.handlers("b") == ()
            with pytest.raises(BusClosedError, match="scope"):
                scope.on("a", gate)
            assert not scope.cancel()
            with bus.scope() as scope:
                scope.on("a", plain)
            assert bus.handlers("a") == ()

    run(main())


def test_g22_marked_methods_of_both_kinds() -> None:
    class Shop:
        def __init__(self) -> None:
            self.seen: list[str] = []

        @handles("orders/*")
        async def note(self, payload: Any) -> None:
            self.seen.append("note")

        @handles("orders/paid", concurrency=2)
        def plain(self, payload: Any) -> None:
            self.seen.append("plain")

    async def main() -> None:
        async with AsyncEventBus() as bus:
            shop = Shop()
            scope = bus.register(shop)
            await bus.emit("orders/paid")
            assert sorted(shop.seen) == ["note", "plain"]
            bus.verify_subscriptions({"orders/paid": [shop.plain, shop.note], "orders/*": shop.note})
            assert await scope.cancel(wait=True)
            assert bus.handlers("orders/paid") == ()
            with pytest.raises(NotRegisteredError, match="note"):
                bus.verify_subscriptions({"orders/*": shop.note})

    run(main())


def test_g22_an_object_of_which_one_method_is_refused_is_not_registered_at_all() -> None:
    class Shop:
        @handles("orders/*")
        async def note(self, payload: Any) -> None: ...

        @handles("orders/paid", inline=True)
        async def refused(self, payload: Any) -> None: ...

    async def main() -> None:
        async with AsyncEventBus() as bus:
            with pytest.raises(OptionError, match="inline"):
                bus.register(Shop())
            assert bus.subscriptions() == ()

    run(main())


def test_g13_a_core_stream_does_not_block_a_loop() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            with bus.bus.stream("a") as stream:
                with pytest.raises(DeadlockError, match="stream"):
                    stream.get(BOUND)
                bus.emit("a", 1)
                assert stream.get(0).payload == 1

    run(main())


def test_looking_around() -> None:
    async def main() -> None:
        async with AsyncEventBus(name="looks") as bus:

            async def handler(payload: Any) -> None: ...

            subscription = bus.on(["a", "b/*"], handler, name="mine")
            assert bus.name == "looks"
            assert bus.topics() == ("a", "b/*")
            assert bus.subscriptions("b/x") == (subscription,)
            assert bus.handlers("b/x") == (handler,)
            await bus.emit("b/x")
            assert subscription.stats().delivered == 1
            assert bus.stats().events == 1
            assert "looks" in repr(bus)
            assert "mine" in repr(subscription)
            assert "to read" in repr(bus.stream("c"))
            assert "members" in repr(bus.scope())

    run(main())
