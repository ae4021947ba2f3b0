"""What does it cost to hand an event from a thread to a coroutine handler on a loop?"""

from __future__ import annotations

from functools import partial

from ..harness import Case, line_up
from ..shapes import thread_to_loop

CASES = [
    Case(
        "thread-to-loop",
        "Thread to loop, coroutine handler",
        partial(
            line_up,
            thread_to_loop,
            "ours_async:to_loop",
            "standard:to_loop_coroutine",
            "janus:to_loop",
            "standard:to_loop_call_soon",
            "janus:to_loop_wakeups",
            "limits:to_loop",
        ),
        10_000,
        note="A burst from one thread to a loop in another, from the first emit to the last call.",
    )
]
