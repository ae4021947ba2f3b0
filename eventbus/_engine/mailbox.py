"""The mailbox of one subscription: its pending deliveries, its policy when full, its running calls, its counts.

Guarantees: order of admission (G4), at most ``concurrency`` running, one a key (G20), a bound with a policy (G9); every
delivery that comes in is counted once and settled once (G3).

Owner: the bus's monitor, all of it. Methods are called in steps only; they decide, and leave wake-ups to ``after``.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from .._errors import MailboxFullError
from .._values.stats import Status, SubscriptionStats, summary
from . import hot, primitives
from .delivery import LINED, PENDING, RUNNING, SETTLED, is_counted
from .latency import Histogram
from .reporting import report_later
from .waits import notify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .._values.handler import HandlerSpec
    from .._values.options import Options
    from .delivery import Delivery
    from .dispatcher import Executor
    from .engine import Engine
    from .lane import Lane
    from .subscription import Handle
    from .waits import Waiter

__all__ = ["ACTIVE", "COUNTER", "DRAINING", "ENDED", "NEW", "NO_COUNTS", "InlineMailbox", "KeyedMailbox", "Mailbox"]

# The states of a subscription, in order.
NEW, ACTIVE, DRAINING, ENDED = range(4)

_UNBOUNDED = 1 << 62

# What a mailbox has before its first delivery: a deque takes 760 bytes, and most subscriptions of many hear nothing.
_NOTHING: Any = ()
NO_COUNTS: Any = (0, 0, 0, 0, 0, 0)

COUNTER = {
    Status.DELIVERED: 0,
    Status.FAILED: 1,
    Status.TIMED_OUT: 2,
    Status.CANCELLED: 3,
    Status.DROPPED: 4,
    Status.REJECTED: 5,
}


class Mailbox:
    """First in, first out. See :class:`KeyedMailbox` for order per key, :class:`InlineMailbox` for inline handlers."""

    __slots__ = (
        "admits",  # an emit may append to it in a section
        "bound",  # ``limit`` as a number; 0 before the first delivery, so that emits come to ``offer``
        "closer",  # called, outside of the step, when the subscription ends
        "concurrency",
        "counts",  # the six outcomes, in the order of COUNTER
        "deliveries",
        "engine",
        "executor",  # who runs the handler; None while it is unbound
        "flows",  # a worker may settle and claim in sections
        "handle",
        "held",  # how many are pending
        "home",  # who wants it back when its loop closes (the facade's binding), or None
        "id",
        "info",
        "inline",
        "key",
        "lane",
        "latencies",
        "limit",
        "line",  # waits for space, in order; None until needed
        "name",
        "observer",
        "options",
        "patterns",
        "pending",
        "plain",  # admission is nothing but an append
        "queued",  # stands in its executor's ready queue
        "raw",  # the handler wants the receipt itself: streams and recorders
        "running",
        "slow",  # was seen blocking a worker
        "spec",
        "state",
        "timeout",
        "tracked",  # what is pending is no longer hidden from the garbage collector, see ``show``
        "waiters",  # waits for calls to end; None until needed
    )

    def __init__(
        self, engine: Engine, number: int, patterns: tuple[str, ...], spec: HandlerSpec, options: Options, raw: bool
    ) -> None:
        self.engine = engine
        self.id = number
        self.patterns = patterns
        self.spec: HandlerSpec | None = spec
        self.options = options
        self.name = options.name or spec.name
        self.info = (number, self.name)
        self.raw = raw
        self.inline = options.inline
        self.observer = options.observer
        self.concurrency = options.concurrency
        self.timeout = options.timeout
        self.key: Callable[[Any], Any] | None = options.key
        self.limit = options.max_pending
        self.bound = 0
        self.held = 0
        self.admits = self.flows = False
        self.lane: Lane | None = None
        self.executor: Executor | None = None
        self.home: Any = None
        self.handle: Handle | None = None
        self.closer: Callable[[], None] | None = None
        self.state = NEW
        self.queued = False
        self.slow = False
        self.plain = False
        self.tracked = False
        self.pending: deque[Delivery] = _NOTHING
        self.line: deque[Delivery] | None = None
        self.running: Sequence[Delivery] = ()  # replaced, never changed; but for the cell of whoever runs it alone
        self.waiters: list[Waiter] | None = None
        self.deliveries = 0
        self.counts: list[int] = NO_COUNTS
        self.latencies: tuple[Histogram, Histogram] | None = None

    def open(self) -> None:
        """At the first delivery: make what that needs."""
        if self.pending is _NOTHING:
            self.pending = deque()
        self.own_counts()
        self.bound = _UNBOUNDED if self.limit is None else self.limit

    def own_counts(self) -> list[int]:
        """The counts, to be changed."""
        if self.counts is NO_COUNTS:
            self.counts = [0, 0, 0, 0, 0, 0]
        return self.counts

    # Binding

    def attach(self, executor: Executor | None) -> None:
        """Say who runs the handler; what waited for it becomes ready, or unbound."""
        before = self.executor
        if before is not None and before is not executor:
            self.show()
        self.executor = executor
        plain = self.lane is None and self.options.overflow != "latest" and not self.inline
        self.plain = executor is not None and plain
        if self.deliveries:
            for delivery in self.unsettled():
                self._recount(delivery, executor is not None)
        self.review()
        if executor is not None and self.deliveries:
            if self.lane is not None and before is None:
                for delivery in self.queue():
                    self.lane.join(delivery)
            self.schedule()
        elif executor is None and self.lane is not None:
            self.lane.leave(self)

    def show(self) -> None:
        """In a step: nobody else may hold what is pending from here on, so the collector is to know of it."""
        if hot.track is not None and not self.tracked:
            self.tracked = True
            for delivery in self.queue():
                hot.track(delivery, delivery.receipt)

    def review(self) -> None:
        """In a step that changed what they depend on: may emits and workers do without the lock?"""
        self.admits = primitives.SECTIONS and self.plain and self.state == ACTIVE and not self.line
        if self.inline:
            self.flows = primitives.SECTIONS and self.state == ACTIVE and len(self.running) <= 1 and not self.raw
        else:
            self.flows = self.admits and self.concurrency == 1 and self.timeout is None and not (self.slow or self.raw)

    def _recount(self, delivery: Delivery, bound: bool) -> None:
        # Drains do not wait for unbound handlers, so their deliveries belong to no epoch.
        engine = self.engine
        if not bound:
            engine.leave_epoch(delivery)
        elif delivery.epoch is None:
            delivery.epoch = engine.epoch
            delivery.epoch.open += 1

    # Admission

    def offer(self, delivery: Delivery) -> None:
        """Admit a delivery, or do what the policy says when there is no room."""
        if not self.bound:
            self.open()
        if self.line or not self.room(delivery):
            self._overflow(delivery)
        else:
            self.admit(delivery)

    def admit(self, delivery: Delivery) -> None:
        """Into the mailbox, at its end."""
        delivery.state = PENDING
        self.push(delivery)
        if self.lane is not None:
            if self.executor is not None:
                self.lane.join(delivery)
                self.lane.offer()
        elif not self.queued:
            self.schedule()

    def _overflow(self, delivery: Delivery) -> None:
        # Whoever is next is scheduled, unless no thread could be started: then this emit has that tried again.
        if self.lane is not None:
            self.lane.offer()
        else:
            self.schedule()
        policy = self.options.overflow
        if policy == "latest" and self.replace(delivery):
            return
        if policy == "drop_newest":
            self.engine.settle(delivery, Status.DROPPED)
        elif policy == "drop_oldest":
            oldest = self.oldest()
            if oldest is None:
                self.engine.settle(delivery, Status.DROPPED)
            else:
                self.retire(oldest, Status.DROPPED)
                self.admit(delivery)
        elif policy != "block" or delivery.receipt._topic.startswith("bus/"):
            if delivery.receipt._topic.startswith("bus/"):
                self.engine.settle(delivery, Status.DROPPED)
            else:
                self.reject(delivery, f"the mailbox of {self.name} is full ({self.limit} pending)")
        elif self.executor is None:
            self.reject(delivery, f"the mailbox of {self.name} is full ({self.limit} pending) and no loop runs it yet")
        else:
            self._line_up(delivery)

    def _line_up(self, delivery: Delivery) -> None:
        line = self.line
        if line is None:
            line = self.line = deque()
        most = self.options.max_waiting
        if most is not None and len(line) >= most:
            self.reject(delivery, f"the mailbox of {self.name} is full and its waiting line too ({most} waiting)")
            return
        delivery.state = LINED
        delivery.receipt._accepting += 1
        line.append(delivery)
        self.review()
        patience = self.options.block_timeout
        if patience is not None:
            delivery.deadline = self.engine.timer.at(patience, lambda: self._impatient(delivery))

    def _impatient(self, delivery: Delivery) -> None:
        if delivery.state is LINED:
            self.reject_lined(
                delivery,
                f"no room in the mailbox of {self.name} within block_timeout={self.options.block_timeout:g} s",
            )

    def retire_lined(self, delivery: Delivery, status: Status, error: BaseException | None = None) -> None:
        """Settle a delivery of the waiting line and take it out."""
        assert self.line is not None
        try:
            self.engine.settle(delivery, status, None, error)
        finally:
            if delivery.state is SETTLED:
                self.line.remove(delivery)
                self.review()

    def retire(self, delivery: Delivery, status: Status) -> None:
        """Settle a pending delivery and take it out; in this order, for a signal handler may raise in between."""
        key = delivery.key if self.key is not None else None
        try:
            self.engine.settle(delivery, status)
        finally:
            if delivery.state is SETTLED:
                self.discard(delivery, key)

    def reject(self, delivery: Delivery, why: str) -> None:
        """No room: settle this delivery, tell whoever wants to hear of errors."""
        self.engine.settle(delivery, Status.REJECTED, None, self._full(delivery, why))

    def reject_lined(self, delivery: Delivery, why: str) -> None:
        """As :meth:`reject`, for one that waits for space."""
        self.retire_lined(delivery, Status.REJECTED, self._full(delivery, why))

    def _full(self, delivery: Delivery, why: str) -> MailboxFullError:
        error = MailboxFullError(f"{why}; the delivery of {delivery.receipt._topic!r} was rejected")
        report_later(self.engine, delivery, error, "mailbox")
        return error

    def reject_stuck(self, delivery: Delivery, cycle: tuple[str, ...]) -> None:
        """Waiting for this space would close a cycle of waits (G8): reject that one delivery."""
        self.reject_lined(
            delivery, f"waiting for space in the mailbox of {self.name} would never end: {' -> '.join(cycle)}"
        )

    def refill(self) -> None:
        """Admit from the waiting line what fits now, in order."""
        line = self.line
        if not line:
            return
        while line and self.room(line[0]):
            delivery = line.popleft()
            receipt = delivery.receipt
            delivery.state = PENDING
            receipt._accepting -= 1
            if delivery.deadline is not None:
                self.engine.timer.forget(delivery.deadline)
                delivery.deadline = None
            if receipt._accepting == 0 and receipt._waiters:
                notify(self.engine, receipt._waiters)
            self.admit(delivery)
        self.review()

    # Claiming

    def schedule(self) -> None:
        """Stand in the executor's ready queue if something can be claimed."""
        if not self.queued and self.executor is not None and self.claimable():
            self.queued = True
            self.executor.push(self)

    def claimable(self) -> bool:
        """Whether a delivery could begin right now."""
        if len(self.running) >= self.concurrency or not self.has_pending():
            return False
        if self.lane is not None:
            following = self.lane.next()
            return following is not None and following.box is self
        return True

    def claim(self) -> Delivery | None:
        """Begin the next delivery: from here on it counts as running. The caller must run it and then finish it."""
        if not self.claimable():
            return None
        delivery = self.pop()
        if delivery.state is not PENDING:
            # A signal handler broke the step that settled it, before it was taken out, and the mend is still to come.
            return self.claim()
        if self.lane is not None:
            self.lane.claim(delivery)
        delivery.state = RUNNING
        self.running = (*self.running, delivery)
        if self.line:
            self.refill()
        return delivery

    def finish(self, delivery: Delivery) -> None:
        """The handler's call has ended and its delivery is settled: make room for what follows."""
        if delivery not in self.running:
            return  # a fork has cut this call off
        # A list, for a generator that gets no memory crashes CPython 3.12 and 3.13.
        self.running = tuple([each for each in self.running if each is not delivery])
        try:
            self.finished(delivery)
        except BaseException:
            self.finished(delivery)  # a signal handler raised: whoever waits for this must hear of it
            raise

    def finished(self, delivery: Delivery) -> None:
        """A call has ended, or a pending one never begins. May be done again."""
        if self.inline:
            self.review()
        if delivery.receipt is not None:  # pyright: ignore[reportUnnecessaryComparison]
            self.free(delivery)
            delivery.release()
        if self.waiters:
            notify(self.engine, self.waiters)
        if self.lane is not None:
            self.lane.release(delivery)
        if self.state is not ACTIVE:
            self.engine.ripen(self)

    def enlist(self, waiter: Waiter, begin: bool) -> None:
        """In a step: somebody waits for calls to end, or does no more."""
        if begin:
            if self.waiters is None:
                self.waiters = []
            self.waiters.append(waiter)
        elif self.waiters and waiter in self.waiters:
            self.waiters.remove(waiter)

    def purge(self) -> None:
        """In a step that a signal handler broke: what is settled is pending no more."""
        if self.pending:
            self.pending = deque(each for each in self.pending if each.state is PENDING)
        self.held = len(self.pending)
        if self.line:
            self.line = deque(each for each in self.line if each.state is LINED)
        self.review()

    def mend(self, delivery: Delivery) -> bool:
        """In a step that a signal handler broke while this one was admitted: complete that; False if it is not in."""
        if delivery.state is LINED:
            return self.line is not None and delivery in self.line
        if delivery in self.running:
            return True
        if delivery not in self.queue():
            return False
        if self.lane is not None and self.executor is not None and delivery not in self.lane.line:
            self.lane.join(delivery)
        return True

    def blockers(self, delivery: Delivery) -> list[list[Delivery]]:
        """For the wait graph: of each group one must end before this pending delivery can begin."""
        return self.space_blockers()

    def space_blockers(self) -> list[list[Delivery]]:
        """As :meth:`blockers`, for what is in line to be admitted: where the first in is first out, it is the same."""
        groups: list[list[Delivery]] = []
        if self.executor is not None:
            if len(self.running) >= self.concurrency:
                groups.append(list(self.running))
            if self.lane is not None and self.lane.holder is not None:
                groups.append([self.lane.holder])
        return groups

    # The order of what is pending: what KeyedMailbox does differently.

    def room(self, delivery: Delivery) -> bool:
        """Whether it can be admitted under the bound."""
        if self.options.overflow == "latest":
            return not self.pending
        return self.held < self.bound

    def push(self, delivery: Delivery) -> None:
        """Append to the pending ones."""
        self.held += 1
        self.pending.append(delivery)

    def pop(self) -> Delivery:
        """Take the next one to run."""
        self.held -= 1
        return self.pending.popleft()

    def has_pending(self) -> bool:
        """Whether :meth:`pop` has something to give."""
        return bool(self.pending)

    def oldest(self) -> Delivery | None:
        """The pending delivery that was admitted first."""
        return self.pending[0] if self.pending else None

    def discard(self, delivery: Delivery, key: Any) -> None:
        """Take a pending delivery out."""
        self.pending.remove(delivery)
        self.held -= 1

    def replace(self, delivery: Delivery) -> bool:
        """Under "latest", where there is no room: put it in the place of the one that it makes obsolete, if it does."""
        self.retire(self.pending[0], Status.DROPPED)
        self.admit(delivery)
        return True

    def free(self, delivery: Delivery) -> None:
        """The call of this delivery has ended."""

    def queue(self) -> Iterator[Delivery]:
        """The pending ones, in order."""
        return iter(tuple(self.pending))

    def size(self) -> int:
        """How many are pending, those in line not counted."""
        return self.held

    # Looking

    def unsettled(self) -> list[Delivery]:
        """All that is not settled: running, pending, in line."""
        found = [each for each in self.running if each.state is not SETTLED]
        found.extend(self.queue())
        found.extend(self.line or ())
        return found

    def idle(self) -> bool:
        """Whether nothing is pending, in line or running."""
        return not self.running and not self.line and not self.size()

    def is_gone(self) -> bool:
        """Whether its subscription has ended and no call of it runs any more. A moment's truth."""
        return self.state == ENDED and self.id not in self.engine.leftovers

    def sample(self, wait: float, run: float) -> None:
        """Note a sampled latency."""
        if self.latencies is None:
            self.latencies = Histogram(), Histogram()
        self.latencies[0].add(wait)
        self.latencies[1].add(run)

    def stats(self) -> SubscriptionStats:
        """The counts at this instant."""
        pending = self.size() + len(self.line or ())
        running = sum(each.state is not SETTLED for each in self.running)
        wait, run = self.latencies or (Histogram(), Histogram())
        sums = [self.deliveries + self.uncounted(), *self.counts]
        return summary(sums, pending, running, wait.latency(), run.latency())

    def uncounted(self) -> int:
        """How many are pending that ``deliveries`` does not contain yet."""
        return 0

    def renew(self) -> None:
        """In a forked child: nothing pending, nothing running, no counts. What was unsettled is cancelled already."""
        self.queued = self.slow = False
        self.pending = _NOTHING
        self.bound = self.held = 0
        self.line = None
        self.running = ()
        self.waiters = None
        self.deliveries = 0
        self.counts = NO_COUNTS
        self.latencies = None
        self.lane = None
        self.review()


