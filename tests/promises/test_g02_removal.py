"""G2: once ``cancel()`` has returned, nothing is claimed any more; with ``wait`` none of the handler runs after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, Log, Team, past, settled, sleeps, soon

from eventbus import DeadlockError, EventBus, EventTimeoutError, NotRegisteredError, Receipt, Status
from eventbus._engine import hot


def statuses(receipts: list[Receipt]) -> list[str]:
    return [receipt.wait(BOUND).outcomes[0].status.value for receipt in receipts]


# What becomes of pending and running deliveries


def test_g2_what_was_pending_is_cancelled_at_once_and_what_runs_goes_on(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        running = bus.emit("a", 0)
        gate.entered()
        pending = [bus.emit("a", n) for n in range(1, 11)]
        assert subscription.cancel() is True
        assert all(receipt.done for receipt in pending)
        assert statuses(pending) == ["cancelled"] * 10
        assert not running.done
        assert not subscription.active
        assert bus.emit("a").deliveries == 0
    assert statuses([running]) == ["delivered"]
    assert gate.received == [0]


def test_g2_cancel_may_be_repeated_and_tells_who_ended_it(bus: EventBus) -> None:
    subscription = bus.on("a", Log())
    assert [subscription.cancel(), subscription.cancel(), subscription.cancel(wait=True)] == [True, False, False]
    assert subscription.cancel(drain=True) is False


def test_g2_of_many_cancels_at_once_one_ends_it_and_all_wait(bus: EventBus) -> None:
    for _ in range(30):
        gate = Gate()
        subscription = bus.on("a", gate)
        bus.emit("a")
        gate.entered()

        def cancel(subscription: Any = subscription, gate: Gate = gate) -> tuple[bool, int]:
            return subscription.cancel(wait=True), gate.inside

        with Team() as team:
            for _ in range(3):
                team.add(cancel)
            team.go()
            soon(lambda: not subscription.active)
            gate.open()
        assert sorted(team.results) == [(False, 0), (False, 0), (True, 0)]


def test_g2_hammer_no_instruction_of_the_handler_runs_after_cancel_wait(bus: EventBus) -> None:
    over = threading.Event()
    late: list[str] = []
    calls = 0

    def emitter() -> None:
        while not over.is_set():
            bus.emit("a")

    def churn(inline: bool) -> int:
        ran = 0
        for number in range(60):
            ended = False

            def handler(_: Any) -> None:
                nonlocal ran
                if ended:
                    late.append("began")
                ran += 1
                for _ in range(20):
                    pass
                if ended:
                    late.append("went on")

            subscription = bus.on("a", handler, **({"inline": True} if inline else {"concurrency": 1 + number % 3}))
            soon(lambda: ran > number)
            subscription.cancel(wait=True)
            ended = True
        return ran

    with Team() as team:
        team.add(emitter)
        team.add(emitter)
        workers = [team.add(churn, False), team.add(churn, True)]
        team.go()
        for worker in workers:
            worker.join(BOUND)
        over.set()
    calls = sum(result or 0 for result in team.results)
    assert late == []
    assert calls >= 120
    bus.drain(BOUND)
    settled(bus)


def test_g2_cancel_wait_waits_for_the_call_that_has_begun(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        bus.emit("a")
        gate.entered()
        with Team() as team:
            team.add(subscription.cancel, True)
            team.go()
            soon(lambda: not subscription.active)
            with pytest.raises(EventTimeoutError, match="Gate"):
                subscription.cancel(wait=True, timeout=0)
            assert gate.inside == 1
            gate.open()
        assert team.results == [True]
        assert gate.inside == 0


def test_g2_a_time_out_of_the_wait_undoes_nothing(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        receipt = bus.emit("a")
        gate.entered()
        with pytest.raises(TimeoutError, match="Gate"):
            subscription.cancel(wait=True, timeout=0.001)
        assert not subscription.active
        assert bus.emit("a").deliveries == 0
    assert statuses([receipt]) == ["delivered"]
    subscription.cancel(wait=True, timeout=BOUND)


def test_g2_leaving_with_is_cancel_wait(bus: EventBus) -> None:
    gate = Gate()
    with Team() as team:
        with bus.on("a", gate) as subscription:
            bus.emit("a")
            gate.entered()
            team.add(lambda: soon(lambda: not subscription.active) or gate.open())
            team.go()
        assert gate.left == 1


def test_g2_leaving_a_scope_waits_for_its_calls(bus: EventBus) -> None:
    gate = Gate()
    with Team() as team:
        with bus.scope() as scope:
            first = scope.on("a", gate)
            second = scope.on("b", gate)
            bus.emit("a")
            bus.emit("b")
            gate.entered(2)
            team.add(lambda: soon(lambda: not first.active and not second.active) or gate.open())
            team.go()
        assert gate.left == 2


# Draining


def test_g2_drain_takes_nothing_new_and_runs_what_was_pending_first(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        receipts = [bus.emit("a", n) for n in range(5)]
        gate.entered()
        with Team() as team:
            team.add(lambda: subscription.cancel(drain=True))
            team.go()
            soon(lambda: not subscription.active)
            assert bus.emit("a", 99).deliveries == 0
            assert not receipts[4].done
            gate.open()
        assert team.results == [True]
    assert gate.received == [0, 1, 2, 3, 4]
    assert statuses(receipts) == ["delivered"] * 5


def test_g2_drain_runs_what_waits_for_space_too(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate, max_pending=1)
        bus.emit("a", 0)
        gate.entered()
        bus.emit("a", 1)
        with Team() as team:
            team.add(lambda: bus.emit("a", 2))
            team.go()
            soon(lambda: subscription.stats().pending == 2)
            team.add(lambda: subscription.cancel(drain=True))
            soon(lambda: not subscription.active)
            gate.open()
    assert gate.received == [0, 1, 2]


def test_g2_a_cancel_after_a_drain_ends_it_at_once(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        receipts = [bus.emit("a", n) for n in range(3)]
        gate.entered()
        with pytest.raises(EventTimeoutError):
            subscription.cancel(drain=True, timeout=0)
        assert not receipts[1].done
        assert subscription.cancel() is False
        assert statuses(receipts[1:]) == ["cancelled"] * 2
    assert statuses(receipts) == ["delivered", "cancelled", "cancelled"]
    soon(lambda: subscription.handler is None, "the end of the subscription")


# Within the handler


def test_g2_inside_the_handler_cancel_wait_does_not_wait_for_its_own_call(bus: EventBus) -> None:
    def handler(_: Any) -> bool:
        return subscription.cancel(wait=True)

    subscription = bus.on("a", handler)
    assert bus.emit("a").wait(BOUND).results() == [True]
    assert bus.emit("a").deliveries == 0


def test_g2_inside_an_inline_handler_too(bus: EventBus) -> None:
    got = []

    def handler(payload: Any) -> None:
        got.append(payload)
        subscription.cancel(wait=True)

    subscription = bus.on("a", handler, inline=True)
    assert bus.emit("a", 1).done
    assert bus.emit("a", 2).deliveries == 0
    assert got == [1]


def test_g2_inside_the_handler_the_others_calls_are_waited_for(bus: EventBus) -> None:
    with Gate() as gate:
        left_at_return: list[int] = []

        def handler(payload: Any) -> None:
            if payload == "gate":
                gate(payload)
            else:
                subscription.cancel(wait=True)
                left_at_return.append(gate.left)

        subscription = bus.on("a", handler, concurrency=2)
        first = bus.emit("a", "gate")
        gate.entered()
        second = bus.emit("a", "cancel")
        soon(lambda: not subscription.active)
        assert not second.done
        gate.open()
        assert statuses([first, second]) == ["delivered", "delivered"]
        assert left_at_return == [1]


def test_g2_leaving_with_inside_the_handler_returns(bus: EventBus) -> None:
    got = []

    def handler(payload: Any) -> None:
        with subscription:
            got.append(payload)

    subscription = bus.on("a", handler)
    assert statuses([bus.emit("a", 1)]) == ["delivered"]
    assert got == [1]
    assert not subscription.active


def test_g2_a_handler_past_its_time_out_cancels_itself_without_waiting_for_itself(bus: EventBus) -> None:
    done = threading.Event()

    def handler(payload: Any) -> None:
        gate(payload)
        subscription.cancel(wait=True, timeout=BOUND)
        done.set()

    with Gate() as gate:
        subscription = bus.on("a", handler, timeout=LONG)
        assert statuses([past(bus, gate, bus.emit("a"))]) == ["timed_out"]
        gate.open()
        assert done.wait(2.0), "it waited for its own call"


def test_g2_drain_inside_the_handler_with_something_pending_could_never_end(bus: EventBus) -> None:
    errors: list[BaseException] = []
    both = threading.Event()

    def handler(payload: Any) -> None:
        assert both.wait(BOUND)
        if payload == 0:
            try:
                subscription.cancel(drain=True)
            except DeadlockError as error:
                errors.append(error)

    subscription = bus.on("a", handler)
    receipts = [bus.emit("a", n) for n in range(3)]
    both.set()
    assert statuses(receipts) == ["delivered"] * 3  # it drains once the handler has returned
    assert len(errors) == 1
    assert "handler" in str(errors[0])
    assert not subscription.active


def test_g2_drain_inside_the_handler_with_nothing_pending_returns(bus: EventBus) -> None:
    subscription = bus.on("a", lambda _: subscription.cancel(drain=True))
    assert bus.emit("a").wait(BOUND).results() == [True]


def test_g2_two_calls_of_one_handler_that_wait_for_each_other_are_told(bus: EventBus) -> None:
    both = threading.Barrier(2)
    errors: list[DeadlockError] = []

    def handler(_: Any) -> None:
        both.wait(BOUND)
        try:
            subscription.cancel(wait=True)
        except DeadlockError as error:
            errors.append(error)

    subscription = bus.on("a", handler, concurrency=2, name="twin")
    receipts = [bus.emit("a"), bus.emit("a")]
    assert statuses(receipts) == ["delivered"] * 2
    assert len(errors) == 1
    assert "twin" in " ".join(errors[0].cycle)
    assert not subscription.active


# Inline handlers of one emit cancel each other


@pytest.mark.parametrize("wait", [False, True])
def test_g2_an_inline_handler_that_an_earlier_one_cancels_does_not_begin(bus: EventBus, wait: bool) -> None:
    """Also with ``wait``: its call has not begun, so there is nothing to wait for."""
    later: list[Any] = []

    def first(_: Any) -> None:
        second.cancel(wait=wait, timeout=BOUND if wait else None)

    bus.on("a", first, inline=True)
    second = bus.on("a", later.append, inline=True)
    third: list[Any] = []
    bus.on("a", third.append, inline=True)
    with Team(limit=2.0) as team:
        team.add(lambda: bus.emit("a", 1))
    receipt = team.results[0]
    assert later == []
    assert third == [1]
    assert [outcome.status.value for outcome in receipt.outcomes] == ["delivered", "cancelled", "delivered"]


class Half:
    """An emit whose first inline handler is held up, so that the delivery for the second has not begun."""

    def __init__(self, bus: EventBus, warm: bool) -> None:
        self.bus = bus
        self.gate = Gate()
        self.log = Log()
        bus.on("a", lambda payload: self.gate(payload) if payload else None, inline=True)
        self.second = bus.on("a", lambda payload: self.log(payload) if payload else None, inline=True)
        for _ in range(2 if warm else 0):
            bus.emit("a", 0)

    def begin(self, team: Team) -> None:
        """One thread emits and is held up."""
        team.add(lambda: [each.status for each in self.bus.emit("a", 1).outcomes])
        team.go()
        self.gate.entered()


@pytest.fixture(params=["first emit", "later", "later in Python"])
def half(request: pytest.FixtureRequest) -> Iterator[Half]:
    """From a topic's second emit on, inline deliveries begin in sections, in C mostly."""
    before = hot.use(request.param != "later in Python")
    try:
        with EventBus("half") as bus:
            yield Half(bus, request.param != "first emit")
    finally:
        hot.use(before)


