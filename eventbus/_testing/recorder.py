"""The recording behind an EventSynchronizer, and the waits on it; both faces share all of it.

Guarantees
    * An event is recorded within the step by which its emit takes effect (G3), without a thread, so there is no gap
      between what came before a wait and what comes after it.
    * Each recorded event answers one wait: all that a wait needs is taken in one step, or nothing is. A wait that ends
      otherwise (time, cancellation, an error) leaves nothing taken.
    * It stands on no receipt (G21), survives ``remove_all_listeners``, and holds at most ``max_recorded`` events (G18).
    * Conditions and conversions are user code: they run outside of steps.

Owner: :class:`RecorderMailbox`, and of a :class:`Wait` the field ``fresh``: the bus's monitor. The rest of a wait
belongs to the thread or task that waits.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from .._engine import primitives
from .._engine.dispatcher import Executor
from .._engine.flow import Pause
from .._engine.mailbox import ENDED, Mailbox
from .._engine.subscription import Subscription
from .._engine.waits import LENIENT, Waiter, notify
from .._errors import BusClosedError, EventTimeoutError, UnexpectedEventError
from .._values.payload import to_plain
from .._values.stats import Status
from .._values.topic import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .._engine.delivery import Delivery
    from .._engine.engine import Engine
    from .._engine.flow import Flow
    from .._engine.receipt import Receipt
    from .._values.event import Event

__all__ = ["Entry", "Wait", "awaited", "open_recorder", "unexpected"]

SHOWN = 10  # events that the message of a time-out lists


class Entry:
    """One recorded event."""

    __slots__ = ("event", "receipt", "taken", "when")

    def __init__(self, receipt: Receipt) -> None:
        self.event: Event = receipt._as_event()
        # Its unsettled deliveries hold the receipt: once it is gone, they all are settled.
        self.receipt = weakref.ref(receipt)
        self.taken = False
        self.when = primitives.monotonic()


class RecorderMailbox(Mailbox):
    """Keeps what comes in, the newest ``max_recorded``, for waits to take."""

    __slots__ = ("entries", "lost", "most", "over", "readers", "waits")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.entries: deque[Entry] = deque()
        self.waits: list[Wait] = []
        self.readers: list[Waiter] = []
        self.most = 0
        self.lost = 0  # events that the bound has pushed out
        self.over = False  # cleaned up

    def attach(self, executor: Executor | None) -> None:
        super().attach(executor)
        self.plain = False

    def record(self, receipt: Receipt) -> None:
        """In a step: one more event."""
        entry = Entry(receipt)
        self.entries.append(entry)
        if len(self.entries) > self.most:
            self.engine.monitor.trash.append(self.entries.popleft())
            self.lost += 1
        self.offer_to_waits(entry)

    def offer_to_waits(self, entry: Entry) -> None:
        """In a step: an entry can be taken."""
        for wait in self.waits:
            if wait.slots(entry.event.topic):
                wait.fresh.append(entry)

    def claim_all(self, entries: Iterable[Entry]) -> bool:
        """In a step: take all of them, or none if another wait has taken one."""
        chosen = tuple(entries)
        if any(entry.taken for entry in chosen):
            return False
        for entry in chosen:
            entry.taken = True
        return True

    def give_back(self, entries: Iterable[Entry]) -> None:
        """In a step: a wait that had taken these was cancelled before it returned."""
        for entry in entries:
            entry.taken = False
            self.offer_to_waits(entry)
        notify(self.engine, self.readers)

    def clean(self) -> None:
        """In a step: forget everything and end all waits."""
        self.over = True
        self.engine.monitor.trash.append(self.entries)
        self.entries = deque()
        notify(self.engine, self.readers)

    def wake_readers(self) -> None:
        """In a step: nothing will come any more."""
        notify(self.engine, self.readers)

    def renew(self) -> None:
        super().renew()
        self.entries = deque()
        self.waits = []
        self.readers = []
        self.lost = 0


class Recording(Executor):
    """Records events within the step that admits them."""

    __slots__ = ()

    def push(self, box: Mailbox) -> None:
        assert isinstance(box, RecorderMailbox)
        box.queued = False
        while (delivery := box.claim()) is not None:
            self.keep(box, delivery)
        notify(self.engine, box.readers)

    def keep(self, box: RecorderMailbox, delivery: Delivery) -> None:
        """In a step: record one delivery's event and settle it."""
        box.record(delivery.receipt)
        self.engine.complete(delivery, Status.DELIVERED, None, None, 0.0)


