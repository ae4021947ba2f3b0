"""``bus.stream()``: a subscription that is read by a ``for`` loop (the contract's faces, G3, G9, G10)."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
from kit import BOUND, Team, soon
from pydantic import BaseModel

from eventbus import DeadlockError, Event, EventBus, EventTimeoutError, MailboxFullError, Status


def test_it_yields_events_in_order_with_the_payload_as_emitted(bus: EventBus) -> None:
    class Model(BaseModel):
        n: int

    payloads = [Model(n=1), {"a": 1}, None, 5]
    with bus.stream("t/*") as stream:
        receipts = [bus.emit(f"t/{n}", payload) for n, payload in enumerate(payloads)]
        events = [next(stream) for _ in payloads]
    assert all(isinstance(each, Event) for each in events)
    assert [each.topic for each in events] == ["t/0", "t/1", "t/2", "t/3"]
    assert all(each.payload is payload for each, payload in zip(events, payloads, strict=True))
    assert [each.id for each in events] == [each.event_id for each in receipts]


def test_it_subscribes_at_the_call(bus: EventBus) -> None:
    """G3: not at the first ``next()``."""
    stream = bus.stream("t")
    bus.emit("t", 1)
    assert stream.active
    assert next(iter(stream)).payload == 1


def test_its_delivery_is_settled_once_its_buffer_has_it(bus: EventBus) -> None:
    stream = bus.stream("t")
    receipt = bus.emit("t", 1)
    assert receipt.done
    assert [(each.status, each.duration) for each in receipt.outcomes] == [(Status.DELIVERED, 0.0)]
    assert stream.subscription.stats().delivered == 1
    bus.drain(0)


def test_a_stream_needs_no_thread(bus: EventBus) -> None:
    stream = bus.stream("t")
    for n in range(10):
        bus.emit("t", n)
    assert [stream.get(0).payload for _ in range(10)] == list(range(10))
    assert bus.stats().pool.threads == 0


def test_reading_waits_for_what_comes(bus: EventBus) -> None:
    stream = bus.stream("t")
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.extend(event.payload for event in stream))
    thread.start()
    for n in range(100):
        bus.emit("t", n)
    soon(lambda: len(got) == 100)
    stream.cancel()
    thread.join(BOUND)
    assert not thread.is_alive()
    assert got == list(range(100))


def test_get_runs_out_of_time(bus: EventBus) -> None:
    stream = bus.stream("t", name="my stream")
    with pytest.raises(EventTimeoutError, match="my stream"):
        stream.get(0)
    with pytest.raises(EventTimeoutError):
        stream.get(0.01)
    assert stream._box.readers == []  # G18
    bus.emit("t", 1)
    assert stream.get(0).payload == 1


def test_g12_what_interrupts_the_bus_cannot_wait_for_an_event(bus: EventBus) -> None:
    stream = bus.stream("t", name="my stream")
    with pytest.raises(DeadlockError, match=r"^cannot wait for the next event of my stream here: "):
        bus._engine.monitor.run(stream.get, BOUND)


def test_g10_a_drain_within_a_handler_waits_for_another_that_reads(bus: EventBus) -> None:
    stream = bus.stream("t")
    bus.on("reads", lambda payload: stream.get(BOUND).payload)
    bus.on("drains", lambda payload: bus.drain(BOUND) or reads.done)
    reads = bus.emit("reads")
    soon(lambda: bus.stats().pool.waiting == 1)
    drains = bus.emit("drains")
    soon(lambda: bus.stats().pool.waiting == 2)
    bus.emit("t", 42)
    assert drains.wait(BOUND).results() == [True]
    assert reads.results() == [42]


@pytest.mark.parametrize("end", ["cancel", "close", "off", "with"])
def test_its_end_wakes_readers_and_leaves_the_buffer_readable(bus: EventBus, end: str) -> None:
    stream = bus.stream("t")
    bus.emit("t", 1)
    bus.emit("t", 2)
    ends = {
        "cancel": stream.cancel,
        "close": lambda: bus.close(BOUND),
        "off": lambda: bus.off("t"),
        "with": lambda: stream.__exit__(None, None, None),
    }
    waiting = bus.stream("other")
    result: list[Any] = []
    reader = threading.Thread(target=lambda: result.append(list(waiting)))
    reader.start()
    ends[end]()
    assert [event.payload for event in stream] == [1, 2]
    assert not stream.active
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(StopIteration):
        stream.get(BOUND)
    waiting.cancel()
    reader.join(BOUND)
    assert result == [[]]
    if end != "close":
        assert bus.emit("t", 3).deliveries == 0


def test_a_forgotten_stream_ends(bus: EventBus) -> None:
    """It would fill its buffer, and then hold emitters up for ever."""
    stream = bus.stream("t")
    del stream
    gc.collect()
    assert bus.subscriptions() == ()


def test_g18_a_forgotten_stream_keeps_nothing_though_its_end_has_to_wait(bus: EventBus) -> None:
    """Its finalizer may have interrupted a step: until that is over, events come."""
    stream = bus.stream("t")
    box = stream._box

    def step() -> None:
        stream.__del__()
        assert stream.active

    bus.emit("t", 1)
    bus._engine.monitor.run(step)
    assert not stream.active
    assert len(box.events) == 0
    with bus.stream("t") as stream:
        stream._box.abandon()
        bus.emit("t", 2)
        assert len(stream._box.events) == 0


class TestBounds:
    def test_an_emit_waits_for_space_under_block(self, bus: EventBus) -> None:
        stream = bus.stream("t", max_pending=2)
        bus.emit("t", 0)
        bus.emit("t", 1)
        emitted = threading.Event()

        def emit() -> None:
            bus.emit("t", 2)
            emitted.set()

        thread = threading.Thread(target=emit)
        thread.start()
        soon(lambda: stream.subscription.stats().pending)
        assert not emitted.is_set()
        assert [stream.get(BOUND).payload for _ in range(3)] == [0, 1, 2]
        assert emitted.wait(BOUND)
        thread.join(BOUND)

    def test_drop_oldest_and_latest_keep_the_newest(self, bus: EventBus) -> None:
        oldest = bus.stream("t", max_pending=2, overflow="drop_oldest")
        latest = bus.stream("t", max_pending=1, overflow="latest")
        for n in range(5):
            bus.emit("t", n)
        for stream in (oldest, latest):
            stream.cancel()
        assert [event.payload for event in oldest] == [3, 4]
        assert [event.payload for event in latest] == [4]
        assert (oldest.dropped, latest.dropped) == (3, 4)

    def test_latest_keeps_one_whatever_the_bound(self, bus: EventBus) -> None:
        """G9: keep only the newest."""
        stream = bus.stream("t", overflow="latest")
        for n in range(5):
            bus.emit("t", n)
        stream.cancel()
        assert [event.payload for event in stream] == [4]

    def test_drop_newest_drops(self, bus: EventBus) -> None:
        stream = bus.stream("t", max_pending=2, overflow="drop_newest")
        statuses = [bus.emit("t", n).outcomes[0].status for n in range(3)]
        assert statuses == [Status.DELIVERED, Status.DELIVERED, Status.DROPPED]
        assert [stream.get(0).payload for _ in range(2)] == [0, 1]

    def test_error_rejects(self, bus: EventBus) -> None:
        stream = bus.stream("t", max_pending=1, overflow="error")
        bus.emit("t", 0)
        (outcome,) = bus.emit("t", 1).outcomes
        assert outcome.status == Status.REJECTED
        assert isinstance(outcome.error, MailboxFullError)
        assert stream.get(0).payload == 0
        assert bus.emit("t", 2).outcomes[0].status == Status.DELIVERED

    def test_a_block_timeout_rejects(self, bus: EventBus) -> None:
        stream = bus.stream("t", max_pending=1, block_timeout=0.01)
        bus.emit("t", 0)
        (outcome,) = bus.emit("t", 1).wait(BOUND).outcomes
        assert outcome.status == Status.REJECTED
        assert stream.get(0).payload == 0

    def test_cancelling_frees_blocked_emitters(self, bus: EventBus) -> None:
        """F26."""
        stream = bus.stream("t", max_pending=1)
        bus.emit("t", 0)
        receipts: list[Any] = []
        thread = threading.Thread(target=lambda: receipts.append(bus.emit("t", 1)))
        thread.start()
        soon(lambda: stream.subscription.stats().pending)
        stream.cancel()
        thread.join(BOUND)
        assert not thread.is_alive()
        assert [each.status for each in receipts[0].outcomes] == [Status.CANCELLED]


def test_several_readers_share_the_events(bus: EventBus) -> None:
    """Each event goes to one of them; none is lost."""
    stream = bus.stream("t", max_pending=50)
    got: list[list[int]] = [[] for _ in range(3)]

    def read(mine: list[int]) -> None:
        mine.extend(event.payload for event in stream)

    threads = [threading.Thread(target=read, args=(mine,)) for mine in got]
    for each in threads:
        each.start()
    for n in range(1000):
        bus.emit("t", n)
    stream.cancel()  # what the buffer holds is read to its end
    for each in threads:
        each.join(BOUND)
    assert sorted(n for mine in got for n in mine) == list(range(1000))
    assert all(mine == sorted(mine) for mine in got)


def test_reading_inside_a_handler_starves_nobody(bus: EventBus) -> None:
    """G8: a worker that waits inside the bus counts for nothing."""
    stream = bus.stream("answers")
    bus.on("ask", lambda payload: stream.get(BOUND).payload)
    bus.on("work", lambda payload: bus.emit("answers", payload))
    question = bus.emit("ask")
    bus.emit("work", 42)
    assert question.wait(BOUND).results() == [42]


def test_a_reprs_help(bus: EventBus) -> None:
    stream = bus.stream("t/**")
    bus.emit("t/a")
    assert "t/**" in repr(stream)
    assert "1 to read" in repr(stream)
    assert "active" in repr(stream)


def test_g9_a_read_admits_one_of_those_that_wait_for_space() -> None:
    """Found by the model: one read let the whole waiting line in, past ``max_pending``."""
    with EventBus("narrow") as bus, bus.stream("t", max_pending=1) as stream:
        stats = stream.subscription.stats
        with Team() as team:
            for number in range(4):
                team.add(bus.emit, "t", number)
            team.go()
            soon(lambda: (stats().delivered, stats().pending) == (1, 3), "three emits waiting for space")
            got = []
            for left in (2, 1, 0):
                got.append(stream.get(BOUND).payload)
                assert (stats().delivered, stats().pending) == (4 - left, left)
            got.append(stream.get(BOUND).payload)
        assert sorted(got) == [0, 1, 2, 3]
