"""Blocking iteration over events.

No state of its own but a reference to the stream's mailbox, which the bus's monitor owns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._engine import primitives
from ._engine.waits import sleep
from ._errors import DeadlockError, EventTimeoutError
from ._values.options import check_timeout

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ._engine.buffer import StreamMailbox
    from ._engine.subscription import Subscription
    from ._values.event import Event

__all__ = ["Stream"]


class Stream:
    """The events of a topic or pattern, in order, for a ``for`` loop. Made by ``bus.stream()``; safe in any thread.

    It is subscribed from the call on, so nothing emitted afterwards is missed; ends when it is cancelled, left as a
    context manager, forgotten, or the bus closes. Several threads may iterate: each event goes to one of them.

    Example:
        >>> from eventbus import EventBus
        >>> with EventBus() as bus, bus.stream("numbers") as numbers:
        ...     for n in range(3):
        ...         _ = bus.emit("numbers", n)
        ...     [next(numbers).payload for _ in range(3)]
        [0, 1, 2]
    """

    __slots__ = ("__weakref__", "_box", "_subscription")

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._box: StreamMailbox = subscription._box  # type: ignore[assignment]

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

    def get(self, timeout: float | None = None) -> Event:
        """The next event.

        Args:
            timeout: Seconds to wait; None waits without end, 0 polls.

        Raises:
            EventTimeoutError: None came in time.
            StopIteration: The stream has ended.
            DeadlockError: It would block an event loop's own thread.
        """
        timeout = check_timeout(timeout)
        box = self._box
        engine = box.engine
        deadline = None if timeout is None else primitives.monotonic() + timeout
        while True:
            event = engine.look(box.take)
            if event is not None:
                return event
            if box.over():
                raise StopIteration
            if primitives.running_loop() is not None and timeout != 0:
                raise DeadlockError(
                    f"reading the stream {box.name} would block the event loop that runs in this thread;"
                    " use `async for` on the stream of an AsyncEventBus instead"
                )
            left = None if deadline is None else max(0.0, deadline - primitives.monotonic())
            if not sleep(engine, box.reader(), left, insist=False):
                raise EventTimeoutError(f"no event of {box.name} ({', '.join(box.patterns)}) within {timeout:g} s")

    def cancel(self, wait: bool = False, timeout: float | None = None) -> bool:
        """End the stream; what its buffer holds can still be read. Tells whether it was this call that ended it."""
        return self._subscription.cancel(wait, timeout)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        return self.get()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # A forgotten stream would fill its buffer and then hold emitters up.
        self._subscription.cancel()
        self._box.abandon()

    def __repr__(self) -> str:
        box = self._box
        state = "active" if self.active else "ended"
        return f"<{type(self).__name__} of {', '.join(box.patterns)}: {len(box.events)} to read, {state}>"
