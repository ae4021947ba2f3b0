"""What does it cost to hand an event from one thread to a handler in another?"""

from __future__ import annotations

from functools import partial

from ..harness import Case, Contender, Missing, line_up
from ..shapes import threads


def contenders(publishers: int) -> list[Contender | Missing]:
    return line_up(
        partial(threads, publishers=publishers),
        "ours:threads",
        "pyee:threads",
        "standard:threads_pool",
        "standard:threads_queue",
        "standard:threads_simple",
        "limits:threads",
    )


NOTE = "A burst to one handler, from the first emit to the last call. Ours keeps its mailbox bound of 10,000."

CASES = [
    Case("thread-to-thread-1", "Thread to thread, 1 publisher", partial(contenders, 1), 20_000, note=NOTE),
    Case("thread-to-thread-4", "Thread to thread, 4 publishers", partial(contenders, 4), 20_000, note=NOTE),
]
