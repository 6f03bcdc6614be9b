"""Messages by raw clients, to be taken a few at a time and acknowledged together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import pika
from confluent_kafka import Consumer, TopicPartition

from benchmarks.brokers.kafka import bootstrap_of
from benchmarks.brokers.redis import connect

_COMMIT_EVERY = 0.5
_WAIT = 0.5


_BODY = b'{"n":'
"""How every body begins."""


class Taken(NamedTuple):
    """What a handler needs of a message."""

    message_id: str
    body: bytes


class Deliveries(Protocol):
    """One consumer."""

    def take(self, limit: int) -> list[Taken]:
        """Return up to *limit* messages; none after a moment without any."""

    def ack(self) -> None:
        """Acknowledge everything taken."""


class FromKafka:
    """Positions are committed twice a second."""

    def __init__(self, *, broker_url: str, topic: str, group: str) -> None:
        self._topic = topic
        self._positions: dict[int, int] = {}
        self._commit_at = 0.0
        self._consumer: Any = Consumer(
            {
                "bootstrap.servers": bootstrap_of(broker_url),
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "fetch.queue.backoff.ms": 10,
            }
        )
        self._consumer.subscribe([topic])

    def take(self, limit: int) -> list[Taken]:
        """See the protocol."""
        first = self._consumer.poll(_WAIT)
        if first is None:
            self._commit()
            return []
        found = [first, *(self._consumer.consume(limit - 1, 0) if limit > 1 else ())]
        # Among the records are errors, which mend themselves here: a topic that is not known yet.
        records = [record for record in found if record.error() is None]
        for record in records:
            self._positions[record.partition()] = record.offset() + 1
        return [Taken(record.headers()[0][1].decode(), record.value()) for record in records]

    def ack(self) -> None:
        """See the protocol."""
        if time.monotonic() > self._commit_at:
            self._commit()

    def _commit(self) -> None:
        self._commit_at = time.monotonic() + _COMMIT_EVERY
        offsets = [TopicPartition(self._topic, p, at) for p, at in self._positions.items()]
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=True)


class FromRedis:
    """XREADGROUP and XACK."""

    def __init__(self, *, broker_url: str, stream: str, group: str) -> None:
        self._client = connect(broker_url)
        self._client.xgroup_create(stream, group, id="0")
        self._stream, self._group = stream, group
        self._ids: list[bytes] = []

    def take(self, limit: int) -> list[Taken]:
        """See the protocol."""
        answer: Any = self._client.xreadgroup(
            self._group, "raw", {self._stream: ">"}, count=limit, block=int(_WAIT * 1000)
        )
        if not answer:
            return []
        entries = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]
        self._ids = [entry for entry, _ in entries]
        return [_from_fields(fields) for _, fields in entries]

    def ack(self) -> None:
        """See the protocol."""
        self._client.xack(self._stream, self._group, *self._ids)


def _from_fields(fields: Any) -> Taken:
    if b"body" in fields:
        return Taken(fields[b"message-id"].decode(), fields[b"body"])
    # FastStream has a form of its own: headers and body, one behind the other.
    packed = fields[b"__data__"]
    return Taken("", packed[packed.index(_BODY) :])


class FromRabbitMQ:
    """A prefetch, and one acknowledgement for all that was taken."""

    def __init__(self, *, broker_url: str, queue: str) -> None:
        connection = pika.BlockingConnection(pika.URLParameters(broker_url))
        self._channel = connection.channel()
        self._channel.basic_qos(prefetch_count=500)
        self._stream: Iterator[Any] = self._channel.consume(queue, inactivity_timeout=_WAIT)
        self._tag = 0

    def take(self, limit: int) -> list[Taken]:
        """See the protocol."""
        found = []
        for method, properties, body in self._stream:
            if method is None:
                break
            self._tag = method.delivery_tag
            found.append(Taken(properties.message_id, body))
            if len(found) == limit:
                break
        return found

    def ack(self) -> None:
        """See the protocol."""
        self._channel.basic_ack(self._tag, multiple=True)


DELIVERIES: dict[str, type[Any]] = {
    "kafka": FromKafka,
    "redis": FromRedis,
    "rabbitmq": FromRabbitMQ,
}
