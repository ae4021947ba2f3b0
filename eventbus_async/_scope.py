"""Scopes of the facade: what was begun through one ends with it (G22).

Owner: as in the core's scope, whose members this one keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from eventbus.lowlevel import ScopeCore, check_timeout, default

from ._await import Ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from ._bus import AsyncEventBus
    from ._stream import Stream

__all__ = ["Scope"]

F = TypeVar("F", bound="Callable[..., Any]")


class Scope(ScopeCore):
    """A set of registrations that end together. Made by ``bus.scope()`` and ``bus.register(obj)``; safe in any thread.

    Leaving ``async with`` cancels all of them and waits for calls that have begun; a plain ``with`` cancels them.
    """

    __slots__ = ("_bus",)

    def __init__(self, bus: AsyncEventBus) -> None:
        super().__init__()
        self._bus = bus

    def on(self, topic: Any, handler: Any = default, **options: Any) -> Any:
        """Like ``bus.on()``; the subscription ends with the scope."""
        self.refuse_if_over()
        if handler is default:
            return self._decorator(topic, options)
        return self.admit(self._bus.on(topic, handler, **options))

    sync_on = on

    def _decorator(self, topic: Any, options: dict[str, Any]) -> Callable[[F], F]:
        def register(handler: F) -> F:
            self.on(topic, handler, **options)
            return handler

        return register

    def stream(self, topic: Any, **options: Any) -> Stream:
        """Like ``bus.stream()``; the stream ends with the scope."""
        self.refuse_if_over()
        return self.admit(self._bus.stream(topic, **options))

    def register(self, obj: object) -> Scope:
        """Like ``bus.register()``; those subscriptions end with this scope, or with the one returned."""
        self.refuse_if_over()
        return self.admit(self._bus.register(obj))

    def scope(self) -> Scope:
        """A scope within this one."""
        self.refuse_if_over()
        return self.admit(self._bus.scope())

    def cancel(self, wait: bool = False, timeout: float | None = None) -> Ended:
        """End everything that was begun through it, now. It may be repeated.

        Args:
            wait: Awaiting the result also waits for calls that have begun, except the caller's own.
            timeout: Seconds for all of that; None waits without end.

        Returns:
            An awaitable, which need not be awaited: whether it was this call that ended the scope.

        Raises:
            EventTimeoutError: When awaited: calls go on after ``timeout``. Everything has ended all the same.
        """
        limit = check_timeout(timeout)
        first = not self._over
        ending = self.end()
        for member in ending:
            member.cancel()
        # Now, because who calls is not waited for, whoever awaits.
        waits = [member.cancel(True, limit) for member in ending] if wait else []

        async def quiet() -> bool:
            for each in waits:
                await each
            return first

        return Ended(self._bus._binding, first, quiet)

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

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._members)} members{' (ended)' if self._over else ''}>"
