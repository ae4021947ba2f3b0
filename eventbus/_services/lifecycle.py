"""The life of a service: one status machine and its flows, for both faces.

Guarantees
    * Every change of status is emitted, once and in order, whoever makes it: changes stand in a line, and one emitter
      at a time empties it. A start and a stop make exactly STARTING, RUNNING, STOPPING, STOPPED.
    * After ``_start`` has raised, and after a stop, nothing of the service is subscribed (G2).
    * Flows take turns (see turns.py); user code runs outside of steps.

Owner: the bus's monitor, but for ``scope``, which looks after itself.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from .._engine import primitives
from .._engine.closing import CLOSED, OPEN
from .._engine.flow import Call, Pause
from .._engine.receipt import Receipt
from .._engine.waits import ALL, LENIENT, Waiter, notify
from .._errors import BusClosedError, DeadlockError, EventBusError, ServiceError
from .._scope import ScopeCore
from .status import ACCEPTING, STATUS_TOPIC, UP, ServiceStatus
from .turns import Turns, callers

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._engine.delivery import Delivery
    from .._engine.engine import Engine
    from .._engine.flow import Flow
    from .._engine.mailbox import Mailbox
    from .._values.stats import HandlerError
    from .status import Restart
    from .turns import Turn

__all__ = ["Hooks", "Lifecycle"]

log = logging.getLogger("eventbus")

SETTLE_SECONDS = 1.0  # the longest that start and stop wait for the handlers of their status events


class Hooks:
    """What a face gives: the user's methods, and its ways of registering and of running a flow by itself."""

    __slots__ = ("error", "launch", "start", "stop", "subscribe_marked")

    def __init__(
        self,
        start: Callable[[], Any],
        stop: Callable[[], Any],
        error: Callable[[HandlerError], None],
        subscribe_marked: Callable[[], None],
        launch: Callable[[Callable[[], Flow[None]]], None],
    ) -> None:
        self.start = start
        self.stop = stop
        self.error = error
        self.subscribe_marked = subscribe_marked
        self.launch = launch


class Change:
    """One change of status, on its way to ``service/status``."""

    __slots__ = ("message", "published", "receipt", "status", "time")

    def __init__(self, status: ServiceStatus, message: str) -> None:
        self.status = status
        self.message = message
        self.time = primitives.wall_clock()
        self.published = False
        self.receipt: Receipt | None = None


