"""The asyncio part: services on a loop that aggregate readings and watch limits.

Owner: all their state is touched on their loop alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventbus import Event  # at run time: the bus reads the handlers' annotations
from eventbus_async import BaseService

from .events import ALARM, CPU, DIGEST, MEMORY, SPACE, UNAVAILABLE, Alarm, Digest, Reading, Unavailable

if TYPE_CHECKING:
    from eventbus_async import AsyncEventBus

__all__ = ["Aggregator", "Board", "Thresholds"]

READINGS = "machine/*"


class Counting(BaseService):
    """A service that counts what it emits, so that the summary can compare it with what the bus counted."""

    def __init__(self, bus: AsyncEventBus) -> None:
        super().__init__(event_bus=bus)
        self.emitted: dict[str, int] = {}

    async def tell(self, topic: Any, payload: Any) -> None:
        """Emit, and count it."""
        self.event_bus.emit(topic, payload)  # accepted at the call: there is no need to await it
        self.emitted[topic.name] = self.emitted.get(topic.name, 0) + 1


class Aggregator(Counting):
    """Makes a digest of every ``window`` readings of a topic."""

    def __init__(self, bus: AsyncEventBus, window: int = 10) -> None:
        super().__init__(bus)
        self._window = window
        self._values: dict[str, list[float]] = {}

    async def _start(self) -> None:
        await self.subscribe(READINGS, self._gather)

    async def _gather(self, event: Event) -> None:
        values = self._values.setdefault(event.topic, [])
        values.append(event.payload.value())
        if len(values) == self._window:
            mean = sum(values) / len(values)
            digest = Digest(topic=event.topic, count=len(values), low=min(values), mean=mean, high=max(values))
            values.clear()
            await self.tell(DIGEST, digest)


class Thresholds(Counting):
    """Raises an alarm when a figure goes over its limit, and takes it back once it is 5 % of the limit below it."""

    def __init__(self, bus: AsyncEventBus, limits: dict[str, float]) -> None:
        super().__init__(bus)
        self._limits = limits
        self._raised: set[str] = set()

    async def _start(self) -> None:
        await self.subscribe([CPU, MEMORY, SPACE], self._watch)

    async def _watch(self, event: Event) -> None:
        figure = event.topic.rpartition("/")[2]
        limit = self._limits.get(figure)
        if limit is None:
            return
        value = event.payload.value()
        if figure not in self._raised and value > limit:
            self._raised.add(figure)
        elif figure in self._raised and value < 0.95 * limit:
            self._raised.discard(figure)
        else:
            return
        await self.tell(ALARM, Alarm(figure=figure, value=value, limit=limit, raised=figure in self._raised))


class Board(Counting):
    """Remembers what the table shows: the newest readings, their digests, the last alarms, what is not to be had."""

    def __init__(self, bus: AsyncEventBus) -> None:
        super().__init__(bus)
        self.latest: dict[str, Reading] = {}
        self.digests: dict[str, Digest] = {}
        self.alarms: list[Alarm] = []
        self.unavailable: dict[str, str] = {}

    async def _start(self) -> None:
        await self.subscribe(READINGS, self._note)
        await self.subscribe(DIGEST, self._note_digest)
        await self.subscribe(ALARM, self._note_alarm)
        await self.subscribe(UNAVAILABLE, self._note_unavailable)

    async def _note(self, event: Event) -> None:
        self.latest[event.topic] = event.payload

    async def _note_digest(self, digest: Digest) -> None:
        self.digests[digest.topic] = digest

    async def _note_alarm(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)

    async def _note_unavailable(self, missing: Unavailable) -> None:
        self.unavailable[missing.figure] = missing.reason