class KeyedMailbox(Mailbox):
    """Order per key, up to ``concurrency`` keys at once; one running call a key."""

    __slots__ = ("busy", "by_key", "order", "ready")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.by_key: dict[Any, deque[Delivery]] = {}
        self.busy: dict[Any, Delivery] = {}
        self.ready: OrderedDict[Any, None] = OrderedDict()  # keys with something pending and nothing running
        # In order of admission; those that are pending no more are passed over, and swept out now and then.
        self.order: deque[Delivery] = deque()

    def attach(self, executor: Executor | None) -> None:
        super().attach(executor)
        self.plain = self.admits = self.flows = False

    def renew(self) -> None:
        super().renew()
        self.plain = self.admits = self.flows = False
        self.by_key, self.busy = {}, {}
        self.ready.clear()
        self.order.clear()

    def room(self, delivery: Delivery) -> bool:
        if self.options.overflow == "latest":
            # The bound is one of keys, and a key holds one.
            return delivery.key not in self.by_key and (self.limit is None or len(self.by_key) < self.limit)
        return self.limit is None or self.held < self.limit

    def push(self, delivery: Delivery) -> None:
        key = delivery.key
        self.order.append(delivery)
        waiting = self.by_key.get(key)
        if waiting is None:
            waiting = self.by_key[key] = deque()
            if key not in self.busy:
                self.ready[key] = None
        waiting.append(delivery)
        self.held += 1
        if len(self.order) > 2 * self.held + 64:
            self.order = deque(self.queue())

    def pop(self) -> Delivery:
        if self.lane is None:
            key = next(iter(self.ready))
        else:
            following = self.lane.next()
            assert following is not None
            key = following.key
        delivery = self.by_key[key][0]
        self.discard(delivery, key)
        if delivery.state is PENDING:  # one that is settled knows its key no more, and nobody would free that
            self.ready.pop(key, None)
            self.busy[key] = delivery
        return delivery

    def has_pending(self) -> bool:
        return bool(self.ready)

    def oldest(self) -> Delivery | None:
        order = self.order
        while order and order[0].state is not PENDING:
            order.popleft()
        return order[0] if order else None

    def discard(self, delivery: Delivery, key: Any) -> None:
        # The one call comes last, so that no signal handler that raises can leave this half-done.
        waiting = self.by_key[key]
        self.held -= 1
        if len(waiting) == 1:
            del self.by_key[key]
            self.ready.pop(key, None)
            if delivery.state is SETTLED:  # one that is about to begin may have to be put back
                self._sweep()
        else:
            waiting.remove(delivery)

    def replace(self, delivery: Delivery) -> bool:
        waiting = self.by_key.get(delivery.key)
        if not waiting:
            return False
        # In this order the key keeps its turn, or one that changes often would never have it.
        self.admit(delivery)
        for older in list(waiting)[:-1]:
            self.retire(older, Status.DROPPED)
        return True

    def free(self, delivery: Delivery) -> None:
        key = delivery.key
        if self.busy.get(key) is delivery:
            del self.busy[key]
            if key in self.by_key:
                self.ready[key] = None
        self._sweep()

    def _sweep(self) -> None:
        """Where nothing is pending, let go of what was passed over: its values and errors are nobody's here (G18)."""
        if not self.held:
            self.order.clear()

    def purge(self) -> None:
        super().purge()
        self.by_key, self.held = {}, 0
        self.ready.clear()
        for each in self.queue():
            self.by_key.setdefault(each.key, deque()).append(each)
            self.held += 1
            if each.key not in self.busy:
                self.ready[each.key] = None

    def queue(self) -> Iterator[Delivery]:
        return iter([each for each in self.order if each.state is PENDING])

    def blockers(self, delivery: Delivery) -> list[list[Delivery]]:
        groups = self.space_blockers()
        holder = self.busy.get(delivery.key)
        if self.executor is not None and holder is not None:
            groups.append([holder])
        return groups

    def space_blockers(self) -> list[list[Delivery]]:
        groups = super().space_blockers()
        if self.executor is not None and self.by_key and not self.ready:
            # Every key that takes up space has a running call; one of these has to end.
            groups.append([self.busy[key] for key in self.by_key])
        return groups

    def refill(self) -> None:
        super().refill()
        if self.line:
            # What got the space may stand behind a call that waits for space itself.
            self.engine.recheck_waits(tuple(each.receipt for each in self.line))


