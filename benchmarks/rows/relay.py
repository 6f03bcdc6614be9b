"""Relay: from a full outbox to the broker, every message confirmed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from benchmarks.bench import Bench, Contestant, Figures, Row, peer
from benchmarks.brokers import kafka, rabbitmq, redis
from benchmarks.goals import at_least
from benchmarks.lab import connect
from benchmarks.ours.application import GROUP, prepare
from benchmarks.outbox import Outboxes
from benchmarks.tally import Tally

KEYS = 1000
HOT_KEYS = 5
_WORKERS = 50
_OMNI_BOX = "it needs Python 3.12 or later, and has no contestant here yet"
_HOT = f"ours {HOT_KEYS} keys"


def _refuse(_count: int) -> Figures:
    raise RuntimeError(_OMNI_BOX)


class Place(ABC):
    """One topic on a broker: made, read back, removed."""

    def __init__(self, url: str, topic: str) -> None:
        self.url = url
        self.topic = topic

    partitions: ClassVar[int | None] = None

    def create(self) -> None:  # noqa: B027 - a stream is created by its first entry
        """Create it for a raw publisher."""

    @abstractmethod
    def read(self, expected: int) -> Iterator[int]:
        """Yield the numbers of the messages in it."""

    @abstractmethod
    def remove(self) -> None:
        """Remove it."""


class OnKafka(Place):
    """A topic of several partitions."""

    partitions = kafka.PARTITIONS

    def create(self) -> None:
        kafka.create(self.url, self.topic)

    def read(self, expected: int) -> Iterator[int]:
        return kafka.read_back(self.url, self.topic)

    def remove(self) -> None:
        kafka.delete(self.url, self.topic)


class _OnRedis(Place):
    """A stream."""

    def read(self, expected: int) -> Iterator[int]:
        return redis.read_back(self.url, redis.stream_of(self.topic))

    def remove(self) -> None:
        redis.delete(self.url, self.topic)


class _OnRabbitMQ(Place):
    """An exchange with a quorum queue."""

    @property
    def queue(self) -> str:
        return f"{self.topic}.{GROUP}"

    def create(self) -> None:
        rabbitmq.create(self.url, self.topic, self.queue)

    def read(self, expected: int) -> Iterator[int]:
        return rabbitmq.read_back(self.url, self.queue, expected)

    def remove(self) -> None:
        rabbitmq.delete(self.url, self.topic, self.queue)


class _Relay(Row):
    broker: ClassVar[str]
    place: ClassVar[type[Place]]
    share: ClassVar[float] = 0.04
    unit = "rows/s"

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        with (
            bench.lab.database() as database,
            bench.lab.broker(self.broker) as broker,
            connect(database) as connection,
        ):
            rounds = _Rounds(self, bench, database, broker)
            rounds.prepare(connection, count)
            yield rounds.contestants()


class _Rounds:
    def __init__(self, row: _Relay, bench: Bench, database: str, broker: str) -> None:
        self._row = row
        self._bench = bench
        self._database = database
        self._broker = broker

    def prepare(self, connection: object, count: int) -> None:
        first = self._row.place(self._broker, self._bench.lab.unique("first"))
        self._prepare(first)
        first.remove()
        self._outboxes = Outboxes(connection, count, KEYS)
        self._hot = Outboxes(connection, count, HOT_KEYS, name="template_hot")
        self._outboxes.make_raw()

    def contestants(self) -> list[Contestant]:
        return [
            Contestant(name="raw", measure=self._raw),
            Contestant(
                name="ours", measure=lambda count: self._ours("ours", self._outboxes, count)
            ),
            Contestant(name=_HOT, measure=lambda count: self._ours(_HOT, self._hot, count)),
            self._faststream("faststream-outbox ordered", 1),
            self._faststream("faststream-outbox unordered", _WORKERS),
            Contestant(name="omni-box", measure=_refuse, missing=_OMNI_BOX),
        ]

    def _faststream(self, name: str, workers: int) -> Contestant:
        def measure(count: int) -> Figures:
            place = self._row.place(self._broker, self._bench.lab.unique("peer"))
            place.create()
            side = "benchmarks.peers.faststream_outbox"
            with self._bench.child(name, f"{side}:create", database_url=self._database) as child:
                child.expect("result", 60)
            self._outboxes.fill_faststream(count)
            with self._bench.child(
                name,
                f"{side}:relay",
                database_url=self._database,
                broker=self._row.broker,
                broker_url=self._broker,
                topic=place.topic,
                count=count,
                workers=workers,
            ) as child:
                figures = self._bench.run(child)
            left = self._outboxes.left("fso_outbox")
            self._check(place, count, left, KEYS, ordered=workers == 1)
            return figures

        note = (
            f"fetch_batch_size=500, deletes flushed in batches, max_workers={workers}, asyncpg; "
            "the handler publishes the bytes with their key and waits for the confirmation"
        )
        return peer(
            name=name, measure=measure, module="faststream_outbox", share=self._row.share, note=note
        )

    def _prepare(self, place: Place) -> None:
        prepare(
            database_url=self._database,
            broker_url=self._broker,
            topic=place.topic,
            partitions=place.partitions,
        )

    def _raw(self, count: int) -> Figures:
        place = self._row.place(self._broker, self._bench.lab.unique("raw"))
        place.create()
        self._outboxes.fill_raw(place.topic, count)
        side = f"benchmarks.raw.{self._row.broker}:relay"
        urls = {"database_url": self._database, "broker_url": self._broker}
        with self._bench.child("raw", side, **urls) as child:
            figures = self._bench.run(child)
        self._check(place, count, self._outboxes.left("raw_outbox"), KEYS)
        return figures

    def _ours(self, name: str, outboxes: Outboxes, count: int) -> Figures:
        place = self._row.place(self._broker, self._bench.lab.unique("ours"))
        self._prepare(place)
        outboxes.fill(place.topic, count)
        with self._bench.child(
            name,
            "benchmarks.ours.relay:relay",
            database_url=self._database,
            broker_url=self._broker,
            topic=place.topic,
            partitions=place.partitions,
            count=count,
        ) as child:
            figures = self._bench.run(child)
        self._check(place, count, outboxes.left("reliable_mq_outbox"), outboxes.keys)
        return figures

    def _check(
        self, place: Place, count: int, left: int, keys: int, *, ordered: bool = True
    ) -> None:
        Tally.of(place.read(count), count, keys).check(ordered=ordered)
        if left:
            raise RuntimeError(f"{left} rows were sent and not deleted")
        place.remove()


class RelayKafka(_Relay):
    """To Kafka."""

    name = "relay-kafka"
    title = "relay to Kafka, order per key"
    count, short_count = 300_000, 60_000
    broker, place = "kafka", OnKafka
    goals = (
        at_least(0.55, "ours", "raw"),
        at_least(25, "ours", "faststream-outbox ordered"),
        at_least(0.9, _HOT, "ours"),
    )


class RelayRedis(_Relay):
    """To Redis Streams."""

    name = "relay-redis"
    title = "relay to Redis Streams, order per key"
    count, short_count = 200_000, 40_000
    broker, place = "redis", _OnRedis
    goals = (
        at_least(0.6, "ours", "raw"),
        at_least(8, "ours", "faststream-outbox ordered"),
        at_least(0.9, _HOT, "ours"),
    )


class RelayRabbitMQ(_Relay):
    """To a quorum queue."""

    name = "relay-rabbitmq"
    title = "relay to RabbitMQ, order per key"
    count, short_count = 60_000, 15_000
    broker, place = "rabbitmq", _OnRabbitMQ
    share = 0.15
    goals = (
        at_least(0.7, "ours", "raw"),
        at_least(8, "ours", "faststream-outbox ordered"),
        at_least(0.3, _HOT, "ours"),
    )


ROWS = (RelayKafka, RelayRedis, RelayRabbitMQ)
