"""G5: a handler's exception reaches neither the emitter nor another handler; it is told of, and ends nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, Log, Team, past, soon

from eventbus import (
    Event,
    EventBus,
    EventTimeoutError,
    HandlerError,
    MailboxFullError,
    Status,
    TopicError,
)
from eventbus._engine import call, dispatcher


class Odd(BaseException):
    """Neither an Exception nor one of Python's own."""


ODD = [KeyboardInterrupt, SystemExit, GeneratorExit, Odd, StopIteration, RecursionError, MemoryError]


def raising(error: BaseException | type[BaseException]) -> Any:
    def handler(_: Any) -> None:
        raise error

    return handler


# Neither the emitter nor others


@pytest.mark.parametrize("kind", [ValueError, *ODD])
@pytest.mark.parametrize("way", ["queued", "laned", "keyed", "concurrent"])
def test_g5_whatever_a_handler_raises_reaches_nobody_else(bus: EventBus, kind: type[BaseException], way: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "queued": {},
        "laned": {"lane": "lane"},
        "keyed": {"key": lambda event: 0},
        "concurrent": {"concurrency": 2},
    }
    error = kind("on purpose")
    before, after = Log(), Log()
    bus.on("a", before)
    bus.on("a", raising(error), **options[way])
    bus.on("a", after, **({"lane": "lane"} if way == "laned" else {}))
    for number in range(3):
        receipt = bus.emit("a", number).wait(BOUND)
        assert [outcome.status.value for outcome in receipt.outcomes] == ["delivered", "failed", "delivered"]
        assert receipt.outcomes[1].error is error
        assert receipt.outcomes[1].value is None
    assert before.items == after.items == [0, 1, 2]


@pytest.mark.parametrize("kind", ODD)
def test_g5_no_exception_ends_the_worker(bus: EventBus, kind: type[BaseException]) -> None:
    idents: list[int] = []

    def handler(_: Any) -> None:
        idents.append(threading.get_ident())
        raise kind

    bus.on("a", handler)
    for _ in range(5):
        bus.emit("a").wait(BOUND)
    assert len(set(idents)) == 1
    assert bus.stats().pool.threads == 1


@pytest.mark.parametrize("kind", [ValueError, Odd, GeneratorExit, StopIteration])
def test_g5_an_inline_handlers_exception_does_not_reach_the_emitter(bus: EventBus, kind: type[BaseException]) -> None:
    after = Log()
    bus.on("a", raising(kind("on purpose")), inline=True)
    bus.on("a", after, inline=True)
    receipt = bus.emit("a", 1)
    assert [outcome.status.value for outcome in receipt.outcomes] == ["failed", "delivered"]
    assert isinstance(receipt.outcomes[0].error, kind)
    assert after.items == [1]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_g5_of_an_inline_handler_ctrl_c_and_exit_pass_once_the_receipt_is_settled(
    bus: EventBus, kind: type[BaseException]
) -> None:
    error = kind("on purpose")
    after = Log()
    told = bus.stream("bus/error")
    first = bus.on("a", raising(error), inline=True)
    second = bus.on("a", raising(SystemExit("the second one is caught")), inline=True)
    third = bus.on("a", after, inline=True)
    with pytest.raises(kind) as caught:
        bus.emit("a", 1)
    assert caught.value is error
    assert after.items == [1]
    assert [each.stats().failed for each in (first, second, third)] == [1, 1, 0]
    assert third.stats().delivered == 1
    assert told.get(BOUND).payload.error is error
    assert bus.stats().totals.running == 0


def test_g5_what_passes_to_an_emitter_that_is_a_handler_is_that_handlers_error(bus: EventBus) -> None:
    bus.on("inner", raising(KeyboardInterrupt), inline=True)
    bus.on("outer", lambda _: bus.emit("inner") and None)
    outcome = bus.emit("outer").wait(BOUND).outcomes[0]
    assert (outcome.status, type(outcome.error)) == (Status.FAILED, KeyboardInterrupt)


# Who is told


