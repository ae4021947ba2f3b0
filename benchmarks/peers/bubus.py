"""bubus: an event bus on one loop, with pydantic events and a history."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from bubus import BaseEvent, EventBus

from . import PEER, offers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

logging.getLogger("bubus").setLevel(logging.ERROR)


class Created(BaseEvent[None]):
    """The event of the benchmark."""

    number: int


@offers("bubus", PEER, "one loop and its thread only; no threads, mailboxes, back-pressure or patterns", share=0.02)
@asynccontextmanager
async def on_loop(handler: Callable[[Any], Awaitable[object]]) -> AsyncIterator[Callable[[Any], Awaitable[object]]]:
    bus = EventBus()

    async def handle(event: Created) -> None:
        await handler(event.number)

    bus.on(Created, handle)

    async def emit(payload: int) -> None:
        await bus.dispatch(Created(number=payload))

    try:
        yield emit
    finally:
        await bus.stop()
