"""dramatiq on RabbitMQ."""

from __future__ import annotations

import json
from typing import Any

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.child import go
from benchmarks.seen import Seen
from benchmarks.workload import messages

_THREADS = 8


def _actor(broker_url: str, queue: str, seen: Seen | None) -> tuple[Any, Any]:
    broker = RabbitmqBroker(url=broker_url)
    dramatiq.set_broker(broker)

    @dramatiq.actor(queue_name=queue)
    def handle(order: dict[str, Any]) -> None:
        if seen is not None:
            seen.add(order["n"])

    return broker, handle


def fill(*, broker_url: str, where: str, count: int, keys: int) -> dict[str, Any]:
    """Declare the queue by the library, and publish what its ``send`` would, without waiting."""
    broker, actor = _actor(broker_url, where, None)
    broker.declare_queue(where, ensure=True)
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    channel = connection.channel()
    for _, _, body in messages(count, keys):
        message = actor.message(json.loads(body))
        channel.basic_publish(
            "", where, message.encode(), pika.BasicProperties(delivery_mode=2, priority=None)
        )
    connection.close()
    return {}


def consume(*, broker_url: str, queue: str, count: int) -> None:
    """Run a worker in this process."""
    seen = Seen(count)
    broker, _ = _actor(broker_url, queue, seen)
    worker = dramatiq.Worker(broker, worker_threads=_THREADS)
    go()
    worker.start()
    seen.report()
