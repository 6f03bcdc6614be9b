"""Kafka, with raw clients: topics, filling, reading back, what is committed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from benchmarks.workload import CONTENT_TYPE, id_of, messages, number_of

PARTITIONS = 8
_WAIT = 30.0
_QUIET = 3  # errors only


def bootstrap_of(url: str) -> str:
    """Return ``host:port`` of the broker's URL."""
    return url.partition("://")[2].rstrip("/")


@cache  # a client that is dropped while its answers are cleared up may end the process
def _admin(url: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_of(url), "log_level": _QUIET})


def create(url: str, topic: str, partitions: int = PARTITIONS) -> None:
    """Create a topic."""
    admin = _admin(url)
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(_WAIT)


def delete(url: str, topic: str) -> None:
    """Delete a topic, so that the disk does not fill."""
    admin = _admin(url)
    admin.delete_topics([topic])[topic].result(_WAIT)


def headers_of(n: int, run: int = 0) -> list[tuple[str, bytes]]:
    """Return the headers that the library's relay would give message *n*."""
    return [
        ("message-id", id_of(n, run).encode()),
        ("message-time", b"2026-01-01T00:00:00.000000+00:00"),
        ("content-type", CONTENT_TYPE.encode()),
    ]


def fill(url: str, topic: str, count: int, keys: int, *, run: int = 0) -> None:
    """Publish the messages and wait for every confirmation."""
    failed: list[object] = []
    producer: Any = Producer(
        {
            "bootstrap.servers": bootstrap_of(url),
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "log_level": _QUIET,
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failed.append(error)

    for n, key, body in messages(count, keys):
        while True:
            try:
                producer.produce(
                    topic, body, key, headers=headers_of(n, run), on_delivery=delivered
                )
                break
            except BufferError:
                producer.poll(0.1)
        if n % 1000 == 0:
            producer.poll(0)
    if producer.flush(120.0) or failed:
        raise RuntimeError(f"the topic {topic} could not be filled: {failed[:1]}")


def fill_at_once(url: str, topic: str, count: int, keys: int) -> None:
    """Publish the messages in one transaction: consumers see none of them, and then all."""
    producer: Any = Producer(
        {
            "bootstrap.servers": bootstrap_of(url),
            "transactional.id": f"fill-{topic}",
            "transaction.timeout.ms": 300_000,
            "partitioner": "murmur2_random",
            "log_level": _QUIET,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.init_transactions(_WAIT)
    producer.begin_transaction()
    for n, key, body in messages(count, keys):
        while True:
            try:
                producer.produce(topic, body, key, headers=headers_of(n))
                break
            except BufferError:
                producer.poll(0.1)
    producer.commit_transaction(120.0)


def wait_for_members(url: str, group: str, members: int) -> None:
    """Return once the group has so many members, each with a partition."""
    admin = _admin(url)
    deadline = time.monotonic() + 60.0
    while True:
        found = admin.describe_consumer_groups([group])[group].result(_WAIT)
        busy = [one for one in found.members if one.assignment.topic_partitions]
        if len(busy) == members and found.state.name == "STABLE":
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(busy)} of {members} members of {group} have partitions")
        time.sleep(0.1)


def _ends(consumer: Any, topic: str) -> dict[int, int]:
    known = consumer.list_topics(topic, timeout=_WAIT).topics[topic].partitions
    return {
        number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_WAIT)[1]
        for number in known
    }


def read_back(url: str, topic: str) -> Iterator[int]:
    """Yield the numbers of all messages of a topic; those of a partition in their order."""
    consumer: Any = Consumer(
        {
            "bootstrap.servers": bootstrap_of(url),
            "group.id": "benchmark-reader",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 10,
        }
    )
    try:
        left = {number: end for number, end in _ends(consumer, topic).items() if end}
        consumer.assign([TopicPartition(topic, number, 0) for number in left])
        deadline = time.monotonic() + 120.0
        while left:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the topic {topic} could not be read to its end")
            for record in consumer.consume(1000, 0.2):
                yield number_of(record.value())
                if record.offset() + 1 >= left[record.partition()]:
                    del left[record.partition()]
    finally:
        consumer.close()


def stored(url: str, topic: str) -> int:
    """Return how many messages the topic has, in one request: one may ask often."""
    ends = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(topic, number): ends for number in range(PARTITIONS)}
    answers = _admin(url).list_offsets(asked)
    return sum(max(0, one.result(_WAIT).offset) for one in answers.values())


def outstanding(url: str, topic: str, group: str) -> int:
    """Return how many messages of the topic the group has not committed."""
    admin = _admin(url)
    asked = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    # This first: the rest takes time, in which more may be committed.
    answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, asked)])
    found = answer[group].result(_WAIT).topic_partitions
    done = {one.partition: max(0, one.offset) for one in found}
    consumer: Any = Consumer(
        {"bootstrap.servers": bootstrap_of(url), "group.id": "benchmark-reader"}
    )
    try:
        ends = _ends(consumer, topic)
    finally:
        consumer.close()
    return sum(end - done.get(number, 0) for number, end in ends.items())
