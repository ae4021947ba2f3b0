"""EventSynchronizer for asyncio: waits that are awaited. No state of its own; see the core's recorder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventbus.lowlevel import SynchronizerCore, default

from ._await import Acted
from ._flow import Once, face_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from eventbus import RecordedEvents, Topic

__all__ = ["EventSynchronizer"]


class EventSynchronizer(SynchronizerCore):
    """Waits for events in tests, without races. Each wait is awaited; safe in any loop.

    It records from the moment it is made, so an event emitted before the wait is found as one emitted after it is;
    there is no gap between the two. Each recorded event answers one wait. It listens as an observer, so it stands on no
    receipt. ``async with`` is :meth:`cleanup` at its end.

    Cancelling a wait ends it, and it has taken no event; a wait that was not awaited has taken none either. Its time
    runs from the call.

    Args:
        bus: The bus, of either face.
        timeout: Seconds that waits have unless they say otherwise; None waits without end.
        grace_period_ms: How long a satisfied wait lingers, in milliseconds, so that handlers of the awaited events can
            end; it ends early once their receipts are settled, and never late.
        grace_period: The same in seconds; give one of the two.
        max_recorded: How many events are kept; beyond it the oldest are forgotten.

    Raises:
        OptionError: A value that cannot be. (OptionTypeError for a wrong type.)
        BusClosedError: The bus is closed.

    Example:
        >>> import asyncio
        >>> from eventbus_async import AsyncEventBus, EventSynchronizer
        >>> async def main():
        ...     async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
        ...         await bus.emit("greeting", {"text": "hello"})
        ...         return await sync.wait_for_event("greeting")
        >>> asyncio.run(main())
        {'text': 'hello'}
    """

    def __init__(
        self,
        bus: Any,
        *,
        timeout: float | None = 5.0,
        grace_period_ms: float = 0,
        grace_period: float | None = None,
        max_recorded: int = 10_000,
    ) -> None:
        self._binding = face_of(bus)._binding
        super().__init__(bus, timeout, grace_period_ms, grace_period, max_recorded)

    def wait_for_event(
        self,
        topic: str | Topic[Any],
        timeout: Any = default,
        condition: Callable[[Any], object] | None = None,
        count: int | None = None,
        *,
        grace_period_ms: float | None = None,
        grace_period: float | None = None,
    ) -> Acted[Any]:
        """Wait for one event (or ``count``) of a topic or pattern, recorded already or still to come.

        Args:
            topic: The topic or pattern.
            timeout: Seconds; by default the synchronizer's.
            condition: Called with the payload; only events for which it is true count. Runs in the task that waits.
            count: So many events; the result is then a list.
            grace_period_ms: Instead of the synchronizer's.
            grace_period: The same in seconds.

        Returns:
            An awaitable for the payload as a handler would get it: a dict of a model, ``{}`` for none, else what was
            emitted.

        Raises:
            EventTimeoutError: When awaited: tells what was awaited, what came instead and when. Nothing was taken.
            BusClosedError: When awaited: the synchronizer was cleaned up, or the bus closed.
        """
        return Once(self._binding, self._one(topic, timeout, condition, count, grace_period_ms, grace_period))

    def wait_for_events(
        self,
        topics: Iterable[str | Topic[Any]],
        timeout: Any = default,
        in_order: bool = False,
        *,
        grace_period_ms: float | None = None,
        grace_period: float | None = None,
    ) -> Acted[RecordedEvents]:
        """Wait for one event of each topic or pattern.

        Args:
            topics: The topics; none twice.
            timeout: Seconds for all of them; by default the synchronizer's.
            in_order: They must have been emitted in this order (by ``seq``), others between them allowed.
            grace_period_ms: Instead of the synchronizer's.
            grace_period: The same in seconds.

        Returns:
            An awaitable: topic to payload, in the order of ``topics``; ``.events`` has the events in order of ``seq``.

        Raises:
            As :meth:`wait_for_event`; TopicError for a topic that is there twice.
        """
        return Once(self._binding, self._several(topics, timeout, in_order, grace_period_ms, grace_period))

    def expect_no_event(self, topic: str | Topic[Any], within: Any = default) -> Acted[None]:
        """Make sure that no event of a topic or pattern is recorded that has not answered a wait, nor comes in time.

        Args:
            topic: The topic or pattern.
            within: Seconds to watch, 0 looks once; by default the synchronizer's ``timeout``.

        Raises:
            UnexpectedEventError: When awaited: one came; an AssertionError. It is not taken.
        """
        return Once(self._binding, self._none(topic, within))

    def cleanup(self) -> Acted[None]:
        """Stop recording, now, forget what was recorded, and end waits with BusClosedError. May be repeated."""
        self._end()

        async def cleaned() -> None:
            pass

        return Acted(self._binding, cleaned)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cleanup()
