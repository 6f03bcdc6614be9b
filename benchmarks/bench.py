"""One run: its options, its rows in their turn, and what came of them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.goals import Goal, Verdict
from benchmarks.lab import Lab
from benchmarks.processes import Child, child

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run was asked for."""

    short: bool = False
    repeat: int = 5
    count: int | None = None
    peers: bool = True
    contestants: tuple[str, ...] = ()
    profile: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One column of a row: ``measure(count)`` prepares, runs and verifies one round.

    *share* is its part of the row's count, so that a slow one takes about as long as a fast one.
    """

    name: str
    measure: Callable[[int], Figures]
    share: float = 1.0
    note: str = ""
    missing: str = ""


def peer(
    *, name: str, measure: Callable[[int], Figures], module: str, share: float, note: str
) -> Contestant:
    """Return a contestant that takes part where its package is installed."""
    there = find_spec(module) is not None
    missing = "" if there else f"{module} is not installed for this Python"
    return Contestant(name=name, measure=measure, share=share, note=note, missing=missing)


class Bench:
    """What the rows work with."""

    def __init__(self, lab: Lab, options: Options) -> None:
        self.lab = lab
        self.options = options
        self.row = ""

    @contextmanager
    def child(self, contestant: str, side: str, /, **task: Any) -> Iterator[Child]:
        """Start a measured process, under a profiler where that was asked for."""
        with child(side, task, wrap=self._profiler(contestant)) as started:
            yield started

    def _profiler(self, contestant: str) -> list[str]:
        folder = self.options.profile
        if folder is None:
            return []
        folder.mkdir(parents=True, exist_ok=True)
        output = folder / f"{self.row}-{contestant.replace(' ', '-')}.txt"
        spy = Path(sys.executable).with_name("py-spy")
        return [str(spy), "record", "--format", "raw", "--rate", "200", "--output", str(output),
                "--nonblocking", "--"]  # fmt: skip

    def run(self, child: Child, *, timeout: float = 600.0) -> Figures:
        """Let a prepared child run to its end; return its figures with the rate."""
        child.expect("ready", timeout)
        child.go()
        figures = rated(child.expect("result", timeout))
        child.wait(timeout)
        return figures


def rated(figures: Mapping[str, Any]) -> Figures:
    """Return *figures* with messages a second, and processor time a message."""
    found = {name: float(value) for name, value in figures.items()}
    found["rate"] = found["count"] / found["seconds"]
    if "cpu_seconds" in found:
        found["cpu_us"] = found["cpu_seconds"] * 1e6 / found["count"]
    return found


class Row(ABC):
    """One line of the table."""

    name: ClassVar[str]
    title: ClassVar[str]
    count: ClassVar[int]
    short_count: ClassVar[int]
    unit: ClassVar[str] = "messages/s"
    goals: ClassVar[Sequence[Goal]] = ()
    by_name_only: ClassVar[bool] = False
    """Not part of a run of all rows: it takes hours, or the machine for itself."""

    @abstractmethod
    def open(self, bench: Bench, count: int) -> AbstractContextManager[list[Contestant]]:
        """Prepare what all rounds share."""


@dataclass(slots=True)
class Outcome:
    """What came of a row."""

    row: Row
    count: int
    samples: dict[str, list[Figures]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    def verdicts(self) -> list[Verdict]:
        """Judge the goals of which all contestants took part; none where the row failed."""
        if self.failure:
            return []
        found = (goal.judge(self.samples) for goal in self.row.goals)
        return [verdict for verdict in found if verdict is not None]


def measure(outcome: Outcome, bench: Bench, say: Callable[[str], None]) -> None:
    """Run the contestants of a row in turn, round after round; results go into *outcome*.

    Raises what a contestant raises; the rounds before it stay.
    """
    options, row = bench.options, outcome.row
    bench.row = row.name
    outcome.count = options.count or (row.short_count if options.short else row.count)
    with row.open(bench, outcome.count) as contestants:
        chosen = [one for one in contestants if _takes_part(one, options)]
        outcome.notes = {one.name: one.note for one in chosen if one.note}
        outcome.missing = {one.name: one.missing for one in chosen if one.missing}
        for number in range(1, options.repeat + 1):
            for one in chosen:
                if not one.missing:
                    figures = one.measure(max(100, int(outcome.count * one.share)))
                    outcome.samples.setdefault(one.name, []).append(figures)
                    say(f"{row.name} {number}/{options.repeat} {one.name}: {_shown(figures)}")


def _takes_part(one: Contestant, options: Options) -> bool:
    name = one.name
    if options.profile is not None and not name.startswith("ours"):
        return False
    if options.contestants:
        return any(word in name for word in options.contestants)
    return options.peers or name.startswith(("ours", "raw"))


def _shown(figures: Figures) -> str:
    return ", ".join(
        f"{name} {value:,.{0 if value >= 100 else 2}f}"
        for name, value in figures.items()
        if name not in ("count", "distinct", "seconds", "cpu_seconds")
    )
