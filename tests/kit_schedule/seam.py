"""What stands in for ``eventbus._engine.primitives`` while schedules are explored.

Every effect that another thread can see is preceded by a point. Threads that are not controlled (those of other tests,
the one that explores) get the real thing, or, of an object that was made under control, one that never blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eventbus._engine import hot, primitives, process
from eventbus._engine.dispatcher import Worker

from .baton import Task, here

__all__ = ["Lock", "Sleeper", "Thread", "swapped"]

_real = {name: getattr(primitives, name) for name in primitives.__all__}


class Lock:
    """A re-entrant lock. Entering one that is one's own already is no point: nobody can tell."""

    __slots__ = ("depth", "owner")

    def __init__(self) -> None:
        self.owner: Task | None = None
        self.depth = 0

    def free(self) -> bool:
        return self.owner is None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = here()
        if me is None:
            return True
        if self.owner is me:
            self.depth += 1
            return True
        if blocking:
            me.sched.point(self.free, None if timeout < 0 else me.sched.now + timeout)
        else:
            me.sched.point()
        if self.owner is not None:
            return False
        self.owner = me
        self.depth = 1
        return True

    def release(self) -> None:
        if here() is None:
            return
        self.depth -= 1
        if self.depth == 0:
            self.owner = None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self.owner is not None and self.owner is here()


class Sleeper:
    """As the real one. It may lie: a wake-up that comes as the time is up may be noticed only at the next sleep."""

    __slots__ = ("number", "woken")

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.woken = False

    def is_woken(self) -> bool:
        return self.woken

    def sleep(self, timeout: float | None = None) -> bool:
        me = here()
        if me is None:
            woken, self.woken = self.woken, False
            return woken
        sched = me.sched
        if me.service and not me.inside and sched.lie("spurious"):
            return True
        due = None if timeout is None else sched.now + max(0.0, timeout)
        sched.point(self.is_woken, due)
        if not self.woken:
            return False
        if due is not None and sched.now >= due and sched.lie("timeout"):
            return False
        self.woken = False
        return True

    def wake(self) -> None:
        me = here()
        if me is not None:
            me.sched.point()
        self.woken = True


class Thread:
    """The handle of a controlled thread."""

    __slots__ = ("ident", "name", "task")

    def __init__(self, task: Task) -> None:
        self.task = task
        self.name = task.name
        self.ident = task.ident

    def is_alive(self) -> bool:
        return not self.task.over


def make_lock() -> Any:
    return _real["make_lock"]() if here() is None else Lock()


def owns(lock: Any) -> bool:
    return bool(lock._is_owned())


def pause() -> None:
    me = here()
    if me is None:
        _real["pause"]()
    else:
        me.sched.point(yields=True)


def start_thread(target: Callable[[], None], name: str) -> Any:
    me = here()
    if me is None:
        return _real["start_thread"](target, name)
    me.sched.point()
    if me.sched.lie("start"):
        raise RuntimeError("can't start new thread")
    return Thread(me.sched.start(target, name, service=True))


def join_thread(thread: Any, timeout: float) -> bool:
    me = here()
    if not isinstance(thread, Thread):
        return bool(_real["join_thread"](thread, timeout))
    task = thread.task
    if me is not None and task is not me:
        me.sched.point(lambda: task.over, me.sched.now + max(0.0, timeout))
    return task.over


def monotonic() -> float:
    me = here()
    return _real["monotonic"]() if me is None else me.sched.now


def wall_clock() -> float:
    me = here()
    return _real["wall_clock"]() if me is None else 1e9 + me.sched.now


def get_ident() -> int:
    me = here()
    return _real["get_ident"]() if me is None else me.ident


def make_sleeper(make: Any = None) -> Any:
    me = here()
    if me is None:
        return _real["Sleeper"](make)
    me.sched.made += 1
    return Sleeper(me.sched.made)


def _steady_hash(worker: Any) -> int:
    """Sets of workers are iterated; their order must not depend on addresses, or no schedule could be replayed."""
    return getattr(worker.sleeper, "number", 0) or object.__hash__(worker)


def tools() -> object:
    """None: what finds the points is a tool, but it switches only where CPython may."""
    return None


_fakes: dict[str, Any] = {
    "Sleeper": make_sleeper,
    "get_ident": get_ident,
    "join_thread": join_thread,
    "make_lock": make_lock,
    "monotonic": monotonic,
    "owns": owns,
    "pause": pause,
    "start_thread": start_thread,
    "tools": tools,
    "wall_clock": wall_clock,
}


@contextmanager
def swapped(sections: bool = True) -> Iterator[None]:
    """Within it, controlled threads meet the scheduler at the seam; ``sections=False``: as without a GIL."""
    missing = set(_fakes) - set(_real)
    assert not missing, f"the seam has no {missing} any more"
    before = {name: getattr(primitives, name) for name in (*_fakes, "SECTIONS")}
    used = hot.use(False)  # it is in C, where nothing can be held up
    living = set(process.living())
    for name, fake in _fakes.items():
        setattr(primitives, name, fake)
    primitives.SECTIONS = sections and before["SECTIONS"]
    Worker.__hash__ = _steady_hash  # type: ignore[method-assign]
    try:
        yield
    finally:
        del Worker.__hash__
        # A schedule that failed leaves a bus behind, with threads that are none: not to be closed at exit.
        for each in process._living.copy():
            if each() not in living:
                process._living.discard(each)
        for name, real in before.items():
            setattr(primitives, name, real)
        hot.use(used)
