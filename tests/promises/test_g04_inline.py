"""G4, G5, G6, G8, G14, G15, G19: inline handlers, on either of their ways.

The first emit of a topic is made in a step, those that follow in sections where all of its handlers are inline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from kit import BOUND, Alarm, Gate, Log, Team, settled, sleeps, soon
from pydantic import BaseModel

from eventbus import DeadlockError, Event, EventBus, PayloadError, Receipt, Status, Subscription
from eventbus._engine import engine, inline, primitives
from eventbus._engine.delivery import RUNNING, running_here
from eventbus._engine.engine import Engine
from eventbus._engine.inline import end_inline
from eventbus._engine.mailbox import DRAINING, ENDED, Mailbox
from eventbus._engine.turn import turn


class Order(BaseModel):
    id: int


@pytest.fixture(autouse=True)
def unsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the first of each subscription; what has its latencies measured is settled in a step."""
    monkeypatch.setattr(engine, "SAMPLE_SECONDS", float("inf"))


class Handlers:
    """Three inline handlers of a topic that do what the test says, and nothing until then."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.does: list[Callable[[], Any] | None] = [None] * 3
        self.began: list[int] = []
        self.subscriptions: list[Subscription] = [
            bus.on("a", lambda payload, index=index: self.run(index), inline=True) for index in range(3)
        ]

    def run(self, index: int) -> Any:
        if any(self.does):
            self.began.append(index)
        does = self.does[index]
        return None if does is None else does()

    def emit(self, *does: Callable[[], Any] | None) -> Receipt:
        self.does = list(does)
        return self.bus.emit("a")


def raising(error: BaseException) -> Callable[[], Any]:
    def raises() -> None:
        raise error

    return raises


def delivery_here() -> Any:
    return running_here(primitives.get_ident())


@pytest.fixture(params=["in a step", "in sections"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def handlers(bus: EventBus, way: str) -> Handlers:
    made = Handlers(bus)
    if way == "in sections":
        bus.emit("a")
        bus.emit("a")
    return made


def took(call: Callable[[], Any]) -> Callable[[], Any]:
    """That takes its time."""

    def slow() -> Any:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.002:
            pass
        return call()

    return slow


@pytest.mark.parametrize("values", [(None, 1, "text"), ([1], None, {"a": 1}), (object(), 2.5, (3,))], ids=str)
def test_g6_their_outcomes_are_whole(handlers: Handlers, values: tuple[Any, ...]) -> None:
    begun = time.monotonic()
    receipt = handlers.emit(*[took(lambda value=value: value) for value in values])
    whole = time.monotonic() - begun
    assert handlers.began == [0, 1, 2]
    assert receipt.results() == list(values)
    for each, subscription in zip(receipt.outcomes, handlers.subscriptions, strict=True):
        assert (each.status, each.error) == (Status.DELIVERED, None)
        assert 0.002 <= each.duration <= whole
        assert each.subscription_id == subscription.id


def test_g5_what_one_raises_concerns_neither_the_others_nor_the_emitter(handlers: Handlers) -> None:
    error = ValueError("on purpose")
    receipt = handlers.emit(lambda: 1, took(raising(error)), lambda: [3])
    assert handlers.began == [0, 1, 2]
    assert receipt.results() == [1, [3]]
    failed = receipt.outcomes[1]
    assert (failed.status, failed.error, failed.value) == (Status.FAILED, error, None)
    assert 0.002 <= failed.duration < BOUND


@pytest.mark.parametrize("second", [None, SystemExit()], ids=["one", "two"])
def test_g5_keyboard_interrupt_and_system_exit_pass_once_all_have_run(
    handlers: Handlers, second: BaseException | None
) -> None:
    """The first of them."""
    first = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        handlers.emit(raising(first), raising(second) if second else None, lambda: 3)
    assert caught.value is first
    assert handlers.began == [0, 1, 2]
    totals = handlers.bus.stats().totals
    assert totals.failed == (2 if second else 1)


def test_g19_what_they_emit_has_their_event_as_its_parent_and_what_follows_has_not(handlers: Handlers) -> None:
    events: dict[str, Event] = {}

    def note(event: Event) -> None:
        events[event.topic] = event

    bus = handlers.bus
    bus.on(["first", "second", "after", "outer"], note)

    def outer(_: Any) -> None:
        receipts.append(handlers.emit(lambda: bus.emit("first"), None, lambda: bus.emit("second")))
        bus.emit("after")

    receipts: list[Receipt] = []
    bus.on("outer", outer)
    receipt = bus.emit("outer").wait(BOUND)
    bus.drain(BOUND)
    assert events["first"].parent_id == events["second"].parent_id == receipts[0].event_id
    assert events["after"].parent_id == receipt.event_id
    handlers.emit(None, None, None)
    bus.emit("after").wait(BOUND)
    assert events["after"].parent_id is None


def test_g8_they_hold_up_whoever_they_run_for_and_those_that_follow(handlers: Handlers) -> None:
    """Who is told so at once."""
    told: list[DeadlockError] = []
    receipts: list[Receipt] = []
    started = threading.Event()

    def waits() -> None:
        with pytest.raises(DeadlockError) as caught:
            receipts[0].wait(BOUND)
        told.append(caught.value)

    def outer(_: Any) -> None:
        assert started.wait(BOUND)
        handlers.emit(waits, None, None)

    handlers.bus.on("outer", outer, name="outer")
    receipts.append(handlers.bus.emit("outer"))
    started.set()
    assert receipts[0].wait(BOUND).outcomes[0].status is Status.DELIVERED
    assert "outer (outer)" in told[0].cycle


def test_g8_their_waits_starve_nobody(way: str) -> None:
    """The worker on whose stack they run counts against nothing meanwhile."""
    with EventBus(workers=1, max_workers=1) as bus:
        handlers = Handlers(bus)
        if way == "in sections":
            bus.emit("a")
            bus.emit("a")
        bus.on("other", lambda _: "other")
        bus.on("outer", lambda _: handlers.emit(lambda: bus.emit("other").wait(BOUND).results(), None, None).results())
        assert bus.emit("outer").wait(BOUND).results() == [[["other"], None, None]]


def test_g8_they_are_running_for_all_to_see(handlers: Handlers) -> None:
    """Those that run within others of their own subscription too."""
    seen: list[Any] = []

    def look() -> None:
        delivery = delivery_here()
        seen.append((delivery.state is RUNNING, delivery in delivery.box.running, len(delivery.box.running)))

    def nested() -> None:
        look()
        handlers.emit(look, look, look)

    handlers.emit(nested, None, None)
    assert seen[:2] == [(True, True, 1), (True, True, 2)]
    assert {each[:2] for each in seen} == {(True, True)}
    assert [each._box.running for each in handlers.subscriptions] == [()] * 3


@pytest.mark.usefixtures("in_python")
def test_g3_none_begins_while_another_thread_is_in_a_step(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has to wait for that lets it go on, for a while. Here it begins when the emit has taken effect."""
    get_ident, me = threading.get_ident, threading.get_ident()
    entered, stands_back, began = threading.Event(), threading.Event(), threading.Event()

    def step() -> None:
        entered.set()
        soon(lambda: stands_back.is_set() or began.is_set())

    def who() -> int:
        if get_ident() == me and not entered.is_set():
            threads.append(team.add(handlers.bus._engine.monitor.run, step))
            assert entered.wait(BOUND)
        return get_ident()

    def begins() -> None:
        assert stands_back.is_set()
        began.set()

    threads: list[threading.Thread] = []
    with Team() as team:
        team.go()
        monkeypatch.setattr(primitives, "pause", stands_back.set)
        monkeypatch.setattr(primitives, "get_ident", who)
        receipt = handlers.emit(begins, None, None)
    assert len(threads) == 1
    assert [each.status for each in receipt.wait(BOUND).outcomes] == [Status.DELIVERED] * 3


