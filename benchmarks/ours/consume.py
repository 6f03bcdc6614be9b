"""The library's consumer with a handler that does nothing but remember what it saw."""

from __future__ import annotations

from typing import Any, NoReturn

from benchmarks.child import go, linger, peak_memory, report
from benchmarks.ours.application import application
from benchmarks.progress import Progress
from benchmarks.seen import Seen


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


def share(
    *, database_url: str, broker_url: str, topic: str, partitions: int | None, group: str
) -> dict[str, Any]:
    """Consume with others, at least once, until the parent says that all is done."""
    numbers: list[int] = []
    mq = application(database_url=database_url, broker_url=broker_url)

    @mq.handler(mq.topic(topic, partitions=partitions), group=group, guarantee="at-least-once")
    def handle(order: dict[str, Any]) -> None:
        numbers.append(int(order["n"]))

    mq.declare()
    go()
    with mq, mq.running(relay=False):
        progress = Progress(lambda: len(numbers))
        report(event="running")
        linger()
        return {**progress.end(), "rss_mb": peak_memory(), "numbers": numbers}
