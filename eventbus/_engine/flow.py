"""Flows: what both faces do alike, written once as generators.

A flow yields what has to be waited for or called, and is sent what came of it. The core's driver blocks the thread, the
facade's awaits. So the order of steps stands in one place, and each face adds only its way of waiting.

No state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from .waits import refuse_on_loop, sleep

if TYPE_CHECKING:
    from .engine import Engine
    from .waits import Waiter

__all__ = ["Call", "Flow", "Pause", "drive"]

T = TypeVar("T")


class Pause:
    """Wait until the waiter's predicate is true, or for ``timeout`` seconds; the answer is whether it came true."""

    __slots__ = ("engine", "timeout", "waiter")

    def __init__(self, engine: Engine, waiter: Waiter, timeout: float | None) -> None:
        self.engine = engine
        self.waiter = waiter
        self.timeout = timeout

    def block(self) -> bool:
        """Wait in this thread. Raises DeadlockError where that would block a running event loop."""
        waiter = self.waiter
        if self.timeout != 0:
            remedy = "use the class of the same name in eventbus_async and await it"
            refuse_on_loop(self.engine, waiter, f"waiting for {waiter.text}", remedy)
        return sleep(self.engine, waiter, self.timeout, insist=False)


class Call:
    """Call user code; the answer is what it returned, on the facade once that has been awaited."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def block(self) -> Any:
        """Call it in this thread."""
        return self.function()


Flow = Generator["Pause | Call", Any, T]


def drive(flow: Flow[T]) -> T:
    """Run a flow to its end in this thread."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            wanted = flow.send(answer) if error is None else flow.throw(error)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = error = None
        try:
            answer = wanted.block()
        except BaseException as raised:
            error = raised
