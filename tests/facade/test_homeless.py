"""G10: what was pending for handlers that no loop runs is cancelled when the bus ends, and that is told."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from kit import BOUND, settled

from eventbus import EventTimeoutError
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
