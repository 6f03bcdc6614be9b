"""Consume at least once, with a handler that does nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from benchmarks.bench import Bench, Contestant, Figures, Row, peer, rated
from benchmarks.goals import at_least
from benchmarks.processes import Child
from benchmarks.supply import (
    SUPPLIES,
    ForCelery,
    ForDramatiq,
    OnRedisForFastStream,
    Supply,
)
from benchmarks.tally import Tally, WrongCount

_PATIENCE = 120.0
_GRACE = 1.0
"""Seconds after the last message until which everything must be acknowledged."""


_FASTSTREAM = {
    "kafka": "confluent broker, AckPolicy.ACK, one message a call; a commit for each message",
    "redis": "StreamSub in a group, 500 records a read, AckPolicy.ACK; its own message format",
    "rabbitmq": "the same quorum queue, AckPolicy.ACK, prefetch 500",
}
_DRAMATIQ = "one process, 8 threads, classic durable queue of its own, acknowledged after the actor"
_CELERY = "solo pool, acks_late, prefetch 500, results ignored, no gossip, mingle and heartbeat"


def taken(child: Child, supply: Supply, count: int, *, in_time: bool = True) -> Figures:
    """Let a prepared consumer take *count* messages; check that it did, and acknowledged them.

    Unless it must be *in_time*, what is not acknowledged after a second is one of the figures.
    """
    child.expect("ready", 120)
    child.go()
    figures = rated(child.expect("done", _PATIENCE))
    time.sleep(_GRACE)
    left = 0 if supply.counts_when_alone else supply.outstanding(count)
    child.go()
    final = child.expect("final", 60)
    child.kill()
    if supply.counts_when_alone:
        left = supply.outstanding(count)
    Tally(count, int(final["count"]), int(final["distinct"])).check()
    if not in_time:
        figures["unacknowledged"] = left
    elif left:
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

    def peer(
        self,
        name: str,
        side: str,
        *,
        module: str,
        share: float,
        note: str,
        supply: Supply | None = None,
        **task: Any,
    ) -> Contestant:
        """Return another library, which is here if *module* is; it takes *share* of the count."""
        supply = supply or self._supply

        def where() -> dict[str, Any]:
            return {**supply.raw_task(), **task}

        def measure(count: int) -> Figures:
            return self._measure(name, side, count, where, supply, in_time=False)

        return peer(name=name, measure=measure, module=module, share=share, note=note)

    def _measure(
        self,
        name: str,
        side: str,
        count: int,
        where: Callable[[], dict[str, Any]],
        supply: Supply | None = None,
        *,
        in_time: bool = True,
    ) -> Figures:
        supply = supply or self._supply
        supply.renew(count)
        self.before(count)
        with self._bench.child(name, side, broker_url=supply.url, count=count, **where()) as child:
            figures = taken(child, supply, count, in_time=in_time)
        self.after(count)
        supply.remove()
        return figures


class _Consume(Row):
    broker: ClassVar[str]
    share: ClassVar[float] = 0.05

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        with bench.lab.database() as database, bench.lab.broker(self.broker) as broker:
            supply = SUPPLIES[self.broker](bench.lab, broker, database)
            consumers = Consumers(bench, supply)
            raw = f"benchmarks.raw.{self.broker}:consume"
            yield [
                consumers.raw("raw", raw, payload="dict"),
                consumers.raw("raw bytes", raw, payload="bytes"),
                consumers.ours("ours", "benchmarks.ours.consume:consume"),
                *self.peers(consumers, supply),
            ]

    def peers(self, consumers: Consumers, supply: Supply) -> list[Contestant]:
        """Return the other libraries."""
        return [
            consumers.peer(
                "faststream",
                f"benchmarks.peers.faststream:consume_{self.broker}",
                module="faststream",
                share=self.share,
                note=_FASTSTREAM[self.broker],
            )
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

    def peers(self, consumers: Consumers, supply: Supply) -> list[Contestant]:
        return [
            consumers.peer(
                "faststream",
                "benchmarks.peers.faststream:consume_redis",
                module="faststream",
                share=self.share,
                note=_FASTSTREAM["redis"],
                supply=OnRedisForFastStream(supply.lab, supply.url, supply.database),
            )
        ]


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
    share = 0.2

    def peers(self, consumers: Consumers, supply: Supply) -> list[Contestant]:
        place = (supply.lab, supply.url, supply.database)
        return [
            *super().peers(consumers, supply),
            consumers.peer(
                "dramatiq",
                "benchmarks.peers.dramatiq:consume",
                module="dramatiq",
                share=0.3,
                note=_DRAMATIQ,
                supply=ForDramatiq(*place),
            ),
            consumers.peer(
                "celery",
                "benchmarks.peers.celery:consume",
                module="celery",
                share=0.1,
                note=_CELERY,
                supply=ForCelery(*place),
            ),
        ]


ROWS = (ConsumeKafka, ConsumeRedis, ConsumeRabbitMQ)
