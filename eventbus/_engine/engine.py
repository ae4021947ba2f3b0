"""The engine of one bus: its state, and what changes it: emit, register, cancel, settle.

What else is done to a bus stands in modules of its own: draining.py, closing.py, process.py (fork and exit), waits.py.

Linearization points (each is one step of the monitor or one section, see ``primitives.SECTIONS``, in Python or in C;
for calls that interrupt a step it is the put-off one)
    emit      :meth:`_admit`, or the first section of :meth:`_emit_in_sections`: all deliveries are made
    on        :meth:`_register`: from here on routes contain the mailbox
    cancel    :meth:`_cancel`: from here on they do not, and nothing is claimed
    claim     ``Mailbox.claim`` within a worker's step, or a section of whoever runs the mailbox
    settle    :meth:`settle`, or the section in ``turn``: a delivery's outcome, once
    drain     ``draining.new_epoch``: what was accepted earlier is in an older epoch
    close     ``closing.begin_close`` (draining), ``closing._end_close`` (closed)

Owner: the bus's monitor, but for what is immutable after construction.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._errors import (
    BusClosedError,
    DeadlockError,
    EventBusError,
    EventCycleError,
    EventTimeoutError,
    HandlerTypeError,
    NoHandlerError,
    OptionError,
    SubscriptionError,
)
from .._values.handler import HandlerSpec, describe, same_handler
from .._values.options import UNSET, Options, check_options
from .._values.payload import PLAIN, to_plain
from .._values.stats import BusStats, CloseReport, HandlerError, Status, SubscriptionStats, summary
from .._values.topic import check_pattern, check_patterns, topic_models
from . import hot, primitives
from .call import TooLate
from .closing import CLOSED, CLOSING, OPEN
from .delivery import LINED, RUNNING, SETTLED, Delivery, Epoch, Holder, current, held, is_counted, running_here
from .dispatcher import Dispatcher, Worker
from .inline import Emitter, begin_inline, end_inline, mend_inline, place, run_inline
from .lane import Lane
from .latency import Histogram
from .mailbox import ACTIVE, COUNTER, DRAINING, ENDED, NEW, NO_COUNTS, InlineMailbox, KeyedMailbox, Mailbox
from .monitor import Interrupted, Monitor, steps
from .process import enrol
from .receipt import Receipt
from .registry import Registry, Route, Tally
from .reporting import report_later
from .timer import Timer
from .waits import Waiter, deadlock, notify, sleep, stuck_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .._values.options import BusOptions
    from .._values.topic import Topic
    from .dispatcher import Executor
    from .subscription import Handle

__all__ = ["Engine"]

log = logging.getLogger("eventbus")
R = TypeVar("R", bound=Receipt)
S = TypeVar("S", bound="Handle")
T = TypeVar("T")

_REMEDY = "; use it before it is closed, or make another bus"
LOOP_SECONDS = 0.5  # between looks at the loops, for one that was closed, while somebody waits
# The latencies of one delivery in so long are measured, on average: all those of an event, and then none for as many
# times as long. What is measured takes a step to settle.
SAMPLE_SECONDS = 0.001


class Engine:
    """All shared mutable state of one bus."""

    __slots__ = (
        "__weakref__",
        "closed_report",
        "closers",
        "defaults",
        "dispatcher",
        "drains",
        "emitter",
        "ended_latencies",
        "ended_totals",
        "epoch",
        "error_watchers",
        "executors",
        "homeless",
        "ids",
        "inlining",
        "keen",
        "lanes",
        "leftovers",
        "max_depth",
        "monitor",
        "name",
        "old_epochs",
        "options",
        "problems",
        "propagates",
        "registry",
        "sampled",
        "sampled_size",
        "seqs",
        "sleepers",
        "state",
        "timer",
        "uid",
        "waiting",
        "watching_loops",
    )

    def __init__(self, name: str, options: BusOptions, defaults: Options) -> None:
        self.name = name
        self.options = options
        self.defaults = defaults
        self.monitor = Monitor(self._repair)
        self.registry = Registry()
        self.timer = Timer(self.monitor, name)
        cores = (os.cpu_count() or 1) if primitives.FREE_THREADED else 1
        limit = options.workers or min(cores, options.max_workers)
        self.dispatcher = Dispatcher(self, limit, options.max_workers, name)
        self.seqs = itertools.count(1)  # next() is atomic on every build
        self.ids = itertools.count(1)
        # Told of errors besides on_error: services watch their own subscriptions this way.
        self.error_watchers: dict[int, Callable[[HandlerError], None]] = {}
        self.emitter = Emitter(self.dispatcher)
        # When latencies were measured last, by the wall clock, and of how many deliveries. Written by any thread: what
        # a race costs is a measurement too many, or too few for a moment.
        self.sampled = 0.0
        self.sampled_size = 1
        self.max_depth = options.max_depth
        self.propagates = options.propagate_errors
        self.renew()
        enrol(self)

    def renew(self) -> None:
        """The state that a forked child does not inherit."""
        self.uid = primitives.new_uid()
        self.ended_totals = [0] * 7  # deliveries and the six outcomes of ended subscriptions
        self.ended_latencies = (Histogram(), Histogram())
        self.state = OPEN
        self.epoch = Epoch()
        self.old_epochs: list[Epoch] = []
        self.lanes: dict[str, Lane] = {}
        self.inlining: list[Sequence[Delivery]] = []  # the inline deliveries of each emit that runs them now
        self.waiting: dict[Waiter, None] = {}  # waits of handlers, for the wait graph
        self.drains: list[Waiter] = []
        self.keen = 0  # drains, waited for within handlers, that want to know of each settling
        self.closers: list[Waiter] = []  # waits for the end of a close
        self.watching_loops = False
        self.sleepers = 0  # waits in progress, of anybody
        self.executors: list[Executor] = []  # of event loops
        self.leftovers: dict[int, Mailbox] = {}  # ended or draining subscriptions with calls that go on
        self.problems: list[tuple[HandlerError, str]] = []
        self.closed_report: CloseReport | None = None
        self.homeless = 0  # deliveries cancelled at the begin of the close because no loop runs their handlers

    # Emit

    def emit(
        self,
        make: Callable[..., R],
        topic: str,
        payload: Any,
        headers: Mapping[str, Any] | None = None,
        require: int = 0,
        follow: bool = False,
        propagate: bool = False,
        cause: Delivery | None = None,
        own: bool = False,
        patient: bool = True,
    ) -> R:
        """Accept an event and make its deliveries; if ``patient``, a thread without a running loop waits for space.

        ``own``: of the bus's own, which never blocks and is taken while the bus drains.
        """
        now = primitives.wall_clock()
        receipt = make(self, topic, payload, copy_context(), now, next(self.seqs))
        if not 0.0 <= now - self.sampled < SAMPLE_SECONDS * self.sampled_size:  # after a jump of the clock, once more
            self.sampled = now
            self.sampled_size = 1  # until it is known
            receipt._mark = primitives.monotonic()
        if headers is not None:
            receipt._headers = headers
        if propagate:
            receipt._propagate = True
        if cause is None:
            cause = held()
        if cause is not None or follow or self.max_depth is not None:
            self._descend(receipt, cause, follow)
        route = self.registry.routes.get(topic)
        try:
            if (
                route is None
                or not route.swift
                or follow
                or (cause is not None and (cause.state is not RUNNING or cause.box.engine is not self))
                or (steps and primitives.get_ident() in steps)
                or (primitives.tools() and primitives.watched())
            ):
                self._emit_in_step(receipt, cause, require, own)
            else:
                self._emit_in_sections(receipt, route, cause, require, own)
            if receipt._accepting and patient and not own:
                self._wait_for_space(receipt)
            return receipt
        finally:
            # The traceback of an inline handler's error holds this frame, and the receipt that error: no cycle (G18).
            del receipt

    def _emit_in_sections(
        self, receipt: Receipt, route: Route, cause: Delivery | None, require: int, own: bool
    ) -> None:
        """The hot path: mailboxes that ask for no more than an append. See primitives.SECTIONS."""
        monitor = self.monitor
        boxes = route.boxes
        size = route.size
        all_inline = route.all_inline
        inlining = self.inlining
        epoch = self.epoch if cause is None or cause.epoch is None else cause.epoch
        deliveries = [Delivery(receipt, box, epoch) for box in boxes]
        if all_inline:
            place(deliveries)
        counted = deliveries if route.counted == size else [each for each in deliveries if not each.box.observer]
        accepted = False
        done = 0
        try:
            # Section: an emit takes effect.
            if (
                route.generation == self.registry.generation
                and not monitor.busy
                and not monitor.deferred
                and self.state == OPEN
                and route.counted >= require
                and (cause is None or (cause.state is RUNNING and cause.receipt._follows is None))
                and epoch is (self.epoch if cause is None or cause.epoch is None else cause.epoch)
            ):
                accepted = True
                epoch.open += size
                route.tally.emits += 1
                receipt._deliveries = counted
                receipt._left = route.counted
                receipt._observers = size - route.counted
                if all_inline:
                    inlining.append(deliveries)
                # End of section.
            if not accepted:
                self._emit_in_step(receipt, cause, require, own)
                return
            if receipt._mark:
                self.sampled_size = size or 1
            if all_inline:
                run_inline(self, receipt, deliveries)
                return
            idle = False
            for delivery in deliveries:
                box = delivery.box
                # Section: a delivery is admitted.
                if not monitor.busy and box.admits and box.held < box.bound:
                    done += 1
                    box.deliveries += 1
                    box.held += 1
                    box.pending.append(delivery)
                    # End of section.
                else:
                    monitor.run(self._admit_rest, deliveries, done)
                    break
                # No "if" at the end: the jump back would stand outside of the try, see tests/house/test_jumps.py.
                idle = idle or not (box.queued or (box.flows and box.running))
            if idle:
                monitor.run(self._schedule, boxes)
        except BaseException:
            if accepted:
                # It is noted first: where the stack is exhausted, whoever flushes next has more of it.
                monitor.after.append(partial(self.mend_emit, route, deliveries, done))
                monitor.flush()
            raise
        finally:
            # The traceback of an inline handler's error holds this frame (G18).
            del receipt, deliveries, counted
            delivery = None  # type: ignore[assignment]

    def follow_up(
        self, receipt: Receipt, boxes: tuple[Mailbox, ...], rest: list[Delivery] | None, idle: bool
    ) -> None:  # pragma: no cover - for the hot path in C
        """What is left of an emit whose sections were run by the hot path in C: admit what needs a step, wake, wait."""
        if rest is not None:
            self.monitor.run(self._admit_rest, rest, 0)
        if idle:
            self.monitor.run(self._schedule, boxes)
        if receipt._accepting:
            self._wait_for_space(receipt)

    def mend_emit(self, route: Route, deliveries: Sequence[Delivery], done: int) -> None:
        """An emit that has taken effect ends by an exception: see to it that nothing of it is left half-done."""
        if route.all_inline:
            self.monitor.run(mend_inline, self, deliveries)
        else:
            self.monitor.run(self._mend_swift, route.boxes, deliveries, done)

    def _emit_in_step(self, receipt: Receipt, cause: Delivery | None, require: int, own: bool) -> None:
        """The way of all other emits."""
        inline: list[Delivery] = []
        try:
            try:
                self._accept(receipt, cause, require, own, inline)
            except Interrupted:
                self.monitor.defer(partial(self._catch_up, receipt, cause, require, own))
                return
            if inline:
                run_inline(self, receipt, inline, counted=True)
        except BaseException:
            if inline:
                self.monitor.after.append(partial(self.monitor.run, mend_inline, self, inline))  # as above
                self.monitor.flush()
            raise
        finally:
            del receipt, inline  # as above

    def emit_own(self, topic: str, payload: Any, cause: Delivery | None = None) -> Receipt | None:
        """An emit of the bus's own, under ``bus/``: it never blocks, and makes no event where nobody listens."""
        if self.state == CLOSED or not self.look(self.registry.reaches, topic):
            return None
        try:
            return self.emit(Receipt, topic, payload, cause=cause, own=True)
        except BusClosedError:
            return None

    def _accept(
        self,
        receipt: Receipt,
        cause: Delivery | None,
        require: int,
        own: bool,
        inline: list[Delivery],
        late: bool = False,
    ) -> None:
        """Let an emit take effect; adds the ``inline`` deliveries, to be run here and now."""
        monitor = self.monitor
        keys: dict[Mailbox, _Key] | None = None
        route = self.registry.routes.get(receipt._topic)
        if route is not None and route.keyed:
            keys = self._keys(receipt, route.boxes, {})
        ident = primitives.get_ident()
        while True:
            if ident in steps:
                raise Interrupted
            if monitor.busy:
                monitor.stand_back()
            try:
                with monitor.lock:
                    if monitor.busy or (monitor.deferred and not late and monitor.pending_here()):
                        raise Interrupted
                    monitor.busy = True
                    try:
                        steps[ident] = monitor
                        # A late one is tried again if a signal handler raised, though it may have taken effect.
                        if not late or receipt._left is None:
                            self._admit(receipt, cause, require, own, keys, inline)
                        if late:
                            monitor.leave_line()
                    finally:
                        monitor.busy = False
                        if ident in steps:
                            del steps[ident]
                        trash = monitor.trash
                        if trash:
                            monitor.trash = []
                del trash
                if monitor.after or monitor.deferred:
                    monitor.flush(late)
            except _KeysWanted as wanted:
                monitor.flush()  # key functions are user code: what interrupted the step comes first
                keys = self._keys(receipt, wanted.boxes, keys or {})
                continue
            except Interrupted:
                raise
            except BaseException as error:
                monitor.mend(error)
                monitor.flush(late)
                raise
            return

    def _catch_up(self, receipt: Receipt, cause: Delivery | None, require: int, own: bool) -> None:
        """The emit of a call that interrupted a step: it never blocks, and has nobody left to raise to."""
        inline: list[Delivery] = []
        try:
            self._accept(receipt, cause, require, own, inline, late=True)
            if inline:
                run_inline(self, receipt, inline, counted=True, late=True)
        except BaseException as error:
            if inline:
                self.monitor.after.append(partial(self.monitor.run, mend_inline, self, inline))  # as above
                self.monitor.flush(late=True)
            elif isinstance(error, EventBusError):
                log.warning("an emit of %r that was put off is refused: %s", receipt._topic, error)
                receipt._refuse(error)
                return
            raise

    def _descend(self, receipt: Receipt, cause: Delivery | None, follow: bool) -> None:
        """Note what caused this event (G19). Raises EventCycleError."""
        most = self.max_depth
        chain: tuple[str, ...] | None = None
        if cause is None:
            if most is not None:
                receipt._lineage = (receipt._uid, receipt._seq, receipt._uid, receipt._seq, 0, (receipt._topic,))
        else:
            uid, seq, above = cause.parentage()
            depth = 1 if above is None else above[4] + 1
            root = (uid, seq) if above is None or above[4] == 0 else (above[2], above[3])
            if most is not None:
                chain = (*(above[5] or () if above else ()), receipt._topic)
                if depth > most and receipt._topic != "bus/error":  # whose handlers' errors cause no further one
                    raise EventCycleError(
                        f"an emit of {receipt._topic!r} at depth {depth} goes deeper than max_depth={most}:"
                        f" {' -> '.join(chain)}; break the cycle of handlers or raise max_depth",
                        chain,
                    )
            receipt._lineage = (uid, seq, *root, depth, chain)
        if follow:
            receipt._follows = (receipt,)
            receipt._family = set()

    def _keys(self, receipt: Receipt, boxes: Iterable[Mailbox], keys: dict[Mailbox, _Key]) -> dict[Mailbox, _Key]:
        """Ask the key functions, outside of any step."""
        for box in boxes:
            if box.key is not None and box not in keys:
                try:
                    key = box.key(receipt._as_event())
                    hash(key)
                    keys[box] = (key, None)
                except Exception as error:
                    keys[box] = (None, error)
        return keys

    def _admit(
        self,
        receipt: Receipt,
        cause: Delivery | None,
        require: int,
        own: bool,
        keys: dict[Mailbox, _Key] | None,
        inline: list[Delivery],
    ) -> None:
        """In a step: the instant at which an emit takes effect."""
        route = self.registry.route(receipt._topic)
        epoch = self.epoch
        if cause is not None:
            # Only a handler that has not ended yet, and on this bus, has its emits waited for.
            if cause.state is SETTLED or cause.box.engine is not self:
                cause = None
            else:
                epoch = cause.epoch or epoch
        if self.state != OPEN and not (self.state == CLOSING and (own or cause is not None)):
            state = ("", "closing", "closed")[self.state]
            raise BusClosedError(f"the bus {self.name!r} is {state}: {receipt._topic!r} was not emitted{_REMEDY}")
        if route.counted < require:
            raise NoHandlerError(
                f"require={require} handlers for {receipt._topic!r}, but {route.counted} listen;"
                " register before you emit"
            )
        boxes = route.boxes
        if route.keyed:
            missing = [box for box in boxes if box.key is not None and (keys is None or box not in keys)]
            if missing:
                raise _KeysWanted(missing)
        # From here on this is not done again.
        # What observers cause is waited for no more than they are themselves.
        above = None if cause is None or cause.box.observer else cause.receipt._follows
        if above is not None:
            receipt._follows = above if receipt._follows is None else (receipt, *above)
        counted = route.counted
        size = route.size
        follows = receipt._follows
        if receipt._mark:
            self.sampled_size = size or 1
        elif boxes and not boxes[0].deliveries:
            receipt._mark = primitives.monotonic()
        delivery: Delivery | None = None
        done = 0
        deliveries: list[Delivery] = []
        # It takes effect: no call from here to the try, so that no signal handler can raise between.
        route.tally.emits += 1
        receipt._deliveries = deliveries
        receipt._left = counted
        receipt._observers = size - counted
        epoch.open += size
        try:
            if not boxes:
                self._complete(receipt)
                return
            if follows is not None:
                for each in follows:
                    each._left += 0 if each is receipt else counted
            for box in boxes:
                delivery = Delivery(receipt, box, epoch)
                box.deliveries += 1
                done += 1
                if not box.observer:
                    deliveries.append(delivery)
                    if follows is not None:
                        for each in follows:
                            each._family.add(delivery)
                if box.plain:
                    if not box.line and box.held < box.bound:
                        box.held += 1
                        box.pending.append(delivery)
                        if not box.queued and len(box.running) < box.concurrency:
                            box.queued = True
                            box.executor.push(box)  # type: ignore[union-attr]
                    else:
                        box.offer(delivery)
                elif box.inline:
                    delivery.info = box.info  # says that it is counted
                    place((delivery,))
                    inline.append(delivery)
                    if inline[0] is delivery:
                        self.inlining.append(inline)
                else:
                    self._offer(box, delivery, keys)
        except BaseException:
            self._mend(receipt, boxes, done, epoch, delivery)
            raise
        if follows is not None:
            self.recheck_waits(follows)

    def _admit_rest(self, deliveries: Sequence[Delivery], done: int) -> None:
        """In a step: an emit that has taken effect goes on where a mailbox asked for more than an append."""
        for delivery in deliveries[done:]:
            box = delivery.box
            if not box.deliveries and not delivery.receipt._mark:
                delivery.receipt._mark = primitives.monotonic()
            if box.state == ACTIVE or box.state == DRAINING:
                self.count(delivery)
                self._offer(box, delivery, None)
            else:
                self.cancel_late(delivery)

    def count(self, delivery: Delivery) -> None:
        if not is_counted(delivery):
            delivery.box.deliveries += 1
            delivery.info = delivery.box.info

    def cancel_late(self, delivery: Delivery) -> None:
        """In a step: its mailbox has ended since the emit took effect, or a signal handler broke its admission."""
        box = delivery.box
        self.count(delivery)
        if box.state == ENDED and box.id not in self.leftovers:
            self.ended_totals[0] += 1
            self.ended_totals[1 + COUNTER[Status.CANCELLED]] += 1
        self.settle(delivery, Status.CANCELLED)

    def _repair(self) -> None:
        """In a step, after a signal handler has broken another by raising: what is ready has somebody to run it.

        By a lane, or by space, any mailbox may become ready in any step.
        """
        boxes = self.all_boxes()
        for executor in (self.dispatcher, *self.executors):
            executor.mend(boxes)

    def _schedule(self, boxes: Iterable[Mailbox]) -> None:
        for box in boxes:
            box.schedule()

    def _mend_swift(self, boxes: tuple[Mailbox, ...], deliveries: Sequence[Delivery], done: int) -> None:
        """In a step: a signal handler has raised in the midst of an emit that has taken effect; cancel the rest."""
        for box in boxes:
            box.purge()
        for delivery in deliveries[done:]:
            if delivery.state is not SETTLED and not delivery.box.mend(delivery):
                self.cancel_late(delivery)
        for executor in {box.executor for box in boxes if box.executor is not None}:
            executor.mend(boxes)

    def _offer(self, box: Mailbox, delivery: Delivery, keys: dict[Mailbox, _Key] | None) -> None:
        """In a step: admit to a mailbox that asks for more than an append."""
        if box.executor is None:
            self.leave_epoch(delivery)
        if box.key is not None and keys is not None:
            key, error = keys[box]
            if error is not None:
                report_later(self, delivery, error, "key")
                self.settle(delivery, Status.FAILED, None, error)
                return
            delivery.key = key
        box.offer(delivery)

    def _mend(
        self, receipt: Receipt, boxes: tuple[Mailbox, ...], done: int, epoch: Epoch, last: Delivery | None
    ) -> None:
        """In a step that a signal handler broke by raising: cancel what was not admitted, so that the sums hold.

        All but the last delivery that was counted are whole; :meth:`_emit_in_step` sees to those of inline handlers.
        """
        for box in boxes:
            box.purge()
        if done and last is not None and last.state is not SETTLED:
            self._register_delivery(receipt, last)
            if not last.box.mend(last):
                self.settle(last, Status.CANCELLED)
        for box in boxes[done:]:
            each = Delivery(receipt, box, epoch)
            box.deliveries += 1
            self._register_delivery(receipt, each)
            self.settle(each, Status.CANCELLED)
        for executor in {box.executor for box in boxes if box.executor is not None}:
            executor.mend(boxes)

    def _register_delivery(self, receipt: Receipt, delivery: Delivery) -> None:
        if not delivery.box.observer:
            if delivery not in receipt._deliveries:
                receipt._deliveries = [*receipt._deliveries, delivery]
            for each in receipt._follows or ():
                each._family.add(delivery)

    def recheck_waits(self, receipts: tuple[Receipt, ...]) -> None:
        """In a step: a handler's wait for one of these may have become endless.

        An emit added to what a follower waits for, one of those that could have answered a request has failed, or what
        was in line before it for a keyed mailbox's space has got that.
        """
        for receipt in receipts:
            for waiter in receipt._waiters or ():
                if waiter.owner is not None and not waiter.done:
                    cycle = stuck_on(waiter.owner, waiter)
                    if cycle:
                        waiter.error = deadlock(waiter, cycle)
                        waiter.done = True
                        self.monitor.after.append(waiter.wake)

    def _wait_for_space(self, receipt: Receipt) -> None:
        """In a thread, an emit waits until its deliveries are admitted or rejected; on a loop nothing blocks (G9)."""
        if primitives.running_loop() is not None:
            return
        while True:
            waiter = receipt._accept_waiter()
            try:
                sleep(self, waiter, None, insist=False)
                return
            except DeadlockError as error:
                if not self.look(self._reject_stuck, receipt, error.cycle):
                    return

    def _reject_stuck(self, receipt: Receipt, cycle: tuple[str, ...], actor: Any = None) -> bool:
        """In a step: this wait for space would never end; reject those deliveries that make it so."""
        owner = running_here(primitives.get_ident() if actor is None else actor)
        lined = receipt._lined()
        stuck = lined if owner is None else [each for each in lined if stuck_on(owner, receipt._accept_waiter(each))]
        for each in stuck or lined:
            each.box.reject_stuck(each, cycle)
        return receipt._accepting > 0

    # Settling

    def settle(
        self,
        delivery: Delivery,
        status: Status,
        value: Any = None,
        error: BaseException | None = None,
        took: float = 0.0,
        again: tuple[Receipt, Mailbox, int] | None = None,
    ) -> None:
        """In a step: the one outcome of a delivery. Later ones are ignored.

        What counts is done without a call or a jump, so that no signal handler can break it by raising; what tells
        others is done ``again`` if one did.
        """
        if again is None:
            state = delivery.state
            if state is SETTLED:
                return
            box = delivery.box
            receipt = delivery.receipt
            counts = box.counts
            if counts is NO_COUNTS:
                counts = box.own_counts()
            index = COUNTER[status]
            epoch = delivery.epoch
            delivery.status = status
            delivery.value = value
            delivery.error = error
            delivery.duration = took
            delivery.info = box.info
            delivery.epoch = None
            delivery.state = SETTLED
            if state is LINED:
                receipt._accepting -= 1
            counts[index] += 1
            if epoch is not None:
                epoch.open -= 1
            if box.observer:
                receipt._observers -= 1
            else:
                receipt._left -= 1
        else:
            receipt, box, state = again
        try:
            if hot.track is not None:
                hot.track(delivery, receipt)
            if delivery.deadline is not None:
                self.timer.forget(delivery.deadline)
                delivery.deadline = None
            if receipt._waiters:
                notify(self, receipt._waiters)
                if status is not Status.DELIVERED:
                    self.recheck_waits((receipt,))
            if not box.observer:
                follows = receipt._follows
                if follows is not None:
                    self._settle_followed(follows, delivery)
            if not receipt._left and not receipt._observers:
                self._complete(receipt)
            if self.drains:
                notify(self, self.drains)
            if state is not RUNNING:
                if delivery.receipt is not None:  # pyright: ignore[reportUnnecessaryComparison]
                    delivery.release()
                if box.lane is not None:
                    box.lane.offer()
        except BaseException:
            if again is None:
                self.settle(delivery, status, again=(receipt, box, state))
            raise

    def _settle_followed(self, follows: tuple[Receipt, ...], delivery: Delivery) -> None:
        """In a step: a delivery is settled that stands on other receipts, too."""
        own = delivery.receipt
        for each in follows:
            if delivery in each._family:
                if each is not own:
                    each._left -= 1
                each._family.discard(delivery)
            if each is not own and not each._left:
                if each._observers:
                    notify(self, each._waiters or ())  # its payload is still wanted
                else:
                    self._complete(each)

    def complete(
        self, delivery: Delivery, status: Status, value: Any, error: BaseException | None, took: float
    ) -> None:
        """In a step: a call has ended. It is settled, unless a time-out has done that, and its place is free."""
        if delivery.receipt is None:  # pyright: ignore[reportUnnecessaryComparison]
            return  # it is complete; a signal handler that raised made somebody ask again
        mark = delivery.receipt._mark
        box = delivery.box
        if mark:
            box.sample(max(0.0, primitives.monotonic() - mark - took), took)
        if delivery.state is not SETTLED:
            self.settle(delivery, status, value, error, took)
        box.finish(delivery)

    def _complete(self, receipt: Receipt) -> None:
        """In a step: every delivery is settled. Let go of the payload and the context, outside of the lock."""
        self.monitor.trash.append((receipt._payload, receipt._context, receipt._event))
        receipt._payload = receipt._context = receipt._event = receipt._engine = None
        receipt._follows = None  # one that follows holds itself by it
        waiters = receipt._waiters
        if waiters:
            notify(self, waiters)
        receipt._waiters = None

    def leave_epoch(self, delivery: Delivery) -> None:
        """In a step: no drain waits for this delivery (any more)."""
        if delivery.epoch is not None:
            delivery.epoch.open -= 1
            delivery.epoch = None
            if self.drains:
                notify(self, self.drains)

    def arm(self, delivery: Delivery) -> None:
        """In a step: a claimed delivery begins; its time-out starts."""
        timeout = delivery.box.timeout
        if timeout is not None:
            delivery.deadline = self.timer.at(timeout, lambda: delivery.worker.expire(delivery))

    def expire(self, delivery: Delivery) -> None:
        """In a step: a handler is past its time-out; settle its delivery though the call goes on."""
        if delivery.state is RUNNING:
            error = EventTimeoutError(
                f"the handler {delivery.box.name} took longer than its timeout of {delivery.box.timeout:g} s"
                f" for {delivery.receipt._topic!r}"
            )
            report_later(self, delivery, error, "timeout")
            self.settle(delivery, Status.TIMED_OUT, None, error, delivery.box.timeout or 0.0)

    # Registration

    def register(
        self,
        make: Callable[[Mailbox], S],
        patterns: tuple[str, ...],
        spec: HandlerSpec,
        options: Options,
        executor: Executor | None,
        *,
        raw: bool = False,
        home: Any = None,
        closer: Callable[[], None] | None = None,
        kind: type[Mailbox] | None = None,
        admit: Callable[[S], object] | None = None,
        watcher: Callable[[HandlerError], None] | None = None,
    ) -> S:
        """Register a handler on patterns; in effect when this returns, or when the interrupted step ends.

        ``admit`` is given the handle before that.
        """
        if kind is None:
            kind = InlineMailbox if options.inline else Mailbox if options.key is None else KeyedMailbox
        box = kind(self, next(self.ids), patterns, spec, options, raw)
        box.home = home
        box.closer = closer
        handle: S | None = None
        try:
            box.handle = handle = make(box)
            if admit is not None:
                admit(handle)
            if watcher is not None:
                self.error_watchers[box.id] = watcher
            self.monitor.run_in_turn(self._register, box, executor)
        except Interrupted:
            self.monitor.defer(lambda: self._register_late(box, executor))
        except BaseException:
            self.error_watchers.pop(box.id, None)
            if box.state == NEW:
                box.state = ENDED  # without a step, for this may be in the midst of one
            else:
                self.monitor.run(self._unregister, box)
            raise
        assert handle is not None
        return handle

    def _register_late(self, box: Mailbox, executor: Executor | None) -> None:
        try:
            self.monitor.run_late(self._register, box, executor)
        except EventBusError as error:
            log.warning("a registration of %s that was put off is refused: %s", box.name, error)
            self.error_watchers.pop(box.id, None)
            box.state = ENDED

    def _register(self, box: Mailbox, executor: Executor | None) -> None:
        if self.state != OPEN:
            raise BusClosedError(f"the bus {self.name!r} is closed: {box.name} was not registered{_REMEDY}")
        if box.state not in (NEW, ACTIVE):
            self.error_watchers.pop(box.id, None)
            return  # cancelled before it took effect
        if box.home is not None:
            executor = box.home.runner()  # it may have changed since the call began
        elif executor is not None and executor.gone:
            raise OptionError(f"the loop of {box.name} was closed before it was registered; give one that runs")
        # Active: a signal handler broke this off by raising, and it is tried again.
        if box.options.unique and box.state == NEW:
            self._refuse_second(box)
        lane = box.options.lane
        if lane is not None and box.lane is None:
            box.lane = self.lanes.setdefault(lane, Lane(lane))
            box.lane.members += 1
        box.state = ACTIVE
        box.attach(executor)
        self.registry.add(box)

    def _unregister(self, box: Mailbox) -> None:
        """In a step: a registration that raised leaves nothing behind, however far it had come."""
        if box.state == ACTIVE:
            self._cancel(box, False)

    def _refuse_second(self, box: Mailbox) -> None:
        assert box.spec is not None
        for other in self.registry.boxes.values():
            if other.spec is not None and same_handler(other.spec.function, box.spec.function):
                for pattern in box.patterns:
                    if pattern in other.patterns:
                        raise SubscriptionError(
                            f"{box.name} is registered for {pattern!r} already (subscription {other.id}) and"
                            " unique=True refuses a second time; cancel the first or drop unique"
                        )

    def cancel(self, box: Mailbox, drain: bool = False) -> bool:
        """End a subscription; tells whether it was this call that did."""
        try:
            return self.monitor.run_in_turn(self._cancel, box, drain)
        except Interrupted:
            ending = box.state in (NEW, ACTIVE)
            self.monitor.defer(lambda: self._cancel_deferred(box, drain))
            return ending
        except BaseException:
            self.monitor.run(self._mend_cancel, box)
            raise

    def _cancel_deferred(self, box: Mailbox, drain: bool) -> None:
        try:
            self.monitor.run_late(self._cancel, box, drain)
        except BaseException:
            self.monitor.run(self._mend_cancel, box)
            raise

    def _cancel(self, box: Mailbox, drain: bool) -> bool:
        state = box.state
        if state == ENDED or (state == DRAINING and drain):
            return False
        if state == NEW:
            box.state = ENDED
            return True
        self.leftovers[box.id] = box
        box.state = DRAINING if drain and box.executor is not None else ENDED
        box.admits = box.flows = False
        self._finish_cancel(box)
        return state == ACTIVE

    def _mend_cancel(self, box: Mailbox) -> None:
        """In a step, after a signal handler has raised in the midst of a cancel: finish what had begun."""
        box.purge()
        self._finish_cancel(box)

    def _finish_cancel(self, box: Mailbox) -> None:
        if box.state in (DRAINING, ENDED) and box.id in self.leftovers:
            self.registry.remove(box)
            if box.closer is not None:
                self.monitor.after.append(box.closer)
            if box.state == ENDED and (box.deliveries or box.inline):
                self.cancel_pending(box)
            self.ripen(box)

    def cancel_pending(self, box: Mailbox) -> int:
        """In a step: settle as cancelled what has not begun; gives how many."""
        count = 0
        for delivery in list(box.queue()):
            box.retire(delivery, Status.CANCELLED)
            count += 1
        while box.line:
            box.retire_lined(box.line[0], Status.CANCELLED)
            count += 1
        if count and box.waiters:
            notify(self, box.waiters)
        return count

    def ripen(self, box: Mailbox) -> None:
        """In a step: an ended subscription lets go of its handler once no call runs any more (G18)."""
        if box.state == DRAINING and box.idle():
            box.state = ENDED
        if box.state != ENDED or box.running or box.id not in self.leftovers:
            return
        if box.id in self.registry.boxes or not box.idle():
            return  # a signal handler broke the cancel by raising, and it is about to be mended
        totals = self.ended_totals
        if box.deliveries:
            totals = [total + count for total, count in zip(totals, (box.deliveries, *box.counts), strict=True)]
        if box.latencies is not None:
            self.ended_latencies[0].merge(box.latencies[0])
            self.ended_latencies[1].merge(box.latencies[1])
            box.latencies = None
        self.monitor.trash.append((box.spec, box.options, box.home, box.key))
        if self.error_watchers:
            self.error_watchers.pop(box.id, None)
        if box.key is not None:
            box.options = box.options.but(key=None)
        lane = box.lane
        if lane is not None:
            box.lane = None
            lane.members -= 1
            if not lane.members:
                self.lanes.pop(lane.name, None)
        box.spec = box.home = box.key = box.handle = box.closer = None
        box.executor = None
        # From here on it is counted there; no call between, so that no signal handler can raise there.
        del self.leftovers[box.id]
        self.ended_totals = totals
        if box.waiters:
            notify(self, box.waiters)

    # Waiting

    def recheck(self) -> None:
        """In a step: who waits for whom has changed; drains within handlers leave out what waits for them."""
        if self.drains:
            notify(self, self.drains)

    def watch_loops(self) -> None:
        """In a step: somebody waits; see to it that a loop that was closed meanwhile is noticed."""
        if not self.watching_loops and self.executors:
            self.timer.at(LOOP_SECONDS, self._look_at_loops)
            self.watching_loops = True

    def _look_at_loops(self) -> None:
        self.watching_loops = False
        for executor in list(self.executors):
            executor.check()
        if self.sleepers:
            self.watch_loops()

    # Looking

    def all_boxes(self) -> list[Mailbox]:
        """In a step: the mailboxes of all subscriptions that are active, or ended with calls that go on."""
        return [*self.registry.boxes.values(), *self.leftovers.values()]

    def all_unsettled(self) -> list[Delivery]:
        """In a step: the deliveries of the whole bus that are not settled."""
        return [each for box in self.all_boxes() for each in box.unsettled()]

    def look(self, read: Callable[..., T], *args: Any) -> T:
        """Read (or decide) in a step; a call that interrupts one sees what that one has done so far."""
        try:
            return self.monitor.run(read, *args)
        except Interrupted:
            return read(*args)

    def stats(self) -> BusStats:
        """In a step: the picture of this instant."""
        sums = list(self.ended_totals)
        pending = running = 0
        wait, run = Histogram(), Histogram()
        wait.merge(self.ended_latencies[0])
        run.merge(self.ended_latencies[1])
        rows: dict[int, SubscriptionStats] = {}
        for box in self.all_boxes():
            row = box.stats()
            if box.state == ACTIVE:
                rows[box.id] = row
            sums[0] += row.deliveries
            for index, count in enumerate(box.counts, 1):
                sums[index] += count
            pending += row.pending
            running += row.running
            if box.latencies is not None:
                wait.merge(box.latencies[0])
                run.merge(box.latencies[1])
        totals = summary(sums, pending, running, wait.latency(), run.latency())
        emits = self.registry.emits()
        return BusStats(sum(emits.values()), totals, rows, emits, self.dispatcher.stats())

    def prepare(
        self,
        topics: Any,
        handler: Any,
        given: Mapping[str, Any],
        *,
        coroutines: bool = False,
    ) -> tuple[tuple[str, ...], HandlerSpec, Options]:
        """Check a registration, changing nothing: the patterns, what the handler is, the options (G17)."""
        models: tuple[Topic[Any], ...] = ()
        if type(topics) is str:
            patterns: tuple[str, ...] = (check_pattern(topics),)
        else:
            if hasattr(topics, "__next__"):
                topics = list(topics)  # it can be read only once
            patterns = check_patterns(topics)
            models = topic_models(topics)
        spec = describe(handler, payload=given.get("payload", UNSET), topics=models)
        if spec.is_async and not coroutines:
            raise HandlerTypeError(
                f"{spec.name} is a coroutine handler, which needs an event loop; register it on"
                " eventbus_async.AsyncEventBus(bus), the asyncio face of this bus"
            )
        return patterns, spec, check_options(self.defaults, given, is_async=spec.is_async)

    def find(self, topic: str) -> list[Mailbox]:
        """In a step: the mailboxes that are registered under exactly this topic or pattern."""
        return [box for box in self.registry.boxes.values() if topic in box.patterns]


