"""This project's facade for event loops, with its defaults."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus_async import AsyncEventBus

from . import OURS, offers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable

TOPIC = "orders/created"


@offers("eventbus", OURS)
@asynccontextmanager
async def to_loop(
    handler: Callable[[Any], Awaitable[object]], loop: asyncio.AbstractEventLoop
) -> AsyncIterator[Callable[[Any], object]]:
    async with AsyncEventBus() as bus:
        bus.on(TOPIC, handler)
        yield partial(bus.emit, TOPIC)


@offers("eventbus", OURS)
@asynccontextmanager
async def from_loop(handler: Callable[[Any], object]) -> AsyncIterator[Callable[[Any], object]]:
    async with AsyncEventBus() as bus:
        bus.on(TOPIC, handler)
        yield partial(bus.emit, TOPIC)


@offers("eventbus", OURS)
@asynccontextmanager
async def on_loop(handler: Callable[[Any], Awaitable[object]]) -> AsyncIterator[Callable[[Any], Awaitable[object]]]:
    async with AsyncEventBus() as bus:
        bus.on(TOPIC, handler)
        yield partial(bus.emit, TOPIC)
