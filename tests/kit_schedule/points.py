"""Points within the engine's code, between two calls of the seam.

``"switch"``
    Wherever a CPython with a GIL may run another thread: where a function begins, at the end of a call, at a backward
    jump. This is what the sections of the hot path (see ``primitives.SECTIONS``) rely on.
``"line"``
    At every line, with the sections off: what free-threaded builds run, as far as one order of all steps can show it.

From Python 3.12 on by ``sys.monitoring``, before by ``sys.settrace``. Only threads that are controlled, and only while
the scheduler branches, stop there.
"""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import eventbus
import eventbus_async

from .baton import here

__all__ = ["points_within", "switches"]

WATCHED = (str(Path(eventbus.__file__).parent / "_engine") + "/", str(Path(eventbus_async.__file__).parent) + "/_")
TOOL = 4  # of the six that there can be; no known tool has it
SKIPPED = ("process.py", "primitives.py", "latency.py", "__init__.py")  # hold nothing that emits share

AT = re.compile(r"RESUME|JUMP_BACKWARD$|.*_JUMP_BACKWARD")  # the switch comes with the instruction
AFTER = re.compile(r"CALL$|CALL_KW|CALL_FUNCTION_EX|BEFORE_WITH|WITH_EXCEPT_START")  # and here after it

Wrap = Callable[[Callable[[], None]], None]
_tables: dict[CodeType, frozenset[int]] = {}


def watched(filename: str) -> bool:
    """Whether code of this file has points."""
    return filename.startswith(WATCHED) and not filename.endswith(SKIPPED)


def switches(code: CodeType) -> frozenset[int]:
    """The offsets of the instructions before which another thread may run."""
    table = _tables.get(code)
    if table is None:
        found: set[int] = set()
        called = False
        for each in dis.get_instructions(code):
            if called or AT.match(each.opname):
                found.add(each.offset)
            if each.opname != "EXTENDED_ARG":  # which instruments count as part of what follows, or not
                called = bool(AFTER.match(each.opname))
        table = _tables[code] = frozenset(found)
    return table


def _stop() -> None:
    task = here()
    if task is not None:
        sched = task.sched
        if sched.branching and sched.current is task:
            if sched.strategy.committed and not sched.aborting:
                sched.decisions += 1
            else:
                sched.point()


if sys.version_info >= (3, 12):

    @contextmanager
    def points_within(grain: str) -> Iterator[Wrap | None]:
        """Within it, the engine's code has points."""
        monitoring = sys.monitoring
        event = monitoring.events.LINE if grain == "line" else monitoring.events.INSTRUCTION
        disable = monitoring.DISABLE

        def at_line(code: CodeType, _: int) -> Any:
            if not watched(code.co_filename):
                return disable
            _stop()
            return None

        def at_instruction(code: CodeType, offset: int) -> Any:
            if not watched(code.co_filename) or offset not in switches(code):
                return disable
            _stop()
            return None

        monitoring.use_tool_id(TOOL, "schedules")
        try:
            monitoring.register_callback(TOOL, event, at_line if grain == "line" else at_instruction)
            monitoring.set_events(TOOL, event)
            monitoring.restart_events()
            yield None
        finally:
            monitoring.set_events(TOOL, 0)
            monitoring.register_callback(TOOL, event, None)
            monitoring.free_tool_id(TOOL)

else:

    @contextmanager
    def points_within(grain: str) -> Iterator[Wrap | None]:
        """Within it, the engine's code has points."""

        def at_line(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                _stop()
            return at_line

        def at_instruction(frame: FrameType, event: str, _: Any) -> Any:
            if event == "opcode" and frame.f_lasti in switches(frame.f_code):
                _stop()
            return at_instruction

        def on_call(frame: FrameType, event: str, _: Any) -> Any:
            if not watched(frame.f_code.co_filename):
                return None
            if grain == "line":
                return at_line
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return at_instruction

        def wrap(target: Callable[[], None]) -> None:
            sys.settrace(on_call)
            try:
                target()
            finally:
                sys.settrace(None)

        yield wrap
