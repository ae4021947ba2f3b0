"""Which mailboxes an emit reaches: exact topics in a dictionary, patterns in a trie, and a route per topic.

Guarantees: a :class:`Route` is immutable but for its counter; registration swaps it, an emit only looks it up, so its
cost does not depend on how many other topics and subscriptions there are. What is remembered for topics that nobody
names is bounded.

Owner: everything here is changed under the bus's monitor. ``Registry.routes`` may be read without it (one dictionary
look-up, atomic on every build) by those who check again inside a step or section.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import primitives

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .mailbox import Mailbox

__all__ = ["Registry", "Route", "Tally"]

ROUTES_REMEMBERED = 8192
TOPICS_COUNTED = 1024
OTHER = "other"


class Tally:
    """The number of emits of one topic, or of all that share a row."""

    __slots__ = ("emits",)

    def __init__(self, emits: int = 0) -> None:
        self.emits = emits


class Route:
    """What an emit of one topic reaches, in order of registration."""

    __slots__ = ("all_inline", "boxes", "counted", "generation", "keyed", "reserved", "size", "swift", "tally")

    def __init__(self, topic: str, boxes: tuple[Mailbox, ...], tally: Tally, generation: int) -> None:
        self.reserved = topic.startswith("bus/")
        self.boxes = boxes
        self.tally = tally
        self.generation = generation
        self.counted = sum(not box.observer for box in boxes)
        self.size = len(boxes)
        self.keyed = any(box.key is not None for box in boxes)
        self.all_inline = bool(boxes) and all(box.inline and not box.raw for box in boxes)
        self.swift = primitives.SECTIONS and bool(boxes) and (self.all_inline or all(box.plain for box in boxes))


class Node:
    """One level of the patterns' trie."""

    __slots__ = ("children", "here", "tail")

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.here: dict[int, Mailbox] = {}  # patterns that end at this level
        self.tail: dict[int, Mailbox] = {}  # patterns that end in "**" below it


_NOBODY: dict[int, Mailbox] = {}  # shared, never changed


class Exact(Tally):
    """The subscriptions that name one topic exactly, and its emits. Mostly there is one: no dictionary for it."""

    __slots__ = ("more", "only")

    def __init__(self, only: Mailbox, emits: int) -> None:
        self.emits = emits
        self.only: Mailbox | None = only
        self.more: dict[int, Mailbox] = _NOBODY  # all of them, once there were two

    def add(self, box: Mailbox) -> None:
        only = self.only
        if only is not None:
            self.more = {only.id: only}
            self.only = None
        self.more[box.id] = box

    def remove(self, box: Mailbox) -> bool:
        """Tells whether none is left."""
        only = self.only
        if only is not None:
            return only is box
        self.more.pop(box.id, None)
        return not self.more

    def collect(self, found: dict[int, Mailbox]) -> None:
        only = self.only
        if only is None:
            found.update(self.more)
        else:
            found[only.id] = only


