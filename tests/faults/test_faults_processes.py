"""Faults that others have shipped at exit and fork: none of them is here. Each program is a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from kit_process import SAY, begin, end, kill

WITHIN = 20.0  # seconds; what hangs is killed then

PRELUDE = """
import atexit, gc, os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
from eventbus import *
"""
PRELUDE += SAY


# Fixed in 3.12.3: no thread could be started any more when the exit's hooks run.
no_threads_at_exit = pytest.mark.skipif(
    (3, 12, 0) <= sys.version_info[:3] < (3, 12, 3), reason="this Python starts no thread at exit"
)


def run(program: str) -> str:
    return end(begin(program, PRELUDE), WITHIN)


def test_g10_an_emit_of_a_finalizer_as_the_interpreter_tears_down() -> None:
    """A thread that is started in __del__ at the very end hangs Python 3.11, and raises later."""
    output = run(
        """
        class Last:
            def __init__(self, bus):
                self.bus = bus
            def __del__(self):
                for call in (lambda: self.bus.emit("a", 1), lambda: self.bus.on("a", lambda _: None)):
                    try:
                        call()
                        say("taken")
                    except BusClosedError:
                        say("closed")
        used, unused = EventBus(), EventBus()
        used.on("a", lambda n: n)
        used.emit("a").wait(5)
        keep = sys.modules["keep"] = [Last(used), Last(unused)]
        keep.append(keep)  # a cycle: torn down by the last collection
        del keep
        """
    )
    assert set(output.split()) <= {"closed"}, output  # where the module is not torn down at all, nothing is said


@no_threads_at_exit
@pytest.mark.usefixtures("untraced")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no such signals")
def test_g10_ctrl_c_while_the_exit_waits_for_a_handler() -> None:
    """The wait is given up and the exit goes on, with the hooks of others."""
    process = begin(
        """
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def stuck(payload):
            say("exits")
            threading.Event().wait(60)
        atexit.register(lambda: say("hook"))
        bus = EventBus(exit_timeout=60)
        bus.on("a", stuck)
        threading._register_atexit(lambda: bus.emit("a"))  # runs before the bus's own hook, which waits for it
        """,
        PRELUDE,
    )
    killer = threading.Timer(WITHIN, kill, (process,))
    killer.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "exits\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        output = end(process, WITHIN)
    finally:
        killer.cancel()
    assert time.monotonic() - began < WITHIN / 2
    assert output.endswith("hook\n")


def test_g10_buses_that_are_made_and_dropped_while_the_exit_looks_for_them() -> None:
    """A WeakSet that changes while it is iterated raises (F60), and then the hooks of others are not called."""
    output = run(
        """
        from eventbus._engine.process import living
        ended = []
        def churn():
            kept = []
            while not ended:
                kept.append(EventBus())
                if len(kept) > 300:
                    kept.clear()
        kept = [EventBus() for _ in range(2000)]
        threads = [threading.Thread(target=churn) for _ in range(3)]
        for thread in threads:
            thread.start()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        for _ in range(100):
            assert len(living()) >= 2000
        sys.setswitchinterval(interval)
        ended.append(True)
        for thread in threads:
            thread.join()
        """
    )
    assert output == ""


@no_threads_at_exit
def test_g10_the_core_needs_no_module_that_cannot_be_imported_at_exit() -> None:
    """The first import of concurrent.futures.thread at exit raises, as does the first asyncio.to_thread."""
    output = run(
        """
        bus = EventBus()
        bus.on("a", lambda n: n)
        before = set(sys.modules)
        def use():
            say(bus.emit("a", 1).wait(5).results(), bus.request("a", 2, 5))
            bus.close(5)
            new = set(sys.modules) - before
            say(sorted(name for name in new if name.startswith(("asyncio", "concurrent", "multiprocessing"))))
        threading._register_atexit(use)
        """
    )
    assert output == "[1] 2\n[]\n"


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")


@needs_fork
@pytest.mark.parametrize("held", ["lock", "step"])
def test_g11_a_fork_while_another_thread_holds_the_bus(held: str) -> None:
    """A lock that somebody held at the fork is held for ever in the child (F37)."""
    run(
        f"""
        bus = EventBus()
        bus.on("a", lambda n: n + 1)
        subscription = bus.on("b", lambda n: n)
        bus.emit("a", 1).wait(5)
        inside, go_on = threading.Event(), threading.Event()
        def hold():
            inside.set()
            assert go_on.wait(10)
        def thread():
            monitor = bus._engine.monitor
            if {held == "step"}:
                monitor.run(hold)
            else:
                with monitor.lock:
                    hold()
        holder = threading.Thread(target=thread)
        holder.start()
        assert inside.wait(10)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert bus.emit("a", 2).wait(5).results() == [3]
                assert bus.request("b", 7, 5) == 7
                assert bus.on("c", print).cancel(wait=True, timeout=5)
                assert subscription.cancel()
                bus.drain(5)
                assert bus.close(5).stuck == ()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        go_on.set()
        holder.join(10)
        assert bus.emit("a", 3).wait(5).results() == [4]
        assert bus.close(5).stuck == ()
        """
    )


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_g11_a_bus_of_a_module_in_processes_of_multiprocessing(method: str, tmp_path: Path) -> None:
    """A pool that was made at import has lost its threads in the child (F39)."""
    (tmp_path / "shop.py").write_text(
        textwrap.dedent(
            """
            from eventbus import EventBus

            bus = EventBus("of the module")
            got = []
            bus.on("a", lambda n: got.append(n) or n + 1)
            bus.emit("a", 0).wait(10)  # it has a thread, wherever the module is imported

            def work(number):
                assert bus.emit("a", number).wait(10).results() == [number + 1]
                bus.drain(10)
                return got[-1]
            """
        )
    )
    output = run(
        f"""
        sys.path.insert(0, {str(tmp_path)!r})
        import multiprocessing, shop
        context = multiprocessing.get_context({method!r})
        with context.Pool(2) as pool:
            say(sorted(pool.map(shop.work, range(1, 9), chunksize=2)))
            pool.close()
            pool.join()
        say(shop.work(9))
        """
    )
    assert output == "[1, 2, 3, 4, 5, 6, 7, 8]\n9\n"


@needs_fork
def test_g18_many_buses_leave_nothing_for_a_fork_to_do() -> None:
    """One hook for each object is never freed, and slows every fork down (F38)."""
    output = run(
        """
        registered = []
        os.register_at_fork = lambda **hooks: registered.append(hooks)
        for number in range(5000):
            bus = EventBus()
            bus.on("a", lambda n: n)
        bus.emit("a", 1).wait(5)
        gc.collect()
        living = sum(type(each) is type(bus._engine) for each in gc.get_objects())
        say(len(registered), living)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if bus.emit("a", 2).wait(5).results() == [2] else 1)
        say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert output == "0 1\n0\n"


