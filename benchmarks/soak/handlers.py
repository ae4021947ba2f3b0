"""Handlers that note their calls and then behave, mostly; and the options they are registered with.

A handler may raise, raise what is no Exception, block, overstay its time-out, emit further events (and wait for these),
cancel itself or its own task, drain, or register and remove another.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from eventbus import DeadlockError, Event, EventTimeoutError

from .history import PATIENCE, History, Sub

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = [
    "ALL_TOPICS",
    "ASK",
    "RESIDENTS",
    "TOPICS",
    "choose_options",
    "choose_patterns",
    "coroutine_handler",
    "plain_handler",
    "responder",
]

TOPICS = ("a/x", "a/y", "b/x", "b/y", "b/y/deep", "c")
ASK = "ask"  # of requests: nothing but responders and observers listens to it
KEYS = ("k1", "k2", "k3", "k4")
DEEPEST = 2
TIMEOUT = 0.02

# Written down, not computed by the library's own matcher.
PATTERNS: dict[str, tuple[str, ...]] = {
    "a/x": ("a/x",),
    "b/y": ("b/y",),
    "c": ("c",),
    "a/*": ("a/x", "a/y"),
    "*/x": ("a/x", "b/x"),
    "*/y": ("a/y", "b/y"),
    "b/**": ("b/x", "b/y", "b/y/deep"),
    "*/y/**": ("a/y", "b/y", "b/y/deep"),
}
EVERYTHING = "**"
ALL_TOPICS = ["a/*", "b/**", "c"]


class Fault(Exception):
    """What a handler raises."""


class Serious(BaseException):
    """What a handler raises that is no Exception."""


def choose_patterns(rng: random.Random) -> tuple[list[str], set[str]]:
    """Patterns, overlapping ones too, and the topics that they match."""
    patterns = rng.sample(sorted(PATTERNS), rng.choice((1, 1, 1, 2, 3)))
    return patterns, {topic for pattern in patterns for topic in PATTERNS[pattern]}


def choose_options(rng: random.Random, coroutine: bool = False) -> dict[str, Any]:
    """Options of a subscription: every policy, lanes, keys, time-outs."""
    kind = rng.choice(
        ("plain", "block", "block", "patient", "drop", "latest", "error", "many", "keyed", "lane", "lane", "timed")
        + (() if coroutine else ("inline", "inline"))
    )
    few = rng.randint(1, 8)
    key = by_key
    choices: dict[str, dict[str, Any]] = {
        "plain": {},
        "block": {"max_pending": few},
        "patient": {"max_pending": few, "block_timeout": 0.01, "max_waiting": rng.choice((None, 2, 20))},
        "drop": {"max_pending": few, "overflow": rng.choice(("drop_oldest", "drop_newest"))},
        "latest": {"overflow": "latest", **rng.choice(({}, {"key": key, "concurrency": 2}))},
        "error": {"max_pending": few, "overflow": "error"},
        "many": {"concurrency": rng.randint(2, 4), "max_pending": rng.choice((None, few))},
        "keyed": {"concurrency": 3, "key": key, "max_pending": rng.choice((None, 2 * few))},
        # Unbounded: whoever waits for space on a loop is admitted later, and a lane goes by admission.
        "lane": {"lane": rng.choice(("one", "two")), "max_pending": None},
        "timed": {"timeout": TIMEOUT, "max_pending": rng.choice((None, few))},
        "inline": {"inline": True},
    }
    return choices[kind]


def by_key(event: Event) -> str:
    return str(event.payload.key)


# Of subscriptions that live as long as the bus.
RESIDENTS: tuple[dict[str, Any], ...] = (
    {},
    {"lane": "one", "max_pending": None},
    {"concurrency": 3, "key": by_key, "max_pending": 40},
    {"max_pending": 5, "overflow": "drop_oldest"},
)


def plain_handler(history: History, bus: Any, sub: Sub, rng: random.Random, options: dict[str, Any]) -> Any:
    """A plain function, for the dispatcher's threads, or inline in the emitter's."""
    inline = bool(options.get("inline"))
    timed = "timeout" in options
    stays = options.get("stays", False)

    def handler(event: Event) -> int:
        emit = event.payload
        history.begin(sub, emit, event)
        try:
            chance = rng.random()
            if chance > 0.1:
                pass
            elif chance < 0.02:
                raise Fault("as asked for")
            elif chance < 0.025:
                raise Fault("as asked for") if inline else Serious("as asked for")
            elif chance < 0.035:
                time.sleep(0.002)
            elif chance < 0.04 and timed:
                time.sleep(3 * TIMEOUT)
            elif chance < 0.06 and event.depth < DEEPEST:
                history.emit(bus, rng.choice(TOPICS), rng.choice(KEYS), event)
            elif chance < 0.065 and event.depth < DEEPEST and not inline:
                wait_for_own(history, history.emit(bus, rng.choice(TOPICS), rng.choice(KEYS), event))
            elif chance < 0.068 and not stays:
                cancel_self(history, sub)
            elif chance < 0.0685 and not inline:
                try:
                    bus.drain(0.01)
                except EventTimeoutError:
                    pass
            elif chance < 0.071:
                another(history, bus, rng, sub)
            return int(emit.number)
        finally:
            history.end(sub, emit)

    return handler


def wait_for_own(history: History, emit: Any) -> None:
    """In a handler: wait for what it has emitted. Where that could never end, the bus says so at once (G8)."""
    try:
        emit.receipt.wait(PATIENCE)
    except DeadlockError:
        pass
    except EventTimeoutError as error:
        history.flag("stalled", f"in a handler: {error}")


def cancel_self(history: History, sub: Sub) -> None:
    if sub.handle is not None:
        history.leave(sub)
        sub.handle.cancel()
        # From here on nothing is claimed; this call runs on, so it is none that comes after.
        history.left(sub)


def another(history: History, bus: Any, rng: random.Random, within: Sub) -> None:
    """In a handler: register another one, and remove it."""
    sub = history.expect(("c",), {})
    history.made(sub, bus.on("c", plain_handler(history, bus, sub, rng, {}), name=sub.name))
    history.leave(sub)
    sub.handle.cancel()
    history.left(sub, cut=True)


def coroutine_handler(history: History, bus: Any, sub: Sub, rng: random.Random, options: dict[str, Any]) -> Any:
    """A coroutine function, for the loop in which it is registered."""
    timed = "timeout" in options
    sub.may_cancel_calls = True

    async def handler(event: Event) -> int:
        emit = event.payload
        history.begin(sub, emit, event)
        try:
            chance = rng.random()
            if chance > 0.3:
                pass
            elif chance < 0.02:
                raise Fault("as asked for")
            elif chance < 0.024:
                raise Serious("as asked for")
            elif chance < 0.03:
                time.sleep(0.001)
            elif chance < 0.035 and timed:
                await asyncio.sleep(3 * TIMEOUT)
            elif chance < 0.05 and event.depth < DEEPEST:
                history.emit(bus, rng.choice(TOPICS), rng.choice(KEYS), event)
            elif chance < 0.055 and event.depth < DEEPEST:
                await await_own(history, history.emit(bus, rng.choice(TOPICS), rng.choice(KEYS), event))
            elif chance < 0.058:
                cancel_self(history, sub)
            elif chance < 0.062:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await asyncio.sleep(0)
            elif chance < 0.2:
                await asyncio.sleep(0)
            return int(emit.number)
        finally:
            history.end(sub, emit)

    return handler


async def await_own(history: History, emit: Any) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            await emit.receipt
    except DeadlockError:
        pass
    except TimeoutError as error:
        history.flag("stalled", f"in a coroutine handler: {error!r}")


def responder(history: History, sub: Sub, rng: random.Random) -> Callable[[Any], Any]:
    """Answers requests."""

    def answer(event: Event) -> Any:
        history.begin(sub, event.payload, event)
        try:
            if rng.random() < 0.05:
                raise Fault("no answer")
            return event.payload.number
        finally:
            history.end(sub, event.payload)

    return answer
