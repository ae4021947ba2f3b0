"""What do the others notice when the handler of 1 of 8 subscriptions blocks for 50 ms, again and again?

Throughput is that of a burst, once with a cheap first handler and once with one that sleeps; ``kept`` is the second as
a share of the first. The delay is that of events which come one a millisecond.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus import EventBus

from ..figures import percentile
from ..harness import Case, Contender, Metric, Missing, constant
from ..peers import LIMIT, OURS, PEER, Offer, load
from ..shapes import LIMIT as SECONDS
from ..shapes import Meter, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HANDLERS = 8
BLOCK = 0.05
PACED = 40


@contextmanager
def ours(handlers: list[Callable[[Any], object]]) -> Iterator[Callable[[Any], object]]:
    bus = EventBus()
    # The slow one keeps its newest events: what does not fit is its loss, and no emitter waits for it.
    bus.on("work", handlers[0], overflow="drop_oldest")
    for handler in handlers[1:]:
        bus.on("work", handler)
    try:
        yield partial(bus.emit, "work")
    finally:
        bus.close(0)


class Sleepy:
    """A handler that blocks until the sample is over, 50 ms at most each time."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def __call__(self, payload: Any) -> None:
        self.over.wait(BLOCK)


def burst(open_: Any, n: int, first: Callable[[Any], object]) -> float:
    """Nanoseconds until the other seven have had ``n`` events."""
    meters = [Meter() for _ in range(HANDLERS - 1)]
    with open_([first, *(meter.handler for meter in meters)]) as emit:
        try:
            for meter in meters:
                meter.arm(n)
            started = publish(emit, n)
            return max(meter.wait() for meter in meters) - started
        finally:
            if isinstance(first, Sleepy):
                first.over.set()


def paced(open_: Any, first: Sleepy) -> float:
    """The median delay of the other seven, in milliseconds."""
    delays: list[int] = []
    over = threading.Event()
    tick = itertools.count(1).__next__

    def handler(sent: int) -> None:
        delays.append(time.perf_counter_ns() - sent)
        if tick() == PACED * (HANDLERS - 1):
            over.set()

    with open_([first, *([handler] * (HANDLERS - 1))]) as emit:
        try:
            for _ in range(PACED):
                emit(time.perf_counter_ns())
                time.sleep(0.001)
            if not over.wait(SECONDS):
                raise TimeoutError("events were lost")
        finally:
            first.over.set()
    return percentile(delays, 0.5) / 1e6


def sampler(open_: Any) -> Callable[[int], dict[str, float]]:
    def sample(n: int) -> dict[str, float]:
        free = burst(open_, n, lambda payload: None)
        blocked = burst(open_, n, Sleepy())
        return {"kept": 100 * free / blocked, "delay": paced(open_, Sleepy())}

    return sample


def contenders() -> list[Contender | Missing]:
    pool, queues = load("standard:threads_pool"), load("standard:threads_simple")
    assert isinstance(pool, Offer)
    assert isinstance(queues, Offer)
    with_pool = partial(pool.open, workers=4)
    return [
        Contender("eventbus", OURS, lambda: constant(sampler(ours))),
        Contender(
            "ThreadPoolExecutor(4)",
            PEER,
            lambda: constant(sampler(with_pool)),
            "the calls that block take all workers, and all others wait",
            share=0.0005,
        ),
        Contender(
            "SimpleQueue and a thread each",
            LIMIT,
            lambda: constant(sampler(queues.open)),
            "a thread a handler, no bound",
        ),
    ]


CASES = [
    Case(
        "one-blocks",
        "1 of 8 subscriptions blocks for 50 ms",
        contenders,
        40_000,
        (
            Metric("kept", "%", "throughput that the other seven keep"),
            Metric("delay", "ms", "median delay of the other seven"),
        ),
        quick=0.2,
        note="The same burst with and without the blocking handler; the delay at one event a millisecond. More than"
        " 100 % are kept where the one that blocks leaves its share of the work to the others.",
    )
]
