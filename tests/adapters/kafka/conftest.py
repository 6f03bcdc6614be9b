"""Adapters on real brokers, and the plain client beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from confluent_kafka import Consumer, TopicPartition

from reliable_mq.adapter import AdapterContext, GroupSpec, Subscription, TopicSpec
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq_kafka import open_adapter
from reliable_mq_kafka.adapter import KafkaAdapter
from tests.adapters.kafka.secure import SecureKafka
from tests.brokers import Kafka, variable
from tests.conftest import started

GROUP = "billing"
PATIENT = "session_timeout=10"
"""A member that stands still for seconds, as on a busy machine, stays in its group."""


class Open(Protocol):
    """Opens an adapter."""

    def __call__(
        self,
        url: str | None = None,
        *,
        query: str = PATIENT,
        client_options: dict[str, object] | None = None,
        max_message_bytes: int = 1_000_000,
    ) -> KafkaAdapter: ...


class Declare(Protocol):
    """Declares a fresh topic."""

    def __call__(
        self,
        *groups: str,
        partitions: int | None = 1,
        options: dict[str, object] | None = None,
        adapter: KafkaAdapter | None = None,
    ) -> str: ...


class Subscribe(Protocol):
    """Subscribes a group."""

    def __call__(
        self,
        *topics: str,
        group: str = GROUP,
        adapter: KafkaAdapter | None = None,
        prefetch: int = 500,
    ) -> Subscription: ...


Committed = Callable[..., int | None]


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def topics() -> dict[str, TopicSpec]:
    return {}


@pytest.fixture
def open_one(
    request: pytest.FixtureRequest, topics: dict[str, TopicSpec], resources: ExitStack
) -> Open:
    def make(
        url: str | None = None,
        *,
        query: str = PATIENT,
        client_options: dict[str, object] | None = None,
        max_message_bytes: int = 1_000_000,
    ) -> KafkaAdapter:
        context = AdapterContext(
            instance=fresh_name("test"),
            topics=topics,
            client_options=client_options or {},
            max_message_bytes=max_message_bytes,
        )
        place = url or request.getfixturevalue("kafka_url")
        adapter = open_adapter(f"{place}{'&' if '?' in place else '?'}{query}", context)
        resources.callback(adapter.close)
        return adapter

    return make


@pytest.fixture
def adapter(open_one: Open) -> KafkaAdapter:
    return open_one()


@pytest.fixture
def declare(request: pytest.FixtureRequest, topics: dict[str, TopicSpec]) -> Declare:
    def make(
        *groups: str,
        partitions: int | None = 1,
        options: dict[str, object] | None = None,
        adapter: KafkaAdapter | None = None,
    ) -> str:
        spec = TopicSpec(name=fresh_name("topic"), partitions=partitions, options=options or {})
        topics[spec.name] = spec
        members = [GroupSpec(topic=spec.name, group=one) for one in groups or (GROUP,)]
        (adapter or request.getfixturevalue("adapter")).declare([spec], members)
        return spec.name

    return make


@pytest.fixture
def subscribe(request: pytest.FixtureRequest, resources: ExitStack) -> Subscribe:
    def make(
        *topics: str,
        group: str = GROUP,
        adapter: KafkaAdapter | None = None,
        prefetch: int = 500,
    ) -> Subscription:
        opened = adapter or request.getfixturevalue("adapter")
        made: Subscription = opened.subscribe(topics, group, prefetch=prefetch, ordered=True)
        resources.callback(made.close)
        return made

    return make


@pytest.fixture
def committed(kafka_url: str, resources: ExitStack) -> Committed:
    """What a group has committed on a partition, or None, as the plain client sees it."""
    place = kafka_url.partition("://")[2]

    def look(topic: str, partition: int = 0, group: str = GROUP) -> int | None:
        consumer = Consumer({"bootstrap.servers": place, "group.id": group})
        try:
            (found,) = consumer.committed([TopicPartition(topic, partition)], timeout=10)
            return found.offset if found.offset >= 0 else None
        finally:
            consumer.close()

    return look


@pytest.fixture(scope="module")
def secure(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A broker with an encrypted listener that wants a user, for one module."""
    yield from started(request, SecureKafka())


@pytest.fixture(scope="module")
def breakable(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A broker for one module that its tests break."""
    if os.environ.get(variable("kafka")):
        pytest.skip("a broker that somebody else runs cannot be killed from here")
    yield from started(request, Kafka())


@pytest.fixture
def own(breakable: Kafka) -> Iterator[Kafka]:
    """A broker that this test may kill or pause; it is mended afterwards."""
    yield breakable
    breakable.resume()
    if breakable.running:
        # One that was stopped has lost its place in the cluster, and takes it up again.
        breakable.wait_ready()
    else:
        breakable.restart()
