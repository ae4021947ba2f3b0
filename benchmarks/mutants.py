"""Mutation testing of the core with mutmut: ``python -m benchmarks mutants registry receipt``.

mutmut plants one small bug at a time into the core (see ``[mutmut]`` in setup.cfg) and runs the tests that reach the
function. Here its runs are cut to size: the first is made with the quick tests of the files that are about the module
(``ABOUT``), the fastest first; with ``--again`` those that survived are run against all but the slow. What survives
that too is explained in ``mutants.toml``, by the function and the line that the mutant has there, or waits for a test.
With ``--plain`` what is not explained is written into the source of a copy and run, the hot path in C included, against
the tests that mutmut cannot run: those that fork, or let something interrupt at every instruction.
What was run before is not run again, unless its function has changed. The kept result is ``results/mutants.json``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fnmatch
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXPLAINED = Path(__file__).parent / "mutants.toml"
RESULT = Path(__file__).parent / "results" / "mutants.json"
KILLED = (1, 3)  # exit statuses of tests that failed, or broke
QUICK = 0.03  # seconds of a test that runs in the first round
ABOUT = {
    "registry": "test_lookup test_stats test_g01 test_g02 test_sequential",
    "receipt": "test_g06 test_g05 test_g08 test_g09 test_awaiting",
    "turn": "test_g03 test_g04 test_g06 test_g10 test_g18",
    "mailbox": "test_mailbox test_homeless test_g09 test_g20 test_g02 test_g03 test_stats test_sequential",
    "waits": "test_g08 test_g06 test_g10 test_g20 test_awaiting",
    "draining": "test_g10",
    "closing": "test_g10 test_ending",
    "lane": "test_g20 test_g04",
    "timer": "test_deadlines test_g07 test_g09 test_handlers",
    "monitor": "test_steps test_put_off test_g08 test_g06 test_g02",
    "delivery": "test_g06 test_g19 test_g08",
    "inline": "test_g04_inline test_g04 test_g05 test_g08 test_g14",
    "call": "test_g05 test_g14 test_g15",
    "engine": "test_put_off test_g0 test_g10 test_g12 test_g13 test_g15 test_g17 test_g19 test_g2 test_lookup"
    " test_stats test_steps test_deadlines test_mailbox test_faults test_homeless test_ending",
    "dispatcher": "test_pool test_g08 test_g03 test_g05 test_g07 test_g09 test_g10 test_g12 test_g20 test_stats"
    " test_meetings test_faults",
    "flow": "test_flows",
    "buffer": "test_streams",
    "subscription": "test_g04_inline test_g01 test_g02 test_g08 test_g13 test_g17 test_stats test_lookup test_g22",
    "latency": "test_stats",
}
PLAIN = (
    "tests/house/test_hot.py tests/house/test_emit_method.py tests/promises/test_g12_anywhere.py"
    " tests/promises/test_g11_fork.py tests/promises/test_services.py tests/promises/test_synchronizer.py"
    " tests/promises/test_g18_leaks.py tests/faults"
)
SLOW = 0.5  # seconds of a test, usually a hammer, that runs in neither
PATIENCE = 4.0  # seconds within which what a test awaits must have happened; without mutants it has ten
CHILDREN = 6  # at once: those that lose an event mostly wait
WHOLE = 600.0  # seconds for all that mutmut cannot run
MEMORY = 3 << 30  # bytes that one may map: there are those that would take all


def add_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("modules", nargs="*", metavar="MODULE", help="for mutants: of the core; if none, report only")
    made.add_argument("--again", action="store_true", help="for mutants: what survived, against nearly all tests")
    made.add_argument("--plain", action="store_true", help="for mutants: the rest, against what mutmut cannot run")


def main(given: argparse.Namespace) -> int:
    """Run the mutants of the modules that are named, and write down how all stand; 1 if one is not explained."""
    if given.modules:
        mutmut("none", [])
    for module in given.modules:
        known = codes(module)
        if given.plain:
            plain(module, [name for name, code in known.items() if code in (0, 33) and not explained(name, plain=True)])
            continue
        if given.again:
            which, names = "all", [name for name, code in known.items() if code in (0, 33) and not explained(name)]
        else:
            which, names = "quick", [name for name, code in known.items() if code is None]
        if names:
            mutmut(which, names)
    return write()


def mutmut(which: str, names: list[str]) -> None:
    """mutmut in a process of its own: it forks, and must not know this one's modules."""
    code = "from benchmarks import mutants; mutants.inside()"
    environment = os.environ | {"EVENTBUS_PURE": "1"}
    given = json.dumps([which, names]).encode()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, input=given, stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"mutmut ended with {done.returncode}: what it said stands above")


