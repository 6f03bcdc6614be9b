"""What a handler saw, for all who are called by somebody else's loop."""

from __future__ import annotations

import threading
from typing import NoReturn

from benchmarks.child import Clock, consumed


class Seen:
    """The messages that came. The first one starts the clock; the last of *count* reads it."""

    def __init__(self, count: int) -> None:
        self.done = threading.Event()
        self._numbers: list[object] = []
        self._count = count
        self._clock: Clock | None = None
        self._figures: dict[str, float] = {}

    def begin(self) -> None:
        """Start the clock, unless it runs."""
        if self._clock is None:
            self._clock = Clock()

    def add(self, number: object) -> None:
        """Count one more, begun or not."""
        if self._clock is None:
            self._clock = Clock()
        self._numbers.append(number)
        if len(self._numbers) == self._count:
            self.read()
            self.done.set()

    def read(self) -> None:
        """Read the clock (again): what is reported is its last state."""
        assert self._clock is not None
        self._figures = self._clock.read()

    def result(self) -> dict[str, float]:
        """Return what the parent wants to know, once all have come."""
        return {"count": len(self._numbers), **self._figures}

    def report(self) -> NoReturn:
        """Tell the parent, once all have come, and stay until it ends this process."""
        self.done.wait()
        consumed(self._numbers, self._figures)

    def report_beside(self) -> None:
        """Do that on a thread: this one belongs to the library under measurement."""
        threading.Thread(target=self.report, daemon=True).start()
