"""The adapter contract on a real Kafka broker, as a user with no more rights than it takes.

On a broker that the environment names, as whoever its URL says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import GROUP, ContextFactory, Foreign
from reliable_mq_kafka import rights
from tests.adapters.kafka.secure import USER, WRONG, SecureKafka
from tests.brokers import find, variable
from tests.conftest import started

QUERY = "session_timeout=2"
TOPICS = ["contract-"]
GROUPS = [GROUP, "audit", "late"]
RIGHTS = (rights.DECLARE, rights.PUBLISH, rights.CONSUME, rights.TRANSACT, rights.INSPECT)


@pytest.fixture(scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[SecureKafka | None]:
    """A broker of its own, because the outage tests kill it."""
    if os.environ.get(variable("kafka")):
        yield None
        return
    for server in started(request, SecureKafka()):
        assert isinstance(server, SecureKafka)
        server.set_password()
        for each in RIGHTS:
            server.allow(each, topics=TOPICS, groups=GROUPS)
        internal = ["__consumer_offsets", "__transaction_state"]
        server.allow(rights.INSPECT_INTERNAL, topics=internal)
        yield server


class TestKafkaContract(AdapterContract):
    column = "kafka"

    @pytest.fixture
    def broker(self, own: SecureKafka | None) -> SecureKafka | None:
        return own

    @pytest.fixture
    def url(self, own: SecureKafka | None) -> str:
        return f"{find('kafka').url}?{QUERY}" if own is None else own.url_of(query=QUERY)

    @pytest.fixture
    def bad_credentials_url(self, own: SecureKafka | None) -> str | None:
        return None if own is None else own.url_of(USER, WRONG, QUERY)

    @pytest.fixture
    def adapter(self, url: str, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter(url, context())
        yield adapter
        adapter.close()

    @pytest.fixture
    def foreign(self, own: SecureKafka | None) -> Foreign:
        place = find("kafka").url.partition("://")[2] if own is None else own.bootstrap

        def publish(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            producer = Producer({"bootstrap.servers": place})
            producer.produce(topic, body, headers=[*headers])
            assert producer.flush(10) == 0

        return publish
