"""blinker: signals that call their receivers inline."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blinker import Signal

from . import PEER, offers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@offers(
    "blinker",
    PEER,
    "a handler's error reaches the emitter and ends the emit; no threads, patterns, contexts, statistics",
)
@contextmanager
def inline(handlers: list[Callable[[Any], object]]) -> Iterator[Callable[[Any], object]]:
    signal = Signal()
    for handler in handlers:
        signal.connect(handler, weak=False)
    yield signal.send


@offers("blinker", PEER, "no barrier: a handler may still run after it was disconnected")
@contextmanager
def churn(count: int) -> Iterator[Callable[[], object]]:
    signals = [Signal() for _ in range(count)]
    for each in signals:
        each.connect(_nothing, weak=False)
    signal = Signal()

    def pair() -> None:
        signal.connect(_nothing, weak=False)
        signal.disconnect(_nothing)

    yield pair


def _nothing(payload: Any) -> None:
    """A handler that does nothing."""
