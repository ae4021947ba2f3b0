"""The crossing from any thread into one event loop, for one bus.

What is to be done on the loop stands in a deque; a janus queue carries the wake-ups, one for each change from idle to
busy and never one an event, and the loop is rung once for each. Nobody waits at the queue's asynchronous side, because
that would be a task on an idle loop, and janus makes another one for each item that somebody waits for.

Guarantees
    * G12: janus's mutex is a plain lock, so a signal handler or finalizer that entered it again in the same thread
      would deadlock. Whoever is inside has his ident in ``_inside``; who comes by his interruption leaves a mark there,
      and the one who is inside goes round again. The bus's monitor is never held here.
    * G13: a loop that closes between the look and the call raises to nobody: ``lost`` is told.

Owner: ``_notes`` is appended to by any thread and popped on the loop's; ``_rung`` is set before the loop is rung and
cleared, on the loop, before the notes are read, so that none is overlooked (one too many does no harm); each thread
touches only its own entry of ``_inside``.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING

import janus

from eventbus.lowlevel import primitives

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

__all__ = ["Bridge"]


class Bridge:
    """Rings one loop. Holds it weakly."""

    __slots__ = ("_arrived", "_inside", "_lost", "_notes", "_queue", "_rung", "context", "loop")

    def __init__(self, loop: AbstractEventLoop, arrived: Callable[[], None], lost: Callable[[], None]) -> None:
        self.loop = weakref.ref(loop)
        self.context = primitives.empty_context()
        self._arrived = arrived
        self._lost = lost
        self._notes: deque[Callable[[], None]] = deque()
        self._queue: janus.Queue[None] = janus.Queue()
        self._inside: dict[int, bool] = {}
        self._rung = False

    def post(self, note: Callable[[], None]) -> None:
        """Have something done on the loop, from anywhere. Nothing happens if it is closed."""
        self._notes.append(note)
        self.ring()

    def ring(self) -> None:
        """Wake the loop, from anywhere, outside of steps; wake-ups that it has not answered yet are one."""
        loop = self.loop()
        if loop is None or loop.is_closed():
            self._notes.clear()
            self._lost()
            return
        if self._rung:
            return
        ident = primitives.get_ident()
        if ident in self._inside:
            self._inside[ident] = True
            return
        again = True
        try:
            while again:
                self._inside[ident] = False
                try:
                    self._rung = True
                    self._queue.sync_q.put_nowait(None)
                    primitives.wake_loop(loop, self._arrive, self.context)
                finally:
                    again = self._inside.pop(ident, False)
        except RuntimeError:  # it was closed just now
            self._rung = False
            self._notes.clear()
            self._lost()
        except BaseException:  # a signal handler's: whoever wakes next has to ring
            self._rung = False
            raise

    def ring_again(self) -> None:
        """Ring though the last ring may not have been answered yet: it may have been lost."""
        self._rung = False
        self.ring()

    def _arrive(self) -> None:
        """On the loop: do what there is to do."""
        ident = primitives.get_ident()
        queue = self._queue.async_q
        again = True
        while again:
            self._inside[ident] = False
            try:
                self._rung = False
                while not queue.empty():
                    queue.get_nowait()
            finally:
                again = self._inside.pop(ident, False)
        notes = self._notes
        while notes:
            notes.popleft()()
        self._arrived()
