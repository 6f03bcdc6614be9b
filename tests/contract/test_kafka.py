"""The adapter contract on a real Kafka broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import ContextFactory, Foreign
from tests.adapters.kafka.secure import USER, WRONG, SecureKafka
from tests.brokers import Kafka, Server, ServerMissing, find


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A broker of its own, because the outage tests kill it."""
    found = find("kafka")
    try:
        found.start()
    except ServerMissing as error:
        if request.config.getoption("--require-brokers"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    yield found
    found.stop()


class TestKafkaContract(AdapterContract):
    column = "kafka"

    @pytest.fixture
    def broker(self, node: Server) -> Kafka | None:
        return node if isinstance(node, Kafka) else None

    @pytest.fixture
    def secure(self) -> Iterator[SecureKafka]:
        with SecureKafka() as server:
            yield server

    @pytest.fixture
    def url(self, node: Server, request: pytest.FixtureRequest) -> str:
        if "bad_credentials_url" in request.fixturenames:
            node = request.getfixturevalue("secure")
        return f"{node.url}?session_timeout=2"

    @pytest.fixture
    def bad_credentials_url(self, secure: SecureKafka) -> str:
        return f"kafka+ssl://{USER}:{WRONG}@{secure.place}?mechanism=PLAIN&ca={secure.ca}"

    @pytest.fixture
    def adapter(self, url: str, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter(url, context())
        yield adapter
        adapter.close()

    @pytest.fixture
    def foreign(self, url: str) -> Foreign:
        def publish(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            place = url.partition("://")[2].partition("?")[0]
            producer = Producer({"bootstrap.servers": place})
            producer.produce(topic, body, headers=[*headers])
            assert producer.flush(10) == 0

        return publish
