"""The document that the project was created from: each of its code blocks is a test here, call by call.

Its import paths (``src.bus…``, ``src.services…``) are ``eventbus_async``; nothing else is different. The tests are
async functions under ``@pytest.mark.asyncio``, as the document's own test is: where pytest-asyncio is absent, our
pytest plugin runs them.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from kit import BOUND, settled
from pydantic import BaseModel

from eventbus_async import BaseService, EventSynchronizer, EventTimeoutError, ServiceStatus, SyncEventBus

# "Define event payload", and the service of "Example Usage": it has no __init__ of its own.


class MyEventPayload(BaseModel):
    message: str
    value: int


class MyService(BaseService):
    async def _start(self) -> None:
        await self.subscribe("my/topic", self._handle_event)

    async def _handle_event(self, payload: dict[str, Any]) -> None:
        # Handle event
        print(f"Received: {payload['message']}")


# Components: SyncEventBus


@pytest.mark.asyncio
async def test_the_block_of_sync_event_bus() -> None:
    """G1: registered at the return of ``sync_on``; awaiting the emit waits for the handler."""
    got: list[Any] = []

    async def handler(payload: Any) -> None:
        await asyncio.sleep(0)
        got.append(payload)

    # Create event bus
    event_bus = SyncEventBus()

    # Subscribe to events (guaranteed completion)
    await event_bus.sync_on("topic", handler)

    # Emit events
    await event_bus.emit("topic", {"a": 1})

    assert got == [{"a": 1}]
    await event_bus.close()
    settled(event_bus)


@pytest.mark.asyncio
async def test_sync_event_bus_emits_without_a_payload() -> None:
    """G15: ``emit(topic)`` is legal, and a handler that declares nothing gets an empty dict."""
    got: list[Any] = []
    event_bus = SyncEventBus()
    await event_bus.sync_on("topic", got.append)
    await event_bus.emit("topic")
    assert got == [{}]
    await event_bus.close()


@pytest.mark.asyncio
async def test_sync_event_bus_supports_sync_and_async_handlers() -> None:
    """Key feature; plain functions run elsewhere than on the loop, coroutine functions on it."""
    threads: dict[str, int] = {}
    event_bus = SyncEventBus()

    def plain(_: Any) -> None:
        threads["plain"] = threading.get_ident()

    async def coroutine(_: Any) -> None:
        threads["coroutine"] = threading.get_ident()

    await event_bus.sync_on("topic", plain)
    await event_bus.sync_on("topic", coroutine)
    receipt = await event_bus.emit("topic", 1)
    assert [outcome.status for outcome in receipt.outcomes] == ["delivered", "delivered"]
    assert threads["coroutine"] == threading.get_ident() != threads["plain"]
    await event_bus.close()


@pytest.mark.asyncio
async def test_sync_event_bus_converts_pydantic_payloads() -> None:
    """Key feature (G15): a dict for a handler that wants one, the model for one that declares it, both ways."""
    dicts: list[dict[str, Any]] = []
    models: list[MyEventPayload] = []
    event_bus = SyncEventBus()

    async def wants_dict(payload: dict[str, Any]) -> None:
        dicts.append(payload)

    async def wants_model(payload: MyEventPayload) -> None:
        models.append(payload)

    await event_bus.sync_on("topic", wants_dict)
    await event_bus.sync_on("topic", wants_model)
    payload = MyEventPayload(message="hello", value=42)
    await event_bus.emit("topic", payload)
    await event_bus.emit("topic", {"message": "again", "value": 1})
    assert dicts == [{"message": "hello", "value": 42}, {"message": "again", "value": 1}]
    assert models[0] is payload
    assert models[1] == MyEventPayload(message="again", value=1)
    await event_bus.close()


@pytest.mark.asyncio
async def test_sync_event_bus_is_thread_safe() -> None:
    """Key feature (G3): emitted by threads, handled on the loop, each exactly once and in each thread's order (G4)."""
    got: list[tuple[int, int]] = []
    event_bus = SyncEventBus()

    async def handler(payload: tuple[int, int]) -> None:
        got.append(payload)

    await event_bus.sync_on("topic", handler)

    def emit(thread: int) -> None:
        for number in range(200):
            event_bus.bus.emit("topic", (thread, number))

    await asyncio.gather(*(asyncio.to_thread(emit, thread) for thread in range(4)))
    await event_bus.drain(BOUND)
    assert len(got) == 800
    for thread in range(4):
        assert [number for by, number in got if by == thread] == list(range(200))
    await event_bus.close()
    settled(event_bus)


# Components: EventSynchronizer


