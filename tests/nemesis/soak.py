"""Whether memory and open handles of long-lived processes grow without bound."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

EVERY = 2.0
WARM_UP = 0.3
WARM_UP_SECONDS = 45.0
"""That part of a life, and so much at least, is left out: pools, caches and arenas fill then."""
ENOUGH = 20
"""Samples without which there is no slope to speak of."""
MAX_MIB = 48.0
MAX_HANDLES = 150.0
"""Growth over the window, by the fitted line, that is called unbounded.

Buffers that fill late (of librdkafka after an outage, of the allocator after a large backlog) are
of a fixed size and far below 48 MiB. A consumer at work has 80 to 170 handles, with its pools and
clients, a relay 10 to 80: they let go of them when a server is gone. What leaks with every message,
fault or reconnection passes any bound if the run is long enough: 48 MiB are 500 bytes a message in
two hours.
"""
LIMITS = (("mib", "MiB", MAX_MIB), ("handles", "handles", MAX_HANDLES))
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    at: float
    mib: float
    handles: float


@dataclass
class Life:
    """A process that nobody kills, and all looks at it."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> None:
        """Add a sample, unless the process is gone."""
        process = Path("/proc") / str(self.pid)
        try:
            pages = int((process / "statm").read_text().split()[1])
            handles = len(os.listdir(process / "fd"))
        except FileNotFoundError:
            return
        self.samples.append(Sample(time.monotonic(), pages * _PAGE / 2**20, handles))

    @property
    def window(self) -> list[Sample]:
        """The samples after the warm-up."""
        if not self.samples:
            return []
        first, last = self.samples[0].at, self.samples[-1].at
        begin = first + max((last - first) * WARM_UP, WARM_UP_SECONDS)
        return [sample for sample in self.samples if sample.at >= begin]

    def report(self) -> str:
        """Return the figures and their bounds in a line."""
        window = self.window
        if len(window) < 2:
            return f"{self.name}: too short a life to say"
        minutes = (window[-1].at - window[0].at) / 60
        return f"{self.name}, in the last {minutes:.1f} minutes: " + ", ".join(
            f"{what} {getattr(window[0], name):.1f} -> {getattr(window[-1], name):.1f}, "
            f"by the fitted line {growth(window, name):+.1f} of at most {limit:g} "
            f"({growth(window, name) / minutes * 60:+.1f} an hour)"
            for name, what, limit in LIMITS
        )

    def violations(self) -> list[str]:
        """Return a line for each figure over its bound."""
        window = self.window
        if len(window) < ENOUGH:
            return []
        return [
            f"I9 {self.name}: {what} grew by {growth(window, name):.1f}, more than {limit:g}"
            for name, what, limit in LIMITS
            if growth(window, name) > limit
        ]


def growth(samples: Sequence[Sample], what: str) -> float:
    """Return how much *what* grew over the *samples*, by the line of least squares."""
    times = [sample.at - samples[0].at for sample in samples]
    values = [getattr(sample, what) for sample in samples]
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - middle) ** 2 for t in times)
    if not spread:
        return 0.0
    slope = sum((t - middle) * (v - mean) for t, v in zip(times, values, strict=True)) / spread
    return float(slope * times[-1])


class Watch:
    """Looks at the *lives* every few seconds, on a thread of its own, until ``close``."""

    def __init__(self, lives: Sequence[Life]) -> None:
        self.lives = lives
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="soak")
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            for life in self.lives:
                life.look()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()
