"""Where features meet: observers that wait for space, requests of full mailboxes, scopes that end twice, and more."""

from __future__ import annotations

import os
import sys
from enum import Enum
from typing import Any, ClassVar, Protocol

import pytest
from kit import BOUND, Gate, Log, Team, sleeps, soon
from kit_process import begin, end

from eventbus import (
    BaseService,
    EventBus,
    EventTimeoutError,
    HandlerError,
    MailboxFullError,
    NotRegisteredError,
    OptionTypeError,
    PayloadError,
    ServiceGroup,
    Topic,
    TopicTypeError,
)
from eventbus._engine import hot, primitives


@pytest.mark.parametrize("observer", [False, True])
def test_g8_an_observers_wait_for_space_in_its_own_mailbox_is_rejected(bus: EventBus, observer: bool) -> None:
    receipts: list[Any] = []

    def handler(payload: int) -> None:
        if payload == 0:
            receipts.extend((bus.emit("t", 1), bus.emit("t", 2)))

    subscription = bus.on("t", handler, observer=observer, max_pending=1)
    bus.emit("t", 0)
    bus.drain(BOUND)
    assert len(receipts) == 2
    assert (subscription.stats().delivered, subscription.stats().rejected) == (2, 1)


def test_g17_off_refuses_a_subscription_of_another_bus(bus: EventBus) -> None:
    """And nothing has changed: on neither bus."""
    log, other_log = Log(), Log()
    first = bus.on("t", log)
    with EventBus("other") as other:
        theirs = other.on("t", other_log)
        with pytest.raises(NotRegisteredError, match="other"):
            bus.off(theirs)
        assert first.active
        assert theirs.active
        bus.emit("t", 1).wait(BOUND)
        other.emit("t", 2).wait(BOUND)
        assert other.off(theirs) == 1
    assert (log.items, other_log.items) == ([1], [2])


# Scopes


def test_g22_leaving_a_scope_waits_though_it_was_cancelled_before(bus: EventBus) -> None:
    with Gate() as gate, Team() as team:
        scope = bus.scope()
        scope.on("t", gate)
        scope.scope().on("u", gate)
        bus.emit("t")
        bus.emit("u")
        gate.entered(2)
        scope.cancel()
        with pytest.raises(EventTimeoutError):
            scope.cancel(wait=True, timeout=0)
        waits = team.add(lambda: (scope.cancel(wait=True), gate.left))
        team.go()
        sleeps(waits)
        assert gate.left == 0
        gate.open()
    assert team.results == [(False, 2)]
    assert "0 members" in repr(scope)


def test_g22_a_scope_of_many_waits_for_calls_of_those_that_were_cancelled_by_hand(bus: EventBus) -> None:
    with Gate() as gate, Team() as team:
        scope = bus.scope()
        first = scope.on("t", gate)
        bus.emit("t")
        gate.entered()
        first.cancel()
        for _ in range(200):
            scope.on("u", print).cancel()
        waits = team.add(lambda: (scope.cancel(wait=True), gate.left))
        team.go()
        sleeps(waits)
        gate.open()
    assert team.results == [(True, 1)]


def test_g22_a_service_stops_only_after_calls_of_what_it_has_cancelled_itself(bus: EventBus) -> None:
    order: list[str] = []

    class Service(BaseService):
        def _stop(self) -> None:
            order.append("stopped")

    with Gate() as gate, Team() as team:
        service = Service(bus)
        service.start()
        first = service.subscribe("t", lambda _: (gate(0), order.append("handled")))
        bus.emit("t")
        gate.entered()
        first.cancel()
        for _ in range(200):
            service.subscribe("u", print).cancel()
        stops = team.add(service.stop)
        team.go()
        sleeps(stops)
        gate.open()
    assert order == ["handled", "stopped"]


# Receipts and requests


def test_g6_what_observers_cause_does_not_unsettle_a_receipt_that_follows(bus: EventBus) -> None:
    with Gate() as gate:
        log = Log()

        def watch(payload: Any) -> None:
            gate(payload)
            bus.emit("u")

        bus.on("t", lambda _: None)
        bus.on("t", watch, observer=True)
        with Gate() as held:
            bus.on("u", lambda _: (held(0), log(0)))
            receipt = bus.emit("t", follow=True).wait(BOUND)
            gate.open()
            held.entered()
            assert receipt.done
            receipt.wait(0)
        log.reached(1)


