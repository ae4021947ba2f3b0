"""What does it cost to call handlers in the emitting thread?"""

from __future__ import annotations

from functools import partial

from ..harness import Case, Contender, Missing, line_up
from ..shapes import inline


def contenders(handlers: int) -> list[Contender | Missing]:
    return line_up(
        partial(inline, handlers=handlers),
        "ours:inline",
        "pyee:inline",
        "blinker:inline",
        "psygnal:inline",
        "pypubsub:inline",
        "limits:inline",
    )


NOTE = "An emit, all handlers included. Ours gives isolation, a receipt with outcomes, and exact statistics."

CASES = [
    Case("inline-1", "Inline, 1 handler", partial(contenders, 1), 50_000, note=NOTE),
    Case("inline-10", "Inline, 10 handlers", partial(contenders, 10), 10_000, note=NOTE),
]
