"""Helpers of the tests. Every wait in here is bounded and fails loudly; none of them sleeps to synchronise."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

__all__ = [
    "BOUND",
    "LONG",
    "Gate",
    "Log",
    "Team",
    "an_hour_goes_by",
    "dies",
    "past",
    "settled",
    "sleeps",
    "soon",
    "threads_of",
]

BOUND = 10.0  # seconds within which whatever is awaited must have happened
LONG = 3600.0  # the time-out of a handler whose time is up when the test says so, see past()


class Gate:
    """A handler that stops inside until the test opens it; tells when and how often it was entered.

    ``received`` holds the payloads in order of entering. Once opened it lets everything through, until ``shut()``.
    Leaving ``with gate:`` opens it, so that a test that fails leaves no thread behind.
    """

    def __init__(self, returns: Any = None) -> None:
        self.returns = returns
        self.received: list[Any] = []
        self._state = threading.Condition()
        self._open = False
        self._passed = 0  # how many may go by ones and twos
        self.inside = 0
        self.most = 0
        self.left = 0

    def __call__(self, payload: Any) -> Any:
        with self._state:
            self.received.append(payload)
            self.inside += 1
            self.most = max(self.most, self.inside)
            self._state.notify_all()
            try:
                if not self._state.wait_for(lambda: self._open or self._passed, BOUND):
                    raise AssertionError("nobody opened the gate")
                if not self._open:
                    self._passed -= 1
            finally:
                self.inside -= 1
                self.left += 1
                self._state.notify_all()
        return self.returns

    def open(self) -> None:
        """Let everything through, also what comes later."""
        with self._state:
            self._open = True
            self._state.notify_all()

    def shut(self) -> None:
        """Stop those that come from now on."""
        with self._state:
            self._open = False

    def let(self, count: int = 1) -> None:
        """Let so many through."""
        with self._state:
            self._passed += count
            self._state.notify_all()

    def entered(self, times: int = 1) -> None:
        """Wait until it has been entered so often, all in all."""
        with self._state:
            if not self._state.wait_for(lambda: len(self.received) >= times, BOUND):
                raise AssertionError(f"entered {len(self.received)} times, not {times}")

    def passed(self, times: int = 1) -> None:
        """Wait until it has been left so often, all in all."""
        with self._state:
            if not self._state.wait_for(lambda: self.left >= times, BOUND):
                raise AssertionError(f"left {self.left} times, not {times}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open()


class Log:
    """A handler that keeps payloads in order, and lets the test wait for so many of them."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._state = threading.Condition()

    def __call__(self, payload: Any) -> None:
        with self._state:
            self.items.append(payload)
            self._state.notify_all()

    def reached(self, count: int) -> list[Any]:
        """Wait for so many; gives what there is then."""
        with self._state:
            if not self._state.wait_for(lambda: len(self.items) >= count, BOUND):
                raise AssertionError(f"{len(self.items)} came, not {count}: {self.items[:20]!r}")
            return list(self.items)


