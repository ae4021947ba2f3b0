"""G12: ``emit``, ``on``, ``cancel`` from ``__del__``, weakref callbacks, signal handlers, in the midst of the bus.

The deterministic half comes back at every single instruction of the bus's code: a run without interruption counts
them, then each gets a run of its own. A superset of what signals can do, and all that finalizers can.
"""

from __future__ import annotations

import dis
import gc
import inspect
import itertools
import logging
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any

import pytest
from kit import BOUND, Gate, settled, soon

import eventbus
import eventbus._engine.engine as engine_module
from eventbus import BusClosedError, CloseReport, DeadlockError, Event, EventBus, Receipt, Status, Subscription
from eventbus._engine import primitives
from eventbus._engine.engine import Engine
from eventbus._engine.inline import run_inline
from eventbus._engine.turn import turn

HERE = eventbus.__file__.rpartition("__init__")[0]
SECTIONED = {Engine._emit_in_sections.__code__, run_inline.__code__, turn.__code__}


# The interrupter

Place = tuple[CodeType, int]


class Interrupter:
    """Calls ``action`` at the n-th instruction of the bus's code that one thread executes, once.

    ``thread`` chooses the thread by its ident. Actions run untraced, so an interruption is not interrupted.
    """

    def __init__(self, thread: Callable[[int], bool]) -> None:
        self.thread = thread
        self.at = -1
        self.count = 0
        self.fired: Place | None = None
        self.places: list[Place] | None = None
        self.suits: Callable[[Place], bool] = lambda place: True  # the action comes at the next place that does
        self.action: Callable[[], object] = lambda: None

    def record(self) -> None:
        """Begin to note where the thread comes along."""
        self.at, self.count, self.places = 0, 0, []

    def arm(self, at: int, action: Callable[[], object]) -> None:
        self.at, self.action, self.count, self.fired, self.places = at, action, 0, None, None

    def disarm(self) -> list[Place]:
        """Gives the places that were recorded."""
        self.at = -1
        return self.places or []

    def step(self, code: CodeType, offset: int) -> None:
        if self.at < 0 or not self.thread(threading.get_ident()):
            return
        self.count += 1
        if self.places is not None:
            self.places.append((code, offset))
        if self.count >= self.at > 0 and self.suits((code, offset)):
            self.at = -1
            self.fired = (code, offset)
            self.action()


def all_code() -> Iterator[CodeType]:
    seen: set[CodeType] = set()
    agenda: list[CodeType] = [
        each.__code__ for each in gc.get_objects() if type(each) is type(all_code) and is_traced(each.__code__)
    ]
    while agenda:
        code = agenda.pop()
        if code not in seen:
            seen.add(code)
            yield code
            agenda.extend(const for const in code.co_consts if isinstance(const, CodeType))


_traced: list[CodeType] = []


def traced_code() -> list[CodeType]:
    """All of it, looked for once: in a heap that a long run has filled the search takes its time."""
    if not _traced:
        _traced.extend(all_code())
    return _traced


def is_traced(code: CodeType) -> bool:
    # The values hold no state: interrupting them is like interrupting the user's own code.
    name = code.co_filename
    return name.startswith(HERE) and "_values" not in name


@contextmanager
def interrupting(interrupter: Interrupter) -> Iterator[None]:
    """Have the interrupter see every instruction of the bus's code, in threads that begin within as well."""
    tools, interval = primitives.tools, sys.getswitchinterval()
    # It interrupts only where CPython may, so that sections are to be relied on; but its own code, which comes within
    # them, must not let another thread in.
    primitives.tools = lambda: None
    sys.setswitchinterval(1000.0)
    if sys.version_info >= (3, 12):
        tool, event = 4, sys.monitoring.events.INSTRUCTION
        sys.monitoring.use_tool_id(tool, "interrupter")
        codes = traced_code()
        sys.monitoring.register_callback(tool, event, interrupter.step)
        for code in codes:
            sys.monitoring.set_local_events(tool, code, event)
        try:
            yield
        finally:
            for code in codes:
                sys.monitoring.set_local_events(tool, code, 0)
            sys.monitoring.register_callback(tool, event, None)
            sys.monitoring.free_tool_id(tool)
            primitives.tools = tools
            sys.setswitchinterval(interval)
    else:

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "opcode":
                interrupter.step(frame.f_code, frame.f_lasti)
            return local

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            if not is_traced(frame.f_code):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return local

        before, others = sys.gettrace(), threading.gettrace()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)
            threading.settrace(others)  # type: ignore[arg-type]
            primitives.tools = tools
            sys.setswitchinterval(interval)


# What only moves values about within its own frame: before or after it makes no difference to anybody else.
_PRIVATE = (
    "LOAD_FAST", "STORE_FAST", "LOAD_CONST", "LOAD_GLOBAL", "COPY", "SWAP", "PUSH_NULL", "NOP", "POP_JUMP",
    "JUMP_FORWARD", "PRECALL", "KW_NAMES", "IS_OP", "COMPARE_OP", "RESUME", "RETURN_CONST",
)  # fmt: skip

_names: dict[CodeType, list[tuple[int, str]]] = {}


def instructions_of(code: CodeType) -> list[tuple[int, str]]:
    if code not in _names:
        _names[code] = [(each.offset, each.opname) for each in dis.get_instructions(code)]
    return _names[code]


def points(way: list[Place]) -> list[int]:
    """When the thread first came to each place where the world may differ from the place before, in order."""
    assert len(way) > 50, "the interrupter saw nothing of the bus"
    first = sorted({place: number for number, place in reversed(list(enumerate(way, 1)))}.values())

    def private(place: Place) -> bool:
        return dict(instructions_of(place[0]))[place[1]].startswith(_PRIVATE)

    return [number for number in first if number == 1 or not private(way[number - 2])]


