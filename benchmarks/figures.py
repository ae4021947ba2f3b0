"""What is made of samples: medians, quartiles, and ratios that pair the samples of one round."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Spread", "percentile", "ratio", "spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


def spread(samples: Sequence[float]) -> Spread:
    """The median and the quartiles of at least one sample."""
    if not samples:
        raise ValueError("no samples: nothing was measured")
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return Spread(median(samples), low, high)


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread | None:
    """How many times ``above`` is ``below``, paired round by round; None where that cannot be said.

    Rounds are interleaved, so what slows the machine for a while slows both halves of a pair.
    """
    pairs = [a / b for a, b in zip(above, below, strict=False) if b]
    return spread(pairs) if pairs else None


def percentile(samples: Sequence[float], share: float) -> float:
    """The sample below which ``share`` of the samples lie (nearest rank)."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
