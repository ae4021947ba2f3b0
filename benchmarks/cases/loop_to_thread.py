"""What does it cost to hand an event from a loop to a plain handler in a thread?"""

from __future__ import annotations

from functools import partial

from ..harness import Case, line_up
from ..shapes import loop_to_thread

CASES = [
    Case(
        "loop-to-thread",
        "Loop to thread",
        partial(
            line_up,
            loop_to_thread,
            "ours_async:from_loop",
            "standard:from_loop_executor",
            "janus:from_loop",
            "standard:from_loop_queue",
            "standard:from_loop_simple",
        ),
        10_000,
        note="A burst from a loop that breathes every 64 emits, from the first emit to the last call.",
    )
]