def test_g2_one_that_an_earlier_one_cancels_does_not_begin_and_those_after_it_do(handlers: Handlers) -> None:
    receipt = handlers.emit(lambda: handlers.subscriptions[1].cancel(), lambda: 2, lambda: 3)
    assert handlers.began == [0, 2]
    assert [each.status for each in receipt.outcomes] == [Status.DELIVERED, Status.CANCELLED, Status.DELIVERED]
    assert handlers.subscriptions[1].stats().cancelled == 1


def test_g2_one_that_runs_elsewhere_and_is_drained_still_begins(handlers: Handlers) -> None:
    """It has not ended then; whoever emitted before is served. To wait for what runs on this stack later is refused."""
    drained = handlers.subscriptions[1]
    seen: list[Any] = []

    def nested() -> None:
        receipt = handlers.emit(drains, lambda: seen.append(drained._box.state == DRAINING), None)
        seen.extend(each.status for each in receipt.outcomes)

    def drains() -> None:
        with pytest.raises(DeadlockError):
            drained.cancel(drain=True)

    handlers.emit(None, nested, None)
    assert seen == [True, *[Status.DELIVERED] * 3]
    assert not drained.active


class Between:
    """In the place of ``turn``: what it is given is done once, between two inline handlers."""

    def __init__(self, does: Callable[[], Any]) -> None:
        self.does: list[Callable[[], Any]] = [does]

    def __call__(self, *args: Any) -> Any:
        result = turn(*args)
        if self.does:
            self.does.pop()()
        return result


