"""Times of departure and arrival, by the clock that all processes of a machine share."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from benchmarks.child import report
from benchmarks.spread import percentile
from benchmarks.tally import Tally

WARM_UP = 50
"""Messages at the beginning that are not counted: connections, caches, first leases."""


def pace(count: int, rate: int) -> Iterator[int]:
    """Yield 0 to *count* - 1, *rate* of them a second."""
    begun = time.monotonic()
    for n in range(count):
        left = begun + n / rate - time.monotonic()
        if left > 0:
            time.sleep(left)
        yield n


class Arrivals:
    """When each message came."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._times: list[tuple[int, int]] = []
        self._done = threading.Event()

    def add(self, number: int) -> None:
        """Note that message *number* is here."""
        self._times.append((number, time.monotonic_ns()))
        if len(self._times) == self._count:
            self._done.set()

    def tell(self) -> NoReturn:
        """Report them once all have come, and wait to be ended; other threads go on."""
        report(event="running")
        self._done.wait()
        report(event="arrived", times=self._times)
        sys.stdin.readline()
        while True:
            time.sleep(60)


def latencies(left: Sequence[int], arrived: Sequence[Sequence[int]]) -> Mapping[str, float]:
    """Return percentiles in milliseconds; raises where messages are missing or came twice."""
    Tally.of([n for n, _ in arrived], len(left)).check()
    found = [(at - left[n]) / 1e6 for n, at in arrived if n >= WARM_UP]
    return {
        "count": len(found),
        "p50_ms": percentile(found, 0.5),
        "p99_ms": percentile(found, 0.99),
        "max_ms": max(found),
    }
