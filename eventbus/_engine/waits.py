"""Waiting inside the bus: who waits for what, and whether that can ever end.

A :class:`Waiter` is a settle-once cell with one wake-up: a thread's sleeper, or what the facade gives. Its predicate is
looked at in steps only; becoming true is the linearization point of the wait's end.

A handler's own wait is an edge of the wait graph. When one begins, the deliveries that *can* end are found by
reduction: those whose handlers do not wait, then those that wait only for such, and so on. A wait for one that is left
over could never end (G8). Claims and settlings nearly always make more of them able to end. So the moments to look are
new waits, emits that add to what a handler waits for, an answer to a request that fails, and keys that take the space
of others (``Engine.recheck_waits``).

Owner: the bus's monitor, all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import DeadlockError
from . import primitives
from .delivery import LINED, PENDING, running_here, stack_of
from .monitor import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .delivery import Delivery
    from .engine import Engine

__all__ = [
    "ALL",
    "ANY",
    "LENIENT",
    "SPACE",
    "Waiter",
    "begin",
    "deadlock",
    "end",
    "live_from",
    "notify",
    "refuse_on_loop",
    "sleep",
    "stuck_on",
]

# What a wait needs of its targets to end: all of them, any one of them, or only those that do not wait for the waiter;
# of those that stand in line for space, that they are admitted.
ALL, ANY, LENIENT, SPACE = range(4)


class Waiter:
    """One wait of one thread or task."""

    __slots__ = ("counted", "done", "enlist", "error", "keen", "mode", "owner", "ready", "targets", "text", "wake")

    def __init__(
        self,
        text: str,
        ready: Callable[[], bool],
        enlist: Callable[[Waiter, bool], None],
        mode: int,
        targets: Callable[[], Iterable[Delivery]],
    ) -> None:
        self.text = text
        self.ready = ready
        self.enlist = enlist
        self.mode = mode
        self.targets = targets
        self.counted = False
        self.done = False
        self.keen = False
        self.error: DeadlockError | None = None
        self.owner: Delivery | None = None
        self.wake: Callable[[], None] = _nobody

    def __repr__(self) -> str:
        return f"<Waiter for {self.text}>"


def _nobody() -> None:
    """Nobody sleeps yet."""


def notify(engine: Engine, waiters: Iterable[Waiter]) -> None:
    """In a step: wake those of the waiters whose predicate has become true."""
    for waiter in tuple(waiters):
        if not waiter.done and waiter.ready():
            waiter.done = True
            engine.monitor.after.append(waiter.wake)
            # It leads to whoever waits, who may never leave: a task of a loop that is closed is collected then (G18).
            waiter.wake = _nobody


def begin(engine: Engine, waiter: Waiter, actor: Any, wake: Callable[[], None]) -> bool:
    """In a step: enter a wait. Tells whether it has ended already. Raises DeadlockError if it never could.

    Whatever it raises, a signal handler's exception included: :func:`end` undoes what it has done.
    """
    if waiter.ready():
        return True
    waiter.wake = wake
    owner = waiter.owner = running_here(actor)
    mine = owner if owner is not None and owner.box.engine is engine else None
    if waiter.mode != LENIENT:
        cycle = [] if mine is None else stuck_on(mine, waiter)
        cycle = cycle or _below(engine, waiter, actor)
        if cycle:
            raise deadlock(waiter, cycle)
    if mine is not None:
        engine.waiting[waiter] = None
        _mark(mine, waiter)
        if mine.worker is not None:
            mine.worker.enter_wait()
    waiter.enlist(waiter, True)
    waiter.counted = True
    engine.sleepers += 1
    engine.watch_loops()
    engine.recheck()
    return False


def _below(engine: Engine, waiter: Waiter, actor: Any) -> list[str]:
    """The cycle if this thread waits for what begins further down on its own stack: between two inline handlers."""
    ident = primitives.get_ident()
    if engine.inlining and waiter.mode == ALL and actor == ident:
        for each in waiter.targets():
            if each.state is PENDING and each.actor == ident:
                return [each.label()] * 2
    return []


def end(engine: Engine, waiter: Waiter) -> bool:
    """In a step: leave a wait, however it ended. Tells whether what was waited for has happened.

    May be done again, and where a signal handler has broken :func:`begin`, or this, by raising.
    """
    waiter.enlist(waiter, False)
    if waiter.counted:
        waiter.counted = False
        engine.sleepers -= 1
    owner = waiter.owner
    if owner is not None:
        if waiter in engine.waiting:
            _mark(owner, None)
            del engine.waiting[waiter]
            if owner.worker is not None:
                owner.worker.exit_wait()
        waiter.owner = None
        engine.recheck()
    return waiter.done


def sleep(engine: Engine, waiter: Waiter, timeout: float | None, insist: bool = True) -> bool:
    """Wait in this thread; tells whether it came true in time. Raises DeadlockError.

    Insisting, it raises DispatcherError where no thread can be started for what it waits for.
    """
    sleeper = primitives.Sleeper()
    monitor = engine.monitor
    try:
        if monitor.run(begin, engine, waiter, primitives.get_ident(), sleeper.wake):
            return True
        if timeout != 0:
            if insist:
                engine.dispatcher.assure()
            # The handler may be another bus's: its worker is not this monitor's to touch.
            owner = waiter.owner
            if owner is None or owner.box.engine is engine or owner.worker is None:
                sleeper.sleep(timeout)
            else:
                owner.worker.sleep_elsewhere(sleeper, timeout)
        monitor.run(end, engine, waiter)
    except Interrupted:
        raise DeadlockError(
            f"cannot wait for {waiter.text} here: the waiting code interrupted the bus in this very thread"
        ) from None
    except BaseException:
        monitor.run(end, engine, waiter)  # however far it had come
        raise
    if waiter.error is not None:
        raise waiter.error
    return waiter.done


def refuse_on_loop(engine: Engine, waiter: Waiter, call: str, remedy: str = "") -> None:
    """Raise DeadlockError if waiting here would block a running event loop's own thread."""
    if primitives.running_loop() is not None and not engine.look(waiter.ready):
        remedy = remedy or "await it on an AsyncEventBus instead"
        raise DeadlockError(f"{call} would block the event loop that runs in this thread; {remedy}")


