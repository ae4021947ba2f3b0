"""Runs coroutine handlers on one event loop: an executor of mailboxes whose workers are tasks.

A *slot* is one task. One slot at a time claims from the ready mailboxes and steps the handlers' coroutines itself, each
in its delivery's own context; a coroutine that ends without suspending costs no task of its own. When one suspends, its
slot stays with it, gives up the place of the one who claims, and another slot takes it.

A slot need not run to step a handler: it lends its task's identity (asyncio's documented ``_enter_task`` and
``_leave_task``) to whoever serves what is ready, a callback of the loop or a task that is about to await a receipt. Its
coroutine is parked meanwhile, until the next pass of the loop, where it goes on with the handler that has suspended, or
ends. So an idle bus has no task on any loop, and an emit that is awaited needs no pass of it.

Guarantees
    * G4: no handler begins inside ``emit()``. One may begin inside ``await receipt``, for the task that awaits is as
      good as suspended.
    * G7: a handler past its time-out is cancelled, and settled when it has ended, at latest ``GRACE`` later.
    * G13: a loop that is closed loses its handlers, or they are unbound again; nobody who emits hears of it. After a
      slot's task was cancelled from outside, no handler begins until the next push on that loop or ``PAUSE`` later.
    * G14: while a handler runs, its slot's task runs nothing else, and cancelling that cancels only this delivery.

Owner: the bus's monitor, but for ``scheduled``, ``ident``, ``eagers``, ``since``, ``spent``, ``parked``, ``slots``,
``waits`` and what is a slot's own, which the loop's thread alone changes (and whoever finds that the loop is closed).
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from eventbus import HandlerTypeError, Status
from eventbus.lowlevel import (
    ACTIVE,
    CLOSED,
    ENDED,
    PENDING,
    REFUSED,
    RUNNING,
    SETTLED,
    Delivery,
    Executor,
    Interrupted,
    TooLate,
    argument,
    context_of,
    current,
    end,
    hot,
    living,
    primitives,
    report,
    turn,
)

from ._bridge import Bridge

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Generator, Iterable

    from eventbus.lowlevel import Engine, Mailbox, Waiter

# What the hot path in C could not end by itself, see drain() in eventbus/_engine/c/loops.h.
_Came: TypeAlias = "tuple[Delivery, Any, BaseException | None] | bool | Mailbox | None"

__all__ = ["EAGERS", "SLICE", "LoopExecutor", "Slot", "as_coroutine", "executor_of", "show_still", "swap_task"]

SLICE = 0.004  # seconds that handlers may take of one pass of the loop before others have their turn
EAGERS = 256  # awaits in a row that are served without a pass of the loop
GRACE = 1.0  # how long a cancelled handler may take to end before its delivery is settled without it
PAUSE = 0.05  # after a bus task was cancelled from outside, perhaps because its loop ends


class LoopExecutor(Executor):
    """The handlers of one bus in one loop."""

    __slots__ = (
        "bridge",
        "eagers",
        "ident",
        "loop",
        "parked",
        "paused",
        "roused",
        "scheduled",
        "since",
        "slots",
        "spent",
        "waits",
    )

    def __init__(self, engine: Engine, loop: AbstractEventLoop) -> None:
        super().__init__(engine, 1)
        self.bridge = Bridge(loop, self._begin, self._look)
        self.loop = self.bridge.loop
        self.roused = False  # a slot is counted in ``computing`` that has not begun yet
        self.paused = False  # nobody claims, though ``computing`` says so
        self.scheduled = False  # the loop will call _begin
        self.eagers = 0
        self.since = 0.0  # when this turn of handlers began
        self.spent = 0.0  # when the latest handler ended
        self.ident = 0  # of the loop's thread, while it is scheduled
        self.parked: Slot | None = None  # the slot that lends its identity
        self.slots: dict[Slot, None] = {}  # asyncio itself holds tasks weakly
        self.waits: dict[Waiter, None] = {}  # those that are awaited in the loop

    # Waking

    def rouse(self) -> None:
        self.roused = True
        # Where the loop will call _begin anyhow, its own thread need not ask for it.
        if not self.scheduled or primitives.get_ident() != self.ident:
            self.engine.monitor.after.append(self._wake)

    def watch(self) -> None:
        loop: Any = self.loop()
        if loop is None or loop.is_closed():
            self.engine.monitor.after.append(self._look)
        elif self.paused and primitives.running_loop() is loop:
            self._resume()

    def _wake(self) -> None:
        """Outside of steps, in any thread: see to it that the loop calls ``_begin``."""
        if not self.roused:
            return
        loop = self.loop()
        # Without a task this may be a signal handler in the loop's own sleep, which only a ring ends.
        if loop is not None and primitives.running_loop() is loop and asyncio.current_task(loop) is not None:
            if not self.scheduled:
                self.ident = primitives.get_ident()
                self.scheduled = True
                self.eagers = 0
                self.since = primitives.monotonic()
                loop.call_soon(self._begin, context=self.bridge.context)
        else:
            self.bridge.ring()

    def _begin(self) -> None:
        """On the loop, as a callback of it."""
        self.scheduled = False
        self.eagers = 0
        if self.roused:
            self.since = self.spent = primitives.monotonic()
            self._serve(None)

    def eagerly(self) -> None:
        """On the loop, in a task that is about to wait: serve what is ready now, if it is not others' turn."""
        if self.eagers < EAGERS and self.spent - self.since < SLICE:
            task = asyncio.current_task()
            if task is not None:
                self.eagers += 1
                self._serve(task)

    def _serve(self, task: Any) -> None:
        """On the loop, in that task or none: run what is ready, under the identity of a slot's task."""
        loop = asyncio.get_running_loop()
        slot = self.parked
        if slot is None:
            slot = self.parked = self._make_slot(loop)
        if hot.serve is not None and hot.serve(self, slot, loop, task, self.since + SLICE):
            return
        self._lend(slot, loop, task)

    def _lend(self, slot: Slot, loop: AbstractEventLoop, task: Any) -> None:
        if task is not None:
            _leave_task(loop, task)
        try:
            _enter_task(loop, slot.task)
            try:
                slot.drain(self.begin(slot))
            except BaseException:
                self.mend_slot(slot)
                raise
            finally:
                _leave_task(loop, slot.task)
        finally:
            if task is not None:
                _enter_task(loop, task)
        self.lent(slot)

    def mend_slot(self, slot: Slot) -> None:
        """A signal handler has raised in the midst of a slot's work."""
        self.engine.look(self.recover, slot)

    def lent(self, slot: Slot) -> None:
        """A slot has lent its identity."""
        if slot.suspended or slot.yielding:
            self.parked = None
            self.slots[slot] = None
            _register_task(slot.task)
            # One that yields holds no handler: what has not begun does not need this very task.
            slot.task._log_destroy_pending = slot.suspended
        elif slot.cancelled:
            self.parked = None  # it has nothing left to do but to end

    def _make_slot(self, loop: AbstractEventLoop) -> Slot:
        slot = Slot(self)
        coroutine = slot.run()
        coroutine.send(None)  # to where it parks; the task's own first step, a pass later, goes on from there
        slot.task = slot.actor = task = _Task(coroutine, loop=loop, context=primitives.empty_context())
        # While it only lends its identity it is no task that anybody should find, or miss.
        _unregister_task(task)
        task._log_destroy_pending = False
        return slot

    # Working, on the loop

    def begin(self, slot: Slot) -> Delivery | None:
        """A slot begins; its first delivery."""
        monitor = self.engine.monitor
        ready = self.ready
        following: Delivery | None = None
        box = ready[0] if ready else None
        if box is not None and not (primitives.tools() and primitives.watched()):
            pending = box.pending
            cell = slot.cell
            # Section: a slot begins and claims. See primitives.SECTIONS.
            if (
                self.roused
                and not monitor.busy
                and ready
                and ready[0] is box
                and box.flows
                and box.executor is self
                and box.pending is pending
                and pending
                and pending[0].state is PENDING
                and not box.running
            ):
                self.roused = False
                del ready[0]
                box.queued = False
                following = pending[0]
                del pending[0]
                box.held -= 1
                following.state = RUNNING
                following.worker = slot
                cell[0] = following
                box.running = cell
                slot.delivery = following
                # End of section.
        return monitor.run(self.start, slot) if following is None else following

    def start(self, slot: Slot) -> Delivery | None:
        """In a step: a slot begins; its first delivery."""
        if not self.roused:
            return None
        self.roused = False
        return self.next(slot)

    def next(self, slot: Slot) -> Delivery | None:
        """In a step: the next delivery of the slot that claims, or None, and then nobody claims."""
        delivery = self.pull()
        if delivery is None:
            self.computing = 0
            return None
        slot.delivery = delivery
        delivery.worker = slot
        if delivery.box.timeout is not None:
            self.engine.arm(delivery)
        return delivery

    def proceed(self, slot: Slot, box: Mailbox) -> Delivery | None:
        """In a step: a slot has emptied a mailbox while others have work, or its turn is over; its next delivery."""
        self.requeue(box)
        if self.spent - self.since > SLICE and self.ready:
            slot.yielding = True
            return None
        return self.next(slot)

    def suspend(self, slot: Slot) -> None:
        """In a step: the handler of the slot that claims waits for something."""
        slot.suspended = True
        delivery = slot.delivery
        if hot.track is not None and delivery is not None:
            # Perhaps for something that never comes and that nobody else holds.
            hot.track(delivery, delivery.receipt)
            if delivery.box is not None:  # pyright: ignore[reportUnnecessaryComparison]
                delivery.box.show()
        self.yield_slot()

    def advance(
        self, slot: Slot, delivery: Delivery, status: Status, value: Any, error: BaseException | None, took: float
    ) -> Delivery | None:
        """In a step: a slot's call has ended; its next delivery, or None, and then it yields or ends."""
        try:
            return self._advance(slot, delivery, status, value, error, took)
        except BaseException:
            # A signal handler's: what is not complete is for recover() to see to.
            if slot.delivery is None and delivery.box is not None:  # pyright: ignore[reportUnnecessaryComparison]
                slot.delivery = delivery
            raise

    def _advance(
        self, slot: Slot, delivery: Delivery, status: Status, value: Any, error: BaseException | None, took: float
    ) -> Delivery | None:
        slot.delivery = None
        box = delivery.box
        if not (slot.suspended or slot.cancelled or self.ready) and box is not None and box.executor is self:  # pyright: ignore[reportUnnecessaryComparison]
            # One mailbox alone has work, the common case: no queueing.
            self.engine.complete(delivery, status, value, error, took)
            if not self.ready and not box.queued and box.concurrency == 1 and self.spent - self.since <= SLICE:
                following = box.claim()
                if following is None:
                    self.computing = 0
                else:
                    slot.delivery = following
                    following.worker = slot
                    if box.timeout is not None:
                        self.engine.arm(following)
                return following
            self.requeue(box)
        else:
            self.done(delivery, status, value, error, took)
        suspended, slot.suspended = slot.suspended, False
        if slot.cancelled > slot.ours:
            if not suspended or self.roused or not self.computing:
                self.pause()
            return None
        if suspended:
            if self.computing or not self.ready:
                return None  # somebody else claims
            self.computing = 1
            self.since = self.spent
        if slot.cancelled:
            self.yield_slot()
            return None
        if self.spent - self.since > SLICE and self.ready:
            slot.yielding = True
            return None
        return self.next(slot)

    def done(self, delivery: Delivery, status: Status, value: Any, error: BaseException | None, took: float) -> None:
        box = delivery.box
        self.engine.complete(delivery, status, value, error, took)
        self.requeue(box)

    def requeue(self, box: Mailbox | None) -> None:
        """In a step: a call of that mailbox has ended; it may have been bound to another loop, or ended, meanwhile."""
        if box is not None and not box.queued and box.executor is not None and box.claimable():
            box.queued = True
            if box.executor is self:
                self.ready.append(box)
            else:
                box.executor.push(box)

    def mend(self, boxes: Iterable[Mailbox]) -> None:
        super().mend(boxes)
        if self.ready and not self.paused:
            # Who claims may be lost; that there are two for a moment does no harm.
            self.computing = 1
            self.rouse()

    def recover(self, slot: Slot) -> None:
        """In a step, after a signal handler has raised in the midst of a slot's work: cancel what it was at."""
        delivery, slot.delivery = slot.delivery, None
        if delivery is not None:
            box = delivery.box
            self.engine.complete(delivery, Status.CANCELLED, None, None, 0.0)
            self.requeue(box)
        for box in self.engine.all_boxes():
            if box.executor is self:
                found: list[Any] = list(box.running)  # a cell may be empty
                for each in found:
                    if each is not None and each.state is RUNNING and each.worker is None:  # claimed, and then lost
                        self.engine.complete(each, Status.CANCELLED, None, None, 0.0)
                        self.requeue(box)
        slot.suspended = slot.yielding = False
        self.computing = 0
        if self.ready:
            self.computing = 1
            self.rouse()

    def pause(self) -> None:
        """In a step, on the loop: the task of the slot that claims was cancelled, perhaps because the loop ends."""
        self.computing = 1
        self.roused = False
        self.paused = True
        self.show()
        self.engine.monitor.after.append(self._resume_later)

    def stands_still(self) -> bool:
        """Whether its loop does not run, now or any more."""
        loop = self.loop()
        return loop is None or not loop.is_running()

    def show(self) -> None:
        """In a step, or by the collector: perhaps the loop never goes on, see Mailbox.show."""
        for box in self.engine.all_boxes() if hot.track is not None else ():
            if box.executor is self:
                box.show()

    def halt(self, slot: Slot) -> None:
        """In a step, on the loop: a slot's task was cancelled while no handler ran in it."""
        if slot.yielding or self.roused or not self.computing:
            slot.yielding = False
            self.pause()

    def _resume_later(self) -> None:
        """Outside of steps, in any thread: whichever comes to do what the step has left."""
        loop = self.loop()
        if loop is not None and primitives.running_loop() is loop:
            loop.call_later(PAUSE, self.resume, context=self.bridge.context)
        elif self.paused:
            self.bridge.post(self._resume_later)

    def resume(self) -> None:
        """Outside of steps: after a pause, go on."""
        if self.paused:
            self.engine.look(self._resume)

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            self.yield_slot()

    # Ending

    def _look(self) -> None:
        """Outside of steps: the loop seems to be closed."""
        if not self.gone:
            try:
                self.engine.monitor.run(self.check)
            except Interrupted:
                self.engine.monitor.defer(lambda: self.engine.monitor.run(self.check))

    def check(self) -> None:
        loop = self.loop()
        if self.gone:
            return
        if loop is None or loop.is_closed():
            self._end()
        elif self.roused:
            # It may be busy, or a signal handler that raised there made it lose what it was to call.
            self.engine.monitor.after.append(self.bridge.ring_again)

    def _end(self) -> None:
        """In a step: the loop is gone. Its handlers end; those that were registered without one wait for another."""
        self.gone = True
        engine = self.engine
        if self in engine.executors:
            engine.executors.remove(self)
        for slot in tuple(self.slots):
            slot.task._log_destroy_pending = False  # what it was at is settled here
        engine.monitor.trash.append((self.slots, self.parked))  # none goes on; a facade may hold this executor (G18)
        self.slots, self.parked = {}, None
        for waiter in tuple(self.waits):
            # Its task never goes on, so it does not do this itself; and whatever wakes it would keep it (G18).
            end(engine, waiter)
        self.waits.clear()
        for box in engine.all_boxes():
            if box.executor is self:
                running = list(box.running)
                if box.home is None or box.state != ACTIVE:
                    self.unqueue(box)
                    engine._cancel(box, False)
                else:
                    self.release(box)
                for delivery in running:
                    engine.complete(delivery, Status.CANCELLED, None, None, 0.0)

    def unqueue(self, box: Mailbox) -> None:
        """In a step: it is not to be claimed from here."""
        if box.queued:
            box.queued = False
            if box in self.ready:
                self.ready.remove(box)

    def release(self, box: Mailbox) -> None:
        """In a step: let go of a mailbox, which is unbound from here on; what waits for space there is rejected."""
        self.unqueue(box)
        box.attach(None)
        if box.lane is not None:
            box.lane.offer()
        while box.line:
            box.reject_lined(
                box.line[0], f"the loop of {box.name} is gone and its mailbox is full ({box.limit} pending)"
            )

    def close(self) -> None:
        self.gone = True

    async def abandoned(self) -> list[str]:
        """After a close: give the handlers that it has cancelled a moment to end; the names of those that do not."""
        waited = {slot.task: slot.delivery.box.name for slot in self.slots if slot.abandoned and slot.delivery}
        waited.pop(asyncio.current_task(), None)
        if not waited:
            return []
        _, left = await asyncio.wait(waited, timeout=GRACE)
        for slot in self.slots:
            if slot.task in left:
                slot.abandoned = False  # named once
        return [name for task, name in waited.items() if task in left]

    def after_fork(self) -> None:
        self.gone = True
        for box in self.engine.all_boxes():
            if box.executor is self:
                box.attach(None)
                if box.home is None:
                    box.state = ENDED


