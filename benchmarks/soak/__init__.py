"""``python -m benchmarks soak --minutes N``: a bus under everything at once, watched for as long as one likes.

Threads and loops that come and go use one bus, with every policy and fault there is (``players.py``, ``handlers.py``);
a judge checks all of it as it happens, in bounded memory (``history.py``). What else there is in the two packages is
used beside it (``guests.py``). The first half of a run is load without a pause. In the second half everybody comes to
rest now and then: nothing may be left running, and what the process holds then is what a leak would add to
(``watch.py``). The verdict, its figures and a plot of the memory are kept in ``results/soak.json`` and ``soak.svg``.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import random
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import report
from . import watch
from .history import FIGURES, complain, payloads_left
from .players import World

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["add_arguments", "main", "soak"]

KEPT_SAMPLES = 600
FEWEST = 12  # samples, also on a machine that is busy elsewhere
REST = 10.0  # seconds within which threads that have nothing to do end
BETWEEN = 8.0  # seconds between two rests, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--minutes`` is shared with ``schedules``."""
    parser.add_argument("--seed", type=int, default=None, help="for soak: of all that is chosen; random if not given")


class Complaints(logging.Handler):
    """What asyncio logs is an error here (in debug mode it also warns of what is slow); what the bus logs is wanted."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        self.world.history.flag("errors", f"{record.name}: {record.getMessage()}")


def soak(seconds: float, seed: int, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run for so long, and a little more until everything has ended; gives the document that is kept."""
    before = threading.active_count(), watch.handles()
    world = World(seed)
    threads, handles = before[0], watch.handles()
    restore = complain(world.history)
    complaints = Complaints(world)
    loud, quiet = logging.getLogger("asyncio"), logging.getLogger("eventbus")
    propagated = quiet.propagate, loud.propagate
    quiet.propagate = loud.propagate = False
    loud.addHandler(complaints)
    silent = logging.NullHandler()
    quiet.addHandler(silent)
    interval = min(1.0, seconds / 20)
    record = watch.Record(2 * int(seconds / interval) + FEWEST)
    began = time.monotonic()
    told = 0.0

    def look(rest: bool = False) -> float:
        """Take a sample; gives the seconds since the begin."""
        nonlocal told
        now = time.monotonic() - began
        sample = watch.look(now, world.tasks(), world.history.events, rest)
        record.append(sample)
        if now - told >= 15:
            told = now
            tell(line(sample, world))
        return now

    def play(until: float, fewest: int = 0) -> None:
        """Load without a pause."""
        world.begin()
        while look() < until or len(record) < fewest:
            time.sleep(interval)

    try:
        play(seconds / 2, FEWEST)
        while True:
            world.rest()
            judge_leftovers(world, threads, handles)
            now = look(rest=True)
            if now >= seconds:
                break
            play(min(seconds, now + min(BETWEEN, seconds / 10)))
        took = time.monotonic() - began
        world.end()
        judge_leftovers(world, *before)
    finally:
        restore()
        loud.removeHandler(complaints)
        quiet.removeHandler(silent)
        quiet.propagate, loud.propagate = propagated
    totals = world.bus.stats().totals
    return document(world, list(record), took, totals)


def line(sample: watch.Sample, world: World) -> str:
    broken = sum(world.history.found.values())
    return (
        f"{sample.seconds:6.0f} s  {sample.events:,} events  {sample.memory / watch.MIB:.1f} MiB"
        f"  {sample.blocks:,} blocks  {sample.heap / watch.MIB:.2f} MiB heap"
        f"  {sample.threads} threads  {sample.tasks} tasks  {sample.handles} handles"
        f"  {broken} broken"
    )


def judge_leftovers(world: World, threads: int, handles: int) -> None:
    """At rest nothing may be left: threads that idle have some seconds to end."""
    flag = world.history.flag
    tasks = world.tasks()
    if tasks or world.loops:
        flag("leaked", f"{tasks} tasks on {len(world.loops)} loops", max(1, tasks))
    end = time.monotonic() + REST
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.05)
    if (left := threading.active_count() - threads) > 0:
        flag("leaked", f"threads: {sorted(each.name for each in threading.enumerate())}", left)
    payloads = payloads_left()
    if payloads:
        flag("leaked", f"{payloads} payloads (G18)", payloads)
    if (left := watch.handles() - handles) > 0:
        flag("leaked", f"{left} handles", left)


