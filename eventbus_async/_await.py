"""Awaiting: a wait of the core's as something awaitable, in one place; and the awaitables that the facade returns.

They are coroutines of ours: ``create_task``, ``gather``, ``wait_for``, ``TaskGroup``, ``shield`` and ``asyncio.run``
take them; any number of tasks may await one, in any loops and at once; dropping one warns of nothing and loses nothing,
for what it stands for was done at the call.

Owner: each task that drives one touches only its own entry of ``_drivers``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import eventbus
from eventbus import DeadlockError, EventTimeoutError
from eventbus.lowlevel import Interrupted, Waiter, begin, check_timeout, end, hot, primitives

from ._runner import executor_of

if TYPE_CHECKING:
    from asyncio import Future
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Self

    from eventbus.lowlevel import Engine

    from ._binding import Binding

__all__ = ["Acted", "Block", "Count", "Driven", "Ended", "Receipt", "Waiting", "again", "wait"]

T = TypeVar("T")


def wait(engine: Engine, waiter: Waiter, timeout: float | None) -> Generator[Any, Any, bool]:
    """Wait on the running loop; tells whether it came true in time. Cancelling it cancels this wait alone.

    Raises:
        DeadlockError: The wait could never end.
        DispatcherError: No thread can be started for what it waits for.
    """
    loop = asyncio.get_running_loop()
    executor = executor_of(engine, loop)
    future: Future[None] = loop.create_future()

    def woken() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        # Without a task this may be a signal handler in the loop's own sleep, which only a ring ends. The loop may run
        # in another thread than it did when the wait began.
        if primitives.running_loop() is loop and primitives.current_task() is not None:
            woken()
        else:
            executor.bridge.post(woken)

    timer = None
    try:
        executor.waits[waiter] = None
        try:
            if engine.monitor.run(begin, engine, waiter, asyncio.current_task(), wake):
                return True
        except Interrupted:
            raise DeadlockError(
                f"cannot wait for {waiter.text} here: the code interrupted the bus in this thread"
            ) from None
        engine.dispatcher.assure()
        if timeout != 0:
            if timeout is not None:
                timer = loop.call_later(timeout, woken, context=executor.bridge.context)
            yield from future
        _leave(engine, waiter)
    except BaseException:
        _leave(engine, waiter)  # however far it had come
        raise
    finally:
        executor.waits.pop(waiter, None)
        if timer is not None:
            timer.cancel()
    if waiter.error is not None:
        raise waiter.error
    return waiter.done


def _leave(engine: Engine, waiter: Waiter) -> None:
    try:
        engine.monitor.run(end, engine, waiter)
    except Interrupted:  # a collected task's, in the midst of a step
        engine.monitor.defer(lambda: _leave_late(engine, waiter))


def _leave_late(engine: Engine, waiter: Waiter) -> None:
    engine.monitor.run(end, engine, waiter)


class Waiting:
    """``await Waiting(...)``: a wait as an awaitable for coroutine functions."""

    __slots__ = ("_engine", "_timeout", "_waiter")

    def __init__(self, engine: Engine, waiter: Waiter, timeout: float | None) -> None:
        self._engine = engine
        self._waiter = waiter
        self._timeout = timeout

    def __await__(self) -> Generator[Any, Any, bool]:
        return wait(self._engine, self._waiter, self._timeout)


def again(waiter: Waiter) -> Waiter:
    """The same wait, to be entered once more."""
    made = Waiter(waiter.text, waiter.ready, waiter.enlist, waiter.mode, waiter.targets)
    made.keen = waiter.keen
    return made


class Driven(Coroutine[Any, Any, T]):
    """A coroutine that can be awaited, and driven by tasks, any number of times."""

    __slots__ = ()
    _drivers: dict[Any, Generator[Any, Any, T]]

    def __await__(self) -> Generator[Any, Any, T]:
        raise NotImplementedError

    def _driver(self) -> tuple[Any, Generator[Any, Any, T]]:
        try:
            drivers = self._drivers
        except AttributeError:
            drivers = self._drivers = {}
            if hot.track is not None:
                hot.track(self)  # from here on it is part of a cycle
        key = primitives.current_task()
        driver = drivers.get(key)
        if driver is None:
            driver = drivers[key] = self.__await__()
        return key, driver

    def send(self, value: Any) -> Any:
        """Drive it, as tasks do."""
        key, driver = self._driver()
        try:
            return driver.send(value)
        except BaseException:
            self._drivers.pop(key, None)
            raise

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        """Raise an exception where the calling task waits in it."""
        error = typ if val is None else val
        key, driver = self._driver()
        try:
            return driver.throw(error() if isinstance(error, type) else error)
        except BaseException:
            self._drivers.pop(key, None)
            raise

    def close(self) -> None:
        """End the calling task's wait in it."""
        try:
            driver = self._drivers.pop(primitives.current_task(), None)
        except AttributeError:
            return
        if driver is not None:
            driver.close()


