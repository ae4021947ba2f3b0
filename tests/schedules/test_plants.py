"""Bugs that are planted, one at a time, are found: what is not reported is not there for want of looking."""

from __future__ import annotations

import pytest
from kit_schedule import Stuck, explore
from kit_schedule.hunt import hunt
from kit_schedule.plants import PLANTS
from kit_schedule.scenarios import program
from kit_schedule.strategies import DepthFirst


@pytest.mark.timeout(600)  # on a machine that is busy with other things
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, record_property: pytest.RecordProperty) -> None:
    plant = PLANTS[name]
    found = hunt(plant)
    assert found is not None, f"{plant.what} was not found in {', '.join(plant.programs)}"
    assert not isinstance(found.result.failure, Stuck)
    record_property("schedules", found.schedules)
    # It is the plant that was found: without it the same schedules are in order.
    explore(program(found.program), DepthFirst(plant.bound), grain=plant.grain, schedules=20).check()
