"""How fast it could be at all: what is left when every promise is taken away."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from . import LIMIT, offers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@offers("bare loop", LIMIT, "everything")
@contextmanager
def inline(handlers: list[Callable[[Any], object]]) -> Iterator[Callable[[Any], object]]:
    def emit(payload: Any) -> None:
        for handler in handlers:
            handler(payload)

    yield emit


@offers("deque, wake-up when idle", LIMIT, "everything: one thread drains, woken when it sleeps")
@contextmanager
def threads(handlers: list[Callable[[Any], object]], workers: int | None = None) -> Iterator[Callable[[Any], object]]:
    items: deque[Any] = deque()
    wake = threading.Lock()
    wake.acquire()
    asleep = True
    over = False

    def emit(payload: Any) -> None:
        items.append(payload)
        if asleep:
            rouse()

    def rouse() -> None:
        try:
            wake.release()
        except RuntimeError:
            pass  # it was woken already

    def drain() -> None:
        nonlocal asleep
        while not over:
            wake.acquire()
            asleep = False
            while True:
                while items:
                    item = items.popleft()
                    for handler in handlers:
                        handler(item)
                asleep = True
                if not items:
                    break
                asleep = False

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield emit
    finally:
        over = True
        rouse()
        thread.join(10)


@offers("deque, one call_soon_threadsafe per wake-up", LIMIT, "everything: one callback drains")
@asynccontextmanager
async def to_loop(
    handler: Callable[[Any], Any], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[Callable[[Any], object]]:
    items: deque[Any] = deque()
    awake = False
    event = asyncio.Event()

    async def drain() -> None:
        nonlocal awake
        while True:
            await event.wait()
            event.clear()
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
            loop.call_soon_threadsafe(event.set)

    task = loop.create_task(drain())
    try:
        yield emit
    finally:
        task.cancel()
        await asyncio.wait([task])
