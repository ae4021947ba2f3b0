"""G18: nothing is kept. Weak references, with the collector off: what lives on is held, not merely uncollected."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from kit import BOUND, Gate, dies

from eventbus import Event, EventBus, Receipt, Topic
from eventbus._engine.mailbox import Mailbox
from eventbus_async import AsyncEventBus

variable: ContextVar[Any] = ContextVar("variable", default=None)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Thing:
    """Weakly referenceable: a payload, a context value, a return value."""


class Handler(Thing):
    def __call__(self, payload: Any) -> None:
        """Take it and forget it."""


class Failure(Exception):
    """Weakly referenceable, unlike the built-in ones."""


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "inline": {"inline": True},
    "keyed": {"key": lambda event: 1, "concurrency": 2},
    "laned": {"lane": "lane"},
    "timed": {"timeout": 30.0},
    "observer": {"observer": True},
    "latest": {"overflow": "latest"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_finished_receipt_holds_neither_payload_nor_context(options: dict[str, Any]) -> None:
    with EventBus() as bus:
        bus.on("t", Handler(), **options)
        payload, value = Thing(), Thing()
        references = weakref.ref(payload), weakref.ref(value)
        token = variable.set(value)
        receipt = bus.emit("t", payload).wait(BOUND)
        variable.reset(token)
        del payload, value, token
        bus.drain(BOUND)
        assert all(map(dies, references))
        assert receipt.done


def test_an_unheard_event_holds_nothing() -> None:
    with EventBus() as bus:
        payload = Thing()
        reference = weakref.ref(payload)
        receipt = bus.emit("t", payload)
        del payload
        assert reference() is None
        assert receipt.done


def test_the_bus_keeps_no_finished_receipt_and_no_event() -> None:
    with EventBus() as bus:
        events: list[weakref.ref[Event]] = []
        bus.on("t", lambda event: events.append(weakref.ref(event)), payload=Event)
        receipt = bus.emit("t").wait(BOUND)
        reference: weakref.ref[Receipt] = weakref.ref(receipt)
        del receipt
        assert dies(reference)
        assert all(map(dies, events))


def test_a_followed_receipt_and_its_family_are_let_go() -> None:
    with EventBus() as bus:
        payloads: list[weakref.ref[Thing]] = []

        def first(payload: Any) -> None:
            inner = Thing()
            payloads.append(weakref.ref(inner))
            bus.emit("second", inner)

        bus.on("first", first)
        bus.on("second", lambda payload: None)
        receipt = bus.emit("first", follow=True).wait(BOUND)
        reference = weakref.ref(receipt)
        del receipt
        assert dies(reference)
        assert all(map(dies, payloads))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_cancelled_subscription_holds_no_handler(options: dict[str, Any]) -> None:
    with EventBus() as bus:
        handler = Handler()
        reference = weakref.ref(handler)
        subscription = bus.on(["t", "t/*", "t/**"], handler, **options)
        bus.emit("t").wait(BOUND)
        subscription.cancel(wait=True, timeout=BOUND)
        del handler
        bus.emit("t").wait(BOUND)
        assert dies(reference)
        assert subscription.handler is None  # the handle is still there, the handler is not


def test_key_functions_hooks_and_models_go_with_the_subscription() -> None:
    class Key(Thing):
        def __call__(self, event: Event) -> int:
            return 1

    with EventBus() as bus:
        key = Key()
        reference = weakref.ref(key)
        subscription = bus.on("t", lambda payload: None, key=key)
        bus.emit("t").wait(BOUND)
        subscription.cancel(wait=True, timeout=BOUND)
        del key
        assert dies(reference)


def test_a_handler_that_is_cancelled_while_it_runs_is_let_go_when_it_ends() -> None:
    begun, gate = threading.Event(), threading.Event()

    class Waiting(Thing):
        def __call__(self, payload: Any) -> None:
            begun.set()
            assert gate.wait(BOUND)

    with EventBus() as bus:
        handler = Waiting()
        reference = weakref.ref(handler)
        subscription = bus.on("t", handler)
        pending = Thing()
        payload = weakref.ref(pending)
        bus.emit("t")
        assert begun.wait(BOUND)
        bus.emit("t", pending)
        del pending, handler
        subscription.cancel()
        assert dies(payload)  # cancelled while it was pending
        assert reference() is not None
        gate.set()
        subscription.cancel(wait=True, timeout=BOUND)
        assert dies(reference)


@pytest.mark.parametrize(
    ("options", "beside"),
    [({}, False), ({"inline": True}, False), ({"inline": True}, True)],
    ids=["a mailbox", "inline", "inline beside a mailbox"],
)
def test_an_exception_lives_as_long_as_its_receipt(
    options: dict[str, Any], beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cycle between receipt, exception and frames: it goes when the receipt goes."""
    monkeypatch.setattr(logging.getLogger("eventbus"), "disabled", True)  # pytest keeps what is logged
    with EventBus() as bus:
        payload = Thing()
        reference = weakref.ref(payload)

        def fail(given: Any) -> None:
            raise Failure

        bus.on("t", fail, **options)
        if beside:
            bus.on("t", lambda payload: None)
        receipt = bus.emit("t", payload).wait(BOUND)
        del payload
        bus.drain(BOUND)
        outcome = receipt.outcomes[0]
        assert outcome.error is not None
        error = weakref.ref(outcome.error)
        assert error() is not None
        assert reference() is not None  # the traceback's frames hold what the handler was given
        del outcome, receipt
        assert dies(error)
        assert dies(reference)