_breaks: dict[CodeType, set[int]] = {}


def may_raise(place: Place) -> bool:
    """Whether a signal handler can run, and raise, before this instruction: after calls, entries and jumps back."""
    code, offset = place
    found = _breaks.get(code)
    if found is None:
        found = _breaks[code] = set()
        for one, following in itertools.pairwise(instructions_of(code)):
            if one[1].startswith(("CALL", "RESUME")) and "INTRINSIC" not in one[1]:
                found.add(following[0])
        for each in dis.get_instructions(code):
            if each.opname.startswith("JUMP_BACKWARD"):
                # From 3.13 on the exception comes from the jump itself, which no "try" may cover: see test_jumps.
                found.add(each.offset if sys.version_info >= (3, 13) else each.argval)
    return offset in found


def may_interrupt(place: Place) -> bool:
    """Whether anything at all can come before this instruction: within a section, only what CPython lets in."""
    return place[0] not in SECTIONED or may_raise(place)


def where(place: Place | None) -> str:
    if place is None:
        return "nowhere"
    code, offset = place
    line = next((line for begin, end, line in code.co_lines() if begin <= offset < end), 0)
    return f"{code.co_qualname}:{line} (+{offset})"


@pytest.fixture(autouse=True)
def unsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies are measured once in a while, and what is measured is settled in a step: here sections shall do it."""
    monkeypatch.setattr(engine_module, "SAMPLE_SECONDS", float("inf"))


# What interrupts, and what must hold then


class Log:
    """A handler that notes what it gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def __call__(self, payload: Any) -> None:
        self.got.append(payload)


class Intruder:
    """Everything that G12 allows, in one interruption; remembers enough to judge it."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.leaving, self.coming = Log(), Log()
        self.victim = bus.on("t/x", self.leaving)
        self.receipts: list[Receipt] = []
        self.newcomer: Subscription | None = None

    def __call__(self) -> None:
        emit = self.bus.emit
        self.receipts.append(emit("t/x", "in1"))
        self.newcomer = self.bus.on("t/*", self.coming)
        self.receipts.append(emit("t/x", "in2"))
        self.victim.cancel()
        self.receipts.append(emit("t/x", "in3"))

    def judge(self) -> None:
        """Once all is quiet: each call has taken effect, once, in order."""
        assert [each.deliveries for each in self.receipts] == [len(each.outcomes) for each in self.receipts]
        assert all(each.done for each in self.receipts)
        assert self.newcomer is not None
        assert self.newcomer.active
        assert not self.victim.active
        mine = [each for each in self.coming.got if each.startswith("in")]
        assert mine == ["in2", "in3"]
        assert "in3" not in self.leaving.got
        assert not [each for each in self.leaving.got if self.leaving.got.count(each) > 1]
        self.newcomer.cancel()


class Scene:
    """A bus that lasts for all runs, and one observerless listener to everything."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.everything = Log()
        bus.on("t/**", self.everything)


def at_every_instruction(work: Callable[[Scene], Callable[[], None] | None], *, thread: str = "main") -> None:
    """Run ``work`` with an intruder at each instruction in turn; it may return what is to be checked in the end.

    Each run emits "main" to "t/x" once, somewhere in ``work``, and "after" when it is over.
    """
    main = threading.get_ident()
    chosen = (lambda ident: ident == main) if thread == "main" else (lambda ident: ident != main)
    interrupter = Interrupter(chosen)
    interrupter.suits = may_interrupt
    missed = 0
    with interrupting(interrupter), EventBus(workers=1) as bus:
        scene = Scene(bus)
        got = scene.everything.got
        bus.emit("t/x", "warm").wait(BOUND)
        for _ in range(2):  # the caches are warm after the first
            interrupter.record()
            work(scene)
            bus.drain(BOUND)
            way = interrupter.disarm()
        chosen_points = points(way)
        for point in chosen_points:
            intruder = Intruder(bus)
            got.clear()
            interrupter.arm(point, intruder)
            check = work(scene)
            if thread != "main":
                bus.drain(BOUND)
            interrupter.disarm()
            bus.emit("t/x", "after")
            bus.drain(BOUND)
            place = where(interrupter.fired)
            assert got.count("main") == 1, place
            assert got[-1] == "after", place
            if interrupter.fired:
                assert [each for each in got if each.startswith("in")] == ["in1", "in2", "in3"], place
                intruder.judge()
            else:
                missed += 1
                intruder.victim.cancel()
            if check is not None:
                check()
        # Threads share the work a little differently from run to run, so the very end need not be reached.
        assert missed < len(chosen_points) / 2
        settled(bus)


