"""The bus for threads: signatures, documentation and argument checks over the engine.

What not every program uses is imported by the method that needs it: importing the bus is to cost little.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from ._engine import hot, primitives
from ._engine.closing import CLOSED, OPEN, close, refuse_close_on_loop
from ._engine.draining import drain
from ._engine.engine import Engine
from ._engine.mailbox import ACTIVE
from ._engine.receipt import Receipt, group_errors
from ._engine.subscription import Handle, Subscription
from ._engine.waits import sleep
from ._errors import (
    DeadlockError,
    EventTimeoutError,
    NoHandlerError,
    NotRegisteredError,
    OptionTypeError,
    TopicError,
)
from ._values.handler import same_handler
from ._values.options import check_bus_options, check_count, check_timeout
from ._values.topic import Topic, check_pattern, check_topic, is_pattern, refuse_bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self, TypedDict, Unpack

    from ._engine.delivery import Delivery
    from ._engine.mailbox import Mailbox
    from ._scope import Scope
    from ._stream import Stream
    from ._values.event import Event
    from ._values.options import Overflow
    from ._values.stats import BusStats, CloseReport, HandlerError

    class OptionArguments(TypedDict, total=False):
        """The options of a subscription. See the README for what each means."""

        inline: bool
        concurrency: int
        key: Callable[[Event], Any] | None
        lane: str | None
        timeout: float | None
        max_pending: int | None
        overflow: Overflow
        block_timeout: float | None
        max_waiting: int | None
        payload: Any
        unique: bool
        observer: bool
        name: str | None

    class BusArguments(TypedDict, total=False):
        """The options of a bus, and the defaults of its subscriptions."""

        workers: int | None
        max_workers: int
        handler_timeout: float | None
        propagate_errors: bool
        on_error: Callable[[HandlerError], object] | None
        max_depth: int | None
        close_timeout: float
        exit_timeout: float
        concurrency: int
        max_pending: int | None
        overflow: Overflow
        block_timeout: float | None
        max_waiting: int | None


__all__ = [
    "Default",
    "EventBus",
    "check_emit",
    "check_extras",
    "core_of",
    "default",
    "first_answer",
    "stream_options",
]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")


class Default:
    """Says that an argument was not given."""

    def __repr__(self) -> str:
        return "<default>"


default = Default()


class EventBus:
    """A thread-safe event bus: handlers run on a pool of dispatcher threads.

    Every method may be called from any thread; ``emit``, ``on`` and ``cancel`` also from signal handlers, ``__del__``
    and weakref callbacks. A context manager: leaving it is ``close()``. A bus that was never used has no thread.

    Args:
        name: For messages and thread names.
        **options: ``workers`` (how many handlers may compute at once: 1, on free-threaded builds the cores),
            ``max_workers`` (threads that may be stuck or blocked in handlers, 64), ``handler_timeout`` (seconds, None),
            ``propagate_errors`` (False), ``on_error`` (called with each HandlerError, None), ``max_depth`` (None),
            ``close_timeout`` (seconds, 10), ``exit_timeout`` (seconds, 5), and defaults for its subscriptions.

    Raises:
        OptionError: A value that cannot be, such as ``workers=0``. (OptionTypeError for a wrong type.)

    Example:
        >>> from eventbus import EventBus
        >>> with EventBus() as bus:
        ...     greeting = bus.on("greet", lambda name: f"hello {name}")
        ...     bus.emit("greet", "world").wait(1).results()
        ['hello world']
    """

    __slots__ = ("__dict__", "__weakref__", "_engine")

    def __init__(self, name: str = "eventbus", **options: Unpack[BusArguments]) -> None:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionTypeError(f"a bus's name must be a string, not {name!r}")
        bus_options, defaults = check_bus_options(**options)
        self._engine = Engine(name, bus_options, defaults)

    @property
    def name(self) -> str:
        """The name that it was given."""
        return self._engine.name

    @property
    def closed(self) -> bool:
        """Whether it takes no events from outside any more."""
        return self._engine.state != OPEN

    # Registering

    @overload
    def on(
        self,
        topic: Topic[T],
        handler: Callable[[T], object] | Callable[[Event], object] | Callable[[dict[str, Any]], object],
        **options: Unpack[OptionArguments],
    ) -> Subscription: ...
    @overload
    def on(
        self,
        topic: str | Iterable[str | Topic[Any]],
        handler: Callable[[Any], object],
        **options: Unpack[OptionArguments],
    ) -> Subscription: ...
    @overload
    def on(
        self, topic: str | Topic[Any] | Iterable[str | Topic[Any]], **options: Unpack[OptionArguments]
    ) -> Callable[[F], F]: ...
    def on(self, topic: Any, handler: Any = default, **options: Any) -> Any:
        """Register a handler; every emit that begins after this has returned is delivered to it (G1).

        Without a handler it is a decorator that returns the function itself.

        Args:
            topic: A topic, a pattern (``*`` is one level, ``**`` at the end any number), a ``Topic``, or a list of
                these, which makes one subscription.
            handler: Any callable that takes the payload as its one argument. How the payload is converted goes by what
                the handler declares for it: a pydantic model, ``Event``, ``dict``, …
            **options: ``inline``, ``concurrency``, ``key``, ``lane``, ``timeout``, ``max_pending``, ``overflow``,
                ``block_timeout``, ``max_waiting``, ``payload``, ``unique``, ``observer``, ``name``.

        Returns:
            The subscription's handle.

        Raises:
            TopicError: The pattern is none. (TopicTypeError for what is no string.)
            HandlerTypeError: The handler cannot be called so, or is a coroutine function.
            OptionError: Options that cannot be or exclude each other. (OptionTypeError for wrong types.)
            SubscriptionError: ``unique=True`` and it is registered already.
            BusClosedError: The bus is closed.
        """
        if handler is default:
            return self._decorator(topic, options)
        return self._on(topic, handler, options)

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
        engine = self._engine
        patterns, spec, checked = engine.prepare(topic, handler, options)
        return engine.register(Subscription, patterns, spec, checked, engine.dispatcher, admit=admit, watcher=watcher)

    def _decorator(self, topic: Any, options: Any) -> Callable[[F], F]:
        refuse_bare(topic, "bus.on")

        def register(handler: F) -> F:
            self.on(topic, handler, **options)
            return handler

        return register

    def register(self, obj: object) -> Scope:
        """Subscribe the methods of an object that are marked with ``@handles``; they end with the scope returned.

        Raises:
            HandlerTypeError: Nothing of it is marked, or a marked method cannot be a handler.
            OptionError, BusClosedError: As for :meth:`on`.
        """
        from ._scope import methods_to_register

        marked = methods_to_register(obj)
        return self.scope()._fill(marked)

    def scope(self) -> Scope:
        """A context manager through which to register; at its end all of that ends, waiting for running calls."""
        from ._scope import Scope

        return Scope(self)

    def stream(
        self,
        topic: str | Topic[Any] | Iterable[str | Topic[Any]],
        *,
        max_pending: int | Default | None = default,
        overflow: Overflow | Default = default,
        block_timeout: float | None = None,
        max_waiting: int | None = None,
        name: str | None = None,
    ) -> Stream:
        """Iterate over the events of a topic or pattern, from this call on.

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
        from ._stream import Stream

        given = stream_options(max_pending, overflow, block_timeout, max_waiting, name)
        return Stream(self._open_stream(Subscription, topic, given))

    def _open_stream(self, make: Callable[[Mailbox], Any], topic: Any, given: dict[str, Any]) -> Any:
        from ._engine.buffer import Filler, StreamMailbox

        engine = self._engine
        patterns, spec, options = engine.prepare(topic, _stream_handler, given)
        subscription = engine.register(make, patterns, spec, options, Filler(engine), kind=StreamMailbox)
        box = cast("StreamMailbox", subscription._box)
        box.closer = lambda: engine.look(box.wake_readers)
        return subscription

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
    ) -> Receipt:
        """Emit an event: one delivery to each subscription that is active at this instant (G3).

        Returns at once; only where a mailbox is full and its policy is ``block`` does a thread wait for space.

        Args:
            topic: A topic's name, or a ``Topic``, which validates the payload here.
            payload: What handlers get; shared by all of them unless they ask for a conversion.
            headers: Travel with the event.
            require: At least so many handlers must listen.
            follow: The receipt is settled only when everything that this event causes is settled too.
            propagate_errors: Waiting for the receipt raises what handlers raised; None: as the bus has it.

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
        if propagate_errors is None:
            propagate_errors = engine.options.propagate_errors
        elif propagate_errors is not True and propagate_errors is not False:
            raise OptionTypeError(f"propagate_errors must be True, False or None, not {propagate_errors!r}")
        return engine.emit(Receipt, topic, payload, headers, require, follow, propagate_errors)

    def request(
        self, topic: Any, payload: Any = None, timeout: float | None = None, *, headers: Mapping[str, Any] | None = None
    ) -> Any:
        """Emit, and wait for the first handler that succeeds; gives what it returned.

        Args:
            topic: As for :meth:`emit`.
            payload: As for :meth:`emit`.
            timeout: Seconds to wait; None waits without end.
            headers: Travel with the event.

        Raises:
            NoHandlerError: Nobody listens.
            ExceptionGroup: All handlers failed; these are their errors.
            EventTimeoutError: No answer in time; handlers go on.
            DeadlockError: The wait could never end.
        """
        timeout = check_timeout(timeout)
        refuse_request_on_loop(topic)
        deadline = None if timeout is None else primitives.monotonic() + timeout
        topic, payload = check_emit(topic, payload)
        engine = self._engine
        # What waits for space in one mailbox does not keep another handler's answer back.
        receipt = engine.emit(Receipt, topic, payload, check_extras(headers, 1, False), 1, patient=False)
        if receipt.deliveries is None:
            receipt.wait(timeout)
        while True:
            waiter, first = receipt._first_waiter()
            try:
                if sleep(engine, waiter, None if deadline is None else max(0.0, deadline - primitives.monotonic())):
                    return first_answer(receipt, first)
            except DeadlockError as error:
                # What would wait for space for ever is rejected, and others may answer (G8).
                if not receipt._accepting:
                    raise
                engine.look(engine._reject_stuck, receipt, error.cycle)
            else:
                raise EventTimeoutError(f"no handler of {receipt._topic!r} answered within {timeout:g} s")

    # Removing

    def off(self, topic: Any, handler: Any = default) -> int:
        """End subscriptions: ``off(topic, handler)``, ``off(topic)``, ``off(subscription)``; gives how many.

        A topic or pattern must be the one that was registered; a subscription on several ends as a whole.

        Raises:
            NotRegisteredError: Nothing matches now. (An ended subscription gives 0.)
            TopicError: Not a pattern. (TopicTypeError for what is neither string nor subscription.)
        """
        if isinstance(topic, Handle):
            engine = topic._box.engine
            if engine is not self._engine:
                raise NotRegisteredError(
                    f"{topic!r} is of another bus, {engine.name!r}, not of {self.name!r}; call its own cancel()"
                )
            return int(engine.cancel(topic._box))
        boxes = [box for box in self._matching(topic, handler) if not (box.raw and box.observer)]
        if not boxes:
            raise NotRegisteredError(
                f"no subscription of {topic!r} matches{'' if handler is default else f' {handler!r}'}; subscriptions()"
                " lists what is registered"
            )
        return sum(self._engine.cancel(box) for box in boxes)

    def remove_listener(self, topic: Any, handler: Any = default) -> int:
        """The seed's name of :meth:`off`."""
        return self.off(topic, handler)

    def remove_all_listeners(self, topic: Any = None) -> int:
        """End all subscriptions, or those of one topic or pattern; never raises for there being none; gives how many.

        What tools have registered (synchronizers, monitors) stays.
        """
        boxes = self._boxes() if topic is None else self._matching(topic, default)
        return sum(self._engine.cancel(box) for box in boxes if not (box.raw and box.observer))

    def _matching(self, topic: Any, handler: Any) -> list[Mailbox]:
        pattern = check_pattern(topic)
        return [
            box
            for box in self._engine.look(self._engine.find, pattern)
            if handler is default or (box.spec is not None and same_handler(box.spec.function, handler))
        ]

    def _boxes(self) -> list[Mailbox]:
        return self._engine.look(lambda: list(self._engine.registry.boxes.values()))

    # Looking

    def handlers(self, topic: Any) -> tuple[Any, ...]:
        """The callables, as given, that an emit of the topic would reach, in order of registration; no observers."""
        return tuple(
            box.spec.function for box in self._reached(check_topic(topic)) if box.spec is not None and not box.observer
        )

    def subscriptions(self, topic: Any = None) -> tuple[Handle, ...]:
        """The handles of all active subscriptions; of a topic: those that its emit would reach; of a pattern: those
        that are registered under it. In order of registration."""
        if topic is None:
            boxes: Iterable[Mailbox] = self._boxes()
        elif is_pattern(check_pattern(topic)):
            boxes = self._matching(topic, default)
        else:
            boxes = self._reached(check_topic(topic))
        return tuple(box.handle for box in boxes if box.handle is not None and box.state == ACTIVE)

    def _reached(self, topic: str) -> tuple[Mailbox, ...]:
        return self._engine.look(self._engine.registry.find, topic)

    def topics(self) -> tuple[str, ...]:
        """Every topic and pattern that somebody is registered for, sorted."""
        return self._engine.look(self._engine.registry.topics)

    def verify_subscriptions(self, expected: Mapping[Any, Any]) -> None:
        """Check that handlers are registered: ``{topic: handler}`` or ``{topic: [handlers]}``.

        Raises:
            NotRegisteredError: Names all that are missing.
            OptionTypeError: It is no mapping.
        """
        if not isinstance(expected, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionTypeError(
                f"the expected subscriptions must be a mapping of topics to handlers, not {expected!r}"
            )
        missing: list[str] = []
        for topic, wanted in expected.items():
            pattern = check_pattern(topic)
            boxes = self._matching(pattern, default) if is_pattern(pattern) else self._reached(pattern)
            found = [box.spec.function for box in boxes if box.spec is not None]
            for handler in cast("list[Any]", wanted) if isinstance(wanted, (list, tuple, set)) else [wanted]:
                if not any(same_handler(handler, each) for each in found):
                    missing.append(f"{getattr(handler, '__qualname__', handler)!s} on {pattern!r}")
        if missing:
            raise NotRegisteredError(f"not registered: {', '.join(missing)}")

    def stats(self) -> BusStats:
        """The exact counts of the whole bus at this instant; cheap enough to be asked often."""
        return self._engine.look(self._engine.stats)

    # Ending

    def drain(self, timeout: float | None = None) -> None:
        """Wait until what was accepted before the call, and what that causes, is settled (G10).

        Inside a handler it leaves out that handler's own delivery and what waits for it; never waits for handlers that
        no loop runs yet.

        Raises:
            EventTimeoutError: Names what is unsettled after ``timeout`` seconds.
            DeadlockError: It would block an event loop's own thread.
        """
        drain(self._engine, check_timeout(timeout))

    def close(self, timeout: float | Default | None = default) -> CloseReport:
        """Drain, then end: emits raise, streams end, threads stop. May be called again, from anywhere.

        Args:
            timeout: Seconds for draining; None drains without end; by default the bus's ``close_timeout``.

        Returns:
            What was cancelled when the time was up, and which handlers are stuck. It never raises for time.

        Raises:
            DeadlockError: It would block an event loop's own thread; nothing was changed.
        """
        engine = self._engine
        limit = engine.options.close_timeout if isinstance(timeout, Default) else check_timeout(timeout)
        if engine.state != CLOSED and limit != 0:
            refuse_close_on_loop(engine)
        return close(engine, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        engine = self._engine
        state = ("open", "closing", "closed")[engine.state]
        return f"<{type(self).__name__} {engine.name!r} {state}: {len(engine.registry.boxes)} subscriptions>"


def core_of(bus: object) -> EventBus:
    """The core of a bus of either face. Raises OptionTypeError for what is no bus."""
    core = bus if isinstance(bus, EventBus) else getattr(bus, "bus", None)
    if not isinstance(core, EventBus):
        raise OptionTypeError(f"an EventBus or an AsyncEventBus is needed, not {bus!r}")
    return core


def _stream_handler(event: Any) -> None:
    """Stands for a stream in lists of handlers; never called."""


def stream_options(max_pending: Any, overflow: Any, block_timeout: Any, max_waiting: Any, name: Any) -> dict[str, Any]:
    """The options of a stream that were given."""
    given = {
        "max_pending": max_pending,
        "overflow": overflow,
        "block_timeout": default if block_timeout is None else block_timeout,
        "max_waiting": default if max_waiting is None else max_waiting,
        "name": "stream" if name is None else name,
    }
    return {key: value for key, value in given.items() if value is not default}


def check_emit(topic: Any, payload: Any) -> tuple[str, Any]:
    """The name and the payload of an emit, validated if the topic is typed."""
    name = check_topic(topic)
    if name.startswith("bus/"):
        raise reserved(name)
    if isinstance(topic, Topic):
        return name, topic.validate(payload)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return name, payload


def reserved(name: str) -> TopicError:
    """The error for emitting what only the bus emits."""
    return TopicError(f"topics under 'bus/' are reserved for the bus's own events; choose another name than {name!r}")


def check_extras(headers: Any, require: Any, follow: Any) -> Mapping[str, Any] | None:
    """The rarer arguments of an emit; headers become an immutable copy."""
    check_count(require, "require", 0)
    if not isinstance(follow, bool):
        raise OptionTypeError(f"follow must be True or False, not {follow!r}")
    if headers is None:
        return None
    try:
        copy = dict(headers)
    except (TypeError, ValueError):
        raise OptionTypeError(f"headers must be a mapping, not {headers!r}") from None
    if not all(isinstance(key, str) for key in copy):
        raise OptionTypeError(f"the keys of headers must be strings: {headers!r}")
    return MappingProxyType(copy)


def refuse_request_on_loop(topic: Any) -> None:
    """A blocking request on a running loop's own thread would block it. Raises DeadlockError."""
    if primitives.running_loop() is not None:
        raise DeadlockError(
            f"request({topic!s}) would block the event loop that runs in this thread; await it on an AsyncEventBus"
        )


def first_answer(receipt: Receipt, first: list[Delivery]) -> Any:
    """What the first successful handler returned; raises if all have failed."""
    if first:
        return first[0].value
    errors = receipt._errors()
    topic = receipt._topic
    if errors:
        raise group_errors(f"no handler of {topic!r} succeeded", errors)
    raise NoHandlerError(f"no handler of {topic!r} answered: {receipt!r}")


hot.quicken(EventBus, Receipt)
