"""psygnal: typed signals of an object, called inline; compiled by mypyc where its wheel is."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psygnal import SignalInstance

from . import PEER, offers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@offers(
    "psygnal",
    PEER,
    "a handler's error reaches the emitter and ends the emit; an RLock is held while handlers run; no receipt",
)
@contextmanager
def inline(handlers: list[Callable[[Any], object]]) -> Iterator[Callable[[Any], object]]:
    signal = SignalInstance((object,))
    for handler in handlers:
        signal.connect(handler)
    yield signal.emit


@offers("psygnal", PEER, "no barrier: a handler may still run after it was disconnected")
@contextmanager
def churn(count: int) -> Iterator[Callable[[], object]]:
    signals = [SignalInstance((object,)) for _ in range(count)]
    for each in signals:
        each.connect(_nothing)
    signal = SignalInstance((object,))

    def pair() -> None:
        signal.connect(_nothing)
        signal.disconnect(_nothing)

    yield pair


def _nothing(payload: Any) -> None:
    """A handler that does nothing."""
