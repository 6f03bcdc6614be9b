"""When work began and ended in one of several processes, seen from outside the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

_LOOK_EVERY = 0.002


class Progress:
    """Looks at a counter, on a thread of its own, and remembers its first and its last step."""

    def __init__(self, counter: Callable[[], int]) -> None:
        self._counter = counter
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> dict[str, float]:
        """Stop looking; return the times, and how much was done between them."""
        self._stop.set()
        self._thread.join()
        if self._first is None:
            return {"begun": 0.0, "ended": 0.0, "between": 0, "all": 0}
        (begun, before), (ended, after) = self._first, self._last
        return {"begun": begun, "ended": ended, "between": after - before, "all": after}

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY):
            self._look()
        self._look()

    def _look(self) -> None:
        count = self._counter()
        if count != self._last[1]:
            self._last = (time.monotonic(), count)
            self._first = self._first or self._last


def together(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the rate of processes that worked at the same time, by a clock they share."""
    busy = [one for one in reports if one["all"]]
    seconds = max(one["ended"] for one in busy) - min(one["begun"] for one in busy)
    between = sum(one["between"] for one in busy)
    return {
        "count": sum(one["all"] for one in busy),
        "rate": between / seconds,
        "cost_us": seconds * 1e6 / between,
        "rss_mb": max(one["rss_mb"] for one in reports),
    }