@pytest.mark.timeout(240)
class TestEveryInstruction:
    """G12 + G3 + G4: nothing is lost, doubled, out of order or deadlocked, wherever the bus is interrupted."""

    def test_of_emit(self) -> None:
        def work(scene: Scene) -> Callable[[], None]:
            receipt = scene.bus.emit("t/x", "main")

            def check() -> None:
                assert receipt.deliveries == len(receipt.outcomes) >= 1

            return check

        at_every_instruction(work)

    def test_of_emit_with_inline_handlers_keys_and_lanes(self) -> None:
        """Also the settling of a delivery, which inline handlers do in the emitting thread."""
        logs: list[Log] = []

        def work(scene: Scene) -> Callable[[], None]:
            if not logs:
                logs.extend((Log(), Log(), Log()))
                scene.bus.on("t/x", logs[0], inline=True)
                scene.bus.on("t/x", logs[1], key=lambda event: event.payload, concurrency=2)
                scene.bus.on("t/x", logs[2], lane="lane")
            for log in logs:
                log.got.clear()
            receipt = scene.bus.emit("t/x", "main")

            def check() -> None:
                assert receipt.wait(BOUND).deliveries == len(receipt.outcomes) >= 4
                for log in logs:
                    assert log.got.count("main") == log.got.count("after") == 1
                    assert max(map(log.got.count, log.got)) == 1

            return check

        at_every_instruction(work)

    def test_of_on(self) -> None:
        """G1 as well: what is emitted after ``on()`` has returned is delivered."""

        def work(scene: Scene) -> Callable[[], None]:
            late = Log()
            subscription = scene.bus.on(["t/x", "t/*", "t/y"], late)
            scene.bus.emit("t/x", "main")

            def check() -> None:
                assert late.got[-1] == "after"
                assert late.got.count("main") == 1
                assert max(map(late.got.count, late.got)) == 1
                subscription.cancel()

            return check

        at_every_instruction(work)

    def test_of_cancel(self) -> None:
        """G2 as well: once ``cancel()`` has returned nothing is claimed."""

        def work(scene: Scene) -> Callable[[], None]:
            log = Log()
            subscription = scene.bus.on(["t/x", "t/*"], log)
            receipt = scene.bus.emit("t/x", "main")
            assert subscription.cancel()
            had = list(log.got)

            def check() -> None:
                assert len(log.got) - len(had) <= 1  # the call that had begun
                assert "after" not in log.got
                assert not subscription.active
                assert {each.status for each in receipt.wait(BOUND).outcomes} <= {Status.DELIVERED, Status.CANCELLED}

            return check

        at_every_instruction(work)

    def test_of_a_wait(self) -> None:
        """What comes while a bus call waits takes effect at once; what comes in its steps, right after."""

        def work(scene: Scene) -> Callable[[], None]:
            receipt = scene.bus.emit("t/x", "main").wait(BOUND)

            def check() -> None:
                assert receipt.done

            return check

        at_every_instruction(work)

    def test_of_settling_in_a_worker(self) -> None:
        """Claim, call, settle: as a payload's ``__del__`` would, in the dispatcher's thread."""

        def work(scene: Scene) -> None:
            scene.bus.emit("t/x", "main").wait(BOUND)

        at_every_instruction(work, thread="worker")

    def test_of_what_follows_an_interruption(self) -> None:
        """One call in the midst of a step, another at each instruction after it: they take effect in that order."""
        main = threading.get_ident()
        interrupter = Interrupter(lambda ident: ident == main)
        with interrupting(interrupter), EventBus(workers=1) as bus:
            log = Log()
            bus.on("t", log)
            bus.emit("t", "warm").wait(BOUND)

            def emit_with(following: Callable[[], None]) -> None:
                def first() -> None:
                    bus.emit("t", "first")
                    following()

                interrupter.suits = lambda place: place[0].co_name == "_admit"
                interrupter.arm(1, first)
                bus.emit("t", "main", follow=True)  # not in sections

            def second(point: int) -> None:
                interrupter.suits = lambda place: True
                interrupter.arm(point, lambda: bus.emit("t", "second"))

            def whole_way() -> None:
                interrupter.suits = lambda place: True
                interrupter.record()

            for _ in range(2):
                emit_with(whole_way)
                way = interrupter.disarm()
            for point in points(way):
                bus.drain(BOUND)
                log.got.clear()
                emit_with(lambda: second(point))
                interrupter.disarm()
                bus.drain(BOUND)
                place = where(interrupter.fired)
                assert sorted(log.got) == ["first", "main", "second"], place
                assert log.got.index("first") < log.got.index("second"), place

    def test_of_on_and_cancel_by_somebody_who_looks(self) -> None:
        """What a look finds half-done is not remembered: G1 and G2 hold."""
        main = threading.get_ident()
        interrupter = Interrupter(lambda ident: ident == main)
        with interrupting(interrupter), EventBus() as bus:

            def look() -> None:
                bus.handlers("t/x")
                bus.subscriptions()
                bus.topics()
                bus.stats()

            def churn(point: int) -> None:
                interrupter.arm(point, look)
                with bus.on(["t/*", "t/x", "t/**"], lambda payload: None, inline=True):
                    interrupter.at = -interrupter.at  # suspended
                    assert bus.emit("t/x").deliveries == 1, where(interrupter.fired)
                    interrupter.at = -interrupter.at
                interrupter.disarm()
                assert bus.emit("t/x").deliveries == 0, where(interrupter.fired)
                assert bus.handlers("t/x") == ()

            interrupter.record()
            bus.on(["t/*", "t/x", "t/**"], lambda payload: None, inline=True).cancel(wait=True)
            for point in points(interrupter.disarm()):
                churn(point)


# Signal handlers that raise


class Alarm(BaseException):
    """What a signal handler raises; like KeyboardInterrupt, no Exception."""


def alarm() -> None:
    raise Alarm


Setting = Callable[[EventBus], Any]
Work = Callable[[EventBus, Any], Any]


def plain(bus: EventBus) -> None:
    """Nothing but the listener to everything."""


def all_kinds(bus: EventBus) -> None:
    bus.on("t/x", lambda payload: None, inline=True)
    bus.on("t/x", lambda payload: None, key=lambda event: 1, concurrency=2)
    bus.on("t/x", lambda payload: None, lane="lane")
    bus.on("t/x", lambda payload: None, max_pending=1, overflow="drop_oldest")


def one_more(bus: EventBus) -> Subscription:
    return bus.on(["t/x", "t/*"], lambda payload: None, lane="lane")


