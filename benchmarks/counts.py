"""Count instead of time: instructions, allocations, locks and wake-ups of one emit with its delivery.

``python -m benchmarks counts`` runs ``benchmarks.counted`` in processes of its own, under ``valgrind --tool=callgrind``
(or ``perf stat`` where valgrind is not installed), with N and with 2N events; the difference divided by N is the cost
of one, free of start-up and of noise. With ``--write`` the tables in ``benchmarks/README.md`` are replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import counted, report
from .figures import Spread
from .goals import MET, NOT_MET, Verdict

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Job", "add_arguments", "difference", "main", "read_callgrind", "replace_tables"]

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eventbus", "eventbus_async", "benchmarks")
README = Path(__file__).with_name("README.md")
KEPT = Path(__file__).parent / "results" / "counts.json"
EVENTS = 4000
FEATURE_WAYS = ("thread to thread", "on one loop")
LIMIT = 0.02  # what a feature that is not used may add
NOT_SETTLED = "not settled"
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"

Counts = dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """One figure to be found."""

    way: str
    feature: str = "lanes"
    mode: str = "plain"
    again: bool = False  # the same once more: how far two counts of one thing differ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tool", choices=("valgrind", "perf"), help="for counts: what counts; the first that works")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"for counts: N, {EVENTS} if not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="for counts: processes at a time")
    parser.add_argument("--write", action="store_true", help="for counts: write the tables into benchmarks/README.md")
    parser.add_argument("--baseline", action="store_true", help="for counts: what is found becomes the 'before'")


# Tools


def read_callgrind(text: str) -> Counts:
    """The totals of a callgrind file: instructions, and calls of CPython's allocator."""
    total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
    if total is None:
        raise ValueError("the callgrind file has no totals")
    names: dict[str, str] = {}
    calls: defaultdict[str, int] = defaultdict(int)
    callee = ""
    for line in text.splitlines():
        named = re.match(r"c?fn=\((\d+)\)(?: (.+))?$", line)
        if named:
            if named[2]:
                names[named[1]] = named[2]
            if line[0] == "c":
                callee = names.get(named[1], "")
        elif line.startswith("calls="):
            calls[callee] += int(line[6:].split()[0])
    found: Counts = {"instructions": float(total[1])}
    allocations = sum(calls[name] for name in ("_PyObject_Malloc", "_PyObject_Calloc"))
    if allocations:  # a build whose allocator was inlined tells nothing
        found["allocations"] = float(allocations)
    return found


@contextmanager
def snapshot() -> Iterator[Path]:
    """A copy of the sources, compiled: nobody's edit, and no compiling, falls between two runs that are subtracted."""
    with tempfile.TemporaryDirectory() as folder:
        for name in PACKAGES:
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        run([sys.executable, "-m", "compileall", "-q", *PACKAGES], Path(folder))
        yield Path(folder)


def run(command: Sequence[str], home: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=home,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1])
    return done


