"""What was done to a bus, and the checker of it, in memory that does not grow.

Each emit travels with its own record as the payload; handlers note their calls on it. A counter gives every begin and
end its place in one order. The judge drains the bus (a drain's own promise, G10), looks at every emit that had returned
before, and forgets it. It knows the contract and not the engine: exactly once (G3), order, lanes, keys and no overlap
(G4, G20), the barriers of registration and removal (G1, G2), receipts that settle once and rightly (G6), causation
(G19), counts that add up.

Owner: ``_lock`` guards the list of subscriptions and what several threads set of one; an emit's record is its emitter's
until it has returned, but for ``calls``, which handlers append to.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from eventbus import EventTimeoutError, NoHandlerError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventbus import Event

__all__ = ["FIGURES", "PATIENCE", "Emit", "History", "Sub"]

ENDLESS = 1 << 60
PATIENCE = 60.0  # seconds after which a wait that must end counts as one that never does

# What must be zero.
FIGURES = {
    "lost": "deliveries that were due and did not happen, or are told of as done and were not",
    "doubled": "deliveries that happened twice",
    "unexpected": "deliveries to whom the event was not meant for, or that are told of as not done and were",
    "reordered": "calls in another order than that of the emits",
    "overlapped": "calls at once where one at a time is promised",
    "late": "calls of what had been removed",
    "unsettled": "deliveries that a drain left unsettled",
    "wrong": "outcomes with another's value, events with another's cause",
    "miscounted": "statistics that do not add up, or say something else than the receipts",
    "stalled": f"waits that must end and had not after {PATIENCE:g} s",
    "errors": "exceptions that nobody asked for, complaints of asyncio, errors in finalizers",
    "leaked": "threads, tasks, handles and payloads that were left at the end",
}


class Emit:
    """One emit: when it began and returned, what it gave, and who was called."""

    __slots__ = ("begin", "calls", "depth", "end", "key", "number", "parent", "receipt", "refused", "topic")

    def __init__(self, number: int, topic: str, key: str, cause: Event | None) -> None:
        self.number = number
        self.topic = topic
        self.key = key
        self.parent = None if cause is None else cause.id
        self.depth = 0 if cause is None else cause.depth + 1
        self.begin = 0
        self.end = ENDLESS
        self.receipt: Any = None  # stays None of a request, which keeps its own
        self.refused = False
        self.calls: list[str] = []


class Line:
    """Calls of which one runs at a time, in the order of the emits."""

    __slots__ = ("inside", "latest")

    def __init__(self) -> None:
        self.inside: Sub | None = None  # whose call runs
        self.latest = 0  # the latest begin of an emit whose call has begun


class Sub:
    """One subscription: whom it must reach from when to when, and what it promised."""

    __slots__ = (
        "after",
        "apart",
        "begin",
        "cancel_begin",
        "cancel_end",
        "cut",
        "end",
        "facade",
        "gone",
        "handle",
        "keys",
        "lines",
        "may_cancel_calls",
        "name",
        "options",
        "quiet",
        "serial",
        "stream",
        "topics",
    )

    def __init__(self, name: str, topics: frozenset[str], options: dict[str, Any], lane: Line | None) -> None:
        self.name = name
        self.options = options
        self.topics = topics
        self.begin = self.end = self.cancel_begin = self.cancel_end = ENDLESS
        self.cut = self.quiet = self.facade = self.stream = self.may_cancel_calls = self.gone = False
        self.after = 0
        self.handle: Any = None
        self.apart = bool(options.get("observer")) or topics == {"ask"}  # stands on no receipt that we have
        ordered = options.get("concurrency", 1) == 1 and not options.get("inline")
        self.serial = ordered
        self.lines: tuple[Line, ...] = (*([Line()] if ordered else []), *([lane] if lane is not None else []))
        self.keys: dict[str, Line] | None = {} if options.get("key") is not None else None


class History:
    """All of it. Safe in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clock = itertools.count(1)
        self._numbers = itertools.count(1)
        self._names = itertools.count(1)
        self.open: deque[Emit] = deque()
        self.subs: dict[str, Sub] = {}
        self.by_topic: dict[str, dict[str, Sub]] = {}
        self.lanes: dict[str, Line] = {}
        self.found: Counter[str] = Counter()
        self.remarks: list[str] = []
        self.told: Counter[str] = Counter()  # outcomes of the receipts
        self.apart = 0  # deliveries that stand on no receipt that we have
        self.events = 0
        self.heard: Counter[str] = Counter()  # what on_error was told of, by where it came from

    def now(self) -> int:
        return next(self._clock)

    def flag(self, figure: str, remark: str, times: int = 1) -> None:
        """A promise was broken."""
        with self._lock:
            self.found[figure] += times
            if len(self.remarks) < 40:
                self.remarks.append(f"{figure}: {remark}")

    def hear(self, problem: Any) -> None:
        """For ``on_error``."""
        with self._lock:
            self.heard[problem.where] += 1

    # What is done

    def emit(self, bus: Any, topic: str, key: str, cause: Event | None = None, **arguments: Any) -> Emit:
        """Emit on a bus of either face."""
        emit = self.begin_emit(topic, key, cause)
        try:
            emit.receipt = bus.emit(topic, emit, **arguments)
        except NoHandlerError:
            emit.refused = True
        finally:
            emit.end = self.now()
        return emit

    def begin_emit(self, topic: str, key: str, cause: Event | None = None) -> Emit:
        emit = Emit(next(self._numbers), topic, key, cause)
        self.open.append(emit)  # before it begins: until then nothing of its time is forgotten
        emit.begin = self.now()
        return emit

    def expect(self, topics: Iterable[str], options: dict[str, Any]) -> Sub:
        """A subscription that is about to be made; ``sub.name`` must be its name."""
        name = options.get("lane")
        with self._lock:
            lane = None if name is None else self.lanes.setdefault(name, Line())
            sub = Sub(f"soak-{next(self._names)}", frozenset(topics), options, lane)
            self.subs[sub.name] = sub
            for topic in sub.topics:
                # Copied, because the judge iterates over it.
                self.by_topic[topic] = {**self.by_topic.get(topic, {}), sub.name: sub}
        sub.begin = self.now()
        return sub

    def made(self, sub: Sub, handle: Any) -> None:
        sub.handle = handle
        sub.end = self.now()

    def leave(self, sub: Sub) -> None:
        """It is about to end."""
        with self._lock:
            sub.cancel_begin = min(sub.cancel_begin, self.now())

    def left(self, sub: Sub, cut: bool = False, quiet: bool = False) -> None:
        """It has ended: no more is claimed (``cut``), no more runs (``quiet``)."""
        with self._lock:
            sub.cancel_end = min(sub.cancel_end, self.now())
            sub.cut |= cut
            sub.quiet |= quiet

    def cancel(self, sub: Sub, wait: bool = False, drain: bool = False) -> None:
        """Cancel it from a thread, outside of its handler; one of the facade's is not waited for."""
        wait = (wait or drain) and not sub.facade
        drain = drain and wait
        self.leave(sub)
        try:
            if wait:
                sub.handle.cancel(wait=True, drain=drain, timeout=PATIENCE)
            else:
                sub.handle.cancel()
        except EventTimeoutError as error:
            self.flag("stalled", str(error))
            return
        self.left(sub, cut=not drain, quiet=wait)

    # What handlers see

    def begin(self, sub: Sub, emit: Emit, event: Event | None) -> None:
        """A call begins."""
        emit.calls.append(sub.name)
        if sub.quiet:
            self.flag("late", f"{sub.name} was called after cancel(wait=True) had returned (G2)")
        elif sub.cut and sub.serial:
            sub.after += 1
            if sub.after > 1:  # one may have been claimed before
                self.flag("late", f"{sub.name} was claimed after cancel() had returned (G2)")
        if event is not None and (event.depth != emit.depth or event.parent_id != emit.parent):
            self.flag("wrong", f"{sub.name}: event {emit.number} has depth {event.depth}, parent {event.parent_id}")
        for line in self._lines(sub, emit):
            if line.inside is not None and not line.inside.gone:
                what = f"{sub.name} {sub.options}: a call for emit {emit.number} while {line.inside.name} ran"
                self.flag("overlapped", f"{what} (G4, G20)")
            line.inside = sub
            if emit.end < line.latest:
                self.flag(
                    "reordered", f"{sub.name} {sub.options}: emit {emit.number} came after one that began later (G4)"
                )
            line.latest = max(line.latest, emit.begin)

    def end(self, sub: Sub, emit: Emit) -> None:
        """A call ends."""
        for line in self._lines(sub, emit):
            line.inside = None
        if sub.quiet:
            self.flag("late", f"{sub.name} still ran after cancel(wait=True) had returned (G2)")

    def _lines(self, sub: Sub, emit: Emit) -> tuple[Line, ...]:
        if sub.keys is None:
            return sub.lines
        return (*sub.lines, sub.keys.setdefault(emit.key, Line()))

    # The judge

    def judge(self, bus: Any) -> None:
        """Drain, and judge and forget what was emitted before. One thread at a time."""
        count = len(self.open)
        batch = [self.open.popleft() for _ in range(count)]
        ready = [emit for emit in batch if emit.end != ENDLESS]
        self.open.extendleft(reversed([emit for emit in batch if emit.end == ENDLESS]))
        ended = [sub for sub in tuple(self.subs.values()) if sub.cancel_end != ENDLESS]
        try:
            bus.drain(PATIENCE)
        except EventTimeoutError as error:
            self.flag("stalled", str(error))
        for emit in ready:
            self._judge(emit)
        self.events += sum(not emit.refused for emit in ready)
        self.judge_sums(bus)
        oldest = min((emit.begin for emit in tuple(self.open)), default=ENDLESS)
        for sub in ended:
            if sub.cancel_end < oldest:
                self._forget(sub)

    def _forget(self, sub: Sub) -> None:
        if sub.apart:
            self.apart += sub.handle.stats().deliveries
        with self._lock:
            del self.subs[sub.name]
            for topic in sub.topics:
                self.by_topic[topic] = {name: each for name, each in self.by_topic[topic].items() if name != sub.name}

    def _judge(self, emit: Emit) -> None:
        calls = Counter(emit.calls)
        text = f"emit {emit.number} of {emit.topic}"
        for name, times in calls.items():
            if times > 1:
                self.flag("doubled", f"{text}: {name} was called {times} times", times - 1)
        if emit.refused:
            if calls:
                self.flag("unexpected", f"{text} was refused, and reached {sorted(calls)}")
            return
        reached: Counter[str] = Counter()
        receipt = emit.receipt
        if receipt is not None:
            outcomes = receipt.outcomes
            if not receipt.done:
                self.flag("unsettled", f"{text}: {receipt!r}", max(1, receipt.deliveries - len(outcomes)))
            for outcome in outcomes:
                reached[outcome.name] += 1
                self.told[str(outcome.status)] += 1
                self._judge_outcome(emit, outcome, calls, text)
            for name, times in reached.items():
                if times > 1:
                    self.flag("doubled", f"{text}: {times} deliveries to {name}", times - 1)
        for name in calls:
            sub = self.subs.get(name)
            if name not in reached and not (sub is not None and sub.apart and self._in_time(emit, sub)):
                self.flag("unexpected", f"{text}: {name} was called, and it is not on the receipt")
        for name, sub in self.by_topic.get(emit.topic, {}).items():
            if name in reached or name in calls or not (sub.end < emit.begin and emit.end < sub.cancel_begin):
                continue
            # What stands on no receipt may have been cancelled before its call.
            if not sub.apart or sub.cancel_begin == ENDLESS:
                self.flag("lost", f"{text} did not reach {name} (G1, G3)")

    @staticmethod
    def _in_time(emit: Emit, sub: Sub) -> bool:
        return emit.topic in sub.topics and sub.begin < emit.end and emit.begin < sub.cancel_end

    def _judge_outcome(self, emit: Emit, outcome: Any, calls: Counter[str], text: str) -> None:
        name, status = outcome.name, str(outcome.status)
        sub = self.subs.get(name)
        if sub is None or not self._in_time(emit, sub):
            self.flag("unexpected", f"{text} reached {name} out of its time (G2, G3)")
            return
        called = name in calls
        what = f"{text}: {name} was {'' if called else 'not '}called, and the outcome is {status}"
        if sub.stream:
            if called:
                self.flag("unexpected", what)
        elif status in ("delivered", "failed"):
            if not called:
                self.flag("lost", what)
            elif status == "delivered" and outcome.value != emit.number:
                self.flag("wrong", f"{what}, with the value {outcome.value!r}")
        elif status == "cancelled":
            if sub.cancel_begin == ENDLESS and not (called and sub.may_cancel_calls):
                self.flag("lost", f"{what}, and nobody cancelled it")
            elif called and not sub.may_cancel_calls:
                self.flag("unexpected", what)
        elif status in ("dropped", "rejected") and called:
            self.flag("unexpected", what)

    def judge_sums(self, bus: Any) -> None:
        """Every delivery counted at the emit is settled, pending or running."""
        stats = bus.stats()
        for row in (stats.totals, *stats.subscriptions.values()):
            if row.deliveries != settled(row) + row.pending + row.running:
                self.flag("miscounted", f"the sum does not hold: {row}")

    def judge_end(self, bus: Any) -> None:
        """At rest, with every subscription ended: receipts and counters say the same."""
        self.judge(bus)
        self.judge(bus)  # what ended during the first
        stats = bus.stats()
        totals = stats.totals
        if totals.pending or totals.running:
            self.flag("unsettled", f"not at rest: {totals}", totals.pending + totals.running)
        if self.open or self.subs:
            left = f"{len(self.open)} emits have not returned, {len(self.subs)} subscriptions have not ended"
            self.flag("unsettled", left)
        if stats.events != self.events:
            self.flag("miscounted", f"{stats.events} events counted, {self.events} made")
        told = sum(self.told.values()) + self.apart
        if totals.deliveries != told:
            self.flag("miscounted", f"{totals.deliveries} deliveries counted, {told} told")
        heard = self.heard
        errors = heard["handler"] + heard["key"]
        # A handler that raises as its time-out comes, or later, or when it is cancelled, is told of all the same.
        if not totals.failed <= errors <= totals.failed + totals.timed_out + totals.cancelled:
            self.flag("miscounted", f"{totals.failed} deliveries failed, on_error was told of {errors}")
        if (heard["timeout"], heard["mailbox"]) != (totals.timed_out, totals.rejected):
            text = f"{totals.timed_out} timed out, {totals.rejected} were rejected, on_error was told of {dict(heard)}"
            self.flag("miscounted", text)


def settled(row: Any) -> int:
    """How many deliveries have an outcome."""
    return int(row.delivered + row.failed + row.timed_out + row.cancelled + row.dropped + row.rejected)


def payloads_left() -> int:
    """How many records are alive."""
    import gc

    for _ in range(3):  # finalizers may keep for one more round what they belong to
        gc.collect()
    return sum(type(each) is Emit for each in gc.get_objects())


def complain(history: History) -> Any:
    """Count what Python tells of errors that nobody can catch, instead of printing it; gives what puts it back."""
    before = sys.unraisablehook, threading.excepthook

    def unraisable(found: Any) -> None:
        history.flag("errors", f"in {found.object!r}: {found.exc_value!r}")

    def uncaught(found: Any) -> None:
        history.flag("errors", f"in thread {found.thread and found.thread.name}: {found.exc_value!r}")

    sys.unraisablehook, threading.excepthook = unraisable, uncaught

    def restore() -> None:
        sys.unraisablehook, threading.excepthook = before

    return restore
