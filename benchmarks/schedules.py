"""``python -m benchmarks schedules --minutes N``: the long run of the schedule explorer that lives with the tests."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it can be told."""
    parser.add_argument("--minutes", type=float, default=10.0, help="for schedules: how long, 10 if not given")
    parser.add_argument("--processes", type=int, default=None, help="for schedules: processes, one a core if not given")


def main(given: argparse.Namespace) -> int:
    """Explore; a line for each program, then the sums. 1 if a schedule broke a promise."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))  # the processes that it starts inherit it
    from kit_schedule.campaign import campaign

    return int(bool(campaign(given.minutes, lambda line: print(line, flush=True), given.processes).failures))
