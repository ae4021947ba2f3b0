"""The monitor of one bus: the one lock under which all of its delivery state changes.

Guarantees
    * One *step* (a short function that runs no user code) at a time; a step is the linearization point of the public
      operation that made it (G3).
    * G12: a call that interrupts a step of its own thread (signal handler, ``__del__``, weakref callback) never waits
      for it. The lock is re-entrant, so it gets in, finds ``busy`` and is put off until the interrupted step has ended.
      Calls that were put off stand in a line, which each leaves within the step by which it takes effect; as long as
      one stands there, later calls that come out of step line up behind it.
    * What must happen outside of the lock (wake-ups, starting threads) is collected by the step in ``after`` and done
      once the lock is free. Such actions may be done twice and by any thread: they only wake.

State, and who owns it
    ``busy``      the lock's holder. True only within a step.
    ``after``     a deque: appended to in steps, popped by any thread (both atomic on every build).
    ``trash``     the lock's holder: what steps let go of, dropped once the lock is free, for user code may hang on it.
    ``deferred``  thread ident -> the line of calls put off by that thread; only that thread touches its own entry.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._errors import EventBusError
from . import primitives

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Interrupted", "Monitor", "steps"]

T = TypeVar("T")
PATIENCE = 20  # looks at a busy monitor before queueing for it
NESTED = 8  # calls that were put off, each caught up with within a handler of the one before
ATTEMPTS = 3  # at a call that was put off, each broken by a signal handler

log = logging.getLogger("eventbus")


# The step, of whatever bus, that each thread is in. A finalizer in the midst of one must not queue for another bus's
# monitor: two threads that did so crosswise would wait for ever. Each thread touches only its own entry.
steps: dict[int, Monitor] = {}


class Interrupted(Exception):
    """This thread is in the midst of a step already; what it wants has to be put off. Never reaches a user."""


class Late:
    """A call that was put off."""

    __slots__ = ("attempts", "begun", "call")

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call
        self.begun = False
        self.attempts = 0


class Line(deque[Late]):
    """The calls that one thread has put off."""

    depth = 0  # how many of them are being caught up with, each within a handler of the one before
    paused = False  # while what a step of one has left to do is done: that takes steps, before its inline handlers run


class Monitor:
    """The lock of a bus with its re-entrancy guard."""

    __slots__ = ("after", "busy", "deferred", "lock", "repair", "trash")

    def __init__(self, repair: Callable[[], None] | None = None) -> None:
        self.repair = repair  # a step: make good what a broken one may have left half-done
        self.renew()

    def renew(self) -> None:
        """Start afresh: at birth, and in a forked child, where another thread may have held the lock."""
        self.lock = primitives.make_lock()
        self.busy = False
        self.after: deque[Callable[[], None]] = deque()
        self.trash: list[object] = []
        self.deferred: dict[int, Line] = {}

    def run(self, step: Callable[..., T], *args: Any, late: bool = False) -> T:
        """Run one step under the lock, then what it left in ``after``. Raises Interrupted on re-entry.

        With ``late`` it is of a call that was put off: whoever catches up is further down on this stack, and goes on.
        """
        ident = primitives.get_ident()
        if ident in steps:
            raise Interrupted
        if self.busy:
            self.stand_back()
        try:
            with self.lock:
                if self.busy:
                    raise Interrupted
                self.busy = True
                try:
                    steps[ident] = self
                    result = step(*args)
                finally:
                    self.busy = False
                    if ident in steps:
                        del steps[ident]  # noqa: RUF051 - after a call a signal handler could raise
                    trash = self.trash
                    if trash:
                        self.trash = []
            del trash  # outside of the lock: this may run finalizers
            if self.after or self.deferred:
                self.flush(late)
        except Interrupted:
            raise  # the interrupted step will flush
        except BaseException as error:
            self.mend(error)
            self.flush(late)
            raise
        return result

    def mend(self, error: BaseException) -> None:
        """After a step that raised; if that was a signal handler's doing, it may have broken off anywhere."""
        if self.repair is not None and not isinstance(error, EventBusError):
            _quietly(self._repair)

    def _repair(self) -> None:
        assert self.repair is not None
        self.run(self.repair)

    def run_in_turn(self, step: Callable[..., T], *args: Any) -> T:
        """As :meth:`run`, for calls that keep their order: also Interrupted while others of this thread are put off."""
        if self.deferred and self.pending_here():
            raise Interrupted
        return self.run(step, *args)

    def run_late(self, step: Callable[..., T], *args: Any) -> T:
        """As :meth:`run`, for a call that was put off: it leaves the line in the same step."""

        def leave() -> T:
            result = step(*args)
            self.leave_line()
            return result

        return self.run(leave, late=True)

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
        ident = primitives.get_ident()
        line = self.deferred.setdefault(ident, Line())
        line.append(Late(call))
        if self.busy and primitives.owns(self.lock):
            return
        interrupted = steps.get(ident)
        if interrupted is None:
            # Between two steps nothing holds the line up. Where inline handlers that are caught up with emit in turn,
            # each within the last, the stack would end: from some depth on they do so one after another.
            if line.depth < NESTED:
                self.flush()
        elif interrupted is not self:
            interrupted.defer(self.flush)  # another bus's step: its end is this line's turn

    def defer_alone(self, call: Callable[[], None]) -> None:
        """Put a call off, first in line; of what stands there only that stays which has begun. In a forked child."""
        ident = primitives.get_ident()
        line = self.deferred.get(ident, Line())
        begun = [late for late in line if late.begun]
        line.clear()
        line.extend((*begun, Late(call)))
        self.deferred = {ident: line}

    def pending_here(self) -> bool:
        """Whether this thread has put calls off that have not taken effect yet."""
        return bool(self.deferred.get(primitives.get_ident()))

    def leave_line(self) -> None:
        """In a step: the first call that this thread has put off takes effect."""
        line = self.deferred.get(primitives.get_ident())
        if line:  # a fork may have done away with it
            line.popleft()

    def flush(self, late: bool = False, attempts: int = ATTEMPTS) -> None:
        """Do what steps have left to do outside of the lock. Never within a step. ``late``: as for :meth:`run`."""
        line = None
        if self.deferred:
            if late:
                line = self.deferred.get(primitives.get_ident())
            else:
                self._catch_up()
        taken: list[Callable[[], None]] = []
        try:
            if line is not None:
                line.paused = True
            after = self.after
            while True:  # thus, or the jump back would stand outside of the try: tests/house/test_jumps.py
                if not after:
                    return
                # One call into C, so that no signal handler can raise between taking an action and having it.
                taken.extend(map(_popleft, (after,)))
                taken[0]()
                taken.clear()
        except BaseException as error:
            if isinstance(error, IndexError) and not taken:
                return  # another thread took the last one
            # A signal handler raised in the midst of it: a wake-up must not be lost, and may come twice.
            self.after.extend(taken)
            if attempts:  # what fails each time, for want of memory, stays for the next step's end
                _quietly(partial(self.flush, False, attempts - 1))
            raise
        finally:
            if line is not None:
                line.paused = False

    def _catch_up(self) -> None:
        ident = primitives.get_ident()
        while (line := self.deferred.get(ident)) is not None:
            late = _first(line)
            if late is None:
                self.run(self._forget_line, ident)
                continue
            if late.begun or line.paused:
                return  # it is further up on this stack, and the rest follows from there
            try:
                late.begun = True
                line.depth += 1
                if _first(line) is late:  # or an interruption between these lines has done it
                    late.attempts += 1
                    late.call()
                    if _first(line) is late:
                        line.popleft()  # it was refused
            except BaseException:
                # A signal handler raised in the midst of it: what has not taken effect yet is tried again.
                late.begun = False
                line.depth -= 1
                if late.attempts < ATTEMPTS:
                    _quietly(self._catch_up)
                elif _first(line) is late:
                    line.popleft()
                raise
            line.depth -= 1

    def _forget_line(self, ident: int) -> None:
        # In a step every interruption lines up, so none takes effect between these two lines, and none is lost.
        line = self.deferred.pop(ident, None)
        if line:
            self.deferred.setdefault(ident, Line()).extendleft(reversed(line))


_popleft: Any = deque.popleft  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _first(line: Line) -> Late | None:
    try:
        return line[0]
    except IndexError:
        return None


def _quietly(call: Callable[[], None]) -> None:
    try:
        call()
    except BaseException:
        log.exception("a wake-up or a call that was put off has failed")
