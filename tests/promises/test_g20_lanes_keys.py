"""G20: lanes (one at a time across subscriptions) and keys (order per key, several keys at once)."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from kit import BOUND, LONG, Alarm, Gate, past

from eventbus import Event, EventBus, Status
from eventbus._engine.mailbox import Mailbox


class Meter:
    """How many are inside at once, at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.inside -= 1


class TestLanes:
    def test_one_delivery_at_a_time_in_the_order_of_admission(self) -> None:
        order: list[tuple[str, Any]] = []
        meter = Meter()
        with EventBus(workers=4) as bus:

            def handler(name: str) -> Any:
                def handle(payload: Any) -> None:
                    with meter:
                        order.append((name, payload))

                return handle

            for name in ("x", "y", "z"):
                bus.on(name, handler(name), lane="db", concurrency=3)
            sent = [(("x", "y", "z")[n % 3], n) for n in range(300)]
            for name, n in sent:
                bus.emit(name, n)
            bus.drain(BOUND)
        assert meter.most == 1
        assert order == sent

    def test_each_emitters_order_is_kept_across_subscriptions(self) -> None:
        order: list[tuple[int, int]] = []
        with EventBus(workers=4) as bus:
            for topic in ("a", "b"):
                bus.on(topic, order.append, lane="db")

            def emitter(number: int) -> None:
                for n in range(100):
                    bus.emit("ab"[n % 2], (number, n))

            threads = [threading.Thread(target=emitter, args=(number,)) for number in range(3)]
            for each in threads:
                each.start()
            for each in threads:
                each.join(BOUND)
            bus.drain(BOUND)
        for number in range(3):
            assert [n for who, n in order if who == number] == list(range(100))

    def test_one_event_for_two_of_a_lane_in_order_of_registration(self, bus: EventBus) -> None:
        order: list[str] = []
        bus.on("t", lambda payload: order.append("first"), lane="db")
        bus.on("t", lambda payload: order.append("second"), lane="db")
        for _ in range(10):
            bus.emit("t").wait(BOUND)
        assert order == ["first", "second"] * 10

    def test_a_stuck_one_stops_its_lane_and_nothing_else(self, bus: EventBus) -> None:
        gated = Gate()
        bus.on("stuck", gated, lane="db")
        bus.on("same", lambda payload: "same", lane="db")
        bus.on("other lane", lambda payload: "other", lane="files")
        bus.on("no lane", lambda payload: "none")
        bus.emit("stuck")
        gated.entered()
        same = bus.emit("same")
        assert bus.emit("other lane").wait(BOUND).results() == ["other"]
        assert bus.emit("no lane").wait(BOUND).results() == ["none"]
        assert not same.done
        gated.open()
        assert same.wait(BOUND).results() == ["same"]

    def test_a_lane_has_no_thread_of_its_own(self, bus: EventBus) -> None:
        for n in range(50):
            bus.on("t", lambda payload: None, lane=f"lane {n}")
        before = threading.active_count()
        bus.emit("t").wait(BOUND)
        assert threading.active_count() <= before + 4

    def test_a_timed_out_handler_holds_its_lane_until_it_ends(self, bus: EventBus) -> None:
        """G7 says so."""
        gated = Gate()
        bus.on("stuck", gated, lane="db", timeout=LONG)
        bus.on("same", lambda payload: None, lane="db")
        stuck = bus.emit("stuck")
        same = bus.emit("same")
        assert [each.status for each in past(bus, gated, stuck).outcomes] == [Status.TIMED_OUT]
        assert not same.done
        gated.open()
        same.wait(BOUND)

    def test_a_cancelled_member_leaves_the_line(self, bus: EventBus) -> None:
        gated = Gate()
        order: list[Any] = []
        bus.on("gate", gated, lane="db")
        leaving = bus.on("a", order.append, lane="db")
        bus.on("b", order.append, lane="db")
        bus.emit("gate")
        gated.entered()
        receipts = [bus.emit("a", "a1"), bus.emit("b", "b1"), bus.emit("a", "a2"), bus.emit("b", "b2")]
        leaving.cancel()
        gated.open()
        statuses = [each.wait(BOUND).outcomes[0].status for each in receipts]
        assert statuses == [Status.CANCELLED, Status.DELIVERED] * 2
        assert order == ["b1", "b2"]

    @pytest.mark.parametrize("key", [None, lambda event: event.payload])
    def test_an_unbound_member_leaves_the_line_and_comes_back_at_its_end(self, bus: EventBus, key: Any) -> None:
        """As where its loop ends, and another one begins."""
        order: list[Any] = []
        given: dict[str, Any] = {} if key is None else {"key": key, "concurrency": 2}
        with Gate() as gate:
            box = bus.on("a", order.append, lane="db", **given)._box
            bus.on("b", lambda payload: (gate(payload), order.append(payload)), lane="db")
            bus.emit("b", "b1")
            gate.entered()
            for topic, payload in (("a", "a1"), ("b", "b2"), ("a", "a2")):
                bus.emit(topic, payload)
            assert box.lane is not None
            executor = box.executor
            bus._engine.look(lambda: box.attach(None))
            assert [each.receipt._payload for each in box.lane.line] == ["b2"]
            bus.emit("a", "a3")
            gate.let()
            gate.entered(2)
            bus._engine.look(lambda: box.attach(executor))
        bus.drain(BOUND)
        assert order == ["b1", "b2", "a1", "a2", "a3"]

    def test_errors_and_drops_release_the_lane(self, bus: EventBus) -> None:
        def fail(payload: Any) -> None:
            raise ValueError(payload)

        bus.on("a", fail, lane="db", max_pending=2, overflow="drop_oldest")
        bus.on("b", lambda payload: payload, lane="db")
        for n in range(50):
            bus.emit("a", n)
        assert bus.emit("b", 1).wait(BOUND).results() == [1]
        bus.drain(BOUND)

    def test_lanes_of_the_same_name_on_two_buses_are_two(self, bus: EventBus) -> None:
        gated = Gate()
        bus.on("t", gated, lane="db")
        bus.emit("t")
        gated.entered()
        with EventBus() as other:
            other.on("t", lambda payload: 1, lane="db")
            assert other.emit("t").wait(BOUND).results() == [1]
        gated.open()


