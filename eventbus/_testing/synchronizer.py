"""EventSynchronizer for threads: waits that block.

What both faces share stands in :class:`SynchronizerCore`: argument checks and the flows. No state of its own but the
recorder's mailbox, which the bus's monitor owns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._bus import core_of, default
from .._engine.flow import drive
from .._errors import OptionError, OptionTypeError, TopicError
from .._values.options import check_count, check_plain, check_timeout
from .._values.topic import Topic, check_pattern, matches
from .recorder import open_recorder
from .waits import Wait, awaited, unexpected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from .._bus import Default, EventBus
    from .._engine.flow import Flow
    from .._values.event import Event
    from .recorder import Entry

__all__ = ["EventSynchronizer", "RecordedEvents", "SynchronizerCore"]


class RecordedEvents(dict[str, Any]):
    """What ``wait_for_events`` gives: topic (as it was awaited) to payload, in the order of ``topics``.

    Attributes:
        events: The events themselves, in order of ``seq``.
    """

    events: tuple[Event, ...] = ()

    def __missing__(self, topic: object) -> Any:
        if isinstance(topic, Topic):
            return self[topic.name]  # pyright: ignore[reportUnknownMemberType]
        raise KeyError(topic)


class SynchronizerCore:
    """A recording, and the checks and flows of the waits on it, for both faces."""

    def __init__(
        self,
        bus: Any,
        timeout: float | None,
        grace_period_ms: float,
        grace_period: float | None,
        max_recorded: int,
    ) -> None:
        core = core_of(bus)
        self._timeout = check_timeout(timeout)
        self._grace = check_grace(grace_period_ms, grace_period)
        most = check_count(max_recorded, "max_recorded", 1)
        self._engine = core._engine
        self._subscription, self._box = open_recorder(self._engine, most)

    def _one(
        self, topic: Any, timeout: Any, condition: Any, count: Any, grace_period_ms: Any, grace_period: Any
    ) -> Flow[Any]:
        """The flow of ``wait_for_event``; arguments are checked here and now."""
        pattern = check_pattern(topic)
        check_plain("condition", condition)
        number = 1 if count is None else check_count(count, "count", 1)
        wait = Wait(self._box, (pattern,), condition, number)
        return _payloads(awaited(wait, self._limit(timeout), self._lingering(grace_period_ms, grace_period)), count)

    def _several(
        self, topics: Any, timeout: Any, in_order: Any, grace_period_ms: Any, grace_period: Any
    ) -> Flow[RecordedEvents]:
        """The flow of ``wait_for_events``; arguments are checked here and now."""
        patterns = check_distinct(topics)
        if not isinstance(in_order, bool):
            raise OptionTypeError(f"in_order must be True or False, not {in_order!r}")
        wait = Wait(self._box, patterns, in_order=in_order)
        flow = awaited(wait, self._limit(timeout), self._lingering(grace_period_ms, grace_period))
        return _mapping(flow, patterns)

    def _none(self, topic: Any, within: Any) -> Flow[None]:
        """The flow of ``expect_no_event``; arguments are checked here and now."""
        limit = self._timeout if within is default else check_timeout(within, "within")
        return unexpected(Wait(self._box, (check_pattern(topic),)), limit)

    def _limit(self, timeout: Any) -> float | None:
        return self._timeout if timeout is default else check_timeout(timeout)

    def _lingering(self, grace_period_ms: Any, grace_period: Any) -> float:
        if grace_period_ms is None and grace_period is None:
            return self._grace
        return check_grace(grace_period_ms, grace_period)

    def get_events(self, topic: str | Topic[Any] | None = None) -> list[Event]:
        """What was recorded so far, in order of ``seq``: of a topic or pattern, or all but the bus's own (``bus/…``).

        Events that have answered a wait are among them. Takes nothing.
        """
        pattern = check_pattern("**" if topic is None else topic)
        entries: list[Entry] = self._engine.look(lambda: list(self._box.entries))
        events = (entry.event for entry in entries)
        return sorted((event for event in events if matches(pattern, event.topic)), key=lambda event: event.seq)

    def _end(self) -> None:
        """Stop recording, forget all, end all waits. It may be repeated; callable from finalizers (G12)."""
        self._box.over = True  # before the end of what it listens by, which wakes the waits: they are to know why
        self._subscription.cancel()
        self._engine.look(self._box.clean)

    def __del__(self) -> None:
        # A forgotten synchronizer would keep events for ever.
        if hasattr(self, "_box"):
            self._end()

    def __repr__(self) -> str:
        state = "ended" if self._box.over else f"{len(self._box.entries)} recorded"
        return f"<{type(self).__name__} on {self._engine.name!r}: {state}>"


class EventSynchronizer(SynchronizerCore):
    """Waits for events in tests, without races. Blocks the thread; safe in any thread.

    It records from the moment it is made, so an event emitted before the wait is found as one emitted after it is;
    there is no gap between the two. Each recorded event answers one wait. It listens as an observer, so it stands on no
    receipt. A context manager: leaving it is :meth:`cleanup`.

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
        >>> from eventbus import EventBus, EventSynchronizer
        >>> with EventBus() as bus, EventSynchronizer(bus) as sync:
        ...     _ = bus.emit("greeting", {"text": "hello"})
        ...     sync.wait_for_event("greeting")["text"]
        'hello'
    """

    def __init__(
        self,
        bus: EventBus | Any,
        *,
        timeout: float | None = 5.0,
        grace_period_ms: float = 0,
        grace_period: float | None = None,
        max_recorded: int = 10_000,
    ) -> None:
        super().__init__(bus, timeout, grace_period_ms, grace_period, max_recorded)

    def wait_for_event(
        self,
        topic: str | Topic[Any],
        timeout: float | Default | None = default,
        condition: Callable[[Any], object] | None = None,
        count: int | None = None,
        *,
        grace_period_ms: float | None = None,
        grace_period: float | None = None,
    ) -> Any:
        """Wait for one event (or ``count``) of a topic or pattern, recorded already or still to come.

        Args:
            topic: The topic or pattern.
            timeout: Seconds; by default the synchronizer's.
            condition: Called with the payload; only events for which it is true count. Runs in this thread.
            count: So many events; the result is then a list.
            grace_period_ms: Instead of the synchronizer's.
            grace_period: The same in seconds.

        Returns:
            The payload as a handler would get it: a dict of a model, ``{}`` for none, else what was emitted.

        Raises:
            EventTimeoutError: Tells what was awaited, what came instead and when. Nothing was taken.
            BusClosedError: The synchronizer was cleaned up, or the bus closed.
            DeadlockError: It would block a running event loop's own thread.
        """
        return drive(self._one(topic, timeout, condition, count, grace_period_ms, grace_period))

    def wait_for_events(
        self,
        topics: Iterable[str | Topic[Any]],
        timeout: float | Default | None = default,
        in_order: bool = False,
        *,
        grace_period_ms: float | None = None,
        grace_period: float | None = None,
    ) -> RecordedEvents:
        """Wait for one event of each topic or pattern.

        Args:
            topics: The topics; none twice.
            timeout: Seconds for all of them; by default the synchronizer's.
            in_order: They must have been emitted in this order (by ``seq``), others between them allowed.
            grace_period_ms: Instead of the synchronizer's.
            grace_period: The same in seconds.

        Returns:
            Topic to payload, in the order of ``topics``; ``.events`` has the events in order of ``seq``.

        Raises:
            As :meth:`wait_for_event`; TopicError for a topic that is there twice.
        """
        return drive(self._several(topics, timeout, in_order, grace_period_ms, grace_period))

    def expect_no_event(self, topic: str | Topic[Any], within: float | Default | None = default) -> None:
        """Make sure that no event of a topic or pattern is recorded that has not answered a wait, nor comes in time.

        Args:
            topic: The topic or pattern.
            within: Seconds to watch, 0 looks once; by default the synchronizer's ``timeout``.

        Raises:
            UnexpectedEventError: One came; an AssertionError. It is not taken.
        """
        drive(self._none(topic, within))

    def cleanup(self) -> None:
        """Stop recording, forget what was recorded, and end waits in progress with BusClosedError. May be repeated."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cleanup()


