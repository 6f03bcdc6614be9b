"""The library's consumer with a handler that does nothing but remember what it saw."""

from __future__ import annotations

import threading
from typing import Any, NoReturn

from benchmarks.child import Clock, consumed, go
from benchmarks.ours.application import application


class Seen:
    """What handlers saw; the clock runs from the first message to the last of *count*."""

    def __init__(self, count: int) -> None:
        self.numbers: list[str] = []
        self.figures: dict[str, float] = {}
        self._count = count
        self._clock: Clock | None = None
        self._done = threading.Event()

    def add(self, number: str) -> None:
        """Remember a message."""
        if self._clock is None:
            self._clock = Clock()
        self.numbers.append(number)
        if len(self.numbers) == self._count:
            self.figures = self._clock.read()
            self._done.set()

    def report(self) -> NoReturn:
        """Wait for the last one, then tell the parent."""
        self._done.wait()
        consumed(self.numbers, self.figures)


def consume(
    *,
    database_url: str,
    broker_url: str,
    topic: str,
    partitions: int | None,
    group: str,
    count: int,
) -> NoReturn:
    """Handle *count* messages, at least once each."""
    seen = Seen(count)
    mq = application(database_url=database_url, broker_url=broker_url)

    @mq.handler(mq.topic(topic, partitions=partitions), group=group, guarantee="at-least-once")
    def handle(order: dict[str, Any]) -> None:
        seen.add(order["n"])

    mq.declare()
    go()
    with mq.running(relay=False):
        seen.report()
