"""Deadlines of one bus: a heap, and a thread that exists only while there is something to wait for.

Owner: the bus's monitor. Callbacks run in a step, so they are short and run no user code.
"""

from __future__ import annotations

import heapq
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from . import primitives

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from .monitor import Monitor

__all__ = ["Timer"]

RETRY_SECONDS = 0.05  # after a look that failed, for want of memory, and after a thread could not be started
LINGER = 1.0  # seconds that the thread stays without an entry, and between looks at whether there is one

log = logging.getLogger("eventbus")

# [due, number, callback or None once forgotten]
Entry = list[Any]


class Timer:
    """Calls back, in a step, at or after a given time."""

    __slots__ = ("_heap", "_monitor", "_name", "_number", "_sleeper", "_until", "ident", "thread")

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor = monitor
        self._name = name
        self.renew()

    def renew(self) -> None:
        """No entries, no thread: at birth and in a forked child."""
        self._heap: list[Entry] = []
        self._number = 0
        self._sleeper = primitives.Sleeper()
        self._until = 0.0  # when the thread will look next; 0.0: it is awake, or there is none
        self.ident = 0
        self.thread: threading.Thread | None = None

    def at(self, delay: float, callback: Callable[[], None]) -> Entry:
        """In a step: call back in ``delay`` seconds."""
        self._number += 1
        entry: Entry = [primitives.monotonic() + delay, self._number, callback]
        # The entry comes last: a signal handler that raises here must not leave one that nobody looks at.
        if self.ident == 0:
            self.ident = -1
            self._monitor.after.append(self._start)
        elif entry[0] < self._until:
            self._until = 0.0
            self._monitor.after.append(self._sleeper.wake)
        heapq.heappush(self._heap, entry)
        return entry

    def forget(self, entry: Entry | None) -> None:
        """In a step: an entry is not wanted any more."""
        if entry is not None:
            entry[2] = None
            while self._heap and self._heap[0][2] is None:
                heapq.heappop(self._heap)
            if len(self._heap) > 64 and sum(each[2] is None for each in self._heap) * 2 > len(self._heap):
                self._heap = [each for each in self._heap if each[2] is not None]
                heapq.heapify(self._heap)

    def stop(self) -> None:
        """In a step: the thread ends as soon as it can."""
        self._heap.clear()
        if self.ident:
            self._until = -1.0  # also for one that is being started
        if self.ident > 0:
            self._monitor.after.append(self._sleeper.wake)

    def _start(self) -> None:
        """May be called too often; a signal handler that raises in it leaves it open whether a thread has begun."""
        if self.ident != -1:
            return
        try:
            thread = primitives.start_thread(self._run, f"{self._name}-timer")
        except (RuntimeError, MemoryError):
            self._monitor.run(self._failed)
        else:
            self.thread = thread

    def start_thread(self, run: Callable[[], None], name: str) -> None:
        """Outside of steps: have a thread do it, a little later where none can be started now.

        It does not raise that: whoever made the step that this comes after, a worker perhaps, has no part in it.
        """
        try:
            primitives.start_thread(run, name)
        except (RuntimeError, MemoryError):
            again = partial(self._monitor.after.append, partial(self.start_thread, run, name))
            self._monitor.run(self.at, RETRY_SECONDS, again)

    def lacks_thread(self) -> bool:
        """In a step: whether there are entries and, since none could be started, no thread; another one is tried."""
        if not self._heap or self.ident != 0:
            return False
        self.ident = -1
        self._monitor.after.append(self._start)
        return True

    def _failed(self) -> None:
        if self.ident == -1:
            self.ident = 0  # the next entry tries again

    def _run(self) -> None:
        if not self._monitor.run(self._begin):
            return
        while True:
            try:
                delay = self._monitor.run(self._tick)
            except Exception:
                log.exception("the thread for time-outs goes on after an error")
                delay = RETRY_SECONDS
            if delay is None:
                return
            self._sleeper.sleep(delay)

    def _begin(self) -> bool:
        """In a step: whether it is this thread that is wanted, and no other that was started for the same purpose."""
        if self.ident != -1:
            return False
        self.ident = primitives.get_ident()
        return True

    def _tick(self) -> float | None:
        """Run what is due; the seconds until the next look, or None to end the thread."""
        if self.ident != primitives.get_ident():
            return None  # it had ended when what came after its last look failed
        now = primitives.monotonic()
        stopping = self._until < 0
        idle = not self._heap and 0 < self._until <= now
        while self._heap and self._heap[0][0] <= now:
            callback = heapq.heappop(self._heap)[2]
            if callback is not None:
                callback()
        if not self._heap and (stopping or idle):
            self.ident = 0
            self.thread = None
            self._until = 0.0
            return None
        # Also with something due much later, which may have been forgotten by then: an idle bus's threads end soon.
        self._until = min(self._heap[0][0], now + LINGER) if self._heap else now + LINGER
        return self._until - now
