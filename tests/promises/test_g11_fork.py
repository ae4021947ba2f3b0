"""G11: after ``os.fork()`` the child's bus works, and the parent's is untouched.

Every test forks in a process of its own, so that nothing of pytest is forked with it; a child that hangs is killed
with its whole process group.
"""

from __future__ import annotations

import os

import pytest
from kit_process import begin, end

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")

BOUND = 20.0

PRELUDE = """
import os, sys, threading, warnings, traceback
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks with threads: they are the point here
from eventbus import *

BOUND = 10.0

def end_with(child, *given):
    '''End this process, a child, with a function; its exit code is 0 if that has returned.'''
    code = 1
    try:
        child(*given)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

def forked(child):
    '''Run a function in a child; gives its exit code: 0 if it returned.'''
    pid = os.fork()
    if pid == 0:
        end_with(child)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(program: str) -> None:
    end(begin(program, PRELUDE), BOUND)


def test_a_used_bus_works_in_the_child_and_in_the_parent() -> None:
    """G11: registrations kept, no threads until used, statistics empty; the parent does not notice."""
    run(
        """
        bus = EventBus()
        got = []
        subscription = bus.on("t/*", lambda payload: got.append(payload) or payload)
        bus.emit("t/a", 1).wait(BOUND)
        assert threading.active_count() > 1

        def child():
            assert threading.active_count() == 1
            assert bus.subscriptions() == (subscription,) and subscription.active
            stats = bus.stats()
            assert stats.events == 0 and stats.totals.deliveries == 0 and subscription.stats().deliveries == 0
            assert stats.pool.threads == 0
            assert bus.emit("t/a", 2).wait(BOUND).results() == [2]
            assert got == [1, 2]
            assert bus.stats().events == 1
            assert subscription.cancel(wait=True, timeout=BOUND)
            assert bus.emit("t/a", 3).deliveries == 0
            report = bus.close(BOUND)
            assert report.cancelled == 0 and not report.stuck

        assert forked(child) == 0
        assert bus.emit("t/a", 2).wait(BOUND).results() == [2]
        assert got == [1, 2] and bus.stats().totals.delivered == 2
        bus.close(BOUND)
        """
    )


def test_a_bus_that_was_never_used_works_in_the_child() -> None:
    """A module-level bus before a pre-forking server."""
    run(
        """
        bus = EventBus()
        bus.on("t", lambda payload: payload * 2)

        def child():
            assert bus.request("t", 21, BOUND) == 42
            bus.close(BOUND)

        assert [forked(child) for _ in range(3)] == [0, 0, 0]
        assert bus.request("t", 21, BOUND) == 42
        """
    )


def test_events_of_parent_and_child_have_different_ids() -> None:
    run(
        """
        bus = EventBus()
        bus.on("t", lambda payload: None)
        first = bus.emit("t").event_id
        read, write = os.pipe()

        def child():
            os.write(write, bus.emit("t").event_id.encode())

        assert forked(child) == 0
        assert os.read(read, 100).decode() not in (first, bus.emit("t").event_id)
        """
    )


def test_what_is_unsettled_is_cancelled_in_the_child_and_goes_on_in_the_parent() -> None:
    """Running, pending and lined-up deliveries; mailboxes and lanes are empty in the child."""
    run(
        """
        bus = EventBus()
        begun, gate, got = threading.Event(), threading.Event(), []

        def handler(payload):
            begun.set()
            assert gate.wait(BOUND)
            got.append(payload)

        for options in ({"max_pending": 1}, {"key": lambda event: 0, "concurrency": 2}):
            begun.clear(), gate.clear(), got.clear()
            with bus.scope() as scope:
                subscription = scope.on("t", handler, lane="lane", **options)
                receipts = [bus.emit("t", 0)]
                assert begun.wait(BOUND)
                receipts.append(bus.emit("t", 1))
                if "max_pending" in options:
                    third = []
                    lined = threading.Thread(target=lambda: third.append(bus.emit("t", 2)), daemon=True)
                    lined.start()
                    while subscription.stats().pending < 2 and lined.is_alive():
                        pass

                def child():
                    for each in receipts:
                        assert each.done
                        assert [outcome.status for outcome in each.wait(BOUND).outcomes] == ["cancelled"]
                    stats = subscription.stats()
                    assert (stats.deliveries, stats.pending, stats.running) == (0, 0, 0)
                    gate.set()
                    assert [o.status for o in bus.emit("t", 9).wait(BOUND).outcomes] == ["delivered"]
                    bus.drain(BOUND)
                    assert got == [9], got

                assert forked(child) == 0
                assert not any(each.done for each in receipts)
                gate.set()
                if "max_pending" in options:
                    lined.join(BOUND)
                    receipts += third
                for each in receipts:
                    assert [outcome.status for outcome in each.wait(BOUND).outcomes] == ["delivered"]
                assert got == list(range(len(receipts)))
        """
    )


@pytest.mark.usefixtures("untraced")
def test_a_fork_while_other_threads_are_inside_the_bus() -> None:
    """Locks held elsewhere, half-done registrations: each child works at once."""
    run(
        """
        bus = EventBus()
        bus.on("t/**", lambda payload: payload)
        over = threading.Event()

        def churn(number):
            while not over.is_set():
                subscription = bus.on(["t/*", f"t/{number}"], lambda payload: None, lane="lane")
                receipt = bus.emit(f"t/{number}", number)
                subscription.cancel()
                bus.stats()

        threads = [threading.Thread(target=churn, args=(n,), daemon=True) for n in range(3)]
        for each in threads:
            each.start()

        def child():
            assert 1 in bus.emit("t/1", 1).wait(BOUND).results()
            subscription = bus.on("new", lambda payload: payload)
            assert bus.request("new", 7, BOUND) == 7
            assert subscription.cancel(wait=True, timeout=BOUND)
            bus.drain(BOUND)
            bus.close(BOUND)

        codes = [forked(child) for _ in range(40)]
        over.set()
        for each in threads:
            each.join(BOUND)
        assert codes == [0] * 40, codes
        bus.drain(BOUND)
        totals = bus.stats().totals
        assert totals.deliveries == totals.delivered + totals.cancelled
        """
    )


def test_a_fork_inside_a_handler() -> None:
    """The child's only thread is in a handler: it may emit there, and ends without a hang when that returns."""
    run(
        """
        bus = EventBus()
        echoed = []
        bus.on("echo", lambda payload: echoed.append(payload) or payload)

        def handler(payload):
            def child():
                assert bus.emit("echo", 5).wait(BOUND).results() == [5]
            return forked(child)

        bus.on("t", handler)
        assert bus.emit("t").wait(BOUND).results() == [0]

        def leaves(payload):
            return os.fork()  # the child runs on, out of the handler, and its process ends with its only thread

        bus.on("leave", leaves)
        pid, = bus.emit("leave").wait(BOUND).results()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert bus.emit("echo", 6).wait(BOUND).results() == [6]
        """
    )


