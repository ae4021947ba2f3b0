"""The seam: every lock, sleeper, thread, clock reading and loop wake-up of both packages is made here.

Callers look these names up in the module when they use them (``primitives.monotonic()``), so that a deterministic
scheduler can stand in for all of them by replacing the module's attributes. Nothing else in the packages imports
``threading``, ``time`` or ``queue``.

Only C locks are made: ``Condition``, ``Event`` and ``Semaphore`` are left in a broken state by a signal handler that
raises, or deadlock when a finalizer enters them again.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FREE_THREADED",
    "SECTIONS",
    "Sleeper",
    "current_task",
    "empty_context",
    "get_ident",
    "join_thread",
    "make_lock",
    "monotonic",
    "new_uid",
    "on_exit",
    "on_fork",
    "owns",
    "pause",
    "running_loop",
    "start_thread",
    "tools",
    "wake_loop",
    "wall_clock",
    "watched",
]

monotonic: Callable[[], float] = time.monotonic
wall_clock: Callable[[], float] = time.time
get_ident: Callable[[], int] = threading.get_ident

FREE_THREADED: bool = not getattr(sys, "_is_gil_enabled", lambda: True)()

# On builds with a GIL nobody else runs, and no signal handler, between two calls: CPython looks for them only where a
# function begins, at the end of a call and at a backward jump. Steps without any of these need no lock there.
SECTIONS: bool = not FREE_THREADED

if sys.version_info >= (3, 12):  # pragma: no cover - by version
    # What tools listen to in the whole interpreter: empty, and in C, where there are none.
    tools: Callable[[], object] = getattr(sys.monitoring, "_all_events", lambda: {"": 1})
else:  # pragma: no cover - by version

    def tools() -> object:
        """What listens to this thread's code, if anything does: a trace or a profile function."""
        return sys.gettrace() or sys.getprofile()


def watched() -> bool:
    """Whether a debugger's, profiler's or coverage tool's Python code may run between any two lines of this thread's.

    Other threads may run then, too, so no section is one. To be asked if there are :data:`tools`.
    """
    # That of coverage.py is in C and runs Python code only where a function begins.
    if {type(sys.gettrace()).__name__, type(sys.getprofile()).__name__} - {"NoneType", "CTracer"}:
        return True
    if sys.version_info < (3, 12):  # pragma: no cover - by version
        return False
    return any(sys.monitoring.get_tool(number) is not None for number in range(6))


# The longest that a lock can wait in one go.
_LONGEST = min(threading.TIMEOUT_MAX, 1e8)


def make_lock() -> Any:
    """The lock of a bus: re-entrant, and in C, so that a signal handler finds it either held or not."""
    return threading.RLock()


def owns(lock: Any) -> bool:
    """Whether this thread holds that lock."""
    held: bool = lock._is_owned()
    return held


def pause() -> None:
    """Let go of the GIL long enough for another thread to take it; nothing on builds without one."""
    if not FREE_THREADED:  # pragma: no branch - by build
        time.sleep(1e-5)


class Sleeper:
    """A binary semaphore that one thread sleeps on; the cheapest that there is. A wake-up before the sleep counts.

    It is made of a lock; ``make`` gives another one than Python's.
    """

    __slots__ = ("_lock",)

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        self._lock = (make or threading.Lock)()
        self._lock.acquire()

    def sleep(self, timeout: float | None = None) -> bool:
        """Sleep until woken, or for ``timeout`` seconds; tells whether it was woken."""
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=max(0.0, min(timeout, _LONGEST)))

    def wake(self) -> None:
        """Wake the sleeper; waking one that is awake already is remembered once."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it was woken already


def empty_context() -> Context:
    """A context without variables: the bus's own threads and tasks run in one."""
    return Context()


def start_thread(target: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread in an empty context. Raises RuntimeError where no thread can be started."""
    if sys.is_finalizing():
        raise RuntimeError("the interpreter is shutting down")
    thread = threading.Thread(target=Context().run, args=(target,), name=name, daemon=True)
    # Thread.start() waits for the new thread to say that it runs; a signal handler that emits meanwhile is harmless
    # because nobody calls this with a lock held.
    thread.start()
    return thread


def join_thread(thread: threading.Thread, timeout: float) -> bool:
    """Wait for a thread's end, never during finalization and never for oneself; tells whether it has ended."""
    if thread is not threading.current_thread() and not sys.is_finalizing():
        thread.join(max(0.0, min(timeout, _LONGEST)))
    return not thread.is_alive()


def new_uid() -> str:
    """Sixteen random hexadecimal digits: what tells the events of one bus (and process) from another's."""
    return os.urandom(8).hex()


def running_loop() -> Any:
    """The event loop that runs in this thread, or None. A program without asyncio pays one dictionary look-up."""
    # The core never imports asyncio: it only asks it, where the program has, lest it block somebody's loop.
    events = sys.modules.get("asyncio.events")
    return None if events is None else events._get_running_loop()


def current_task() -> Any:
    """The task that runs in this thread's loop, or None."""
    loop = running_loop()
    return None if loop is None else sys.modules["asyncio.tasks"].current_task(loop)


def wake_loop(loop: Any, callback: Callable[[], None], context: Context) -> None:
    """Have a loop call back, from any thread, signal handler or finalizer. Raises RuntimeError once it is closed."""
    loop.call_soon_threadsafe(callback, context=context)


def on_exit(callback: Callable[[], None]) -> None:
    """Call back at interpreter exit, before the threads are joined and while threads can still run."""
    # The private hook is what concurrent.futures uses; plain atexit comes after the joining of threads.
    register = getattr(threading, "_register_atexit", None)
    if register is None:  # pragma: no cover - every CPython that we support has it
        import atexit

        register = atexit.register
    register(callback)


def on_fork(after_in_child: Callable[[], None]) -> None:
    """Call back in the child after each ``os.fork()``, where the platform has it."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch - by platform
        os.register_at_fork(after_in_child=after_in_child)