class TestKeys:
    def test_order_per_key_and_no_key_twice_at_once(self) -> None:
        order: dict[int, list[int]] = {key: [] for key in range(5)}
        meters = {key: Meter() for key in range(5)}
        with EventBus(workers=4) as bus:

            def handler(payload: tuple[int, int]) -> None:
                key, n = payload
                with meters[key]:
                    order[key].append(n)

            bus.on("t", handler, key=lambda event: event.payload[0], concurrency=4)
            for n in range(200):
                for key in range(5):
                    bus.emit("t", (key, n))
            bus.drain(BOUND)
        assert all(each == list(range(200)) for each in order.values())
        assert all(each.most == 1 for each in meters.values())

    def test_up_to_n_keys_at_once_and_no_more(self, bus: EventBus) -> None:
        """Three handlers meet inside; a fourth key has to wait for one of them."""
        meeting, gate, meter = threading.Barrier(4), threading.Event(), Meter()

        def handler(payload: Any) -> None:
            with meter:
                if payload < 3:
                    meeting.wait(BOUND)
                assert gate.wait(BOUND)

        subscription = bus.on("t", handler, key=lambda event: event.payload, concurrency=3)
        for key in range(4):
            bus.emit("t", key)
        meeting.wait(BOUND)
        assert subscription.stats().running == 3
        assert subscription.stats().pending == 1
        gate.set()
        bus.drain(BOUND)
        assert meter.most == 3

    def test_a_busy_key_does_not_hold_up_the_others(self, bus: EventBus) -> None:
        gated = Gate()
        got: list[Any] = []

        def handler(payload: Any) -> None:
            if payload == ("slow", 0):
                gated(payload)
            got.append(payload)

        bus.on("t", handler, key=lambda event: event.payload[0], concurrency=2)
        bus.emit("t", ("slow", 0))
        gated.entered()
        slow = bus.emit("t", ("slow", 1))
        bus.emit("t", ("fast", 0)).wait(BOUND)
        assert not slow.done
        gated.open()
        slow.wait(BOUND)
        assert got == [("fast", 0), ("slow", 0), ("slow", 1)]

    def test_the_key_function_gets_the_event(self, bus: EventBus) -> None:
        seen: list[Event] = []

        def key(event: Event) -> str:
            seen.append(event)
            return event.topic

        bus.on("t/*", lambda payload: None, key=key, concurrency=2)
        bus.emit("t/a", 1, headers={"h": 1}).wait(BOUND)
        assert (seen[0].topic, seen[0].payload, dict(seen[0].headers)) == ("t/a", 1, {"h": 1})

    @pytest.mark.parametrize(
        "key", [lambda event: event.payload["missing"], lambda event: []], ids=["raises", "unhashable"]
    )
    def test_a_key_that_fails_fails_that_delivery_alone(self, bus: EventBus, key: Any) -> None:
        problems: list[Any] = []
        bus.on("bus/error", problems.append)
        bus.on("t", lambda payload: None, key=key, concurrency=2)
        bus.on("t", lambda payload: payload)
        receipt = bus.emit("t", {"a": 1}).wait(BOUND)
        assert [each.status for each in receipt.outcomes] == [Status.FAILED, Status.DELIVERED]
        bus.drain(BOUND)
        assert [each.where for each in problems] == ["key"]

    def test_latest_keeps_the_newest_of_each_key(self, bus: EventBus) -> None:
        gated = Gate()
        got: list[Any] = []

        def handler(payload: tuple[str, int]) -> None:
            if payload[1] == 0:
                gated(payload)
            else:
                got.append(payload)

        subscription = bus.on(
            "t", handler, key=lambda event: event.payload[0], concurrency=1, overflow="latest", max_pending=2
        )
        bus.emit("t", ("gate", 0))
        gated.entered()
        for n in range(1, 4):
            bus.emit("t", ("a", n))
            bus.emit("t", ("b", n))
        assert subscription.stats().pending == 2
        gated.open()
        bus.drain(BOUND)
        assert got == [("a", 3), ("b", 3)]
        assert subscription.stats().dropped == 4

    def test_latest_leaves_a_key_its_turn(self, bus: EventBus) -> None:
        """Or one that changes faster than its turn comes would never be handled."""
        gate = Gate()
        bus.on("t", gate, key=lambda event: event.payload[0], concurrency=1, overflow="latest")
        bus.emit("t", ("gate", 0))
        gate.entered()
        for payload in (("a", 1), ("b", 1), ("a", 2), ("c", 1), ("a", 3)):
            bus.emit("t", payload)
        gate.open()
        bus.drain(BOUND)
        assert gate.received == [("gate", 0), ("a", 3), ("b", 1), ("c", 1)]

    def test_g12_a_key_that_a_signal_handler_has_left_with_two_has_one_again_after_the_next(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        retire = Mailbox.retire

        def broken(self: Mailbox, *args: Any) -> None:
            monkeypatch.setattr(Mailbox, "retire", retire)
            raise Alarm

        with Gate() as gate:
            subscription = bus.on("t", gate, key=lambda event: "key", concurrency=1, overflow="latest")
            bus.emit("t", 1)
            gate.entered()
            bus.emit("t", 2)
            monkeypatch.setattr(Mailbox, "retire", broken)
            with pytest.raises(Alarm):
                bus.emit("t", 3)
            assert subscription.stats().pending == 2
            bus.emit("t", 4)
            assert subscription.stats().pending == 1
        bus.drain(BOUND)
        assert gate.received == [1, 4]

    def test_keys_within_a_lane(self, bus: EventBus) -> None:
        order: list[Any] = []
        bus.on("t", order.append, key=lambda event: event.payload % 3, concurrency=3, lane="db")
        bus.on("u", order.append, lane="db")
        for n in range(60):
            bus.emit("tu"[n % 2], n)
        bus.drain(BOUND)
        assert order == list(range(60))


def test_g18_a_lane_is_forgotten_with_the_last_of_its_members(bus: EventBus) -> None:
    first, second = (bus.on("a", lambda _: None, lane="lane") for _ in range(2))
    other = bus.on("a", lambda _: None, lane="other")
    bus.emit("a").wait(BOUND)
    first.cancel(wait=True)
    assert sorted(bus._engine.lanes) == ["lane", "other"]
    second.cancel(wait=True)
    assert sorted(bus._engine.lanes) == ["other"]
    other.cancel(wait=True)
    assert bus._engine.lanes == {}
