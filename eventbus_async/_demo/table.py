"""The live table: its text, and how it gets onto a terminal or into a pipe. No state but the last height."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventbus import BusStats, Latency, SubscriptionStats

    from .services import Board

__all__ = ["Screen", "brief_line", "duration", "live_lines", "subscription_lines"]


def duration(seconds: float) -> str:
    """Seconds for people: ``0.00012`` is ``120 µs``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def latencies(latency: Latency) -> str:
    """Two columns: the median and the 99th percentile; dashes while no sample was taken."""
    if not latency.count:
        return f"{'-':>10}{'-':>9}"
    return f"{duration(latency.p50):>10}{duration(latency.p99):>9}"


def figure_lines(board: Board) -> list[str]:
    """One line for each figure: the newest reading, and the digest of the last ones."""
    rows = [f"  {'figure':<10}{'now':<42}  low < mean < high of the last digest"]
    for topic in sorted(board.latest):
        digest = board.digests.get(topic)
        # Digests of byte rates would be long numbers; those of per cents and loads are not.
        short = (
            ""
            if digest is None or digest.high >= 1000
            else f"  {digest.low:.1f} < {digest.mean:.1f} < {digest.high:.1f}"
        )
        rows.append(f"  {topic.rpartition('/')[2]:<10}{board.latest[topic].text():<42}{short}")
    rows.extend(f"  {topic.rpartition('/')[2]:<10}{reason}" for topic, reason in sorted(board.unavailable.items()))
    return rows


def subscription_lines(rows: Iterable[tuple[str, SubscriptionStats]]) -> list[str]:
    """A table of subscriptions: what became of their deliveries, how deep their queues are, how long things took."""
    head = f"  {'subscription':<22}{'delivered':>10}{'queued':>8}{'wait p50':>10}{'p99':>9}{'run p50':>10}{'p99':>9}"
    lines = [head]
    for name, each in rows:
        queued = each.pending + each.running
        lines.append(f"  {name[:21]:<22}{each.delivered:>10}{queued:>8}{latencies(each.wait)}{latencies(each.run)}")
    return lines


def live_lines(
    elapsed: float, seconds: float, stats: BusStats, rate: float, names: Mapping[int, str], board: Board
) -> list[str]:
    """The whole live table."""
    rows = [(names.get(number, str(number)), each) for number, each in sorted(stats.subscriptions.items())]
    alarms = [alarm.text() for alarm in board.alarms[-3:]] or ["none"]
    return [
        f"eventbus demo: {elapsed:.0f} s of {seconds:g} s, Ctrl-C ends it",
        "",
        *figure_lines(board),
        "",
        f"  {counts_text(stats, rate)}; threads: {stats.pool.threads}",
        f"  {latency_text(stats)}",
        "",
        *subscription_lines(rows),
        "",
        f"  alarms: {'; '.join(alarms)}",
    ]


def brief_line(elapsed: float, seconds: float, stats: BusStats, rate: float) -> str:
    """The table in one line, for logs and pipes."""
    return f"eventbus demo: {elapsed:.0f} s of {seconds:g} s; {counts_text(stats, rate)}; {latency_text(stats)}"


def counts_text(stats: BusStats, rate: float) -> str:
    totals = stats.totals
    queued = totals.pending + totals.running
    return f"{stats.events} events, {totals.deliveries} deliveries, {rate:.0f} deliveries/s, {queued} queued"


def latency_text(stats: BusStats) -> str:
    wait = stats.totals.wait
    return f"latency p50 {duration(wait.p50)}, p99 {duration(wait.p99)}" if wait.count else "no latency sampled yet"


class Screen:
    """Shows a table over the one before on a terminal, and one plain line a table elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._height = 0
        self.live = out.isatty()

    def draw(self, lines: list[str], brief: str) -> None:
        """Show a table instead of the one before, or where that cannot be, its brief form."""
        if self.live:
            width, height = shutil.get_terminal_size()
            shown = [line[: width - 1] for line in lines[: height - 1]]
            up = f"\x1b[{self._height}A" if self._height else ""
            self._out.write(up + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")
            self._height = len(shown)
        else:
            self._out.write(f"{brief}\n")
        self._out.flush()