def test_g2_a_cancel_that_drains_waits_for_an_inline_delivery_that_has_not_begun(half: Half) -> None:
    with Team() as team, half.gate:
        half.begin(team)
        with pytest.raises(EventTimeoutError):
            half.second.cancel(drain=True, timeout=0)
        assert half.second.handler is not None
        sleeps(team.add(lambda: (half.second.cancel(drain=True), list(half.log.items))))
    assert team.results == [[Status.DELIVERED] * 2, (False, [1])]
    assert half.second.handler is None


def test_g2_a_cancel_settles_an_inline_delivery_that_has_not_begun(half: Half) -> None:
    with Team() as team, half.gate:
        half.begin(team)
        before = half.second.stats().cancelled
        assert half.second.cancel(wait=True, timeout=BOUND)
        assert half.second.stats().cancelled == before + 1
        assert half.second.handler is None
    assert team.results == [[Status.DELIVERED, Status.CANCELLED]]
    assert half.log.items == []


def test_g2_a_cancel_ends_one_that_drains(half: Half) -> None:
    with Team() as team, half.gate:
        half.begin(team)
        sleeps(team.add(lambda: half.second.cancel(drain=True)))
        half.second.cancel()
        soon(lambda: team.results[1] is True, "the drain has ended")
    assert team.results[0] == [Status.DELIVERED, Status.CANCELLED]


