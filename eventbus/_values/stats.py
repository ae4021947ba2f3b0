"""What is told about deliveries: outcomes, errors, statistics, the report of a close. Frozen dataclasses.

What they are made, compared, hashed and shown by is written once, in :class:`Record`, and what ``dataclasses`` tells of
them is made when somebody asks: generated for each, they took most of what importing this module did.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, field, fields, make_dataclass, replace
from enum import StrEnum
from inspect import Parameter, Signature
from reprlib import recursive_repr
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .event import Event

__all__ = [
    "BusStats",
    "CloseReport",
    "HandlerError",
    "Latency",
    "Outcome",
    "PoolStats",
    "Status",
    "SubscriptionStats",
    "summary",
]


class Status(StrEnum):
    """How a delivery was settled; a ``str``, so ``outcome.status == "delivered"`` works."""

    DELIVERED = "delivered"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    DROPPED = "dropped"
    REJECTED = "rejected"


class _Signature:
    """What a record is made of, as ``help()`` shows it: made when it is asked for."""

    def __get__(self, record: object, kind: Any) -> Signature:
        return Signature(
            [
                Parameter(
                    each.name,
                    Parameter.POSITIONAL_OR_KEYWORD,
                    default=Parameter.empty if each.default is MISSING else each.default,
                    annotation=each.type,
                )
                for each in fields(kind)
            ]
        )


class _Told:
    """What ``dataclasses`` knows of a record by this name."""

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, record: object, kind: type[Record]) -> Any:
        # The record may be of a user's class that derives from one of these.
        home: Any = next(each for each in kind.__mro__ if "_defaults" in vars(each))
        defaults: Mapping[str, Any] | None = home._defaults
        if defaults is None:
            raise AttributeError(f"{kind.__name__} is no dataclass")
        known: list[tuple[str, Any, Any]] = [
            (name, text, field(default=defaults.get(name, MISSING))) for name, text in home.__annotations__.items()
        ]
        made = make_dataclass(home.__name__, known, frozen=True, init=False, repr=False, eq=False)
        told = getattr(made, self._name)
        setattr(home, self._name, told)  # by whoever comes first; they are all alike
        return told


class Record:
    """What the dataclasses of this module share: they are frozen, equal by value, and shown with each field's name."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()  # the fields
    _defaults: ClassVar[Any] = None  # those of the fields that have one, by name
    __signature__ = _Signature()
    __dataclass_fields__ = _Told()
    __dataclass_params__ = _Told()

    def __init__(self, *values: Any, **named: Any) -> None:
        if named or len(values) != len(self.__match_args__):
            try:
                given = self.__signature__.bind(*values, **named)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}(): {error}") from None
            given.apply_defaults()
            values = given.args
        for name, value in zip(self.__match_args__, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __replace__(self, **changes: Any) -> Any:
        itself: Any = self
        return replace(itself, **changes)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or other.__class__ is not self.__class__:
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    @recursive_repr()
    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__qualname__}({', '.join(shown)})"


class Figures(Record):
    """Those of statistics."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain dictionaries, lists and numbers."""
        return {name: _plain(getattr(self, name)) for name in self.__match_args__}


T = TypeVar("T", bound=type[Record])


@dataclass_transform(frozen_default=True)
def _record(kind: T) -> T:
    """A frozen dataclass with slots whose methods are those of Record."""
    has = dict(vars(kind))
    names = tuple(kind.__annotations__)
    made: Any = type(
        kind.__name__,
        kind.__bases__,
        {
            **{name: value for name, value in has.items() if name not in names},
            "__slots__": names,
            "__match_args__": names,
            "_defaults": {name: has[name] for name in names if name in has},
        },
    )
    return made  # type: ignore[no-any-return]


@_record
class Outcome(Record):
    """What became of one delivery.

    Attributes:
        status: How it was settled.
        value: What the handler returned, if ``delivered``.
        error: The exception, if ``failed``, ``timed_out`` or ``rejected`` (and sometimes if ``cancelled``).
        duration: Seconds that the handler ran; 0.0 if it never began.
        subscription_id: The ``id`` of the subscription.
        name: The subscription's name.
        topic: The event's topic.
    """

    status: Status
    value: Any
    error: BaseException | None
    duration: float
    subscription_id: int
    name: str
    topic: str


