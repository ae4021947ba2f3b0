"""The bus as a page of plain Python, from its promises alone: one thread, no locks, no clock, no code of the bus.

A gated handler begins its call and stays in it until it is let go; every other one returns at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any


def reaches(pattern: str, topic: str) -> bool:
    """``*`` is one level, ``**`` at the end any number; what begins with ``bus/`` is matched by its like alone."""

    def match(wanted: list[str], given: list[str]) -> bool:
        if not wanted or not given:
            return wanted == given or wanted == ["**"]
        return wanted == ["**"] or (wanted[0] in ("*", given[0]) and match(wanted[1:], given[1:]))

    return (not topic.startswith("bus/") or pattern.startswith("bus/")) and match(pattern.split("/"), topic.split("/"))


@dataclass(eq=False)
class Delivery:
    """One event for one subscription."""

    sub: Sub
    number: int
    key: Any
    status: str = "unsettled"
    ticket: int = 0  # its place in the order of admission


@dataclass(eq=False)
class Sub:
    """One subscription, as it was registered, and what became of it."""

    patterns: tuple[str, ...]
    handler: Any = None
    inline: bool = False
    stream: bool = False
    gated: bool = False
    fails: bool = False
    observer: bool = False
    concurrency: int = 1
    keyed: bool = False
    lane: str | None = None
    policy: str = "block"
    room: int | None = None  # None: no bound
    patient: bool = True  # under "block": whether an emit may wait for space
    active: bool = True
    pending: list[Delivery] = field(default_factory=list)
    line: list[Delivery] = field(default_factory=list)
    running: list[Delivery] = field(default_factory=list)
    heard: list[int] = field(default_factory=list)  # of a stream: what is to be read
    counts: Counter[str] = field(default_factory=Counter)

    def has_room(self, key: Any) -> bool:
        held: list[Any] = self.heard if self.stream else self.pending
        if self.policy == "latest" and self.keyed:
            held = list({each.key for each in self.pending})
            return key not in held and (self.room is None or len(held) < self.room)
        return not held if self.policy == "latest" else self.room is None or len(held) < self.room


class Model:
    """All that is registered, pending and settled."""

    def __init__(self) -> None:
        self.subs: list[Sub] = []
        self.emits: list[list[Delivery]] = []
        self.tickets = count(1)

    def matching(self, topic: str) -> list[Sub]:
        return [sub for sub in self.subs if sub.active and any(reaches(pattern, topic) for pattern in sub.patterns)]

    def emit(self, topic: str, key: Any) -> None:
        self.emits.append([Delivery(sub, len(self.emits), key) for sub in self.matching(topic)])
        for each in self.emits[-1]:
            each.sub.counts["deliveries"] += 1
            self.offer(each, each.sub)
        self.run()

    def offer(self, each: Delivery, sub: Sub) -> None:
        obsolete = [one for one in sub.pending if sub.policy == "drop_oldest" or not sub.keyed or one.key == each.key]
        if sub.inline:
            sub.heard.append(each.number)
            self.settle(each, "failed" if sub.fails else "delivered")
        elif not sub.line and sub.has_room(each.key):
            self.admit(each)
        elif sub.policy in ("drop_oldest", "latest") and (sub.stream or obsolete):
            self.settle(obsolete[0], "dropped") if obsolete else sub.heard.pop(0)
            self.admit(each)
        elif sub.policy == "block" and sub.patient:
            sub.line.append(each)
        else:
            self.settle(each, "dropped" if sub.policy == "drop_newest" else "rejected")

    def admit(self, each: Delivery) -> None:
        each.ticket = next(self.tickets)
        if each.sub.stream:
            each.sub.heard.append(each.number)
            self.settle(each, "delivered")
        else:
            each.sub.pending.append(each)

    def settle(self, each: Delivery, status: str) -> None:
        each.status = status
        each.sub.counts[status] += 1
        for where in (each.sub.pending, each.sub.line, each.sub.running):
            where[:] = [one for one in where if one is not each]

    def run(self) -> None:
        """Begin every call that can begin, and admit what then has room."""
        while following := next((one for sub in self.subs for one in sub.pending if self.can_begin(one)), None):
            sub = following.sub
            sub.running.append(sub.pending.pop(sub.pending.index(following)))
            sub.heard.append(following.number)
            if not sub.gated:
                self.settle(following, "failed" if sub.fails else "delivered")
            self.refill(sub)

    def can_begin(self, each: Delivery) -> bool:
        sub = each.sub
        mates = [mate for mate in self.subs if sub.lane and mate.lane == sub.lane]
        if any(mate.running or any(one.ticket < each.ticket for one in mate.pending) for mate in mates):
            return False
        return len(sub.running) < sub.concurrency and not (sub.keyed and each.key in [one.key for one in sub.running])

    def refill(self, sub: Sub) -> None:
        while sub.line and sub.has_room(sub.line[0].key):
            self.admit(sub.line.pop(0))

    def let_go(self, sub: Sub) -> None:
        """All calls of it end, and those that begin meanwhile; then its gate is shut again."""
        sub.gated = False
        for each in list(sub.running):
            self.settle(each, "failed" if sub.fails else "delivered")
        self.run()
        sub.gated = True

    def cancel(self, subs: Iterable[Sub]) -> None:
        for sub in subs:
            sub.active = False
            for each in [*sub.pending, *sub.line]:
                self.settle(each, "cancelled")
        self.run()
