"""Fixtures of all tests."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest
from kit import BOUND, settled, soon

from eventbus import EventBus
from eventbus._engine.dispatcher import Worker

pytest_plugins = ["pytester"]

GRACE = 2.0  # seconds that a worker may need after a test to come back from its last handler


def busy_workers() -> list[str]:
    """The dispatcher threads, of whatever bus, that are somewhere else than asleep."""
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [names.get(ident, "?") for ident, frame in frames.items() if not asleep(frame)]


def asleep(frame: FrameType | None) -> bool:
    """Whether a thread's stack is not a dispatcher thread's, or is one that sleeps until there is work."""
    inner = frame
    while frame is not None:
        if frame.f_code is Worker.run.__code__:
            return inner is not None and inner.f_code.co_name == "sleep" and inner.f_back is frame
        frame = frame.f_back
    return True


@pytest.fixture(autouse=True)
def no_busy_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves a worker in a handler, or in a wait, has failed; ``leaves_threads`` says that it is meant."""
    before = set(busy_workers())
    yield
    if request.node.get_closest_marker("leaves_threads"):
        return
    end = time.monotonic() + GRACE
    while left := set(busy_workers()) - before:
        if time.monotonic() > end:
            pytest.fail(f"the test left threads in handlers: {', '.join(sorted(left))}")
        threading.Event().wait(0.002)


@pytest.fixture
def bus() -> Iterator[EventBus]:
    """A bus with the defaults. At the end it must close within the bound, nobody be stuck, and the sums must hold."""
    with EventBus("test") as made:
        yield made
        made.drain(BOUND)
        # A handler past its time-out is settled before it has ended.
        soon(lambda: made.stats().pool.threads == made.stats().pool.idle, "every worker being idle")
        assert made.close(BOUND).stuck == ()
        settled(made)
