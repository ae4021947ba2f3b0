"""Inline handlers: run one after another in the emitting thread, once their emit has taken effect (G4).

A section begins each and :func:`turn` settles it; where a mailbox asks for more, or others run it at the same time, a
step does either. Until an emit's last one has ended, its deliveries stand in the engine's ``inlining``: those that have
not begun are pending (:class:`InlineMailbox`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._values.payload import PLAIN, to_plain
from .._values.stats import Status
from . import primitives
from .call import TooLate, argument, judge, own_code, strip
from .delivery import PENDING, RUNNING, SETTLED, current, running_here
from .mailbox import ENDED, NO_COUNTS
from .turn import REFUSED, turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .delivery import Delivery
    from .dispatcher import Dispatcher
    from .engine import Engine
    from .receipt import Receipt

__all__ = ["Emitter", "begin_inline", "end_inline", "mend_inline", "place", "run_inline"]

DELIVERED = Status.DELIVERED


class Emitter:
    """Who runs inline handlers, as :func:`turn` wants to know it: any thread. Without state of its own."""

    __slots__ = ("blocked", "delivery", "executor")

    def __init__(self, executor: Dispatcher) -> None:
        self.executor = executor
        self.blocked = False
        self.delivery: Any = None


def place(deliveries: Iterable[Delivery]) -> None:
    """Say on whose stack they are to run: in this thread, and within its handler."""
    ident = primitives.get_ident()
    outer = running_here(ident)
    for delivery in deliveries:
        delivery.actor = ident
        if outer is not None:
            delivery.outer = outer
            delivery.worker = outer.worker  # whose thread this is


def run_inline(
    engine: Engine, receipt: Receipt, deliveries: list[Delivery], *, counted: bool = False, late: bool = False
) -> None:
    """Run them; KeyboardInterrupt and SystemExit of a handler pass when all have run. ``late``: see Monitor.run."""
    monitor = engine.monitor
    monotonic = primitives.monotonic
    emitter = engine.emitter
    passing: BaseException | None = None
    before = current.get()
    alone = not (primitives.tools() and primitives.watched())  # sections are what they should be
    cell: list[Any] = [None]  # what a mailbox is running, while nobody else runs its handler
    try:
        for delivery in deliveries:
            box = delivery.box
            if box is None:  # pyright: ignore[reportUnnecessaryComparison]
                continue  # it was cancelled meanwhile
            cell[0] = delivery
            # Section: an inline delivery begins. See primitives.SECTIONS.
            if (
                alone
                and not monitor.busy
                and box.flows
                and not box.running
                and box.counts is not NO_COUNTS
                and delivery.state is PENDING
            ):
                delivery.state = RUNNING
                if not counted:
                    delivery.info = box.info  # says that it is counted
                    box.deliveries += 1
                box.running = cell
                # End of section.
            if delivery.state is not RUNNING and not begin_inline(engine, delivery, late):
                continue
            started = monotonic()
            try:
                current.set(delivery)
                value, error = _call(delivery), None
            except BaseException as raised:
                value, error = None, strip(raised)
            took = monotonic() - started
            alone = not (primitives.tools() and primitives.watched())  # the handler may have begun to
            if error is None and (value is None or type(value) in PLAIN):
                if alone and turn(engine, emitter, delivery, receipt, box, value, took, False) is not REFUSED:
                    continue
                status = DELIVERED
            else:
                status, value, error, took = judge(engine, delivery, value, error, took)
                if isinstance(error, (KeyboardInterrupt, SystemExit)) and passing is None:
                    passing = error
            monitor.run(engine.complete, delivery, status, value, error, took, late=late)
        leave(engine, deliveries, late)
    finally:
        current.set(before)
        # An error's traceback holds this frame (G18).
        del receipt, deliveries
        delivery = value = error = cell = None  # type: ignore[assignment]
    if passing is not None:
        raise passing


def _call(delivery: Delivery) -> Any:
    spec = delivery.box.spec
    assert spec is not None
    convert = spec.convert
    payload = delivery.receipt._payload
    try:
        if delivery.state is SETTLED:
            raise TooLate  # by a close; the payload may have been gone
        if not spec.takes_event and (convert is None or (convert is to_plain and type(payload) in PLAIN)):
            return spec.function(payload)
        return spec.function(argument(delivery))
    finally:
        # An error's traceback holds its frames, they hold this one, and the delivery holds the error: no cycle (G18).
        del delivery, payload


def leave(engine: Engine, deliveries: Sequence[Delivery], late: bool) -> None:
    """An emit's inline deliveries are settled, all of them."""
    if primitives.SECTIONS:
        _leave(engine, deliveries)
    else:
        engine.monitor.run(_leave, engine, deliveries, late=late)


def _leave(engine: Engine, deliveries: Sequence[Delivery]) -> None:
    try:
        engine.inlining.remove(deliveries)  # one call, and deliveries compare by identity
    except ValueError:
        pass  # a fork has cut it off, or it is mended


def begin_inline(engine: Engine, delivery: Delivery, late: bool = False) -> bool:
    """Begin it where no section can; False if it was cancelled since the emit took effect."""
    return engine.monitor.run(_begin, engine, delivery, late=late)


def _begin(engine: Engine, delivery: Delivery) -> bool:
    """In a step: begin it beside others; False if it was cancelled since the emit took effect."""
    box = delivery.box
    if delivery.state is PENDING and box.state == ENDED:
        # A signal handler broke its cancel by raising, and that is about to be mended.
        engine.cancel_pending(box)
        engine.ripen(box)
    if delivery.state is not PENDING:
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


def mend_inline(engine: Engine, deliveries: Sequence[Delivery]) -> None:
    """In a step: an emit ends by an exception; if it is no handler's, something is not settled: cancel that."""
    for delivery in deliveries:
        box: Any = delivery.box
        if delivery.state is not SETTLED:
            box.retire(delivery, Status.CANCELLED)
        elif box is not None:
            box.end(delivery)
    _leave(engine, deliveries)


own_code.update((run_inline.__code__, _call.__code__))
