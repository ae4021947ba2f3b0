"""What do registering and removing cost, beside few others and beside many?"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..harness import Case, Contender, Metric, Missing
from ..peers import load
from ..shapes import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


FEW, MANY = 10, 100_000


@contextmanager
def beside(open_: Any, count: int) -> Iterator[Callable[[int], dict[str, float]]]:
    with open_(count) as pair:

        def sample(n: int) -> dict[str, float]:
            for _ in range(16):
                pair()
            started = clock()
            for _ in range(n):
                pair()
            return {"cost": (clock() - started) / n / 1000}

        yield sample


def contenders(count: int, *references: str) -> list[Contender | Missing]:
    found: list[Contender | Missing] = []
    for reference in references:
        offer = load(reference)
        if isinstance(offer, Missing):
            found.append(offer)
        else:
            found.append(
                Contender(offer.name, offer.kind, partial(beside, offer.open, count), offer.lacks, offer.share)
            )
    return found


def beside_few() -> list[Contender | Missing]:
    return contenders(FEW, "ours:churn", "pyee:churn", "blinker:churn", "psygnal:churn", "pypubsub:churn")


def beside_many() -> list[Contender | Missing]:
    return contenders(MANY, "ours:churn", "ours:churn_one_topic")


METRICS = (Metric("cost", "µs", "one on() and one cancel()"),)

CASES = [
    Case(
        "churn-10",
        "on() and cancel() beside 10 subscriptions",
        beside_few,
        2_000,
        METRICS,
        note="One pair. Ours is a barrier: after on() nothing is missed, after cancel() nothing begins.",
    ),
    Case(
        "churn-100000",
        "on() and cancel() beside 100,000 subscriptions",
        beside_many,
        2_000,
        METRICS,
        note="The others on topics of their own, and all on the very topic.",
    ),
]