def test_a_return_value_lives_as_long_as_its_receipt() -> None:
    with EventBus() as bus:
        values: list[weakref.ref[Thing]] = []

        def make(payload: Any) -> Thing:
            thing = Thing()
            values.append(weakref.ref(thing))
            return thing

        bus.on("t", make)
        receipt = bus.emit("t").wait(BOUND)
        assert values[0]() is receipt.outcomes[0].value
        del receipt
        assert dies(values[0])


def test_a_closed_bus_holds_no_handler_and_no_thread() -> None:
    handler = Handler()
    reference = weakref.ref(handler)
    before = set(threading.enumerate())
    bus = EventBus()
    subscription = bus.on("t", handler, timeout=30.0)
    receipt = bus.emit("t").wait(BOUND)
    bus.close(BOUND)
    assert not set(threading.enumerate()) - before
    del handler
    assert reference() is None
    assert not subscription.active
    assert receipt.done


def use_and_close() -> EventBus:
    bus = EventBus()
    bus.on("t", lambda payload: None)
    bus.on("t/**", lambda payload: None, key=lambda event: 1, lane="lane", timeout=30.0)
    stream = bus.stream("s")
    bus.emit("t").wait(BOUND)
    bus.emit("s")
    stream.get(BOUND)
    with bus.scope() as scope:
        scope.on("u", lambda payload: None)
        bus.emit("u", follow=True).wait(BOUND)
    bus.close(BOUND)
    return bus


def use_and_forget() -> EventBus:
    bus = EventBus()
    bus.on("t", lambda payload: None)
    bus.emit("t").wait(BOUND)
    return bus


@pytest.mark.parametrize("use", [use_and_close, use_and_forget])
def test_a_forgotten_bus_is_collected(use: Callable[[], EventBus]) -> None:
    """G10 too: its threads end when they are idle for a second, and then nothing holds it. It may be a cycle."""
    bus = use()
    reference, engine = weakref.ref(bus), weakref.ref(bus._engine)
    del bus
    end = time.monotonic() + 5
    while engine() is not None and time.monotonic() < end:
        gc.collect()
        threading.Event().wait(0.02)
    assert reference() is None
    assert engine() is None


def growth(work: Callable[[], None], rounds: int = 4) -> int:
    """By how many blocks memory grows with each round, at least: what is not kept may linger in one or another."""
    work()
    grown: list[int] = []
    for _ in range(rounds):
        gc.collect()
        before = sys.getallocatedblocks()
        work()
        gc.collect()
        grown.append(sys.getallocatedblocks() - before)
    return min(grown)


@pytest.mark.usefixtures("untraced")
def test_emitting_does_not_grow_memory() -> None:
    """Topics that nobody names, new ones in each round. A single block for each would be 10,000."""
    numbers = itertools.count()
    with EventBus() as bus:
        bus.on("many/**", lambda payload: None, inline=True)

        def work() -> None:
            for n in itertools.islice(numbers, 10_000):
                bus.emit(f"many/{n}", n)
            bus.drain(BOUND)

        assert growth(work) < 5_000
        assert len(bus.stats().topics) < 2_000


