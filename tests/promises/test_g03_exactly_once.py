"""G3: every accepted emit makes exactly one delivery to each subscription that is active at its one instant."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextvars import Context, ContextVar
from typing import Any

import pytest
from kit import BOUND, LONG, Gate, Log, Team, settled, soon

from eventbus import Event, EventBus, Receipt, Status
from eventbus._engine import dispatcher, engine


def test_g3_hammer_threads_churn_and_errors_lose_and_double_nothing() -> None:
    emitters, each = 4, 250
    with EventBus("hammer", max_workers=16) as bus:
        stable: list[Counter[Any]] = [Counter() for _ in range(6)]

        def counting(index: int, fails: bool) -> Any:
            lock = threading.Lock()

            def handler(payload: Any) -> None:
                with lock:
                    stable[index][payload] += 1
                if fails and payload[1] % 7 == 0:
                    raise ValueError(payload)

            return handler

        bus.on("t/a", counting(0, False))
        bus.on("t/*", counting(1, True))
        bus.on(["t/a", "t/**", "**"], counting(2, False))
        bus.on("t/a", counting(3, False), concurrency=3)
        bus.on("t/a", counting(4, True), inline=True)
        bus.on("t/a", counting(5, False), key=lambda event: event.payload[0], concurrency=2, lane="lane")
        churned: Counter[tuple[int, str]] = Counter()
        over = threading.Event()

        def churn() -> None:
            number = 0
            while not over.is_set():
                number += 1
                name = f"churned-{threading.get_ident()}-{number}"

                def handler(event: Event, name: str = name) -> None:
                    churned[name, event.id] += 1  # one call at a time of each, so no lock

                subscription = bus.on("t/*" if number % 2 else "t/a", handler, name=name)
                over.wait(0.0005)
                subscription.cancel(wait=number % 3 == 0, drain=number % 5 == 0)

        def emitter(index: int) -> list[Receipt]:
            return [bus.emit("t/a", (index, number)) for number in range(each)]

        with Team() as team:
            emitting = [team.add(emitter, index) for index in range(emitters)]
            team.add(churn)
            team.add(churn)
            team.go()
            for thread in emitting:
                thread.join(BOUND)
            over.set()
        bus.drain(BOUND)
        expected = {(index, number): 1 for index in range(emitters) for number in range(each)}
        assert [dict(counter) for counter in stable] == [expected] * 6
        receipts = [receipt for result in team.results[:emitters] for receipt in result]
        called: Counter[tuple[int, str]] = Counter()
        for receipt in receipts:
            assert receipt.done
            assert len(receipt.outcomes) == receipt.deliveries
            ids = [outcome.subscription_id for outcome in receipt.outcomes]
            assert ids == sorted(set(ids))  # one delivery each, in order of registration
            for outcome in receipt.outcomes:
                assert outcome.status in (Status.DELIVERED, Status.FAILED, Status.CANCELLED)
                if outcome.name.startswith("churned") and outcome.status is Status.DELIVERED:
                    called[outcome.name, receipt.event_id] += 1
        assert called == churned
        assert len({receipt.event_id for receipt in receipts}) == emitters * each
        settled(bus)
        totals = bus.stats().totals
        assert totals.deliveries == sum(receipt.deliveries or 0 for receipt in receipts)
        assert totals.failed == 2 * sum(number % 7 == 0 for _, number in expected)
        assert bus.stats().events == emitters * each


def test_g3_two_emits_at_one_instant_see_the_same_subscriptions_everywhere(bus: EventBus) -> None:
    """``on`` of several patterns takes effect at one instant: never on one topic earlier than on another."""
    for _ in range(100):
        got: list[str] = []

        def emit() -> tuple[int, int]:
            return bus.emit("x").deliveries or 0, bus.emit("y/1").deliveries or 0

        with Team() as team:
            team.add(emit)
            team.add(lambda got=got: bus.on(["x", "y/*"], got.append))
        before, after = team.results[0]
        assert (before, after) in ((0, 0), (0, 1), (1, 1))
        team.results[1].cancel()


def test_g3_the_same_handler_twice_is_two_subscriptions(bus: EventBus) -> None:
    log = Log()
    one, two = bus.on("a", log), bus.on("a", log)
    assert one.id != two.id
    assert bus.emit("a", 1).wait(BOUND).deliveries == 2
    assert log.items == [1, 1]
    one.cancel()
    assert bus.emit("a", 2).wait(BOUND).deliveries == 1


def test_g3_overlapping_patterns_of_one_registration_are_one_delivery(bus: EventBus) -> None:
    log = Log()
    bus.on(["a/b", "a/*", "*/b", "a/**", "**", "a/b"], log)
    assert bus.emit("a/b", 1).wait(BOUND).deliveries == 1
    assert log.items == [1]


def test_g3_overlapping_patterns_of_several_registrations_are_several(bus: EventBus) -> None:
    log = Log()
    for pattern in ("a/b", "a/*", "a/**"):
        bus.on(pattern, log)
    assert bus.emit("a/b", 1).wait(BOUND).deliveries == 3
    assert log.items == [1, 1, 1]


def test_g3_every_policy_accounts_for_every_delivery() -> None:
    with EventBus("policies") as bus, Gate() as gate:
        options: dict[str, dict[str, Any]] = {
            "block": {"overflow": "block", "block_timeout": 0.0},
            "drop_oldest": {"overflow": "drop_oldest"},
            "drop_newest": {"overflow": "drop_newest"},
            "latest": {"overflow": "latest"},
            "error": {"overflow": "error"},
            "latest by key": {"overflow": "latest", "key": lambda event: event.payload % 3},
        }
        made = {name: bus.on("a", gate, max_pending=2, name=name, **each) for name, each in options.items()}
        receipts = [bus.emit("a", 0)]
        gate.entered(len(made))

        def emit() -> list[Receipt]:
            return [bus.emit("a", number) for number in range(1, 21)]

        with Team() as team:
            for _ in range(3):
                team.add(emit)
        receipts.extend(receipt for result in team.results for receipt in result)
        gate.open()
        bus.drain(BOUND)
        settled(bus)
        for name, subscription in made.items():
            stats = subscription.stats()
            assert stats.deliveries == 61
            found = Counter(o.status for r in receipts for o in r.outcomes if o.subscription_id == subscription.id)
            assert found == Counter(
                {
                    Status.DELIVERED: stats.delivered,
                    Status.DROPPED: stats.dropped,
                    Status.REJECTED: stats.rejected,
                }
            ), name


def test_g3_handlers_that_raise_lose_nothing(bus: EventBus) -> None:
    calls: list[int] = []

    def handler(payload: int) -> None:
        calls.append(payload)
        raise (ValueError, KeyboardInterrupt, SystemExit, GeneratorExit)[payload % 4]

    bus.on("a", handler)
    receipts = [bus.emit("a", number) for number in range(100)]
    bus.drain(BOUND)
    assert calls == list(range(100))
    assert all(receipt.outcomes[0].status is Status.FAILED for receipt in receipts)


# Streams


def test_g3_a_stream_yields_events_with_the_payload_as_emitted(bus: EventBus) -> None:
    payload = object()
    with bus.stream("a/*") as stream:
        receipt = bus.emit("a/1", payload, headers={"h": 1})
        assert receipt.done  # settled once the buffer has it
        assert receipt.outcomes[0].status is Status.DELIVERED
        event = next(stream)
    assert isinstance(event, Event)
    assert event.payload is payload
    assert event.topic == "a/1"
    assert event.headers == {"h": 1}
    assert event.id == receipt.event_id


def test_g3_readers_of_one_stream_share_its_events(bus: EventBus) -> None:
    stream = bus.stream("a", max_pending=None)

    def read() -> list[int]:
        return [event.payload for event in stream]

    with Team() as team:
        for _ in range(3):
            team.add(read)
        team.go()
        with Team() as emitters:
            for base in (0, 1000):
                emitters.add(lambda base=base: [bus.emit("a", base + n) for n in range(300)])
        stream.cancel()
    got = [payload for result in team.results for payload in result]
    assert sorted(got) == [*range(300), *range(1000, 1300)]


def test_g3_a_stream_that_ends_gives_what_its_buffer_holds(bus: EventBus) -> None:
    with bus.stream("a") as stream:
        for n in range(3):
            bus.emit("a", n)
    bus.emit("a", 3)
    assert [event.payload for event in stream] == [0, 1, 2]
    assert not stream.active


def test_g3_a_stream_of_a_bus_that_closes_ends() -> None:
    with EventBus("closes") as bus:
        stream = bus.stream("a")
        bus.emit("a", 1)
        with Team() as team:
            team.add(lambda: [event.payload for event in stream])
            team.go()
            bus.close(BOUND)
        assert team.results == [[1]]


def test_g3_a_full_stream_holds_an_emitter_until_it_is_read(bus: EventBus) -> None:
    with bus.stream("a", max_pending=1) as stream:
        bus.emit("a", 1)
        with Team() as team:
            team.add(lambda: bus.emit("a", 2))
            team.go()
            soon(lambda: stream.subscription.stats().pending == 1)
            assert stream.get(0).payload == 1
        assert stream.get(BOUND).payload == 2


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [3, 4]), ("drop_newest", [0, 1]), ("latest", [4])])
def test_g3_a_stream_that_drops_says_how_many(bus: EventBus, overflow: Any, kept: list[int]) -> None:
    stream = bus.stream("a", max_pending=2, overflow=overflow)
    receipts = [bus.emit("a", n) for n in range(5)]
    stream.cancel()
    assert [event.payload for event in stream] == kept
    refused = sum(receipt.outcomes[0].status is Status.DROPPED for receipt in receipts)
    assert stream.dropped + refused == 5 - len(kept)


def test_g3_cancel_and_time_out_of_a_reader_lose_no_event(bus: EventBus) -> None:
    """F12: a reader whose time runs out as the event comes in either has it or leaves it to the next."""
    stream = bus.stream("a", max_pending=None)
    got: list[int] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                got.append(stream.get(0.0001).payload)
            except TimeoutError:
                pass

    with Team() as team:
        team.add(read)
        team.add(read)
        team.go()
        for n in range(300):
            bus.emit("a", n)
            if n % 10 == 0:
                soon(lambda n=n: len(got) >= n)
        soon(lambda: len(got) == 300)
        over.set()
    assert sorted(got) == list(range(300))


class TestOnTheWay:
    """What a busy worker settles and claims in one go, without a step: the first emit is sampled and takes one."""

    def test_g3_it_is_as_whole_as_any_other(self, bus: EventBus) -> None:
        gate = Gate()
        inside: list[Any] = []

        def handler(payload: int) -> int:
            inside.append(bus.emit("nobody").event_id)
            gate(payload)
            return payload + 1

        subscription = bus.on("a", handler, name="mine")
        with gate:
            first = bus.emit("a", 0)
            gate.entered()
            receipts = [first, *(bus.emit("a", n) for n in range(1, 6))]
            gate.open()
            soon(lambda: all(receipt.done for receipt in receipts))
            for number, receipt in enumerate(receipts):
                (outcome,) = receipt.outcomes
                assert (outcome.status, outcome.value, outcome.error) == (Status.DELIVERED, number + 1, None)
                assert (outcome.subscription_id, outcome.name, outcome.topic) == (subscription.id, "mine", "a")
                assert isinstance(outcome.duration, float)
                assert 0.0 <= outcome.duration < BOUND
                assert receipt._engine is receipt._payload is receipt._context is receipt._event is None  # G18
                assert receipt._left == receipt._observers == 0
        soon(lambda: subscription.stats().running == 0)
        stats = subscription.stats()
        assert (stats.delivered, stats.pending, stats.running, stats.deliveries) == (6, 0, 0, 6)
        assert bus._engine.epoch.open == 0
        bus.drain(0)

    def test_g3_observers_are_settled_too_and_let_go_of(self, bus: EventBus) -> None:
        seen = [Log(), Log()]
        bus.on("a", seen[0])
        observer = bus.on("a", seen[1], observer=True)
        receipts = [bus.emit("a", n) for n in range(20)]
        soon(lambda: observer.stats().delivered == 20)
        soon(lambda: all(receipt.done for receipt in receipts))
        assert [len(receipt.outcomes) for receipt in receipts] == [1] * 20
        assert {receipt._observers for receipt in receipts} == {0}
        assert {receipt._engine for receipt in receipts} == {None}  # G18
        assert [log.items for log in seen] == [[*range(20)]] * 2

    @pytest.mark.parametrize("begun", [False, True])
    def test_g6_whoever_waits_is_woken(self, bus: EventBus, begun: bool) -> None:
        with Gate(7) as gate:
            bus.on("a", gate)
            bus.emit("a", "sampled")
            receipt = bus.emit("a", 1)
            gate.entered()
            if begun:
                gate.let()
                gate.entered(2)
            with Team() as team:
                team.add(receipt.wait, BOUND)
                team.go()
                soon(lambda: receipt._waiters)
                gate.open()
            assert receipt.results() == [7]

    def test_g6_what_follows_is_settled_with_what_it_follows(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("b", gate)
            bus.on("a", lambda _: bus.emit("b"))
            bus.emit("b", "sampled")
            gate.entered()
            receipt = bus.emit("a", follow=True)
            soon(lambda: len(receipt.outcomes) == 1)
            assert not receipt.done
            gate.open()
            assert receipt.wait(BOUND).done

    def test_g10_whoever_drains_is_woken(self, bus: EventBus) -> None:
        with Gate() as gate:
            bus.on("a", gate)
            for n in range(5):
                bus.emit("a", n)
            gate.entered()
            with Team() as team:
                team.add(bus.drain, BOUND)
                team.go()
                soon(lambda: bus._engine.drains)
                late = bus.emit("a", "after the call")
                gate.let(4)
                gate.passed(4)
                assert bus._engine.drains
                gate.let()
                soon(lambda: not bus._engine.drains)
                assert not late.done
                gate.open()
            assert late.wait(BOUND).done

    def test_g12_a_finalizer_of_what_is_let_go_of_finds_all_sums_right(self, bus: EventBus) -> None:
        """The payload, a value of the context and the event die with the receipt: after the section, not within."""
        found: list[Any] = []
        variable: ContextVar[Any] = ContextVar("variable")

        def look(_: Any = None) -> None:
            stats = bus.stats().totals
            ended = stats.delivered + stats.failed + stats.pending + stats.running
            found.append((stats.deliveries, ended, stats.running <= 1))

        class Dies:
            def __del__(self) -> None:
                look()

        gate = Gate()
        watching: list[Any] = []

        def handler(event: Event) -> None:
            watching.append(weakref.ref(event, look))
            if gate.received == []:
                gate(None)

        def emit() -> None:
            variable.set(Dies())
            bus.emit("a", Dies())

        with gate:
            bus.on("a", handler)
            bus.emit("a")
            gate.entered()
            for _ in range(10):
                Context().run(emit)
            gate.open()
            soon(lambda: len(found) >= 30)
        bus.drain(BOUND)
        assert all(deliveries == ended and one for deliveries, ended, one in found), found

    def test_g12_a_callback_for_the_event_finds_that_the_call_has_ended(self, unsampled: EventBus) -> None:
        """The event that an earlier handler has had dies as the last one is settled."""
        bus = unsampled
        references: list[Any] = []

        def first(event: Event) -> None:
            if event.payload:
                references.append(weakref.ref(event, lambda _: last.cancel()))

        bus.on("a", first)
        last = bus.on("a", lambda _: None)
        for payload in (False, False, True):
            receipt = bus.emit("a", payload)
            soon(lambda receipt=receipt: receipt.done)
        soon(lambda: not last.active)
        soon(lambda: last.handler is None, "the subscription having let go of its handler")

    def test_g12_so_does_the_finalizer_of_a_value_of_an_inline_handlers_context(self, unsampled: EventBus) -> None:
        bus = unsampled
        variable: ContextVar[Any] = ContextVar("variable")

        class Dies:
            def __del__(self) -> None:
                subscription.cancel()

        def emit() -> None:
            variable.set(Dies())
            bus.emit("inline", "lets go")

        subscription = bus.on("inline", lambda payload: variable.set(None) and None if payload else None, inline=True)
        bus.emit("inline")
        bus.emit("inline")
        Context().run(emit)
        assert not subscription.active
        assert subscription.handler is None

    def test_g3_what_is_claimed_thus_is_as_well_placed_as_the_first(self, unsampled: EventBus) -> None:
        """It may wait without starving anybody, cancel itself, and block."""
        bus = unsampled
        found: list[Any] = []
        with Gate() as gate:
            bus.on("free", lambda payload: (payload, bus.stats().pool.waiting))

            def handler(number: int) -> None:
                if number == 1:
                    found.append(bus.emit("free", "waits").wait(BOUND).results())
                elif number == 2:
                    gate(number)
                elif number == 3:
                    found.append(subscription.cancel(wait=True, timeout=BOUND))

            subscription = bus.on("b", handler)
            bus.emit("b", 0).wait(BOUND)
            bus.on("start", lambda _: [bus.emit("b", number) for number in range(4)] and None)
            bus.emit("start")
            gate.entered()
            assert bus.emit("free", "blocks").wait(BOUND).results() == [("blocks", 0)]
        soon(lambda: not subscription.active)
        soon(lambda: len(found) == 2)
        assert found == [[("waits", 1)], True]
        receipt = bus.emit("free")
        soon(lambda: receipt.done and bus.stats().pool.computing == 0)
        assert {worker.delivery for worker in bus._engine.dispatcher.alive} == {None}

    def test_g12_what_a_broken_step_has_settled_is_not_claimed_thus(self, unsampled: EventBus) -> None:
        """It has not been taken out yet when its turn comes."""
        bus = unsampled
        got: list[int] = []

        def handler(number: int) -> None:
            got.append(number)
            if number == 1:
                bus._engine.monitor.run(bus._engine.settle, subscription._box.pending[0], Status.CANCELLED)

        subscription = bus.on("b", handler)
        bus.emit("b", 0).wait(BOUND)
        bus.on("start", lambda _: [bus.emit("b", number) for number in range(1, 5)] and None)
        bus.emit("start")
        bus.drain(BOUND)
        assert got == [0, 1, 3, 4]

    @pytest.fixture
    def unsampled(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[EventBus]:
        """A bus with one worker, which stays with a mailbox that it is at; no emit has its latencies measured."""
        monkeypatch.setattr(engine, "SAMPLE_SECONDS", float("inf"))
        monkeypatch.setattr(dispatcher, "SLICE_SECONDS", LONG)
        with EventBus(workers=1) as bus:
            yield bus
            bus.drain(BOUND)

    @pytest.mark.parametrize("others", [0, 3])
    def test_g2_a_cancel_that_waits_for_it_is_woken(self, bus: EventBus, others: int) -> None:
        with Gate() as gate:
            subscription = bus.on("a", gate)
            bus.emit("a", "sampled")
            receipt = bus.emit("a", 1)
            gate.let()
            gate.entered(2)
            pending = [bus.emit("a") for _ in range(others)]
            with Team() as team:
                team.add(subscription.cancel, True)
                team.go()
                soon(lambda: not subscription.active)
                assert [each.wait(BOUND).outcomes[0].status for each in pending] == [Status.CANCELLED] * others
                assert not receipt.done
                gate.open()
            assert team.results == [True]
            assert receipt.outcomes[0].status is Status.DELIVERED