class Registry:
    """All active mailboxes of a bus, and the way from a topic to those that it reaches."""

    __slots__ = ("_exact", "_other", "_root", "_tallies", "boxes", "generation", "routes")

    def __init__(self) -> None:
        self.boxes: dict[int, Mailbox] = {}
        self.renew()

    def renew(self) -> None:
        """Build everything anew from ``boxes``: in a forked child a half-done registration may have been cut off."""
        self._tallies: dict[str, Tally] = {}
        self._other = Tally()
        self._exact: dict[str, Exact] = {}
        self._root = Node()
        self.generation = 0
        self.routes: dict[str, Route] = {}
        for box in list(self.boxes.values()):
            self.add(box)

    def add(self, box: Mailbox) -> None:
        """Register a mailbox under all of its patterns. O(levels)."""
        self.boxes[box.id] = box
        for pattern in box.patterns:
            if "*" in pattern:
                self._place(pattern)[box.id] = box
                self.generation += 1  # for emits that have looked a route up already: any may be out of date
                self.routes = {}  # one that is never looked at again must not keep what it once reached (G18)
            else:
                exact = self._exact.get(pattern)
                if exact is None:
                    known = self._tallies.get(pattern)
                    self._exact[pattern] = Exact(box, 0 if known is None else known.emits)
                    if known is not None:
                        del self._tallies[pattern]
                else:
                    exact.add(box)
                self._forget(pattern)

    def remove(self, box: Mailbox) -> None:
        """Take a mailbox out, if it is in. O(levels)."""
        if box.id not in self.boxes:
            return
        for pattern in box.patterns:
            if "*" in pattern:
                self._prune(pattern, box.id)
                self.generation += 1
                self.routes = {}
            else:
                self._forget(pattern)
                exact = self._exact.get(pattern)
                if exact is not None and exact.remove(box):
                    # No call between the two halves of either way: a signal handler that raises has it done again.
                    if exact.emits and len(self._tallies) < TOPICS_COUNTED:
                        self._tallies[pattern] = Tally(exact.emits)
                        del self._exact[pattern]
                    else:
                        self._other.emits += exact.emits
                        del self._exact[pattern]
        del self.boxes[box.id]  # last, for a signal handler that raises: then it is done again

    def route(self, topic: str) -> Route:
        """The route of a topic: the remembered one if it still holds, else made and remembered."""
        route = self.routes.get(topic)
        if route is not None and route.generation == self.generation:
            return route
        if len(self.routes) >= ROUTES_REMEMBERED:
            self.routes = {}
        tally = self._exact.get(topic) or self._tally(topic)
        route = self.routes[topic] = Route(topic, self._found(topic), tally, self.generation)
        return route

    def find(self, topic: str) -> tuple[Mailbox, ...]:
        """What an emit of the topic would reach, in order of registration. Unlike an emit, it makes no row for it."""
        route = self.routes.get(topic)
        return route.boxes if route is not None and route.generation == self.generation else self._found(topic)

    def reaches(self, topic: str) -> bool:
        """Whether an emit of the topic would reach anything."""
        return bool(self.find(topic))

    def _found(self, topic: str) -> tuple[Mailbox, ...]:
        found: dict[int, Mailbox] = {}
        exact = self._exact.get(topic)
        if exact is not None:
            exact.collect(found)
        self._match(topic.split("/"), found)
        return tuple(found[number] for number in sorted(found))

    def topics(self) -> tuple[str, ...]:
        """Every topic and pattern that somebody is registered for, sorted."""
        return tuple(sorted({pattern for box in self.boxes.values() for pattern in box.patterns}))

    def emits(self) -> dict[str, int]:
        """Emits per topic; those beyond the table in the row "other"."""
        rows = {topic: tally.emits for topic, tally in self._tallies.items()}
        rows.update((topic, exact.emits) for topic, exact in self._exact.items())
        if self._other.emits:
            rows[OTHER] = rows.get(OTHER, 0) + self._other.emits
        return rows

    def _tally(self, topic: str) -> Tally:
        tally = self._tallies.get(topic)
        if tally is None:
            if len(self._tallies) >= TOPICS_COUNTED:
                return self._other
            tally = self._tallies[topic] = Tally()
        return tally

    def _forget(self, topic: str) -> None:
        route = self.routes.pop(topic, None)
        if route is not None:
            route.generation = -1  # for emits that have looked it up already

    def _place(self, pattern: str) -> dict[int, Mailbox]:
        node = self._root
        *path, last = pattern.split("/")
        for level in path:
            node = node.children.setdefault(level, Node())
        if last == "**":
            return node.tail
        return node.children.setdefault(last, Node()).here

    def _prune(self, pattern: str, number: int) -> None:
        *path, last = pattern.split("/")
        if last != "**":
            path.append(last)
        nodes = [self._root]
        for level in path:
            node = nodes[-1].children.get(level)
            if node is None:
                return  # a registration that a signal handler cut off
            nodes.append(node)
        (nodes[-1].tail if last == "**" else nodes[-1].here).pop(number, None)
        for parent, level, node in zip(reversed(nodes[:-1]), reversed(path), reversed(nodes[1:]), strict=True):
            if node.children or node.here or node.tail:
                break
            del parent.children[level]

    def _match(self, levels: list[str], found: dict[int, Mailbox]) -> None:
        reserved = levels[0] == "bus" and len(levels) > 1
        nodes: list[Node] = [self._root]
        for depth, level in enumerate(levels):
            below: list[Node] = []
            for node in nodes:
                if not (reserved and depth == 0):
                    found.update(node.tail)
                    below.extend(_children(node, "*"))
                below.extend(_children(node, level))
            nodes = below
            if not nodes:
                return
        for node in nodes:
            found.update(node.here)
            found.update(node.tail)


def _children(node: Node, level: str) -> Iterator[Node]:
    child = node.children.get(level)
    if child is not None:
        yield child
