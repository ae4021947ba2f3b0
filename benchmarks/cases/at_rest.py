"""What is left after the last delivery? Receipts, deliveries, threads and tasks, counted."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import TYPE_CHECKING, Any

from eventbus import EventBus, Receipt

from ..harness import Case, Contender, Metric, Missing, constant
from ..peers import OURS, load

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 5.0  # an idle thread ends after one


def nothing(payload: Any) -> None:
    """A handler that does nothing."""


def records() -> int:
    """Receipts and deliveries that are alive."""
    gc.collect()
    names = ("Receipt", "Delivery")
    return sum(
        isinstance(each, Receipt) or (type(each).__name__ in names and type(each).__module__.startswith("eventbus"))
        for each in gc.get_objects()
    )


def until_none(count: Callable[[], int]) -> int:
    """The number once it is zero, or after five seconds."""
    end = time.monotonic() + SECONDS
    while (number := count()) > 0 and time.monotonic() < end:
        time.sleep(0.02)
    return number


def core(n: int) -> dict[str, float]:
    records_before, threads_before = records(), threading.active_count()
    with EventBus() as bus:
        bus.on("work", nothing)
        bus.on("work", nothing, inline=True)
        for _ in range(n):
            bus.emit("work", object())
        bus.drain(60)
        left = until_none(lambda: records() - records_before)
        return {"records": left, "threads": until_none(lambda: threading.active_count() - threads_before), "tasks": 0}


async def facade_work(n: int) -> dict[str, float]:
    from eventbus_async import AsyncEventBus

    async def coroutine(payload: Any) -> None:
        """A handler that does nothing."""

    records_before, threads_before, tasks_before = records(), threading.active_count(), len(asyncio.all_tasks())
    async with AsyncEventBus() as bus:
        bus.on("work", coroutine)
        bus.on("work", nothing)
        for _ in range(n):
            bus.emit("work", object())
        await bus.drain(60)
        end = time.monotonic() + SECONDS
        while True:
            found = {
                "records": records() - records_before,
                "threads": threading.active_count() - threads_before,
                "tasks": len(asyncio.all_tasks()) - tasks_before,
            }
            if not any(each > 0 for each in found.values()) or time.monotonic() > end:
                return {name: float(value) for name, value in found.items()}
            await asyncio.sleep(0.02)


def facade(n: int) -> dict[str, float]:
    return asyncio.run(facade_work(n))


def contenders() -> list[Contender | Missing]:
    found: list[Contender | Missing] = [Contender("eventbus", OURS, lambda: constant(core))]
    face = load("ours_async:on_loop")
    if isinstance(face, Missing):
        found.append(Missing("eventbus_async", face.reason))
    else:
        found.append(Contender("eventbus_async", OURS, lambda: constant(facade)))
    return found


CASES = [
    Case(
        "at-rest",
        "What is left after the last delivery",
        contenders,
        5_000,
        (
            Metric("records", "", "receipts and deliveries alive"),
            Metric("threads", "", "threads, once they had a second to end"),
            Metric("tasks", "", "tasks on the loop"),
        ),
        rounds=1,
        note="With the bus still open.",
    )
]
