"""Inline handlers of an emit that took effect in a section: run one after another in the emitting thread (G4).

A section begins each and :func:`turn` settles it; where a mailbox asks for more, or others run it at the same time, a
step does either. Emits of which not all handlers are inline go through :meth:`Engine._run_inline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._values.payload import PLAIN, to_plain
from .._values.stats import Status
from . import primitives
from .call import argument, judge, own_code, strip
from .delivery import RUNNING, SETTLED, current, running_here
from .mailbox import ACTIVE, DRAINING, NO_COUNTS
from .turn import REFUSED, turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .delivery import Delivery, Epoch
    from .dispatcher import Dispatcher
    from .engine import Engine
    from .receipt import Receipt

__all__ = ["NOBODY", "Emitter", "begin_inline", "end_inline", "mend_inline", "run_inline"]

NOBODY: list[Delivery] = []  # whom an inline handler holds up on its stack: those after it have not begun
DELIVERED = Status.DELIVERED


class Emitter:
    """Who runs inline handlers, as :func:`turn` wants to know it: any thread. Without state of its own."""

    __slots__ = ("blocked", "delivery", "executor")

    def __init__(self, executor: Dispatcher) -> None:
        self.executor = executor
        self.blocked = False
        self.delivery: Any = None


def run_inline(engine: Engine, receipt: Receipt, deliveries: list[Delivery], epoch: Epoch) -> None:
    """Run them; KeyboardInterrupt and SystemExit of a handler pass when all have run."""
    monitor = engine.monitor
    monotonic = primitives.monotonic
    ident = primitives.get_ident()
    emitter = engine.emitter
    passing: BaseException | None = None
    outer = running_here(ident)
    before = current.get()
    try:
        for delivery in deliveries:
            box = delivery.box
            own = [delivery]
            delivery.actor = ident
            delivery.later = NOBODY
            if outer is not None:
                delivery.outer = outer
                delivery.worker = outer.worker  # whose thread this is
            # Section: an inline delivery begins. See primitives.SECTIONS.
            delivery.epoch = epoch
            if not monitor.busy and box.flows and not box.running and box.counts is not NO_COUNTS:
                delivery.state = RUNNING
                delivery.info = box.info  # says that it is counted
                box.deliveries += 1
                box.running = own
                # End of section.
            if delivery.state is not RUNNING and not begin_inline(engine, delivery):
                continue
            started = monotonic()
            try:
                current.set(delivery)
                value, error = _call(delivery), None
            except BaseException as raised:
                value, error = None, strip(raised)
            took = monotonic() - started
            if error is None and (value is None or type(value) in PLAIN):
                if turn(engine, emitter, delivery, receipt, box, value, took, False) is not REFUSED:
                    continue
                status = DELIVERED
            else:
                status, value, error, took = judge(engine, delivery, value, error, took)
                if isinstance(error, (KeyboardInterrupt, SystemExit)) and passing is None:
                    passing = error
            monitor.run(engine.complete, delivery, status, value, error, took)
    finally:
        current.set(before)
        # An error's traceback holds this frame (G18).
        del receipt, deliveries
        delivery = value = error = own = None  # type: ignore[assignment]
    if passing is not None:
        raise passing


def _call(delivery: Delivery) -> Any:
    spec = delivery.box.spec
    assert spec is not None
    convert = spec.convert
    payload = delivery.receipt._payload
    try:
        if not spec.takes_event and (convert is None or (convert is to_plain and type(payload) in PLAIN)):
            return spec.function(payload)
        return spec.function(argument(delivery))
    finally:
        # An error's traceback holds its frames, they hold this one, and the delivery holds the error: no cycle (G18).
        del delivery, payload


def begin_inline(engine: Engine, delivery: Delivery) -> bool:
    """Begin it where no section can; False if its subscription has ended since the emit took effect."""
    return engine.monitor.run(_begin, engine, delivery)


def _begin(engine: Engine, delivery: Delivery) -> bool:
    """In a step: begin it beside others; False if its subscription has ended since the emit took effect."""
    box = delivery.box
    if box.state != ACTIVE and box.state != DRAINING:
        engine.cancel_late(delivery)
        return False
    engine.count(delivery)
    box.own_counts()  # before the next one, which may begin in a section
    delivery.state = RUNNING
    box.running = (*box.running, delivery)
    box.review()
    return True


def end_inline(
    engine: Engine, delivery: Delivery, value: Any, error: BaseException | None, took: float
) -> BaseException | None:  # pragma: no cover - for the hot path in C
    """Settle one that a section cannot settle; gives what is to pass when all have run."""
    try:
        status, value, error, took = judge(engine, delivery, value, error, took)
        engine.monitor.run(engine.complete, delivery, status, value, error, took)
        return error if isinstance(error, (KeyboardInterrupt, SystemExit)) else None
    finally:
        del delivery, value, error


def mend_inline(engine: Engine, deliveries: Sequence[Delivery], epoch: Epoch) -> None:
    """In a step: an emit ends by an exception; if it is no handler's, something is not settled: cancel that."""
    for delivery in deliveries:
        if delivery.state is SETTLED:
            if delivery.box is not None and delivery in delivery.box.running:  # pyright: ignore[reportUnnecessaryComparison]
                delivery.box.finish(delivery)
        elif delivery.state is RUNNING and delivery in delivery.box.running:
            engine.complete(delivery, Status.CANCELLED, None, None, 0.0)
        else:
            delivery.epoch = epoch
            engine.cancel_late(delivery)


own_code.update((run_inline.__code__, _call.__code__))
