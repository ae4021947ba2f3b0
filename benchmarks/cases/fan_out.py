"""What does a delivery cost when an event goes to many subscriptions, with four workers?"""

from __future__ import annotations

from functools import partial

from ..harness import Case, Contender, Missing, line_up
from ..shapes import threads


def contenders(handlers: int) -> list[Contender | Missing]:
    return line_up(
        partial(threads, handlers=handlers, workers=4),
        "ours:threads",
        "pyee:threads",
        "standard:threads_pool",
        "standard:threads_queue",
        "standard:threads_simple",
        "limits:threads",
    )


NOTE = "Per delivery. The queues have a thread a handler; pools and ours four workers; the deque one drainer."

CASES = [
    Case("fan-out-8", "Fan-out to 8 subscriptions, 4 workers", partial(contenders, 8), 4_000, note=NOTE),
    Case("fan-out-64", "Fan-out to 64 subscriptions, 4 workers", partial(contenders, 64), 500, note=NOTE),
]
