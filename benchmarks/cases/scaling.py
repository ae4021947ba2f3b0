"""Does an emit cost more when much else is registered? For a topic that was seen before."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus import EventBus

from ..harness import Case, Contender, Missing
from ..peers import OURS
from ..shapes import Meter, clock, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOPIC = "orders/created"
ROUND = 64  # emits that warm up
SUBSCRIPTIONS, TOPICS, PATTERNS = 10_000, 100_000, 1_000


def nothing(payload: Any) -> None:
    """The handler of all the others."""


@contextmanager
def beside(patterns: Callable[[], Iterator[str]]) -> Iterator[Callable[[int], dict[str, float]]]:
    """A bus with one inline handler, beside others."""
    meter = Meter()
    with EventBus() as bus:
        for pattern in patterns():
            bus.on(pattern, nothing)
        bus.on(TOPIC, meter.handler, inline=True)
        emit = partial(bus.emit, TOPIC)

        def sample(n: int) -> dict[str, float]:
            for count in (ROUND, n):
                meter.arm(count)
                started = publish(emit, count)
                took = clock() - started
                meter.wait()
            return {"cost": took / n}

        yield sample


def others(text: str, count: int) -> Callable[[], Iterator[str]]:
    return lambda: (text.format(number) for number in range(count))


def contenders() -> list[Contender | Missing]:
    return [
        Contender("empty registry", OURS, partial(beside, others("", 0))),
        Contender("10,000 other subscriptions", OURS, partial(beside, others("other", SUBSCRIPTIONS))),
        Contender("100,000 other topics", OURS, partial(beside, others("other/{}", TOPICS))),
        Contender("1,000 patterns", OURS, partial(beside, others("other/{}/*/**", PATTERNS))),
    ]


CASES = [
    Case(
        "scaling",
        "Emit beside much else",
        contenders,
        20_000,
        note="An emit to one inline handler; what else is registered stands on other topics.",
    )
]
