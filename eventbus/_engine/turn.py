"""One turn of whoever runs a mailbox: settle the delivery that has ended well and claim the next, in one section.

Used by the dispatcher's threads, by the facade's tasks and, to settle only, by emits that run inline handlers. Where
anything else is to be done at the end of a call, or somebody is in a step, it does nothing and the caller makes a step.

Owner: the bus's monitor, as of a step: on builds with a GIL nobody is in one while a section runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .._values.stats import Status
from .delivery import PENDING, RUNNING, SETTLED

if TYPE_CHECKING:
    from .delivery import Delivery
    from .engine import Engine
    from .mailbox import Mailbox
    from .receipt import Receipt

__all__ = ["REFUSED", "turn"]

REFUSED: Final[Any] = object()
DELIVERED = Status.DELIVERED


def turn(
    engine: Engine, worker: Any, delivery: Delivery, receipt: Receipt, box: Mailbox, value: Any, took: float, more: bool
) -> Any:
    """Settle as delivered, and claim the next if ``more``: gives that, None if there is none, or REFUSED."""
    following: Delivery | None = None
    # Section: a delivery is settled, and the next is claimed. See primitives.SECTIONS.
    if (
        engine.monitor.busy
        or not box.flows
        or box.executor is not worker.executor
        or delivery.state is not RUNNING
        or receipt._waiters is not None
        or receipt._follows is not None
        or (engine.drains and (engine.keen or delivery.epoch is None or delivery.epoch.open == 1))
        or worker.blocked
        or receipt._mark
    ):
        following = REFUSED
    else:
        delivery.status = DELIVERED
        delivery.value = value
        delivery.error = None
        delivery.duration = took
        delivery.info = box.info
        delivery.state = SETTLED
        box.counts[0] += 1
        epoch = delivery.epoch
        if epoch is not None:
            epoch.open -= 1
            delivery.epoch = None
        if box.observer:
            receipt._observers -= 1
        else:
            receipt._left -= 1
        # What is dropped for good here may run a finalizer: these names hold it until the section is over.
        _payload = receipt._payload
        _context = receipt._context
        _event = receipt._event
        _outer = delivery.outer
        if not receipt._left and not receipt._observers:
            receipt._payload = receipt._context = receipt._event = receipt._engine = None
        delivery.seq = receipt._seq
        delivery.uid = receipt._uid
        delivery.lineage = receipt._lineage
        delivery.worker = delivery.actor = delivery.outer = None
        delivery.receipt = delivery.box = None  # type: ignore[assignment]
        pending = box.pending
        if more and pending and pending[0].state is PENDING:
            following = pending[0]
            del pending[0]
            box.held -= 1
            following.state = RUNNING
            following.worker = worker
            following.actor = worker.actor
            worker.cell[0] = following
            box.running = worker.cell
            worker.delivery = following
            worker.claims += 1
        else:
            box.running = ()
            worker.delivery = None
    # End of section.
    return following
