"""The adapter contract on a real Kafka broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Producer

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import ContextFactory
from tests.adapters.kafka.secure import USER, WRONG, SecureKafka
from tests.brokers import Kafka
from tests.conftest import OwnServer


class TestKafkaContract(AdapterContract):
    @pytest.fixture
    def broker(self, own_server: OwnServer, request: pytest.FixtureRequest) -> Kafka | None:
        # A broker of its own only where the test kills it: the others share one.
        if "control" not in request.fixturenames:
            return None
        server = own_server("kafka")
        assert isinstance(server, Kafka)
        return server

    @pytest.fixture
    def secure(self) -> Iterator[SecureKafka]:
        with SecureKafka() as server:
            yield server

    @pytest.fixture
    def url(self, broker: Kafka | None, request: pytest.FixtureRequest) -> str:
        if "bad_credentials_url" in request.fixturenames:
            broker = request.getfixturevalue("secure")
        found: str = request.getfixturevalue("kafka_url") if broker is None else broker.url
        return f"{found}?session_timeout=2"

    @pytest.fixture
    def bad_credentials_url(self, secure: SecureKafka) -> str:
        return f"kafka+ssl://{USER}:{WRONG}@{secure.place}?mechanism=PLAIN&ca={secure.ca}"

    @pytest.fixture
    def adapter(self, url: str, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter(url, context())
        yield adapter
        adapter.close()

    @pytest.fixture
    def foreign(self, url: str) -> Callable[[str, bytes, list[tuple[str, bytes]]], None]:
        def publish(topic: str, body: bytes, headers: list[tuple[str, bytes]]) -> None:
            place = url.partition("://")[2].partition("?")[0]
            producer = Producer({"bootstrap.servers": place})
            producer.produce(topic, body, headers=[*headers])
            assert producer.flush(10) == 0

        return publish
