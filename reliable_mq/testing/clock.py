"""A clock whose hands a test turns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import BigInteger, ColumnElement, bindparam

from reliable_mq.durations import seconds
from reliable_mq.store.times import to_micros


class FakeClock:
    """Stands still until :meth:`advance`. Thread-safe.

    Takes the place of the machine's clocks and, as an SQL expression, of the database's.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._lock = threading.Lock()
        self._start = start or datetime.now(UTC)
        self._passed = 0.0
        self._listeners: list[Callable[[], None]] = []

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        with self._lock:
            return self._start + timedelta(seconds=self._passed)

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        with self._lock:
            return self._passed

    def advance(self, by: float | timedelta) -> None:
        """Let *by* (seconds or ``timedelta``) pass at once."""
        with self._lock:
            self._passed += seconds(by)
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call *listener* after each advance."""
        with self._lock:
            self._listeners.append(listener)

    @property
    def expression(self) -> ColumnElement[int]:
        """This clock in SQL: microseconds since 1970, read when a statement runs."""
        return bindparam(
            "fake_now", callable_=lambda: to_micros(self.now()), type_=BigInteger(), unique=True
        )
