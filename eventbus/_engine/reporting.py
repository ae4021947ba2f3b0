"""Telling of errors: the log, ``on_error``, the services whose subscriptions failed, and ``bus/error`` (G5).

All of these are user code, so they run outside of steps. Where a handler fails, its own thread or task tells before the
delivery is settled; what fails within a step (a time-out, a full mailbox, a key) is told once the step is over.

Owner: the engine's ``problems`` is appended to in steps and popped by any thread, ``error_watchers`` is changed by
registrations and read by any thread (all of these are atomic on every build).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .._values.stats import HandlerError
from . import primitives
from .delivery import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delivery import Delivery
    from .engine import Engine

__all__ = ["report", "report_later"]

log = logging.getLogger("eventbus")

_KINDS = {"timeout": "time-out", "mailbox": "rejection", "key": "key error"}


def report(engine: Engine, delivery: Delivery, error: BaseException, where: str) -> None:
    """Tell of a call's error, here and now. Outside of steps. Never raises."""
    problem = HandlerError(error, delivery.receipt._as_event(), delivery.box.handle, where)
    # This is still the handler's call: what on_error waits for must not wait for it.
    token = current.set(delivery)
    try:
        _tell(engine, problem, delivery.box.name, delivery)
    finally:
        current.reset(token)


def report_later(engine: Engine, delivery: Delivery, error: BaseException, where: str) -> None:
    """In a step: tell of an error once the step is over."""
    box = delivery.box
    engine.problems.append((HandlerError(error, delivery.receipt._as_event(), box.handle, where), box.name))
    engine.monitor.after.append(lambda: _tell_all(engine))


def _tell_all(engine: Engine) -> None:
    ident = primitives.get_ident()
    if ident == engine.timer.ident or engine.dispatcher.between(ident):
        # on_error is user code, and neither time-outs nor a delivery that is claimed already must wait for it.
        try:
            primitives.start_thread(lambda: _tell_all(engine), f"{engine.name}-errors")
            return
        except (RuntimeError, MemoryError):
            pass
    while engine.problems:
        try:
            problem, name = engine.problems.pop(0)
        except IndexError:
            return
        _tell(engine, problem, name)


def _tell(engine: Engine, problem: HandlerError, name: str, cause: Delivery | None = None) -> None:
    """Tell everybody who wants to hear of an error; what they raise is logged and goes no further."""
    topic = problem.event.topic
    try:
        log.error(
            "%s of %s for %r: %r",
            _KINDS.get(problem.where, "error"),
            name,
            topic,
            problem.error,
            exc_info=problem.error,
            extra={"topic": topic, "subscription": name},
        )
    except BaseException:
        pass  # a log handler that raises: there is nobody left to tell
    if topic == "bus/error":
        return  # whoever handles errors and fails is not told of it again
    for hook in _hooks(engine, problem):
        try:
            hook(problem)
        except BaseException as error:
            try:
                log.error("on_error raised for %r", topic, exc_info=error)
            except BaseException:
                pass
    try:
        engine.emit_own("bus/error", problem, cause)
    except BaseException as error:
        log.error("bus/error could not be emitted", exc_info=error)


def _hooks(engine: Engine, problem: HandlerError) -> list[Callable[[HandlerError], Any]]:
    """The bus's ``on_error``, and the service whose subscription it was."""
    hooks: list[Callable[[HandlerError], Any]] = []
    if engine.options.on_error is not None:
        hooks.append(engine.options.on_error)
    watcher = engine.error_watchers.get(problem.subscription.id)
    if watcher is not None:
        hooks.append(watcher)
    return hooks
