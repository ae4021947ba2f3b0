"""Sections: the steps that need no lock on builds with a GIL, because nothing can come between their instructions.

CPython runs other threads and signal handlers only where a function begins, at the end of a call and at a backward
jump, and finalizers only where something is dropped or (3.11) made that the collector tracks. So the compiled code of a
section must have none of that, but for one call at its very end.
"""

from __future__ import annotations

import dis
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEGIN = re.compile(r"^\s*# Section: ")
END = re.compile(r"^\s*# End of section\.")

# What lets somebody in, or makes something that the collector tracks.
OPEN = re.compile(
    r"CALL|RESUME|BACKWARD|SEND|YIELD|AWAIT|ITER|IMPORT|BUILD|_EXTEND|UPDATE|FORMAT|MAKE|WITH|RAISE|DELETE_ATTR"
)
# What may follow the one call at the end.
AFTER = re.compile(r"POP_TOP|LOAD_|NOP|JUMP_FORWARD|CACHE|EXTENDED_ARG")


def sections() -> Iterator[tuple[Path, int, int]]:
    for package in "eventbus", "eventbus_async":
        for path in sorted((ROOT / package).rglob("*.py")):
            begin = 0
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if BEGIN.match(line):
                    assert not begin, f"{path}:{number}: a section within a section"
                    begin = number
                elif END.match(line):
                    assert begin, f"{path}:{number}: the end of no section"
                    yield path, begin, number
                    begin = 0
            assert not begin, f"{path}:{begin}: a section without an end"


FOUND = list(sections())


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from codes(const)


def instructions(path: Path, begin: int, end: int) -> list[dis.Instruction]:
    """Those of the lines between, in the order of the code."""
    whole = compile(path.read_text(encoding="utf-8"), str(path), "exec")
    found: list[dis.Instruction] = []
    for code in codes(whole):
        lines = {offset: line for first, last, line in code.co_lines() for offset in range(first, last, 2)}
        found += [each for each in dis.get_instructions(code) if begin < (lines.get(each.offset) or 0) < end]
    return found


@pytest.mark.parametrize(("path", "begin", "end"), FOUND, ids=[f"{path.stem}:{begin}" for path, begin, _ in FOUND])
def test_nothing_comes_between_the_instructions_of_a_section(path: Path, begin: int, end: int) -> None:
    """G3, G12: a section is one step."""
    inside = instructions(path, begin, end)
    assert len(inside) > 8, "the markers are somewhere else than the code"
    breaks = [number for number, each in enumerate(inside) if OPEN.search(each.opname)]
    if breaks and inside[breaks[-1]].opname.startswith("CALL"):
        first = breaks[-1] - (inside[breaks[-1] - 1].opname == "PRECALL")
        after = inside[breaks[-1] + 1 :]
        assert all(AFTER.match(each.opname) for each in after), f"{after} follow the last call"
        breaks = [number for number in breaks if number < first]
        assert not [each for each in inside[first:] if "EXCEPT" in each.opname]
    assert not [str(inside[number]) for number in breaks], [inside[number].positions for number in breaks]


def test_there_are_sections() -> None:
    assert {path.name for path, _, _ in FOUND} >= {"engine.py", "turn.py", "_runner.py"}


def test_they_are_left_alone_where_there_is_no_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    """G3 on free-threaded builds: there every emit is a step with the lock."""
    from eventbus import EventBus

    primitives = importlib.import_module("eventbus._engine.primitives")
    monkeypatch.setattr(primitives, "SECTIONS", False)
    with EventBus() as bus:
        got: list[int] = []
        bus.on("t", got.append)
        for number in range(100):
            bus.emit("t", number)
        bus.drain(10)
        assert not bus._engine.registry.routes["t"].swift
        assert not bus.subscriptions("t")[0]._box.flows
    assert got == list(range(100))
