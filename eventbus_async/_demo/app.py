"""The demo: sampler threads, asyncio services and a blocking writer on one bus, watched, drained and accounted for."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from eventbus_async import AsyncEventBus, ServiceGroup

from .figures import all_sources
from .samplers import Sampler
from .services import Aggregator, Board, Thresholds
from .summary import Summary, make_checks
from .table import Screen, brief_line, live_lines
from .writer import Writer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from eventbus import HandlerError

__all__ = ["Settings", "run"]

REDRAW = 0.5  # seconds between two tables on a terminal
REPORT = 1.0  # and between two lines elsewhere
DRAIN = 10.0  # seconds that may pass at the end before what is left is cancelled


@dataclass(frozen=True)
class Settings:
    """What the command line asks for."""

    seconds: float = 10.0
    interval: float = 0.1
    as_json: bool = False
    output: Path | None = None
    limits: dict[str, float] = field(default_factory=dict[str, float])


def run(settings: Settings, out: TextIO | None = None) -> int:
    """Run the demo to its end.

    Returns:
        The exit code: 0 if every delivery is accounted for and no handler failed, else 1; 2 if the output file cannot
        be written.
    """
    stream = sys.stdout if out is None else out
    try:
        writer = Writer(settings.output)
    except OSError as error:
        print(f"eventbus demo: cannot write to {settings.output}: {error.strerror}", file=sys.stderr)
        return 2
    log = logging.getLogger("eventbus")
    level = log.level
    log.setLevel(logging.CRITICAL)  # the summary tells of errors
    try:
        summary = asyncio.run(watch(settings, writer, None if settings.as_json else Screen(stream)))
    finally:
        log.setLevel(level)
        writer.close()
    if settings.as_json:
        print(json.dumps(summary.as_dict(), indent=2), file=stream)
    else:
        print("\n".join(summary.lines()), file=stream)
    stream.flush()
    return 0 if summary.ok else 1


async def watch(settings: Settings, writer: Writer, screen: Screen | None) -> Summary:
    """Set everything up, look on until the time is up or a signal comes, and wind it all down."""
    errors: list[str] = []  # filled from whatever thread; appending is atomic

    def note(error: HandlerError) -> None:
        errors.append(f"{error.subscription.name} on {error.event.topic}: {error.error!r}")
        loop.call_soon_threadsafe(interrupt, f"an error of {error.subscription.name}")

    loop = asyncio.get_running_loop()
    bus = AsyncEventBus(on_error=note)
    core = bus.bus
    ended_by = "the clock"
    over = asyncio.Event()

    def interrupt(name: str) -> None:
        nonlocal ended_by
        if not over.is_set():
            ended_by = name
            over.set()

    stop = threading.Event()
    samplers = [Sampler(core, each, settings.interval, stop) for each in all_sources(writer.path.parent)]
    board, aggregator, thresholds = Board(bus), Aggregator(bus), Thresholds(bus, settings.limits)
    began = time.monotonic()
    with signals(interrupt):
        async with bus:
            # First of all, so that it hears everything: on the core's face, where blocking is allowed.
            file = core.on("**", writer.write, name="writer")
            async with ServiceGroup({board: [], aggregator: [board], thresholds: [board]}):
                handles = core.subscriptions()
                # The end goes from the sources on: samplers, what is on its way, the services, the bus.
                async with sampling(samplers, stop):
                    await look_on(bus, board, settings.seconds, screen, over)
                seconds = time.monotonic() - began
                try:
                    await bus.drain(DRAIN)
                except TimeoutError as error:
                    errors.append(str(error))
                latencies = [each.stats() for each in handles]  # an ended subscription keeps its counts alone
            report = await bus.close(DRAIN)

    emitted: dict[str, int] = {}
    for counts in (*(each.emitted for each in samplers), aggregator.emitted, thresholds.emitted):
        for topic, count in counts.items():
            emitted[topic] = emitted.get(topic, 0) + count
    stats = bus.stats()
    rows = [
        (each.name, replace(each.stats(), wait=before.wait, run=before.run))
        for each, before in zip(handles, latencies, strict=True)
    ]
    checks = make_checks(stats, rows, emitted, (file.stats(), writer.lines))
    return Summary(seconds, ended_by, stats, rows, checks, report, board, writer, errors)


async def look_on(bus: AsyncEventBus, board: Board, seconds: float, screen: Screen | None, over: asyncio.Event) -> None:
    """Show what goes on until the time is up or it is over."""
    names = {each.id: each.name for each in bus.subscriptions()}
    began = before = time.monotonic()
    deliveries = 0
    while (left := began + seconds - time.monotonic()) > 0 and not over.is_set():
        if screen is not None:
            now, stats = time.monotonic(), bus.stats()
            passed = now - before
            rate = (stats.totals.deliveries - deliveries) / passed if passed > 0.01 else 0.0  # none yet, at first
            before, deliveries = now, stats.totals.deliveries
            screen.draw(
                live_lines(now - began, seconds, stats, rate, names, board),
                brief_line(now - began, seconds, stats, rate),
            )
        pause = REDRAW if screen is not None and screen.live else REPORT
        try:
            await asyncio.wait_for(over.wait(), min(pause, left))
        except TimeoutError:
            pass


@asynccontextmanager
async def sampling(samplers: list[Sampler], stop: threading.Event) -> AsyncGenerator[None, None]:
    """The samplers run for as long as this lasts; the loop is not blocked while it waits for them."""
    try:
        for sampler in samplers:
            sampler.start()
        yield
    finally:
        stop.set()
        for sampler in samplers:
            if sampler.ident is not None:
                await asyncio.to_thread(sampler.join, DRAIN)


@contextmanager
def signals(interrupt: Callable[[str], None]) -> Generator[None, None, None]:
    """SIGINT and SIGTERM end the demo in order; the same signal again ends it at once, as if nobody handled it."""
    loop = asyncio.get_running_loop()
    set_here: list[signal.Signals] = []

    def first(number: signal.Signals) -> None:
        interrupt(number.name)
        loop.remove_signal_handler(number)
        set_here.remove(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, first, number)
            set_here.append(number)
        except (NotImplementedError, RuntimeError, ValueError):
            pass  # no such handlers on this system, or not in the main thread: Ctrl-C then cancels the main task
    try:
        yield
    finally:
        for number in set_here:
            loop.remove_signal_handler(number)
