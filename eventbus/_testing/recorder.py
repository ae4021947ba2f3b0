"""The recording behind an EventSynchronizer; both faces share all of it. The waits on it stand in waits.py.

Guarantees
    * An event is recorded within the step by which its emit takes effect (G3), without a thread, so there is no gap
      between what came before a wait and what comes after it.
    * Each recorded event answers one wait: all that a wait needs is taken in one step, or nothing is.
    * It stands on no receipt (G21), survives ``remove_all_listeners``, and holds at most ``max_recorded`` events (G18).

Owner: the bus's monitor.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from .._engine import primitives
from .._engine.dispatcher import Executor
from .._engine.mailbox import Mailbox
from .._engine.subscription import Subscription
from .._engine.waits import notify
from .._values.stats import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .._engine.delivery import Delivery
    from .._engine.engine import Engine
    from .._engine.receipt import Receipt
    from .._engine.waits import Waiter
    from .._values.event import Event
    from .waits import Wait

__all__ = ["Entry", "RecorderMailbox", "open_recorder"]


class Entry:
    """One recorded event."""

    __slots__ = ("event", "receipt", "taken", "when")

    def __init__(self, receipt: Receipt) -> None:
        self.event: Event = receipt._as_event()
        # Its unsettled deliveries hold the receipt: once it is gone, they all are settled.
        self.receipt = weakref.ref(receipt)
        self.taken = False
        self.when = primitives.monotonic()


class RecorderMailbox(Mailbox):
    """Keeps what comes in, the newest ``max_recorded``, for waits to take."""

    __slots__ = ("entries", "lost", "most", "over", "readers", "waits")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.entries: deque[Entry] = deque()
        self.waits: list[Wait] = []
        self.readers: list[Waiter] = []
        self.most = 0
        self.lost = 0  # events that the bound has pushed out
        self.over = False  # cleaned up; set in no step, for it only ever becomes true

    def attach(self, executor: Executor | None) -> None:
        super().attach(executor)
        self.plain = False

    def record(self, receipt: Receipt) -> None:
        """In a step: one more event."""
        entry = Entry(receipt)
        self.entries.append(entry)
        if len(self.entries) > self.most:
            self.engine.monitor.trash.append(self.entries.popleft())
            self.lost += 1
        self.offer_to_waits(entry)

    def offer_to_waits(self, entry: Entry) -> None:
        """In a step: an entry can be taken."""
        for wait in self.waits:
            if wait.slots(entry.event.topic):
                wait.fresh.append(entry)

    def claim_all(self, entries: Iterable[Entry], take: bool) -> bool:
        """In a step: take all of them, or none if another wait has taken one; tells which, also without taking."""
        chosen = tuple(entries)
        if any(entry.taken for entry in chosen):
            return False
        if take:
            for entry in chosen:
                entry.taken = True
        return True

    def give_back(self, entries: Iterable[Entry]) -> None:
        """In a step: a wait that had taken these was cancelled before it returned."""
        for entry in entries:
            entry.taken = False
            self.offer_to_waits(entry)
        notify(self.engine, self.readers)

    def clean(self) -> None:
        """In a step: forget everything and end all waits."""
        self.engine.monitor.trash.append(self.entries)
        self.entries = deque()
        notify(self.engine, self.readers)

    def wake_readers(self) -> None:
        """In a step: nothing will come any more."""
        notify(self.engine, self.readers)

    def renew(self) -> None:
        super().renew()
        self.entries = deque()
        self.waits = []
        self.readers = []
        self.lost = 0


class Recording(Executor):
    """Records events within the step that admits them."""

    __slots__ = ()

    def push(self, box: Mailbox) -> None:
        assert isinstance(box, RecorderMailbox)
        box.queued = False
        while (delivery := box.claim()) is not None:
            self.keep(box, delivery)
        notify(self.engine, box.readers)

    def keep(self, box: RecorderMailbox, delivery: Delivery) -> None:
        """In a step: record one delivery's event and settle it."""
        box.record(delivery.receipt)
        self.engine.complete(delivery, Status.DELIVERED, None, None, 0.0)


def open_recorder(engine: Engine, most: int) -> tuple[Subscription, RecorderMailbox]:
    """Begin to record everything on a bus, its own events included."""
    patterns, spec, options = engine.prepare(
        ("**", "bus/**"),
        _recorder,
        {"observer": True, "max_pending": None, "overflow": "block", "name": "synchronizer"},
    )

    def make(box: Mailbox) -> Subscription:
        assert isinstance(box, RecorderMailbox)
        box.most = most  # before it is in effect
        return Subscription(box)

    subscription = engine.register(make, patterns, spec, options, Recording(engine, 1), raw=True, kind=RecorderMailbox)
    box = subscription._box
    assert isinstance(box, RecorderMailbox)
    box.closer = lambda: engine.look(box.wake_readers)
    return subscription, box


def _recorder(event: Any) -> None:
    """Stands for a recorder in lists of handlers; never called."""
