"""To which loop the handlers of one facade belong (G13).

Owner: the bus's monitor. ``home`` is read without it by awaits on the home loop itself, which cannot be closed then.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from eventbus import OptionError, OptionTypeError, ServiceError
from eventbus.lowlevel import ACTIVE, primitives

from ._runner import LoopExecutor, executor_of

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from eventbus.lowlevel import Engine, Executor, HandlerSpec, Mailbox

__all__ = ["Binding", "actor", "check_loop"]


def actor() -> Any:
    """Who is calling: the running task, else the thread."""
    return primitives.current_task() or primitives.get_ident()


def check_loop(loop: object) -> Any:
    """An event loop, or None. Raises OptionTypeError."""
    if loop is not None and not hasattr(loop, "call_soon_threadsafe"):
        raise OptionTypeError(f"loop must be an event loop or None, not {loop!r}")
    return loop


class Binding:
    """The home loop of a facade's unbound handlers, if it has one."""

    __slots__ = ("engine", "fixed", "home", "served")

    def __init__(self, engine: Engine, loop: AbstractEventLoop | None) -> None:
        self.engine = engine
        self.fixed = loop
        self.home: LoopExecutor | None = None
        self.served = 0  # serve() blocks that are open on the home loop

    def place(self, spec: HandlerSpec, loop: AbstractEventLoop | None) -> tuple[Executor | None, Binding | None]:
        """Who runs a handler that is registered now, and who wants it back when its loop closes."""
        if not spec.is_async:
            if loop is not None:
                raise OptionError(
                    f"{spec.name} is a plain function, which runs on the dispatcher; loop= is for coroutine handlers"
                )
            return self.engine.dispatcher, None
        loop = loop or self.fixed or primitives.running_loop()
        if loop is None:
            return self.live_home(), self
        if loop.is_closed():
            raise OptionError(f"{spec.name} was given a loop that is closed: {loop!r}")
        return executor_of(self.engine, loop), None

    def live_home(self) -> LoopExecutor | None:
        """The home executor, unless its loop is gone."""
        home = self.home
        if home is not None:
            loop = home.loop()
            if home.gone or loop is None or loop.is_closed():
                self.engine.look(home.check)
                return None
        return home

    def runner(self) -> LoopExecutor | None:
        """In a step: who runs an unbound handler."""
        return None if self.home is None or self.home.gone else self.home

    def enter(self) -> LoopExecutor:
        """Something of this facade is awaited: the running loop's executor; it becomes home if there is none."""
        loop = asyncio.get_running_loop()
        home = self.home
        if home is not None and home.loop() is loop and not home.gone:
            here = home
        else:
            here = executor_of(self.engine, loop)
            if self.live_home() is None:
                self.engine.look(self._settle, here, False)
        if here.paused:
            here.resume()
        return here

    def serve(self) -> LoopExecutor:
        """The running loop is home for the length of a block. Raises ServiceError if another one serves."""
        here = executor_of(self.engine, asyncio.get_running_loop())
        self.live_home()
        self.engine.monitor.run(self._settle, here, True)
        return here

    def _settle(self, here: LoopExecutor, serve: bool) -> None:
        home = self.home
        if home is not None and home.gone:
            self.served = 0
            home = None
        if serve:
            if self.served and home is not here:
                raise ServiceError("this bus is served by another loop already; a facade has one home loop at a time")
            self.served += 1
        elif home is not None:
            return
        if home is not here:
            self.home = here
            for box in self._mine():
                if home is not None:
                    home.unqueue(box)
                box.attach(here)

    def leave(self, here: LoopExecutor) -> None:
        """The end of a serve() block of that loop: it is nobody's home any more, if it was the last."""
        self.engine.look(self._leave, here)

    def _leave(self, here: LoopExecutor) -> None:
        if self.home is not here:
            return  # its loop has closed before the block ended, and another one may serve
        self.served -= 1
        if self.served <= 0:
            self.served = 0
            self.home = None
            for box in self._mine():
                if box.executor is here:
                    here.release(box)

    def _mine(self) -> list[Mailbox]:
        return [box for box in self.engine.registry.boxes.values() if box.home is self and box.state == ACTIVE]