def test_g5_an_error_goes_to_on_error_to_the_log_and_to_bus_error(caplog: pytest.LogCaptureFixture) -> None:
    told: list[HandlerError] = []
    error = ValueError("on purpose")
    with EventBus("told", on_error=told.append) as bus, bus.stream("bus/error") as stream:
        subscription = bus.on("a/b", raising(error), name="breaks")
        receipt = bus.emit("a/b", 7).wait(BOUND)
        problem = told[0]
        assert len(told) == 1  # before the wait has ended
        assert problem.error is error
        assert problem.event.id == receipt.event_id
        assert problem.event.payload == 7
        assert problem.subscription is subscription
        assert problem.where == "handler"
        event = stream.get(BOUND)
        assert event.payload is problem
        assert event.topic == "bus/error"
        assert event.parent_id == receipt.event_id
    record = next(record for record in caplog.records if record.name == "eventbus")
    assert record.levelno == logging.ERROR
    assert "breaks" in record.getMessage()
    assert "a/b" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_g5_a_traceback_begins_in_the_users_code(bus: EventBus) -> None:
    bus.on("a", raising(ValueError("on purpose")))
    bus.on("a", raising(KeyError("on purpose")), inline=True)
    for outcome in bus.emit("a").wait(BOUND).outcomes:
        assert outcome.error is not None
        assert outcome.error.__traceback__ is not None
        assert outcome.error.__traceback__.tb_frame.f_code.co_name == "handler"


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_g5_of_an_errors_traceback_the_buss_own_frames_are_left_out(
    monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """Those at its begin; if there is nothing else, the last is left."""

    def own(depth: int) -> None:
        if depth == 1:
            users(2)
        own(depth - 1)

    def users(depth: int) -> None:
        if depth == 0:
            raise ValueError("on purpose")
        users(depth - 1)

    def names(error: BaseException | None) -> list[str]:
        trace = error.__traceback__ if error else None
        found: list[str] = []
        while trace is not None:
            found.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        return found

    monkeypatch.setattr(call, "own_code", {own.__code__})
    with pytest.raises(ValueError, match="on purpose") as caught:
        own(frames)
    # Of this test's own frame, at the begin, it keeps what follows too: it is no handler's call.
    assert names(call.strip(caught.value)) == [names(caught.value)[0], *["own"] * frames, *["users"] * 3]
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # type: ignore[union-attr]
    assert call.strip(caught.value) is caught.value
    assert names(caught.value) == ["users"] * 3
    monkeypatch.setattr(call, "own_code", {own.__code__, users.__code__})
    assert names(call.strip(caught.value)) == ["users"]
    caught.value.__traceback__ = None
    assert names(call.strip(caught.value)) == []


def test_g5_a_time_out_and_a_rejection_are_told_of_too() -> None:
    told: list[HandlerError] = []
    with EventBus("told", on_error=told.append) as bus, Gate() as gate:
        bus.on("slow", gate, timeout=LONG)
        bus.on("full", gate, max_pending=1, overflow="error")
        past(bus, gate, bus.emit("slow"))
        soon(lambda: told)
        assert (told[0].where, type(told[0].error)) == ("timeout", EventTimeoutError)
        bus.emit("full")
        gate.entered(2)
        bus.emit("full")
        receipt = bus.emit("full", "refused")
        assert (told[1].where, type(told[1].error)) == ("mailbox", MailboxFullError)
        assert told[1].event.id == receipt.event_id
        assert told[1].event.payload == "refused"
        gate.open()
        bus.drain(BOUND)
    assert len(told) == 2


def test_g5_a_key_function_that_raises_is_that_deliverys_error() -> None:
    told: list[HandlerError] = []
    with EventBus("told", on_error=told.append) as bus:
        other = Log()
        bus.on("a", Log(), key=lambda event: event.payload["key"])
        bus.on("a", other)
        receipt = bus.emit("a", {}).wait(BOUND)
        assert [outcome.status.value for outcome in receipt.outcomes] == ["failed", "delivered"]
        assert isinstance(receipt.outcomes[0].error, KeyError)
        assert bus.emit("a", {"key": []}).wait(BOUND).outcomes[0].status is Status.FAILED  # not hashable
        assert bus.emit("a", {"key": 1}).wait(BOUND).outcomes[0].status is Status.DELIVERED
    assert [problem.where for problem in told] == ["key", "key"]


class Shouting(logging.Handler):
    """F16, F41: a log handler that raises, or that emits."""

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.action = action

    def emit(self, record: logging.LogRecord) -> None:
        self.action(record)


@pytest.fixture
def log_handler() -> Iterator[Shouting]:
    handler = Shouting(lambda record: None)
    logging.getLogger("eventbus").addHandler(handler)
    yield handler
    logging.getLogger("eventbus").removeHandler(handler)


@pytest.mark.parametrize("kind", [ValueError, Odd])
@pytest.mark.parametrize("inline", [False, True])
def test_g5_whoever_is_told_may_raise(
    log_handler: Shouting, kind: type[BaseException], inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "WATCH_SECONDS", LONG)  # on a busy machine a worker may seem blocked
    asked = 0

    def on_error(problem: HandlerError) -> None:
        nonlocal asked
        asked += 1
        raise kind("on_error")

    log_handler.action = raising(kind("log"))
    with EventBus("raising", on_error=on_error) as bus:
        heard = Log()
        bus.on("bus/error", raising(kind("bus/error")), inline=inline)
        bus.on("bus/*", heard)
        bus.on("a", raising(ValueError("on purpose")), inline=inline)
        for number in range(3):
            receipt = bus.emit("a").wait(BOUND)
            assert receipt.outcomes[0].status is Status.FAILED
            assert len(heard.reached(number + 1)) == number + 1
        bus.drain(BOUND)
        assert len(heard.items) == 3  # an error while handling bus/error makes no further one
        assert asked == 3
        assert bus.stats().pool.threads <= 1
        log_handler.action = lambda record: None


def test_g5_an_error_while_handling_bus_error_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    told: list[HandlerError] = []
    with EventBus("only logged", on_error=told.append) as bus:
        first = ValueError("first")
        second = ValueError("second")
        bus.on("bus/error", raising(second))
        bus.on("a", raising(first))
        bus.emit("a")
        bus.drain(BOUND)
    assert [problem.error for problem in told] == [first]
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert logged == [first, second]


def test_g5_a_log_handler_may_emit(bus: EventBus, log_handler: Shouting) -> None:
    heard = Log()
    bus.on("log", heard)
    bus.on("log", heard, inline=True)
    log_handler.action = lambda record: bus.emit("log", record.levelname)
    bus.on("a", raising(ValueError("on purpose")))
    bus.emit("a").wait(BOUND)
    assert heard.reached(2) == ["ERROR", "ERROR"]


def test_g5_on_error_may_use_the_bus() -> None:
    done = Log()

    def on_error(problem: HandlerError) -> None:
        problem.subscription.cancel(wait=True)
        bus.on("b", done)
        bus.emit("b", "from on_error")

    with EventBus("on error", on_error=on_error) as bus:
        subscription = bus.on("a", raising(ValueError("on purpose")))
        bus.emit("a").wait(BOUND)
        assert done.reached(1) == ["from on_error"]
        assert not subscription.active


def test_g5_a_slow_on_error_does_not_hold_up_time_outs() -> None:
    with Gate() as hook, Gate() as gate, EventBus("slow hook", on_error=hook) as bus:
        bus.on("a", gate, timeout=LONG)
        bus.on("b", gate, timeout=LONG)
        assert past(bus, gate, bus.emit("a")).outcomes[0].status is Status.TIMED_OUT
        hook.entered()
        assert past(bus, gate, bus.emit("b"), 2).outcomes[0].status is Status.TIMED_OUT
        hook.open()
        gate.open()


# The bus's own topics


def test_g5_the_buss_own_emits_never_block_and_are_dropped_when_full(bus: EventBus) -> None:
    with Gate() as gate:
        listener = bus.on("bus/error", gate, max_pending=1, overflow="block")
        bus.on("a", raising(ValueError("on purpose")))
        bus.on("inline", raising(ValueError("on purpose")), inline=True)
        with Team() as team:
            team.add(lambda: [bus.emit("a").wait(BOUND) for _ in range(3)])
            team.add(lambda: [bus.emit("inline") for _ in range(3)])
        gate.entered()
        stats = listener.stats()
        assert (stats.deliveries, stats.dropped) == (6, 4)


@pytest.mark.parametrize("pattern", ["**", "*/error", "*/**", "*/*"])
def test_g5_reserved_topics_are_matched_only_by_patterns_that_begin_so(bus: EventBus, pattern: str) -> None:
    outside, inside = Log(), Log()
    bus.on(pattern, outside)
    bus.on("bus/**", inside)
    bus.on("a", raising(ValueError("on purpose")))
    bus.emit("a").wait(BOUND)
    assert isinstance(inside.reached(1)[0], HandlerError)
    bus.drain(BOUND)
    assert not any(isinstance(each, HandlerError) for each in outside.items)


@pytest.mark.parametrize("topic", ["bus/error", "bus/x", "bus/x/y"])
def test_g5_reserved_topics_cannot_be_emitted(bus: EventBus, topic: str) -> None:
    heard = Log()
    bus.on("bus/**", heard)
    with pytest.raises(TopicError, match="reserved"):
        bus.emit(topic)
    with pytest.raises(TopicError, match="reserved"):
        bus.request(topic)
    bus.drain(BOUND)
    assert heard.items == []


def test_g5_bus_error_is_not_an_event_where_nobody_listens(bus: EventBus) -> None:
    bus.on("a", raising(ValueError("on purpose")))
    bus.emit("a").wait(BOUND)
    assert bus.stats().events == 1


# Raising what was caught


def test_g5_raise_for_errors_raises_failed_timed_out_and_rejected_ones(bus: EventBus) -> None:
    with Gate() as gate, Gate() as full:
        error = ValueError("on purpose")
        bus.on("a", raising(error))
        bus.on("a", gate, timeout=0.005)
        bus.on("full", full, max_pending=1, overflow="error")
        bus.on(["a", "full"], full, max_pending=1, overflow="error", name="full")
        bus.emit("full")
        full.entered(2)
        bus.emit("full")
        receipt = bus.emit("a")
        soon(lambda: receipt.done)
        with pytest.raises(ExceptionGroup) as caught:
            receipt.raise_for_errors()
        assert [type(each) for each in caught.value.exceptions] == [ValueError, EventTimeoutError, MailboxFullError]
        assert caught.value.exceptions[0] is error


def test_g5_raise_for_errors_raises_a_base_exception_group_if_it_must(bus: EventBus) -> None:
    bus.on("a", raising(KeyboardInterrupt))
    bus.on("a", raising(ValueError))
    receipt = bus.emit("a").wait(BOUND)
    with pytest.raises(BaseExceptionGroup) as caught:
        receipt.raise_for_errors()
    assert not isinstance(caught.value, ExceptionGroup)
    assert [type(each) for each in caught.value.exceptions] == [KeyboardInterrupt, ValueError]


def test_g5_raise_for_errors_takes_cancelled_and_dropped_for_no_errors(bus: EventBus) -> None:
    with Gate() as gate:
        dropping = bus.on("a", gate, max_pending=1, overflow="drop_oldest")
        bus.emit("a")
        gate.entered()
        dropped, cancelled = bus.emit("a"), bus.emit("a")
        dropping.cancel()
        for receipt, status in ((dropped, Status.DROPPED), (cancelled, Status.CANCELLED)):
            receipt.raise_for_errors()
            assert receipt.outcomes[0].status is status


def test_g5_raise_for_errors_of_an_unsettled_receipt_raises_what_there_is(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", raising(ValueError("on purpose")), inline=True)
        bus.on("a", gate)
        receipt = bus.emit("a")
        assert not receipt.done
        with pytest.raises(ExceptionGroup):
            receipt.raise_for_errors()


@pytest.mark.parametrize(
    ("of_bus", "of_emit", "raises"),
    [(True, None, True), (False, True, True), (True, False, False), (False, None, False)],
)
def test_g5_propagate_errors_of_the_bus_or_the_emit(of_bus: bool, of_emit: bool | None, raises: bool) -> None:
    error = ValueError("on purpose")
    with EventBus("propagates", propagate_errors=of_bus) as bus:
        after = Log()
        bus.on("a", raising(error))
        bus.on("a", after)
        receipt = bus.emit("a", 1, propagate_errors=of_emit)
        if raises:
            for _ in range(2):
                with pytest.raises(ValueError) as caught:
                    receipt.wait(BOUND)
                assert caught.value is error
        else:
            receipt.wait(BOUND)
        assert after.reached(1) == [1]
        assert receipt.done


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_g5_what_would_confuse_the_waiter_comes_in_a_group(kind: type[Exception]) -> None:
    with EventBus("propagates", propagate_errors=True) as bus:
        bus.on("a", raising(kind("on purpose")))
        with pytest.raises(ExceptionGroup) as caught:
            bus.emit("a").wait(BOUND)
        assert [type(each) for each in caught.value.exceptions] == [kind]


def test_g5_propagated_errors_come_once_all_are_settled_and_several_in_a_group() -> None:
    with EventBus("propagates", propagate_errors=True) as bus, Gate() as gate:
        bus.on("a", raising(ValueError("one")))
        bus.on("a", gate)
        bus.on("a", raising(KeyError("two")))
        receipt = bus.emit("a")
        with pytest.raises(EventTimeoutError):
            receipt.wait(0)
        gate.open()
        with pytest.raises(ExceptionGroup) as caught:
            receipt.wait(BOUND)
        assert [type(each) for each in caught.value.exceptions] == [ValueError, KeyError]


def test_g5_propagated_base_exceptions_come_in_a_base_exception_group() -> None:
    with EventBus("propagates", propagate_errors=True) as bus:
        bus.on("a", raising(KeyboardInterrupt))
        with pytest.raises(BaseExceptionGroup) as caught:
            bus.emit("a").wait(BOUND)
        assert not isinstance(caught.value, Exception)


def test_g5_time_outs_and_rejections_are_propagated_too() -> None:
    with EventBus("propagates", propagate_errors=True) as bus, Gate() as gate:
        bus.on("slow", gate, timeout=LONG)
        with pytest.raises(EventTimeoutError, match="Gate"):
            past(bus, gate, bus.emit("slow"))
        bus.on("full", gate, max_pending=1, overflow="error")
        bus.emit("full")
        gate.entered(2)
        bus.emit("full")
        with pytest.raises(MailboxFullError, match="full"):
            bus.emit("full").wait(BOUND)
        gate.open()


def test_g5_errors_of_observers_stand_on_no_receipt_but_are_told() -> None:
    told: list[HandlerError] = []
    with EventBus("observers", on_error=told.append, propagate_errors=True) as bus:
        bus.on("a", raising(ValueError("on purpose")), observer=True)
        receipt = bus.emit("a").wait(BOUND)
        assert receipt.outcomes == ()
        bus.drain(BOUND)
    assert len(told) == 1


def test_g5_an_event_of_an_error_holds_what_failed(bus: EventBus) -> None:
    events: list[Event] = []

    def listener(event: Event) -> None:
        events.append(event)

    bus.on("bus/error", listener)
    bus.on("a", raising(ValueError("on purpose")))
    receipt = bus.emit("a", {"n": 1}).wait(BOUND)
    bus.drain(BOUND)
    assert [event.payload.event.payload for event in events] == [{"n": 1}]
    assert events[0].root_id == receipt.event_id


@pytest.mark.parametrize("inline", [False, True])
def test_g19_what_is_told_on_bus_error_is_caused_by_the_event_whose_handler_failed(bus: EventBus, inline: bool) -> None:
    told: list[Event] = []

    def listener(event: Event) -> None:
        told.append(event)

    bus.on("bus/error", listener)
    bus.on("a", raising(ValueError("on purpose")), inline=inline)
    receipts = [bus.emit("a") for _ in range(3)]
    bus.drain(BOUND)
    soon(lambda: len(told) == 3)
    assert [each.parent_id for each in told] == [each.event_id for each in receipts]


@pytest.mark.parametrize("warm", [0, 3])
def test_g5_the_error_of_a_key_function_is_told_as_it_is(bus: EventBus, warm: int) -> None:
    error = ValueError("on purpose")
    told: list[HandlerError] = []
    bus.on("bus/error", lambda payload: told.append(payload), payload=HandlerError)
    bus.on("a", lambda _: None, key=raising(error))
    for _ in range(warm + 1):
        receipt = bus.emit("a").wait(BOUND)
        assert receipt.outcomes[0].error is error
    bus.drain(BOUND)
    soon(lambda: len(told) == warm + 1)
    assert {id(each.error) for each in told} == {id(error)}


@pytest.mark.parametrize("inline", [False, True])
def test_g5_each_handler_that_returns_something_to_be_awaited_has_failed(bus: EventBus, inline: bool) -> None:
    """The first of a burst or not: nobody here would await it."""

    class Later:
        def __await__(self) -> Any:
            yield

    bus.on("a", lambda _: Later(), inline=inline)
    receipts = [bus.emit("a") for _ in range(5)]
    assert [each.wait(BOUND).outcomes[0].status for each in receipts] == [Status.FAILED] * 5


def test_g21_an_observer_alone_hears_of_errors(bus: EventBus) -> None:
    told = Log()
    bus.on("bus/error", lambda payload: told(type(payload.error)), observer=True)
    bus.on("a", raising(ValueError("on purpose")))
    bus.emit("a")
    assert told.reached(1) == [ValueError]
