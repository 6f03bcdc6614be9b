"""The adapter contract on real Redis servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from reliable_mq.adapter import Adapter
from reliable_mq.registry import open_adapter
from reliable_mq.testing.contract import AdapterContract
from reliable_mq.testing.contract.base import ContextFactory, Foreign
from tests.brokers import Redis
from tests.conftest import OwnServer


class TestRedisContract(AdapterContract):
    column = "redis"

    @pytest.fixture
    def broker(self, own_server: OwnServer, request: pytest.FixtureRequest) -> Redis | None:
        # A server of its own only where the test kills it: the others share one.
        if "control" not in request.fixturenames:
            return None
        server = own_server("redis", {"appendfsync": "always"})
        assert isinstance(server, Redis)
        return server

    @pytest.fixture
    def url(self, broker: Redis | None, request: pytest.FixtureRequest) -> str:
        found: str = request.getfixturevalue("redis_url") if broker is None else broker.url
        return found

    @pytest.fixture
    def adapter(self, url: str, context: ContextFactory) -> Iterator[Adapter]:
        adapter = open_adapter(url, context())
        yield adapter
        adapter.close()

    @pytest.fixture
    def bad_credentials_url(self, url: str) -> str:
        place = url.partition("://")[2]
        with redis.Redis.from_url(url) as client:
            client.acl_setuser("app", enabled=True, passwords=["+right"], reset=True)
        return f"redis://app:wrong-s3cret@{place}"

    @pytest.fixture
    def foreign(self, url: str) -> Foreign:
        def publish(topic: str, body: bytes | None, headers: list[tuple[str, bytes]]) -> None:
            pairs = headers if body is None else [("body", body), *headers]
            words = [word for pair in pairs for word in pair]
            with redis.Redis.from_url(url) as client:
                client.execute_command("XADD", f"{{{topic}}}:0", "*", *words)

        return publish
