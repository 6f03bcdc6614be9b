"""The adapter contract on a real node, as a user with no more permissions than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import BrokerControl, ContextFactory, Foreign
from reliable_mq_rabbitmq import rights
from tests.adapters.rabbitmq.foreign import publish
from tests.adapters.rabbitmq.users import user
from tests.brokers import RabbitMQ, Server, find
from tests.conftest import started

TOPICS = "contract-[^.]+"
NEEDED = rights.to_declare(TOPICS) | rights.to_publish(TOPICS) | rights.to_consume(TOPICS, "[^.:]+")


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A node of its own, because the outage tests kill it."""
    yield from started(request, find("rabbitmq"))


class TestRabbitMQContract(AdapterContract):
    column = "rabbitmq"

    @pytest.fixture
    def admin_url(self, node: Server, unique: str) -> Iterator[str]:
        if isinstance(node, RabbitMQ):
            yield node.create_vhost(unique)
            node.delete_vhost(unique)
        else:
            yield node.url

    @pytest.fixture
    def url(
        self, node: Server, admin_url: str, unique: str, request: pytest.FixtureRequest
    ) -> Iterator[str]:
        # Two seconds of heartbeat where there are processes, so that a stopped one is noticed
        # within six. Elsewhere more: a busy machine may keep us waiting for as long.
        query = "?heartbeat=2" if "process" in request.fixturenames else ""
        if isinstance(node, RabbitMQ):
            with user(node, unique, NEEDED) as url:
                yield url + query
        else:
            yield admin_url

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
        netloc = f"{parts.username}:sesame-open@{parts.hostname}:{parts.port}"
        return urlunsplit(parts._replace(netloc=netloc))

    @pytest.fixture
    def foreign(self, admin_url: str) -> Foreign:
        def send(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            # AMQP knows no message without a body.
            publish(admin_url, topic, body or b"", headers=headers)

        return send
