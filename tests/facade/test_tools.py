"""The facade's EventSynchronizer, BaseService and ServiceGroup: what only a loop can show."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from collections.abc import Coroutine
from typing import Any

import pytest
from kit import BOUND, Gate, settled
from loops import AsyncGate, others, passes, run, until

from eventbus import (
    DeadlockError,
    Event,
    EventBus,
    EventBusError,
    EventTimeoutError,
    ServiceError,
    UnexpectedEventError,
)
from eventbus_async import (
    AsyncEventBus,
    BaseService,
    EventSynchronizer,
    Restart,
    ServiceGroup,
    ServiceStatus,
    ServiceStatusPayload,
    handles,
)

FULL = ["starting", "running", "stopping", "stopped"]


def statuses(sync: EventSynchronizer, service: str | None = None) -> list[str]:
    """The changes that were recorded."""
    payloads = [event.payload for event in sync.get_events("service/status")]
    return [payload.status.value for payload in payloads if service in (None, payload.service)]


# EventSynchronizer


def test_cancelling_a_wait_ends_it_and_it_has_taken_nothing() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            for make in (
                lambda: sync.wait_for_event("a", count=2),
                lambda: sync.wait_for_events(["a", "b"]),
                lambda: sync.expect_no_event("b"),
            ):
                task = asyncio.create_task(make())
                await until(lambda: sync._box.readers)
                bus.emit("a", 1)
                await passes()
                assert not task.done()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert sync._box.readers == sync._box.waits == []
            assert await sync.wait_for_event("a", count=3) == [1, 1, 1]

    run(main())


@pytest.mark.parametrize("delay", range(6))
def test_a_wait_that_is_cancelled_as_its_event_comes_loses_nothing(delay: int) -> None:
    """At whatever pass of the loop: either it has returned the event, or another wait gets it."""

    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            task = asyncio.create_task(sync.wait_for_event("a"))
            await until(lambda: sync._box.readers)
            bus.emit("a", 1)
            await passes(delay)
            task.cancel()
            try:
                got = await task
            except asyncio.CancelledError:
                got = await sync.wait_for_event("a", timeout=0)
            assert got == 1
            with pytest.raises(EventTimeoutError):
                await sync.wait_for_event("a", timeout=0)

    run(main())


def test_a_wait_that_is_cancelled_while_it_lingers_gives_its_event_back() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            gate = AsyncGate()
            bus.on("a", gate)
            bus.emit("a", 1)
            task = asyncio.create_task(sync.wait_for_event("a", grace_period=60))
            other = asyncio.create_task(sync.wait_for_event("a"))
            await until(lambda: sync._box.entries[0].taken and gate.inside)
            await passes()
            assert not task.done()
            task.cancel()
            assert await other == 1  # it had been waiting for one all the time
            gate.open()

    run(main())


def test_the_grace_period_ends_once_a_handler_on_the_same_loop_has_ended() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus, grace_period_ms=60_000) as sync:
            ended: list[int] = []

            async def handler(payload: int) -> None:
                await passes()
                ended.append(payload)

            bus.on("a", handler)
            bus.emit("a", 1)
            assert await sync.wait_for_event("a") == 1
            assert ended == [1]

    run(main())


def test_waits_work_with_the_tools_of_asyncio() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sync.wait_for_event("a"), 0.01)
            waits = asyncio.gather(sync.wait_for_event("a"), sync.wait_for_event("b"), sync.wait_for_event("a"))
            await passes()
            bus.emit("b", "b")
            bus.emit("a", 1)
            bus.emit("a", 2)
            first, b, second = await waits
            assert (b, {first, second}) == ("b", {1, 2})
            async with asyncio.TaskGroup() as group:
                task = group.create_task(sync.wait_for_event("c"))
                bus.emit("c", 3)
            assert task.result() == 3
            wait = sync.wait_for_event("d")
            assert isinstance(wait, Coroutine)
            bus.emit("d", 4)
            assert [await wait, await wait] == [4, 4]

    run(main())


def test_a_wait_is_for_one_at_a_time_and_over_once_it_was_ended() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            wait = sync.wait_for_event("a")
            task = asyncio.ensure_future(wait)
            await passes()
            with pytest.raises(EventBusError, match="awaited already"):
                await asyncio.wait_for(wait, BOUND)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with pytest.raises(EventBusError, match="ended"):
                await wait

    run(main())


def test_a_wait_that_nobody_awaits_takes_nothing_and_warns_of_nothing() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            bus.emit("a", 1)
            sync.wait_for_event("a")
            sync.wait_for_events(["a"])
            sync.expect_no_event("a")
            sync.cleanup
            gc.collect()
            await passes()
            assert await sync.wait_for_event("a", timeout=0) == 1
            assert sync._box.waits == []
            assert others() == set()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main())


def test_the_time_of_a_wait_runs_from_its_call() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            wait = sync.wait_for_event("a", timeout=0.3)
            begun = time.monotonic()
            await asyncio.sleep(0.3)
            with pytest.raises(EventTimeoutError):
                await wait
            assert time.monotonic() - begun < 0.55
            bus.emit("b", 1)
            wait = sync.wait_for_event("b", timeout=0.01)
            await asyncio.sleep(0.02)
            assert await wait == 1  # it is there already

    run(main())


def test_what_came_before_the_first_look_counts_however_late_that_is() -> None:
    """The loop may have been busy, or the await put off."""

    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            wait = sync.wait_for_event("a", timeout=0)
            bus.emit("a", 1)
            assert await wait == 1
            none = sync.expect_no_event("a", within=0)
            bus.emit("a", 2)
            with pytest.raises(UnexpectedEventError):
                await none

    run(main())


def test_a_wait_finds_the_handlers_their_home_loop() -> None:
    """G13: the first loop in which anything of this facade is awaited."""
    bus = AsyncEventBus()
    sync = EventSynchronizer(bus)

    @bus.on("a")
    async def forward(payload: int) -> None:
        await bus.emit("b", payload + 1)

    bus.emit("a", 1)

    async def main() -> None:
        assert await sync.wait_for_event("b") == 2
        await sync.cleanup()
        await bus.close()

    run(main())


def test_the_core_s_synchronizer_does_not_block_a_loop() -> None:
    import eventbus

    async def main() -> None:
        async with AsyncEventBus() as bus:
            with eventbus.EventSynchronizer(bus) as sync:
                bus.emit("a", 1)
                assert sync.wait_for_event("a") == 1  # nothing to wait for
                with pytest.raises(DeadlockError, match="eventbus_async"):
                    sync.wait_for_event("a")
                gate = AsyncGate()
                bus.on("b", gate)
                bus.emit("b", 2)
                with pytest.raises(DeadlockError):
                    sync.wait_for_event("b", grace_period=1)
                assert sync.wait_for_event("b", timeout=0) == 2  # it was given back
                gate.open()

    run(main())


def test_expect_no_event_is_an_assertion() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            await sync.expect_no_event("a", within=0.01)
            task = asyncio.create_task(sync.expect_no_event("a"))
            await until(lambda: sync._box.readers)
            bus.emit("a", 1)
            with pytest.raises(UnexpectedEventError):
                await task

    run(main())


# BaseService


class Echo(BaseService):
    """Its hooks are coroutine functions, and note that they ran."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[str] = []
        self.gate: AsyncGate | None = None

    async def _start(self) -> None:
        self.calls.append("_start")
        await self.subscribe("echo", self.echo)
        if self.gate is not None:
            await self.gate("_start")
        self.calls.append("started")

    async def _stop(self) -> None:
        await asyncio.sleep(0)
        self.calls.append("_stop")

    async def echo(self, payload: Any) -> Any:
        await asyncio.sleep(0)
        return payload


