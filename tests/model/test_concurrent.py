"""Random concurrent programs: of each the history proves what the bus promises (G1 to G6, G9, G10, G14, G19, G20).

A seed that fails is in the message; ``python -m model SEED --times 200``, in ``tests/``, runs its program again.
"""

from __future__ import annotations

import logging

import pytest

from .concurrent import run

# A handler that is suspended where its loop is closed is closed by the collector, and its finally clauses find no loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SOAK = [pytest.mark.soak, pytest.mark.timeout(3600)]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers raise on purpose, thousands of times."""
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


@pytest.mark.timeout(180)  # on a machine that is busy with other things
@pytest.mark.parametrize("seed", range(20))
def test_a_random_program_keeps_the_promises(seed: int) -> None:
    world = run(seed)
    assert len(world.emits) > 20
    assert world.calls


@pytest.mark.parametrize("seeds", [pytest.param(range(1000, 3000), marks=SOAK)])
def test_many_random_programs_keep_the_promises(seeds: range) -> None:
    for seed in seeds:
        run(seed, 10 + seed % 60)
