"""Raw processes on the way of a message: publishers, a relay that listens, a consumer."""

from __future__ import annotations

import json
import threading
import time
from typing import Any, NoReturn

import psycopg
from confluent_kafka import Producer

from benchmarks.arrivals import Arrivals, pace
from benchmarks.brokers import rabbitmq, redis
from benchmarks.brokers.kafka import bootstrap_of, headers_of
from benchmarks.child import go
from benchmarks.lab import dsn_of
from benchmarks.raw.deliveries import DELIVERIES
from benchmarks.workload import body_of, id_of

CHANNEL = "raw_outbox"


def publish_direct(
    *, broker: str, broker_url: str, topic: str, count: int, rate: int, keys: int
) -> dict[str, Any]:
    """Publish without an outbox; return when each publish began."""
    send = {"kafka": _kafka, "redis": _redis, "rabbitmq": _rabbitmq}[broker](broker_url, topic)
    go()
    times = []
    for n in pace(count, rate):
        times.append(time.monotonic_ns())
        send(n, f"customer-{n % keys}", body_of(n, keys))
    return {"times": times}


def _kafka(url: str, topic: str) -> Any:
    producer: Any = Producer(
        {"bootstrap.servers": bootstrap_of(url), "enable.idempotence": True, "linger.ms": 0}
    )

    def send(n: int, key: str, body: bytes) -> None:
        producer.produce(topic, body, key, headers=headers_of(n))
        producer.flush(10)

    return send


def _redis(url: str, topic: str) -> Any:
    client = redis.connect(url)

    def send(n: int, key: str, body: bytes) -> None:
        client.xadd(redis.stream_of(topic), redis.fields_of(n, key, body))

    return send


def _rabbitmq(url: str, topic: str) -> Any:
    channel = rabbitmq.connect(url).channel()
    channel.confirm_delivery()

    def send(n: int, key: str, body: bytes) -> None:
        channel.basic_publish(topic, "p.1.0", body, rabbitmq.properties_of(n, key), mandatory=True)

    return send


def publish(*, database_url: str, topic: str, count: int, rate: int, keys: int) -> dict[str, Any]:
    """Commit rows with a NOTIFY each; return when each COMMIT had come back."""
    insert = (
        "INSERT INTO raw_outbox (message_id, topic, message_key, body, content_type) "
        "VALUES (%s, %s, %s, %s, 'application/json')"
    )
    times = []
    with psycopg.connect(dsn_of(database_url)) as connection:
        go()
        for n in pace(count, rate):
            row = (id_of(n), topic, f"customer-{n % keys}".encode(), body_of(n, keys))
            connection.execute(insert, row, prepare=True)
            connection.execute(f"NOTIFY {CHANNEL}")
            connection.commit()
            times.append(time.monotonic_ns())
    return {"times": times}


def consume(*, broker: str, count: int, **where: str) -> NoReturn:
    """Note when each message comes."""
    deliveries = DELIVERIES[broker](**where)
    arrivals = Arrivals(count)

    def take() -> None:
        while True:
            if taken := deliveries.take(1):
                arrivals.add(int(json.loads(taken[0].body)["n"]))
                deliveries.ack()

    go()
    threading.Thread(target=take, daemon=True).start()
    arrivals.tell()
