"""Kafka by confluent-kafka alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks.brokers.kafka import bootstrap_of
from benchmarks.child import Clock, consumed, go
from benchmarks.raw.outbox import Row, drain, serve
from benchmarks.raw.payloads import HANDLED

_COMMIT_EVERY = 0.5


def relay(*, database_url: str, broker_url: str, forever: bool = False) -> dict[str, Any]:
    """SELECT 500, produce, flush, DELETE."""
    producer: Any = Producer(
        {
            "bootstrap.servers": bootstrap_of(broker_url),
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 0,
        }
    )
    failed: list[object] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failed.append(error)

    def publish(rows: Sequence[Row]) -> None:
        for at, (_, message_id, key, body, content_type, topic) in enumerate(rows):
            headers = [
                ("message-id", message_id.encode()),
                ("content-type", content_type.encode()),
            ]
            producer.produce(topic, body, key, headers=headers, on_delivery=delivered)
            if at % 100 == 99:
                producer.poll(0)
        if producer.flush(30.0) or failed:
            raise RuntimeError(f"not everything was delivered: {failed[:1]}")

    return serve(database_url, publish) if forever else drain(database_url, publish)


def consume(*, broker_url: str, topic: str, group: str, count: int, payload: str) -> NoReturn:
    """Poll, count, commit the positions twice a second; the client tuned for throughput."""
    consumer: Any = Consumer(
        {
            "bootstrap.servers": bootstrap_of(broker_url),
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([topic])
    go()
    consumed(*_loop(consumer, topic, count, HANDLED[payload]))


def _loop(
    consumer: Any, topic: str, count: int, handled: Callable[[bytes], object]
) -> tuple[list[object], dict[str, float]]:
    numbers: list[object] = []
    positions: dict[int, int] = {}
    clock: Clock | None = None
    commit_at = time.monotonic() + _COMMIT_EVERY
    while len(numbers) < count:
        records = consumer.consume(500, 0.1)
        if records and clock is None:
            clock = Clock()
        for record in records:
            numbers.append(handled(record.value()))
            positions[record.partition()] = record.offset() + 1
        if positions and time.monotonic() > commit_at:
            consumer.commit(offsets=_offsets(topic, positions), asynchronous=True)
            commit_at = time.monotonic() + _COMMIT_EVERY
    assert clock is not None
    figures = clock.read()
    consumer.commit(offsets=_offsets(topic, positions), asynchronous=False)
    return numbers, figures


def _offsets(topic: str, positions: dict[int, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, number, offset) for number, offset in positions.items()]
