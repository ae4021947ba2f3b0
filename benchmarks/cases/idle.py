"""Does a bus that has nothing to do use the processor? With 1,000 subscriptions, after its first events."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eventbus import EventBus

from ..harness import Case, Contender, Metric, Missing
from ..peers import LIMIT, OURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

WINDOW = 0.2  # seconds


def nothing(payload: Any) -> None:
    """A handler that does nothing."""


def switches() -> int:
    """How often the process has gone to sleep by itself."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def window(n: int) -> dict[str, float]:
    """What the process uses while the measurer sleeps, a second."""
    before, began, used = switches(), time.perf_counter(), time.process_time()
    time.sleep(WINDOW)
    took = time.perf_counter() - began
    return {"cpu": 1000 * (time.process_time() - used) / took, "switches": (switches() - before) / took}


@contextmanager
def bare() -> Iterator[Callable[[int], dict[str, float]]]:
    yield window


@contextmanager
def ours() -> Iterator[Callable[[int], dict[str, float]]]:
    with EventBus("idle") as bus:
        for number in range(1_000):
            bus.on(f"topic/{number}", nothing)
        for number in range(1_000):
            bus.emit(f"topic/{number}")
        bus.drain(30)
        end = time.monotonic() + 5
        while bus.stats().pool.threads and time.monotonic() < end:  # they end after a second without work
            time.sleep(0.05)
        yield window


def contenders() -> list[Contender | Missing]:
    # One after the other: opened together, each would be measured with the other in the process.
    return [Contender("eventbus", OURS, ours), Contender("no bus in use", LIMIT, bare, "everything")]


CASES = [
    Case(
        "idle",
        "An idle bus with 1,000 subscriptions",
        contenders,
        2,
        (
            Metric("cpu", "ms/s", "processor time a second"),
            Metric("switches", "/s", "times that the process went to sleep, the measurer's own included"),
        ),
        note="The floor is the measurer's own sleep.",
    )
]