BROKEN = """
import logging
from eventbus._engine import process
logging.basicConfig(stream=sys.stdout, format="%(message)s")
bad, good = EventBus("bad"), EventBus("good")
for bus in bad, good:
    bus.on("a", lambda n: n)
    bus.emit("a", 1).wait(5)

def broken(honest):
    def hook(engine):
        if engine.name == "bad":
            raise MemoryError("no room")
        return honest(engine)
    return hook
"""


def test_g10_a_bus_that_cannot_be_closed_at_exit_keeps_no_other_from_it() -> None:
    """One hook that raises, and all the others are not called (F60)."""
    output = run(
        BROKEN
        + """
process._finish = broken(process._finish)
atexit.register(lambda: say("closed" if good.closed else "open", "hook"))
"""
    )
    assert "a bus could not be closed at exit" in output
    assert output.endswith("closed hook\n")


@needs_fork
def test_g11_a_bus_that_cannot_be_renewed_in_a_child_keeps_no_other_from_it() -> None:
    output = run(
        BROKEN
        + """
process._renew = broken(process._renew)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        assert good.emit("a", 2).wait(5).results() == [2]
        code = 0
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert bad.emit("a", 3).wait(5).results() == [3]
"""
    )
    assert "a bus could not be set up in the forked child" in output