def test_a_service_with_coroutine_hooks_and_handlers() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            service = Echo(bus)
            await service.start()
            assert (await bus.emit("echo", 1)).results() == [1]
            await service.stop()
            assert service.calls == ["_start", "started", "_stop"]
            assert statuses(sync, "echo") == FULL
            assert bus.handlers("echo") == ()
            assert others() == set()
            await sync.cleanup()
            settled(bus)

    run(main())


def test_start_and_stop_act_at_the_call_and_may_be_dropped() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = Echo(bus)
            service.start()
            assert service.status is ServiceStatus.STARTING
            gc.collect()
            await until(lambda: service.status is ServiceStatus.RUNNING)
            service.stop()
            assert service.status is ServiceStatus.STOPPING
            gc.collect()
            await until(lambda: service.status is ServiceStatus.STOPPED)
            assert service.calls == ["_start", "started", "_stop"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main())


def test_cancelling_an_await_of_start_cancels_that_wait_alone() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = Echo(bus)
            service.gate = AsyncGate()
            first = asyncio.create_task(service.start())
            second = asyncio.create_task(service.start())
            await until(lambda: service.gate.inside)  # type: ignore[union-attr]
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(service.start(), 0.01)
            service.gate.open()
            await second
            assert service.status is ServiceStatus.RUNNING
            assert service.calls == ["_start", "started"]
            await service.stop()

    run(main())