class InlineMailbox(Mailbox):
    """Of a handler that runs within the emit: what emits in progress have accepted for it and not begun is pending."""

    __slots__ = ()

    def queue(self) -> Iterator[Delivery]:
        # A copy, made by one call: emits come and go without a step.
        emits = tuple(self.engine.inlining)
        return iter([each for emit in emits for each in emit if each.box is self and each.state is PENDING])

    def size(self) -> int:
        return len(list(self.queue()))

    def retire(self, delivery: Delivery, status: Status) -> None:
        self.engine.count(delivery)
        try:
            self.engine.settle(delivery, status)
        finally:
            if delivery.state is SETTLED:
                self.end(delivery)

    def end(self, delivery: Delivery) -> None:
        """It is settled: whether it had begun or not, it is nobody's any more. May be done again."""
        if delivery in self.running:
            self.finish(delivery)
        else:
            self.finished(delivery)

    def blockers(self, delivery: Delivery) -> list[list[Delivery]]:
        """It begins when the one before it in the same emit has ended, whoever else runs the handler meanwhile."""
        emits = [emit for emit in tuple(self.engine.inlining) if delivery in emit]
        before = [[each] for emit in emits for each in emit if each.state is RUNNING]
        # Between two of them, what runs on this stack is code of the handler that emits, if anybody's.
        return before or ([] if delivery.outer is None else [[delivery.outer]])

    def uncounted(self) -> int:
        # Of an emit that took effect in a section: they are counted when they begin.
        return sum(not is_counted(each) for each in self.queue())
