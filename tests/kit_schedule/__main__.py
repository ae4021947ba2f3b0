"""``python -m kit_schedule``: explore by hand.

python -m kit_schedule run NAME... [--grain line] [--bound 2] [--pct 1000] [--seconds 10]
python -m kit_schedule replay NAME GRAIN TRACE
python -m kit_schedule campaign --minutes 10
"""

from __future__ import annotations

import argparse
import sys

from .campaign import campaign
from .explore import explore, replay
from .scenarios import looped, pairs, program, triples
from .strategies import DepthFirst, Pct, Strategy


def main(arguments: list[str]) -> int:
    """Run the command; 1 if a schedule failed."""
    parser = argparse.ArgumentParser(prog="kit_schedule")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("names", nargs="+", help="programs, or `pairs`, `triples`, `looped`")
    run.add_argument("--grain", default="seam", choices=("seam", "switch", "line"))
    run.add_argument("--bound", type=int, default=2)
    run.add_argument("--pct", type=int, default=0)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--seconds", type=float, default=10.0)
    again = commands.add_parser("replay")
    again.add_argument("name")
    again.add_argument("grain")
    again.add_argument("trace")
    long = commands.add_parser("campaign")
    long.add_argument("--minutes", type=float, default=10.0)
    long.add_argument("--jobs", type=int, default=None)
    given = parser.parse_args(arguments)
    if given.command == "campaign":
        return int(bool(campaign(given.minutes, lambda text: print(text, flush=True), given.jobs).failures))
    if given.command == "replay":
        failure = replay(program(given.name), given.trace, given.grain)
        print("nothing failed" if failure is None else f"{type(failure).__name__}: {failure}")
        return int(failure is not None)
    names = [
        each
        for name in given.names
        for each in {"pairs": pairs, "triples": triples, "looped": looped}.get(name, lambda n=name: [n])()
    ]
    failed = total = 0
    for name in names:
        strategy: Strategy = Pct(3, given.seed, given.pct) if given.pct else DepthFirst(given.bound)
        what = f"pct 3 seed {given.seed}" if given.pct else f"bound {given.bound}"
        result = explore(program(name), strategy, grain=given.grain, what=what, seconds=given.seconds)
        total += result.distinct
        print(result.line(), flush=True)
        if result.failure is not None:
            failed += 1
            print(
                f"   {type(result.failure).__name__}: {result.failure}\n"
                f"   replay '{name}' {given.grain} '{result.trace}'"
            )
    print(f"{total:,} distinct schedules, {failed} of {len(names)} programs failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