@pytest.mark.asyncio
async def test_the_block_of_event_synchronizer() -> None:
    event_bus = SyncEventBus()

    # Create synchronizer
    sync = EventSynchronizer(event_bus)

    # Wait for single event
    waiting = asyncio.create_task(sync.wait_for_event("topic"))
    await asyncio.sleep(0)
    await event_bus.emit("topic", {"n": 0})
    result = await waiting
    assert result == {"n": 0}

    # Wait for multiple events
    await event_bus.emit("topic2", 2)
    await event_bus.emit("topic1", 1)
    results = await sync.wait_for_events(["topic1", "topic2"])
    assert list(results.items()) == [("topic1", 1), ("topic2", 2)]

    # Wait for ordered sequence
    for number, topic in enumerate(["first", "other", "second", "third"]):
        await event_bus.emit(topic, number)
    results = await sync.wait_for_events(["first", "second", "third"], in_order=True)
    assert list(results.items()) == [("first", 0), ("second", 2), ("third", 3)]

    await sync.cleanup()
    await event_bus.close()
    settled(event_bus)


@pytest.mark.asyncio
async def test_an_order_that_did_not_happen_is_not_found() -> None:
    """Feature: support for ordered event sequences."""
    event_bus = SyncEventBus()
    sync = EventSynchronizer(event_bus)
    await event_bus.emit("second", 2)
    await event_bus.emit("first", 1)
    with pytest.raises(EventTimeoutError):
        await sync.wait_for_events(["first", "second"], in_order=True, timeout=0)
    assert dict(await sync.wait_for_events(["first", "second"])) == {"first": 1, "second": 2}
    await sync.cleanup()
    await event_bus.close()


@pytest.mark.asyncio
async def test_synchronizers_do_not_take_each_others_events() -> None:
    """Feature: per-subscription context tracking."""
    event_bus = SyncEventBus()
    one, other = EventSynchronizer(event_bus), EventSynchronizer(event_bus)
    await event_bus.emit("topic", 1)
    assert await one.wait_for_event("topic", timeout=BOUND) == 1
    assert await other.wait_for_event("topic", timeout=BOUND) == 1
    with pytest.raises(TimeoutError):
        await one.wait_for_event("topic", timeout=0)  # one event answers one wait
    await one.cleanup()
    await other.cleanup()
    await event_bus.close()


@pytest.mark.asyncio
async def test_a_grace_period_lets_the_other_handlers_settle() -> None:
    """Feature: configurable grace periods; it ends as soon as the event's handlers have settled."""
    event_bus = SyncEventBus()
    done: list[str] = []
    seen = asyncio.Event()

    async def slow(_: Any) -> None:
        await seen.wait()
        done.append("slow")

    await event_bus.sync_on("topic", slow)
    async with EventSynchronizer(event_bus, grace_period_ms=1000 * BOUND) as sync:
        event_bus.emit("topic", 1)
        waiting = asyncio.create_task(sync.wait_for_event("topic"))
        while slow_has_not_begun(event_bus):
            await asyncio.sleep(0)
        assert not waiting.done()
        seen.set()
        async with asyncio.timeout(BOUND / 2):
            assert await waiting == 1
        assert done == ["slow"]
    await event_bus.close()


def slow_has_not_begun(event_bus: SyncEventBus) -> bool:
    return event_bus.stats().totals.running == 0


@pytest.mark.asyncio
async def test_a_synchronizer_leaves_nothing_behind() -> None:
    """Feature: clean resource management (G18)."""
    event_bus = SyncEventBus()
    sync = EventSynchronizer(event_bus)
    waiting = asyncio.create_task(sync.wait_for_event("never"))
    await asyncio.sleep(0)
    await sync.cleanup()
    with pytest.raises(BaseException) as ended:
        await asyncio.wait_for(waiting, BOUND)
    assert not isinstance(ended.value, TimeoutError)
    assert event_bus.subscriptions() == ()
    await event_bus.close()


# Components: BaseService


@pytest.mark.asyncio
async def test_the_block_of_base_service() -> None:
    got: list[Any] = []

    class MyService(BaseService):
        def __init__(self, event_bus: SyncEventBus) -> None:
            super().__init__("my_service", event_bus)

        async def _start(self) -> None:
            # Subscribe to events
            await self.subscribe("topic", self._handle_event)

        async def _handle_event(self, payload: Any) -> None:
            # Handle event
            got.append(payload)

    event_bus = SyncEventBus()
    service = MyService(event_bus)
    assert service.name == "my_service"
    await service.start()
    await event_bus.emit("topic", 1)
    await service.stop()
    await event_bus.emit("topic", 2)
    assert got == [1]
    assert event_bus.handlers("topic") == ()  # automatic subscription cleanup
    await event_bus.close()
    settled(event_bus)


@pytest.mark.asyncio
async def test_a_service_tracks_and_reports_its_status() -> None:
    """Feature: a start and a stop make exactly these four events."""
    seen: list[str] = []
    event_bus = SyncEventBus()
    await event_bus.sync_on("service/status", lambda payload: seen.append(payload["status"]))
    service = MyService(event_bus)
    assert service.status is ServiceStatus.INITIALIZING
    await service.start()
    assert service.status is ServiceStatus.RUNNING
    await service.stop()
    assert service.status is ServiceStatus.STOPPED
    wanted = (ServiceStatus.STARTING, ServiceStatus.RUNNING, ServiceStatus.STOPPING, ServiceStatus.STOPPED)
    assert [ServiceStatus(each) for each in seen] == list(wanted)
    await event_bus.close()


