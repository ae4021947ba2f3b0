"""Operations, and the programs made of them: each operation in a thread of its own, on one bus.

An operation is a pair of functions: what has to stand before, and what the thread does. Programs are named after their
operations, ``emit+cancel``; ``warm/`` says that a worker sleeps already when they begin, ``single/`` that only one
computes at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import combinations, combinations_with_replacement
from typing import Any, NamedTuple

from eventbus_async import AsyncEventBus

from .baton import Scheduler
from .explore import Program
from .loops import Looped
from .world import World

__all__ = ["CORE", "EXTRA", "HARDEST", "LYING", "OPERATIONS", "looped", "pairs", "program", "triples"]

IDLE = 1.0  # as long as an idle worker stays: an emit that comes just then meets it on its way out


class Operation(NamedTuple):
    """What has to stand before, and what the thread does."""

    prepare: Callable[[World], object]
    act: Callable[[World], object]


def _nothing(world: World) -> None:
    pass


def _emits(world: World, topic: str, count: int = 2, key: str = "") -> None:
    for index in range(count):
        world.emit(topic, key[index] if key else None)


def _join(world: World) -> None:
    """One handler is stuck until another has run: a second worker has to join."""
    blocked = world.emit("gate")
    world.wait(world.emit("beside"))
    world.open()
    world.wait(blocked)


def _stuck_lane(world: World) -> None:
    """While one handler of the lane is stuck, workers have time for the other, and must not begin it."""
    world.emit("m1")
    world.emit("m2")
    world.sched.sleep(0.1)
    world.open()


def _stuck(world: World) -> None:
    """While a handler is stuck, workers have time for its next delivery, and must not begin it."""
    world.emit("p")
    world.emit("p")
    world.emit("t")
    world.sched.sleep(0.1)
    world.open()


def _leans(world: World) -> None:
    """Prepare a handler that waits inside the bus, and then in user code for what another one does after that.

    The other one's first delivery ends the first wait, its third one opens the gate. It takes its time, so that its
    mailbox lines up again in between.
    """

    def lean(_: int) -> None:
        first = world.emit("prop")
        _emits(world, "prop", 2)
        world.wait(first)
        world.at_gate()

    def prop(number: int) -> None:
        world.sched.sleep(0.01)
        if len(props) == 2:
            world.open()
        props.append(number)

    props: list[int] = []
    world.on("X", "prop", act=prop)
    world.on("U", "lean", act=lean)


def _fail(number: int) -> None:
    raise ValueError(number)


def _full(policy: str) -> Operation:
    def prepare(world: World) -> None:
        if "full" not in world.subs:
            world.on("full", "full", max_pending=1, overflow=policy, act=lambda _: None)

    return Operation(prepare, lambda world: _emits(world, "full", 3))


def _two(world: World, **options: object) -> None:
    world.on("L1", "l1", **options)
    world.on("L2", "l2", "l1", **options)


def _once(name: str, register: Callable[[World], object]) -> Callable[[World], None]:
    """Two threads may do the same operation; what it needs is there once."""

    def prepare(world: World) -> None:
        if name not in world.subs:
            register(world)

    return prepare


def _both_inline(world: World) -> None:
    """Two handlers of one topic, the second of which has not begun while the first one runs."""
    _once("I1", lambda world: (world.on("I1", "i", inline=True), world.on("I2", "i", inline=True)))(world)


def _on(world: World) -> None:
    name = f"new{world.now()}"
    if world.on(name, "t") is not None:
        world.emit("t")


OPERATIONS: dict[str, Operation] = {
    "emit": Operation(_nothing, lambda world: world.emit("t")),
    "on": Operation(_nothing, _on),
    "cancel": Operation(_nothing, lambda world: world.cancel("A")),
    "cancelwait": Operation(_nothing, lambda world: world.cancel("A", wait=True)),
    "wait": Operation(_nothing, lambda world: world.wait(world.emit("t"))),
    "drain": Operation(_nothing, lambda world: (world.emit("t"), world.drain())),
    "close": Operation(_nothing, lambda world: world.close()),
    "late": Operation(_nothing, lambda world: (world.sched.sleep(IDLE), world.emit("t"))),
    "join": Operation(
        _once("G", lambda world: (world.on("G", "gate", act=world.at_gate), world.on("B", "beside"))), _join
    ),
    "timeout": Operation(
        _once("T", lambda world: world.on("T", "slow", timeout=0.01, act=lambda _: world.sched.sleep(0.01))),
        lambda world: _emits(world, "slow", 1),
    ),
    "emits": Operation(_nothing, lambda world: _emits(world, "t", 2)),
    "canceldrain": Operation(_nothing, lambda world: world.cancel("A", drain=True)),
    "second": Operation(_once("Q", lambda world: world.on("Q", "t")), lambda world: world.cancel("Q", wait=True)),
    "tired": Operation(
        _once("Z", lambda world: world.on("Z", "z", act=lambda _: world.sched.sleep(0.01))),
        lambda world: _emits(world, "z", 3),
    ),
    "block": _full("block"),
    "oldest": _full("drop_oldest"),
    "newest": _full("drop_newest"),
    "latest": _full("latest"),
    "error": _full("error"),
    "impatient": Operation(
        _once("full", lambda world: world.on("full", "full", max_pending=1, block_timeout=0.01)),
        lambda world: _emits(world, "full", 3),
    ),
    "cancelfull": Operation(_nothing, lambda world: world.cancel("full", wait=True)),
    "lane": Operation(
        _once("L1", lambda world: _two(world, lane="lane")), lambda world: (world.emit("l1"), world.emit("l2"))
    ),
    "lanestuck": Operation(
        _once(
            "M1",
            lambda world: (world.on("M1", "m1", lane="stuck", act=world.at_gate), world.on("M2", "m2", lane="stuck")),
        ),
        _stuck_lane,
    ),
    "stuck": Operation(_once("P", lambda world: world.on("P", "p", act=world.at_gate)), _stuck),
    "key": Operation(
        _once("K", lambda world: world.on("K", "k", key=lambda event: event.payload[1], concurrency=2)),
        lambda world: _emits(world, "k", 3, "aba"),
    ),
    "wide": Operation(_once("W", lambda world: world.on("W", "w", concurrency=2)), lambda world: _emits(world, "w", 3)),
    "inline": Operation(
        _once("I", lambda world: world.on("I", "t", inline=True)), lambda world: world.wait(world.emit("t"))
    ),
    "inlines": Operation(_both_inline, lambda world: _emits(world, "i", 2)),
    "undrain": Operation(_both_inline, lambda world: world.cancel("I2", drain=True)),
    "raise": Operation(
        _once("R", lambda world: world.on("R", "r", act=_fail)), lambda world: world.wait(world.emit("r"))
    ),
    "nested": Operation(
        _once("N", lambda world: world.on("N", "n", act=lambda _: world.emit("t"))),
        lambda world: world.wait(world.emit("n", follow=True)),
    ),
    "waits": Operation(
        _once("V", lambda world: world.on("V", "v", act=lambda _: world.wait(world.emit("t")))),
        lambda world: world.wait(world.emit("v")),
    ),
    "drains": Operation(
        _once("D", lambda world: world.on("D", "d", act=lambda _: world.drain())),
        lambda world: world.wait(world.emit("d")),
    ),
    "closes": Operation(
        _once("C", lambda world: world.on("C", "c", act=lambda _: world.close())), lambda world: world.emit("c")
    ),
    "leans": Operation(_once("U", _leans), lambda world: world.wait(world.emit("lean"))),
    "itself": Operation(
        _once("S", lambda world: world.on("S", "s", act=lambda _: world.cancel("S", wait=True))),
        lambda world: _emits(world, "s", 2),
    ),
    "stream": Operation(_once("stream", lambda world: world.stream("stream", "t")), lambda world: world.emit("t")),
    "read": Operation(
        _once("stream", lambda world: world.stream("stream", "t")),
        lambda world: (world.emit("t"), world.read(1), world.cancel("stream")),
    ),
}


def _looped(main: Callable[[Looped], Awaitable[object]]) -> Operation:
    """An operation whose thread runs a loop."""
    return Operation(_nothing, lambda world: Looped(world).run(main))


def _new(loop: Looped, **options: Any) -> str:
    name = f"loop{loop.world.now()}"
    loop.on(name, "t", **options)
    return name


async def _aemit(loop: Looped) -> None:
    name = _new(loop)
    await loop.wait(loop.emit())
    await loop.cancel(name)


async def _aserve(loop: Looped) -> None:
    _new(loop)
    await loop.others()


async def _aleave(loop: Looped) -> None:
    """The loop closes with deliveries in its handler, and more behind it."""
    _new(loop, pause=0.01)
    loop.emit()
    loop.emit()
    await asyncio.sleep(0)


async def _atask(loop: Looped) -> None:
    """Whoever awaits is cancelled; what he awaits is not."""
    _new(loop)
    task = asyncio.ensure_future(loop.wait(loop.emit()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await loop.drain()


async def _arob(loop: Looped) -> None:
    """The bus's own task is cancelled while a handler is suspended in it, and more is behind that."""
    name = _new(loop, pause=0.01)
    loop.emit()
    loop.emit()
    await asyncio.sleep(0)
    loop.rob(name)
    await loop.drain()


