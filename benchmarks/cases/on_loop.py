"""What does it cost to emit and await a coroutine handler, all on one loop?"""

from __future__ import annotations

from functools import partial

from ..harness import Case, line_up
from ..shapes import on_one_loop

CASES = [
    Case(
        "on-loop",
        "On one loop, `await emit`",
        partial(
            line_up,
            on_one_loop,
            "ours_async:on_loop",
            "bubus:on_loop",
            "pyee:on_loop",
            "standard:on_loop_task",
            "standard:on_loop_await",
        ),
        5_000,
        note="Emit, and wait until the handler has ended, one after the other. Ours begins no handler inside emit().",
    )
]
