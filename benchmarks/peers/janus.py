"""janus: a queue between threads and one loop, per item and as a carrier of wake-ups."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import janus

from . import LIMIT, offers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

STOP = object()


@offers("janus per item", LIMIT, "one consumer task; no topics, isolation, completion or context", share=0.5)
@asynccontextmanager
async def to_loop(
    handler: Callable[[Any], Any], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[Callable[[Any], object]]:
    queue: janus.Queue[Any] = janus.Queue()

    async def drain() -> None:
        get = queue.async_q.get
        while True:
            await handler(await get())

    task = loop.create_task(drain())
    try:
        yield queue.sync_q.put
    finally:
        task.cancel()
        await asyncio.wait([task])
        await queue.aclose()


@offers("janus carrying wake-ups", LIMIT, "everything: one task drains a deque, woken when it sleeps")
@asynccontextmanager
async def to_loop_wakeups(
    handler: Callable[[Any], Any], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[Callable[[Any], object]]:
    queue: janus.Queue[None] = janus.Queue()
    items: deque[Any] = deque()
    put = queue.sync_q.put
    awake = False

    async def drain() -> None:
        nonlocal awake
        get = queue.async_q.get
        while True:
            await get()
            while True:
                while items:
                    await handler(items.popleft())
                awake = False
                if not items:
                    break
                awake = True

    def emit(payload: Any) -> None:
        nonlocal awake
        items.append(payload)
        if not awake:
            awake = True
            put(None)

    task = loop.create_task(drain())
    try:
        yield emit
    finally:
        task.cancel()
        await asyncio.wait([task])
        await queue.aclose()


@offers("janus per item", LIMIT, "one consumer thread; no topics, isolation, completion or context", share=0.5)
@asynccontextmanager
async def from_loop(handler: Callable[[Any], object]) -> AsyncIterator[Callable[[Any], object]]:
    queue: janus.Queue[Any] = janus.Queue()

    def drain() -> None:
        get = queue.sync_q.get
        while (item := get()) is not STOP:
            handler(item)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    put = queue.async_q.put_nowait
    try:
        yield put
    finally:
        put(STOP)
        await asyncio.to_thread(thread.join, 10)
        await queue.aclose()
