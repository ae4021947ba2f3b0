"""What the schedules of a run add up to."""

from __future__ import annotations

import pytest
from kit_schedule.explore import tally


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tally:
        counts = ", ".join(f"{count:,} at {grain} points" for grain, count in sorted(tally.items()))
        terminalreporter.write_line(f"schedules: {sum(tally.values()):,} distinct ({counts})")
