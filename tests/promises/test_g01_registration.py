"""G1: once ``on()`` has returned, every emit that begins afterwards, on any thread, is delivered to that handler."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from kit import BOUND, Gate, Log, Team, soon

from eventbus import Event, EventBus, Status, handles
from eventbus._engine import hot, primitives

Register = Callable[[EventBus, Callable[[Any], Any]], Any]


class Holder:
    def __init__(self, handler: Callable[[Any], Any]) -> None:
        self.handler = handler

    @handles("a/b")
    def take(self, payload: Any) -> None:
        self.handler(payload)


def by_decorator(bus: EventBus, handler: Callable[[Any], Any]) -> None:
    assert bus.on("a/b")(handler) is handler


WAYS: dict[str, Register] = {
    "topic": lambda bus, handler: bus.on("a/b", handler),
    "sync_on": lambda bus, handler: bus.sync_on("a/b", handler),
    "star": lambda bus, handler: bus.on("a/*", handler),
    "first star": lambda bus, handler: bus.on("*/b", handler),
    "double star": lambda bus, handler: bus.on("a/**", handler),
    "empty double star": lambda bus, handler: bus.on("a/b/**", handler),
    "all": lambda bus, handler: bus.on("**", handler),
    "list": lambda bus, handler: bus.on(["x", "a/b"], handler),
    "list of patterns": lambda bus, handler: bus.on(["x/*", "*/b"], handler),
    "decorator": by_decorator,
    "scope": lambda bus, handler: bus.scope().on("a/b", handler),
    "register": lambda bus, handler: bus.register(Holder(handler)),
    "inline": lambda bus, handler: bus.on("a/b", handler, inline=True),
    "keyed": lambda bus, handler: bus.on("a/b", handler, key=lambda event: event.payload),
    "laned": lambda bus, handler: bus.on("a/b", handler, lane="lane"),
    "observer": lambda bus, handler: bus.on("a/b", handler, observer=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_g1_an_emit_of_another_thread_after_on_returned_is_delivered(bus: EventBus, way: str) -> None:
    bus.emit("a/b", "a route that is remembered from before").wait(BOUND)
    log = Log()
    kept = WAYS[way](bus, log)
    with Team() as team:
        team.add(lambda: bus.emit("a/b", "after"))
    assert log.reached(1) == ["after"]
    del kept


@pytest.mark.parametrize("pattern", ["t/1", "t/*", "**", ["t/1", "u"]])
def test_g1_hammer_every_emit_that_begins_after_on_returned_arrives(bus: EventBus, pattern: Any) -> None:
    """Emitters count before they emit; what a registrar reads after ``on()`` is a lower bound of what must arrive."""
    emitters, rounds = 3, 5
    begun = [0] * emitters
    found: list[tuple[list[int], list[Any]]] = []
    over = threading.Event()

    def emitter(index: int) -> None:
        while not over.is_set():
            begun[index] += 1
            bus.emit("t/1", (index, begun[index]))

    def registrar() -> None:
        for number in range(rounds):
            got: list[Any] = []
            bus.on(pattern, got.append, inline=number % 3 == 0)
            found.append((list(begun), got))
            soon(lambda marks=found[-1][0]: all(now > mark for now, mark in zip(begun, marks, strict=True)))

    with Team() as team:
        for index in range(emitters):
            team.add(emitter, index)
        registering = [team.add(registrar) for _ in range(3)]
        team.go()
        for thread in registering:
            thread.join(BOUND)
        over.set()
    bus.drain(BOUND)
    assert len(found) == 3 * rounds
    for begun_at, got in found:
        for index in range(emitters):
            numbers = [number for who, number in got if who == index]
            first = numbers[0]
            # Nothing that began after is missing, and from the first on there is no gap.
            assert first <= begun_at[index] + 1
            assert sorted(numbers) == list(range(first, begun[index] + 1))


def test_g1_a_stream_is_subscribed_at_the_call(bus: EventBus) -> None:
    with bus.stream("a") as stream:
        with Team() as team:
            team.add(lambda: bus.emit("a", 1))
        assert stream.get(BOUND).payload == 1


def test_g1_a_handler_registered_by_a_handler_gets_what_is_emitted_from_then_on(bus: EventBus) -> None:
    late = Log()
    outcomes: list[Any] = []

    def outer(event: Event) -> None:
        if event.payload == "first":
            bus.on("a", late)
            outcomes.append(bus.emit("a", "second"))

    bus.on("a", outer)
    assert bus.emit("a", "first").wait(BOUND).deliveries == 1
    assert outcomes[0].wait(BOUND).deliveries == 2
    assert late.items == ["second"]


def test_g1_a_handler_registered_by_an_inline_handler_does_not_get_the_event_that_is_under_way(bus: EventBus) -> None:
    late: list[Any] = []
    bus.on("a", lambda payload: bus.on("a", late.append, inline=True) if payload == 1 else None, inline=True)
    assert bus.emit("a", 1).deliveries == 1
    assert late == []
    bus.emit("a", 2)
    assert late == [2]


def test_g1_what_is_looked_up_after_on_is_there_at_once(bus: EventBus) -> None:
    handler = Log()
    bus.handlers("a/b")
    subscription = bus.on("a/*", handler)
    assert subscription.active
    assert bus.handlers("a/b") == (handler,)
    assert bus.subscriptions("a/b") == (subscription,)
    assert bus.topics() == ("a/*",)
    bus.verify_subscriptions({"a/b": handler, "a/*": handler})


def test_g1_registering_does_not_wait_for_handlers_or_blocked_emitters(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", gate, max_pending=1)
        first = bus.emit("a")
        gate.entered()
        bus.emit("a")
        with Team() as team:
            team.add(lambda: bus.emit("a"))
            team.go()
            log = Log()
            bus.on("a", log)
            assert bus.emit("b").deliveries == 0
            gate.open()
    assert first.wait(BOUND).outcomes[0].status is Status.DELIVERED


def test_g1_a_registration_from_many_threads_is_counted_exactly(bus: EventBus) -> None:
    got = Log()
    with Team() as team:
        for _ in range(4):
            team.add(lambda: [bus.on(f"a/{n}", got) for n in range(50)])
    assert len(bus.subscriptions()) == 200
    assert [bus.emit(f"a/{n}", n).deliveries for n in range(50)] == [4] * 50
    assert sorted(got.reached(200)) == sorted([*range(50)] * 4)


def test_g1_a_registration_that_is_refused_leaves_nothing(bus: EventBus) -> None:
    handler = Log()
    bus.on("a", handler, unique=True)
    with pytest.raises(ValueError, match="unique"):
        bus.on(["b", "a"], handler, unique=True)
    assert bus.topics() == ("a",)
    assert bus.emit("b").deliveries == 0


def test_g1_an_emit_that_has_looked_before_another_is_registered_for_a_pattern_finds_that(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its instant one handler goes, and another one comes."""
    logs = [Log(), Log()]
    leaving = bus.on("a/*", logs[0])
    bus.emit("a/x", 1).wait(BOUND)

    def meanwhile() -> None:
        if leaving.cancel():
            bus.on("a/*", logs[1])

    before = hot.use(False)  # the hot path in C does both in one go
    try:
        with monkeypatch.context() as patch:
            patch.setattr(primitives, "tools", meanwhile)
            receipt = bus.emit("a/x", 2)
    finally:
        hot.use(before)
    assert [each.status for each in receipt.wait(BOUND).outcomes] == [Status.DELIVERED]
    assert [log.items for log in logs] == [[1], [2]]
