"""How long is the way from an emit to the start of the handler when everybody sleeps?"""

from __future__ import annotations

from functools import partial

from ..harness import Case, Metric, line_up
from ..shapes import idle_thread, idle_to_loop

METRICS = (
    Metric("p50", "µs", "emit to the handler's start, median"),
    Metric("p99", "µs", "emit to the handler's start, 99th percentile"),
)
NOTE = "One event at a time, half a millisecond after the last one."

CASES = [
    Case(
        "latency-thread",
        "Idle latency to a thread",
        partial(
            line_up,
            idle_thread,
            "ours:threads",
            "pyee:threads",
            "standard:threads_pool",
            "standard:threads_queue",
            "standard:threads_simple",
        ),
        400,
        METRICS,
        quick=0.3,
        note=NOTE,
    ),
    Case(
        "latency-loop",
        "Idle latency to a loop",
        partial(
            line_up,
            idle_to_loop,
            "ours_async:to_loop",
            "standard:to_loop_coroutine",
            "janus:to_loop",
            "standard:to_loop_call_soon",
        ),
        400,
        METRICS,
        quick=0.3,
        note=NOTE,
    ),
]
