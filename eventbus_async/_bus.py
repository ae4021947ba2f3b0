"""The bus seen from event loops: signatures, documentation and argument checks over the engine of a core bus.

What it holds of its own is the binding of unbound handlers to a loop, and, if it was given a core, what was registered
through it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

from eventbus import (
    BusClosedError,
    CloseReport,
    EventBus,
    EventTimeoutError,
    OptionError,
    OptionTypeError,
    Topic,
)
from eventbus.lowlevel import (
    CLOSED,
    DRAINING,
    ENDED,
    ScopeCore,
    check_emit,
    check_extras,
    check_timeout,
    close_soon,
    closed_waiter,
    core_of,
    default,
    drain_waiter,
    first_answer,
    held,
    hot,
    methods_to_register,
    overdue,
    primitives,
    quiet_waiter,
    refuse_bare,
    stream_options,
)

from ._await import Acted, Count, Receipt, Waiting, again
from ._binding import Binding, actor, check_loop
from ._runner import EAGERS, SLICE, LoopExecutor, Slot, as_coroutine, show_still, swap_task
from ._scope import Scope
from ._stream import Stream
from ._subscription import Subscription

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self, Unpack

    from eventbus import BusStats, Event, HandlerError
    from eventbus.lowlevel import BusArguments, Engine, Handle, Mailbox, OptionArguments, Waiter

__all__ = ["AsyncEventBus", "SyncEventBus"]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")


class AsyncEventBus:
    """The bus for asyncio programs: coroutine handlers run in event loops, plain functions on the dispatcher's threads.

    It shares its registry with its core, ``bus.bus``: a handler that was registered on either face receives what is
    emitted on either, from any thread and any loop. It can be made without a loop, as a module's global too. Every
    method acts at the call; what it returns may be awaited, which waits for the end, or dropped.

    Args:
        bus: The core bus to share; without it, one is made, with ``name`` and the options of ``eventbus.EventBus``.
        loop: The loop of all coroutine handlers that are registered here. Without it, a coroutine handler belongs to
            the loop that runs where it is registered; registered without one, to the home loop: that of ``serve()``,
            or else the first loop in which anything of this facade is awaited.
        name: Of the core that is made.
        **options: Of the core that is made.

    Raises:
        OptionError: A value that cannot be, or options beside a bus. (OptionTypeError for a wrong type.)

    Example:
        >>> import asyncio
        >>> from eventbus_async import AsyncEventBus
        >>> bus = AsyncEventBus()
        >>> @bus.on("greet")
        ... async def greet(name):
        ...     return f"hello {name}"
        >>> async def main():
        ...     async with bus:
        ...         receipt = await bus.emit("greet", "world")
        ...         return receipt.results()
        >>> asyncio.run(main())
        ['hello world']
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_binding",
        "_bus",
        "_closing",
        "_draining",
        "_engine",
        "_executors",
        "_home",
        "_members",
    )

    def __init__(
        self,
        bus: EventBus | AsyncEventBus | None = None,
        *,
        loop: AbstractEventLoop | None = None,
        name: str | None = None,
        **options: Unpack[BusArguments],
    ) -> None:
        given: dict[str, Any] = dict(options) if name is None else {"name": name, **options}
        if bus is None:
            self._bus = EventBus(**given)
            self._members: ScopeCore | None = None
        else:
            self._bus = core_of(bus)
            if given:
                raise OptionError(f"the bus that was given has its options already; drop {', '.join(given)}")
            self._members = ScopeCore()
        self._engine: Engine = self._bus._engine
        self._binding = Binding(self._engine, check_loop(loop))
        self._draining: list[Mailbox] = []  # what a close of this face alone has to drain
        self._home: LoopExecutor | None = None  # of the loop in which it was entered
        self._closing: Acted[CloseReport] | None = None
        self._executors: list[LoopExecutor] = []  # those that a close has ended

    @property
    def bus(self) -> EventBus:
        """The core bus, the face for threads."""
        return self._bus

    @property
    def name(self) -> str:
        """The name of the core."""
        return self._engine.name

    @property
    def closed(self) -> bool:
        """Whether it takes no events from outside any more."""
        return self._closing is not None or self._bus.closed

    def _refuse_if_closed(self, emitting: bool = False) -> None:
        # One that made its core leaves that to the core. Draining, either takes what handlers emit.
        if self._members is not None and self._closing is not None:
            cause = held() if emitting else None
            box: Any = None if cause is None else cause.box  # its end lets go of that
            if (
                box is not None
                and box.engine is self._engine
                and any(each.state == DRAINING for each in self._draining)
            ):
                return
            raise BusClosedError(f"this face of the bus {self.name!r} is closed; make another AsyncEventBus(bus)")

    # Registering

    @overload
    def on(
        self,
        topic: Topic[T],
        handler: Callable[[T], object] | Callable[[Event], object] | Callable[[dict[str, Any]], object],
        *,
        loop: AbstractEventLoop | None = ...,
        **options: Unpack[OptionArguments],
    ) -> Subscription: ...
    @overload
    def on(
        self,
        topic: str | Iterable[str | Topic[Any]],
        handler: Callable[[Any], object],
        *,
        loop: AbstractEventLoop | None = ...,
        **options: Unpack[OptionArguments],
    ) -> Subscription: ...
    @overload
    def on(
        self,
        topic: str | Topic[Any] | Iterable[str | Topic[Any]],
        *,
        loop: AbstractEventLoop | None = ...,
        **options: Unpack[OptionArguments],
    ) -> Callable[[F], F]: ...
    def on(self, topic: Any, handler: Any = default, *, loop: AbstractEventLoop | None = None, **options: Any) -> Any:
        """Register a handler; every emit that begins after this has returned is delivered to it (G1).

        Without a handler it is a decorator that returns the function itself. The subscription is in effect at once; it
        may be awaited.

        Args:
            topic: A topic, a pattern (``*`` is one level, ``**`` at the end any number), a ``Topic``, or a list of
                these, which makes one subscription.
            handler: A coroutine function, which runs in a loop, or any other callable, which runs on the dispatcher's
                threads; it takes the payload as its one argument, converted as it declares.
            loop: The loop that a coroutine handler is to run in.
            **options: As for ``EventBus.on``.

        Returns:
            The subscription's handle.

        Raises:
            TopicError: The pattern is none. (TopicTypeError for what is no string.)
            HandlerTypeError: The handler cannot be called so.
            OptionError: Options that cannot be or exclude each other. (OptionTypeError for wrong types.)
            SubscriptionError: ``unique=True`` and it is registered already.
            BusClosedError: The bus is closed.
        """
        if handler is default:
            return self._decorator(topic, loop, options)
        return self._on(topic, handler, {"loop": loop, **options})

    sync_on = on

    def _on(
        self,
        topic: Any,
        handler: Any,
        options: Any,
        admit: Callable[[Subscription], object] | None = None,
        watcher: Callable[[HandlerError], None] | None = None,
    ) -> Subscription:
        """As :meth:`on`; ``admit`` is given the subscription before it takes effect."""
        self._refuse_if_closed()
        engine = self._engine
        binding = self._binding
        options = dict(options)
        loop = check_loop(options.pop("loop", None))
        patterns, spec, checked = engine.prepare(topic, handler, options, coroutines=True)
        executor, home = binding.place(spec, loop)

        def make(box: Mailbox) -> Subscription:
            made = Subscription(box, binding)
            if self._members is not None:
                self._members.admit(made)
            return made

        def register() -> Subscription:
            return engine.register(make, patterns, spec, checked, executor, home=home, admit=admit, watcher=watcher)

        return register() if self._members is None else self._members.admitting(register)

    def _decorator(self, topic: Any, loop: Any, options: Any) -> Callable[[F], F]:
        refuse_bare(topic, "bus.on")

        def register(handler: F) -> F:
            self.on(topic, handler, loop=loop, **options)
            return handler

        return register

    def register(self, obj: object) -> Scope:
        """Subscribe the methods of an object that are marked with ``@handles``; they end with the scope returned.

        Raises:
            HandlerTypeError: Nothing of it is marked, or a marked method cannot be a handler.
            OptionError, BusClosedError: As for :meth:`on`.
        """
        marked = methods_to_register(obj)
        return self.scope()._fill(marked)

    def scope(self) -> Scope:
        """A context manager through which to register; at its end all of that ends."""
        return Scope(self)

    def stream(
        self,
        topic: str | Topic[Any] | Iterable[str | Topic[Any]],
        *,
        max_pending: Any = default,
        overflow: Any = default,
        block_timeout: float | None = None,
        max_waiting: int | None = None,
        name: str | None = None,
    ) -> Stream:
        """Iterate over the events of a topic or pattern with ``async for``, from this call on.

        Args:
            topic: As for :meth:`on`.
            max_pending: How many events the buffer holds unread.
            overflow: What happens when it is full, as for a subscription.
            block_timeout: How long an emit waits for space, in seconds.
            max_waiting: How many emits may wait for space.
            name: The subscription's name.

        Raises:
            TopicError, OptionError, BusClosedError: As for :meth:`on`.
        """
        self._refuse_if_closed()
        binding = self._binding

        def make(box: Mailbox) -> Subscription:
            return Subscription(box, binding)

        given = stream_options(max_pending, overflow, block_timeout, max_waiting, name)
        stream = Stream(self._bus._open_stream(make, topic, given))
        if self._members is not None:
            self._members.admit(stream.subscription)
        return stream

    # Emitting

    @overload
    def emit(
        self,
        topic: Topic[T],
        payload: T,
        *,
        headers: Mapping[str, Any] | None = ...,
        require: int = ...,
        follow: bool = ...,
        propagate_errors: bool | None = ...,
        timeout: float | None = ...,
    ) -> Receipt: ...
    @overload
    def emit(
        self,
        topic: str,
        payload: Any = ...,
        *,
        headers: Mapping[str, Any] | None = ...,
        require: int = ...,
        follow: bool = ...,
        propagate_errors: bool | None = ...,
        timeout: float | None = ...,
    ) -> Receipt: ...
    def emit(
        self,
        topic: Any,
        payload: Any = None,
        *,
        headers: Mapping[str, Any] | None = None,
        require: int = 0,
        follow: bool = False,
        propagate_errors: bool | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Emit an event, now: one delivery to each subscription that is active at this instant (G3).

        On a loop nothing blocks: a delivery that finds its mailbox full waits in line. In a thread without a running
        loop the call waits for space, as the core's does.

        Args:
            topic: A topic's name, or a ``Topic``, which validates the payload here.
            payload: What handlers get; shared by all of them unless they ask for a conversion.
            headers: Travel with the event.
            require: At least so many handlers must listen.
            follow: The receipt is settled only when everything that this event causes is settled too.
            propagate_errors: Awaiting the receipt raises what handlers raised; None: as the bus has it.
            timeout: Seconds that awaiting the receipt may take; None waits without end.

        Returns:
            The receipt, which may be awaited (every delivery is settled then) or dropped.

        Raises:
            TopicError: Not a topic, or reserved. (TopicTypeError for what is no string.)
            PayloadError: The payload does not validate against the ``Topic``'s model.
            NoHandlerError: Fewer than ``require`` handlers listen; nothing was delivered.
            EventCycleError: Deeper than ``max_depth``.
            BusClosedError: The bus is closing or closed.
        """
        engine = self._engine
        route = engine.registry.routes.get(topic) if type(topic) is str else None
        if route is None or route.reserved:
            topic, payload = check_emit(topic, payload)
        if headers is not None or require or type(require) is not int or follow is not False:
            headers = check_extras(headers, require, follow)
        if timeout is not None:
            timeout = check_timeout(timeout)
        if propagate_errors is None:
            propagate_errors = engine.options.propagate_errors
        elif propagate_errors is not True and propagate_errors is not False:
            raise OptionTypeError(f"propagate_errors must be True, False or None, not {propagate_errors!r}")
        if self._closing is not None:
            self._refuse_if_closed(emitting=True)
        receipt = engine.emit(Receipt, topic, payload, headers, require, follow, propagate_errors)
        receipt._binding = self._binding
        receipt._patience = timeout
        return receipt

    def request(
        self, topic: Any, payload: Any = None, timeout: float | None = None, *, headers: Mapping[str, Any] | None = None
    ) -> Acted[Any]:
        """Emit, now; awaiting the result waits for the first handler that succeeds and gives what it returned.

        Args:
            topic: As for :meth:`emit`.
            payload: As for :meth:`emit`.
            timeout: Seconds to wait; None waits without end.
            headers: Travel with the event.

        Raises:
            NoHandlerError: Nobody listens.
            ExceptionGroup: When awaited: all handlers failed; these are their errors.
            EventTimeoutError: When awaited: no answer in time; handlers go on.
            DeadlockError: When awaited: the wait could never end.
        """
        limit = check_timeout(timeout)
        topic, payload = check_emit(topic, payload)
        headers = check_extras(headers, 1, False)
        if self._closing is not None:
            self._refuse_if_closed(emitting=True)
        # What waits for space in one mailbox does not keep another handler's answer back.
        receipt = self._engine.emit(Receipt, topic, payload, headers, 1, patient=False)
        receipt._binding = self._binding
        receipt._patience = None

        async def answer() -> Any:
            waiter, first = receipt._first_waiter()
            if not await Waiting(self._engine, waiter, limit):
                raise EventTimeoutError(f"no handler of {receipt._topic!r} answered within {limit:g} s")
            return first_answer(receipt, first)

        return Acted(self._binding, answer)

    # Removing

    def off(self, topic: Any, handler: Any = default) -> Count:
        """End subscriptions, now: ``off(topic, handler)``, ``off(topic)``, ``off(subscription)``.

        A topic or pattern must be the one that was registered; a subscription on several ends as a whole.

        Returns:
            How many it ended: a number, which may also be awaited.

        Raises:
            NotRegisteredError: Nothing matches now. (An ended subscription gives 0.)
            TopicError: Not a pattern. (TopicTypeError for what is neither string nor subscription.)
        """
        return self._count(self._bus.off(topic) if handler is default else self._bus.off(topic, handler))

    def remove_listener(self, topic: Any, handler: Any = default) -> Count:
        """The seed's name of :meth:`off`."""
        return self.off(topic, handler)

    def remove_all_listeners(self, topic: Any = None) -> Count:
        """End all subscriptions, or those of one topic or pattern, now; never raises for there being none.

        What tools have registered (synchronizers, monitors) stays.
        """
        return self._count(self._bus.remove_all_listeners(topic))

    def _count(self, number: int) -> Count:
        count = Count(number)
        count._binding = self._binding
        return count

    # Looking

    def handlers(self, topic: Any) -> tuple[Any, ...]:
        """The callables, as given, that an emit of the topic would reach, in order of registration; no observers."""
        self._look_at_loops()
        return self._bus.handlers(topic)

    def subscriptions(self, topic: Any = None) -> tuple[Handle, ...]:
        """The handles of all active subscriptions; of a topic: those that its emit would reach; of a pattern: those
        that are registered under it. In order of registration."""
        self._look_at_loops()
        return self._bus.subscriptions(topic)

    def topics(self) -> tuple[str, ...]:
        """Every topic and pattern that somebody is registered for, sorted."""
        self._look_at_loops()
        return self._bus.topics()

    def verify_subscriptions(self, expected: Mapping[Any, Any]) -> None:
        """Check that handlers are registered: ``{topic: handler}`` or ``{topic: [handlers]}``.

        Raises:
            NotRegisteredError: Names all that are missing.
        """
        self._look_at_loops()
        self._bus.verify_subscriptions(expected)

    def stats(self) -> BusStats:
        """The exact counts of the whole bus at this instant; cheap enough to be asked often."""
        self._look_at_loops()
        return self._bus.stats()

    def _look_at_loops(self) -> None:
        """Handlers of loops that were closed are no handlers any more."""
        for executor in tuple(self._engine.executors):
            loop = getattr(executor, "loop", None)
            if loop is not None and ((running := loop()) is None or running.is_closed()):
                self._engine.look(executor.check)

    # Ending

    def serve(self) -> Serving:
        """``async with bus.serve():`` makes the running loop the home of unbound handlers; the end drains and unbinds.

        Raises:
            ServiceError: On entering: another loop serves this facade already.
        """
        return Serving(self)

    def drain(self, timeout: float | None = None) -> Acted[None]:
        """Wait until what was accepted before this call, and what that causes, is settled (G10).

        Inside a handler it leaves out that handler's own delivery and what waits for it; never waits for handlers that
        no loop runs yet.

        Raises:
            EventTimeoutError: When awaited: names what is unsettled after ``timeout`` seconds.
        """
        limit = check_timeout(timeout)
        engine = self._engine
        waiter = drain_waiter(engine, actor())

        async def drained() -> None:
            if not await Waiting(engine, again(waiter), limit):
                raise EventTimeoutError(overdue(engine, limit))

        return Acted(self._binding, drained)

    def close(self, timeout: Any = default) -> Acted[CloseReport]:
        """Drain, then end, from this call on: emits raise, streams end, threads stop. May be called again, anywhere.

        A facade that was given its core ends only what was registered through it.

        Args:
            timeout: Seconds for draining; None drains without end; by default the bus's ``close_timeout``.

        Returns:
            An awaitable, which need not be awaited: what was cancelled when the time was up, and which handlers are
            stuck. It never raises for time.
        """
        engine = self._engine
        limit = engine.options.close_timeout if timeout is default else check_timeout(timeout)
        if self._members is None:
            self._closing = closing = self._close_core(limit)
        else:
            if self._closing is None:
                self._closing = self._close_members(self._members, limit)
            closing = self._closing
        return closing

    def _close_core(self, limit: float | None) -> Acted[CloseReport]:
        engine = self._engine
        self._executors.extend(each for each in engine.executors if isinstance(each, LoopExecutor))
        close_soon(engine, limit, actor())

        async def closed() -> CloseReport:
            await Waiting(engine, closed_waiter(engine), None)
            report = engine.closed_report or CloseReport()
            loop = asyncio.get_running_loop()
            for executor in self._executors:
                if executor.loop() is loop and (stuck := await executor.abandoned()):
                    report = engine.closed_report = replace(report, stuck=(*report.stuck, *stuck))
            return report

        return Acted(self._binding, closed)

    def _close_members(self, members: ScopeCore, limit: float | None) -> Acted[CloseReport]:
        engine = self._engine
        me = actor()
        boxes = self._draining = [each._box for each in members.end() if isinstance(each, Subscription)]
        waiters: list[Waiter] = []
        cancelled = [0]
        for box in boxes:
            if box.executor is None:
                cancelled[0] += box.size()
            engine.cancel(box, drain=True)
            waiters.append(quiet_waiter(box, me))

        def cut() -> None:
            """In a step: the time is up."""
            for box in boxes:
                if box.state != ENDED:
                    cancelled[0] += box.size() + len(box.line or ())
                    engine._cancel(box, False)

        if limit == 0:
            engine.look(cut)
        elif limit is not None and any(box.state != ENDED for box in boxes):
            engine.look(engine.timer.at, limit, cut)

        async def closed() -> CloseReport:
            until = primitives.monotonic() + (limit or 0.0)
            for waiter in waiters:
                left = None if limit is None else max(0.0, until - primitives.monotonic())
                await Waiting(engine, again(waiter), left)
            if limit is not None:
                engine.look(cut)  # this time may be up before the timer's
            stuck = [box.name for box in boxes if box.running]
            return CloseReport(cancelled[0], tuple(stuck))

        return Acted(self._binding, closed)

    async def __aenter__(self) -> Self:
        self._home = self._binding.serve()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        home, self._home = self._home, None
        await self.close()
        # Not where that wait is cancelled: the close goes on, and what it still drains needs its home.
        if home is not None:
            self._binding.leave(home)

    def __repr__(self) -> str:
        engine = self._engine
        state = "closed" if engine.state == CLOSED else "closing" if self.closed else "open"
        return f"<{type(self).__name__} {engine.name!r} {state}: {len(engine.registry.boxes)} subscriptions>"


SyncEventBus = AsyncEventBus


class Serving:
    """``async with bus.serve():``"""

    __slots__ = ("_bus", "_homes")

    def __init__(self, bus: AsyncEventBus) -> None:
        self._bus = bus
        self._homes: list[LoopExecutor] = []

    async def __aenter__(self) -> AsyncEventBus:
        self._homes.append(self._bus._binding.serve())
        return self._bus

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        bus = self._bus
        try:
            if bus._engine.state != CLOSED:
                await bus.drain(bus._engine.options.close_timeout)
        except EventTimeoutError:
            pass  # what has not begun waits for the next loop
        finally:
            bus._binding.leave(self._homes.pop())


hot.bind_loops(
    {
        "Binding": Binding,
        "LoopExecutor": LoopExecutor,
        "Receipt": Receipt,
        "Slot": Slot,
        "EAGERS": EAGERS,
        "SLICE": SLICE,
        "as_coroutine": as_coroutine,
        "mend_slot": LoopExecutor.mend_slot,
        "running_loop": asyncio._get_running_loop,
        "show_still": show_still,
        "swap_task": swap_task,
    }
)
hot.quicken(AsyncEventBus, Receipt)
