"""The bus under every schedule that the time allows: each program is a pair or triple of operations at once.

What is judged of each schedule stands in ``kit_schedule.world``: G1, G2, G3, G4, G6, G10, G20, counts, no deadlock, no
thread left. ``EVENTBUS_SCHEDULES_SCALE=10`` takes ten times as long; the long run is ``python -m kit_schedule
campaign`` and, here, marked ``soak``.
"""

from __future__ import annotations

import os
from itertools import combinations

import pytest
from kit_schedule import DepthFirst, Pct, explore
from kit_schedule.campaign import campaign
from kit_schedule.scenarios import CORE, EXTRA, HARDEST, LYING, pairs, program, triples

SCALE = float(os.environ.get("EVENTBUS_SCHEDULES_SCALE", "1"))


@pytest.mark.parametrize("name", pairs())
def test_pairs_of_operations_keep_every_promise(name: str) -> None:
    """All schedules with one preemption or early time-out, as many as the time allows."""
    explore(program(name), DepthFirst(1), what="bound 1", seconds=0.06 * SCALE).check()


@pytest.mark.parametrize(
    "name", ["emit+cancel", "cancel+cancelwait", "warm/emit+wait", "cancel+cancel", "warm/emit+cancelwait"]
)
def test_the_smallest_programs_are_exhausted_with_two_preemptions(name: str) -> None:
    result = explore(program(name), DepthFirst(2), what="bound 2", seconds=20).check()
    assert result.exhausted


@pytest.mark.parametrize("name", LYING)
def test_primitives_that_lie_break_nothing(name: str) -> None:
    """Wake-ups for nothing, time-outs that overtake a wake-up, threads that cannot be started."""
    explore(program(f"lying/{name}"), DepthFirst(2), what="bound 2", seconds=0.4 * SCALE).check()


@pytest.mark.parametrize("operation", CORE)
def test_triples_of_operations_keep_every_promise(operation: str) -> None:
    """Random priorities with three changes."""
    mine = [name for name in triples() if name.startswith(f"{operation}+")]
    for name in mine:
        explore(program(name), Pct(3, 1, int(60 * SCALE)), what="pct3 seed 1").check()


def test_triples_of_the_other_operations_keep_every_promise() -> None:
    for one, two in combinations(EXTRA, 2):
        explore(program(f"{one}+{two}+close"), Pct(3, 1, int(12 * SCALE)), what="pct3 seed 1").check()


BETWEEN = [*HARDEST, "emit+cancel", "on+emit", "emits+emits", "warm/emits+wait", "warm/late+wait", "drain+emits"]


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("grain", ["switch", "line"])
def test_a_switch_within_the_engine_breaks_nothing(name: str, grain: str) -> None:
    """Points wherever CPython may switch, the hot path's sections included; at every line, where there are none."""
    explore(program(name), DepthFirst(1), grain=grain, what="bound 1", seconds=0.2 * SCALE).check()
    explore(program(name), Pct(3, 1, 10_000), grain=grain, what="pct3 seed 1", seconds=0.2 * SCALE).check()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_long_run() -> None:
    totals = campaign(float(os.environ.get("EVENTBUS_SCHEDULES_MINUTES", "10")))
    assert not totals.failures, "\n".join(totals.failures)
