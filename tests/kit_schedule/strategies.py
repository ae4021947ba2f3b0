"""Who goes on at a point: depth first within a bound of preemptions, probabilistic (PCT), random, or a replay.

An option list begins with the task that has the baton, if it can go on; then the others, by age; the clock comes last.
Index 0 is the default. Each strategy is used for one schedule after another: ``begin`` before, ``next`` after each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from .baton import CLOCK, Diverged

__all__ = ["DepthFirst", "Pct", "Replay", "Strategy", "Uniform"]


class Strategy(Protocol):
    """What a scheduler asks."""

    committed: bool  # it takes the default wherever the running task can go on: do not even look at the others

    def begin(self) -> None:
        """A schedule begins."""

    def choose(self, number: int, options: Sequence[Any], preempts: bool) -> int:
        """The index of one of several options; ``preempts``: all but the first interrupt a task that could go on."""
        ...

    def next(self, decisions: int) -> bool:
        """A schedule has ended, after so many decisions; whether there is another."""
        ...


class DepthFirst:
    """Every schedule with at most so many preemptions, each once. An early time-out counts as one, too."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.committed = False
        self._path: list[_Branch] = []
        self._depth = 0
        self._used = 0

    def begin(self) -> None:
        self._depth = 0
        self._used = 0
        self.committed = self.bound == 0

    def choose(self, number: int, options: Sequence[Any], preempts: bool) -> int:
        depth = self._depth
        self._depth = depth + 1
        if depth < len(self._path):
            branch = self._path[depth]
            if branch.number != number or branch.count != len(options):
                raise Diverged(f"decision {branch.number} of {branch.count} came back as {number} of {len(options)}")
        else:
            branch = _Branch(number, len(options), preempts, options[-1] is CLOCK, self._used)
            self._path.append(branch)
        index = branch.index
        if index:
            self._used += branch.cost(index)
            self.committed = self._used >= self.bound
        return index

    def next(self, decisions: int) -> bool:
        path = self._path
        del path[self._depth :]
        while path:
            branch = path[-1]
            for index in range(branch.index + 1, branch.count):
                if branch.used + branch.cost(index) <= self.bound:
                    branch.index = index
                    return True
            path.pop()
        return False


class _Branch:
    __slots__ = ("clock", "count", "index", "number", "preempts", "used")

    def __init__(self, number: int, count: int, preempts: bool, clock: bool, used: int) -> None:
        self.number = number
        self.count = count
        self.preempts = preempts
        self.clock = clock
        self.used = used
        self.index = 0

    def cost(self, index: int) -> int:
        if index == 0:
            return 0
        return int(self.preempts or (self.clock and index == self.count - 1))


class Pct:
    """Random priorities, and ``depth - 1`` random moments at which the running task drops to the lowest, or time
    goes by: finds every bug that needs ``depth`` steps in one order with a probability that is known [Burckhardt 2010].
    """

    committed = False

    def __init__(self, depth: int, seed: int, count: int, length: int = 100) -> None:
        self.depth = depth
        self.seed = seed
        self.count = count
        self._length = length
        self._run = 0
        self._random = random.Random()
        self._changes: set[int] = set()
        self._priorities: dict[int, float] = {}

    def begin(self) -> None:
        self._random.seed(self.seed * 1_000_003 + self._run)
        self._changes = {self._random.randint(1, self._length) for _ in range(self.depth - 1)}
        self._asked = 0
        self._priorities = {}

    def choose(self, number: int, options: Sequence[Any], preempts: bool) -> int:
        rand = self._random
        self._asked += 1
        change = self._asked in self._changes
        if options[0] is options[-1]:
            return int(change)  # a lie
        priorities = self._priorities
        best, choice = -1.0, 0
        if change:
            if options[-1] is CLOCK and rand.random() < 0.3:
                return len(options) - 1
            if preempts:
                priorities[options[0].index] = rand.random() * 1e-3
        for index, task in enumerate(options):
            if task is CLOCK:
                break
            priority = priorities.get(task.index)
            if priority is None:
                priority = priorities[task.index] = 0.01 + rand.random()
            if priority > best:
                best, choice = priority, index
        return choice

    def next(self, decisions: int) -> bool:
        self._length = max(10, self._asked if self._run == 0 else (self._length * 3 + self._asked) // 4)
        self._run += 1
        return self._run < self.count


class Uniform:
    """Any option, each as likely as the others; the clock less so."""

    committed = False

    def __init__(self, seed: int, count: int, stay: float = 0.0) -> None:
        self.seed = seed
        self.count = count
        self.stay = stay
        self._run = 0
        self._random = random.Random()

    def begin(self) -> None:
        self._random.seed(self.seed * 1_000_003 + self._run)

    def choose(self, number: int, options: Sequence[Any], preempts: bool) -> int:
        rand = self._random
        if preempts and rand.random() < self.stay:
            return 0
        index = rand.randrange(len(options))
        if options[index] is CLOCK and rand.random() < 0.7:
            index = 0
        return index

    def next(self, decisions: int) -> bool:
        self._run += 1
        return self._run < self.count


class Replay:
    """What :meth:`Scheduler.replay` has printed, once."""

    committed = False

    def __init__(self, text: str) -> None:
        pairs = [pair.split(":") for pair in text.split(",") if pair]
        self._choices = {int(number): int(index) for number, index in pairs}

    def begin(self) -> None:
        pass

    def choose(self, number: int, options: Sequence[Any], preempts: bool) -> int:
        index = self._choices.get(number, 0)
        if index >= len(options):
            raise Diverged(f"decision {number} has {len(options)} options, not {index + 1}")
        return index

    def next(self, decisions: int) -> bool:
        return False
