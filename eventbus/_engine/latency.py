"""A histogram of seconds in logarithmic buckets: constant memory, quantiles to about 5 %.

Owner: the bus's monitor.
"""

from __future__ import annotations

import math

from .._values.stats import Latency

__all__ = ["Histogram"]

_STEPS = 8  # buckets per doubling: a bucket's middle is at most 4.5 % from its ends
_NONE = memoryview(b"")


class Histogram:
    """Sampled latencies.

    The counts stand in one buffer, for the doublings that occurred: as integers of their own they would be made anew at
    each sample, wherever memory is free at that moment, and keep whole arenas of the allocator from being given back.
    """

    __slots__ = ("_counts", "_first", "count", "max")

    def __init__(self) -> None:
        self._counts: memoryview[int] = _NONE
        self._first = 0  # the bucket that the first one of these belongs to
        self.count = 0
        self.max = 0.0

    def add(self, seconds: float) -> None:
        """Count one sample; a clock that went backwards counts as no time at all."""
        self._count(round(math.log2(seconds) * _STEPS) if seconds > 1e-9 else -30 * _STEPS, 1)
        self.count += 1
        if seconds > self.max:
            self.max = seconds

    def merge(self, other: Histogram) -> None:
        """Add another histogram's samples."""
        for place, count in enumerate(other._counts):
            if count:
                self._count(other._first + place, count)
        self.count += other.count
        self.max = max(self.max, other.max)

    def latency(self) -> Latency:
        """The public record."""
        if not self.count:
            return Latency()
        return Latency(self.count, self._quantile(0.5), self._quantile(0.99), self.max)

    def _count(self, bucket: int, times: int) -> None:
        if not 0 <= bucket - self._first < len(self._counts):
            self._widen(bucket)
        self._counts[bucket - self._first] += times

    def _widen(self, bucket: int) -> None:
        """Make room for the doubling of that bucket."""
        here = bucket // _STEPS * _STEPS
        size = len(self._counts)
        first = min(self._first, here) if size else here
        end = max(self._first + size, here + _STEPS) if size else here + _STEPS
        wider = memoryview(bytearray(8 * (end - first))).cast("Q")
        if size:
            wider[self._first - first : self._first - first + size] = self._counts
        self._counts = wider
        self._first = first

    def _quantile(self, share: float) -> float:
        rank = share * self.count
        seen = 0
        for place, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(math.exp2((self._first + place) / _STEPS), self.max)
        return self.max
