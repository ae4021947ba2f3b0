"""G9: mailboxes are bounded; each policy from inside and outside, the waiting line, and what is rejected and how.

A gate holds the handler, so that the mailbox fills: one delivery runs, ``max_pending`` are pending, the rest stands in
line or meets the policy.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from kit import BOUND, Gate, Log, Team, no_thread, settled, sleeps, soon

from eventbus import Event, EventBus, HandlerError, MailboxFullError, Receipt, Status, Subscription
from eventbus._engine import primitives


def statuses(receipts: list[Receipt]) -> list[str]:
    return [receipt.wait(BOUND).outcomes[0].status.value for receipt in receipts]


def fill(bus: EventBus, gate: Gate, pending: int, topic: str = "a") -> list[Receipt]:
    """One delivery inside the gate, so many behind it."""
    receipts = [bus.emit(topic, 0)]
    gate.entered()
    receipts.extend(bus.emit(topic, n) for n in range(1, pending + 1))
    return receipts


def line_up(team: Team, bus: EventBus, subscription: Subscription, payloads: list[Any], topic: str = "a") -> None:
    """Emitters that wait for space, each in a thread of its own, one after the other."""
    team.go()
    for payload in payloads:
        before = subscription.stats().pending
        team.add(bus.emit, topic, payload)
        soon(lambda before=before: subscription.stats().pending == before + 1)


class TestBlock:
    def test_g9_a_mailbox_holds_ten_thousand_by_default(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate)
            fill(bus, gate, 10_000)
            line_up(team, bus, subscription, [10_001])
            gate.open()
            bus.drain(BOUND)
            assert gate.received == list(range(10_002))

    def test_g9_a_thread_waits_for_space_and_no_longer(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=2)
            fill(bus, gate, 2)
            line_up(team, bus, subscription, [3])
            assert team.results == [None]
            gate.let()
            gate.entered(2)
            soon(lambda: team.results[0] is not None, "the emit's return")
            assert not team.results[0].done  # admitted, not run
        assert statuses(team.results) == ["delivered"]
        assert gate.received == [0, 1, 2, 3]

    def test_g9_the_running_one_takes_no_space(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, max_pending=1, concurrency=3)
            receipts = []
            for n in range(3):
                receipts.append(bus.emit("a", n))
                gate.entered(n + 1)
            receipts.append(bus.emit("a", 3))  # the one pending; nothing blocks
            assert not receipts[3].done
        assert statuses(receipts) == ["delivered"] * 4

    def test_g9_the_line_is_kept_in_order_and_nobody_jumps_it(self, bus: EventBus) -> None:
        """Also when there is room for a moment: who waits holds his place."""
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1)
            fill(bus, gate, 1)
            line_up(team, bus, subscription, [2, 3, 4])
            gate.let()
            gate.entered(2)
            line_up(team, bus, subscription, [5, 6])
            gate.open()
        bus.drain(BOUND)
        assert gate.received == [0, 1, 2, 3, 4, 5, 6]

    def test_g9_an_emit_delivers_where_there_is_room_before_it_waits(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            roomy = [Log(), Log()]
            bus.on("b", roomy[0])
            full = bus.on(["a", "b"], gate, max_pending=1)
            bus.on("b", roomy[1])
            fill(bus, gate, 1)
            line_up(team, bus, full, ["x"], "b")
            assert [log.reached(1) for log in roomy] == [["x"], ["x"]]
            assert team.results == [None]
            gate.open()

    def test_g9_it_waits_for_the_full_ones_side_by_side(self, bus: EventBus) -> None:
        """In both lines at once: each is served as soon as it has room, whatever the other does."""
        gates = [Gate(), Gate()]
        with gates[0], gates[1], Team() as team:
            boxes = [bus.on([f"fill/{n}", "both"], gates[n], max_pending=1) for n in range(2)]
            for n in range(2):
                fill(bus, gates[n], 1, f"fill/{n}")
            team.go()
            team.add(bus.emit, "both", "x")
            soon(lambda: [box.stats().pending for box in boxes] == [2, 2])
            gates[1].open()
            gates[1].entered(3)
            assert gates[1].received == [0, 1, "x"]
            assert team.results == [None]  # the first is full as ever
            gates[0].open()
        assert team.results[0].wait(BOUND).deliveries == 2

    def test_g9_a_wait_in_a_handler_starves_nobody(self) -> None:
        with EventBus("one", workers=1, max_workers=1, max_pending=1) as bus:
            log = Log()
            bus.on("small", log)
            bus.on("a", lambda _: [bus.emit("small", n) for n in range(20)] and None)
            bus.emit("a", follow=True).wait(BOUND)
            assert log.items == list(range(20))

    def test_g9_a_handler_that_fills_its_own_mailbox_is_not_held_up(self, bus: EventBus) -> None:
        made: list[Receipt] = []

        def handler(payload: Any) -> None:
            if payload == "start":
                made.extend(bus.emit("a", n) for n in range(4))

        bus.on("a", handler, max_pending=2, name="own")
        bus.emit("a", "start").wait(BOUND)
        assert statuses(made) == ["delivered", "delivered", "rejected", "rejected"]
        assert "own" in str(made[2].outcomes[0].error)

    def test_g9_a_free_slot_makes_space_in_ones_own_mailbox(self, bus: EventBus) -> None:
        """With a second slot somebody takes from the mailbox while this one waits: no cycle, nothing rejected."""
        log = Log()

        def handler(payload: Any) -> None:
            if payload == "start":
                for n in range(20):
                    bus.emit("a", n)
            else:
                log(payload)

        bus.on("a", handler, max_pending=1, concurrency=2)
        bus.emit("a", "start", follow=True).wait(BOUND)
        assert log.items == list(range(20))

    @pytest.mark.parametrize("end", ["cancel", "close"])
    def test_g9_what_ends_the_subscription_frees_those_in_line(self, end: str) -> None:
        with EventBus("ends") as bus, Gate() as gate:
            with Team() as team:
                subscription = bus.on("a", gate, max_pending=1)
                held = fill(bus, gate, 1)
                line_up(team, bus, subscription, [2, 3])
                subscription.cancel() if end == "cancel" else bus.close(0)
            assert statuses([held[1], *team.results]) == ["cancelled"] * 3

    def test_g9_what_is_cancelled_from_within_the_mailbox_makes_no_gap(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1)
            fill(bus, gate, 1)
            line_up(team, bus, subscription, list(range(2, 8)))
            for n in range(1, 8):
                gate.let()
                gate.entered(n + 1)
        bus.drain(BOUND)
        assert gate.received == list(range(8))
        settled(bus)

    def test_g9_without_a_bound_nothing_waits(self, bus: EventBus) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate, max_pending=None)
            fill(bus, gate, 10_050)
            assert subscription.stats().pending == 10_050


class TestOnALoop:
    """The core, used in a thread whose loop runs: nothing there may block it."""

    def test_g9_an_emit_on_a_loop_joins_the_line_in_order_and_is_admitted_later(self, bus: EventBus) -> None:
        """Even if the receipt is dropped."""
        with Gate() as gate:
            subscription = bus.on("a", gate, max_pending=1)
            bus.emit("a", 0)
            gate.entered()

            async def main() -> Receipt:
                for n in range(1, 9):
                    bus.emit("a", n)
                return bus.emit("a", 9)

            receipt = asyncio.run(main())
            assert receipt.outcomes == ()
            assert subscription.stats().pending == 9
            gate.open()
            assert statuses([receipt]) == ["delivered"]
        assert gate.received == list(range(10))

    def test_g9_loops_and_threads_stand_in_one_line(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1)
            fill(bus, gate, 1)
            line_up(team, bus, subscription, [2])

            async def main() -> None:
                bus.emit("a", 3)

            asyncio.run(main())
            line_up(team, bus, subscription, [4])
            gate.open()
        bus.drain(BOUND)
        assert gate.received == [0, 1, 2, 3, 4]

    def test_g9_the_bound_of_the_line_holds_on_a_loop_too(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, max_pending=1, max_waiting=2)
            fill(bus, gate, 1)

            async def main() -> list[Receipt]:
                return [bus.emit("a", n) for n in range(2, 6)]

            receipts = asyncio.run(main())
            assert [each.done for each in receipts] == [False, False, True, True]
            gate.open()
            assert statuses(receipts) == ["delivered", "delivered", "rejected", "rejected"]


class TestBounds:
    def test_g9_a_block_timeout_that_runs_out_rejects_that_delivery(self, bus: EventBus) -> None:
        """``emit`` does not raise, and the other deliveries of it are delivered."""
        with Gate() as gate:
            other = Log()
            subscription = bus.on("a", gate, max_pending=1, block_timeout=0.01, name="slow")
            bus.on("a", other)
            held = fill(bus, gate, 1)
            begun = time.monotonic()
            receipt = bus.emit("a", 2)
            assert 0.01 <= time.monotonic() - begun < BOUND
            outcome = receipt.outcomes[0]
            assert outcome.status is Status.REJECTED
            assert isinstance(outcome.error, MailboxFullError)
            assert isinstance(outcome.error, RuntimeError)
            assert "slow" in str(outcome.error)
            assert "0.01" in str(outcome.error)
            assert other.reached(3) == [0, 1, 2]
            assert subscription.stats().pending == 1
            gate.open()
            assert statuses(held) == ["delivered", "delivered"]

    def test_g9_a_block_timeout_of_zero_does_not_wait(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, max_pending=1, block_timeout=0)
            fill(bus, gate, 1)
            assert statuses([bus.emit("a", 2)]) == ["rejected"]

    def test_g9_who_is_out_of_patience_leaves_the_line_and_the_others_keep_their_places(self, bus: EventBus) -> None:
        """The mailbox has one policy; who came earlier goes earlier, and a place in time is a place."""
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1, block_timeout=0.2)
            fill(bus, gate, 1)
            line_up(team, bus, subscription, [2])
            soon(lambda: team.results[0] is not None)
            assert statuses(team.results) == ["rejected"]
            line_up(team, bus, subscription, [3])
            gate.open()
        assert statuses(team.results) == ["rejected", "delivered"]
        assert gate.received == [0, 1, 3]

    def test_g9_an_admitted_delivery_knows_no_block_timeout(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1, block_timeout=0.15)
            fill(bus, gate, 1)
            line_up(team, bus, subscription, [2])
            gate.let()
            gate.entered(2)
            later = bus.emit("a", 3)  # once this one's patience is over, the other's would be too
            assert statuses([later]) == ["rejected"]
            gate.open()
        assert statuses(team.results) == ["delivered"]

    def test_g9_the_waiting_line_is_bounded_by_max_waiting(self, bus: EventBus) -> None:
        with Gate() as gate, Team() as team:
            subscription = bus.on("a", gate, max_pending=1, max_waiting=2, name="short line")
            fill(bus, gate, 1)
            line_up(team, bus, subscription, [2, 3])
            refused = [bus.emit("a", 4), bus.emit("a", 5)]
            assert statuses(refused) == ["rejected", "rejected"]
            assert "short line" in str(refused[0].outcomes[0].error)
            gate.let()
            gate.entered(2)
            line_up(team, bus, subscription, [6])  # there is room in the line again
            gate.open()
        assert statuses(team.results) == ["delivered"] * 3
        assert gate.received == [0, 1, 2, 3, 6]

    def test_g9_max_waiting_zero_lets_nobody_wait(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, max_pending=1, max_waiting=0)
            fill(bus, gate, 1)
            assert statuses([bus.emit("a", 2)]) == ["rejected"]

    def test_g9_the_defaults_of_the_bus_hold_for_its_subscriptions(self) -> None:
        with EventBus("defaults", max_pending=1, overflow="drop_newest") as bus, Gate() as gate:
            bus.on("a", gate)
            bus.on("b", gate, max_pending=2)
            fill(bus, gate, 1)
            assert statuses([bus.emit("a", 2)]) == ["dropped"]
            bus.emit("b", "b0")
            gate.entered(2)
            more = [bus.emit("b", n) for n in range(3)]
            assert [each.done for each in more] == [False, False, True]


class TestPolicies:
    """From outside, and from within the very handler whose mailbox is full: no policy but ``block`` ever waits."""

    EXPECTED = {
        "drop_oldest": (["dropped"] * 3 + ["delivered"] * 2, [0, 4, 5]),
        "drop_newest": (["delivered"] * 2 + ["dropped"] * 3, [0, 1, 2]),
        "latest": (["dropped"] * 4 + ["delivered"], [0, 5]),
        "error": (["delivered"] * 2 + ["rejected"] * 3, [0, 1, 2]),
    }

    @pytest.mark.parametrize("overflow", EXPECTED)
    def test_g9_from_outside(self, bus: EventBus, overflow: Any) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate, max_pending=2, overflow=overflow)
            receipts = fill(bus, gate, 5)
            expected, received = self.EXPECTED[overflow]
            gate.open()
            assert statuses(receipts) == ["delivered", *expected]
            assert gate.received == received
        bus.drain(BOUND)
        stats = subscription.stats()
        assert stats.deliveries == 6
        assert stats.dropped == expected.count("dropped")
        assert stats.rejected == expected.count("rejected")

    @pytest.mark.parametrize("overflow", EXPECTED)
    def test_g9_from_inside(self, bus: EventBus, overflow: Any) -> None:
        received: list[Any] = []
        made: list[Receipt] = []

        def handler(payload: Any) -> None:
            received.append(payload)
            if payload == 0:
                made.extend(bus.emit("a", n) for n in range(1, 6))

        bus.on("a", handler, max_pending=2, overflow=overflow)
        bus.emit("a", 0, follow=True).wait(BOUND)
        expected, wanted = self.EXPECTED[overflow]
        assert statuses(made) == expected
        assert received == wanted

    @pytest.mark.parametrize("overflow", EXPECTED)
    def test_g9_on_a_loop(self, bus: EventBus, overflow: Any) -> None:
        with Gate() as gate:
            bus.on("a", gate, max_pending=2, overflow=overflow)
            fill(bus, gate, 0)

            async def main() -> list[Receipt]:
                return [bus.emit("a", n) for n in range(1, 6)]

            receipts = asyncio.run(main())
            gate.open()
            assert statuses(receipts) == self.EXPECTED[overflow][0]

    @pytest.mark.parametrize("overflow", EXPECTED)
    def test_g9_within_a_lane(self, bus: EventBus, overflow: Any) -> None:
        """What is dropped leaves the lane as well."""
        with Gate() as gate:
            order: list[Any] = []
            bus.on("gate", gate, lane="lane")
            bus.on("a", order.append, max_pending=2, overflow=overflow, lane="lane")
            bus.on("z", order.append, lane="lane")
            bus.emit("gate")
            gate.entered()
            receipts = [bus.emit("a", n) for n in range(1, 6)]
            last = bus.emit("z", "last")
            gate.open()
            assert statuses([*receipts, last]) == [*self.EXPECTED[overflow][0], "delivered"]
        assert order == [*self.EXPECTED[overflow][1][1:], "last"]

    def test_g9_latest_holds_one_whatever_max_pending_says(self, bus: EventBus) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate, overflow="latest")
            receipts = fill(bus, gate, 100)
            assert subscription.stats().pending == 1
            gate.open()
            assert statuses(receipts) == ["delivered", *["dropped"] * 99, "delivered"]
        assert gate.received == [0, 100]

    def test_g9_latest_holds_one_per_key_and_max_pending_bounds_the_keys(self, bus: EventBus) -> None:
        """A key more than that is rejected: nothing of another key is thrown away for it."""
        with Gate() as gate:
            subscription = bus.on(
                "a", gate, overflow="latest", key=lambda event: str(event.payload)[0], max_pending=2, name="keyed"
            )
            fill(bus, gate, 0)
            receipts = {each: bus.emit("a", each) for each in ("a1", "b1", "a2", "b2", "c1", "a3")}
            assert subscription.stats().pending == 2
            gate.open()
            found = dict(zip(receipts, statuses(list(receipts.values())), strict=True))
        assert found == {
            "a1": "dropped", "a2": "dropped", "a3": "delivered", "b1": "dropped", "b2": "delivered", "c1": "rejected",
        }  # fmt: skip
        assert sorted(map(str, gate.received)) == ["0", "a3", "b2"]
        assert "keyed" in str(receipts["c1"].outcomes[0].error)

    def test_g9_drop_oldest_drops_by_admission_across_keys(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, overflow="drop_oldest", key=lambda event: event.payload % 2, max_pending=3)
            receipts = fill(bus, gate, 6)
            gate.open()
            assert statuses(receipts) == ["delivered", *["dropped"] * 3, *["delivered"] * 3]

    def test_g9_what_was_dropped_is_no_error(self, bus: EventBus) -> None:
        """A policy that the user chose: nothing raised, nothing reported."""
        problems = Log()
        bus.on("bus/error", problems)
        with Gate() as gate:
            bus.on("a", gate, max_pending=1, overflow="drop_oldest")
            receipts = fill(bus, gate, 3)
            gate.open()
            for receipt in receipts:
                receipt.wait(BOUND).raise_for_errors()
        assert [each.outcomes[0].error for each in receipts] == [None] * 4
        bus.drain(BOUND)
        assert problems.items == []


class TestRejections:
    def test_g9_a_rejection_is_reported_like_an_error_and_not_raised(self, caplog: pytest.LogCaptureFixture) -> None:
        problems, told = Log(), Log()
        with EventBus("told", on_error=told) as bus, Gate() as gate:
            subscription = bus.on("a", gate, max_pending=1, overflow="error", name="full")
            bus.on("bus/error", problems)
            fill(bus, gate, 1)
            receipt = bus.emit("a", 2)
            (problem,) = told.reached(1)
            assert isinstance(problem, HandlerError)
            assert isinstance(problem.error, MailboxFullError)
            assert problem.where == "mailbox"
            assert problem.subscription is subscription
            assert isinstance(problem.event, Event)
            assert problem.event.payload == 2
            assert problems.reached(1) == [problem]
            assert problem.error is receipt.outcomes[0].error
            with pytest.raises(ExceptionGroup) as caught:
                receipt.raise_for_errors()
            assert caught.value.exceptions == (problem.error,)
        assert any("full" in record.getMessage() for record in caplog.records)

    def test_g9_with_propagate_errors_it_is_the_wait_that_raises(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, max_pending=1, overflow="error")
            fill(bus, gate, 1)
            receipt = bus.emit("a", 2, propagate_errors=True)
            with pytest.raises(MailboxFullError):
                receipt.wait(BOUND)

    def test_g9_a_request_that_is_rejected_everywhere_raises_it(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate, max_pending=1, overflow="error")
            fill(bus, gate, 1)
            with pytest.raises(ExceptionGroup) as caught:
                bus.request("a", 2, BOUND)
            assert caught.group_contains(MailboxFullError)

    @pytest.mark.parametrize("how", ["raises", "emits"])
    def test_g9_an_on_error_hook_may_use_the_bus(self, how: str) -> None:
        seen = Log()

        def hook(problem: HandlerError) -> None:
            if how == "raises":
                raise ValueError("in the hook")
            bus.emit("rejected", problem.event.payload).wait(BOUND)

        with EventBus("hook", on_error=hook) as bus, Gate() as gate:
            bus.on("rejected", seen)
            bus.on("a", gate, max_pending=1, overflow="error")
            fill(bus, gate, 1)
            assert statuses([bus.emit("a", 2)]) == ["rejected"]
            if how == "emits":
                assert seen.reached(1) == [2]
            gate.open()
            bus.drain(BOUND)


class TestTheBussOwn:
    @pytest.mark.parametrize("overflow", ["block", "error", "drop_newest", "drop_oldest", "latest"])
    def test_g9_its_own_emits_never_block_and_are_dropped_when_full(self, bus: EventBus, overflow: Any) -> None:
        """A listener of errors that is stuck holds up nobody; what it misses is counted as dropped."""
        with Gate() as gate:
            listener = bus.on("bus/error", gate, max_pending=2, overflow=overflow)
            bus.on("a", lambda n: 1 // 0)
            bus.emit("a", 0).wait(BOUND)
            gate.entered()
            receipts = [bus.emit("a", n) for n in range(1, 11)]
            assert statuses(receipts) == ["failed"] * 10
            kept = 1 if overflow == "latest" else 2
            soon(lambda: listener.stats().deliveries == 11)
            stats = listener.stats()
            assert (stats.dropped, stats.pending, stats.rejected) == (10 - kept, kept, 0)
        bus.drain(BOUND)
        assert listener.stats().delivered == 1 + kept


class TestHammers:
    @pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest", "latest", "error"])
    @pytest.mark.parametrize("keyed", [False, True])
    def test_g9_hammer_every_delivery_has_one_outcome_and_order_holds(self, overflow: Any, keyed: bool) -> None:
        got: list[tuple[int, int]] = []
        options: dict[str, Any] = {"key": lambda event: event.payload[0]} if keyed else {}
        with EventBus(f"hammer-{overflow}", workers=2) as bus:
            subscription = bus.on("a", got.append, max_pending=3, overflow=overflow, **options)

            def emitter(number: int) -> list[Receipt]:
                return [bus.emit("a", (number, n)) for n in range(150)]

            with Team() as team:
                for number in range(4):
                    team.add(emitter, number)
            bus.drain(BOUND)
            receipts = [receipt for result in team.results for receipt in result]
            found = statuses(receipts)
            delivered = [receipt for receipt, status in zip(receipts, found, strict=True) if status == "delivered"]
            assert len(got) == len(set(got)) == len(delivered) == subscription.stats().delivered
            for number in range(4):
                mine = [n for who, n in got if who == number]
                assert mine == sorted(mine)
            allowed = {
                "block": set(),
                "error": {"rejected"},
                "latest": {"dropped", "rejected"} if keyed else {"dropped"},
            }
            assert set(found) - {"delivered"} <= allowed.get(overflow, {"dropped"})
            settled(bus)

    def test_g9_hammer_emitters_that_wait_and_subscriptions_that_go(self, bus: EventBus) -> None:
        """Whoever waits for space is woken, by room or by the end of the subscription; nothing hangs or is lost."""
        over = threading.Event()

        def churn() -> int:
            rounds = 0
            while not over.is_set():
                with bus.on("a", lambda _: None, max_pending=1):
                    bus.emit("a", "own")
                rounds += 1
            return rounds

        def emitter() -> list[Receipt]:
            return [bus.emit("a", n) for n in range(300)]

        with Team() as team:
            churners = [team.add(churn), team.add(churn)]
            emitters = [team.add(emitter), team.add(emitter)]
            team.go()
            for each in emitters:
                each.join(BOUND)
            over.set()
            assert churners
        for receipt in team.results[2] + team.results[3]:
            receipt.wait(BOUND)
        bus.drain(BOUND)
        settled(bus)
        assert bus.stats().totals.rejected == 0


def test_g9_a_full_mailbox_counts_as_g5_says_for_keys_that_hold_each_other_up(bus: EventBus) -> None:
    """A handler of one key waits for space that only its own end could make: rejected, not hung."""
    made: list[Receipt] = []

    def handler(payload: tuple[str, int]) -> None:
        if payload == ("x", 0):
            made.append(bus.emit("a", ("x", 1)))  # fills the mailbox until this call has ended
            made.append(bus.emit("a", ("y", 0)))  # there are slots for it, but no room

    bus.on("a", handler, key=lambda event: event.payload[0], concurrency=2, max_pending=1, name="keyed")
    with Team(limit=5.0) as team:
        team.add(lambda: bus.emit("a", ("x", 0)).wait(BOUND))
    assert statuses(made) == ["delivered", "rejected"]
    assert "keyed" in str(made[1].outcomes[0].error)


def test_g9_who_stands_in_line_behind_what_only_his_own_end_lets_run_is_rejected(bus: EventBus) -> None:
    """There was space to come when he began to wait; who was in line before him has taken it."""
    made: list[Receipt] = []
    gates = {"y": Gate()}

    def handler(payload: tuple[str, int]) -> None:
        if payload == ("y", 0):
            gates["y"](payload)
        elif payload == ("x", 0):
            soon(lambda: subscription.stats().pending == 2)
            made.append(bus.emit("a", ("z", 0)))

    subscription = bus.on("a", handler, key=lambda event: event.payload[0], concurrency=2, max_pending=1)
    with gates["y"], Team() as team:
        bus.emit("a", ("y", 0))
        gates["y"].entered()
        bus.emit("a", ("x", 0))
        soon(lambda: subscription.stats().running == 2)
        team.go()
        team.add(bus.emit, "a", ("y", 1))  # pending
        soon(lambda: subscription.stats().pending == 1)
        team.add(bus.emit, "a", ("x", 1))  # first in line
        soon(lambda: bus.stats().pool.waiting == 1)
        gates["y"].open()
    bus.drain(BOUND)
    assert statuses(made) == ["rejected"]
    assert statuses(team.results) == ["delivered"] * 2


def test_g9_space_that_another_key_makes_is_waited_for(bus: EventBus) -> None:
    """The delivery that waits for space can only run after its waiter, but the space itself comes: no cycle."""
    gate = Gate()
    made: list[Receipt] = []
    running = threading.Event()

    def handler(payload: tuple[str, int]) -> None:
        if payload == ("y", 0):
            gate(payload)
        elif payload == ("x", 0):
            assert running.wait(BOUND)
            made.append(bus.emit("a", ("y", 1)))  # fills the mailbox until ("y", 0) ends
            made.append(bus.emit("a", ("x", 1)))

    with gate:
        subscription = bus.on("a", handler, key=lambda event: event.payload[0], concurrency=2, max_pending=1)
        first = [bus.emit("a", ("y", 0))]
        gate.entered()
        first.append(bus.emit("a", ("x", 0)))
        soon(lambda: subscription.stats().running == 2)
        running.set()
        soon(lambda: bus.stats().pool.waiting == 1)
        gate.open()
        assert statuses(first) == ["delivered"] * 2
    assert statuses(made) == ["delivered"] * 2


def test_g8_g9_of_an_emit_that_waits_for_space_twice_only_what_would_never_come_is_rejected(bus: EventBus) -> None:
    with Gate() as gate:
        inner: list[Any] = []

        def own(payload: Any) -> None:
            if payload == "start":
                gate.entered()
                inner.append(bus.emit("t", 1))
                inner.append(bus.emit("t", 2))

        mine = bus.on("t", own, max_pending=1)
        bus.on("t", gate, max_pending=1)
        bus.emit("t", "start")
        soon(lambda: mine.stats().rejected == 1)
        soon(lambda: bus.stats().pool.waiting == 1)  # for the other one
        assert len(inner) == 1
        gate.open()
        soon(lambda: len(inner) == 2)
        assert [each.status for each in inner[0].wait(BOUND).outcomes] == [Status.DELIVERED] * 2
        assert [each.status for each in inner[1].wait(BOUND).outcomes] == [Status.REJECTED, Status.DELIVERED]


@pytest.mark.parametrize("overflow", ["block", "error", "drop_newest", "drop_oldest", "latest"])
def test_g9_an_emit_to_a_full_mailbox_has_it_tried_again_to_start_a_thread(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, overflow: Any
) -> None:
    """Where none could be started, and whatever becomes of the emit itself."""

    log = Log()
    subscription = bus.on("t", log, max_pending=1, overflow=overflow)
    with Team() as team:
        with monkeypatch.context() as patch:
            patch.setattr(primitives, "start_thread", no_thread)
            bus.emit("t", 1)
            second = team.add(bus.emit, "t", 2)
            team.go()
            if overflow == "block":
                sleeps(second)  # it asks for no thread itself
            else:
                second.join(BOUND)
            assert log.items == []
        team.add(bus.emit, "t", 3)
    # A thread is started after the step in which the policy was applied.
    kept = {"block": [1, 2, 3], "error": [1], "drop_newest": [1], "drop_oldest": [3], "latest": [3]}[overflow]
    assert log.reached(len(kept)) == kept
    bus.drain(BOUND)
    assert log.items == kept
    assert subscription.stats().deliveries == 3


def test_g20_in_a_lane_that_is_for_whoever_is_next(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    bus.on("a", log, lane="lane")
    bus.on("b", log, lane="lane", max_pending=1)
    with Team() as team:
        with monkeypatch.context() as patch:
            patch.setattr(primitives, "start_thread", no_thread)
            bus.emit("a", 1)
            bus.emit("b", 2)
        team.add(bus.emit, "b", 3)
    assert log.reached(3) == [1, 2, 3]
