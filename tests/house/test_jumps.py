"""Loops within a ``try``: the jump back must be covered by it, or a signal handler that raises there gets past it.

CPython runs signal handlers at backward jumps. Up to 3.12 an exception raised there counts as one of the instruction
before the jump's target; from 3.13 on it is the jump's own, and the compiler leaves those that it makes of a condition
at a loop's end outside of every ``try`` (and ``with``). So loops whose ``try`` is there for such exceptions must not
end in an ``if``, nor test their condition there.
"""

from __future__ import annotations

import dis
import sys
from types import CodeType, FunctionType
from typing import Any

import pytest

from eventbus._engine.engine import Engine
from eventbus._engine.inline import run_inline
from eventbus._engine.monitor import Monitor

RELIED_ON: list[Any] = [
    Engine._emit_in_sections,
    Engine._emit_in_step,
    Engine._accept,
    Engine._admit,
    Engine.settle,
    Monitor.run,
    Monitor.flush,
    Monitor._catch_up,
    run_inline,
]


def uncovered(code: CodeType) -> list[int]:
    """The lines of backward jumps at which an exception misses the handler of the loop's body."""
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    instructions = list(dis.get_instructions(code))
    names = {each.offset: each.opname for each in instructions}

    def handler(offset: int) -> int | None:
        """Of a ``try`` or ``with``; the clean-up of a comprehension, which raises again, stands for what covers it."""
        found = [each.target for each in entries if each.start <= offset < each.end]
        if not found:
            return None
        return found[0] if names[found[0]] == "PUSH_EXC_INFO" else handler(found[0])

    lines: list[int] = []
    for each in instructions:
        if each.opname.startswith("JUMP_BACKWARD") and "NO_INTERRUPT" not in each.opname:
            before = max(offset for offset in names if offset < each.argval)
            raised_at = each.offset if sys.version_info >= (3, 13) else before
            if handler(raised_at) is None and handler(each.argval) is not None:
                lines.append(next(line or 0 for begin, end, line in code.co_lines() if begin <= each.offset < end))
    return lines


@pytest.mark.parametrize("function", RELIED_ON, ids=lambda function: function.__qualname__)
def test_no_jump_back_gets_past_a_try_that_mends(function: FunctionType) -> None:
    assert uncovered(function.__code__) == []


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the compiler covers this one")
def test_one_that_does_is_found() -> None:
    """Else the tests above could not fail."""

    def search(items: list[int]) -> bool:
        found = False
        try:
            for each in items:
                if each:
                    found = True
        except BaseException:
            return True
        return found

    assert uncovered(search.__code__)
