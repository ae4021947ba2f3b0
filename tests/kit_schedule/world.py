"""A bus under a scheduler, the history of what was done to it, and the judge of that history.

Only one thread runs at a time, so a counter gives every begin and return its place in one total order. The judge knows
the contract, not the engine: exactly once (G3), order and no overlap (G4, G20), the barriers of registration and
removal (G1, G2), receipts that settle once and rightly (G6), drains and closes that keep their word (G10), counts that
add up, and no thread left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from eventbus import BusClosedError, EventBus, Receipt
from eventbus._errors import DispatcherError

from .baton import Scheduler, Task, here

__all__ = ["Call", "Emit", "Sub", "World"]

CALLED = ("delivered", "failed", "timed_out")  # a handler was called for these, once
ENDLESS = 1 << 60
SERVING = "aserve"  # operations whose name begins thus last until the others have ended
CLOSE_TIMEOUT = 10.0  # of a bus that was not told otherwise, in virtual seconds


@dataclass(eq=False)
class Emit:
    """One emit: when it began and returned, by whom, and what it gave."""

    number: int
    topic: str
    emitter: str
    parent: int | None
    key: object
    begin: int
    end: int = ENDLESS
    receipt: Receipt | None = None
    seen: tuple[Any, ...] | None = None  # its outcomes when a wait for it returned


@dataclass(eq=False)
class Sub:
    """One subscription: from when to when it has to be reached, and what it promised."""

    name: str
    topics: tuple[str, ...]
    options: dict[str, Any]
    begin: int
    end: int = ENDLESS
    cancel_begin: int = ENDLESS
    cancel_end: int = ENDLESS
    drained: bool = True  # whether all cancels were to run what was pending
    quiet: int = ENDLESS  # when a waiting cancel of somebody else's returned
    first: int = 0  # how many cancels said that it was they
    handle: Any = None
    gone: bool = False  # its loop has closed

    def cancels(self, now: int, drain: bool = False) -> None:
        """Somebody begins to cancel it, or whoever runs its handler leaves."""
        self.cancel_begin = min(self.cancel_begin, now)
        self.drained = self.drained and drain

    @property
    def serial(self) -> bool:
        return self.options.get("concurrency", 1) == 1 and not self.options.get("inline")


@dataclass(eq=False)
class Call:
    """One call of a handler."""

    sub: Sub
    number: int
    begin: int
    task: Task | None
    end: int = ENDLESS
    robbed: bool = False  # the loop's task that it was in was cancelled


@dataclass(eq=False)
class World:
    """What the operations of a program work on."""

    sched: Scheduler
    options: dict[str, Any] = field(default_factory=dict)
    clock: int = 0
    closing: int = ENDLESS
    closed: int = ENDLESS
    gate: bool = False
    closed_inside: bool = False
    impatient: bool = False  # a close may have cancelled something

    facade: Any = None  # the asyncio face that has made the bus, or None
    alone: bool = False  # only loops that wait for the others are left

    def __post_init__(self) -> None:
        self.bus: EventBus = EventBus("explored", **self.options) if self.facade is None else self.facade.bus
        self.loops: list[Any] = []
        self.emits: list[Emit] = []
        self.subs: dict[str, Sub] = {}
        self.calls: list[Call] = []
        self.streams: list[tuple[Sub, Any, list[int]]] = []

    def now(self) -> int:
        self.clock += 1
        return self.clock

    # Operations

    def on(self, name: str, *topics: str, act: Callable[[int], object] | None = None, **options: Any) -> Sub | None:
        """Register a handler that notes its calls and then does ``act``. None if the bus has refused it, closed."""
        sub = self.subs[name] = Sub(name, topics, options, self.now())

        def handler(payload: Any) -> Any:
            task = here()
            number = payload[0]
            call = Call(sub, number, self.now(), task)
            self.calls.append(call)
            assert task is not None
            task.inside += 1
            try:
                self.sched.point()
                if act is not None:
                    act(number)
                return (name, number)
            finally:
                task.inside -= 1
                call.end = self.now()

        try:
            sub.handle = self.bus.on(list(topics), handler, name=name, **options)
        except BusClosedError:
            self.refused()
            del self.subs[name]
            return None
        sub.end = self.now()
        return sub

    def refused(self) -> None:
        """The bus has said that it is closed."""
        assert self.closing <= self.clock, "refused though nobody closes"

    def emit(self, topic: str = "t", key: object = None, via: Any = None, **arguments: Any) -> Emit | None:
        """Emit a numbered event. None if the bus has refused it, closed."""
        task = here()
        assert task is not None
        parent = next((call.number for call in reversed(self.calls) if call.task is task and call.end == ENDLESS), None)
        emitter = task.name if parent is None else f"handler {parent}"
        record = Emit(len(self.emits), topic, emitter, parent, key, self.now())
        self.emits.append(record)
        try:
            receipt = (via or self.bus).emit(topic, (record.number, key), **arguments)
        except BusClosedError:
            self.refused()
            return None
        record.receipt = receipt
        record.end = self.now()
        assert receipt.deliveries is not None
        for sub in self.subs.values():
            if sub.options.get("overflow", "block") != "block" and sub.handle is not None:
                assert sub.handle.stats().pending <= sub.options["max_pending"], f"{sub.name} holds too much (G9)"
        return record

    def wait(self, record: Emit | None, timeout: float | None = None) -> None:
        """Wait for an emit's receipt."""
        if record is None or record.receipt is None:
            return
        receipt = record.receipt
        if not self._patient(lambda: receipt.wait(timeout)):
            return
        assert receipt.done, "wait() returned before the receipt was done"
        assert len(receipt.outcomes) == receipt.deliveries
        record.seen = receipt.outcomes

    def _patient(self, wait: Callable[[], object]) -> bool:
        """A wait may raise if no thread could be started, where threads may fail to start."""
        try:
            wait()
            return True
        except DispatcherError:
            if "start" not in self.sched.lies:
                raise
            return False

    def cancel(self, name: str, wait: bool = False, drain: bool = False) -> None:
        """Cancel a subscription."""
        sub = self.subs.get(name)
        if sub is None or sub.handle is None:
            return
        sub.cancels(self.now(), drain)
        mine = any(call.sub is sub and call.end == ENDLESS and call.task is here() for call in self.calls)
        done: list[bool] = []
        if self._patient(lambda: done.append(sub.handle.cancel(wait, drain=drain))):
            sub.first += done[0]
            end = self.now()
            sub.cancel_end = min(sub.cancel_end, end)
            if (wait or drain) and not mine:
                sub.quiet = min(sub.quiet, end)
            assert not sub.handle.active
        else:
            sub.first += 1

    def drain(self) -> None:
        """Drain; what was emitted before, and what that has caused, must be settled then."""
        before = [each for each in self.emits if each.receipt is not None]
        task = here()
        inside = task is not None and task.inside > 0
        if self._patient(self.bus.drain) and not inside:
            family = {each.number for each in before}
            for each in self.emits:
                if each.number in family or each.parent in family:
                    family.add(each.number)
                    assert each.receipt is None or each.receipt.done, (
                        f"drain() returned before emit {each.number} was settled"
                    )

    def close(self) -> None:
        """Close; everything must be settled then, and nothing more accepted."""
        task = here()
        inside = task is not None and task.inside > 0
        self.closing = min(self.closing, self.now())
        self.closed_inside |= inside
        self._close(inside)
        # A handler that has closed the bus goes on afterwards, and its own delivery is settled when it ends.
        exact = not self.closed_inside
        self.closed = min(self.closed, self.now())
        if exact:
            for each in self.emits:
                assert each.receipt is None or each.receipt.done, (
                    f"close() returned before emit {each.number} was settled"
                )
        late = self.emit()
        assert late is None, "an emit was accepted after close() had returned"

    def _close(self, inside: bool = False) -> Any:
        began = self.sched.now
        report = self.bus.close()
        late = self.sched.now - began >= CLOSE_TIMEOUT
        self.impatient |= late or inside or "start" in self.sched.lies
        return report

    def stream(self, name: str, topic: str) -> None:
        """Open a stream; what it is read of is judged like calls."""
        sub = self.subs[name] = Sub(name, (topic,), {}, self.now())
        stream = self.bus.stream(topic, name=name)
        sub.handle = stream.subscription
        sub.end = self.now()
        self.streams.append((sub, stream, []))

    def read(self, count: int) -> None:
        """Read so many events, or until the end, of the first stream."""
        _, stream, got = self.streams[0]
        for _ in range(count):
            try:
                got.append(stream.get().payload[0])
            except StopIteration:
                return

    def open(self) -> None:
        """Let the handlers go on that wait at the gate."""
        self.sched.point()
        self.gate = True

    def at_gate(self, number: int = 0) -> None:
        """In a handler: wait at the gate."""
        self.sched.point(lambda: self.gate)

    # The course of a program

    def run(self, *operations: tuple[str, Callable[[], object]]) -> None:
        """Explore these operations, each in a thread of its own; then come to rest, close, and judge."""
        sched = self.sched
        left = [name for name, _ in operations if not name.startswith(SERVING)]
        self.alone = not left

        def thread(name: str, do: Callable[[], object]) -> None:
            sched.point()
            do()
            if name in left:
                left.remove(name)
            if not left:
                self.alone = True
                for loop in self.loops:
                    loop.release()

        tasks = [sched.start(lambda name=name, do=do: thread(name, do), name) for name, do in operations]  # type: ignore[misc]
        sched.branching = True
        sched.point(lambda: all(task.over for task in tasks))
        sched.branching = False
        self.finish()

    def finish(self) -> None:
        """Come to rest, close, judge."""
        self.gate = True
        self._come_to_rest()
        if self.closing == ENDLESS:
            for _ in range(3):
                if self._patient(self.bus.drain):
                    break
                self.sched.sleep(1.0)
            self._come_to_rest()
            self.judge_counts()
        self.closing = min(self.closing, self.now())
        report = self._close()
        assert report.stuck == () or self.closed != ENDLESS, report
        self._come_to_rest()
        self.judge_counts()
        self.judge()

    def _come_to_rest(self) -> None:
        # A handler past its time-out is settled before it ends; one that closes the bus, after.
        self.sched.rest()
        while any(call.end == ENDLESS for call in self.calls):
            self.sched.point(lambda: all(call.end != ENDLESS for call in self.calls))
            self.sched.rest()

    # The judge

    def judge_counts(self) -> None:
        """Every delivery counted at the emit has one outcome, and the receipts say the same as the counters."""
        stats = self.bus.stats()
        for row in (stats.totals, *stats.subscriptions.values()):
            ended = row.delivered + row.failed + row.timed_out + row.cancelled + row.dropped + row.rejected
            assert row.deliveries == ended + row.pending + row.running, f"the sum does not hold: {row}"
        totals = stats.totals
        assert totals.pending == totals.running == 0, f"not at rest: {totals}"
        accepted = [each for each in self.emits if each.receipt is not None]
        told = Counter(str(o.status) for each in accepted for o in each.receipt.outcomes)  # type: ignore[union-attr]
        counted = {name: getattr(totals, name) for name in (*CALLED, "cancelled", "dropped", "rejected")}
        assert dict(told) == {name: count for name, count in counted.items() if count}, (told, counted)
        pool = stats.pool
        assert pool.computing == pool.blocked == pool.waiting == 0, f"the pool is not at rest: {pool}"
        # A mailbox that was cancelled while no thread could be started stays in the queue until somebody looks.
        assert pool.ready == 0 or "start" in self.sched.lies, f"the pool is not at rest: {pool}"
        assert pool.threads == pool.idle, f"the pool is not at rest: {pool}"
        assert stats.events == len(accepted), f"{stats.events} events counted, {len(accepted)} accepted"

    def judge(self) -> None:
        """All that can be told from the history."""
        calls: dict[tuple[Sub, int], list[Call]] = {}
        for call in self.calls:
            assert call.end != ENDLESS, f"a call of {call.sub.name} has not ended"
            calls.setdefault((call.sub, call.number), []).append(call)
        by_id = {sub.handle.id: sub for sub in self.subs.values()}
        for each in self.emits:
            receipt = each.receipt
            if receipt is None:
                assert not any(number == each.number for _, number in calls), "a refused emit was delivered"
                continue
            assert receipt.done, f"emit {each.number} is not settled at the end"
            outcomes = receipt.outcomes
            assert len(outcomes) == receipt.deliveries
            assert each.seen in (None, outcomes), f"the outcomes of emit {each.number} changed after wait()"
            ids = [outcome.subscription_id for outcome in outcomes]
            assert ids == sorted(set(ids)), f"emit {each.number} reached a subscription twice: {ids}"
            reached = {by_id[number] for number in ids}
            for sub in self.subs.values():
                if not self.reaches(sub, each.topic):
                    assert sub not in reached
                elif sub.end < each.begin and each.end < sub.cancel_begin:
                    assert sub in reached, f"emit {each.number} missed {sub.name} (G1, G3)"
                elif each.end < sub.begin or min(sub.cancel_end, self.closed) < each.begin:
                    assert sub not in reached, f"emit {each.number} reached {sub.name} out of its time (G2, G3)"
            for outcome in outcomes:
                self._judge_outcome(each, by_id[outcome.subscription_id], outcome, calls)
        for sub in self.subs.values():
            self._judge_sub(sub)
        for lane in {sub.options.get("lane") for sub in self.subs.values()} - {None}:
            members = [call for call in self.calls if call.sub.options.get("lane") == lane]
            _one_at_a_time(members, f"lane {lane}")
            self._judge_order(members, f"lane {lane}")
        for sub, _, got in self.streams:
            assert len(set(got)) == len(got), "a stream gave an event twice"
            self._judge_order([Call(sub, number, place, None) for place, number in enumerate(got)], sub.name)

    def _judge_outcome(self, each: Emit, sub: Sub, outcome: Any, calls: dict[tuple[Sub, int], list[Call]]) -> None:
        mine = calls.get((sub, each.number), ())
        made = len(mine)
        status = str(outcome.status)
        what = f"{sub.name} was called {made} times for emit {each.number}, whose outcome is {status}"
        if any(stream is sub for stream, _, _ in self.streams):
            assert made == 0
        elif status in CALLED:
            assert made == 1 or (made == 0 and status == "timed_out"), what
        elif status == "cancelled":
            assert made <= 1, what
            # A close drains: it cancels what is left when its time is up, or waits for the handler that closes.
            robbed = any(call.robbed for call in mine)
            lost = sub.cancel_begin != ENDLESS and not sub.drained
            assert lost or robbed or self.impatient, (
                f"{what}, and nobody cancelled it, but for one that drains (G2, G3)"
            )
            assert made == 0 or robbed or self.closed != ENDLESS or sub.gone, what
        else:
            assert made == 0, what
        if status == "delivered" and made:
            assert outcome.value == (sub.name, each.number), f"{what}, with the value {outcome.value!r}"

    def _judge_sub(self, sub: Sub) -> None:
        mine = [call for call in self.calls if call.sub is sub]
        if sub.serial:
            _one_at_a_time(mine, sub.name)
            if sub.options.get("key") is None:
                self._judge_order(mine, sub.name)
            after = [call for call in mine if call.begin > sub.cancel_end]
            if sub.cancel_end != ENDLESS and sub.quiet == ENDLESS:
                running = any(call.begin < sub.cancel_end < call.end for call in mine)
                assert len(after) <= 1 - running, f"{sub.name} was claimed after cancel() had returned (G2)"
        for call in mine:
            assert call.begin < sub.quiet, f"{sub.name} was called after cancel(wait=True) had returned (G2)"
            assert call.end < sub.quiet, f"{sub.name} ran on after cancel(wait=True) had returned (G2)"
        if sub.cancel_end != ENDLESS and self.closing > sub.cancel_end:
            assert sub.first == 1, f"{sub.first} cancels of {sub.name} say that it was they"
        if sub.options.get("key") is not None:
            for key in ("a", "b"):
                same = [call for call in mine if self.emits[call.number].key == key]
                _one_at_a_time(same, f"key {key}")
                self._judge_order(same, f"key {key}")

    def reaches(self, sub: Sub, topic: str) -> bool:
        """Whether an emit of the topic is for this subscription."""
        return topic in sub.topics

    def _judge_order(self, calls: list[Call], what: str) -> None:
        """Of two emits, one that returned before the other began comes first (G4)."""
        first: Emit | None = None  # of those before, the one that began last
        for call in calls:
            second = self.emits[call.number]
            if first is not None:
                assert not second.end < first.begin, f"{what}: emit {first.number} came before {second.number}"
            if first is None or first.begin < second.begin:
                first = second


def _one_at_a_time(calls: list[Call], what: str) -> None:
    for earlier, later in pairwise(calls):
        assert earlier.end < later.begin, f"{what}: two calls at once, emits {earlier.number} and {later.number} (G4)"
