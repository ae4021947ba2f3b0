"""G4: what one emitter emits arrives in that order, one call at a time; inline handlers run inside ``emit()``."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

import pytest
from kit import BOUND, Gate, Log, Team, soon

from eventbus import Event, EventBus, OptionError, Status

variable: ContextVar[str] = ContextVar("variable", default="nothing")


# Order


@pytest.mark.parametrize(
    "options", [{}, {"lane": "one"}, {"key": lambda event: 0, "concurrency": 3}, {"max_pending": 2}]
)
def test_g4_hammer_each_emitter_arrives_in_its_order_one_call_at_a_time(bus: EventBus, options: dict[str, Any]) -> None:
    got: list[tuple[int, int]] = []
    inside = most = 0

    def handler(payload: tuple[int, int]) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        got.append(payload)
        inside -= 1

    bus.on(["a", "b/*"], handler, **options)

    def emitter(index: int) -> None:
        for number in range(250):
            bus.emit("a" if number % 3 else f"b/{number}", (index, number))

    with Team() as team:
        for index in range(4):
            team.add(emitter, index)
    bus.drain(BOUND)
    assert most == 1
    assert len(got) == 1000
    for index in range(4):
        assert [number for who, number in got if who == index] == list(range(250))


def test_g4_of_two_emits_one_that_returned_before_the_other_began_comes_first(bus: EventBus) -> None:
    """A baton goes round three threads: each emits once it has it, so the emits follow one another."""
    log, laned = Log(), Log()
    bus.on("a", log)
    bus.on("**", laned, lane="lane")
    batons = [threading.Semaphore(0) for _ in range(3)]

    def runner(index: int) -> None:
        for number in range(100):
            assert batons[index].acquire(timeout=BOUND)
            bus.emit("a", 3 * number + index)
            batons[(index + 1) % 3].release()

    with Team() as team:
        for index in range(3):
            team.add(runner, index)
        team.go()
        batons[0].release()
    assert log.reached(300) == laned.reached(300) == list(range(300))


def test_g4_what_a_handler_emits_comes_after_what_made_it_run(bus: EventBus) -> None:
    """F14: every other subscription of both topics sees the outer event first, and handlers do not nest."""
    log = Log()

    def outer(_: Any) -> None:
        bus.emit("inner", "inner")
        log.items.append("outer handler ends")

    bus.on("outer", outer)
    seen = Log()
    bus.on(["outer", "inner"], seen)
    bus.emit("outer", "outer")
    assert seen.reached(2) == ["outer", "inner"]


def test_g4_a_handler_that_emits_to_itself_ends_first(bus: EventBus) -> None:
    steps: list[str] = []

    def handler(depth: int) -> None:
        steps.append(f"begin {depth}")
        if depth < 2:
            bus.emit("a", depth + 1)
        steps.append(f"end {depth}")

    bus.on("a", handler)
    bus.emit("a", 0)
    bus.drain(BOUND)
    assert steps == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]


def test_g4_handlers_that_emit_each_other_keep_a_flat_stack(bus: EventBus) -> None:
    """F24: far more rounds than the interpreter's recursion limit."""
    log = Log()

    def ping(number: int) -> None:
        bus.emit("pong", number + 1) if number < 4000 else log(number)

    bus.on("ping", ping)
    bus.on("pong", lambda number: bus.emit("ping", number + 1) and None)
    bus.emit("ping", 0)
    assert log.reached(1) == [4000]


def test_g4_no_queued_handler_runs_on_the_emitter(bus: EventBus) -> None:
    where: list[int] = []
    bus.on("a", lambda _: where.append(threading.get_ident()))
    bus.emit("a").wait(BOUND)
    assert where != [threading.get_ident()]


def test_g4_emit_returns_while_its_handlers_are_held(bus: EventBus) -> None:
    with Gate() as gate:
        bus.on("a", gate)
        receipts = [bus.emit("a") for _ in range(3)]
        assert not any(receipt.done for receipt in receipts)


@pytest.mark.parametrize("slots", [2, 5])
def test_g4_concurrency_runs_n_at_a_time_and_never_more(bus: EventBus, slots: int) -> None:
    with Gate() as gate:
        subscription = bus.on("a", gate, concurrency=slots)
        receipts = [bus.emit("a", n) for n in range(slots + 4)]
        gate.entered(slots)
        stats = subscription.stats()
        assert (stats.running, stats.pending) == (slots, 4)
        gate.let(1)
        gate.entered(slots + 1)
        assert gate.received[slots] == slots  # they begin in order
        gate.open()
        for receipt in receipts:
            receipt.wait(BOUND)
    assert gate.most == slots


