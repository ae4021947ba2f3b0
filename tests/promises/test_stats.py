"""The contract's records: exact counts, at every quiet moment the sum; JSON-able dictionaries."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle
import random
import sys
import threading
import typing
import weakref
from typing import Any

import pytest
from kit import BOUND, settled, soon

from eventbus import (
    BusStats,
    CloseReport,
    Event,
    EventBus,
    HandlerError,
    Latency,
    NoHandlerError,
    Outcome,
    PoolStats,
    Receipt,
    Status,
    SubscriptionStats,
)
from eventbus._engine import primitives
from eventbus._engine.latency import Histogram
from eventbus._engine.registry import TOPICS_COUNTED

OUTCOMES = ("delivered", "failed", "timed_out", "cancelled", "dropped", "rejected")


def total(stats: SubscriptionStats) -> int:
    return sum(getattr(stats, name) for name in OUTCOMES) + stats.pending + stats.running


def fail(payload: Any) -> None:
    raise ValueError(payload)


@pytest.mark.timeout(60)
def test_the_sums_hold_under_a_hammer() -> None:
    """Threads that emit, register, cancel, look; handlers that fail, block, time out; all policies of overflow."""
    with EventBus(workers=2) as bus:
        begin, over = threading.Barrier(6), threading.Event()
        release = threading.Event()
        wrong: list[Any] = []
        emitted = [0] * 3

        def stuck(payload: Any) -> None:
            if payload == 7:
                assert release.wait(BOUND)

        bus.on("t/*", lambda payload: None)
        bus.on("t/1", fail)
        bus.on("t/**", stuck, timeout=0.01, max_pending=None)
        bus.on("t/2", lambda payload: None, max_pending=3, overflow="drop_oldest")
        bus.on("t/2", lambda payload: None, max_pending=3, overflow="drop_newest", lane="lane")
        bus.on("t/0", lambda payload: None, max_pending=3, overflow="error", key=lambda event: event.payload % 3)
        bus.on("t/0", lambda payload: None, overflow="latest", observer=True)
        bus.on("t/1", lambda payload: None, inline=True)
        bus.on("t/*", lambda payload: None, max_pending=5, concurrency=2)

        def emitter(number: int) -> None:
            begin.wait(BOUND)
            for n in range(300):
                bus.emit(f"t/{number}", n)
                emitted[number] += 1

        def churn() -> None:
            begin.wait(BOUND)
            while not over.is_set():
                subscription = bus.on("t/**", lambda payload: None, lane="lane")
                bus.stats()
                subscription.cancel()

        def watch() -> None:
            begin.wait(BOUND)
            while not over.is_set():
                stats = bus.stats()
                if total(stats.totals) != stats.totals.deliveries:
                    wrong.append(stats.totals)
                wrong.extend(each for each in stats.subscriptions.values() if total(each) != each.deliveries)

        emitters = [threading.Thread(target=emitter, args=(n,)) for n in range(3)]
        others = [threading.Thread(target=churn), threading.Thread(target=watch)]
        for each in (*emitters, *others):
            each.start()
        begin.wait(BOUND)
        for each in emitters:
            each.join(30)
        release.set()
        over.set()
        for each in others:
            each.join(BOUND)
        bus.drain(BOUND)
        assert wrong == []  # a step is a quiet moment, so it holds at every look
        stats = bus.stats()
        assert emitted == [300] * 3
        assert stats.events - stats.topics.get("bus/error", 0) >= 900
        assert {f"t/{n}": stats.topics[f"t/{n}"] for n in range(3)} == {f"t/{n}": 300 for n in range(3)}
        settled(bus)
        assert stats.totals.failed >= 300
        assert stats.totals.timed_out >= 1
        bus.close(BOUND)
        after = bus.stats()
        assert after.totals.deliveries == stats.totals.deliveries  # ended ones included
        assert total(after.totals) == after.totals.deliveries
        assert after.subscriptions == {}


def test_each_outcome_is_counted_where_it_belongs(bus: EventBus) -> None:
    begun, gate = threading.Event(), threading.Event()

    def slow(payload: Any) -> None:
        begun.set()
        assert gate.wait(BOUND)

    delivered, failed = bus.on("t", lambda payload: None), bus.on("t", fail)
    timed_out = bus.on("t", lambda payload: gate.wait(BOUND) and None, timeout=0.01)
    running = bus.on("t", slow, max_pending=1, overflow="error")
    bus.emit("t")
    assert begun.wait(BOUND)
    bus.emit("t")
    bus.emit("t")
    stats = running.stats()
    assert (stats.deliveries, stats.running, stats.pending, stats.rejected) == (3, 1, 1, 1)
    running.cancel()
    soon(lambda: timed_out.stats().timed_out)
    gate.set()
    bus.drain(BOUND)
    stats = running.stats()
    assert (stats.deliveries, stats.delivered, stats.cancelled, stats.rejected) == (3, 1, 1, 1)
    assert delivered.stats().delivered == 3
    assert failed.stats().failed == 3
    assert timed_out.stats().timed_out >= 1
    sums = bus.stats().totals
    assert sums.deliveries == 12
    assert total(sums) == 12


def test_statistics_of_a_subscription_outlive_it(bus: EventBus) -> None:
    subscription = bus.on("t", lambda payload: None)
    bus.emit("t").wait(BOUND)
    subscription.cancel(wait=True, timeout=BOUND)
    assert subscription.stats().delivered == 1
    stats = bus.stats()
    assert subscription.id not in stats.subscriptions
    assert stats.totals.delivered == 1


def test_emits_are_counted_per_topic_exactly_where_one_is_named(bus: EventBus) -> None:
    bus.on("named", lambda payload: None, inline=True)
    bus.on("pattern/**", lambda payload: None, inline=True)
    for n in range(3000):
        bus.emit(f"pattern/{n}")
    for _ in range(5):
        bus.emit("named")
    bus.emit("unheard")
    stats = bus.stats()
    assert stats.topics["named"] == 5
    assert stats.events == sum(stats.topics.values()) == 3006
    assert stats.topics["other"] > 0
    assert len(stats.topics) < 2000


def test_the_count_of_a_topic_does_not_change_when_it_is_registered_or_dropped(bus: EventBus) -> None:
    for _ in range(3):
        bus.emit("t")
    with bus.on("t", lambda payload: None):
        bus.emit("t")
        assert bus.stats().topics["t"] == 4
    bus.emit("t")
    assert bus.stats().topics["t"] == 5
    assert bus.stats().events == 5


def test_latencies_are_exact_to_five_percent_however_they_are_merged() -> None:
    rng = random.Random(5)
    for _ in range(20):
        samples = sorted(10 ** rng.uniform(-8, 3) for _ in range(rng.randint(1, 300)))
        parts = [Histogram() for _ in range(3)]
        for each in rng.sample(samples, len(samples)):
            rng.choice(parts).add(each)
        whole = Histogram()
        for part in parts:
            whole.merge(part)
        found = whole.latency()
        assert (found.count, found.max) == (len(samples), samples[-1])
        for share, value in ((0.5, found.p50), (0.99, found.p99)):
            assert value == pytest.approx(samples[math.ceil(share * len(samples)) - 1], rel=0.05)


def test_latencies_of_no_time_at_all_are_counted() -> None:
    """Whatever a clock says: it may stand still, or be put back."""
    histogram = Histogram()
    for seconds in (0.0, -1.0, 0.0):
        histogram.add(seconds)
        assert histogram.latency() == Latency(histogram.count, 0.0, 0.0, 0.0)
    histogram.add(0.5)
    found = histogram.latency()
    assert (found.count, found.max) == (4, 0.5)
    assert 0.0 <= found.p50 < 1e-9
    assert found.p99 == pytest.approx(0.5, rel=0.05)


def test_latencies_take_room_for_the_doublings_that_occurred() -> None:
    """Between the shortest and the longest, wherever these are."""
    for shortest in (1e-8, 1e-3, 1.0, 1e3):
        histogram = Histogram()
        histogram.add(shortest)
        one = len(histogram._counts)
        for doublings in (1, 4):
            histogram.add(shortest * 2**doublings)
            assert len(histogram._counts) == (doublings + 1) * one


def test_latencies_take_no_more_memory_with_each_sample() -> None:
    """G18: not an object for each bucket either, which would be made anew with each sample."""
    rng = random.Random(5)
    histogram = Histogram()
    histogram.add(1e-8)
    histogram.add(1e3)
    before = sys.getallocatedblocks()
    for _ in range(20_000):
        histogram.add(10 ** rng.uniform(-8, 3))
    assert sys.getallocatedblocks() - before < 50
    assert histogram.count == 20_002


def test_latencies_are_sampled(bus: EventBus) -> None:
    gate = threading.Event()
    subscription = bus.on("t", lambda payload: gate.wait(0.01) and None)
    bus.emit("t").wait(BOUND)
    bus.drain(BOUND)
    run = subscription.stats().run
    assert run.count >= 1
    assert 0.009 <= run.p50 <= run.p99 <= run.max < BOUND
    assert subscription.stats().wait.count == run.count
    assert bus.stats().totals.run.count == run.count


def test_a_bus_that_was_never_used_counts_nothing() -> None:
    bus = EventBus()
    stats = bus.stats()
    assert stats.events == 0
    assert stats.totals == SubscriptionStats()
    assert stats.pool.threads == 0
    assert dict(stats.subscriptions) == {}


def test_records_of_statistics_are_json_able(bus: EventBus) -> None:
    subscription = bus.on("t", fail)
    bus.emit("t").wait(BOUND)
    bus.drain(BOUND)
    stats = bus.stats()
    text = json.dumps(stats.as_dict())
    back = json.loads(text)
    assert back["totals"]["failed"] == 1
    assert back["topics"]["t"] == 1
    assert back["subscriptions"][str(subscription.id)]["wait"].keys() == {"count", "p50", "p99", "max"}
    assert back["pool"]["threads"] >= 0
    one = json.loads(json.dumps(subscription.stats().as_dict()))
    assert list(one) == ["deliveries", "pending", "running", *OUTCOMES, "wait", "run"]
    assert json.loads(json.dumps(bus.close(BOUND).as_dict())) == {"cancelled": 0, "stuck": []}
    assert json.dumps(Latency().as_dict())


@pytest.mark.parametrize("record", [Outcome, SubscriptionStats, BusStats, Latency, HandlerError, CloseReport])
def test_records_are_frozen_dataclasses_with_the_contracts_fields(record: Any) -> None:
    wanted = {
        Outcome: ["status", "value", "error", "duration", "subscription_id", "name", "topic"],
        SubscriptionStats: ["deliveries", "pending", "running", *OUTCOMES, "wait", "run"],
        BusStats: ["events", "totals", "subscriptions", "topics", "pool"],
        Latency: ["count", "p50", "p99", "max"],
        HandlerError: ["error", "event", "subscription", "where"],
        CloseReport: ["cancelled", "stuck"],
    }[record]
    assert [each.name for each in dataclasses.fields(record)] == wanted
    assert record.__dataclass_params__.frozen


@pytest.mark.parametrize("record", [Outcome, SubscriptionStats, Latency, CloseReport, PoolStats])
def test_tools_can_read_the_types_of_a_records_fields(record: type) -> None:
    """What they are is imported where the records are, but for what only an import of more would bring."""
    hints = typing.get_type_hints(record)
    assert all(each.name in hints for each in dataclasses.fields(record))


@pytest.mark.parametrize(
    "record",
    [
        Outcome(Status.DELIVERED, [1], None, 0.5, 7, "name", "topic"),
        Latency(3, max=2.0),
        SubscriptionStats(1, wait=Latency(1)),
        CloseReport(stuck=("name",)),
    ],
)
def test_records_are_copied_pickled_and_replaced_as_dataclasses_are(record: Any) -> None:
    kind = type(record)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(record, protocol)) == record
    assert copy.copy(record) == copy.deepcopy(record) == dataclasses.replace(record) == record
    values = [getattr(record, each.name) for each in dataclasses.fields(record)]
    names = [each.name for each in dataclasses.fields(record)]
    assert list(inspect.signature(kind).parameters) == names
    assert kind(*values) == kind(**dict(zip(names, values, strict=True))) == record
    for name in (*names, "another"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(record, name)


def test_a_record_that_is_made_of_too_little_or_too_much_says_so() -> None:
    kind: Any = Outcome
    for given, named in (((), {}), ((1,), {}), ((1,) * 8, {}), ((1,) * 7, {"topic": 1}), ((1,) * 6, {"other": 1})):
        with pytest.raises(TypeError, match="Outcome"):
            kind(*given, **named)
    assert Latency() == Latency(0, 0.0, 0.0, 0.0)


def test_the_picture_of_the_bus_cannot_be_changed(bus: EventBus) -> None:
    stats = bus.stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.events = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        stats.topics["t"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        stats.subscriptions[1] = stats.totals  # type: ignore[index]


def test_events_and_receipts_are_read_only_and_by_identity(bus: EventBus) -> None:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)

    bus.on("t", note)
    receipts: list[Receipt] = [bus.emit("t", 1).wait(BOUND) for _ in range(2)]
    for one, two, names in (
        (*events, ("topic", "payload", "seq", "id", "timestamp", "parent_id", "root_id", "depth", "headers")),
        (*receipts, ("event_id", "deliveries", "done", "outcomes")),
    ):
        assert one == one
        assert one != two
        assert hash(one) == object.__hash__(one)
        assert weakref.ref(one)() is one
        assert not hasattr(one, "__dict__")
        for name in names:
            getattr(one, name)
            with pytest.raises(AttributeError):
                setattr(one, name, 1)
    assert events[0].id == receipts[0].event_id
    assert events[0].seq < events[1].seq


def test_outcomes_tell_who_and_what(bus: EventBus) -> None:
    def double(payload: int) -> int:
        return 2 * payload

    good, bad = bus.on("t", double), bus.on("t", fail, name="bad one")
    one, two = bus.emit("t", 21).wait(BOUND).outcomes
    assert (one.status, one.value, one.error, one.subscription_id, one.topic) == ("delivered", 42, None, good.id, "t")
    assert "double" in one.name
    assert (two.status, two.value, two.subscription_id, two.name) == (Status.FAILED, None, bad.id, "bad one")
    assert isinstance(two.error, ValueError)
    assert one.duration >= 0
    assert f"{one.status}" == "delivered"


def test_records_are_equal_by_value_and_within_their_kind() -> None:
    one, two = CloseReport(1, ("a",)), CloseReport(1, ("a",))
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two, Latency()}) == 2
    assert one != (1, ("a",))
    assert one != Latency()


def test_an_event_with_a_long_payload_is_shown_in_short(bus: EventBus) -> None:
    events: list[Event] = []
    bus.on("t", events.append, payload=Event)
    bus.emit("t", "x" * 1000).wait(BOUND)
    assert repr(events[0]).endswith("xxx...>")
    assert len(repr(events[0])) < 140


def test_emits_beyond_the_table_of_topics_are_counted_in_one_row(bus: EventBus) -> None:
    """The first 1,024 topics have a row each, whoever was registered for them meanwhile; no emit is lost to the sum."""
    for number in range(TOPICS_COUNTED - 1):
        bus.emit(f"t/{number}")
    early = bus.on("t/5", lambda payload: None)
    bus.emit("t/5")
    assert bus.stats().topics["t/5"] == 2  # those from before the registration too
    bus.emit("last/row")
    bus.emit("last/row")
    early.cancel()
    bus.emit("t/5")
    topics = bus.stats().topics
    assert (topics["t/5"], topics["last/row"], topics.get("other")) == (3, 2, None)
    for _ in range(3):
        bus.emit("one/too/many")
    assert bus.stats().topics["other"] == 3
    late = bus.on("late", lambda payload: None)
    bus.emit("late")
    bus.emit("late")
    assert bus.stats().topics["late"] == 2
    late.cancel()
    assert "late" not in bus.stats().topics
    assert bus.stats().topics["other"] == 5
    bus.emit("late")
    assert bus.stats().topics["other"] == 6
    unused = bus.on("unused", lambda payload: None)
    assert bus.stats().topics["unused"] == 0
    unused.cancel()
    assert "unused" not in bus.stats().topics
    bus.on("other", lambda payload: None)
    bus.emit("other")
    assert bus.stats().topics["other"] == 7  # one topic may have that very name
    bus.drain(BOUND)
    assert sum(bus.stats().topics.values()) == bus.stats().events


def test_a_topic_without_emits_takes_no_row_when_its_last_subscription_ends(bus: EventBus) -> None:
    for number in range(3):
        bus.on(f"t/{number}", lambda payload: None).cancel()
    assert bus.stats().topics == {}
    bus.emit("t/0")
    assert bus.stats().topics == {"t/0": 1}


def test_latencies_are_those_of_the_emits_that_were_sampled(bus: EventBus) -> None:
    """Between samples a millisecond passes, so of a burst most are not: no figure may come of those."""
    subscription = bus.on("a", lambda payload: None)
    for _ in range(200):
        bus.emit("a")
    bus.drain(BOUND)
    stats = subscription.stats()
    assert 1 <= stats.wait.count <= 200
    assert 0.0 < stats.wait.max < BOUND
    assert 0.0 < stats.run.max < BOUND


def test_the_more_deliveries_an_event_has_the_longer_none_is_measured_after_it(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured takes a step to settle: one delivery a millisecond, on average."""
    now = 1e9
    monkeypatch.setattr(primitives, "wall_clock", lambda: now)
    many = [bus.on("many", lambda payload: None) for _ in range(4)]
    one = bus.on("one", lambda payload: None)

    def measured(topic: str) -> list[int]:
        bus.emit(topic).wait(BOUND)
        bus.drain(BOUND)
        counts = [each.stats().wait.count for each in (*many, one)]
        assert len(set(counts[:4])) == 1
        return [counts[0], counts[4]]

    assert measured("many") == [1, 0]
    assert measured("one") == [1, 1]  # its first
    now += 0.003
    assert measured("many") == [1, 1]
    assert measured("one") == [1, 1]
    now += 0.002
    assert measured("one") == [1, 2]
    now += 0.0015
    assert measured("many") == [2, 2]
    now += 0.0035
    assert measured("one") == [2, 2]
    now += 0.001
    assert measured("many") == [3, 2]
    now -= 60.0
    assert measured("one") == [3, 3]  # a clock that was put back is none to go by
    assert measured("nobody") == [3, 3]
    now += 0.0015
    assert measured("nobody") == [3, 3]  # one that nobody hears takes its turn
    assert measured("one") == [3, 3]
    now += 0.0015
    assert measured("one") == [3, 4]
    now += 0.0015
    assert measured("many") == [4, 4]
    now += 0.0045
    with pytest.raises(NoHandlerError):
        bus.emit("many", require=5)  # nothing has come of that
    now += 0.0015
    assert measured("one") == [4, 5]


@pytest.mark.parametrize("warm", [0, 3])
def test_latencies_are_from_the_emit_to_the_begin_and_from_there_to_the_end(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, warm: int
) -> None:
    now, wall, lasts = [1000.0], [1e9], [0.0, 0.0]

    def lasting(index: int) -> Any:
        def handler(payload: Any) -> None:
            now[0] += lasts[index]

        return handler

    monkeypatch.setattr(primitives, "monotonic", lambda: now[0])
    monkeypatch.setattr(primitives, "wall_clock", lambda: wall[0])
    first, second = (bus.on("a", lasting(index), inline=True) for index in range(2))
    for _ in range(warm):
        bus.emit("a")
    wall[0] += 1.0  # so that this is measured
    lasts[:] = 0.25, 0.5
    bus.emit("a")
    assert [each.stats().wait.max for each in (first, second)] == [0.0, 0.25]
    assert [each.stats().run.max for each in (first, second)] == [0.25, 0.5]