@pytest.mark.timeout(300)  # on a machine that is busy with other things
@pytest.mark.usefixtures("untraced")
def test_a_hundred_thousand_topics_do_not_grow_memory() -> None:
    """What is remembered and counted for topics that nobody names is bounded; each emit is counted all the same."""
    with EventBus() as bus:
        heard = bus.on("named/**", lambda payload: None, inline=True)
        numbers = itertools.count()

        def emit(how_many: int) -> int:
            for _ in range(how_many):
                bus.emit(f"named/{next(numbers)}")
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            full = emit(20_000)  # every table is full by now
            assert max(emit(20_000) for _ in range(4)) - full < 1_000_000
        finally:
            tracemalloc.stop()
        stats = bus.stats()
        assert stats.events == sum(stats.topics.values()) == heard.stats().delivered == 100_000
        assert len(stats.topics) < 2_000


@pytest.mark.usefixtures("untraced")
def test_churn_does_not_grow_memory() -> None:
    with EventBus() as bus:

        def work() -> None:
            for n in range(300):
                with bus.on(["churn/*", f"churn/{n % 50}"], lambda payload: None, lane=f"lane {n}"):
                    bus.emit(f"churn/{n % 50}")
            # An ended mailbox may stand in the ready queue until a worker comes to it: this one stands behind them all.
            with bus.on("last", lambda payload: None):
                bus.emit("last").wait(BOUND)

        assert growth(work) < 300
        assert bus.topics() == ()


def test_topics_that_are_never_used_again_keep_no_mailbox() -> None:
    """What comes and goes with a pattern of its own (a client, say) leaves nothing in what is remembered of topics."""
    with EventBus() as bus:
        numbers = itertools.count()

        def work() -> None:
            for n in itertools.islice(numbers, 300):
                with bus.on(f"client-{n}/*", lambda payload: None, inline=True):
                    bus.emit(f"client-{n}/said", "hello")

        work()
        work()
        gc.collect()
        boxes = [each for each in gc.get_objects() if type(each) is Mailbox and each.engine is bus._engine]
        assert len(boxes) == 0


@pytest.mark.usefixtures("untraced")
def test_many_buses_leave_nothing_behind() -> None:
    """One module hook for fork and exit, over weak references: none per bus."""

    def work() -> None:
        for _ in range(200):
            EventBus().close()

    assert growth(work) < 200


def test_typed_topics_and_bound_methods_hold_nothing_either() -> None:
    class Owner(Thing):
        def method(self, payload: Any) -> None:
            """Bound."""

    with EventBus() as bus:
        owner = Owner()
        reference = weakref.ref(owner)
        topic = Topic("t", Thing)
        subscription = bus.on(topic, owner.method)
        bus.emit(topic, Thing()).wait(BOUND)
        assert bus.off(topic, owner.method) == 1
        subscription.cancel(wait=True, timeout=BOUND)
        del owner
        assert dies(reference)


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_a_forgotten_stream_holds_no_event_that_nobody_can_read_any_more(face: str) -> None:
    """The bus may keep what is left of the subscription until the topic is emitted again; not the payloads."""
    with EventBus() as bus:
        stream: Any = (bus if face == "threads" else AsyncEventBus(bus)).stream("s")
        payload = Thing()
        bus.emit("s", payload)
        reference = weakref.ref(payload)
        del payload
        stream.cancel()
        assert reference() is not None  # what the buffer holds can still be read
        del stream
        assert dies(reference)


@pytest.mark.parametrize("last", ["runs", "is cancelled"])
def test_a_keyed_mailbox_forgets_what_has_run(last: str) -> None:
    """It passes over in its line what is pending no more; when nothing is pending, nothing may be left there."""
    with EventBus() as bus, Gate() as gate:
        subscription = bus.on("t", lambda n: Thing() if n else gate(n), key=lambda event: event.payload, concurrency=2)
        receipts = [bus.emit("t", n) for n in (0, 1, 0)]
        value = weakref.ref(receipts[1].wait(BOUND).results()[0])
        del receipts[1]
        if last == "is cancelled":
            subscription.cancel()
        gate.open()
        receipts[1].wait(BOUND)
        assert dies(value)


