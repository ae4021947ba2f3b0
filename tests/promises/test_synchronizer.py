"""EventSynchronizer, on both faces (the contract's section of that name; G3, G18, G21)."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from kit import BOUND, Gate, Team, dies, soon
from kit_tools import Face, made_face
from pydantic import BaseModel

from eventbus import (
    BusClosedError,
    EventBus,
    EventBusError,
    EventSynchronizer,
    EventTimeoutError,
    NotRegisteredError,
    OptionError,
    OptionTypeError,
    Topic,
    TopicError,
    TopicTypeError,
    UnexpectedEventError,
)
from eventbus._engine import primitives
from eventbus._engine.monitor import Monitor
from eventbus._testing.waits import Wait


class Order(BaseModel):
    id: int
    tags: list[str] = []


@pytest.fixture(params=["threads", "asyncio"])
def face(request: pytest.FixtureRequest, bus: EventBus) -> Iterator[Face]:
    with made_face(request.param, bus) as made:
        yield made


@pytest.fixture
def sync(face: Face) -> Iterator[Any]:
    made = face.do(face.EventSynchronizer, face.bus)
    yield made
    face.do(made.cleanup)


def waiting(sync: Any) -> int:
    """How many waits sleep."""
    return len(sync._box.readers)


# One event


def test_an_event_that_was_emitted_before_the_wait_is_found(face: Face, sync: Any) -> None:
    """The seed's own example: it emits first and waits afterwards."""
    face.core.emit("a", {"n": 1})
    assert face.do(sync.wait_for_event, "a", timeout=0) == {"n": 1}


def test_an_event_that_is_emitted_after_it_is_found_too(face: Face, sync: Any) -> None:
    with Team() as team:
        team.add(face.do, sync.wait_for_event, "a")
        team.go()
        soon(lambda: waiting(sync) == 1)
        face.core.emit("b", 1)
        face.core.emit("a", 2)
    assert team.results == [2]


@pytest.mark.parametrize("repetition", range(20))
def test_there_is_no_gap_between_the_two(face: Face, sync: Any, repetition: int) -> None:
    """G3: emit and wait begin at the same moment."""
    with Team() as team:
        team.add(face.do, sync.wait_for_event, "a")
        team.add(face.core.emit, "a", 7)
    assert team.results[0] == 7


def test_the_payload_is_what_a_handler_would_get(face: Face, sync: Any) -> None:
    """G15: a dict of a model, deeply its own; ``{}`` for none; else as it is."""
    order = Order(id=1, tags=["new"])
    thing = object()
    for payload in (order, None, thing):
        face.core.emit("a", payload)
    got = face.do(sync.wait_for_event, "a")
    assert got == {"id": 1, "tags": ["new"]}
    got["tags"].append("mine")
    assert order.tags == ["new"]
    assert face.do(sync.wait_for_event, "a") == {}
    assert face.do(sync.wait_for_event, "a") is thing


def test_patterns_and_typed_topics_are_taken(face: Face, sync: Any) -> None:
    created = Topic("orders/created", Order)
    face.core.emit(created, Order(id=1))
    face.core.emit("orders/paid/late", 2)
    assert face.do(sync.wait_for_event, "orders/*")["id"] == 1
    assert face.do(sync.wait_for_event, "orders/**") == 2
    face.core.emit(created, Order(id=3))
    assert face.do(sync.wait_for_event, created)["id"] == 3
    face.core.emit(created, Order(id=4))
    assert face.do(sync.wait_for_events, [created])[created]["id"] == 4


def test_a_condition_chooses(face: Face, sync: Any) -> None:
    """It is called with the payload; what it leaves stays for other waits."""
    for n in range(5):
        face.core.emit("a", n)
    assert face.do(sync.wait_for_event, "a", condition=lambda n: n > 2) == 3
    assert face.do(sync.wait_for_event, "a") == 0
    assert face.do(sync.wait_for_event, "a", condition=lambda n: n > 2) == 4


