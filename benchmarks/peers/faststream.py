"""FastStream: consumers on the three brokers, and one with an inbox written by hand."""

from __future__ import annotations

import asyncio
from typing import Any

from faststream import AckPolicy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.brokers.kafka import bootstrap_of
from benchmarks.brokers.redis import connect
from benchmarks.child import go
from benchmarks.effects import effects, values_of
from benchmarks.seen import Seen
from benchmarks.workload import messages

_PREFETCH = 500
_ONE = effects.insert().inline()
_REMEMBER = text(
    "INSERT INTO raw_inbox (message_id) VALUES (:id) ON CONFLICT DO NOTHING RETURNING message_id"
)


def _kafka(broker_url: str, topic: str, group: str) -> tuple[Any, Any]:
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(bootstrap_of(broker_url), logger=None)
    subscriber = broker.subscriber(
        topic, group_id=group, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK
    )
    return broker, subscriber


def _redis(broker_url: str, stream: str, group: str) -> tuple[Any, Any]:
    from faststream.redis import RedisBroker, StreamSub

    # By itself it would begin behind what is there already.
    connect(broker_url).xgroup_create(stream, group, id="0")
    broker = RedisBroker(broker_url, logger=None)
    place = StreamSub(
        stream, group=group, consumer="faststream", last_id=">", max_records=_PREFETCH
    )
    return broker, broker.subscriber(stream=place, ack_policy=AckPolicy.ACK)


def _rabbitmq(broker_url: str, queue: str, prefetch: int = _PREFETCH) -> tuple[Any, Any]:
    from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

    broker = RabbitBroker(broker_url, default_channel=Channel(prefetch_count=prefetch), logger=None)
    place = RabbitQueue(queue, durable=True, declare=False)
    return broker, broker.subscriber(place, ack_policy=AckPolicy.ACK)


def _run(broker: Any, subscriber: Any, count: int) -> None:
    seen = Seen(count)

    async def handle(body: dict[str, Any]) -> None:
        seen.add(body["n"])

    subscriber(handle)
    _serve(broker, seen)


def _serve(broker: Any, seen: Seen) -> None:
    async def serve() -> None:
        await broker.start()
        await asyncio.Event().wait()

    go()
    seen.report_beside()
    asyncio.run(serve())


def consume_kafka(*, broker_url: str, topic: str, group: str, count: int) -> None:
    """From Kafka."""
    _run(*_kafka(broker_url, topic, group), count)


def consume_redis(*, broker_url: str, stream: str, group: str, count: int) -> None:
    """From a stream in FastStream's own format."""
    _run(*_redis(broker_url, stream, group), count)


def consume_rabbitmq(*, broker_url: str, queue: str, count: int) -> None:
    """From a queue."""
    _run(*_rabbitmq(broker_url, queue), count)


def fill_redis(*, broker_url: str, where: str, count: int, keys: int) -> dict[str, Any]:
    """Write entries as FastStream's publisher would, though a hundred at a time."""
    from faststream.redis.parser import BinaryMessageFormatV1

    async def encoded(n: int, body: bytes) -> bytes:
        entry: bytes = await BinaryMessageFormatV1.encode(
            message=body,
            reply_to=None,
            headers={"content-type": "application/json"},
            correlation_id=str(n),
        )
        return entry

    async def fill() -> None:
        pipeline = connect(broker_url).pipeline(transaction=False)
        for n, _, body in messages(count, keys):
            pipeline.xadd(where, {"__data__": await encoded(n, body)})
            if n % 100 == 99:
                pipeline.execute()
        pipeline.execute()

    asyncio.run(fill())
    return {}


def effects_kafka(
    *, broker_url: str, topic: str, group: str, count: int, database_url: str
) -> None:
    """From Kafka, inbox and INSERT in one transaction."""
    _apply(*_kafka(broker_url, topic, group), count, database_url, 1)


def effects_rabbitmq(
    *, broker_url: str, queue: str, count: int, database_url: str, connections: int
) -> None:
    """From RabbitMQ, as many at once as there are database *connections*."""
    _apply(*_rabbitmq(broker_url, queue, connections), count, database_url, connections)


def _apply(broker: Any, subscriber: Any, count: int, database_url: str, connections: int) -> None:
    from faststream.message import StreamMessage

    engine = create_async_engine(
        database_url.replace("+psycopg", "+asyncpg"), pool_size=connections, max_overflow=0
    )
    seen = Seen(count)

    async def handle(body: dict[str, Any], message: Any) -> None:
        seen.begin()
        async with engine.begin() as connection:
            # On Kafka its own id is no id: the offset, of whatever partition.
            found = await connection.execute(
                _REMEMBER, {"id": message.headers.get("message-id") or message.message_id}
            )
            if found.scalar_one_or_none() is not None:
                await connection.execute(_ONE, values_of(body))
        seen.add(body["n"])

    from typing import Annotated

    from faststream import Context

    handle.__annotations__["message"] = Annotated[StreamMessage[Any], Context("message")]
    subscriber(handle)
    _serve(broker, seen)