def test_g3_an_inline_delivery_that_has_not_begun_is_counted_as_pending(half: Half) -> None:
    with Team() as team, half.gate:
        half.begin(team)
        row, totals = half.second.stats(), half.bus.stats().totals
        assert (row.pending, row.running, row.deliveries) == (1, 0, row.delivered + 1)
        assert (totals.pending, totals.running) == (1, 1)
        assert totals.deliveries == totals.delivered + 2
    row = half.second.stats()
    assert (row.pending, row.running, row.deliveries) == (0, 0, row.delivered)


def test_g8_an_inline_handler_cannot_wait_for_one_that_comes_after_it(half: Half) -> None:
    told: list[BaseException] = []

    def drains(payload: Any) -> None:
        if payload == 2:
            with pytest.raises(DeadlockError) as caught:
                last.cancel(drain=True)
            told.append(caught.value)

    log = Log()
    half.bus.on("a", drains, inline=True)
    last = half.bus.on("a", lambda payload: log(payload) if payload == 2 else None, inline=True)
    half.gate.open()
    assert [each.status for each in half.bus.emit("a", 2).outcomes] == [Status.DELIVERED] * 4
    assert log.items == [2]
    assert len(told) == 1
    assert not last.active


def test_g10_close_cancels_an_inline_delivery_that_has_not_begun(half: Half) -> None:
    with Team() as team, half.gate:
        half.begin(team)
        report = half.bus.close(0)
        assert report.cancelled == 2
        assert len(report.stuck) == 1
    assert team.results == [[Status.CANCELLED] * 2]
    assert half.log.items == []