class Lifecycle:
    """Status, subscriptions and flows of one service."""

    def __init__(
        self, name: str, engine: Engine, hooks: Hooks, error_limit: int | None, restart: Restart | None, blocking: bool
    ) -> None:
        self.name = name
        self.engine = engine
        self.hooks = hooks
        self.error_limit = error_limit
        self.restart_rule = restart
        self.status = ServiceStatus.INITIALIZING
        self.errors = 0  # of handlers, since the last STARTING
        self.turns = Turns(engine, f"the service {name!r}", blocking)
        self.scope = ScopeCore()
        self.scope.end()
        self._up = False  # _start has succeeded, and _stop has not been called since
        self._outbox: deque[Change] = deque()
        self._publishing = ""  # the process (a bus's uid) in which somebody is at it
        self._readers: list[Waiter] = []  # waits for changes to be published
        self._due: object = None  # the restart that is planned
        self._attempt = 0

    # What users ask for

    def start(self) -> Flow[None]:
        """The flow of ``start()``."""
        caller = callers()
        if self.engine.state != OPEN and self.status not in UP:
            raise BusClosedError(f"the bus {self.engine.name!r} is closed: the service {self.name!r} was not started")
        ended = yield from self.turns.run("start", lambda: self.status not in UP, self._starting)
        yield from self._finish(ended, caller)

    def stop(self) -> Flow[None]:
        """The flow of ``stop()``."""
        caller = callers()
        ended = yield from self.turns.run("stop", self._stoppable, self._stopping)
        yield from self._finish(ended, caller)

    def subscribe(self, register: Callable[[Callable[[Any], object], Callable[[HandlerError], None]], Any]) -> Any:
        """Register something that ends with this run of the service.

        ``register`` is given what to admit it by, before it takes effect, and the watcher of errors.
        """
        scope = self.scope
        if not scope.active:
            raise ServiceError(f"the service {self.name!r} is {self.status}; subscribe within _start, or while it runs")
        try:
            return scope.admitting(lambda: register(scope.admit, self.watch))
        except BusClosedError:
            if scope.active:
                raise  # it is the bus that is closed
            raise ServiceError(f"the service {self.name!r} was stopped: nothing is subscribed any more") from None

    def busy(self) -> bool:
        """Whether a handler of its subscriptions runs right now."""
        return self.engine.look(lambda: any(box.running for box in self._boxes()))

    # Flows

    def _stoppable(self) -> bool:
        return self.status in UP or self._due is not None

    def _starting(self, turn: Turn) -> Flow[None]:
        self._attempt = 0
        yield from self._bring_up(turn)

    def _bring_up(self, turn: Turn) -> Flow[None]:
        self.scope = ScopeCore()
        self._change(turn, ServiceStatus.STARTING)
        try:
            self._publish()
            yield Call(self.hooks.start)
            self._up = True
            # Last, so that these handlers find what _start has made.
            self.hooks.subscribe_marked()
        except GeneratorExit:
            self._cancel_all()
            self._change(turn, ServiceStatus.ERROR, "its start was abandoned")
            self._publish()
            raise
        except BaseException as error:
            try:
                yield from self._withdraw()
            except DeadlockError:
                pass  # all of it is cancelled; the caller will hear of what came first
            yield from self._take_down()
            self._change(turn, ServiceStatus.ERROR, f"{type(error).__name__}: {error}")
            raise
        self._change(turn, ServiceStatus.RUNNING)
        self.engine.look(self._degrade)

    def _stopping(self, turn: Turn) -> Flow[None]:
        self._change(turn, ServiceStatus.STOPPING)
        error: BaseException | None = None
        # Whatever one of them raises, the others are done.
        for step in (self._tell, self._withdraw, self._end):
            try:
                yield from step()
            except GeneratorExit:
                self._cancel_all()
                self._change(turn, ServiceStatus.ERROR, "its stop was abandoned")
                self._publish()
                raise
            except BaseException as raised:
                error = error or raised
        if error is not None:
            self._change(turn, ServiceStatus.ERROR, f"{type(error).__name__}: {error}")
            raise error
        self._change(turn, ServiceStatus.STOPPED)

    def _tell(self) -> Flow[None]:
        self._publish()
        yield from ()

    def _end(self) -> Flow[None]:
        """Call ``_stop``, if ``_start`` has succeeded."""
        if self._up:
            self._up = False
            yield Call(self.hooks.stop)

    def _restarting(self, turn: Turn) -> Flow[None]:
        yield from self._withdraw()
        yield from self._take_down()
        try:
            yield from self._bring_up(turn)
        except Exception:
            self.engine.look(self._plan_restart)
            raise

    def _restart(self, due: object) -> Flow[None]:
        """The flow of one restart; nobody waits for it, so its error is logged."""

        def needed() -> bool:
            failing = self.status in (ServiceStatus.DEGRADED, ServiceStatus.ERROR)
            return self._due is due and failing and self.engine.state == OPEN

        ended = yield from self.turns.run("restart", needed, self._restarting)
        self._publish()
        if ended is not None and ended[0].error is not None:
            log.error("a restart of the service %r has failed", self.name, exc_info=ended[0].error)

    def _take_down(self) -> Flow[None]:
        """The same on the way to something else; its error is logged and stops nothing."""
        try:
            yield from self._end()
        except Exception as error:
            log.error("_stop of the service %r raised", self.name, exc_info=error)

    def _withdraw(self) -> Flow[None]:
        """Cancel everything that is subscribed and wait for calls that have begun, but for those that wait for us."""
        boxes = self._cancel_all()
        if self.engine.state != CLOSED:  # else the close has waited, and told what is stuck
            yield Pause(self.engine, self._quiet(boxes), None)

    def _cancel_all(self) -> list[Mailbox]:
        boxes: list[Mailbox] = [cast("Any", member)._box for member in self.scope.end()]
        for box in boxes:
            self.engine.cancel(box)
        return boxes

    def _boxes(self) -> list[Mailbox]:
        return [cast("Any", member)._box for member in list(self.scope._members)]

    def _quiet(self, boxes: list[Mailbox]) -> Waiter:
        inside, quiet = self.turns.inside, self.turns.quiet

        def others() -> list[Delivery]:
            return [each for box in boxes for each in (*box.running, *box.unsettled()) if each not in inside]

        def enlist(waiter: Waiter, begin: bool) -> None:
            if begin:
                quiet.append(waiter)
            elif waiter in quiet:
                quiet.remove(waiter)
            for box in boxes:
                box.enlist(waiter, begin)

        return Waiter(f"the handlers of the service {self.name!r}", lambda: not others(), enlist, ALL, others)

    def _finish(self, ended: tuple[Turn, bool] | None, caller: list[Delivery]) -> Flow[None]:
        # How a turn has ended is told once it is over: whoever hears of it may want the next one, inline even.
        self._publish()
        if ended is not None:
            turn, mine = ended
            yield from self._settle(turn.changes, caller)
            turn.raise_error(mine)

    # Status

    def _change(self, turn: Turn, status: ServiceStatus, message: str = "") -> None:
        turn.changes.append(self.engine.look(self._note, status, message))

    def _note(self, status: ServiceStatus, message: str) -> Change:
        """In a step: the status changes; the world is told by :meth:`_publish`."""
        self.status = status
        if status is ServiceStatus.STARTING:
            self.errors = 0
        if status in (ServiceStatus.STARTING, ServiceStatus.STOPPING):
            self._due = None
        change = Change(status, message)
        self._outbox.append(change)
        return change

    def _publish(self) -> None:
        """Emit the changes that wait for it, unless somebody is at it already, who will then take these too."""
        look = self.engine.look
        while (change := look(self._next_change)) is not None:
            try:
                change.receipt = self._emit(change)
            except EventBusError as error:
                if self.engine.state == OPEN:
                    log.error("the status of the service %r could not be emitted", self.name, exc_info=error)
            except BaseException:
                # Of an inline handler these pass to the emitter; the rest of the line must not wait for a change.
                look(self._published, change)
                self._publish()
                raise
            look(self._published, change)

    def _emit(self, change: Change) -> Receipt:
        from .payload import ServiceStatusPayload

        payload = ServiceStatusPayload(
            service=self.name, status=change.status, message=change.message, time=change.time
        )
        # As one of the bus's own it never blocks, and is taken while the bus drains.
        return self.engine.emit(Receipt, STATUS_TOPIC, payload, own=True)

    def _next_change(self) -> Change | None:
        if self._publishing == self.engine.uid or not self._outbox:
            return None
        self._publishing = self.engine.uid
        return self._outbox.popleft()

    def _published(self, change: Change) -> None:
        if not change.published:
            change.published = True
            self._publishing = ""
            notify(self.engine, self._readers)

    def _settle(self, changes: list[Change], caller: list[Delivery]) -> Flow[None]:
        """Wait until these changes have been handled: not for long, and not inside of what handles them."""
        if self.engine.look(self._handles_status, caller):
            return
        deadline = primitives.monotonic() + SETTLE_SECONDS
        try:
            yield Pause(self.engine, self._told(changes), SETTLE_SECONDS)
            for change in changes:
                receipt = change.receipt
                left = deadline - primitives.monotonic()
                if receipt is None or receipt.done:
                    continue
                if left <= 0 or self.engine.look(self._waits_for, receipt, caller):
                    return
                yield Pause(self.engine, receipt._waiter(), left)
        except DeadlockError:
            pass  # they wait for this very code

    @staticmethod
    def _handles_status(caller: list[Delivery]) -> bool:
        return any(each.receipt is not None and each.receipt._topic == STATUS_TOPIC for each in caller)  # pyright: ignore[reportUnnecessaryComparison]

    @staticmethod
    def _waits_for(receipt: Receipt, caller: list[Delivery]) -> bool:
        """In a step: whether it stands behind the caller's own call."""
        mine = {each.box for each in caller}
        return receipt._left is None or any(each.box in mine for each in receipt._unsettled())

    def _told(self, changes: list[Change]) -> Waiter:
        def enlist(waiter: Waiter, begin: bool) -> None:
            if begin:
                self._readers.append(waiter)
            elif waiter in self._readers:
                self._readers.remove(waiter)

        def ready() -> bool:
            return all(change.published for change in changes)

        return Waiter(f"the status events of {self.name!r}", ready, enlist, LENIENT, list)

    # Errors

    def watch(self, problem: HandlerError) -> None:
        """A handler of one of its subscriptions has failed. Called outside of steps, by whoever ran it."""
        try:
            self.engine.look(self._count)
            self._publish()
        finally:
            self.hooks.error(problem)

    def _count(self) -> None:
        if self.status in ACCEPTING:
            self.errors += 1
            self._degrade()

    def _degrade(self) -> None:
        """In a step: see whether the errors are too many."""
        limit = self.error_limit
        if limit is not None and self.errors > limit and self.status is ServiceStatus.RUNNING:
            self._note(ServiceStatus.DEGRADED, f"{self.errors} handler errors, over the error_limit of {limit}")
            self._plan_restart()

    def _plan_restart(self) -> None:
        """In a step: have it restarted after the backoff, if there is an attempt left."""
        rule = self.restart_rule
        if rule is None or self._attempt >= rule.attempts:
            return
        self._attempt += 1
        due = self._due = object()
        after = self.engine.monitor.after

        def fire() -> None:
            if self._due is due:
                after.append(lambda: self.hooks.launch(lambda: self._restart(due)))

        self.engine.timer.at(rule.delay(self._attempt), fire)
