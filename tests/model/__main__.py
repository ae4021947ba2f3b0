"""``python -m model SEED [--times N] [--size N]``, in ``tests/``: run a seed's program, or those of 0-500."""

from __future__ import annotations

import argparse
import logging
import sys

from .concurrent import run


def main(arguments: list[str]) -> int:
    """1 if a program failed."""
    parser = argparse.ArgumentParser(prog="model")
    parser.add_argument("seeds", help="one seed, or FIRST-LAST")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--size", type=int, default=20)
    given = parser.parse_args(arguments)
    logging.getLogger("eventbus").setLevel(logging.CRITICAL + 1)
    first, _, last = given.seeds.partition("-")
    failed = events = deliveries = 0
    for seed in range(int(first), int(last or first) + 1):
        for _ in range(given.times):
            try:
                world = run(seed, given.size)
            except AssertionError as error:
                failed += 1
                print(error, flush=True)
            else:
                events += len(world.emits)
                deliveries += world.bus.stats().totals.deliveries
    print(f"{events:,} events, {deliveries:,} deliveries, {failed} runs failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