def test_what_start_returns_can_be_awaited_by_many_and_again() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            class Bad(BaseService):
                async def _start(self) -> None:
                    await asyncio.sleep(0)
                    raise ValueError("no")

            service = Bad(bus)
            start = service.start()
            for _ in range(2):
                errors = await asyncio.gather(start, start, return_exceptions=True)
                assert [str(error) for error in errors] == ["no", "no"]
            assert service.status is ServiceStatus.ERROR
            await service.stop()

    run(main())


def test_a_service_is_started_where_no_loop_runs_yet() -> None:
    bus = AsyncEventBus()
    service = Echo(bus)
    for _ in range(2):
        asyncio.run(service.start())
        assert service.status is ServiceStatus.RUNNING
        asyncio.run(service.stop())
        assert service.status is ServiceStatus.STOPPED
    assert service.calls == ["_start", "started", "_stop"] * 2
    asyncio.run(bus.close())


def test_stop_acts_at_the_call_in_any_thread() -> None:
    """On the loop where the service was started."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = Echo(bus)
            group = ServiceGroup(service)
            for target in (service, group):
                await service.start()
                await asyncio.to_thread(target.stop)
                await until(lambda: service.status is ServiceStatus.STOPPED)
                assert service.calls == ["_start", "started", "_stop"]
                service.calls.clear()

    run(main())


def test_plain_hooks_run_on_the_loop() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            loops: list[Any] = []

            class Plain(BaseService):
                def _start(self) -> Any:
                    loops.append(asyncio.get_running_loop())
                    return self.subscribe("t", loops.append)  # what it returns is awaited if it can be

                def _stop(self) -> None:
                    loops.append(asyncio.get_running_loop())

            async with Plain(bus):
                pass
            assert loops == [asyncio.get_running_loop()] * 2

    run(main())


def test_its_own_coroutine_handler_may_stop_it() -> None:
    """G2, G8: the flow does not wait for the call that waits for it."""

    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:

            class Once(BaseService):
                async def _start(self) -> None:
                    await self.subscribe("go", self.go)
                    await self.subscribe("also", self.also)

                async def go(self, payload: Any) -> None:
                    await self.stop()

                async def also(self, payload: Any) -> None:
                    await group.stop()

            for topic in ("go", "also"):
                service = Once(bus)
                group = ServiceGroup(service)
                await service.start()
                begun = time.monotonic()
                (await bus.emit(topic)).raise_for_errors()
                assert time.monotonic() - begun < 0.9
                assert service.status is ServiceStatus.STOPPED
            assert statuses(sync, "once") == FULL * 2

    run(main())


def test_a_handler_may_drop_a_start_and_await_a_stop() -> None:
    """G8: no cycle, for the start does not run in the handler's task."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = Echo(bus)

            async def both(payload: Any) -> None:
                service.start()
                await service.stop()

            bus.on("both", both)
            (await bus.emit("both")).raise_for_errors()
            assert service.calls == ["_start", "started", "_stop"]

    run(main())


