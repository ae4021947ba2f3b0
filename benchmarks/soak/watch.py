"""What the process holds: sampled under load and at rest, and judged by slopes.

At rest nothing runs and nobody plays, so what is in use is known to some KiB, whatever the load was: a leak stands out.
Resident memory is another matter: an allocator keeps what it once needed, and glibc's keeps freed memory in a cache of
each living thread, which counts as in use until that thread ends. So those who play end their threads at each rest, and
glibc is asked to give back what it can, before it is looked at.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import struct
import sys
import threading
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["JUDGED_FROM", "Record", "Sample", "Slope", "handles", "heap", "look", "plot", "resident", "slope", "tidy"]

JUDGED_FROM = 120.0  # seconds that a run must last for its memory to be judged
PAIRS_OF = 400  # points at most: the pairs of more are thinned out
MIB = 1 << 20
LAYOUT = struct.Struct("<d7q?")  # of a sample


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the process."""

    seconds: float
    memory: int  # bytes that are resident
    blocks: int  # of Python's allocator, in use
    heap: int  # bytes of the C library's allocator, in use; 0 where it does not tell
    threads: int
    tasks: int
    handles: int
    events: int
    rest: bool = False  # at rest, and tidied up


class Record:
    """Samples, in memory that is taken beforehand: what grows with each of them would look like a leak."""

    def __init__(self, expected: int) -> None:
        self._store = bytearray(expected * LAYOUT.size)
        self._count = 0

    def append(self, sample: Sample) -> None:
        """Keep one more; the room is doubled if more come than were expected."""
        if (self._count + 1) * LAYOUT.size > len(self._store):
            self._store.extend(bytes(max(len(self._store), LAYOUT.size)))
        LAYOUT.pack_into(self._store, self._count * LAYOUT.size, *VALUES(sample))
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        for place in range(self._count):
            yield Sample(*LAYOUT.unpack_from(self._store, place * LAYOUT.size))


VALUES = attrgetter(*Sample.__slots__)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Slope:
    """A Theil-Sen line, per minute, and what of it may be noise.

    Attributes:
        per_minute: The median of the slopes of all pairs.
        noise: How steep a line the scatter about it can feign: the width of the middle 90 % of the residuals, but at
            least the grain, over the time that was looked at.
        at: What the line says at its beginning.
        begin: When that was, in seconds.
    """

    per_minute: float
    noise: float
    at: float
    begin: float

    @property
    def grows(self) -> bool:
        return self.per_minute > self.noise


def slope(times: Sequence[float], values: Sequence[float], grain: float = 0.0) -> Slope:
    """The slope of all of it; ``grain``: by how much less than that a value cannot change. Raises ValueError for fewer
    than four points."""
    points = list(zip(times, values, strict=True))
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
    width = max(grain, residuals[-1 - cut] - residuals[cut])
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


MALLINFO = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class Mallinfo(ctypes.Structure):
    """What glibc tells of its allocator since 2.33, of all its arenas together."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallinfo2.restype = Mallinfo
        library.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError):  # another C library, or an old one
        return None
    return library


_libc = _glibc()


def heap() -> int:
    """Bytes that the C library's allocator has given out; 0 where it does not tell."""
    if _libc is None:
        return 0
    found = _libc.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def tidy() -> None:
    """Collect garbage, and give back to the system what the C library's allocator can give back."""
    for _ in range(3):  # finalizers may keep for one more round what they belong to
        gc.collect()
    if _libc is not None:
        _libc.malloc_trim(0)


def look(seconds: float, tasks: int, events: int, rest: bool = False) -> Sample:
    """A sample; a collection comes first, under load too, for garbage that waits for its own is no growth."""
    if rest:
        tidy()
    else:
        gc.collect()
    return Sample(
        round(seconds, 2),
        resident(),
        sys.getallocatedblocks(),
        heap(),
        threading.active_count(),
        tasks,
        handles(),
        events,
        rest,
    )


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 520, 96, 128, 108


def plot(samples: Sequence[Sample], line: Slope | None, verdict: str) -> str:
    """Resident memory over the run, that at rest with its line, and the range of threads, tasks and handles."""
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
        f'<text x="24" y="{TOP - 16}" font-size="22" fill="#5b6575">MiB resident; dots: at rest</text>',
        f'<polyline points="{points}" fill="none" stroke="#0b7a75" stroke-width="2"/>',
        *(
            f'<circle cx="{x(sample.seconds):.1f}" cy="{y(size):.1f}" r="4" fill="#b4452c"/>'
            for sample, size in zip(samples, sizes, strict=True)
            if sample.rest
        ),
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
