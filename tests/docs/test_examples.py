"""The three users of the bus: a program of threads, one of asyncio, and one of both; every event is accounted for.

Larger than the README's examples, which ``test_readme.py`` runs: handlers raise, block and come and go, too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit import BOUND, Gate, Team, settled

from eventbus import Event, EventBus, Receipt, Topic
from eventbus_async import AsyncEventBus

THREADS, EVENTS = 4, 250


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers here raise on purpose."""
    caplog.set_level(logging.CRITICAL, logger="eventbus")


def test_a_program_of_threads(tmp_path: Path) -> None:
    """G3, G4, G5, G10: producers, a handler that blocks in a file, one that raises, a stream; no loop at all."""
    errors: list[Any] = []
    receipts: list[list[Receipt]] = [[] for _ in range(THREADS)]
    path = tmp_path / "lines"
    with EventBus("threads", on_error=errors.append) as bus, path.open("w", encoding="utf-8") as file:

        @bus.on("work/**")
        def write(event: Event) -> None:
            file.write(f"{event.topic} {event.payload}\n")
            file.flush()

        @bus.on("work/*", concurrency=4)
        def every_tenth_fails(number: int) -> int:
            if number % 10 == 0:
                raise ValueError(number)
            return number

        def produce(thread: int) -> None:
            for number in range(EVENTS):
                receipts[thread].append(bus.emit(f"work/{thread}", number))

        with bus.stream("work/0") as stream:
            with Team(limit=3 * BOUND) as team:
                for thread in range(THREADS):
                    team.add(produce, thread)
                team.add(lambda: [next(stream).payload for _ in range(EVENTS)])
            assert team.results[-1] == list(range(EVENTS))
        bus.drain(BOUND)

    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == THREADS * EVENTS
    for thread in range(THREADS):
        mine = [line for line in lines if line.startswith(f"work/{thread} ")]
        assert mine == [f"work/{thread} {number}" for number in range(EVENTS)]
    failed = THREADS * EVENTS // 10
    assert Counter(type(error.error) for error in errors) == {ValueError: failed}
    outcomes = Counter(outcome.status for each in receipts for receipt in each for outcome in receipt.outcomes)
    assert all(receipt.done for each in receipts for receipt in each)
    stats = bus.stats()
    assert stats.events == THREADS * EVENTS  # nobody listens to bus/error, so nothing is emitted there
    assert stats.totals.failed == failed == outcomes["failed"]
    assert stats.totals.deliveries == 2 * THREADS * EVENTS + EVENTS == sum(outcomes.values())
    settled(bus)


# A bus that is a global of its module, with decorators: nothing runs yet.
ORDERS = Topic("shop/orders", dict)
shop = AsyncEventBus()
seen: dict[str, list[Any]] = {"async": [], "plain": [], "caused": []}


@shop.on("shop/orders")
async def bill(order: dict[str, Any]) -> int:
    await asyncio.sleep(0)
    shop.emit("shop/bills", order["id"])
    seen["async"].append(order["id"])
    return order["id"]


@shop.on(["shop/orders", "shop/returns"])
def book(order: dict[str, Any]) -> None:
    seen["plain"].append(order["id"])


@shop.on("shop/bills")
async def send(number: int) -> None:
    seen["caused"].append(number)


def test_a_program_of_asyncio() -> None:
    """G3, G4, G13, G19: a bus that was a global before any loop ran, decorators, nothing but the facade."""

    async def main() -> None:
        async with shop:
            assert (await shop.emit("shop/orders", {"id": 0})).results()[0] == 0
            for number in range(1, EVENTS):
                shop.emit("shop/orders", {"id": number})  # dropped: accepted all the same
            last = await asyncio.wait_for(shop.emit("shop/orders", {"id": EVENTS}, follow=True), BOUND)
            assert last.done
            assert EVENTS in seen["caused"]
            await asyncio.gather(*(shop.emit("shop/returns", {"id": -1}) for _ in range(3)))

    asyncio.run(main())
    numbers = list(range(EVENTS + 1))
    assert seen == {"async": numbers, "plain": [*numbers, -1, -1, -1], "caused": numbers}
    stats = shop.stats()
    assert stats.events == 2 * (EVENTS + 1) + 3
    assert stats.totals.deliveries == stats.totals.delivered == 3 * (EVENTS + 1) + 3
    settled(shop)


@contextmanager
def loop_thread(main: Callable[[asyncio.Event], Any]) -> Iterator[None]:
    """Run ``main(stop)`` in a loop in a thread of its own; leaving sets ``stop`` and joins."""
    started = threading.Event()
    box: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        async def whole() -> None:
            stop = asyncio.Event()
            box.extend((asyncio.get_running_loop(), stop))
            started.set()
            await main(stop)

        try:
            asyncio.run(whole())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(BOUND)
    try:
        yield
    finally:
        box[0].call_soon_threadsafe(box[1].set)
        thread.join(BOUND)
    assert not thread.is_alive()
    assert not failed, failed


def test_a_program_of_both() -> None:
    """G3, G4, G7, G13: two loops in two threads, worker threads, a handler that blocks, one bus."""
    core = EventBus("both")
    got: dict[str, list[tuple[int, int]]] = {"one": [], "two": [], "plain": []}
    where: dict[str, set[int]] = {"one": set(), "two": set(), "plain": set()}
    ready = {"one": threading.Event(), "two": threading.Event()}

    def note(name: str, item: tuple[int, int]) -> None:
        got[name].append(item)
        where[name].add(threading.get_ident())

    def loop_of(name: str) -> Callable[[asyncio.Event], Any]:
        async def main(stop: asyncio.Event) -> None:
            async with AsyncEventBus(core) as bus:

                @bus.on("job/*")
                async def handle(item: tuple[int, int]) -> None:
                    if item[1] % 7 == 0:
                        await asyncio.sleep(0)
                    note(name, item)
                    if item[1] == EVENTS - 1:
                        await bus.emit(f"done/{name}", item[0])  # a coroutine handler that waits for the other loop

                @bus.on("done/*")
                async def reply(_: int) -> str:
                    return name

                ready[name].set()
                await stop.wait()

        return main

    with Gate() as gate:
        core.on("job/*", gate, name="blocking")
        core.on("job/*", lambda item: note("plain", item))
        with loop_thread(loop_of("one")), loop_thread(loop_of("two")):
            assert ready["one"].wait(BOUND)
            assert ready["two"].wait(BOUND)

            def work(thread: int) -> None:
                for number in range(EVENTS):
                    core.emit(f"job/{thread}", (thread, number))

            with Team(limit=3 * BOUND) as team:
                for thread in range(THREADS):
                    team.add(work, thread)
            # One handler is stuck from the first event on; everybody else gets everything meanwhile.
            for thread in range(THREADS):
                assert sorted(core.emit("done/x", thread).wait(BOUND).results()) == ["one", "two"]
            gate.open()
            core.drain(3 * BOUND)
        report = core.close(BOUND)

    assert (report.cancelled, report.stuck) == (0, ())
    for name in got:
        assert len(got[name]) == THREADS * EVENTS
        for thread in range(THREADS):
            assert [number for by, number in got[name] if by == thread] == list(range(EVENTS))
    assert len(where["one"]) == len(where["two"]) == 1
    assert not where["one"] & where["two"]
    assert len(gate.received) == THREADS * EVENTS
    stats = core.stats()
    done = 2 * THREADS + THREADS
    assert stats.events == THREADS * EVENTS + done
    assert stats.totals.deliveries == stats.totals.delivered == 4 * THREADS * EVENTS + 2 * done
    settled(core)
