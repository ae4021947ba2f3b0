"""One call of one handler: its context, its payload, its outcome. In halves, so that a loop can await between.

No state of its own: what it touches belongs to the delivery, which whoever claimed it owns.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from .._errors import HandlerTypeError
from .._values.payload import PLAIN
from .._values.stats import Status
from . import primitives
from .delivery import SETTLED, current
from .receipt import Receipt
from .reporting import report

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from .delivery import Delivery
    from .engine import Engine

__all__ = [
    "TooLate",
    "argument",
    "call",
    "context_of",
    "enter",
    "enter_converting",
    "enter_plain",
    "judge",
    "own_code",
    "strip",
]

Result = tuple[Status, Any, "BaseException | None", float]


class TooLate(BaseException):
    """A claimed delivery was settled (time-out, close) before its handler could begin. Never reaches a user."""


def argument(delivery: Delivery) -> Any:
    """What the handler is called with (G15). Raises PayloadError."""
    receipt = delivery.receipt
    spec = delivery.box.spec
    assert spec is not None
    payload = receipt._as_event() if spec.takes_event else receipt._payload
    if delivery.state is SETTLED:
        raise TooLate  # the payload may have been gone; settling comes before letting go of it
    convert = spec.convert
    return payload if convert is None else convert(payload)


def context_of(delivery: Delivery) -> Context:
    """This delivery's own copy of the emitter's context (G14)."""
    context = delivery.receipt._context
    if context is None:
        raise TooLate
    return context.copy()


def enter(delivery: Delivery) -> Any:
    """Within the delivery's context: say for whom this code runs, convert, call."""
    current.set(delivery)
    spec = delivery.box.spec
    assert spec is not None
    try:
        return spec.function(argument(delivery))
    finally:
        # An error's traceback holds its frames, they hold this one, and the delivery holds the error: no cycle (G18).
        del delivery


def enter_plain(delivery: Delivery, function: Callable[[Any], Any], payload: Any) -> Any:
    """As :func:`enter`, for a payload that is what the handler wants."""
    current.set(delivery)
    try:
        return function(payload)
    finally:
        del delivery, payload


def enter_converting(
    delivery: Delivery, function: Callable[[Any], Any], convert: Callable[[Any], Any], payload: Any
) -> Any:
    """As :func:`enter`, for a payload that is to be converted."""
    current.set(delivery)
    try:
        return function(convert(payload))
    finally:
        del delivery, payload


def call(engine: Engine, delivery: Delivery) -> Result:
    """Call a plain handler in this thread and report what it raises."""
    delivery.actor = primitives.get_ident()
    started = primitives.monotonic()
    try:
        value = context_of(delivery).run(enter, delivery)
    except BaseException as error:
        took = primitives.monotonic() - started
        try:
            return judge(engine, delivery, None, strip(error), took)
        finally:
            del delivery  # as above
    return judge(engine, delivery, value, None, primitives.monotonic() - started)


def judge(engine: Engine, delivery: Delivery, value: Any, error: BaseException | None, took: float) -> Result:
    """The outcome of a call; errors are reported before the delivery is settled, so that waits come after."""
    if (
        error is None
        and value is not None
        and type(value) not in PLAIN
        and isinstance(value, Awaitable)
        and not isinstance(value, Receipt)
    ):
        close = getattr(cast("object", value), "close", None)
        if close is not None:
            close()  # or Python warns of a coroutine that was never awaited
        kind = type(cast("object", value)).__name__
        error = HandlerTypeError(
            f"the plain function {delivery.box.name} returned an awaitable ({kind}), which nobody"
            " awaits; make the handler `async def` and register it on eventbus_async.AsyncEventBus"
        )
        value = None
    if error is None:
        return Status.DELIVERED, value, None, took
    if isinstance(error, TooLate):
        return Status.CANCELLED, None, None, took
    report(engine, delivery, error, "handler")
    return Status.FAILED, None, error, took


def strip(error: BaseException) -> BaseException:
    """Leave the bus's own frames out of the traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code in own_code:
        trace = trace.tb_next
    return error.with_traceback(trace)


own_code = {each.__code__ for each in (enter, enter_plain, enter_converting, call)}
