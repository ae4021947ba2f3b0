"""Running the flows that both faces share (waits of the synchronizer, starts and stops of services) on an event loop.

Owner: of a :class:`Running` the bus's monitor; of a :class:`Once` the task that awaits it first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

from eventbus import EventBusError, ServiceError
from eventbus.lowlevel import ALL, Pause, Waiter, core_of, notify, primitives

from ._await import Acted, Waiting
from ._bus import AsyncEventBus
from ._runner import next_pass

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable

    from eventbus.lowlevel import Call, Delivery, Engine, Flow

    from ._binding import Binding
    from ._runner import LoopExecutor

__all__ = ["Holder", "Once", "Running", "begin_flow", "drive", "face_of", "keep"]

T = TypeVar("T")

Holder = set["asyncio.Task[Any]"]


def keep(task: asyncio.Task[Any], holder: Holder) -> None:
    """Hold a task until it has ended: asyncio itself does so weakly."""
    holder.add(task)
    task.add_done_callback(holder.discard)


def abandon_lost(holder: Holder) -> None:
    """Break off what was left behind in loops that were closed, so that nothing waits for it."""
    for task in list(holder):
        if task.get_loop().is_closed():
            holder.discard(task)
            cast("Coroutine[Any, Any, Any]", task.get_coro()).close()


def face_of(bus: Any) -> AsyncEventBus:
    """A bus of either face as seen from loops. Raises OptionTypeError for what is no bus."""
    return bus if isinstance(bus, AsyncEventBus) else AsyncEventBus(core_of(bus))


async def perform(wanted: Pause | Call) -> Any:
    """What a flow has asked for."""
    if isinstance(wanted, Pause):
        return await Waiting(wanted.engine, wanted.waiter, wanted.timeout)
    answer: object = wanted.function()
    return await answer if isinstance(answer, Awaitable) else answer  # pyright: ignore[reportUnknownVariableType]


async def drive(flow: Flow[T]) -> T:
    """Run a flow to its end in this task."""
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            wanted = flow.send(answer) if error is None else flow.throw(error)
        except StopIteration as end:
            return cast("T", end.value)
        answer = error = None
        try:
            answer = await perform(wanted)
        except BaseException as raised:
            error = raised


class Once(Acted[T]):
    """A wait that runs while it is awaited; cancelling that ends it. Awaited again, it gives the same result again."""

    __slots__ = ("_done", "_flow", "_result")

    def __init__(self, binding: Binding, flow: Flow[T]) -> None:
        self._binding = binding
        self._flow: Flow[T] | None = flow
        self._done = False
        self._result: Any = None

    def __await__(self) -> Generator[Any, Any, T]:
        self._binding.enter()
        return (yield from self._ended().__await__())

    async def _ended(self) -> T:
        if self._done:
            return cast("T", self._result)
        flow, self._flow = self._flow, None
        if flow is None:
            raise EventBusError("this wait is awaited already, or was ended; make another one")
        self._result = await drive(flow)
        self._done = True
        return cast("T", self._result)


class Running:
    """A flow that began at the call, and goes on in a task of its own whoever awaits it."""

    __slots__ = ("begun", "done", "engine", "error", "flow", "holder", "name", "waiters", "wanted")

    def __init__(self, engine: Engine, flow: Flow[None], name: str, holder: Holder) -> None:
        self.engine = engine
        self.holder = holder
        self.flow = flow
        self.name = name
        self.begun = False
        self.done = False
        self.error: BaseException | None = None
        self.wanted: Pause | Call | None = None  # what the flow waits for
        self.waiters: list[Waiter] = []

    def begin(self) -> None:
        """On a loop: run it up to its first wait here and now, for it acts at the call, and the rest in a task."""
        loop = asyncio.get_running_loop()
        if not self.engine.look(self._first):
            return
        context = copy_context()
        try:
            self.wanted = context.run(self.flow.send, None)
        except StopIteration:
            self.engine.look(self._end, None)
            return
        coroutine = self._run()
        context.run(
            coroutine.send, None
        )  # into its "try": a task that is cancelled before its first step enters nothing
        keep(loop.create_task(coroutine, name=self.name, context=context), self.holder)

    def begin_there(self) -> None:
        """As :meth:`begin`, where nobody hears of what it raises but those who await it."""
        try:
            self.begin()
        except BaseException as error:
            self.engine.look(self._end, error)

    def _first(self) -> bool:
        if self.begun:
            return False
        self.begun = True
        return True

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            try:
                await next_pass()
            except asyncio.CancelledError as raised:
                await drive(self._watched(raised))
            else:
                await drive(self._watched())
        except BaseException as raised:
            if isinstance(raised, GeneratorExit):
                self.flow.close()
            error = raised
        self.engine.look(self._end, error)
        if isinstance(error, asyncio.CancelledError):
            raise error

    def _watched(self, cancelled: BaseException | None = None) -> Flow[None]:
        """The flow from where it stands, noting what it waits for."""
        flow, wanted = self.flow, self.wanted
        assert wanted is not None
        if cancelled is not None:
            try:
                self.wanted = wanted = flow.throw(cancelled)
            except StopIteration:
                return
        while True:
            try:
                answer = yield wanted
            except GeneratorExit:
                flow.close()
                raise
            except BaseException as error:
                try:
                    wanted = flow.throw(error)
                except StopIteration:
                    return
            else:
                try:
                    wanted = flow.send(answer)
                except StopIteration:
                    return
            self.wanted = wanted

    def _end(self, error: BaseException | None) -> None:
        self.error = error
        self.done = True
        self.wanted = None
        notify(self.engine, self.waiters)

    async def ended(self) -> None:
        """Wait for its end, and raise what it raised."""
        if not self.begun:
            self.begin()
        if not self.done:
            await Waiting(self.engine, self._waiter(), None)
        error = self.error
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            raise ServiceError(f"{self.name} was cancelled by its loop") from error
        if error is not None:
            raise error

    def _waiter(self) -> Waiter:
        return Waiter(self.name, lambda: self.done, self._enlist, ALL, self._targets)

    def _enlist(self, waiter: Waiter, begin: bool) -> None:
        if begin:
            self.waiters.append(waiter)
        elif waiter in self.waiters:
            self.waiters.remove(waiter)

    def _targets(self) -> Iterable[Delivery]:
        """For the wait graph: whoever awaits this waits for what it waits for, where that has no end of its own."""
        wanted = self.wanted
        return wanted.waiter.targets() if isinstance(wanted, Pause) and wanted.timeout is None else ()


def begin_flow(binding: Binding, flow: Flow[None], name: str, holder: Holder, home: LoopExecutor | None) -> Acted[None]:
    """Begin a flow now: here if a loop runs here, else on its home if that is open, else when it is first awaited.

    The result waits for its end.
    """
    abandon_lost(holder)
    running = Running(binding.engine, flow, name, holder)
    if primitives.running_loop() is not None:
        running.begin()
    elif home is not None and not home.gone and (loop := home.loop()) is not None and not loop.is_closed():
        home.bridge.post(running.begin_there)
    return Acted(binding, running.ended)
