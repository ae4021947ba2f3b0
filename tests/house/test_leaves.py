"""The fixture that all tests run under finds what it is for: threads, tasks and handles that are left behind."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator

import kit_leaves
import pytest
from kit import BOUND, Gate, soon, threads_of
from kit_leaves import Watch, idle

from eventbus import EventBus


@pytest.fixture
def watch() -> Iterator[Watch]:
    # An idle thread is none of its business; one that was, and wakes up to end itself, would be.
    soon(lambda: not any(map(idle, sys._current_frames().values())), "the idle threads of earlier tests having ended")
    with Watch() as entered:
        yield entered


LISTED = os.path.isdir("/proc/self/fd")


def test_a_thread_is_found_until_it_has_ended(watch: Watch) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(BOUND,), name="left-over")
    thread.start()
    try:
        soon(lambda: watch.left(0)[0].startswith("thread left-over (in Condition.wait:"), "the thread waiting")
        assert len(watch.left(0)) == 1
    finally:
        over.set()
    assert watch.left(BOUND) == []


def test_a_worker_in_a_handler_is_found_and_an_idle_one_is_not(watch: Watch) -> None:
    bus = EventBus("left")
    with Gate() as gate:
        bus.on("a", gate)
        bus.emit("a")
        gate.entered()
        (found,) = watch.left(0)
        assert found.startswith(f"thread {threads_of('left')[0].name} (in ")
        assert " < Gate.__call__:" in found
    assert watch.left(BOUND) == []
    assert threads_of("left")


def test_a_timer_is_found_while_it_has_something_to_wait_for(watch: Watch) -> None:
    bus = EventBus("timed")
    with Gate() as gate:
        receipt = bus.on("a", gate, timeout=60.0) and bus.emit("a")
        gate.entered()
        soon(lambda: any("-timer (" in each and "; due: " in each for each in watch.left(0)), "the timer")
        assert len(watch.left(0)) == 2  # the worker, too
        gate.open()
        receipt.wait(BOUND)
    assert watch.left(BOUND) == []


@pytest.mark.leaves("tasks", reason="so that there is something to find")
def test_a_task_of_a_closed_loop_is_found_and_so_is_one_that_nobody_holds(watch: Watch) -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(asyncio.sleep(60), name="forgotten")
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    (found,) = watch.left(0)
    assert found.startswith("task <coroutine object sleep")
    del task, loop
    (found,) = watch.left(0)
    assert "was destroyed but it is pending" in found


@pytest.mark.skipif(not LISTED, reason="the platform does not list open handles")
def test_a_handle_is_found_until_it_is_closed(watch: Watch) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    (found,) = watch.left(0)
    assert found.startswith(f"handle {reader} (pipe:")
    os.close(reader)
    assert watch.left(0) == []


def test_what_goes_within_the_time_of_grace_is_not_left(watch: Watch) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, args=(BOUND,))
    thread.start()
    timer = threading.Timer(0.05, over.set)
    timer.start()
    begun = time.monotonic()
    assert watch.left(BOUND) == []
    assert time.monotonic() - begun < BOUND


def test_the_fixture_fails_a_test_that_leaves_something_and_has_not_said_so(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kit_leaves, "GRACE", 0.0)  # it runs in this process
    pytester.makeconftest(
        """
        from kit_leaves import leaves_nothing

        def pytest_configure(config):
            config.addinivalue_line("markers", "leaves: what and why")
        """
    )
    pytester.makepyfile(
        """
        import os, threading, pytest
        pytestmark = pytest.mark.filterwarnings("default")
        kept, over = [], threading.Event()

        def leave():
            kept.append(threading.Thread(target=over.wait, daemon=True))
            kept[-1].start()

        def test_says_nothing():
            leave()

        @pytest.mark.leaves("threads", reason="it is the point here")
        def test_says_so():
            leave()

        @pytest.mark.leaves("tasks", reason="another kind")
        def test_says_something_else():
            leave()

        @pytest.mark.leaves("threads")
        def test_says_no_reason():
            pass

        def test_ends_them():
            over.set()
            for thread in kept:
                thread.join()
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:asyncio")
    result.assert_outcomes(passed=4, errors=3)
    result.stdout.fnmatch_lines(["*the test left behind: thread *", "*say which and why: *"])