def inside() -> None:
    """In that process: mutmut, but for the order and the patience."""
    which, names = json.load(sys.stdin)
    sys.path.insert(0, str(ROOT / "tests"))
    import kit
    from mutmut import __main__ as mutmut_main
    from mutmut.runners.harness import PytestRunner
    from mutmut.state import state

    if which == "none":  # plant the mutants of what has changed since
        mutmut_main.set_mutant_under_test("mutant_generation")
        mutmut_main.copy_src_dir()
        mutmut_main.copy_also_copy_files()
        mutmut_main.create_mutants(CHILDREN)
        return

    files = ABOUT[names[0].split(".")[2]].split()

    def arguments(self: Any, tests: Iterable[str]) -> list[str]:
        took = state().duration_by_test
        chosen = sorted(tests, key=lambda test: took.get(test, 0.0))
        about = [test for test in chosen if any(f"/{name}" in test for name in files)]
        limit = "--timeout=20"
        if chosen and which == "quick":
            kit.BOUND = PATIENCE  # before a test imports it
            limit = f"--timeout={2 * PATIENCE}"
            chosen = [test for test in about if took.get(test, 0.0) < QUICK] or about or chosen
        elif chosen:
            rest = [test for test in chosen if test not in set(about) and took.get(test, 0.0) < SLOW]
            chosen = [*(test for test in about if took.get(test, 0.0) < SLOW), *rest] or chosen
        return ["-x", "-q", "-p", "no:randomly", limit, *(chosen or self._pytest_add_cli_args_test_selection)]

    PytestRunner._pytest_args_regular_run = arguments
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # The tests have passed without mutants, or there would be no times of them.
    mutmut_main.tests_for_mutant_names = lambda names: {min(state().duration_by_test, key=state().duration_by_test.get)}
    mutmut_main._run(tuple(names), CHILDREN)


def plain(module: str, names: list[str]) -> None:
    """Each mutant in the place of the original, in a copy."""
    kept = meta(module)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("mutants", ".git", "__pycache__"))
        source = copy / "eventbus" / "_engine" / f"{module}.py"
        whole = source.read_text()
        if names and run(copy) != 0:
            raise SystemExit("the tests do not pass without mutants either")
        for number, name in enumerate(names, 1):
            source.write_text(written(whole, name))
            code = run(copy)
            print(f"{number} of {len(names)}: {readable(name)}: {code}", file=sys.stderr, flush=True)
            if code is None or code == 1 or code < 0:  # a signal: the C was given what it is never given
                state = json.loads(kept.read_text())
                state["exit_code_by_key"][name] = 1
                kept.write_text(json.dumps(state, indent=4))


