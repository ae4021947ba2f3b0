"""G6: ``receipt.wait()`` returns once every delivery is settled; ``request`` gives the first success."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, Log, Team, past, sleeps, soon

from eventbus import (
    DeadlockError,
    Event,
    EventBus,
    EventTimeoutError,
    NoHandlerError,
    OptionError,
    Outcome,
    Receipt,
    Status,
)
from eventbus._engine.receipt import failure_of
from eventbus._values.event import make_id
from eventbus_async import AsyncEventBus


def raising(error: BaseException) -> Any:
    def handler(_: Any) -> None:
        raise error

    return handler


def test_g6_wait_returns_the_receipt_once_all_are_settled(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", Log())
        bus.on("a", gate)
        receipt = bus.emit("a")
        soon(lambda: len(receipt.outcomes) == 1)
        with pytest.raises(EventTimeoutError, match="Gate"):
            receipt.wait(0)
        assert not receipt.done
        gate.open()
        assert receipt.wait(BOUND) is receipt
        assert receipt.done
        assert receipt.wait(0) is receipt
        assert receipt.wait() is receipt


def test_g6_a_wait_that_runs_out_names_what_is_unsettled_and_undoes_nothing(bus: EventBus) -> None:
    with Gate("done") as gate:
        bus.on("a/b", gate, name="slow one")
        bus.on("a/b", Log(), name="quick one")
        receipt = bus.emit("a/b")
        soon(lambda: len(receipt.outcomes) == 1)
        with pytest.raises(TimeoutError) as caught:
            receipt.wait(0.001)
        assert "slow one" in str(caught.value)
        assert "a/b" in str(caught.value)
        assert "quick one" not in str(caught.value)
    assert receipt.wait(BOUND).outcomes[0].value == "done"


def test_g6_outcomes_are_kept_per_subscription_in_order_of_registration(bus: EventBus) -> None:
    with Gate("slow") as gate:
        slow = bus.on("a/*", gate, name="slow")
        quick = bus.on("a/b", lambda _: "quick", name="quick")
        inline = bus.on("**", lambda _: "inline", inline=True)
        failing = bus.on("a/b", raising(ValueError("on purpose")))
        receipt = bus.emit("a/b")
        soon(lambda: len(receipt.outcomes) == 3)
        assert [outcome.value for outcome in receipt.outcomes] == ["quick", "inline", None]
    outcomes = receipt.wait(BOUND).outcomes
    assert [outcome.subscription_id for outcome in outcomes] == [slow.id, quick.id, inline.id, failing.id]
    assert [outcome.status for outcome in outcomes] == ["delivered", "delivered", "delivered", "failed"]
    assert [outcome.name for outcome in outcomes[:2]] == ["slow", "quick"]
    assert {outcome.topic for outcome in outcomes} == {"a/b"}
    assert all(outcome.duration >= 0.0 for outcome in outcomes)
    assert receipt.results() == ["slow", "quick", "inline"]
    assert receipt.deliveries == 4


@pytest.mark.parametrize("options", [{}, {"concurrency": 2}, {"inline": True}], ids=str)
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_g6_outcomes_tell_how_long_the_calls_took(
    bus: EventBus, options: dict[str, Any], alone: bool, fails: bool
) -> None:
    def handler(_: Any) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.002:
            pass
        if fails:
            raise ValueError

    bus.on("a", handler, **options)
    if not alone:
        bus.on("a", Log())
    begun = time.monotonic()
    outcome = bus.emit("a").wait(BOUND).outcomes[0]
    assert 0.002 <= outcome.duration <= time.monotonic() - begun


def test_g6_a_receipt_of_nothing_is_settled_at_once(bus: EventBus) -> None:
    receipt = bus.emit("nobody/listens")
    assert receipt.done
    assert (receipt.deliveries, receipt.outcomes, receipt.results()) == (0, (), [])
    assert receipt.wait() is receipt


def test_g6_many_threads_wait_for_one_receipt(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", gate)
        receipt = bus.emit("a")
        gate.entered()
        with Team() as team:
            for _ in range(8):
                team.add(receipt.wait, BOUND)
            team.go()
            gate.open()
        assert team.results == [receipt] * 8


def test_g6_hammer_wait_and_settle_at_once_miss_each_other_never(bus: EventBus) -> None:
    """F18: the wait begins as the last delivery is settled."""
    start = threading.Barrier(3)
    bus.on("a", lambda _: None)
    bus.on("a", lambda _: None, concurrency=2)
    rounds = 150

    def waiter() -> None:
        for _ in range(rounds):
            start.wait(BOUND)
            receipts.append(bus.emit("a").wait(BOUND))

    receipts: list[Any] = []
    Team(waiter, waiter, waiter).run()
    assert len(receipts) == 3 * rounds
    assert all(receipt.done for receipt in receipts)


def test_g6_a_receipt_lives_on_after_the_bus(bus: EventBus) -> None:
    with EventBus("short") as short:
        short.on("a", lambda _: 5)
        receipt = short.emit("a").wait(BOUND)
    assert receipt.wait(0).results() == [5]


def test_g6_a_receipt_is_equal_and_hashed_by_identity_read_only_and_weakly_referenceable(bus: EventBus) -> None:
    one, two = bus.emit("a"), bus.emit("a")
    assert one != two
    assert len({one, two, one}) == 2
    assert weakref.ref(one)() is one
    assert one.event_id != two.event_id
    for name in ("event_id", "deliveries", "done", "outcomes"):
        with pytest.raises(AttributeError):
            setattr(one, name, None)
    assert "a" in repr(one)


def test_g6_a_dropped_receipt_loses_nothing(bus: EventBus) -> None:
    log = Log()
    bus.on("a", log)
    for number in range(100):
        bus.emit("a", number)
    assert log.reached(100) == list(range(100))


@pytest.mark.parametrize("timeout", [-1, float("nan"), -0.001])
def test_g6_a_time_out_that_cannot_be_is_refused(bus: EventBus, timeout: float) -> None:
    receipt = bus.emit("a")
    with pytest.raises(OptionError):
        receipt.wait(timeout)
    with pytest.raises(OptionError):
        bus.request("a", timeout=timeout)


# request


@pytest.mark.parametrize("value", [None, 0, "", False, [1]])
def test_g6_request_gives_a_success_none_included(bus: EventBus, value: Any) -> None:
    bus.on("a", lambda _: value)
    assert bus.request("a", timeout=BOUND) is value


def test_g6_request_gives_the_first_success_and_does_not_wait_for_the_rest(bus: EventBus) -> None:
    with Gate("slow") as gate:
        bus.on("a", gate)
        bus.on("a", raising(ValueError("on purpose")))
        bus.on("a", lambda payload: payload + 1)
        assert bus.request("a", 1, BOUND) == 2
        assert gate.left == 0


def test_g6_request_of_failing_handlers_raises_all_errors(bus: EventBus) -> None:
    bus.on("a", raising(ValueError("one")))
    bus.on("a", raising(KeyError("two")), inline=True)
    with pytest.raises(ExceptionGroup) as caught:
        bus.request("a", timeout=BOUND)
    assert [type(each) for each in caught.value.exceptions] == [ValueError, KeyError]


def test_g6_request_of_a_base_exception_raises_a_base_exception_group(bus: EventBus) -> None:
    bus.on("a", raising(SystemExit(3)))
    with pytest.raises(BaseExceptionGroup) as caught:
        bus.request("a", timeout=BOUND)
    assert not isinstance(caught.value, Exception)


def test_g6_request_without_a_handler_raises_and_delivers_nothing(bus: EventBus) -> None:
    heard = Log()
    bus.on("a", heard, observer=True)
    with pytest.raises(NoHandlerError, match="'a'"):
        bus.request("a", timeout=BOUND)
    bus.drain(BOUND)
    assert heard.items == []


def test_g6_request_whose_only_handler_is_cancelled_raises(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        bus.emit("a")
        gate.entered()
        with Team() as team:
            team.add(lambda: pytest.raises(NoHandlerError, bus.request, "a", None, BOUND))  # noqa: RUF061
            team.go()
            soon(lambda: subscription.stats().pending == 1)
            subscription.cancel()
        assert team.results[0] is not None


def test_g6_request_runs_out_of_time_and_the_handler_goes_on(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        with pytest.raises(EventTimeoutError, match="'a'"):
            bus.request("a", timeout=0.001)
        gate.open()
        bus.drain(BOUND)
        assert subscription.stats().delivered == 1


def test_g6_request_inside_a_handler(bus: EventBus) -> None:
    bus.on("square", lambda n: n * n)
    bus.on("sum", lambda n: sum(bus.request("square", each, BOUND) for each in range(n)))
    assert bus.request("sum", 5, BOUND) == 30


def test_g6_many_requests_at_once_get_their_own_answers(bus: EventBus) -> None:
    bus.on("echo", lambda payload: payload, concurrency=3)

    def ask(index: int) -> list[Any]:
        return [bus.request("echo", (index, n), BOUND) for n in range(60)]

    with Team() as team:
        for index in range(4):
            team.add(ask, index)
    assert team.results == [[(index, n) for n in range(60)] for index in range(4)]


def test_g6_request_does_not_raise_by_propagate_errors_what_another_handler_raised() -> None:
    with EventBus("propagates", propagate_errors=True) as bus:
        bus.on("a", raising(ValueError("on purpose")))
        bus.on("a", lambda _: "answer")
        assert bus.request("a", timeout=BOUND) == "answer"


def test_g6_a_success_after_a_time_out_is_no_success(bus: EventBus) -> None:
    with Gate("late") as gate:
        bus.on("a", gate, timeout=LONG)
        receipt = past(bus, gate, bus.emit("a"))
        assert receipt.outcomes[0].status is Status.TIMED_OUT
        gate.open()
        gate.passed()
        bus.emit("a").wait(BOUND)
        assert receipt.outcomes[0].status is Status.TIMED_OUT
        assert receipt.results() == []


def test_g6_a_receipt_shows_how_it_stands(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", gate, name="gate")
        bus.on("b", Log())
        bus.on("b", raising(ValueError("on purpose")))
        bus.on("b", Log())
        first = bus.emit("a")
        gate.entered()
        assert repr(first) == f"<Receipt 'a' seq={first._seq} 1 unsettled>"
        bus.on("a", Log(), name="quick")
        second = bus.emit("a")
        soon(lambda: len(second.outcomes) == 1)
        assert repr(second) == f"<Receipt 'a' seq={second._seq} 1 unsettled: 1 delivered>"
        third = bus.emit("b").wait(BOUND)
        assert repr(third) == f"<Receipt 'b' seq={third._seq} done: 2 delivered, 1 failed>"
        nobody = bus.emit("nobody")
        assert repr(nobody) == f"<Receipt 'nobody' seq={nobody._seq} done>"


def test_g6_a_delivery_shows_whose_it_is_until_it_has_ended(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", gate, name="one")
        receipt = bus.emit("a")
        assert repr(receipt._deliveries[0]) == "<Delivery one (a)>"
    receipt.wait(BOUND)
    soon(lambda: repr(receipt._deliveries[0]) == "<Delivery an ended delivery>")


def test_g6_the_message_of_a_wait_that_ran_out_is_whole(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", gate, name="one")
        bus.on("a", gate, name="two")
        bus.on("a", Log(), name="three")
        receipt = bus.emit("a")
        soon(lambda: len(receipt.outcomes) == 1)
        with pytest.raises(EventTimeoutError) as caught:
            receipt.wait(0)
        assert str(caught.value) == "after 0 s the receipt of 'a' still waits for: one (a), two (a)"
        gate.open()
        receipt.wait(BOUND)
        assert receipt._overdue(0.25) == "after 0.25 s the receipt of 'a' still waits for: nothing any more"
        # As a wait sees it whose time runs out in the moment before: what is settled has no mailbox any more.
        assert receipt._unsettled() == []


def test_g6_the_message_of_a_wait_that_ran_out_names_the_first_that_no_loop_serves(bus: EventBus) -> None:
    async def never(payload: Any) -> None:
        """There is no loop."""

    facade = AsyncEventBus(bus)
    with Gate() as gate:
        bus.on("a", gate, name="thread's")
        facade.on("a", never, name="first")
        facade.on("a", never, name="second")
        receipt = bus.emit("a")
        with pytest.raises(EventTimeoutError) as caught:
            receipt.wait(0)
        assert str(caught.value) == (
            "after 0 s the receipt of 'a' still waits for: thread's (a), first (a), second (a);"
            " no event loop has served first yet: use `async with bus.serve()`"
        )
    for each in bus.subscriptions("a"):
        each.cancel()


def test_g6_an_id_is_of_its_bus_and_number(bus: EventBus) -> None:
    with EventBus("other") as other:
        for each in (bus, other):
            receipt = each.emit("a")
            assert receipt.event_id == make_id(each._engine.uid, receipt._seq)
        assert bus._engine.uid != other._engine.uid


def test_g15_of_two_that_make_the_event_at_once_both_get_the_same(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Event] = []
    make = Receipt._make_event

    def another_is_quicker(receipt: Receipt) -> Event:
        if not made:
            made.append(make(receipt))
            made.append(receipt._as_event())
        return make(receipt)

    with Gate() as gate:
        bus.on("a", gate)
        receipt = bus.emit("a")
        monkeypatch.setattr(Receipt, "_make_event", another_is_quicker)
        assert receipt._as_event() is made[1]


@pytest.mark.parametrize("status", Status)
def test_g5_only_what_failed_timed_out_or_was_rejected_is_an_error(status: Status) -> None:
    error = ValueError()
    bad = status in (Status.FAILED, Status.TIMED_OUT, Status.REJECTED)
    assert failure_of(Outcome(status, None, error, 0.0, 1, "one", "a")) is (error if bad else None)


def test_g6_whoever_follows_is_told_at_the_end_of_what_counts_though_an_observer_goes_on(bus: EventBus) -> None:
    """Observers are not waited for (G21); and nothing of the chain is kept by the receipt."""
    with Team() as team, Gate() as observer, Gate() as last:
        bus.on("a", lambda _: bus.emit("b") and None)
        bus.on("a", observer, observer=True)
        bus.on("b", last)
        receipt = bus.emit("a", follow=True)
        observer.entered()
        last.entered()
        waits = team.add(receipt.wait, BOUND)
        team.go()
        sleeps(waits)
        last.open()
        waits.join(BOUND)
        assert not waits.is_alive()
        assert observer.inside == 1
        assert receipt.done
        assert not receipt._family


class TestPutOff:
    """An emit amid the bus's own work in the same thread, as a signal handler or finalizer makes it (G12)."""

    def test_g6_it_is_not_in_effect_until_then(self, bus: EventBus) -> None:
        log = Log()
        bus.on("a", log)

        def within() -> Any:
            receipt = bus.emit("a", 1)
            assert repr(receipt) == "<Receipt 'a' not in effect yet>"
            assert receipt.deliveries is None
            assert receipt.done is False
            assert receipt.outcomes == ()
            with pytest.raises(DeadlockError) as caught:
                receipt.wait(0)
            assert str(caught.value) == (
                "the emit of 'a' interrupted the bus in this thread and takes effect only when the interrupted code"
                " goes on; do not wait for it here"
            )
            return receipt

        receipt = bus._engine.monitor.run(within)
        assert receipt.wait(BOUND).deliveries == 1
        assert log.items == [1]

    def test_g6_one_that_is_refused_then_tells_whoever_waits(self, bus: EventBus, caplog: Any) -> None:
        bus.on("a", Log())
        receipt = bus._engine.monitor.run(lambda: bus.emit("a", 1, require=2))
        for _ in range(2):
            with pytest.raises(NoHandlerError, match="require=2"):
                receipt.wait(0)
        assert receipt.done is True
        assert receipt.deliveries == 0
        assert receipt.outcomes == ()
        assert receipt.results() == []
        assert receipt._engine is receipt._payload is receipt._context is None  # G18
        assert "put off is refused" in caplog.text
