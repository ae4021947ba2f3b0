"""One flow at a time: what makes ``start()`` and ``stop()`` safe from several callers at once.

Guarantees: flows of one service (or group) never overlap; who asks for what is under way already shares its end; a
flow never waits for a handler whose call waits for that flow.

Owner: the bus's monitor.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .._engine import primitives
from .._engine.delivery import running_here, stack_of
from .._engine.flow import Pause
from .._engine.waits import ALL, Waiter, notify
from .._errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._engine.delivery import Delivery
    from .._engine.engine import Engine
    from .._engine.flow import Flow

__all__ = ["Turn", "Turns", "callers"]


class Turn:
    """One start, stop or restart in progress."""

    __slots__ = ("changes", "error", "inside", "kind", "over", "uid")

    def __init__(self, kind: str, inside: list[Delivery], uid: str) -> None:
        self.kind = kind
        self.uid = uid  # of the process that it belongs to: a forked child has cut it off
        self.inside = inside  # the handlers that it was called in
        self.changes: list[Any] = []  # what the flow has told the world, to be settled before its callers return
        self.error: BaseException | None = None
        self.over = False

    def raise_error(self, mine: bool) -> None:
        """Raise what the flow raised: as it is, but that a caller is not cancelled because another one was."""
        error = self.error
        if error is None:
            return
        if mine or isinstance(error, Exception):
            raise error
        raise ServiceError(f"the {self.kind} that was under way was broken off by {error!r}") from error


# The flows that the running code belongs to, the latest last: handlers of what they emit inherit it, and tasks.
_here: ContextVar[tuple[Turn, ...]] = ContextVar("eventbus_turns", default=())


def handlers_here() -> list[Delivery]:
    """The deliveries whose handlers run in this very thread or task."""
    task = primitives.current_task()
    delivery = running_here(primitives.get_ident())
    if delivery is None and task is not None:
        delivery = running_here(task)
    return list(stack_of(delivery))


def callers() -> list[Delivery]:
    """Those, and the ones in which the flows were called that this code belongs to."""
    found = handlers_here()
    for turn in _here.get():
        if not turn.over:
            found.extend(turn.inside)
    return found


class Turns:
    """The flows of one service or group."""

    __slots__ = ("blocking", "engine", "inside", "name", "quiet", "turn", "waiters")

    def __init__(self, engine: Engine, name: str, blocking: bool) -> None:
        self.engine = engine
        self.name = name
        self.blocking = blocking  # flows run in the caller's thread, not in a task of their own
        self.turn: Turn | None = None
        self.waiters: list[Waiter] = []
        self.inside: list[Delivery] = []  # whose handlers are in a call of this service's start or stop
        self.quiet: list[Waiter] = []  # waits of a flow for handlers, which leave those out

    def run(
        self, kind: str, needed: Callable[[], bool], work: Callable[[Turn], Flow[None]]
    ) -> Flow[tuple[Turn, bool] | None]:
        """Take a turn and do the work in it, if it is needed; or share one of the same kind that is under way.

        Gives that turn, with its error, and whether it is this caller's own; None if there was nothing to do.
        """
        look = self.engine.look
        inside = callers()
        look(self._arrive, inside)
        try:
            while True:
                turn, mine = look(self._take, kind, needed, inside)
                if turn is None:
                    return None
                if mine:
                    break
                if turn in _here.get():
                    if turn.kind == kind:
                        return None  # called by the flow itself, or by a handler of what it emitted
                    # A handler of what it has emitted may wait for it, for it does not wait for that; inline ones are
                    # on its own stack.
                    if all(each in turn.inside or each.box.inline for each in handlers_here()):
                        raise ServiceError(
                            f"{kind} of {self.name} was called within its own {turn.kind}, which it would wait for;"
                            " raise an error there instead, or call it later"
                        )
                yield Pause(self.engine, self._end_of(turn), None)
                if turn.kind == kind:
                    return turn, False
            token = _here.set((*_here.get(), turn))
            try:
                yield from work(turn)
            except GeneratorExit:
                turn.error = ServiceError(f"the {kind} of {self.name} was abandoned")
                raise
            except BaseException as error:
                turn.error = error
            finally:
                try:
                    _here.reset(token)
                except ValueError:
                    pass  # an abandoned flow, finalized elsewhere
                look(self._leave, turn)
            return turn, True
        finally:
            look(self._depart, inside)

    def _arrive(self, inside: list[Delivery]) -> None:
        self.inside.extend(inside)
        notify(self.engine, self.quiet)

    def _depart(self, inside: list[Delivery]) -> None:
        for each in inside:
            if each in self.inside:
                self.inside.remove(each)

    def _take(self, kind: str, needed: Callable[[], bool], inside: list[Delivery]) -> tuple[Turn | None, bool]:
        if self.turn is not None and self.turn.uid == self.engine.uid:
            return self.turn, False
        if not needed():
            return None, False
        self.turn = Turn(kind, inside, self.engine.uid)
        return self.turn, True

    def _leave(self, turn: Turn) -> None:
        turn.over = True
        turn.inside = []
        if self.turn is turn:
            self.turn = None
        notify(self.engine, self.waiters)

    def _end_of(self, turn: Turn) -> Waiter:
        def enlist(waiter: Waiter, begin: bool) -> None:
            if begin:
                self.waiters.append(waiter)
            elif waiter in self.waiters:
                self.waiters.remove(waiter)

        def targets() -> list[Delivery]:
            return turn.inside if self.blocking else []

        return Waiter(f"the {turn.kind} of {self.name}", lambda: turn.over, enlist, ALL, targets)
