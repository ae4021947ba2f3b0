"""Draining: waiting until what was accepted before a moment, and what that causes, is settled (G10).

Each drain ends an epoch. A delivery belongs to the epoch in which the event that began its chain was accepted, so an
epoch without open deliveries will have none again, and a drain waits for those up to its own call, whatever comes in
meanwhile. Linearization point of a drain: :func:`new_epoch`.

Owner: the bus's monitor, of the engine's ``epoch``, ``old_epochs``, ``drains`` and ``keen``; sections read all but the
second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import EventTimeoutError
from . import primitives
from .delivery import Epoch, running_here, stack_of
from .waits import LENIENT, Waiter, live_from, refuse_on_loop, sleep

if TYPE_CHECKING:
    from .delivery import Delivery
    from .engine import Engine

__all__ = ["drain", "drain_waiter", "enlist_drain", "overdue"]


def drain(engine: Engine, timeout: float | None) -> None:
    """Wait in this thread until what was accepted before the call is settled.

    Raises:
        EventTimeoutError: Names what is unsettled after ``timeout`` seconds.
        DeadlockError: It would block a running event loop's own thread.
    """
    waiter = drain_waiter(engine, primitives.get_ident())
    refuse_on_loop(engine, waiter, "drain()")
    if not sleep(engine, waiter, timeout):
        raise EventTimeoutError(overdue(engine, timeout))


def drain_waiter(engine: Engine, actor: Any) -> Waiter:
    """A wait for what was accepted before this call, and what that causes, but for what waits for the caller."""
    epochs = engine.look(new_epoch, engine)
    owner = running_here(actor)
    if owner is not None and owner.box.engine is not engine:
        owner = None
    mine = set(stack_of(owner))

    def others() -> list[Delivery]:
        return [each for each in engine.all_unsettled() if each.epoch in epochs and each not in mine]

    def ready() -> bool:
        if owner is None:
            return not any(epoch.open for epoch in epochs)
        left = others()
        return not left or not (live_from(left, without=owner) & set(left))

    def enlist(waiter: Waiter, begin: bool) -> None:
        enlist_drain(engine, waiter, begin)

    waiter = Waiter("the drain of the bus", ready, enlist, LENIENT, others)
    waiter.keen = owner is not None
    return waiter


def new_epoch(engine: Engine) -> list[Epoch]:
    """In a step: what is accepted from here on is not waited for; gives the epochs that are."""
    engine.old_epochs = [epoch for epoch in engine.old_epochs if epoch.open]
    engine.old_epochs.append(engine.epoch)
    engine.epoch = Epoch()
    return list(engine.old_epochs)


def enlist_drain(engine: Engine, waiter: Waiter, begin: bool) -> None:
    """In a step: a drain begins to wait, or ends."""
    if begin:
        engine.drains.append(waiter)
        engine.keen += waiter.keen
    elif waiter in engine.drains:
        engine.drains.remove(waiter)
        engine.keen -= waiter.keen


def overdue(engine: Engine, timeout: float | None) -> str:
    """The message of a drain that ran out of time: what it still waits for."""
    names = list(dict.fromkeys(each.label() for each in engine.look(engine.all_unsettled) if each.epoch is not None))
    shown = ", ".join(names[:10]) or "nothing any more"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"after {timeout:g} s the bus {engine.name!r} still has: {shown}{more}"
