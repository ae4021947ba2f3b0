"""This project's core, with its defaults: receipts, contexts, isolation, order and statistics in each figure."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus import EventBus

from . import OURS, offers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOPIC = "orders/created"


@offers("eventbus inline", OURS)
@contextmanager
def inline(handlers: list[Callable[[Any], object]]) -> Iterator[Callable[[Any], object]]:
    with EventBus() as bus:
        for handler in handlers:
            bus.on(TOPIC, handler, inline=True)
        yield partial(bus.emit, TOPIC)


@offers("eventbus", OURS)
@contextmanager
def threads(handlers: list[Callable[[Any], object]], workers: int | None = None) -> Iterator[Callable[[Any], object]]:
    with EventBus(workers=workers) as bus:
        for handler in handlers:
            bus.on(TOPIC, handler)
        yield partial(bus.emit, TOPIC)


@offers("eventbus", OURS)
@contextmanager
def churn(count: int) -> Iterator[Callable[[], object]]:
    with EventBus() as bus:
        others = [bus.on(f"other/{number}", _nothing) for number in range(count)]

        def pair() -> None:
            bus.on(TOPIC, _nothing).cancel()

        yield pair
        del others


@offers("eventbus, all on one topic", OURS)
@contextmanager
def churn_one_topic(count: int) -> Iterator[Callable[[], object]]:
    with EventBus() as bus:
        others = [bus.on(TOPIC, _nothing) for _ in range(count)]

        def pair() -> None:
            bus.on(TOPIC, _nothing).cancel()

        yield pair
        del others


def _nothing(payload: Any) -> None:
    """A handler that does nothing."""
