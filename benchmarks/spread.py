"""Median and spread of repeated measurements, and ratios of those that were taken in turn."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle, the lowest and the highest of several values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise *values*, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    """Return the ratio in each round: neighbours in time met the same machine.

    Raises :class:`ValueError` where the two were not measured equally often.
    """
    return [one / other for one, other in zip(of, to, strict=True)]


def percentile(values: Sequence[float], part: float) -> float:
    """Return the smallest value that *part* (0 to 1) of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * part // 1).__int__() - 1)]
