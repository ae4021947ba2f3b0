"""What the schedules of a run add up to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit_schedule.baton import Carrier
from kit_schedule.explore import tally


@pytest.fixture(autouse=True)
def no_carriers(untraced: None) -> Iterator[None]:
    """They serve one schedule after another, but only those of one test."""
    yield
    Carrier.dismiss()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tally:
        counts = ", ".join(f"{count:,} at {grain} points" for grain, count in sorted(tally.items()))
        terminalreporter.write_line(f"schedules: {sum(tally.values()):,} distinct ({counts})")
