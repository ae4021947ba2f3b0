"""The shapes of work that several cases share: each takes an adapter's offer and gives a sampler.

Every sampler warms up, times ``n`` emits from just before the first one until the last handler's call, and checks that
nothing was lost. The clock is read by the publisher and within the last call, so waking the measurer is not counted.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .figures import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from .peers import Offer

__all__ = [
    "LoopThread",
    "Meter",
    "idle_thread",
    "idle_to_loop",
    "inline",
    "loop_to_thread",
    "on_one_loop",
    "thread_to_loop",
    "threads",
]

LIMIT = 120.0  # seconds for one sample; past it something was lost
WARM_UP = 64

clock = time.perf_counter_ns


class Meter:
    """Makes a handler that counts, and reads the clock in the call that is the last of a batch."""

    def __init__(self) -> None:
        self.ended = 0
        self._over = threading.Lock()
        self._over.acquire()
        # A count's next() is atomic, so handlers may be called by several threads at once.
        tick = itertools.count(1).__next__
        last = 0

        def finish() -> None:
            self.ended = clock()
            self._over.release()

        def handler(payload: Any) -> None:
            if tick() == last:
                finish()

        async def coroutine(payload: Any) -> None:
            if tick() == last:
                finish()

        def arm(n: int) -> None:
            nonlocal tick, last
            tick, last = itertools.count(1).__next__, n

        self.handler, self.coroutine, self.arm = handler, coroutine, arm

    def wait(self) -> int:
        """Wait for the last call; gives the clock as read there."""
        if not self._over.acquire(timeout=LIMIT):
            raise TimeoutError(f"the last of the handler's calls did not come within {LIMIT:g} s")
        return self.ended

    async def reached(self) -> int:
        """The same on a loop."""
        end = time.monotonic() + LIMIT
        while not self._over.acquire(blocking=False):
            if time.monotonic() > end:
                raise TimeoutError(f"the last of the handler's calls did not come within {LIMIT:g} s")
            await asyncio.sleep(0.0005)
        return self.ended


def publish(emit: Callable[[Any], object], n: int) -> int:
    """Emit ``n`` times; gives the clock before the first."""
    started = clock()
    for number in range(n):
        emit(number)
    return started


def inline(offer: Offer, handlers: int = 1) -> Callable[[int], dict[str, float]]:
    """Handlers run within the emit."""

    def sample(n: int) -> dict[str, float]:
        meters = [Meter() for _ in range(handlers)]
        functions = [meter.handler for meter in meters]
        with offer.open(functions) as emit:
            for count in (WARM_UP, n):
                for meter in meters:
                    meter.arm(count)
                started = publish(emit, count)
                took = clock() - started
                for meter in meters:
                    meter.wait()
        return {"cost": took / n}

    return sample


def threads(
    offer: Offer, publishers: int = 1, handlers: int = 1, workers: int | None = None
) -> Callable[[int], dict[str, float]]:
    """Handlers run in other threads; the cost is that of one delivery."""

    def sample(n: int) -> dict[str, float]:
        each = max(1, n // publishers)
        meters = [Meter() for _ in range(handlers)]
        with offer.open([meter.handler for meter in meters], workers) as emit:
            for count in (WARM_UP, each):
                for meter in meters:
                    meter.arm(count * publishers)
                started = publish(emit, count) if publishers == 1 else _publish_together(emit, count, publishers)
                ended = max(meter.wait() for meter in meters)
        return {"cost": (ended - started) / (each * publishers * handlers)}

    return sample


def _publish_together(emit: Callable[[Any], object], n: int, publishers: int) -> int:
    starts: list[int] = []
    barrier = threading.Barrier(publishers)

    def run() -> None:
        barrier.wait(LIMIT)
        starts.append(publish(emit, n))

    team = [threading.Thread(target=run, daemon=True) for _ in range(publishers)]
    for thread in team:
        thread.start()
    for thread in team:
        thread.join(LIMIT)
    if len(starts) != publishers:
        raise TimeoutError("a publisher did not end")
    return min(starts)


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LIMIT)

    @contextmanager
    def entered(self, manager: Any) -> Iterator[Any]:
        """An async context manager, entered and left on the loop by one task, as its writer expects."""
        entered: asyncio.Future[Any] = asyncio.run_coroutine_threadsafe(_future(), self.loop).result(LIMIT)
        leave = self.call(_event())

        async def life() -> None:
            try:
                async with manager as value:
                    entered.set_result(value)
                    await leave.wait()
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        task = asyncio.run_coroutine_threadsafe(life(), self.loop)
        value = self.call(_wait(entered))
        try:
            yield value
        finally:
            self.loop.call_soon_threadsafe(leave.set)
            task.result(LIMIT)

    def __enter__(self) -> LoopThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT)


async def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def _event() -> asyncio.Event:
    return asyncio.Event()


async def _wait(future: asyncio.Future[Any]) -> Any:
    return await future


def thread_to_loop(offer: Offer) -> Callable[[int], dict[str, float]]:
    """A thread emits; a coroutine handler runs on a loop in another thread."""

    def sample(n: int) -> dict[str, float]:
        meter = Meter()
        with LoopThread() as home, home.entered(offer.open(meter.coroutine, home.loop)) as emit:
            for count in (WARM_UP, n):
                meter.arm(count)
                started = publish(emit, count)
                ended = meter.wait()
        return {"cost": (ended - started) / n}

    return sample


def loop_to_thread(offer: Offer) -> Callable[[int], dict[str, float]]:
    """A loop emits, breathing every 64 emits as a program would; the handler runs in a thread."""

    async def work(n: int) -> float:
        meter = Meter()
        async with offer.open(meter.handler) as emit:
            for count in (WARM_UP, n):
                meter.arm(count)
                started = clock()
                for number in range(count):
                    emit(number)
                    if not number & 63:
                        await asyncio.sleep(0)
                ended = await meter.reached()
        return (ended - started) / n

    return lambda n: {"cost": asyncio.run(work(n))}


def on_one_loop(offer: Offer) -> Callable[[int], dict[str, float]]:
    """A task emits and awaits the end of the coroutine handler, one after the other."""

    async def work(n: int) -> float:
        meter = Meter()
        async with offer.open(meter.coroutine) as emit:
            for count in (WARM_UP, n):
                meter.arm(count)
                started = clock()
                for number in range(count):
                    await emit(number)
                took = clock() - started
                meter.wait()
        return took / n

    return lambda n: {"cost": asyncio.run(work(n))}


PAUSE = 0.0005  # seconds after a handler's call, in which everybody falls asleep


@contextmanager
def _thread_side(offer: Offer, handler: Callable[[Any], None]) -> Iterator[Callable[[Any], object]]:
    with offer.open([handler]) as emit:
        yield emit


@contextmanager
def _loop_side(offer: Offer, handler: Callable[[Any], None]) -> Iterator[Callable[[Any], object]]:
    async def coroutine(payload: Any) -> None:
        handler(payload)

    with LoopThread() as home, home.entered(offer.open(coroutine, home.loop)) as emit:
        yield emit


def _idle(side: Any, offer: Offer) -> Callable[[int], dict[str, float]]:
    def sample(n: int) -> dict[str, float]:
        delays: list[int] = []
        came = threading.Lock()
        came.acquire()

        def handler(sent: int) -> None:
            delays.append(clock() - sent)
            came.release()

        with side(offer, handler) as emit:
            for _ in range(n + 8):
                emit(clock())
                if not came.acquire(timeout=LIMIT):
                    raise TimeoutError("an event did not arrive")
                time.sleep(PAUSE)
        micro = [each / 1000 for each in delays[8:]]
        return {"p50": percentile(micro, 0.5), "p99": percentile(micro, 0.99)}

    return sample


idle_thread = partial(_idle, _thread_side)
idle_to_loop = partial(_idle, _loop_side)