def backlog(overflow: str, **options: Any) -> Setting:
    """A subscription with one delivery running, two pending and, where it is to block, nobody in line."""

    def setting(bus: EventBus) -> tuple[Subscription, threading.Event]:
        begun, gate = threading.Event(), threading.Event()

        def handler(payload: Any) -> None:
            begun.set()
            assert gate.wait(BOUND)

        subscription = bus.on("b", handler, overflow=overflow, max_pending=2, **options)
        bus.emit("b", 0)
        assert begun.wait(BOUND)
        bus.emit("b", 1)
        bus.emit("b", 2)
        return subscription, gate

    return setting


def behind(work: Work) -> Work:
    """Let the backlog go once the work is done, or broken off."""

    def opening(bus: EventBus, prepared: Any) -> None:
        subscription, gate = prepared
        try:
            work(bus, subscription)
        finally:
            gate.set()

    return opening


def by_payload(event: Event) -> Any:
    return event.payload


RAISING: dict[str, tuple[Setting, Work, bool]] = {
    "emit": (plain, lambda bus, _: bus.emit("t/x", "main"), True),
    "the first emit": (plain, lambda bus, _: bus.emit("t/x", "main"), False),
    "emit to all kinds": (all_kinds, lambda bus, _: bus.emit("t/x", "main"), True),
    "on": (plain, lambda bus, _: bus.on(["t/x", "t/*"], lambda payload: None, lane="lane"), True),
    "cancel": (one_more, lambda bus, subscription: subscription.cancel(), True),
    "wait": (plain, lambda bus, _: bus.emit("t/x", "main").wait(BOUND), True),
    "follow": (plain, lambda bus, _: bus.emit("t/x", "main", follow=True).wait(BOUND), True),
    "drain": (plain, lambda bus, _: (bus.emit("t/x", "main"), bus.drain(BOUND)), True),
    "cancel with a backlog": (backlog("error"), behind(lambda bus, subscription: subscription.cancel()), False),
    "cancel with keys": (
        backlog("error", key=by_payload, concurrency=1), behind(lambda bus, subscription: subscription.cancel()), False,
    ),
    "cancel with a lane": (
        backlog("error", lane="lane"), behind(lambda bus, subscription: subscription.cancel()), False,
    ),
    # With headers, for which the hot path in C leaves it to the Python code.
    "emit to full ones": (backlog("drop_oldest"), behind(lambda bus, _: bus.emit("b", 3, headers={"a": 1})), False),
    "emit to full keys": (
        backlog("drop_oldest", key=by_payload), behind(lambda bus, _: bus.emit("b", 3)), False,
    ),
    "emit to the latest": (backlog("latest", key=by_payload), behind(lambda bus, _: bus.emit("b", 2)), False),
    "emit that is rejected": (backlog("error"), behind(lambda bus, _: bus.emit("b", 3)), False),
}  # fmt: skip


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", RAISING)
def test_a_signal_handler_that_raises_anywhere_breaks_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The interrupted call raises, its emit may have taken effect or not; the bus works, drains, and its sums hold."""
    caplog.set_level(logging.CRITICAL, "eventbus")
    setting, work, warm = RAISING[name]
    main = threading.get_ident()
    interrupter = Interrupter(lambda ident: ident == main)
    depths: list[int] = []

    def scene() -> tuple[EventBus, Log, Any]:
        bus, everything = EventBus(workers=1), Log()
        bus.on("t/**", everything)
        bus.on("t/x", lambda event: depths.append(event.depth), payload=Event)
        prepared = setting(bus)
        if warm:
            bus.emit("t/x", "warm").wait(BOUND)
        return bus, everything, prepared

    with interrupting(interrupter):
        for _ in range(2):
            bus, everything, prepared = scene()
            interrupter.record()
            work(bus, prepared)
            way = interrupter.disarm()
            bus.close(BOUND)
        chosen = [number for number, place in enumerate(way, 1) if may_raise(place)]
        assert len(chosen) > 10
        interrupter.suits = may_raise
        for point in chosen:
            bus, everything, prepared = scene()
            interrupter.arm(point, alarm)
            try:
                work(bus, prepared)
            except Alarm:
                pass
            interrupter.disarm()
            place = where(interrupter.fired)
            receipt = bus.emit("t/x", "after").wait(BOUND)
            bus.drain(BOUND)
            assert everything.got.count("after") == 1, place
            assert depths[-1] == 0, place  # the thread is not taken for a handler's that was broken off
            assert everything.got.count("main") <= 1, place
            assert receipt.deliveries == len(receipt.outcomes), place
            settled(bus)
            assert bus.stats().pool.computing == 0, place
            nobody_waits(bus)
            report = bus.close(BOUND)
            assert (report.cancelled, report.stuck) == (0, ()), place


def nobody_waits(bus: EventBus) -> None:
    """What was broken off has left nothing behind."""
    engine = bus._engine
    assert (engine.sleepers, engine.drains, engine.waiting, engine.keen) == (0, [], {}, 0)
    assert engine.leftovers == {}
    assert not any(box.waiters for box in engine.all_boxes())


@contextmanager
def raising_late(bus: EventBus, late: Callable[[], object], point: int) -> Iterator[Interrupter]:
    """One interruption in the midst of a step makes calls, which are put off; a second one raises after it."""
    main = threading.get_ident()
    interrupter = Interrupter(lambda ident: ident == main)

    def first() -> None:
        late()
        interrupter.suits = may_raise
        if point:
            interrupter.arm(point, alarm)
        else:
            interrupter.record()

    interrupter.suits = lambda place: place[0].co_name == "_admit"
    with interrupting(interrupter):
        interrupter.arm(1, first)
        yield interrupter


@pytest.mark.timeout(240)
@pytest.mark.parametrize("call", ["emit", "on", "cancel"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_handler_that_raises_while_a_call_that_was_put_off_is_caught_up_with(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That call takes effect once, whole; the line of those that were put off goes on."""
    caplog.set_level(logging.CRITICAL, "eventbus")

    def scene(point: int) -> int:
        with EventBus(workers=1) as bus:
            log, leaving = Log(), Log()
            bus.on("t/*", log)
            victim = bus.on("t/x", leaving, lane="lane")
            bus.emit("t/x", "warm").wait(BOUND)
            receipts: list[Receipt] = []
            newcomers: list[Subscription] = []

            def late() -> None:
                if call == "emit":
                    receipts.append(bus.emit("t/x", "late"))
                elif call == "on":
                    newcomers.append(bus.on(["t/x", "t/*"], Log(), lane="lane"))
                else:
                    victim.cancel()

            with raising_late(bus, late, point) as interrupter:
                try:
                    bus.emit("t/x", "main", follow=True)  # not in sections
                except Alarm:
                    pass
                way = interrupter.disarm()
            place = where(interrupter.fired)
            after = bus.emit("t/x", "after").wait(BOUND)
            bus.drain(BOUND)
            assert after.done, place
            assert max(map(log.got.count, log.got)) == 1, place
            assert all(each.done and each.deliveries == len(each.outcomes) for each in receipts), place
            for newcomer in newcomers:
                assert newcomer.active, place
                assert after.deliveries == 3, place
                newcomer.cancel()
            if call == "cancel":
                assert not victim.active, place
                assert bus.handlers("t/x") == bus.handlers("t/y"), place
            settled(bus)
            nobody_waits(bus)
            assert not bus._engine.monitor.deferred, place
        chosen = [number for number, each in enumerate(way, 1) if may_raise(each)]
        return max(chosen, default=0)

    last = max(scene(0), scene(0))
    assert last > 10
    for point in range(1, last + 1):
        scene(point)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there a trace function that raises is taken away")