def check_grace(milliseconds: Any, seconds: Any) -> float:
    """A grace period in seconds, given in either unit."""
    if seconds is not None and milliseconds:
        raise OptionError(
            f"grace_period_ms={milliseconds!r} and grace_period={seconds!r} say the same in two units; give one of them"
        )
    if seconds is not None:
        return _finite(check_timeout(seconds, "grace_period"), seconds, "grace_period")
    return _finite(check_timeout(milliseconds, "grace_period_ms"), milliseconds, "grace_period_ms") / 1000


def _finite(value: float | None, given: Any, name: str) -> float:
    if value is None:
        raise OptionError(f"{name} must be a finite number, not {given!r}")
    return value


def check_distinct(topics: Any) -> tuple[str, ...]:
    """The names of several topics; none may be there twice."""
    if isinstance(topics, (str, Topic)):
        topics = (topics,)
    try:
        names = [check_pattern(each) for each in topics]
    except TypeError:
        if hasattr(topics, "__iter__"):
            raise
        raise OptionTypeError(f"topics must be a list of topics, not {topics!r}") from None
    if not names:
        raise TopicError("at least one topic is needed to wait for")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise TopicError(f"{name!r} is there twice; for two of its events use wait_for_event({name!r}, count=2)")
    return tuple(names)


def _payloads(flow: Flow[list[tuple[Entry, Any]]], count: int | None) -> Flow[Any]:
    taken = yield from flow
    payloads = [payload for _, payload in taken]
    return payloads[0] if count is None else payloads


def _mapping(flow: Flow[list[tuple[Entry, Any]]], topics: tuple[str, ...]) -> Flow[RecordedEvents]:
    taken = yield from flow
    result = RecordedEvents(zip(topics, (payload for _, payload in taken), strict=True))
    result.events = tuple(sorted((entry.event for entry, _ in taken), key=lambda event: event.seq))
    return result
