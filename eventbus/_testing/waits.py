"""Waits for recorded events; both faces share them, as flows.

Guarantees
    * What a wait needs it takes in one step, at its end; one that ends otherwise (time, cancellation, an error) leaves
      nothing taken.
    * Conditions and conversions are user code: they run outside of steps.

Owner: a wait's ``fresh`` and ``opened``: the bus's monitor; the rest of it: the thread or task that waits.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from .._engine import primitives
from .._engine.flow import Pause
from .._engine.mailbox import ENDED
from .._engine.waits import LENIENT, Waiter
from .._errors import BusClosedError, EventTimeoutError, UnexpectedEventError
from .._values.payload import to_plain
from .._values.topic import matches

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._engine.flow import Flow
    from .._engine.receipt import Receipt
    from .recorder import Entry, RecorderMailbox

__all__ = ["Wait", "awaited", "unexpected"]

SHOWN = 10  # events that the message of a time-out lists


class Wait:
    """One wait: what it looks for, what it has found so far."""

    __slots__ = (
        "begun",
        "box",
        "condition",
        "count",
        "deadline",
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
        self.deadline = float("inf")  # what comes later does not count, however long a look takes
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

    def limit(self, seconds: float | None) -> None:
        """At the first look, which may come late where it is awaited: what stands in the recording by then counts."""
        if seconds is not None:
            self.deadline = max(self.begun + seconds, primitives.monotonic())

    def left(self) -> float | None:
        """The seconds until its deadline, if it has one."""
        return None if self.deadline == float("inf") else max(0.0, self.deadline - primitives.monotonic())

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

    def attempt(self, take: bool = True) -> list[tuple[Entry, Any]] | None:
        """Look at what is new; give what answers the wait, in order of ``topics`` (or of ``seq``), or None.

        What it gives is taken, unless the wait only wants to know.
        """
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
            if look(self.box.claim_all, [entry for entry, _ in chosen], take):
                return chosen

    def _take_fresh(self) -> deque[Entry]:
        fresh, self.fresh = self.fresh, deque()
        return fresh

    def _consider(self, entry: Entry) -> None:
        if entry.taken or not self.slots(entry.event.topic) or entry.event.seq in self.found:
            return
        if entry.when > self.deadline:
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
    wait.limit(timeout)
    taken: list[tuple[Entry, Any]] | None = None
    try:
        while True:
            _refuse_if_cleaned(wait)
            # Before the look, so that it finds all that came until then, however long a condition takes.
            closed, over = wait.box.state == ENDED, wait.left() == 0
            taken = wait.attempt()
            if taken is not None:
                break
            _refuse_if_cleaned(wait)
            if closed:
                raise _closed(wait)
            if over:
                raise EventTimeoutError(_overdue(wait, timeout or 0.0))
            yield Pause(engine, wait.waiter(), wait.left())
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
    wait.limit(within)
    try:
        while True:
            _refuse_if_cleaned(wait)
            # The bus is closed, so that nothing can come, or the time is up; before the look, as above.
            over = wait.box.state == ENDED or wait.left() == 0
            found = wait.attempt(take=False)
            if found is not None:
                entry = found[0][0]
                raise UnexpectedEventError(
                    f"no event of {wait.text()} was expected, but {entry.event!r} came {_when(entry, wait)}"
                )
            _refuse_if_cleaned(wait)
            if over:
                return
            yield Pause(engine, wait.waiter(), wait.left())
    finally:
        engine.look(wait.close)


def _refuse_if_cleaned(wait: Wait) -> None:
    if wait.box.over:
        raise BusClosedError(f"the synchronizer was cleaned up; make a new one to wait for {wait.text()}")


def _closed(wait: Wait) -> BusClosedError:
    return BusClosedError(f"the bus {wait.box.engine.name!r} was closed before {wait.text()} came; {_instead(wait)}")


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