def slow_look(monkeypatch: pytest.MonkeyPatch, meanwhile: Any) -> list[Any]:
    """The first look of a wait takes its time: ``meanwhile`` gives the seconds. Gives what each look has found."""
    ahead = 0.0
    attempt = Wait.attempt
    looks: list[Any] = []

    def look(self: Wait, *args: Any, **options: Any) -> Any:
        nonlocal ahead
        looks.append(attempt(self, *args, **options))
        if len(looks) == 1:
            for ahead in meanwhile():  # noqa: B007 - the clock's
                pass
        return looks[-1]

    monkeypatch.setattr(primitives, "monotonic", lambda: time.monotonic() + ahead)
    monkeypatch.setattr(Wait, "attempt", look)
    return looks


@pytest.mark.parametrize("ends", ["time", "close"])
@pytest.mark.parametrize("unwanted", [False, True])
def test_what_came_in_time_counts_however_long_a_look_takes(
    face: Face, sync: Any, monkeypatch: pytest.MonkeyPatch, ends: str, unwanted: bool
) -> None:
    """While it looks at one event the next comes, and then the end: of the time, or of the bus."""

    def meanwhile() -> Iterator[float]:
        face.core.emit("a", 1)
        if ends == "time":
            yield 60.0
        else:
            face.core.close(0)

    looks = slow_look(monkeypatch, meanwhile)
    if unwanted:
        with pytest.raises(UnexpectedEventError):
            face.do(sync.expect_no_event, "a", within=50.0)
    else:
        assert face.do(sync.wait_for_event, "a", timeout=50.0) == 1
    assert looks[0] is None


@pytest.mark.parametrize("unwanted", [False, True])
def test_what_came_too_late_does_not_count_either(
    face: Face, sync: Any, monkeypatch: pytest.MonkeyPatch, unwanted: bool
) -> None:
    """The look took longer than the wait was to."""

    def meanwhile() -> Iterator[float]:
        yield 60.0
        face.core.emit("a", 1)

    looks = slow_look(monkeypatch, meanwhile)
    if unwanted:
        face.do(sync.expect_no_event, "a", within=50.0)
    else:
        with pytest.raises(EventTimeoutError):
            face.do(sync.wait_for_event, "a", timeout=50.0)
    assert looks == [None, None]


def test_what_a_condition_raises_the_wait_raises(face: Face, sync: Any) -> None:
    face.core.emit("a", 1)
    with pytest.raises(ZeroDivisionError):
        face.do(sync.wait_for_event, "a", condition=lambda n: n / 0)
    assert face.do(sync.wait_for_event, "a", timeout=0) == 1


def test_a_condition_may_use_the_bus(face: Face, sync: Any) -> None:
    """It is user code, and runs outside of the bus's steps."""
    seen: list[Any] = []
    face.core.on("from-condition", seen.append)

    def condition(n: int) -> bool:
        other = threading.Thread(target=lambda: face.core.emit("from-condition", n))
        other.start()
        other.join(BOUND)
        assert not other.is_alive(), "the condition ran under the bus's lock"
        return True

    face.core.emit("a", 1)
    assert face.do(sync.wait_for_event, "a", condition=condition) == 1
    face.core.drain(BOUND)
    assert seen == [1]


def test_count_gives_a_list(face: Face, sync: Any) -> None:
    with Team() as team:
        team.add(lambda: face.do(sync.wait_for_event, "a", count=3))
        team.go()
        for n in range(4):
            face.core.emit("a", n)
    assert team.results == [[0, 1, 2]]
    assert face.do(sync.wait_for_event, "a", count=1) == [3]


# Each event answers one wait


def test_two_waits_for_a_topic_get_two_events(face: Face, sync: Any) -> None:
    face.core.emit("a", 1)
    face.core.emit("a", 2)
    assert [face.do(sync.wait_for_event, "a"), face.do(sync.wait_for_event, "a")] == [1, 2]
    with pytest.raises(EventTimeoutError):
        face.do(sync.wait_for_event, "a", timeout=0)


def test_waits_at_the_same_time_share_no_event(face: Face, sync: Any) -> None:
    """G3: each event goes to one of them, none to none."""
    with Team() as team:
        for _ in range(8):
            team.add(face.do, sync.wait_for_event, "a")
        team.go()
        for n in range(8):
            face.core.emit("a", n)
    assert sorted(team.results) == list(range(8))


