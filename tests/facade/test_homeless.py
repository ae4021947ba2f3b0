"""G10: what was pending for handlers that no loop runs is cancelled when the bus ends, and that is told."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from kit import BOUND, Alarm, Team, settled, sleeps

from eventbus import EventTimeoutError
from eventbus._engine.engine import Engine
from eventbus_async import AsyncEventBus


def test_g10_the_report_of_a_close_counts_what_no_loop_could_run() -> None:
    bus = AsyncEventBus()

    @bus.on("a")
    async def never(_: Any) -> None:
        raise AssertionError("no loop runs")

    receipts = [bus.emit("a", number) for number in range(3)]
    report = bus.bus.close(BOUND)
    assert (report.cancelled, report.stuck) == (3, ())
    assert {outcome.status for receipt in receipts for outcome in receipt.outcomes} == {"cancelled"}
    assert bus.bus.close(BOUND) == report
    settled(bus)


PROGRAM = """
from eventbus_async import AsyncEventBus
bus = AsyncEventBus(name="forgotten")

@bus.on("a")
async def handler(_):
    print("no loop runs")

bus.emit("a")
bus.emit("a")
if {closes}:
    bus.bus.close()
"""


def run(closes: bool) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(closes=closes)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=40)


def test_g10_the_exit_logs_once_what_it_cancelled() -> None:
    ended = run(closes=False)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.startswith("the bus 'forgotten' cancelled 2 deliveries because the interpreter exits; ")
    assert ended.stderr.count("\n") == 1


def test_g10_the_exit_does_not_log_what_a_close_has_reported() -> None:
    ended = run(closes=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_g06_a_wait_in_vain_names_the_handler_that_no_loop_has_served() -> None:
    bus = AsyncEventBus()

    @bus.on("a")
    async def never(_: Any) -> None:
        raise AssertionError("no loop runs")

    with pytest.raises(
        EventTimeoutError, match=r"no event loop has served .*never yet: use `async with bus.serve\(\)`"
    ):
        bus.emit("a").wait(0)
    bus.bus.close(BOUND)


def test_g9_a_full_mailbox_that_no_loop_runs_rejects_and_says_so() -> None:
    with AsyncEventBus().bus as core:
        bus = AsyncEventBus(core)

        @bus.on("a", max_pending=1, name="mine")
        async def never(_: Any) -> None:
            raise AssertionError("no loop runs")

        first, second = bus.emit("a"), bus.emit("a")
        assert not first.done
        (outcome,) = second.outcomes
        assert outcome.status == "rejected"
        assert str(outcome.error) == (
            "the mailbox of mine is full (1 pending) and no loop runs it yet; the delivery of 'a' was rejected"
        )


def test_g13_one_look_at_loops_is_planned_however_many_wait() -> None:
    """For one that was closed meanwhile; each look plans the next while somebody waits."""

    async def main() -> int:
        bus = AsyncEventBus()

        @bus.on("a")
        async def handler(_: Any) -> None:
            pass

        await bus.emit("a")
        engine = bus.bus._engine
        assert engine.executors

        def plan() -> int:
            for _ in range(5):
                engine.watch_loops()
            return sum(entry is not None for entry in engine.timer._heap)

        planned = engine.look(plan)
        await bus.close()
        return planned

    assert asyncio.run(main()) == 1


def test_g10_a_drain_does_not_wait_for_what_has_lost_its_loop() -> None:
    """It is told, though nothing else happens."""
    loop = asyncio.new_event_loop()
    bus = AsyncEventBus()
    core = bus.bus

    @bus.on("a")
    async def handler(payload: Any) -> None:
        if payload:
            raise AssertionError("no loop runs any more")

    async def main() -> None:
        await bus.emit("a")

    loop.run_until_complete(main())
    with Team() as team:
        receipt = core.emit("a", 1)
        drain = team.add(core.drain, BOUND)
        team.go()
        sleeps(drain)
        (waiter,) = core._engine.drains
        assert not waiter.done
        loop.close()
        drain.join(BOUND)
        assert not drain.is_alive()
        assert waiter.done
        assert not receipt.done
    assert core.close(0).cancelled == 1


def test_g12_an_emit_that_a_signal_handler_breaks_is_mended_where_no_loop_runs_a_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def alarmed(engine: Engine, box: Any, delivery: Any, keys: Any) -> None:
        if box.executor is not None:
            monkeypatch.undo()
            raise Alarm
        offer(engine, box, delivery, keys)

    offer = Engine._offer
    bus = AsyncEventBus()

    @bus.on("a")
    async def never(_: Any) -> None:
        raise AssertionError("no loop runs")

    bus.sync_on("a", lambda _: None, overflow="latest")
    monkeypatch.setattr(Engine, "_offer", alarmed)
    with pytest.raises(Alarm):
        bus.emit("a")
    assert bus.bus.stats().totals.cancelled == 1
    assert bus.bus.close(BOUND).cancelled == 1
    settled(bus)
