"""The search for a planted bug, and how many schedules it took."""

from __future__ import annotations

from typing import NamedTuple

from .explore import Result, explore
from .plants import PLANTS, Plant
from .scenarios import program
from .strategies import DepthFirst, Pct

__all__ = ["Found", "hunt", "needed"]


class Found(NamedTuple):
    """In which program, after how many schedules of all programs that were tried, and the result that has failed."""

    program: str
    schedules: int
    result: Result


def hunt(plant: Plant) -> Found | None:
    """Plant it, and explore its programs until one fails."""
    tried = 0
    for each in plant.programs:
        for strategy in (Pct(3, 1, 3000), DepthFirst(plant.bound)):
            with plant.stand():
                result = explore(program(each), strategy, grain=plant.grain, schedules=4000, seconds=100)
            tried += result.schedules
            if result.failure is not None:
                return Found(each, tried, result)
    return None


def needed() -> dict[str, int | None]:
    """For each plant, after how many schedules it was found; None if it was not."""
    found = {name: hunt(plant) for name, plant in PLANTS.items()}
    return {name: each and each.schedules for name, each in found.items()}