class Slot:
    """One task of an executor; as a worker to the engine."""

    __slots__ = (
        "abandoned",
        "actor",  # its task, for the wait graph
        "blocked",  # of no use here: a task that waits has given up its place
        "cancelled",  # how often its task was cancelled during the latest call, whoever did it
        "cell",  # what its mailbox is running while it claims without the lock
        "claims",
        "closing",
        "context",
        "coroutine",
        "delivery",
        "executor",
        "expired",
        "interrupted",  # its task was cancelled between the first suspension of a handler and the task's own next step
        "ours",  # how often by the bus or the handler itself, which says nothing about the loop
        "started",
        "suspended",
        "task",
        "yielded",  # what the handler's coroutine waits for
        "yielding",  # it lets others have their turn
    )

    def __init__(self, executor: LoopExecutor) -> None:
        self.executor = executor
        self.task: Any = None
        self.delivery: Delivery | None = None
        self.actor: Any = None
        self.blocked = False
        self.cell: list[Any] = [None]
        self.claims = 0
        self.context: Any = None
        self.coroutine: Any = None
        self.yielded: Any = None
        self.started = 0.0
        self.interrupted = False
        self.suspended = False
        self.yielding = False
        self.expired = False
        self.abandoned = False
        self.closing = False
        self.ours = 0
        self.cancelled = 0

    # What the engine asks of a worker

    def enter_wait(self) -> None:
        """Its handler waits inside the bus: it suspends, which is all that matters."""

    def exit_wait(self) -> None:
        """The wait is over."""

    def expire(self, delivery: Delivery) -> None:
        """In a step: its handler is past its time-out (G7)."""
        engine = self.executor.engine
        delivery.deadline = engine.timer.at(GRACE, lambda: engine.expire(delivery))
        engine.monitor.after.append(lambda: self._cancel_soon(delivery, True))

    def abandon(self, delivery: Delivery) -> list[str]:
        """In a step: the bus closes and cancels its handler."""
        self.abandoned = True
        self.task._log_destroy_pending = False  # the delivery is settled, whatever becomes of the loop
        self.executor.engine.monitor.after.append(lambda: self._cancel_soon(delivery, False))
        return []

    def _cancel_soon(self, delivery: Delivery, expired: bool) -> None:
        self.executor.bridge.post(lambda: self._cancel(delivery, expired))

    def _cancel(self, delivery: Delivery, expired: bool) -> None:
        """On the loop: cancel the handler, if it still runs."""
        if self.delivery is delivery:
            self.ours += 1
            self.expired = self.expired or expired
            self.task.cancel()

    # The task

    async def run(self) -> None:
        """The task's life: park for a pass; then go on with what has suspended and what is ready, if anything."""
        executor = self.executor
        step = executor.engine.monitor.run
        try:
            try:
                await next_pass()
            except asyncio.CancelledError:
                if self.cancelled:
                    return  # the handler's own doing, and seen to
                if not self.suspended:
                    raise
                self.interrupted = True
            if executor.parked is self:
                executor.parked = None
                return
            while not self.cancelled:
                if self.suspended:
                    delivery = self.delivery
                    assert delivery is not None
                    value = error = None
                    try:
                        value = await _rest(self)
                    except BaseException as raised:
                        if self.closing:
                            raise
                        error = _strip(raised)
                    delivery = self.settle(delivery, value, error)
                    value = error = None
                elif self.yielding:
                    self.yielding = False
                    self.task._log_destroy_pending = True
                    executor.since = executor.spent = primitives.monotonic()
                    delivery = step(executor.next, self)
                else:
                    return
                self.drain(delivery)
                del delivery
                if self.yielding:
                    self.task._log_destroy_pending = False
                    await next_pass()
        except asyncio.CancelledError:
            # Between two handlers; during one it is the handler's.
            step(executor.halt, self)
        except BaseException:
            if not self.closing:
                executor.engine.look(executor.recover, self)
            raise
        finally:
            if executor.parked is self:
                executor.parked = None
            executor.slots.pop(self, None)

    def drain(self, delivery: Delivery | None) -> None:
        """Step one handler after another until one suspends, others have their turn, or there is nothing to claim.

        A section settles one and claims the next, see ``turn``; where more is to be done, a step does it.
        """
        executor = self.executor
        engine = executor.engine
        monitor = engine.monitor
        monotonic = primitives.monotonic
        task = self.task
        cancelling = task.cancelling
        ready = executor.ready
        until = executor.since + SLICE
        watched = primitives.tools() and primitives.watched()
        box: Any = None
        receipt: Any = None
        following: Any = None
        context = value = error = came = None
        try:
            while delivery is not None:
                if hot.drain is not None and not watched:
                    came = hot.drain(self, delivery, until)
                    if not isinstance(came, Delivery):
                        delivery = self._follow(came)
                        came = None
                        continue
                    delivery = came
                    came = None
                delivery.actor = task
                value = error = context = None
                box = delivery.box
                receipt = delivery.receipt
                self.started = started = monotonic()
                try:
                    context = context_of(delivery)
                    try:
                        self.yielded = context.run(_enter, self, delivery)
                    except StopIteration as stop:
                        if self.coroutine is None:
                            raise self._told(stop) from stop
                        value = stop.value
                    else:
                        self.context = context
                        self.ours += cancelling()
                        monitor.run(executor.suspend, self)
                        return
                except BaseException as raised:
                    error = _strip(raised)
                if error is not None or cancelling():
                    context = None
                    self.ours += cancelling()
                    delivery = self.settle(delivery, value, error)
                    continue
                executor.spent = now = monotonic()
                following = REFUSED
                if not (self.ours or self.expired or watched):
                    following = turn(engine, self, delivery, receipt, box, value, now - started, now < until)
                if following is REFUSED:
                    context = None
                    delivery = self.settle(delivery, value, error)
                    continue
                delivery = following
                context = receipt = value = self.coroutine = None
                if delivery is None:
                    # Section: nothing is left to claim. See primitives.SECTIONS.
                    if not (watched or monitor.busy or ready or box.pending):
                        executor.computing = 0
                        box = None
                    # End of section.
                    if box is not None:
                        delivery = monitor.run(executor.proceed, self, box)
        finally:
            # A traceback may hold this frame, and the frame nothing that is settled (G18).
            self.cell[0] = self.delivery
            delivery = following = context = receipt = value = error = box = came = None

    def go_on(self, came: _Came | Delivery) -> None:  # pragma: no cover - for the hot path in C
        """What the hot path in C could not end by itself, and all that follows."""
        self.drain(came if isinstance(came, Delivery) else self._follow(came))

    def _follow(self, came: _Came) -> Delivery | None:  # pragma: no cover - for the hot path in C
        """After a run of the hot path in C; gives the next delivery."""
        executor = self.executor
        monitor = executor.engine.monitor
        if came is None:
            return None
        if came is True:
            self.ours += self.task.cancelling()
            monitor.run(executor.suspend, self)
            return None
        if isinstance(came, tuple):
            delivery, value, error = came
            came = None
            try:
                self.ours += self.task.cancelling()
                return self.settle(delivery, value, None if error is None else self._told(error))
            finally:
                del delivery, value, error
        return monitor.run(executor.proceed, self, cast("Mailbox", came))

    def _told(self, error: BaseException) -> BaseException:
        """What a call has raised; of a coroutine it is never StopIteration, so that of a conversion is told apart."""
        if not isinstance(error, StopIteration):
            return error
        told = RuntimeError("the conversion of the payload raised StopIteration")
        told.__cause__ = error
        return told

    def settle(self, delivery: Delivery, value: Any, error: BaseException | None) -> Delivery | None:
        """A call has ended: say what came of it; gives the next delivery."""
        executor = self.executor
        self.coroutine = None
        executor.spent = ended = primitives.monotonic()
        if error is None and not self.expired:
            status = Status.DELIVERED
        else:
            status, value, error = self._judge(delivery, error)
        cancelled = self.task.cancelling()
        if cancelled or self.ours:
            self.cancelled = cancelled
            for _ in range(cancelled):
                self.task.uncancel()
        following = executor.engine.monitor.run(
            executor.advance, self, delivery, status, value, error, ended - self.started
        )
        self.ours = 0
        self.expired = False
        return following

    def _judge(self, delivery: Delivery, error: BaseException | None) -> tuple[Status, Any, BaseException | None]:
        """The outcome of a call that did not end well; errors are reported before the delivery is settled."""
        engine = self.executor.engine
        ended_by_us = isinstance(error, (asyncio.CancelledError, TooLate))
        if error is not None and not ended_by_us:
            report(engine, delivery, error, "handler")
        if self.expired:
            engine.monitor.run(engine.expire, delivery)
            return Status.TIMED_OUT, None, None  # settled already
        if ended_by_us or delivery.state is SETTLED:
            return Status.CANCELLED, None, None
        return Status.FAILED, None, error


