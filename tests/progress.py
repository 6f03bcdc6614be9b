"""A deadline for what takes as long as the machine takes: it is for standing still alone."""

from __future__ import annotations

import time


class Progress:
    """Is over when what is left has not become less for so many seconds.

    How fast work is done is promised nowhere, and a crowded machine does it slowly.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._least: int | None = None
        self._deadline = time.monotonic() + seconds

    def note(self, left: int) -> None:
        """Note how much is left now."""
        if self._least is None or left < self._least:
            self._least = left
            self._deadline = time.monotonic() + self._seconds

    @property
    def is_over(self) -> bool:
        """Tell whether nothing has gone on for too long."""
        return time.monotonic() >= self._deadline
