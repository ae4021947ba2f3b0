"""Event loops under a scheduler: they sleep at a point, are rung by a flag, and their clock is the virtual one.

A :class:`Loop` is asyncio's own selector loop with a selector that watches nothing. Its tasks and callbacks run in the
loop's (controlled) thread as ever; what is explored is how that thread and the others interleave.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import janus

from eventbus import BusClosedError

from . import seam
from .baton import Scheduler, here
from .world import CLOSE_TIMEOUT, ENDLESS, Call, Emit, Sub, World

__all__ = ["Loop", "Looped", "janus_swapped"]


class _Selector(selectors.BaseSelector):
    """Nothing to select from: only the sleep until somebody rings or a time has come."""

    def __init__(self, sched: Scheduler) -> None:
        self.sched = sched
        self.rung = False

    def select(self, timeout: float | None = None) -> list[Any]:
        due = None if timeout is None else self.sched.now + max(0.0, timeout)
        self.sched.point(lambda: self.rung, due)
        self.rung = False
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        raise NotImplementedError("nothing can be watched here")

    def unregister(self, fileobj: Any) -> Any:
        raise NotImplementedError("nothing can be watched here")

    def get_map(self) -> Any:
        return {}

    def close(self) -> None:
        pass


class Loop(asyncio.SelectorEventLoop):
    """One that runs in a controlled thread."""

    def __init__(self, sched: Scheduler) -> None:
        self._sched = sched
        super().__init__(_Selector(sched))

    def _make_self_pipe(self) -> None:
        self._ssock = self._csock = None
        self._internal_fds = 1

    def _close_self_pipe(self) -> None:
        self._internal_fds = 0

    def _write_to_self(self) -> None:
        self._selector.rung = True  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._sched.now

    def __del__(self) -> None:
        """A schedule that failed leaves loops open; there is nothing in them to close."""

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
        if here() is not None:
            self._sched.point()
        return super().call_soon_threadsafe(callback, *args, context=context)


@contextmanager
def janus_swapped() -> Iterator[None]:
    """Within it, the mutex of a janus queue that a controlled thread makes is the scheduler's."""

    def make_lock() -> Any:
        return threading.Lock() if here() is None else seam.Lock()

    before = janus.threading
    janus.threading = SimpleNamespace(Lock=make_lock, Condition=threading.Condition)  # type: ignore[assignment]
    try:
        yield
    finally:
        janus.threading = before


class Looped:
    """What a thread of a program does that runs a loop: coroutine handlers, awaits, and the loop's end."""

    def __init__(self, world: World) -> None:
        self.world = world
        assert world.facade is not None
        self.bus = world.facade
        self.loop: Loop | None = None
        self.over: asyncio.Event | None = None
        self.tasks: dict[Call, asyncio.Task[Any] | None] = {}  # in which they were made
        world.loops.append(self)

    def run(self, main: Callable[[Looped], Awaitable[object]]) -> None:
        """Run a coroutine in a loop of this thread, then close that."""
        world = self.world
        loop = self.loop = Loop(world.sched)
        try:
            loop.run_until_complete(self._run(main))
            mine = [sub for sub in world.subs.values() if sub.options.get("looped") is self]
            for sub in mine:
                # From here on the loop's handlers may be cancelled; that is noticed at the next touch.
                sub.cancels(world.now())
                sub.gone = True
        finally:
            loop.close()
        for call in world.calls:
            if call.sub in mine and call.end == ENDLESS:
                call.end = world.now()  # it was suspended, and nobody will resume it

    async def _run(self, main: Callable[[Looped], Awaitable[object]]) -> None:
        self.over = asyncio.Event()
        await main(self)

    def release(self) -> None:
        """From another thread: let :meth:`others` end."""
        loop, over = self.loop, self.over
        if loop is not None and over is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(over.set)
            except RuntimeError:
                pass  # it was closed just now

    async def others(self) -> None:
        """Wait until the other threads of the program have ended."""
        assert self.over is not None
        if not self.world.alone:
            await self.over.wait()

    def on(self, name: str, *topics: str, pause: float = 0.0, **options: Any) -> Sub | None:
        """Register a coroutine handler that notes its calls, and suspends for so long."""
        world = self.world
        sub = Sub(name, topics, {**options, "looped": self}, world.now())

        async def handler(payload: Any) -> Any:
            call = Call(sub, payload[0], world.now(), None)
            world.calls.append(call)
            self.tasks[call] = asyncio.current_task()
            try:
                world.sched.point()
                await asyncio.sleep(pause)
                return (name, payload[0])
            finally:
                call.end = min(call.end, world.now())

        try:
            sub.handle = self.bus.on(list(topics), handler, name=name, **options)
        except BusClosedError:
            world.refused()
            return None
        sub.end = world.now()
        world.subs[name] = sub
        return sub

    def rob(self, name: str) -> None:
        """Cancel the tasks in which that handler is suspended."""
        for call, task in self.tasks.items():
            if call.sub.name == name and call.end == ENDLESS and task is not None:
                call.robbed = task.cancel()

    def emit(self, topic: str = "t") -> Emit | None:
        """Emit through the facade."""
        return self.world.emit(topic, via=self.bus)

    async def wait(self, record: Emit | None) -> None:
        """Await an emit's receipt."""
        if record is not None and record.receipt is not None:
            receipt: Any = record.receipt
            await receipt
            assert receipt.done, "the await ended before the receipt was done"
            record.seen = receipt.outcomes

    async def cancel(self, name: str) -> None:
        """End a subscription and wait for its calls."""
        world = self.world
        sub = world.subs.get(name)
        if sub is not None:
            sub.cancels(world.now())
            sub.first += await sub.handle.cancel(True)
            end = world.now()
            sub.cancel_end, sub.quiet = min(sub.cancel_end, end), min(sub.quiet, end)

    async def drain(self) -> None:
        """Drain, awaiting."""
        before = [each for each in self.world.emits if each.receipt is not None]
        await self.bus.drain()
        for each in before:
            assert each.receipt is None or each.receipt.done, f"drain() ended before emit {each.number} was settled"

    async def close(self) -> None:
        """Close, awaiting; this facade has made its core."""
        world = self.world
        world.closing = min(world.closing, world.now())
        began = world.sched.now
        await self.bus.close()
        world.impatient |= world.sched.now - began >= CLOSE_TIMEOUT
        world.closed = min(world.closed, world.now())
        for each in world.emits:
            assert each.receipt is None or each.receipt.done, f"close() ended before emit {each.number} was settled"
