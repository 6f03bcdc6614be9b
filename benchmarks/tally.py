"""Counting what arrived: nothing lost, nothing twice, each key in its order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class WrongCount(Exception):
    """A run lost, doubled or reordered messages: its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was found of the messages 0 to *expected* - 1."""

    expected: int
    found: int
    distinct: int
    inversions: int = 0

    @classmethod
    def of(cls, numbers: Iterable[int], expected: int, keys: int = 1) -> Tally:
        """Count *numbers*, in the order in which they were found.

        *keys* is how many keys take turns; an inversion is a number lower than an earlier one
        of its key. Where keys are spread over partitions, give the numbers one partition after
        the other.
        """
        found = inversions = 0
        seen: set[int] = set()
        highest: dict[int, int] = {}
        for n in numbers:
            found += 1
            seen.add(n)
            key = n % keys
            if n < highest.get(key, -1):
                inversions += 1
            highest[key] = n
        distinct = len(seen & set(range(expected)))
        return cls(expected, found, distinct, inversions)

    def check(self, *, ordered: bool = False) -> None:
        """Raise :class:`WrongCount` unless everything is there once (and in order)."""
        lost = self.expected - self.distinct
        extra = self.found - self.distinct
        if lost or extra or (ordered and self.inversions):
            raise WrongCount(
                f"{self.expected} messages: {lost} lost, {extra} too many, "
                f"{self.inversions} out of order"
            )