def test_g10_a_drain_waits_for_an_inline_delivery_that_has_not_begun(half: Half) -> None:
    """That of a handler, too, which looks at each."""
    drained: list[list[Any]] = []

    def drains(_: Any) -> None:
        half.bus.drain()
        drained.append(list(half.log.items))

    half.bus.on("drains", drains)
    with Team() as team, half.gate:
        half.begin(team)
        receipt = half.bus.emit("drains")
        sleeps(team.add(half.bus.drain))
        assert drained == []
    receipt.wait(BOUND)
    assert drained == [[1]]


# Others that wait


def test_g2_cancel_wakes_an_emitter_that_waits_for_space(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate, max_pending=1)
        running, pending = bus.emit("a"), None
        gate.entered()
        pending = bus.emit("a")
        with Team() as team:
            team.add(lambda: bus.emit("a"))
            team.go()
            soon(lambda: subscription.stats().pending == 2)
            subscription.cancel()
        assert statuses([pending, team.results[0]]) == ["cancelled"] * 2
        assert not running.done


def test_g2_cancel_wakes_those_that_wait_for_receipts(bus: EventBus) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate)
        bus.emit("a")
        gate.entered()
        pending = bus.emit("a")
        with Team() as team:
            team.add(lambda: pending.wait(BOUND))
            team.go()
            subscription.cancel()
        assert pending.outcomes[0].status is Status.CANCELLED


