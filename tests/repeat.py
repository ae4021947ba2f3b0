"""The suite many times in a row, each time in another order: ``python tests/repeat.py 20 [--harsh] [pytest's own]``.

Ends with the number of runs that passed, and with the command that repeats each one that did not. Needs the extra
"dev": the random order is pytest-randomly's. With ``--harsh`` each run is in development mode, takes every warning for
an error, collects garbage after each allocation and switches threads every microsecond (see ``pytest --harsh``).
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HARSH = ("--harsh", "--timeout=1200", "-o", "faulthandler_timeout=1190")


def command(seed: int, harsh: bool, rest: list[str]) -> list[str]:
    """One run."""
    python = [sys.executable, *(("-X", "dev", "-W", "error") if harsh else ())]
    return [*python, "-m", "pytest", "-q", f"--randomly-seed={seed}", *(HARSH if harsh else ()), *rest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", type=int)
    parser.add_argument("--harsh", action="store_true")
    options, rest = parser.parse_known_args()
    failed: list[str] = []
    for number in range(1, options.times + 1):
        line = command(random.randrange(2**32), options.harsh, rest)
        begun = time.monotonic()
        ended = subprocess.run(
            line, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "random"}, text=True, stdout=subprocess.PIPE
        )
        if ended.returncode:
            failed.append(shlex.join(line))
            print(ended.stdout, flush=True)
        said = ended.stdout.strip().rpartition("\n")[2]
        print(
            f"{number} of {options.times}: {said} ({line[line.index('pytest') + 2]}, {time.monotonic() - begun:.0f} s)",
            flush=True,
        )
    print(f"{options.times - len(failed)} of {options.times} passed", *failed, sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
