"""An adapter on a database of its own, and the raw client beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import pytest
import redis

from reliable_mq.adapter import AdapterContext, GroupSpec, Subscription, TopicSpec
from reliable_mq.testing.contract.base import fresh_name
from reliable_mq_redis import open_adapter, subscription
from reliable_mq_redis.adapter import RedisAdapter
from tests.adapters.redis.proxy import Proxy
from tests.brokers import Redis
from tests.conftest import OwnServer

Cut: TypeAlias = Callable[[], None]

TIMEOUT = 30.0
"""Seconds of a publish whose time is not what is tested."""


class Open(Protocol):
    """Opens an adapter."""

    def __call__(
        self,
        url: str | None = None,
        *,
        query: str = "",
        lease: float = 30.0,
        client_options: dict[str, object] | None = None,
    ) -> RedisAdapter: ...


class Declare(Protocol):
    """Declares a fresh topic."""

    def __call__(
        self,
        *groups: str,
        partitions: int = 1,
        ordered: bool = False,
        options: dict[str, object] | None = None,
    ) -> str: ...


class Subscribe(Protocol):
    """Subscribes a group to a topic."""

    def __call__(
        self,
        topic: str,
        group: str = "billing",
        *,
        adapter: RedisAdapter | None = None,
        prefetch: int = 500,
        ordered: bool = False,
    ) -> Subscription: ...


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def topics() -> dict[str, TopicSpec]:
    return {}


@pytest.fixture
def raw(redis_url: str, resources: ExitStack) -> Any:
    client = redis.Redis.from_url(redis_url)
    resources.callback(client.close)
    return client


@pytest.fixture
def open_one(redis_url: str, topics: dict[str, TopicSpec], resources: ExitStack) -> Open:
    def make(
        url: str | None = None,
        *,
        query: str = "",
        lease: float = 30.0,
        client_options: dict[str, object] | None = None,
    ) -> RedisAdapter:
        context = AdapterContext(
            instance=fresh_name("test"),
            topics=topics,
            lease=lease,
            client_options=client_options or {},
        )
        adapter = open_adapter(f"{url or redis_url}?{query}", context)
        resources.callback(adapter.close)
        return adapter

    return make


@pytest.fixture
def adapter(open_one: Open) -> RedisAdapter:
    return open_one()


@pytest.fixture
def declare(adapter: RedisAdapter, topics: dict[str, TopicSpec]) -> Declare:
    def make(
        *groups: str,
        partitions: int = 1,
        ordered: bool = False,
        options: dict[str, object] | None = None,
    ) -> str:
        spec = TopicSpec(name=fresh_name("topic"), partitions=partitions, options=options or {})
        topics[spec.name] = spec
        names = groups or ("billing",)
        adapter.declare(
            [spec], [GroupSpec(topic=spec.name, group=one, ordered=ordered) for one in names]
        )
        return spec.name

    return make


@pytest.fixture
def subscribe(adapter: RedisAdapter, resources: ExitStack) -> Subscribe:
    def make(
        topic: str,
        group: str = "billing",
        *,
        adapter: RedisAdapter | None = adapter,
        prefetch: int = 500,
        ordered: bool = False,
    ) -> Subscription:
        assert adapter is not None
        made = adapter.subscribe([topic], group, prefetch=prefetch, ordered=ordered)
        resources.callback(made.close)
        return made

    return make


def replicas_online(server: Redis) -> int:
    """Return how many replicas have caught up with a server: none that still gets its copy."""
    with redis.Redis.from_url(server.url) as client:
        facts: dict[str, Any] = client.info("replication")
    replicas = [each for name, each in facts.items() if re.fullmatch(r"slave\d+", name)]
    return sum(each["state"] == "online" for each in replicas)


@pytest.fixture
def alone(own_server: OwnServer) -> Redis:
    """A server whose settings the test may change."""
    server = own_server("redis")
    assert isinstance(server, Redis)
    return server


@pytest.fixture
def proxy(redis_url: str, resources: ExitStack) -> Proxy:
    made = Proxy(urlsplit(redis_url).port or 6379)
    resources.callback(made.close)
    return made


@pytest.fixture
def through(redis_url: str, proxy: Proxy) -> str:
    """The URL of the server as seen through the proxy."""
    return f"redis://127.0.0.1:{proxy.port}{urlsplit(redis_url).path}"


@pytest.fixture
def cut(raw: Any) -> Cut:
    """Ends every connection to the test's database but the raw client's own."""

    def kill() -> None:
        own, database = raw.client_id(), raw.client_info()["db"]
        for client in raw.client_list():
            if int(client["id"]) != own and int(client["db"]) == database:
                raw.client_kill_filter(_id=client["id"])

    return kill


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close hands over however long it takes: on a busy machine two seconds may be too few."""
    monkeypatch.setattr(subscription, "CLOSING", 60.0)


@pytest.fixture
def length(raw: Any) -> Callable[[str], int]:
    """How many entries the first partition of a topic has."""
    return lambda topic: int(raw.xlen(f"{{{topic}}}:0"))