def _enter(slot: Slot, delivery: Delivery) -> Any:
    """Within the delivery's context: say for whom this code runs, convert, call, take the first step."""
    slot.coroutine = None
    current.set(delivery)
    spec = delivery.box.spec
    assert spec is not None
    try:
        made: Any = spec.function(argument(delivery))
        coroutine: Any = made if type(made) is _Native else as_coroutine(made, delivery.box.name)
        slot.coroutine = coroutine
        return coroutine.send(None)
    finally:
        # An error's traceback holds its frames, they hold this one, and the delivery holds the error: no cycle (G18).
        del delivery


def as_coroutine(value: Any, name: str) -> Any:
    """What a handler that is marked as a coroutine function, or is wrapped in one, has returned."""
    if isinstance(value, Coroutine):
        return cast("Any", value)
    if not hasattr(value, "__await__"):
        raise HandlerTypeError(f"the coroutine handler {name} returned {type(value).__name__}, which cannot be awaited")

    async def wait() -> Any:
        return await value

    return wait()


@types.coroutine
def _rest(slot: Slot) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that has suspended: every step and every exception within its delivery's context."""
    run: Any = slot.context.run
    coroutine: Any = slot.coroutine
    yielded, slot.yielded, slot.context = slot.yielded, None, None
    cancelling = slot.task.cancelling
    argument: Any
    go_on: Any
    try:
        while True:
            try:
                if slot.interrupted:
                    slot.interrupted = False
                    # As asyncio does it: what is awaited is cancelled, if it can be.
                    if not (hasattr(yielded, "_asyncio_future_blocking") and yielded.cancel()):
                        raise asyncio.CancelledError
                argument = yield yielded
                go_on = coroutine.send
            except GeneratorExit:
                slot.closing = True  # the loop was closed, and this task is being collected
                run(coroutine.close)
                raise
            except BaseException as error:
                argument = error
                go_on = coroutine.throw
            before = cancelling()
            try:
                yielded = run(go_on, argument)
            except StopIteration as stop:
                return stop.value
            finally:
                if cancelling() > before:
                    slot.ours += cancelling() - before
    finally:
        # An error's traceback holds its frames, they hold this one, and the context leads to the error: no cycle (G18).
        del run, coroutine
        argument = go_on = yielded = None