def test_g2_a_subscription_cancelled_in_the_midst_of_emits_takes_all_before_and_none_after(bus: EventBus) -> None:
    """An emit that returned before the cancel began is delivered or cancelled; one that begins after it is not made."""
    for _ in range(40):
        got = Log()
        subscription = bus.on("a", got)
        cancelled = threading.Event()

        def emit(cancelled: threading.Event = cancelled) -> list[tuple[bool, Receipt]]:
            return [(cancelled.is_set(), bus.emit("a", n)) for n in range(30)]

        def cancel(subscription: Any = subscription, cancelled: threading.Event = cancelled) -> None:
            subscription.cancel()
            cancelled.set()

        with Team() as team:
            team.add(emit)
            team.add(cancel)
        made = [receipt for _, receipt in team.results[0] if receipt.deliveries]
        assert all(not receipt.deliveries for after, receipt in team.results[0] if after)
        # What it was reached by is a prefix: there is one instant at which it ended.
        assert [bool(receipt.deliveries) for _, receipt in team.results[0]] == [True] * len(made) + [False] * (
            30 - len(made)
        )
        found = statuses(made)
        assert set(found) <= {"delivered", "cancelled"}
        assert found.count("delivered") == len(got.items)


# Removing by topic and handler


def test_g2_off_ends_what_matches_and_counts_it(bus: EventBus) -> None:
    one, two = Log(), Log()
    bus.on("a", one)
    bus.on("a", one)
    kept = bus.on("a", two)
    several = bus.on(["b", "c/*"], one)
    assert bus.off("a", one) == 2
    assert bus.handlers("a") == (two,)
    with pytest.raises(NotRegisteredError, match="'a'"):
        bus.off("a", one)
    assert bus.off("c/*") == 1
    assert not several.active
    assert bus.emit("b").deliveries == 0
    assert bus.off(kept) == 1
    assert bus.off(kept) == 0
    with pytest.raises(LookupError):
        bus.off("a")


def test_g2_remove_all_listeners_never_raises(bus: EventBus) -> None:
    for topic in ("a", "a", "b"):
        bus.on(topic, Log())
    assert bus.remove_all_listeners("a") == 2
    assert bus.remove_all_listeners("a") == 0
    assert bus.remove_listener("b") == 1
    bus.on("c", Log())
    assert bus.remove_all_listeners() == 1
    assert bus.remove_all_listeners() == 0
    with pytest.raises(NotRegisteredError):
        bus.remove_listener("b")


def test_g2_off_knows_bound_methods_and_methods_of_builtins(bus: EventBus) -> None:
    got: list[Any] = []
    log = Log()
    bus.on("a", got.append)
    bus.on("a", log.reached)
    with pytest.raises(NotRegisteredError):
        bus.off("a", [].append)
    with pytest.raises(NotRegisteredError):
        bus.off("a", Log().reached)
    assert bus.off("a", got.append) == 1
    assert bus.off("a", log.reached) == 1


def test_g2_of_many_offs_at_once_each_subscription_is_counted_once(bus: EventBus) -> None:
    for _ in range(100):
        bus.on("a", Log())

    def remove() -> int:
        return sum(bus.remove_all_listeners("a") for _ in range(3))

    assert sum(Team(remove, remove, remove).run()) == 100
