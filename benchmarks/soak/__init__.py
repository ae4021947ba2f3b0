"""``python -m benchmarks soak --minutes N``: a bus under everything at once, watched for as long as one likes.

Threads and loops that come and go use one bus, with every policy and fault there is (``players.py``, ``handlers.py``);
a judge checks all of it as it happens, in bounded memory (``history.py``); what the process holds is sampled
(``watch.py``). The verdict, its figures and a plot of the memory are kept in ``results/soak.json`` and ``soak.svg``.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import sys
import threading
import time
from dataclasses import asdict
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
FEWEST = 12  # samples, for a slope, also on a machine that is busy elsewhere
REST = 10.0  # seconds within which threads that have nothing to do end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--minutes`` is shared with ``schedules``."""
    parser.add_argument("--seed", type=int, default=None, help="for soak: of all that is chosen; random if not given")


class Complaints(logging.Handler):
    """What asyncio logs is an error here; what the bus logs was asked for."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        self.world.history.flag("errors", f"{record.name}: {record.getMessage()}")


def soak(seconds: float, seed: int, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run for so long, and a little more until everything has ended; gives the document that is kept."""
    world = World(seed)
    threads, handles = threading.active_count(), watch.handles()
    restore = complain(world.history)
    complaints = Complaints(world)
    loud, quiet = logging.getLogger("asyncio"), logging.getLogger("eventbus")
    before = quiet.propagate, loud.propagate
    quiet.propagate = loud.propagate = False
    loud.addHandler(complaints)
    silent = logging.NullHandler()
    quiet.addHandler(silent)
    samples: list[watch.Sample] = []
    began = time.monotonic()
    try:
        world.begin()
        interval = min(1.0, seconds / 20)
        told = began
        while (now := time.monotonic()) - began < seconds or len(samples) < FEWEST:
            samples.append(watch.look(now - began, world.tasks(), world.history.events))
            if now - told >= 15:
                told = now
                tell(line(samples[-1], world))
            time.sleep(interval)
        took = time.monotonic() - began
        world.end()
        judge_leftovers(world, threads, handles)
    finally:
        restore()
        loud.removeHandler(complaints)
        quiet.removeHandler(silent)
        quiet.propagate, loud.propagate = before
    totals = world.bus.stats().totals
    return document(world, samples, took, totals)


def line(sample: watch.Sample, world: World) -> str:
    broken = sum(world.history.found.values())
    return (
        f"{sample.seconds:6.0f} s  {sample.events:,} events  {sample.memory / watch.MIB:.1f} MiB"
        f"  {sample.blocks:,} blocks  {sample.threads} threads  {sample.tasks} tasks  {sample.handles} handles"
        f"  {broken} broken"
    )


def judge_leftovers(world: World, threads: int, handles: int) -> None:
    """Nothing may be left: threads that idle have some seconds to end."""
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
    times = [sample.seconds for sample in samples]
    memory = watch.slope(times, [sample.memory for sample in samples])
    blocks = watch.slope(times, [sample.blocks for sample in samples])
    long_enough = took >= watch.JUDGED_FROM
    grows = long_enough and memory.grows
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "when": time.strftime("%Y-%m-%d"),
        "python": f"{platform.python_implementation()} {platform.python_version()}{'' if gil else ', free-threaded'}",
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "seed": world.seed,
        "seconds": round(took, 1),
        "minutes": round(took / 60, 2),
        "verdict": "broken" if any(figures.values()) or grows else "held",
        "events": history.events,
        "deliveries": totals.deliveries,
        "outcomes": {name: getattr(totals, name) for name in OUTCOMES},
        "subscriptions": world.subscribed,
        "loops": world.lives,
        "small buses closed": world.small,
        "requests": world.asked,
        "read from streams": world.streamed,
        "must be zero": figures,
        "meaning": FIGURES,
        "memory": {
            "judged": long_enough,
            "grows": grows,
            "slope, KiB a minute": round(memory.per_minute / 1024, 1),
            "noise, KiB a minute": round(memory.noise / 1024, 1),
            "slope, blocks a minute": round(blocks.per_minute),
            "noise, blocks a minute": round(blocks.noise),
            "how": "Theil-Sen over the second half; noise: the middle 90 % of the residuals over that time",
        },
        "remarks": history.remarks,
        "samples": [asdict(each) for each in samples[:: -(-len(samples) // KEPT_SAMPLES) or 1]],
    }


OUTCOMES = ("delivered", "failed", "timed_out", "cancelled", "dropped", "rejected")


def tables(found: dict[str, Any]) -> str:
    """A run for the terminal."""
    memory = found["memory"]
    unit = "KiB a minute"
    lines = [
        ["seconds", f"{found['seconds']:,}"],
        *([name, f"{found[name]:,}"] for name in ("events", "deliveries")),
        *([f"  {name}", f"{count:,}"] for name, count in found["outcomes"].items()),
        *([name, f"{found[name]:,}"] for name in ("subscriptions", "loops", "small buses closed", "requests")),
        *([name, f"{count:,}"] for name, count in found["must be zero"].items()),
        ["memory slope", f"{memory[f'slope, {unit}']:,} ± {memory[f'noise, {unit}']:,} {unit}"],
        ["memory", "grows" if memory["grows"] else "steady" if memory["judged"] else "too short to be judged"],
        ["verdict", found["verdict"]],
    ]
    return "\n".join([report.table(lines), *(f"  {remark}" for remark in found["remarks"])])


def drawing(found: dict[str, Any]) -> str:
    """The plot of a document."""
    samples = [watch.Sample(**each) for each in found["samples"]]
    memory = watch.slope([each.seconds for each in samples], [each.memory for each in samples])
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
