"""Runs coroutine handlers on one event loop: an executor of mailboxes whose workers are tasks.

A *slot* is one task. One slot at a time claims from the ready mailboxes and steps the handlers' coroutines itself, each
in its delivery's own context; a coroutine that ends without suspending costs no task of its own. When one suspends, its
slot stays with it, gives up the place of the one who claims, and another slot takes it. A slot without work ends, so an
idle bus has no task on any loop.

Guarantees
    * G4: no handler begins inside ``emit()``. One may begin inside ``await receipt``, where Python can start a task
      there and then (3.12), for the awaiting task is as good as suspended.
    * G7: a handler past its time-out is cancelled, and settled when it has ended, at latest ``GRACE`` later.
    * G13: a loop that is closed loses its handlers, or they are unbound again; nobody who emits hears of it. After a
      slot's task was cancelled by somebody else, no handler begins until the next push on that loop or ``PAUSE`` later.
    * G14: while a handler runs, its slot's task runs nothing else, and cancelling that cancels only this delivery.

Owner: the bus's monitor, but for ``scheduled``, ``eagers``, ``since``, ``slots`` and what is a slot's own, which the
loop's thread alone touches.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

from eventbus import HandlerTypeError, Status
from eventbus.lowlevel import (
    ACTIVE,
    CLOSED,
    ENDED,
    SETTLED,
    Executor,
    Interrupted,
    TooLate,
    argument,
    context_of,
    current,
    primitives,
    report,
)

from ._bridge import Bridge

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Generator
    from contextvars import Context

    from eventbus.lowlevel import Delivery, Engine, Mailbox

__all__ = ["LoopExecutor", "executor_of"]

EAGER = sys.version_info >= (3, 12)  # tasks can be started where they are made
SLICE = 0.004  # seconds that handlers may take of one pass of the loop before others have their turn
EAGERS = 32  # awaits in a row that are served without a pass of the loop
GRACE = 1.0  # how long a cancelled handler may take to end before its delivery is settled without it
PAUSE = 0.05  # after a bus task was cancelled by somebody else


class LoopExecutor(Executor):
    """The handlers of one bus in one loop."""

    __slots__ = ("bridge", "eagers", "gone", "loop", "paused", "roused", "scheduled", "since", "slots", "spent")

    def __init__(self, engine: Engine, loop: AbstractEventLoop) -> None:
        super().__init__(engine, 1)
        self.bridge = Bridge(loop, self._begin, self._look)
        self.loop = self.bridge.loop
        self.gone = False
        self.roused = False  # a slot is counted in ``computing`` that has not begun yet
        self.paused = False  # nobody claims, though ``computing`` says so
        self.scheduled = False  # the loop will call _begin
        self.eagers = 0
        self.since = 0.0  # when this turn of handlers began
        self.spent = 0.0  # when the latest handler ended
        self.slots: dict[Slot, None] = {}  # asyncio itself holds tasks weakly

    # Waking

    def rouse(self) -> None:
        self.roused = True
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
        if loop is not None and primitives.running_loop() is loop and primitives.current_task() is not None:
            if not self.scheduled:
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
            self.since = primitives.monotonic()
            self._start()

    def eagerly(self) -> None:
        """On the loop, in a task that is about to wait: serve what is ready now, if it is not others' turn."""
        if EAGER and self.roused and self.eagers < EAGERS and self.spent - self.since < SLICE:
            self.eagers += 1
            self._start()

    def _start(self) -> None:
        loop = self.loop()
        assert loop is not None
        slot = Slot(self)
        if EAGER:
            _Task(slot.run(), loop=loop, context=primitives.empty_context(), eager_start=True)
        else:
            slot.task = _Task(slot.run(), loop=loop, context=primitives.empty_context())
            self.slots[slot] = None
            slot.task.add_done_callback(slot.over)

    # Working, on the loop

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

    def suspend(self, slot: Slot) -> None:
        """In a step: the handler of the slot that claims waits for something."""
        slot.suspended = True
        self.yield_slot()

    def advance(
        self, slot: Slot, delivery: Delivery, status: Status, value: Any, error: BaseException | None, took: float
    ) -> Delivery | None:
        """In a step: a slot's call has ended; its next delivery, or None, and then it yields or ends."""
        slot.delivery = None
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
        # It may have been bound to another loop, or ended, while the call went on.
        if box is not None and not box.queued and box.executor is not None and box.claimable():  # pyright: ignore[reportUnnecessaryComparison]
            box.queued = True
            if box.executor is self:
                self.ready.append(box)
            else:
                box.executor.push(box)

    def pause(self) -> None:
        """In a step, on the loop: the task of the slot that claims was cancelled, perhaps because the loop ends."""
        self.computing = 1
        self.roused = False
        self.paused = True
        self.engine.monitor.after.append(self._resume_later)

    def _resume_later(self) -> None:
        loop = self.loop()
        if loop is not None and primitives.running_loop() is loop:
            loop.call_later(PAUSE, self.resume, context=self.bridge.context)

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
        if not self.gone and (loop is None or loop.is_closed()):
            self._end()

    def _end(self) -> None:
        """In a step: the loop is gone. Its handlers end; those that were registered without one wait for another."""
        self.gone = True
        engine = self.engine
        if self in engine.executors:
            engine.executors.remove(self)
        for box in engine._all_boxes():
            if box.executor is self:
                running = list(box.running)
                if box.home is None or box.state != ACTIVE:
                    self._unqueue(box)
                    engine._cancel(box, False)
                else:
                    self.release(box)
                for delivery in running:
                    engine.complete(delivery, Status.CANCELLED, None, None, 0.0)

    def _unqueue(self, box: Mailbox) -> None:
        if box.queued:
            box.queued = False
            if box in self.ready:
                self.ready.remove(box)

    def release(self, box: Mailbox) -> None:
        """In a step: let go of a mailbox, which is unbound from here on; what waits for space there is rejected."""
        self._unqueue(box)
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
        for box in self.engine._all_boxes():
            if box.executor is self:
                box.attach(None)
                if box.home is None:
                    box.state = ENDED


