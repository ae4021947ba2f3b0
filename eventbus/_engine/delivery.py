"""One delivery: one event for one subscription, from admission to outcome.

It is at once the mailbox's item, the node of the wait graph, the record behind an :class:`~eventbus.Outcome`, and what
the context variable ``current`` tells code about the handler that it runs for.

Owner: the bus's monitor, but for ``actor`` and ``outer``, which belong to whoever claimed it. Code that
reads ``actor`` without the monitor (``running_here``) reads its own handler's, which nobody else can end.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .._values.stats import Outcome, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._values.event import Lineage
    from .mailbox import Mailbox
    from .receipt import Receipt
    from .waits import Waiter

__all__ = [
    "LINED",
    "PENDING",
    "RUNNING",
    "SETTLED",
    "Delivery",
    "Epoch",
    "Holder",
    "current",
    "held",
    "is_counted",
    "running_here",
    "stack_of",
]

# The states of a delivery, in order: waits for space, is admitted, is claimed, is settled.
LINED, PENDING, RUNNING, SETTLED = range(4)


class Epoch:
    """The deliveries between two drains that are not settled yet: what a drain waits for."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = 0


class Delivery:
    """One event for one subscription."""

    __slots__ = (
        "actor",  # who runs the handler: a thread's ident or a task
        "box",
        "deadline",  # the running timer of its time-out or of its place in the waiting line
        "duration",
        "epoch",
        "error",
        "info",  # (subscription id, name), for the outcome
        "key",
        "lineage",
        "outer",  # the delivery in whose handler this one runs inline
        "receipt",
        "seq",
        "state",
        "status",
        "uid",
        "value",
        "waiter",  # the wait that its handler is in
        "worker",
    )

    # Until it has ended; then they are let go of. Typed as present because nearly all code runs before that.
    receipt: Receipt
    box: Mailbox
    epoch: Epoch | None
    lineage: Lineage | None
    seq: int
    uid: str
    key: Any
    info: tuple[int, str]
    value: Any
    error: BaseException | None
    duration: float
    waiter: Waiter | None
    outer: Delivery | None

    def __init__(self, receipt: Receipt, box: Mailbox, epoch: Epoch | None) -> None:
        self.receipt = receipt
        self.box = box
        self.epoch = epoch
        self.state = PENDING
        self.status: Status | None = None
        self.deadline: Any = None
        self.worker: Any = None
        self.actor: Any = None
        self.waiter = None
        self.outer = None

    def outcome(self, topic: str) -> Outcome:
        """The public record of what became of it. Only for settled ones."""
        assert self.status is not None
        number, name = self.info
        return Outcome(self.status, self.value, self.error, self.duration, number, name, topic)

    def release(self) -> None:
        """Let go of everything but what the outcome and later emits of its context need (G18, G19)."""
        receipt = self.receipt
        self.seq = receipt._seq
        self.uid = receipt._uid
        self.lineage = receipt._lineage
        self.worker = self.outer = self.waiter = self.actor = self.key = self.deadline = None
        self.receipt = self.box = None  # type: ignore[assignment]

    def parentage(self) -> tuple[str, int, Lineage | None]:
        """The uid, number and lineage of its event, also after the end."""
        receipt: Any = self.receipt
        if receipt is None:
            return self.uid, self.seq, self.lineage
        return receipt._uid, receipt._seq, receipt._lineage

    def __repr__(self) -> str:
        return f"<Delivery {self.label()}>"

    def label(self) -> str:
        """For messages: which subscription, which event."""
        box: Any = self.box
        return "an ended delivery" if box is None else f"{box.name} ({self.receipt._topic})"


class Holder:
    """Stands for a delivery in a context that serves several of them, one after another; the hot path in C makes these.

    Whoever runs the handlers changes ``delivery``, while nobody else has that context or a copy of it. None: no handler
    runs; it stays in an emitter's context for his next inline handlers.
    """

    __slots__ = ("delivery",)

    delivery: Delivery | None


# The delivery whose handler the running code belongs to, inherited by what that handler starts. Read and set only in
# the context of the code itself, so no lock is needed on any build.
current: ContextVar[Delivery | Holder | None] = ContextVar("eventbus_current", default=None)


def held() -> Delivery | None:
    """The delivery whose handler the running code belongs to, if any; it may have ended."""
    found = current.get()
    return found.delivery if isinstance(found, Holder) else found


def is_counted(delivery: Delivery) -> bool:
    """Of one that an emit has accepted on its own: whether its mailbox has counted it; what says so is ``info``."""
    return getattr(delivery, "info", None) is not None


def running_here(actor: Any) -> Delivery | None:
    """The delivery whose handler runs in this very thread or task, or None; it may be past its time-out."""
    delivery = held()
    # Its end lets go of the mailbox and the actor.
    if delivery is None or delivery.box is None:  # pyright: ignore[reportUnnecessaryComparison]
        return None
    return delivery if delivery.actor == actor else None


def stack_of(delivery: Delivery | None) -> Iterator[Delivery]:
    """A running delivery, and those on whose stack it runs inline."""
    while delivery is not None:
        yield delivery
        delivery = delivery.outer