@pytest.mark.parametrize("function", ["remove", "cancel_pending"])
def test_a_cancel_that_is_broken_while_the_last_call_ends_is_whole(function: str) -> None:
    """Between the broken step and the one that mends it a worker finds the subscription ended, and nothing running."""
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()
    main = threading.get_ident()
    interrupter = Interrupter(lambda ident: ident == main)

    def handler(payload: Any) -> None:
        begun.set()
        assert gate.wait(BOUND)

    with EventBus(workers=1) as bus:
        subscription = bus.on("t", handler)
        receipts = [bus.emit("t") for _ in range(1 if function == "remove" else 3)]
        bus.on("next", lambda payload: ended.set())
        bus.emit("next")
        assert begun.wait(BOUND)

        def break_off() -> None:
            interrupter.suits = lambda place: place[0].co_name == "cancel"
            interrupter.arm(1, let_it_end)
            raise Alarm

        def let_it_end() -> None:
            gate.set()
            assert ended.wait(BOUND)

        interrupter.suits = lambda place: place[0].co_name == function
        with interrupting(interrupter):
            interrupter.arm(1, break_off)
            with pytest.raises(Alarm):
                subscription.cancel()
            interrupter.disarm()
        assert all(each.wait(BOUND).done for each in receipts)
        assert bus.emit("t").deliveries == 0
        assert bus.handlers("t") == ()
        assert subscription.handler is None
        settled(bus)
        nobody_waits(bus)


@pytest.mark.parametrize("options", [{}, {"timeout": BOUND}, {"concurrency": 2}], ids=str)
def test_what_a_broken_step_has_settled_is_never_claimed(options: dict[str, Any]) -> None:
    """It has not been taken out yet when a worker comes by, before the mend."""
    with EventBus(workers=1) as bus, Gate() as gate:
        subscription = bus.on("t", gate, **options)
        receipts = [bus.emit("t", number) for number in range(4)]
        gate.entered(options.get("concurrency", 1))
        pending = subscription._box.pending
        bus._engine.monitor.run(bus._engine.settle, pending[0], Status.CANCELLED)
        gate.open()
        last = receipts[-1].wait(BOUND)
        bus.drain(BOUND)
        assert [each.status for receipt in receipts for each in receipt.outcomes].count(Status.CANCELLED) == 1
        assert last.outcomes[0].status is Status.DELIVERED
        assert len(gate.received) == 3
        settled(bus)


def test_a_signal_handler_may_wait_while_an_event_is_made() -> None:
    """A key function's, for instance: no lock is held there."""
    with EventBus() as bus:
        bus.on("t", lambda payload: None, key=lambda event: event.payload)
        bus.on("u", lambda payload: None)
        with in_the_midst("_make_event", lambda: bus.emit("u").wait(BOUND)):
            bus.emit("t").wait(BOUND)


