"""The standard library's ways, which people use instead of a bus: pools, queues, a task or a call each."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from . import LIMIT, PEER, offers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

STOP = object()


def consume(get: Callable[[], Any], handler: Callable[[Any], object]) -> None:
    """A consumer thread's life."""
    while (item := get()) is not STOP:
        handler(item)


@contextmanager
def consumers(handlers: list[Callable[[Any], object]], make: Callable[[], Any]) -> Iterator[Callable[[Any], object]]:
    """A queue and a thread for each handler."""
    queues = [make() for _ in handlers]
    team = [
        threading.Thread(target=consume, args=(each.get, handler), daemon=True)
        for each, handler in zip(queues, handlers, strict=True)
    ]
    for thread in team:
        thread.start()
    puts = [each.put for each in queues]

    def emit(payload: Any) -> None:
        for put in puts:
            put(payload)

    try:
        yield puts[0] if len(puts) == 1 else emit
    finally:
        for put in puts:
            put(STOP)
        for thread in team:
            thread.join(10)


@offers("queue.Queue", PEER, "one consumer a queue, a thread each; no topics, isolation, completion or context")
@contextmanager
def threads_queue(
    handlers: list[Callable[[Any], object]], workers: int | None = None
) -> Iterator[Callable[[Any], object]]:
    with consumers(handlers, queue.Queue) as emit:
        yield emit


@offers(
    "SimpleQueue", LIMIT, "no bound; one consumer a queue, a thread each; no topics, isolation, completion or context"
)
@contextmanager
def threads_simple(
    handlers: list[Callable[[Any], object]], workers: int | None = None
) -> Iterator[Callable[[Any], object]]:
    with consumers(handlers, queue.SimpleQueue) as emit:
        yield emit


@offers(
    "ThreadPoolExecutor.submit",
    PEER,
    "no topics, no order with more than one worker, no back-pressure, no context, a stuck call keeps its worker",
    share=0.5,
)
@contextmanager
def threads_pool(
    handlers: list[Callable[[Any], object]], workers: int | None = None
) -> Iterator[Callable[[Any], object]]:
    with ThreadPoolExecutor(workers or 1) as pool:
        submit = pool.submit

        def emit(payload: Any) -> None:
            for handler in handlers:
                submit(handler, payload)

        try:
            yield partial(submit, handlers[0]) if len(handlers) == 1 else emit
        finally:
            pool.shutdown(cancel_futures=True)


@offers(
    "run_coroutine_threadsafe", PEER, "a task each: no order across awaits, no bound, no topics or isolation", share=0.2
)
@asynccontextmanager
async def to_loop_coroutine(
    handler: Callable[[Any], Any], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[Callable[[Any], object]]:
    def emit(payload: Any) -> object:
        return asyncio.run_coroutine_threadsafe(handler(payload), loop)

    yield emit


@offers(
    "call_soon_threadsafe",
    LIMIT,
    "calls plain functions only, and has no bound, topics, isolation or completion",
    share=0.5,
)
@asynccontextmanager
async def to_loop_call_soon(
    handler: Callable[[Any], Any], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[Callable[[Any], object]]:
    # The cheapest way to run a coroutine function that does not suspend: step it once, without a task.
    def step(payload: Any) -> None:
        try:
            handler(payload).send(None)
        except StopIteration:
            pass

    yield partial(loop.call_soon_threadsafe, step)


@offers("run_in_executor", PEER, "a future each; no topics, no order with more than one worker, no bound", share=0.3)
@asynccontextmanager
async def from_loop_executor(handler: Callable[[Any], object]) -> AsyncIterator[Callable[[Any], object]]:
    with ThreadPoolExecutor(1) as pool:
        yield partial(asyncio.get_running_loop().run_in_executor, pool, handler)


@offers("queue.Queue", PEER, "one consumer, a thread of its own; no topics, isolation, completion or context")
@asynccontextmanager
async def from_loop_queue(handler: Callable[[Any], object]) -> AsyncIterator[Callable[[Any], object]]:
    with consumers([handler], queue.Queue) as emit:
        yield emit


@offers("SimpleQueue", LIMIT, "one consumer, a thread of its own; no bound, topics, isolation, completion or context")
@asynccontextmanager
async def from_loop_simple(handler: Callable[[Any], object]) -> AsyncIterator[Callable[[Any], object]]:
    with consumers([handler], queue.SimpleQueue) as emit:
        yield emit


@offers("a task each", PEER, "no order between emitters, no topics, isolation or bound")
@asynccontextmanager
async def on_loop_task(handler: Callable[[Any], Any]) -> AsyncIterator[Callable[[Any], Awaitable[object]]]:
    create_task = asyncio.get_running_loop().create_task

    def emit(payload: Any) -> asyncio.Task[object]:
        return create_task(handler(payload))

    yield emit


@offers("await handler(payload)", LIMIT, "a call: the handler begins inside the emitter's own task")
@asynccontextmanager
async def on_loop_await(
    handler: Callable[[Any], Awaitable[object]],
) -> AsyncIterator[Callable[[Any], Awaitable[object]]]:
    yield handler
