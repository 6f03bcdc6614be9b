"""Waiting for a condition with a deadline; never for a length of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 120.0
"""Seconds after which something that must happen is held not to happen. Generous on purpose."""

_PAUSE = 0.02


class Deadline:
    """A point in time by the monotonic clock."""

    def __init__(self, seconds: float = DEADLINE) -> None:
        self._end = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Tell whether the time is up."""
        return time.monotonic() >= self._end


def wait_for(
    condition: Callable[[], T],
    what: str,
    *,
    seconds: float = DEADLINE,
    meanwhile: Callable[[], object] | None = None,
) -> T:
    """Return the first true value of *condition*; ``AssertionError`` naming *what* without one.

    *meanwhile* is called between two looks, to keep a subscription served.
    """
    deadline = Deadline(seconds)
    while True:
        value = condition()
        if value:
            return value
        if deadline.passed:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}; last seen: {value!r}")
        if meanwhile is None:
            time.sleep(_PAUSE)
        else:
            meanwhile()
