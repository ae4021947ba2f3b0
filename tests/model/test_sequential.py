"""Random sequential programs: the bus does what a page of plain Python says (G1 to G6, G9, G10, G17, G20 to G22)."""

from __future__ import annotations

import logging
import pathlib

import pytest


@pytest.mark.timeout(300)  # on a machine that is busy with other things
@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_the_bus_does_what_the_model_does(examples: int, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("hypothesis", reason="of the extra dev")
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    from .sequential import BusMachine

    caplog.set_level(logging.CRITICAL, "eventbus")
    run_state_machine_as_test(
        BusMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            derandomize=examples < 1000,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_model_is_a_page() -> None:
    """Whoever wants to know what the bus does can read it at one sitting."""
    source = pathlib.Path(__file__).with_name("reference.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 150
    assert "import eventbus" not in source
    assert "from eventbus" not in source
