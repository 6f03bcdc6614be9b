"""Time as a dependency, so that a test can turn the hands.

Three times exist and are never mixed: the wall clock stamps messages, the monotonic clock
measures this process's own waits, and the *database's* clock decides everything two processes
must agree on (leases, due times); the last one is a SQL expression of the store's.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Thread-safe source of time."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back, from an arbitrary start."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """Return the wall-clock time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return :func:`time.monotonic`."""
        return time.monotonic()
