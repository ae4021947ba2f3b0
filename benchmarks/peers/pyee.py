"""pyee: EventEmitter (inline), ExecutorEventEmitter (threads), AsyncIOEventEmitter (one loop)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from pyee import EventEmitter
from pyee.asyncio import AsyncIOEventEmitter
from pyee.executor import ExecutorEventEmitter

from . import PEER, offers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

NAME = "created"


@offers(
    "pyee", PEER, "a handler's error reaches the emitter and ends the emit; no receipt, context, patterns, statistics"
)
@contextmanager
def inline(handlers: list[Callable[[Any], object]]) -> Iterator[Callable[[Any], object]]:
    emitter = EventEmitter()
    for handler in handlers:
        emitter.add_listener(NAME, handler)
    yield partial(emitter.emit, NAME)


@offers(
    "pyee ExecutorEventEmitter",
    PEER,
    "no order with more than one worker, no back-pressure, no completion, no context, no time-outs",
    share=0.5,
)
@contextmanager
def threads(handlers: list[Callable[[Any], object]], workers: int | None = None) -> Iterator[Callable[[Any], object]]:
    with ThreadPoolExecutor(workers or 1) as pool, ExecutorEventEmitter(pool) as emitter:
        for handler in handlers:
            emitter.add_listener(NAME, handler)
        yield partial(emitter.emit, NAME)


@offers(
    "pyee AsyncIOEventEmitter",
    PEER,
    "loop's own thread only; no order between handlers' awaits, no values, no back-pressure, no patterns",
    share=0.5,
)
@asynccontextmanager
async def on_loop(handler: Callable[[Any], Awaitable[object]]) -> AsyncIterator[Callable[[Any], Awaitable[object]]]:
    emitter = AsyncIOEventEmitter()
    emitter.add_listener(NAME, handler)

    async def emit(payload: Any) -> None:
        emitter.emit(NAME, payload)
        await emitter.wait_for_complete()

    yield emit


@offers("pyee", PEER, "no barrier: a handler may still run after it was removed")
@contextmanager
def churn(count: int) -> Iterator[Callable[[], object]]:
    emitter = EventEmitter()
    for number in range(count):
        emitter.add_listener(f"other/{number}", _nothing)

    def pair() -> None:
        emitter.add_listener(NAME, _nothing)
        emitter.remove_listener(NAME, _nothing)

    yield pair


def _nothing(payload: Any) -> None:
    """A handler that does nothing."""