def open_recorder(engine: Engine, most: int) -> tuple[Subscription, RecorderMailbox]:
    """Begin to record everything on a bus, its own events included."""
    patterns, spec, options = engine.prepare(
        ("**", "bus/**"),
        _recorder,
        {"observer": True, "max_pending": None, "overflow": "block", "name": "synchronizer"},
    )

    def make(box: Mailbox) -> Subscription:
        assert isinstance(box, RecorderMailbox)
        box.most = most  # before it is in effect
        return Subscription(box)

    subscription = engine.register(make, patterns, spec, options, Recording(engine, 1), raw=True, kind=RecorderMailbox)
    box = subscription._box
    assert isinstance(box, RecorderMailbox)
    box.closer = lambda: engine.look(box.wake_readers)
    return subscription, box


def _recorder(event: Any) -> None:
    """Stands for a recorder in lists of handlers; never called."""


class Wait:
    """One wait: what it looks for, what it has found so far."""

    __slots__ = (
        "begun",
        "box",
        "condition",
        "count",
        "failed",
        "found",
        "fresh",
        "in_order",
        "known",
        "opened",
        "topics",
    )

    def __init__(
        self,
        box: RecorderMailbox,
        topics: tuple[str, ...],
        condition: Callable[[Any], object] | None = None,
        count: int = 1,
        in_order: bool = False,
    ) -> None:
        self.box = box
        self.topics = topics
        self.condition = condition
        self.count = count
        self.in_order = in_order
        self.begun = primitives.monotonic()
        self.opened = False
        self.fresh: deque[Entry] = deque()  # to be looked at
        self.found: dict[int, tuple[Entry, Any]] = {}  # seq to entry and converted payload
        self.failed = 0  # events that did not meet the condition
        self.known: dict[str, tuple[int, ...]] = {}

    def slots(self, topic: str) -> tuple[int, ...]:
        """Which of the awaited topics and patterns an event of this topic can answer."""
        known = self.known.get(topic)
        if known is None:
            if len(self.known) >= 1024:
                self.known = {}
            known = tuple(index for index, wanted in enumerate(self.topics) if matches(wanted, topic))
            self.known[topic] = known
        return known

    def open(self) -> None:
        """In a step: from here on it is told of what comes; what was recorded before is there."""
        self.opened = True
        self.fresh = deque(self.box.entries)
        self.box.waits.append(self)

    def close(self) -> None:
        """In a step: it is told of nothing more."""
        if self in self.box.waits:
            self.box.waits.remove(self)
        self.fresh = deque()

    def attempt(self) -> list[tuple[Entry, Any]] | None:
        """Look at what is new; take and give what answers the wait, in order of ``topics`` (or of ``seq``), or None."""
        look = self.box.engine.look
        if not self.opened:
            look(self.open)
        while True:
            for entry in look(self._take_fresh):
                self._consider(entry)
            for seq in [seq for seq, (entry, _) in self.found.items() if entry.taken]:
                del self.found[seq]
            chosen = self._choose()
            if chosen is None:
                return None
            if look(self.box.claim_all, [entry for entry, _ in chosen]):
                return chosen

    def _take_fresh(self) -> deque[Entry]:
        fresh, self.fresh = self.fresh, deque()
        return fresh

    def _consider(self, entry: Entry) -> None:
        if entry.taken or not self.slots(entry.event.topic) or entry.event.seq in self.found:
            return
        payload = to_plain(entry.event.payload)
        if self.condition is None or self.condition(payload):
            self.found[entry.event.seq] = entry, payload
        else:
            self.failed += 1

    def _choose(self) -> list[tuple[Entry, Any]] | None:
        """Of what was found the earliest that answers the wait, each event for one topic."""
        if len(self.found) < max(self.count, len(self.topics)):
            return None
        ordered = sorted(self.found)
        if len(self.topics) == 1:
            return [self.found[seq] for seq in ordered[: self.count]]
        if self.in_order:
            chosen = self.sequence()
            return chosen if len(chosen) == len(self.topics) else None
        candidates: list[list[int]] = [[] for _ in self.topics]
        for seq in ordered:
            for slot in self.slots(self.found[seq][0].event.topic):
                candidates[slot].append(seq)
        answers = _assign(candidates)
        return None if answers is None else [self.found[seq] for seq in answers]

    def sequence(self) -> list[tuple[Entry, Any]]:
        """The longest beginning of ``topics`` that was found in this order, others between them allowed."""
        chosen: list[tuple[Entry, Any]] = []
        for seq in sorted(self.found):
            each = self.found[seq]
            if len(chosen) < len(self.topics) and len(chosen) in self.slots(each[0].event.topic):
                chosen.append(each)
        return chosen

    def text(self) -> str:
        """What is awaited, for messages."""
        named = " and ".join(repr(topic) for topic in self.topics)
        if len(self.topics) > 1 and self.in_order:
            named = " then ".join(repr(topic) for topic in self.topics)
        if self.count > 1:
            named = f"{self.count} of {named}"
        return f"{named} with a condition" if self.condition is not None else named

    def waiter(self) -> Waiter:
        """A wait for something to look at."""
        return Waiter(self.text(), self._worth_a_look, self._enlist, LENIENT, list)

    def _worth_a_look(self) -> bool:
        return bool(self.fresh) or self.box.over or self.box.state == ENDED

    def _enlist(self, waiter: Waiter, begin: bool) -> None:
        readers = self.box.readers
        if begin:
            readers.append(waiter)
        elif waiter in readers:
            readers.remove(waiter)