class Receipt(eventbus.Receipt, Driven["Receipt"]):
    """The receipt of an emit on the facade: it can be awaited, by any number of tasks in any loops, or dropped.

    Awaiting it waits until every delivery is settled and gives the receipt itself. Cancelling a waiter cancels no
    handler. For the rest it is the core's receipt; its ``wait()`` is for threads without a running loop.

    Raises:
        EventTimeoutError: The ``timeout`` of the emit has run out; names what is unsettled. Handlers go on.
        DeadlockError: The wait could never end.
        Exception: What handlers raised, if the bus or the emit has ``propagate_errors``.
    """

    __slots__ = ("_binding", "_drivers", "_patience")

    _binding: Binding
    _patience: float | None

    def __await__(self) -> Generator[Any, Any, Receipt]:
        if hot.attend is not None and hot.attend(self._binding, self):
            return self
        here = self._binding.enter()
        if self._left != 0:
            engine = self._effective()
            if engine is not None:
                # Within an "except" a handler that began here would see that exception as its own.
                if here.roused and sys.exc_info()[1] is None:
                    here.eagerly()
                if self._left != 0:
                    patience = self._patience
                    if not (yield from wait(engine, self._waiter(), patience)):
                        raise EventTimeoutError(self._overdue(patience))
        self._propagate_errors()
        return self

    def wait(self, timeout: float | None = None) -> Receipt:
        """Wait in a thread without a running loop, as the core's receipt does; on a loop, await the receipt."""
        super().wait(timeout)
        return self

    def accepted(self, timeout: float | None = None) -> Acted[Receipt]:
        """Wait until no delivery waits for space in a mailbox any more: each is admitted, or settled.

        Args:
            timeout: Seconds to wait; None waits without end, 0 polls.

        Raises:
            EventTimeoutError: The time ran out. The deliveries go on waiting for space.
        """
        limit = check_timeout(timeout)

        async def admitted() -> Receipt:
            while (engine := self._engine) is not None and self._left is not None:
                waiter = self._accept_waiter()
                try:
                    if not await Waiting(engine, waiter, limit):
                        raise EventTimeoutError(
                            f"after {limit:g} s deliveries of {self._topic!r} still wait for space in their mailboxes"
                        )
                    break
                except DeadlockError as error:
                    # A wait for space never raises: what would wait for its own waiter is rejected (G8).
                    task = asyncio.current_task()
                    if not engine.look(engine._reject_stuck, self, error.cycle, task):
                        break
            return self

        return Acted(self._binding, admitted)


class Acted(Driven[T]):
    """What has been done already; awaiting it waits for the end of it."""

    __slots__ = ("__weakref__", "_binding", "_drivers", "_make")

    def __init__(self, binding: Binding, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._binding = binding
        self._make = make

    def __await__(self) -> Generator[Any, Any, T]:
        self._binding.enter()
        return (yield from self._make().__await__())


class Ended(Acted[bool]):
    """Of a ``cancel()``: true if it was this call that ended it, also without awaiting it."""

    __slots__ = ("_ended",)

    def __init__(self, binding: Binding, ended: bool, make: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        super().__init__(binding, make)
        self._ended = ended

    def __bool__(self) -> bool:
        return self._ended


class Block:
    """A ``with`` block that cancels at its end; at that of ``async with``, calls that have begun are waited for."""

    __slots__ = ()

    def cancel(self, wait: bool = False, timeout: float | None = None) -> Ended:
        """End it, now."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cancel(wait=True)


class Count(int, Driven[int]):
    """How many were removed: a number, which may also be awaited."""

    _binding: Binding

    def __await__(self) -> Generator[Any, Any, int]:
        self._binding.enter()
        return int(self)
        yield