@types.coroutine
def next_pass() -> Generator[None, None, None]:
    """Let the loop do everything else that is ready."""
    yield


def _strip(error: BaseException) -> BaseException:
    """Leave the bus's own frames out of the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code in _OWN:
        trace = trace.tb_next
    return error.with_traceback(trace)


_Task: Any = asyncio.Task
_enter_task: Any = asyncio.tasks._enter_task
_leave_task: Any = asyncio.tasks._leave_task
_register_task: Any = asyncio.tasks._register_task
_unregister_task: Any = asyncio.tasks._unregister_task
_current_tasks: Any = getattr(asyncio.tasks, "_current_tasks", None)  # used on 3.11
_Native: Any = types.CoroutineType
_OWN = (Slot.run.__code__, Slot.drain.__code__, _enter.__code__, _rest.__code__)


def _swap_task(loop: AbstractEventLoop, task: Any) -> Any:  # pragma: no cover - on 3.11, for the hot path in C
    before = _current_tasks.get(loop)
    # No call from here on: a signal handler that raises leaves it either undone or done and told.
    if task is not None:
        _current_tasks[loop] = task
    elif before is not None:
        del _current_tasks[loop]
    return before


# Make a task, or none, the current one; gives the one that was. In C on Python 3.12 and later.
swap_task: Any = getattr(asyncio.tasks, "_swap_current_task", _swap_task)


def show_still() -> None:
    """Before a full collection: what is pending for a loop that was stopped or closed is perhaps held by nobody (G18).

    It may come in the midst of a step, as a finalizer does; what hides it is the hot path in C, which wants a GIL.
    """
    for engine in living():
        for executor in tuple(engine.executors):
            if isinstance(executor, LoopExecutor) and executor.stands_still():
                executor.show()


def executor_of(engine: Engine, loop: AbstractEventLoop) -> LoopExecutor:
    """The bus's executor in a loop, made on first use."""
    for each in engine.executors:
        if isinstance(each, LoopExecutor) and each.loop() is loop and not each.gone:
            return each
    return engine.look(_make, engine, loop)


def _make(engine: Engine, loop: AbstractEventLoop) -> LoopExecutor:
    for each in list(engine.executors):
        each.check()
        if isinstance(each, LoopExecutor) and each.loop() is loop and not each.gone:
            return each
    made = LoopExecutor(engine, loop)
    if engine.state != CLOSED:
        engine.executors.append(made)
    return made
