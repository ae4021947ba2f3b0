"""The end of the demo: what became of every delivery, checked against what the demo's own parts counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .table import duration, subscription_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventbus import BusStats, CloseReport, SubscriptionStats

    from .services import Board
    from .writer import Writer

__all__ = ["Check", "Summary", "accounted", "make_checks"]


def accounted(stats: SubscriptionStats) -> int:
    """The contract's sum: the six outcomes, and what is pending and running."""
    ended = stats.delivered + stats.failed + stats.timed_out + stats.cancelled + stats.dropped + stats.rejected
    return ended + stats.pending + stats.running


@dataclass(frozen=True)
class Check:
    """Two counts, made independently, that must be equal."""

    what: str
    expected: int
    found: int

    @property
    def holds(self) -> bool:
        return self.expected == self.found


def make_checks(
    stats: BusStats,
    rows: Iterable[tuple[str, SubscriptionStats]],
    emitted: dict[str, int],
    writer: tuple[SubscriptionStats, int],
) -> list[Check]:
    """Everything that must add up once the bus has closed.

    Args:
        stats: Of the closed bus.
        rows: Name and statistics of every subscription, ended.
        emitted: Topic to emits, counted by those who emitted.
        writer: The statistics of the writer's subscription, which hears every event, and the lines in its file.
    """
    heard, written = writer
    own = sum(count for topic, count in stats.topics.items() if topic.startswith("bus/"))
    rows = list(rows)
    return [
        Check("deliveries settled", stats.totals.deliveries, accounted(stats.totals)),
        Check("nothing pending or running", 0, stats.totals.pending + stats.totals.running),
        Check("deliveries of all subscriptions", stats.totals.deliveries, sum(each.deliveries for _, each in rows)),
        *(Check(f"deliveries of {name} settled", each.deliveries, accounted(each)) for name, each in rows),
        *(Check(f"events on {topic}", count, stats.topics.get(topic, 0)) for topic, count in sorted(emitted.items())),
        Check("events heard by the writer", stats.events - own, heard.deliveries),
        Check("lines in the file", heard.delivered, written),
    ]


@dataclass
class Summary:
    """What the demo tells at its end."""

    seconds: float
    ended_by: str
    stats: BusStats
    rows: list[tuple[str, SubscriptionStats]]
    checks: list[Check]
    report: CloseReport
    board: Board
    writer: Writer
    errors: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        """Whether every delivery is accounted for, and nothing failed or got stuck."""
        return all(check.holds for check in self.checks) and not self.errors and not self.report.stuck

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain values, for JSON."""
        stats = self.stats
        return {
            "events": stats.events,
            "totals": stats.totals.as_dict(),
            "accounted": all(check.holds for check in self.checks),
            "seconds": round(self.seconds, 3),
            "ended_by": self.ended_by,
            "topics": dict(sorted(stats.topics.items())),
            "subscriptions": {name: each.as_dict() for name, each in self.rows},
            "checks": [
                {"what": each.what, "expected": each.expected, "found": each.found, "holds": each.holds}
                for each in self.checks
            ],
            "readings": {topic: reading.model_dump() for topic, reading in sorted(self.board.latest.items())},
            "unavailable": dict(self.board.unavailable),
            "alarms": [alarm.model_dump() for alarm in self.board.alarms],
            "output": {
                "path": None if self.writer.temporary else str(self.writer.path),
                "lines": self.writer.lines,
            },
            "close": self.report.as_dict(),
            "errors": self.errors,
        }

    def lines(self) -> list[str]:
        """The summary for people."""
        stats, totals = self.stats, self.stats.totals
        outcomes = ("delivered", "failed", "timed_out", "cancelled", "dropped", "rejected", "pending", "running")
        parts = " + ".join(f"{getattr(totals, name)} {name.replace('_', ' ')}" for name in outcomes)
        wrong = [check for check in self.checks if not check.holds]
        lines = [
            "",
            f"Ended by {self.ended_by} after {self.seconds:.1f} s.",
            *subscription_lines(self.rows),
            "",
            f"  {stats.events} events, {totals.deliveries} deliveries"
            f" ({totals.deliveries / max(self.seconds, 1e-9):.0f}/s); latency p50 {duration(totals.wait.p50)},"
            f" p99 {duration(totals.wait.p99)}, max {duration(totals.wait.max)}",
            f"  {totals.deliveries} = {parts}",
            f"  {self.writer.lines} lines written"
            + (
                " to a temporary file, removed again (--output keeps one)"
                if self.writer.temporary
                else f" to {self.writer.path}"
            ),
            *(f"  {reason}" for reason in self.board.unavailable.values()),
            *(f"  error: {error}" for error in self.errors[:5]),
            *(f"  still running: {name}" for name in self.report.stuck),
        ]
        if wrong:
            lines += [f"  WRONG: {check.what}: {check.found}, not {check.expected}" for check in wrong]
        else:
            lines.append(f"  every delivery is accounted for ({len(self.checks)} sums checked)")
        return lines