@pytest.mark.usefixtures("in_python")
def test_g3_nor_does_the_second_while_another_thread_is_in_a_step(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which came between the two."""
    entered, stands_back = threading.Event(), threading.Event()
    order: list[str] = []

    def step() -> None:
        entered.set()
        soon(lambda: stands_back.is_set() or order)
        order.append("step")

    def comes() -> None:
        team.add(handlers.bus._engine.monitor.run, step)
        assert entered.wait(BOUND)

    with Team() as team:
        team.go()
        monkeypatch.setattr(primitives, "pause", stands_back.set)
        monkeypatch.setattr(inline, "turn", Between(comes))
        handlers.emit(lambda: None, lambda: order.append("second"), None)
    assert order == ["step", "second"]


def test_g2_one_whose_cancel_a_signal_handler_broke_does_not_begin_and_those_after_it_do(handlers: Handlers) -> None:
    """It is about to be mended."""
    engine, box = handlers.bus._engine, handlers.subscriptions[1]._box

    def as_far_as_it_came() -> None:
        engine.leftovers[box.id] = box
        box.state = ENDED
        box.admits = box.flows = False

    receipt = handlers.emit(lambda: engine.look(as_far_as_it_came), lambda: 2, lambda: 3)
    assert handlers.began == [0, 2]
    assert [each.status for each in receipt.outcomes] == [Status.DELIVERED, Status.CANCELLED, Status.DELIVERED]
    assert not box.running
    engine.look(lambda: engine._mend_cancel(box))
    assert len(handlers.bus.handlers("a")) == 2


def test_g12_what_interrupts_the_step_that_settles_one_takes_effect_after_it(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, heard = Engine.complete, Log()
    handlers.bus.on("b", heard, inline=True)

    def interrupted(*args: Any) -> None:
        monkeypatch.setattr(Engine, "complete", complete)
        handlers.bus.emit("b", "interrupts")
        complete(*args)

    monkeypatch.setattr(Engine, "complete", interrupted)
    handlers.emit(object, None, lambda: heard("last"))
    assert heard.items == ["interrupts", "last"]


def test_g12_so_does_what_interrupts_the_step_that_begins_one(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one that runs already, a step begins it."""
    begin, order = inline._begin, list[Any]()
    handlers.bus.on("b", order.append, inline=True)

    def interrupted(*args: Any) -> bool:
        monkeypatch.setattr(inline, "_begin", begin)
        handlers.bus.emit("b", "interrupts")
        return begin(*args)

    def nests() -> None:
        monkeypatch.setattr(inline, "_begin", interrupted)
        handlers.emit(lambda: order.append("nested"), None, None)

    handlers.emit(nests, None, None)
    assert order == ["interrupts", "nested"]


@pytest.mark.usefixtures("in_python")
@pytest.mark.parametrize("since", [0, 1])
def test_g3_where_a_tool_watches_steps_begin_and_settle_them(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    """It could tear sections; it may come while a handler runs."""
    began, ended = list[int](), list[int]()
    begin_inline, comes = inline.begin_inline, [since == 0]
    handlers.emit(None, None, None)
    monkeypatch.setattr(primitives, "tools", lambda: True)
    monkeypatch.setattr(primitives, "watched", lambda: comes[0])

    def begins(*args: Any) -> bool:
        began.append(len(handlers.began))
        return begin_inline(*args)

    def turns(*args: Any) -> Any:
        ended.append(len(handlers.began))
        return turn(*args)

    monkeypatch.setattr(inline, "begin_inline", begins)
    monkeypatch.setattr(inline, "turn", turns)
    handlers.emit(None, lambda: comes.__setitem__(0, True), None)
    assert began == [0, 1, 2][2 * since :]
    assert ended == [1][: 1 * since]


@pytest.mark.usefixtures("in_python")
def test_g3_none_stands_as_pending_when_all_have_run(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sections are none, too."""
    monkeypatch.setattr(primitives, "SECTIONS", False)
    handlers.emit(lambda: None, None, None)
    assert handlers.bus._engine.inlining == []
    assert handlers.subscriptions[2].stats().pending == 0


@pytest.mark.usefixtures("in_python")
@pytest.mark.parametrize("within", [False, True])
def test_g8_code_between_two_inline_handlers_cannot_wait_for_the_second(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, within: bool, way: str
) -> None:
    """A signal handler's: no delivery is running then, but it stands on the stack of the emit."""
    errors: list[DeadlockError] = []

    def waits() -> None:
        with pytest.raises(DeadlockError) as caught:
            handlers.subscriptions[1].cancel(drain=True)
        errors.append(caught.value)

    def emits() -> list[Status]:
        monkeypatch.setattr(inline, "turn", Between(waits))
        return [each.status for each in handlers.emit(None, None, None).outcomes]

    if within:
        handlers.bus.on("outer", lambda _: emits())
        statuses = handlers.bus.emit("outer").wait(BOUND).results()[0]
    else:
        statuses = emits()
    assert statuses == [Status.DELIVERED] * 3
    if way == "in sections":  # else the first has not been settled by then, and is part of it
        (error,) = errors
        assert len(error.cycle) == 2
        assert error.cycle[0] == error.cycle[1]
    assert not handlers.subscriptions[1].active


def test_g8_an_error_told_before_an_inline_handler_begins_cannot_be_waited_with() -> None:
    """``on_error`` runs in the handler that emits, and that is below."""
    told: list[BaseException] = []

    def on_error(_: Any) -> None:
        try:
            second.cancel(drain=True)
        except DeadlockError as error:
            told.append(error)

    log = Log()
    with EventBus("told", on_error=on_error, workers=2) as bus, Gate() as gate:
        bus.on("both", gate, max_pending=1, overflow="error")
        bus.emit("both")
        gate.entered()
        bus.emit("both")
        second = bus.on("both", log, inline=True)
        bus.on("outer", lambda _: bus.emit("both", 1))
        bus.emit("outer").wait(BOUND)
        assert len(told) == 1
        assert log.items == [1]
        assert not second.active


class Interrupting(list[Any]):
    """A signal handler raises as something is appended."""

    def append(self, each: Any) -> None:
        super().append(each)
        raise KeyboardInterrupt


@pytest.mark.parametrize("headers", [None, {"a": 1}])
def test_g12_an_emit_broken_as_it_takes_effect_leaves_nothing(
    handlers: Handlers, headers: dict[str, Any] | None
) -> None:
    bus = handlers.bus
    core = bus._engine
    handlers.emit()
    core.inlining = Interrupting()
    bus.on("a", lambda _: None)  # not all are inline: in a step
    with pytest.raises(KeyboardInterrupt):
        bus.emit("a", headers=headers)
    assert core.inlining == []
    core.inlining = []
    bus.drain(BOUND)
    assert handlers.subscriptions[0].cancel(drain=True, timeout=0)


@pytest.mark.usefixtures("in_python")
def test_g12_a_mend_that_is_broken_is_made_good(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises between two inline handlers, and again where the second is settled for that."""

    def raises() -> None:
        raise KeyboardInterrupt

    settle = Engine.settle
    again: list[int] = [1]

    def alarmed(self: Any, delivery: Any, status: Any, *args: Any, **kwargs: Any) -> None:
        settle(self, delivery, status, *args, **kwargs)
        if status is Status.CANCELLED and again:
            again.pop()
            raises()

    core = handlers.bus._engine
    drained = handlers.subscriptions[1]

    def drains() -> None:
        thread = team.add(lambda: drained.cancel(drain=True, timeout=BOUND))
        sleeps(thread)

    with Team() as team:
        team.go()
        monkeypatch.setattr(inline, "turn", Between(raises))
        monkeypatch.setattr(Engine, "settle", alarmed)
        with pytest.raises(KeyboardInterrupt):
            handlers.emit(drains, None, None)
    assert team.results == [True]
    assert core.inlining == []
    assert not core.leftovers
    assert drained.handler is None


@pytest.mark.usefixtures("in_python")
@pytest.mark.parametrize("warm", [False, True])
def test_g10_a_handler_is_not_called_for_what_a_close_has_cancelled(
    monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    """It had begun, and its payload is gone."""
    handlers = Handlers(EventBus("closed"))
    for _ in range(2 if warm else 0):
        handlers.emit()
    call = inline._call

    def late(delivery: Any) -> Any:
        with Team() as team:
            team.add(handlers.bus.close, 0)
        return call(delivery)

    monkeypatch.setattr(inline, "_call", late)
    receipt = handlers.emit(lambda: 1, lambda: 2, lambda: 3)
    assert handlers.began == []
    assert [each.status for each in receipt.outcomes] == [Status.CANCELLED] * 3


class TestPayloads:
    """What they get goes by what they declare (G15)."""

    def got(self, bus: EventBus, way: str, handler: Callable[..., Any], payload: Any) -> Any:
        bus.on("b", handler, inline=True)
        if way == "in sections":
            bus.emit("b", payload)
            bus.emit("b", payload)
        (outcome,) = bus.emit("b", payload).outcomes
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    @pytest.mark.parametrize("payload", [5, "text", {"id": 5}, [5], None, Order(id=5)], ids=repr)
    def test_g15_nothing_declared(self, bus: EventBus, way: str, payload: Any) -> None:
        expected = {"id": 5} if isinstance(payload, Order) else {} if payload is None else payload
        assert self.got(bus, way, lambda payload: [payload], payload) == [expected]

    @pytest.mark.parametrize("payload", [5, {"id": 5}], ids=repr)
    def test_g15_something_else(self, bus: EventBus, way: str, payload: Any) -> None:
        def handler(payload: int) -> Any:
            return [payload]

        assert self.got(bus, way, handler, payload) == [payload]

    def test_g15_the_event(self, bus: EventBus, way: str) -> None:
        def handler(event: Event) -> Any:
            return [event.topic, event.payload]

        assert self.got(bus, way, handler, 5) == ["b", 5]

    def test_g15_a_model(self, bus: EventBus, way: str) -> None:
        def handler(order: Order) -> Any:
            return [order]

        assert self.got(bus, way, handler, {"id": 5}) == [Order(id=5)]

    def test_g15_a_model_that_it_is_not(self, bus: EventBus, way: str) -> None:
        def handler(order: Order) -> None: ...

        with pytest.raises(PayloadError):
            self.got(bus, way, handler, 5)


class TestBroken:
    """A signal handler raises in the midst of an emit (G12): all is settled, whoever had begun or not."""

    @pytest.mark.usefixtures("in_python")
    def test_g12_between_two_handlers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with EventBus() as bus:
            handlers = Handlers(bus)
            bus.emit("a")
            bus.emit("a")
            clock = primitives.monotonic
            looks: list[None] = []
            receipts: list[Receipt] = []

            def alarmed() -> float:
                looks.append(None)
                if len(looks) == 3:
                    raise Alarm
                return clock()

            with monkeypatch.context() as patch:
                patch.setattr(primitives, "monotonic", alarmed)
                with pytest.raises(Alarm):
                    handlers.emit(lambda: receipts.append(delivery_here().receipt), lambda: 2, lambda: 3)
            assert handlers.began == [0]
            assert [each.status for each in receipts[0].outcomes] == [Status.DELIVERED, *[Status.CANCELLED] * 2]
            assert [each.duration for each in receipts[0].outcomes[1:]] == [0.0, 0.0]
            assert [each._box.running for each in handlers.subscriptions] == [()] * 3
            rows = [each.stats() for each in handlers.subscriptions]
            assert [(each.delivered, each.cancelled) for each in rows] == [(3, 0), (2, 1), (2, 1)]
            bus.drain(0)
            settled(bus)

    def test_g12_while_one_is_settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with EventBus() as bus:
            handlers = Handlers(bus)
            bus.emit("a")
            bus.emit("a")
            finish = Mailbox.finish
            finished: list[Any] = []

            def alarmed(box: Mailbox, delivery: Any) -> None:
                finished.append(delivery)
                if len(finished) == 1:
                    raise Alarm
                finish(box, delivery)

            with monkeypatch.context() as patch:
                patch.setattr(Mailbox, "finish", alarmed)
                with pytest.raises(Alarm):
                    handlers.emit(object, lambda: 2, lambda: 3)
            assert finished[1] is finished[0]
            assert [each._box.running for each in handlers.subscriptions] == [()] * 3
            bus.drain(0)
            settled(bus)


@pytest.mark.parametrize(
    ("value", "error", "status", "passes"),
    [
        ([1], None, Status.DELIVERED, False),
        (None, ValueError("on purpose"), Status.FAILED, False),
        (None, KeyboardInterrupt(), Status.FAILED, True),
        (None, SystemExit(), Status.FAILED, True),
    ],
    ids=str,
)
def test_g4_what_the_hot_path_in_c_leaves_to_be_settled(
    bus: EventBus, value: Any, error: BaseException | None, status: Status, passes: bool
) -> None:
    """Here the handler itself has it settled, as the hot path would after it."""
    passing: list[BaseException | None] = []

    def handler(payload: Any) -> None:
        if payload:
            passing.append(end_inline(bus._engine, delivery_here(), value, error, 0.5))

    bus.on("a", handler, inline=True)
    bus.emit("a")
    bus.emit("a")
    (outcome,) = bus.emit("a", "leaves it").outcomes
    assert (outcome.status, outcome.value, outcome.error, outcome.duration) == (status, value, error, 0.5)
    assert passing == [error if passes else None]
    assert bus.subscriptions("a")[0]._box.running == ()  # type: ignore[attr-defined]
