"""Closing a bus, in two steps (G10): draining, in which nothing comes in from outside, then closed.

Linearization points: :func:`begin_close` and :func:`_end_close`. Between the two a drain runs, as everybody's does.

Owner: the bus's monitor, of the engine's ``state``, ``closers``, ``closed_report`` and ``homeless``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import DeadlockError, DispatcherError
from .._values.stats import CloseReport, Status
from . import primitives
from .delivery import SETTLED, running_here, stack_of
from .draining import drain_waiter, enlist_drain
from .monitor import Interrupted
from .waits import LENIENT, Waiter, live_from, notify, sleep

if TYPE_CHECKING:
    from .delivery import Delivery
    from .dispatcher import Worker
    from .engine import Engine

__all__ = ["CLOSED", "CLOSING", "OPEN", "close", "close_soon", "closed_waiter", "refuse_close_on_loop"]

# The states of a bus, in order.
OPEN, CLOSING, CLOSED = range(3)

JOIN_SECONDS = 1.0  # how long a close waits for an idle thread to end


def close(engine: Engine, timeout: float | None) -> CloseReport:
    """Drain, then end everything, waiting in this thread. Idempotent, and safe in several threads at once."""
    actor = primitives.get_ident()
    try:
        if engine.monitor.run(begin_close, engine):
            return engine.closed_report or CloseReport()
    except Interrupted:
        # The interrupted step holds what a close has to wait for: let a thread of its own do it.
        engine.monitor.defer(lambda: _close_elsewhere(engine, timeout))
        return CloseReport()
    waiter = drain_waiter(engine, actor)
    try:
        sleep(engine, waiter, timeout)
    except DispatcherError:
        pass  # nobody can run what is left
    return end_close(engine, actor)


def _close_elsewhere(engine: Engine, timeout: float | None) -> None:
    def run() -> None:
        close(engine, timeout)

    engine.timer.start_thread(run, f"{engine.name}-close")


def close_soon(engine: Engine, timeout: float | None, actor: Any) -> None:
    """Begin to close, and see to it that it ends, drained or out of time, without anybody waiting for it."""
    owner = running_here(actor)
    try:
        if engine.monitor.run(begin_close, engine):
            return
    except Interrupted:
        engine.monitor.defer(lambda: close_soon(engine, timeout, actor))
        return
    waiter = drain_waiter(engine, actor)
    engine.monitor.run(_close_when, engine, waiter, timeout, owner)


def _close_when(engine: Engine, waiter: Waiter, timeout: float | None, owner: Delivery | None) -> None:
    """In a step: end the close once the drain has ended or its time is up."""

    def finish() -> None:
        engine.monitor.run(_end_close, engine, owner)

    waiter.wake = finish
    if timeout == 0 or waiter.ready():
        engine.monitor.after.append(finish)
        return
    enlist_drain(engine, waiter, True)
    if timeout is not None:
        engine.timer.at(timeout, lambda: engine.monitor.after.append(finish))


def closed_waiter(engine: Engine) -> Waiter:
    """A wait for the end of a close, threads included but for those stuck in handlers."""

    def ready() -> bool:
        return engine.state == CLOSED and not engine.dispatcher.idle

    def enlist(waiter: Waiter, begin: bool) -> None:
        if begin:
            engine.closers.append(waiter)
        elif waiter in engine.closers:
            engine.closers.remove(waiter)

    return Waiter(f"the close of {engine.name}", ready, enlist, LENIENT, list)


def refuse_close_on_loop(engine: Engine) -> None:
    """Raise DeadlockError if a close here would have to wait for something, in a running event loop's own thread."""
    if primitives.running_loop() is not None and engine.look(engine.all_unsettled):
        raise DeadlockError(
            "close() would block the event loop that runs in this thread; await it on an AsyncEventBus, or close(0)"
        )


def begin_close(engine: Engine) -> bool:
    """In a step: from here on nothing comes in from outside. Tells whether the bus is closed already."""
    if engine.state == OPEN:
        engine.state = CLOSING
        for box in engine.all_boxes():
            if box.executor is None and not box.inline:
                engine.homeless += engine.cancel_pending(box)
    return engine.closed_report is not None


def end_close(engine: Engine, actor: Any) -> CloseReport:
    """The second step of a close, whether drained or out of time; waits for idle threads to end."""
    workers = engine.monitor.run(_end_close, engine, running_here(actor))
    for worker in workers:
        if worker.thread is not None and worker.delivery is None:
            primitives.join_thread(worker.thread, JOIN_SECONDS)
    timer = engine.timer.thread
    if timer is not None:
        primitives.join_thread(timer, JOIN_SECONDS)
    assert engine.closed_report is not None
    return engine.closed_report


def _end_close(engine: Engine, owner: Delivery | None) -> list[Worker]:
    """In a step: cancel what is left, and end everything; gives the workers that are alive."""
    if engine.closed_report is None:
        engine.state = CLOSED
        # What waits for the caller's own handler goes on when that has returned.
        spared = set(stack_of(owner))
        if owner is not None:
            everything = engine.all_unsettled()
            spared.update(set(everything) - live_from(everything, without=owner))
        cancelled = engine.homeless
        stuck: list[str] = []
        for box in engine.all_boxes():
            for delivery in list(box.running):
                if delivery not in spared:
                    stuck.extend(delivery.worker.abandon(delivery) if delivery.worker is not None else [box.name])
                    if delivery.state is not SETTLED:
                        engine.settle(delivery, Status.CANCELLED, None, None)
                        cancelled += 1
            cancelled += engine.cancel_pending(box)
            engine._cancel(box, False)
        for executor in engine.executors:
            executor.close()
        engine.executors = []
        engine.timer.stop()
        engine.closed_report = CloseReport(cancelled, tuple(stuck))
        notify(engine, engine.closers)
    return engine.dispatcher.stop()
