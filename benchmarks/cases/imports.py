"""How long does ``import eventbus`` take, beside what its standard-library imports take? In fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..harness import Case, Contender, Metric, Missing, constant
from ..peers import LIMIT, OURS, PEER, load

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]

TIMED = "from time import perf_counter as now; t = now(); {}; print((now() - t) * 1000)"
NEW_MODULES = (
    "import sys, json; before = set(sys.modules); import {0}\n"
    "new = [name for name in sys.modules if name not in before and name.split('.')[0] in sys.stdlib_module_names]\n"
    "print(json.dumps(new))"
)


def run(code: str) -> str:
    """Run code in a fresh process, with bytecode cached as an installed package has it; gives what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def standard_library_of(module: str) -> list[str]:
    """The standard-library modules that importing a module brings in."""
    found: list[str] = json.loads(run(NEW_MODULES.format(module)))
    return found


def timed(code: str) -> Callable[[int], dict[str, float]]:
    text = TIMED.format(code)

    def sample(n: int) -> dict[str, float]:
        return {"time": min(float(run(text)) for _ in range(min(n, 2)))}

    return sample


def contenders(module: str, *others: str) -> list[Contender | Missing]:
    code = f"import {module}"
    base = "; ".join(f"import {name}" for name in standard_library_of(module)) or "pass"
    found: list[Contender | Missing] = [
        Contender(code, OURS, lambda: constant(timed(code))),
        Contender("its standard-library imports", LIMIT, lambda: constant(timed(base)), "everything"),
    ]
    for name in others:
        offer = load(f"{name}:{'on_loop' if name == 'bubus' else 'inline'}")
        text = f"import {'pubsub.pub' if name == 'pypubsub' else name}"
        found.append(
            offer
            if isinstance(offer, Missing)
            else Contender(text, PEER, partial(lambda code: constant(timed(code)), text))
        )
    return found


CASES = [
    Case(
        "import",
        "`import eventbus`",
        partial(contenders, "eventbus", "pyee", "blinker", "psygnal", "pypubsub", "bubus"),
        2,
        (Metric("time", "ms", "from the import statement to its end"),),
        note="The better of two fresh processes a round.",
    )
]
