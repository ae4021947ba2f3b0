"""The monitor of one bus: the one lock under which all of its delivery state changes.

Guarantees
    * One *step* (a short function that runs no user code) at a time; a step is the linearization point of the public
      operation that made it (G3).
    * G12: a call that interrupts a step of its own thread (signal handler, ``__del__``, weakref callback) never waits
      for it. The lock is re-entrant, so it gets in, finds ``busy`` and is put off until the interrupted step has ended.
    * What must happen outside of the lock (wake-ups, starting threads) is collected by the step in ``after`` and done
      once the lock is free. Such actions may be done twice and by any thread: they only wake.

State, and who owns it
    ``busy``      the lock's holder. True only within a step.
    ``after``     a deque: appended to in steps, popped by any thread (both atomic on every build).
    ``trash``     the lock's holder: what steps let go of, dropped once the lock is free, for user code may hang on it.
    ``deferred``  thread ident -> calls put off by that thread; only that thread touches its own entry.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from . import primitives

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Interrupted", "Monitor"]

T = TypeVar("T")
PATIENCE = 20  # looks at a busy monitor before queueing for it

log = logging.getLogger("eventbus")


class Interrupted(Exception):
    """This thread is in the midst of a step already; what it wants has to be put off. Never reaches a user."""


class Monitor:
    """The lock of a bus with its re-entrancy guard."""

    __slots__ = ("after", "busy", "deferred", "lock", "trash")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start afresh: at birth, and in a forked child, where another thread may have held the lock."""
        self.lock = primitives.make_lock()
        self.busy = False
        self.after: deque[Callable[[], None]] = deque()
        self.trash: list[object] = []
        self.deferred: dict[int, deque[Callable[[], None]]] = {}

    def run(self, step: Callable[..., T], *args: Any) -> T:
        """Run one step under the lock, then what it left in ``after``. Raises Interrupted on re-entry."""
        if self.busy:
            self.stand_back()
        try:
            with self.lock:
                if self.busy:
                    raise Interrupted
                self.busy = True
                try:
                    result = step(*args)
                finally:
                    self.busy = False
                    trash = self.trash
                    if trash:
                        self.trash = []
            del trash  # outside of the lock: this may run finalizers
        except Interrupted:
            raise  # the interrupted step will flush
        except BaseException:
            self.flush()
            raise
        if self.after or self.deferred:
            self.flush()
        return result

    def stand_back(self) -> None:
        """Another thread is in a step, and was made to yield the GIL in it: let it finish rather than queue up.

        Whoever queues for a lock gets it handed over while he still has to wait for the GIL, so that the next step of
        anybody has to queue, too: a convoy, with a switch of threads for every step.
        """
        for _ in range(PATIENCE):
            if not self.busy or primitives.owns(self.lock):
                return
            primitives.pause()

    def defer(self, call: Callable[[], None]) -> None:
        """Put a call off until the step that it interrupted has ended; calls keep their order."""
        self.deferred.setdefault(primitives.get_ident(), deque()).append(call)

    def pending_here(self) -> bool:
        """Whether this thread has put calls off that have not run yet."""
        return primitives.get_ident() in self.deferred

    def flush(self) -> None:
        """Do what steps have left to do outside of the lock. Never called within a step."""
        if self.deferred:
            self._catch_up()
        after = self.after
        while True:
            try:
                action = after.popleft()
            except IndexError:
                return
            try:
                action()
            except BaseException:
                # A signal handler raised in the midst of it: a wake-up must not be lost, and may come twice.
                after.append(action)
                _quietly(self.flush)
                raise

    def _catch_up(self) -> None:
        ident = primitives.get_ident()
        while calls := self.deferred.get(ident):
            call = calls.popleft()
            if not calls:
                self.deferred.pop(ident, None)
            try:
                call()
            except Exception:
                log.exception("a call that was put off because it interrupted the bus has failed")


def _quietly(call: Callable[[], None]) -> None:
    try:
        call()
    except BaseException:
        log.exception("a wake-up failed")
