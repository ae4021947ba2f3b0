"""What the process holds while it runs: sampled, and judged by the slope of the second half."""

from __future__ import annotations

import os
import statistics
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["JUDGED_FROM", "Sample", "Slope", "handles", "plot", "resident", "slope"]

JUDGED_FROM = 120.0  # seconds that a run must last for its memory to be judged
PAIRS_OF = 400  # points at most: the pairs of more are thinned out
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the process."""

    seconds: float
    memory: int  # bytes that are resident
    blocks: int  # of Python's allocator, in use
    threads: int
    tasks: int
    handles: int
    events: int


@dataclass(frozen=True, slots=True)
class Slope:
    """A Theil-Sen line through the second half, per minute, and what of it may be noise.

    Attributes:
        per_minute: The median of the slopes of all pairs.
        noise: How steep a line the scatter about it can feign: the width of the middle 90 % of the residuals, over the
            time that was looked at.
        at: What the line says at the beginning of the second half.
        begin: When that was, in seconds.
    """

    per_minute: float
    noise: float
    at: float
    begin: float

    @property
    def grows(self) -> bool:
        return self.per_minute > self.noise


def slope(times: Sequence[float], values: Sequence[float]) -> Slope:
    """The slope of the second half. Raises ValueError for fewer than four points there."""
    middle = (times[0] + times[-1]) / 2 if times else 0.0
    points = [(time, value) for time, value in zip(times, values, strict=True) if time >= middle]
    points = points[:: -(-len(points) // PAIRS_OF) or 1]
    if len(points) < 4:
        raise ValueError(f"{len(points)} points are too few for a slope")
    slopes = [
        (second[1] - first[1]) / (second[0] - first[0])
        for place, first in enumerate(points)
        for second in points[place + 1 :]
        if second[0] > first[0]
    ]
    steep = statistics.median(slopes)
    begin = points[0][0]
    at = statistics.median(value - steep * (time - begin) for time, value in points)
    residuals = sorted(value - at - steep * (time - begin) for time, value in points)
    cut = len(residuals) // 20
    width = residuals[-1 - cut] - residuals[cut]
    return Slope(steep * 60, width / (points[-1][0] - begin) * 60, at, begin)


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        try:
            import psutil
        except ImportError:
            return 0
        return int(psutil.Process().memory_info().rss)


def handles() -> int:
    """Open files and sockets; 0 where the system does not tell."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder)) - 1  # but for that of the look
        except OSError:
            continue
    return 0


def look(seconds: float, tasks: int, events: int) -> Sample:
    return Sample(
        round(seconds, 2), resident(), sys.getallocatedblocks(), threading.active_count(), tasks, handles(), events
    )


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 520, 96, 128, 108


def plot(samples: Sequence[Sample], line: Slope | None, verdict: str) -> str:
    """Resident memory over the run with the line of its second half, and the range of threads, tasks and handles."""
    seconds = samples[-1].seconds or 1.0
    sizes = [sample.memory / MIB for sample in samples]
    most = max(sizes) * 1.15 or 1.0
    across, down = WIDTH - LEFT - 28, HEIGHT - TOP - BOTTOM

    def x(second: float) -> float:
        return LEFT + across * second / seconds

    def y(size: float) -> float:
        return TOP + down * (1 - size / most)

    step = next((each for each in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000) if most / each <= 6), 5000)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' font-family="system-ui, sans-serif" aria-label="Memory of the soak">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#ffffff"/>',
        '<text x="24" y="44" font-size="30" font-weight="700" fill="#1c2430">Memory under load and faults</text>',
        f'<text x="24" y="80" font-size="22" fill="#5b6575">{escape(verdict)}</text>',
    ]
    for mark in range(0, int(most) + 1, step):
        parts += [
            f'<line x1="{LEFT}" y1="{y(mark):.1f}" x2="{WIDTH - 28}" y2="{y(mark):.1f}" stroke="#e3e7ed"/>',
            f'<text x="{LEFT - 10}" y="{y(mark) + 8:.1f}" font-size="22" text-anchor="end" fill="#5b6575">'
            f"{mark}</text>",
        ]
    points = " ".join(f"{x(sample.seconds):.1f},{y(size):.1f}" for sample, size in zip(samples, sizes, strict=True))
    parts += [
        f'<text x="24" y="{TOP - 16}" font-size="22" fill="#5b6575">MiB resident</text>',
        f'<polyline points="{points}" fill="none" stroke="#0b7a75" stroke-width="3"/>',
    ]
    if line is not None:
        end = line.at / MIB + line.per_minute / MIB * (seconds - line.begin) / 60
        parts.append(
            f'<line x1="{x(line.begin):.1f}" y1="{y(line.at / MIB):.1f}" x2="{x(seconds):.1f}" y2="{y(end):.1f}"'
            ' stroke="#b4452c" stroke-width="3" stroke-dasharray="10 6"/>'
        )
    ranges = ", ".join(
        f"{min(found)}–{max(found)} {name}"
        for name in ("threads", "tasks", "handles")
        if (found := [int(getattr(sample, name)) for sample in samples])
    )
    duration = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    parts += [
        f'<text x="{LEFT}" y="{HEIGHT - BOTTOM + 36}" font-size="22" fill="#5b6575">0</text>',
        f'<text x="{WIDTH - 28}" y="{HEIGHT - BOTTOM + 36}" font-size="22" text-anchor="end" fill="#5b6575">'
        f"{duration}</text>",
        f'<text x="24" y="{HEIGHT - 28}" font-size="22" fill="#1c2430">{escape(ranges)}</text>',
    ]
    return "\n".join([*parts, "</svg>", ""])
