"""What a seed stands for: a program of threads, loops and handlers, drawn at random, run once, and judged."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from random import Random
from typing import Any

from eventbus import BusClosedError, DeadlockError
from eventbus_async import AsyncEventBus

from .live import LiveWorld, origin

__all__ = ["run"]

TOPICS = ("a/b", "a/b", "a/c", "a", "d/b")
PATTERNS = ("a/b", "a/b", "a/*", "a/**", "**", "*/b", "a", "d/b")
DEEPEST = 2  # how far nested emits go
LIMIT = 30.0  # seconds within which a program must have ended


def run(seed: int, size: int = 20) -> LiveWorld:
    """Run the program of a seed and judge it; raises AssertionError, with the seed, if a promise was broken."""
    before = sys.getswitchinterval()
    draw = Random(seed)
    sys.setswitchinterval(draw.choice((1e-6, 1e-5, 1e-4, 5e-3)))
    world = None
    try:
        world = LiveWorld(workers=draw.choice((None, 1, 2, 4)), max_workers=64)
        _run(world, draw, size)
        world.finish()
        return world
    except BaseException as error:
        raise AssertionError(f"seed {seed}, size {size}: {type(error).__name__}: {error}") from error
    finally:
        sys.setswitchinterval(before)
        if world is not None:
            world.opened.set()
            world.bus.close(0)


def _run(world: LiveWorld, draw: Random, size: int) -> None:
    for number in range(draw.randint(5, 9)):
        world.on(f"sub-{number}", *_patterns(draw), act=_act(draw, number), **_options(draw))
    jobs: list[tuple[str, Callable[[], None]]] = []
    for number in range(draw.randint(2, 3)):
        jobs.append((f"thread-{number}", _thread(world, Random(draw.random()), size, number)))
    for number in range(draw.randint(0, 2)):
        main = _main(Random(draw.random()), size // 2, number)
        alone = draw.random() < 0.5
        jobs.append((f"loop-{number}", lambda main=main, alone=alone: world.loop(main, alone)))  # type: ignore[misc]
    jobs.append(("churn", _churn(world, Random(draw.random()), size)))
    if draw.random() < 0.5:
        options = _stream_options(draw)
        place = world.stream("stream", draw.choice(PATTERNS), **options)
        assert place is not None
        jobs.append(("reader", lambda: world.read_all(place)))
    if draw.random() < 0.3:
        for number in range(draw.randint(1, 2)):
            jobs.append((f"closer-{number}", _closer(world, draw.uniform(0.0, 0.05))))
    _together(world, jobs)


def _together(world: LiveWorld, jobs: list[tuple[str, Callable[[], None]]]) -> None:
    """All of them at once, and all of them to their end; the stream ends when nobody emits any more."""
    barrier = threading.Barrier(len(jobs))
    errors: list[BaseException] = []

    def job(do: Callable[[], None]) -> None:
        try:
            barrier.wait(LIMIT)
            do()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=job, args=(do,), name=name, daemon=True) for name, do in jobs]
    for thread in threads:
        thread.start()
    world.opened.set()
    end = time.monotonic() + LIMIT
    for thread in sorted(threads, key=lambda thread: thread.name == "reader"):
        if thread.name == "reader":
            world.cancel("stream")
        thread.join(max(0.0, end - time.monotonic()))
    stuck = [thread for thread in threads if thread.is_alive()]
    if errors:
        raise errors[0]
    frames = sys._current_frames()
    stacks = ["".join(traceback.format_stack(frames.get(thread.ident or 0))) for thread in stuck]
    assert not stuck, f"{', '.join(thread.name for thread in stuck)} did not end within {LIMIT:g} s:\n{stacks[:2]}"


# What is drawn


def _patterns(draw: Random) -> list[str]:
    return sorted(set(draw.choices(PATTERNS, k=draw.choice((1, 1, 2, 3)))))


def _options(draw: Random, is_async: bool = False) -> dict[str, Any]:
    if not is_async and draw.random() < 0.12:
        return {"inline": True}
    options: dict[str, Any] = {}
    if draw.random() < 0.3:
        options["concurrency"] = draw.choice((2, 3))
    if draw.random() < 0.3:
        options["key"] = True
    if draw.random() < 0.3:
        options["lane"] = draw.choice(("one", "two"))
    if draw.random() < 0.5:
        options["max_pending"] = draw.choice((1, 2, 5))
        policy = draw.choice(("block", "drop_oldest", "drop_newest", "latest", "error"))
        options["overflow"] = policy
        if policy == "block" and draw.random() < 0.3:
            options.update(draw.choice(({"max_waiting": 1}, {"block_timeout": 0.002})))
    if draw.random() < 0.1:
        options["timeout"] = draw.choice((0.002, 0.02))
    return options


def _stream_options(draw: Random) -> dict[str, Any]:
    if draw.random() < 0.5:
        return {}
    return {"max_pending": draw.choice((1, 3)), "overflow": draw.choice(("block", "drop_oldest", "drop_newest"))}


def _act(draw: Random, number: int, is_async: bool = False) -> Callable[[LiveWorld, Any, int], None] | None:
    """What a handler does besides noting that it was called."""
    kind = draw.choice(("nothing", "nothing", "raise", "block", "nest", "nest", "nest and wait", "cancel", "drain"))
    every, topic, key = draw.randint(2, 6), draw.choice(TOPICS), draw.choice("ab")

    def quietly(call: Callable[[], object]) -> None:
        try:
            call()
        except (DeadlockError, BusClosedError):
            pass  # a handler's wait that could never end is refused (G8)

    def act(world: LiveWorld, sub: Any, event: int) -> None:
        if "timeout" in sub.options and kind != "raise":
            if not is_async and event % 4 == 0:
                world.opened.wait(LIMIT)
                time.sleep(0.004)  # what is emitted by one who is late would have to be followed for ever
            return
        if event % every:
            return
        if kind == "raise":
            # Of an inline handler, SystemExit would be the emitter's (G5).
            raise (ValueError, KeyError if sub.options.get("inline") else SystemExit)[event % 2](event)
        if kind == "block" and not is_async:
            time.sleep(0.003)
        elif kind.startswith("nest") and _depth(world, event) < DEEPEST:
            record = world.emit(topic, key)
            if kind == "nest and wait" and not is_async:
                quietly(lambda: world.wait(record))
        elif kind == "cancel" and event > 10 and sub.handle is not None:
            world.cancel(sub.name)
        elif kind == "drain" and not is_async and event % 5 == 0:
            quietly(world.drain)

    return None if kind == "nothing" else act


def _depth(world: LiveWorld, number: int) -> int:
    depth = 0
    parent = world.emits[number].parent
    while parent is not None:
        depth, parent = depth + 1, world.emits[parent].parent
    return depth


# What runs


def _thread(world: LiveWorld, draw: Random, size: int, number: int) -> Callable[[], None]:
    def steps() -> None:
        facade = AsyncEventBus(world.bus) if number == 1 else None
        world.kept.append(facade)
        for _ in range(size):
            step = draw.random()
            if step < 0.7:
                world.emit(draw.choice(TOPICS), draw.choice("ab"), via=facade)
            elif step < 0.85:
                world.wait(world.emit(draw.choice(TOPICS), draw.choice("ab")))
            elif step < 0.92:
                world.emit_follow()
            else:
                world.drain()

    return steps


def _churn(world: LiveWorld, draw: Random, size: int) -> Callable[[], None]:
    def steps() -> None:
        for number in range(size // 2):
            name = f"churned-{number}"
            world.on(name, *_patterns(draw), act=_act(draw, number), **_options(draw))
            world.emit(draw.choice(TOPICS), "a")
            if draw.random() < 0.8:
                world.cancel(name, wait=draw.random() < 0.4, drain=draw.random() < 0.3)

    return steps


def _closer(world: LiveWorld, after: float) -> Callable[[], None]:
    def close() -> None:
        time.sleep(after)
        world.close()

    return close


def _main(draw: Random, size: int, number: int) -> Callable[[LiveWorld, AsyncEventBus], Any]:
    """A loop's main coroutine: handlers of its own, emits that are awaited or dropped, a child task."""

    async def main(world: LiveWorld, facade: AsyncEventBus) -> None:
        for each in range(draw.randint(1, 3)):
            name = f"loop-{number}-{each}"
            act = _act(draw, each, is_async=True)
            world.on(name, *_patterns(draw), act=act, facade=facade, **_options(draw, is_async=True))

        async def emitting(steps: int) -> None:
            for _ in range(steps):
                record = world.emit(draw.choice(TOPICS), draw.choice("ab"), via=facade)
                if record is not None and draw.random() < 0.3:
                    receipt: Any = record.receipt
                    await receipt
                    assert receipt.done, "awaited and not done (G6)"
                    record.seen = receipt.outcomes
                elif draw.random() < 0.2:
                    before = world.accepted()
                    await facade.drain()
                    world._family_is_settled(before, "await drain()")
                else:
                    await asyncio.sleep(0)

        assert origin.get() is None
        await asyncio.gather(emitting(size), emitting(size // 2))

    return main
