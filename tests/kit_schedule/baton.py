"""One baton, real threads: which of them runs is decided at *points*, by a strategy, and nothing else decides.

A :class:`Scheduler` runs one schedule. Its tasks are real threads, but each sleeps on a raw lock of its own until it is
given the baton; :meth:`Scheduler.point` is where it may have to hand it on. Time is virtual: the clock is one more
option at a point, "now is when the next time-out is due", so that a time-out can come first or last. What a schedule
did is told by the few decisions in which it left the default (go on with whom we have); that text replays it.

Owner: whoever has the baton, all of it. The carriers (pooled OS threads) are reused from schedule to schedule.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .strategies import Strategy

__all__ = ["CLOCK", "Abort", "Deadlock", "Diverged", "Livelock", "Scheduler", "Stuck", "Task", "here"]

LIMIT = 50_000  # points in one schedule; one that needs more does not end
PATIENCE = 20.0  # seconds, real ones, after which a schedule is blocked outside of the seam
_OWN = ("kit_schedule/baton.py", "kit_schedule/seam.py", "kit_schedule/explore.py", "/threading.py")
EPOCH = 1000.0  # the virtual clock at the start
CLOCK: Any = None  # stands for the clock among the options of a point

_get_ident = threading.get_ident
_allocate = threading.Lock


class Abort(BaseException):
    """Ends a task of a schedule that is over. Never leaves this module's threads."""


class Deadlock(AssertionError):
    """Nobody can go on, and no time-out is due."""


class Livelock(AssertionError):
    """The schedule does not end."""


class Stuck(AssertionError):
    """A controlled thread blocks on something that the scheduler does not see."""


class Diverged(AssertionError):
    """The same decisions led elsewhere: something in the program is not deterministic."""


class Task:
    """A controlled thread. ``ready`` and ``due`` say what it waits for at its point; None and None: for nothing."""

    __slots__ = (
        "carrier",
        "due",
        "error",
        "go",
        "ident",
        "index",
        "inside",
        "name",
        "over",
        "ready",
        "sched",
        "service",
    )

    def __init__(self, sched: Scheduler, index: int, name: str, service: bool) -> None:
        self.sched = sched
        self.index = index
        self.ident = 1001 + index
        self.name = name
        self.service = service  # started by the library
        self.inside = 0  # handlers on its stack
        self.ready: Callable[[], object] | None = None
        self.due: float | None = None
        self.over = False
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        return f"<{self.index} {self.name}>"