def test_a_wait_that_runs_out_takes_nothing(face: Face, sync: Any) -> None:
    face.core.emit("a", 1)
    with pytest.raises(EventTimeoutError):
        face.do(sync.wait_for_event, "a", timeout=0.01, count=2)
    with pytest.raises(EventTimeoutError):
        face.do(sync.wait_for_events, ["a", "b"], timeout=0)
    assert face.do(sync.wait_for_event, "a", timeout=0) == 1


def test_synchronizers_never_take_each_others_events(face: Face, sync: Any) -> None:
    """Contexts are per subscription."""
    other = face.do(face.EventSynchronizer, face.bus)
    face.core.emit("a", 1)
    assert face.do(sync.wait_for_event, "a", timeout=0) == 1
    assert face.do(other.wait_for_event, "a", timeout=0) == 1
    face.do(other.cleanup)
    face.core.emit("a", 2)
    assert face.do(sync.wait_for_event, "a", timeout=0) == 2


# Several events


def test_several_events_come_as_a_mapping_in_the_order_that_was_asked_for(face: Face, sync: Any) -> None:
    with Team() as team:
        team.add(face.do, sync.wait_for_events, ["a", "b", "c/*"])
        team.go()
        for topic in ("c/1", "x", "b", "a"):
            face.core.emit(topic, topic.upper())
    (got,) = team.results
    assert list(got.items()) == [("a", "A"), ("b", "B"), ("c/*", "C/1")]
    assert [event.topic for event in got.events] == ["c/1", "b", "a"]
    assert [event.seq for event in got.events] == sorted(event.seq for event in got.events)
    with pytest.raises(KeyError):
        got["c/1"]  # by the name that was asked for


def test_several_events_may_be_one(face: Face, sync: Any) -> None:
    face.core.emit("a", 1)
    assert face.do(sync.wait_for_events, "a", timeout=0) == {"a": 1}


def test_an_event_that_another_wait_has_taken_meanwhile_is_let_go(face: Face, sync: Any) -> None:
    """G3: what was found while the other topic was still awaited is nobody's yet."""
    with Team() as team:
        team.add(face.do, sync.wait_for_events, ["a", "b"])
        team.go()
        soon(lambda: waiting(sync))
        face.core.emit("a", 1)
        assert face.do(sync.wait_for_event, "a") == 1
        face.core.emit("b", 2)
        face.core.emit("a", 3)
    assert team.results == [{"a": 3, "b": 2}]