async def _adrain(loop: Looped) -> None:
    _new(loop)
    loop.emit()
    await loop.drain()


async def _aclose(loop: Looped) -> None:
    _new(loop)
    loop.emit()
    await loop.close()


LOOPED: dict[str, Operation] = {
    "aemit": _looped(_aemit),
    "aserve": _looped(_aserve),
    "aleave": _looped(_aleave),
    "atask": _looped(_atask),
    "arob": _looped(_arob),
    "adrain": _looped(_adrain),
    "aclose": _looped(_aclose),
}
OPERATIONS.update(LOOPED)

# Settling is the worker's part of every emit; idle-to-busy and a worker's end are "late", its joining is "join".
CORE = ("emit", "on", "cancel", "cancelwait", "wait", "drain", "close", "late", "join", "timeout")
EXTRA = tuple(name for name in OPERATIONS if name not in CORE and name not in LOOPED)
HARDEST = (
    "emit+wait+close",
    "late+cancelwait+drain",
    "join+cancelwait",
    "block+cancelfull",
    "timeout+drain",
    "lane+emits",
)
LYING = ("emit+wait", "warm/late+wait", "drain+join", "wait+close", "warm/timeout+drain", "warm/emit+cancelwait")


def program(name: str) -> Program:
    """The program of that name: ``emit+cancel``, ``warm/emit+emit+drain``, ``lying/emit+wait``."""
    *ways, text = name.split("/")
    names = text.split("+")

    def body(sched: Scheduler) -> None:
        options: dict[str, Any] = {"workers": 1} if "single" in ways else {}
        on_loops = LOOPED.keys() & set(names)
        world = World(sched, options, facade=AsyncEventBus(name="explored", **options) if on_loops else None)
        world.on("A", "t")
        for each in names:
            OPERATIONS[each].prepare(world)
        if "warm" in ways:
            world.wait(world.emit("t"))
            world.drain()
            for topic in {topic for sub in world.subs.values() for topic in sub.topics}:
                world.bus.handlers(topic)  # its route is found
        world.run(
            *((f"{each}-{place}", lambda each=each: OPERATIONS[each].act(world)) for place, each in enumerate(names))
        )  # type: ignore[misc]

    return Program(name, body, frozenset({"timeout", "spurious", "start"} if "lying" in ways else ()))