def _assign(candidates: list[list[int]]) -> list[int] | None:
    """One candidate for each, no two the same, or None if that cannot be: augmenting paths.

    Patterns may overlap: the event that the first of them would take may be the only one that the second can have.
    """
    holder: dict[int, int] = {}  # candidate -> who has it
    for start in range(len(candidates)):
        came_from: dict[int, tuple[int, int | None]] = {}  # candidate -> who wants it, and what he has to give up
        agenda: list[tuple[int, int | None]] = [(start, None)]
        free: int | None = None
        for who, has in agenda:
            for candidate in candidates[who]:
                if candidate not in came_from:
                    came_from[candidate] = who, has
                    if candidate not in holder:
                        free = candidate
                        break
                    agenda.append((holder[candidate], candidate))
            if free is not None:
                break
        if free is None:
            return None
        step: int | None = free
        while step is not None:
            who, given_up = came_from[step]
            holder[step] = who
            step = given_up
    answers = {who: candidate for candidate, who in holder.items()}
    return [answers[who] for who in range(len(candidates))]


def awaited(wait: Wait, timeout: float | None, grace: float | None) -> Flow[list[tuple[Entry, Any]]]:
    """The flow of a wait: what it took, or EventTimeoutError. Taken for good only when it returns."""
    engine = wait.box.engine
    deadline = None if timeout is None else wait.begun + timeout
    taken: list[tuple[Entry, Any]] | None = None
    try:
        while True:
            _refuse_if_cleaned(wait)
            taken = wait.attempt()
            if taken is not None:
                break
            _refuse_if_closed(wait)
            left = None if deadline is None else max(0.0, deadline - primitives.monotonic())
            if left == 0:
                raise EventTimeoutError(_overdue(wait, timeout or 0.0))
            yield Pause(engine, wait.waiter(), left)
        if grace:
            receipts = [receipt for entry, _ in taken if (receipt := entry.receipt()) is not None]
            yield Pause(engine, _settled(receipts), grace)
        result, taken = taken, None
        return result
    finally:
        if taken is not None:
            engine.look(wait.box.give_back, [entry for entry, _ in taken])
        engine.look(wait.close)


