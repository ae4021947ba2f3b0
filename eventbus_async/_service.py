"""BaseService for asyncio. No state of its own but the loop that it was started on; see the core's lifecycle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast, overload

from eventbus.lowlevel import ACCEPTING, ServiceCore, primitives

from ._await import Acted
from ._flow import Running, begin_flow, face_of, keep
from ._runner import executor_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self, Unpack

    from eventbus import HandlerError, Restart
    from eventbus.lowlevel import Flow, OptionArguments

    from ._bus import AsyncEventBus
    from ._flow import Holder
    from ._runner import LoopExecutor
    from ._subscription import Subscription

__all__ = ["BaseService", "enter"]

log = logging.getLogger("eventbus")


class BaseService(ServiceCore):
    """A part of a program that lives on the bus: it subscribes when it starts, and nothing is left when it stops.

    Subclasses write ``_start()`` and, if they like, ``_stop()`` and ``_on_error()``, ``async def`` or plain; these run
    in the loop in which the service is started. Methods marked with ``@handles`` are subscribed once ``_start`` has
    succeeded. Every change of :attr:`status` is emitted, in order, on ``service/status`` as a ``ServiceStatusPayload``.
    ``async with`` starts it and stops it.

    Args:
        name: Its name; may be left out, ``BaseService(event_bus)``: then it is the class's in snake_case.
        event_bus: The bus, of either face.
        error_limit: Beyond so many errors of its handlers it is DEGRADED; None: never. A class attribute, too.
        restart: How it recovers from that; None: not at all. A class attribute, too.

    Raises:
        OptionTypeError: No bus, or a wrong type. (OptionError for a wrong value.)

    Example:
        >>> import asyncio
        >>> from eventbus_async import AsyncEventBus, BaseService
        >>> class Greeter(BaseService):
        ...     async def _start(self):
        ...         await self.subscribe("greet", self.greet)
        ...     async def greet(self, name):
        ...         return f"hello {name}"
        >>> async def main():
        ...     async with AsyncEventBus() as bus, Greeter(bus):
        ...         return await bus.request("greet", "world")
        >>> asyncio.run(main())
        'hello world'
    """

    _blocking = False  # start and stop run in tasks of their own
    event_bus: AsyncEventBus

    @overload
    def __init__(
        self, name: str, event_bus: Any, *, error_limit: int | None = ..., restart: Restart | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self, event_bus: Any, *, name: str | None = ..., error_limit: int | None = ..., restart: Restart | None = ...
    ) -> None: ...
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.event_bus = self._bus_face = face_of(self._bus_face)
        self._home: LoopExecutor | None = None
        self._flows: Holder = set()

    def start(self) -> Acted[None]:
        """Start it, now: STARTING, ``_start()``, RUNNING. Idempotent; callers at the same time share one start.

        It goes on in a task of its own, also if what is returned is dropped, or its await cancelled. Called where no
        loop runs, it begins on the loop of an earlier start, or else when it is awaited. The await returns once the
        status events have been handled, after 1 s at the latest, at once inside a handler of them.

        Raises:
            Exception: When awaited: what ``_start`` raised; the status is ERROR then, and nothing is left subscribed.
            BusClosedError: The bus is closed.
            ServiceError: It is called within its own ``_stop``.
        """
        return self._begin(self._lifecycle.start(), "start")

    def stop(self) -> Acted[None]:
        """Stop it, now: STOPPING, subscriptions cancelled and their calls waited for, ``_stop()``, STOPPED.

        Idempotent; callers at the same time share one stop; succeeds on a closed bus. It can be started again.
        A service that does not run is left as it is. Goes on and returns as :meth:`start` does.

        Raises:
            Exception: When awaited: what ``_stop`` raised; the status is ERROR then.
            DeadlockError: When awaited: it would wait for a handler that waits for the caller.
            ServiceError: It is called within its own ``_start``.
        """
        return self._begin(self._lifecycle.stop(), "stop")

    def subscribe(
        self,
        topic: Any,
        handler: Callable[[Any], object],
        *,
        loop: AbstractEventLoop | None = None,
        **options: Unpack[OptionArguments],
    ) -> Subscription:
        """As ``bus.on()``, and awaitable; the subscription ends with this run of the service. Its errors are this
        service's.

        Raises:
            ServiceError: The service is neither starting nor running.
            TopicError, HandlerTypeError, OptionError, BusClosedError: As ``bus.on()``.
        """
        subscription: Subscription = self._subscribe(topic, handler, {"loop": loop, **options})
        return subscription

    def _start(self) -> Awaitable[object] | None:
        """To be written by subclasses: get ready, and :meth:`subscribe`. What it raises, ``start()`` raises."""

    def _stop(self) -> Awaitable[object] | None:
        """To be written by subclasses: let go of what ``_start`` has made. Nothing is subscribed any more."""

    def _on_error(self, error: HandlerError) -> Awaitable[object] | None:
        """To be written by subclasses: told of each error of its handlers. A plain one runs where the error came up, an
        ``async def`` in a task on the service's loop."""

    def _begin(self, flow: Flow[None], what: str) -> Acted[None]:
        name = f"the {what} of the service {self.name!r}"
        return begin_flow(self.event_bus._binding, self._at_home(flow), name, self._flows, self._home)

    def _at_home(self, flow: Flow[None]) -> Flow[None]:
        """Note the loop on which it runs."""
        self._home = executor_of(self._lifecycle.engine, asyncio.get_running_loop())
        yield from flow

    def _told_of_error(self, error: HandlerError) -> None:
        answer: Any = self._on_error(error)
        if isinstance(answer, Awaitable):
            waiting = cast("Awaitable[object]", answer)
            self._in_loop(lambda: keep(asyncio.get_running_loop().create_task(self._report(waiting)), self._flows))

    async def _report(self, answer: Awaitable[object]) -> None:
        try:
            await answer
        except Exception as problem:
            log.error("_on_error of the service %r raised", self.name, exc_info=problem)

    def _launch(self, make: Callable[[], Flow[None]]) -> None:
        running = Running(self._lifecycle.engine, make(), f"the restart of the service {self.name!r}", self._flows)
        # Never at once: this may be within a handler of the loop, whose task and context are not the restart's.
        if self._home is not None:
            self._home.bridge.post(running.begin_there)

    def _in_loop(self, work: Callable[[], None]) -> None:
        home = self._home
        if home is not None and home.loop() is primitives.running_loop():
            work()
        elif home is not None:
            home.bridge.post(work)

    async def __aenter__(self) -> Self:
        await enter(self, (self,))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def enter(block: Any, services: Iterable[Any]) -> None:
    """Enter the block of a service or a group: start it, and if that is cancelled, stop what it alone has begun."""
    begins = all(each.status not in ACCEPTING for each in services)
    try:
        await block.start()
    except (asyncio.CancelledError, GeneratorExit):
        if begins:
            block.stop()  # the start goes on, and nobody else would end it
        raise
