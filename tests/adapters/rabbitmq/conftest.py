from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from reliable_mq.adapter import Adapter, AdapterContext, GroupSpec, TopicSpec
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract.readers import Reader
from tests.brokers import RabbitMQ, Server

GROUP = "billing"


@dataclass
class Broker:
    """A virtual host of its own, and what its administrator can do in it."""

    node: RabbitMQ
    vhost: str
    url: str

    def api(self, method: str, path: str, body: object = None) -> Any:
        """A management request; ``{vhost}`` in the path is filled in."""
        return self.node.api(method, path.format(vhost=quote(self.vhost, safe="")), body)

    def connections(self, of: str) -> list[str]:
        """The broker's names of the open connections whose shown name contains *of*."""
        return [
            one["name"]
            for one in self.api("GET", "/vhosts/{vhost}/connections")
            if of in one.get("client_properties", {}).get("connection_name", "")
        ]


@pytest.fixture
def broker(rabbitmq_server: Server, rabbitmq_url: str, unique: str) -> Broker:
    if not isinstance(rabbitmq_server, RabbitMQ):
        pytest.skip("needs the management interface of a node of our own")
    return Broker(rabbitmq_server, unique, rabbitmq_url)


@pytest.fixture
def topics() -> dict[str, TopicSpec]:
    """What every adapter of the test sees as declared by the application."""
    return {}


@pytest.fixture
def opened(rabbitmq_url: str, topics: dict[str, TopicSpec]) -> Iterator[Callable[..., Adapter]]:
    """Opens an adapter, by default on the virtual host of the test, and closes it after."""
    with ExitStack() as stack:

        def make(
            url: str = rabbitmq_url, *, query: str = "", instance: str = "test", **context: Any
        ) -> Adapter:
            context = {"topics": topics, **context}
            adapter = open_adapter(url + query, AdapterContext(instance=instance, **context))
            stack.callback(adapter.close)
            return adapter

        yield make


@pytest.fixture
def adapter(opened: Callable[..., Adapter]) -> Adapter:
    return opened()


@pytest.fixture
def declare(adapter: Adapter, topics: dict[str, TopicSpec]) -> Callable[..., str]:
    """Declares a topic with the group ``billing``."""

    def make(
        name: str = "orders",
        *,
        groups: tuple[str, ...] = (GROUP,),
        ordered: bool = False,
        **spec: Any,
    ) -> str:
        topics[name] = TopicSpec(name=name, **spec)
        members = [GroupSpec(topic=name, group=group, ordered=ordered) for group in groups]
        adapter.declare([topics[name]], members)
        return name

    return make


@pytest.fixture
def reader(adapter: Adapter) -> Iterator[Callable[..., Reader]]:
    """Subscribes the group ``billing``."""
    with ExitStack() as stack:

        def make(
            topic: str = "orders",
            *,
            ordered: bool = False,
            prefetch: int = 500,
            on: Adapter = adapter,
        ) -> Reader:
            subscription = on.subscribe([topic], GROUP, prefetch=prefetch, ordered=ordered)
            stack.callback(subscription.close)
            return Reader(subscription)

        yield make