def test_streams_and_closed_buses_in_the_child() -> None:
    run(
        """
        bus, closed = EventBus(), EventBus()
        stream = bus.stream("t")
        bus.emit("t", 1)
        closed.close()

        def child():
            bus.emit("t", 2)
            assert stream.get(BOUND).payload == 2  # the buffer of the parent stays there
            assert closed.closed
            try:
                closed.emit("t")
            except BusClosedError:
                pass
            else:
                raise AssertionError("open again")
            closed.close()

        assert forked(child) == 0
        assert stream.get(BOUND).payload == 1
        """
    )


def test_a_fork_in_the_midst_of_a_step_of_ones_own() -> None:
    """A signal handler that forks while the interrupted thread is inside ``emit``: parent and child both go on."""
    run(
        """
        import signal
        bus = EventBus()
        bus.on("t", lambda payload: payload)
        bus.emit("t", 0).wait(BOUND)
        children, busy = [], []

        def on_signal(number, frame):
            if len(children) < 5 and not busy:  # forks within forks are another matter
                busy.append(True)
                children.append(os.fork())
                busy.clear()

        signal.signal(signal.SIGALRM, on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        while len(children) < 5 and 0 not in children:
            bus.emit("t", 1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        code = 1
        try:
            assert bus.emit("t", 3).wait(BOUND).results() == [3]
            bus.drain(BOUND)
            code = 0
        finally:
            if 0 in children:
                sys.stderr.flush()
                os._exit(code)
        # A signal may come before the handler has said that it is busy: one more then.
        assert not any([os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in children])
        """
    )