@_record
class HandlerError(Record):
    """What ``on_error``, the log and ``bus/error`` are told about a failed, timed-out or rejected delivery.

    Attributes:
        error: The exception.
        event: The event that was being delivered.
        subscription: The subscription's handle.
        where: ``"handler"``, ``"timeout"``, ``"mailbox"`` or ``"key"``.
    """

    error: BaseException
    event: Event
    subscription: Any
    where: str


@_record
class CloseReport(Figures):
    """What ``close()`` could not finish.

    Attributes:
        cancelled: How many deliveries were cancelled because the time was up (or nobody could run them).
        stuck: The names of the handlers that still run; their threads are daemons.
    """

    cancelled: int = 0
    stuck: tuple[str, ...] = ()


@_record
class Latency(Figures):
    """A distribution of seconds: quantiles are exact to about 5 %.

    Sampled: on average, one delivery a millisecond is measured.

    Attributes:
        count: How many samples were taken.
        p50: The median, 0.0 without samples.
        p99: The 99th percentile.
        max: The largest sample.
    """

    count: int = 0
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


NO_SAMPLES = Latency(0, 0.0, 0.0, 0.0)


@_record
class SubscriptionStats(Figures):
    """Exact counts: at every quiet moment ``deliveries`` is the sum of the six outcomes, ``pending`` and ``running``.

    Attributes:
        deliveries: Deliveries made, counted at the emit.
        pending: Deliveries that wait, those in the waiting line for space included.
        running: Deliveries whose handler has begun and is not settled.
        delivered, failed, timed_out, cancelled, dropped, rejected: The outcomes so far.
        wait: Seconds from the emit to the handler's begin, sampled.
        run: Seconds that the handler ran, sampled.
    """

    deliveries: int = 0
    pending: int = 0
    running: int = 0
    delivered: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    dropped: int = 0
    rejected: int = 0
    wait: Latency = NO_SAMPLES
    run: Latency = NO_SAMPLES


def summary(sums: Sequence[int], pending: int, running: int, wait: Latency, run: Latency) -> SubscriptionStats:
    """The record of counts: deliveries and the six outcomes in order."""
    deliveries, delivered, failed, timed_out, cancelled, dropped, rejected = sums
    return SubscriptionStats(
        deliveries, pending, running, delivered, failed, timed_out, cancelled, dropped, rejected, wait, run
    )


@_record
class PoolStats(Figures):
    """The dispatcher's threads.

    Attributes:
        threads: Threads that exist, idle ones included.
        idle: Threads that sleep and wait for work.
        computing: Threads that run handlers and count against ``workers``.
        blocked: Threads that are stuck or blocked in user code.
        waiting: Threads whose handler waits inside the bus.
        ready: Mailboxes that wait for a worker.
    """

    threads: int = 0
    idle: int = 0
    computing: int = 0
    blocked: int = 0
    waiting: int = 0
    ready: int = 0


@_record
class BusStats(Figures):
    """A picture of the whole bus, taken at one instant.

    Attributes:
        events: Emits that took effect.
        totals: The sum over all subscriptions, ended ones included.
        subscriptions: Subscription id to its statistics, active ones.
        topics: Topic to emits: exact where an exact subscription names it, else from a bounded table, the rest in the
            row ``"other"``.
        pool: The dispatcher's threads.
    """

    events: int
    totals: SubscriptionStats
    subscriptions: Mapping[int, SubscriptionStats]
    topics: Mapping[str, int]
    pool: PoolStats

    def __init__(self, *values: Any, **named: Any) -> None:
        Record.__init__(self, *values, **named)
        object.__setattr__(self, "subscriptions", MappingProxyType(dict(self.subscriptions)))
        object.__setattr__(self, "topics", MappingProxyType(dict(self.topics)))


def _plain(value: Any) -> Any:
    if isinstance(value, Figures):
        return value.as_dict()
    if isinstance(value, (dict, MappingProxyType)):
        return {key: _plain(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