def document(world: World, samples: list[watch.Sample], took: float, totals: Any) -> dict[str, Any]:
    """All that is kept of a run."""
    history = world.history
    figures = {name: history.found[name] for name in FIGURES}
    memory = judge_memory(samples, took)
    return {
        "when": time.strftime("%Y-%m-%d"),
        "python": report.interpreter(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "seed": world.seed,
        "seconds": round(took, 1),
        "minutes": round(took / 60, 2),
        "verdict": "broken" if any(figures.values()) or memory["grows"] else "held",
        "events": history.events,
        "deliveries": totals.deliveries,
        "outcomes": {name: getattr(totals, name) for name in OUTCOMES},
        "subscriptions": world.subscribed,
        "loops": world.lives,
        "small buses closed": world.small,
        "rests": sum(each.rest for each in samples),
        "visits of guests": world.guests.visits,
        "requests": world.asked,
        "read from streams": world.streamed,
        "must be zero": figures,
        "meaning": FIGURES,
        "memory": memory,
        "remarks": history.remarks,
        "samples": [asdict(each) for each in thin(samples)],
    }


def thin(samples: list[watch.Sample]) -> list[watch.Sample]:
    """Those that are kept: of the load no more than can be drawn, and every rest."""
    step = -(-len(samples) // KEPT_SAMPLES) or 1
    return [each for place, each in enumerate(samples) if each.rest or place % step == 0]


def judge_memory(samples: list[watch.Sample], took: float) -> dict[str, Any]:
    """Whether something grows: of four slopes none may be steeper than its noise."""
    slopes = {name: slope for name, find in MEASURES.items() if (slope := find(samples)) is not None}
    judged = took >= watch.JUDGED_FROM and len(slopes) == len(MEASURES)
    return {
        "judged": judged,
        "grows": judged and any(slope.grows for slope in slopes.values()),
        "slopes": {
            name: {"a minute": round(slope.per_minute, 1), "noise": round(slope.noise, 1), "grows": slope.grows}
            for name, slope in slopes.items()
        },
        "how": HOW,
    }


def at_rest(samples: list[watch.Sample], name: str, unit: int = 1, grain: int = 0) -> watch.Slope | None:
    """The slope of what is measured at rest."""
    return fit([each for each in samples if each.rest], name, unit, grain)


def resident(samples: list[watch.Sample]) -> watch.Slope | None:
    """Between its level at rest and the highest that the load has needed, resident memory goes as allocators like."""
    rest = [each.memory for each in samples if each.rest]
    swing = max((each.memory for each in load(samples)), default=0) - min(rest, default=0)
    return at_rest(samples, "memory", 1024, max(swing, watch.MIB) // 1024)


def load(samples: list[watch.Sample]) -> list[watch.Sample]:
    """Those of the load without a pause."""
    return list(itertools.takewhile(lambda each: not each.rest, samples))


def under_load(samples: list[watch.Sample], name: str, unit: int = 1) -> watch.Slope | None:
    """The slope of the load without a pause; its first half is for what fills up and is bounded."""
    long = load(samples)
    return fit(long[len(long) // 2 :], name, unit)


def fit(samples: list[watch.Sample], name: str, unit: int, grain: int = 0) -> watch.Slope | None:
    if len(samples) < 4:
        return None
    return watch.slope([each.seconds for each in samples], [getattr(each, name) / unit for each in samples], grain)


MEASURES: dict[str, Callable[[list[watch.Sample]], watch.Slope | None]] = {
    "resident at rest, KiB": resident,
    "C heap in use at rest, KiB": partial(at_rest, name="heap", unit=1024),
    "blocks in use at rest": partial(at_rest, name="blocks"),
    "blocks in use under load": partial(under_load, name="blocks"),
}
HOW = (
    "Theil-Sen. At rest: every player's thread has ended, garbage is collected, and glibc has given back what it can."
    " Under load: the second half of the first half of the run, which has no rest. Noise: the middle 90 % of the"
    " residuals over the time. Of resident memory, it is at least what the load needed beyond the lowest rest: that"
    " much allocators may keep or give back, whatever is in use."
)
OUTCOMES = ("delivered", "failed", "timed_out", "cancelled", "dropped", "rejected")


COUNTED = ("subscriptions", "loops", "small buses closed", "requests", "visits of guests", "rests")


def tables(found: dict[str, Any]) -> str:
    """A run for the terminal."""
    memory = found["memory"]
    lines = [
        ["seconds", f"{found['seconds']:,}"],
        *([name, f"{found[name]:,}"] for name in ("events", "deliveries")),
        *([f"  {name}", f"{count:,}"] for name, count in found["outcomes"].items()),
        *([name, f"{found[name]:,}"] for name in COUNTED),
        *([name, f"{count:,}"] for name, count in found["must be zero"].items()),
        *(
            [f"{name}, a minute", f"{slope['a minute']:+,.1f} ± {slope['noise']:,.1f}"]
            for name, slope in memory["slopes"].items()
        ),
        ["memory", "grows" if memory["grows"] else "steady" if memory["judged"] else "too short to be judged"],
        ["verdict", found["verdict"]],
    ]
    return "\n".join([report.table(lines), *(f"  {remark}" for remark in found["remarks"])])


def drawing(found: dict[str, Any]) -> str:
    """The plot of a document."""
    samples = [watch.Sample(**each) for each in found["samples"]]
    memory = at_rest(samples, "memory")
    broken = sum(found["must be zero"].values())
    caption = f"{found['events']:,} events, {found['deliveries']:,} deliveries, {broken} broken promises"
    return watch.plot(samples, memory, caption)


def main(given: argparse.Namespace) -> int:
    """Run, print, write; 1 if a figure that must be zero is not, or memory grows."""
    seed = random.randrange(1 << 30) if given.seed is None else given.seed
    print(f"seed {seed}, {given.minutes:g} minutes", flush=True)
    found = soak(given.minutes * 60, seed, lambda text: print(text, flush=True))
    print(tables(found))
    if not given.no_files:
        folder = Path(given.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (folder / "soak.svg").write_text(drawing(found), encoding="utf-8")
    return int(found["verdict"] != "held")
