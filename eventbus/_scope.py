"""Scopes: what was begun through one ends with it (G22); and ``@handles``, which marks methods as handlers.

Owner: a scope's ``_members`` and ``_over`` need no lock. Who adds appends first and looks at ``_over`` then; who ends
sets ``_over`` first and goes through the list then; so whatever the order, one of the two cancels the member. List and
attribute operations are atomic on every build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from ._engine import primitives
from ._errors import BusClosedError, HandlerTypeError
from ._stream import Stream
from ._values.options import UNSET, Options, check_options, check_timeout
from ._values.topic import check_patterns, refuse_bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from ._engine.mailbox import Mailbox

__all__ = ["BusScope", "Member", "Scope", "ScopeCore", "handles", "marked_methods", "methods_to_register"]

F = TypeVar("F", bound="Callable[..., Any]")
M = TypeVar("M", bound="Member")
S = TypeVar("S", bound="Member")

_MARK = "__eventbus_handles__"


class Member(Protocol):
    """What a scope can end."""

    @property
    def active(self) -> bool: ...

    def cancel(self, wait: bool = ..., timeout: float | None = ...) -> Any: ...


class ScopeCore:
    """The members of a scope, on either face."""

    __slots__ = ("__weakref__", "_members", "_over", "_sweep")

    def __init__(self) -> None:
        self._members: list[Member] = []
        self._over = False
        self._sweep = 64

    @property
    def active(self) -> bool:
        """Whether it has not been cancelled yet."""
        return not self._over

    def admit(self, member: M) -> M:
        """Take a member in; one that comes too late is ended at once. A subscription comes before it takes effect.

        Were it admitted after that, who ends the scope meanwhile would not wait for its calls.
        """
        self._members.append(member)
        if self._over:
            member.cancel()
            self.refuse_if_over()
        if len(self._members) > self._sweep:
            self._forget()
            self._sweep = 2 * len(self._members) + 64
        return member

    def admitting(self, register: Callable[[], M]) -> M:
        """Have something registered that is admitted before it takes effect."""
        try:
            member = register()
        except BaseException:
            self._forget()  # it was refused
            raise
        self.refuse_if_over()
        return member

    def refuse_if_over(self) -> None:
        """Raise BusClosedError if the scope has ended."""
        if self._over:
            raise BusClosedError("this scope has ended and takes nothing new; make another one with bus.scope()")

    def end(self) -> list[Member]:
        """Refuse newcomers, and give what is to be ended, or waited for still, the latest first."""
        self._over = True
        self._forget()
        return self._members[::-1]

    def boxes(self) -> list[Mailbox]:
        """The mailboxes of its members and of theirs, the latest first."""
        found: list[Mailbox] = []
        for member in self._members[::-1]:
            found.extend(member.boxes() if isinstance(member, ScopeCore) else [cast("Any", member)._box])
        return found

    def _forget(self) -> None:
        """Those that have ended, their last call included, need not be remembered."""
        for each in list(self._members):
            gone = each._is_quiet() if isinstance(each, ScopeCore) else cast("Any", each)._box.is_gone()
            if gone:
                try:
                    self._members.remove(each)
                except ValueError:
                    pass  # another thread was faster

    def _is_quiet(self) -> bool:
        self._forget()
        return self._over and not self._members


class BusScope(ScopeCore, Generic[S]):
    """Registering through a scope: what the scopes of both faces do alike. ``S`` is the face's stream."""

    __slots__ = ("_bus",)

    def __init__(self, bus: Any) -> None:
        super().__init__()
        self._bus = bus

    def on(self, topic: Any, handler: Any = UNSET, **options: Any) -> Any:
        """Like ``bus.on()``; the subscription ends with the scope."""
        self.refuse_if_over()
        if handler is UNSET:
            return self._decorator(topic, options)
        return self.admitting(lambda: self._bus._on(topic, handler, options, self.admit))

    sync_on = on

    def _decorator(self, topic: Any, options: dict[str, Any]) -> Callable[[F], F]:
        refuse_bare(topic, "scope.on")

        def register(handler: F) -> F:
            self.on(topic, handler, **options)
            return handler

        return register

    def stream(self, topic: Any, **options: Any) -> S:
        """Like ``bus.stream()``; the stream ends with the scope."""
        self.refuse_if_over()
        stream: S = self._bus.stream(topic, **options)
        return self.admit(stream)

    def register(self, obj: object) -> Self:
        """Like ``bus.register()``; those subscriptions end with this scope, or with the one returned."""
        self.refuse_if_over()
        marked = methods_to_register(obj)
        return self.scope()._fill(marked)

    def _fill(self, marked: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> Self:
        """Register what is marked: all of it, or nothing."""
        try:
            for method, topics, options in marked:
                self.on(list(topics), method, **options)
        except BaseException:
            self.cancel()
            raise
        return self

    def scope(self) -> Self:
        """A scope within this one."""
        self.refuse_if_over()
        scope: Self = self._bus.scope()
        return self.admit(scope)

    def cancel(self, wait: bool = False, timeout: float | None = None) -> Any:
        """End everything that was begun through it; each face has its own way of waiting."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._members)} members{' (ended)' if self._over else ''}>"


class Scope(BusScope[Stream]):
    """A set of registrations that end together. Made by ``bus.scope()`` and ``bus.register(obj)``; safe in any thread.

    Example:
        >>> from eventbus import EventBus
        >>> bus = EventBus()
        >>> with bus.scope() as scope:
        ...     _ = scope.on("a", print)
        ...     bus.handlers("a") == (print,)
        True
        >>> bus.handlers("a")
        ()
    """

    __slots__ = ()

    def cancel(self, wait: bool = False, timeout: float | None = None) -> bool:
        """End everything that was begun through it. It may be repeated.

        Args:
            wait: Also wait for calls that have begun, except the caller's own.
            timeout: Seconds for all of that; None waits without end.

        Returns:
            Whether it was this call that ended the scope.

        Raises:
            EventTimeoutError: Calls go on after ``timeout``. Everything has ended all the same.
        """
        timeout = check_timeout(timeout)
        first = not self._over
        ending = self.end()
        for member in ending:
            member.cancel()
        self._forget()
        if wait:
            deadline = None if timeout is None else primitives.monotonic() + timeout
            for member in ending:
                member.cancel(True, None if deadline is None else max(0.0, deadline - primitives.monotonic()))
            self._forget()
        return first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel(wait=True)


def handles(*topics: Any, **options: Any) -> Callable[[F], F]:
    """Mark a method as the handler of a topic or of several, with the options of a subscription.

    ``bus.register(obj)`` and starting a service subscribe what is marked. May be stacked: one subscription each.

    Raises:
        TopicError: A topic is not one. (TopicTypeError for what is no string.)
        OptionError: Options that cannot be or exclude each other. (OptionTypeError for wrong types.)
        HandlerTypeError: What is marked is no function or method.

    Example:
        >>> from eventbus import EventBus, handles
        >>> class Shop:
        ...     @handles("orders/created", "orders/paid")
        ...     def note(self, order):
        ...         return order["id"]
        >>> bus = EventBus()
        >>> with bus.register(Shop()):
        ...     bus.emit("orders/paid", {"id": 7}).wait().results()
        [7]
    """
    if len(topics) == 1:
        refuse_bare(topics[0], "handles")
    check_patterns(list(topics))
    check_options(Options(), options)

    def mark(method: F) -> F:
        function = getattr(method, "__func__", method)  # through classmethod and staticmethod
        if not callable(function) or not hasattr(function, "__dict__"):
            raise HandlerTypeError(f"@handles marks functions and methods, not {method!r}; write it above a `def`")
        setattr(function, _MARK, (*getattr(function, _MARK, ()), (topics, options)))
        return method

    return mark


def methods_to_register(obj: object) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """What :func:`marked_methods` finds. Raises HandlerTypeError if nothing is marked, nor ever was in a base class."""
    found = list(marked_methods(obj))
    if not found and not any(
        hasattr(getattr(each, "__func__", each), _MARK) for cls in type(obj).__mro__ for each in vars(cls).values()
    ):
        if isinstance(obj, type):
            remedy = "it is a class; register an object of it"
        else:
            remedy = "mark some with @handles(topic), or use bus.on(topic, handler)"
        raise HandlerTypeError(f"{obj!r} has no methods that are marked as handlers: {remedy}")
    return found


def marked_methods(obj: object) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The bound methods of an object that are marked, with topics and options, in order of definition.

    The class is scanned, not the instance, so no property runs. A method that overrides a marked one inherits its
    marks unless it has its own; one that is overridden by something else than a function is out.
    """
    classes = type(obj).__mro__
    seen: dict[str, None] = {}
    for cls in reversed(classes):
        seen.update(dict.fromkeys(vars(cls)))
    for name in seen:
        owners = [vars(cls)[name] for cls in classes if name in vars(cls)]
        if not callable(getattr(owners[0], "__func__", owners[0])):
            continue
        marks = next((found for each in owners if (found := getattr(getattr(each, "__func__", each), _MARK, None))), ())
        for topics, options in marks:
            yield getattr(obj, name), topics, options