def test_stop_waits_for_its_coroutine_handlers() -> None:
    """G2."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            gate = AsyncGate()

            class Slow(BaseService):
                async def _start(self) -> None:
                    await self.subscribe("t", gate)

            service = Slow(bus)
            await service.start()
            bus.emit("t", 1)
            await until(lambda: gate.inside)
            stop = asyncio.create_task(service.stop())
            await passes()
            assert service.status is ServiceStatus.STOPPING
            gate.open()
            await stop
            assert gate.left == 1

    run(main())


def test_inside_a_handler_of_status_events_start_and_stop_return_at_once() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            service, other = BaseService("made", bus), BaseService("other", bus)
            took: list[float] = []

            async def react(change: ServiceStatusPayload) -> None:
                begun = time.monotonic()
                if change.status is ServiceStatus.RUNNING:
                    await (service.start if change.service == "other" else service.stop)()
                    took.append(time.monotonic() - begun)

            bus.on("service/status", react)
            await other.start()
            await until(lambda: statuses(sync, "made") == FULL)
            await bus.drain()
            assert max(took) < 0.5
            assert len(took) == 2

    run(main())


def test_behind_the_caller_s_own_call_they_return_at_once() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = BaseService("made", bus)
            took: list[float] = []

            async def react(event: Event) -> None:
                if event.topic == "go":
                    begun = time.monotonic()
                    await service.start()
                    took.append(time.monotonic() - begun)

            bus.on("**", react)
            (await bus.emit("go")).raise_for_errors()
            assert service.status is ServiceStatus.RUNNING
            assert took[0] < 0.5

    run(main())


def test_stops_that_wait_for_each_other_s_handlers_are_a_deadlock_error() -> None:
    """G8: the cycle goes by way of two flows."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            services: dict[str, Any] = {}
            both: list[str] = []

            class Made(BaseService):
                async def _start(self) -> None:
                    await self.subscribe(self.name, self.handle)

                async def handle(self, other: str) -> None:
                    both.append(other)
                    await until(lambda: len(both) == 2)
                    await services[other].stop()

            services.update(a=Made("a", bus), b=Made("b", bus))
            await ServiceGroup(services.values()).start()
            receipts = [bus.emit("a", "b"), bus.emit("b", "a")]
            errors = [(await receipt).outcomes[0].error for receipt in receipts]
            assert sum(isinstance(error, DeadlockError) for error in errors) == 1
            await until(lambda: all(service.status is ServiceStatus.STOPPED for service in services.values()))

    run(main())


@pytest.mark.parametrize("coroutine", [True, False])
def test_on_error_may_be_a_coroutine_function(coroutine: bool) -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:
            problems: list[Any] = []

            class Watched(BaseService):
                async def _start(self) -> None:
                    async def handler(payload: Any) -> None:
                        raise ValueError("coroutine")

                    def plain(payload: Any) -> None:
                        raise ValueError("plain")

                    await self.subscribe("t", handler if coroutine else plain)

                async def _on_error(self, error: Any) -> None:
                    await asyncio.sleep(0)
                    problems.append((str(error.error), asyncio.get_running_loop()))

            service = Watched(bus, error_limit=0)
            await service.start()
            await bus.emit("t")
            await until(lambda: problems)
            assert problems == [("coroutine" if coroutine else "plain", asyncio.get_running_loop())]
            assert service.status is ServiceStatus.DEGRADED
            await service.stop()
            assert others() == set()

    run(main())


def test_g5_what_a_coroutine_on_error_raises_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus:

            class Watched(BaseService):
                async def _start(self) -> None:
                    await self.subscribe("t", lambda payload: 1 / 0)

                async def _on_error(self, error: Any) -> None:
                    raise OSError("of the hook")

            async with Watched(bus, error_limit=5) as service:
                await bus.emit("t")
                await until(lambda: "_on_error of the service 'watched' raised" in caplog.text)
                assert service.status is ServiceStatus.RUNNING
            assert others() == set()

    run(main())


def test_a_restart_runs_on_the_loop_of_the_start() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            loops: list[Any] = []

            class Weak(BaseService):
                restart = Restart(attempts=1, backoff=0.001)
                error_limit = 0

                async def _start(self) -> None:
                    loops.append(asyncio.get_running_loop())

                @handles("t")
                async def handle(self, payload: Any) -> Any:
                    return 1 / payload

            service = Weak(bus)
            await service.start()
            await bus.emit("t", 0)
            await until(lambda: statuses(sync) == ["starting", "running", "degraded", "starting", "running"])
            assert loops == [asyncio.get_running_loop()] * 2
            assert (await bus.emit("t", 1)).results() == [1.0]
            await service.stop()

    run(main())


