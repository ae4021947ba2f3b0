"""Scopes of the facade: what was begun through one ends with it (G22).

Owner: as in the core's scope, whose members this one keeps.
"""

from __future__ import annotations

from eventbus.lowlevel import BusScope, check_timeout

from ._await import Block, Ended
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