@pytest.mark.asyncio
async def test_a_service_that_cannot_start_cleans_up_and_can_recover() -> None:
    """Features: error handling and recovery, clean up in error cases."""
    broken = True

    class Flaky(BaseService):
        async def _start(self) -> None:
            await self.subscribe("topic", lambda _: None)
            if broken:
                raise RuntimeError("no such device")

    event_bus = SyncEventBus()
    service = Flaky(event_bus)
    with pytest.raises(RuntimeError, match="no such device"):
        await service.start()
    assert service.status is ServiceStatus.ERROR
    assert event_bus.handlers("topic") == ()
    broken = False
    await service.start()
    assert service.status is ServiceStatus.RUNNING
    assert len(event_bus.handlers("topic")) == 1
    await service.stop()
    await event_bus.close()


# Example Usage


@pytest.mark.asyncio
async def test_the_example_usage(capsys: pytest.CaptureFixture[str]) -> None:
    # Set up system
    event_bus = SyncEventBus()
    service = MyService(event_bus)

    # Start service
    await service.start()

    # Emit event
    await event_bus.emit("my/topic", MyEventPayload(message="hello", value=42))

    # Clean up
    await service.stop()

    assert capsys.readouterr().out == "Received: hello\n"
    assert service.name == "my_service"
    await event_bus.close()
    settled(event_bus)


# Testing Example


@pytest.mark.asyncio
async def test_my_service(capsys: pytest.CaptureFixture[str]) -> None:
    """It emits first and waits afterwards."""
    # Set up
    event_bus = SyncEventBus()
    sync = EventSynchronizer(event_bus)
    service = MyService(event_bus)
    await service.start()

    # Emit event
    payload = MyEventPayload(message="test", value=42)
    await event_bus.emit("my/topic", payload)

    # Wait for and verify event
    result = await sync.wait_for_event("my/topic")
    assert result["message"] == "test"
    assert result["value"] == 42

    # Clean up
    await service.stop()


# Best Practices


@pytest.mark.asyncio
async def test_best_practice_store_subscriptions_for_proper_cleanup() -> None:
    """Event registration, 1 (G2)."""
    got: list[Any] = []
    event_bus = SyncEventBus()
    subscription = await event_bus.sync_on("topic", got.append)
    await event_bus.emit("topic", 1)
    await subscription.cancel()
    await event_bus.emit("topic", 2)
    assert got == [1]
    await event_bus.sync_on("topic", got.append)
    event_bus.remove_listener("topic", got.append)
    await event_bus.sync_on("topic", got.append)
    event_bus.remove_all_listeners("topic")
    await event_bus.sync_on("other", got.append)
    event_bus.remove_all_listeners()
    await event_bus.emit("topic", 3)
    await event_bus.emit("other", 3)
    assert got == [1]
    await event_bus.close()


@pytest.mark.asyncio
async def test_best_practice_set_timeouts_for_handler_completion() -> None:
    """Event emission, 2 (G7): of a handler, and of the wait for it; the latter undoes nothing."""
    event_bus = SyncEventBus()
    go = asyncio.Event()
    done: list[Any] = []

    async def never(_: Any) -> None:
        await asyncio.get_running_loop().create_future()

    async def waits(_: Any) -> None:
        await go.wait()
        done.append(1)

    await event_bus.sync_on("slow", never, timeout=0.01)
    receipt = await event_bus.emit("slow")
    assert [outcome.status for outcome in receipt.outcomes] == ["timed_out"]

    await event_bus.sync_on("waits", waits)
    emitted = event_bus.emit("waits", timeout=0.01)
    with pytest.raises(EventTimeoutError):
        await emitted
    go.set()
    await event_bus.drain(BOUND)
    assert done == [1]
    await event_bus.close()
    settled(event_bus)


@pytest.mark.asyncio
async def test_best_practice_errors_are_isolated_or_propagated_as_asked() -> None:
    """Error handling, 4 (G5)."""
    got: list[Any] = []
    event_bus = SyncEventBus()

    async def broken(_: Any) -> None:
        raise ValueError("on purpose")

    await event_bus.sync_on("topic", broken)
    await event_bus.sync_on("topic", got.append)
    receipt = await event_bus.emit("topic", 1)
    assert got == [1]
    with pytest.raises(ExceptionGroup):
        receipt.raise_for_errors()
    with pytest.raises(ValueError, match="on purpose"):
        await event_bus.emit("topic", 2, propagate_errors=True)
    assert got == [1, 2]
    await event_bus.close()


@pytest.mark.asyncio
async def test_best_practice_verify_proper_cleanup() -> None:
    """Testing, 3 (G18): after the clean-up nothing of the service is left on the bus."""
    event_bus = SyncEventBus()
    service = MyService(event_bus)
    await service.start()
    event_bus.verify_subscriptions({"my/topic": service._handle_event})
    await service.stop()
    with pytest.raises(LookupError):
        event_bus.verify_subscriptions({"my/topic": service._handle_event})
    assert event_bus.subscriptions() == ()
    gone = weakref.ref(service)
    del service
    await event_bus.drain(BOUND)
    gc.collect()
    assert gone() is None
    await event_bus.close()
