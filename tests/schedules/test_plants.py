"""Bugs that are planted, one at a time, are found: what is not reported is not there for want of looking."""

from __future__ import annotations

import pytest
from kit_schedule import DepthFirst, Pct, Stuck, explore
from kit_schedule.plants import PLANTS
from kit_schedule.scenarios import program


@pytest.mark.timeout(600)  # on a machine that is busy with other things
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, record_property: pytest.RecordProperty) -> None:
    plant = PLANTS[name]
    tried = 0
    for each in plant.programs:
        for strategy in (Pct(3, 1, 3000), DepthFirst(plant.bound)):
            with plant.stand():
                result = explore(program(each), strategy, grain=plant.grain, schedules=4000, seconds=100)
            tried += result.schedules
            if result.failure is not None:
                assert not isinstance(result.failure, Stuck)
                record_property("schedules", tried)
                # It is the plant that was found: without it the same schedule, if there is one, is in order.
                explore(program(each), strategy, grain=plant.grain, schedules=20).check()
                return
    pytest.fail(f"{plant.what} was not found in {tried} schedules of {', '.join(plant.programs)}")
