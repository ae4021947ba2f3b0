"""One body for both faces: a face makes the tools, and calls what blocks (threads) or has to be awaited (asyncio)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kit import BOUND

import eventbus
import eventbus_async
from eventbus import EventBus

__all__ = ["Face", "made_face"]


class Face:
    """The core's or the facade's classes, over one core bus."""

    def __init__(self, name: str, core: EventBus, loop: asyncio.AbstractEventLoop | None) -> None:
        self.name = name
        self.core = core
        self.loop = loop
        package: Any = eventbus if loop is None else eventbus_async
        self.BaseService: Any = package.BaseService
        self.ServiceGroup: Any = package.ServiceGroup
        self.EventSynchronizer: Any = package.EventSynchronizer
        self.bus: Any = core if loop is None else eventbus_async.AsyncEventBus(core)

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call it, on the loop if there is one, and wait for the end of what it returns."""
        if self.loop is None:
            return function(*args, **options)

        async def call() -> Any:
            answer = function(*args, **options)
            return await answer if isinstance(answer, Awaitable) else answer

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(BOUND)


@contextmanager
def made_face(name: str, core: EventBus) -> Iterator[Face]:
    """A face; the facade's has a loop that runs in a thread of its own."""
    if name == "threads":
        yield Face(name, core, None)
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="face-loop", daemon=True)
    thread.start()
    try:
        yield Face(name, core, loop)
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(BOUND)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(BOUND)
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
