"""What a test leaves behind: threads, asyncio tasks, handles. One fixture, for all tests, fails those that do.

A test that has to leave something says which, and why: ``@pytest.mark.leaves("threads", reason="...")``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from types import FrameType
from typing import Any, Self

import pytest

from eventbus._engine.dispatcher import Worker
from eventbus._engine.timer import Timer
from eventbus._engine.waits import Waiter

__all__ = ["KINDS", "Watch", "idle", "leaves_nothing"]

GRACE = 10.0  # seconds that threads may need after a test to end what they do last, on a busy machine


def threads() -> dict[Hashable, str]:
    """The threads, but those of a bus that sleep with nothing to do: they end by themselves within about a second."""
    known = {thread.ident: thread for thread in threading.enumerate()}
    found: dict[Hashable, str] = {}
    for ident, frame in sys._current_frames().items():
        if not idle(frame):
            thread = known.get(ident)
            # Not by the ident alone, which the system gives to the next thread.
            found[(ident, id(thread))] = f"thread {thread.name if thread else ident}{where(frame)}"
    return found


def idle(inner: FrameType) -> bool:
    """Whether it is the stack of a worker, or of a timer without an entry, that sleeps until there is something."""
    frame: FrameType | None = inner.f_back
    if frame is None or inner.f_code.co_name != "sleep":
        return False
    if frame.f_code is Timer._run.__code__:
        return not frame.f_locals["self"]._heap
    return frame.f_code is Worker.run.__code__


def where(inner: FrameType) -> str:
    """Where a thread is, innermost first, and what a timer's thread waits for."""
    said: list[str] = []
    entries = ""
    frame: FrameType | None = inner
    while frame is not None:
        said.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        if frame.f_code is Timer._run.__code__:
            timer: Timer = frame.f_locals["self"]
            entries = "; due: " + ", ".join(
                f"{getattr(call, '__qualname__', call)} in {due - time.monotonic():.1f} s"
                for due, _, call in list(timer._heap)
            )
        frame = frame.f_back
    return f" (in {' < '.join(said[:6])}{entries})"


def waits() -> str:
    """What is waited for in any bus: what keeps a timer going."""
    return ", ".join(each.text for each in gc.get_objects() if type(each) is Waiter and each.counted) or "none"


def tasks() -> dict[Hashable, str]:
    """The tasks of whatever loop, running, stopped or closed, that have not ended."""
    names = ("_all_tasks", "_scheduled_tasks", "_eager_tasks")  # up to Python 3.11; from 3.12 on
    every: list[asyncio.Task[Any]] = []
    for name in names:
        registered: Iterable[asyncio.Task[Any]] = getattr(asyncio.tasks, name, ())
        every.extend(list(registered))
    return {weakref.ref(task): f"task {task.get_coro()!r}" for task in every if not task.done()}


def handles() -> dict[Hashable, str]:
    """The open files, sockets and selectors of this process, where the system lists them."""
    found: dict[Hashable, str] = {}
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for number in numbers:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue  # that of the listing itself
        found[(number, target)] = f"handle {number} ({target})"
    return found


KINDS: dict[str, Callable[[], dict[Hashable, str]]] = {"threads": threads, "tasks": tasks, "handles": handles}


class Watch(logging.Handler):
    """Notes what there is when it is entered; ``left()`` tells what has come since and does not go."""

    def __init__(self, kinds: Iterable[str] = KINDS) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.dropped: list[str] = []
        self._before: dict[str, set[Hashable]] = {}

    def __enter__(self) -> Self:
        self._before = {kind: set(KINDS[kind]()) for kind in self.kinds}
        if "tasks" in self.kinds:
            logging.getLogger("asyncio").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("asyncio").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """A task that nobody holds any more has not ended either: asyncio tells of it, once."""
        if "was destroyed but it is pending" in record.getMessage():
            self.dropped.append(record.getMessage().replace("\n", " "))

    def left(self, grace: float) -> list[str]:
        """What is left when the time of grace is over."""
        left = self._wait(grace)
        if left:
            gc.collect()  # what hangs in a cycle only: closing it noisily, as sockets do, is the filters' matter
            left = self._wait(grace)  # and what that has woken goes to sleep again
        return sorted(left + self.dropped)

    def _wait(self, grace: float) -> list[str]:
        """Until there is nothing, or the time is over: what there is then."""
        end = time.monotonic() + grace
        pause = 0.001
        while (left := self._now()) and time.monotonic() < end:
            pause = min(pause * 1.5, 0.05)  # each look takes the GIL from those that are to end
            threading.Event().wait(pause)
        return left

    def _now(self) -> list[str]:
        return [what for kind in self.kinds for key, what in KINDS[kind]().items() if key not in self._before[kind]]


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a thread, a task or a handle behind has failed; the marker ``leaves`` says what is meant."""
    meant: set[str] = set()
    for marker in request.node.iter_markers("leaves"):
        if not marker.args or not set(marker.args) <= set(KINDS) or not marker.kwargs.get("reason"):
            pytest.fail('say which and why: @pytest.mark.leaves("threads", reason="...")')
        meant.update(marker.args)
    with Watch(kind for kind in KINDS if kind not in meant) as watch:
        yield
        left = watch.left(GRACE)
    if left:
        pytest.fail(f"the test left behind: {'; '.join(left)}; waits in progress: {waits()}")
