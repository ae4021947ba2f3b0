"""``python -m benchmarks``: run the cases, count instructions (``counts``), draw a report anew (``report``), explore
schedules (``schedules``), plant bugs (``mutants``), or use a bus under load and faults for long (``soak``)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import counts, mutants, report, schedules, soak
from .cases import all_cases
from .harness import Plan, Result, measure
from .peers import OURS

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("eventbus", "pyee", "blinker", "bubus", "psygnal", "pypubsub", "janus", "pydantic")


def main(arguments: list[str] | None = None) -> int:
    """The command; gives the exit status: 1 where one of ours failed."""
    given = parser().parse_args(arguments)
    if given.command == "counts":
        return counts.main(given)
    if given.command == "mutants":
        return mutants.main(given)
    if given.command == "schedules":
        return schedules.main(given)
    if given.command == "soak":
        return soak.main(given)
    if given.command == "report":
        return again(Path(given.json))
    return run(given)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks", description="This project, its peers and the limits.")
    commands = ("run", "counts", "mutants", "report", "schedules", "soak")
    made.add_argument("command", nargs="?", choices=commands, default="run")
    made.add_argument("--quick", action="store_true", help="less work a sample: ends within 60 seconds")
    made.add_argument(
        "--case", action="append", default=[], metavar="NAME", help="only these; the beginning of a name does"
    )
    made.add_argument("--rounds", type=int, default=7, help="interleaved rounds, 7 if not given")
    made.add_argument("--scale", type=float, default=1.0, help="multiplies the work of a sample")
    made.add_argument("--list", action="store_true", help="list the cases")
    made.add_argument("--out", default=str(RESULTS), metavar="FOLDER", help="where Markdown, JSON and plots go")
    made.add_argument("--no-files", action="store_true", help="print only")
    made.add_argument("--json", default=str(RESULTS / "results.json"), metavar="FILE", help="for report: what to read")
    counts.add_arguments(made)
    mutants.add_arguments(made)
    schedules.add_arguments(made)
    soak.add_arguments(made)
    return made


def load() -> str:
    """What else the machine does, as far as it tells."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def environment(plan: Plan, arguments: str, before: str) -> dict[str, Any]:
    """What the figures depend on."""
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return {
        "python": report.interpreter(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "rounds": plan.rounds,
        "quick": plan.quick,
        "scale": plan.scale,
        "arguments": arguments,
        "load": f"{before} and {load()}",
        "when": time.strftime("%Y-%m-%d"),
        "versions": versions,
    }


def run(given: argparse.Namespace) -> int:
    """Measure, print each case when it is done, and write the report."""
    cases = all_cases()
    if given.case:
        cases = [case for case in cases if any(case.name.startswith(name) for name in given.case)]
        if not cases:
            print(f"no case is named {', '.join(given.case)}; --list lists them", file=sys.stderr)
            return 2
    if given.list:
        print(report.table([[case.name, case.title] for case in cases]))
        return 0
    plan = Plan(given.rounds, given.scale, given.quick)
    before = load()
    results: list[Result] = []
    for case in cases:
        result = measure(case, plan, tell)
        tell("")
        results.append(result)
        print(report.terminal(result), flush=True)
    print(
        report.goals_for_terminal(
            {each.name: each for each in results}, bool(given.case), () if given.case else counts.verdicts()
        )
    )
    if not given.no_files:
        if given.case:
            print("\nonly some cases were run: nothing was written", file=sys.stderr)
        else:
            arguments = " --quick" if given.quick else ""
            written = report.write(Path(given.out), results, environment(plan, arguments, before), counts.verdicts())
            print(f"\nwritten: {', '.join(each.name for each in written)} in {given.out}")
    return int(any(row.failed and row.kind == OURS for result in results for row in result.rows))


def again(source: Path) -> int:
    """Write Markdown and plots of a JSON file beside it."""
    document = json.loads(source.read_text(encoding="utf-8"))
    results = report.from_document(document)
    counted = counts.verdicts()
    report.write(source.parent, results, document["environment"], counted)
    print(report.goals_for_terminal({each.name: each for each in results}, counted=counted))
    return 0


def tell(text: str) -> None:
    """Progress, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:100]}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