def test_g6_a_request_has_the_answer_of_another_though_one_mailbox_is_full() -> None:
    with EventBus("requests", workers=2) as bus, Gate() as gate:
        bus.on("t", gate, max_pending=1)
        bus.emit("t")
        gate.entered()
        bus.emit("t")
        answers = bus.on("t", lambda _: "answer")
        assert bus.request("t", timeout=BOUND) == "answer"
        answers.cancel()
        with pytest.raises(EventTimeoutError):
            bus.request("t", timeout=0.01)


def test_g6_a_request_has_the_first_answer_in_time_not_in_order_of_registration() -> None:
    with EventBus("requests", workers=3) as bus, Gate("slow") as slow, Gate("slower") as slower, Team() as team:
        bus.on("t", slower)
        bus.on("t", slow)
        team.add(lambda: bus.request("t", timeout=BOUND))
        team.go()
        slow.entered()
        slower.entered()
        slow.open()
        soon(lambda: team.results[0] is not None, "an answer")
        slower.open()
    assert team.results == ["slow"]


def test_g8_a_request_to_its_own_full_mailbox_fails_and_does_not_hang(bus: EventBus) -> None:
    errors: list[BaseException] = []

    def handler(payload: int) -> None:
        if payload == 0:
            bus.emit("t", 1)
            try:
                bus.request("t", 2, timeout=BOUND)
            except ExceptionGroup as error:
                errors.extend(error.exceptions)

    bus.on("t", handler, max_pending=1)
    bus.emit("t", 0)
    bus.drain(BOUND)
    assert [type(each) for each in errors] == [MailboxFullError]


# Errors


@pytest.mark.parametrize("depth", [0, 1])
def test_g5_errors_at_the_depth_limit_are_told_on_bus_error(depth: int) -> None:
    heard: list[HandlerError] = []

    def fails(payload: int) -> None:
        if payload < depth:
            bus.emit("t", payload + 1)
        else:
            raise ZeroDivisionError

    with EventBus("deep", max_depth=depth) as bus:
        bus.on("bus/error", heard.append)
        bus.on("t", fails)
        bus.emit("t", 0)
        bus.drain(BOUND)
    assert [type(each.error) for each in heard] == [ZeroDivisionError]


def test_g5_errors_are_told_on_bus_error_while_the_bus_drains() -> None:
    """Also such as no handler causes: of time-outs, and once the topic has a route."""
    heard: list[HandlerError] = []
    with EventBus("drains", workers=3) as bus, Gate() as slow, Gate() as long, Team() as team:
        bus.on("bus/error", heard.append)
        bus.on("warm", lambda _: 1 / 0)
        bus.emit("warm")
        bus.drain(BOUND)
        bus.on("long", long)
        bus.on("slow", slow, timeout=0.05)
        bus.emit("long")
        receipt = bus.emit("slow")
        long.entered()
        team.add(bus.close, BOUND)
        team.go()
        receipt.wait(BOUND)
        soon(lambda: len(heard) == 2, "the time-out told")
        slow.open()
        long.open()
    assert [each.where for each in heard] == ["handler", "timeout"]


