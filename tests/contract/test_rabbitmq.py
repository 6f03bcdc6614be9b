from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import BrokerControl, ContextFactory, Foreign
from tests.adapters.rabbitmq.foreign import publish
from tests.adapters.rabbitmq.servers import started
from tests.brokers import RabbitMQ, Server, find


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A node of its own, because the outage tests kill it."""
    yield from started(request, find("rabbitmq"))


class TestRabbitMQContract(AdapterContract):
    column = "rabbitmq"

    @pytest.fixture
    def url(self, node: Server, unique: str) -> Iterator[str]:
        # Two seconds of heartbeat, so that a stopped process is noticed within six.
        if isinstance(node, RabbitMQ):
            yield node.create_vhost(unique) + "?heartbeat=2"
            node.delete_vhost(unique)
        else:
            yield node.url

    @pytest.fixture
    def adapter(self, url: str, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter(url, context())
        yield adapter
        adapter.close()

    @pytest.fixture
    def broker(self, node: Server) -> BrokerControl | None:
        return node if isinstance(node, RabbitMQ) else None

    @pytest.fixture
    def bad_credentials_url(self, url: str) -> str:
        parts = urlsplit(url)
        netloc = f"guest:sesame-open@{parts.hostname}:{parts.port}"
        return urlunsplit(parts._replace(netloc=netloc))

    @pytest.fixture
    def foreign(self, url: str) -> Foreign:
        def send(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            # AMQP knows no message without a body.
            publish(url, topic, body or b"", headers=headers)

        return send
