"""The handle of a subscription that was made on the facade.

No state of its own: it points to its mailbox, which the bus's monitor owns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventbus import EventTimeoutError
from eventbus.lowlevel import Handle, check_timeout, quiet_waiter

from ._await import Block, Driven, Ended, Waiting, again
from ._binding import actor

if TYPE_CHECKING:
    from collections.abc import Generator

    from eventbus.lowlevel import Mailbox

    from ._binding import Binding

__all__ = ["Subscription"]


class Subscription(Block, Handle, Driven["Subscription"]):
    """A handler on one or several patterns, with its own mailbox. Made by ``on()``; safe in any thread and loop.

    It is in effect when ``on()`` has returned; it can be awaited too, which gives the subscription itself. ``async
    with`` cancels it at the end and waits for calls that have begun; a plain ``with`` cancels it.
    """

    __slots__ = ("_binding", "_drivers")

    def __init__(self, box: Mailbox, binding: Binding) -> None:
        super().__init__(box)
        self._binding = binding

    def __await__(self) -> Generator[Any, Any, Subscription]:
        self._binding.enter()
        return self
        yield

    def cancel(self, wait: bool = False, timeout: float | None = None, *, drain: bool = False) -> Ended:
        """End the subscription: once this has returned, nothing more is claimed (G2).

        Args:
            wait: Awaiting the result also waits for calls that have begun, except the caller's own.
            timeout: Seconds to wait; None waits without end, 0 polls.
            drain: Take nothing new, but run what is pending first; implies ``wait``. Without it, what was pending is
                settled as cancelled.

        Returns:
            An awaitable, which need not be awaited: whether it was this call that ended it.

        Raises:
            EventTimeoutError: When awaited: calls go on after ``timeout``. The subscription has ended all the same.
            DeadlockError: When awaited: the wait could never end. The subscription has ended all the same.
        """
        limit = check_timeout(timeout)
        box = self._box
        engine = box.engine
        ended = engine.cancel(box, drain)
        # Now, because who calls is not waited for, whoever awaits.
        waiter = quiet_waiter(box, actor()) if wait or drain else None

        async def quiet() -> bool:
            if waiter is not None and not await Waiting(engine, again(waiter), limit):
                raise EventTimeoutError(f"after {limit:g} s the handler of subscription {self.name} still runs")
            return ended

        return Ended(self._binding, ended, quiet)
