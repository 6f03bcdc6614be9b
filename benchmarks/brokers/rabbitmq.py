"""RabbitMQ, with a raw client: queues, filling, reading back, what is left in a queue."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pika

from benchmarks.workload import CONTENT_TYPE, id_of, messages, number_of

QUORUM = {"x-queue-type": "quorum"}
_WAIT = 60.0
_SILENCE = 0.5


def connect(url: str) -> Any:
    """Return a connection."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 600  # nobody answers heartbeats while messages are counted
    return pika.BlockingConnection(parameters)


def create(url: str, exchange: str, queue: str, arguments: dict[str, Any] | None = None) -> None:
    """Create a topic exchange with one durable quorum queue."""
    connection = connect(url)
    channel = connection.channel()
    channel.exchange_declare(exchange, "topic", durable=True)
    channel.queue_declare(queue, durable=True, arguments=arguments or QUORUM)
    channel.queue_bind(queue, exchange, "#")
    connection.close()


def delete(url: str, exchange: str, queue: str) -> None:
    """Delete both."""
    connection = connect(url)
    channel = connection.channel()
    channel.queue_delete(queue)
    channel.exchange_delete(exchange)
    connection.close()


def properties_of(n: int, key: str, run: int = 0) -> Any:
    """Return the properties that the library's relay would give message *n*."""
    return pika.BasicProperties(
        message_id=id_of(n, run),
        content_type=CONTENT_TYPE,
        delivery_mode=2,
        headers={"message-key": key, "message-time": "2026-01-01T00:00:00.000000+00:00"},
    )


def fill(url: str, exchange: str, queue: str, count: int, keys: int, *, run: int = 0) -> None:
    """Publish the messages and wait until the queue has them all."""
    connection = connect(url)
    channel = connection.channel()
    before = depth(url, queue)
    for n, key, body in messages(count, keys):
        channel.basic_publish(exchange, "p.1.0", body, properties_of(n, key, run))
    # Without confirmations: what the broker has not taken yet goes with the connection.
    wait_for(url, queue, before + count)
    connection.close()


def wait_for(url: str, queue: str, count: int) -> None:
    """Return once so many messages are ready in the queue."""
    deadline = time.monotonic() + _WAIT
    while depth(url, queue) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the queue {queue} could not be filled")
        time.sleep(0.05)


def depth(url: str, queue: str) -> int:
    """Return how many messages are ready in the queue."""
    connection = connect(url)
    try:
        found = connection.channel().queue_declare(queue, passive=True)
        return int(found.method.message_count)
    finally:
        connection.close()


def read_back(url: str, queue: str, expected: int) -> Iterator[int]:
    """Take every message out of the queue; yield their numbers in its order."""
    connection = connect(url)
    channel = connection.channel()
    found = 0
    # The queue cannot tell its end: it is where all are there, and nothing more comes.
    for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=_SILENCE):
        if method is None and (found >= expected or depth(url, queue) == 0):
            break
        if method is not None:
            found += 1
            yield number_of(body)
    connection.close()


def outstanding(url: str, queue: str) -> int:
    """Return what is left in the queue once its consumers are gone: ready and unacknowledged."""
    connection = connect(url)
    channel = connection.channel()
    deadline = time.monotonic() + _WAIT
    try:
        while True:
            found = channel.queue_declare(queue, passive=True).method
            if found.consumer_count == 0:
                return int(found.message_count)
            if time.monotonic() > deadline:
                raise RuntimeError(f"the queue {queue} still has consumers")
            time.sleep(0.05)
    finally:
        connection.close()