class Carrier:
    """An OS thread that runs one task after another."""

    idle: list[Carrier] = []

    def __init__(self) -> None:
        self.go = _allocate()
        self.go.acquire()
        self.job: Callable[[], None] | None = None
        self.thread = threading.Thread(target=self._run, name="carrier", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            self.go.acquire()
            job, self.job = self.job, None
            if job is None:
                return
            job()
            del job

    @classmethod
    def dismiss(cls) -> None:
        """End those that have nothing to do."""
        while cls.idle:
            carrier = cls.idle.pop()
            carrier.go.release()
            carrier.thread.join()


_here: dict[int, Task] = {}  # OS thread -> the task that it runs


def here() -> Task | None:
    """The task that runs in this thread, or None: a thread that is not controlled."""
    return _here.get(_get_ident())


class Scheduler:
    """One schedule of one program.

    Args:
        strategy: Chooses among the options of each point.
        wrap: Called as ``wrap(target)`` in each new thread, to run it with points at every line.
        lies: What the primitives may do though it is rare: ``"timeout"`` (a wake-up that comes too late),
            ``"spurious"`` (a thread of the library's wakes for nothing), ``"start"`` (a thread cannot be started).
    """

    def __init__(
        self,
        strategy: Strategy,
        wrap: Callable[[Callable[[], None]], None] | None = None,
        lies: frozenset[str] = frozenset(),
    ) -> None:
        self.strategy = strategy
        self.wrap = wrap
        self.lies = lies
        self.now = EPOCH
        self.tasks: list[Task] = []
        self.live: list[Task] = []
        self.current: Task = None  # type: ignore[assignment]
        self.branching = False  # outside of the part that is explored, the default is taken
        self.made = 0  # sleepers
        self.decisions = 0
        self.points = 0
        self.switches = 0
        self.trace: list[tuple[int, int]] = []
        self.failure: BaseException | None = None
        self.aborting = False
        self._finished = _allocate()
        self._finished.acquire()

    # Running

    def run(self, main: Callable[[], None]) -> BaseException | None:
        """Run a program and all the threads that it starts to their ends; gives what went wrong, or None."""
        first = self._new_task(main, "main", False)
        self.current = first
        first.go.release()
        if not self._finished.acquire(timeout=PATIENCE):
            self.aborting = True
            raise Stuck(f"{self.current!r} blocks outside of the seam: {self.stacks()}")
        return self.failure

    def replay(self) -> str:
        """The schedule as text: ``decision:option`` wherever the first option was not taken."""
        return ",".join(f"{number}:{index}" for number, index in self.trace)

    def start(self, target: Callable[[], None], name: str, service: bool = False) -> Task:
        """One more controlled thread; it runs when it is chosen."""
        return self._new_task(target, name, service)

    def _new_task(self, target: Callable[[], None], name: str, service: bool) -> Task:
        task = Task(self, len(self.tasks), name, service)
        carrier = Carrier.idle.pop() if Carrier.idle else Carrier()
        task.carrier = carrier
        task.go = carrier.go
        self.tasks.append(task)
        self.live.append(task)
        carrier.job = lambda: self._life(task, target)
        return task

    def _life(self, task: Task, target: Callable[[], None]) -> None:
        ident = _get_ident()
        _here[ident] = task
        try:
            if not self.aborting:
                context = contextvars.Context()
                if self.wrap is None:
                    context.run(target)
                else:
                    context.run(self.wrap, target)
        except Abort:
            pass
        except BaseException as error:
            task.error = error
            self.fail(error)
        finally:
            del target
            del _here[ident]
            task.over = True
            self.live.remove(task)
            Carrier.idle.append(task.carrier)
            self._hand_on(task)

    def _hand_on(self, task: Task) -> None:
        """A task has ended: somebody else goes on."""
        if not self.live:
            self._finished.release()
            return
        following: Task | None = None
        if not self.aborting:
            try:
                following = self._pick(task, True)
            except BaseException as error:
                self.fail(error)
        if following is None:
            following = self.live[0]
        self.current = following
        following.go.release()

    def fail(self, error: BaseException) -> None:
        """The schedule has failed: every point from now on ends its task."""
        if self.failure is None and not isinstance(error, Abort):
            self.failure = error
        self.aborting = True

    # Points

    def point(self, ready: Callable[[], object] | None = None, due: float | None = None, yields: bool = False) -> None:
        """The running task is about to do something that others can see; somebody else may come first.

        Args:
            ready: It can go on only when this is true;
            due: or when the virtual clock has come so far.
            yields: Somebody else should come first.
        """
        if self.aborting:
            raise Abort
        me = self.current
        me.ready = ready
        me.due = due
        self.points += 1
        try:
            following = self._pick(me, yields)
        except BaseException as error:
            self.fail(error)
            raise Abort from None
        if following is not me:
            self.switches += 1
            self.current = following
            following.go.release()
            me.go.acquire()
            if self.aborting:
                raise Abort
        me.ready = None
        me.due = None

    def sleep(self, seconds: float) -> None:
        """User code that sleeps, in virtual time."""
        self.point(ready=_never, due=self.now + seconds)

    def rest(self) -> None:
        """Let the others go on until each of them is blocked."""
        me = self.current
        self.point(lambda: not any(task is not me and self._can_go(task) for task in self.live))

    def _can_go(self, task: Task) -> bool:
        ready, due = task.ready, task.due
        if ready is None and due is None:
            return True
        return (ready is not None and bool(ready())) or (due is not None and self.now >= due)

    def _pick(self, me: Task, yields: bool) -> Task:
        if self.points > LIMIT:
            raise Livelock(f"no end after {LIMIT} points; the last of {self.stacks()}")
        while True:
            stay = not me.over and self._can_go(me)
            self.decisions += 1
            if stay and not yields and (not self.branching or self.strategy.committed):
                return me
            options = [me] if stay and not yields else []
            soonest: float | None = None
            for task in self.live:
                if task is me:
                    if not stay and me.due is not None and (soonest is None or me.due < soonest):
                        soonest = me.due
                    continue
                due = task.due
                if self._can_go(task):
                    options.append(task)
                elif due is not None and (soonest is None or due < soonest):
                    soonest = due
            if not options and stay:
                options.append(me)
            if soonest is not None:
                options.append(CLOCK)
            if not options:
                raise Deadlock(f"nobody can go on: {self.stacks()}")
            index = 0
            if len(options) > 1 and self.branching:
                index = self.strategy.choose(self.decisions, options, stay and not yields)
                if index:
                    self.trace.append((self.decisions, index))
            picked = options[index]
            if picked is not CLOCK:
                return picked
            assert soonest is not None
            self.now = soonest

    def lie(self, kind: str) -> bool:
        """Whether a primitive does the rare thing now: a decision like any other, but only if it was asked for."""
        if kind not in self.lies or not self.branching or self.aborting:
            return False
        self.decisions += 1
        if self.strategy.committed:
            return False
        index = self.strategy.choose(self.decisions, [self.current, self.current], True)
        if index:
            self.trace.append((self.decisions, index))
        return bool(index)

    # Looking

    def stacks(self) -> str:
        """Where every task is."""
        frames = sys._current_frames()
        texts: list[str] = []
        for task in self.live:
            frame = frames.get(task.carrier.thread.ident or 0)
            stack = traceback.extract_stack(frame) if frame is not None else []
            inner = [
                each for each in stack if "kit_schedule" not in each.filename and "threading.py" not in each.filename
            ]
            where = " < ".join(f"{each.name}:{each.lineno}" for each in reversed(inner[-7:]))
            texts.append(f"\n  {task!r} at {where or 'its start'}")
        return f"{len(self.live)} threads" + "".join(texts)


def _never() -> bool:
    return False