@pytest.mark.usefixtures("untraced")  # each of hundreds of children would write its file of coverage
@pytest.mark.parametrize("call", ["emit", "emit_inline", "cancel", "on", "wait", "drain", "stats"])
def test_a_fork_at_any_line_of_a_step(call: str) -> None:
    """The step goes on in the child, which is like any other when that has ended; the parent does not notice."""
    program = """
    import faulthandler
    from eventbus._engine import monitor

    class Fork:  # at one line of the engine's, of those that are run in a step
        def __init__(self, place):
            self.left, self.child = place, None

        def __call__(self, frame, event, arg):
            if "_engine" not in frame.f_code.co_filename:
                return None
            if event == "line" and self.child is None and monitor.steps:
                self.left -= 1
                if self.left < 0:
                    self.child = os.fork()
                    if self.child == 0:
                        faulthandler.dump_traceback_later(5, exit=True)
            return self

    def once(place):
        bus, go, entered, got = EventBus(), threading.Event(), threading.Event(), []

        def held(payload):
            entered.set()
            go.wait()
            return payload

        full = bus.on("full", held, max_pending=1, block_timeout=0.005)
        bus.on("free", got.append)
        bus.on("inline", got.append, inline=True)
        bus.on("inline", got.append, inline=True)
        running = bus.emit("full", 1)
        entered.wait()
        pending = bus.emit("full", 2)
        calls = {
            "emit": lambda: bus.emit("full", 3),
            "emit_inline": lambda: bus.emit("inline", 3),
            "cancel": lambda: full.cancel(),
            "on": lambda: bus.on("full", got.append),
            "wait": lambda: pending.wait(0),
            "drain": lambda: bus.drain(0),
            "stats": lambda: bus.stats(),
        }
        made, fork = None, Fork(place)
        sys.settrace(fork)
        try:
            made = calls[CALL]()
        except EventTimeoutError:
            pass
        finally:
            sys.settrace(None)
        go.set()
        if fork.child == 0:
            end_with(in_child, bus, running, pending, made, got)
        assert running.wait(BOUND).results() == [1]
        pending.wait(BOUND)
        bus.drain(BOUND)
        assert bus.close(BOUND).stuck == ()
        if fork.child is None:
            return False
        assert os.waitstatus_to_exitcode(os.waitpid(fork.child, 0)[1]) == 0, place
        return True

    def in_child(bus, running, pending, made, got):
        assert running.done and pending.done
        if isinstance(made, Receipt):
            made.wait(BOUND)
        bus.emit("free", "last").wait(BOUND)
        assert got[-1] == "last"
        receipt = bus.emit("full", 4).wait(BOUND)
        assert all(each.status == "delivered" for each in receipt.outcomes)
        assert receipt.deliveries == {"cancel": 0, "on": 2}.get(CALL, 1)
        bus.drain(BOUND)
        row = bus.stats().totals
        assert row.deliveries == row.delivered + row.cancelled + row.rejected, row
        assert row.pending == row.running == 0, row
        assert bus.close(BOUND).stuck == ()

    place = 0
    while once(place):
        place += 1
    assert place >= PLACES
    """
    places = {"emit": 40, "emit_inline": 20, "cancel": 30, "on": 20}.get(call, 1)
    run(program.replace("CALL", repr(call)).replace("PLACES", str(places)))
