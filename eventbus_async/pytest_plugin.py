"""The pytest plugin: fixtures for both faces, and a runner for ``@pytest.mark.asyncio`` tests.

It loads, and the package around it, in every pytest run of everyone who has installed them, so it imports what it needs
when a test needs it. The runner is for suites without pytest-asyncio: it gives each test a loop of its own, and knows
neither async fixtures nor options of the marker. Where pytest-asyncio is there, or another plugin takes a test, it
stands aside. Switch all of it off with ``-p no:eventbus``.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import eventbus
    import eventbus_async

__all__ = ["async_event_bus", "async_event_sync", "event_bus", "event_sync"]

# What a test has not waited for need not be waited for long at its end: a loop that has stopped runs nothing more.
_CLOSE_TIMEOUT = 1.0


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "asyncio: run the async test in an event loop of its own")


# Not tryfirst: other plugins' hooks for async tests come before this one, and pytest's own, which fails them, after.
@pytest.hookimpl
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    marker = pyfuncitem.get_closest_marker("asyncio")
    if marker is None or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    if pyfuncitem.config.pluginmanager.hasplugin("asyncio"):
        return None
    if marker.kwargs.get("loop_scope", "function") != "function":
        pytest.fail("loop_scope needs pytest-asyncio: without it each test has a loop of its own", pytrace=False)

    import asyncio

    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner() as runner:
        runner.run(pyfuncitem.obj(**arguments))
    return True


@pytest.fixture
def event_bus() -> Iterator[eventbus.EventBus]:
    """A fresh ``EventBus``, closed after the test."""
    from eventbus import EventBus

    bus = EventBus()
    yield bus
    bus.close(timeout=_CLOSE_TIMEOUT)


@pytest.fixture
def event_sync(event_bus: eventbus.EventBus) -> Iterator[eventbus.EventSynchronizer]:
    """An ``EventSynchronizer`` that records ``event_bus`` from the test's start on; its waits block."""
    from eventbus import EventSynchronizer

    with EventSynchronizer(event_bus) as synchronizer:
        yield synchronizer


# Plain generators, not async ones: they work without a loop, and under any async plugin or none.
@pytest.fixture
def async_event_bus() -> Iterator[eventbus_async.AsyncEventBus]:
    """A fresh ``AsyncEventBus``, closed after the test."""
    from eventbus_async import AsyncEventBus

    bus = AsyncEventBus()
    yield bus
    bus.bus.close(timeout=_CLOSE_TIMEOUT)


@pytest.fixture
def async_event_sync(async_event_bus: eventbus_async.AsyncEventBus) -> Iterator[eventbus_async.EventSynchronizer]:
    """An ``EventSynchronizer`` that records ``async_event_bus`` from the test's start on; its waits are awaited."""
    from eventbus_async import EventSynchronizer

    synchronizer = EventSynchronizer(async_event_bus)
    yield synchronizer
    _ = synchronizer.cleanup()  # acts at the call; there may be no loop left to await it in
