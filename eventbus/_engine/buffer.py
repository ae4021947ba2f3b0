"""The mailbox behind a stream: its deliveries are settled as soon as the buffer has them.

Owner: the bus's monitor.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from .._values.stats import Status
from .dispatcher import Executor
from .mailbox import ENDED, Mailbox
from .waits import LENIENT, Waiter, notify

if TYPE_CHECKING:
    from .._values.event import Event
    from .delivery import Delivery
    from .engine import Engine

__all__ = ["Filler", "StreamMailbox"]


class Filler(Executor):
    """Moves events into a stream's buffer, within the step that admits them: no thread is needed."""

    __slots__ = ()

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, 1)

    def push(self, box: Mailbox) -> None:
        assert isinstance(box, StreamMailbox)
        box.queued = False
        while (delivery := box.claim()) is not None:
            box.events.append(delivery.receipt._as_event())
            self.engine.complete(delivery, Status.DELIVERED, None, None, 0.0)
        notify(self.engine, box.readers)


class StreamMailbox(Mailbox):
    """Bounded by what its reader has not taken yet."""

    __slots__ = ("dropped", "events", "readers")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.events: deque[Event] = deque()
        self.readers: list[Waiter] = []
        self.dropped = 0  # events that the policy took out of the buffer again

    def attach(self, executor: Executor | None) -> None:
        super().attach(executor)
        self.plain = self.admits = self.flows = False

    def room(self, delivery: Delivery) -> bool:
        if self.options.overflow == "latest":
            return not self.events
        # A claim admits from the waiting line before the event that it claims is in the buffer.
        return self.limit is None or len(self.events) + self.held + len(self.running) < self.limit

    def oldest(self) -> Delivery | None:
        # What is to be dropped was settled when it came in; make room in the buffer instead.
        if self.events:
            self.engine.monitor.trash.append(self.events.popleft())
            self.dropped += 1
        return None

    def replace(self, delivery: Delivery) -> bool:
        while self.events:
            self.oldest()
        self.admit(delivery)
        return True

    def _overflow(self, delivery: Delivery) -> None:
        if self.options.overflow == "drop_oldest":
            self.oldest()
            self.admit(delivery)
        else:
            super()._overflow(delivery)

    def take(self) -> Event | None:
        """In a step: the next event, if there is one; whoever waits for space gets it."""
        if not self.events:
            return None
        event = self.events.popleft()
        if self.line:
            self.refill()
        return event

    def over(self) -> bool:
        """Whether nothing will come any more."""
        return self.state == ENDED and not self.events

    def reader(self) -> Waiter:
        """A wait for the next event or the end."""
        return Waiter(f"the next event of {self.name}", self._readable, self._enlist, LENIENT, list)

    def _readable(self) -> bool:
        return bool(self.events) or self.state == ENDED

    def _enlist(self, waiter: Waiter, begin: bool) -> None:
        if begin:
            self.readers.append(waiter)
        elif waiter in self.readers:
            self.readers.remove(waiter)

    def wake_readers(self) -> None:
        """In a step: the subscription has ended."""
        notify(self.engine, self.readers)

    def abandon(self) -> None:
        """Outside of steps, or in one that a finalizer interrupted: nobody can read any more, so keep nothing (G18)."""
        self.events = deque(maxlen=0)

    def renew(self) -> None:
        super().renew()
        self.events.clear()
        self.readers = []