_Key = tuple[Any, "BaseException | None"]


class _KeysWanted(Exception):
    """Key functions have to be asked, outside of the step, before an emit can take effect."""

    def __init__(self, boxes: list[Mailbox]) -> None:
        super().__init__()
        self.boxes = boxes


hot.bind(
    {
        "Delivery": Delivery,
        "Dispatcher": Dispatcher,
        "Emitter": Emitter,
        "Engine": Engine,
        "Epoch": Epoch,
        "HandlerSpec": HandlerSpec,
        "Holder": Holder,
        "Mailbox": Mailbox,
        "Monitor": Monitor,
        "Options": Options,
        "Receipt": Receipt,
        "Registry": Registry,
        "Route": Route,
        "Sleeper": primitives.Sleeper,
        "Tally": Tally,
        "Worker": Worker,
        "DELIVERED": Status.DELIVERED,
        "DROPPED": Status.DROPPED,
        "NO_COUNTS": NO_COUNTS,
        "PLAIN": PLAIN,
        "SAMPLE_SECONDS": SAMPLE_SECONDS,
        "TooLate": TooLate,
        "deque": deque,
        "begin_inline": begin_inline,
        "end_inline": end_inline,
        "mend_emit": Engine.mend_emit,
        "partial": partial,
        "current": current,
        "monotonic": primitives.monotonic,
        "time": primitives.wall_clock,
        "seam": vars(primitives),
        "steps": steps,
        "to_plain": to_plain,
    }
)