def test_g4_an_order_survives_handlers_that_fail_block_and_wait(bus: EventBus) -> None:
    got: list[int] = []

    def handler(number: int) -> None:
        got.append(number)
        if number % 5 == 0:
            raise ValueError(number)
        if number % 5 == 1:
            bus.emit("other").wait(BOUND)
        if number % 50 == 2:
            threading.Event().wait(0.006)  # long enough to be taken for blocked

    bus.on("a", handler)
    bus.on("other", Log())
    for number in range(200):
        bus.emit("a", number)
    bus.drain(BOUND)
    assert got == list(range(200))


# Inline handlers


def test_g4_inline_handlers_run_in_the_emitting_thread_before_emit_returns_in_order(bus: EventBus) -> None:
    calls: list[Any] = []
    for index in range(3):
        bus.on("a" if index != 1 else "*", lambda _, i=index: calls.append((i, threading.get_ident())), inline=True)
    receipt = bus.emit("a")
    assert calls == [(index, threading.get_ident()) for index in range(3)]
    assert receipt.done
    calls.clear()
    Team(lambda: bus.emit("a")).run()
    assert len({ident for _, ident in calls} - {threading.get_ident()}) == 1


def test_g4_inline_handlers_run_in_the_emitters_context(bus: EventBus) -> None:
    seen: list[str] = []

    def handler(_: Any) -> None:
        seen.append(variable.get())
        variable.set("changed inside")

    bus.on("a", handler, inline=True)
    token = variable.set("set outside")
    try:
        bus.emit("a")
        assert seen == ["set outside"]
        assert variable.get() == "changed inside"
    finally:
        variable.reset(token)


def test_g4_inline_handlers_overlap_between_threads(bus: EventBus) -> None:
    both = threading.Barrier(2)
    bus.on("a", lambda _: both.wait(BOUND), inline=True)
    receipts = Team(lambda: bus.emit("a"), lambda: bus.emit("a")).run()
    assert [receipt.outcomes[0].status for receipt in receipts] == [Status.DELIVERED] * 2


def test_g4_an_inline_handlers_emit_runs_nested(bus: EventBus) -> None:
    steps: list[str] = []

    def outer(_: Any) -> None:
        steps.append("outer begins")
        bus.emit("inner")
        steps.append("outer ends")

    bus.on("outer", outer, inline=True)
    bus.on("inner", lambda _: steps.append("inner"), inline=True)
    bus.emit("outer")
    assert steps == ["outer begins", "inner", "outer ends"]


def test_g4_inline_and_queued_handlers_of_one_emit(bus: EventBus) -> None:
    with Gate("queued") as gate:
        bus.on("a", gate)
        bus.on("a", lambda _: "inline", inline=True)
        receipt = bus.emit("a")
        assert [outcome.value for outcome in receipt.outcomes] == ["inline"]
    assert receipt.wait(BOUND).results() == ["queued", "inline"]


def test_g4_an_inline_handlers_time_is_not_anybody_elses(bus: EventBus) -> None:
    """Inline handlers are no mailbox: a second thread's call does not queue behind the first."""
    with Gate() as gate:
        bus.on("a", lambda payload: gate(payload) if payload == "slow" else None, inline=True)
        with Team() as team:
            team.add(lambda: bus.emit("a", "slow"))
            team.go()
            gate.entered()
            assert bus.emit("a", "quick").done
            gate.open()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("concurrency", 2),
        ("key", lambda event: 1),
        ("lane", "db"),
        ("timeout", 1.0),
        ("overflow", "drop_oldest"),
        ("overflow", "error"),
        ("max_pending", 5),
        ("block_timeout", 1.0),
        ("max_waiting", 1),
    ],
)
def test_g4_inline_excludes_what_needs_a_mailbox(bus: EventBus, option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=option):
        bus.on("a", Log(), inline=True, **{option: value})
    assert bus.subscriptions() == ()


def test_g4_inline_refuses_coroutine_functions(bus: EventBus) -> None:
    async def handler(_: Any) -> None: ...

    with pytest.raises(TypeError):
        bus.on("a", handler, inline=True)


def test_g4_an_inline_handler_may_have_the_event(bus: EventBus) -> None:
    got: list[Event] = []

    def handler(event: Event) -> None:
        got.append(event)

    bus.on("a", handler, inline=True)
    receipt = bus.emit("a", 5)
    assert [(event.id, event.payload) for event in got] == [(receipt.event_id, 5)]


def test_g4_defaults_of_the_bus_do_not_hinder_inline_handlers() -> None:
    with EventBus("defaults", concurrency=3, max_pending=2, overflow="error", handler_timeout=1.0) as bus:
        assert bus.on("a", lambda _: 1, inline=True)
        assert bus.emit("a").results() == [1]


def test_g4_seq_increases_along_what_one_thread_emits(bus: EventBus) -> None:
    seqs: list[int] = []

    def handler(event: Event) -> None:
        seqs.append(event.seq)

    bus.on("a", handler)
    for _ in range(50):
        bus.emit("a")
    bus.drain(BOUND)
    assert seqs == sorted(set(seqs))
    soon(lambda: len(seqs) == 50)
