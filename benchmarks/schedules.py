"""``python -m benchmarks schedules --minutes N``: the long run of the schedule explorer that lives with the tests.

Its sums, and after how many schedules each planted bug was found, are kept in ``results/schedules.json``, from which
``docs/make_promises.py`` takes them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it can be told."""
    parser.add_argument("--minutes", type=float, default=10.0, help="for schedules and soak: how long, 10 if not given")
    parser.add_argument("--processes", type=int, default=None, help="for schedules: processes, one a core if not given")


def main(given: argparse.Namespace) -> int:
    """Explore; a line for each program, then the sums. 1 if a schedule broke a promise, or a plant was not found."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))  # the processes that it starts inherit it
    from kit_schedule.campaign import campaign
    from kit_schedule.hunt import needed

    processes = given.processes or os.cpu_count() or 1
    planted = needed()
    missed = [name for name, count in planted.items() if count is None]
    print(f"{len(planted) - len(missed)} of {len(planted)} planted bugs found; missed: {', '.join(missed) or 'none'}")
    totals = campaign(given.minutes, lambda line: print(line, flush=True), processes)
    if not given.no_files:
        kept = {
            "minutes": given.minutes,
            "processes": processes,
            "python": platform.python_version(),
            "when": time.strftime("%Y-%m-%d"),
            "programs": totals.programs,
            "schedules": totals.schedules,
            "distinct": totals.distinct,
            "explored": totals.explored,
            "exhausted": totals.exhausted,
            "failures": totals.failures,
            "planted": planted,
        }
        path = Path(given.out) / "schedules.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    return int(bool(totals.failures or missed))