def test_a_service_on_a_core_bus_ends_only_what_is_its_own() -> None:
    async def main() -> None:
        with EventBus() as core:
            core.on("t", print)
            service = Echo("on-core", core)
            assert isinstance(service.event_bus, AsyncEventBus)
            assert service.event_bus.bus is core
            async with service:
                assert len(core.subscriptions()) == 2
            assert core.handlers("t") == (print,)
            assert len(core.subscriptions()) == 1
            await asyncio.to_thread(core.close, BOUND)

    run(main())


def test_a_start_that_its_loop_cancels_is_an_error_and_leaves_nothing() -> None:
    async def main() -> None:
        bus = AsyncEventBus()
        service = Echo(bus)
        service.gate = AsyncGate()
        start = service.start()
        waiter = asyncio.create_task(start)
        await until(lambda: service.gate.inside)  # type: ignore[union-attr]
        for task in others() - {waiter}:
            if "start of the service" in task.get_name():
                task.cancel()
        with pytest.raises(ServiceError, match="cancelled"):
            await waiter
        assert service.status is ServiceStatus.ERROR
        assert bus.handlers("echo") == ()
        await bus.close()

    run(main())


@pytest.mark.parametrize("what", ["start", "stop"])
def test_what_is_left_behind_in_a_closed_loop_is_abandoned(what: str) -> None:
    """G13: nothing waits for what a loop that is gone would have to do."""
    bus = AsyncEventBus()
    service = Echo(bus)
    gate = AsyncGate()

    async def begin() -> None:
        if what == "start":
            service.gate = gate
            service.start()
            await until(lambda: gate.inside)
        else:
            await service.start()
            service.subscribe("t", gate)
            bus.emit("t")
            await until(lambda: gate.inside)
            service.stop()
            await passes()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    for task in service._flows:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()

    async def again() -> None:
        service.gate = None
        await service.start()
        assert (await bus.emit("echo", 1)).results() == [1]
        assert len(bus.handlers("echo")) == 1
        await service.stop()
        await bus.close()

    run(again())
    assert service.status is ServiceStatus.STOPPED


def test_a_restart_begins_in_a_task_of_its_own() -> None:
    """G14: also where it is a handler's task that comes to do what a step has left."""

    async def main() -> None:
        async with AsyncEventBus() as bus:
            service = BaseService(bus)
            await service.start()
            tasks: list[Any] = []

            def restart() -> Any:
                tasks.append(asyncio.current_task())
                yield from ()

            service._launch(restart)
            assert tasks == []
            await until(lambda: tasks)
            assert tasks != [asyncio.current_task()]
            await service.stop()

    run(main())


def test_the_core_s_service_does_not_block_a_loop() -> None:
    import eventbus

    async def main() -> None:
        async with AsyncEventBus() as bus:
            with Gate() as gate:

                class Plain(eventbus.BaseService):
                    def _start(self) -> None:
                        self.subscribe("t", gate)

                heard: list[Any] = []

                async def hear(change: Any) -> None:
                    heard.append(change["status"])

                bus.on("service/status", hear)
                service = Plain(bus)
                begun = time.monotonic()
                service.start()  # the handler of its status events needs this very loop
                assert time.monotonic() - begun < 0.9
                bus.emit("t", 1)
                await asyncio.to_thread(gate.entered)
                with pytest.raises(DeadlockError, match="would block the event loop"):
                    service.stop()
                assert service.status == "running"
                gate.open()
                await bus.drain()
                service.stop()
                assert service.status == "stopped"
            await bus.drain()
            assert heard == FULL

    run(main())


def test_a_group_of_services_with_coroutine_hooks() -> None:
    async def main() -> None:
        async with AsyncEventBus() as bus, EventSynchronizer(bus) as sync:
            a, b = Echo("a", bus), Echo("b", bus)
            async with ServiceGroup({a: [b], b: []}) as group:
                assert [service.name for service in group.services] == ["b", "a"]
            running = [event.payload for event in sync.get_events("service/status")]
            assert [(change.service, change.status.value) for change in running] == [
                *(("b", status) for status in FULL[:2]),
                *(("a", status) for status in FULL[:2]),
                *(("a", status) for status in FULL[2:]),
                *(("b", status) for status in FULL[2:]),
            ]
            await ServiceGroup().start()
            ServiceGroup().stop()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main())
