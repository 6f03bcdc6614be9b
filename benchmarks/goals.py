"""What a row has to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.spread import Spread, ratios

Samples = Mapping[str, Sequence[Mapping[str, float]]]
"""For each contestant, by name, one mapping of figures a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on a figure of one contestant, or on its ratio to the same figure of another.

    A ratio is taken within each round, and the median of the rounds counts.
    """

    of: str
    to: str | None = None
    figure: str = "rate"
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, samples: Samples) -> Verdict | None:
        """Return what was reached; None where a contestant did not take part."""
        mine = samples.get(self.of)
        others = samples.get(self.to) if self.to is not None else None
        if not mine or (self.to is not None and not others):
            return None
        values = [sample[self.figure] for sample in mine]
        if others:
            values = ratios(values, [sample[self.figure] for sample in others])
        return Verdict(self, Spread.of(values))

    @property
    def text(self) -> str:
        """Say what is bounded, and by what."""
        beside = f" / {self.to}" if self.to is not None else ""
        figure = "" if self.figure == "rate" else f" {self.figure}"
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{self.of}{beside}{figure} {bound}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was reached."""

    goal: Goal
    reached: Spread

    @property
    def met(self) -> bool:
        """Tell whether the median keeps the bounds."""
        low, high = self.goal.at_least, self.goal.at_most
        return (low is None or self.reached.median >= low) and (
            high is None or self.reached.median <= high
        )


def at_least(bound: float, of: str, to: str | None = None, figure: str = "rate") -> Goal:
    """Return a lower bound."""
    return Goal(of=of, to=to, figure=figure, at_least=bound)


def at_most(bound: float, of: str, to: str | None = None, figure: str = "rate") -> Goal:
    """Return an upper bound."""
    return Goal(of=of, to=to, figure=figure, at_most=bound)