def by_valgrind(arguments: Sequence[str], home: Path) -> Counts:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind"
        run(["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, *arguments], home)
        return read_callgrind(out.read_text(encoding="utf-8", errors="replace"))


def by_perf(arguments: Sequence[str], home: Path) -> Counts:
    done = run(["perf", "stat", "-x", ",", "-e", "instructions:u", sys.executable, *arguments], home)
    figure = next(line.split(",")[0] for line in done.stderr.splitlines() if "instructions" in line)
    if not figure.isdigit():
        raise RuntimeError(f"perf counts no instructions here: {figure}")
    return {"instructions": float(figure)}


TOOLS: dict[str, Callable[[Sequence[str], Path], Counts]] = {"valgrind": by_valgrind, "perf": by_perf}


def choose(wanted: str | None) -> str | None:
    """The tool that was asked for, or the first that works; None where there is none."""
    for name in [wanted] if wanted else list(TOOLS):
        if shutil.which(name):
            if name == "perf":
                try:
                    by_perf(["-c", "pass"], ROOT)
                except (RuntimeError, StopIteration):
                    continue
            return name
    return None


def difference(once: Counts, twice: Counts, events: int) -> Counts:
    """The cost of one event, from runs with N and with 2N."""
    return {name: (twice[name] - once[name]) / events for name in once if name in twice}


# The tables


def count(job: Job, tool: str, events: int, home: Path) -> Counts:
    """Run one job twice, on the sources in ``home``."""
    once, twice = (
        TOOLS[tool](["-m", "benchmarks.counted", job.way, job.feature, job.mode, str(number)], home)
        for number in (events, 2 * events)
    )
    return difference(once, twice, events)


def jobs(quick: bool) -> list[Job]:
    found = [Job(way) for way in counted.WAYS]
    for way in FEATURE_WAYS[: 1 if quick else None]:
        found.append(Job(way, again=True))
        found += [Job(way, feature, mode) for feature in counted.FEATURES for mode in counted.MODES[1:]]
    return found


def way_lines(document: dict[str, Any]) -> list[list[str]]:
    """The cost table: a line a way, before and now."""
    lines: list[list[str]] = []
    for way in counted.WAYS:
        now = document["now"].get(way)
        if now is None:
            continue
        before = document["before"].get(way, {})
        cells = [way]
        for name in ("instructions", "allocations", "locks", "wake-ups"):
            for each in (before, now):
                figure = each.get(name)
                cells.append("–" if figure is None else f"{figure:,.0f}" if name == "instructions" else f"{figure:.2f}")
        lines.append(cells)
    return lines


def feature_lines(document: dict[str, Any]) -> list[list[str]]:
    """What the features cost: used elsewhere on the bus, and used here."""
    lines: list[list[str]] = []
    for way, feature, off in unused(document):
        used = document["features"].get(f"{way}/{feature}/used")
        on = "–" if used is None else f"{used['instructions'] / document['now'][way]['instructions'] - 1:+.1%}"
        lines.append([way, feature, f"{off:+.1%}", judged(document, way, off), on])
    return lines


def verdicts(kept: Path = KEPT) -> list[Verdict]:
    """The goal that is counted and not timed, from the last counts that were kept: none where there are none."""
    if not kept.exists():
        return []
    document = json.loads(kept.read_text(encoding="utf-8"))
    found: list[Verdict] = []
    for way, feature, share in unused(document):
        measured = Spread(100 * share, 100 * share, 100 * share)
        text = f"{way}, {feature} not used: instructions added, %"
        found.append(Verdict(text, measured, "plain", f"≤ {LIMIT:.0%}", judged(document, way, share)))
    return found


def judged(document: dict[str, Any], way: str, share: float) -> str:
    """Met or not; not settled where two counts of the plain way differ by more than what there is to tell."""
    noise = document.get("noise", {}).get(way)
    if noise is None or abs(share - LIMIT) <= noise:
        return NOT_SETTLED
    return MET if share < LIMIT else NOT_MET


def unused(document: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """What a feature that is used elsewhere adds, as a share of the plain way's instructions."""
    for way in FEATURE_WAYS:
        plain = document["now"].get(way, {}).get("instructions")
        for feature in counted.FEATURES:
            each = document["features"].get(f"{way}/{feature}/elsewhere")
            if plain and each is not None:
                yield way, feature, each["instructions"] / plain - 1


WAY_HEADINGS = [
    "way",
    *(f"{name}, {when}" for name in ("instructions", "allocations", "locks", "wake-ups") for when in ("before", "now")),
]
FEATURE_HEADINGS = ["way", "feature", "not used here", f"under {LIMIT:.0%}", "used here"]


def replace_tables(readme: str, document: dict[str, Any]) -> str:
    """The README with its tables anew."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"benchmarks/README.md must hold {BEGIN} and {END}, in this order")
    text = (
        f"{begin}\nCounted by `python -m benchmarks counts --write` on {document['when']} with {document['tool']},"
        f" {document['python']}; per emit, its deliveries included. *Before*: {document['before_when']}.\n\n"
        f"{report.markdown_table(WAY_HEADINGS, way_lines(document))}\n\n"
        f"{report.markdown_table(FEATURE_HEADINGS, feature_lines(document))}\n{end}"
    )
    return head + text + tail


def main(given: argparse.Namespace) -> int:
    """Count everything, print it, and keep it where that was asked for."""
    tool = choose(given.tool)
    if tool is None:
        print("neither valgrind nor perf can count instructions here; install valgrind", file=sys.stderr)
        return 2
    wanted = jobs(given.quick)

    def work(job: Job, home: Path) -> Counts | None:
        try:
            return count(job, tool, given.events, home)
        except RuntimeError as error:
            print(f"{job.way}, {job.feature}, {job.mode}: not counted: {error}", file=sys.stderr)
            return None

    with snapshot() as home, ThreadPoolExecutor(given.jobs) as pool:
        found = dict(zip(wanted, pool.map(partial(work, home=home), wanted), strict=True))
    now: dict[str, Counts] = {}
    for job, counts in found.items():
        if job.mode == "plain" and not job.again and counts is not None:
            now[job.way] = {**counts, **counted.steps(job.way, given.events)}
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() and not given.baseline else {}
    today = time.strftime("%Y-%m-%d")
    document: dict[str, Any] = {
        "when": today,
        "tool": tool,
        "python": report.interpreter(),
        "events": given.events,
        "before_when": kept.get("before_when", today),
        # A way that had no "before" yet begins with what it costs now.
        "before": {**now, **kept.get("before", {})},
        "now": now,
        "noise": {
            job.way: abs(each["instructions"] / now[job.way]["instructions"] - 1)
            for job, each in found.items()
            if job.again and each is not None and job.way in now
        },
        "features": {f"{job.way}/{job.feature}/{job.mode}": each for job, each in found.items() if job.mode != "plain"},
    }
    print(report.table([WAY_HEADINGS, *way_lines(document)]))
    print()
    print(report.table([FEATURE_HEADINGS, *feature_lines(document)]))
    if given.write or given.baseline:
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        KEPT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        README.write_text(replace_tables(README.read_text(encoding="utf-8"), document), encoding="utf-8")
    return 0 if len(now) == len(counted.WAYS) else 1