def test_an_event_that_another_wait_takes_at_the_last_moment_is_not_given_twice(
    face: Face, sync: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G3: between the choice and the taking."""
    honest, between = Wait._choose, [True]

    def choose(wait: Any) -> Any:
        chosen = honest(wait)
        if chosen is not None and between and between.pop():
            entry, _ = chosen[0]
            assert sync._box.engine.look(sync._box.claim_all, [entry], True)  # as the other does
        return chosen

    monkeypatch.setattr(Wait, "_choose", choose)
    face.core.emit("a", 1)
    face.core.emit("a", 2)
    assert face.do(sync.wait_for_event, "a", timeout=0) == 2
    assert not between


def test_a_wait_for_a_pattern_sees_any_number_of_topics(face: Face, sync: Any) -> None:
    """G18: what it remembers of topics is bounded, and what it has forgotten is found again."""
    for n in range(1100):
        face.core.emit(f"t/{n}", n)
    assert face.do(sync.wait_for_event, "t/*", timeout=0, condition=lambda n: n == 1099) == 1099
    face.do(sync.expect_no_event, "t/0/x/**", within=0)
    assert face.do(sync.wait_for_events, ["t/0", "t/*"], timeout=0) == {"t/0": 0, "t/*": 1}


def test_in_order_allows_others_in_between(face: Face, sync: Any) -> None:
    for topic in ("second", "first", "x", "third", "second", "x", "third"):
        face.core.emit(topic, topic)
    got = face.do(sync.wait_for_events, ["first", "second", "third"], in_order=True)
    assert [event.seq - got.events[0].seq for event in got.events] == [0, 3, 5]
    assert face.do(sync.wait_for_event, "second", timeout=0) == "second"  # the one that came too early is left


def test_in_order_is_refused_in_another_order(face: Face, sync: Any) -> None:
    for topic in ("second", "first"):
        face.core.emit(topic)
    with pytest.raises(EventTimeoutError, match=r"'first' then 'second'.*of the sequence came 'first'"):
        face.do(sync.wait_for_events, ["first", "second"], timeout=0.01, in_order=True)
    assert set(face.do(sync.wait_for_events, ["first", "second"], timeout=0)) == {"first", "second"}


@pytest.mark.parametrize("topics", [["o/*", "o/a"], ["o/a", "o/*"], ["**", "o/*", "o/a"], ["o/a", "**", "o/*"]])
def test_overlapping_patterns_find_their_events_whatever_the_order(face: Face, sync: Any, topics: list[str]) -> None:
    """The event that the first could take may be the only one that the second can have."""
    for topic in ("o/a", "o/b", "p")[: len(topics)]:
        face.core.emit(topic, topic)
    got = face.do(sync.wait_for_events, topics, timeout=0)
    assert got["o/a"] == "o/a"
    assert len(set(got.values())) == len(topics)


# Time


def test_a_time_out_tells_what_was_awaited_and_what_came_instead(face: Face, sync: Any) -> None:
    face.core.emit("b", 1)
    face.core.emit("a", 1)
    face.do(sync.wait_for_event, "a")
    with pytest.raises(EventTimeoutError) as caught:
        face.do(sync.wait_for_event, "a", timeout=0.02)
    text = str(caught.value)
    assert "0.02 s" in text
    assert "no 'a'" in text
    assert "'b' 0." in text
    assert "before the wait" in text
    assert "(taken by another wait)" in text
    assert "overflow" not in text
    assert isinstance(caught.value, TimeoutError)


def test_a_time_out_tells_that_the_condition_was_not_met_and_what_is_missing(face: Face, sync: Any) -> None:
    face.core.emit("a", 1)
    with pytest.raises(EventTimeoutError, match="1 did not meet the condition"):
        face.do(sync.wait_for_event, "a", timeout=0, condition=lambda n: False)
    with pytest.raises(EventTimeoutError, match="missing is 'b'"):
        face.do(sync.wait_for_events, ["a", "b"], timeout=0)


def test_the_recording_is_bounded_and_a_time_out_says_so(face: Face) -> None:
    """G18; the newest are kept."""
    sync = face.do(face.EventSynchronizer, face.bus, max_recorded=3)
    for n in range(5):
        face.core.emit("a", n)
    assert [event.payload for event in sync.get_events()] == [2, 3, 4]
    with pytest.raises(EventTimeoutError, match=r"overflowed.*2 oldest"):
        face.do(sync.wait_for_event, "b", timeout=0)
    assert face.do(sync.wait_for_event, "a") == 2
    face.do(sync.cleanup)


def test_the_time_of_the_constructor_holds_unless_the_call_says_otherwise(face: Face) -> None:
    sync = face.do(face.EventSynchronizer, face.bus, timeout=0.01)
    with pytest.raises(EventTimeoutError, match=r"0\.01 s"):
        face.do(sync.wait_for_event, "a")
    with pytest.raises(EventTimeoutError, match=r"0\.02 s"):
        face.do(sync.wait_for_event, "a", 0.02)
    face.do(sync.cleanup)


# Grace


@pytest.mark.parametrize("unit", [{"grace_period_ms": 60_000}, {"grace_period": 60}])
@pytest.mark.parametrize("where", ["call", "constructor"])
def test_a_grace_period_lets_handlers_end_and_no_longer(face: Face, unit: Any, where: str) -> None:
    """It ends early once all receipts are settled."""
    made, called = (unit, {}) if where == "constructor" else ({}, unit)
    sync = face.do(face.EventSynchronizer, face.bus, **made)
    with Gate() as gate, Team() as team:
        face.core.on("a", gate)
        face.core.emit("a", 1)
        gate.entered()
        team.add(lambda: face.do(sync.wait_for_event, "a", **called))
        team.go()
        soon(lambda: sync._box.entries[0].taken)
        assert gate.left == 0  # the wait is satisfied, and lingers
        assert team._threads[0].is_alive()
        gate.open()
    assert team.results == [1]
    assert gate.left == 1
    face.do(sync.cleanup)


def test_a_grace_period_is_never_late(face: Face, sync: Any) -> None:
    with Gate() as gate:
        face.core.on("a", gate)
        face.core.emit("a", 1)
        gate.entered()
        begun = time.monotonic()
        assert face.do(sync.wait_for_event, "a", grace_period_ms=20) == 1
        assert time.monotonic() - begun >= 0.02
        assert gate.left == 0


def test_without_a_grace_period_handlers_are_not_waited_for(face: Face, sync: Any) -> None:
    with Gate() as gate:
        face.core.on("a", gate)
        face.core.emit("a", 1)
        assert face.do(sync.wait_for_events, ["a"]) == {"a": 1}
        assert gate.left == 0


# No event


def test_expect_no_event(face: Face, sync: Any) -> None:
    face.core.emit("a", 1)
    face.do(sync.wait_for_event, "a")
    face.do(sync.expect_no_event, "a", within=0.01)  # that one has answered a wait
    face.core.emit("b", 1)
    with pytest.raises(AssertionError, match="no event of 'b' was expected"):
        face.do(sync.expect_no_event, "b", within=0)
    assert face.do(sync.wait_for_event, "b", timeout=0) == 1  # it was not taken
    with Team() as team:

        def expect() -> None:
            with pytest.raises(UnexpectedEventError):
                face.do(sync.expect_no_event, "c/*", within=None)

        team.add(expect)
        team.go()
        soon(lambda: waiting(sync) == 1)
        face.core.emit("d")
        face.core.emit("c/1")


def test_expect_no_event_takes_nothing_not_even_for_a_moment(
    face: Face, sync: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G3: a wait that polls meanwhile finds the event."""
    face.bus.emit("a")
    taken: list[bool] = []
    run = Monitor.run

    def watched(monitor: Monitor, step: Any, *args: Any) -> Any:
        try:
            return run(monitor, step, *args)
        finally:
            taken.extend(entry.taken for entry in sync._box.entries)

    monkeypatch.setattr(Monitor, "run", watched)
    with pytest.raises(UnexpectedEventError):
        face.do(sync.expect_no_event, "a", within=0)
    assert taken
    assert not any(taken)


# What is there


def test_get_events_lists_what_was_recorded(face: Face, sync: Any) -> None:
    for n, topic in enumerate(("a/1", "b", "a/2")):
        face.core.emit(topic, n)
    face.do(sync.wait_for_event, "b")
    assert [event.payload for event in sync.get_events()] == [0, 1, 2]
    assert [event.topic for event in sync.get_events("a/*")] == ["a/1", "a/2"]
    assert sync.get_events("c") == []


def test_the_bus_s_own_events_can_be_awaited(face: Face, sync: Any) -> None:
    """Topics under ``bus/`` are matched only by patterns that begin with it."""
    face.core.on("a", lambda payload: 1 / 0)
    face.core.emit("a").wait(BOUND)
    assert isinstance(face.do(sync.wait_for_event, "bus/error").error, ZeroDivisionError)
    assert [event.topic for event in sync.get_events()] == ["a"]


def test_it_stands_on_no_receipt_and_needs_no_thread(face: Face, sync: Any) -> None:
    """G21: an observer; G10: its delivery is settled at once."""
    receipt = face.core.emit("a", 1)
    assert receipt.deliveries == 0
    assert receipt.done
    assert face.core.handlers("a") == ()
    assert face.core.stats().totals.delivered == 1
    face.core.drain(0)
    assert face.core.stats().pool.threads == 0


def test_it_survives_remove_all_listeners(face: Face, sync: Any) -> None:
    face.core.remove_all_listeners()
    face.core.remove_all_listeners("**")
    with pytest.raises(NotRegisteredError):
        face.core.off("**")
    face.core.emit("a", 1)
    assert face.do(sync.wait_for_event, "a", timeout=0) == 1


# The end


@pytest.mark.parametrize("end", ["cleanup", "close"])
def test_its_end_ends_waits(face: Face, sync: Any, end: str) -> None:
    with Team() as team:

        def wait() -> None:
            with pytest.raises(BusClosedError, match="cleaned up" if end == "cleanup" else "was closed before 'a'"):
                face.do(sync.wait_for_event, "a", timeout=None)

        team.add(wait)
        team.go()
        soon(lambda: waiting(sync) == 1)
        if end == "cleanup":
            face.do(sync.cleanup)
        else:
            face.core.close(BOUND)
    assert waiting(sync) == 0
    assert sync._box.waits == []


def test_a_wait_that_cleanup_wakes_half_way_knows_why(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = EventSynchronizer(bus)
    subscription = sync._subscription
    cancel = type(subscription).cancel
    with Team() as team:

        def wait() -> None:
            with pytest.raises(BusClosedError, match="cleaned up"):
                sync.wait_for_event("a", timeout=BOUND)

        waiting_thread = team.add(wait)
        team.go()
        soon(lambda: waiting(sync) == 1)

        def overtaken(self: Any, *args: Any, **options: Any) -> Any:
            ended = cancel(self, *args, **options)
            if self is subscription:
                waiting_thread.join(BOUND)
            return ended

        monkeypatch.setattr(type(subscription), "cancel", overtaken)
        sync.cleanup()
        assert not waiting_thread.is_alive()


def test_what_was_recorded_can_be_had_after_the_bus_has_closed(face: Face, sync: Any) -> None:
    face.core.emit("a", 1)
    face.core.close(BOUND)
    assert face.do(sync.wait_for_event, "a") == 1
    with pytest.raises(BusClosedError):
        face.do(sync.wait_for_event, "a")
    face.do(sync.expect_no_event, "a", within=None)  # nothing can come


def test_cleanup_leaves_nothing_behind_and_may_be_repeated(face: Face) -> None:
    """G18."""

    class Thing:
        pass

    sync = face.do(face.EventSynchronizer, face.bus)
    thing = Thing()
    gone = weakref.ref(thing)
    face.core.emit("a", thing)
    del thing
    gc.collect()
    assert gone() is not None
    face.do(sync.cleanup)
    face.do(sync.cleanup)
    assert dies(gone)
    assert face.core.subscriptions() == ()
    assert sync.get_events() == []
    face.core.emit("a")
    assert sync.get_events() == []
    for call in (sync.wait_for_event, sync.expect_no_event):
        with pytest.raises(BusClosedError, match="cleaned up"):
            face.do(call, "a")


def test_leaving_it_is_cleanup(face: Face) -> None:
    if face.loop is None:
        with face.EventSynchronizer(face.bus) as sync:
            assert len(face.core.subscriptions()) == 1
    else:

        async def use() -> Any:
            async with face.EventSynchronizer(face.bus) as sync:
                assert len(face.core.subscriptions()) == 1
                return sync

        sync = face.do(use)
    assert face.core.subscriptions() == ()
    assert "ended" in repr(sync)


def test_a_forgotten_synchronizer_records_no_longer(face: Face) -> None:
    """G18."""
    sync = face.do(face.EventSynchronizer, face.bus)
    assert len(face.core.subscriptions()) == 1
    del sync
    gc.collect()
    soon(lambda: face.core.subscriptions() == ())


def test_a_finished_wait_holds_nothing(face: Face, sync: Any) -> None:
    """G18: no wait stays behind, whichever way it ended."""
    face.core.emit("a", 1)
    face.do(sync.wait_for_event, "a")
    with pytest.raises(EventTimeoutError):
        face.do(sync.wait_for_event, "a", timeout=0)
    with pytest.raises(EventTimeoutError):
        face.do(sync.wait_for_events, ["a", "b"], timeout=0.01)
    assert sync._box.waits == []
    assert waiting(sync) == 0


# Anywhere


def test_either_face_s_tools_take_either_bus(face: Face) -> None:
    for given in (face.core, face.bus):
        sync = face.do(face.EventSynchronizer, given)
        face.core.emit("a", 1)
        assert face.do(sync.wait_for_event, "a", timeout=0) == 1
        face.do(sync.cleanup)


def test_a_handler_may_wait_with_it(bus: EventBus) -> None:
    """G8: such a worker counts against nothing, so the handler that is waited for runs."""
    from eventbus import EventSynchronizer

    with EventSynchronizer(bus) as sync:
        bus.on("ask", lambda payload: sync.wait_for_event("answer", timeout=BOUND))
        bus.on("go", lambda payload: bus.emit("answer", 42))
        asked = bus.emit("ask")
        bus.emit("go")
        assert asked.wait(BOUND).results() == [42]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_records_anew(bus: EventBus) -> None:
    """G11: what the parent recorded and waits for is the parent's."""
    from eventbus import EventSynchronizer

    with EventSynchronizer(bus) as sync, Team() as team:
        team.add(sync.wait_for_event, "b")
        team.go()
        soon(lambda: waiting(sync) == 1)
        bus.emit("a", 1)
        child = os.fork()
        if child == 0:
            try:
                good = sync.get_events() == []
                bus.emit("b", 2)
                os._exit(0 if good and sync.wait_for_event("b", timeout=BOUND) == 2 else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [event.payload for event in sync.get_events()] == [1]
        bus.emit("b", 3)
    assert team.results == [3]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda sync: sync.wait_for_event(""), TopicError),
        (lambda sync: sync.wait_for_event(7), TopicTypeError),
        (lambda sync: sync.wait_for_event("a", timeout=-1), OptionError),
        (lambda sync: sync.wait_for_event("a", timeout=float("nan")), OptionError),
        (lambda sync: sync.wait_for_event("a", timeout="soon"), OptionTypeError),
        (lambda sync: sync.wait_for_event("a", condition=7), OptionTypeError),
        (lambda sync: sync.wait_for_event("a", count=0), OptionError),
        (lambda sync: sync.wait_for_event("a", count="2"), OptionTypeError),
        (lambda sync: sync.wait_for_event("a", grace_period_ms=-1), OptionError),
        (lambda sync: sync.wait_for_event("a", grace_period=1, grace_period_ms=1), OptionError),
        (lambda sync: sync.wait_for_event("a", grace_period=float("inf")), OptionError),
        (lambda sync: sync.wait_for_events([]), TopicError),
        (lambda sync: sync.wait_for_events(["a", "a"]), TopicError),
        (lambda sync: sync.wait_for_events(7), OptionTypeError),
        (lambda sync: sync.wait_for_events(["a", 7]), TopicTypeError),
        (lambda sync: sync.wait_for_events(["a"], in_order="yes"), OptionTypeError),
        (lambda sync: sync.expect_no_event("a//b"), TopicError),
        (lambda sync: sync.expect_no_event("a", within=-1), OptionError),
        (lambda sync: sync.get_events("a//b"), TopicError),
    ],
)
def test_bad_input_is_refused_at_the_call(face: Face, sync: Any, call: Any, error: type[EventBusError]) -> None:
    """G17: one clear error, nothing changed."""
    face.core.emit("a", 1)
    with pytest.raises(error):
        call(sync)
    assert face.do(sync.wait_for_event, "a", timeout=0) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": -1}, OptionError),
        ({"grace_period_ms": "long"}, OptionTypeError),
        ({"max_recorded": 0}, OptionError),
        ({"max_recorded": None}, OptionTypeError),
    ],
)
def test_bad_options_are_refused(face: Face, options: Any, error: type[EventBusError]) -> None:
    """G17."""
    with pytest.raises(error):
        face.EventSynchronizer(face.bus, **options)
    with pytest.raises(OptionTypeError, match="EventBus"):
        face.EventSynchronizer("bus")
    assert face.core.subscriptions() == ()
