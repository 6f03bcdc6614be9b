"""Consume at least once, with a handler that does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from benchmarks.bench import Bench, Contestant, Figures, Row, rated
from benchmarks.goals import at_least
from benchmarks.processes import Child
from benchmarks.supply import SUPPLIES, Supply
from benchmarks.tally import Tally, WrongCount

_GRACE = 1.0
"""Seconds after the last message until which everything must be acknowledged."""


def taken(child: Child, supply: Supply, count: int) -> Figures:
    """Let a prepared consumer take *count* messages; check that it did, and acknowledged them."""
    child.expect("ready", 120)
    child.go()
    figures = rated(child.expect("done", 600))
    time.sleep(_GRACE)
    left = 0 if supply.counts_when_alone else supply.outstanding(count)
    child.go()
    final = child.expect("final", 60)
    child.kill()
    if supply.counts_when_alone:
        left = supply.outstanding(count)
    Tally(count, int(final["count"]), int(final["distinct"])).check()
    if left:
        raise WrongCount(f"{left} of {count} messages not acknowledged {_GRACE:g} s after the last")
    return figures


class Consumers:
    """Measures consumers of one broker, each with messages of its own."""

    def __init__(self, bench: Bench, supply: Supply) -> None:
        self._bench = bench
        self._supply = supply

    def before(self, count: int) -> None:
        """Prepare a round further than by having messages."""

    def after(self, count: int) -> None:
        """Verify a round further than by what the consumer said."""

    def raw(self, name: str, side: str, **task: Any) -> Contestant:
        """Return a raw client, under a name that begins with ``raw``."""

        def where() -> dict[str, Any]:
            return {**self._supply.raw_task(), **task}

        return Contestant(name=name, measure=lambda n: self._measure(name, side, n, where))

    def ours(self, name: str, side: str, **task: Any) -> Contestant:
        """Return the library, under a name that begins with ``ours``."""
        supply = self._supply

        def where() -> dict[str, Any]:
            return {
                "database_url": supply.database,
                "topic": supply.topic,
                "group": supply.group,
                "partitions": supply.partitions,
                **task,
            }

        return Contestant(name=name, measure=lambda n: self._measure(name, side, n, where))

    def _measure(
        self, name: str, side: str, count: int, where: Callable[[], dict[str, Any]]
    ) -> Figures:
        supply = self._supply
        supply.renew(count)
        self.before(count)
        with self._bench.child(name, side, broker_url=supply.url, count=count, **where()) as child:
            figures = taken(child, supply, count)
        self.after(count)
        supply.remove()
        return figures


class _Consume(Row):
    broker: ClassVar[str]

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        with bench.lab.database() as database, bench.lab.broker(self.broker) as broker:
            consumers = Consumers(bench, SUPPLIES[self.broker](bench.lab, broker, database))
            yield [
                consumers.raw("raw", f"benchmarks.raw.{self.broker}:consume"),
                consumers.ours("ours", "benchmarks.ours.consume:consume"),
            ]


class ConsumeKafka(_Consume):
    """From Kafka."""

    name = "consume-kafka"
    title = "consume at least once from Kafka, no-op handler"
    count, short_count = 300_000, 60_000
    broker = "kafka"
    goals = (at_least(0.25, "ours", "raw"), at_least(12, "ours", "faststream"))


class ConsumeRedis(_Consume):
    """From Redis Streams."""

    name = "consume-redis"
    title = "consume at least once from Redis Streams, no-op handler"
    count, short_count = 200_000, 40_000
    broker = "redis"
    goals = (at_least(0.3, "ours", "raw"), at_least(7, "ours", "faststream"))


class ConsumeRabbitMQ(_Consume):
    """From a quorum queue."""

    name = "consume-rabbitmq"
    title = "consume at least once from RabbitMQ, no-op handler"
    count, short_count = 60_000, 20_000
    broker = "rabbitmq"
    goals = (
        at_least(0.5, "ours", "raw"),
        at_least(1.4, "ours", "dramatiq"),
        at_least(3, "ours", "faststream"),
    )


ROWS = (ConsumeKafka, ConsumeRedis, ConsumeRabbitMQ)
