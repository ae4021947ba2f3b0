"""Helpers of the facade's tests: loops to run things in. Every wait is bounded and fails loudly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from kit import BOUND

__all__ = ["AsyncGate", "LoopThread", "others", "passes", "run", "until"]


def run(main: Coroutine[Any, Any, Any], within: float = 2 * BOUND) -> Any:
    """Run a coroutine in a loop of its own."""

    async def bounded() -> Any:
        async with asyncio.timeout(within):
            return await main

    return asyncio.run(bounded())


async def passes(count: int = 20) -> None:
    """Let the loop go round so often: whatever is ready has its turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait until something is true that nothing announces."""
    async with asyncio.timeout(BOUND):
        while not condition():
            await asyncio.sleep(0.001)


def others() -> set[asyncio.Task[Any]]:
    """The tasks of this loop beside the running one and the one that bounds the test."""
    return {
        task
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and "bounded" not in repr(task.get_coro())
    }


class AsyncGate:
    """A coroutine handler that stops inside until the test opens it, from any thread; the loop's side waits in it."""

    def __init__(self, returns: Any = None) -> None:
        self.returns = returns
        self.received: list[Any] = []
        self.inside = 0
        self.most = 0
        self.left = 0
        self.cancelled = 0
        self._open = threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    async def __call__(self, payload: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append((loop, future))
        self.received.append(payload)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            if not self._open.is_set():
                await asyncio.wait_for(future, BOUND)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
            self.left += 1
        return self.returns

    def open(self) -> None:
        """Let everything through, also what comes later."""
        self._open.set()
        for loop, future in self._waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda future=future: future.done() or future.set_result(None))

    async def entered(self, times: int = 1) -> None:
        """Wait until it has been entered so often, all in all."""
        await until(lambda: len(self.received) >= times, f"{times} entries")


class LoopThread:
    """A loop that runs in a thread of its own. ``call`` runs a coroutine there and gives its result."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="loop-thread", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def ident(self) -> int | None:
        return self._thread.ident

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.begin(coroutine).result(BOUND)

    def stop(self) -> None:
        """Stop it, without closing."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(BOUND)
            assert not self._thread.is_alive()

    def start(self) -> None:
        """Run it again."""
        self._thread = threading.Thread(target=self._run, name="loop-thread", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop and close it, as it is: what is in it stays undone."""
        self.stop()
        if not self.loop.is_closed():
            self.loop.close()

    def end(self) -> None:
        """Cancel what is in it, as asyncio.run does, and close it."""
        if not self.loop.is_closed():

            async def cancel() -> None:
                tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

            self.call(cancel())
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
