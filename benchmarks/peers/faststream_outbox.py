"""faststream-outbox: its relay to the three brokers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from faststream_outbox import OutboxBroker, make_outbox_table
from faststream_outbox.annotations import OutboxMessage
from sqlalchemy import MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.brokers.kafka import bootstrap_of
from benchmarks.brokers.redis import stream_of
from benchmarks.child import go, report
from benchmarks.seen import Seen
from benchmarks.workload import body_of

TABLE = "fso_outbox"
QUEUE = "orders"
_BATCH = 500

Publish = Callable[[bytes, str], Awaitable[object]]


def create(*, database_url: str) -> dict[str, Any]:
    """Create its table."""
    metadata = MetaData()
    make_outbox_table(metadata, table_name=TABLE)
    engine = create_engine(database_url)
    metadata.create_all(engine)
    engine.dispose()
    return {}


def relay(
    *, database_url: str, broker: str, broker_url: str, topic: str, count: int, workers: int
) -> dict[str, Any]:
    """Send *count* rows, with one worker in their order, with several in any.

    The clock starts with the first row: its start, which takes long, is not what is compared.
    """
    return asyncio.run(_relay(database_url, _TO[broker](broker_url, topic), count, workers))


def serve(*, database_url: str, broker: str, broker_url: str, topic: str) -> None:
    """Relay one row after the other, until this process is ended."""
    target, publish_to = _TO[broker](broker_url, topic)
    engine = create_async_engine(database_url.replace("+psycopg", "+asyncpg"))
    outbox = _outbox(engine)

    @outbox.subscriber(QUEUE, fetch_batch_size=_BATCH, min_fetch_interval=0.01)
    async def handle(message: OutboxMessage) -> None:
        await publish_to(message.body, message.headers["message-key"])

    async def run() -> None:
        await target.start()
        go()
        await outbox.start()
        report(event="running")
        await asyncio.Event().wait()

    asyncio.run(run())


def publish(*, database_url: str, count: int, rate: int, keys: int) -> dict[str, Any]:
    """Commit *rate* rows a second; return when each COMMIT had come back."""
    return {"times": asyncio.run(_publish(database_url, count, rate, keys))}


async def _publish(database_url: str, count: int, rate: int, keys: int) -> list[int]:
    engine = create_async_engine(database_url.replace("+psycopg", "+asyncpg"))
    outbox = _outbox(engine)
    go()
    begun, times = time.monotonic(), []
    for n in range(count):
        await asyncio.sleep(max(0.0, begun + n / rate - time.monotonic()))
        async with engine.begin() as connection:
            await outbox.publish(
                body_of(n, keys),
                queue=QUEUE,
                session=connection,
                headers={"message-key": f"customer-{n % keys}"},
            )
        times.append(time.monotonic_ns())
    return times


def _outbox(engine: AsyncEngine) -> Any:
    table = make_outbox_table(MetaData(), table_name=TABLE)
    return OutboxBroker(engine, outbox_table=table, logger=None)


async def _relay(
    database_url: str, to: tuple[Any, Publish], count: int, workers: int
) -> dict[str, Any]:
    target, publish = to
    engine = create_async_engine(
        database_url.replace("+psycopg", "+asyncpg"), pool_size=workers + 5, max_overflow=10
    )
    outbox = _outbox(engine)
    seen = Seen(count)
    done = asyncio.Event()

    @outbox.subscriber(
        QUEUE,
        max_workers=workers,
        fetch_batch_size=_BATCH,
        min_fetch_interval=0.01,
        terminal_flush_batch_size=_BATCH if workers == 1 else max(1, _BATCH // workers),
    )
    async def handle(message: OutboxMessage) -> None:
        seen.begin()
        await publish(message.body, message.headers["message-key"])
        seen.add(message.correlation_id)
        if seen.done.is_set():
            done.set()

    await target.start()
    go()
    await outbox.start()
    await done.wait()
    await outbox.stop()
    await target.stop()
    await engine.dispose()
    return seen.result()


def _to_kafka(broker_url: str, topic: str) -> tuple[Any, Publish]:
    from faststream.confluent import KafkaBroker

    broker = KafkaBroker(bootstrap_of(broker_url), acks="all", enable_idempotence=True, logger=None)

    async def publish(body: bytes, key: str) -> object:
        return await broker.publish(body, topic, key=key)

    return broker, publish


def _to_redis(broker_url: str, topic: str) -> tuple[Any, Publish]:
    from faststream.redis import RedisBroker

    broker = RedisBroker(broker_url, logger=None)

    async def publish(body: bytes, key: str) -> object:
        return await broker.publish(body, stream=stream_of(topic), headers={"message-key": key})

    return broker, publish


def _to_rabbitmq(broker_url: str, topic: str) -> tuple[Any, Publish]:
    from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange

    broker = RabbitBroker(broker_url, logger=None)
    exchange = RabbitExchange(topic, type=ExchangeType.TOPIC, durable=True, declare=False)

    async def publish(body: bytes, key: str) -> object:
        return await broker.publish(
            body, "p.1.0", exchange, mandatory=True, persist=True, headers={"message-key": key}
        )

    return broker, publish


_TO = {"kafka": _to_kafka, "redis": _to_redis, "rabbitmq": _to_rabbitmq}
