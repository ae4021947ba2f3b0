"""The handle of a subscription: what ``on()`` returns.

No state of its own: it points to its mailbox, which the bus's monitor owns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import EventTimeoutError
from .._values.options import check_timeout
from . import primitives
from .delivery import running_here, stack_of
from .mailbox import ACTIVE
from .waits import ALL, Waiter, refuse_on_loop, sleep

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .._values.stats import SubscriptionStats
    from .delivery import Delivery
    from .mailbox import Mailbox

__all__ = ["Handle", "Subscription", "quiet_waiter"]


class Handle:
    """What the subscriptions of both faces tell of themselves.

    Attributes:
        id: A number, unique on the bus, in order of registration.
        name: The ``name`` option, or the handler's name.
        topics: The topics and patterns.
        active: Whether emits still reach it.
    """

    __slots__ = ("__weakref__", "_box")

    def __init__(self, box: Mailbox) -> None:
        self._box = box

    @property
    def id(self) -> int:
        return self._box.id

    @property
    def name(self) -> str:
        return self._box.name

    @property
    def topics(self) -> tuple[str, ...]:
        return self._box.patterns

    @property
    def active(self) -> bool:
        return self._box.state == ACTIVE

    @property
    def handler(self) -> Any:
        """The callable as it was given; None once the subscription has ended."""
        spec = self._box.spec
        return None if spec is None else spec.function

    def stats(self) -> SubscriptionStats:
        """The exact counts of this subscription at this instant. Never blocks for longer than a step."""
        box = self._box
        return box.engine.look(box.stats)

    def __repr__(self) -> str:
        box = self._box
        state = ("not in effect yet", "active", "draining", "ended")[box.state]
        return f"<{type(self).__name__} {box.id} {box.name} on {', '.join(box.patterns)}: {state}>"


class Subscription(Handle):
    """A handler on one or several patterns, with its own mailbox. Made by ``on()``; safe in any thread.

    A context manager: leaving it is ``cancel(wait=True)``. What it tells of itself: ``id``, ``name``, ``topics``,
    ``handler``, ``active``, ``stats()``.
    """

    __slots__ = ()

    def cancel(self, wait: bool = False, timeout: float | None = None, *, drain: bool = False) -> bool:
        """End the subscription: once this has returned, nothing more is claimed (G2).

        Args:
            wait: Also wait for calls that have begun, except the caller's own.
            timeout: Seconds to wait; None waits without end, 0 polls.
            drain: Take nothing new, but run what is pending first; implies ``wait``. Without it, what was pending is
                settled as cancelled.

        Returns:
            Whether it was this call that ended it. It may be repeated.

        Raises:
            EventTimeoutError: Calls go on after ``timeout``. The subscription has ended all the same.
            DeadlockError: The wait could never end. The subscription has ended all the same.
        """
        timeout = check_timeout(timeout)
        box = self._box
        engine = box.engine
        ended = engine.cancel(box, drain)
        if (wait or drain) and not sleep_unless_loop(self, timeout):
            raise EventTimeoutError(f"after {timeout:g} s the handler of subscription {self.name} still runs")
        return ended

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel(wait=True)


def sleep_unless_loop(subscription: Handle, timeout: float | None) -> bool:
    """Wait until no call of it runs any more; tells whether that came true in time."""
    box = subscription._box
    engine = box.engine
    waiter = quiet_waiter(box, primitives.get_ident())
    refuse_on_loop(engine, waiter, "cancel(wait=True)")
    return sleep(engine, waiter, timeout)


def quiet_waiter(box: Mailbox, actor: Any) -> Waiter:
    """A wait for the calls of a cancelled subscription, but for the caller's own (G2)."""
    mine = set(stack_of(running_here(actor)))

    def others() -> list[Delivery]:
        return [each for each in (*box.running, *box.unsettled()) if each not in mine]

    return Waiter(f"the end of {box.name}", lambda: not others(), box.enlist, ALL, others)
