"""How much memory do a subscription and a pending event take? Measured with tracemalloc."""

from __future__ import annotations

import gc
import queue
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eventbus import EventBus

from ..harness import Case, Contender, Metric, Missing, constant
from ..peers import LIMIT, OURS, PEER, Offer, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Bytes that were allocated within the block and still live."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]

        def grown() -> int:
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

        yield grown
    finally:
        tracemalloc.stop()


def nothing(payload: Any) -> None:
    """A handler that does nothing."""


def subscription(n: int) -> dict[str, float]:
    topics = [f"topic/{number}" for number in range(n)]
    with EventBus() as bus:
        bus.on("topic/0", nothing)
        with traced() as grown:
            for topic in topics:
                bus.on(topic, nothing)
            return {"memory": grown() / n}


def listener(n: int) -> dict[str, float]:
    from pyee import EventEmitter

    names = [f"topic/{number}" for number in range(n)]
    emitter = EventEmitter()
    with traced() as grown:
        for name in names:
            emitter.add_listener(name, nothing)
        return {"memory": grown() / n}


class Stuck:
    """A handler that waits for the end of the sample, and says that it has begun."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()

    def __call__(self, payload: Any) -> None:
        self.begun.set()
        self.over.wait(60)


def pending(n: int) -> dict[str, float]:
    stuck = Stuck()
    with EventBus() as bus:
        bus.on("work", stuck, max_pending=None)
        bus.emit("work")
        stuck.begun.wait(60)
        bus.emit("work")
        try:
            with traced() as grown:
                for _ in range(n):
                    bus.emit("work")
                return {"memory": grown() / n}
        finally:
            stuck.over.set()


def submitted(n: int) -> dict[str, float]:
    stuck = Stuck()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stuck, None)
        stuck.begun.wait(60)
        try:
            with traced() as grown:
                for _ in range(n):
                    pool.submit(stuck, None)
                return {"memory": grown() / n}
        finally:
            stuck.over.set()


def queued(n: int) -> dict[str, float]:
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with traced() as grown:
        for _ in range(n):
            items.put(None)
        return {"memory": grown() / n}


def subscriptions() -> list[Contender | Missing]:
    pyee = load("pyee:inline")
    peer: Contender | Missing = (
        pyee
        if isinstance(pyee, Missing)
        else Contender("pyee", PEER, lambda: constant(listener), "no mailbox, statistics or handle")
    )
    assert isinstance(pyee, (Missing, Offer))
    return [Contender("eventbus", OURS, lambda: constant(subscription)), peer]


def events() -> list[Contender | Missing]:
    return [
        Contender("eventbus", OURS, lambda: constant(pending)),
        Contender("ThreadPoolExecutor.submit", PEER, lambda: constant(submitted), "no context, topic or order"),
        Contender("SimpleQueue", LIMIT, lambda: constant(queued), "everything"),
    ]


METRICS = (Metric("memory", "bytes", "allocated for one"),)

CASES = [
    Case(
        "memory-subscription",
        "Memory of a subscription",
        subscriptions,
        2_000,
        METRICS,
        rounds=3,
        note="On its own topic.",
    ),
    Case(
        "memory-pending",
        "Memory of a pending event",
        events,
        5_000,
        METRICS,
        rounds=3,
        note="Beyond its payload, behind a handler that is busy; the receipt was dropped.",
    ),
]