def test_a_handler_whose_loop_was_closed_while_it_waited_is_collected() -> None:
    """The bus's list of waits held its task, and that its payload; and leaving it later raised in a finalizer."""
    with EventBus() as bus, Gate() as gate:
        facade = AsyncEventBus(bus)
        waits = threading.Event()

        async def handler(payload: Any) -> None:
            inner = facade.emit("inner")
            waits.set()
            await inner

        async def main() -> weakref.ref[Any]:
            facade.on("outer", handler)
            payload = Thing()
            bus.emit("outer", payload)
            while not waits.is_set():
                await asyncio.sleep(0)
            return weakref.ref(payload)

        inner = bus.on("inner", gate)
        loop = asyncio.new_event_loop()
        payload = loop.run_until_complete(main())
        loop.close()
        del loop
        assert facade.topics() == ("inner",)  # that the loop is closed is noticed here
        assert not bus._engine.waiting
        gate.open()
        inner.cancel(wait=True)
        bus.drain(BOUND)
        for _ in range(3):  # what finalizers belong to lives for a round more
            gc.collect()
        assert payload() is None


def left_in_a_stopped_loop(bus: Any, payload: Thing) -> None:
    """Emitted while the loop stands still, which is then dropped as it is."""
    loop = asyncio.new_event_loop()
    bus.on("topic", listening, loop=loop)
    for _ in range(5):
        bus.emit("topic", payload)


def left_in_a_closed_loop(bus: Any, payload: Thing) -> None:
    """Closed before it came to what had been emitted."""
    loop = asyncio.new_event_loop()
    bus.on("topic", listening, loop=loop)
    for _ in range(5):
        bus.emit("topic", payload)
    loop.close()


def left_in_the_midst_of_a_burst(bus: Any, payload: Thing) -> None:
    """The loop was stopped when others had their turn, and closed; nobody has cancelled its tasks."""
    loop = asyncio.new_event_loop()

    async def main() -> None:
        for _ in range(2):
            bus.on("topic", slow)
        for _ in range(5):
            bus.emit("topic", payload)

    loop.run_until_complete(main())
    loop.close()


def left_behind_a_suspended_handler(bus: Any, payload: Thing) -> None:
    """It waits for what never comes; the loop goes on."""

    async def main() -> None:
        bus.on("topic", orphaned)
        for _ in range(5):
            bus.emit("topic", payload)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(5):
            bus.emit("topic", payload)

    LOOPS[-1].run_until_complete(main())
    for executor in bus._engine.executors:
        for slot in executor.slots:
            slot.task._log_destroy_pending = False  # or it tells, rightly


def left_unbound(bus: Any, payload: Thing) -> None:
    """What had a home when it was emitted, and has none any more."""
    bus.on("topic", listening)

    async def main() -> None:
        home = bus._binding.serve()
        for _ in range(5):
            bus.emit("topic", payload)
        bus._binding.leave(home)

    LOOPS[-1].run_until_complete(main())
    LOOPS[-1].run_until_complete(asyncio.sleep(0))  # what it was still to call


LOOPS: list[asyncio.AbstractEventLoop] = []


async def listening(payload: Any) -> None:
    """Never called here."""
    raise AssertionError("it is called")


async def slow(payload: Any) -> None:
    time.sleep(0.01)  # longer than a slice


async def orphaned(payload: Any) -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "leave",
    [
        left_in_a_stopped_loop,
        left_in_a_closed_loop,
        left_in_the_midst_of_a_burst,
        left_behind_a_suspended_handler,
        left_unbound,
    ],
)
def test_what_is_pending_on_a_forgotten_bus_is_collected(leave: Callable[[Any, Thing], None]) -> None:
    """Though what is pending for a loop is hidden from the collector while that holds it."""
    loop = asyncio.new_event_loop()
    LOOPS.append(loop)
    try:
        bus = AsyncEventBus()
        payload = Thing()
        leave(bus, payload)
        assert any(box.pending for box in bus._engine.registry.boxes.values())  # and nobody looks after the loop
        dropped = weakref.ref(payload), weakref.ref(bus._engine)
        del bus, payload
        for _ in range(3):  # what finalizers belong to lives for a round more
            gc.collect()
        assert [each() for each in dropped] == [None, None]
    finally:
        LOOPS.remove(loop)
        loop.close()


def test_deadlines_that_are_not_wanted_any_more_do_not_pile_up(bus: EventBus) -> None:
    """Behind one that is: it is due before them, and they are taken out all the same."""
    with Gate() as gate:
        bus.on("early", gate, timeout=60.0)
        bus.emit("early")
        gate.entered()
        bus.on("late", lambda payload: None, timeout=3600.0)
        for number in range(300):
            bus.emit("late", number).wait(BOUND)
        assert len(bus._engine.timer._heap) < 140
