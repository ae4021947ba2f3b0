"""pypubsub: a tree of topics whose listeners are called inline."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pubsub.core import Publisher

from . import PEER, offers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "orders.created"


@offers(
    "pypubsub",
    PEER,
    "a listener's error reaches the emitter and ends the emit; main thread only; no receipt or context",
)
@contextmanager
def inline(handlers: list[Callable[[Any], object]]) -> Iterator[Callable[[Any], object]]:
    publisher = Publisher()
    for handler in handlers:
        publisher.subscribe(handler, NAME)  # a weak reference: the caller keeps the handlers
    send = publisher.sendMessage

    def emit(payload: Any) -> None:
        send(NAME, payload=payload)

    yield emit


@offers("pypubsub", PEER, "no threads, so no barrier")
@contextmanager
def churn(count: int) -> Iterator[Callable[[], object]]:
    publisher = Publisher()
    for number in range(count):
        publisher.subscribe(_nothing, f"other{number}")

    def pair() -> None:
        publisher.subscribe(_nothing, NAME)
        publisher.unsubscribe(_nothing, NAME)

    yield pair


def _nothing(payload: Any) -> None:
    """A handler that does nothing."""
