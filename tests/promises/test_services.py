"""BaseService and ServiceGroup, on both faces (the contract's section BaseService; G2, G5, G8, G22)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kit import BOUND, Gate, Log, Team, no_thread, soon
from kit_tools import Face, made_face

from eventbus import (
    BaseService,
    BusClosedError,
    Event,
    EventBus,
    EventSynchronizer,
    HandlerTypeError,
    OptionError,
    OptionTypeError,
    Restart,
    ServiceError,
    ServiceStatus,
    ServiceStatusPayload,
    Subscription,
    handles,
)
from eventbus._engine import primitives
from eventbus._engine.engine import Engine
from eventbus._services import group
from eventbus._services.turns import Turns
from eventbus_async import AsyncEventBus

FULL = ["starting", "running", "stopping", "stopped"]


@pytest.fixture(params=["threads", "asyncio"])
def face(request: pytest.FixtureRequest, bus: EventBus) -> Iterator[Face]:
    with made_face(request.param, bus) as made:
        yield made


class Changes(Log):
    """Hears ``service/status``."""

    def __init__(self, bus: EventBus, service: str | None = None) -> None:
        super().__init__()
        bus.on("service/status", lambda change: self(change) if service in (None, change["service"]) else None)

    @property
    def statuses(self) -> list[str]:
        return [str(change["status"]) for change in self.items]


def make(face: Face, *, start: Any = None, stop: Any = None, error: Any = None, **options: Any) -> Any:
    """A service with these hooks; ``start`` is called with the service."""

    class Made(face.BaseService):  # type: ignore[misc, name-defined]
        def _start(self) -> Any:
            return start(self) if start is not None else None

        def _stop(self) -> Any:
            return stop(self) if stop is not None else None

        def _on_error(self, problem: Any) -> Any:
            if error is not None:
                error(problem)

    return Made("made", face.bus, **options)


def listen(payload: Any) -> Any:
    return payload


# Making one


def test_its_name_may_be_left_out_and_be_a_keyword(face: Face) -> None:
    """``BaseService(name, event_bus)`` and ``BaseService(event_bus)``: the seed uses both."""

    class MyHTTPService2(face.BaseService):  # type: ignore[misc, name-defined]
        pass

    assert MyHTTPService2(face.bus).name == "my_http_service2"
    assert MyHTTPService2(event_bus=face.bus).name == "my_http_service2"
    for made in (
        MyHTTPService2("x", face.bus),
        MyHTTPService2("x", event_bus=face.bus),
        MyHTTPService2(name="x", event_bus=face.bus),
        MyHTTPService2(event_bus=face.bus, name="x"),
    ):
        assert made.name == "x"
        assert made.event_bus is face.bus
        assert made.status is ServiceStatus.INITIALIZING
        assert made.status == "initializing"
        assert repr(made) == "<MyHTTPService2 'x' initializing>"


def test_either_bus_will_do(face: Face) -> None:
    for given in (face.core, face.bus):
        service = face.BaseService("s", given)
        face.do(service.start)
        assert service.status == "running"
        face.do(service.stop)


@pytest.mark.parametrize(
    ("make_it", "error"),
    [
        (lambda face: face.BaseService(), OptionTypeError),
        (lambda face: face.BaseService("name"), OptionTypeError),
        (lambda face: face.BaseService("name", "bus"), OptionTypeError),
        (lambda face: face.BaseService(7), OptionTypeError),
        (lambda face: face.BaseService("", face.bus), OptionError),
        (lambda face: face.BaseService(face.bus, 7), OptionTypeError),
        (lambda face: face.BaseService("a", face.bus, 3), OptionTypeError),
        (lambda face: face.BaseService("a", face.bus, error_limit=-1), OptionError),
        (lambda face: face.BaseService("a", face.bus, error_limit="3"), OptionTypeError),
        (lambda face: face.BaseService("a", face.bus, restart=3), OptionTypeError),
        (lambda face: Restart(attempts=0), OptionError),
        (lambda face: Restart(backoff=-1), OptionError),
        (lambda face: Restart(jitter="much"), OptionTypeError),  # type: ignore[arg-type]
        (lambda face: Restart(backoff=float("inf")), OptionError),
        (lambda face: Restart(backoff=None), OptionTypeError),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_refused(face: Face, make_it: Any, error: type[Exception]) -> None:
    """G17."""
    with pytest.raises(error):
        make_it(face)


@pytest.mark.parametrize("hook", ["_start", "_stop", "_on_error"])
def test_the_core_refuses_async_hooks_when_the_class_is_made(hook: str) -> None:
    from eventbus import BaseService

    async def method(self: Any, *args: Any) -> None:
        """Nobody would await it."""

    with pytest.raises(HandlerTypeError, match=r"eventbus_async\.BaseService"):
        type("Service", (BaseService,), {hook: method})


# Life


def test_a_start_and_a_stop_make_exactly_four_changes(face: Face) -> None:
    """In order, and settled when the calls return."""
    changes = Changes(face.core)
    calls: list[str] = []
    service = make(face, start=lambda s: calls.append("_start"), stop=lambda s: calls.append("_stop"))
    face.do(service.start)
    assert service.status is ServiceStatus.RUNNING
    assert changes.statuses == FULL[:2]
    face.do(service.stop)
    assert service.status is ServiceStatus.STOPPED
    assert changes.statuses == FULL
    assert calls == ["_start", "_stop"]
    assert {change["service"] for change in changes.items} == {"made"}
    times = [change["time"] for change in changes.items]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 60


def test_a_change_is_a_model(face: Face) -> None:
    got: list[ServiceStatusPayload] = []

    def hear(change: ServiceStatusPayload) -> None:
        got.append(change)

    face.core.on("service/status", hear)
    face.do(make(face).start)
    assert all(type(change) is ServiceStatusPayload for change in got)
    assert [change.status for change in got] == [ServiceStatus.STARTING, ServiceStatus.RUNNING]


def test_start_and_stop_are_idempotent(face: Face) -> None:
    changes = Changes(face.core)
    service = make(face)
    face.do(service.stop)  # it never ran
    assert service.status == "initializing"
    for call in (service.start, service.start, service.stop, service.stop):
        face.do(call)
    assert changes.statuses == FULL


def test_it_can_be_started_again(face: Face) -> None:
    changes = Changes(face.core)
    service = make(face, start=lambda s: s.subscribe("t", listen) and None)
    for _ in range(3):
        face.do(service.start)
        assert len(face.core.handlers("t")) == 1
        face.do(service.stop)
        assert face.core.handlers("t") == ()
    assert changes.statuses == FULL * 3


@pytest.mark.parametrize("repetition", range(5))
def test_several_callers_at_once_share_one_start_and_one_stop(face: Face, repetition: int) -> None:
    changes = Changes(face.core)
    calls: list[str] = []
    service = make(face, start=lambda s: calls.append("_start"), stop=lambda s: calls.append("_stop"))
    for call in (service.start, service.stop):
        with Team() as team:
            for _ in range(5):
                team.add(face.do, call)
    assert calls == ["_start", "_stop"]
    assert changes.statuses == FULL


@pytest.mark.parametrize("repetition", range(5))
def test_starts_and_stops_at_random_never_overlap(face: Face, repetition: int) -> None:
    changes = Changes(face.core)
    inside: list[int] = [0]

    def alone(service: Any) -> None:
        inside[0] += 1
        assert inside[0] == 1
        inside[0] -= 1

    service = make(face, start=alone, stop=alone)
    with Team() as team:
        for number in range(6):
            team.add(
                lambda number=number: [face.do((service.start, service.stop)[(number + n) % 2]) for n in range(10)]
            )
    face.do(service.stop)
    face.core.drain(BOUND)
    assert len(changes.statuses) % 4 == 0
    assert changes.statuses == FULL * (len(changes.statuses) // 4)


def test_callers_that_share_a_failed_start_all_hear_of_it(face: Face) -> None:
    with Gate() as gate:

        def start(service: Any) -> None:
            gate(None)
            raise ValueError("no")

        service = make(face, start=start)
        errors: list[BaseException] = []

        def call() -> None:
            try:
                face.do(service.start)
            except ValueError as error:
                errors.append(error)

        with Team() as team:
            if face.loop is None:
                for _ in range(3):
                    team.add(call)
                team.go()
                soon(lambda: len(service._lifecycle.turns.waiters) == 2)
            else:
                team.add(call)
            gate.open()
    assert len(errors) == (3 if face.loop is None else 1)
    assert gate.left == 1


# Subscriptions


def test_what_it_subscribes_ends_with_it(face: Face) -> None:
    """G2: leaving a service is ``cancel(wait=True)``."""
    with Gate() as gate:
        service = make(face, start=lambda s: s.subscribe("t", gate) and None)
        face.do(service.start)
        later = face.do(service.subscribe, "u", listen)
        assert later.active
        face.core.emit("t", 1)
        face.core.emit("t", 2)
        gate.entered()
        with Team() as team:
            team.add(face.do, service.stop)
            team.go()
            soon(lambda: service.status == "stopping" and not later.active)
            assert gate.left == 0
            gate.open()
        assert gate.received == [1]
        assert face.core.subscriptions() == ()


def test_marked_methods_are_subscribed_once_start_has_succeeded(face: Face) -> None:
    """G22: ``@handles``; a BaseService subscribes them at start."""

    class Shop(face.BaseService):  # type: ignore[misc, name-defined]
        ready = False

        def _start(self) -> None:
            assert face.core.handlers("orders/created") == ()
            self.ready = True

        @handles("orders/*", name="shop")
        def note(self, order: dict[str, Any]) -> Any:
            return self.ready, order["id"]

    shop = Shop(face.bus)
    face.do(shop.start)
    assert face.core.emit("orders/created", {"id": 3}).wait(BOUND).results() == [(True, 3)]
    face.do(shop.stop)
    assert face.core.handlers("orders/created") == ()


def test_after_a_failed_start_nothing_is_subscribed(face: Face) -> None:
    changes = Changes(face.core)

    def start(service: Any) -> None:
        service.subscribe("t", listen)
        assert len(face.core.handlers("t")) == 1
        raise ValueError("no database")

    service = make(face, start=start)
    with pytest.raises(ValueError, match="no database"):
        face.do(service.start)
    assert service.status is ServiceStatus.ERROR
    assert face.core.handlers("t") == ()
    assert changes.statuses == ["starting", "error"]
    assert changes.items[-1]["message"] == "ValueError: no database"
    face.do(service.stop)  # nothing to stop
    with pytest.raises(ValueError, match="no database"):
        face.do(service.start)  # it may try again


def test_a_marked_method_that_cannot_be_registered_undoes_the_start(face: Face) -> None:
    stopped: list[bool] = []

    class Bad(face.BaseService):  # type: ignore[misc, name-defined]
        def _start(self) -> None:
            self.subscribe("t", listen)

        def _stop(self) -> None:
            stopped.append(True)

        @handles("u")
        def note(self, payload: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
            """Its annotation cannot be resolved."""

    service = Bad(face.bus)
    with pytest.raises(HandlerTypeError):
        face.do(service.start)
    assert service.status == "error"
    assert stopped == [True]
    assert face.core.subscriptions() == ()


def test_subscribing_is_for_services_that_run(face: Face) -> None:
    service = make(face, stop=lambda s: s.subscribe("t", listen))
    with pytest.raises(ServiceError, match="initializing"):
        face.do(service.subscribe, "t", listen)
    face.do(service.start)
    with pytest.raises(ServiceError, match="stopping"):
        face.do(service.stop)
    with pytest.raises(ServiceError, match="error"):
        face.do(service.subscribe, "t", listen)
    assert face.core.subscriptions() == ()


def test_a_failed_stop_is_an_error_and_nothing_is_subscribed(face: Face) -> None:
    changes = Changes(face.core)

    def stop(service: Any) -> None:
        raise OSError("stuck")

    service = make(face, start=lambda s: s.subscribe("t", listen) and None, stop=stop)
    face.do(service.start)
    with pytest.raises(OSError, match="stuck"):
        face.do(service.stop)
    assert service.status is ServiceStatus.ERROR
    assert face.core.handlers("t") == ()
    assert changes.statuses == ["starting", "running", "stopping", "error"]


def test_stop_on_a_closed_bus_succeeds(face: Face) -> None:
    calls: list[str] = []
    service = make(face, start=lambda s: s.subscribe("t", listen) and None, stop=lambda s: calls.append("_stop"))
    face.do(service.start)
    face.core.close(BOUND)
    face.do(service.stop)
    assert service.status == "stopped"
    assert calls == ["_stop"]
    with pytest.raises(BusClosedError):
        face.do(service.start)
    assert service.status == "stopped"


def test_it_is_a_context_manager(face: Face) -> None:
    service = make(face)
    if face.loop is None:
        with service as entered:
            assert entered is service
            assert service.status == "running"
    else:

        async def use() -> None:
            async with service as entered:
                assert entered is service
                assert service.status == "running"

        face.do(use)
    assert service.status == "stopped"


# Waiting for the status events


def test_start_waits_for_its_status_events_but_for_no_longer_than_a_second(face: Face) -> None:
    with Gate() as gate:
        face.core.on("service/status", gate)
        service = make(face)
        begun = time.monotonic()
        face.do(service.start)
        assert 1.0 <= time.monotonic() - begun < BOUND
        assert service.status == "running"
        assert gate.left == 0


def test_inside_a_handler_of_status_events_they_return_at_once(bus: EventBus) -> None:
    """And nothing is lost of the order, whoever makes the changes. (The facade's: tests/facade/test_tools.py.)"""
    from eventbus import BaseService

    changes = Changes(bus, "made")
    service, other = BaseService("made", bus), BaseService("other", bus)
    took: list[float] = []

    def react(change: ServiceStatusPayload) -> None:
        begun = time.monotonic()
        if change.status is ServiceStatus.RUNNING:
            (service.start if change.service == "other" else service.stop)()
            took.append(time.monotonic() - begun)

    bus.on("service/status", react)
    other.start()
    changes.reached(4)
    assert changes.statuses == FULL
    assert max(took) < 0.5
    other.stop()


def test_behind_the_caller_s_own_call_they_return_at_once(bus: EventBus) -> None:
    """A handler that hears everything: the status events stand behind its own call."""
    from eventbus import BaseService

    service = BaseService("made", bus)
    took: list[float] = []

    def react(event: Event) -> None:
        if event.topic == "go":
            begun = time.monotonic()
            service.start()
            took.append(time.monotonic() - begun)

    bus.on("**", react)
    bus.emit("go").wait(BOUND).raise_for_errors()
    assert service.status == "running"
    assert took[0] < 0.5


def test_inline_handlers_of_status_events_may_stop_it(bus: EventBus) -> None:
    """The changes of the inner call are emitted after the one that is being emitted."""
    from eventbus import BaseService

    service = BaseService("made", bus)
    seen: list[str] = []

    def react(change: dict[str, Any]) -> None:
        seen.append(str(change["status"]))
        if change["status"] == "running":
            service.stop()

    bus.on("service/status", react, inline=True)
    begun = time.monotonic()
    service.start()
    assert time.monotonic() - begun < 0.9
    soon(lambda: service.status == "stopped")
    assert seen == FULL


@pytest.mark.parametrize("at", FULL)
def test_what_an_inline_handler_of_status_events_lets_pass_leaves_no_half_made_state(bus: EventBus, at: str) -> None:
    """G5: SystemExit passes to the emitter, which here is who starts or stops."""
    from eventbus import BaseService

    changes: list[str] = []

    def react(change: dict[str, Any]) -> None:
        changes.append(str(change["status"]))
        if change["status"] == at:
            raise SystemExit(at)

    class Made(BaseService):
        def _start(self) -> None:
            self.subscribe("t", listen)

    quitter = bus.on("service/status", react, inline=True)
    service = Made(bus)
    with pytest.raises(SystemExit):
        service.start()
        service.stop()
    quitter.cancel()
    assert service.status == {"starting": "error", "running": "running", "stopping": "error", "stopped": "stopped"}[at]
    assert len(bus.handlers("t")) == (at == "running")
    assert changes[-1] == service.status
    service.start()
    service.stop()
    assert service.status == "stopped"


def test_a_subscription_that_a_stop_overtakes_is_refused(face: Face) -> None:
    """Half-made: the stop comes between the look at the status and the registration."""
    service = make(face)
    face.do(service.start)

    def topics() -> Iterator[str]:
        if face.loop is None:
            service.stop()
        else:
            face.do(service.stop)
        yield "t"

    with pytest.raises(ServiceError, match="was stopped"):
        service.subscribe(topics(), listen)
    assert face.core.handlers("t") == ()


def test_a_stop_waits_for_the_calls_of_a_subscription_that_is_half_made(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2: it is in effect already, though subscribe() has not returned."""
    service = make(face)
    face.do(service.start)
    register = Engine.register
    with Gate() as gate, Team() as team:

        def stop() -> bool:
            face.do(service.stop)
            return gate.inside == 0

        def half_made(self: Engine, *args: Any, **options: Any) -> Any:
            made = register(self, *args, **options)
            face.core.emit("t")
            gate.entered()
            team.add(stop)
            team.go()
            soon(lambda: service._lifecycle.scope._over, "the stop")
            return made

        monkeypatch.setattr(Engine, "register", half_made)
        with pytest.raises(ServiceError, match="was stopped"):
            service.subscribe("t", gate)
        soon(lambda: team.results[0] is not None or face.core._engine.look(lambda: is_awaited(face)), "it waits")
        gate.open()
    assert team.results == [True]
    assert face.core.handlers("t") == ()


def is_awaited(face: Face) -> bool:
    """Whether somebody waits for the end of a running handler."""
    return any(box.running and box.waiters for box in face.core._engine.all_boxes())


def test_a_group_s_start_and_stop_that_begin_at_once_take_turns(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Turns] = []
    ran: list[Turns] = []

    class Overtaken(Turns):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)
            if len(made) == 1:
                next(flows[1], None)

        def run(self, *args: Any) -> Any:
            ran.append(self)
            return super().run(*args)

    monkeypatch.setattr(group, "Turns", Overtaken)
    both = face.ServiceGroup(make(face))
    flows = [both._flow(kind, lambda turn: iter(())) for kind in ("start", "stop")]
    next(flows[0], None)
    assert len(ran) == 2
    assert ran[0] is ran[1]


def test_its_own_handler_may_stop_it(bus: EventBus) -> None:
    """G2: it does not wait for the caller's own call."""
    from eventbus import BaseService

    changes = Changes(bus)

    class Once(BaseService):
        def _start(self) -> None:
            self.subscribe("t", lambda payload: self.stop())

    service = Once(bus)
    service.start()
    begun = time.monotonic()
    bus.emit("t").wait(BOUND).raise_for_errors()
    assert time.monotonic() - begun < 0.9
    assert service.status == "stopped"
    assert changes.statuses == FULL


def test_a_handler_that_asks_for_the_stop_that_waits_for_it_is_not_waited_for(bus: EventBus) -> None:
    """Neither deadlock nor error: both calls are one stop, whoever came first."""
    from eventbus import BaseService

    entered, go = threading.Event(), threading.Event()
    service: Any = None

    def handler(payload: Any) -> None:
        entered.set()
        assert go.wait(BOUND)
        service.stop()

    class Made(BaseService):
        def _start(self) -> None:
            self.subscribe("t", handler)

    service = Made(bus)
    service.start()
    receipt = bus.emit("t")
    assert entered.wait(BOUND)
    with Team() as team:
        team.add(service.stop)
        team.go()
        soon(lambda: service._lifecycle.turns.quiet)
        go.set()
    receipt.wait(BOUND).raise_for_errors()
    assert service.status == "stopped"


def test_stops_that_wait_for_each_other_s_handlers_are_a_deadlock_error(bus: EventBus) -> None:
    """G8, over the way of two services."""
    from eventbus import BaseService, DeadlockError

    both = threading.Barrier(2)
    services: dict[str, Any] = {}

    class Made(BaseService):
        def _start(self) -> None:
            self.subscribe(self.name, self.handle)

        def handle(self, other: str) -> Any:
            both.wait(BOUND)
            return services[other].stop()

    services.update(a=Made("a", bus), b=Made("b", bus))
    for each in services.values():
        each.start()
    receipts = [bus.emit("a", "b"), bus.emit("b", "a")]
    outcomes = [receipt.wait(BOUND).outcomes[0] for receipt in receipts]
    assert sum(isinstance(outcome.error, DeadlockError) for outcome in outcomes) == 1


@pytest.mark.parametrize("first", ["start", "stop"])
def test_a_hook_that_waits_for_a_handler_that_waits_for_the_hook_is_a_deadlock_error(bus: EventBus, first: str) -> None:
    """G8: whichever of the two waits comes last raises."""
    from eventbus import BaseService, DeadlockError

    asked = threading.Event()
    service: Any = None

    class Made(BaseService):
        def _start(self) -> None:
            receipt = bus.emit("ask")
            if first == "stop":
                soon(lambda: self._lifecycle.turns.waiters)  # the handler waits already
            else:
                asked.set()
            receipt.wait(BOUND).raise_for_errors()

    def ask(payload: Any) -> None:
        if first == "start":
            assert asked.wait(BOUND)
            soon(lambda: bus.stats().pool.waiting)  # the hook waits already
        service.stop()

    service = Made(bus)
    bus.on("ask", ask)
    bus.on("go", lambda payload: service.start())
    error = bus.emit("go").wait(BOUND).outcomes[0].error
    if isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, DeadlockError)
    bus.drain(BOUND)
    assert service.status in ("error", "stopped")


def test_calls_within_its_own_hooks(face: Face) -> None:
    """``start`` within ``_start`` is under way already; ``stop`` there would wait for itself."""
    errors: list[str] = []

    def start(service: Any) -> Any:
        if face.loop is None:
            service.start()
            with pytest.raises(ServiceError, match="within its own start"):
                service.stop()
            errors.append("refused")
            return None

        async def inner() -> None:
            await service.start()
            with pytest.raises(ServiceError, match="within its own start"):
                await service.stop()
            errors.append("refused")

        return inner()

    service = make(face, start=start)
    face.do(service.start)
    assert errors == ["refused"]
    assert service.status == "running"


# Errors


def test_errors_of_its_handlers_reach_on_error_and_count(face: Face) -> None:
    problems = Log()
    service = make(face, start=lambda s: s.subscribe("t", lambda payload: 1 / payload) and None, error=problems)
    face.do(service.start)
    face.core.on("t", lambda payload: [][payload])  # not the service's
    face.core.emit("t", 0).wait(BOUND)
    (problem,) = problems.reached(1)
    assert isinstance(problem.error, ZeroDivisionError)
    assert problem.event.topic == "t"
    assert problem.where == "handler"
    assert service.errors == 1
    assert service.status == "running"
    face.core.emit("t", 0).wait(BOUND)
    assert service.errors == 2
    face.do(service.stop)
    assert face.core._engine.error_watchers == {}


def test_what_on_error_raises_goes_no_further(face: Face) -> None:
    """G5."""

    def error(problem: Any) -> None:
        raise KeyError("on_error")

    service = make(face, start=lambda s: s.subscribe("t", lambda payload: 1 / 0) and None, error=error)
    face.do(service.start)
    receipt = face.core.emit("t").wait(BOUND)
    assert [type(outcome.error) for outcome in receipt.outcomes] == [ZeroDivisionError]
    assert service.errors == 1


@pytest.mark.parametrize("way", ["argument", "class attribute"])
def test_beyond_the_limit_it_is_degraded(face: Face, way: str) -> None:
    changes = Changes(face.core)

    class Weak(face.BaseService):  # type: ignore[misc, name-defined]
        error_limit = 2 if way == "class attribute" else None

        def _start(self) -> None:
            self.subscribe("t", lambda payload: 1 / 0)

    service = Weak(face.bus, error_limit=2 if way == "argument" else None)
    face.do(service.start)
    for number in range(1, 5):
        face.core.emit("t").wait(BOUND)
        assert service.status == ("degraded" if number > 2 else "running")
    face.core.drain(BOUND)
    assert changes.statuses == ["starting", "running", "degraded"]
    assert "error_limit of 2" in changes.items[-1]["message"]
    face.do(service.start)  # it runs, after all
    face.do(service.stop)
    assert changes.statuses == ["starting", "running", "degraded", "stopping", "stopped"]


def test_a_restart_recovers_it(face: Face) -> None:
    changes = Changes(face.core)
    calls: list[str] = []

    def start(service: Any) -> None:
        calls.append("_start")
        service.subscribe("t", (lambda payload: 1 / 0) if len(calls) == 1 else listen)

    service = make(
        face,
        start=start,
        stop=lambda s: calls.append("_stop"),
        error_limit=0,
        restart=Restart(attempts=1, backoff=0.001, jitter=0),
    )
    face.do(service.start)
    face.core.emit("t").wait(BOUND)
    changes.reached(5)
    assert changes.statuses == ["starting", "running", "degraded", "starting", "running"]
    assert calls == ["_start", "_stop", "_start"]
    assert service.errors == 0
    assert face.core.emit("t", 1).wait(BOUND).results() == [1]
    assert len(face.core.handlers("t")) == 1
    face.do(service.stop)
    assert changes.statuses[-2:] == ["stopping", "stopped"]


def test_g7_a_restart_for_which_no_thread_can_be_started_comes_later(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else hears of it: neither whoever emits, nor a worker whose call ends."""
    start_thread = primitives.start_thread
    refused: list[str] = []
    refusing = True

    def refuse(target: Any, name: str) -> Any:
        if refusing and name.endswith("-restart"):
            refused.append(name)
            no_thread()
        return start_thread(target, name)

    monkeypatch.setattr(primitives, "start_thread", refuse)
    with made_face("threads", bus) as face, Gate() as gate:
        service = make(
            face,
            start=lambda s: s.subscribe("t", lambda payload: 1 / payload) and None,
            error_limit=0,
            restart=Restart(attempts=1, backoff=0.001, jitter=0),
        )
        service.start()
        bus.on("slow", gate)
        bus.emit("slow")
        gate.entered()
        bus.emit("t", 0).wait(BOUND)
        soon(lambda: len(refused) > 1, "two tries")
        bus.emit("other")
        gate.open()
        assert bus.emit("t", 2).wait(BOUND).results() == [0.5]
        refusing = False
        soon(lambda: service.status == "running", "the restart")
        assert bus.emit("t", 1).wait(BOUND).results() == [1]


def test_a_service_that_runs_hears_of_a_bus_that_has_closed(face: Face) -> None:
    service = make(face)
    face.do(service.start)
    face.core.close(BOUND)
    with pytest.raises(BusClosedError, match="is closed"):
        face.do(service.subscribe, "t", listen)


def test_g2_a_service_subscribes_with_its_own_face_whatever_it_makes_of_its_bus(bus: EventBus) -> None:
    """Either face's service takes either bus; a subclass may keep what it was given under the same name."""

    class Kept(BaseService):
        def __init__(self, event_bus: Any) -> None:
            super().__init__(event_bus)
            self.event_bus = event_bus

    service = Kept(AsyncEventBus(bus))
    with service:
        assert type(service.subscribe("t", listen)) is Subscription


def test_a_restart_that_fails_is_tried_again_until_the_attempts_are_used_up(face: Face) -> None:
    changes = Changes(face.core)
    starts: list[int] = []

    def start(service: Any) -> None:
        starts.append(1)
        if len(starts) > 1:
            raise OSError("still down")
        service.subscribe("t", lambda payload: 1 / 0)

    service = make(face, start=start, error_limit=0, restart=Restart(attempts=2, backoff=0.001))
    face.do(service.start)
    face.core.emit("t").wait(BOUND)
    changes.reached(7)
    assert changes.statuses == ["starting", "running", "degraded", "starting", "error", "starting", "error"]
    face.core.drain(BOUND)
    assert len(starts) == 3
    assert service.status == "error"
    assert face.core.handlers("t") == ()


def test_stop_ends_a_restart_that_is_planned(face: Face) -> None:
    changes = Changes(face.core)
    service = make(
        face,
        start=lambda s: s.subscribe("t", lambda payload: 1 / 0) and None,
        error_limit=0,
        restart=Restart(backoff=0.05, jitter=0),
    )
    face.do(service.start)
    face.core.emit("t").wait(BOUND)
    face.do(service.stop)
    assert service.status == "stopped"
    with EventSynchronizer(face.core) as sync:
        sync.expect_no_event("service/status", within=0.1)
    assert changes.statuses == ["starting", "running", "degraded", "stopping", "stopped"]


def test_a_restart_goes_on_when_the_stop_before_it_fails(face: Face, caplog: pytest.LogCaptureFixture) -> None:
    """G5: there is nobody who could hear of it but the log."""
    changes = Changes(face.core)
    starts: list[int] = []

    def start(service: Any) -> None:
        starts.append(1)
        service.subscribe("t", (lambda payload: 1 / 0) if len(starts) == 1 else listen)

    stops = iter([OSError("stuck"), None])

    def stop(service: Any) -> None:
        error = next(stops)
        if error is not None:
            raise error

    service = make(face, start=start, stop=stop, error_limit=0, restart=Restart(attempts=1, backoff=0.001, jitter=0))
    face.do(service.start)
    face.core.emit("t").wait(BOUND)
    changes.reached(5)
    assert changes.statuses == ["starting", "running", "degraded", "starting", "running"]
    assert [record.getMessage() for record in caplog.records if record.name == "eventbus"][-1:] == [
        f"_stop of the service {service.name!r} raised"
    ]
    face.do(service.stop)
    assert service.status == "stopped"


def test_a_start_at_the_depth_limit_succeeds_though_nobody_can_be_told(caplog: pytest.LogCaptureFixture) -> None:
    """G19: status events have a depth as all others; the service does not depend on them."""
    from eventbus import BaseService

    with EventBus("shallow", max_depth=0) as bus:
        heard = Changes(bus)
        service = BaseService("deep", bus)
        bus.on("go", lambda payload: service.start())
        bus.emit("go").wait(BOUND).raise_for_errors()
        assert service.status == "running"
        assert heard.statuses == []
        assert {record.getMessage() for record in caplog.records if "status" in record.getMessage()} == {
            "the status of the service 'deep' could not be emitted"
        }
        service.stop()
        assert heard.statuses == ["stopping", "stopped"]


def test_a_stop_waits_for_the_status_that_another_thread_is_telling(bus: EventBus) -> None:
    """Whoever has stopped a service knows that the last change has been told, whoever tells it."""
    from eventbus import BaseService

    service = BaseService("told", bus)
    heard: list[str] = []
    with Gate() as gate, Team() as team:

        def hear(change: dict[str, Any]) -> None:
            if change["status"] == "running":
                gate(None)
            heard.append(change["status"])

        bus.on("service/status", hear, inline=True)
        team.add(service.start)
        team.go()
        gate.entered()
        team.add(lambda: (service.stop(), heard[-1:]))
        soon(lambda: service._lifecycle._readers, "the stop waiting for it")
        gate.open()
    assert heard == FULL
    assert team.results[1] == (None, ["stopped"])


def test_a_start_that_fails_while_its_handler_waits_for_its_caller_tells_why_it_failed(bus: EventBus) -> None:
    """G8: it cannot wait for that handler; its caller hears of the first error, not of that."""
    from eventbus import BaseService

    class Made(BaseService):
        def _start(self) -> None:
            assert known.wait(BOUND)
            self.subscribe("ask", lambda payload: going.wait(BOUND))
            bus.emit("ask")
            soon(lambda: bus.stats().pool.waiting, "the handler waiting")
            raise OSError("no such thing")

    known = threading.Event()
    service = Made(bus)
    bus.on("go", lambda payload: service.start())
    going = bus.emit("go")
    known.set()
    assert isinstance(going.wait(BOUND).outcomes[0].error, OSError)
    assert service.status == "error"


def test_who_shares_a_start_that_is_interrupted_is_told_and_not_interrupted(bus: EventBus) -> None:
    """G5: Ctrl-C is for the thread that gets it."""
    from eventbus import BaseService

    class Made(BaseService):
        def _start(self) -> None:
            soon(lambda: self._lifecycle.turns.waiters, "the other caller waiting")
            raise KeyboardInterrupt

    service = Made(bus)

    def told(call: Any) -> type[BaseException] | None:
        try:
            call()
        except BaseException as error:
            return type(error)
        return None

    with Team() as team:
        team.add(told, service.start)
        team.add(told, service.start)
    assert sorted(error.__name__ for error in team.results) == ["KeyboardInterrupt", "ServiceError"]


def test_what_a_start_has_emitted_may_stop_the_service_once_it_runs(bus: EventBus) -> None:
    """G8: the handler belongs to that start no longer."""
    from eventbus import BaseService

    class Made(BaseService):
        def _start(self) -> None:
            receipts.append(bus.emit("later"))

    receipts: list[Any] = []
    service = Made(bus)
    with Gate() as gate:
        bus.on("later", lambda payload: (gate(payload), service.stop()))
        service.start()
        gate.entered()
        gate.open()
        receipts[0].wait(BOUND).raise_for_errors()
    assert service.status == "stopped"


def test_a_class_of_services_can_be_looked_into(face: Face) -> None:
    """As autospec does; only an instance that was not initialised is refused."""
    from unittest.mock import create_autospec

    spec = create_autospec(face.BaseService, instance=True)
    assert spec.start is not None
    with pytest.raises(ServiceError, match="super"):
        _ = face.BaseService.__new__(face.BaseService).status


def test_delays_double_and_are_bounded() -> None:
    rule = Restart(attempts=100, backoff=0.5, jitter=0)
    assert [rule.delay(n) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]
    assert rule.delay(10_000) == 60.0
    jittered = Restart(backoff=1.0, jitter=0.5)
    assert all(1.0 <= jittered.delay(1) <= 1.5 for _ in range(100))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_stop_and_start_it(bus: EventBus) -> None:
    """G11: also if the parent was in the midst of a start, which the child has cut off."""
    from eventbus import BaseService

    with Gate() as gate:

        class Made(BaseService):
            def _start(self) -> None:
                self.subscribe("t", listen)
                if os.getpid() == parent:
                    gate(None)

        parent = os.getpid()
        service = Made(bus)
        with Team() as team:
            team.add(service.start)
            team.go()
            gate.entered()
            child = os.fork()
            if child == 0:
                try:
                    service.start()
                    good = bus.emit("t", 1).wait(BOUND).results()[-1:] == [1] and service.status == "running"
                    service.stop()
                    os._exit(0 if good and service.status == "stopped" else 1)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            gate.open()
    assert service.status == "running"


# Groups


class Order:
    """Services that note who starts and stops."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.calls: list[str] = []

    def service(self, name: str, fails: str = "") -> Any:
        calls = self.calls

        class Noted(self.face.BaseService):  # type: ignore[misc, name-defined]
            def _start(self) -> None:
                calls.append(f"+{name}")
                if fails == "start":
                    raise ValueError(name)

            def _stop(self) -> None:
                calls.append(f"-{name}")
                if fails == "stop":
                    raise OSError(name)

        return Noted(name, self.face.bus)


def test_a_group_starts_in_the_order_of_dependencies_and_stops_in_reverse(face: Face) -> None:
    order = Order(face)
    a, b, c = (order.service(name) for name in "abc")
    group = face.ServiceGroup({a: [b, "c"], b: [c], c: []})
    assert [service.name for service in group.services] == ["c", "b", "a"]
    face.do(group.start)
    face.do(group.start)
    assert order.calls == ["+c", "+b", "+a"]
    face.do(group.stop)
    face.do(group.stop)
    assert order.calls == ["+c", "+b", "+a", "-a", "-b", "-c"]
    face.do(group.start)
    assert order.calls[6:] == ["+c", "+b", "+a"]
    face.do(group.stop)


def test_a_group_is_built_by_adding(face: Face) -> None:
    order = Order(face)
    a, b, c = (order.service(name) for name in "abc")
    group = face.ServiceGroup(a, [b])
    assert group.add(c, after=a) is c
    assert group.services == (a, b, c)
    assert len(group) == 3
    with pytest.raises(ServiceError, match="already"):
        group.add(c)
    with pytest.raises(ServiceError, match="already"):
        face.ServiceGroup(a, {a: []})
    with pytest.raises(ServiceError, match="depends on 'x'"):
        group.add(order.service("d"), after=["x"])
    with pytest.raises(OptionTypeError, match="its own face"):
        group.add("b")
    with pytest.raises(ServiceError, match=r"cycle: .*'e'"):
        e, f = order.service("e"), order.service("f")
        face.ServiceGroup({e: [f], f: [e]})
    assert group.services == (a, b, c)
    face.do(face.ServiceGroup().start)
    face.do(face.ServiceGroup().stop)
    assert repr(group) == "<ServiceGroup: a initializing, b initializing, c initializing>"
    assert repr(face.ServiceGroup()) == "<ServiceGroup: empty>"


def test_a_half_done_start_is_undone(face: Face) -> None:
    """What ran before the call goes on."""
    order = Order(face)
    a, b, c, d = order.service("a"), order.service("b"), order.service("c", "start"), order.service("d")
    group = face.ServiceGroup(a, b, c, d)
    face.do(a.start)
    with pytest.raises(ValueError, match="c"):
        face.do(group.start)
    assert order.calls == ["+a", "+b", "+c", "-b"]
    assert [service.status.value for service in (a, b, c, d)] == ["running", "stopped", "error", "initializing"]
    face.do(a.stop)


def test_a_failed_stop_keeps_the_others_from_nothing(face: Face) -> None:
    order = Order(face)
    services = [order.service("a"), order.service("b", "stop"), order.service("c", "stop")]
    group = face.ServiceGroup(services)
    face.do(group.start)
    with pytest.raises(ExceptionGroup) as caught:
        face.do(group.stop)
    assert [str(error) for error in caught.value.exceptions] == ["c", "b"]
    assert order.calls[3:] == ["-c", "-b", "-a"]
    single = face.ServiceGroup(order.service("d", "stop"))
    face.do(single.start)
    with pytest.raises(OSError, match="d"):
        face.do(single.stop)


def test_an_undoing_that_fails_is_noted(face: Face) -> None:
    order = Order(face)
    group = face.ServiceGroup(order.service("a", "stop"), order.service("b", "start"))
    with pytest.raises(ValueError, match="b") as caught:
        face.do(group.start)
    assert any("'a' failed to stop" in note for note in caught.value.__notes__)


def test_a_group_is_safe_from_several_callers(face: Face) -> None:
    order = Order(face)
    group = face.ServiceGroup(order.service("a"), order.service("b"))
    for call in (group.start, group.stop):
        with Team() as team:
            for _ in range(4):
                team.add(face.do, call)
    assert order.calls == ["+a", "+b", "-b", "-a"]
