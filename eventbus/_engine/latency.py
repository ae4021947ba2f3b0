"""A histogram of seconds in logarithmic buckets: constant memory, quantiles to about 5 %.

Owner: the bus's monitor.
"""

from __future__ import annotations

import math

from .._values.stats import Latency

__all__ = ["Histogram"]

_STEPS = 8  # buckets per doubling: a bucket's middle is at most 4.5 % from its ends


class Histogram:
    """Sampled latencies."""

    __slots__ = ("buckets", "count", "max")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.max = 0.0

    def add(self, seconds: float) -> None:
        """Count one sample; a clock that went backwards counts as no time at all."""
        bucket = round(math.log2(seconds) * _STEPS) if seconds > 1e-9 else -30 * _STEPS
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        if seconds > self.max:
            self.max = seconds

    def merge(self, other: Histogram) -> None:
        """Add another histogram's samples."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.max = max(self.max, other.max)

    def latency(self) -> Latency:
        """The public record."""
        if not self.count:
            return Latency()
        return Latency(self.count, self._quantile(0.5), self._quantile(0.99), self.max)

    def _quantile(self, share: float) -> float:
        rank = share * self.count
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return min(math.exp2(bucket / _STEPS), self.max)
        return self.max