class Team:
    """Threads that start from one barrier; leaving joins them within a limit and re-raises what they raised.

    Example::

        with Team() as team:
            team.add(work, 1)
            team.add(work, 2)      # both begin when the block ends (or at team.go())
        team.results               # in order of add()
    """

    def __init__(self, *functions: Callable[[], Any], limit: float = BOUND) -> None:
        self.limit = limit
        self.results: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._go = threading.Event()
        self._ready = threading.Semaphore(0)
        self._over = False
        for function in functions:
            self.add(function)

    def add(self, function: Callable[..., Any], *args: Any) -> threading.Thread:
        """One more thread. It begins at ``go()``, or at once if that has been."""
        index = len(self.results)
        self.results.append(None)

        def run() -> None:
            self._ready.release()
            if not self._go.wait(self.limit) or self._over:
                return
            try:
                self.results[index] = function(*args)
            except BaseException as error:
                self._errors.append(error)

        thread = threading.Thread(target=run, name=f"team-{index}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def go(self) -> None:
        """Release all of them at once."""
        if not self._go.is_set():
            for _ in self._threads:
                assert self._ready.acquire(timeout=self.limit), "a thread did not start"
            self._go.set()

    def join(self) -> None:
        """Wait for all of them; raises the first error."""
        self.go()
        end = time.monotonic() + self.limit
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        late = [thread.name for thread in self._threads if thread.is_alive()]
        if self._errors:
            raise self._errors[0]
        assert not late, f"still running after {self.limit} s: {', '.join(late)}"

    def run(self) -> list[Any]:
        """Release all, wait for all; their results in order of ``add()``."""
        self.join()
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.join()
        else:
            self._over = True
            self._go.set()


def soon(condition: Callable[[], object], what: str = "the condition", within: float = BOUND) -> None:
    """Wait until something is true that nothing announces; for what the bus does after it has settled."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {within} s")
        threading.Event().wait(0.001)


def sleeps(thread: threading.Thread) -> None:
    """Wait until a thread waits inside the bus; for waits that statistics do not show, such as a drain's."""

    def asleep() -> bool:
        frame = sys._current_frames().get(thread.ident or 0)
        return (
            frame is not None
            and frame.f_code.co_name == "sleep"
            and frame.f_globals.get("__name__") == "eventbus._engine.primitives"
        )

    soon(asleep, f"{thread.name} waiting inside the bus")


def dies(reference: weakref.ref[Any], within: float = 2.0) -> bool:
    """Whether a weak reference is dead, or dies as soon as a worker that has just settled reaches its sleep."""
    end = time.monotonic() + within
    while reference() is not None and time.monotonic() < end:
        threading.Event().wait(0.001)
    return reference() is None


def threads_of(name: str) -> list[threading.Thread]:
    """The living threads of the bus of that name: its workers and its timer."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


def settled(bus: Any) -> None:
    """Assert the contract's sum on a bus at a quiet moment: every delivery counted at the emit has one outcome."""
    totals = bus.stats().totals
    rows: Iterable[Any] = (totals, *bus.stats().subscriptions.values())
    for row in rows:
        ended = row.delivered + row.failed + row.timed_out + row.cancelled + row.dropped + row.rejected
        assert row.deliveries == ended + row.pending + row.running, row
    assert totals.pending == totals.running == 0, totals


class Alarm(BaseException):
    """What a signal handler raises."""


def no_thread(*_: Any) -> Any:
    """In the place of ``primitives.start_thread``, where the process has as many as it may."""
    raise RuntimeError("can't start new thread")


def at_rest(bus: Any) -> tuple[int, ...]:
    """Of a pool with nothing to do: what it counts and should not. All zero."""
    pool = bus._engine.dispatcher

    def numbers() -> tuple[int, ...]:
        alive = tuple(pool.alive)
        return (
            pool.computing,
            pool.starting,
            pool.threads - len(alive),
            len(alive) - len(pool.idle),
            len(pool.ready),
            sum(worker.waits for worker in alive),
            sum(worker.blocked for worker in alive),
            sum(worker.delivery is not None for worker in alive),
        )

    found: tuple[int, ...] = bus._engine.look(numbers)
    return found


def an_hour_goes_by(bus: Any) -> None:
    """What has a deadline now is past it. The clock alone is not real."""
    engine = bus._engine
    timer = engine.timer

    def goes_by() -> None:
        for entry in timer._heap:
            entry[0] = time.monotonic()
        timer._until = 0.0
        engine.monitor.after.append(timer._sleeper.wake)

    engine.look(goes_by)


def past(bus: Any, gate: Gate, receipt: Any, entered: int = 1) -> Any:
    """Its handler has begun, and now its time is up; with a short time-out, on a busy machine, it may be up before."""
    gate.entered(entered)
    an_hour_goes_by(bus)
    return receipt.wait(BOUND)
