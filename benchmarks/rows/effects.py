"""Consume effectively once: each message inserts one row of the application's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from benchmarks.bench import Bench, Contestant, Row
from benchmarks.effects import TABLE, effects
from benchmarks.goals import at_least
from benchmarks.lab import connect
from benchmarks.ours.application import prepare
from benchmarks.raw.effects import INBOX
from benchmarks.rows.consume import Consumers
from benchmarks.supply import KEYS, SUPPLIES, Supply
from benchmarks.tally import WrongCount
from benchmarks.workload import body_of, id_of
from reliable_mq.message import fingerprint

_OURS = "benchmarks.ours.effects:consume"
_RAW = "benchmarks.raw.effects:consume"


class Effects(Consumers):
    """Consumers whose effects are counted in the database."""

    def __init__(self, bench: Bench, supply: Supply, connection: Any) -> None:
        super().__init__(bench, supply)
        self._supply = supply
        self.connection = connection

    def before(self, count: int) -> None:
        """Begin with empty tables."""
        self.connection.execute(f"TRUNCATE {TABLE}, raw_inbox, reliable_mq_inbox")
        self.connection.commit()

    def after(self, count: int) -> None:
        """Each message must have had its effect once."""
        query = f"SELECT count(*), count(DISTINCT n) FROM {TABLE}"
        found = self.connection.execute(query).fetchone()
        self.connection.commit()
        if tuple(found) != (count, count):
            raise WrongCount(f"{found[0]} effects of {found[1]} messages, expected {count}")


class Duplicates(Effects):
    """Consumers that meet only what the inbox knows already."""

    def before(self, count: int) -> None:
        """Write the inbox as it is after all messages were handled."""
        super().before(count)
        columns = "consumer_group, topic, message_id, fingerprint, received_at, done_at"
        now = 1_767_225_600_000_000
        with self.connection.cursor().copy(
            f"COPY reliable_mq_inbox ({columns}) FROM STDIN"
        ) as copy:
            for n in range(count):
                mark = fingerprint(body_of(n, KEYS))
                place = (self._supply.group, self._supply.topic)
                copy.write_row((*place, id_of(n), mark, now, now))
        self.connection.commit()

    def after(self, count: int) -> None:
        """No message may have had an effect again."""
        found = self.connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone()[0]
        self.connection.commit()
        if found:
            raise WrongCount(f"{found} of {count} duplicates had an effect")


class _EffectsRow(Row):
    broker: ClassVar[str] = "kafka"

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        with (
            bench.lab.database() as database,
            bench.lab.broker(self.broker) as broker,
            connect(database) as connection,
        ):
            supply = SUPPLIES[self.broker](bench.lab, broker, database)
            topic = bench.lab.unique("first")
            prepare(database_url=database, broker_url=broker, topic=topic, partitions=None)
            _make_tables(database, connection)
            yield self.contestants(bench, supply, connection)

    def contestants(self, bench: Bench, supply: Supply, connection: Any) -> list[Contestant]:
        """Return who takes part."""
        raise NotImplementedError


def _make_tables(database: str, connection: Any) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(database)
    effects.metadata.create_all(engine)
    engine.dispose()
    connection.execute(INBOX)
    connection.commit()


def _faststream_on_kafka(consumers: Effects, supply: Supply, *, share: float) -> Contestant:
    return consumers.peer(
        "faststream, own inbox",
        "benchmarks.peers.faststream:effects_kafka",
        module="faststream",
        share=share,
        note="confluent broker, AckPolicy.ACK, inbox row and INSERT in one asyncpg transaction",
        database_url=supply.database,
    )


def _faststream_on_rabbitmq(consumers: Effects, supply: Supply, *, connections: int) -> Contestant:
    return consumers.peer(
        f"faststream, own inbox, {connections} connections"
        if connections > 1
        else "faststream, own inbox",
        "benchmarks.peers.faststream:effects_rabbitmq",
        module="faststream",
        share=0.5,
        note=f"AckPolicy.ACK, prefetch {connections}, inbox row and INSERT in one asyncpg "
        "transaction",
        database_url=supply.database,
        connections=connections,
    )


class _PerMessage(_EffectsRow):
    count, short_count = 6000, 1500
    goals = (at_least(0.75, "ours", "raw"), at_least(2, "ours", "faststream, own inbox"))

    def contestants(self, bench: Bench, supply: Supply, connection: Any) -> list[Contestant]:
        supply.ordered = True
        consumers = Effects(bench, supply, connection)
        return [
            consumers.raw(
                "raw",
                _RAW,
                broker=self.broker,
                database_url=supply.database,
                size=1,
                way="one by one",
            ),
            consumers.ours("ours", _OURS, style="core", ordered=True),
            *self.peers(consumers, supply),
        ]

    def peers(self, consumers: Effects, supply: Supply) -> list[Contestant]:
        """Return the other libraries."""
        return []


class EffectsKafka(_PerMessage):
    """One message a transaction, from Kafka."""

    name = "effects-kafka"
    title = "effectively once from Kafka: one INSERT (Core) a message, in order"

    def peers(self, consumers: Effects, supply: Supply) -> list[Contestant]:
        return [_faststream_on_kafka(consumers, supply, share=0.5)]


class EffectsRabbitMQ(_PerMessage):
    """One message a transaction, from RabbitMQ."""

    name = "effects-rabbitmq"
    title = "effectively once from RabbitMQ: one INSERT (Core) a message, in order"
    broker = "rabbitmq"

    def peers(self, consumers: Effects, supply: Supply) -> list[Contestant]:
        return [_faststream_on_rabbitmq(consumers, supply, connections=1)]


class EffectsRedis(_PerMessage):
    """One message a transaction, from Redis."""

    name = "effects-redis"
    title = "effectively once from Redis: one INSERT (Core) a message, in order"
    broker = "redis"


class EffectsBatch(_EffectsRow):
    """A hundred messages a transaction."""

    name = "effects-batch"
    title = "effectively once from Kafka, transaction_size=100"
    count, short_count = 40_000, 10_000
    goals = (
        at_least(0.65, "ours", "raw insert per message"),
        at_least(0.35, "ours ORM", "raw set-based"),
        at_least(7, "ours", "faststream, own inbox"),
    )

    def contestants(self, bench: Bench, supply: Supply, connection: Any) -> list[Contestant]:
        consumers = Effects(bench, supply, connection)
        raw: dict[str, Any] = {
            "broker": self.broker,
            "database_url": supply.database,
            "size": 100,
        }
        batch = {"transaction_size": 100, "ordered": True}
        return [
            consumers.raw("raw insert per message", _RAW, way="one by one", **raw),
            consumers.raw("raw set-based", _RAW, way="at once", **raw),
            # What is left of that with SQLAlchemy's unit of work, which ours ORM has too.
            consumers.raw("raw ORM", _RAW, way="ORM", **raw),
            consumers.ours("ours", _OURS, style="core", **batch),
            consumers.ours("ours ORM", _OURS, style="orm", **batch),
            _faststream_on_kafka(consumers, supply, share=0.05),
        ]


class EffectsConcurrent(_EffectsRow):
    """Eight handlers at once."""

    name = "effects-concurrent"
    title = "effectively once from RabbitMQ, unordered, concurrency=8"
    broker = "rabbitmq"
    count, short_count = 10_000, 3000
    goals = (
        at_least(2, "ours concurrency=8", "faststream, own inbox, 20 connections"),
        at_least(1.6, "ours concurrency=8", "ours concurrency=1"),
    )

    def contestants(self, bench: Bench, supply: Supply, connection: Any) -> list[Contestant]:
        consumers = Effects(bench, supply, connection)
        return [
            *(
                consumers.ours(f"ours concurrency={n}", _OURS, style="core", concurrency=n)
                for n in (1, 8)
            ),
            _faststream_on_rabbitmq(consumers, supply, connections=20),
        ]


class EffectsDuplicates(_EffectsRow):
    """What the inbox knows already."""

    name = "effects-duplicates"
    title = "duplicates against new messages, from Kafka"
    count, short_count = 10_000, 3000
    goals: ClassVar[Sequence[Any]] = (
        at_least(1.0, "ours duplicates", "ours new"),
        at_least(1.0, "ours duplicates, transaction_size=100", "ours new, transaction_size=100"),
    )

    def contestants(self, bench: Bench, supply: Supply, connection: Any) -> list[Contestant]:
        new, old = Effects(bench, supply, connection), Duplicates(bench, supply, connection)
        batch = {"transaction_size": 100}
        skip = "benchmarks.ours.effects:skip"
        return [
            new.ours("ours new", _OURS, style="core"),
            old.ours("ours duplicates", skip, style="core"),
            new.ours("ours new, transaction_size=100", _OURS, style="core", **batch),
            old.ours("ours duplicates, transaction_size=100", skip, style="core", **batch),
        ]


ROWS = (
    EffectsKafka,
    EffectsRabbitMQ,
    EffectsRedis,
    EffectsBatch,
    EffectsConcurrent,
    EffectsDuplicates,
)