def test_g12_put_off_emits_do_not_nest_where_there_are_no_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on free-threaded builds: the stack is no deeper for many of them."""
    monkeypatch.setattr(primitives, "SECTIONS", False)
    before = hot.use(False)

    def deepest(many: int) -> int:
        depths: list[int] = []

        def handler(_: Any) -> None:
            frame, depth = sys._getframe(), 0
            while frame.f_back is not None:
                frame, depth = frame.f_back, depth + 1
            depths.append(depth)

        with EventBus("put off") as bus:
            bus.on("t", handler, inline=True)
            bus.emit("t")

            def step() -> None:
                for _ in range(many):
                    bus.emit("t")

            bus._engine.monitor.run(step)
        assert len(depths) == many + 1
        return max(depths)

    try:
        assert deepest(40) == deepest(10)
    finally:
        hot.use(before)


@pytest.mark.parametrize("require", [None, "", [], False, 0.0, "1", -1])
def test_g17_require_is_a_number_of_handlers(bus: EventBus, require: Any) -> None:
    with pytest.raises((OptionTypeError, ValueError), match="require"):
        bus.emit("t", require=require)


def test_g17_a_key_cannot_be_a_coroutine_function(bus: EventBus) -> None:
    async def key(_: Any) -> int:
        return 1

    with pytest.raises(OptionTypeError, match="key"):
        bus.on("t", print, key=key)


class Names(str, Enum):  # noqa: UP042 - the point here
    """As one wrote it before Python had StrEnum."""

    CREATED = "orders/created"


def test_g17_the_members_of_an_enum_of_strings_are_the_topics_that_they_equal(bus: EventBus) -> None:
    log = Log()
    assert bus.on(Names.CREATED, log).topics == ("orders/created",)
    bus.emit("orders/created", 1).wait(BOUND)
    bus.emit(Names.CREATED, 2).wait(BOUND)
    assert log.items == [1, 2]


# Typed topics


if sys.version_info < (3, 12):
    from typing_extensions import TypedDict  # as pydantic wants it there
else:
    from typing import TypedDict


class Typed(TypedDict):
    number: int


class Shape(Protocol):
    number: int


class Foo:
    """A class of which pydantic knows nothing."""


def test_g16_a_topic_can_carry_a_typed_dictionary_or_anything(bus: EventBus) -> None:
    log = Log()
    typed, anything = Topic("typed", Typed), Topic("anything", Any)

    def handler(payload: Typed) -> None:
        log(payload)

    bus.on([typed, anything], log)
    bus.on(typed, handler)
    bus.on(Topic("dict", dict), handler)
    bus.emit(typed, {"number": 1}).wait(BOUND)
    assert log.items == [{"number": 1}] * 2
    thing = Foo()
    bus.emit(anything, thing).wait(BOUND)
    assert log.items[2:] == [thing]
    with pytest.raises(PayloadError):
        bus.emit(typed, {"number": "many"})


@pytest.mark.parametrize("model", [Shape, list[Foo], ClassVar[int]])
def test_g16_what_pydantic_knows_nothing_of_is_refused_in_one_sentence(bus: EventBus, model: Any) -> None:
    with pytest.raises(TopicTypeError, match="odd"):
        bus.emit(Topic("odd", model), 1)


# What is kept


def test_g9_a_lane_keeps_nothing_of_what_was_dropped(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("holds", gate, lane="lane")
        subscription = bus.on("t", print, lane="lane", overflow="latest", name="latest")
        bus.emit("holds")
        gate.entered()
        for number in range(1000):
            bus.emit("t", number)
        assert subscription.stats().pending == 1
        lane = bus._engine.lanes["lane"]
        assert len(lane.line) < 100
        subscription.cancel()


def test_looking_at_topics_takes_no_row_from_those_that_are_emitted(bus: EventBus) -> None:
    for number in range(1100):
        assert bus.handlers(f"look/{number}") == ()
    bus.emit("real")
    stats = bus.stats()
    assert stats.topics == {"real": 1}


class Ends(BaseService):
    """Its stop raises what it was given."""

    error: BaseException | None = None

    def _stop(self) -> None:
        if self.error is not None:
            raise self.error


def test_a_group_stops_all_whatever_one_of_them_raises(bus: EventBus) -> None:
    services = [Ends(f"service-{number}", bus) for number in range(3)]
    group = ServiceGroup(*services)
    group.start()
    services[1].error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        group.stop()
    assert [each.status for each in services] == ["stopped", "error", "stopped"]


def test_a_groups_start_that_is_undone_lets_pass_what_is_no_error(bus: EventBus) -> None:
    class Fails(BaseService):
        def _start(self) -> None:
            raise ValueError("start")

    first, second = Ends("first", bus), Ends("second", bus)
    second.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        ServiceGroup(first, second, Fails("third", bus)).start()
    assert isinstance(caught.value.__cause__, ValueError)
    assert first.status == "stopped"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
def test_g11_a_fork_in_the_key_function_of_an_emit_that_was_put_off() -> None:
    program = """
    import os, sys
    from eventbus import EventBus
    from eventbus._engine.mailbox import Mailbox

    bus, children, late = EventBus(), [], []

    def key(event):
        children.append(os.fork())
        return 1

    bus.on("keyed", lambda _: None, key=key)
    offer = Mailbox.offer

    def interrupted(self, delivery):
        if not late:
            late.append(bus.emit("keyed"))
        offer(self, delivery)

    bus.on("t", lambda _: None)
    Mailbox.offer = interrupted
    bus.emit("t")
    Mailbox.offer = offer
    assert bus.emit("t").wait(10).done
    bus.drain(10)
    if children[0] == 0:
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    """
    end(begin(program), 20)
