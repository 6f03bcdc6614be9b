"""The test's own part of a lease: to serve the holder as often as the contract asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from reliable_mq.testing.contract.waiting import DEADLINE, Deadline


class Serving:
    """Watches how often a test serves a holder, while a rival waits for what it holds.

    A busy machine may keep the test itself waiting. A holder that is not served meanwhile loses
    what it holds, and rightly: what is seen from then on says nothing about the adapter.
    """

    def __init__(self, within: float) -> None:
        self._within = within
        self._begun = math.inf
        self.late = False
        """Whether the holder had to wait for longer than *within* seconds, once at least."""

    def begin(self) -> None:
        """Note that the holder is served now. Until the first time there is nothing to keep."""
        self._look()
        self._begun = time.monotonic()

    @property
    def in_time(self) -> bool:
        """Tell whether the holder has been served in time up to now."""
        self._look()
        return not self.late

    def _look(self) -> None:
        if time.monotonic() - self._begun > self._within:
            self.late = True


def servings(within: float) -> Iterator[Serving]:
    """Give a serving for each attempt, until the holder was served in time through a whole one.

    An attempt begins anew, with a topic of its own, and ends when its serving is late.
    *within* are the seconds from the beginning of one turn of serving the holder to the end of what
    the rival does before the next.
    """
    deadline = Deadline()
    while not deadline.passed:
        serving = Serving(within)
        yield serving
        if not serving.late:
            return
    raise AssertionError(
        f"for {DEADLINE:g} s this machine was too busy to serve a holder every {within:g} s"
    )