def run(copy: Path) -> int | None:
    """The exit status of the tests there; None if they did not end in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "--timeout=60", *PLAIN.split()]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("EVENTBUS_PURE", None)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
            timeout=WHOLE, preexec_fn=limit,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def written(whole: str, mutant: str) -> str:
    """A module's source with the mutant in it."""
    from mutmut.mutation.diff_apply import read_functions_from_index

    *classes, function = readable(mutant).split(".")[1:]
    scope: list[ast.stmt] = ast.parse(whole).body
    for name in classes:
        scope = next(each for each in scope if isinstance(each, ast.ClassDef) and each.name == name).body
    found = next(each for each in scope if isinstance(each, ast.FunctionDef) and each.name == function)
    lines = whole.splitlines(keepends=True)
    first = min([found.lineno, *(each.lineno for each in found.decorator_list)]) - 1
    with contextlib.chdir(ROOT):
        functions = read_functions_from_index(mutant, f"eventbus/_engine/{mutant.split('.')[2]}.py")
    assert functions is not None
    import libcst

    text = textwrap.indent(libcst.Module([functions[1]]).code.strip() + "\n", " " * found.col_offset)
    return "".join((*lines[:first], text, *lines[found.end_lineno :]))


def meta(module: str) -> Path:
    return ROOT / "mutants" / "eventbus" / "_engine" / f"{module}.py.meta"


def codes(module: str) -> dict[str, int | None]:
    """The exit status of each mutant's run; None: not run."""
    path = meta(module)
    return json.loads(path.read_text())["exit_code_by_key"] if path.exists() else {}


def readable(mutant: str) -> str:
    """registry.Registry.add, of eventbus._engine.registry.xǁRegistryǁadd__mutmut_7."""
    module, _, name = mutant.removeprefix("eventbus._engine.").partition(".")
    return (
        f"{module}.{name.rpartition('__mutmut_')[0].removeprefix('x').replace('ǁ', '.').removeprefix('_').strip('.')}"
    )


def change(mutant: str) -> tuple[str, str]:
    """What the line was, and what it is in the mutant."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant

    path = Path("eventbus/_engine") / f"{mutant.split('.')[2]}.py"
    with contextlib.chdir(ROOT):
        lines = get_diff_for_mutant(mutant, path=path).splitlines()
    gone = " ".join(line[1:].strip() for line in lines if line[:1] == "-" and line[:3] != "---")
    come = " ".join(line[1:].strip() for line in lines if line[:1] == "+" and line[:3] != "+++")
    return gone, come


def write() -> int:
    """The kept result, of everything that was run."""
    rows: dict[str, Any] = {}
    unexplained = 0
    for path in sorted((ROOT / "mutants" / "eventbus" / "_engine").glob("*.meta")):
        module = path.name.removesuffix(".py.meta")
        found = codes(module)
        ran = {name: code for name, code in found.items() if code is not None}
        if not ran:
            continue
        survivors = []
        for name in (name for name, code in ran.items() if code in (0, 33)):
            gone, come = change(name)
            why = explained(name)
            unexplained += why is None
            survivors.append({"in": readable(name), "was": gone, "becomes": come, "why": why})
        rows[module] = {
            "mutants": len(found),
            "run": len(ran),
            "killed": sum(code in KILLED for code in ran.values()),
            "timed_out": sum(code not in (*KILLED, 0, 33) for code in ran.values()),
            "survived": len(survivors),
            "unexplained": sum(each["why"] is None for each in survivors),
            "survivors": survivors,
        }
        told = {key: value for key, value in rows[module].items() if key != "survivors"}
        print(f"{module:12}", ", ".join(f"{value} {key}" for key, value in told.items()))
        for each in survivors:
            if each["why"] is None:
                print(f"  {each['in']}:\n    - {each['was']}\n    + {each['becomes']}")
    if rows:
        RESULT.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return 1 if unexplained else 0


def explained(mutant: str, plain: bool = False) -> str | None:
    """Why a mutant is no hole in the tests, if somebody has said so; ``*`` in what is said stands for anything."""
    where, (was, becomes) = readable(mutant), change(mutant)
    for each in reasons():
        if (
            fnmatch.fnmatchcase(where, each["in"])
            and fnmatch.fnmatchcase(becomes, each["becomes"])
            and each.get("was", was) == was
            and not (plain and each.get("c"))
        ):
            why: str = each["why"]
            return why
    return None


@functools.cache
def reasons() -> list[dict[str, Any]]:
    return tomllib.loads(EXPLAINED.read_text()).get("mutant", [])
