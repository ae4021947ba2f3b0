"""The live table: its text, and how it gets onto a terminal or into a pipe. No state but the last height and counts."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventbus import BusStats, Latency, SubscriptionStats

    from .services import Board

__all__ = ["Screen", "duration", "live_lines", "subscription_lines"]


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
    totals, pool = stats.totals, stats.pool
    rows = [(names.get(number, str(number)), each) for number, each in sorted(stats.subscriptions.items())]
    alarms = [alarm.text() for alarm in board.alarms[-3:]] or ["none"]
    return [
        f"eventbus demo: {elapsed:.0f} s of {seconds:g} s, Ctrl-C ends it",
        "",
        *figure_lines(board),
        "",
        f"  {stats.events} events, {totals.deliveries} deliveries, {rate:.0f} deliveries/s,"
        f" {totals.pending + totals.running} queued; latency p50 {duration(totals.wait.p50)},"
        f" p99 {duration(totals.wait.p99)}; threads: {pool.threads}",
        "",
        *subscription_lines(rows),
        "",
        f"  alarms: {'; '.join(alarms)}",
    ]


class Screen:
    """Draws tables: over the one before on a terminal; elsewhere one plain line a table, for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._height = 0
        self.live = out.isatty()

    def draw(self, lines: list[str]) -> None:
        """Show a table instead of the one before."""
        if not self.live:
            self._out.write(
                " ".join(lines[0].split(",")[:1]) + next((f";{x}" for x in lines if " events, " in x), "") + "\n"
            )
        else:
            width, height = shutil.get_terminal_size()
            shown = [line[: width - 1] for line in lines[: height - 1]]
            up = f"\x1b[{self._height}A" if self._height else ""
            self._out.write(up + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")
            self._height = len(shown)
        self._out.flush()

    def say(self, lines: Iterable[str]) -> None:
        """Write lines below what was drawn; the next table begins anew."""
        self._height = 0
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()
