"""BaseService for threads, and what both faces' services have in common. No state but the lifecycle's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload

from .._bus import core_of
from .._engine import primitives
from .._engine.flow import drive
from .._engine.subscription import Subscription
from .._errors import DeadlockError, HandlerTypeError, OptionError, OptionTypeError, ServiceError
from .._scope import marked_methods
from .._values.options import check_count
from .lifecycle import Hooks, Lifecycle
from .status import Restart, ServiceStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self, Unpack

    from .._bus import EventBus, OptionArguments
    from .._engine.flow import Flow
    from .._values.stats import HandlerError

__all__ = ["BaseService", "ServiceCore"]

_ASYNC = 0x80 | 0x100 | 0x200  # coroutine functions, old ones, asynchronous generators
_HOOKS = ("_start", "_stop", "_on_error")


class _Uninitialised:
    """Stands for the lifecycle of a service whose ``__init__`` has not called ``BaseService.__init__``."""

    def __get__(self, service: object, owner: type) -> Any:
        if service is None:
            return self
        raise ServiceError(
            f"{owner.__qualname__}.__init__ has not called super().__init__(event_bus), and is no service yet"
        )


class ServiceCore:
    """Name, bus and status of a service of either face.

    Attributes:
        name: Its name; the class's in snake_case unless one is given.
        event_bus: The bus.
    """

    _blocking: ClassVar[bool] = True
    error_limit: ClassVar[int | None] = None
    restart: ClassVar[Restart | None] = None
    _lifecycle = cast("Lifecycle", _Uninitialised())

    def __init__(
        self, *args: Any, name: Any = None, event_bus: Any = None, error_limit: Any = None, restart: Any = None
    ) -> None:
        found_name, found_bus = _name_and_bus(type(self), args, name, event_bus)
        if error_limit is None:
            error_limit = type(self).error_limit
        if restart is None:
            restart = type(self).restart
        if error_limit is not None:
            check_count(error_limit, "error_limit", 0)
        if restart is not None and not isinstance(restart, Restart):
            raise OptionTypeError(f"restart must be a Restart(attempts, backoff, jitter) or None, not {restart!r}")
        self.name: str = found_name
        self._bus_face: Any = found_bus  # each face makes it its own
        hooks = Hooks(self._start, self._stop, self._told_of_error, self._subscribe_marked, self._launch)
        self._lifecycle = Lifecycle(found_name, core_of(found_bus)._engine, hooks, error_limit, restart, self._blocking)

    @property
    def status(self) -> ServiceStatus:
        """Where it stands at this moment."""
        return self._lifecycle.status

    @property
    def errors(self) -> int:
        """How many errors of its handlers there have been since it was last started."""
        return self._lifecycle.errors

    def _start(self) -> Any:
        raise NotImplementedError  # each face has its own

    def _stop(self) -> Any:
        raise NotImplementedError

    def _told_of_error(self, error: HandlerError) -> None:
        raise NotImplementedError

    def _subscribe(self, topic: Any, handler: Any, options: Any) -> Any:
        on = self._bus_face._on  # whatever a subclass has made of event_bus
        return self._lifecycle.subscribe(lambda admit, watcher: on(topic, handler, options, admit, watcher))

    def _launch(self, make: Callable[[], Flow[None]]) -> None:
        raise NotImplementedError

    def _subscribe_marked(self) -> None:
        for method, topics, options in marked_methods(self):
            self._subscribe(list(topics), method, options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.status}>"


class BaseService(ServiceCore):
    """A part of a program that lives on the bus: it subscribes when it starts, and nothing is left when it stops.

    Subclasses write ``_start()`` and, if they like, ``_stop()`` and ``_on_error()``; plain methods here, for
    ``async def`` there is :class:`eventbus_async.BaseService`. Methods marked with ``@handles`` are subscribed once
    ``_start`` has succeeded. Every change of :attr:`status` is emitted, in order, on ``service/status`` as a
    ``ServiceStatusPayload``. Safe in any thread. A context manager: entering starts it, leaving stops it.

    Args:
        name: Its name; may be left out, ``BaseService(event_bus)``: then it is the class's in snake_case.
        event_bus: The bus, of either face.
        error_limit: Beyond so many errors of its handlers it is DEGRADED; None: never. A class attribute, too.
        restart: How it recovers from that; None: not at all. A class attribute, too.

    Raises:
        OptionTypeError: No bus, or a wrong type. (OptionError for a wrong value.)

    Example:
        >>> from eventbus import BaseService, EventBus
        >>> class Greeter(BaseService):
        ...     def _start(self):
        ...         self.subscribe("greet", lambda name: f"hello {name}")
        >>> bus = EventBus()
        >>> with Greeter(bus) as greeter:
        ...     bus.request("greet", "world")
        'hello world'
        >>> greeter.status
        <ServiceStatus.STOPPED: 'stopped'>
    """

    event_bus: EventBus

    @overload
    def __init__(
        self, name: str, event_bus: Any, *, error_limit: int | None = ..., restart: Restart | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self, event_bus: Any, *, name: str | None = ..., error_limit: int | None = ..., restart: Restart | None = ...
    ) -> None: ...
    def __init__(
        self,
        *args: Any,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.event_bus = self._bus_face = core_of(self._bus_face)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for hook in _HOOKS:
            method = getattr(cls, hook)
            code = getattr(getattr(method, "__func__", method), "__code__", None)
            if code is not None and code.co_flags & _ASYNC:
                raise HandlerTypeError(
                    f"{cls.__qualname__}.{hook} is `async def`, which nobody awaits on this face; derive the class from"
                    " eventbus_async.BaseService, or make it a plain method"
                )

    def start(self) -> None:
        """Start it: STARTING, ``_start()``, RUNNING. Idempotent; callers at the same time share one start.

        Returns once its status events have been handled, after 1 s at the latest, at once inside a handler of them.

        Raises:
            Exception: What ``_start`` raised; the status is ERROR then, and nothing is left subscribed.
            BusClosedError: The bus is closed.
            ServiceError: It is called within its own ``_stop``.
        """
        drive(self._lifecycle.start())

    def stop(self) -> None:
        """Stop it: STOPPING, all subscriptions cancelled and their calls waited for, ``_stop()``, STOPPED.

        Idempotent; callers at the same time share one stop; succeeds on a closed bus. It can be started again.
        A service that does not run is left as it is. Returns as :meth:`start` does.

        Raises:
            Exception: What ``_stop`` raised; the status is ERROR then.
            DeadlockError: It would wait for a handler that waits for the caller, or block an event loop's own thread.
            ServiceError: It is called within its own ``_start``.
        """
        if primitives.running_loop() is not None and self._lifecycle.busy():
            raise DeadlockError(
                f"stop() of {self.name!r} would block the event loop that runs in this thread, for a handler runs;"
                " use eventbus_async.BaseService, or stop it in another thread"
            )
        drive(self._lifecycle.stop())

    def subscribe(
        self, topic: Any, handler: Callable[[Any], object], **options: Unpack[OptionArguments]
    ) -> Subscription:
        """As ``bus.on()``; the subscription ends with this run of the service. Its errors are this service's.

        Raises:
            ServiceError: The service is neither starting nor running.
            TopicError, HandlerTypeError, OptionError, BusClosedError: As ``bus.on()``.
        """
        subscription: Subscription = self._subscribe(topic, handler, options)
        return subscription

    def _start(self) -> None:
        """To be written by subclasses: get ready, and :meth:`subscribe`. What it raises, ``start()`` raises."""

    def _stop(self) -> None:
        """To be written by subclasses: let go of what ``_start`` has made. Nothing is subscribed any more."""

    def _on_error(self, error: HandlerError) -> None:
        """To be written by subclasses: told of each error of its handlers, in the thread where it came up."""

    def _told_of_error(self, error: HandlerError) -> None:
        self._on_error(error)

    def _launch(self, make: Callable[[], Flow[None]]) -> None:
        self._lifecycle.engine.timer.start_thread(lambda: drive(make()), f"{self.name}-restart")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _name_and_bus(cls: type, args: tuple[Any, ...], name: Any, bus: Any) -> tuple[str, Any]:
    """Sort out ``(name, bus)``, ``(bus)`` and keywords. Raises OptionTypeError."""
    given = list(args)
    if given and isinstance(given[0], str) and name is None:
        name = given.pop(0)
    if given and bus is None:
        bus = given.pop(0)
    if given and name is None:
        name = given.pop(0)
    if given:
        raise OptionTypeError(f"{cls.__name__} takes a name and a bus, and nothing like {given[0]!r}")
    if bus is None:
        raise OptionTypeError(
            f"{cls.__name__} needs a bus: {cls.__name__}(event_bus) or {cls.__name__}(name, event_bus)"
        )
    if name is None:
        name = snake_case(cls.__name__)
    if not isinstance(name, str):
        raise OptionTypeError(f"a service's name must be a string, not {name!r}")
    if not name:
        raise OptionError("a service's name must not be empty; leave it out to have the class's")
    return name, bus


def snake_case(name: str) -> str:
    """``MyService`` to ``my_service``, ``HTTPServer`` to ``http_server``."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return parts.strip("_").lower() or name