class Slot:
    """One task of an executor; as a worker to the engine."""

    __slots__ = (
        "abandoned",
        "begun",
        "cancelled",  # how often its task was cancelled during the latest call, whoever did it
        "closing",
        "coroutine",
        "delivery",
        "executor",
        "expired",
        "ours",  # how often by the bus
        "suspended",
        "task",
        "yielding",
    )

    def __init__(self, executor: LoopExecutor) -> None:
        self.executor = executor
        self.task: Any = None
        self.delivery: Delivery | None = None
        self.coroutine: Any = None
        self.begun = False
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
        """Claim, step, settle; until there is nothing to claim, or somebody else claims."""
        executor = self.executor
        engine = executor.engine
        step = engine.monitor.run
        monotonic = primitives.monotonic
        task: Any = asyncio.current_task()
        self.task = task
        self.begun = True
        executor.slots[self] = None
        try:
            delivery = step(executor.start, self)
            while True:
                if delivery is None:
                    if not self.yielding:
                        return
                    self.yielding = False
                    await _next_pass()
                    executor.since = executor.spent = monotonic()
                    delivery = step(executor.next, self)
                    continue
                delivery.actor = task
                value = error = context = None
                started = monotonic()
                try:
                    context = context_of(delivery)
                    try:
                        yielded = context.run(_enter, self, delivery)
                    except StopIteration as stop:
                        if self.coroutine is None:
                            raise RuntimeError("the conversion of the payload raised StopIteration") from stop
                        value = stop.value
                    else:
                        step(executor.suspend, self)
                        value = await _rest(self, context, yielded)
                except BaseException as raised:
                    if self.closing:
                        raise
                    error = _strip(raised)
                self.coroutine = None
                del context
                executor.spent = ended = monotonic()
                if error is None and not self.expired:
                    status = Status.DELIVERED
                else:
                    status, value, error = self._judge(delivery, error)
                cancelled = task.cancelling()
                if cancelled or self.ours:
                    self.cancelled = cancelled
                    for _ in range(cancelled):
                        task.uncancel()
                delivery = step(executor.advance, self, delivery, status, value, error, ended - started)
                # Nothing of a delivery may be kept alive by this frame (G18).
                value = error = None
                if self.cancelled:
                    return
                self.ours = 0
                self.expired = False
        except asyncio.CancelledError:
            # Between two handlers; during one it is the handler's.
            step(executor.pause)
        finally:
            executor.slots.pop(self, None)

    def over(self, _: object) -> None:
        """The task has ended; if it was cancelled before it could begin, somebody else has to."""
        if not self.begun:
            self.executor.slots.pop(self, None)
            self.executor.engine.look(self._give_back)

    def _give_back(self) -> None:
        if self.executor.roused:
            self.executor.pause()

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
        coroutine: Any = made if type(made) is _Native else _as_coroutine(made, delivery.box.name)
        slot.coroutine = coroutine
        return coroutine.send(None)
    finally:
        # An error's traceback holds its frames, they hold this one, and the delivery holds the error: no cycle (G18).
        del delivery


def _as_coroutine(value: Any, name: str) -> Any:
    """What a handler that is marked as a coroutine function, or is wrapped in one, has returned."""
    if isinstance(value, Coroutine):
        return cast("Any", value)
    if not hasattr(value, "__await__"):
        raise HandlerTypeError(f"the coroutine handler {name} returned {type(value).__name__}, which cannot be awaited")

    async def wait() -> Any:
        return await value

    return wait()


@types.coroutine
def _rest(slot: Slot, context: Context, yielded: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that has suspended: every step and every exception within its delivery's context."""
    run: Any = context.run
    coroutine: Any = slot.coroutine
    argument: Any
    go_on: Any
    try:
        while True:
            try:
                argument = yield yielded
                go_on = coroutine.send
            except GeneratorExit:
                slot.closing = True  # the loop was closed, and this task is being collected
                run(coroutine.close)
                raise
            except BaseException as error:
                argument = error
                go_on = coroutine.throw
            try:
                yielded = run(go_on, argument)
            except StopIteration as stop:
                return stop.value
    finally:
        # An error's traceback holds its frames, they hold this one, and the context leads to the error: no cycle (G18).
        del run, context, coroutine
        argument = go_on = yielded = None


@types.coroutine
def _next_pass() -> Generator[None, None, None]:
    """Let the loop do everything else that is ready."""
    yield


def _strip(error: BaseException) -> BaseException:
    """Leave the bus's own frames out of the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code in _OWN:
        trace = trace.tb_next
    return error.with_traceback(trace)


_Task: Any = asyncio.Task
_Native: Any = types.CoroutineType
_OWN = (Slot.run.__code__, _enter.__code__, _rest.__code__)


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
