"""Asynchronous iteration over events.

No state of its own but a reference to the stream's mailbox, which the bus's monitor owns.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from eventbus import EventTimeoutError
from eventbus.lowlevel import check_timeout, primitives

from ._await import Acted, Block, Waiting

if TYPE_CHECKING:
    from typing import Self

    from eventbus import Event
    from eventbus.lowlevel import StreamMailbox

    from ._await import Ended
    from ._subscription import Subscription

__all__ = ["Stream"]

UNBROKEN = 64  # events that are given without a pass of the loop


class Stream(Block):
    """The events of a topic or pattern, in order, for ``async for``. Made by ``bus.stream()``; safe in any loop.

    It is subscribed from the call on, so nothing emitted afterwards is missed; ends when it is cancelled, left as a
    context manager, forgotten, or the bus closes. Several tasks may iterate: each event goes to one of them, and a task
    that is cancelled while it waits has taken none.
    """

    __slots__ = ("__weakref__", "_box", "_given", "_subscription")

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._box: StreamMailbox = subscription._box  # type: ignore[assignment]
        self._given = 0

    @property
    def subscription(self) -> Subscription:
        """The handle behind it."""
        return self._subscription

    @property
    def active(self) -> bool:
        """Whether events still come in."""
        return self._subscription.active

    @property
    def dropped(self) -> int:
        """How many events the overflow policy took out of the buffer again, unread."""
        return self._box.dropped

    def get(self, timeout: float | None = None) -> Acted[Event]:
        """The next event, when awaited.

        Args:
            timeout: Seconds to wait; None waits without end, 0 polls.

        Raises:
            EventTimeoutError: None came in time.
            StopAsyncIteration: The stream has ended.
        """
        limit = check_timeout(timeout)

        async def following() -> Event:
            event = await self._next(limit)
            if event is None:
                raise StopAsyncIteration
            return event

        return Acted(self._subscription._binding, following)

    async def _next(self, timeout: float | None) -> Event | None:
        box = self._box
        engine = box.engine
        self._subscription._binding.enter()
        deadline = None if timeout is None else primitives.monotonic() + timeout
        while True:
            if self._given >= UNBROKEN:
                self._given = 0
                await asyncio.sleep(0)
            # Taking comes last, without a wait behind it: a task that is cancelled has taken nothing.
            event = engine.look(box.take)
            if event is not None:
                self._given += 1
                return event
            if box.over():
                return None
            self._given = 0
            left = None if deadline is None else max(0.0, deadline - primitives.monotonic())
            if not await Waiting(engine, box.reader(), left):
                raise EventTimeoutError(f"no event of {box.name} ({', '.join(box.patterns)}) within {timeout:g} s")

    def cancel(self, wait: bool = False, timeout: float | None = None) -> Ended:
        """End the stream, now; what its buffer holds can still be read. The result may be awaited: whether it was this
        call that ended it."""
        return self._subscription.cancel(wait, timeout)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._next(None)
        if event is None:
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        # A forgotten stream would fill its buffer and then hold emitters up.
        subscription: Any = getattr(self, "_subscription", None)
        if subscription is not None:
            subscription.cancel()
            self._box.abandon()

    def __repr__(self) -> str:
        box = self._box
        state = "active" if self.active else "ended"
        return f"<{type(self).__name__} of {', '.join(box.patterns)}: {len(box.events)} to read, {state}>"