@pytest.mark.parametrize("error", [Alarm, RuntimeError("release unlocked lock")], ids=["alarm", "runtime error"])
def test_a_signal_handler_that_raises_while_a_thread_is_started(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of ``Thread.start()``, which may make RuntimeError of it; the thread runs all the same."""
    start = primitives.start_thread
    begun, gate = threading.Event(), threading.Event()
    broken: list[str] = []

    def start_and_raise(target: Callable[[], None], name: str) -> threading.Thread:
        thread = start(target, name)
        kind = name.rpartition("-")[2]
        if kind not in broken:
            broken.append(kind)
            if kind != "timer":
                assert begun.wait(BOUND)
            raise error
        return thread

    def handler(payload: Any) -> None:
        begun.set()
        assert gate.wait(BOUND)

    monkeypatch.setattr(primitives, "start_thread", start_and_raise)
    with EventBus("raising", workers=1) as bus:
        bus.on("t", handler)
        try:
            bus.emit("t")
        except Alarm:
            pass
        engine = bus._engine
        for _ in range(3):
            try:
                engine.monitor.run(engine.timer.at, 60.0, lambda: None)
            except Alarm:
                pass
        gate.set()
        bus.emit("t").wait(BOUND)
        bus.drain(BOUND)
        settled(bus)
        assert bus.stats().pool.computing == 0
        assert broken == ["1", "timer"]
        assert len([each for each in threading.enumerate() if each.name == "raising-timer"]) <= 1


# What an interruption sees and is given


@contextmanager
def in_the_midst(function: str, action: Callable[[], object]) -> Iterator[Interrupter]:
    """Act once, in the midst of a step of this thread: at the first place within that function of the engine."""
    main = threading.get_ident()
    interrupter = Interrupter(lambda ident: ident == main)
    interrupter.suits = lambda place: place[0].co_name == function
    with interrupting(interrupter):
        interrupter.arm(1, action)
        yield interrupter
        interrupter.disarm()
    assert interrupter.fired is not None


def test_a_call_in_the_midst_of_a_step_takes_effect_when_that_ends() -> None:
    """Until then a subscription is not active, and a receipt has no deliveries and cannot be waited for."""
    seen: list[Any] = []
    with EventBus() as bus:
        log = Log()

        def intrude() -> None:
            subscription = bus.on("t", log)
            receipt = bus.emit("t", 1)
            seen.extend((subscription, receipt, subscription.active))
            seen.extend((receipt.deliveries, receipt.done, receipt.outcomes))
            with pytest.raises(DeadlockError):
                receipt.wait(BOUND)
            with pytest.raises(DeadlockError):
                bus.request("t", 2, BOUND)

        with in_the_midst("_admit", intrude):
            bus.emit("other")
        subscription, receipt, *meanwhile = seen
        assert meanwhile == [False, None, False, ()]
        assert subscription.active
        assert receipt.wait(BOUND).deliveries == 1
        bus.drain(BOUND)
        assert log.got == [1, 2]


def test_a_subscription_that_is_cancelled_before_it_takes_effect_never_does() -> None:
    seen: list[Subscription] = []
    with EventBus() as bus:
        log = Log()

        def intrude() -> None:
            seen.append(bus.on("t", log))
            bus.emit("t", 1)
            assert seen[0].cancel()
            bus.emit("t", 2)

        with in_the_midst("_admit", intrude):
            bus.emit("other")
        bus.drain(BOUND)
        assert not seen[0].active
        assert 2 not in log.got
        assert bus.subscriptions() == ()
        settled(bus)


def test_a_finalizer_in_the_midst_of_another_buss_step_is_put_off_until_that_ends() -> None:
    """Two threads that would queue crosswise for each other's bus go on; each call takes effect, in order."""
    with EventBus("one") as one, EventBus("two") as two:
        logs = {bus: Log() for bus in (one, two)}
        for bus, log in logs.items():
            bus.on("t", log)
            bus.emit("t", "warm").wait(BOUND)
        both = threading.Barrier(2)
        seen: list[Any] = []

        class Last:
            def __init__(self, bus: EventBus) -> None:
                self.bus = bus

            def __del__(self) -> None:
                both.wait(BOUND)
                receipts = [self.bus.emit("t", number) for number in range(3)]
                newcomer = self.bus.on("t", logs[self.bus])
                seen.append(([each.deliveries for each in receipts], newcomer.active))

        def work(own: EventBus, other: EventBus) -> None:
            def step() -> None:  # as if the collector ran a finalizer in its midst
                last = Last(other)
                del last

            own._engine.monitor.run(step)
            assert len(other.handlers("t")) == 2

        threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in ((one, two), (two, one))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND)
            assert not thread.is_alive()
        assert seen == [([None] * 3, False)] * 2
        for bus, log in logs.items():
            bus.drain(BOUND)
            assert log.got == ["warm", 0, 1, 2]
            settled(bus)


def test_it_never_blocks_for_space() -> None:
    """A full mailbox's waiting line takes what interrupts, in a thread as well."""
    begun, gate = threading.Event(), threading.Event()
    got: list[Any] = []

    def handler(payload: Any) -> None:
        begun.set()
        assert gate.wait(BOUND)
        got.append(payload)

    with EventBus() as bus:
        bus.on("t", handler, max_pending=1)
        bus.emit("t", 0)
        assert begun.wait(BOUND)
        bus.emit("t", 1)  # full from here on
        receipts: list[Receipt] = []
        with in_the_midst("_admit", lambda: receipts.extend(bus.emit("t", n) for n in (2, 3))):
            bus.emit("other")
        assert [each.deliveries for each in receipts] == [1, 1]
        assert not any(each.done for each in receipts)
        gate.set()
        for each in receipts:
            each.wait(BOUND)
        assert got == [0, 1, 2, 3]


def test_a_refused_call_is_logged_and_its_receipt_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """There is nobody left to raise to."""
    receipts: list[Receipt] = []
    with EventBus() as bus:
        with in_the_midst("_admit", lambda: receipts.append(bus.emit("nobody", require=1))):
            bus.emit("other")
        assert receipts[0].done
        assert receipts[0].deliveries == 0
        with pytest.raises(eventbus.NoHandlerError):
            receipts[0].wait(BOUND)
    assert "nobody" in caplog.text


