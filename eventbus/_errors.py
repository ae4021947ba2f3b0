"""Every exception of the bus: one root, and beside it the built-in that each one specialises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BusClosedError",
    "DeadlockError",
    "DispatcherError",
    "EventBusError",
    "EventCycleError",
    "EventTimeoutError",
    "HandlerTypeError",
    "MailboxFullError",
    "NoHandlerError",
    "NotRegisteredError",
    "OptionError",
    "OptionTypeError",
    "PayloadError",
    "ServiceError",
    "SubscriptionError",
    "TopicError",
    "TopicTypeError",
    "UnexpectedEventError",
]


class EventBusError(Exception):
    """The root of everything that the bus raises on its own account."""


class TopicError(EventBusError, ValueError):
    """A topic or pattern with a wrong value: empty, an empty level, a pattern where a topic is needed."""


class TopicTypeError(EventBusError, TypeError):
    """A topic that is neither a ``str`` nor a :class:`~eventbus.Topic`."""


class HandlerTypeError(EventBusError, TypeError):
    """A handler that cannot be one: not callable, a wrong signature, the wrong kind for this face."""


class OptionError(EventBusError, ValueError):
    """An argument or option with a wrong value, or options that exclude each other."""


class OptionTypeError(EventBusError, TypeError):
    """An argument or option of a wrong type."""


class PayloadError(EventBusError, ValueError):
    """A payload that does not validate against what its handler or its typed topic declares."""


class SubscriptionError(EventBusError, ValueError):
    """A registration that is refused, such as a second one under ``unique=True``."""


class NotRegisteredError(EventBusError, LookupError):
    """Nothing is registered that matches what was to be removed or verified."""


class NoHandlerError(EventBusError, LookupError):
    """Fewer handlers listen than the emit required, or a request has none."""


class EventTimeoutError(EventBusError, TimeoutError):
    """A wait ran out, or a handler took longer than its time-out. Nothing is undone by it."""


class UnexpectedEventError(EventBusError, RuntimeError, AssertionError):
    """An event came that ``expect_no_event`` said would not. A test fails with it like with an assertion."""


class BusClosedError(EventBusError, RuntimeError):
    """The bus is closing or closed and takes nothing new."""


class MailboxFullError(EventBusError, RuntimeError):
    """A delivery found no room in its mailbox and was rejected."""


class DispatcherError(EventBusError, RuntimeError):
    """The dispatcher cannot start the thread that a wait depends on."""


class ServiceError(EventBusError, RuntimeError):
    """A service or service group cannot do what was asked in its present state."""


class DeadlockError(EventBusError, RuntimeError):
    """A wait that could never end. ``cycle`` names who waits for whom."""

    def __init__(self, message: str, cycle: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.cycle: tuple[str, ...] = tuple(cycle)


class EventCycleError(EventBusError, RuntimeError):
    """An emit went deeper than ``max_depth``. ``chain`` lists the topics that led to it."""

    def __init__(self, message: str, chain: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.chain: tuple[str, ...] = tuple(chain)