def deadlock(waiter: Waiter, cycle: list[str]) -> DeadlockError:
    """The error for a wait that could never end."""
    return DeadlockError(f"waiting for {waiter.text} here would never end: {' -> '.join(cycle)}", cycle)


def _mark(owner: Delivery, waiter: Waiter | None) -> None:
    # Whoever runs inline holds up the handler on whose stack he is.
    for each in stack_of(owner):
        each.waiter = waiter


def stuck_on(owner: Delivery, waiter: Waiter) -> list[str]:
    """The cycle by which ``owner``, if it waits thus, waits for itself; empty if the wait can end."""
    previous = owner.waiter
    _mark(owner, waiter)
    try:
        live = live_from([owner])
        return [] if owner in live else _path(owner, live)
    finally:
        _mark(owner, previous)


def live_from(start: list[Delivery], without: Delivery | None = None) -> set[Delivery]:
    """Those of the deliveries reachable from ``start`` along waits that can still end.

    With ``without``: those that can end though that one (and whoever it runs inline for) never does; here drains count
    as waits like any other.
    """
    fixed = set(stack_of(without))
    groups_of: dict[Delivery, list[list[Delivery]]] = {}
    agenda = list(start)
    while agenda:
        each = agenda.pop()
        if each not in groups_of:
            groups = groups_of[each] = [[]] if each in fixed else _needs(each, strict=bool(fixed))
            agenda.extend(other for group in groups for other in group)
    live: set[Delivery] = set()
    changed = True
    while changed:
        changed = False
        for each, groups in groups_of.items():
            if each not in live and all(any(other in live for other in group) for group in groups):
                live.add(each)
                changed = True
    return live


def _needs(each: Delivery, strict: bool = False) -> list[list[Delivery]]:
    """What must end before this delivery can: of each group, one. An empty group can never be had."""
    if each.state in (PENDING, LINED):
        return each.box.blockers(each)
    waiter = each.waiter
    if each.box is None or waiter is None or waiter.done or (waiter.mode == LENIENT and not strict):  # pyright: ignore[reportUnnecessaryComparison]
        return []  # nothing of the bus's holds it up
    targets = list(waiter.targets())
    if waiter.mode == SPACE:
        return [group for other in targets for group in other.box.space_blockers()]
    return [targets] if waiter.mode == ANY else [[other] for other in targets]


def _path(owner: Delivery, live: set[Delivery]) -> list[str]:
    """Who waits for whom, from the owner along what cannot end until somebody comes twice."""
    names = [owner.label()]
    seen = {owner}
    each = owner
    while True:
        dead = [group for group in _needs(each) if not any(other in live for other in group)]
        following = next((other for group in dead for other in group if other not in seen), None)
        if following is None:
            repeated = next((other for group in dead for other in group), owner)
            names.append(repeated.label())
            return names
        names.append(following.label())
        seen.add(following)
        each = following
