"""Points at every line of the engine: what lies between two calls of the seam is explored, too.

From Python 3.12 on by ``sys.monitoring``, before by ``sys.settrace``. Only threads that are controlled, and only while
the scheduler branches, stop there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import eventbus

from .baton import here

__all__ = ["line_points"]

ENGINE = str(Path(eventbus.__file__).parent / "_engine") + "/"
TOOL = 4  # of the six that there can be; no known tool has it
SKIPPED = ("process.py", "primitives.py", "latency.py", "__init__.py")  # hold nothing that emits share

Wrap = Callable[[Callable[[], None]], None]


def watched(filename: str) -> bool:
    """Whether lines of this file are points."""
    return filename.startswith(ENGINE) and not filename.endswith(SKIPPED)


def _stop() -> None:
    task = here()
    if task is not None:
        sched = task.sched
        if sched.branching and sched.current is task and not (sched.strategy.committed and not sched.aborting):
            sched.point()
        elif sched.branching:
            sched.decisions += 1


if sys.version_info >= (3, 12):

    @contextmanager
    def line_points(instructions: bool = False) -> Iterator[Wrap | None]:
        """Within it, each line (or each instruction) of the engine is a point."""
        monitoring = sys.monitoring
        event = monitoring.events.INSTRUCTION if instructions else monitoring.events.LINE
        disable = monitoring.DISABLE

        def at(code: CodeType, _: int) -> Any:
            if not watched(code.co_filename):
                return disable
            _stop()
            return None

        monitoring.use_tool_id(TOOL, "schedules")
        try:
            monitoring.register_callback(TOOL, event, at)
            monitoring.set_events(TOOL, event)
            monitoring.restart_events()
            yield None
        finally:
            monitoring.set_events(TOOL, 0)
            monitoring.register_callback(TOOL, event, None)
            monitoring.free_tool_id(TOOL)

else:

    @contextmanager
    def line_points(instructions: bool = False) -> Iterator[Wrap | None]:
        """Within it, each line (or each instruction) of the engine is a point."""
        wanted = "opcode" if instructions else "line"

        def local(frame: FrameType, event: str, _: Any) -> Any:
            if event == wanted:
                _stop()
            return local

        def on_call(frame: FrameType, event: str, _: Any) -> Any:
            if not watched(frame.f_code.co_filename):
                return None
            if instructions:
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
            return local

        def wrap(target: Callable[[], None]) -> None:
            sys.settrace(on_call)
            try:
                target()
            finally:
                sys.settrace(None)

        yield wrap
