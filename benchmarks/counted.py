"""The process whose instructions are counted: one way of one event, ``n`` times. Started by ``benchmarks.counts``.

Nothing here is timed. The garbage collector is off, the clocks stand still and the switch interval is long, so that
threads change only where one sleeps: what is counted is the work of a burst, not the convoys and collections that
happen to fall into it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus import Event, EventBus, Topic
from eventbus.lowlevel import primitives

from .shapes import LoopThread, Meter, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FEATURES", "MODES", "WAYS"]

TOPIC = "orders/created"
MODES = ("plain", "elsewhere", "used")

# What an option changes: on a subscription, or on an emit.
FEATURES: dict[str, dict[str, Any]] = {
    "lanes": {"lane": "db"},
    "keys": {"key": lambda event: 1, "concurrency": 2},
    "following": {},
    "time-outs": {"timeout": 60.0},
    "typed topics": {},
}


def model() -> Any:
    """A pydantic model and an instance; imported only where typed topics are."""
    from pydantic import BaseModel

    class Created(BaseModel):
        number: int

    return Created, Created(number=1)


def options_of(feature: str, mode: str) -> dict[str, Any]:
    return FEATURES[feature] if mode == "used" else {}


def emitter(bus: Any, feature: str, mode: str) -> Callable[[Any], object]:
    """How the counted events are emitted."""
    if mode == "used" and feature == "following":
        return partial(bus.emit, TOPIC, follow=True)
    if mode == "used" and feature == "typed topics":
        kind, instance = model()
        topic = Topic(TOPIC, kind)
        emit = bus.emit
        return lambda payload: emit(topic, instance)
    return partial(bus.emit, TOPIC)


def use_elsewhere(bus: Any, feature: str) -> Any:
    """Use the feature on another topic of the same bus, before anything is counted."""

    def other(payload: Event) -> None:
        """A handler that does nothing."""

    bus.on("other", other, **FEATURES[feature])
    if feature == "typed topics":
        kind, instance = model()
        return bus.emit(Topic("other", kind), instance)
    return bus.emit("other", follow=feature == "following")


def inline(n: int, feature: str, mode: str) -> None:
    meter = Meter()
    with EventBus() as bus:
        if mode == "elsewhere":
            use_elsewhere(bus, feature).wait(60)
        bus.on(TOPIC, meter.handler, inline=True)
        burst(meter, emitter(bus, feature, mode), n)


def thread(n: int, feature: str, mode: str, handlers: int = 1) -> None:
    meters = [Meter() for _ in range(handlers)]
    with EventBus() as bus:
        if mode == "elsewhere":
            use_elsewhere(bus, feature).wait(60)
        for meter in meters:
            bus.on(TOPIC, meter.handler, **options_of(feature, mode))
        emit = emitter(bus, feature, mode)
        for count in (8, n):
            for meter in meters:
                meter.arm(count)
            publish(emit, count)
            for meter in meters:
                meter.wait()


def burst(meter: Meter, emit: Callable[[Any], object], n: int) -> None:
    for count in (8, n):
        meter.arm(count)
        publish(emit, count)
        meter.wait()


def on_loop(n: int, feature: str, mode: str) -> None:
    from eventbus_async import AsyncEventBus

    async def work() -> None:
        meter = Meter()
        async with AsyncEventBus() as bus:
            if mode == "elsewhere":
                await use_elsewhere(bus, feature)
            bus.on(TOPIC, meter.coroutine, **options_of(feature, mode))
            emit: Any = emitter(bus, feature, mode)
            for count in (8, n):
                meter.arm(count)
                for number in range(count):
                    await emit(number)
                await meter.reached()

    asyncio.run(work())


def thread_to_loop(n: int, feature: str, mode: str) -> None:
    from eventbus_async import AsyncEventBus

    meter = Meter()

    @contextmanager
    def home() -> Iterator[Any]:
        with LoopThread() as loop, loop.entered(AsyncEventBus()) as bus:

            async def begin() -> None:
                if mode == "elsewhere":
                    await use_elsewhere(bus, feature)
                bus.on(TOPIC, meter.coroutine, **options_of(feature, mode))

            loop.call(begin())
            yield bus

    with home() as bus:
        burst(meter, emitter(bus, feature, mode), n)


WAYS: dict[str, Callable[[int, str, str], None]] = {
    "inline": inline,
    "thread to thread": thread,
    "fan-out 8": partial(thread, handlers=8),
    "on one loop": on_loop,
    "thread to loop": thread_to_loop,
}


def steps(way: str, n: int) -> dict[str, float]:
    """Locks taken, threads woken: counted by stand-ins in the library's seam; only for the unobserved process."""
    counted = {"locks": 0, "wake-ups": 0}
    make, wake = primitives.make_lock, primitives.Sleeper.wake

    class CountingLock:
        """A lock that counts how often it is taken."""

        def __init__(self) -> None:
            self._lock = make()

        def __enter__(self) -> bool:
            counted["locks"] += 1
            taken: bool = self._lock.__enter__()
            return taken

        def __exit__(self, *error: object) -> None:
            self._lock.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._lock, name)

    def counting_wake(sleeper: Any) -> None:
        counted["wake-ups"] += 1
        wake(sleeper)

    primitives.make_lock = CountingLock
    primitives.Sleeper.wake = counting_wake  # type: ignore[method-assign]
    try:
        found: list[dict[str, int]] = []
        for count in (n, 2 * n):
            counted.update(dict.fromkeys(counted, 0))
            WAYS[way](count, "lanes", "plain")
            found.append(dict(counted))
        return {name: (found[1][name] - found[0][name]) / n for name in counted}
    finally:
        primitives.make_lock = make
        primitives.Sleeper.wake = wake  # type: ignore[method-assign]


def main(way: str, feature: str, mode: str, n: str) -> None:
    gc.disable()
    sys.setswitchinterval(60)
    # What is done once in a millisecond is not counted: under an instrument, which makes all slow, it would be always.
    primitives.monotonic = primitives.wall_clock = itertools.repeat(1000.0).__next__
    WAYS[way](int(n), feature, mode)


if __name__ == "__main__":
    main(*sys.argv[1:])
