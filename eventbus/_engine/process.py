"""What happens to living buses when the process forks (G11) or exits (G10).

Owner: nobody of ``_living``: constructors add, finalizers discard and the two hooks copy it, each in one call into C.
(A WeakSet is iterated in Python, and raises if another thread makes a bus meanwhile.) In a forked child no other thread
is left, so an engine's state is nobody else's there.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING

from .._values.stats import CloseReport, Status
from . import primitives
from .closing import CLOSED, OPEN, close
from .delivery import SETTLED
from .lane import Lane
from .mailbox import ACTIVE
from .monitor import steps

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["enrol", "living"]

log = logging.getLogger("eventbus")
_living: set[weakref.ref[Engine]] = set()


def enrol(engine: Engine) -> None:
    """See to an engine at fork and exit, for as long as it lives."""
    _living.add(weakref.ref(engine, _living.discard))


def living() -> list[Engine]:
    """All that live now, whatever other threads make and drop meanwhile."""
    return [engine for each in _living.copy() if (engine := each()) is not None]


# Fork


def _after_fork() -> None:
    mine = primitives.get_ident()
    for ident in list(steps):
        if ident != mine:  # of threads that are not in the child
            del steps[ident]
    interrupted = steps.get(mine)
    for engine in living():
        try:
            if engine.monitor is interrupted:
                # The step goes on here when the fork returns, with what it has found and counted so far.
                engine.uid = primitives.new_uid()
                engine.monitor.defer_alone(partial(_renew, engine, late=True))
            else:
                _renew(engine)
        except BaseException:
            log.exception("a bus could not be set up in the forked child")


def _renew(engine: Engine, late: bool = False) -> None:
    """In a forked child, whose only thread this is: registrations stay, everything in motion is cancelled.

    ``late``: the fork came in the midst of a step, which has ended now; what was put off since then is to come.
    """
    state = engine.state
    boxes = engine.all_boxes()
    deferred = engine.monitor.deferred
    engine.monitor.renew()
    if late:
        engine.monitor.deferred = deferred
    engine.drains, engine.waiting = [], {}
    for box in boxes:
        for delivery in box.unsettled():
            delivery.epoch = delivery.deadline = None
            engine.settle(delivery, Status.CANCELLED)
        for delivery in box.running:
            delivery.actor = None  # the call that forked, if it is one of these, is nobody's here
    engine.timer.renew()
    engine.dispatcher.renew()
    executors = engine.executors
    engine.renew()
    for box in boxes:
        box.renew()
    for executor in executors:
        executor.after_fork()
    engine.registry.renew()
    for box in list(engine.registry.boxes.values()):
        if box.state != ACTIVE:
            engine.registry.remove(box)
        elif box.options.lane is not None:
            box.lane = engine.lanes.setdefault(box.options.lane, Lane(box.options.lane))
            box.lane.members += 1
    if state != OPEN:
        engine.state = CLOSED
        engine.closed_report = CloseReport()
    engine.monitor.flush()


# Exit


def _at_exit() -> None:
    for engine in living():
        try:
            _finish(engine)
        except BaseException:
            # One that raises would keep the interpreter from calling the other hooks.
            log.exception("a bus could not be closed at exit")


def _finish(engine: Engine) -> None:
    """The interpreter exits: run what is pending for plain functions, for as long as ``exit_timeout``."""
    closed = engine.closed_report is not None
    lost = engine.monitor.run(_drop_loops, engine)
    report = close(engine, engine.options.exit_timeout)
    if not closed:
        lost += report.cancelled
    if lost:
        log.warning(
            "the bus %r cancelled %d %s because the interpreter exits; close the bus before that, on a loop if it"
            " has coroutine handlers",
            engine.name,
            lost,
            "delivery" if lost == 1 else "deliveries",
        )


def _drop_loops(engine: Engine) -> int:
    """In a step: cancel what needs a loop; gives how many deliveries."""
    lost = 0
    for box in engine.all_boxes():
        if box.executor is not None and box.executor is not engine.dispatcher:
            lost += engine.cancel_pending(box)
            for delivery in box.running:
                if delivery.state is not SETTLED:
                    lost += 1
                    engine.settle(delivery, Status.CANCELLED)
    return lost


primitives.on_fork(_after_fork)
primitives.on_exit(_at_exit)
