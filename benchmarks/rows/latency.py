"""From the commit of an outbox row to the start of the handler, at a hundred messages a second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

from benchmarks.arrivals import WARM_UP, latencies
from benchmarks.bench import Bench, Contestant, Figures, Row, peer
from benchmarks.brokers import kafka
from benchmarks.goals import Goal, at_most
from benchmarks.lab import connect
from benchmarks.ours.application import prepare
from benchmarks.outbox import Outboxes
from benchmarks.supply import KEYS

RATE = 100
_START = 60.0
_NOTES = {
    "broker alone": "two processes, no outbox: from the publish to the consumer",
    "raw": "three processes, LISTEN/NOTIFY relay with raw clients",
    "ours": "three processes, at-least-once handler",
    "faststream-outbox": "its relay and publisher (asyncpg, LISTEN/NOTIFY), raw consumer",
}


class _Way:
    """One topic, and the processes along it."""

    def __init__(self, bench: Bench, database: str, broker: str, kind: str) -> None:
        self.bench = bench
        self.database = database
        self.broker = broker
        self.kind = kind
        self.partitions = kafka.PARTITIONS if kind == "kafka" else None
        self.topic = bench.lab.unique("latency")
        # The consumer before was killed: its group would wait for it.
        self.group = bench.lab.unique("group")
        prepare(
            database_url=database,
            broker_url=broker,
            topic=self.topic,
            partitions=self.partitions,
            group=self.group,
        )
        with connect(database) as connection:
            # So was the relay, whose slots would be its own until its leases end.
            connection.execute("DELETE FROM reliable_mq_lease")
            connection.commit()

    def raw_place(self) -> dict[str, str]:
        """Return where a raw consumer listens."""
        if self.kind == "kafka":
            return {"topic": self.topic, "group": self.group}
        if self.kind == "redis":
            # The library's own group is there already.
            return {"stream": f"{{{self.topic}}}:0", "group": "raw"}
        return {"queue": f"{self.topic}.{self.group}"}

    def ours(self) -> dict[str, Any]:
        """Return where the library's processes are."""
        return {
            "database_url": self.database,
            "broker_url": self.broker,
            "topic": self.topic,
            "partitions": self.partitions,
        }

    def measure(
        self, name: str, count: int, steps: Sequence[tuple[str, dict[str, Any]]]
    ) -> Figures:
        """Run the consumer, what lies between, and last the publisher."""
        with ExitStack() as stack:
            running = []
            for side, task in steps:
                child = stack.enter_context(self.bench.child(name, side, **task))
                child.expect("ready", _START)
                child.go()
                if side != steps[-1][0]:
                    child.expect("running", _START)
                running.append(child)
            left = running[-1].expect("result", count / RATE + _START)["times"]
            arrived = running[0].expect("arrived", _START)["times"]
        return dict(latencies(left, arrived))

    def consumer(self, count: int) -> tuple[str, dict[str, Any]]:
        """Return the raw consumer."""
        task = {"broker": self.kind, "broker_url": self.broker, "count": count}
        return "benchmarks.raw.latency:consume", {**task, **self.raw_place()}


class _Latency(Row):
    kind: ClassVar[str]
    unit = "milliseconds"
    count, short_count = 3000, 400
    goals: ClassVar[Sequence[Goal]] = (
        at_most(3, "ours", figure="p50_ms"),
        at_most(15, "ours", figure="p99_ms"),
    )

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        with (
            bench.lab.database() as database,
            bench.lab.broker(self.kind) as broker,
            connect(database) as connection,
        ):
            Outboxes(connection, 1, KEYS).make_raw()

            def way() -> _Way:
                return _Way(bench, database, broker, self.kind)

            measures = {"broker alone": _alone, "raw": _raw, "ours": _ours}
            yield [
                *(
                    Contestant(
                        name=name,
                        measure=lambda n, measure=measure: measure(way(), n + WARM_UP),  # type: ignore[misc]
                        note=_NOTES[name],
                    )
                    for name, measure in measures.items()
                ),
                peer(
                    name="faststream-outbox",
                    measure=lambda n: _faststream(way(), n + WARM_UP),
                    module="faststream_outbox",
                    share=1.0,
                    note=_NOTES["faststream-outbox"],
                ),
            ]


def _pace(count: int) -> dict[str, Any]:
    return {"count": count, "rate": RATE, "keys": KEYS}


def _alone(way: _Way, count: int) -> Figures:
    task = {"broker": way.kind, "broker_url": way.broker, "topic": way.topic, **_pace(count)}
    publisher = ("benchmarks.raw.latency:publish_direct", task)
    return way.measure("broker alone", count, [way.consumer(count), publisher])


def _raw(way: _Way, count: int) -> Figures:
    relay = {"database_url": way.database, "broker_url": way.broker, "forever": True}
    publisher = {"database_url": way.database, "topic": way.topic, **_pace(count)}
    steps = [
        way.consumer(count),
        (f"benchmarks.raw.{way.kind}:relay", relay),
        ("benchmarks.raw.latency:publish", publisher),
    ]
    return way.measure("raw", count, steps)


def _ours(way: _Way, count: int) -> Figures:
    steps = [
        ("benchmarks.ours.latency:consume", {**way.ours(), "group": way.group, "count": count}),
        ("benchmarks.ours.latency:relay", way.ours()),
        ("benchmarks.ours.latency:publish", {**way.ours(), **_pace(count)}),
    ]
    return way.measure("ours", count, steps)


def _faststream(way: _Way, count: int) -> Figures:
    side = "benchmarks.peers.faststream_outbox"
    place = {"database_url": way.database, "broker": way.kind, "broker_url": way.broker}
    with way.bench.child("peer", f"{side}:create", database_url=way.database) as child:
        child.expect("result", _START)
    steps = [
        way.consumer(count),
        (f"{side}:serve", {**place, "topic": way.topic}),
        (f"{side}:publish", {"database_url": way.database, **_pace(count)}),
    ]
    return way.measure("faststream-outbox", count, steps)


class LatencyKafka(_Latency):
    """Through Kafka."""

    name = "latency-kafka"
    title = "outbox commit to handler start through Kafka, 100 messages/s"
    kind = "kafka"


class LatencyRedis(_Latency):
    """Through Redis Streams."""

    name = "latency-redis"
    title = "outbox commit to handler start through Redis Streams, 100 messages/s"
    kind = "redis"


class LatencyRabbitMQ(_Latency):
    """Through RabbitMQ."""

    name = "latency-rabbitmq"
    title = "outbox commit to handler start through RabbitMQ, 100 messages/s"
    kind = "rabbitmq"


class LatencySQL(Row):
    """Through the database itself."""

    name = "latency-sql"
    title = "outbox commit to handler start through sql://, 100 messages/s"
    unit = "milliseconds"
    count, short_count = 3000, 400
    goals = (at_most(5, "ours", figure="p50_ms"), at_most(25, "ours", figure="p99_ms"))

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        with bench.lab.database() as database:

            def measure(count: int) -> Figures:
                return _ours(_Way(bench, database, "sql://", "sql"), count + WARM_UP)

            yield [Contestant(name="ours", measure=measure, note=_NOTES["ours"])]


ROWS = (LatencyKafka, LatencyRedis, LatencyRabbitMQ, LatencySQL)