def unexpected(wait: Wait, within: float | None) -> Flow[None]:
    """The flow of a wait that nothing may answer. Raises UnexpectedEventError. It takes nothing."""
    engine = wait.box.engine
    deadline = None if within is None else wait.begun + within
    try:
        while True:
            _refuse_if_cleaned(wait)
            taken = wait.attempt()
            if taken is not None:
                engine.look(wait.box.give_back, [entry for entry, _ in taken])
                entry = taken[0][0]
                raise UnexpectedEventError(
                    f"no event of {wait.text()} was expected, but {entry.event!r} came {_when(entry, wait)}"
                )
            _refuse_if_cleaned(wait)
            if wait.box.state == ENDED:
                return  # the bus is closed: nothing can come
            left = None if deadline is None else max(0.0, deadline - primitives.monotonic())
            if left == 0:
                return
            yield Pause(engine, wait.waiter(), left)
    finally:
        engine.look(wait.close)


def _refuse_if_cleaned(wait: Wait) -> None:
    if wait.box.over:
        raise BusClosedError(f"the synchronizer was cleaned up; make a new one to wait for {wait.text()}")


def _refuse_if_closed(wait: Wait) -> None:
    _refuse_if_cleaned(wait)
    if wait.box.state == ENDED:
        raise BusClosedError(f"the bus {wait.box.engine.name!r} was closed before {wait.text()} came; {_instead(wait)}")


def _settled(receipts: list[Receipt]) -> Waiter:
    def enlist(waiter: Waiter, begin: bool) -> None:
        for receipt in receipts:
            if begin or not receipt.done:
                receipt._enlist(waiter, begin)

    return Waiter(
        "the handlers of awaited events", lambda: all(receipt.done for receipt in receipts), enlist, LENIENT, list
    )


def _overdue(wait: Wait, timeout: float) -> str:
    return f"after {timeout:g} s there was no {wait.text()}; {_instead(wait)}"


def _instead(wait: Wait) -> str:
    """What came instead, and when."""
    entries: list[Entry] = wait.box.engine.look(lambda: list(wait.box.entries))
    parts: list[str] = []
    if wait.in_order and len(wait.topics) > 1:
        reached = [repr(entry.event.topic) for entry, _ in wait.sequence()]
        parts.append(f"of the sequence came {', '.join(reached) or 'nothing'}")
    elif len(wait.topics) > 1:
        met = {slot for entry, _ in wait.found.values() for slot in wait.slots(entry.event.topic)}
        missing = [repr(topic) for slot, topic in enumerate(wait.topics) if slot not in met]
        parts.append(f"missing is {', '.join(missing) or 'one event for each topic'}")
    elif wait.count > 1:
        parts.append(f"{len(wait.found)} came")
    if wait.failed:
        parts.append(f"{wait.failed} did not meet the condition")
    if entries:
        shown = ", ".join(
            f"{entry.event.topic!r} {_when(entry, wait)}{' (taken by another wait)' if entry.taken else ''}"
            for entry in entries[-SHOWN:]
        )
        more = f" (and {len(entries) - SHOWN} earlier ones)" if len(entries) > SHOWN else ""
        parts.append(f"recorded were {shown}{more}")
    else:
        parts.append("nothing was recorded")
    if wait.box.lost:
        parts.append(
            f"the recording overflowed: the {wait.box.lost} oldest events are forgotten, raise"
            f" max_recorded={wait.box.most}"
        )
    return "; ".join(parts)


def _when(entry: Entry, wait: Wait) -> str:
    after = entry.when - wait.begun
    return f"{after:.3f} s into the wait" if after >= 0 else f"{-after:.3f} s before the wait"
