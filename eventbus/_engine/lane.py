"""A lane: several mailboxes that run one delivery at a time between them, in order of admission (G20).

Owner: the bus's monitor.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .delivery import PENDING

if TYPE_CHECKING:
    from .delivery import Delivery
    from .mailbox import Mailbox

__all__ = ["Lane"]


class Lane:
    """Serial order across mailboxes. A box of a lane is ready only while the lane's next delivery is its own."""

    __slots__ = ("holder", "line", "members", "name", "sweep")

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder: Delivery | None = None
        self.line: deque[Delivery] = deque()
        self.members = 0
        self.sweep = 64  # so long the line may become before it is looked through

    def join(self, delivery: Delivery) -> None:
        """Queue an admitted delivery; those of unbound handlers join when they are bound."""
        self.line.append(delivery)
        if len(self.line) > self.sweep:
            # While somebody holds the lane, a mailbox may have dropped what it had pending again and again.
            self.line = deque([each for each in self.line if _counts(each)])
            self.sweep = 2 * len(self.line) + 64

    def next(self) -> Delivery | None:
        """The delivery that may run now, if any; forgets those that were settled or unbound meanwhile."""
        if self.holder is not None:
            return None
        line = self.line
        while line:
            delivery = line[0]
            if _counts(delivery):
                return delivery
            line.popleft()
        return None

    def claim(self, delivery: Delivery) -> None:
        """The lane's next delivery begins."""
        self.line.popleft()
        self.holder = delivery

    def release(self, delivery: Delivery) -> None:
        """Its handler has ended; whoever is next becomes ready."""
        if self.holder is delivery:
            self.holder = None
        self.offer()  # also where a signal handler broke this off by raising

    def leave(self, box: Mailbox) -> None:
        """A box is unbound: what it has pending holds no place, and joins again when it is bound."""
        self.line = deque([each for each in self.line if each.box is not box])

    def offer(self) -> None:
        """Make the box of the next delivery ready."""
        following = self.next()
        if following is not None:
            following.box.schedule()


def _counts(delivery: Delivery) -> bool:
    return delivery.state is PENDING and delivery.box.executor is not None
