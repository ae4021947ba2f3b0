"""What ``emit()`` returns: the outcomes of one event's deliveries. It carries the event itself until all are settled.

One object an emit: an :class:`~eventbus.Event` is made from it only when somebody wants one, a sleeper only when
somebody waits.

Owner: the bus's monitor; ``_left`` reaching 0 settles the receipt, once (G6), and then it is immutable. Reads of
``done`` and ``outcomes`` without the monitor see a moment's truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._errors import DeadlockError, EventBusError, EventTimeoutError
from .._values.event import Event, Lineage, make_id
from .._values.options import check_timeout
from .._values.stats import Status
from . import primitives
from .delivery import LINED, SETTLED
from .waits import ALL, ANY, SPACE, Waiter, sleep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextvars import Context

    from .._values.stats import Outcome
    from .delivery import Delivery
    from .engine import Engine

__all__ = ["Receipt", "group_errors"]

_BAD = (Status.FAILED, Status.TIMED_OUT, Status.REJECTED)
_NEVER_ALONE = ("StopIteration", "StopAsyncIteration", "CancelledError")


class Receipt:
    """The outcomes of one event's deliveries. Made by ``emit()``, never by users; safe in any thread.

    Equal and hashed by identity, weakly referenceable, read-only. It may be dropped: nothing is lost.

    Attributes:
        event_id: The id of the event.
        deliveries: How many deliveries the emit made, observers left out; None while the emit is put off because a
            signal handler or finalizer made it in the midst of the bus's own work.
        done: Whether every delivery is settled.
        outcomes: The settled deliveries so far, in order of registration.
    """

    __slots__ = (
        "__weakref__",
        "_accepting",  # deliveries that still wait for space
        "_context",
        "_deliveries",
        "_engine",
        "_event",
        "_family",  # follow=True: the unsettled deliveries of everything that this event caused
        "_follows",  # the receipts, this one included if it follows, that wait for this one's deliveries
        "_headers",
        "_left",  # deliveries to be settled, observers left out; None until the emit takes effect
        "_lineage",
        "_mark",  # monotonic time of the emit, in sampled ones, else 0.0
        "_observers",  # unsettled deliveries that stand on no receipt
        "_payload",
        "_propagate",
        "_seq",
        "_timestamp",
        "_topic",
        "_uid",
        "_waiters",
    )

    _engine: Engine | None
    _context: Context | None
    _deliveries: Sequence[Delivery]
    _family: set[Delivery]
    _left: Any  # int or None

    def __init__(self, engine: Engine, topic: str, payload: Any, context: Context, timestamp: float, seq: int) -> None:
        self._engine = engine
        self._uid = engine.uid
        self._topic = topic
        self._payload = payload
        self._context = context
        self._timestamp = timestamp
        self._seq = seq
        self._mark = 0.0
        self._headers: Mapping[str, Any] | None = None
        self._lineage: Lineage | None = None
        self._follows: tuple[Receipt, ...] | None = None
        self._event: Event | None = None
        self._waiters: list[Waiter] | None = None
        self._left = None
        self._observers = 0
        self._accepting = 0
        self._propagate: bool | EventBusError = False

    # What users see.

    @property
    def event_id(self) -> str:
        return make_id(self._uid, self._seq)

    @property
    def deliveries(self) -> int | None:
        return None if self._left is None else len(self._deliveries)

    @property
    def done(self) -> bool:
        return self._left is not None and not self._left

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        if self._left is None:
            return ()
        return tuple(each.outcome(self._topic) for each in self._deliveries if each.state is SETTLED)

    def wait(self, timeout: float | None = None) -> Receipt:
        """Wait until every delivery is settled.

        Args:
            timeout: Seconds to wait; None waits without end, 0 polls.

        Returns:
            The receipt itself.

        Raises:
            EventTimeoutError: The time ran out; names what is unsettled. Handlers go on.
            DeadlockError: The wait could never end, or it is made on a running event loop's own thread (use the
                facade and ``await`` there), or inside a step of the bus that a signal handler interrupted.
            Exception: What handlers raised, if the bus or the emit has ``propagate_errors``.
        """
        timeout = check_timeout(timeout)
        if self._left != 0:
            engine = self._effective()
            if engine is None:
                return self.wait(timeout)  # settled just now
            if primitives.running_loop() is not None:
                raise DeadlockError(
                    f"receipt.wait() for {self._topic!r} would block the event loop that runs in this thread;"
                    " await the receipt of an AsyncEventBus instead"
                )
            if not sleep(engine, self._waiter(), timeout):
                raise EventTimeoutError(self._overdue(timeout))
        self._propagate_errors()
        return self

    def results(self) -> list[Any]:
        """The values of those delivered so far, in order of registration; of all, once it was waited for."""
        return [each.value for each in self.outcomes if each.status is Status.DELIVERED]

    def raise_for_errors(self) -> None:
        """Raise an ExceptionGroup of what failed, timed out or was rejected so far; return if nothing did.

        Raises:
            ExceptionGroup: The errors of those deliveries; a BaseExceptionGroup if one of them is no Exception.
        """
        errors = self._errors()
        if errors:
            raise group_errors(f"{len(errors)} of {self.deliveries} deliveries of {self._topic!r} failed", errors)

    def __repr__(self) -> str:
        if self._left is None:
            return f"<{type(self).__name__} {self._topic!r} not in effect yet>"
        settled = [each.status.value for each in self._deliveries if each.status is not None and each.state is SETTLED]
        counts = ", ".join(f"{settled.count(status)} {status}" for status in dict.fromkeys(settled))
        state = "done" if self.done else f"{len(self._deliveries) - len(settled)} unsettled"
        return f"<{type(self).__name__} {self._topic!r} seq={self._seq} {state}{': ' + counts if counts else ''}>"

    # What the engine and the facade use.

    def _as_event(self) -> Event:
        """The one Event of this emit; without its payload once all deliveries are settled."""
        engine = self._engine
        if engine is None:
            return self._make_event()
        made = self._event
        if made is None:
            made = self._make_event()
        # Two threads may want it at once; re-entrant, so also within a step. No call here, so that no signal handler
        # comes while the lock is held out of step: it might wait for something.
        with engine.monitor.lock:
            event = self._event
            if event is None:
                event = made
                if self._engine is not None:
                    self._event = event
        return event

    def _make_event(self) -> Event:
        return Event(self._topic, self._payload, self._seq, self._timestamp, self._uid, self._lineage, self._headers)

    def _refuse(self, error: EventBusError) -> None:
        """The emit that was put off did not take effect: whoever waits is told."""
        self._deliveries = ()
        self._propagate = error
        self._payload = self._context = self._engine = None
        self._left = 0

    def _effective(self) -> Engine | None:
        engine = self._engine
        if self._left is None:
            raise DeadlockError(
                f"the emit of {self._topic!r} interrupted the bus in this thread and takes effect only when the"
                " interrupted code goes on; do not wait for it here"
            )
        return engine

    def _unsettled(self) -> list[Delivery]:
        mine = [each for each in self._deliveries if each.state is not SETTLED]
        follows = self._follows
        if follows is not None and self in follows:
            mine.extend(each for each in self._family if each.state is not SETTLED)
        return mine

    def _waiter(self) -> Waiter:
        return Waiter(f"the receipt of {self._topic!r}", self._is_done, self._enlist, ALL, self._unsettled)

    def _first_waiter(self) -> tuple[Waiter, list[Delivery]]:
        """A wait for the first that succeeds, and where that is to be found then; nothing if none can."""
        first: list[Delivery] = []

        def answered() -> bool:
            if not first:
                first.extend(each for each in self._deliveries if each.status is Status.DELIVERED)
            return bool(first) or self._left == 0

        return Waiter(f"a reply to {self._topic!r}", answered, self._enlist, ANY, self._unsettled), first

    def _accept_waiter(self, *lined: Delivery) -> Waiter:
        """A wait for space; for that of these deliveries alone, if some are given."""
        targets = (lambda: lined) if lined else self._lined
        return Waiter(f"space for {self._topic!r}", self._is_accepted, self._enlist, SPACE, targets)

    def _enlist(self, waiter: Waiter, begin: bool) -> None:
        waiters = self._waiters
        if begin:
            if waiters is None:
                waiters = self._waiters = []
            waiters.append(waiter)
        elif waiters is not None and waiter in waiters:
            waiters.remove(waiter)

    def _is_done(self) -> bool:
        return self._left is not None and not self._left

    def _is_accepted(self) -> bool:
        return self._accepting == 0

    def _lined(self) -> list[Delivery]:
        found = [each for each in self._deliveries if each.state is LINED]
        engine = self._engine
        if len(found) == self._accepting or engine is None:
            return found
        # Observers stand on no list of the receipt's.
        return [each for box in engine.all_boxes() for each in box.line or () if each.receipt is self]

    def _errors(self) -> list[BaseException]:
        return [error for each in self.outcomes if (error := failure_of(each)) is not None]

    def _propagate_errors(self) -> None:
        if self._propagate is False:
            return
        if self._propagate is not True:
            raise self._propagate
        errors = self._errors()
        if not errors:
            return
        first = errors[0]
        if len(errors) == 1 and isinstance(first, Exception) and type(first).__name__ not in _NEVER_ALONE:
            raise first
        raise group_errors(f"{len(errors)} of {self.deliveries} deliveries of {self._topic!r} failed", errors)

    def _overdue(self, timeout: float | None) -> str:
        unsettled = self._unsettled()
        names = ", ".join(dict.fromkeys(each.label() for each in unsettled)) or "nothing any more"
        text = f"after {timeout:g} s the receipt of {self._topic!r} still waits for: {names}"
        boxes: list[Any] = [each.box for each in unsettled]  # None: settled just now
        homeless = [box.name for box in boxes if box is not None and box.executor is None]
        if homeless:
            text += f"; no event loop has served {homeless[0]} yet: use `async with bus.serve()`"
        return text


def failure_of(outcome: Outcome) -> BaseException | None:
    """The exception of an outcome that is an error of the handler's or of its mailbox's, else None."""
    return outcome.error if outcome.status in _BAD else None


def group_errors(message: str, errors: list[BaseException]) -> BaseExceptionGroup[BaseException]:
    """An ExceptionGroup, or a BaseExceptionGroup where it must be."""
    return BaseExceptionGroup(message, errors)