def test_user_code_is_no_interruption() -> None:
    """What handlers call, inline ones too, acts at once."""
    counts: list[int | None] = []
    with EventBus() as bus:
        bus.on("t", lambda payload: None)
        bus.on("plain", lambda payload: counts.append(bus.emit("t").deliveries))
        bus.on("inline", lambda payload: counts.append(bus.emit("t").deliveries), inline=True)
        bus.emit("plain").wait(BOUND)
        bus.emit("inline").wait(BOUND)
        assert counts == [1, 1]


def test_an_inline_handler_of_a_call_that_was_put_off_is_user_code() -> None:
    """Its own calls take effect at once, though more was put off behind the one that it handles."""
    counts: list[int | None] = []
    with EventBus() as bus:
        bus.on("t", lambda payload: None)
        bus.on("inline", lambda payload: counts.append(bus.emit("t").deliveries), inline=True)

        def intrude() -> None:
            bus.emit("inline")
            bus.emit("inline")

        with in_the_midst("_admit", intrude):
            bus.emit("other")
        assert counts == [1, 1]


@pytest.mark.parametrize("inline", [False, True], ids=["threads", "inline"])
def test_one_interruption_may_make_thousands_of_calls(inline: bool) -> None:
    """Each takes effect, in order (G4), and none within another, which the stack would not bear."""
    given: dict[str, Any] = {"inline": True} if inline else {"max_pending": None}
    came: list[int] = []
    depths: list[int] = []
    numbers = range(2 * sys.getrecursionlimit())

    def note(number: int) -> None:
        came.append(number)
        depths.append(len(inspect.stack(0)))

    with EventBus() as bus:
        bus.on("late", note, **given)
        with in_the_midst("_admit", lambda: [bus.emit("late", number) for number in numbers]):
            bus.emit("other")
        bus.drain(BOUND)
    assert came == list(numbers)
    assert max(depths) == min(depths) or not inline


@pytest.mark.parametrize("inline", [False, True], ids=["threads", "inline"])
def test_thousands_of_calls_may_emit_in_turn(inline: bool) -> None:
    """As before, where each inline handler emits, too."""
    given: dict[str, Any] = {"inline": True} if inline else {"max_pending": None}
    came: list[int] = []
    children: list[int] = []
    numbers = range(2 * sys.getrecursionlimit())
    with EventBus() as bus:

        def note(number: int) -> None:
            came.append(number)
            bus.emit("child", number)

        bus.on("late", note, **given)
        bus.on("child", children.append, **given)
        with in_the_midst("_admit", lambda: [bus.emit("late", number) for number in numbers]):
            bus.emit("other")
        bus.drain(BOUND)
    assert came == children == list(numbers)