def pairs() -> list[str]:
    """Every pair of the core's operations, cold and warm, and each of the others beside what may cross it."""
    names = [f"{way}{one}+{two}" for one, two in combinations_with_replacement(CORE, 2) for way in ("", "warm/")]
    for extra in EXTRA:
        names.append(f"{extra}+{extra}")
        names.extend(f"{extra}+{other}" for other in ("emits", "cancelwait", "drain", "close") if other != extra)
    names.extend(("inlines+undrain", "warm/inlines+undrain"))
    names.extend(f"{policy}+cancelfull" for policy in ("block", "oldest", "latest", "impatient"))
    names.extend(f"warm/{extra}+emits" for extra in EXTRA)
    names.extend(f"single/{one}+{other}" for one in ("leans", "waits", "drains") for other in ("emits", "close"))
    return names


def looped() -> list[str]:
    """Every pair of a loop with another loop, and with what threads do."""
    names = [f"{one}+{two}" for one, two in combinations_with_replacement(LOOPED, 2)]
    names.extend(
        f"{loop}+{other}" for loop in LOOPED for other in ("emit", "wait", "on", "cancelwait", "drain", "close")
    )
    names.append("arob+emits")
    names.extend(f"warm/aserve+emits+{other}" for other in ("wait", "cancelwait", "drain", "close"))
    return names


def triples() -> list[str]:
    """Every triple of different operations of the core, and some of the others."""
    names = ["+".join(each) for each in combinations(CORE, 3)]
    names.extend(f"{one}+{two}+close" for one, two in combinations(EXTRA, 2))
    return names
