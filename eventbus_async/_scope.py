"""Scopes of the facade: what was begun through one ends with it (G22).

Owner: as in the core's scope, whose members this one keeps.
"""

from __future__ import annotations

from eventbus import EventTimeoutError
from eventbus.lowlevel import BusScope, check_timeout, primitives, quiet_waiter

from ._await import Block, Ended, Waiting, again
from ._binding import actor
from ._stream import Stream

__all__ = ["Scope"]


class Scope(Block, BusScope[Stream]):
    """A set of registrations that end together. Made by ``bus.scope()`` and ``bus.register(obj)``; safe in any thread.

    Leaving ``async with`` cancels all of them and waits for calls that have begun; a plain ``with`` cancels them.
    """

    __slots__ = ()

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
        engine = self._bus._engine
        ending = self.end()
        for member in ending:
            member.cancel()
        # Now, because who calls is not waited for, whoever awaits.
        me = actor()
        waits = [quiet_waiter(box, me) for box in self.boxes()] if wait else []
        self._forget()

        async def quiet() -> bool:
            until = None if limit is None else primitives.monotonic() + limit
            for waiter in waits:
                left = None if until is None else max(0.0, until - primitives.monotonic())
                if not await Waiting(engine, again(waiter), left):
                    raise EventTimeoutError(f"after {limit:g} s the scope still waits for {waiter.text}")
            self._forget()
            return first

        return Ended(self._bus._binding, first, quiet)