def test_it_is_taken_for_the_code_that_it_interrupts() -> None:
    """G14, G19: the event has the interrupted handler's event as its parent, and carries that code's context."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    events: list[Event] = []
    values: list[str] = []
    with EventBus() as bus:

        def note(event: Event) -> None:
            events.append(event)
            values.append(variable.get())

        def handler(event: Event) -> None:
            variable.set("handler's")
            with in_the_midst("_admit", lambda: bus.emit("late")):
                bus.emit("other")
            events.append(event)

        bus.on("late", note)
        bus.on("cause", handler, inline=True)
        bus.emit("cause")
        bus.drain(BOUND)
        by_topic = {each.topic: each for each in events}
        assert by_topic["late"].parent_id == by_topic["cause"].id
        assert values == ["handler's"]


# Finalizers


class Dying:
    """Emits when it dies; the cycle leaves that to the collector."""

    def __init__(self, bus: EventBus, cycle: bool) -> None:
        self.bus = bus
        self.cycle = self if cycle else None

    def __call__(self, payload: Any) -> None:
        """It can be a handler, too."""

    def __del__(self) -> None:
        self.bus.emit("died")


@contextmanager
def collecting_all_the_time() -> Iterator[None]:
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@pytest.mark.parametrize("cycle", [False, True], ids=["counted", "collected"])
def test_finalizers_of_payloads_handlers_and_context_values_emit(cycle: bool) -> None:
    """Wherever they come, in whatever thread: none is lost, nothing deadlocks."""
    variable: ContextVar[Any] = ContextVar("variable", default=None)
    rounds = 60
    died = Log()
    with EventBus() as bus:
        bus.on("died", died)
        with collecting_all_the_time():
            for _ in range(rounds):
                bus.emit("t", Dying(bus, cycle))
                token = variable.set(Dying(bus, cycle))
                subscription = bus.on("t", Dying(bus, cycle))
                bus.emit("t", Dying(bus, cycle))
                variable.reset(token)
                del token
                subscription.cancel()
                del subscription
        bus.drain(BOUND)
        for _ in range(3):  # what a worker let go of last may have been garbage only now
            gc.collect()
            bus.drain(BOUND)
        # The last delivery's own frame may hold its payload until the worker's next one.
        bus.emit("t").wait(BOUND)
        gc.collect()
        bus.drain(BOUND)
        assert len(died.got) == 4 * rounds
        settled(bus)


def test_a_weakref_callback_may_emit_register_and_cancel() -> None:
    class Payload:
        pass

    with EventBus() as bus:
        died = Log()
        standing = bus.on("died", died)
        references: list[weakref.ref[Payload]] = []

        def callback(reference: weakref.ref[Payload]) -> None:
            bus.emit("died")
            bus.on("t", lambda payload: None).cancel()

        for _ in range(100):
            payload = Payload()
            references.append(weakref.ref(payload, callback))
            bus.emit("t", payload)
            del payload
        bus.drain(BOUND)
        bus.emit("t").wait(BOUND)
        bus.drain(BOUND)
        assert len(died.got) == 100
        assert bus.subscriptions() == (standing,)
        settled(bus)


def test_a_log_handler_may_emit() -> None:
    """The bus logs with no lock held."""

    class Emitting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            bus.emit("logged")

    handler = Emitting()
    logger = logging.getLogger("eventbus")
    logger.addHandler(handler)
    try:
        with EventBus() as bus:
            logged = Log()
            bus.on("logged", logged)

            def fail(payload: Any) -> None:
                raise ValueError(payload)

            bus.on("t", fail)
            for n in range(20):
                bus.emit("t", n)
            bus.drain(BOUND)
            assert len(logged.got) == 20
    finally:
        logger.removeHandler(handler)


# Real signals


@contextmanager
def alarms(handler: Callable[[], None], every: float) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda number, frame: handler())
    signal.setitimer(signal.ITIMER_REAL, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


needs_signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no interval timers")


@needs_signals
@pytest.mark.usefixtures("untraced")
def test_signal_handlers_emit_under_load() -> None:
    """Real signals in the main thread, two more threads that emit, one second at most."""
    with EventBus() as bus:
        mine, theirs, signals = Log(), Log(), Log()
        bus.on("main", mine)
        bus.on("thread/*", theirs)
        bus.on("signal", signals)
        sent = [0]
        churned: list[Subscription] = []

        busy = [False]

        def on_signal() -> None:
            if busy[0]:
                return  # a signal within a signal handler would make its own count of them ambiguous
            busy[0] = True
            bus.emit("signal", sent[0])
            sent[0] += 1
            churned.append(bus.on("main", lambda payload: None))
            if len(churned) > 3:
                churned.pop(0).cancel()
            busy[0] = False

        def load(number: int) -> None:
            for n in range(1500):
                bus.emit(f"thread/{number}", (number, n))

        threads = [threading.Thread(target=load, args=(number,)) for number in range(2)]
        for each in threads:
            each.start()
        count = 0
        end = time.monotonic() + 0.7
        with alarms(on_signal, 0.001):
            while time.monotonic() < end or not sent[0]:
                bus.emit("main", count)
                count += 1
                if count % 50 == 0:
                    bus.emit("main", count).wait(BOUND)
                    count += 1
        for each in threads:
            each.join(BOUND)
        bus.drain(BOUND)
        assert sent[0] > 0
        assert signals.got == list(range(sent[0]))
        assert mine.got == list(range(count))
        for number in range(2):
            assert [n for who, n in theirs.got if who == number] == list(range(1500))
        settled(bus)


@needs_signals
@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some raise within weakref callbacks
def test_signal_handlers_raise_under_load() -> None:
    """Each breaks one call off, somewhere; the bus goes on, drains, and every delivery is accounted for."""
    armed = [False]
    raised = [0]

    def on_signal() -> None:
        if armed[0]:
            armed[0] = False
            raised[0] += 1
            raise Alarm

    with EventBus() as bus:
        log = Log()
        bus.on("t/*", log)
        bus.on("t/x", lambda payload: None, inline=True)
        bus.on("t/x", lambda payload: None, key=lambda event: event.payload % 3, concurrency=2)
        returned: list[int] = []
        end = time.monotonic() + 0.8
        n = 0
        with alarms(on_signal, 0.001):
            while time.monotonic() < end or not raised[0]:
                n += 1
                try:
                    armed[0] = True
                    subscription = bus.on("t/x", lambda payload: None)
                    receipt = bus.emit("t/x", n)
                    returned.append(n)
                    if n % 7 == 0:
                        receipt.wait(BOUND)
                    subscription.cancel()
                    armed[0] = False
                except Alarm:
                    pass
        bus.drain(BOUND)
        assert set(returned) <= set(log.got)  # an emit that returned was not lost
        assert log.got == sorted(set(log.got))
        after = bus.emit("t/x", 10**9).wait(BOUND)
        bus.drain(BOUND)
        assert log.got[-1] == 10**9
        assert after.deliveries == len(after.outcomes)
        settled(bus)
        report = bus.close(BOUND)
        assert (report.cancelled, report.stuck) == (0, ())


def test_what_a_call_in_the_midst_of_a_step_can_know_and_what_it_cannot_wait_for(caplog: Any) -> None:
    """It takes effect when the step has ended: until then nothing is known of it, and waiting for it is refused."""
    bus = EventBus()
    mine, later = Log(), Log()
    bus.on("a", mine)
    seen: list[Any] = []

    def refused(call: Callable[[], object]) -> None:
        with pytest.raises(DeadlockError, match="interrupted"):
            call()

    def within() -> None:
        receipt = bus.emit("a", 1)
        assert (receipt.deliveries, receipt.done, receipt.outcomes) == (None, False, ())
        assert "not in effect yet" in repr(receipt)
        refused(lambda: receipt.wait(0))
        refused(lambda: bus.request("a", 2, BOUND))
        refused(lambda: bus.drain(BOUND))
        seen.extend([receipt, bus.on("b", later), bus.emit("b", 3)])

    bus._engine.monitor.run(within)
    receipt, subscription, heard = seen
    assert receipt.wait(BOUND).deliveries == 1
    assert heard.wait(BOUND).deliveries == 1
    assert subscription.active
    bus.drain(BOUND)
    assert (mine.got, later.got) == ([1, 2], [3])
    settled(bus)

    def end() -> None:
        assert bus.close(BOUND) == CloseReport()  # nothing is known yet
        seen.append(bus.on("late", later))
        seen.append(bus.emit("a", 4))

    bus._engine.monitor.run(end)
    soon(lambda: bus._engine.closed_report is not None, "the close in a thread of its own")
    assert not bus.subscriptions()
    assert not seen[-2].active
    with pytest.raises(BusClosedError):
        seen[-1].wait(BOUND)
    assert "that was put off is refused" in caplog.text
    assert mine.got == [1, 2]
